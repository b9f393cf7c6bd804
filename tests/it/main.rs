//! Tests of the whole program against real parts: QEMU's block layer, OpenSSH, qcow2
//! files. One behaviour per test, named as a sentence; each has a lab of its own.

// The helpers of tests are tests too; clippy knows only `#[test]` functions.
#![allow(clippy::unwrap_used)]

mod backup_full;
mod bad_input;
mod block;
mod cancel;
mod cli;
mod config_only;
mod disagreement;
mod disk_changes;
mod doctor;
mod drill;
mod dwh;
mod enroll;
mod fleet;
mod gluster;
mod history;
mod hosted_engine_hosts;
mod hosted_engine_keys;
mod hosted_engine_plan;
mod hosted_engine_walk;
mod incremental;
mod json;
mod manager;
mod mid_stream;
mod network;
mod nfs;
mod notify;
mod overwrite;
mod policy;
mod prune;
mod report;
mod repository;
mod restore;
mod resume;
mod role;
mod runbook;
mod sectors;
mod service;
mod template;
mod trust;
mod walk_site;
