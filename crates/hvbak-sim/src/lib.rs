//! The lab: a simulated engine over real OpenSSH hosts and real qcow2 storage.
//!
//! Simulated are the engine (REST API, states, events) and vdsm's book-keeping; real are
//! TLS, sshd, qemu-img, qemu-storage-daemon and every byte of the disks. It imports no
//! other room, so that it cannot share a mistake with the client it judges.

pub mod api;
pub mod block;
pub mod control;
pub mod engine_backup;
pub mod fault;
pub mod guest;
pub mod guests;
pub mod hosts;
pub mod model;
pub mod ops;
pub mod ovf;
pub mod qsd;
pub mod render;
pub mod replay;
pub mod search;
pub mod seed;
pub mod server;
pub mod storage;
pub mod sweep;
pub mod xml;
