//! Going on with a point that a transfer which was cut has left: what is noted for it, how it
//! is found again, and how its steps pass from the dead job's journal to the living one's.
//!
//! Invariant: the steps of a half-made point are open in the journal of whoever works on it
//! before they are settled in the one that they came from, so that at every moment `cleanup`
//! finds them, and never twice for long.

use std::time::Duration;

use hvbak_plan::{Left, VmPlan, Wish};
use hvbak_repo::{Manifest, Resumable, Staging};
use hvbak_types::{DiskId, PointId, SnapshotId, VmId, VolumeId};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Result, RunError},
    job::{Context, Job, blocking},
    journal::Step,
    snapshot::Taken,
};

/// What a run notes of a point once its snapshot is there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Noted {
    /// As far as it is known before the disks are read.
    pub manifest: Manifest,
    pub snapshot: SnapshotId,
    pub description: String,
    /// Of the requests that may have made the snapshot.
    pub correlations: Vec<String>,
    pub taken: jiff::Timestamp,
    pub wish: Wish,
    /// The point that deltas stand on.
    pub base: Option<PointId>,
    /// The disks that are read, and the volumes that hold them as of the snapshot.
    pub volumes: Vec<(DiskId, VolumeId)>,
}

impl Noted {
    /// The note about a snapshot that was just taken.
    pub fn of(plan: &VmPlan, manifest: &Manifest, taken: &Taken) -> Self {
        let volume = |id| Some((id, taken.disk(id)?.volume));
        Self {
            manifest: manifest.clone(),
            snapshot: taken.id,
            description: taken.description.clone(),
            correlations: taken.correlations.clone(),
            taken: jiff::Timestamp::now(),
            wish: plan.wish,
            base: plan.base.as_ref().map(|base| base.point.clone()),
            volumes: plan.chosen_disks().filter_map(|disk| volume(disk.id)).collect(),
        }
    }

    /// Stores it in the half-made point, whose documents are stored already.
    pub async fn store(&self, staging: &Staging) -> Result<()> {
        let (staging, value) = (staging.clone(), serde_json::to_value(self));
        let value = value.map_err(|e| RunError::Task { text: e.to_string() })?;
        blocking("note how to go on with the point", move || staging.make_resumable(value)).await
    }
}

/// The newest half-made point of the VM with a note that makes sense.
pub async fn find(context: &Context, vm: VmId) -> Result<Option<Left>> {
    Ok(newest(context, vm).await?.map(|(found, noted)| Left {
        point: found.point,
        snapshot: noted.snapshot,
        description: noted.description,
        taken: noted.taken,
        age: u64::try_from(jiff::Timestamp::now().duration_since(noted.taken).as_secs())
            .unwrap_or(0),
        wish: noted.wish,
        base: noted.base,
        disks: noted.volumes.iter().map(|(disk, _)| *disk).collect(),
        data_bytes: found.data_bytes,
    }))
}

/// The note of a half-made point.
pub async fn noted(context: &Context, vm: VmId, point: &PointId) -> Result<Noted> {
    let found = newest(context, vm).await?.filter(|(found, _)| found.point == *point);
    let gone = || RunError::Stale { what: "its note is gone".into() };
    found.map(|(_, noted)| noted).ok_or_else(gone)
}

async fn newest(context: &Context, vm: VmId) -> Result<Option<(Resumable, Noted)>> {
    let repository = context.repository.clone();
    let found = blocking("look for half-made points", move || repository.resumables(vm)).await;
    let found = match found {
        Ok(found) => found,
        // Another run may have published it just now; and junk of one VM stops no other.
        Err(cause) => {
            context.warn(Some(vm), format!("a half-made point: {}", crate::chain(&cause)));
            return Ok(None);
        }
    };
    // A note is data: only what this repository has made of this VM is gone on with.
    let own = |found: &Resumable, noted: &Noted| {
        noted.description == crate::snapshot::description(context, &found.point)
            && noted.manifest.repository == context.repository.id()
            && noted.manifest.vm.id == vm
            && noted.manifest.point == found.point
    };
    let readable = |found: Resumable| {
        let noted = serde_json::from_value::<Noted>(found.run.clone()).ok()?;
        own(&found, &noted).then_some((found, noted))
    };
    Ok(found.into_iter().rev().find_map(readable))
}

/// Whether so much of a point is stored that keeping it is of use.
pub async fn is_worth(context: &Context, vm: VmId, point: &PointId) -> bool {
    matches!(find(context, vm).await, Ok(Some(left)) if left.point == *point && left.data_bytes > 0)
}

/// Settles the steps of a point and its snapshot in the journals of dead jobs: they are this
/// job's now, or their effects are gone. A journal that cannot be taken over now keeps them;
/// `cleanup` then finds that there is nothing to undo.
pub async fn settle(job: &Job, vm: VmId, point: &PointId, description: &str) -> Result<()> {
    let repository = job.context.repository.clone();
    let views = blocking("read the journals", move || repository.open_journals()).await?;
    let ours = |step: &hvbak_repo::StepView| match serde_json::from_value::<Step>(step.step.clone())
    {
        Ok(Step::Partial { vm: of, point: made }) => of == vm && made == *point,
        Ok(
            Step::Snapshot { vm: of, description: made, .. }
            | Step::Retire { vm: of, description: made, .. },
        ) => of == vm && made == description,
        _ => false,
    };
    for view in views.iter().filter(|view| !view.alive) {
        let steps: Vec<_> = view.unsettled().filter(|s| ours(s)).map(|s| s.id).collect();
        if steps.is_empty() {
            continue;
        }
        let whole = steps.len() == view.unsettled().count() && view.damage.is_none();
        let (dead, me) = (view.job, job.context.job);
        // Another VM of this run may be settling its steps in the same journal.
        for _ in 0..50 {
            let (repository, steps) = (job.context.repository.clone(), steps.clone());
            let settled = blocking("take the journal over", move || {
                let (journal, _) = repository.adopt_journal(dead, me)?;
                steps.iter().try_for_each(|step| journal.undone(*step))?;
                if whole { journal.close() } else { Ok(()) }
            });
            match settled.await {
                Err(RunError::Repository { cause: hvbak_repo::Error::Locked { .. }, .. }) => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                other => {
                    other?;
                    break;
                }
            }
        }
    }
    Ok(())
}
