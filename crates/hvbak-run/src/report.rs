//! What is stored and how the last run went: the catalogue and the run records, per VM.
//!
//! It needs no engine, so it knows only VMs that have points or that a recorded run failed or
//! was stopped at. Points are told from their manifests; `verify` is what proves them.

use std::{collections::BTreeSet, sync::Arc};

use hvbak_repo::{
    Consistency, Level, Listing, ManagerName, Point, Repository, RunKind, RunOutcome, RunRecord,
    RunVm,
};
use hvbak_types::{DiskId, JobId, PointId, VmId};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::{error::Result, job::blocking};

/// One VM of the report.
#[derive(Debug, Clone, Serialize)]
pub struct VmReport {
    pub vm: VmId,
    pub name: String,
    /// Readable points.
    pub points: usize,
    /// Directories that should be points and cannot be read.
    pub damaged: usize,
    pub newest: Option<NewestPoint>,
    /// Bytes of the images of all points.
    pub stored_bytes: u64,
    /// The newest recorded backup that knows the VM.
    pub last_run: Option<LastRun>,
    /// The newest recorded `verify` that looked at a point of it.
    pub last_verify: Option<LastRun>,
    /// The newest recorded drill that rehearsed a point of it; its reason is what was seen.
    pub last_drill: Option<LastRun>,
    /// Whether the newest point is older than it may be, or there is none.
    pub too_old: bool,
}

/// A VM's newest point.
#[derive(Debug, Clone, Serialize)]
pub struct NewestPoint {
    pub point: PointId,
    pub age_seconds: i64,
    pub level: Level,
    pub consistency: Consistency,
    /// Points that its longest disk is made of.
    pub chain: usize,
    /// Bytes that the guest sees on its stored disks.
    pub virtual_size: u64,
    pub stored_bytes: u64,
    /// What its manifest warns of.
    pub warnings: usize,
}

/// What a recorded run did with a VM.
#[derive(Debug, Clone, Serialize)]
pub struct LastRun {
    pub finished: Timestamp,
    pub outcome: RunOutcome,
    pub reason: Option<String>,
    /// Which point was made, or the newest that was looked at.
    pub point: Option<PointId>,
}

/// What the last recorded drill saw of a manager's archive.
#[derive(Debug, Clone, Serialize)]
pub struct ManagerDrill {
    pub manager: ManagerName,
    #[serde(flatten)]
    pub last: LastRun,
}

/// The report.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// By name.
    pub vms: Vec<VmReport>,
    /// The last drill of each manager, by name.
    pub managers: Vec<ManagerDrill>,
    /// The newest recorded backup.
    pub run: Option<RunRecord>,
    /// Jobs that died and left something to clean up.
    pub dead: Vec<JobId>,
    /// Run records that cannot be read.
    pub damaged_records: usize,
}

/// Reads the repository as of `now`. A VM without a point younger than `max_age` is too old.
///
/// # Errors
/// That the repository cannot be read.
pub async fn report(
    repository: &Arc<Repository>,
    now: Timestamp,
    max_age: Option<SignedDuration>,
) -> Result<Report> {
    let repository = repository.clone();
    blocking("report", move || read(&repository, now, max_age)).await
}

/// The same on a thread that may block.
pub(crate) fn read(
    repository: &Repository,
    now: Timestamp,
    max_age: Option<SignedDuration>,
) -> hvbak_repo::Result<Report> {
    let records = repository.runs()?;
    let (mut backups, mut verifies, mut drills) = (Vec::new(), Vec::new(), Vec::new());
    for run in records.runs {
        match run.kind {
            RunKind::Backup => backups.push(run),
            RunKind::Verify => verifies.push(run),
            RunKind::Drill => drills.push(run),
        }
    }
    let mut report = Report { damaged_records: records.damaged.len(), ..Report::default() };
    let limit = max_age.map(|age| now.saturating_sub(age).unwrap_or(Timestamp::MIN));
    let all = repository.all_points()?;
    let mut ids: Vec<_> = all.points.iter().map(|point| point.vm()).collect();
    ids.extend(all.damaged.iter().map(|bad| bad.vm));
    let wanted = [RunOutcome::Failed, RunOutcome::Stopped];
    // Each VM by the newest run that knows it: the last run may have been for another one.
    let mut known = BTreeSet::new();
    for vm in backups.iter().flat_map(|run| &run.vms) {
        if known.insert(vm.id) && wanted.contains(&vm.outcome) {
            ids.push(vm.id);
        }
    }
    ids.sort();
    ids.dedup();
    for id in ids {
        report.vms.push(vm_report(id, &all, [&backups, &verifies, &drills], now, limit));
    }
    report.vms.sort_by(|a, b| (&a.name, a.vm).cmp(&(&b.name, b.vm)));
    let journals = repository.open_journals()?;
    report.dead = journals.iter().filter(|view| !view.alive).map(|view| view.job).collect();
    report.managers = manager_drills(&drills);
    report.run = backups.into_iter().next();
    Ok(report)
}

/// The newest run that knows a VM; runs are newest first.
fn last(runs: &[RunRecord], id: VmId) -> Option<(&RunRecord, &RunVm)> {
    runs.iter().find_map(|run| Some((run, run.vms.iter().find(|vm| vm.id == id)?)))
}

impl LastRun {
    fn of((run, vm): (&RunRecord, &RunVm)) -> Self {
        let (outcome, reason, point) = (vm.outcome, vm.reason.clone(), vm.point.clone());
        Self { finished: run.finished, outcome, reason, point }
    }
}

/// The newest drill of each manager; runs are newest first.
fn manager_drills(drills: &[RunRecord]) -> Vec<ManagerDrill> {
    let mut found: Vec<ManagerDrill> = Vec::new();
    for (run, one) in drills.iter().flat_map(|run| run.managers.iter().map(move |m| (run, m))) {
        if found.iter().all(|known| known.manager != one.name) {
            let (outcome, reason, point) = (one.outcome, one.reason.clone(), one.point.clone());
            let last = LastRun { finished: run.finished, outcome, reason, point };
            found.push(ManagerDrill { manager: one.name.clone(), last });
        }
    }
    found.sort_by(|a, b| a.manager.cmp(&b.manager));
    found
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

/// Points that a disk is made of. One that is missing is for `verify` to tell.
fn chain(points: &[&Point], top: &Point, disk: DiskId) -> usize {
    let parent = |point: &Point| point.manifest.disk(disk)?.record.parent.clone();
    let mut length = 1;
    let mut at = parent(top);
    // Parents are older (checked on reading), so this ends.
    while let Some(point) = at.and_then(|id| points.iter().find(|p| *p.id() == id)) {
        length += 1;
        at = parent(point);
    }
    length
}

fn vm_report(
    id: VmId,
    all: &Listing,
    [backups, verifies, drills]: [&[RunRecord]; 3],
    now: Timestamp,
    limit: Option<Timestamp>,
) -> VmReport {
    // Oldest first.
    let points: Vec<_> = all.points.iter().filter(|point| point.vm() == id).collect();
    let noted = last(backups, id);
    let newest = points.last().map(|point| {
        let m = &point.manifest;
        let chains = m.disks.iter().map(|disk| chain(&points, point, disk.record.id));
        NewestPoint {
            point: m.point.clone(),
            age_seconds: now.duration_since(m.started).as_secs(),
            level: m.level,
            consistency: m.consistency,
            chain: chains.max().unwrap_or(1),
            virtual_size: m.disks.iter().map(|disk| disk.record.virtual_size).sum(),
            stored_bytes: m.stored_bytes(),
            warnings: m.warnings.len(),
        }
    });
    let name = points.last().map(|point| point.manifest.vm.name.clone());
    let name = name.or_else(|| noted.map(|(_, vm)| vm.name.clone()));
    // A date in the future is a clock that was wrong, not a fresh point.
    let mut times = points.iter().rev().map(|point| point.manifest.started);
    let started = times.find(|started| *started <= now);
    VmReport {
        vm: id,
        name: name.unwrap_or_else(|| id.to_string()),
        points: points.len(),
        damaged: all.damaged.iter().filter(|bad| bad.vm == id).count(),
        newest,
        stored_bytes: points.iter().map(|point| point.manifest.stored_bytes()).sum(),
        last_run: noted.map(LastRun::of),
        last_verify: last(verifies, id).map(LastRun::of),
        last_drill: last(drills, id).map(LastRun::of),
        too_old: limit.is_some_and(|limit| started.is_none_or(|started| started < limit)),
    }
}
