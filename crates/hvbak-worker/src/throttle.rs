//! Bytes per second that this worker may move from or to volumes.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Longest single sleep, so that a cancel is noticed.
const NAP: Duration = Duration::from_millis(50);
/// What may be moved at once after idling.
const BURST: Duration = Duration::from_millis(100);

/// A limit shared by all threads; without a rate it costs one atomic load.
#[derive(Debug, Default)]
pub struct Throttle {
    rate: AtomicU64,
    free_at: Mutex<Option<Instant>>,
}

impl Throttle {
    /// Sets bytes per second; `None` or 0 lifts the limit.
    pub fn set(&self, rate: Option<u64>) {
        self.rate.store(rate.unwrap_or(0), Ordering::Relaxed);
    }

    /// Waits until `bytes` may be moved, or until `stop` says so.
    pub fn take(&self, bytes: u64, stop: impl Fn() -> bool) {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 {
            return;
        }
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let turn = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let floor = now.checked_sub(BURST).unwrap_or(now);
            let turn = free_at.map_or(floor, |t| t.max(floor));
            *free_at = Some(turn + cost);
            turn
        };
        while !stop() {
            let left = turn.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::sleep(left.min(NAP));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_and_a_stop_ends_the_wait() {
        let t = Throttle::default();
        let start = Instant::now();
        t.take(u64::MAX, || false);
        t.set(Some(10_000_000));
        for _ in 0..6 {
            t.take(1_000_000, || false);
        }
        assert!(start.elapsed() >= Duration::from_millis(350), "{:?}", start.elapsed());
        t.set(Some(1));
        t.take(1_000_000, || false);
        t.take(1, || true);
    }
}
