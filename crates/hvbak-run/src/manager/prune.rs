//! Retention of manager points: the same keep rules as for VMs, and no chains.
//!
//! Invariants: a manager is held from the judgement to the last removal; a point that is
//! damaged neither counts as kept for a rule nor is removed; the newest whole one stays, and
//! of every scope the newest one that holds it. Kept logs of restores and of failed backups
//! go by the same rules, each kind for itself: the newest stays, and one that does not say
//! what came of it. What an open walk is about stays, whatever manager the walk is filed under.
//! A record of an open walk that cannot be read is told, and holds all of the managers that it may
//! be about: the one that it is filed under, and those that its bytes name.
//! Of walks that have ended the newest [`WALKS`] stay, and those of a year.

use std::{collections::BTreeSet, sync::Arc};

use hvbak_plan::{KeepFacts, KeepRules, Verdict, judge_points};
use hvbak_repo::{
    EndedWalk, ManagerName, ManagerPoint, ManagerRecord, RecordKind, Repository, WalkRecord,
};
use hvbak_types::{JobId, PointId};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use serde::Serialize;

use crate::{error::Result, job::blocking};

/// What becomes of a manager's points.
#[derive(Debug, Serialize)]
pub struct ManagerPrune {
    pub manager: ManagerName,
    pub verdicts: Vec<Verdict>,
    /// Points that are gone, or would be.
    pub removed: Vec<PointId>,
    /// Bytes of their files.
    pub freed_bytes: u64,
    /// Kept logs that are gone, or would be.
    pub removed_logs: Vec<ManagerRecord>,
    /// Records of ended walks that are gone, or would be.
    pub removed_walks: Vec<EndedWalk>,
    /// What could not be read, and what that holds.
    pub warnings: Vec<String>,
}

/// Records of ended walks that stay, however old.
const WALKS: usize = 10;
/// Younger ones stay, however many.
const WALKS_FOR: SignedDuration = SignedDuration::from_hours(365 * 24);

/// Prunes the points of one manager.
///
/// # Errors
/// Another process is at work on the manager's points; what cannot be read or removed.
pub async fn manager_prune(
    repository: &Arc<Repository>,
    manager: ManagerName,
    rules: KeepRules,
    zone: TimeZone,
    dry_run: bool,
) -> Result<ManagerPrune> {
    let repository = repository.clone();
    blocking("prune the manager's points", move || {
        let lock = repository.lock_manager(&manager, JobId::random())?;
        let listing = repository.manager_points(&manager)?;
        let now = Timestamp::now();
        let scopes = |p: &ManagerPoint| p.manifest.scopes.iter().cloned().collect::<BTreeSet<_>>();
        let all: BTreeSet<_> = listing.points.iter().flat_map(scopes).collect();
        let mut facts = Vec::new();
        for point in &listing.points {
            let found = point.compare()?.into_iter().next();
            let time = point.manifest.started;
            let future = (time > now).then(|| "it is dated in the future".to_owned());
            let holds = scopes(point);
            facts.push(KeepFacts {
                point: point.manifest.point.clone(),
                time,
                pinned: None,
                damage: found.or(future),
                lacks: all.difference(&holds).cloned().collect(),
                holds,
            });
        }
        let verdicts = judge_points(&facts, &rules, &zone);
        let held = Held::of(&repository, &manager)?;
        let goes = |p: &&ManagerPoint| {
            verdicts.iter().any(|v| v.point == p.manifest.point && v.expires())
                && !held.keeps(&p.title())
        };
        let expired: Vec<_> = listing.points.iter().filter(goes).collect();
        let removed = expired.iter().map(|p| p.manifest.point.clone()).collect::<Vec<_>>();
        let bytes = |p: &&ManagerPoint| p.manifest.files.iter().map(|f| f.size).sum::<u64>();
        let freed_bytes = expired.iter().map(bytes).sum();
        // A walk that is open goes on by what they say.
        let removed_logs = if held.is_empty() {
            expired_logs(repository.manager_records(&manager)?, &rules, &zone)
        } else {
            Vec::new()
        };
        let removed_walks = expired_walks(repository.ended_walks(&manager)?, now);
        if !dry_run {
            repository.sweep_manager_partials(&lock)?;
            for point in &removed {
                repository.remove_manager_point(&lock, point)?;
            }
            for record in &removed_logs {
                repository.remove_manager_record(&lock, record)?;
            }
            for walk in &removed_walks {
                repository.remove_ended_walk(&lock, walk)?;
            }
        }
        let warnings = held.warnings;
        Ok(ManagerPrune {
            manager,
            verdicts,
            removed,
            freed_bytes,
            removed_logs,
            removed_walks,
            warnings,
        })
    })
    .await
}

/// What open walks keep of a manager.
#[derive(Default)]
struct Held {
    walks: Vec<WalkRecord>,
    /// One that cannot be read may be about anything of it.
    all: bool,
    warnings: Vec<String>,
}

impl Held {
    /// Looks at every walk. One may be filed under another name: that of the new machine, while
    /// it restores the archive of the old one.
    fn of(repository: &Repository, manager: &ManagerName) -> hvbak_repo::Result<Self> {
        let mut held = Self::default();
        let called = manager.to_string();
        let others = repository.manager_names()?.into_iter().filter(|name| name != manager);
        for name in std::iter::once(manager.clone()).chain(others) {
            let walk = match repository.walk(&name) {
                Ok(Some(walk)) => walk,
                Ok(None) => continue,
                Err(cause) => {
                    held.warnings.push(format!(
                        "how far the walk of {name} is cannot be read: {} (`hvbak hosted-engine plan … --run --restart` begins it anew)",
                        crate::chain(&cause)
                    ));
                    if name == *manager || repository.walk_names(&name, manager) {
                        held.all = true;
                        held.warnings.push(format!(
                            "no archive and no log of {manager} goes: the walk of {name} may be about it"
                        ));
                    }
                    continue;
                }
            };
            let of = walk.archive.as_deref().and_then(|title| title.split_once('@'));
            if name == *manager
                || of.is_some_and(|(of, _)| of == called)
                || walk.engine.as_ref() == Some(&called)
            {
                held.walks.push(walk);
            }
        }
        Ok(held)
    }

    fn keeps(&self, title: &str) -> bool {
        self.all || self.walks.iter().any(|walk| walk.archive.as_deref() == Some(title))
    }

    fn is_empty(&self) -> bool {
        !self.all && self.walks.is_empty()
    }
}

/// Those that are neither among the newest nor of the last year; `walks` from the oldest on.
fn expired_walks(mut walks: Vec<EndedWalk>, now: Timestamp) -> Vec<EndedWalk> {
    walks.truncate(walks.len().saturating_sub(WALKS));
    // One whose clock was ahead is young.
    walks
        .retain(|walk| walk.time.time().is_some_and(|ended| now.duration_since(ended) > WALKS_FOR));
    walks
}

/// Those that no rule keeps.
fn expired_logs(
    records: Vec<ManagerRecord>,
    rules: &KeepRules,
    zone: &TimeZone,
) -> Vec<ManagerRecord> {
    let mut expired = Vec::new();
    for kind in [RecordKind::Restore, RecordKind::FailedBackup] {
        let of_kind: Vec<_> = records.iter().filter(|record| record.kind == kind).collect();
        let facts: Vec<_> = of_kind
            .iter()
            .filter_map(|record| {
                let unfinished = "it does not say what came of it".to_owned();
                Some(KeepFacts {
                    point: record.time.clone(),
                    time: record.time.time()?,
                    pinned: None,
                    damage: (!record.is_finished).then_some(unfinished),
                    lacks: BTreeSet::new(),
                    holds: BTreeSet::new(),
                })
            })
            .collect();
        let verdicts = judge_points(&facts, rules, zone);
        let goes = |record: &&ManagerRecord| {
            verdicts.iter().any(|verdict| verdict.point == record.time && verdict.expires())
        };
        expired.extend(of_kind.into_iter().filter(|record| goes(record)).cloned());
    }
    expired
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walks(times: &[&str]) -> Vec<EndedWalk> {
        let walk = |time: &&str| EndedWalk { time: time.parse().unwrap(), path: (*time).into() };
        times.iter().map(walk).collect()
    }

    #[test]
    fn of_ended_walks_the_newest_stay_and_those_of_a_year() {
        let now = "2026-11-21T12:00:00Z".parse().unwrap();
        let old: Vec<_> = (1..=9).map(|day| format!("2020010{day}T000000Z")).collect();
        let mut all: Vec<&str> = old.iter().map(String::as_str).collect();
        all.push("20200110T000000Z");
        assert_eq!(expired_walks(walks(&all), now), [], "ten are few");
        all.extend(["20251120T120000Z", "20251122T120000Z", "20261120T000000Z"]);
        assert_eq!(expired_walks(walks(&all), now), walks(&all[..3]));
        let young: Vec<_> = (10..=30).map(|day| format!("202610{day}T000000Z")).collect();
        let young: Vec<&str> = young.iter().map(String::as_str).collect();
        assert_eq!(expired_walks(walks(&young), now), [], "all of this year");
        let mixed = [&all[..2], &young[..]].concat();
        assert_eq!(expired_walks(walks(&mixed), now), walks(&all[..2]));
        assert_eq!(expired_walks(Vec::new(), now), []);
    }
}
