//! Client of the oVirt engine's REST API v4 (engines 4.2 to 4.5: oVirt, RHV, OLVM).
//!
//! Speaks HTTPS and XML and fills the values of `hvbak_types`. It must never know SSH, the
//! repository or a policy: it neither chooses a host nor decides what is backed up.
//! Invariants: no changing request is executed twice; secrets leave only as headers or form
//! fields towards the configured origin; what the engine did not say is `None`.
//!
//! Read `client` first (one request), then `wait` (states, creating once), then any of
//! `inventory`, `snapshot`, `disk`, `vm`.

mod auth;
mod ca;
mod client;
mod config;
mod disk;
mod error;
mod event;
mod fault;
mod hardware;
mod inventory;
pub mod ovf;
pub mod parse;
mod role;
mod snapshot;
mod template;
mod tls;
mod transport;
mod vm;
mod wait;
pub mod xml;

pub use ca::{DownloadedCa, download_ca, fingerprint};
pub use client::Engine;
pub use config::{AuthMode, CaSource, EngineConfig, Timeouts};
pub use disk::NewDisk;
pub use error::EngineError;
pub use event::NewEvent;
pub use fault::{ConflictKind, classify_conflict};
pub use hardware::{NewAttachment, NewNic};
pub use inventory::{Parts, VmWith};
pub use parse::{Event, Job, StorageConnection};
pub use role::{Need, PERMITS, Permit, Rights};
pub use snapshot::SnapshotGone;
pub use template::{NewTemplate, hardware_of_template};
pub use vm::{NewVm, VmDocument};
pub use wait::Created;
