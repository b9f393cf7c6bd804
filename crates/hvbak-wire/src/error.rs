//! What can be wrong with bytes or values of the protocol.

/// A violation of the protocol. Nothing of it is worth a retry on the same stream:
/// after one of these the position in the byte stream is not trusted any more.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The first bytes are not the magic: a shell greeting, an error text, another program.
    #[error("the peer is not an hvbak worker, it said `{seen}`")]
    Magic {
        /// The first bytes, control characters replaced, at most 120 characters.
        seen: String,
    },
    /// The stream ended inside the magic or a frame.
    #[error("the stream ended inside {within}")]
    Truncated {
        /// What was being read.
        within: &'static str,
    },
    /// A length in the frame's prefix is beyond its cap or contradicts another one.
    #[error("frame of kind {kind} has {what} of {length} bytes, allowed are {cap}")]
    Length {
        /// Kind byte of the frame.
        kind: u8,
        /// Which length.
        what: &'static str,
        /// What the peer (or the caller, when encoding) wants.
        length: u64,
        /// The cap, or the exact value that was expected.
        cap: u64,
    },
    /// A kind that this version does not know.
    #[error("frame of unknown kind {kind}")]
    Kind {
        /// Kind byte of the frame.
        kind: u8,
    },
    /// CRC-32 differs: the stream lost its place or a buffer was damaged.
    #[error("checksum of a frame of kind {kind} is wrong")]
    Checksum {
        /// Kind byte of the frame.
        kind: u8,
    },
    /// The JSON header is not the message it should be.
    #[error("cannot read the header of a frame of kind {kind:?}")]
    Header {
        /// Kind of the frame.
        kind: crate::Kind,
        /// What serde says.
        #[source]
        source: serde_json::Error,
    },
    /// A frame that may not come here.
    #[error("expected {expected}, got a frame of kind {got:?}")]
    Unexpected {
        /// What would have been right.
        expected: &'static str,
        /// What came.
        got: crate::Kind,
    },
    /// The table of a `Clusters` frame contradicts itself.
    #[error("cluster table is wrong: {what}")]
    Table {
        /// Which rule is broken.
        what: &'static str,
    },
    /// The clusters of a stream are not in order, outside its range, or its totals differ.
    #[error("cluster stream is wrong: {what}")]
    Stream {
        /// Which rule is broken.
        what: &'static str,
    },
    /// No common protocol version.
    #[error("worker {build} speaks protocol {theirs:?}, this program speaks {ours:?}")]
    Version {
        /// Build id of the worker.
        build: String,
        /// Its versions.
        theirs: Vec<u16>,
        /// Our versions.
        ours: Vec<u16>,
    },
    /// Reading or writing failed (blocking helpers only).
    #[error("cannot {action} the stream")]
    Io {
        /// "read" or "write".
        action: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl WireError {
    /// Whether asking again on a new connection may help.
    pub const fn retryable(&self) -> bool {
        matches!(self, Self::Truncated { .. } | Self::Io { .. } | Self::Checksum { .. })
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Magic { .. } => Some(
                "a login script on the host prints text; make it silent for non-interactive shells"
                    .into(),
            ),
            Self::Version { .. } => {
                Some("update hvbak-worker on the host, or let hvbak push its own".into())
            }
            _ => None,
        }
    }
}
