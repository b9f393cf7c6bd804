//! What the pages are filled with.
//!
//! Invariant: there is no field for a password, a key or a token; addresses, names and
//! public fingerprints only. What is not known is `None` or an empty list, and the pages
//! say so.

use jiff::Timestamp;

/// A site, as it was when it was read.
#[derive(Debug, Clone)]
pub struct Facts {
    /// When the engine and the repository were asked.
    pub read: Timestamp,
    /// The backup host's name.
    pub backup_host: String,
    /// hvbak's version.
    pub hvbak: String,
    pub repository: String,
    pub repository_id: String,
    /// Who is called, one a line, from the configuration.
    pub contacts: Vec<String>,
    pub engine: EngineFacts,
    pub hosts: Vec<HostFacts>,
    pub domains: Vec<DomainFacts>,
    pub networks: Vec<NetworkFacts>,
    pub mac_pools: Vec<MacPoolFacts>,
    /// In the order of restoration.
    pub vms: Vec<VmFacts>,
    /// Stored backups of the manager, newest first.
    pub manager_points: Vec<ManagerPointFacts>,
    /// The last rehearsal of each manager's archive.
    pub manager_drills: Vec<ManagerDrillFacts>,
    /// Bytes of content per second that the last backups moved; `None`: nothing measured.
    pub speed: Option<u64>,
}

#[derive(Debug, Clone)]
pub struct EngineFacts {
    pub url: String,
    /// The name in it.
    pub fqdn: String,
    pub version: String,
    /// VM that the engine runs in, when it is a VM of its own site.
    pub hosted_engine_vm: Option<String>,
}

#[derive(Debug, Clone)]
pub struct HostFacts {
    pub name: String,
    pub address: String,
    pub port: u16,
    pub cluster: String,
    pub data_center: String,
    pub status: String,
    /// Of its SSH key, as the engine recorded it.
    pub fingerprint: Option<String>,
    pub os: Option<String>,
}

#[derive(Debug, Clone)]
pub struct DomainFacts {
    pub name: String,
    pub id: String,
    pub kind: String,
    /// `nfs`, `iscsi` …
    pub storage: String,
    /// `ADDRESS:PATH`, the LUNs, or what else finds it.
    pub connection: String,
    pub data_centers: String,
    pub status: String,
    pub master: bool,
    pub used: Option<u64>,
    pub available: Option<u64>,
}

#[derive(Debug, Clone)]
pub struct NetworkFacts {
    pub name: String,
    pub data_center: String,
    pub vlan: Option<u32>,
    pub mtu: Option<u32>,
    pub profiles: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct MacPoolFacts {
    pub name: String,
    /// `FIRST – LAST` of each range.
    pub ranges: Vec<String>,
    /// `None`: the engine does not say.
    pub duplicates: Option<bool>,
    pub default: bool,
}

#[derive(Debug, Clone)]
pub struct VmFacts {
    pub name: String,
    pub id: String,
    pub cluster: String,
    pub status: String,
    /// Of its priority tag; smaller comes first.
    pub priority: Option<u32>,
    pub highly_available: bool,
    pub newest: Option<PointFacts>,
    /// The last `verify` that looked at a point of it.
    pub verified: Option<VerifyFacts>,
    /// The last rehearsal of a point of it.
    pub drill: Option<DrillFacts>,
}

/// What a `verify` has found.
#[derive(Debug, Clone)]
pub struct VerifyFacts {
    pub at: Timestamp,
    /// The newest point that it looked at.
    pub point: Option<String>,
    /// Whether every point that it looked at was whole.
    pub passed: bool,
}

/// A rehearsal of a restore.
#[derive(Debug, Clone)]
pub struct DrillFacts {
    pub at: Timestamp,
    pub point: Option<String>,
    pub came: DrillEnd,
    /// Exactly what was seen.
    pub seen: String,
    /// The newest one since, by which nothing is known.
    pub skipped_since: Option<SkippedFacts>,
}

/// A rehearsal that was left out or stopped.
#[derive(Debug, Clone)]
pub struct SkippedFacts {
    pub at: Timestamp,
    pub why: String,
}

/// How a rehearsal ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrillEnd {
    Through,
    Failed,
    /// It was left out, or stopped: nothing is known by it.
    NotDone,
}

#[derive(Debug, Clone)]
pub struct ManagerDrillFacts {
    pub manager: String,
    pub drill: DrillFacts,
}

#[derive(Debug, Clone)]
pub struct PointFacts {
    pub id: String,
    pub taken: Timestamp,
    pub consistency: String,
    /// What is wrong with it at a look at its structure.
    pub damage: Option<String>,
    /// Bytes that the guest had written.
    pub content: u64,
    pub disks: Vec<DiskFacts>,
}

#[derive(Debug, Clone)]
pub struct DiskFacts {
    pub alias: String,
    /// The stored image, absolute.
    pub image: String,
    pub virtual_size: u64,
    pub domain: String,
    /// `raw` or `qcow2`, as the engine had it.
    pub format: String,
    pub bootable: bool,
}

#[derive(Debug, Clone)]
pub struct ManagerPointFacts {
    pub manager: String,
    pub id: String,
    pub taken: Timestamp,
    pub version: String,
    pub scopes: Vec<String>,
    /// The archive's file, absolute.
    pub archive: String,
    /// Of the archive as engine-backup made it.
    pub sha256: Option<String>,
    pub size: u64,
    /// The public keys that it is encrypted to; none: it is stored as it was made.
    pub recipients: Vec<String>,
}
