//! Files and directories that survive a power cut once a call has returned.
//!
//! The order is always: write, fsync the file, rename or link, fsync the directory. Every
//! such operation goes through here, so that tests can stop a process between any two of
//! them and can read the order of the calls.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::error::{At, Error, Result};

/// Bytes free for this user on the file system of `path` (or of its nearest parent).
pub fn free_bytes(path: &Path) -> Result<u64> {
    let mut at = path;
    loop {
        match nix::sys::statvfs::statvfs(at) {
            Ok(stat) => {
                return Ok(stat.blocks_available().saturating_mul(stat.fragment_size()));
            }
            Err(nix::Error::ENOENT | nix::Error::ENOTDIR) if at.parent().is_some() => {
                at = at.parent().unwrap_or(Path::new("/"));
                if at.as_os_str().is_empty() {
                    at = Path::new(".");
                }
            }
            Err(errno) => return Err(errno.into()).reading(path),
        }
    }
}

/// Creates a directory that only its owner may enter; an existing one is left as it is.
pub fn create_dir(path: &Path) -> Result<()> {
    trace::op("mkdir", path);
    match DirBuilder::new().mode(0o700).create(path) {
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other.writing(path),
    }
}

/// Creates a new file that only its owner may read, for reading and writing. An existing
/// one is an error.
pub fn create_file(path: &Path) -> Result<File> {
    trace::op("create", path);
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path).writing(path)
}

/// Waits until the content and the length of a file are on stable storage.
pub fn sync_file(file: &File, path: &Path) -> Result<()> {
    trace::op("fsync", path);
    file.sync_all().writing(path)
}

/// Waits until the content of a file, and what finds it, are on stable storage.
pub fn sync_data(file: &File, path: &Path) -> Result<()> {
    trace::op("fdatasync", path);
    file.sync_data().writing(path)
}

/// Writes a file whole or not at all, whatever had its name, and waits for it and the
/// directory.
pub fn write_over(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_added_extension("tmp");
    remove_file(&temporary)?;
    write_new(&temporary, bytes)?;
    rename_over(&temporary, path)
}

/// Removes a file; nothing there is fine. The caller waits for the directory.
pub fn remove_file(path: &Path) -> Result<()> {
    trace::op("unlink", path);
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause).writing(path),
        _ => Ok(()),
    }
}

/// Waits until the names in a directory are on stable storage.
pub fn sync_dir(path: &Path) -> Result<()> {
    trace::op("fsync-dir", path);
    File::open(path).and_then(|dir| dir.sync_all()).writing(path)
}

/// Writes a new file and waits for it; the caller waits for the directory.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = create_file(path)?;
    trace::op("write", path);
    file.write_all(bytes).writing(path)?;
    sync_file(&file, path)
}

/// Renames and waits for the directory; both paths lie in the same one. Nothing is ever
/// replaced: an existing target is [`Error::OutputExists`].
pub fn rename_new(from: &Path, to: &Path) -> Result<()> {
    trace::op("rename", to);
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => {}
        Err(nix::Error::EEXIST | nix::Error::ENOTEMPTY) => {
            return Err(Error::OutputExists { path: to.to_owned() });
        }
        // NFS and some FUSE file systems know no flags. The callers hold a lock under which
        // nobody else makes this name.
        Err(nix::Error::EINVAL | nix::Error::ENOSYS | nix::Error::EOPNOTSUPP) => {
            if to.symlink_metadata().is_ok() {
                return Err(Error::OutputExists { path: to.to_owned() });
            }
            fs::rename(from, to).writing(to)?;
        }
        Err(errno) => return Err(errno.into()).writing(to),
    }
    sync_parent(to)
}

/// Renames over whatever has the name, and waits for the directory.
pub fn rename_over(from: &Path, to: &Path) -> Result<()> {
    trace::op("rename", to);
    fs::rename(from, to).writing(to)?;
    sync_parent(to)
}

/// Swaps the names of two directories in one moment; `false`, with nothing done, where the
/// file system cannot (NFS, some FUSE).
pub fn exchange(a: &Path, b: &Path) -> Result<bool> {
    trace::op("exchange", b);
    if trace::no_exchange() {
        return Ok(false);
    }
    match renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE) {
        Ok(()) => sync_parent(b).map(|()| true),
        Err(nix::Error::EINVAL | nix::Error::ENOSYS | nix::Error::EOPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno.into()).writing(b),
    }
}

/// Gives a file that never changes a second name; a copy where there are no hard links.
pub fn link_or_copy(from: &Path, to: &Path) -> Result<()> {
    trace::op("link", to);
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    let mut source = File::open(from).reading(from)?;
    let mut file = create_file(to)?;
    io::copy(&mut source, &mut file).writing(to)?;
    sync_file(&file, to)
}

/// Makes a new file that shares all blocks of another; nothing is made where the file system
/// cannot (it can on XFS, Btrfs).
pub fn clone_file(from: &Path, to: &Path) -> Result<Option<File>> {
    use rustix::io::Errno;
    trace::op("clone", to);
    let source = File::open(from).reading(from)?;
    let file = create_file(to)?;
    let done = match trace::clones() {
        true => io::copy(&mut &source, &mut &file).map(drop),
        false => rustix::fs::ioctl_ficlone(&file, &source).map_err(io::Error::from),
    };
    match done {
        Ok(()) => Ok(Some(file)),
        Err(cause) => {
            fs::remove_file(to).writing(to)?;
            let cannot = [
                Errno::OPNOTSUPP,
                Errno::XDEV,
                Errno::INVAL,
                Errno::NOTTY,
                Errno::NOSYS,
                Errno::PERM,
            ];
            match cause.raw_os_error().map(Errno::from_raw_os_error) {
                Some(errno) if cannot.contains(&errno) => Ok(None),
                _ => Err(cause).writing(to),
            }
        }
    }
}

/// Gives the blocks of a range back; the file reads as zeros there. Where the file system
/// cannot, the range stays as it is.
pub fn punch(file: &File, path: &Path, range: &std::ops::Range<u64>) -> Result<()> {
    use nix::fcntl::{FallocateFlags, fallocate};
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let offset = |at: u64| nix::libc::off_t::try_from(at).map_err(io::Error::other).writing(path);
    match fallocate(file, flags, offset(range.start)?, offset(range.end - range.start)?) {
        Ok(()) | Err(nix::Error::EOPNOTSUPP | nix::Error::ENOSYS) => Ok(()),
        Err(errno) => Err(errno.into()).writing(path),
    }
}

/// Waits for the directory that holds `path`.
pub fn sync_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => sync_dir(Path::new(".")),
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}

/// Removes a directory with all that is in it; nothing there is fine.
pub fn remove_tree(path: &Path) -> Result<bool> {
    trace::op("remove", path);
    match fs::remove_dir_all(path) {
        Ok(()) => sync_parent(path).map(|()| true),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(cause) => Err(cause).writing(path),
    }
}

/// What tests see of the calls above; nothing in a real build.
#[cfg(test)]
pub mod trace {
    use std::{
        cell::{Cell, RefCell},
        path::Path,
    };

    thread_local! {
        static LOG: RefCell<Vec<(&'static str, String)>> = const { RefCell::new(Vec::new()) };
        static CLONES: Cell<bool> = const { Cell::new(false) };
    }

    /// Notes an operation; ends the process when `HVBAK_TEST_CRASH` is its number.
    pub fn op(what: &'static str, path: &Path) {
        let count = LOG.with(|log| {
            let mut log = log.borrow_mut();
            log.push((what, crate::layout::file_name(path)));
            log.len()
        });
        if std::env::var("HVBAK_TEST_CRASH").is_ok_and(|n| n == count.to_string()) {
            std::process::abort();
        }
    }

    /// Whether directories are to be replaced as on a file system that cannot swap names.
    pub fn no_exchange() -> bool {
        std::env::var_os("HVBAK_TEST_NO_EXCHANGE").is_some()
    }

    /// Whether a clone is made by copying, for file systems that have none.
    pub fn clones() -> bool {
        CLONES.get() || std::env::var_os("HVBAK_TEST_CLONES").is_some()
    }

    /// The same for this thread.
    pub fn set_clones(on: bool) {
        CLONES.set(on);
    }

    /// Takes what this thread has done so far.
    pub fn take() -> Vec<(&'static str, String)> {
        LOG.with(|log| std::mem::take(&mut *log.borrow_mut()))
    }
}

#[cfg(not(test))]
mod trace {
    #[inline(always)]
    pub fn op(_: &'static str, _: &std::path::Path) {}

    #[inline(always)]
    pub fn no_exchange() -> bool {
        false
    }

    #[inline(always)]
    pub fn clones() -> bool {
        false
    }
}
