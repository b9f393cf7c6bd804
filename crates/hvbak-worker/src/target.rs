//! A volume that is being filled: opened in place, never truncated, renamed, relabelled.
//!
//! Clusters are written by a few threads; what they fail with is kept until the session
//! can tell it. Invariant: each cluster is written at most once, inside the slice.

use std::{
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use hvbak_qcow2::{ReadAt, WriteAt, Writer, WriterOptions};
use hvbak_types::CLUSTER_SIZE;
use hvbak_wire::{
    Format, Guards, Slice, Tally, TargetReady, Totals, VolumeAddress, Written, Zeros,
};
use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    libc,
};

use crate::{
    block::BlockDomains,
    chain::read_meta,
    error::{Error, Result},
    guard,
    host::{self, Host},
    locate::{find_domain, find_volume, identity},
    seen::Seen,
    volume::{Meter, allocated},
};

/// Bytes after which written pages are pushed to the storage, so that the final flush is
/// short and the host's page cache does not fill with ours.
const PUSH: u64 = 32 << 20;
const ZEROS: usize = 1 << 20;

/// What a `Target` request asks.
pub struct Wanted {
    pub at: VolumeAddress,
    pub format: Format,
    pub virtual_size: u64,
    pub slice: Option<Slice>,
    pub reads: Zeros,
    pub guards: Guards,
    pub check_digests: bool,
}

/// The open file, counted and throttled.
pub struct Place {
    file: File,
    written: AtomicU64,
    pushed: AtomicU64,
    meter: Arc<Meter>,
}

impl WriteAt for Place {
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.meter.throttle.take(buf.len() as u64, || self.meter.stop.is_gone());
        self.file.write_all_at(buf, offset)?;
        let written = self.written.fetch_add(buf.len() as u64, Ordering::Relaxed);
        let pushed = self.pushed.load(Ordering::Relaxed);
        if written.saturating_sub(pushed) >= PUSH
            && self
                .pushed
                .compare_exchange(pushed, written, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            // SAFETY: the descriptor is open; the call takes integers only. It starts
            // writing dirty pages and waits for nothing; a failure shows at the flush.
            unsafe {
                libc::sync_file_range(self.file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE);
            }
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// The image writer reads back tables that it wrote before.
impl ReadAt for Place {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        length(&self.file)
    }
}

/// Where clusters go.
pub enum Sink {
    Raw(Arc<Place>),
    /// A fresh image; `None` once it is finished.
    Cow(Mutex<Option<Box<Writer<Arc<Place>>>>>, Arc<Place>),
}

/// What the writing threads share.
pub struct Target {
    pub sink: Sink,
    pub virtual_size: u64,
    pub check_digests: bool,
    reads: Zeros,
    /// Bytes of an LV behind the disk. A guest may be shown them.
    tail: Option<Range<u64>>,
    first: u64,
    end: u64,
    failure: Mutex<Option<Error>>,
}

impl Target {
    /// Finds, opens and checks a volume.
    ///
    /// # Errors
    /// It is not there, or a guard does not hold; nothing was written.
    pub fn open(
        host: &Host,
        block: &mut BlockDomains,
        wanted: &Wanted,
        meter: &Arc<Meter>,
    ) -> Result<(Self, TargetReady)> {
        let at = &wanted.at;
        let clusters = wanted.virtual_size.div_ceil(CLUSTER_SIZE);
        let (first, end) = bounds(wanted, clusters)?;
        let (path, meta, lv) = if BlockDomains::is_block(host, at) {
            let found = block.get(host, at.domain)?.target(at, &wanted.guards)?;
            (found.path, found.meta, Some((found.identity, found.size)))
        } else {
            let path = find_volume(&find_domain(host, at)?, at)?;
            let meta = read_meta(&path, at.volume)?;
            (path, meta, None)
        };
        let lv_size = lv.map(|(_, size)| size);
        guard::check_meta(at, &meta, wanted.format, wanted.virtual_size, &wanted.guards, lv_size)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            // The node of an LV is a link that udev made.
            .custom_flags(if lv.is_some() { 0 } else { libc::O_NOFOLLOW })
            .open(&path)
            .map_err(Error::file("open for writing", &path))?;
        match lv {
            Some(_) => guard::check_device(at, &file, &wanted.guards)?,
            None => guard::check_file(at, &file, &wanted.guards)?,
        }
        let size = length(&file).map_err(Error::file("measure", &path))?;
        let header = match wanted.format {
            Format::Raw => {
                guard::check_raw(at, &file, wanted.virtual_size, &wanted.guards)?;
                None
            }
            Format::Cow => Some(guard::check_cow(at, &file, wanted.virtual_size, &wanted.guards)?),
        };
        // Several workers share a sliced target, so none of them may claim it alone.
        if wanted.slice.is_none() && wanted.guards.not_open {
            guard::claim(at, &file)?;
        }
        let stat = file.metadata().map_err(Error::file("look at", &path))?;
        let ready = TargetReady {
            path: path.to_string_lossy().into_owned(),
            file_size: size,
            allocated: if lv.is_some() { size } else { allocated(&stat) },
            qcow2_version: header.as_ref().map(|h| h.version),
            identity: lv.map_or_else(|| identity(&stat), |(identity, _)| identity),
        };
        let place = Arc::new(Place {
            file,
            written: AtomicU64::new(0),
            pushed: AtomicU64::new(0),
            meter: Arc::clone(meter),
        });
        let sink = match header {
            None => Sink::Raw(place),
            Some(header) => {
                Sink::Cow(Mutex::new(Some(Box::new(new_image(&place, &header)?))), place)
            }
        };
        let target = Self {
            sink,
            virtual_size: wanted.virtual_size,
            check_digests: wanted.check_digests,
            // Whatever was asked: an LV holds what the disks before it left there.
            reads: if lv.is_some() { Zeros::Unknown } else { wanted.reads },
            tail: (wanted.format == Format::Raw && lv.is_some() && end == clusters)
                .then_some(wanted.virtual_size..size),
            first,
            end,
            failure: Mutex::new(None),
        };
        Ok((target, ready))
    }

    /// Clusters that may be written.
    pub const fn range(&self) -> (u64, u64) {
        (self.first, self.end)
    }

    /// Keeps the first failure of a writing thread.
    pub fn fail(&self, error: Error) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// Takes the failure, to be told.
    pub fn take_failure(&self) -> Option<Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether a thread failed and nobody was told yet.
    pub fn has_failed(&self) -> bool {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn place(&self) -> &Place {
        match &self.sink {
            Sink::Raw(place) | Sink::Cow(_, place) => place,
        }
    }

    /// Completes the image, writes zeros where they are owed, flushes.
    ///
    /// # Errors
    /// Writing or flushing failed: the volume must be thrown away.
    pub fn finish(&self, seen: &Seen, tally: &Tally) -> Result<Written> {
        let place = self.place();
        match &self.sink {
            Sink::Raw(_) if self.reads == Zeros::Unknown => self.fill(seen)?,
            Sink::Raw(_) => {}
            Sink::Cow(writer, _) => {
                let writer = writer.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(writer) = writer {
                    writer.finish().map_err(|source| Error::WriteImage { source })?;
                }
            }
        }
        let flush = |source| Error::Flush { source };
        place.file.sync_all().map_err(flush)?;
        let _ = posix_fadvise(&place.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        Ok(Written {
            totals: tally.totals(),
            digest: tally.digest(),
            written_bytes: place.written.load(Ordering::Relaxed),
            file_size: length(&place.file).map_err(flush)?,
            stats: host::stats(),
        })
    }

    /// Writes zeros over all clusters that did not come as data.
    fn fill(&self, seen: &Seen) -> Result<()> {
        let zeros = vec![0; ZEROS];
        let gaps = seen
            .gaps(self.first, self.end)
            .into_iter()
            .map(|(first, end)| first * CLUSTER_SIZE..(end * CLUSTER_SIZE).min(self.virtual_size));
        for Range { start: mut at, end: stop } in gaps.chain(self.tail.clone()) {
            while at < stop {
                let take = usize::try_from(stop - at).unwrap_or(ZEROS).min(ZEROS);
                self.place()
                    .write_at(&zeros[..take], at)
                    .map_err(|source| Error::WriteCluster { index: at / CLUSTER_SIZE, source })?;
                at += take as u64;
                if self.place().meter.stop.is_gone() {
                    return Err(Error::Gone);
                }
            }
        }
        Ok(())
    }
}

fn bounds(wanted: &Wanted, clusters: u64) -> Result<(u64, u64)> {
    let Some(slice) = wanted.slice else { return Ok((0, clusters)) };
    let stop = slice
        .offset
        .checked_add(slice.length)
        .ok_or_else(|| Error::bad_request("slice is larger than any disk"))?;
    let aligned = |at: u64| at.is_multiple_of(CLUSTER_SIZE) || at == wanted.virtual_size;
    if wanted.format != Format::Raw || !aligned(slice.offset) || !aligned(stop) {
        return Err(Error::bad_request("a slice needs a raw target and multiples of 64 KiB"));
    }
    if stop > wanted.virtual_size || slice.length == 0 {
        return Err(Error::bad_request("slice is empty or beyond the end of the disk"));
    }
    Ok((slice.offset / CLUSTER_SIZE, stop.div_ceil(CLUSTER_SIZE)))
}

/// Bytes of a file or block device.
///
/// # Errors
/// It cannot be looked at.
pub fn length(file: &File) -> io::Result<u64> {
    ReadAt::size(file)
}

/// Starts a fresh image over the empty one, of the same size, uncompressed because a VM
/// will run on it.
fn new_image(place: &Arc<Place>, header: &hvbak_qcow2::Header) -> Result<Writer<Arc<Place>>> {
    let options =
        WriterOptions { virtual_size: header.virtual_size, backing: None, compression: None };
    Writer::create(Arc::clone(place), options).map_err(|source| Error::WriteImage { source })
}

/// Whether two sums name the same number of clusters.
pub fn check_count(totals: Totals, sent: u64) -> Result<()> {
    if totals.clusters == sent {
        return Ok(());
    }
    Err(Error::bad_request(format!("{sent} clusters were sent, {} came", totals.clusters)))
}
