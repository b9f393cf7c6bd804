//! A repository as a whole: made, opened, measured, and the way to everything in it.

use std::{fs, io, path::Path, sync::Arc};

use hvbak_types::{JobId, PointId, RepositoryId, VmId};
use serde::{Deserialize, Serialize};

use crate::{
    durable,
    error::{At, Error, Result},
    journal::{self, Journal, JournalView},
    layout::{CONFIGURATIONS, JOURNAL, LOCKS, Layout, PARTIAL, REPOSITORY, VMS},
    lock::{self, RepositoryLock, VmLock},
    stage::Staging,
};

/// The repository format that this version writes, and the newest it opens.
const FORMAT: u64 = 1;

/// `hvbak-repository.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Identity {
    format: u64,
    id: RepositoryId,
    created: jiff::Timestamp,
}

/// A repository in a directory. Cheap to clone; may be used by several threads.
#[derive(Debug, Clone)]
pub struct Repository {
    id: RepositoryId,
    pub(crate) layout: Arc<Layout>,
}

impl Repository {
    /// Makes a repository in a new or empty directory (one that holds nothing but
    /// `lost+found` counts as empty).
    ///
    /// # Errors
    /// [`Error::AlreadyRepository`], [`Error::NotEmpty`], or that it cannot be written.
    pub fn init(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        fs::create_dir_all(path).writing(path)?;
        let root = path.canonicalize().reading(path)?;
        let layout = Layout { root, tree: VMS };
        for entry in fs::read_dir(&layout.root).reading(path)? {
            let name = entry.reading(path)?.file_name();
            if name == REPOSITORY {
                return Err(Error::AlreadyRepository { path: path.to_owned() });
            }
            // Directories of an earlier `init` that was interrupted are ours.
            if !["lost+found", VMS, LOCKS, JOURNAL, ".hvbak-repository.json.tmp"]
                .iter()
                .any(|ours| name == *ours)
            {
                return Err(Error::NotEmpty { path: path.to_owned() });
            }
        }
        fs::set_permissions(&layout.root, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .writing(path)?;
        for dir in [layout.vms(), layout.locks(), layout.journals()] {
            if fs::read_dir(&dir).is_ok_and(|mut d| d.next().is_some()) {
                return Err(Error::NotEmpty { path: path.to_owned() });
            }
            durable::create_dir(&dir)?;
        }
        let id = RepositoryId::random();
        let identity = Identity { format: FORMAT, id, created: jiff::Timestamp::now() };
        let target = layout.repository();
        let mut text = serde_json::to_vec_pretty(&identity)
            .map_err(|cause| Error::Encode { path: target.clone(), cause })?;
        text.push(b'\n');
        // The file makes the directory a repository, so it comes last and whole.
        let temporary = layout.root.join(".hvbak-repository.json.tmp");
        match fs::remove_file(&temporary) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                return Err(cause).writing(&temporary);
            }
            _ => {}
        }
        durable::write_new(&temporary, &text)?;
        durable::rename_new(&temporary, &target)?;
        durable::sync_parent(&layout.root)?;
        Ok(Self { id, layout: Arc::new(layout) })
    }

    /// Opens a repository.
    ///
    /// # Errors
    /// [`Error::NoRepository`] when there is none, [`Error::NewerFormat`] when this
    /// version does not understand it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let missing = || Error::NoRepository { path: path.to_owned() };
        let root = match path.canonicalize() {
            Err(cause) if is_absent(&cause) => return Err(missing()),
            other => other.reading(path)?,
        };
        let layout = Layout { root, tree: VMS };
        let file = layout.repository();
        let text = match fs::read(&file) {
            Err(cause) if is_absent(&cause) => return Err(missing()),
            other => other.reading(&file)?,
        };
        let parse = |cause| Error::Parse { path: file.clone(), cause };
        // The format first: a newer one may have other fields.
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(parse)?;
        if let Some(found) = value.get("format").and_then(serde_json::Value::as_u64)
            && found > FORMAT
        {
            return Err(Error::NewerFormat { path: path.to_owned(), found, known: FORMAT });
        }
        let identity: Identity = serde_json::from_value(value).map_err(parse)?;
        for dir in [layout.vms(), layout.locks(), layout.journals()] {
            // A copy made without empty directories is still a repository, and a read-only
            // one can be read.
            if !dir.is_dir() {
                match durable::create_dir(&dir) {
                    Err(Error::Write { cause, .. })
                        if cause.kind() == io::ErrorKind::ReadOnlyFilesystem => {}
                    other => other?,
                }
            }
        }
        Ok(Self { id: identity.id, layout: Arc::new(layout) })
    }

    /// The same repository, as far as points that hold a configuration alone are concerned: all
    /// that looks for points, makes and removes them works on those, with the same locks.
    pub fn configurations(&self) -> Self {
        let layout = Layout { root: self.layout.root.clone(), tree: CONFIGURATIONS };
        Self { id: self.id, layout: Arc::new(layout) }
    }

    /// The one of both that a point lies in.
    pub fn home_of(&self, point: &crate::Point) -> Self {
        if point.manifest.configuration_only { self.configurations() } else { self.clone() }
    }

    /// The id that `init` gave it.
    pub fn id(&self) -> RepositoryId {
        self.id
    }

    /// Its directory, absolute.
    pub fn path(&self) -> &Path {
        &self.layout.root
    }

    /// Bytes that this user may still write.
    pub fn free_bytes(&self) -> Result<u64> {
        durable::free_bytes(&self.layout.root)
    }

    /// Refuses when `bytes` more would leave less than `reserve` bytes free.
    ///
    /// # Errors
    /// [`Error::NoSpace`] with `needed` = both together.
    pub fn ensure_space(&self, bytes: u64, reserve: u64) -> Result<()> {
        let free = self.free_bytes()?;
        let needed = bytes.saturating_add(reserve);
        if needed > free {
            let path = self.layout.root.clone();
            return Err(Error::NoSpace { path, needed: Some(needed), free });
        }
        Ok(())
    }

    /// Holds one VM for writing (and the repository shared) until the lock is dropped.
    ///
    /// # Errors
    /// [`Error::Locked`] says who holds it.
    pub fn lock_vm(&self, vm: VmId, job: JobId) -> Result<VmLock> {
        let lock = lock::lock_vm(&self.layout, vm, job)?;
        self.place_merged(vm)?;
        Ok(lock)
    }

    /// Holds the repository so that no point is removed or rewritten meanwhile: for
    /// readers.
    pub fn lock_shared(&self) -> Result<RepositoryLock> {
        lock::lock_shared(&self.layout)
    }

    /// Holds the repository alone: for whoever removes or rewrites points.
    pub fn lock_exclusive(&self, job: JobId) -> Result<RepositoryLock> {
        lock::lock_exclusive(&self.layout, job)
    }

    /// A name for a new point of `vm` begun at `time`, unlike any that is there.
    pub fn new_point_id(&self, vm: VmId, time: jiff::Timestamp) -> PointId {
        let taken = |id: &PointId| {
            [self.layout.point(vm, id), self.layout.partial(vm, id)]
                .iter()
                .any(|path| path.symlink_metadata().is_ok())
        };
        let first = PointId::at(time);
        if !taken(&first) {
            return first;
        }
        // 99 is what fits into an id; by then the second is over.
        (2..=99).map(|n| first.with_suffix(n)).find(|id| !taken(id)).unwrap_or(first)
    }

    /// Begins a point in a hidden directory. The caller keeps the lock until the point is
    /// published or discarded.
    ///
    /// # Errors
    /// [`Error::PointExists`] when there is such a point, finished or not.
    pub fn stage(&self, lock: &VmLock, point: &PointId) -> Result<Staging> {
        Staging::create(self, lock.vm(), point.clone())
    }

    /// Removes the half-made points of a VM, but for the one that is gone on with, and
    /// returns their names. The lock proves that nobody is still making them.
    pub fn sweep_partials(&self, lock: &VmLock, but: Option<&PointId>) -> Result<Vec<PointId>> {
        let mut points = self.partials(lock.vm())?;
        points.retain(|point| Some(point) != but);
        for point in &points {
            durable::remove_tree(&self.layout.partial(lock.vm(), point))?;
        }
        Ok(points)
    }

    /// Removes one half-made point; whether there was one.
    pub fn remove_partial(&self, lock: &VmLock, point: &PointId) -> Result<bool> {
        durable::remove_tree(&self.layout.partial(lock.vm(), point))
    }

    /// The half-made points of a VM.
    pub fn partials(&self, vm: VmId) -> Result<Vec<PointId>> {
        let dir = self.layout.vm(vm);
        let mut found = Vec::new();
        let entries = match fs::read_dir(&dir) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(found),
            other => other.reading(&dir)?,
        };
        for entry in entries {
            let name = entry.reading(&dir)?.file_name();
            let point = name.to_str().and_then(|n| n.strip_prefix(PARTIAL));
            found.extend(point.and_then(|p| p.parse().ok()));
        }
        found.sort();
        Ok(found)
    }

    /// Starts the journal of a job.
    pub fn journal(&self, job: JobId) -> Result<Journal> {
        journal::create(&self.layout, job)
    }

    /// The journals that are there: of jobs at work and of jobs that died.
    pub fn open_journals(&self) -> Result<Vec<JournalView>> {
        journal::list(&self.layout)
    }

    /// Takes over the journal of a dead job to undo what it left; `me` is the job that
    /// does so.
    ///
    /// # Errors
    /// [`Error::Locked`] when the job still lives.
    pub fn adopt_journal(&self, job: JobId, me: JobId) -> Result<(Journal, JournalView)> {
        journal::adopt(&self.layout, job, me)
    }
}

fn is_absent(cause: &io::Error) -> bool {
    matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
#[path = "repository_tests.rs"]
mod tests;
