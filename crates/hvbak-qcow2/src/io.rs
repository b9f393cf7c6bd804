//! Byte-addressed storage: the only outside thing this room knows.
//!
//! Positioned access without a cursor, so that threads share one source through `&self`.

use std::{
    fs::File,
    io::{self, ErrorKind, Seek, SeekFrom},
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, PoisonError},
};

/// Something that can be read at any byte offset, by several threads at once.
pub trait ReadAt: Send + Sync {
    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` when fewer bytes are there, else what the storage says.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Length in bytes. Asked once, at open: a layer must not change while it is read.
    ///
    /// # Errors
    /// What the storage says.
    fn size(&self) -> io::Result<u64>;

    /// The first range inside `from..end` that may hold bytes other than zero; `None` when
    /// all of it is known to read as zero. Only used for raw layers. A source that can ask
    /// for holes (`SEEK_DATA`) overrides this; the default knows of none.
    ///
    /// # Errors
    /// What the storage says.
    fn data_range(&self, from: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
        Ok((from < end).then_some((from, end)))
    }
}

/// Something that can be written at any byte offset.
pub trait WriteAt: Send + Sync {
    /// Writes all of `buf` at `offset`, extending the storage where it may grow.
    ///
    /// # Errors
    /// What the storage says; nothing is known about what was written then.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes what was written durable.
    ///
    /// # Errors
    /// What the storage says; the image must then be thrown away.
    fn flush(&self) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buf, offset)
    }
    fn size(&self) -> io::Result<u64> {
        let meta = self.metadata()?;
        if meta.is_file() {
            return Ok(meta.len());
        }
        // A block device has no length in its inode. Moving the cursor harms nobody: all
        // access here is positioned.
        (&mut &*self).seek(SeekFrom::End(0))
    }
}

impl WriteAt for File {
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(buf, offset)
    }
    fn flush(&self) -> io::Result<()> {
        self.sync_data()
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buf.len()).ok_or(ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(self.get(start..end).ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.as_slice().read_at(buf, offset)
    }
    fn size(&self) -> io::Result<u64> {
        self.as_slice().size()
    }
}

impl ReadAt for Mutex<Vec<u8>> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.lock().unwrap_or_else(PoisonError::into_inner).read_at(buf, offset)
    }
    fn size(&self) -> io::Result<u64> {
        self.lock().unwrap_or_else(PoisonError::into_inner).size()
    }
}

impl WriteAt for Mutex<Vec<u8>> {
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| ErrorKind::FileTooLarge)?;
        let end = start.checked_add(buf.len()).ok_or(ErrorKind::FileTooLarge)?;
        let mut bytes = self.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[start..end].copy_from_slice(buf);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

macro_rules! through_pointer {
    ($($pointer:ty),*) => {$(
        impl<T: ReadAt + ?Sized> ReadAt for $pointer {
            fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
                (**self).read_at(buf, offset)
            }
            fn size(&self) -> io::Result<u64> {
                (**self).size()
            }
            fn data_range(&self, from: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
                (**self).data_range(from, end)
            }
        }
        impl<T: WriteAt + ?Sized> WriteAt for $pointer {
            fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
                (**self).write_at(buf, offset)
            }
            fn flush(&self) -> io::Result<()> {
                (**self).flush()
            }
        }
    )*};
}
through_pointer!(&T, Arc<T>, Box<T>);
