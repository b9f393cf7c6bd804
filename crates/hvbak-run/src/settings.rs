//! What a job is told by the configuration, free of file formats.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use hvbak_types::Secret;

/// Settings of all jobs.
#[derive(Debug, Clone)]
pub struct Settings {
    pub ssh: SshSettings,
    pub worker: WorkerSettings,
    pub transfer: TransferSettings,
    pub timeouts: Timeouts,
    /// Bytes that stay free in the repository.
    pub reserve: u64,
    /// Whether a backup leaves its snapshot on the VM as the base of the next delta.
    pub keep_snapshot: bool,
    /// How many VMs are backed up at the same time.
    pub limits: hvbak_plan::Limits,
    /// The machine that engine-backup runs on.
    pub manager: Option<crate::manager::ManagerSettings>,
    /// Overrides by host name.
    pub hosts: BTreeMap<String, HostOverride>,
    /// How guests are reached in which commands run, by the VM's name.
    pub guests: BTreeMap<String, GuestSettings>,
}

/// The way into a guest.
#[derive(Debug, Clone)]
pub struct GuestSettings {
    pub address: String,
    pub port: u16,
    pub user: String,
    /// hvbak's own key without it.
    pub key_file: Option<PathBuf>,
    /// OpenSSH line or `SHA256:…`.
    pub host_key: String,
}

/// How hosts are logged in to.
#[derive(Debug, Clone)]
pub struct SshSettings {
    pub user: String,
    pub key_file: PathBuf,
    pub passphrase: Option<Secret>,
    pub agent: bool,
    /// `[USER@]HOST[:PORT]` and the OpenSSH line of its host key.
    pub jump: Option<(String, Option<String>)>,
    pub connect_timeout: Duration,
    /// Silence after which a host is asked for a sign of life; four times that is its end.
    pub keepalive: Duration,
}

/// Where the worker comes from.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    pub installed: bool,
    pub push: bool,
    /// The binary that is pushed.
    pub binary: Option<PathBuf>,
}

/// How data is moved.
#[derive(Debug, Clone)]
pub struct TransferSettings {
    /// SSH connections per disk, at least 1.
    pub streams: usize,
    /// Threads per worker; 0 = the worker decides.
    pub threads: u32,
    /// zstd level; 0 = uncompressed.
    pub compression: u32,
    /// Bytes per second over all streams of a run; 0 = no limit.
    pub rate_limit: u64,
}

/// How long the engine may take.
#[derive(Debug, Clone)]
pub struct Timeouts {
    pub snapshot: Duration,
    pub merge: Duration,
    pub disk: Duration,
    pub vm: Duration,
}

/// What the site knows better than the engine about a host.
#[derive(Debug, Clone, Default)]
pub struct HostOverride {
    pub address: Option<String>,
    pub port: Option<u16>,
    pub user: Option<String>,
    pub host_key: Option<String>,
}
