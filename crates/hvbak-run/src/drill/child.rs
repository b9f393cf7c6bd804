//! Foreign programs of a drill: without privileges and without a network, and gone when the
//! drill is gone. They end, too, when they fill the scratch place.
//!
//! Each runs under a shell that holds the other end of a pipe of ours. The pipe closes when
//! the program is no longer wanted or when this process dies, however it dies, and the
//! shell kills the program. It has a process group of its own, so that Ctrl-C reaches this
//! process alone, which ends things in their order.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
};
use tokio_util::sync::CancellationToken;

use super::scratch::{self, local};
use crate::error::{Result, RunError};

/// `$1` the signal, then the program and its arguments. A killed shell's child would live
/// on; nobody but the kernel's memory killer does that, and it takes the larger one.
const GUARD: &str = r#"signal=$1
shift
exec 3<&0
"$@" </dev/null 3<&- &
child=$!
exec >/dev/null 2>&1
{ read -r _ <&3; kill -s "$signal" "$child"; } &
watch=$!
exec 3<&-
wait "$child"
code=$?
kill "$watch"
exit "$code"
"#;
/// Bytes of a program's output that are kept.
const OUTPUT_MAX: usize = 4 << 20;
/// How long a program may take to die.
const DEATH: Duration = Duration::from_secs(20);

/// Whom foreign programs run as.
#[derive(Debug, Clone)]
pub struct Owner {
    /// User and group, when this process may choose.
    ids: Option<(u32, u32)>,
    /// Whether they can have a network namespace of their own, with nothing in it.
    alone: bool,
}

impl Owner {
    /// The named user when this process is root. Without root there is no other one to take,
    /// and [`Owner::unfit`] says so.
    pub fn find(name: &str) -> Result<Self> {
        if unfit().is_some() {
            return Ok(Self { ids: None, alone: false });
        }
        let found = nix::unistd::User::from_name(name).map_err(|errno| RunError::Local {
            doing: format!("look user {name} up"),
            cause: errno.into(),
        })?;
        match found {
            Some(user) if !user.uid.is_root() => {
                // Containers may refuse it; no program is given a network card or port anyway.
                let alone = std::process::Command::new("unshare").args(["-n", "true"]).output();
                let alone = alone.is_ok_and(|said| said.status.success());
                Ok(Self { ids: Some((user.uid.as_raw(), user.gid.as_raw())), alone })
            }
            Some(_) => Err(RunError::DrillUnfit {
                why: format!("user `{name}` is root, and drills run foreign systems"),
            }),
            None => Err(RunError::DrillUnfit { why: format!("there is no user `{name}`") }),
        }
    }

    /// Makes a file or directory that user's.
    pub fn give(&self, path: &Path) -> Result<()> {
        let Some((user, group)) = self.ids else { return Ok(()) };
        std::os::unix::fs::lchown(path, Some(user), Some(group))
            .map_err(local(format!("give {} away", path.display())))
    }

    /// The words before a program's name.
    fn prefix(&self, group: Option<u32>) -> Vec<String> {
        let Some((user, own)) = self.ids else { return Vec::new() };
        let alone = if self.alone { &["unshare", "-n", "--"][..] } else { &[] };
        let mut words: Vec<String> = alone.iter().map(|word| (*word).to_owned()).collect();
        words.extend([
            "setpriv".into(),
            format!("--reuid={user}"),
            format!("--regid={own}"),
            group.map_or("--clear-groups".into(), |group| format!("--groups={group}")),
            "--no-new-privs".into(),
            "--inh-caps=-all".into(),
            "--".into(),
        ]);
        words
    }
}

/// Why nothing foreign is run: it would be run as the user who can write the repository.
pub fn unfit() -> Option<&'static str> {
    let root = nix::unistd::geteuid().is_root();
    (!root).then_some("hvbak is not run as root and has no other user to take")
}

/// How programs are started.
#[derive(Debug, Clone)]
pub struct Start<'a> {
    pub owner: &'a Owner,
    /// The directory that they run in and keep temporary files in.
    pub dir: &'a Path,
    /// A further group, e.g. that of `/dev/kvm`.
    pub group: Option<u32>,
    /// What ends them: `KILL`, or `QUIT` for PostgreSQL, which then tidies up.
    pub signal: &'static str,
    /// They end when less is free in the directory; bytes.
    pub reserve: u64,
}

/// A program at work.
pub struct Guarded {
    child: Child,
    hold: ChildStdin,
    pub stdout: ChildStdout,
    pub stderr: ChildStderr,
}

/// What a program that ended has said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Said {
    /// The last line of its errors.
    pub fn last_line(&self) -> String {
        last_line(&self.stderr)
    }
}

/// The last line that says something, shortened.
pub fn last_line(text: &str) -> String {
    let line = text.trim().lines().next_back().unwrap_or("it says nothing");
    line.chars().filter(|c| !c.is_control()).take(300).collect()
}

impl Start<'_> {
    /// Starts a program.
    pub fn start(&self, program: &Path, args: &[String]) -> Result<Guarded> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", GUARD, "sh", self.signal]).args(self.owner.prefix(self.group));
        command.arg(program).args(args).current_dir(self.dir).env_clear();
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        command.env("PATH", path).env("LC_ALL", "C").env("HOME", self.dir).env("TMPDIR", self.dir);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0);
        let doing = format!("start {}", program.display());
        let mut child = command.spawn().map_err(local(doing.clone()))?;
        let parts = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(hold), Some(stdout), Some(stderr)) = parts else {
            return Err(RunError::Task { text: doing });
        };
        Ok(Guarded { child, hold, stdout, stderr })
    }

    /// Runs a program to its end.
    pub async fn run(
        &self,
        cancel: &CancellationToken,
        program: &Path,
        args: &[&str],
    ) -> Result<Said> {
        let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let mut running = self.start(program, &args)?;
        let both = async { tokio::join!(read(&mut running.stdout), read(&mut running.stderr)) };
        tokio::select! {
            (stdout, stderr) = both => {
                let code = running.end().await;
                let stderr = String::from_utf8_lossy(&stderr).into_owned();
                Ok(Said { code, stdout, stderr })
            }
            () = cancel.cancelled() => {
                running.end().await;
                Err(RunError::Cancelled)
            }
            () = scratch::filled(self.dir, self.reserve) => {
                running.end().await;
                let (tool, mib) = (program.display().to_string(), self.reserve >> 20);
                let text = format!("ended: less than {mib} MiB were free in the scratch directory");
                Err(RunError::Tool { tool, text })
            }
        }
    }
}

impl Guarded {
    /// Ends it if it still runs, and waits for that; its exit code.
    pub async fn end(self) -> Option<i32> {
        let Self { mut child, hold, .. } = self;
        drop(hold);
        let status = tokio::time::timeout(DEATH, child.wait()).await;
        status.ok().and_then(|status| status.ok()).and_then(|status| status.code())
    }
}

/// Reads to the end, keeps the beginning.
async fn read(source: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let (mut kept, mut buffer) = (Vec::new(), vec![0; 16 << 10]);
    // A source that fails has ended.
    while let Ok(count @ 1..) = source.read(&mut buffer).await {
        let room = OUTPUT_MAX.saturating_sub(kept.len()).min(count);
        kept.extend_from_slice(&buffer[..room]);
    }
    kept
}

/// A program by its name, or in one of these directories.
pub fn find(name: &str, also: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(also.iter().cloned());
    dirs.map(|dir| dir.join(name)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> Owner {
        Owner { ids: None, alone: false }
    }

    fn start<'a>(owner: &'a Owner, dir: &'a Path) -> Start<'a> {
        Start { owner, dir, group: None, signal: "KILL", reserve: 0 }
    }

    #[tokio::test]
    async fn a_program_ends_by_itself_when_told_and_with_us() {
        let dir = tempfile::tempdir().unwrap();
        let owner = me();
        let start = start(&owner, dir.path());
        let never = CancellationToken::new();
        let sh = Path::new("/bin/sh");
        let said = start.run(&never, sh, &["-c", "echo out; echo a >&2; exit 7"]).await.unwrap();
        assert_eq!(
            (said.code, said.stdout.as_slice(), said.last_line().as_str()),
            (Some(7), &b"out\n"[..], "a")
        );
        let script = "echo $$ >pid; trap '' TERM; while :; do sleep 0.1; done";
        let gone = |dir: &Path| {
            let pid = std::fs::read_to_string(dir.join("pid")).unwrap();
            !Path::new("/proc").join(pid.trim()).exists()
        };
        let running = start.start(sh, &["-c".into(), script.into()]).unwrap();
        while !dir.path().join("pid").exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        running.end().await;
        assert!(gone(dir.path()));
        // Dropped without a word, as everything is when this process dies.
        std::fs::remove_file(dir.path().join("pid")).unwrap();
        let running = start.start(sh, &["-c".into(), script.into()]).unwrap();
        while std::fs::read_to_string(dir.path().join("pid")).unwrap_or_default().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(running);
        for _ in 0..100 {
            if gone(dir.path()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("it lives");
    }

    #[tokio::test]
    async fn output_without_end_is_bounded_and_cancelled() {
        let dir = tempfile::tempdir().unwrap();
        let owner = me();
        let cancel = CancellationToken::new();
        let stop = cancel.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(300)).await;
            stop.cancel();
        });
        let start = start(&owner, dir.path());
        let said = start.run(&cancel, Path::new("/bin/sh"), &["-c", "yes"]).await;
        assert!(matches!(said, Err(RunError::Cancelled)));
        let start = Start { reserve: u64::MAX, ..start };
        let never = CancellationToken::new();
        let said = start.run(&never, Path::new("/bin/sh"), &["-c", "yes"]).await;
        assert!(said.unwrap_err().to_string().contains("MiB were free"));
    }
}
