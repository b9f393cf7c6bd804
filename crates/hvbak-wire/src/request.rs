//! What the worker can be asked. Unknown fields are refused (see [`crate::Request`]).

use serde::{Deserialize, Serialize};

use crate::{FileIdentity, Format, VolumeAddress};

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
