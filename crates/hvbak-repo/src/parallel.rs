//! Runs over the stored clusters of a disk on several threads.
//!
//! Threads take chunks in guest order; there is no queue, so memory does not grow with the
//! disk. The first error stops all.

use std::{
    num::NonZero,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use crate::{
    disk_reader::DiskReader,
    error::{Error, Result},
    merge::{StoredRun, StoredRuns},
};

/// Clusters per chunk: 8 MiB of guest data, so that taking one costs nothing.
const CHUNK: u64 = 128;

/// Calls `work` for chunks of data clusters that together are all of `reader`, each once,
/// with a state per thread. A chunk is neighbouring clusters of one layer.
///
/// `progress` is called with the number of clusters of each chunk that is done; when it
/// returns false the rest is left and the answer is [`Error::Cancelled`].
pub fn each_data_chunk<S>(
    reader: &DiskReader,
    threads: usize,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, &StoredRun) -> Result<()> + Sync,
    progress: impl Fn(u64) -> bool + Sync,
) -> Result<()> {
    let threads = match threads {
        0 => thread::available_parallelism().map_or(1, NonZero::get),
        n => n,
    };
    let source = Mutex::new(Source { runs: reader.stored(), rest: None });
    let stop = AtomicBool::new(false);
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    let fail = |error| {
        stop.store(true, Ordering::Relaxed);
        lock(&failure).get_or_insert(error);
    };
    let run = || {
        let mut state = state();
        while !stop.load(Ordering::Relaxed) {
            let chunk = match lock(&source).take() {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return,
                Err(error) => return fail(error),
            };
            if let Err(error) = work(&mut state, &chunk) {
                return fail(error);
            }
            if !progress(chunk.count) {
                return fail(Error::Cancelled);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run();
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

struct Source {
    runs: StoredRuns,
    rest: Option<StoredRun>,
}

impl Source {
    fn take(&mut self) -> Result<Option<StoredRun>> {
        loop {
            let run = match self.rest.take() {
                Some(run) => run,
                None => match self.runs.next() {
                    Some(run) => run?,
                    None => return Ok(None),
                },
            };
            if run.data {
                let (chunk, rest) = run.split(CHUNK);
                self.rest = rest;
                return Ok(Some(chunk));
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
