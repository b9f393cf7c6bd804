//! The repository: layout, locks, points, verification, export.
//!
//! What is stored and how is the subject of `FORMAT.md`; this room reads and writes it.
//! It knows no network and no engine, and it decides no policy. All calls block: callers
//! with an async runtime use threads.
//!
//! Invariants:
//! - A point directory under its final name is whole: it was fsynced under a hidden name
//!   and renamed, manifest last. What the guest saw never changes afterwards; only `expire`
//!   replaces a point, by one that holds more of that by itself.
//! - Manifests are the truth; there is no database or cache that could disagree.
//! - A lock is a `flock`, so a dead process holds none; the text in a lock file only says
//!   who.
//! - Everything that is read back is treated as if it came from outside.

mod catalogue;
mod digests;
mod disk_reader;
mod disk_writer;
mod durable;
mod error;
mod expire;
mod export;
mod identity;
mod image;
mod journal;
mod layout;
mod lock;
mod manager;
mod manager_point;
mod manager_staging;
mod manifest;
mod merge;
mod notes;
mod parallel;
mod progress;
mod repository;
mod resume;
mod runs;
mod salvage;
mod seal;
mod select;
mod stage;
mod storage;
mod sums;
#[cfg(test)]
mod testing;
mod verify;
mod walk;

pub use catalogue::{DamagedPoint, Listing, Point, VmEntry};
pub use disk_reader::{Buffers, Content, DiskReader};
pub use disk_writer::{DiskOptions, DiskWriter, Payload};
pub use error::{Error, Result};
pub use expire::{DiskMerge, ExpiryPlan, ExpirySummary, MergeStep, Stay};
pub use export::{ExportFormat, ExportOptions, ExportSummary};
pub use identity::Holder;
pub use journal::{Journal, JournalView, StepId, StepState, StepView};
pub use lock::{PointsLock, RepositoryLock, VmLock};
pub use manager::{ManagerListing, ManagerLock, ManagerName, ManagerRecord, RecordKind};
pub use manager_point::{
    ARCHIVE as MANAGER_ARCHIVE, Encrypted, EngineSaid, ManagerFile, ManagerManifest, ManagerPoint,
};
pub use manager_staging::{ManagerStaging, ManagerWriter};
pub use manifest::{
    Consistency, DiskRecord, DocumentEntry, Level, Manifest, ManifestDisk, ManifestSnapshot,
    ManifestTemplate, ManifestVm, SkippedDisk,
};
pub use merge::{Extents, StoredRun, StoredRuns};
pub use notes::ManagerNotes;
pub use repository::Repository;
pub use resume::Resumable;
pub use runs::{RunKind, RunListing, RunManager, RunOutcome, RunRecord, RunVm, Unassigned};
pub use salvage::Salvage;
pub use seal::{Identities, PlainSum, Recipients, is_sealed, open_sealed, sum_sealed};
pub use select::NewestOf;
pub use stage::Staging;
pub use verify::{Finding, FindingKind, VerifyOptions, VerifyProgress, VerifyReport};
pub use walk::{EndedWalk, WalkLock, WalkRecord, WalkStep};
