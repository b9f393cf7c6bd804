//! A point being made: hidden until it is whole.
//!
//! Order of [`Staging::publish`], each step on stable storage before the next: images and
//! digests (by [`DiskWriter::finish`]), documents, what only a later run would need is
//! removed, `SHA256SUMS`, `manifest.json`, the
//! hidden directory, its rename, the VM's directory. Stopped anywhere, there is either the
//! hidden directory, which readers never look into, or the whole point.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hvbak_types::{DiskId, PointId, VmId};

use crate::{
    catalogue::Point,
    disk_writer::{DiskOptions, DiskWriter},
    durable,
    error::{Error, Result},
    layout::{Layout, MANIFEST, SUMS, digests_name, is_document_name},
    manifest::{DiskRecord, DocumentEntry, FORMAT, Manifest},
    repository::Repository,
    sums,
};

/// A point that is not published yet. Shared by the tasks that fill it.
///
/// Dropping it leaves the hidden directory to [`Repository::sweep_partials`]: a destructor
/// could not report what fails.
#[derive(Debug, Clone)]
pub struct Staging {
    repository: Repository,
    vm: VmId,
    point: PointId,
    dir: PathBuf,
    shared: Shared,
}

/// What the writers report back.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shared(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    documents: Vec<DocumentEntry>,
    /// `None` while the disk is being written.
    disks: BTreeMap<DiskId, Option<Finished>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Finished {
    pub record: DiskRecord,
    /// SHA-256 of the digests file.
    pub sha256: hvbak_types::Digest,
}

impl Shared {
    pub(crate) fn finished(&self, disk: DiskId, finished: Finished) {
        self.state().disks.insert(disk, Some(finished));
    }

    pub(crate) fn abandoned(&self, disk: DiskId) {
        self.state().disks.remove(&disk);
    }

    /// Begins a disk by `with`, once.
    pub(crate) fn begin<T>(&self, disk: DiskId, with: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut state = self.state();
        if state.disks.contains_key(&disk) {
            return Err(Error::DiskTwice { disk });
        }
        let begun = with()?;
        state.disks.insert(disk, None);
        Ok(begun)
    }

    /// The record of a finished disk.
    pub(crate) fn record(&self, disk: DiskId) -> Option<DiskRecord> {
        let state = self.state();
        state.disks.get(&disk)?.as_ref().map(|finished| finished.record.clone())
    }

    pub(crate) fn documents(&self) -> Vec<DocumentEntry> {
        self.state().documents.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Staging {
    pub(crate) fn create(repository: &Repository, vm: VmId, point: PointId) -> Result<Self> {
        let layout: &Layout = &repository.layout;
        let dir = layout.partial(vm, &point);
        let exists = |path: &Path| path.symlink_metadata().is_ok();
        if exists(&dir) || exists(&layout.point(vm, &point)) {
            return Err(Error::PointExists { vm, point });
        }
        for home in [layout.vms(), layout.vm(vm)] {
            if !home.is_dir() {
                durable::create_dir(&home)?;
                durable::sync_parent(&home)?;
            }
        }
        durable::create_dir(&dir)?;
        Ok(Self::of(repository, vm, point, Vec::new()))
    }

    /// A staging directory that is there, with these documents.
    pub(crate) fn of(
        repository: &Repository,
        vm: VmId,
        point: PointId,
        documents: Vec<DocumentEntry>,
    ) -> Self {
        let dir = repository.layout.partial(vm, &point);
        let shared = Shared(Arc::new(Mutex::new(State { documents, disks: BTreeMap::new() })));
        Self { repository: repository.clone(), vm, point, dir, shared }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The VM whose point this is.
    pub fn vm(&self) -> VmId {
        self.vm
    }

    /// The point that is being made.
    pub fn point(&self) -> &PointId {
        &self.point
    }

    /// The hidden directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Stores a document as it came, e.g. `vm.ovf` or `nics.xml`.
    ///
    /// # Errors
    /// [`Error::DocumentName`], [`Error::DocumentTwice`], or that it cannot be written.
    pub fn put_document(&self, name: &str, bytes: &[u8]) -> Result<()> {
        if !is_document_name(name) {
            return Err(Error::DocumentName { name: name.chars().take(100).collect() });
        }
        let mut state = self.shared.state();
        if state.documents.iter().any(|d| d.name == name) {
            return Err(Error::DocumentTwice { name: name.to_owned() });
        }
        durable::write_new(&self.dir.join(name), bytes)?;
        let (size, sha256) = (bytes.len() as u64, sums::of_bytes(bytes));
        state.documents.push(DocumentEntry { name: name.to_owned(), size, sha256 });
        Ok(())
    }

    /// Begins a disk. Disks may be written at the same time.
    ///
    /// # Errors
    /// [`Error::DiskTwice`]; [`Error::BrokenChain`] when the parent does not hold this
    /// disk.
    pub fn disk_writer(&self, disk: DiskId, options: DiskOptions) -> Result<DiskWriter> {
        self.check_parent(disk, &options)?;
        let shared = self.shared.clone();
        self.shared.begin(disk, || DiskWriter::create(&self.dir, disk, options, shared))
    }

    /// What a delta stands on is there.
    pub(crate) fn check_parent(&self, disk: DiskId, options: &DiskOptions) -> Result<()> {
        if let Some(parent) = &options.parent {
            let broken = |why: String| Error::BrokenChain {
                point: self.point.clone(),
                parent: parent.clone(),
                why,
            };
            if !crate::manifest::is_older(parent, &self.point) {
                return Err(broken("it is not older".into()));
            }
            let found =
                self.repository.point(self.vm, parent).map_err(|e| broken(e.to_string()))?;
            if found.manifest.disk(disk).is_none() {
                return Err(broken(format!("it does not hold disk {disk}")));
            }
        }
        Ok(())
    }

    /// Makes the point visible. `manifest.disks` holds the records that the writers
    /// returned; `documents` is filled in, as are the fields that say where it lies.
    ///
    /// # Errors
    /// A disk that is unfinished, unlisted, or not as written; whatever stops a write. The
    /// hidden directory then still exists; [`Repository::remove_partial`] removes it.
    pub fn publish(self, mut manifest: Manifest) -> Result<Point> {
        let state = self.shared.state();
        check_disks(&state, &manifest)?;
        manifest.format = FORMAT;
        manifest.repository = self.repository.id();
        manifest.point = self.point.clone();
        manifest.documents.clone_from(&state.documents);
        manifest.documents.sort_by(|a, b| a.name.cmp(&b.name));
        manifest.finished = manifest.finished.max(manifest.started);
        if let Some(why) = manifest.contradiction(self.vm, &self.point) {
            return Err(Error::Inconsistent { path: self.dir.join(MANIFEST), why });
        }
        let path = self.dir.join(MANIFEST);
        let mut text = serde_json::to_vec_pretty(&manifest)
            .map_err(|cause| Error::Encode { path: path.clone(), cause })?;
        text.push(b'\n');
        let mut entries = vec![(MANIFEST.to_owned(), sums::of_bytes(&text))];
        entries.extend(state.documents.iter().map(|d| (d.name.clone(), d.sha256)));
        entries.extend(
            state.disks.iter().filter_map(|(id, f)| Some((digests_name(*id), f.as_ref()?.sha256))),
        );
        crate::resume::strip(&self.dir)?;
        durable::write_new(&self.dir.join(SUMS), sums::render(entries).as_bytes())?;
        durable::write_new(&path, &text)?;
        durable::sync_dir(&self.dir)?;
        let target = self.repository.layout.point(self.vm, &self.point);
        durable::rename_new(&self.dir, &target).map_err(|error| match error {
            Error::OutputExists { .. } => {
                Error::PointExists { vm: self.vm, point: self.point.clone() }
            }
            other => other,
        })?;
        Ok(Point { path: target, manifest })
    }

    /// Removes what was made so far.
    pub fn discard(self) -> Result<()> {
        durable::remove_tree(&self.dir).map(|_| ())
    }
}

fn check_disks(state: &State, manifest: &Manifest) -> Result<()> {
    for (disk, finished) in &state.disks {
        let Some(finished) = finished else { return Err(Error::DiskUnfinished { disk: *disk }) };
        if manifest.disk(*disk).is_none_or(|listed| listed.record != finished.record) {
            return Err(Error::DiskMismatch { disk: *disk });
        }
    }
    let unknown = manifest.disks.iter().find(|d| !state.disks.contains_key(&d.record.id));
    unknown.map_or(Ok(()), |d| Err(Error::DiskUnknown { disk: d.record.id }))
}

#[cfg(test)]
#[path = "stage_tests.rs"]
mod tests;
