//! Politeness: at most four connection starts per second to one host, process-wide.
//!
//! sshd counts connections that have not logged in yet (MaxStartups 10:30:100) and drops
//! some at random beyond ten, ours and the administrator's alike.

use std::{
    collections::{HashMap, VecDeque},
    sync::{LazyLock, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

const STARTS: usize = 4;
const WINDOW: Duration = Duration::from_secs(1);

/// Start times (past and promised) per host; at most [`STARTS`] each.
static STARTED: LazyLock<Mutex<HashMap<String, VecDeque<Instant>>>> = LazyLock::new(Mutex::default);

/// Waits until a connection to `host`:`port` may be started.
pub(crate) async fn wait_turn(host: &str, port: u16) {
    let at = reserve(&format!("{host}:{port}"), Instant::now());
    tokio::time::sleep_until(at).await;
}

/// The moment of the next start; it is booked even if the caller goes away.
fn reserve(key: &str, now: Instant) -> Instant {
    let mut all = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    let starts = all.entry(key.to_owned()).or_default();
    let at = match starts.front() {
        Some(oldest) if starts.len() >= STARTS => now.max(*oldest + WINDOW),
        _ => now,
    };
    if starts.len() >= STARTS {
        starts.pop_front();
    }
    starts.push_back(at);
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_at_once_then_four_per_second() {
        let now = Instant::now();
        let waits: Vec<u64> =
            (0..10).map(|_| (reserve("test-host:1", now) - now).as_secs()).collect();
        assert_eq!(waits, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]);
        assert_eq!(reserve("test-host:2", now), now);
        let later = now + Duration::from_secs(60);
        assert_eq!(reserve("test-host:1", later), later);
    }
}
