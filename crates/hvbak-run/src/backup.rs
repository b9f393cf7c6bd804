//! The backup job: per VM freeze, snapshot, thaw, read, compare, publish, delete snapshot.
//!
//! Invariants: a point is published only when every disk was read whole from volumes that
//! did not change meanwhile; whatever happens, the guest is thawed, our snapshot deleted,
//! the worker removed and the half-made point discarded, or the journal says what is left.

use std::time::Instant;

use hvbak_plan::{BackupPlan, DiskAction, VmAction, VmPlan};
use hvbak_repo::{
    Consistency, Level, Manifest, ManifestDisk, ManifestSnapshot, ManifestVm, SkippedDisk, Staging,
    VmLock,
};
use hvbak_types::{Inventory, PointId, VmId, VmStatus};
use serde::Serialize;

use crate::{
    access::Access,
    documents::{self, Documents},
    error::{Result, RunError},
    event::Event,
    hosts,
    job::{Context, Job, blocking},
    journal::Step,
    read_disk::{DiskSource, read_disk},
    snapshot::{self, Taken},
};

/// A VM whose point was published.
#[derive(Debug, Clone, Serialize)]
pub struct VmDone {
    pub vm: VmId,
    pub name: String,
    pub point: PointId,
    pub stored_bytes: u64,
    pub seconds: f64,
}

/// A VM that was not backed up.
#[derive(Debug, Clone, Serialize)]
pub struct VmFailed {
    pub vm: VmId,
    pub name: String,
    pub error: String,
    pub hint: Option<String>,
    /// The exit code that this failure alone would have.
    pub exit: u8,
}

/// How a backup ended.
#[derive(Debug, Clone, Default, Serialize)]
pub struct BackupReport {
    pub done: Vec<VmDone>,
    pub failed: Vec<VmFailed>,
    /// VMs that the plan left out.
    pub skipped: usize,
}

impl BackupReport {
    /// The exit code that all failures share, if they do.
    pub fn single_exit(&self) -> Option<u8> {
        let first = self.failed.first()?.exit;
        self.failed.iter().all(|f| f.exit == first).then_some(first)
    }
}

/// Executes a plan; one VM's failure does not stop the others.
///
/// # Errors
/// Only what concerns the run as a whole: the journal, or cancellation.
pub async fn backup(
    context: &Context,
    inventory: &Inventory,
    plan: &BackupPlan,
) -> Result<BackupReport> {
    let job = Job::start(context).await?;
    context.events.event(&Event::JobStarted { job: context.job, kind: "backup" });
    let mut report = BackupReport::default();
    let mut cancelled = false;
    for vm in &plan.vms {
        if let VmAction::Skip { skip } = &vm.action {
            report.skipped += 1;
            let reason = skip.to_string();
            context.events.event(&Event::VmSkipped { vm: vm.id, name: vm.name.clone(), reason });
            continue;
        }
        let started = Instant::now();
        match backup_vm(&job, inventory, vm).await {
            Ok(manifest) => {
                let done = VmDone {
                    vm: vm.id,
                    name: vm.name.clone(),
                    point: manifest.point.clone(),
                    stored_bytes: manifest.stored_bytes(),
                    seconds: started.elapsed().as_secs_f64(),
                };
                context.events.event(&Event::VmDone {
                    vm: vm.id,
                    name: vm.name.clone(),
                    point: Some(done.point.clone()),
                    stored_bytes: done.stored_bytes,
                    seconds: done.seconds,
                });
                report.done.push(done);
            }
            Err(RunError::Cancelled) => {
                cancelled = true;
                break;
            }
            Err(cause) => {
                let failed = VmFailed {
                    vm: vm.id,
                    name: vm.name.clone(),
                    error: crate::chain(&cause),
                    hint: cause.hint(),
                    exit: cause.exit_code(),
                };
                context.events.event(&Event::VmFailed {
                    vm: vm.id,
                    name: vm.name.clone(),
                    error: failed.error.clone(),
                    hint: failed.hint.clone(),
                });
                report.failed.push(failed);
            }
        }
    }
    if !job.end().await? {
        context.warn(None, "something could not be undone; `hvbak cleanup` tries again");
    }
    if cancelled { Err(RunError::Cancelled) } else { Ok(report) }
}

async fn backup_vm(job: &Job, inventory: &Inventory, plan: &VmPlan) -> Result<Manifest> {
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
    let result = fill(job, inventory, plan, manifest, staging).await;
    let settled = match result {
        Ok((staging, manifest)) => {
            context.phase(Some(plan.id), "publishing the point");
            blocking("publish the point", move || staging.publish(manifest))
                .await
                .map(|p| p.manifest)
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

/// Everything between the empty and the complete staging directory. The snapshot and the
/// worker are gone again when this returns.
async fn fill(
    job: &Job,
    inventory: &Inventory,
    plan: &VmPlan,
    mut manifest: Manifest,
    staging: Staging,
) -> Result<(Staging, Manifest)> {
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
        return Ok((staging, manifest));
    }
    let running = docs.vm.status != VmStatus::Down;
    let taken = snapshot::take(job, plan, &manifest.point, running).await?;
    manifest.consistency = taken.consistency;
    manifest.snapshot =
        Some(ManifestSnapshot { id: taken.id, description: taken.description.clone() });
    let result = read_all(job, inventory, plan, &taken, &docs, running, staging).await;
    let deleted = snapshot::delete(job, plan, &taken).await;
    let (staging, disks) = result?;
    if let Err(cause) = deleted {
        // The data is whole; the snapshot stays in the journal for `cleanup`.
        context.warn(Some(plan.id), crate::chain(&cause));
        manifest.warnings.push(format!("the snapshot was not deleted: {}", crate::chain(&cause)));
    }
    manifest.disks = disks;
    let staging = store_documents(staging, docs).await?;
    manifest.finished = jiff::Timestamp::now();
    Ok((staging, manifest))
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

async fn read_all(
    job: &Job,
    inventory: &Inventory,
    plan: &VmPlan,
    taken: &Taken,
    docs: &Documents,
    running: bool,
    staging: Staging,
) -> Result<(Staging, Vec<ManifestDisk>)> {
    let context = &job.context;
    let choice = plan.host.as_ref().ok_or_else(|| RunError::UnknownHost { host: "-".into() })?;
    let host = hosts::find_host(inventory, choice.id)?;
    let center =
        plan.data_center.ok_or_else(|| RunError::UnknownHost { host: host.name.clone() })?;
    context.phase(Some(plan.id), format!("connecting to {}", host.name));
    let access = Access::open(job, host).await?;
    let mut disks = Vec::new();
    let mut failure = None;
    let mut sessions = None;
    for disk in plan.chosen_disks() {
        let source = DiskSource { plan: disk, taken, running, data_center: center };
        match read_disk(job, &access, &source, docs, sessions.take(), &staging).await {
            Ok((record, back)) => {
                sessions = Some(back);
                disks.push(ManifestDisk { level: Level::Full, ..record });
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
    if let Err(cause) = access.close(job).await {
        context.warn(Some(plan.id), crate::chain(&cause));
    }
    match failure {
        Some(cause) => Err(cause),
        None => Ok((staging, disks)),
    }
}
