//! The managers of the report: their newest archives and the last drills of them.

use std::collections::BTreeSet;

use hvbak_repo::{ManagerName, Repository, RunRecord};
use hvbak_types::PointId;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::{LastRun, too_old};

/// One manager of the report.
#[derive(Debug, Clone, Serialize)]
pub struct ManagerReport {
    pub manager: ManagerName,
    /// Readable points.
    pub points: usize,
    /// Directories that should be points and cannot be read.
    pub damaged: usize,
    pub newest: Option<NewestArchive>,
    /// How many seconds old the newest archive may be.
    pub target_seconds: Option<i64>,
    /// Whether it is older, or there is none.
    pub too_old: bool,
}

/// A manager's newest point.
#[derive(Debug, Clone, Serialize)]
pub struct NewestArchive {
    pub point: PointId,
    pub started: Timestamp,
    pub age_seconds: i64,
    /// engine-backup's version.
    pub version: String,
    /// What is in it and whole.
    pub scopes: Vec<String>,
    pub stored_bytes: u64,
    pub encrypted: bool,
    /// What its manifest warns of.
    pub warnings: Vec<String>,
}

/// What the newest recorded drill that says something saw of a manager's archive.
#[derive(Debug, Clone, Serialize)]
pub struct ManagerDrill {
    pub manager: ManagerName,
    #[serde(flatten)]
    pub last: LastRun,
}

/// All managers, by name.
pub(super) fn read(
    repository: &Repository,
    now: Timestamp,
    limit: Option<SignedDuration>,
) -> hvbak_repo::Result<Vec<ManagerReport>> {
    let mut managers = Vec::new();
    for manager in repository.manager_names()? {
        let listing = repository.manager_points(&manager)?;
        let newest = listing.points.iter().max_by_key(|point| point.manifest.started);
        let past = listing.points.iter().map(|point| point.manifest.started);
        // A date in the future is a clock that was wrong, not a fresh archive.
        let started = past.filter(|started| *started <= now).max();
        managers.push(ManagerReport {
            points: listing.points.len(),
            damaged: listing.damaged.len(),
            newest: newest.map(|point| {
                let m = &point.manifest;
                NewestArchive {
                    point: m.point.clone(),
                    started: m.started,
                    age_seconds: now.duration_since(m.started).as_secs(),
                    version: m.version.clone(),
                    scopes: m.scopes.clone(),
                    stored_bytes: m.archive().map_or(0, |file| file.size),
                    encrypted: m.encrypted.is_some(),
                    warnings: m.warnings.clone(),
                }
            }),
            target_seconds: limit.map(|age| age.as_secs()),
            too_old: too_old(started, now, limit),
            manager,
        });
    }
    managers.sort_by(|a, b| a.manager.cmp(&b.manager));
    Ok(managers)
}

/// The newest drill of each manager that says something; runs are newest first.
pub(super) fn drills(runs: &[RunRecord]) -> Vec<ManagerDrill> {
    let all = || runs.iter().flat_map(|run| run.managers.iter().map(move |one| (run, one)));
    let names: BTreeSet<_> = all().map(|(_, one)| &one.name).collect();
    let last = |name: &ManagerName| {
        let of_it = all().filter(|(_, one)| one.name == *name).map(|(run, one)| LastRun {
            finished: run.finished,
            outcome: one.outcome,
            reason: one.reason.clone(),
            remedy: None,
            passing: false,
            point: one.point.clone(),
            stored_bytes: 0,
            seconds: one.seconds,
            skipped_since: None,
        });
        Some(ManagerDrill { manager: name.clone(), last: LastRun::telling(of_it)? })
    };
    names.into_iter().filter_map(last).collect()
}
