//! The file below an image that is written. Who writes clusters waits for the disk once, at
//! the end; what a [`Progress`](crate::progress::Progress) vouches for before is synced by a
//! thread of its own.
//!
//! Telling the kernel to begin earlier (`sync_file_range` every 16 MiB) was tried: writing
//! 1.1 GiB took 1.67 s instead of 1.34 s with the fsync, because the calls block the thread
//! that takes clusters off the network. The kernel begins by itself long before its memory
//! is full.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use hvbak_qcow2::{ReadAt, WriteAt};

use crate::{
    durable,
    error::{At, Result},
};

/// A file that grows.
#[derive(Debug)]
pub struct Storage(File);

impl Storage {
    pub fn create(path: &Path) -> Result<Self> {
        durable::create_file(path).map(Self)
    }

    /// A clone of another file, where the file system has such a thing.
    pub fn clone_of(from: &Path, to: &Path) -> Result<Option<Self>> {
        Ok(durable::clone_file(from, to)?.map(Self))
    }

    /// Gives the blocks of a range back.
    pub fn punch(&self, path: &Path, range: &std::ops::Range<u64>) -> Result<()> {
        durable::punch(&self.0, path, range)
    }

    /// Opens the file of a writer that died, cut off (or filled up) at `length` bytes.
    pub fn reopen(path: &Path, length: u64) -> Result<Self> {
        let file = File::options().read(true).write(true).open(path).writing(path)?;
        file.set_len(length).writing(path)?;
        Ok(Self(file))
    }

    /// Waits for what was written so far.
    pub fn sync_data(&self, path: &Path) -> Result<()> {
        durable::sync_data(&self.0, path)
    }

    /// Waits for everything and returns the length.
    pub fn sync(&self, path: &Path) -> Result<u64> {
        durable::sync_file(&self.0, path)?;
        Ok(self.0.metadata().reading(path)?.len())
    }
}

impl WriteAt for Storage {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    /// Does nothing: the file lies under a hidden or unfinished name until
    /// [`Storage::sync`] has returned, so nobody takes it for an image before.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

impl ReadAt for Storage {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(bytes, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.0.metadata().map(|meta| meta.len())
    }
}
