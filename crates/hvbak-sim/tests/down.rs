//! A lab that ended leaves no process and no socket; what it stored stays for a look.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod common;

use std::{
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    process::Command,
};

use common::{Kept, LAB, Lab, processes_with, run, wait};

fn sockets(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            out.extend(sockets(&entry.path()));
        } else if kind.is_socket() {
            out.push(entry.path());
        }
    }
    out
}

fn assert_nothing_left(dir: &Path) {
    let name = dir.to_str().unwrap();
    wait("the end of the lab's processes", || processes_with(name).is_empty());
    assert_eq!(sockets(dir), Vec::<PathBuf>::new());
}

#[test]
fn down_leaves_no_process_and_no_socket() {
    let lab = Lab::up(None, &["--domains", "nfs,gluster,localfs"]);
    let name = lab.dir.path().to_str().unwrap().to_owned();
    assert!(processes_with(&name).iter().any(|p| p.contains("sshd")));
    assert!(processes_with(&name).iter().any(|p| p.contains("qemu-storage-daemon")));
    run(Command::new(LAB).args(["down", "--dir"]).arg(lab.dir.path()));
    assert_nothing_left(lab.dir.path());
    for host in lab.about["hosts"].as_array().unwrap() {
        let port = u16::try_from(host["port"].as_u64().unwrap()).unwrap();
        assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err(), "{host}");
    }
    assert!(lab.path("storage/nfs1").is_dir());
}

/// Whatever the test finds, its lab does not outlive it.
struct Swept<'a>(&'a Path);

impl Drop for Swept<'_> {
    fn drop(&mut self) {
        let _ = Command::new(LAB).args(["down", "--dir"]).arg(self.0).output();
    }
}

#[test]
fn a_signal_ends_a_lab_as_down_does() {
    let dir = tempfile::tempdir().unwrap();
    let _swept = Swept(dir.path());
    let mut lab =
        Kept::start(Command::new(LAB).args(["up", "--hosts", "1", "--dir"]).arg(dir.path()));
    assert!(lab.line().contains("engine_url"));
    let pid = nix::unistd::Pid::from_raw(i32::try_from(lab.0.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(lab.0.wait().unwrap().success());
    assert_nothing_left(dir.path());
}
