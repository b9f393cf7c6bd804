//! One VM's backup: plan again under its lock, snapshot, read, compare, publish, settle.
//!
//! Invariant: whatever happens, the guest is thawed, no more than one snapshot of ours
//! stays, the worker is removed and the half-made point discarded, or the journal says
//! what is left.

use std::sync::Arc;

use hvbak_plan::{DiskAction, VmAction, VmPlan, Wish, plan_again};
use hvbak_repo::{
    Consistency, Level, Manifest, ManifestDisk, ManifestSnapshot, ManifestVm, SkippedDisk, Staging,
    VmLock,
};
use hvbak_types::{DataCenterId, Inventory, PointId, VmStatus};

use crate::{
    access::Access,
    backup::Wishes,
    base,
    documents::{self, Documents},
    error::{self, Result, RunError},
    event::Event,
    gather, hosts,
    job::{Context, Job, blocking},
    journal::Step,
    pump::Rate,
    read_disk::{DiskSource, read_disk},
    snapshot::{self, Taken},
};

/// Backs one VM up; gives the published point's manifest.
pub(crate) async fn backup_vm(
    job: &Job,
    inventory: &Inventory,
    plan: &VmPlan,
    wishes: &Wishes,
    rate: &Arc<Rate>,
) -> Result<Manifest> {
    let context = &job.context;
    context.check_cancel()?;
    context.events.event(&Event::VmStarted {
        vm: plan.id,
        name: plan.name.clone(),
        expected_bytes: plan.expected_bytes,
    });
    for text in &plan.warnings {
        context.warn(Some(plan.id), format!("{}: {text}", plan.name));
    }
    check_space(context, plan).await?;
    let (repository, vm, id) = (context.repository.clone(), plan.id, context.job);
    let lock = blocking("lock the VM", move || {
        let lock = repository.lock_vm(vm, id)?;
        repository.sweep_partials(&lock)?;
        Ok(lock)
    })
    .await?;
    let plan = &look_again(job, inventory, plan, wishes).await?;
    let started = jiff::Timestamp::now();
    let point = context.repository.new_point_id(plan.id, started);
    let partial = job.intent(Step::Partial { vm: plan.id, point: point.clone() }).await?;
    let manifest = Manifest::new(
        context.repository.id(),
        point.clone(),
        ManifestVm {
            id: plan.id,
            name: plan.name.clone(),
            cluster: None,
            data_center: None,
            status: None,
        },
        context.job,
        started,
    );
    let (staging, lock) = open_staging(context, lock, &point).await?;
    let result = fill(job, inventory, plan, rate, manifest, staging).await;
    let settled = match result {
        Ok((staging, manifest, taken)) => {
            context.phase(Some(plan.id), "publishing the point");
            let published = blocking("publish the point", move || staging.publish(manifest)).await;
            settle_snapshots(job, plan, taken, published.is_ok()).await;
            published.map(|p| p.manifest)
        }
        Err(cause) => Err(cause),
    };
    if settled.is_err() {
        let (repository, point) = (context.repository.clone(), point.clone());
        blocking("discard the half-made point", move || repository.remove_partial(&lock, &point))
            .await?;
    }
    job.undone(&partial).await?;
    settled
}

/// The VM is planned once more: since the run began hours may have passed, disks may have
/// come, and only now nobody else can add a point. What earlier runs have left on it goes.
async fn look_again(
    job: &Job,
    inventory: &Inventory,
    plan: &VmPlan,
    wishes: &Wishes,
) -> Result<VmPlan> {
    let context = &job.context;
    let facts = gather::vm_facts(context, &[plan.id]).await?;
    let Some(facts) = facts.first() else {
        return Err(RunError::NotNow { why: "the engine does not know it any more".into() });
    };
    let fresh = plan_again(&wishes.input(inventory), facts, plan);
    if let VmAction::Skip { skip } = &fresh.action {
        return Err(RunError::NotNow { why: skip.to_string() });
    }
    base::sweep(job, &fresh, &facts.snapshots).await?;
    Ok(fresh)
}

/// Once the fate of the point is known: one snapshot of ours stays, the one that the next
/// delta stands on. What cannot be deleted stays in the journal, and the next run tries
/// again before it makes another.
async fn settle_snapshots(job: &Job, plan: &VmPlan, taken: Option<Taken>, published: bool) {
    let context = &job.context;
    let Some(taken) = taken else { return };
    let result = async {
        if !published {
            return snapshot::delete(job, plan, &taken).await;
        }
        snapshot::keep(job, &taken).await?;
        if let Some(base) = &plan.base {
            context.phase(Some(plan.id), "deleting the snapshot of the point before");
            base::retire(job, plan, &base.description).await?;
            snapshot::prove_there(context, plan, &taken).await?;
        }
        Ok(())
    };
    if let Err(cause) = result.await {
        context.warn(Some(plan.id), crate::chain(&cause));
    }
}

/// Half of the upper bound must fit: stored data is compressed, and by how much is not
/// known before. Less than the whole bound is worth a warning.
async fn check_space(context: &Context, plan: &VmPlan) -> Result<()> {
    let (repository, bytes) = (context.repository.clone(), plan.expected_bytes);
    let reserve = context.settings.reserve;
    let free = blocking("check the free space", move || {
        repository.ensure_space(bytes / 2, reserve)?;
        repository.free_bytes()
    })
    .await?;
    if free < bytes.saturating_add(reserve) {
        context.warn(
            Some(plan.id),
            format!(
                "{} may need up to {bytes} bytes and the repository has {free} free",
                plan.name
            ),
        );
    }
    Ok(())
}

async fn open_staging(
    context: &Context,
    lock: VmLock,
    point: &PointId,
) -> Result<(Staging, VmLock)> {
    let (repository, point) = (context.repository.clone(), point.clone());
    blocking("begin the point", move || Ok((repository.stage(&lock, &point)?, lock))).await
}

/// Everything between the empty and the complete staging directory. The worker is gone
/// when this returns, and so is the snapshot unless the next delta is to stand on it.
async fn fill(
    job: &Job,
    inventory: &Inventory,
    plan: &VmPlan,
    rate: &Arc<Rate>,
    mut manifest: Manifest,
    staging: Staging,
) -> Result<(Staging, Manifest, Option<Taken>)> {
    let context = &job.context;
    context.phase(Some(plan.id), "reading the VM's configuration");
    let docs = documents::fetch(context, inventory, plan.id).await?;
    manifest.vm.cluster = docs.cluster.clone();
    manifest.vm.data_center = docs.data_center.clone();
    manifest.vm.status = Some(docs.vm.status.to_string());
    manifest.engine_version = Some(context.engine.version().full.clone());
    manifest.warnings = plan.warnings.clone();
    for disk in &plan.disks {
        if let DiskAction::Skip { skip } = &disk.action {
            manifest.skipped.push(SkippedDisk {
                id: disk.id,
                alias: disk.alias.clone(),
                reason: skip.to_string(),
            });
        }
    }
    if plan.chosen_disks().next().is_none() {
        manifest.consistency = Consistency::Offline;
        let staging = store_documents(staging, docs).await?;
        return Ok((staging, manifest, None));
    }
    // A host that cannot be reached is noticed before the guest is touched.
    let (access, center) = connect(job, inventory, plan).await?;
    let running = docs.vm.status != VmStatus::Down;
    let taken = match snapshot::take(job, plan, &manifest.point, running).await {
        Ok(taken) => taken,
        Err(cause) => {
            close(job, plan, access).await;
            return Err(cause);
        }
    };
    manifest.consistency = taken.consistency;
    // Started in between: its disks were written while the snapshot was made. Who cannot be
    // asked may have been.
    if !running && is_up(context, plan).await.unwrap_or(true) {
        manifest.consistency = Consistency::Crash;
    }
    context.phase(Some(plan.id), "opening the disks");
    let reading = Reading { access: &access, center, taken: &taken, docs: &docs, rate };
    let result = read_all(job, plan, &reading, staging).await;
    close(job, plan, access).await;
    let (staging, disks) = match result {
        Ok(read) => read,
        Err(cause) => {
            if let Err(undo) = snapshot::delete(job, plan, &taken).await {
                context.warn(Some(plan.id), crate::chain(&undo));
            }
            return Err(cause);
        }
    };
    let stands_on_base = disks.iter().any(|d| d.record.parent.is_some());
    let differential = stands_on_base && plan.wish == Wish::Differential;
    let kept = context.settings.keep_snapshot && !differential;
    manifest.snapshot =
        Some(ManifestSnapshot { id: taken.id, description: taken.description.clone(), kept });
    manifest.parent = disks.iter().find_map(|d| d.record.parent.clone());
    manifest.level = match stands_on_base {
        false => Level::Full,
        true if differential => Level::Differential,
        true => Level::Incremental,
    };
    manifest.disks = disks;
    let stored = store_documents(staging, docs).await;
    let taken = if kept && stored.is_ok() {
        Some(taken)
    } else {
        if let Err(cause) = snapshot::delete(job, plan, &taken).await {
            // The data is whole; the snapshot stays in the journal for `cleanup`.
            context.warn(Some(plan.id), crate::chain(&cause));
            let text = format!("the snapshot was not deleted: {}", crate::chain(&cause));
            manifest.warnings.push(text);
        }
        None
    };
    manifest.finished = jiff::Timestamp::now();
    Ok((stored?, manifest, taken))
}

async fn is_up(context: &Context, plan: &VmPlan) -> Result<bool> {
    let found = context.engine.find_vm(plan.id).await;
    let found = found.map_err(error::engine(format!("look at {}", plan.name)))?;
    Ok(found.is_some_and(|vm| vm.status != VmStatus::Down))
}

async fn store_documents(staging: Staging, docs: Documents) -> Result<Staging> {
    blocking("store the VM's configuration", move || {
        for (name, bytes) in &docs.files {
            staging.put_document(name, bytes)?;
        }
        Ok(staging)
    })
    .await
}

/// What all disks of a VM share while they are read.
struct Reading<'a> {
    access: &'a Access,
    center: DataCenterId,
    taken: &'a Taken,
    docs: &'a Documents,
    rate: &'a Arc<Rate>,
}

/// Logs in to the host that the plan chose, and finds or pushes the worker.
async fn connect(
    job: &Job,
    inventory: &Inventory,
    plan: &VmPlan,
) -> Result<(Access, DataCenterId)> {
    let choice = plan.host.as_ref().ok_or_else(|| RunError::UnknownHost { host: "-".into() })?;
    let host = hosts::find_host(inventory, choice.id)?;
    let center =
        plan.data_center.ok_or_else(|| RunError::UnknownHost { host: host.name.clone() })?;
    job.context.phase(Some(plan.id), format!("connecting to {}", host.name));
    Ok((Access::open(job, host).await?, center))
}

/// Removes the worker. What stays of it is in the journal.
async fn close(job: &Job, plan: &VmPlan, access: Access) {
    if let Err(cause) = access.close(job).await {
        job.context.warn(Some(plan.id), crate::chain(&cause));
    }
}

async fn read_all(
    job: &Job,
    plan: &VmPlan,
    reading: &Reading<'_>,
    staging: Staging,
) -> Result<(Staging, Vec<ManifestDisk>)> {
    let context = &job.context;
    let Reading { access, center, taken, docs, rate } = *reading;
    let base_disks = snapshot::base_disks(context, plan).await?;
    let mut disks = Vec::new();
    let mut failure = None;
    let mut sessions = None;
    for disk in plan.chosen_disks() {
        let base = plan.base.as_ref().zip(base_disks.as_deref());
        let source = DiskSource { plan: disk, taken, base, data_center: center, rate };
        match read_disk(job, access, &source, docs, sessions.take(), &staging).await {
            Ok((record, back)) => {
                sessions = Some(back);
                disks.push(record);
            }
            Err(cause) => {
                failure = Some(cause);
                break;
            }
        }
    }
    for session in sessions.into_iter().flatten() {
        // The worker has given all it had; a bad goodbye changes nothing of that.
        let _ = session.bye().await;
    }
    if failure.is_none()
        && let Err(cause) = snapshot::prove_unchanged(context, plan, taken).await
    {
        failure = Some(cause);
    }
    match failure {
        Some(cause) => Err(cause),
        None => Ok((staging, disks)),
    }
}
