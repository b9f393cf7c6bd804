//! The side log of a disk that is being written: what of it is on stable storage, so that a
//! later run can go on when this one dies.
//!
//! ```text
//! magic     8 bytes   "HVBAKPG1"
//! frames              u32 kind (1 head, 2 batch), u32 length of the body, the body,
//!                     32 bytes BLAKE3 of the hash before (zeros at first) and all of these
//! head                JSON: virtual size, parent, and what the caller notes of the source
//! batch     56 bytes  a record: u64 guest cluster, u64 host offset or number of clusters,
//!                     u32 stored length, u32 kind (1 data, 2 zero, 3 told), 32 bytes digest
//! ```
//! All numbers little-endian. `told` are ranges of which everything is known: a cluster in
//! one that no data or zero record names is absent.
//!
//! Invariant: a batch is written only after the payloads that it names were synced, and
//! names everything in the ranges that it tells. What follows the first frame that is cut off
//! or has a wrong hash does not count.

mod read;
mod write;

use blake3::Hasher;
use hvbak_types::{Digest, PointId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use read::Replay;
pub use write::Progress;

const MAGIC: [u8; 8] = *b"HVBAKPG1";
/// Bytes of a record, of a frame's start and of its hash.
const RECORD: usize = 56;
const START: usize = 8;
const HASH: usize = 32;
/// A body that is longer was not written here.
const BODY_MAX: usize = 64 << 20;
const HEAD: u32 = 1;
const BATCH: u32 = 2;

/// What the log says of the whole disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub virtual_size: u64,
    pub parent: Option<PointId>,
    /// The caller's: where the content comes from.
    pub source: Value,
}

/// One thing that is on stable storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// A payload lies in the image; 65536 bytes are plain, fewer one frame.
    Data { cluster: u64, offset: u64, length: u32, digest: Digest },
    /// Clusters are zeros that hide what the parent holds.
    Zero { cluster: u64, count: u64 },
    /// All that is to say of these clusters was said.
    Told { cluster: u64, count: u64 },
}

impl Record {
    fn encode(&self, out: &mut Vec<u8>) {
        let (cluster, second, length, kind, digest) = match *self {
            Self::Data { cluster, offset, length, digest } => {
                (cluster, offset, length, 1u32, digest.0)
            }
            Self::Zero { cluster, count } => (cluster, count, 0, 2, [0; 32]),
            Self::Told { cluster, count } => (cluster, count, 0, 3, [0; 32]),
        };
        out.extend(cluster.to_le_bytes());
        out.extend(second.to_le_bytes());
        out.extend(length.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend(digest);
    }

    fn decode(bytes: &[u8; RECORD]) -> Option<Self> {
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let (cluster, second) = (u64_at(0), u64_at(8));
        match u32_at(20) {
            1 => {
                let digest = Digest(std::array::from_fn(|i| bytes[24 + i]));
                Some(Self::Data { cluster, offset: second, length: u32_at(16), digest })
            }
            2 => Some(Self::Zero { cluster, count: second }),
            3 => Some(Self::Told { cluster, count: second }),
            _ => None,
        }
    }
}

/// The hash that ends a frame.
fn seal(before: &[u8; HASH], start: &[u8], body: &[u8]) -> [u8; HASH] {
    let mut hasher = Hasher::new();
    hasher.update(before).update(start).update(body);
    hasher.finalize().into()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
