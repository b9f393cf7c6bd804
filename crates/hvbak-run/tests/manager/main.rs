//! Jobs on the manager against real OpenSSH and a stand-in for engine-backup that replays
//! recorded runs of the real program byte for byte.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

#[allow(dead_code, reason = "each user of the helper uses a part of it")]
#[path = "../../../hvbak-ssh/tests/support/mod.rs"]
mod sshd;

#[allow(clippy::expect_used, dead_code, reason = "shared with the whole program's tests")]
#[path = "../../../../tests/it/support/postgres.rs"]
mod server;

mod backup;
mod cancel;
mod dwh;
mod dwh_revert;
mod dwh_service;
mod encrypted;
mod hosted_engine;
mod jump;
mod paths;
mod postgres;
mod prune;
mod relay;
mod restore;
mod stage;
