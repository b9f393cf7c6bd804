//! Building the programs that chores need.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// The triple of the static worker. The plain gnu target: no toolchain beyond the usual.
pub const WORKER_TARGET: &str = "x86_64-unknown-linux-gnu";

/// The workspace's directory.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// Where cargo puts what it builds.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Runs a command, which must succeed.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {:?}", command.get_program()))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}

/// The cargo that runs us.
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Builds the static worker; gives its path.
pub fn worker() -> Result<PathBuf> {
    run(cargo()
        .args(["build", "--quiet", "--package", "hvbak-worker", "--profile", "worker"])
        .args(["--target", WORKER_TARGET])
        .env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    let path = target_dir().join(WORKER_TARGET).join("worker/hvbak-worker");
    let ldd = Command::new("ldd").arg(&path).output().context("start ldd")?;
    let said =
        String::from_utf8_lossy(&ldd.stdout).into_owned() + &String::from_utf8_lossy(&ldd.stderr);
    ensure!(
        said.contains("statically linked") || said.contains("not a dynamic executable"),
        "{} is not static: {said}",
        path.display()
    );
    Ok(path)
}

/// Builds `hvbak` and `hvbak-lab`; gives the directory they are in.
pub fn programs() -> Result<PathBuf> {
    run(cargo().args(["build", "--quiet", "--package", "hvbak", "--package", "hvbak-sim"]))?;
    Ok(target_dir().join("debug"))
}
