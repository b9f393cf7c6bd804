//! An image made over a clone of another: clusters stay where they are, tables are new.
//!
//! The clone's own tables are not looked at; whoever read the other image says where its
//! clusters lie ([`crate::Layer::place`]). What nobody names is garbage then, and filled with
//! tables or given to the caller to punch out.

use std::ops::Range;

use hvbak_types::CLUSTER_SIZE;

use super::{SECTORS_SHIFT, Writer, WriterOptions};
use crate::{
    Compression, Error, Place, ReadAt, Result, WriteAt,
    table::{COMPRESSED, COPIED},
};

/// What [`Keeper::begin`] gives.
pub struct Begun<W> {
    /// Takes what is added.
    pub writer: Writer<W>,
    /// Byte ranges of the copy in which nothing is kept: they may be punched out of the file
    /// before anything is put.
    pub holes: Vec<Range<u64>>,
    /// Bytes that share a host cluster with what is kept, and belong to nothing.
    pub garbage: u64,
}

/// An image being made over a clone: first what is kept, then [`Keeper::begin`].
pub struct Keeper<W> {
    writer: Writer<W>,
    /// Clusters of the clone.
    kept: u64,
    bytes: u64,
}

impl<W: WriteAt + ReadAt> Keeper<W> {
    /// Starts over a copy of an image of 64 KiB clusters, whose header goes at once: until
    /// [`Writer::finish`] the file is no image. Memory: 64 KiB per 2 GiB of the copy.
    ///
    /// # Errors
    /// [`Error::Options`] also for a copy that is not whole clusters; [`Error::Read`],
    /// [`Error::Write`].
    pub fn create(out: W, options: WriterOptions) -> Result<Self> {
        let what = "the size of the copy";
        let size = out.size().map_err(|source| Error::Read { what, offset: 0, source })?;
        if !size.is_multiple_of(CLUSTER_SIZE) {
            let reason = format!("the copy has {size} bytes, which are not whole clusters");
            return Err(Error::Options { reason });
        }
        let kept = size / CLUSTER_SIZE;
        Ok(Self { writer: Writer::behind(out, options, kept)?, kept, bytes: 0 })
    }

    /// A guest cluster stays where the copy has it.
    ///
    /// # Errors
    /// [`Error::Payload`] for a place outside of the copy, over its header or over another
    /// cluster; [`Error::Duplicate`], [`Error::Range`]. The image must be thrown away then.
    pub fn keep(&mut self, cluster: u64, place: Place) -> Result<()> {
        let this = &mut self.writer;
        let bad = |reason| {
            let length = usize::try_from(place.length).unwrap_or(usize::MAX);
            Error::Payload { cluster, length, reason }
        };
        let last = place.length.checked_sub(1).and_then(|more| place.offset.checked_add(more));
        let Some(last) = last.filter(|last| {
            place.length <= CLUSTER_SIZE
                && place.offset >= CLUSTER_SIZE
                && *last < self.kept * CLUSTER_SIZE
        }) else {
            return Err(bad("the copy has no such place"));
        };
        if cluster >= this.clusters {
            let (offset, virtual_size) =
                (cluster.saturating_mul(CLUSTER_SIZE), this.options.virtual_size);
            return Err(Error::Range { offset, length: CLUSTER_SIZE, virtual_size });
        }
        let hosts = place.offset / CLUSTER_SIZE..=last / CLUSTER_SIZE;
        let entry = if place.packed {
            if this.options.compression != Some(Compression::Zstd) {
                return Err(bad("the image is uncompressed"));
            }
            // A host cluster holds one plain cluster, or as many ends of packed ones as there
            // are sectors.
            if hosts.clone().any(|host| this.alloc.count(host) >= u16::MAX / 2) {
                return Err(bad("too many clusters lie there"));
            }
            COMPRESSED | (last / 512 - place.offset / 512) << SECTORS_SHIFT | place.offset
        } else {
            if place.length != CLUSTER_SIZE
                || !place.offset.is_multiple_of(CLUSTER_SIZE)
                || this.alloc.count(*hosts.start()) != 0
            {
                return Err(bad("another cluster lies there, or it is not aligned"));
            }
            COPIED | place.offset
        };
        this.tables.vacant(&this.out, &mut this.alloc, cluster)?;
        for host in hosts {
            this.alloc.reference(host);
        }
        this.tables.set(cluster, entry);
        if place.packed {
            this.summary.compressed_clusters += 1;
        } else {
            this.summary.data_clusters += 1;
        }
        this.summary.payload_bytes += place.length;
        self.bytes += place.length;
        Ok(())
    }

    /// Goes on to what is added.
    pub fn begin(mut self) -> Begun<W> {
        let holes = self.writer.alloc.reclaim(self.kept);
        let empty: u64 = holes.iter().map(|hole| hole.end - hole.start).sum();
        let used = self.kept.saturating_sub(1 + empty) * CLUSTER_SIZE;
        let bytes = |hole: Range<u64>| hole.start * CLUSTER_SIZE..hole.end * CLUSTER_SIZE;
        Begun {
            writer: self.writer,
            holes: holes.into_iter().map(bytes).collect(),
            garbage: used.saturating_sub(self.bytes),
        }
    }
}
