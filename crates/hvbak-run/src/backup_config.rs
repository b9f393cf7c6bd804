//! Backups of configurations alone: the engine's documents of VMs, and nothing else.
//!
//! Invariants: no snapshot, no host, no guest; what is stored lies apart from points with disks
//! ([`hvbak_repo::Repository::configurations`]), so it is nobody's base, coverage or newest point,
//! and displaces none.

use hvbak_repo::{Consistency, Manifest, ManifestVm, Repository, SkippedDisk, VmLock};
use hvbak_types::{Inventory, PointId, VmId};
use serde::Serialize;

use crate::{
    backup::{VmFailed, vm_failed},
    documents::{self, Documents},
    error::{Result, RunError},
    job::{Context, Job, blocking},
    journal::Step,
};

/// So many configurations of a VM are kept, the newest ones.
const KEPT: usize = 10;

/// Changes without anybody's doing: status, times, statistics. What is of it for a restore is in
/// the OVF too.
const UNSTEADY: &str = "vm.xml";

/// How a backup of configurations ended.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ConfigurationsReport {
    pub stored: Vec<ConfigurationDone>,
    /// Those whose newest stored configuration is the same.
    pub unchanged: Vec<ConfigurationDone>,
    pub failed: Vec<VmFailed>,
    /// What could not be undone yet, in words.
    pub left_behind: Vec<String>,
}

/// A VM whose configuration is stored.
#[derive(Debug, Clone, Serialize)]
pub struct ConfigurationDone {
    pub vm: VmId,
    pub name: String,
    pub point: PointId,
}

/// Stores the configurations of VMs, one after the other; a failure does not stop the others.
///
/// # Errors
/// Cancellation, and what concerns the job as a whole.
pub async fn backup_configurations(
    context: &Context,
    inventory: &Inventory,
    vms: &[VmId],
    policy: Option<&str>,
) -> Result<ConfigurationsReport> {
    let job = Job::start(context).await?;
    let mut report = ConfigurationsReport::default();
    let mut stopped = false;
    for vm in vms {
        let known = inventory.vms.iter().find(|one| one.id == *vm);
        let name = known.map_or_else(|| vm.to_string(), |one| one.name.clone());
        let done = match context.check_cancel() {
            Ok(()) => store(&job, inventory, *vm, &name, policy).await,
            Err(cause) => Err(cause),
        };
        match done {
            Ok((point, true)) => report.stored.push(ConfigurationDone { vm: *vm, name, point }),
            Ok((point, false)) => report.unchanged.push(ConfigurationDone { vm: *vm, name, point }),
            Err(RunError::Cancelled) => {
                stopped = true;
                break;
            }
            Err(cause) => report.failed.push(vm_failed(&context.events, *vm, &name, &cause)),
        }
    }
    report.left_behind = job.end().await?;
    context.tell_left_behind(&report.left_behind);
    if stopped { Err(RunError::Cancelled) } else { Ok(report) }
}

/// The point that holds the configuration, and whether it is new.
async fn store(
    job: &Job,
    inventory: &Inventory,
    vm: VmId,
    name: &str,
    policy: Option<&str>,
) -> Result<(PointId, bool)> {
    let context = &job.context;
    context.phase(Some(vm), format!("storing the configuration of {name}"));
    let (repository, id) = (context.repository.clone(), context.job);
    let lock = blocking("lock the VM", move || repository.lock_vm(vm, id)).await?;
    let started = jiff::Timestamp::now();
    let docs = documents::fetch(context, inventory, vm).await?;
    let home = context.repository.configurations();
    let (at, files) = (home.clone(), docs.files.clone());
    let (lock, same, point) = blocking("look for stored configurations", move || {
        at.sweep_partials(&lock, None)?;
        at.finish_expiry(&lock)?;
        let same = newest_like(&at, vm, &files)?;
        let point = at.new_point_id(vm, started);
        Ok((lock, same, point))
    })
    .await?;
    if let Some(point) = same {
        return Ok((point, false));
    }
    let step = job.intent(Step::Partial { vm, point: point.clone() }).await?;
    let manifest = manifest(context, &docs, (vm, name), &point, (started, policy));
    let reserve = context.settings.reserve;
    let stored = blocking("store the configuration", move || {
        publish(&home, &lock, &docs, manifest, reserve)
    })
    .await;
    // Half of it is gone by now, or goes with the next configuration of this VM.
    job.undone(&step).await?;
    stored.map(|()| (point, true))
}

/// The newest stored configuration, when it is this one.
fn newest_like(
    home: &Repository,
    vm: VmId,
    files: &[(&'static str, Vec<u8>)],
) -> hvbak_repo::Result<Option<PointId>> {
    let listing = home.points(vm)?;
    let Some(newest) = listing.points.last() else { return Ok(None) };
    for (name, bytes) in files.iter().filter(|(name, _)| *name != UNSTEADY) {
        // One that is damaged is not like anything.
        if newest.document(name).ok().flatten().as_ref() != Some(bytes) {
            return Ok(None);
        }
    }
    Ok(Some(newest.id().clone()))
}

fn manifest(
    context: &Context,
    docs: &Documents,
    (id, name): (VmId, &str),
    point: &PointId,
    (started, policy): (jiff::Timestamp, Option<&str>),
) -> Manifest {
    let vm = ManifestVm {
        id,
        name: name.to_owned(),
        cluster: docs.cluster.clone(),
        data_center: docs.data_center.clone(),
        status: Some(docs.vm.status.to_string()),
    };
    let new = Manifest::new(context.repository.id(), point.clone(), vm, context.job, started);
    let left_out = |a: &hvbak_types::Attachment| SkippedDisk {
        id: a.disk_id,
        alias: a.disk.as_ref().map_or_else(|| a.disk_id.to_string(), |disk| disk.alias.clone()),
        reason: "the configuration alone was stored".into(),
    };
    Manifest {
        configuration_only: true,
        consistency: Consistency::Offline,
        engine_version: Some(context.engine.version().full.clone()),
        skipped: docs.attachments.iter().map(left_out).collect(),
        policy: policy.map(str::to_owned),
        finished: jiff::Timestamp::now(),
        ..new
    }
}

fn publish(
    home: &Repository,
    lock: &VmLock,
    docs: &Documents,
    manifest: Manifest,
    reserve: u64,
) -> hvbak_repo::Result<()> {
    let (vm, point) = (manifest.vm.id, manifest.point.clone());
    let staging = home.stage(lock, &point)?;
    let put = docs.files.iter().try_for_each(|(name, bytes)| staging.put_document(name, bytes));
    if let Err(cause) = put.and_then(|()| staging.publish(manifest).map(drop)) {
        home.remove_partial(lock, &point)?;
        return Err(cause);
    }
    let mut old: Vec<_> = home.points(vm)?.points.iter().map(|p| p.id().clone()).collect();
    old.truncate(old.len().saturating_sub(KEPT));
    let plan = home.plan_expiry(vm, &old, &[])?;
    home.expire(lock, &plan, reserve, &|_, _| true).map(drop)
}
