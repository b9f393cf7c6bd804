//! The engine client against recorded answers and against an engine that misbehaves on
//! purpose, over real HTTPS.

#![allow(clippy::unwrap_used)]

mod faults;
mod operations;
mod oracle;
mod ovf;
mod recorded;
mod replay;
mod server;
