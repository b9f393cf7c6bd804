//! Backups of configurations alone: the engine's documents of VMs, and nothing else.
//!
//! Invariants: no snapshot, no host, no guest; what is stored lies apart from points with disks
//! ([`hvbak_repo::Repository::configurations`]), so it is nobody's base, coverage or newest point,
//! and displaces none.

use std::collections::BTreeSet;

use hvbak_plan::{KeepFacts, KeepRules, judge_points};
use hvbak_repo::{Consistency, Manifest, ManifestVm, Repository, SkippedDisk, VmLock};
use hvbak_types::{Inventory, PointId, VmId};
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::{
    backup::{VmFailed, vm_failed},
    documents::{self, Documents},
    error::{Result, RunError},
    job::{Context, Job, blocking},
    journal::Step,
};

/// Which of a VM's configurations are kept: they are small, and a mistake is found late.
const KEPT: KeepRules = KeepRules {
    last: Some(10),
    hourly: None,
    daily: Some(30),
    weekly: None,
    monthly: Some(12),
    yearly: None,
};

/// Changes without anybody's doing: status, times, statistics. What is of it for a restore is in
/// the OVF too.
const UNSTEADY: &str = "vm.xml";

/// Elements of the other documents that change so: the engine writes the moment of asking into an
/// OVF (`OvfWriter`), when the VM ran, and how much of its disks is used.
const UNSTEADY_ELEMENTS: &[&str] =
    &["ExportDate", "BootTime", "StopTime", "Generation", "actual_size", "total_size", "status"];
const UNSTEADY_ATTRIBUTES: &[&str] = &["ovf:actual_size"];

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
        let Some(stored) = newest.document(name).ok().flatten() else { return Ok(None) };
        if steady(&stored) != steady(bytes) {
            return Ok(None);
        }
    }
    Ok(Some(newest.id().clone()))
}

/// A document without what changes by itself. Of no other use: nothing is parsed.
fn steady(bytes: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    let mut cut = |open: &str, close: &str| {
        let mut from = 0;
        while let Some(at) = text.get(from..).and_then(|rest| rest.find(open)) {
            let start = from + at + open.len();
            let Some(end) = text.get(start..).and_then(|rest| rest.find(close)) else { return };
            text.replace_range(start..start + end, "");
            from = start;
        }
    };
    for name in UNSTEADY_ELEMENTS {
        cut(&format!("<{name}>"), &format!("</{name}>"));
    }
    for name in UNSTEADY_ATTRIBUTES {
        cut(&format!(" {name}=\""), "\"");
    }
    text
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
    let facts: Vec<_> = home
        .points(vm)?
        .points
        .iter()
        .map(|point| KeepFacts {
            point: point.id().clone(),
            time: point.manifest.started,
            pinned: None,
            damage: None,
            holds: BTreeSet::new(),
            lacks: BTreeSet::new(),
        })
        .collect();
    let verdicts = judge_points(&facts, &KEPT, &TimeZone::UTC);
    let old: Vec<_> =
        verdicts.into_iter().filter(hvbak_plan::Verdict::expires).map(|v| v.point).collect();
    let plan = home.plan_expiry(vm, &old, &[])?;
    home.expire(lock, &plan, reserve, &|_, _| true).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_by_itself_is_no_change() {
        let ovf = |date: &str, used: &str, memory: &str| {
            format!(
                "<a><ExportDate>{date}</ExportDate><Disk ovf:size=\"1\" ovf:actual_size=\"{used}\"/>\
                 <rasd:VirtualQuantity>{memory}</rasd:VirtualQuantity><ExportDate>{date}</ExportDate></a>"
            )
        };
        let before = steady(ovf("2026/01/01 00:00:00", "1", "4096").as_bytes());
        assert_eq!(before, steady(ovf("2026/11/22 01:02:03", "17", "4096").as_bytes()));
        assert_ne!(before, steady(ovf("2026/01/01 00:00:00", "1", "8192").as_bytes()));
        // What is not closed stays as it is.
        assert_eq!(steady(b"<ExportDate>x"), "<ExportDate>x");
    }
}
