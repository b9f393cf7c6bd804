//! Which stored point an incremental stands on, and our snapshots on the engine.
//!
//! Between runs a VM carries one snapshot of ours: that of the newest point that says
//! `kept`. Invariants: a snapshot is ours only by the description that names this
//! repository; never more than two of ours exist, so what is too many is deleted before
//! another is made; a snapshot that a point still needs is never deleted by `cleanup`.

use hvbak_plan::{Base, BaseDisk, VmPlan};
use hvbak_repo::{Level, Point, Repository};
use hvbak_types::{DiskId, PointId, RepositoryId, Snapshot, SnapshotId, VmId};

use crate::{
    error::{Result, RunError},
    job::{Context, Job, blocking},
    journal::Step,
    snapshot,
};

/// How the descriptions of this repository's snapshots begin.
pub fn own_prefix(repository: RepositoryId) -> String {
    format!("hvbak:{repository}:")
}

/// The newest point of the VM that kept its snapshot, and how many points were made after the
/// newest full one.
pub async fn find(context: &Context, vm: VmId) -> Result<(Option<Base>, usize)> {
    let repository = context.repository.clone();
    blocking("look for the last point", move || {
        let listing = repository.points(vm)?;
        let base = listing.base(jiff::Timestamp::now());
        let newer = listing.points.iter().rev();
        let deltas = newer.take_while(|point| point.manifest.level != Level::Full).count();
        Ok((base.and_then(|point| describe(&repository, point)), deltas))
    })
    .await
}

fn describe(repository: &Repository, point: &Point) -> Option<Base> {
    let snapshot = point.manifest.snapshot.clone()?;
    let disks = point.manifest.disks.iter().map(|disk| BaseDisk {
        id: disk.record.id,
        virtual_size: disk.record.virtual_size,
        full: disk.level == Level::Full,
        damage: damage(repository, point, disk.record.id),
    });
    Some(Base {
        point: point.id().clone(),
        snapshot: snapshot.id,
        description: snapshot.description,
        disks: disks.collect(),
    })
}

/// What a look at the stored chain shows at once: a missing parent or file, another
/// length. Flipped bits are found by `verify`, not here: a plan looks at every VM.
pub(crate) fn damage(repository: &Repository, point: &Point, disk: DiskId) -> Option<String> {
    let chain = match repository.disk_chain(point, disk) {
        Ok(chain) => chain,
        Err(cause) => return Some(crate::chain(&cause)),
    };
    chain.iter().find_map(|layer| {
        let record = &layer.manifest.disk(disk)?.record;
        let length = |name: &str| std::fs::metadata(layer.path.join(name)).map_or(0, |m| m.len());
        let (found, wanted) = (length(&record.file), record.stored_bytes);
        if found == wanted && length(&record.digests) > 0 {
            return None;
        }
        let file = layer.path.join(&record.file);
        Some(format!("{} has {found} bytes and had {wanted}, or has no digests", file.display()))
    })
}

/// Deletes snapshots of ours that no run needs any more: what failed runs and failed
/// deletions have left. Called under the VM's lock, before another snapshot is made.
/// `spared` is the snapshot of a half-made point that is gone on with.
///
/// # Errors
/// One of them cannot be deleted: with another there would be too many.
pub async fn sweep(
    job: &Job,
    plan: &VmPlan,
    snapshots: &[Snapshot],
    spared: Option<SnapshotId>,
) -> Result<()> {
    let context = &job.context;
    let prefix = own_prefix(context.repository.id());
    let base = plan.base.as_ref().map(|b| b.snapshot);
    let stale = snapshots.iter().filter(|s| s.description.starts_with(&prefix));
    for old in stale.filter(|s| Some(s.id) != base && Some(s.id) != spared) {
        let text = format!("deleting snapshot `{}` of an earlier run", old.description);
        context.phase(Some(plan.id), text);
        retire(job, plan, &old.description).await?;
    }
    Ok(())
}

/// Deletes the snapshot of an older point; the journal keeps it until it is gone.
pub async fn retire(job: &Job, plan: &VmPlan, description: &str) -> Result<()> {
    let (vm, vm_name) = (plan.id, plan.name.clone());
    let step = Step::Retire { vm, vm_name, description: description.to_owned() };
    let step = job.intent(step).await?;
    snapshot::remove(&job.context, plan.id, &plan.name, description).await?;
    job.undone(&step).await
}

/// Whether this is the snapshot that the next delta stands on.
pub async fn is_base(context: &Context, vm: VmId, description: &str) -> Result<bool> {
    Ok(find(context, vm).await?.0.is_some_and(|base| base.description == description))
}

/// Whether a published point wants this snapshot to stay.
pub async fn is_kept(context: &Context, vm: VmId, description: &str) -> Result<bool> {
    let prefix = own_prefix(context.repository.id());
    let Some(point) = description.strip_prefix(&prefix).and_then(|p| p.parse::<PointId>().ok())
    else {
        return Ok(false);
    };
    let repository = context.repository.clone();
    let kept = blocking("look for the point", move || {
        Ok(repository.point(vm, &point)?.manifest.snapshot.is_some_and(|s| s.kept))
    });
    match kept.await {
        Ok(kept) => Ok(kept),
        Err(RunError::Repository { cause: hvbak_repo::Error::NoPoint { .. }, .. }) => Ok(false),
        Err(other) => Err(other),
    }
}
