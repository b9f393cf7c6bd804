//! Chores of the project: `cargo xtask tidy|worker|docs|rpm|test|demo|bench`.
//!
//! CI and people run the same commands; nothing is checked by CI alone. Kept small: what a
//! program on the machine does well is called, not rewritten.

mod bench;
mod build;
mod demo;
mod docs;
mod fuzz;
mod needs;
mod rpm;
mod test;
mod tidy;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Chores of the hvbak project
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check the rules of the house: imports between rooms, file heads, sizes
    Tidy,
    /// Build the static worker and print its path
    Worker,
    /// Write manual pages and completions into target/docs
    Docs,
    /// Build the packages of hvbak and hvbak-worker for Enterprise Linux
    Rpm(rpm::RpmArgs),
    /// Build packages fast, walk through the README with them, install, upgrade and remove them
    RpmTrial(rpm::TrialArgs),
    /// Run every test there is
    Test {
        /// Install missing programs
        #[arg(long)]
        install: bool,
        /// A skipped test is a failure; also by HVBAK_NO_SKIP=1 (CI)
        #[arg(long)]
        no_skip: bool,
    },
    /// Back up and restore a running VM in a lab of its own
    Demo(demo::DemoArgs),
    /// Run the fuzz targets for a short time
    Fuzz(fuzz::FuzzArgs),
    /// Measure hvbak beside its peers
    Bench(bench::BenchArgs),
}

fn main() -> std::process::ExitCode {
    match execute() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn execute() -> Result<()> {
    std::env::set_current_dir(build::root())?;
    let strict = std::env::var_os("HVBAK_NO_SKIP").is_some_and(|v| v == "1");
    match Cli::parse().command {
        Command::Tidy => tidy::run(),
        Command::Worker => build::worker().map(|path| println!("{}", path.display())),
        Command::Docs => docs::run().map(|path| println!("{}", path.display())),
        Command::Rpm(args) => rpm::build(&args),
        Command::RpmTrial(args) => rpm::try_out(&args, strict),
        Command::Test { install, no_skip } => test::run(install, no_skip || strict),
        Command::Demo(args) => demo::run(&args),
        Command::Fuzz(args) => fuzz::smoke(&args),
        Command::Bench(args) => bench::run(args),
    }
}
