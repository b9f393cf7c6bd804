//! Append buffers: one for packed payloads, one for plain clusters.
//!
//! Each owns a chunk of consecutive host clusters, so that a payload can run over a cluster
//! boundary although the other kind is appended in between. Storage sees large sequential
//! writes of whole clusters only.

use hvbak_types::CLUSTER_SIZE;

use super::{alloc::Allocator, write};
use crate::{Result, WriteAt};

/// Bytes gathered before they are written.
const FLUSH: usize = 1 << 20;
/// Smallest and largest chunk in clusters. At the end one region may leave the rest of its
/// chunk as a hole, so chunks are at most 1/32 of the file; 2 MiB keeps what a payload does
/// not fit into under 2 %.
const CHUNK: (u64, u64) = (4, 32);

pub(super) struct Region {
    what: &'static str,
    /// Not yet written bytes and where they go (a cluster boundary).
    buffer: Vec<u8>,
    buffer_at: u64,
    /// Behind the last byte appended.
    pos: u64,
    /// Behind the last byte owned.
    end: u64,
}

impl Region {
    pub fn new(what: &'static str) -> Self {
        Self { what, buffer: Vec::new(), buffer_at: 0, pos: 0, end: 0 }
    }

    /// Behind the last byte owned; 0 when nothing is.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// First byte whose cluster's refcount may still grow; none when nothing is owned.
    pub fn low(&self) -> Option<u64> {
        (self.end > 0).then_some(self.pos / CLUSTER_SIZE * CLUSTER_SIZE)
    }

    /// Appends at most one cluster of bytes; gives their host offset.
    pub fn append<W: WriteAt>(
        &mut self,
        out: &W,
        alloc: &mut Allocator,
        bytes: &[u8],
    ) -> Result<u64> {
        if self.pos + bytes.len() as u64 > self.end {
            self.grow(out, alloc)?;
        }
        let at = self.pos;
        self.buffer.extend_from_slice(bytes);
        self.pos += bytes.len() as u64;
        if self.buffer.len() >= FLUSH {
            self.write_clusters(out)?;
        }
        Ok(at)
    }

    /// Writes everything appended so far; a cluster that is not full is written again later.
    pub fn flush<W: WriteAt>(&mut self, out: &W) -> Result<()> {
        self.write_clusters(out)?;
        if self.buffer.is_empty() {
            return Ok(());
        }
        write(out, self.what, &self.buffer, self.buffer_at)
    }

    /// Pads to a cluster, writes everything and gives back what is left.
    pub fn close<W: WriteAt>(&mut self, out: &W, alloc: &mut Allocator) -> Result<()> {
        let whole = self.buffer.len().next_multiple_of(CLUSTER_SIZE as usize);
        self.buffer.resize(whole, 0);
        self.write_clusters(out)?;
        alloc.release(self.pos.div_ceil(CLUSTER_SIZE)..self.end / CLUSTER_SIZE);
        (self.pos, self.end) = (0, 0);
        Ok(())
    }

    fn grow<W: WriteAt>(&mut self, out: &W, alloc: &mut Allocator) -> Result<()> {
        if self.end != alloc.end() * CLUSTER_SIZE {
            self.close(out, alloc)?;
            self.pos = alloc.end() * CLUSTER_SIZE;
            self.buffer_at = self.pos;
            self.end = self.pos;
        }
        let chunk = (alloc.end() / 32).clamp(CHUNK.0, CHUNK.1);
        alloc.take(chunk);
        self.end += chunk * CLUSTER_SIZE;
        Ok(())
    }

    fn write_clusters<W: WriteAt>(&mut self, out: &W) -> Result<()> {
        let whole = self.buffer.len() / CLUSTER_SIZE as usize * CLUSTER_SIZE as usize;
        if whole > 0 {
            write(out, self.what, &self.buffer[..whole], self.buffer_at)?;
            self.buffer.drain(..whole);
            self.buffer_at += whole as u64;
        }
        Ok(())
    }
}
