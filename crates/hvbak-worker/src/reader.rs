//! Reads a range with several threads and sends it in guest order.
//!
//! Threads take units from the planner, read, drop zeros, hash and compress; this thread
//! sends what is next in order. Invariant: at most `window` units exist at a time, so the
//! memory is bounded by 2 MiB for each, whoever is slow.

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use hvbak_qcow2::Chain;
use hvbak_types::{CLUSTER_SIZE, Digest};
use hvbak_wire::{
    Body, CLUSTER_BYTES, Cluster, ClustersBuilder, MAX_COMPRESSED, ReadOptions, Sealed, Tally,
};

use crate::{
    buffer::Aligned,
    error::{Error, Result},
    inbox::Stop,
    output::Output,
    planner::{Planner, UNIT_CLUSTERS, Unit},
    volume::Volume,
    zero::is_zero,
};

/// How often waits look at the wish to stop.
const LOOK: Duration = Duration::from_millis(100);
const MAX_THREADS: usize = 16;

type Source = Chain<Arc<Volume>>;

/// What to read.
pub struct Job<'a> {
    pub request: u32,
    pub chain: &'a Source,
    pub top: usize,
    /// First cluster and the one behind the last.
    pub range: (u64, u64),
    pub options: &'a ReadOptions,
    pub stop: &'a Stop,
}

#[derive(Default)]
struct State {
    /// Units that were sent.
    sent: u64,
    /// Number of units, when the planner is done.
    total: Option<u64>,
    done: BTreeMap<u64, Result<Option<Sealed>>>,
    spare: Vec<Vec<u8>>,
    abort: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn abort(&self) {
        self.lock().abort = true;
        self.changed.notify_all();
    }

    /// Waits until a unit is inside the window; `false` when the work was given up.
    fn admit(&self, number: u64, window: u64) -> bool {
        let mut state = self.lock();
        while !state.abort && number >= state.sent + window {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.abort
    }

    fn deliver(&self, number: u64, outcome: Result<Option<Sealed>>) {
        self.lock().done.insert(number, outcome);
        self.changed.notify_all();
    }
}

/// Sends the range; returns the sums of what was sent.
///
/// # Errors
/// The first failure in guest order; what lies before it was sent.
pub fn read(job: &Job<'_>, output: &mut Output) -> Result<Tally> {
    let (first, end) = job.range;
    let fail = chain_error(first, end - first);
    let runs = job.chain.cluster_runs(job.top, first, end - first).map_err(fail)?;
    let planner = Mutex::new(Planner::new(runs, job.options.zeros));
    let wanted = job.options.threads.map_or_else(|| crate::host::cores().min(4), usize::from);
    let threads = wanted.clamp(1, MAX_THREADS);
    // Enough that a slow unit does not stop the others, and 2 MiB each stay below 64 MiB.
    let window = (3 * threads).min(24) as u64;
    let shared = Shared::default();
    thread::scope(|scope| {
        for _ in 0..threads {
            let started = thread::Builder::new()
                .name("read".into())
                .spawn_scoped(scope, || work(job, &planner, &shared, window));
            if let Err(source) = started {
                shared.abort();
                return Err(Error::file("start", "a thread")(source));
            }
        }
        let outcome = send(job, &shared, output);
        shared.abort();
        outcome
    })
}

fn chain_error(first: u64, count: u64) -> impl Fn(hvbak_qcow2::Error) -> Error {
    move |source| Error::ReadChain {
        offset: first * CLUSTER_SIZE,
        length: count * CLUSTER_SIZE,
        source,
    }
}

/// Sends units in order until all are sent.
fn send(job: &Job<'_>, shared: &Shared, output: &mut Output) -> Result<Tally> {
    let mut tally = Tally::new(job.range.0, job.range.1, true);
    loop {
        let unit = {
            let mut state = shared.lock();
            loop {
                if job.stop.is_set(job.request) {
                    return Err(if job.stop.is_gone() { Error::Gone } else { Error::Cancelled });
                }
                let next = state.sent;
                if let Some(unit) = state.done.remove(&next) {
                    break unit?;
                }
                if state.total == Some(next) {
                    return Ok(tally);
                }
                state = shared
                    .changed
                    .wait_timeout(state, LOOK)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
        };
        let mut spare = None;
        if let Some(frame) = unit {
            tally.add(&frame.clusters()?)?;
            output.frame(&frame)?;
            spare = Some(frame.into_parts().0);
        }
        let mut state = shared.lock();
        state.sent += 1;
        state.spare.extend(spare);
        drop(state);
        shared.changed.notify_all();
    }
}

fn work(job: &Job<'_>, planner: &Mutex<Planner<'_, Arc<Volume>>>, shared: &Shared, window: u64) {
    let mut packer = Packer::new(job);
    loop {
        let taken = {
            let mut planner = planner.lock().unwrap_or_else(PoisonError::into_inner);
            let number = planner.number();
            planner.next_unit().map_err(|e| (number, e)).map(|unit| (number, unit))
        };
        let unit = match taken {
            Ok((_, Some(unit))) => unit,
            Ok((number, None)) => {
                shared.lock().total = Some(number);
                shared.changed.notify_all();
                return;
            }
            Err((number, source)) => {
                let (first, end) = job.range;
                return shared.deliver(number, Err(chain_error(first, end - first)(source)));
            }
        };
        if !shared.admit(unit.number, window) || job.stop.is_gone() {
            return;
        }
        let spare = shared.lock().spare.pop().unwrap_or_default();
        let outcome = packer.as_mut().map_or_else(
            || Err(Error::bad_request("compression level")),
            |packer| packer.pack(job, &unit, spare),
        );
        let failed = outcome.is_err();
        shared.deliver(unit.number, outcome);
        if failed {
            return;
        }
    }
}

/// One thread's buffers.
struct Packer {
    data: Aligned,
    packed: Vec<u8>,
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl Packer {
    fn new(job: &Job<'_>) -> Option<Self> {
        let zstd = match job.options.compression {
            Some(level) if !job.options.digest_only => {
                Some(zstd::bulk::Compressor::new(i32::from(level.clamp(1, 19))).ok()?)
            }
            _ => None,
        };
        let data = Aligned::new(UNIT_CLUSTERS * CLUSTER_BYTES);
        Some(Self { data, packed: vec![0; MAX_COMPRESSED], zstd })
    }

    /// Makes the frame of a unit; `None` when nothing is left to send.
    fn pack(&mut self, job: &Job<'_>, unit: &Unit, buffer: Vec<u8>) -> Result<Option<Sealed>> {
        let mut frame = ClustersBuilder::new(buffer);
        let mut zeros = ZeroRun::default();
        for piece in &unit.pieces {
            if !piece.data {
                zeros.add(&mut frame, piece.first, piece.count)?;
                continue;
            }
            let length = piece.count as usize * CLUSTER_BYTES;
            let data = &mut self.data.as_mut()[..length];
            let fail = chain_error(piece.first, u64::from(piece.count));
            job.chain.read(data, piece.first * CLUSTER_SIZE).map_err(fail)?;
            for (index, content) in (piece.first..).zip(data.chunks_exact(CLUSTER_BYTES)) {
                if is_zero(content) {
                    if job.options.zeros {
                        zeros.add(&mut frame, index, 1)?;
                    }
                    continue;
                }
                zeros.flush(&mut frame)?;
                let digest = Digest(*blake3::hash(content).as_bytes());
                let body = match &mut self.zstd {
                    _ if job.options.digest_only => Body::Digest,
                    // A result that does not fit the buffer is an error of zstd: not worth it.
                    Some(zstd) => match zstd.compress_to_buffer(content, &mut self.packed[..]) {
                        Ok(length) => Body::Zstd(&self.packed[..length]),
                        Err(_) => Body::Plain(content),
                    },
                    None => Body::Plain(content),
                };
                frame.push(&Cluster { index, digest, body })?;
            }
        }
        zeros.flush(&mut frame)?;
        if frame.is_empty() {
            return Ok(None);
        }
        Ok(Some(frame.seal(job.request)?))
    }
}

/// Joins neighbouring zero clusters to one entry.
#[derive(Default)]
struct ZeroRun {
    first: u64,
    count: u32,
}

impl ZeroRun {
    fn add(&mut self, frame: &mut ClustersBuilder, first: u64, count: u32) -> Result<()> {
        let joined = self.count.checked_add(count);
        match joined {
            Some(joined) if self.count > 0 && self.first + u64::from(self.count) == first => {
                self.count = joined;
            }
            _ => {
                self.flush(frame)?;
                (self.first, self.count) = (first, count);
            }
        }
        Ok(())
    }

    fn flush(&mut self, frame: &mut ClustersBuilder) -> Result<()> {
        if self.count > 0 {
            let body = Body::Zero { count: self.count };
            frame.push(&Cluster { index: self.first, digest: Digest([0; 32]), body })?;
            self.count = 0;
        }
        Ok(())
    }
}
