//! SSH sessions to hypervisors: pinned host keys, exec, byte streams, pushed worker,
//! enrolment.
//!
//! This room knows hosts, keys and commands; it must never know volumes, disks or VMs.
//! Invariants a reader would break: a host key is accepted only by a pin or by explicit
//! consent; one [`Connection`] carries either short commands or one byte stream, never
//! both at once (an undrained channel freezes its whole connection); no write waits for
//! a command that has ended; nothing from outside is put unquoted into a command line.

mod algorithms;
mod auth;
mod client;
mod connect;
pub mod deliver;
pub mod enroll;
mod error;
mod guard;
mod handshake;
mod hostkey;
mod limiter;
mod output;
mod pins;
mod probe;
mod process;
mod prompt;
mod quote;
mod reading;
mod target;
mod transport;

pub use algorithms::Negotiated;
pub use connect::Connection;
pub use error::{Error, Result};
pub use hostkey::{HostKey, HostTrust, Pin};
pub use output::{ExitStatus, Output, neutralise};
pub use pins::PinStore;
pub use probe::{HostInfo, SudoRight, WORKER_PATH, probe};
pub use process::{Process, ProcessExit, ProcessStdin, ProcessStdout};
pub use quote::{script, sh_quote};
pub use target::{Identity, SshOptions, Target};
pub use transport::{BoxFuture, Outlet, Russh, Session, Transport};
