//! Whether a disk is read in full or only above the stored snapshot (hypervisor.md §13.8).
//!
//! Two decisions, both pure: [`disk_level`] from what repository and engine say before the
//! snapshot is taken, [`sub_chain`] from what the storage says afterwards.
//! Invariant: whatever is not certain is read in full, per disk, and the reason is told.

use hvbak_types::{DiskId, PointId, Snapshot, SnapshotId, SnapshotStatus, VolumeId};
use serde::{Deserialize, Serialize};

/// How much of a disk is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Everything.
    Full,
    /// What changed since the newest point whose snapshot was kept.
    Incremental,
    /// The same, where that point is a full one and stays the base of the next.
    Differential,
}

/// Which level the user asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wish {
    /// Incremental where the rules allow it.
    #[default]
    Auto,
    Full,
    /// As full, because the cycle of a policy is complete; unlike one that was asked for, it is
    /// gone on with when it was cut.
    Due,
    Incremental,
    Differential,
}

/// The newest point whose snapshot was kept on the VM: what a delta can stand on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    pub point: PointId,
    pub snapshot: SnapshotId,
    pub description: String,
    pub disks: Vec<BaseDisk>,
}

/// A disk of the base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseDisk {
    pub id: DiskId,
    /// Bytes that the guest saw.
    pub virtual_size: u64,
    /// Whether it was read in full.
    pub full: bool,
    /// What is wrong with its stored chain, if anything.
    pub damage: Option<String>,
}

/// Why a disk is read in full.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WhyFull {
    #[error("asked for")]
    Asked,
    #[error("the policy's cycle is complete")]
    Due,
    #[error("no earlier point has kept its snapshot")]
    NoBase,
    #[error("the snapshot of point {point} is gone: somebody deleted it")]
    SnapshotGone { point: PointId },
    #[error("the snapshot of point {point} is {state}")]
    SnapshotState { point: PointId, state: String },
    #[error("point {point} does not hold the disk")]
    NewDisk { point: PointId },
    #[error("the stored disk of point {point} cannot be built upon: {why}")]
    Damaged { point: PointId, why: String },
    #[error("point {point} holds no full of the disk, and a differential needs one")]
    NotFull { point: PointId },
    #[error("the snapshot of point {point} does not hold the disk any more")]
    NotInSnapshot { point: PointId },
    #[error("the chain does not go through the snapshot of point {point}")]
    NotInChain { point: PointId },
    #[error("the disk had {before} bytes in point {point} and has {now}: it is another disk")]
    Shrunk { point: PointId, before: u64, now: u64 },
    #[error("a raw layer lies above the snapshot of point {point}")]
    RawAbove { point: PointId },
}

/// Decides from what is known before the snapshot is taken. `snapshots` are the VM's, as
/// the engine lists them now.
///
/// # Errors
/// Why it must be a full.
pub fn disk_level(
    wish: Wish,
    base: Option<&Base>,
    snapshots: &[Snapshot],
    disk: DiskId,
) -> Result<Level, WhyFull> {
    if wish == Wish::Full {
        return Err(WhyFull::Asked);
    }
    if wish == Wish::Due {
        return Err(WhyFull::Due);
    }
    let base = base.ok_or(WhyFull::NoBase)?;
    let point = || base.point.clone();
    let Some(snapshot) = snapshots.iter().find(|s| s.id == base.snapshot) else {
        return Err(WhyFull::SnapshotGone { point: point() });
    };
    match &snapshot.status {
        None | Some(SnapshotStatus::Ok) => {}
        Some(other) => {
            return Err(WhyFull::SnapshotState { point: point(), state: other.to_string() });
        }
    }
    let Some(stored) = base.disks.iter().find(|d| d.id == disk) else {
        return Err(WhyFull::NewDisk { point: point() });
    };
    if let Some(why) = &stored.damage {
        return Err(WhyFull::Damaged { point: point(), why: why.clone() });
    }
    match (wish, stored.full) {
        (Wish::Differential, false) => Err(WhyFull::NotFull { point: point() }),
        (Wish::Differential, true) => Ok(Level::Differential),
        _ => Ok(Level::Incremental),
    }
}

/// A layer of the chain as the storage has it now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerFacts {
    pub volume: VolumeId,
    pub raw: bool,
}

/// How many of the newest layers hold what changed since the base. `chain` is the new
/// snapshot's, newest first, header and metadata already found to agree on every step;
/// `base_volume` is the volume that the base's snapshot owns *now* (merges hand volumes
/// on); `size` is the disk's now.
///
/// # Errors
/// Why it must be a full.
pub fn sub_chain(
    base: &Base,
    disk: DiskId,
    base_volume: Option<VolumeId>,
    chain: &[LayerFacts],
    size: u64,
) -> Result<usize, WhyFull> {
    let point = || base.point.clone();
    let Some(stored) = base.disks.iter().find(|d| d.id == disk) else {
        return Err(WhyFull::NewDisk { point: point() });
    };
    if size < stored.virtual_size {
        let before = stored.virtual_size;
        return Err(WhyFull::Shrunk { point: point(), before, now: size });
    }
    let Some(volume) = base_volume else {
        return Err(WhyFull::NotInSnapshot { point: point() });
    };
    // At 0 the new snapshot would own the base's own volume: no layer was made in between.
    match chain.iter().position(|layer| layer.volume == volume) {
        None | Some(0) => Err(WhyFull::NotInChain { point: point() }),
        Some(top) if chain[..top].iter().any(|layer| layer.raw) => {
            Err(WhyFull::RawAbove { point: point() })
        }
        Some(top) => Ok(top),
    }
}

#[cfg(test)]
#[path = "level_tests.rs"]
mod tests;
