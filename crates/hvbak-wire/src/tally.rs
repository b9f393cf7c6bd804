//! The receiver's own sums of a cluster stream, to be compared with the sender's.

use hvbak_types::{CLUSTER_SIZE, Digest};

use crate::{Body, Cluster, Clusters, Totals, WireError};

/// Adds up a stream and checks its order. Both sides use it.
///
/// The digest is BLAKE3 over one record per entry, in order: `index u64 LE · digest[32]`
/// for a cluster with payload or digest; `index u64 LE · count u32 LE` for a zero run.
#[derive(Debug, Clone)]
pub struct Tally {
    next: u64,
    end: u64,
    ordered: bool,
    totals: Totals,
    hasher: blake3::Hasher,
}

impl Tally {
    /// For a range in clusters (`end` is the first one behind it). With `ordered` the
    /// entries must ascend, as a `Read` sends them; a target takes any order.
    pub fn new(first: u64, end: u64, ordered: bool) -> Self {
        let hasher = blake3::Hasher::new();
        Self { next: first, end, ordered, totals: Totals::default(), hasher }
    }

    /// For a range in bytes, as in a `Read`.
    pub fn of_range(offset: u64, length: u64) -> Self {
        let end = offset.saturating_add(length).div_ceil(CLUSTER_SIZE);
        Self::new(offset / CLUSTER_SIZE, end, true)
    }

    /// Adds all entries of a frame.
    ///
    /// # Errors
    /// [`WireError::Stream`] for an entry outside the range or out of order.
    pub fn add(&mut self, clusters: &Clusters<'_>) -> Result<(), WireError> {
        clusters.iter().try_for_each(|c| self.add_one(&c))
    }

    /// Adds one entry.
    ///
    /// # Errors
    /// As [`Tally::add`].
    pub fn add_one(&mut self, cluster: &Cluster<'_>) -> Result<(), WireError> {
        if cluster.index < self.next || cluster.end() > self.end {
            return Err(WireError::Stream { what: "a cluster out of order or out of range" });
        }
        if self.ordered {
            self.next = cluster.end();
        }
        let mut record = [0; 40];
        record[..8].copy_from_slice(&cluster.index.to_le_bytes());
        let payload = match cluster.body {
            Body::Zero { count } => {
                self.totals.zero_clusters += u64::from(count);
                record[8..12].copy_from_slice(&count.to_le_bytes());
                self.hasher.update(&record[..12]);
                return Ok(());
            }
            Body::Plain(data) | Body::Zstd(data) => data.len(),
            Body::Digest => 0,
        };
        record[8..].copy_from_slice(&cluster.digest.0);
        self.hasher.update(&record);
        self.totals.clusters += 1;
        self.totals.data_bytes += CLUSTER_SIZE;
        self.totals.payload_bytes += payload as u64;
        Ok(())
    }

    /// The sums so far.
    pub const fn totals(&self) -> Totals {
        self.totals
    }

    /// The digest so far.
    pub fn digest(&self) -> Digest {
        Digest(*self.hasher.finalize().as_bytes())
    }

    /// Compares with what the other side counted.
    ///
    /// # Errors
    /// [`WireError::Stream`] when anything differs: the stream is not complete.
    pub fn compare(&self, totals: &Totals, digest: &Digest) -> Result<(), WireError> {
        if self.totals != *totals {
            return Err(WireError::Stream { what: "totals differ from the sender's" });
        }
        if self.digest() != *digest {
            return Err(WireError::Stream { what: "digest differs from the sender's" });
        }
        Ok(())
    }
}
