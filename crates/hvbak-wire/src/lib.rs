//! Frames and messages between the coordinator and the worker (see `PROTOCOL.md`).
//!
//! Pure: bytes in, values out; no sockets, no runtime, no files. Every size that the
//! peer sends is compared with a cap before memory is taken for it, on the encoding
//! side too, so that neither side can make the other one fail later.
//!
//! Invariant: a stream of clusters is complete only with its `End` answer whose totals
//! and digest equal the receiver's own [`Tally`]; end of file alone proves nothing.

mod answer;
mod clusters;
mod codec;
mod error;
mod frame;
mod message;
mod request;
mod tally;
mod version;

pub use answer::{
    Answer, ChainIs, End, FsKind, Layer, Located, LvFacts, MapIs, MountKind, Opened, Stats,
    TargetReady, Totals, Written,
};
pub use clusters::{
    Body, CLUSTER_BYTES, Cluster, Clusters, ClustersBuilder, MAX_CLUSTERS, MAX_COMPRESSED,
};
pub use codec::{Decoder, Encoder, Event, read_frame, read_magic, write_frame, write_magic};
pub use error::WireError;
pub use frame::{Frame, Kind, MAX_BULK, MAX_FRAME, MAX_HEADER, OVERHEAD, Sealed};
pub use message::{
    Choice, Code, Failed, FileIdentity, Format, Hello, Reply, Request, VolumeAddress,
};
pub use request::{Guards, LayerAddress, Op, Place, ReadOptions, Slice, Tune, Zeros};
pub use tally::Tally;
pub use version::{
    FEATURES, MAGIC, PROTOCOLS, WorkerVersion, build_id, choose, parse_version_line, version_line,
};

#[cfg(test)]
mod tests;
