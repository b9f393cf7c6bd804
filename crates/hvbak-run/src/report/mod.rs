//! What is stored, how old it is against its target, and how the last run went: the catalogue
//! and the run records, per VM and manager.
//!
//! It needs no engine, so it knows only VMs that have points, that a recorded run failed or was
//! stopped at, or that a policy's run found in no policy. Points are told from their manifests;
//! `verify` and `drill` are what prove them. Invariant: what was not looked at is never told as
//! good.

mod managers;
mod vms;

use std::{collections::BTreeMap, sync::Arc};

use hvbak_repo::{Repository, RunKind, RunOutcome, RunRecord, RunVm, Unassigned};
use hvbak_types::{JobId, PointId};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

pub use self::{
    managers::{ManagerDrill, ManagerReport, NewestArchive},
    vms::{NewestPoint, Verified, VmReport},
};
use crate::{error::Result, job::blocking};

/// How old points may be; without a limit they may be of any age.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Target {
    /// Age of the newest point.
    pub point: Option<SignedDuration>,
    /// Age of the newest point that a `verify` or a drill has found whole.
    pub verified: Option<SignedDuration>,
}

/// The targets of a site.
#[derive(Debug, Clone, Default)]
pub struct Targets {
    /// Of VMs whose newest point no policy has asked for.
    pub other: Target,
    /// Of VMs whose newest point a policy has asked for, by its name.
    pub policies: BTreeMap<String, Target>,
    /// Age of a manager's newest archive.
    pub manager: Option<SignedDuration>,
}

impl Targets {
    fn of(&self, policy: Option<&str>) -> Target {
        policy.and_then(|name| self.policies.get(name)).copied().unwrap_or(self.other)
    }
}

/// What a recorded run did with a VM.
#[derive(Debug, Clone, Serialize)]
pub struct LastRun {
    pub finished: Timestamp,
    pub outcome: RunOutcome,
    pub reason: Option<String>,
    /// What can be done about a failure.
    pub remedy: Option<String>,
    /// Of one that was left out: by something that passes.
    pub passing: bool,
    /// Which point was made, or the newest that was looked at.
    pub point: Option<PointId>,
    /// Bytes of the images that it stored.
    pub stored_bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// Of drills: the newest one since, which was left out or stopped and says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped_since: Option<SkippedDrill>,
}

/// A drill that says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SkippedDrill {
    pub finished: Timestamp,
    pub reason: Option<String>,
}

/// The report.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// By name.
    pub vms: Vec<VmReport>,
    /// Each manager that has an archive, by name.
    pub managers: Vec<ManagerReport>,
    /// A manager's archive is demanded, and there is none of any.
    pub no_manager: bool,
    /// Ages are demanded of something.
    pub demanding: bool,
    /// The last drill of each manager, by name.
    pub manager_drills: Vec<ManagerDrill>,
    /// VMs in no policy, and when that was seen; `None` while no policy's run is recorded.
    pub unassigned: Option<(Timestamp, Vec<Unassigned>)>,
    /// The newest recorded backup.
    pub run: Option<RunRecord>,
    /// Jobs that died and left something to clean up.
    pub dead: Vec<JobId>,
    /// Run records that cannot be read.
    pub damaged_records: usize,
}

/// Reads the repository as of `now`.
///
/// # Errors
/// That the repository cannot be read.
pub async fn report(
    repository: &Arc<Repository>,
    now: Timestamp,
    targets: Targets,
) -> Result<Report> {
    let repository = repository.clone();
    blocking("report", move || read(&repository, now, &targets)).await
}

/// The same on a thread that may block.
pub(crate) fn read(
    repository: &Repository,
    now: Timestamp,
    targets: &Targets,
) -> hvbak_repo::Result<Report> {
    let records = repository.runs()?;
    let mut runs = Runs::default();
    for run in records.runs {
        match run.kind {
            RunKind::Backup => runs.backups.push(run),
            RunKind::Verify => runs.verifies.push(run),
            RunKind::Drill => runs.drills.push(run),
        }
    }
    let journals = repository.open_journals()?;
    let looked = runs.backups.iter().find_map(|run| Some((run.started, run.unassigned.clone()?)));
    let managers = managers::read(repository, now, targets.manager)?;
    Ok(Report {
        no_manager: targets.manager.is_some() && managers.is_empty(),
        demanding: targets.other != Target::default() || !targets.policies.is_empty(),
        vms: vms::read(repository, &runs, now, targets)?,
        managers,
        manager_drills: managers::drills(&runs.drills),
        unassigned: looked,
        dead: journals.iter().filter(|view| !view.alive).map(|view| view.job).collect(),
        damaged_records: records.damaged.len(),
        run: runs.backups.into_iter().next(),
    })
}

/// The records, newest first.
#[derive(Debug, Default)]
struct Runs {
    backups: Vec<RunRecord>,
    verifies: Vec<RunRecord>,
    drills: Vec<RunRecord>,
}

impl LastRun {
    fn of((run, vm): (&RunRecord, &RunVm)) -> Self {
        Self {
            finished: run.finished,
            outcome: vm.outcome,
            reason: vm.reason.clone(),
            remedy: vm.remedy.clone(),
            passing: vm.passing,
            point: vm.point.clone(),
            stored_bytes: vm.stored_bytes,
            seconds: vm.seconds,
            skipped_since: None,
        }
    }

    /// Of drills of one thing, newest first: the newest that says something, beside the newest
    /// that does not.
    fn telling(drills: impl Iterator<Item = Self>) -> Option<Self> {
        let mut silent: Option<Self> = None;
        for drill in drills {
            if matches!(drill.outcome, RunOutcome::Done | RunOutcome::Failed) {
                let skipped_since =
                    silent.map(|s| SkippedDrill { finished: s.finished, reason: s.reason });
                return Some(Self { skipped_since, ..drill });
            }
            silent.get_or_insert(drill);
        }
        silent
    }
}

/// Whether something of that moment, if it is there at all, is older than it may be.
fn too_old(at: Option<Timestamp>, now: Timestamp, limit: Option<SignedDuration>) -> bool {
    limit.is_some_and(|limit| {
        let oldest = now.saturating_sub(limit).unwrap_or(Timestamp::MIN);
        at.is_none_or(|at| at < oldest)
    })
}

/// Stores that a `verify` has come to its end: what it found of each VM.
///
/// # Errors
/// That it cannot be written, e.g. in a repository that is mounted read-only.
pub async fn note_verify(
    repository: &Arc<Repository>,
    started: Timestamp,
    vms: Vec<RunVm>,
) -> Result<()> {
    let finished = Timestamp::now();
    let record = RunRecord::begin(JobId::random(), RunKind::Verify);
    let record = RunRecord { started, finished, vms, ..record };
    let repository = repository.clone();
    blocking("record the run", move || repository.record_run(&record)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_that_was_skipped_hides_none_that_says_something() {
        use RunOutcome::{Done, Failed, Skipped, Stopped};
        let drill = |(at, outcome): (i64, RunOutcome)| LastRun {
            finished: Timestamp::from_second(at).unwrap(),
            outcome,
            reason: Some(format!("reason {at}")),
            remedy: None,
            passing: false,
            point: None,
            stored_bytes: 0,
            seconds: 0.0,
            skipped_since: None,
        };
        let told = |drills: &[(i64, RunOutcome)]| {
            let last = LastRun::telling(drills.iter().copied().map(drill))?;
            let since = last.skipped_since.map(|s| (s.finished.as_second(), s.reason.unwrap()));
            Some((last.finished.as_second(), last.outcome, since))
        };
        let since = |at: i64| Some((at, format!("reason {at}")));
        assert_eq!(told(&[]), None);
        assert_eq!(told(&[(9, Done), (8, Failed)]), Some((9, Done, None)));
        assert_eq!(told(&[(9, Skipped), (8, Stopped), (7, Done)]), Some((7, Done, since(9))));
        assert_eq!(told(&[(9, Stopped), (8, Failed), (7, Done)]), Some((8, Failed, since(9))));
        assert_eq!(told(&[(9, Skipped), (8, Skipped)]), Some((9, Skipped, None)));
    }
}
