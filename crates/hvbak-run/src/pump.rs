//! Moving a disk from worker sessions into the repository.
//!
//! Streams take pieces of the disk from a shared list, each session sends its clusters in
//! guest order, and one thread writes them. Memory is bounded by the queue between them
//! (frames are at most 4 MiB each). The first error wins and stops the rest.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use hvbak_repo::{DiskRecord, DiskWriter, Payload};
use hvbak_types::{CLUSTER_SIZE, DiskId};
use hvbak_wire::{Body, Frame, ReadOptions};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    error::{self, Result, RunError},
    event::{Event, Events},
    session::{Read, Session},
};

/// Frames between the streams and the writing thread.
const QUEUE: usize = 4;

/// Ranges that streams take from, each once.
#[derive(Debug)]
pub struct Pieces {
    /// Offset and end.
    ranges: Vec<(u64, u64)>,
    next: AtomicUsize,
}

impl Pieces {
    /// The parts of a disk that are still to be read (first cluster and number), cut where
    /// `starts` has a piece begin. The disk ends at byte `end`.
    pub fn new(starts: &[u64], end: u64, open: &[(u64, u64)]) -> Self {
        let mut ranges = Vec::new();
        for &(cluster, count) in open {
            let from = cluster.saturating_mul(CLUSTER_SIZE);
            let to = cluster.saturating_add(count).saturating_mul(CLUSTER_SIZE).min(end);
            let first = starts.partition_point(|start| *start <= from);
            let last = starts.partition_point(|start| *start < to).max(first);
            let mut at = from;
            for cut in starts[first..last].iter().copied().chain([to]) {
                if at < cut {
                    ranges.push((at, cut));
                }
                at = cut;
            }
        }
        Self { ranges, next: AtomicUsize::new(0) }
    }

    /// The next piece as offset and length.
    pub fn take(&self) -> Option<(u64, u64)> {
        let i = self.next.fetch_add(1, Ordering::Relaxed);
        self.ranges.get(i).map(|(start, end)| (*start, end - start))
    }
}

/// What goes from a stream to the writing thread.
struct Told {
    /// `None` at the end of a piece behind which there is nothing.
    frame: Option<Frame>,
    /// Guest bytes of which everything is told with this.
    from: u64,
    to: u64,
}

/// Guest bytes passed, data and payload, told at most five times a second.
pub struct Meter {
    disk: DiskId,
    total: u64,
    events: Events,
    started: Instant,
    last: Mutex<Instant>,
    done: AtomicU64,
    data: AtomicU64,
    payload: AtomicU64,
}

impl Meter {
    pub fn new(disk: DiskId, total: u64, events: Events) -> Self {
        let now = Instant::now();
        Self {
            disk,
            total,
            events,
            started: now,
            last: Mutex::new(now),
            done: AtomicU64::new(0),
            data: AtomicU64::new(0),
            payload: AtomicU64::new(0),
        }
    }

    /// Adds guest bytes passed, of which `data` were data, carried by `payload` bytes.
    pub fn add(&self, done: u64, data: u64, payload: u64) {
        let done = self.done.fetch_add(done, Ordering::Relaxed) + done;
        let data_bytes = self.data.fetch_add(data, Ordering::Relaxed) + data;
        let payload_bytes = self.payload.fetch_add(payload, Ordering::Relaxed) + payload;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= Duration::from_millis(200) {
            *last = Instant::now();
            self.events.event(&Event::DiskProgress {
                disk: self.disk,
                done: done.min(self.total),
                total: self.total,
                data_bytes,
                payload_bytes,
            });
        }
    }

    /// Only these parts (first cluster and number) will pass; the rest is there already.
    pub fn skip(&self, open: &[(u64, u64)]) {
        let open: u64 = open.iter().map(|(_, count)| count * CLUSTER_SIZE).sum();
        self.done.store(self.total.saturating_sub(open), Ordering::Relaxed);
    }

    /// Data and payload bytes so far, and the time since the start.
    pub fn sums(&self) -> (u64, u64, Duration) {
        let load = |a: &AtomicU64| a.load(Ordering::Relaxed);
        (load(&self.data), load(&self.payload), self.started.elapsed())
    }
}

/// A budget of bytes per second, shared by all streams of a run. What was not used is
/// not saved up for longer than a second.
pub struct Rate {
    per_second: u64,
    /// When the bytes that were spent so far are paid for.
    paid: Mutex<Instant>,
}

impl Rate {
    /// 0 = no limit.
    pub fn new(per_second: u64) -> Arc<Self> {
        Arc::new(Self { per_second, paid: Mutex::new(Instant::now()) })
    }

    async fn spend(&self, bytes: u64) {
        if self.per_second == 0 {
            return;
        }
        let price = Duration::from_secs_f64(bytes as f64 / self.per_second as f64);
        let now = Instant::now();
        let due = {
            let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
            *paid = (*paid).max(now - Duration::from_secs(1)) + price;
            *paid
        };
        if let Some(wait) = due.checked_duration_since(now) {
            tokio::time::sleep(wait).await;
        }
    }
}

type Pool = Arc<Mutex<Vec<Vec<u8>>>>;

/// Reads all pieces through the sessions into `writer`; gives the sessions back.
pub async fn pull(
    sessions: Vec<Session>,
    pieces: Pieces,
    options: ReadOptions,
    writer: DiskWriter,
    meter: Arc<Meter>,
    rate: Arc<Rate>,
    cancel: &CancellationToken,
) -> Result<(Vec<Session>, DiskRecord)> {
    let pieces = Arc::new(pieces);
    let pool: Pool = Arc::default();
    let (queue, inbox) = mpsc::channel::<Told>(QUEUE);
    let writing = tokio::task::spawn_blocking({
        let pool = pool.clone();
        move || write(writer, inbox, &pool)
    });
    let mut streams = JoinSet::new();
    for session in sessions {
        let (pieces, options, queue) = (pieces.clone(), options.clone(), queue.clone());
        let (meter, rate, pool) = (meter.clone(), rate.clone(), pool.clone());
        streams.spawn(async move {
            stream(session, &pieces, &options, &queue, &meter, &rate, &pool).await
        });
    }
    drop(queue);
    let mut sessions = Vec::new();
    let mut failure: Option<RunError> = None;
    loop {
        let joined = tokio::select! {
            // Both branches are cancel-safe; a cancelled job drops the streams, which
            // closes the workers' stdin.
            joined = streams.join_next() => joined,
            () = cancel.cancelled() => {
                streams.abort_all();
                while streams.join_next().await.is_some() {}
                // The queue is closed now, so the thread ends.
                let _ = writing.await;
                return Err(RunError::Cancelled);
            }
        };
        match joined {
            None => break,
            Some(Ok(Ok(session))) => sessions.push(session),
            Some(Ok(Err(error))) => {
                streams.abort_all();
                failure.get_or_insert(error);
            }
            Some(Err(error)) if error.is_cancelled() => {}
            Some(Err(error)) => {
                streams.abort_all();
                failure.get_or_insert(RunError::Task { text: error.to_string() });
            }
        }
    }
    let written = writing.await.map_err(|e| RunError::Task { text: e.to_string() })?;
    match (written, failure) {
        // A failed write closes the queue; the streams' complaint about that is no news.
        (Err(error), None | Some(RunError::Task { .. })) => Err(error),
        (Ok(writer), Some(error)) if error.is_cut() => {
            let suspended = tokio::task::spawn_blocking(move || writer.suspend()).await;
            // The next run reads what this one could not note.
            if let Ok(Err(cause)) = suspended {
                tracing::warn!(error = crate::chain(&cause), "noting what was read failed");
            }
            Err(error)
        }
        (_, Some(error)) => Err(error),
        (Ok(writer), None) => {
            let record = tokio::task::spawn_blocking(move || writer.finish())
                .await
                .map_err(|e| RunError::Task { text: e.to_string() })?
                .map_err(error::repository("finish the stored disk"))?;
            Ok((sessions, record))
        }
    }
}

async fn stream(
    mut session: Session,
    pieces: &Pieces,
    options: &ReadOptions,
    queue: &mpsc::Sender<Told>,
    meter: &Meter,
    rate: &Rate,
    pool: &Pool,
) -> Result<Session> {
    let send = async |told| {
        let ended = |_| RunError::Task { text: "the writing thread ended".into() };
        queue.send(told).await.map_err(ended)
    };
    while let Some((offset, length)) = pieces.take() {
        let mut reached = offset;
        let mut reading = session.read(offset, length, options.clone()).await?;
        while let Read::Clusters(frame) = session.next(&mut reading).await? {
            let (mut data, mut payload, mut end) = (0, 0, reached);
            if let Ok(clusters) = frame.clusters() {
                for cluster in clusters.iter() {
                    end = cluster.end() * CLUSTER_SIZE;
                    payload += match cluster.body {
                        Body::Plain(bytes) | Body::Zstd(bytes) => {
                            data += CLUSTER_SIZE;
                            bytes.len() as u64
                        }
                        Body::Zero { .. } | Body::Digest => 0,
                    };
                }
            }
            let end = end.min(offset + length);
            meter.add(end.saturating_sub(reached), data, payload);
            let from = reached;
            reached = end.max(reached);
            rate.spend(payload).await;
            send(Told { frame: Some(frame), from, to: reached }).await?;
            let spare = pool.lock().unwrap_or_else(PoisonError::into_inner).pop();
            if let Some(buffer) = spare {
                session.recycle(buffer);
            }
        }
        meter.add((offset + length).saturating_sub(reached), 0, 0);
        send(Told { frame: None, from: reached, to: offset + length }).await?;
    }
    Ok(session)
}

fn write(
    mut writer: DiskWriter,
    mut inbox: mpsc::Receiver<Told>,
    pool: &Pool,
) -> Result<DiskWriter> {
    while let Some(Told { frame, from, to }) = inbox.blocking_recv() {
        let told = |writer: &mut DiskWriter| {
            let (first, end) = (from / CLUSTER_SIZE, to.div_ceil(CLUSTER_SIZE));
            let told = writer.told(first, end.saturating_sub(first));
            told.map_err(error::repository("store the disk"))
        };
        let Some(frame) = frame else {
            told(&mut writer)?;
            continue;
        };
        let clusters = frame
            .clusters()
            .map_err(|e| RunError::Protocol { host: String::new(), text: crate::chain(&e) })?;
        for cluster in clusters.iter() {
            let put = match cluster.body {
                Body::Zstd(bytes) => {
                    writer.put(cluster.index, Payload::Compressed(bytes), &cluster.digest)
                }
                Body::Plain(bytes) => {
                    writer.put(cluster.index, Payload::Plain(bytes), &cluster.digest)
                }
                Body::Zero { count } => writer.put_zero(cluster.index, u64::from(count)),
                Body::Digest => continue,
            };
            put.map_err(error::repository("store the disk"))?;
        }
        told(&mut writer)?;
        let buffer = frame.into_buffer();
        let mut pool = pool.lock().unwrap_or_else(PoisonError::into_inner);
        if pool.len() < QUEUE {
            pool.push(buffer);
        }
    }
    Ok(writer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_taken_once_and_cover_the_disk() {
        let size = (1 << 20) + 512;
        let pieces = Pieces::new(&[0, 65_536, 1 << 20], size, &[(0, 17)]);
        assert_eq!(pieces.take(), Some((0, 65_536)));
        assert_eq!(pieces.take(), Some((65_536, (1 << 20) - 65_536)));
        assert_eq!(pieces.take(), Some((1 << 20, 512)));
        assert_eq!(pieces.take(), None);
        assert_eq!(Pieces::new(&[0], 0, &[]).take(), None);
    }

    #[test]
    fn pieces_of_what_is_open_are_cut_where_the_map_says() {
        let c = CLUSTER_SIZE;
        let open = [(1, 2), (4, 1), (6, 30), (40, 2)];
        let pieces = Pieces::new(&[0, 2 * c, 7 * c, 7 * c, 20 * c, 36 * c], 42 * c - 100, &open);
        let taken: Vec<_> = std::iter::from_fn(|| pieces.take()).collect();
        let expected = [(1, 1), (2, 1), (4, 1), (6, 1), (7, 13), (20, 16)];
        let expected = expected.map(|(at, n)| (at * c, n * c));
        assert_eq!(taken[..6], expected);
        assert_eq!(taken[6..], [(40 * c, 2 * c - 100)]);
    }
}
