//! What the worker answers. Unknown fields are ignored, so that a newer one can say more.

use hvbak_types::{Digest, DiskId, VolumeId};
use serde::{Deserialize, Serialize};

use crate::{FileIdentity, Format};

/// Answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To `Tune`, `Close`.
    Done,
    /// To `Locate`.
    Located(Located),
    /// To `Chain`.
    Chain(ChainIs),
    /// To `Open`.
    Opened(Opened),
    /// To `Map`.
    Map(MapIs),
    /// To `Read`, behind its last clusters.
    End(End),
    /// To `Target`.
    Target(TargetReady),
    /// To `Finish`.
    Written(Written),
    /// To `Bye`.
    Farewell(Stats),
}

/// How a domain is mounted, from the shape of its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountKind {
    /// `mnt/<server>:<path>`: NFS or POSIX file system.
    Nfs,
    /// `mnt/glusterSD/…`.
    Gluster,
    /// `mnt/_<path>`: a symlink to a local directory.
    Local,
    /// Anything else.
    Other,
}

/// File system below a volume, by `statfs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FsKind {
    /// NFS.
    Nfs,
    /// FUSE (Gluster).
    Fuse,
    /// ext2/3/4.
    Ext,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// tmpfs.
    Tmpfs,
    /// Another one.
    Other,
}

impl FsKind {
    /// Whether another host may change the data behind this host's page cache.
    pub const fn is_network(self) -> bool {
        matches!(self, Self::Nfs | Self::Fuse)
    }
}

/// Where a volume is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Located {
    /// Path of the data file, host root included.
    pub path: String,
    /// How the domain is mounted.
    pub mount: MountKind,
    /// File system.
    pub fs: FsKind,
    /// Size of the file.
    pub file_size: u64,
    /// `st_blocks * 512`.
    pub allocated: u64,
    /// Which file it is.
    pub identity: FileIdentity,
    /// Found through the pool link (false: through the mount directories).
    pub pool_link: bool,
}

/// A chain, newest volume first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainIs {
    /// Newest first, base last. Header and metadata agree on every step.
    pub layers: Vec<Layer>,
}

/// One volume of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Volume.
    pub volume: VolumeId,
    /// Owner by metadata: the template's disk for a template base.
    pub image: DiskId,
    /// Path of the data file, in the directory of the asked disk.
    pub path: String,
    /// FORMAT of the metadata.
    pub format: Format,
    /// TYPE of the metadata: `SPARSE` or `PREALLOCATED`.
    pub allocation: String,
    /// VOLTYPE: `LEAF`, `INTERNAL`, `SHARED`.
    pub voltype: String,
    /// LEGALITY (`LEGAL`; anything else fails the walk).
    pub legality: String,
    /// Virtual size by metadata, bytes.
    pub capacity: u64,
    /// Virtual size by the qcow2 header; for raw the file's size.
    pub header_size: u64,
    /// Parent by metadata; `None` at the base.
    pub parent: Option<VolumeId>,
    /// Backing name in the header, as it stands there.
    pub backing_name: Option<String>,
    /// Size of the file.
    pub file_size: u64,
    /// `st_blocks * 512`.
    pub allocated: u64,
    /// CTIME of the metadata, seconds since the epoch.
    pub ctime: Option<u64>,
    /// GEN of the metadata.
    pub generation: Option<u32>,
    /// DISKTYPE of the metadata.
    pub disk_type: Option<String>,
    /// Number of hard links; 2 or more for a template base.
    pub links: u64,
    /// Which file or LV it is.
    pub identity: FileIdentity,
    /// What LVM says, when it is an LV.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lv: Option<LvFacts>,
}

/// A volume of a block domain as LVM reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LvFacts {
    /// LVM's id of the LV: another one when it was removed and made anew.
    pub uuid: String,
    /// Where it lies: `DEVICE:FIRST-LAST` in extents, separated by spaces.
    pub extents: String,
}

/// What was opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Virtual size of the newest layer, bytes.
    pub virtual_size: u64,
    /// The same in clusters, rounded up.
    pub clusters: u64,
    /// Layers that decide.
    pub top: u32,
    /// Whether reads pass the page cache by (O_DIRECT).
    pub direct: bool,
}

/// What a range holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapIs {
    /// Bytes with data (raw layers: all that is not a hole).
    pub data: u64,
    /// Bytes of explicit zeros.
    pub zero: u64,
    /// Bytes that the deciding layers do not say anything about.
    pub absent: u64,
    /// 64 KiB clusters that hold any data: what a `Read` sends at most.
    pub clusters: u64,
    /// Starts of the asked pieces, ascending, the first is the asked offset; may be
    /// fewer than asked. Piece i ends where piece i+1 starts.
    pub pieces: Vec<u64>,
}

/// Sums of a stream; both sides make them and compare.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Entries with a payload (or digest-only).
    pub clusters: u64,
    /// Clusters in zero runs.
    pub zero_clusters: u64,
    /// Guest bytes of the entries with payload: clusters × 64 KiB.
    pub data_bytes: u64,
    /// Bytes of payload.
    pub payload_bytes: u64,
}

/// End of a read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Sums of the stream.
    pub totals: Totals,
    /// Digest over the stream's entries ([`crate::Tally`]).
    pub digest: Digest,
    /// Bytes read from the volumes.
    pub read_bytes: u64,
    /// Cost so far.
    pub stats: Stats,
}

/// What the worker cost since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// User CPU, ms.
    pub user_ms: u64,
    /// System CPU, ms.
    pub system_ms: u64,
    /// Peak resident memory, bytes.
    pub peak_rss: u64,
}

/// A target that passed its guards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetReady {
    /// Path of the data file.
    pub path: String,
    /// Its size now.
    pub file_size: u64,
    /// Bytes allocated to it now (`st_blocks * 512`).
    pub allocated: u64,
    /// qcow2 version of the empty image that is replaced (2 or 3); `None` for raw.
    pub qcow2_version: Option<u32>,
    /// Which file it is.
    pub identity: FileIdentity,
}

/// A target that is complete and flushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Sums of the clusters that came.
    pub totals: Totals,
    /// Digest over them ([`crate::Tally`]).
    pub digest: Digest,
    /// Bytes written to the volume, zeros and qcow2 metadata included.
    pub written_bytes: u64,
    /// Size of the file now.
    pub file_size: u64,
    /// Cost so far.
    pub stats: Stats,
}
