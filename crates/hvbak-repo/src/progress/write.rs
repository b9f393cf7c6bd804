//! Writing the log: records are gathered, and a thread of its own syncs the image and then
//! writes them, so that the one that takes clusters off the network never waits for a disk.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use hvbak_types::Digest;

use super::{BATCH, HASH, HEAD, Head, MAGIC, Record, seal};
use crate::{
    durable,
    error::{At, Error, Result, write_error},
    storage::Storage,
};

/// Payload bytes of a batch, at least, and its records; a slow transfer makes one every few
/// seconds.
const BYTES: u64 = if cfg!(test) { 256 << 10 } else { 64 << 20 };
const RECORDS: usize = 16 << 10;
const PAUSE: Duration = Duration::from_secs(2);
/// How many batches are gathered while one is being written before the caller must wait.
const BEHIND: u64 = 8;

/// The log of one disk, open for writing.
#[derive(Debug)]
pub struct Progress {
    path: PathBuf,
    /// Records since the last batch, as they will be written.
    pending: Vec<u8>,
    /// Ranges told since, as first cluster and end; streams go on where they were.
    told: Vec<(u64, u64)>,
    records: usize,
    bytes: u64,
    last: Instant,
    /// `None` when the thread has ended.
    batches: Option<SyncSender<Vec<u8>>>,
    busy: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// The file and what its next frame stands on.
struct Log {
    file: File,
    path: PathBuf,
    before: [u8; HASH],
}

impl Progress {
    /// Begins a log beside the image that lies in `image`; file and name are on stable
    /// storage when this returns.
    pub fn create(path: &Path, head: &Head, image: Arc<Storage>, at: &Path) -> Result<Self> {
        let mut file = durable::create_file(path)?;
        file.write_all(&MAGIC).map_err(|cause| write_error(path, cause))?;
        let mut log = Log { file, path: path.to_owned(), before: [0; HASH] };
        let head = serde_json::to_vec(head)
            .map_err(|cause| Error::Encode { path: path.to_owned(), cause })?;
        log.append(HEAD, &head)?;
        durable::sync_parent(path)?;
        Self::run(log, image, at)
    }

    /// Goes on behind `length` bytes, whose last frame had the hash `before`.
    pub fn reopen(
        path: &Path,
        length: u64,
        before: [u8; HASH],
        image: Arc<Storage>,
        at: &Path,
    ) -> Result<Self> {
        let file = File::options().append(true).open(path).writing(path)?;
        file.set_len(length).writing(path)?;
        Self::run(Log { file, path: path.to_owned(), before }, image, at)
    }

    fn run(mut log: Log, image: Arc<Storage>, at: &Path) -> Result<Self> {
        let (batches, inbox) = sync_channel::<Vec<u8>>(1);
        let busy = Arc::new(AtomicBool::new(false));
        let (path, at, idle) = (log.path.clone(), at.to_owned(), busy.clone());
        let work = move || {
            for batch in inbox {
                image.sync_data(&at)?;
                log.append(BATCH, &batch)?;
                idle.store(false, Ordering::Release);
            }
            Ok(())
        };
        let thread =
            std::thread::Builder::new().name("hvbak-progress".into()).spawn(work).writing(&path)?;
        Ok(Self {
            path,
            pending: Vec::new(),
            told: Vec::new(),
            records: 0,
            bytes: 0,
            last: Instant::now(),
            batches: Some(batches),
            busy,
            thread: Some(thread),
        })
    }

    /// Notes a payload.
    pub fn data(&mut self, cluster: u64, offset: u64, length: u32, digest: &Digest) {
        self.bytes += u64::from(length);
        self.add(&Record::Data { cluster, offset, length, digest: *digest });
    }

    /// Notes zeros.
    pub fn zero(&mut self, cluster: u64, count: u64) {
        self.add(&Record::Zero { cluster, count });
    }

    fn add(&mut self, record: &Record) {
        record.encode(&mut self.pending);
        self.records += 1;
    }

    /// Notes that everything was said of a range.
    pub fn told(&mut self, cluster: u64, count: u64) {
        let end = cluster.saturating_add(count);
        match self.told.iter_mut().find(|open| open.1 == cluster) {
            Some(open) => open.1 = end,
            None => self.told.push((cluster, end)),
        }
    }

    /// Whether a batch is to be made now: the caller writes all payloads to the image, then
    /// calls [`Progress::commit`].
    pub fn is_due(&self) -> bool {
        if self.told.is_empty() {
            return false;
        }
        let much = |n: u64| self.bytes >= n * BYTES || self.records >= n as usize * RECORDS;
        match self.busy.load(Ordering::Acquire) {
            true => much(BEHIND),
            false => much(1) || self.last.elapsed() >= PAUSE,
        }
    }

    /// Hands what is gathered to the thread.
    ///
    /// # Errors
    /// What an earlier batch failed with.
    pub fn commit(&mut self) -> Result<()> {
        for (cluster, end) in std::mem::take(&mut self.told) {
            self.add(&Record::Told { cluster, count: end - cluster });
        }
        (self.records, self.bytes, self.last) = (0, 0, Instant::now());
        if self.pending.is_empty() {
            return Ok(());
        }
        self.busy.store(true, Ordering::Release);
        let batch = std::mem::take(&mut self.pending);
        match self.batches.as_ref().map(|thread| thread.send(batch)) {
            Some(Ok(())) => Ok(()),
            _ => self.end(),
        }
    }

    /// Waits until all batches are written, and stops.
    pub fn end(&mut self) -> Result<()> {
        self.batches = None;
        match self.thread.take().map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(error))) => Err(error),
            Some(Err(_)) => {
                Err(std::io::Error::other("the thread that writes it panicked")).writing(&self.path)
            }
        }
    }

    /// Where the log lies.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // Nobody else may open the log while the thread writes.
        let _ = self.end();
    }
}

impl Log {
    fn append(&mut self, kind: u32, body: &[u8]) -> Result<()> {
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let mut frame = Vec::with_capacity(body.len() + 64);
        frame.extend(kind.to_le_bytes());
        frame.extend(length.to_le_bytes());
        frame.extend(body);
        self.before = seal(&self.before, &frame[..8], body);
        frame.extend(self.before);
        self.file.write_all(&frame).map_err(|cause| write_error(&self.path, cause))?;
        durable::sync_file(&self.file, &self.path)
    }
}
