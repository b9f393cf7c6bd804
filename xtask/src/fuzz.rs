//! The fuzz targets for a short time each, with the stable compiler and without cargo-fuzz.
//!
//! A campaign of hours is for `cargo +nightly fuzz run --fuzz-dir tests/fuzz TARGET`; this
//! is the smoke test that keeps targets building and finds what lies near the surface.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};

use crate::build::{cargo, run, target_dir};

/// Enough for what lies near the surface; a campaign takes hours.
const SECONDS: u32 = 60;

/// How long to try.
#[derive(Debug, clap::Args)]
pub struct FuzzArgs {
    /// Seconds for each target
    #[arg(long, default_value_t = SECONDS)]
    pub seconds: u32,
}

impl Default for FuzzArgs {
    fn default() -> Self {
        Self { seconds: SECONDS }
    }
}

/// Instrumentation as cargo-fuzz gives it, less the address sanitizer, which only a
/// nightly compiler has; the targets are safe Rust, so panics, hangs and memory are what
/// can be found.
const FLAGS: &str = "--cfg fuzzing -Cdebug-assertions -Ccodegen-units=1 \
    -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";

const TARGETS: &[&str] = &["qcow2_reader", "frame_decoder"];
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Builds and runs each target; an input that breaks one is left in `target/fuzz`.
pub fn smoke(args: &FuzzArgs) -> Result<()> {
    let folder = target_dir().join("fuzz");
    run(cargo()
        .args(["build", "--quiet", "--release", "--locked", "--bins", "--target", TRIPLE])
        .args(["--manifest-path", "tests/fuzz/Cargo.toml", "--target-dir"])
        .arg(&folder)
        .env("RUSTFLAGS", FLAGS))?;
    for target in TARGETS {
        let corpus = folder.join("corpus").join(target);
        fs::create_dir_all(&corpus).with_context(|| corpus.display().to_string())?;
        let broken = folder.join(format!("{target}-"));
        let mut fuzzer = Command::new(folder.join(TRIPLE).join("release").join(target));
        fuzzer.arg(format!("-max_total_time={}", args.seconds));
        // One input: 10 s and 256 MiB are far more than any may cost.
        fuzzer.args(["-timeout=10", "-malloc_limit_mb=256", "-rss_limit_mb=1024"]);
        fuzzer.arg("-print_final_stats=1").arg(format!("-artifact_prefix={}", broken.display()));
        let ended = fuzzer.arg(&corpus).output().with_context(|| format!("start {fuzzer:?}"))?;
        let said = String::from_utf8_lossy(&ended.stderr);
        ensure!(ended.status.success(), "{target} found something ({}):\n{said}", ended.status);
        let tried = said.lines().find_map(|l| l.strip_prefix("stat::number_of_executed_units:"));
        println!("{target}: nothing found by {} inputs", tried.map_or("?", str::trim));
    }
    Ok(())
}
