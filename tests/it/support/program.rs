//! Programs as children: run to the end, or started and signalled.

use std::{
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// How long any command of a test may take. Far above what it needs: a hang must end.
const PATIENCE: Duration = Duration::from_secs(120);

/// A program that has ended.
#[derive(Debug)]
pub struct Run {
    pub shown: String,
    /// Exit code; 128 + the signal when killed.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub(crate) fn new(shown: String, output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let status = output.status;
        Self {
            shown,
            code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Asserts the exit code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self}");
        self
    }

    /// Asserts that both outputs together hold a text, whatever its case.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        let all = format!("{}\n{}", self.stdout, self.stderr).to_lowercase();
        assert!(all.contains(&text.to_lowercase()), "`{text}` is not in\n{self}");
        self
    }

    /// Asserts that no output holds a text.
    #[track_caller]
    pub fn never_says(self, text: &str) -> Self {
        assert!(!self.stdout.contains(text) && !self.stderr.contains(text), "{self}");
        self
    }

    /// The JSON lines of stdout; every line must be one.
    #[track_caller]
    pub fn lines(&self) -> Vec<Value> {
        let parse = |l: &str| {
            serde_json::from_str(l).unwrap_or_else(|e| panic!("no JSON ({e}): {l}\n{self}"))
        };
        self.stdout.lines().map(parse).collect()
    }

    /// The lines of one type.
    #[track_caller]
    pub fn of(&self, kind: &str) -> Vec<Value> {
        self.lines().into_iter().filter(|l| l["type"] == kind).collect()
    }

    /// The last line, which must be the result and agree with the exit code.
    #[track_caller]
    pub fn result(&self) -> Value {
        let lines = self.lines();
        let last = lines.last().cloned().unwrap_or_default();
        assert_eq!(last["type"], "result", "{self}");
        assert_eq!(last["exit"], self.code, "{self}");
        last
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { shown, code, stdout, stderr } = self;
        write!(f, "$ {shown}\nexit {code}\nstdout:\n{stdout}\nstderr:\n{stderr}")
    }
}

/// A program that runs; killed when dropped.
#[derive(Debug)]
pub struct Started {
    shown: String,
    child: Option<Child>,
}

impl Started {
    /// Starts with captured output.
    pub fn new(command: &mut Command) -> Self {
        let shown = format!("{command:?}");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap_or_else(|e| panic!("cannot start {shown}: {e}"));
        Self { shown, child: Some(child) }
    }

    pub fn pid(&self) -> i32 {
        self.child.as_ref().map_or(0, |c| c.id() as i32)
    }

    /// Sends a signal; one that has ended is left alone.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.pid()), signal);
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|c| matches!(c.try_wait(), Ok(Some(_))))
    }

    /// Waits for its end; a program that does not end is killed and the test fails.
    #[track_caller]
    pub fn wait(mut self) -> Run {
        let child = self.child.take().expect("waited for once");
        let (pid, shown) = (child.id() as i32, self.shown.clone());
        let (done, timer) = std::sync::mpsc::channel::<()>();
        let started = Instant::now();
        let watch = std::thread::spawn(move || {
            if timer
                .recv_timeout(PATIENCE)
                .is_err_and(|e| e == std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        });
        let output = child.wait_with_output().expect("the program's output");
        drop(done);
        let _ = watch.join();
        let run = Run::new(shown, output);
        assert!(started.elapsed() < PATIENCE, "hangs: {run}");
        run
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs a foreign tool, which must succeed; gives its standard output.
#[track_caller]
pub fn run_tool(program: &str, args: &[&str]) -> String {
    let run = Started::new(Command::new(program).args(args)).wait().exits(0);
    run.stdout
}
