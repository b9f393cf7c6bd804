//! Locks hold against other handles and processes, say who has them, and die with their
//! holder.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use super::*;
use crate::Repository;

#[test]
fn a_second_holder_is_told_who_is_first() {
    let dir = tempfile::tempdir().unwrap();
    let repository = Repository::init(dir.path()).unwrap();
    let (vm, job) = (VmId::random(), JobId::random());
    let held = repository.lock_vm(vm, job).unwrap();
    let other = Repository::open(dir.path()).unwrap();
    let error = other.lock_vm(vm, JobId::random()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&job.to_string()) && text.contains(&vm.to_string()), "{text}");
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    assert!(error.retryable() && error.hint().unwrap().contains("the lock ends with the process"));
    // Another VM is free, readers are free, prune is not.
    other.lock_vm(VmId::random(), job).unwrap();
    other.lock_shared().unwrap();
    let error = other.lock_exclusive(JobId::random()).unwrap_err();
    assert!(error.to_string().contains(&job.to_string()), "{error}");
    drop(held);
    other.lock_vm(vm, job).unwrap();
    let alone = other.lock_exclusive(job).unwrap();
    assert!(matches!(repository.lock_vm(vm, job), Err(Error::Locked { holder: Some(_), .. })));
    assert!(matches!(repository.lock_shared(), Err(Error::Locked { .. })));
    drop(alone);
    repository.lock_vm(vm, job).unwrap();
}

#[test]
fn a_stale_or_silly_lock_file_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    let repository = Repository::init(dir.path()).unwrap();
    let (vm, job) = (VmId::random(), JobId::random());
    for text in ["", "{}", "\u{1b}[2J garbage", &"x".repeat(100_000)] {
        std::fs::write(repository.layout.vm_lock(vm), text).unwrap();
        repository.lock_vm(vm, job).unwrap();
    }
}

/// Not a test of its own but the process that the next one kills; does nothing without it.
#[test]
fn hold_until_killed() {
    let Ok(root) = std::env::var("HVBAK_TEST_LOCK_ROOT") else { return };
    let vm = std::env::var("HVBAK_TEST_LOCK_VM").unwrap().parse().unwrap();
    let repository = Repository::open(root).unwrap();
    let _lock = repository.lock_vm(vm, JobId::random()).unwrap();
    let _journal = repository.journal(JobId::random()).unwrap();
    eprintln!("\nheld");
    std::thread::sleep(std::time::Duration::from_secs(60));
}

#[test]
fn a_killed_process_holds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let repository = Repository::init(dir.path()).unwrap();
    let vm = VmId::random();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lock::tests::hold_until_killed", "--nocapture"])
        .env("HVBAK_TEST_LOCK_ROOT", dir.path())
        .env("HVBAK_TEST_LOCK_VM", vm.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let held = BufReader::new(child.stderr.take().unwrap())
        .lines()
        .map_while(std::io::Result::ok)
        .any(|line| line == "held");
    let locked = repository.lock_vm(vm, JobId::random());
    let alive = repository.open_journals().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(held);
    match locked {
        Err(Error::Locked { holder: Some(holder), .. }) => assert_eq!(holder.pid, child.id()),
        other => panic!("{other:?}"),
    }
    assert!(alive.len() == 1 && alive[0].alive);
    repository.lock_vm(vm, JobId::random()).unwrap();
    assert!(!repository.open_journals().unwrap()[0].alive);
}
