//! Proves a point, or names what is damaged in it.
//!
//! Everything is recomputed from the bytes on disk: SHA-256 of the small files, BLAKE3 of
//! the digests files, every cluster inflated and hashed, the structure of the images, and
//! that images and digests hold the same clusters. The report names files, never guesses
//! at causes, and is complete: one damaged file does not hide another.

use std::path::PathBuf;

use hvbak_types::{DiskId, PointId};
use serde::Serialize;

use crate::{catalogue::Point, error::Result, repository::Repository};

/// What is wrong with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FindingKind {
    /// The file is not there.
    Missing,
    /// It is shorter than it was.
    Truncated,
    /// It holds other bytes than it did.
    Damaged,
    /// It holds what belongs to another disk or point.
    Swapped,
    /// The manifest is not the one that was written.
    ManifestEdited,
    /// The image's tables contradict themselves.
    Structure,
    /// The image and the digests do not hold the same clusters.
    Clusters,
    /// A point that this one stands on is missing or does not fit.
    Chain,
    /// The point does not know the file.
    Foreign,
    /// It could not be read.
    Unreadable,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub point: PointId,
    /// The file, relative to the repository.
    pub file: PathBuf,
    pub kind: FindingKind,
    /// A sentence without a period.
    pub text: String,
}

/// How thorough to be.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// Threads that inflate and hash; 0 = as many as there are CPUs.
    pub threads: usize,
    /// Also prove the points that this one stands on. Leave it out when all points are
    /// verified one after the other.
    pub parents: bool,
    /// Read and hash the clusters; without it only files and structure are looked at.
    pub data: bool,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self { threads: 0, parents: true, data: true }
    }
}

/// How far a verification is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyProgress {
    /// The disk that is read now.
    pub disk: DiskId,
    /// Guest bytes of stored clusters, of all disks to read.
    pub done: u64,
    pub total: u64,
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    pub findings: Vec<Finding>,
    /// Points that were looked at.
    pub points: Vec<PointId>,
    /// Clusters whose content has its digest.
    pub clusters: u64,
    /// Bytes of images read.
    pub bytes: u64,
}

impl VerifyReport {
    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

impl Repository {
    /// Verifies a point. `progress` is called now and then, from any thread; it returns
    /// false to cancel.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled). Damage is no error: it is in the
    /// report.
    pub fn verify(
        &self,
        point: &Point,
        _options: &VerifyOptions,
        _progress: &(dyn Fn(VerifyProgress) -> bool + Sync),
    ) -> Result<VerifyReport> {
        let why = "nothing verifies it yet".into();
        Err(crate::Error::Damaged { path: point.path.clone(), why })
    }
}
