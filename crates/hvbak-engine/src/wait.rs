//! Waiting for a state, and creating without doing it twice.
//!
//! States are polled, never waited for by an event: an event can be missed, a level cannot.

use std::{
    future::Future,
    ops::{Deref, DerefMut},
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use crate::{
    client::{Engine, pauses},
    config::Timeouts,
    error::EngineError,
    fault::{ConflictKind, classify_conflict},
};

/// What one look found.
pub(crate) enum Look<T> {
    /// It is as awaited.
    Done(T),
    /// Not yet; the present state, for messages.
    Not(String),
}

/// An entity that was made, and the request that made it.
#[derive(Debug, Clone, PartialEq)]
pub struct Created<T> {
    /// The entity as the engine answered.
    pub entity: T,
    /// Correlation ids of the requests that may have made it: events and jobs are found by
    /// them. More than one when answers were lost.
    pub correlations: Vec<String>,
    /// The answer was lost and the entity was found afterwards.
    pub found: bool,
}

impl<T> Deref for Created<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.entity
    }
}

impl<T> DerefMut for Created<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.entity
    }
}

/// The pause before the next look, `waited` after the first.
pub(crate) fn poll_pause(t: &Timeouts, waited: Duration) -> Duration {
    if waited < t.poll_fast_for {
        t.poll_first
    } else {
        // From 5 s towards 15 s: a merge of hours need not be asked for every 5 s.
        (t.poll_then + (waited - t.poll_fast_for) / 60).min(t.poll_max)
    }
}

impl Engine {
    /// Looks until done, cancelled or out of time. The first look is immediate, and there
    /// is always one after the time has run out.
    pub(crate) async fn poll<T, F, Fut>(
        &self,
        what: &str,
        limit: Duration,
        cancel: &CancellationToken,
        mut look: F,
    ) -> Result<T, EngineError>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<Look<T>, EngineError>>,
    {
        let start = Instant::now();
        loop {
            if cancel.is_cancelled() {
                return Err(EngineError::Cancelled { what: what.to_owned() });
            }
            let late = start.elapsed() >= limit;
            // Dropping the look is safe: it only reads.
            let found = tokio::select! {
                found = look() => found?,
                () = cancel.cancelled() => return Err(EngineError::Cancelled { what: what.to_owned() }),
            };
            let last = match found {
                Look::Done(value) => return Ok(value),
                Look::Not(state) => state,
            };
            if late {
                return Err(EngineError::Timeout { what: what.to_owned(), limit, last });
            }
            let pause = poll_pause(self.timeouts(), start.elapsed());
            let rest = limit.saturating_sub(start.elapsed());
            tokio::select! {
                () = tokio::time::sleep(pause.min(rest.max(Duration::from_millis(1)))) => {}
                () = cancel.cancelled() => return Err(EngineError::Cancelled { what: what.to_owned() }),
            }
        }
    }

    /// Creates by `post`; when its outcome is unknown, looks by `find` before any repetition.
    ///
    /// `patience` bounds the repetitions; the look after a lost request is always made.
    /// `post` must not wait for locks itself (`no_waiting`), because after an unknown
    /// outcome the lock may be our own first request still at work.
    pub(crate) async fn create<T, P, PFut, L, LFut>(
        &self,
        patience: Option<Duration>,
        mut post: P,
        mut find: L,
    ) -> Result<Created<T>, EngineError>
    where
        P: FnMut() -> PFut,
        PFut: Future<Output = Result<(T, String), EngineError>>,
        L: FnMut() -> LFut,
        LFut: Future<Output = Result<Option<T>, EngineError>>,
    {
        let start = Instant::now();
        let t = self.timeouts();
        let mut pauses = pauses(t);
        let mut lost: Vec<String> = Vec::new();
        loop {
            let error = match post().await {
                Ok((entity, correlation)) => {
                    lost.push(correlation);
                    return Ok(Created { entity, correlations: lost, found: false });
                }
                Err(error) => error,
            };
            if let EngineError::OutcomeUnknown { correlation, .. } = &error {
                lost.push(correlation.clone());
            }
            let budget = match &error {
                EngineError::OutcomeUnknown { .. } => t.unavailable,
                EngineError::Conflict { detail, transient, .. } => {
                    match (transient, classify_conflict(detail)) {
                        (true, ConflictKind::Transient) => t.conflict,
                        (true, _) => t.unknown_conflict,
                        // "name is already in use" may be our own lost request.
                        (false, _) if !lost.is_empty() => Duration::ZERO,
                        (false, _) => return Err(error),
                    }
                }
                _ if !lost.is_empty() => Duration::ZERO,
                _ => return Err(error),
            };
            let budget = patience.map_or(budget, |p| p.min(budget));
            let pause = pauses.next().unwrap_or(t.retry_max);
            // Without a lost request there is nothing to look for: fail without a pause.
            if lost.is_empty() && start.elapsed() + pause > budget {
                return Err(error);
            }
            tracing::info!(%error, "creating: looking and trying again in {} ms", pause.as_millis());
            tokio::time::sleep(pause).await;
            if !lost.is_empty()
                && let Some(entity) = find().await?
            {
                return Ok(Created { entity, correlations: lost, found: true });
            }
            if start.elapsed() > budget {
                return Err(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_become_rarer() {
        let t = Timeouts::default();
        let s = Duration::from_secs;
        assert_eq!(poll_pause(&t, s(0)), s(1));
        assert_eq!(poll_pause(&t, s(9)), s(1));
        assert_eq!(poll_pause(&t, s(10)), s(5));
        assert_eq!(poll_pause(&t, s(310)), s(10));
        assert_eq!(poll_pause(&t, s(36_000)), s(15));
    }
}
