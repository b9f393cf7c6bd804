//! What can go wrong with a request, and how it is told to the coordinator.

use std::{collections::BTreeMap, io, path::PathBuf};

use hvbak_types::{DomainId, VolumeId};
use hvbak_vdsm::{BackingNameError, LvmError, MetaError};
use hvbak_wire::{Code, Failed, WireError};

/// A request that failed. The session goes on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("domain {domain} is not connected on this host")]
    NoDomain { domain: String },
    #[error("volume {volume} is not in the directory of disk {image}")]
    NoVolume { volume: String, image: String },
    #[error(
        "block domain {domain} needs LVM, which needs root: log in to this host as root, or let the login start the worker with sudo"
    )]
    NotRoot { domain: DomainId },
    #[error("cannot {doing} block domain {domain}: {what}")]
    Lvm { doing: &'static str, domain: DomainId, what: String },
    #[error("cannot understand LVM")]
    LvmReport {
        #[source]
        source: LvmError,
    },
    #[error(
        "{path} is smaller on this host than in the group's metadata, because another host has extended it, and somebody uses it here: read it on another host"
    )]
    Outdated { path: PathBuf },
    #[error("{path} is no regular file")]
    NotAFile { path: PathBuf },
    #[error("cannot {action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot become user 36 (vdsm)")]
    BecomeVdsm {
        #[source]
        source: io::Error,
    },
    #[error("metadata of volume {volume} cannot be read")]
    Meta {
        volume: VolumeId,
        #[source]
        source: MetaError,
    },
    #[error("metadata of volume {volume} says {key} {found}, expected {expected}")]
    MetaIs { volume: VolumeId, key: &'static str, found: String, expected: String },
    #[error("volume {volume} is {legality}: a snapshot is being merged, or a merge has failed")]
    Illegal { volume: VolumeId, legality: &'static str },
    #[error(
        "header of volume {volume} names {header} as its parent, metadata says {metadata}: a snapshot is being merged, or a merge has failed"
    )]
    Disagree { volume: VolumeId, header: String, metadata: String },
    #[error(
        "the layer above volume {volume} says that it is {header}, metadata says {metadata}: read in either way it may be wrong"
    )]
    FormatIs { volume: VolumeId, header: String, metadata: String },
    #[error("raw volume {volume} has {length} bytes, metadata says {capacity}")]
    LengthIs { volume: VolumeId, length: u64, capacity: u64 },
    #[error("backing name of volume {volume} is refused")]
    Backing {
        volume: VolumeId,
        #[source]
        source: BackingNameError,
    },
    #[error("chain of volume {volume} is wrong: {what}")]
    BadChain { volume: VolumeId, what: &'static str },
    #[error("cannot read the image {path}")]
    Image {
        path: PathBuf,
        #[source]
        source: hvbak_qcow2::Error,
    },
    #[error("cannot read {length} bytes at {offset} of the disk")]
    ReadChain {
        offset: u64,
        length: u64,
        #[source]
        source: hvbak_qcow2::Error,
    },
    #[error("{path} is another file than before")]
    Changed { path: PathBuf },
    #[error("volume {volume} may not be written: {why}")]
    Guard { volume: VolumeId, why: String },
    #[error("cannot write cluster {index}")]
    WriteCluster {
        index: u64,
        #[source]
        source: io::Error,
    },
    #[error("cannot write the image")]
    WriteImage {
        #[source]
        source: hvbak_qcow2::Error,
    },
    #[error("cannot flush the volume")]
    Flush {
        #[source]
        source: io::Error,
    },
    #[error("cluster {index} is refused: {what}")]
    BadCluster { index: u64, what: &'static str },
    #[error("{what}")]
    BadRequest { what: String },
    #[error("a frame of clusters is refused")]
    BadFrame {
        #[source]
        source: WireError,
    },
    #[error("the stream from the coordinator is broken")]
    Stream {
        #[source]
        source: WireError,
    },
    #[error("cannot encode the answer")]
    Encode {
        #[from]
        source: WireError,
    },
    #[error("cannot compress a cluster")]
    Compress {
        #[source]
        source: io::Error,
    },
    #[error("stopped on request")]
    Cancelled,
    /// The coordinator is gone; nobody can be told.
    #[error("the coordinator is gone")]
    Gone,
}

/// Results of this program.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// For requests that make no sense.
    pub fn bad_request(what: impl Into<String>) -> Self {
        Self::BadRequest { what: what.into() }
    }

    /// A failure of LVM, in its own words.
    pub fn lvm(doing: &'static str, domain: DomainId, what: impl Into<String>) -> Self {
        Self::Lvm { doing, domain, what: what.into() }
    }

    /// An IO error with its operation and file.
    pub fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    fn code(&self) -> Code {
        match self {
            Self::NoDomain { .. } | Self::NoVolume { .. } => Code::NotFound,
            Self::NotAFile { .. } | Self::BadChain { .. } => Code::BadChain,
            Self::File { source, .. }
            | Self::WriteCluster { source, .. }
            | Self::Flush { source } => io_code(source),
            Self::BecomeVdsm { .. } | Self::NotRoot { .. } => Code::Permission,
            Self::Lvm { .. } | Self::LvmReport { .. } | Self::Outdated { .. } => Code::Io,
            Self::Meta { .. }
            | Self::MetaIs { .. }
            | Self::FormatIs { .. }
            | Self::LengthIs { .. } => Code::Metadata,
            Self::Illegal { .. } | Self::Disagree { .. } => Code::Merging,
            Self::Backing { .. } => Code::BackingName,
            Self::Image { source, .. }
            | Self::ReadChain { source, .. }
            | Self::WriteImage { source } => io_cause(source).map_or(Code::Image, io_code),
            Self::Changed { .. } => Code::Changed,
            Self::Guard { .. } => Code::Guard,
            Self::BadCluster { .. } | Self::BadFrame { .. } => Code::BadData,
            Self::BadRequest { .. } | Self::Stream { .. } => Code::BadRequest,
            Self::Encode { .. } | Self::Compress { .. } => Code::Io,
            Self::Cancelled | Self::Gone => Code::Cancelled,
        }
    }

    fn nouns(&self) -> BTreeMap<String, String> {
        let mut nouns = BTreeMap::new();
        let mut put = |key: &str, value: String| {
            nouns.insert(key.to_owned(), clean(&value));
        };
        match self {
            Self::NoDomain { domain } => put("domain", domain.clone()),
            Self::NoVolume { volume, image } => {
                put("volume", volume.clone());
                put("disk", image.clone());
            }
            Self::NotRoot { domain } | Self::Lvm { domain, .. } => {
                put("domain", domain.to_string());
            }
            Self::NotAFile { path }
            | Self::Changed { path }
            | Self::Outdated { path }
            | Self::Image { path, .. } => {
                put("path", path.display().to_string());
            }
            Self::File { action, path, .. } => {
                put("action", (*action).to_owned());
                put("path", path.display().to_string());
            }
            Self::Meta { volume, .. } | Self::Backing { volume, .. } => {
                put("volume", volume.to_string());
            }
            Self::MetaIs { volume, key, found, expected } => {
                put("volume", volume.to_string());
                put("key", (*key).to_owned());
                put("found", found.clone());
                put("expected", expected.clone());
            }
            Self::Illegal { volume, legality } => {
                put("volume", volume.to_string());
                put("found", (*legality).to_owned());
            }
            Self::Disagree { volume, header, metadata } => {
                put("volume", volume.to_string());
                put("header", header.clone());
                put("metadata", metadata.clone());
            }
            Self::FormatIs { volume, header: found, metadata: expected } => {
                put("volume", volume.to_string());
                put("found", found.clone());
                put("expected", expected.clone());
            }
            Self::LengthIs { volume, length, capacity } => {
                put("volume", volume.to_string());
                put("found", length.to_string());
                put("expected", capacity.to_string());
            }
            Self::BadChain { volume, .. } | Self::Guard { volume, .. } => {
                put("volume", volume.to_string());
            }
            Self::WriteCluster { index, .. } | Self::BadCluster { index, .. } => {
                put("cluster", index.to_string());
            }
            Self::ReadChain { offset, length, .. } => {
                put("offset", offset.to_string());
                put("length", length.to_string());
            }
            _ => {}
        }
        nouns
    }

    /// The failure as a message; its text carries the whole chain of causes.
    pub fn to_failed(&self, request: u32) -> Failed {
        let mut message = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(e) = cause {
            message.push_str(": ");
            message.push_str(&e.to_string());
            cause = e.source();
        }
        Failed { request, code: self.code(), message: clean(&message), nouns: self.nouns() }
    }
}

/// An IO error anywhere below: damage and a broken path to the storage differ.
fn io_cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a io::Error> {
    let mut at = Some(error);
    while let Some(e) = at {
        if let Some(io) = e.downcast_ref::<io::Error>() {
            return Some(io);
        }
        at = e.source();
    }
    None
}

fn io_code(error: &io::Error) -> Code {
    match error.kind() {
        io::ErrorKind::NotFound => Code::NotFound,
        io::ErrorKind::PermissionDenied => Code::Permission,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Code::NoSpace
        }
        io::ErrorKind::Interrupted => Code::Cancelled,
        _ => Code::Io,
    }
}

/// At most 1000 characters, none of them a control character.
fn clean(text: &str) -> String {
    text.chars().take(1000).map(|c| if c.is_control() { '·' } else { c }).collect()
}
