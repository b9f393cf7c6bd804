//! Messages with JSON headers. `PROTOCOL.md` describes each; this is its twin.
//!
//! Requests refuse unknown fields (an unknown guard that is silently ignored would be a
//! danger); hello, answers and failures ignore them, so that a newer worker can say more.

use std::collections::BTreeMap;

use hvbak_types::{DataCenterId, Digest, DiskId, DomainId, VolumeId};
use serde::{Deserialize, Serialize};

/// Worker's first frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Protocol versions it speaks.
    pub protocols: Vec<u16>,
    /// Build id.
    pub build: String,
    /// Optional abilities ([`crate::FEATURES`]).
    pub features: Vec<String>,
    /// Processor cores that the worker may use.
    pub cores: u32,
    /// Effective user id; 0 means that file domains will be opened as 36:36.
    pub uid: u32,
    /// `HVBAK_HOST_ROOT` as the worker sees it; empty on real hosts.
    #[serde(default)]
    pub host_root: String,
}

/// Coordinator's answer to the hello: exactly one of the two is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The version that both will speak.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u16>,
    /// Why there will be no session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refuse: Option<String>,
}

/// A request. Ids are chosen by the coordinator, never reused in a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Id that answer, failure and clusters repeat.
    pub id: u32,
    /// What to do.
    pub op: Op,
}

/// The answer that ends a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Id of the request.
    pub request: u32,
    /// The answer.
    pub answer: Answer,
}

/// Names a volume of a storage domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeAddress {
    /// Data center (vdsm: storage pool).
    pub data_center: DataCenterId,
    /// Storage domain.
    pub domain: DomainId,
    /// Disk (vdsm: image).
    pub image: DiskId,
    /// Volume.
    pub volume: VolumeId,
}

/// What the worker can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Op {
    /// How to behave on this host. Answer: `Done`.
    Tune(Tune),
    /// Where a volume is. Answer: `Located`.
    Locate {
        /// The volume.
        at: VolumeAddress,
    },
    /// Walk from a volume to the base. Answer: `Chain`.
    Chain {
        /// The newest volume of the walk.
        at: VolumeAddress,
    },
    /// Opens layers for reading; replaces what was open. Answer: `Opened`.
    Open {
        /// All layers down to the base, **newest first**.
        layers: Vec<LayerAddress>,
        /// How many of them, counted from the newest, decide what is data, zero or
        /// absent. `None`: all (a full backup). The others only complete a cluster that
        /// the deciding layers cover in part (cluster size below 64 KiB).
        top: Option<u32>,
    },
    /// What lies in a range of the open chain. Answer: `Map`.
    Map {
        /// First byte, a multiple of 64 KiB.
        offset: u64,
        /// Bytes; a range beyond the end is cut.
        length: u64,
        /// Into how many ranges of about equal work to cut it (1 … 64).
        pieces: u32,
    },
    /// Reads a range of the open chain. Answer: `Clusters` frames, then `End`.
    Read {
        /// First byte, a multiple of 64 KiB.
        offset: u64,
        /// Bytes; a range beyond the end is cut.
        length: u64,
        /// How.
        options: ReadOptions,
    },
    /// Closes the open layers. Answer: `Done`.
    Close,
    /// Opens an empty volume for writing. Answer: `Target`.
    Target {
        /// The volume.
        at: VolumeAddress,
        /// Format that the volume must have.
        format: Format,
        /// Virtual size that it must have, in bytes.
        virtual_size: u64,
        /// Which bytes this worker is responsible for when several fill one raw volume;
        /// clusters outside are refused, and `unknown` zero-fill ends here. `None`: all.
        slice: Option<Slice>,
        /// What the volume reads where nothing is written.
        reads: Zeros,
        /// What must hold before a byte is written.
        guards: Guards,
        /// Compare each cluster's digest before it is written.
        check_digests: bool,
    },
    /// Ends the clusters of a target: completes the image, flushes. Answer: `Written`.
    Finish {
        /// Id of the `Target` request.
        target: u32,
        /// Totals of what was sent, to be compared with what came.
        clusters: u64,
    },
    /// Stops the running `Read` (then answered by `Failed` with `cancelled`) or drops a
    /// target. Jumps the queue. No answer of its own; ignored when it comes too late.
    Cancel {
        /// Id of the request to stop.
        request: u32,
    },
    /// Ends the session. Answer: `Farewell`, then end of file.
    Bye,
}

/// Manners of a guest on someone's hypervisor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tune {
    /// Niceness 0 … 19.
    #[serde(default)]
    pub nice: Option<u8>,
    /// Best-effort I/O class at its lowest priority.
    #[serde(default)]
    pub low_io: bool,
    /// Most bytes per second read from or written to volumes.
    #[serde(default)]
    pub rate: Option<u64>,
}

/// Format of a volume as its metadata says; never probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// vdsm RAW.
    Raw,
    /// vdsm COW: qcow2.
    Cow,
}

/// One layer to open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerAddress {
    /// Where it is.
    pub place: Place,
    /// Its format, from the metadata.
    pub format: Format,
    /// Bytes the guest sees of a raw layer (metadata CAP); `None`: the file's size.
    #[serde(default)]
    pub capacity: Option<u64>,
    /// The file that a `Chain` answer described; another one is refused as `changed`.
    /// Inode and device only: times change legitimately.
    #[serde(default)]
    pub identity: Option<FileIdentity>,
}

/// How a layer is named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// By ids; the worker finds the path.
    Volume(VolumeAddress),
    /// By the path that `Located` or `Chain` told.
    Path(String),
}

/// Which file an answer spoke of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// Modification time in ns since the epoch.
    pub mtime_ns: i64,
}

/// How to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadOptions {
    /// zstd level 1 … 19; `None`: send plain.
    pub compression: Option<u8>,
    /// Threads; `None`: min(cores, 4). Capped at 16.
    pub threads: Option<u16>,
    /// Send explicit zeros (and data that is all zero) as zero runs. Needed when older
    /// layers exist at the receiver; a full backup leaves them out.
    pub zeros: bool,
    /// Digests without payload, for comparing.
    pub digest_only: bool,
    /// Drop cached pages first and read from the storage (comparing after a restore).
    pub uncached: bool,
}

impl Default for ReadOptions {
    /// As a full backup reads: zstd 1, zeros left out.
    fn default() -> Self {
        Self {
            compression: Some(1),
            threads: None,
            zeros: false,
            digest_only: false,
            uncached: false,
        }
    }
}

/// What a target reads where nothing is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Zeros {
    /// Zeros (new sparse or preallocated file): holes are left alone.
    Zero,
    /// Whatever earlier disks left (block raw): zeros are written.
    Unknown,
}

/// A byte range, multiples of 64 KiB (the end may be the virtual size).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slice {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// What must hold before a target is written (hypervisor.md §14.7). Metadata of the volume
/// must always say IMAGE = `at.image`, DOMAIN = `at.domain`, VOLTYPE LEAF, LEGALITY LEGAL
/// and the asked FORMAT; these can be relaxed:
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guards {
    /// No guest data yet: raw starts with 4 KiB of zeros, qcow2 has no allocated cluster.
    pub must_be_empty: bool,
    /// Metadata PUUID nil and no backing name.
    pub no_parent: bool,
    /// Nobody else holds it open (qemu's byte-range locks, `/proc/*/fd` where readable).
    pub not_open: bool,
}

impl Default for Guards {
    fn default() -> Self {
        Self { must_be_empty: true, no_parent: true, not_open: true }
    }
}

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
    /// Which file it is.
    pub identity: FileIdentity,
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

/// What went wrong with a request. The session goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Id of the request; 0 when no request could be read.
    pub request: u32,
    /// Class of the failure.
    pub code: Code,
    /// One sentence with its cause, for people; control characters replaced.
    pub message: String,
    /// The things the message speaks of (`volume`, `path`, `expected`, `found` …).
    #[serde(default)]
    pub nouns: BTreeMap<String, String>,
}

/// Class of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// No such domain, disk or volume on this host.
    NotFound,
    /// Not allowed to open it (root_squash, SELinux).
    Permission,
    /// A guard of a target does not hold; nothing was written.
    Guard,
    /// Header and metadata disagree, or a volume is ILLEGAL: a merge runs or failed.
    Merging,
    /// Loop, too many layers, a raw volume with a parent.
    BadChain,
    /// A backing name that could lead outside the disk's directory.
    BackingName,
    /// Volume metadata cannot be read as such.
    Metadata,
    /// The qcow2 image is damaged or of a kind that is refused.
    Image,
    /// Another file than the one described before.
    Changed,
    /// Reading or writing failed.
    Io,
    /// No space left at the target.
    NoSpace,
    /// The request makes no sense (order, range, unknown field).
    BadRequest,
    /// Clusters that break the rules: order, digest, payload, totals.
    BadData,
    /// Stopped on request.
    Cancelled,
    /// A code of a newer worker.
    #[serde(other)]
    Other,
}

impl Failed {
    /// Whether the same request may succeed later or elsewhere without anybody's help.
    pub const fn retryable(&self) -> bool {
        matches!(self.code, Code::Merging | Code::Io | Code::Changed)
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failed {}
