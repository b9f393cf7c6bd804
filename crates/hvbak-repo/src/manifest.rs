//! `manifest.json`: what a point is. Its fields are the contract with whoever reads a
//! repository without hvbak, so they change only by addition; `format` rises otherwise.
//!
//! Unknown fields are ignored on reading: a newer hvbak may add some. What is read is
//! checked against the place it was read from before anybody believes it.

use std::collections::HashSet;

use hvbak_types::{
    CLUSTER_SIZE, Digest, DiskId, DomainId, JobId, PointId, RepositoryId, SnapshotId, TemplateId,
    VmId, VolumeId,
};
use serde::{Deserialize, Serialize};

use crate::layout::{digests_name, image_name, is_document_name};

/// The manifest format that this version writes, and the newest it reads.
pub const FORMAT: u32 = 1;

/// Larger disks than any hypervisor makes: 1 PiB.
const VIRTUAL_SIZE_MAX: u64 = 1 << 50;

/// How much of a disk or VM a point holds by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Everything: stands alone.
    Full,
    /// What changed since the parent point.
    Incremental,
    /// What changed since the parent, which is a full point.
    Differential,
}

/// In which state the guest's file systems were caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// Frozen by the guest agent.
    Filesystem,
    /// As after pulling the plug.
    Crash,
    /// The VM was down.
    Offline,
}

/// The VM of a point, as it was then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestVm {
    pub id: VmId,
    pub name: String,
    /// Name of its cluster.
    #[serde(default)]
    pub cluster: Option<String>,
    /// Name of its data center.
    #[serde(default)]
    pub data_center: Option<String>,
    /// The engine's word for its state when the backup began.
    #[serde(default)]
    pub status: Option<String>,
}

/// What a template's point is of, besides what it has in common with a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestTemplate {
    /// The first version of the template; its own id when it is that one.
    #[serde(default)]
    pub base: Option<TemplateId>,
    #[serde(default)]
    pub version: Option<u32>,
    #[serde(default)]
    pub version_name: Option<String>,
}

/// The engine's snapshot that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestSnapshot {
    pub id: SnapshotId,
    pub description: String,
    /// It stayed on the VM when the point was published, as the base of the next delta.
    #[serde(default)]
    pub kept: bool,
}

/// What [`DiskWriter::finish`](crate::DiskWriter::finish) has put into the point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    pub id: DiskId,
    /// File name of the image in the point.
    pub file: String,
    /// File name of the cluster digests in the point.
    pub digests: String,
    /// Bytes that the guest sees.
    pub virtual_size: u64,
    /// The point whose file of the same name is the backing file.
    #[serde(default)]
    pub parent: Option<PointId>,
    /// Clusters of 64 KiB with data.
    pub data_clusters: u64,
    /// Clusters that hide older data with zeros.
    pub zero_clusters: u64,
    /// Length of the image in bytes.
    pub stored_bytes: u64,
    /// BLAKE3-256 of the digests file.
    pub digest: Digest,
}

/// A disk of a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestDisk {
    #[serde(flatten)]
    pub record: DiskRecord,
    pub alias: String,
    /// The administrators' words on the disk.
    #[serde(default)]
    pub description: Option<String>,
    pub level: Level,
    /// Why this level.
    #[serde(default)]
    pub reason: String,
    /// The engine's words of the attachment.
    #[serde(default)]
    pub interface: Option<String>,
    #[serde(default)]
    pub bootable: bool,
    #[serde(default = "yes")]
    pub active: bool,
    #[serde(default)]
    pub read_only: bool,
    #[serde(default)]
    pub pass_discard: bool,
    #[serde(default)]
    pub wipe_after_delete: bool,
    /// The engine's `raw` or `cow`.
    #[serde(default)]
    pub format: Option<String>,
    #[serde(default)]
    pub sparse: Option<bool>,
    #[serde(default)]
    pub domain: Option<DomainId>,
    #[serde(default)]
    pub domain_name: Option<String>,
    /// The volumes that were read, base first.
    #[serde(default)]
    pub volumes: Vec<VolumeId>,
}

fn yes() -> bool {
    true
}

/// A disk of the VM that is not in the point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedDisk {
    pub id: DiskId,
    pub alias: String,
    pub reason: String,
}

impl DiskRecord {
    /// The place of one until the disk is stored.
    pub fn unwritten(id: DiskId, virtual_size: u64) -> Self {
        Self {
            id,
            file: String::new(),
            digests: String::new(),
            virtual_size,
            parent: None,
            data_clusters: 0,
            zero_clusters: 0,
            stored_bytes: 0,
            digest: Digest([0; 32]),
        }
    }
}

/// A document of a point: the engine's answers as they came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentEntry {
    pub name: String,
    pub size: u64,
    pub sha256: Digest,
}

/// `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    pub repository: RepositoryId,
    pub point: PointId,
    pub vm: ManifestVm,
    /// The point is of a template, whose id and name are in `vm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<ManifestTemplate>,
    pub job: JobId,
    #[serde(default)]
    pub snapshot: Option<ManifestSnapshot>,
    pub level: Level,
    /// The newest point that any disk of this one stands on.
    #[serde(default)]
    pub parent: Option<PointId>,
    pub consistency: Consistency,
    /// The engine's version, as text.
    #[serde(default)]
    pub engine_version: Option<String>,
    pub started: jiff::Timestamp,
    pub finished: jiff::Timestamp,
    /// Version of the hvbak that wrote the point.
    pub hvbak: String,
    pub disks: Vec<ManifestDisk>,
    #[serde(default)]
    pub skipped: Vec<SkippedDisk>,
    #[serde(default)]
    pub documents: Vec<DocumentEntry>,
    #[serde(default)]
    pub warnings: Vec<String>,
    /// The policy that asked for the point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The VM's configuration alone was wanted: the point holds no disk on purpose, and lies in
    /// `configurations/`. A VM without disks has whole points without this.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub configuration_only: bool,
    /// The expired points whose content was merged into this one, in the order in which it
    /// happened.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub merged: Vec<PointId>,
}

impl Manifest {
    /// A manifest without disks, for a point that began at `started`. The rest is set by
    /// the caller; [`Staging::publish`](crate::Staging::publish) fills `documents` and
    /// sets `finished` when it is not later than `started`.
    pub fn new(
        repository: RepositoryId,
        point: PointId,
        vm: ManifestVm,
        job: JobId,
        started: jiff::Timestamp,
    ) -> Self {
        Self {
            format: FORMAT,
            repository,
            point,
            vm,
            template: None,
            job,
            snapshot: None,
            level: Level::Full,
            parent: None,
            consistency: Consistency::Crash,
            engine_version: None,
            started,
            finished: started,
            hvbak: env!("CARGO_PKG_VERSION").to_owned(),
            disks: Vec::new(),
            skipped: Vec::new(),
            documents: Vec::new(),
            warnings: Vec::new(),
            policy: None,
            configuration_only: false,
            merged: Vec::new(),
        }
    }

    /// A disk by id or alias; `None` when there is none, or more than one of the alias.
    pub fn find_disk(&self, text: &str) -> Option<&ManifestDisk> {
        if let Ok(id) = text.parse::<DiskId>() {
            return self.disk(id);
        }
        let mut named = self.disks.iter().filter(|d| d.alias == text);
        named.next().filter(|_| named.next().is_none())
    }

    /// A disk by id.
    pub fn disk(&self, id: DiskId) -> Option<&ManifestDisk> {
        self.disks.iter().find(|d| d.record.id == id)
    }

    /// Bytes of all images of this point alone.
    pub fn stored_bytes(&self) -> u64 {
        self.disks.iter().fold(0, |sum, d| sum.saturating_add(d.record.stored_bytes))
    }

    /// What in the manifest contradicts its place or itself, if anything.
    pub(crate) fn contradiction(&self, vm: VmId, point: &PointId) -> Option<String> {
        if self.vm.id != vm {
            return Some(format!("it is of VM {}, not {vm}", self.vm.id));
        }
        if self.point != *point {
            return Some(format!("it is of point {}, not {point}", self.point));
        }
        if self.configuration_only && !self.disks.is_empty() {
            return Some("it says that it holds no disk, and lists some".into());
        }
        let mut seen = HashSet::new();
        for disk in &self.disks {
            let r = &disk.record;
            if !seen.insert(r.id) {
                return Some(format!("disk {} is listed twice", r.id));
            }
            if r.file != image_name(r.id) || r.digests != digests_name(r.id) {
                return Some(format!("disk {} names files of its own making", r.id));
            }
            if r.virtual_size > VIRTUAL_SIZE_MAX {
                return Some(format!("disk {} is larger than any disk", r.id));
            }
            let clusters = r.virtual_size.div_ceil(CLUSTER_SIZE);
            if r.data_clusters.checked_add(r.zero_clusters).is_none_or(|n| n > clusters) {
                return Some(format!("disk {} has more clusters than fit", r.id));
            }
            // A chain goes back in time only, so it cannot be a loop.
            if r.parent.as_ref().is_some_and(|parent| !is_older(parent, point)) {
                return Some(format!("disk {} stands on a point that is not older", r.id));
            }
        }
        let mut names = HashSet::new();
        for document in &self.documents {
            if !is_document_name(&document.name) || !names.insert(&document.name) {
                return Some("a document has an impossible name".into());
            }
        }
        None
    }
}

/// Whether `a` was named before `b`: by time, then by suffix as a number.
pub(crate) fn is_older(a: &PointId, b: &PointId) -> bool {
    order_key(a) < order_key(b)
}

/// Sorts points by time, then by suffix as a number (`-10` after `-9`).
pub(crate) fn order_key(point: &PointId) -> (&str, u32) {
    let (time, suffix) = point.as_str().split_once('-').unwrap_or((point.as_str(), "1"));
    (time, suffix.parse().unwrap_or(0))
}
