//! The `.digests` file of a stored image: which guest clusters the image holds, and the
//! BLAKE3-256 of each as the worker saw it at the source.
//!
//! ```text
//! header  64 bytes   magic "HVBAKDG1", u32 version = 1, u32 cluster size = 65536,
//!                    u64 virtual size, u64 runs, u64 data clusters, u64 zero clusters,
//!                    u32 algorithm = 1 (BLAKE3-256), 12 bytes zero
//! runs    24 bytes   u64 first guest cluster, u64 index of its digest,
//!                    u32 number of clusters, u32 kind (1 data, 2 zero)
//! digests 32 bytes   one per data cluster, in guest order
//! ```
//! All numbers little-endian; runs sorted, disjoint, neighbours of one kind joined.
//!
//! Why this shape: a delta of single scattered clusters costs 56 bytes for each (0.1 %),
//! a dense disk 32 (0.05 %); a lookup is a binary search over the runs; no part needs more
//! memory than a page, whatever the disk's size. A table indexed by cluster would be
//! simpler, but 4 KiB pages of it would be stored for each scattered cluster (6 %).

mod read;
mod spool;

pub use read::{Digests, Runs};
pub use spool::Spool;

/// Bytes of the header.
const HEADER: u64 = 64;
/// Bytes of a run.
const RUN: u64 = 24;
/// Bytes of a digest.
const DIGEST: u64 = 32;
const MAGIC: [u8; 8] = *b"HVBAKDG1";
const VERSION: u32 = 1;
const BLAKE3: u32 = 1;

/// What a run of clusters is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Data,
    Zero,
}

/// Neighbouring clusters of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First guest cluster.
    pub start: u64,
    /// Number of clusters, not 0.
    pub count: u64,
    pub kind: Kind,
    /// For data: index of the first cluster's digest.
    pub digest: u64,
}

impl Run {
    /// The first cluster behind the run.
    pub fn end(&self) -> u64 {
        self.start + self.count
    }

    /// What is left of the run from `cluster` on.
    pub fn behind(self, cluster: u64) -> Option<Self> {
        let skip = cluster.saturating_sub(self.start);
        let digest = if self.kind == Kind::Data { self.digest + skip } else { self.digest };
        (skip < self.count).then(|| Self {
            start: self.start + skip,
            count: self.count - skip,
            digest,
            ..self
        })
    }
}

#[cfg(test)]
mod tests;
