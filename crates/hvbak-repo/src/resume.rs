//! Half-made points that a later run may go on with.
//!
//! `.resume.json` lies in such a directory: which documents are stored, and what the run
//! noted for its successor, which this room does not look into. A disk has a log while it is
//! written ([`crate::progress`]) and `.<disk>.done` when it is whole. None of these files
//! gets into a published point.
//!
//! Invariant: they are removed before the manifest is written, so a directory that still has
//! `.resume.json` lacks nothing but what its disks say.

use std::{fs, path::Path};

use hvbak_types::{CLUSTER_SIZE, Digest, DiskId, PointId, VmId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    disk_writer::{DiskOptions, DiskWriter},
    durable,
    error::{At, Error, Result},
    layout::{
        MANIFEST, RESUME, SUMS, digests_name, done_disk, done_name, image_name, is_document_name,
        progress_name,
    },
    lock::VmLock,
    manifest::{DiskRecord, DocumentEntry},
    progress::{Record, Replay},
    repository::Repository,
    salvage::{self, Salvage},
    stage::{Finished, Staging},
    sums,
};

/// Larger files are none of ours.
const NOTE_MAX: u64 = 64 << 20;

/// `.resume.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    format: u64,
    documents: Vec<DocumentEntry>,
    run: Value,
}

/// `.<disk>.done`.
#[derive(Debug, Serialize, Deserialize)]
struct Done {
    record: DiskRecord,
    sha256: Digest,
    source: Value,
}

/// A half-made point that a run has noted something about.
#[derive(Debug, Clone, PartialEq)]
pub struct Resumable {
    pub point: PointId,
    /// What the run noted.
    pub run: Value,
    /// Bytes of guest data that are there.
    pub data_bytes: u64,
}

impl Repository {
    /// The half-made points of a VM that may be worth going on with. Nothing is changed.
    pub fn resumables(&self, vm: VmId) -> Result<Vec<Resumable>> {
        let mut found = Vec::new();
        for point in self.partials(vm)? {
            let dir = self.layout.partial(vm, &point);
            if let Some(note) = read::<Note>(&dir.join(RESUME))?.filter(|n| n.format == 1) {
                let data_bytes = data_clusters(&dir)? * CLUSTER_SIZE;
                found.push(Resumable { point, run: note.run, data_bytes });
            }
        }
        Ok(found)
    }

    /// Goes on with a half-made point; its disks with [`Staging::continue_disk`].
    ///
    /// # Errors
    /// [`Error::Damaged`] when it is not as it was noted; it can only be removed then.
    pub fn resume(&self, lock: &VmLock, point: &PointId) -> Result<Staging> {
        let dir = self.layout.partial(lock.vm(), point);
        let path = dir.join(RESUME);
        let damaged = |why: String| Error::Damaged { path: path.clone(), why };
        let note = read::<Note>(&path)?.filter(|note| note.format == 1);
        let note = note.ok_or_else(|| damaged("it is missing or makes no sense".into()))?;
        for document in &note.documents {
            // The note is a file in the repository: nothing outside is read on its word.
            if !is_document_name(&document.name) {
                return Err(damaged("it names documents that no run has stored".into()));
            }
            let stored = fs::read(dir.join(&document.name)).ok();
            if stored.is_none_or(|bytes| sums::of_bytes(&bytes) != document.sha256) {
                return Err(damaged(format!("{} is not as it was stored", document.name)));
            }
        }
        // Of a run that died while it published.
        for name in [SUMS, MANIFEST] {
            durable::remove_file(&dir.join(name))?;
        }
        let staging = Staging::of(self, lock.vm(), point.clone(), note.documents);
        for disk in done_disks(&dir)? {
            match whole(&dir, disk)? {
                Some(finished) => {
                    durable::remove_file(&dir.join(progress_name(disk)))?;
                    staging.shared().finished(disk, finished);
                }
                None => {
                    for name in [done_name(disk), image_name(disk), digests_name(disk)] {
                        durable::remove_file(&dir.join(name))?;
                    }
                }
            }
        }
        Ok(staging)
    }
}

impl Staging {
    /// Notes what a later run needs to go on with this point. The documents that are to be
    /// in it must be stored already.
    pub fn make_resumable(&self, run: Value) -> Result<()> {
        durable::sync_dir(self.path())?;
        let note = Note { format: 1, documents: self.shared().documents(), run };
        write(&self.path().join(RESUME), &note)
    }

    /// What the options of a disk's writer said of the source, in the run that began it;
    /// `None` when it was not begun.
    pub fn disk_source(&self, disk: DiskId) -> Result<Option<Value>> {
        if let Some(done) = read::<Done>(&self.path().join(done_name(disk)))? {
            return Ok(Some(done.source));
        }
        let log = Replay::open(&self.path().join(progress_name(disk)))?;
        Ok(log.map(|log| log.head().source.clone()))
    }

    /// A disk that an earlier run has finished.
    pub fn finished_disk(&self, disk: DiskId) -> Option<DiskRecord> {
        self.shared().record(disk)
    }

    /// Goes on with a disk, or begins it when nothing of it is of use. What is there is read
    /// and hashed first, about 1 s of a core per GiB; when `wanted` becomes false meanwhile,
    /// that is left.
    ///
    /// # Errors
    /// As [`Staging::disk_writer`]; [`Error::Cancelled`].
    pub fn continue_disk(
        &self,
        disk: DiskId,
        options: DiskOptions,
        wanted: &dyn Fn() -> bool,
    ) -> Result<(DiskWriter, Salvage)> {
        self.check_parent(disk, &options)?;
        let shared = self.shared();
        shared.begin(disk, || {
            match salvage::reopen(self.path(), disk, &options, shared.clone(), wanted)? {
                Some(found) => Ok(found),
                None => {
                    let nothing = Salvage::nothing(&options);
                    let writer = DiskWriter::create(self.path(), disk, options, shared.clone())?;
                    Ok((writer, nothing))
                }
            }
        })
    }
}

/// Notes that a disk is whole, and removes its log.
pub(crate) fn note_done(image: &Path, finished: &Finished, source: Value) -> Result<()> {
    let disk = finished.record.id;
    let done = Done { record: finished.record.clone(), sha256: finished.sha256, source };
    write(&image.with_file_name(done_name(disk)), &done)?;
    durable::remove_file(&image.with_file_name(progress_name(disk)))
}

/// Removes all that is not of a published point; afterwards nobody can go on.
pub(crate) fn strip(dir: &Path) -> Result<()> {
    durable::remove_file(&dir.join(RESUME))?;
    for disk in done_disks(dir)? {
        for name in [done_name(disk), progress_name(disk)] {
            durable::remove_file(&dir.join(name))?;
        }
    }
    Ok(())
}

/// Whether files and note of a finished disk belong together. The image's content was synced
/// before the note was written and is not looked at, as that of a published point.
fn whole(dir: &Path, disk: DiskId) -> Result<Option<Finished>> {
    let Some(Done { record, sha256, .. }) = read::<Done>(&dir.join(done_name(disk)))? else {
        return Ok(None);
    };
    let (image, digests) = (dir.join(image_name(disk)), dir.join(digests_name(disk)));
    let length = fs::metadata(&image).map_or(0, |m| m.len());
    let mut hasher = blake3::Hasher::new();
    let hashed = fs::File::open(&digests).and_then(|file| hasher.update_reader(file).map(drop));
    let good = record.id == disk
        && length == record.stored_bytes
        && hashed.is_ok()
        && hasher.finalize().as_bytes() == &record.digest.0;
    Ok(good.then_some(Finished { record, sha256 }))
}

fn done_disks(dir: &Path) -> Result<Vec<DiskId>> {
    let mut disks = Vec::new();
    for entry in fs::read_dir(dir).reading(dir)? {
        disks.extend(entry.reading(dir)?.file_name().to_str().and_then(done_disk));
    }
    Ok(disks)
}

/// Data clusters of the disks, as notes and logs have them.
fn data_clusters(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir).reading(dir)? {
        let path = entry.reading(dir)?.path();
        match path.extension().and_then(|end| end.to_str()) {
            Some("done") => {
                sum += read::<Done>(&path)?.map_or(0, |done| done.record.data_clusters);
            }
            Some("progress") => {
                let Some(mut log) = Replay::open(&path)? else { continue };
                while let Some(records) = log.next()? {
                    let data = records.iter().filter(|r| matches!(r, Record::Data { .. }));
                    sum += data.count() as u64;
                }
            }
            _ => {}
        }
    }
    Ok(sum)
}

/// Reads a note; `None` when it is missing or makes no sense.
fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>> {
    match fs::metadata(path) {
        Ok(meta) if meta.len() <= NOTE_MAX => {}
        _ => return Ok(None),
    }
    Ok(serde_json::from_slice(&fs::read(path).reading(path)?).ok())
}

fn write(path: &Path, note: &impl Serialize) -> Result<()> {
    let text =
        serde_json::to_vec(note).map_err(|cause| Error::Encode { path: path.to_owned(), cause })?;
    durable::write_over(path, &text)
}
