//! One disk of a point: its digests file against the manifest, its image against both.

use std::{
    fs,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use hvbak_types::Digest;

use super::{Check, FindingKind, swap};
use crate::{
    catalogue::Point,
    digests::{Digests, Run},
    disk_reader::{Buffers, DiskReader},
    error::{Error, Result},
    image::ImageReader,
    layout::backing_name,
    manifest::DiskRecord,
    parallel,
};

/// Clusters that a finding names; the rest is counted.
const NAMED: usize = 8;

impl Check<'_> {
    pub(super) fn disk(&mut self, point: &Point, record: &DiskRecord) -> Result<()> {
        let before = self.report.findings.len();
        let digests = self.digests(point, record);
        let image_path = point.path.join(&record.file);
        let image = self.image(point, record, &image_path);
        if let (Some(image), Some(digests)) = (&image, &digests) {
            self.clusters(point, &image_path, image, digests);
            self.data(point, record, &image_path)?;
        }
        // A file that changed places is damaged in many ways; the one reason replaces them.
        if self.report.findings.len() > before
            && let Some(image) = &image
            && let Some(owner) = swap::image(self.repository, point, record, image)
        {
            let file = self.repository.relative(&image_path);
            let mut index = 0;
            self.report.findings.retain(|finding| {
                index += 1;
                index <= before || finding.file != file
            });
            self.find(point, &image_path, FindingKind::Swapped, owner);
        }
        Ok(())
    }

    /// The digests file, if it can serve as the measure for the image.
    fn digests(&mut self, point: &Point, record: &DiskRecord) -> Option<Digests> {
        let path = point.path.join(&record.digests);
        let mut hasher = blake3::Hasher::new();
        let hashed = fs::File::open(&path).and_then(|file| {
            hasher.update_reader(file)?;
            Ok(Digest(hasher.finalize().into()))
        });
        let found = match hashed {
            Ok(found) => found,
            Err(cause) => {
                self.unreadable(point, &path, &cause);
                return None;
            }
        };
        let opened = Digests::open(&path);
        if found == record.digest {
            if let Some((_, sha256)) = self.hash(point, &path) {
                self.listed_as(point, &record.digests, sha256);
            }
            // The right bytes, so anything wrong with them is older than the point.
            return opened
                .map_err(|e| self.find(point, &path, FindingKind::Damaged, whole(&e)))
                .ok();
        }
        if let Some(owner) = swap::digests(self.repository, point, record, found) {
            self.find(point, &path, FindingKind::Swapped, owner);
            return None;
        }
        let (kind, text) = match &opened {
            Err(Error::Damaged { why, .. }) if why.starts_with("it is cut off") => {
                (FindingKind::Truncated, why.clone())
            }
            Err(error) => (FindingKind::Damaged, whole(error)),
            Ok(_) => (FindingKind::Damaged, "its BLAKE3 is not the one in the manifest".into()),
        };
        self.find(point, &path, kind, text);
        // Damaged in a few digests it still tells good clusters from bad ones.
        opened.ok()
    }

    /// Opens the image and checks what needs no digests.
    fn image(&mut self, point: &Point, record: &DiskRecord, path: &Path) -> Option<ImageReader> {
        let length = match fs::metadata(path) {
            Ok(meta) => meta.len(),
            Err(cause) => {
                self.unreadable(point, path, &cause);
                return None;
            }
        };
        if length < record.stored_bytes {
            let text = format!("it has {length} of {} bytes", record.stored_bytes);
            self.find(point, path, FindingKind::Truncated, text);
        } else if length > record.stored_bytes {
            let text = format!("it has {length} bytes instead of {}", record.stored_bytes);
            self.find(point, path, FindingKind::Damaged, text);
        }
        let image = match ImageReader::open(path) {
            Ok(image) => image,
            Err(error) => {
                self.find(point, path, FindingKind::Structure, whole(&error));
                return None;
            }
        };
        if image.virtual_size() != record.virtual_size {
            let (found, wanted) = (image.virtual_size(), record.virtual_size);
            let text = format!("it is of a disk of {found} bytes, not {wanted}");
            self.find(point, path, FindingKind::Structure, text);
        }
        let wanted = record.parent.as_ref().map(|parent| backing_name(parent, record.id));
        if image.backing_name() != wanted.as_deref() {
            let none = "none";
            let found: String =
                image.backing_name().unwrap_or(none).chars().filter(|c| !c.is_control()).collect();
            let text =
                format!("its backing file is {found}, not {}", wanted.as_deref().unwrap_or(none));
            self.find(point, path, FindingKind::Chain, text);
        }
        match image.check() {
            Ok(problems) if problems.is_empty() => {}
            Ok(problems) => {
                self.find(point, path, FindingKind::Structure, problems.join("; "));
            }
            Err(error) => self.find(point, path, FindingKind::Structure, whole(&error)),
        }
        Some(image)
    }

    /// Compares which clusters image and digests hold.
    fn clusters(&mut self, point: &Point, path: &Path, image: &ImageReader, digests: &Digests) {
        let mut odd = Odd::default();
        let compared = compare_sets(image, digests, &mut odd);
        if let Some(text) = odd.text("is in one of image and digests only, or of another kind") {
            self.find(point, path, FindingKind::Clusters, text);
        }
        if let Err(error) = compared {
            self.find(point, path, FindingKind::Structure, whole(&error));
        }
    }

    /// Inflates and hashes every cluster of this layer.
    fn data(&mut self, point: &Point, record: &DiskRecord, path: &Path) -> Result<()> {
        if !self.options.data {
            return Ok(());
        }
        let reader = match DiskReader::open(vec![point.clone()], record.id, None) {
            Ok(reader) => reader,
            // Usually told already (sizes that do not fit); never passed over in silence.
            Err(error) => {
                self.find(point, path, FindingKind::Structure, whole(&error));
                return Ok(());
            }
        };
        let odd = Mutex::new(Odd::default());
        let (clusters, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        let checked = parallel::each_data_chunk(
            &reader,
            self.options.threads,
            Buffers::default,
            |buffers, chunk| {
                for cluster in chunk.clusters() {
                    if reader.read_proven(chunk, cluster, buffers).is_err() {
                        odd.lock().unwrap_or_else(PoisonError::into_inner).add(cluster);
                    }
                    bytes.fetch_add(buffers.stored.len() as u64, Ordering::Relaxed);
                }
                clusters.fetch_add(chunk.count, Ordering::Relaxed);
                Ok(())
            },
            |clusters| self.step(record.id, clusters),
        );
        self.report.clusters += clusters.into_inner();
        self.report.bytes += bytes.into_inner();
        let mut odd = odd.into_inner().unwrap_or_else(PoisonError::into_inner);
        odd.clusters.sort_unstable();
        if let Some(text) = odd.text("cannot be read, inflated or does not have its digest") {
            self.find(point, path, FindingKind::Damaged, text);
        }
        match checked {
            Ok(()) => Ok(()),
            Err(Error::Cancelled) => Err(Error::Cancelled),
            Err(error) => {
                self.find(point, path, FindingKind::Unreadable, whole(&error));
                Ok(())
            }
        }
    }
}

/// Walks both in guest order; runs are cut where the other side begins or ends one.
fn compare_sets(image: &ImageReader, digests: &Digests, odd: &mut Odd) -> Result<()> {
    let (mut stored, mut known) = (image.runs()?, digests.runs());
    let (mut a, mut b) = (stored.next().transpose()?, known.next().transpose()?);
    loop {
        let (at, end) = match (&a, &b) {
            (None, None) => return Ok(()),
            (Some(run), None) | (None, Some(run)) => (run.start, run.end()),
            (Some(a), Some(b)) if a.start < b.start => (a.start, a.end().min(b.start)),
            (Some(a), Some(b)) if a.start > b.start => (b.start, b.end().min(a.start)),
            (Some(a), Some(b)) => (a.start, a.end().min(b.end())),
        };
        let kind = |run: &Option<Run>| run.filter(|run| run.start == at).map(|run| run.kind);
        if kind(&a) != kind(&b) {
            odd.add_range(at, end);
        }
        if kind(&a).is_some() {
            a = match a.and_then(|run| run.behind(end)) {
                None => stored.next().transpose()?,
                rest => rest,
            };
        }
        if kind(&b).is_some() {
            b = match b.and_then(|run| run.behind(end)) {
                None => known.next().transpose()?,
                rest => rest,
            };
        }
    }
}

/// Clusters that something is wrong with: the first few and their number.
#[derive(Default)]
struct Odd {
    clusters: Vec<u64>,
    count: u64,
}

impl Odd {
    fn add(&mut self, cluster: u64) {
        self.add_range(cluster, cluster + 1);
    }

    fn add_range(&mut self, start: u64, end: u64) {
        self.count += end - start;
        let room = NAMED - self.clusters.len();
        self.clusters.extend((start..end).take(room));
    }

    /// `cluster 17 …`, `clusters 17, 18 and 4 more …`.
    fn text(&self, what: &str) -> Option<String> {
        let names: Vec<_> = self.clusters.iter().map(ToString::to_string).collect();
        let more = self.count - self.clusters.len() as u64;
        match self.count {
            0 => None,
            1 => Some(format!("cluster {} {what}", names[0])),
            _ if more == 0 => Some(format!("clusters {}: each {what}", names.join(", "))),
            _ => Some(format!("clusters {} and {more} more: each {what}", names.join(", "))),
        }
    }
}

/// An error with its causes: a finding is a sentence of its own.
fn whole(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
