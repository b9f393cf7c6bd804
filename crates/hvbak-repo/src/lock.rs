//! Locks: one file for the repository, one per VM, held by `flock`.
//!
//! The kernel ends a lock with its process, so a stale file of a dead process is no
//! obstacle and there is no "break the lock" command. Lock files are never removed: a
//! process that holds the lock of an unlinked file would hold nothing.
//!
//! Order, against deadlock: repository first, then VM or manager, then its points. A VM lock
//! holds the repository shared, so that whoever holds it exclusively is alone. The points' lock
//! is what keeps a reader and a prune apart that would not meet at the VM's lock, or at the
//! manager's.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use hvbak_types::{JobId, VmId};

use crate::{
    error::{At, Error, Result},
    identity::Holder,
    layout::Layout,
    manager::ManagerName,
};

/// Longest text that is read from a lock file.
const TEXT_MAX: u64 = 4096;

/// The repository is held, shared or exclusively, until this is dropped.
#[derive(Debug)]
pub struct RepositoryLock {
    /// None on a read-only file system without a lock file.
    file: Option<File>,
    exclusive: bool,
}

/// One VM's part of the repository is held exclusively until this is dropped.
#[derive(Debug)]
pub struct VmLock {
    vm: VmId,
    _held: PartLock,
}

/// A part of the repository with one writer: a VM, a manager, a walk. Held until this is dropped.
#[derive(Debug)]
pub(crate) struct PartLock {
    file: File,
    _repository: RepositoryLock,
}

/// The points of a VM or a manager are neither replaced nor removed until this is dropped
/// (shared), or nobody reads them (exclusive).
#[derive(Debug)]
pub struct PointsLock {
    /// None on a read-only file system without a lock file.
    file: Option<File>,
    _repository: RepositoryLock,
}

impl VmLock {
    /// The VM that is held.
    pub fn vm(&self) -> VmId {
        self.vm
    }
}

impl Drop for PartLock {
    fn drop(&mut self) {
        // The text goes so that a later reader of the file is not misled. The lock would end
        // with the descriptor, but a child that another thread is just starting has a copy
        // of that until it runs its program.
        let _ = self.file.set_len(0);
        let _ = self.file.unlock();
    }
}

impl Drop for PointsLock {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            let _ = file.unlock();
        }
    }
}

impl Drop for RepositoryLock {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            if self.exclusive {
                let _ = file.set_len(0);
            }
            let _ = file.unlock();
        }
    }
}

pub(crate) fn lock_vm(layout: &Layout, vm: VmId, job: JobId) -> Result<VmLock> {
    let held = lock_part(layout, &layout.vm_lock(vm), format!("VM {vm}"), job)?;
    Ok(VmLock { vm, _held: held })
}

/// `what` is told when somebody else holds the file `path`.
pub(crate) fn lock_part(
    layout: &Layout,
    path: &Path,
    what: String,
    job: JobId,
) -> Result<PartLock> {
    let repository = lock_shared(layout)?;
    let file = open(path)?;
    if let Some(holder) = take(&file, path, true)? {
        return Err(Error::Locked { what, holder: holder.map(Box::new) });
    }
    sign(&file, path, job)?;
    Ok(PartLock { file, _repository: repository })
}

/// Held shared by whoever reads points of a VM, exclusively for the moments in which one is
/// replaced or removed. Taken after the VM's lock where both are.
pub(crate) fn lock_points(layout: &Layout, vm: VmId, exclusive: bool) -> Result<PointsLock> {
    lock_list(layout, &layout.points_lock(vm), exclusive, || format!("VM {vm}"))
}

/// As [`lock_points`], of a manager.
pub(crate) fn lock_archives(
    layout: &Layout,
    manager: &ManagerName,
    exclusive: bool,
) -> Result<PointsLock> {
    lock_list(layout, &layout.archives_lock(manager), exclusive, || format!("manager {manager}"))
}

fn lock_list(
    layout: &Layout,
    path: &Path,
    exclusive: bool,
    whose: impl FnOnce() -> String,
) -> Result<PointsLock> {
    let repository = lock_shared(layout)?;
    let file = open_to_read(path)?;
    if let Some(file) = &file
        && take(file, path, exclusive)?.is_some()
    {
        let what = format!("the list of points of {}", whose());
        return Err(Error::Locked { what, holder: None });
    }
    Ok(PointsLock { file, _repository: repository })
}

/// Held by everybody who reads points or adds one.
pub(crate) fn lock_shared(layout: &Layout) -> Result<RepositoryLock> {
    let path = layout.repository_lock();
    let Some(file) = open_to_read(&path)? else {
        return Ok(RepositoryLock { file: None, exclusive: false });
    };
    take(&file, &path, false)?.map_or(Ok(()), |holder| {
        Err(Error::Locked { what: "the repository".into(), holder: holder.map(Box::new) })
    })?;
    Ok(RepositoryLock { file: Some(file), exclusive: false })
}

/// Held by whoever removes or rewrites points.
pub(crate) fn lock_exclusive(layout: &Layout, job: JobId) -> Result<RepositoryLock> {
    let path = layout.repository_lock();
    let file = open(&path)?;
    if let Some(holder) = take(&file, &path, true)? {
        // Shared holders do not sign the repository's file; those at work on a VM have
        // signed the VM's.
        let holder = holder.or_else(|| busy_vm(layout)).map(Box::new);
        return Err(Error::Locked { what: "the repository".into(), holder });
    }
    sign(&file, &path, job)?;
    Ok(RepositoryLock { file: Some(file), exclusive: true })
}

/// Points on a read-only mount can be read; who could write them elsewhere is told by the
/// lock file if there is one.
fn open_to_read(path: &Path) -> Result<Option<File>> {
    match open(path) {
        Ok(file) => Ok(Some(file)),
        Err(Error::Write { cause, .. }) if cause.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            Ok(File::open(path).ok())
        }
        Err(error) => Err(error),
    }
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .writing(path)
}

/// `None` when the lock is ours now; else who has it, as far as the file tells.
fn take(file: &File, path: &Path, exclusive: bool) -> Result<Option<Option<Holder>>> {
    let answer = if exclusive { file.try_lock() } else { file.try_lock_shared() };
    match answer {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => Ok(Some(read_holder(file))),
        Err(TryLockError::Error(cause)) => Err(cause).writing(path),
    }
}

fn read_holder(mut file: &File) -> Option<Holder> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(TEXT_MAX).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

fn sign(mut file: &File, path: &Path, job: JobId) -> Result<()> {
    let text = serde_json::to_vec(&Holder::me(job))
        .map_err(|cause| Error::Encode { path: path.to_owned(), cause })?;
    file.set_len(0).writing(path)?;
    file.rewind().writing(path)?;
    file.write_all(&text).writing(path)
}

fn busy_vm(layout: &Layout) -> Option<Holder> {
    std::fs::read_dir(layout.locks()).ok()?.flatten().find_map(|entry| {
        let name = entry.file_name();
        if !name.to_str()?.starts_with("vm-") {
            return None;
        }
        let file = File::open(entry.path()).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => read_holder(&file),
            _ => {
                let _ = file.unlock();
                None
            }
        }
    })
}

#[cfg(test)]
#[path = "lock_tests.rs"]
mod tests;
