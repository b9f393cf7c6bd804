//! The threads that inflate, compare and write the clusters of a target.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use hvbak_qcow2::WriteAt;
use hvbak_types::CLUSTER_SIZE;
use hvbak_wire::{Body, CLUSTER_BYTES, Cluster, Frame, Tally, Written};

use crate::{
    error::{Error, Result},
    inbox::Inbox,
    seen::Seen,
    target::{Sink, Target, check_count},
};

/// Clusters joined to one write.
const JOIN: usize = 16;

/// A target with its threads.
pub struct Filling {
    pub id: u32,
    target: Arc<Target>,
    sender: Option<SyncSender<Frame>>,
    threads: Vec<JoinHandle<()>>,
    seen: Seen,
    tally: Tally,
    /// The failure was told; everything that still comes is dropped.
    dead: bool,
}

impl Filling {
    /// Starts the threads.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(id: u32, target: Target, threads: usize, inbox: &Arc<Inbox>) -> Result<Self> {
        let target = Arc::new(target);
        // One frame in waiting: the inbox already bounds what lies in memory.
        let (sender, receiver) = sync_channel::<Frame>(1);
        let receiver = Arc::new(Mutex::new(receiver));
        let spawn = |_| {
            let (target, receiver, inbox) =
                (Arc::clone(&target), Arc::clone(&receiver), Arc::clone(inbox));
            thread::Builder::new()
                .name("write".into())
                .spawn(move || write_all(&target, &receiver, &inbox))
                .map_err(Error::file("start", "a thread"))
        };
        let threads = (0..threads).map(spawn).collect::<Result<_>>()?;
        let (first, end) = target.range();
        let tally = Tally::new(first, end, false);
        let seen = Seen::default();
        Ok(Self { id, target, sender: Some(sender), threads, seen, tally, dead: false })
    }

    /// Takes a frame: counts it and hands it to a thread.
    ///
    /// # Errors
    /// What this frame breaks or a thread failed with; told once, later frames are dropped.
    pub fn take(&mut self, frame: Frame) -> Result<()> {
        if self.dead {
            return Ok(());
        }
        let outcome = self.try_take(frame);
        self.dead = outcome.is_err();
        outcome
    }

    fn try_take(&mut self, frame: Frame) -> Result<()> {
        if let Some(error) = self.target.take_failure() {
            return Err(error);
        }
        let clusters = frame.clusters().map_err(|source| Error::BadFrame { source })?;
        for cluster in clusters.iter() {
            let index = cluster.index;
            let bad = |what| Err(Error::BadCluster { index, what });
            if self.tally.add_one(&cluster).is_err() {
                return bad("it lies outside the target");
            }
            match cluster.body {
                Body::Digest => return bad("a digest alone cannot be written"),
                // Not marked: the fill at the end owes zeros there, if any are owed.
                Body::Zero { .. } => {}
                Body::Plain(_) | Body::Zstd(_) if self.seen.mark(index) => {}
                Body::Plain(_) | Body::Zstd(_) => return bad("it came before"),
            }
        }
        match self.sender.as_ref().map(|s| s.send(frame)) {
            Some(Ok(())) => Ok(()),
            // Threads end only by failing.
            _ => Err(self.target.take_failure().unwrap_or(Error::Gone)),
        }
    }

    fn join(&mut self) {
        drop(self.sender.take());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }

    /// Waits for the threads, completes and flushes the volume.
    ///
    /// # Errors
    /// The target failed before, fails now, or clusters are missing.
    pub fn finish(mut self, clusters: u64) -> Result<Written> {
        self.join();
        if let Some(error) = self.target.take_failure() {
            return Err(error);
        }
        if self.dead {
            return Err(Error::bad_request("the target has failed before"));
        }
        check_count(self.tally.totals(), clusters)?;
        self.target.finish(&self.seen, &self.tally)
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.join();
    }
}

fn write_all(target: &Target, receiver: &Mutex<Receiver<Frame>>, inbox: &Inbox) {
    let mut inflater = match Inflater::new() {
        Ok(inflater) => inflater,
        Err(error) => return target.fail(error),
    };
    loop {
        let frame = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(frame) = frame else { return };
        if !target.has_failed()
            && !inbox.stop().is_gone()
            && let Err(error) = write_frame(target, &frame, &mut inflater)
        {
            target.fail(error);
        }
        inbox.recycle(frame.into_buffer());
    }
}

struct Inflater {
    zstd: zstd::bulk::Decompressor<'static>,
    /// Neighbouring clusters that become one write.
    joined: Vec<u8>,
}

impl Inflater {
    fn new() -> Result<Self> {
        let zstd = zstd::bulk::Decompressor::new().map_err(|source| Error::Compress { source })?;
        Ok(Self { zstd, joined: vec![0; JOIN * CLUSTER_BYTES] })
    }

    /// Puts the content of a cluster into slot `n` of the joined buffer.
    fn inflate(&mut self, cluster: &Cluster<'_>, n: usize, check: bool) -> Result<()> {
        let slot = &mut self.joined[n * CLUSTER_BYTES..(n + 1) * CLUSTER_BYTES];
        let index = cluster.index;
        match cluster.body {
            Body::Plain(data) => slot.copy_from_slice(data),
            Body::Zstd(data) => match self.zstd.decompress_to_buffer(data, slot) {
                Ok(CLUSTER_BYTES) => {}
                _ => {
                    let what = "its payload does not inflate to 64 KiB";
                    return Err(Error::BadCluster { index, what });
                }
            },
            Body::Zero { .. } | Body::Digest => return Ok(()),
        }
        if check && blake3::hash(slot).as_bytes() != &cluster.digest.0 {
            return Err(Error::BadCluster { index, what: "its digest differs" });
        }
        Ok(())
    }
}

fn write_frame(target: &Target, frame: &Frame, inflater: &mut Inflater) -> Result<()> {
    let clusters = frame.clusters().map_err(|source| Error::BadFrame { source })?;
    let (mut first, mut count) = (0u64, 0usize);
    for cluster in clusters.iter() {
        if matches!(cluster.body, Body::Zero { .. } | Body::Digest) {
            continue;
        }
        if count > 0 && (count == JOIN || first + count as u64 != cluster.index) {
            put(target, first, &inflater.joined[..count * CLUSTER_BYTES])?;
            count = 0;
        }
        if count == 0 {
            first = cluster.index;
        }
        inflater.inflate(&cluster, count, target.check_digests)?;
        count += 1;
    }
    if count > 0 {
        put(target, first, &inflater.joined[..count * CLUSTER_BYTES])?;
    }
    Ok(())
}

/// Writes neighbouring clusters.
fn put(target: &Target, first: u64, data: &[u8]) -> Result<()> {
    match &target.sink {
        Sink::Raw(place) => {
            let offset = first * CLUSTER_SIZE;
            // The last cluster of a disk may be short; the rest of it is padding.
            let inside = target.virtual_size.saturating_sub(offset).min(data.len() as u64);
            place
                .write_at(&data[..usize::try_from(inside).unwrap_or(0)], offset)
                .map_err(|source| Error::WriteCluster { index: first, source })
        }
        Sink::Cow(writer, _) => {
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            let writer = writer.as_mut().ok_or_else(|| Error::WriteCluster {
                index: first,
                source: io::ErrorKind::BrokenPipe.into(),
            })?;
            for (index, cluster) in (first..).zip(data.chunks_exact(CLUSTER_BYTES)) {
                writer.put_data(index, cluster).map_err(|source| Error::WriteImage { source })?;
            }
            Ok(())
        }
    }
}
