//! The VMs of the report: their newest points, what proved them, and the last runs.

use std::collections::{BTreeMap, BTreeSet};

use hvbak_repo::{Consistency, Level, Listing, Point, Repository, RunOutcome, RunRecord, RunVm};
use hvbak_types::{DiskId, PointId, VmId};
use jiff::Timestamp;
use serde::Serialize;

use super::{LastRun, Runs, Target, Targets, too_old};

/// One VM of the report.
#[derive(Debug, Clone, Serialize)]
pub struct VmReport {
    pub vm: VmId,
    pub name: String,
    /// A template: stored once, so no point of it is too old.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub template: bool,
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
    /// The newest recorded drill that says something of a point of it; its reason is what was
    /// seen.
    pub last_drill: Option<LastRun>,
    /// The newest point that was found whole and still stands.
    pub verified: Option<Verified>,
    /// How many seconds old the newest point may be.
    pub target_seconds: Option<i64>,
    /// How many seconds old the newest verified point may be.
    pub verified_target_seconds: Option<i64>,
    /// Whether the newest point is older than it may be, or there is none.
    pub too_old: bool,
    /// The same of the newest verified point.
    pub verified_too_old: bool,
    /// Points in which the newest look at them has found damage, oldest first.
    pub found_damaged: Vec<PointId>,
}

/// A point that a `verify` or a drill has found whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    pub point: PointId,
    /// When the point was made.
    pub started: Timestamp,
    /// Age of the point, not of the look at it.
    pub age_seconds: i64,
    /// When it was looked at.
    pub at: Timestamp,
}

/// A VM's newest point.
#[derive(Debug, Clone, Serialize)]
pub struct NewestPoint {
    pub point: PointId,
    pub started: Timestamp,
    pub age_seconds: i64,
    pub level: Level,
    /// The policy that asked for it.
    pub policy: Option<String>,
    pub consistency: Consistency,
    /// Points that its longest disk is made of.
    pub chain: usize,
    /// Bytes that the guest sees on its stored disks.
    pub virtual_size: u64,
    pub stored_bytes: u64,
    /// What its manifest warns of, such as disks that could not be stored.
    pub warnings: Vec<String>,
}

/// All VMs, by name.
pub(super) fn read(
    repository: &Repository,
    runs: &Runs,
    now: Timestamp,
    targets: &Targets,
) -> hvbak_repo::Result<Vec<VmReport>> {
    let all = repository.all_points()?;
    let mut ids: Vec<_> = all.points.iter().map(|point| point.vm()).collect();
    ids.extend(all.damaged.iter().map(|bad| bad.vm));
    // One that was left out for good, such as the engine's own VM, is nobody's worry.
    let expected = |vm: &RunVm| match vm.outcome {
        RunOutcome::Failed | RunOutcome::Stopped => true,
        RunOutcome::Skipped => vm.passing,
        RunOutcome::Done => false,
    };
    // Each VM by the newest run that knows it: the last run may have been for another one.
    let mut known = BTreeSet::new();
    for vm in runs.backups.iter().flat_map(|run| &run.vms) {
        if known.insert(vm.id) && expected(vm) {
            ids.push(vm.id);
        }
    }
    ids.sort();
    ids.dedup();
    let mut vms: Vec<_> =
        ids.into_iter().map(|id| vm_report(id, &all, runs, now, targets)).collect();
    vms.sort_by(|a, b| (&a.name, a.vm).cmp(&(&b.name, b.vm)));
    Ok(vms)
}

/// The newest run that knows a VM; runs are newest first.
fn last(runs: &[RunRecord], id: VmId) -> Option<(&RunRecord, &RunVm)> {
    all_of(runs, id).next()
}

/// All that know it.
fn all_of(runs: &[RunRecord], id: VmId) -> impl Iterator<Item = (&RunRecord, &RunVm)> {
    runs.iter().filter_map(move |run| Some((run, run.vms.iter().find(|vm| vm.id == id)?)))
}

/// What the newest recorded look at each point has found, and when: by `verify`, or by a drill,
/// which reads the whole chain of its point.
fn looks<'a>(
    runs: &'a Runs,
    id: VmId,
    points: &'a [&'a Point],
) -> BTreeMap<&'a PointId, (Timestamp, bool)> {
    let mut looks: BTreeMap<&PointId, (Timestamp, bool)> = BTreeMap::new();
    let mut look = |point: &'a PointId, at: Timestamp, whole: bool| {
        let known = looks.entry(point).or_insert((at, whole));
        // Of one run damage counts: a point may be named by several of its disks.
        if at > known.0 || (at == known.0 && !whole) {
            *known = (at, whole);
        }
    };
    let of = |runs: &'a [RunRecord]| {
        runs.iter()
            .flat_map(|run| run.vms.iter().map(move |vm| (run.finished, vm)))
            .filter(move |(_, vm)| vm.id == id)
    };
    for (at, vm) in of(&runs.verifies) {
        vm.whole.iter().for_each(|point| look(point, at, true));
        vm.damaged.iter().for_each(|point| look(point, at, false));
        // Records of an earlier hvbak name the newest point alone.
        if vm.whole.is_empty() && vm.damaged.is_empty() {
            vm.point.iter().for_each(|point| look(point, at, vm.outcome == RunOutcome::Done));
        }
    }
    for (at, vm) in of(&runs.drills).filter(|(_, vm)| vm.outcome == RunOutcome::Done) {
        let top = points.iter().find(|point| Some(point.id()) == vm.point.as_ref());
        top.into_iter().flat_map(|top| members(points, top)).for_each(|p| look(p.id(), at, true));
    }
    looks
}

/// A point and all that it stands on.
fn members<'a>(points: &[&'a Point], top: &'a Point) -> Vec<&'a Point> {
    let mut found = vec![top];
    let mut at = 0;
    while let Some(point) = found.get(at).copied() {
        let parents = point.manifest.disks.iter().filter_map(|disk| disk.record.parent.as_ref());
        for id in parents {
            if let Some(parent) = points.iter().find(|point| point.id() == id)
                && !found.iter().any(|known| known.id() == id)
            {
                found.push(parent);
            }
        }
        at += 1;
    }
    found
}

/// The newest of `points` (oldest first) that holds a disk and was found whole, with all that it
/// stands on; each by the newest look at it.
fn verified(
    looks: &BTreeMap<&PointId, (Timestamp, bool)>,
    points: &[&Point],
    now: Timestamp,
) -> Option<Verified> {
    points.iter().rev().filter(|point| !point.manifest.disks.is_empty()).find_map(|point| {
        let seen = members(points, point)
            .into_iter()
            .map(|member| looks.get(member.id()).filter(|(_, whole)| *whole).map(|(at, _)| *at));
        // As old as the oldest of the looks that it takes.
        let at = seen.collect::<Option<Vec<_>>>()?.into_iter().min()?;
        Some(Verified {
            point: point.id().clone(),
            started: point.manifest.started,
            age_seconds: now.duration_since(point.manifest.started).as_secs(),
            at,
        })
    })
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

fn vm_report(id: VmId, all: &Listing, runs: &Runs, now: Timestamp, targets: &Targets) -> VmReport {
    // Oldest first.
    let points: Vec<_> = all.points.iter().filter(|point| point.vm() == id).collect();
    let noted = last(&runs.backups, id);
    let newest = points.last().map(|point| {
        let m = &point.manifest;
        let chains = m.disks.iter().map(|disk| chain(&points, point, disk.record.id));
        NewestPoint {
            point: m.point.clone(),
            started: m.started,
            age_seconds: now.duration_since(m.started).as_secs(),
            level: m.level,
            policy: m.policy.clone(),
            consistency: m.consistency,
            chain: chains.max().unwrap_or(1),
            virtual_size: m.disks.iter().map(|disk| disk.record.virtual_size).sum(),
            stored_bytes: m.stored_bytes(),
            warnings: m.warnings.clone(),
        }
    });
    let name = points.last().map(|point| point.manifest.vm.name.clone());
    let name = name.or_else(|| noted.map(|(_, vm)| vm.name.clone()));
    // A date in the future is a clock that was wrong, not a fresh point.
    let past = |point: &&&Point| point.manifest.started <= now;
    let started = points.iter().rev().find(past).map(|point| point.manifest.started);
    let mut target = targets.of(newest.as_ref().and_then(|newest| newest.policy.as_deref()));
    let template = points.last().is_some_and(|point| point.manifest.template.is_some());
    // It is to be looked at once, whenever that was.
    let unproven = template && target.verified.is_some();
    if template {
        target = Target::default();
    }
    let looks = looks(runs, id, &points);
    let verified = verified(&looks, &points, now);
    let standing = |point: &&Point| looks.get(point.id()).is_some_and(|(_, whole)| !whole);
    let found_damaged = points.iter().filter(|p| standing(p)).map(|p| p.id().clone()).collect();
    let proven = verified.as_ref().and_then(|v| points.iter().find(|p| *p.id() == v.point));
    let proven = proven.filter(past).map(|point| point.manifest.started);
    VmReport {
        vm: id,
        name: name.unwrap_or_else(|| id.to_string()),
        template,
        points: points.len(),
        damaged: all.damaged.iter().filter(|bad| bad.vm == id).count(),
        newest,
        stored_bytes: points.iter().map(|point| point.manifest.stored_bytes()).sum(),
        last_run: noted.map(LastRun::of),
        last_verify: last(&runs.verifies, id).map(LastRun::of),
        last_drill: LastRun::telling(all_of(&runs.drills, id).map(LastRun::of)),
        target_seconds: target.point.map(|age| age.as_secs()),
        verified_target_seconds: target.verified.map(|age| age.as_secs()),
        too_old: too_old(started, now, target.point),
        verified_too_old: too_old(proven, now, target.verified) || (unproven && proven.is_none()),
        found_damaged,
        verified,
    }
}
