//! Ending what a lab started, from its directory alone: also after the lab's own process
//! was killed and nobody is left to ask.
//!
//! Invariant: a process is signalled only when its command line names the lab's directory,
//! so that a number which somebody else has got since is left alone.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Ends every sshd, storage daemon and guest of the lab in `dir`.
pub fn sweep(dir: &Path) {
    for host in children(&dir.join("hosts")) {
        end(&host.join("run/sshd.pid"), &host);
    }
    for vm in children(&dir.join("vm")) {
        end(&vm.join("qsd.pid"), &vm);
    }
    if let Some(guests) = crate::guests::Guests::of(dir) {
        guests.end();
    }
}

/// Ends the process of a pid file and all that it started; the file goes too.
pub fn end(pid_file: &Path, named: &Path) {
    let Ok(text) = fs::read_to_string(pid_file) else { return };
    let Ok(pid) = text.trim().parse::<i32>() else { return };
    if is_ours(pid, named) {
        kill_tree(pid);
        // sshd is nobody's child; its ports and files are free only when it has gone.
        let deadline = Instant::now() + Duration::from_secs(10);
        while alive(pid) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
    }
    let _ = fs::remove_file(pid_file);
}

/// Whether a process runs; one that has ended and waits for its parent does not.
pub fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "))
}

fn is_ours(pid: i32, named: &Path) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let name = named.as_os_str().as_encoded_bytes();
    line.windows(name.len()).any(|part| part == name)
}

/// Kills a process and all that it started. It is stopped first, so that it starts no
/// more while its children are looked up.
fn kill_tree(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
    let children =
        fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    for child in children.split_whitespace().filter_map(|c| c.parse().ok()) {
        kill_tree(child);
    }
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

fn children(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect()
}
