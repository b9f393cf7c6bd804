//! What can go wrong in the repository: one variant per operation that failed.
//!
//! Display never holds the cause; whoever prints walks the chain.

use std::{
    io,
    path::{Path, PathBuf},
};

use hvbak_types::{DiskId, PointId, VmId};

use crate::identity::Holder;

/// Results of this room.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An operation on the repository that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("{} is not an hvbak repository", path.display())]
    NoRepository { path: PathBuf },
    #[error("{} is not empty and not an hvbak repository", path.display())]
    NotEmpty { path: PathBuf },
    #[error("{} is an hvbak repository already", path.display())]
    AlreadyRepository { path: PathBuf },
    #[error("{} has format {found}; this hvbak knows up to {known}", path.display())]
    NewerFormat { path: PathBuf, found: u64, known: u64 },
    #[error("{what} is locked{}", holder_text(holder))]
    Locked { what: String, holder: Option<Box<Holder>> },
    #[error("no space left for {}{}: {free} bytes are free", path.display(), needed_text(*needed))]
    NoSpace {
        path: PathBuf,
        /// Bytes wanted, when known before.
        needed: Option<u64>,
        /// Bytes free for this user when it was asked.
        free: u64,
    },
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{} is not valid JSON of its kind", path.display())]
    Parse {
        path: PathBuf,
        #[source]
        cause: serde_json::Error,
    },
    #[error("cannot write {} as JSON", path.display())]
    Encode {
        path: PathBuf,
        #[source]
        cause: serde_json::Error,
    },
    #[error("{} contradicts itself or its place: {why}", path.display())]
    Inconsistent { path: PathBuf, why: String },
    #[error("`{name}` cannot be the name of a document")]
    DocumentName { name: String },
    #[error("document `{name}` is stored already")]
    DocumentTwice { name: String },
    #[error("disk {disk} is written already in this point")]
    DiskTwice { disk: DiskId },
    #[error("disk {disk} is not finished")]
    DiskUnfinished { disk: DiskId },
    #[error("disk {disk} was written but the manifest does not have it as it was written")]
    DiskMismatch { disk: DiskId },
    #[error("the manifest lists disk {disk}, which was not written")]
    DiskUnknown { disk: DiskId },
    #[error("cluster {cluster} of {} is outside of the disk", path.display())]
    ClusterOutside { path: PathBuf, cluster: u64 },
    #[error("cluster {cluster} of {} was written twice", path.display())]
    ClusterTwice { path: PathBuf, cluster: u64 },
    #[error("cluster {cluster} for {} does not have the digest that came with it", path.display())]
    WrongDigest { path: PathBuf, cluster: u64 },
    #[error("a payload of {length} bytes for cluster {cluster} of {} has the wrong length", path.display())]
    PayloadLength { path: PathBuf, cluster: u64, length: usize },
    #[error("point {point} of VM {vm} exists already")]
    PointExists { vm: VmId, point: PointId },
    #[error("no VM `{text}` in the repository")]
    NoVm { text: String },
    #[error("`{name}` names {} VMs in the repository: {}", ids.len(), join(ids))]
    AmbiguousVm { name: String, ids: Vec<VmId> },
    #[error("VM {vm} has no point {when}")]
    NoPoint { vm: String, when: String },
    #[error("point {point} has no disk `{disk}`")]
    NoDisk { point: PointId, disk: String },
    #[error("`{text}` does not name a point")]
    Selector { text: String },
    #[error("point {point} stands on {parent}, which is missing or damaged: {why}")]
    BrokenChain { point: PointId, parent: PointId, why: String },
    #[error("cannot use the image {}", path.display())]
    Image {
        path: PathBuf,
        #[source]
        cause: hvbak_qcow2::Error,
    },
    #[error("{} is damaged: {why}", path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("{} exists", path.display())]
    OutputExists { path: PathBuf },
    #[error("archives cannot be encrypted to {text}: {why}")]
    Recipient { text: String, why: String },
    #[error("identity {from} cannot be used: {why}")]
    Identity { from: String, why: String },
    #[error("{} is encrypted{}", path.display(), recipients_text(recipients))]
    NeedsIdentity { path: PathBuf, recipients: Vec<String> },
    #[error("{} is not encrypted to this identity{}", path.display(), others_text(recipients))]
    WrongIdentity { path: PathBuf, recipients: Vec<String> },
    #[error("cancelled")]
    Cancelled,
}

fn holder_text(holder: &Option<Box<Holder>>) -> String {
    holder.as_ref().map_or_else(String::new, |h| format!(" by {h}"))
}

fn needed_text(needed: Option<u64>) -> String {
    needed.map_or_else(String::new, |n| format!(" ({n} bytes are needed)"))
}

fn recipients_text(recipients: &[String]) -> String {
    match recipients {
        [] => String::new(),
        some => format!(" to {}", some.join(", ")),
    }
}

fn others_text(recipients: &[String]) -> String {
    match recipients {
        [] => String::new(),
        some => format!(", but to {}", some.join(", ")),
    }
}

fn join(ids: &[VmId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Error {
    /// Whether the same call may succeed later without anybody repairing anything.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Locked { .. })
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoRepository { .. } => "check `repository.path`, or create one with `hvbak init`; \
                 when it lies on a mount, check that it is mounted"
                .into(),
            Self::NotEmpty { .. } => "choose an empty or new directory".into(),
            Self::NewerFormat { .. } => "update hvbak on this machine".into(),
            Self::Locked { holder: Some(h), .. } => format!(
                "wait for process {} on {} to end, or stop it; the lock ends with the process",
                h.pid, h.host
            ),
            Self::Locked { holder: None, .. } => {
                "wait for the other hvbak process to end; `fuser -v` on the files in `locks/` finds it"
                    .into()
            }
            Self::NoSpace { .. } => {
                "free space or extend the file system, remove old points with `hvbak prune`, \
                 or lower `repository.reserve_gib`"
                    .into()
            }
            Self::AmbiguousVm { .. } => "use the id instead of the name".into(),
            Self::NoVm { .. } | Self::NoPoint { .. } => "`hvbak points` lists what is stored".into(),
            Self::Selector { .. } => {
                "write `VM`, `VM@latest`, `VM@20261121T021454Z` or `VM@2026-11-21`".into()
            }
            Self::Inconsistent { .. }
            | Self::BrokenChain { .. }
            | Self::Damaged { .. }
            | Self::Parse { .. }
            | Self::Image { .. } => {
                "`hvbak verify` names what is damaged; another point or a copy may be whole".into()
            }
            Self::Recipient { .. } => {
                "`recipients` and `recipients_file` of [manager] take public keys: `age1…` of `age-keygen`, \
                 or a line of ssh-ed25519 or ssh-rsa"
                    .into()
            }
            Self::Identity { .. } => {
                "give the private key of a recipient: the file that `age-keygen` made, or an SSH key \
                 without a passphrase"
                    .into()
            }
            Self::NeedsIdentity { .. } => {
                "give the private key of one of its recipients: `--identity FILE`, or `-` for the \
                 standard input"
                    .into()
            }
            Self::WrongIdentity { .. } => {
                "take the private key of one of its recipients; `hvbak manager-points --json` names them"
                    .into()
            }
            Self::Read { cause, .. } | Self::Write { cause, .. }
                if cause.kind() == io::ErrorKind::PermissionDenied =>
            {
                "run hvbak as the user whose files these are: `runuser -u hvbak -- hvbak …`".into()
            }
            Self::OutputExists { .. } => "choose another path or add `--force`".into(),
            _ => return None,
        })
    }

    /// Whether it says that a point is not there.
    pub fn is_no_point(&self) -> bool {
        matches!(self, Self::NoPoint { .. })
    }

    /// Whether this is damage of stored data rather than a failed operation.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Inconsistent { .. }
                | Self::BrokenChain { .. }
                | Self::Damaged { .. }
                | Self::Parse { .. }
                | Self::Image { .. }
        )
    }
}

/// Turns IO errors into ours with the path in them.
pub(crate) trait At<T> {
    fn reading(self, path: &Path) -> Result<T>;
    fn writing(self, path: &Path) -> Result<T>;
}

impl<T> At<T> for io::Result<T> {
    fn reading(self, path: &Path) -> Result<T> {
        self.map_err(|cause| Error::Read { path: path.to_owned(), cause })
    }

    fn writing(self, path: &Path) -> Result<T> {
        self.map_err(|cause| write_error(path, cause))
    }
}

/// A failed write; a full file system, a quota or a size limit has a variant of its own
/// because the remedy differs.
pub(crate) fn write_error(path: &Path, cause: io::Error) -> Error {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    if matches!(cause.kind(), StorageFull | QuotaExceeded | FileTooLarge) {
        let free = crate::durable::free_bytes(path).unwrap_or(0);
        return Error::NoSpace { path: path.to_owned(), needed: None, free };
    }
    Error::Write { path: path.to_owned(), cause }
}
