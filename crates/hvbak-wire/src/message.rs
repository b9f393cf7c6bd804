//! Handshake, envelopes and names of the messages with JSON headers. `PROTOCOL.md`
//! describes each; this, `request` and `answer` are its twin.
//!
//! Requests refuse unknown fields (an unknown guard that is silently ignored would be a
//! danger); hello, answers and failures ignore them, so that a newer worker can say more.

use std::collections::BTreeMap;

use hvbak_types::{DataCenterId, DiskId, DomainId, VolumeId};
use serde::{Deserialize, Serialize};

use crate::{Answer, Op};

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

/// Format of a volume as its metadata says; never probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// vdsm RAW.
    Raw,
    /// vdsm COW: qcow2.
    Cow,
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
