//! The SSH room against real OpenSSH.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

#[path = "../support/mod.rs"]
mod support;

mod algorithms;
mod deliver;
mod enroll;
mod exec;
mod hostkey;
mod jump;
mod login;
mod stream;
