//! `hvbak-worker`: reads and writes volumes on a hypervisor, driven by frames on stdin and
//! stdout (`hvbak-wire`, PROTOCOL.md). It listens nowhere, reads no configuration, resolves
//! no names. stderr carries log lines. End of file on stdin means: stop and exit.
//!
//! Invariant: nothing but frames is ever written to stdout once the magic is out.

mod block;
mod buffer;
mod chain;
mod error;
mod guard;
mod host;
mod inbox;
mod layers;
mod locate;
mod output;
mod planner;
mod reader;
mod seen;
mod session;
mod target;
mod throttle;
mod volume;
mod writer;
mod zero;

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};

const HELP: &str = "\
Reads and writes volumes on an oVirt hypervisor for hvbak; started by it over SSH.

usage: hvbak-worker            speak frames on stdin and stdout
       hvbak-worker --version  print version and protocol versions
       hvbak-worker --help     print this

HVBAK_HOST_ROOT=DIR  look below DIR instead of / (test labs only)
";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.first().and_then(|a| a.to_str()) {
        // Somebody at a keyboard wants to know what this is, not a magic on the screen.
        None if arguments.is_empty() && !io::stdin().is_terminal() => session::run(),
        Some("--version" | "-V") if arguments.len() == 1 => {
            println!("{}", hvbak_wire::version_line());
            ExitCode::SUCCESS
        }
        Some("--help" | "-h") if arguments.len() == 1 => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        _ => {
            eprint!("{HELP}");
            ExitCode::from(2)
        }
    }
}
