//! Frames from the coordinator, read by a thread of their own so that an end of file or
//! a cancel is seen at once, whatever the main thread does.
//!
//! Invariant: the reading thread blocks only while clusters worth [`CLUSTER_BYTES_MAX`]
//! wait to be written; requests never block it.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use hvbak_wire::{Failed, Frame, Kind, Op, Request, WireError, read_frame};

/// Clusters that may wait in memory.
const CLUSTER_BYTES_MAX: usize = 12 << 20;
/// Requests that may wait; a coordinator that sends more is broken.
const REQUESTS_MAX: usize = 1024;
/// How long the main thread has to notice an end of file before the process ends anyway
/// (it may hang in a write to a pipe that nobody drains, or in a dead NFS server).
const GRACE: Duration = Duration::from_millis(1500);

/// What came.
pub enum Incoming {
    /// First frame of the coordinator, or one out of place.
    Other(Frame),
    Request(Request),
    /// A request that could not be read; told to the coordinator.
    Unreadable(Failed),
    Clusters(Frame),
    /// The coordinator closed our stdin.
    Eof,
    /// The stream is broken.
    Broken(WireError),
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Incoming>,
    cluster_bytes: usize,
    spare: Vec<Vec<u8>>,
}

/// Requests to stop, seen by all threads.
#[derive(Default)]
pub struct Stop {
    all: AtomicBool,
    broken: AtomicBool,
    /// Requests to stop; bounded, because a cancel that comes too late stays here.
    requests: Mutex<VecDeque<u32>>,
}

impl Stop {
    /// Whether work on a request should end.
    pub fn is_set(&self, request: u32) -> bool {
        self.is_gone() || self.lock().contains(&request)
    }

    /// Whether the coordinator closed our input between two frames.
    pub fn has_left(&self) -> bool {
        self.is_gone() && !self.broken.load(Ordering::Relaxed)
    }

    fn cancel(&self, request: u32) {
        let mut requests = self.lock();
        if requests.len() == 64 {
            requests.pop_front();
        }
        requests.push_back(request);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u32>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the coordinator is gone.
    pub fn is_gone(&self) -> bool {
        self.all.load(Ordering::Acquire)
    }
}

/// The receiving end.
#[derive(Default)]
pub struct Inbox {
    queue: Mutex<Queue>,
    changed: Condvar,
    stop: Arc<Stop>,
}

impl Inbox {
    /// Starts the reading thread.
    pub fn start(input: impl io::Read + Send + 'static) -> io::Result<Arc<Self>> {
        let inbox = Arc::new(Self::default());
        let own = Arc::clone(&inbox);
        thread::Builder::new().name("stdin".into()).spawn(move || own.read_all(input))?;
        Ok(inbox)
    }

    /// The flags for long work.
    pub fn stop(&self) -> Arc<Stop> {
        Arc::clone(&self.stop)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_all(&self, mut input: impl io::Read) {
        loop {
            let spare = self.lock().spare.pop().unwrap_or_default();
            let last = match read_frame(&mut input, spare) {
                Ok(Some(frame)) => match self.sort(frame) {
                    Ok(()) => continue,
                    Err(e) => Incoming::Broken(e),
                },
                Ok(None) => Incoming::Eof,
                Err(e) => Incoming::Broken(e),
            };
            let broken = matches!(last, Incoming::Broken(_));
            self.stop.broken.store(broken, Ordering::Relaxed);
            self.stop.all.store(true, Ordering::Release);
            self.lock().items.push_back(last);
            self.changed.notify_all();
            thread::sleep(GRACE);
            // Nothing outside this process has to be undone: files are closed by the kernel.
            std::process::exit(i32::from(broken));
        }
    }

    /// Puts a frame into the queue.
    fn sort(&self, frame: Frame) -> Result<(), WireError> {
        let item = match frame.kind() {
            Kind::Clusters => {
                let bytes = frame.wire_len();
                let mut queue = self.lock();
                while queue.cluster_bytes > 0 && queue.cluster_bytes + bytes > CLUSTER_BYTES_MAX {
                    queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                }
                queue.cluster_bytes += bytes;
                queue.items.push_back(Incoming::Clusters(frame));
                drop(queue);
                self.changed.notify_all();
                return Ok(());
            }
            Kind::Request => match frame.request() {
                Ok(Request { op: Op::Cancel { request }, .. }) => {
                    self.stop.cancel(request);
                    return Ok(());
                }
                Ok(request) => Incoming::Request(request),
                Err(e) => Incoming::Unreadable(unreadable(&frame, &e)),
            },
            _ => Incoming::Other(frame),
        };
        let mut queue = self.lock();
        if queue.items.len() >= REQUESTS_MAX {
            return Err(WireError::Stream { what: "too many requests are waiting" });
        }
        queue.items.push_back(item);
        drop(queue);
        self.changed.notify_all();
        Ok(())
    }

    /// Waits for the next frame.
    pub fn next(&self) -> Incoming {
        let mut queue = self.lock();
        loop {
            if let Some(item) = queue.items.pop_front() {
                if let Incoming::Clusters(frame) = &item {
                    queue.cluster_bytes -= frame.wire_len();
                    drop(queue);
                    self.changed.notify_all();
                }
                return item;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes a buffer back for the reading thread.
    pub fn recycle(&self, buffer: Vec<u8>) {
        let mut queue = self.lock();
        if queue.spare.len() < 4 {
            queue.spare.push(buffer);
        }
    }
}

/// The id is read leniently, so that the coordinator learns which request was wrong.
fn unreadable(frame: &Frame, error: &WireError) -> Failed {
    let id = serde_json::from_slice::<serde_json::Value>(frame.header())
        .ok()
        .and_then(|v| v.get("id")?.as_u64())
        .and_then(|id| u32::try_from(id).ok())
        .unwrap_or(0);
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    crate::error::Error::bad_request(format!("{error}: {cause}")).to_failed(id)
}
