//! What can go wrong with an image: one variant per failed operation.

use std::io;

/// Result of this room.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed operation on an image. Offsets are bytes in the image file unless said.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The storage below failed while reading.
    #[error("cannot read {what} at byte {offset} of the image")]
    Read {
        /// Which structure.
        what: &'static str,
        /// Where in the file.
        offset: u64,
        /// What the storage said.
        #[source]
        source: io::Error,
    },
    /// The storage below failed while writing.
    #[error("cannot write {what} at byte {offset} of the image")]
    Write {
        /// Which structure.
        what: &'static str,
        /// Where in the file.
        offset: u64,
        /// What the storage said.
        #[source]
        source: io::Error,
    },
    /// The storage below could not make the image durable.
    #[error("cannot flush the image")]
    Flush {
        /// What the storage said.
        #[source]
        source: io::Error,
    },
    /// The first bytes are not a qcow2 header.
    #[error("not a qcow2 image")]
    NotQcow2,
    /// A valid image that uses something this reader refuses.
    #[error("the image uses {feature}, which is not supported")]
    Unsupported {
        /// The feature, in words.
        feature: String,
    },
    /// A header field that no valid image has.
    #[error("bad image header: {field} is {value}: {reason}")]
    Header {
        /// Name in the specification.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Something lies behind the end of the file.
    #[error("{what} at byte {offset} lies behind the end of the image file ({size} bytes)")]
    Truncated {
        /// Which structure.
        what: &'static str,
        /// Where it should be.
        offset: u64,
        /// How long the file is.
        size: u64,
    },
    /// An L1 or L2 entry that no valid image has.
    #[error("bad {table} entry {entry:#x} for guest offset {guest}: {reason}")]
    Entry {
        /// `L1` or `L2`.
        table: &'static str,
        /// The entry as stored.
        entry: u64,
        /// First guest byte it maps.
        guest: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A compressed cluster that does not give one cluster.
    #[error("cannot decompress the cluster at byte {offset} of the image: {reason}")]
    Inflate {
        /// Where it starts.
        offset: u64,
        /// What the decoder said.
        reason: String,
    },
    /// A guest range outside the disk.
    #[error("range {offset}+{length} is outside the disk of {virtual_size} bytes")]
    Range {
        /// First byte, guest view.
        offset: u64,
        /// Number of bytes.
        length: u64,
        /// Size of the disk.
        virtual_size: u64,
    },
    /// A chain without a layer was asked for.
    #[error("a chain needs at least one layer")]
    EmptyChain,
    /// The writer was asked for something the format cannot express.
    #[error("cannot create an image: {reason}")]
    Options {
        /// What is wrong.
        reason: String,
    },
    /// The writer got one guest cluster twice.
    #[error("cluster {cluster} was written before")]
    Duplicate {
        /// Guest cluster, in 64 KiB.
        cluster: u64,
    },
    /// The writer got a payload it cannot store.
    #[error("cannot store {length} bytes as cluster {cluster}: {reason}")]
    Payload {
        /// Guest cluster, in 64 KiB.
        cluster: u64,
        /// Length of the payload.
        length: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// The writer failed before; the unfinished image must be thrown away.
    #[error("the image writer failed before")]
    Poisoned,
    /// The image is too large for a check in bounded memory and time.
    #[error("the image has {clusters} host clusters, more than a check walks")]
    CheckTooLarge {
        /// Host clusters in use.
        clusters: u64,
    },
}

impl Error {
    /// Whether the image itself is damaged (in contrast to IO, wrong use or a refused feature).
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::NotQcow2
                | Self::Header { .. }
                | Self::Truncated { .. }
                | Self::Entry { .. }
                | Self::Inflate { .. }
        )
    }

    /// Whether trying again may help: only where the storage itself failed.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Read { source, .. } | Self::Write { source, .. }
            if matches!(source.kind(), io::ErrorKind::Interrupted | io::ErrorKind::TimedOut))
    }

    /// What the administrator can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Truncated { .. } | Self::Entry { .. } | Self::Header { .. } => {
                Some("the image is damaged; look at it with `qemu-img check`".into())
            }
            Self::Inflate { .. } => {
                Some("a compressed cluster is damaged; the image cannot be trusted".into())
            }
            Self::NotQcow2 => {
                Some("is the volume raw? the format must come from its metadata".into())
            }
            _ => None,
        }
    }
}
