//! Every test there is, in one command; what CI runs is this and nothing else.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{
    build::{self, cargo, run as must},
    fuzz::{self, FuzzArgs},
    needs,
    rpm::{self, TrialArgs},
    tidy,
};

/// Runs tidy, format, lints, the static worker, all Rust tests and the SDK's.
pub fn run(install: bool, no_skip: bool) -> Result<()> {
    needs::check(&[needs::DEMO, needs::TEST], install)?;
    needs::guests(install)?;
    step("tidy");
    tidy::run()?;
    step("format");
    must(cargo().args(["fmt", "--all", "--check"]))?;
    step("lints");
    must(cargo().args([
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    step("worker and programs");
    let worker = build::worker()?;
    build::programs()?;
    step("tests");
    let mut tests = cargo();
    if has_nextest() {
        tests.args(["nextest", "run", "--workspace", "--no-fail-fast"]);
    } else {
        tests.args(["test", "--workspace", "--no-fail-fast"]);
    }
    tests.env("HVBAK_WORKER", &worker);
    if no_skip {
        tests.env("HVBAK_NO_SKIP", "1");
    }
    // A test runner hides the words of tests that pass, so skips are told again here.
    let skips = tempfile::NamedTempFile::new()?;
    tests.env("HVBAK_SKIP_LOG", skips.path());
    let result = must(&mut tests);
    for skip in std::fs::read_to_string(skips.path())?.lines() {
        println!("SKIP: {skip}");
    }
    result?;
    step("fuzz targets for a short time");
    fuzz::smoke(&FuzzArgs::default())?;
    step("the official Python SDK against the lab");
    sdk(no_skip)?;
    step("packages");
    rpm::try_out(&TrialArgs::default(), no_skip)?;
    println!("==> all tests passed");
    Ok(())
}

fn sdk(no_skip: bool) -> Result<()> {
    let made = Command::new("scripts/sdk-venv.sh").status().context("start scripts/sdk-venv.sh")?;
    if !made.success() {
        println!("SKIP: the SDK's environment cannot be made: {made}");
        ensure!(!no_skip, "a skip is a failure here");
        return Ok(());
    }
    must(Command::new("target/sdk-venv/bin/python").arg("tests/sdk/test_sdk.py"))
}

fn has_nextest() -> bool {
    cargo().args(["nextest", "--version"]).output().is_ok_and(|o| o.status.success())
}

fn step(name: &str) {
    println!("==> {name}");
}
