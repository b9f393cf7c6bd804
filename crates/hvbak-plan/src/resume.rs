//! Whether a half-made point that a transfer which was cut has left is gone on with.
//!
//! Invariant: only a point that would come out as the one that is asked for now: same wish,
//! same base, same disks, its snapshot still on the VM. What the storage says is compared
//! when the disks are opened.

use hvbak_types::{DiskId, PointId, Snapshot, SnapshotId, SnapshotStatus};
use serde::Serialize;

use crate::{Base, Wish};

/// The snapshot of a half-made point grows with what the guest writes; after so many days
/// another one is due.
pub const RESUME_DAYS: u64 = 7;

/// A half-made point, as it was noted when it was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    pub point: PointId,
    pub snapshot: SnapshotId,
    pub description: String,
    /// When the snapshot was there.
    pub taken: jiff::Timestamp,
    /// Seconds since then.
    pub age: u64,
    pub wish: Wish,
    pub base: Option<PointId>,
    pub disks: Vec<DiskId>,
    /// Bytes of guest data that are stored.
    pub data_bytes: u64,
}

/// What becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Resume {
    /// The transfer continues.
    Continue { point: PointId, taken: jiff::Timestamp, data_bytes: u64 },
    /// It is discarded, and the backup starts anew.
    Discard { point: PointId, why: String },
}

/// Why a backup starts anew.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WhyAnew {
    #[error("a full is asked for")]
    Full,
    #[error("another level was asked for then")]
    Wish,
    #[error("its snapshot is older than {RESUME_DAYS} days")]
    Old,
    #[error("its snapshot is gone: somebody deleted it")]
    SnapshotGone,
    #[error("its snapshot is {state}")]
    SnapshotState { state: String },
    #[error("another point is the newest now")]
    Base,
    #[error("the VM has other disks now, or others are excluded")]
    Disks,
}

/// Decides from what repository and engine say. `disks` are those to be read now,
/// `snapshots` the VM's.
///
/// # Errors
/// Why it is to be discarded.
pub fn may_continue(
    left: &Left,
    wish: Wish,
    base: Option<&Base>,
    disks: &[DiskId],
    snapshots: &[Snapshot],
) -> Result<(), WhyAnew> {
    if wish == Wish::Full {
        return Err(WhyAnew::Full);
    }
    if wish != left.wish {
        return Err(WhyAnew::Wish);
    }
    if left.age > RESUME_DAYS * 86_400 {
        return Err(WhyAnew::Old);
    }
    let snapshot =
        snapshots.iter().find(|s| s.id == left.snapshot && s.description == left.description);
    match snapshot.map(|s| &s.status) {
        None => return Err(WhyAnew::SnapshotGone),
        Some(Some(SnapshotStatus::Ok)) => {}
        Some(state) => {
            let state = state.as_ref().map_or_else(|| "in no state".into(), ToString::to_string);
            return Err(WhyAnew::SnapshotState { state });
        }
    }
    if base.map(|b| &b.point) != left.base.as_ref() {
        return Err(WhyAnew::Base);
    }
    let sorted = |disks: &[DiskId]| {
        let mut disks = disks.to_vec();
        disks.sort();
        disks
    };
    if sorted(disks) != sorted(&left.disks) {
        return Err(WhyAnew::Disks);
    }
    Ok(())
}

#[cfg(test)]
#[path = "resume_tests.rs"]
mod tests;
