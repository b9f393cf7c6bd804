//! Signals and sudden death at many moments: nothing is left, or `hvbak cleanup` leaves
//! nothing.
//!
//! The moments are spread over the length that the same command took just before, so they
//! fall into all of its steps on any machine.

use std::time::{Duration, Instant};

use hvbak_tests::{Lab, Run, wait_for};
use nix::sys::signal::Signal;

const MOMENTS: u32 = 10;

/// Seven seconds become one or two: enough to hit each step.
fn filled() -> Lab {
    let lab = Lab::standard();
    lab.configure(|text| format!("{text}\n[transfer]\nrate_limit_mib = 12\n"));
    lab.fill_web1();
    lab
}

/// Runs the command whole once, then sends a signal at each moment of it.
fn at_many_moments(
    lab: &Lab,
    signal: Signal,
    command: impl Fn(u32) -> Vec<String>,
    mut after: impl FnMut(u32, Run),
) {
    let run = |n: u32| {
        let words = command(n);
        lab.start(&words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let began = Instant::now();
    run(0).wait().exits(0);
    let whole = began.elapsed();
    for n in 1..=MOMENTS {
        let started = run(n);
        // The last moments lie behind the middle, where undoing and merging is.
        std::thread::sleep(whole * n / (MOMENTS + 1));
        started.signal(signal);
        after(n, started.wait());
    }
}

fn backup(_: u32) -> Vec<String> {
    ["backup", "--vm", "web1"].map(str::to_owned).into()
}

fn restore(n: u32) -> Vec<String> {
    ["restore", "web1", "--name", &format!("copy{n}")].map(str::to_owned).into()
}

/// Processes on a host end a moment after their connection.
#[track_caller]
fn settles(lab: &Lab, restored: &[&str], what: &str) {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let left = lab.leftovers(restored);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: left behind: {left:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn an_interrupted_backup_leaves_nothing_at_any_moment() {
    let lab = filled();
    at_many_moments(&lab, Signal::SIGINT, backup, |n, run| {
        assert!(run.code == 130 || run.code == 0, "moment {n}: {run}");
        settles(&lab, &[], &format!("moment {n}, {run}"));
    });
    lab.hvbak(&["verify", "--all"]).exits(0);
}

#[test]
fn a_terminated_backup_says_so_by_its_exit_code() {
    let lab = filled();
    let run =
        lab.start_until(&["--json", "backup", "--vm", "web1"], |lab| !lab.points().is_empty());
    run.signal(Signal::SIGTERM);
    let run = run.wait().exits(143);
    assert_eq!(run.result()["status"], "cancelled");
    settles(&lab, &[], "after SIGTERM");
}

#[test]
fn a_killed_backup_is_undone_by_cleanup_at_any_moment() {
    let lab = filled();
    at_many_moments(&lab, Signal::SIGKILL, backup, |n, run| {
        let shown = lab.hvbak(&["cleanup"]).exits(0);
        settles(&lab, &[], &format!("moment {n}, {run}\n{shown}"));
        // Undoing twice is harmless.
        lab.hvbak(&["cleanup"]).exits(0);
    });
    lab.hvbak(&["verify", "--all"]).exits(0);
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
}

#[test]
fn an_interrupted_restore_leaves_nothing_at_any_moment() {
    let lab = filled();
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    let mut made = vec!["copy0".to_owned()];
    at_many_moments(&lab, Signal::SIGINT, restore, |n, run| {
        assert!(run.code == 130 || run.code == 0, "moment {n}: {run}");
        if run.code == 0 {
            made.push(format!("copy{n}"));
        }
        let made: Vec<_> = made.iter().map(String::as_str).collect();
        settles(&lab, &made, &format!("moment {n}, {run}"));
    });
}

#[test]
fn a_killed_restore_is_undone_by_cleanup_at_any_moment() {
    let lab = filled();
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    let mut made = vec!["copy0".to_owned()];
    at_many_moments(&lab, Signal::SIGKILL, restore, |n, run| {
        let shown = lab.hvbak(&["cleanup"]).exits(0);
        if run.code == 0 {
            made.push(format!("copy{n}"));
        }
        let made: Vec<_> = made.iter().map(String::as_str).collect();
        settles(&lab, &made, &format!("moment {n}, {run}\n{shown}"));
    });
}

#[test]
fn the_second_signal_leaves_at_once_and_cleanup_ends_it() {
    let lab = filled();
    let mut run = lab.start_until(&["backup", "--vm", "web1"], |lab| !lab.points().is_empty());
    wait_for("its end", || {
        run.signal(Signal::SIGINT);
        run.ended()
    });
    let run = run.wait();
    assert_eq!(run.code, 130, "{run}");
    lab.hvbak(&["cleanup"]).exits(0);
    settles(&lab, &[], "after two signals");
}

#[test]
fn waiting_for_an_engine_that_is_down_can_be_interrupted() {
    let lab = filled();
    lab.lab("down", &[]);
    let run = lab.start(&["list", "vms"]);
    std::thread::sleep(Duration::from_millis(1500));
    run.signal(Signal::SIGINT);
    run.wait().exits(130);
}

#[test]
fn a_dry_cleanup_tells_and_changes_nothing() {
    let lab = filled();
    let run =
        lab.start_until(&["backup", "--vm", "web1"], |lab| !lab.own_snapshots("web1").is_empty());
    run.signal(Signal::SIGKILL);
    run.wait();
    lab.hvbak(&["cleanup", "--dry-run"]).exits(0).says("would undo").says("snapshot");
    assert!(!lab.leftovers(&[]).is_empty());
    lab.hvbak(&["doctor"]).says("hvbak cleanup");
    lab.hvbak(&["cleanup"]).exits(0);
    settles(&lab, &[], "after the cleanup");
}
