//! What the whole-program tests share: a lab of their own, the program run as a user runs
//! it, and the assertion that nothing is left behind.
//!
//! Invariant: a test sees only the programs' faces (exit codes, JSON lines, files, what
//! foreign tools say of them), never their insides; every process it starts dies with it.

pub mod damage;
pub mod lab;
pub mod peers;
pub mod postgres;
pub mod program;
pub mod small;
pub mod story;

pub use lab::{Lab, Replay, small};
pub use peers::{Mount, Peers};
pub use postgres::Postgres;
pub use program::{Run, Started, run_tool};
pub use small::Small;
pub use story::Story;

use std::{
    io::Write,
    path::PathBuf,
    time::{Duration, Instant},
};

/// The folder of the built programs: the one above this test's own.
pub fn bin(name: &str) -> PathBuf {
    let me = std::env::current_exe().expect("the test's own path");
    let dir = me.parent().and_then(|deps| deps.parent()).expect("a target folder");
    let path = dir.join(name);
    assert!(
        path.is_file(),
        "{} is not built; run `cargo build --workspace --bins` first (`cargo xtask test` does)",
        path.display()
    );
    path
}

/// The worker that hvbak pushes: the caller's choice, the static one, or the plain one.
pub fn worker() -> PathBuf {
    if let Some(path) = std::env::var_os("HVBAK_WORKER") {
        return path.into();
    }
    let target = bin("hvbak-worker");
    let fixed = target.ancestors().nth(2).expect("a target folder");
    let fixed = fixed.join("x86_64-unknown-linux-gnu/worker/hvbak-worker");
    if fixed.is_file() { fixed } else { target }
}

/// Says loudly that a test cannot run here; with `HVBAK_NO_SKIP` that is a failure.
/// Returns, so that the caller can: `if cannot("reason") { return }`.
pub fn skip(reason: &str) {
    let name = std::thread::current().name().unwrap_or("?").to_owned();
    let wanted = std::env::var("HVBAK_NO_SKIP").is_ok_and(|v| !v.is_empty() && v != "0");
    assert!(!wanted, "SKIP is a failure here: {reason}");
    eprintln!("SKIP: {name}: {reason}");
    if let Some(log) = std::env::var_os("HVBAK_SKIP_LOG") {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(log);
        let _ = file.and_then(|mut f| writeln!(f, "{name}: {reason}"));
    }
}

/// Waits until a level is reached; fails with what was waited for.
pub fn wait_for(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !reached() {
        assert!(Instant::now() < deadline, "still waiting for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether this process is root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
