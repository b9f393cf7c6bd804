//! Proves a point, or names what is damaged in it.
//!
//! Everything is recomputed from the bytes on disk: SHA-256 of the small files, BLAKE3 of
//! the digests files, every cluster inflated and hashed, the structure of the images, and
//! that images and digests hold the same clusters. The report names files, never guesses
//! at causes, and is complete: one damaged file does not hide another.

mod disk;
mod files;
mod swap;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use hvbak_types::{CLUSTER_SIZE, Digest, DiskId, PointId};
use serde::Serialize;

use crate::{
    catalogue::{DamagedPoint, Point},
    error::{Error, Result},
    layout::MANIFEST,
    repository::Repository,
};

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
    /// Also prove what this point stands on. Leave it out when all points are verified one
    /// after the other; that the parents are there is checked in any case.
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
    /// What is odd but harms nothing.
    pub notes: Vec<String>,
    /// Points that were looked at, this one first.
    pub points: Vec<PointId>,
    /// Clusters whose content was hashed.
    pub clusters: u64,
    /// Bytes of images that were read.
    pub bytes: u64,
}

impl VerifyReport {
    /// Whether nothing is damaged.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

impl Repository {
    /// Verifies a point. `progress` is called now and then, from any thread; it returns
    /// false to cancel.
    ///
    /// # Errors
    /// [`Error::Cancelled`], or that the repository cannot be locked. Damage is no error:
    /// it is in the report.
    pub fn verify(
        &self,
        point: &Point,
        options: &VerifyOptions,
        progress: &(dyn Fn(VerifyProgress) -> bool + Sync),
    ) -> Result<VerifyReport> {
        let _lock = crate::lock::lock_points(&self.layout, point.vm(), false)?;
        // What the point stands on may have changed since its manifest was read; what is
        // wrong with a manifest that cannot be read again is found below.
        let again = self.point(point.vm(), point.id());
        let point = again.as_ref().unwrap_or(point);
        let mut check = Check {
            repository: self,
            options,
            progress,
            report: VerifyReport::default(),
            done: AtomicU64::new(0),
            total: 0,
            listed: None,
        };
        let work = check.plan(point);
        for (point, disks) in &work {
            let disks = point.manifest.disks.iter().filter(|d| disks.contains(&d.record.id));
            let clusters: u64 = disks.map(|d| d.record.data_clusters).sum();
            check.total = check.total.saturating_add(clusters.saturating_mul(CLUSTER_SIZE));
        }
        for (point, disks) in &work {
            check.report.points.push(point.id().clone());
            check.files(point);
            for disk in point.manifest.disks.iter().filter(|d| disks.contains(&d.record.id)) {
                check.disk(point, &disk.record)?;
            }
        }
        Ok(check.report)
    }

    /// The finding for a directory whose manifest cannot be read.
    pub fn damage_of(&self, damaged: &DamagedPoint) -> Finding {
        let (kind, text) = match &damaged.error {
            Error::Damaged { why, .. } => (FindingKind::Missing, format!("the manifest: {why}")),
            Error::Parse { cause, .. } => {
                (FindingKind::ManifestEdited, format!("the manifest makes no sense: {cause}"))
            }
            Error::Inconsistent { why, .. } => {
                (FindingKind::ManifestEdited, format!("the manifest is not the one written: {why}"))
            }
            other => (FindingKind::Unreadable, other.to_string()),
        };
        let file = self.relative(&damaged.path.join(MANIFEST));
        Finding { point: damaged.point.clone(), file, kind, text }
    }

    fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(self.path()).unwrap_or(path).to_owned()
    }
}

/// A verification at work.
struct Check<'a> {
    repository: &'a Repository,
    options: &'a VerifyOptions,
    progress: &'a (dyn Fn(VerifyProgress) -> bool + Sync),
    report: VerifyReport,
    done: AtomicU64,
    total: u64,
    /// `SHA256SUMS` of the point at hand, when it can be read.
    listed: Option<BTreeMap<String, Digest>>,
}

impl Check<'_> {
    /// The points to look at and which of their disks; looks for the chain's members.
    fn plan(&mut self, point: &Point) -> Vec<(Point, BTreeSet<DiskId>)> {
        let all: BTreeSet<_> = point.manifest.disks.iter().map(|d| d.record.id).collect();
        let mut work = vec![(point.clone(), all)];
        for disk in &point.manifest.disks {
            match self.repository.disk_chain(point, disk.record.id) {
                Ok(chain) if self.options.parents => {
                    // Newest first, this point itself left out.
                    for parent in chain.into_iter().rev().skip(1) {
                        match work.iter_mut().find(|(p, _)| p.id() == parent.id()) {
                            Some((_, disks)) => drop(disks.insert(disk.record.id)),
                            None => work.push((parent, BTreeSet::from([disk.record.id]))),
                        }
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    let file = point.path.join(&disk.record.file);
                    self.find(point, &file, FindingKind::Chain, error.to_string());
                }
            }
        }
        work
    }

    fn find(&mut self, point: &Point, file: &Path, kind: FindingKind, text: String) {
        let file = self.repository.relative(file);
        self.report.findings.push(Finding { point: point.id().clone(), file, kind, text });
    }

    /// Whether to go on.
    fn step(&self, disk: DiskId, clusters: u64) -> bool {
        let bytes = clusters * CLUSTER_SIZE;
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.progress)(VerifyProgress { disk, done, total: self.total })
    }
}

#[cfg(test)]
mod tests;
