//! The file below an image that is written: begins to write back early, waits once.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::Path,
    sync::{Mutex, PoisonError},
};

use hvbak_qcow2::{ReadAt, WriteAt};

use crate::{durable, error::Result};

/// Bytes after which the kernel is told to begin writing. Left to itself it waits for 30 s
/// or a tenth of the memory, and the one fsync at the end then waits for all of it.
const WRITE_BACK: u64 = 16 << 20;

/// A new file that grows.
#[derive(Debug)]
pub struct Storage {
    file: File,
    /// Written since the kernel was told: first byte, end, number.
    dirty: Mutex<(u64, u64, u64)>,
}

impl Storage {
    pub fn create(path: &Path) -> Result<Self> {
        Ok(Self { file: durable::create_file(path)?, dirty: Mutex::default() })
    }

    /// Waits for everything and returns the length.
    pub fn sync(&self, path: &Path) -> Result<u64> {
        use crate::error::At;
        durable::sync_file(&self.file, path)?;
        Ok(self.file.metadata().reading(path)?.len())
    }

    fn written(&self, offset: u64, length: u64) {
        let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
        let (first, end, number) = match *dirty {
            (_, _, 0) => (offset, offset + length, length),
            (first, end, n) => (first.min(offset), end.max(offset + length), n + length),
        };
        *dirty = (first, end, number);
        if number >= WRITE_BACK {
            *dirty = (0, 0, 0);
            drop(dirty);
            begin_write_back(&self.file, first, end - first);
        }
    }
}

/// Starts writing a range to the disk without waiting for it. Only speed depends on it, so
/// file systems that do not know the call are fine.
fn begin_write_back(file: &File, offset: u64, length: u64) {
    let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else { return };
    // SAFETY: the call takes numbers only, and the descriptor is open while `file` is
    // borrowed.
    unsafe {
        nix::libc::sync_file_range(
            file.as_raw_fd(),
            offset,
            length,
            nix::libc::SYNC_FILE_RANGE_WRITE,
        );
    }
}

impl WriteAt for Storage {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)?;
        self.written(offset, bytes.len() as u64);
        Ok(())
    }

    /// Does nothing: the file lies in a hidden directory until [`Storage::sync`] has
    /// returned, so nobody can take it for an image before.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

impl ReadAt for Storage {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.file.metadata().map(|meta| meta.len())
    }
}
