//! qcow2: read chains of explicit layers, write fresh images, check the structure.
//!
//! Everything stands on [`ReadAt`] and [`WriteAt`]; this room opens no file by name, knows
//! no network, no async and nothing of oVirt. It **never opens what a header names**: a
//! guest can write a hostile header into a raw disk, so layers and their formats are told
//! by the caller, and [`Layer::backing_name`] is only there to be compared with them.
//!
//! Invariants a reader of this code would break first:
//! * every offset that comes out of a file is checked against the file's length before it
//!   is used, so a truncated layer is an error and never a run of zeros;
//! * every size that comes out of a file has a cap before memory is asked for;
//! * the writer puts the header last: an unfinished file is not an image.
//!
//! Facts are from QEMU's `docs/interop/qcow2.rst`; where QEMU's own behaviour decides (end
//! of file inside the last cluster, shorter backing files), the comment says so.

mod cache;
mod chain;
mod check;
mod error;
mod extents;
mod header;
mod inflate;
mod io;
mod layer;
mod table;
mod writer;

pub use chain::{Chain, Fetched};
pub use check::{CheckReport, Problem, check};
pub use error::{Error, Result};
pub use extents::{ClusterRun, ClusterRuns, Extents};
pub use header::{Compression, Header};
pub use io::{ReadAt, WriteAt};
pub use layer::{Layer, Place};
pub use writer::{
    Backing, BackingFormat, Begun, Keeper, Summary, Writer, WriterOptions, image_size,
};
