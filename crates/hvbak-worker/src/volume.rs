//! One open data file: positioned reads, past the page cache where another host may
//! change the data behind it, through it elsewhere.
//!
//! Invariant: a read is exact or an error; a short file never reads as zeros here.

use std::{
    cell::RefCell,
    collections::VecDeque,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use hvbak_wire::{FileIdentity, FsKind};
use nix::{
    errno::Errno,
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    libc,
    unistd::{Whence, lseek},
};

use crate::{
    buffer::{ALIGN, Aligned, is_aligned},
    error::{Error, Result},
    inbox::Stop,
    locate,
    throttle::Throttle,
};

/// Most bytes of one read through the bounce buffer.
const BOUNCE: usize = 256 * 1024;
/// Pages looked at to tell whether a file lies in the page cache.
const SAMPLES: u64 = 32;
/// Answers of `lseek` that are kept: readers lag a few units behind the planner.
const STRETCHES: usize = 128;

/// Shared by all volumes of a session: limit, count, and the wish to stop.
#[derive(Default)]
pub struct Meter {
    pub throttle: Throttle,
    pub read_bytes: AtomicU64,
    pub stop: Arc<Stop>,
}

/// An open volume.
pub struct Volume {
    path: PathBuf,
    file: File,
    direct: Option<File>,
    /// O_DIRECT was refused for a read; use the page cache from now on.
    direct_failed: AtomicBool,
    size: u64,
    /// Pages that we bring in are thrown out again.
    evict: bool,
    /// `lseek(SEEK_DATA)` may be believed.
    holes: bool,
    identity: FileIdentity,
    /// The last answers of `lseek`, oldest first; the file does not change while it is open.
    stretches: Mutex<VecDeque<Stretch>>,
    meter: Arc<Meter>,
}

/// A hole (perhaps empty) and the data behind it.
struct Stretch {
    from: u64,
    start: u64,
    stop: u64,
}

impl Volume {
    /// Opens for reading. With `uncached`, cached pages are dropped and O_DIRECT is used
    /// wherever the file system can.
    ///
    /// # Errors
    /// Not there, not allowed, no regular file or block device.
    pub fn open(path: &Path, uncached: bool, meter: Arc<Meter>) -> Result<Self> {
        let file = File::open(path).map_err(Error::file("open", path))?;
        let meta = file.metadata().map_err(Error::file("look at", path))?;
        let block = meta.file_type().is_block_device();
        if !meta.is_file() && !block {
            return Err(Error::NotAFile { path: path.to_owned() });
        }
        let size = if block {
            let end = lseek(&file, 0, Whence::SeekEnd)
                .map_err(|e| Error::file("measure", path)(e.into()))?;
            u64::try_from(end).unwrap_or(0)
        } else {
            meta.len()
        };
        let fs = locate::fs_kind(path)?;
        if uncached {
            // Dirty pages cannot be dropped; writers flushed before.
            let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        }
        let direct = (uncached || block || fs.is_network())
            .then(|| OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).ok())
            .flatten();
        let mut volume = Self {
            path: path.to_owned(),
            direct,
            direct_failed: AtomicBool::new(false),
            size,
            evict: false,
            // Gluster's FUSE answers SEEK_DATA wrongly on sharded volumes.
            holes: !block && fs != FsKind::Fuse,
            identity: locate::identity(&meta),
            file,
            stretches: Mutex::new(VecDeque::new()),
            meter,
        };
        if volume.direct.is_none() {
            let _ = posix_fadvise(&volume.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL);
            // A file that somebody keeps in the cache stays there; a cold one leaves no trace.
            volume.evict = !volume.is_cached();
        }
        Ok(volume)
    }

    /// Path as opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file or device.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Which file it is.
    pub const fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// Whether reads pass the page cache by.
    pub fn is_direct(&self) -> bool {
        self.direct.is_some() && !self.direct_failed.load(Ordering::Relaxed)
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// An IO error, or the file ends before.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).ok_or(io::ErrorKind::InvalidInput)?;
        if end > self.size {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{} ends at {}, wanted {end}", self.path.display(), self.size),
            ));
        }
        self.meter.throttle.take(buf.len() as u64, || self.meter.stop.is_gone());
        self.meter.read_bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        if let Some(direct) = self.direct.as_ref().filter(|_| self.is_direct()) {
            match read_direct(direct, buf, offset) {
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                    eprintln!("hvbak-worker: {}: no O_DIRECT: {e}", self.path.display());
                    self.direct_failed.store(true, Ordering::Relaxed);
                }
                other => return other,
            }
        }
        self.file.read_exact_at(buf, offset)?;
        if self.evict {
            let (at, length) = (offset as libc::off_t, buf.len() as libc::off_t);
            let _ = posix_fadvise(&self.file, at, length, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        }
        Ok(())
    }

    /// The next stretch of data at or behind `offset` and before `end`, as the file system
    /// knows it; `None` when only holes are left. Without such knowledge all is data.
    pub fn next_data(&self, offset: u64, end: u64) -> Option<(u64, u64)> {
        let end = end.min(self.size);
        if offset >= end {
            return None;
        }
        if !self.holes {
            return Some((offset, end));
        }
        // A hole up to the end of the file is known as data of no length there.
        let (start, stop) = self.known_stretch(offset).unwrap_or_else(|| self.seek_data(offset));
        (start < end).then(|| (start.max(offset), stop.min(end)))
    }

    /// Looks the stretch up that a seek found before. Asking the file system again for each
    /// megabyte would make tmpfs walk its pages to the next hole every time.
    fn known_stretch(&self, offset: u64) -> Option<(u64, u64)> {
        let known = self.stretches.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .iter()
            .rev()
            .find(|s| (s.from..s.stop).contains(&offset))
            .map(|s| (s.start.max(offset), s.stop))
    }

    fn seek_data(&self, offset: u64) -> (u64, u64) {
        let seek = |from: u64, whence| {
            lseek(&self.file, from as libc::off_t, whence).map(|at| u64::try_from(at).unwrap_or(0))
        };
        let (start, stop) = match seek(offset, Whence::SeekData) {
            Ok(at) => {
                let start = at.max(offset);
                let stop = seek(start, Whence::SeekHole).unwrap_or(self.size);
                (start, stop.clamp(start.saturating_add(1), self.size.max(start + 1)))
            }
            Err(Errno::ENXIO) => (self.size, self.size),
            // Any other answer: the file system cannot tell.
            Err(_) => (offset, self.size),
        };
        let mut known = self.stretches.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() == STRETCHES {
            known.pop_front();
        }
        known.push_back(Stretch { from: offset, start, stop });
        (start, stop)
    }

    /// Whether most of the file lies in the page cache, by a few pages of it.
    fn is_cached(&self) -> bool {
        let pages = self.size / ALIGN as u64;
        if pages == 0 {
            return true;
        }
        let mut page = [0u8; ALIGN];
        let mut hits = 0;
        for i in 0..SAMPLES {
            let offset = (pages - 1) * i / (SAMPLES - 1) * ALIGN as u64;
            let iov = libc::iovec { iov_base: page.as_mut_ptr().cast(), iov_len: ALIGN };
            // SAFETY: `iov` points to one live buffer of ALIGN bytes; the descriptor is open.
            let got = unsafe {
                libc::preadv2(
                    self.file.as_raw_fd(),
                    &iov,
                    1,
                    offset as libc::off_t,
                    libc::RWF_NOWAIT,
                )
            };
            hits += u64::from(got > 0);
        }
        hits * 10 >= SAMPLES * 9
    }
}

impl hvbak_qcow2::ReadAt for Volume {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn data_range(&self, from: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
        Ok(self.next_data(from, end))
    }
}

thread_local! {
    static BOUNCE_BUFFER: RefCell<Aligned> = RefCell::new(Aligned::new(BOUNCE));
}

/// Reads with O_DIRECT: straight into an aligned buffer, through a bounce buffer else.
fn read_direct(file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
    if is_aligned(buf, offset) {
        return match read_some(file, buf, offset)? {
            n if n == buf.len() => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        };
    }
    let align = ALIGN as u64;
    BOUNCE_BUFFER.with_borrow_mut(|bounce| {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let start = at - at % align;
            let skip = (at - start) as usize;
            let want = (skip + buf.len() - done).min(BOUNCE).next_multiple_of(ALIGN);
            let got = read_some(file, &mut bounce.as_mut()[..want], start)?;
            if got <= skip {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let take = (got - skip).min(buf.len() - done);
            buf[done..done + take].copy_from_slice(&bounce.as_mut()[skip..skip + take]);
            done += take;
        }
        Ok(())
    })
}

/// Reads until the buffer is full or the file ends; a short read that is no multiple of
/// the block size is the end of the file.
fn read_some(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => {
                done += n;
                if done % ALIGN != 0 {
                    break;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Bytes allocated to a file.
pub fn allocated(meta: &std::fs::Metadata) -> u64 {
    meta.blocks().saturating_mul(512)
}
