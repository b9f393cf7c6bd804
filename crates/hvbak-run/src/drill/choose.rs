//! Which points are rehearsed. Pure.
//!
//! A small number each night walks through all VMs: those that were never rehearsed first,
//! then by how long ago it was.

use hvbak_repo::{Point, RunKind, RunRecord};
use hvbak_types::VmId;
use jiff::Timestamp;

/// When a VM was last in a drill that came to its end with it.
pub fn last_drill(runs: &[RunRecord], vm: VmId) -> Option<Timestamp> {
    let drills = runs.iter().filter(|run| run.kind == RunKind::Drill);
    let with = drills.filter(|run| {
        let ended = |one: &&hvbak_repo::RunVm| {
            one.id == vm && one.outcome != hvbak_repo::RunOutcome::Stopped
        };
        run.vms.iter().find(ended).is_some()
    });
    with.map(|run| run.finished).max()
}

/// At most `count` of the newest points of VMs, in the order of their turn.
pub fn choose(mut newest: Vec<Point>, runs: &[RunRecord], count: Option<usize>) -> Vec<Point> {
    newest.sort_by_cached_key(|point| {
        (last_drill(runs, point.vm()), point.manifest.vm.name.clone(), point.vm())
    });
    newest.truncate(count.unwrap_or(usize::MAX));
    newest
}

#[cfg(test)]
mod tests {
    use hvbak_repo::{Manifest, ManifestVm, RunOutcome, RunVm};
    use hvbak_types::{JobId, PointId, RepositoryId};

    use super::*;

    fn point(id: VmId, name: &str) -> Point {
        let (now, vm) = (
            Timestamp::UNIX_EPOCH,
            ManifestVm { id, name: name.into(), cluster: None, data_center: None, status: None },
        );
        let manifest =
            Manifest::new(RepositoryId::random(), PointId::at(now), vm, JobId::random(), now);
        Point { path: "/".into(), manifest }
    }

    fn drill(second: i64, outcome: RunOutcome, vms: &[VmId]) -> RunRecord {
        let one = |id: &VmId| RunVm::new(*id, "", outcome);
        let at = Timestamp::from_second(second).unwrap();
        let mut run = RunRecord::begin(JobId::random(), RunKind::Drill);
        (run.started, run.finished, run.vms) = (at, at, vms.iter().map(one).collect());
        run
    }

    #[test]
    fn nights_walk_through_all_vms() {
        let ids = [VmId::random(), VmId::random(), VmId::random()];
        let all = || {
            let names = ["c", "b", "a"];
            ids.iter().zip(names).map(|(id, name)| point(*id, name)).collect::<Vec<_>>()
        };
        let mut runs = Vec::new();
        let mut order = Vec::new();
        for night in 1..=6 {
            let turn = choose(all(), &runs, Some(1));
            order.push(turn[0].manifest.vm.name.clone());
            runs.push(drill(night, RunOutcome::Done, &[turn[0].vm()]));
        }
        assert_eq!(order.concat(), "abcabc");
        // One that was stopped did not have its turn; a backup is no drill.
        runs.push(drill(7, RunOutcome::Stopped, &[ids[2]]));
        runs.push(RunRecord { kind: RunKind::Backup, ..drill(8, RunOutcome::Done, &[ids[2]]) });
        assert_eq!(choose(all(), &runs, Some(1))[0].vm(), ids[2]);
        assert_eq!(choose(all(), &runs, None).len(), 3);
    }
}
