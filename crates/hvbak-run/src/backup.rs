//! The backup job: the VMs of a plan, several at a time, each for itself.
//!
//! Invariant: one VM's failure does not stop the others, and every VM that has begun is
//! waited for, also after Ctrl-C, because it undoes its own.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hvbak_plan::{BackupInput, BackupPlan, DiskRules, Queue, Quiesce, VmAction, VmPlan, Wish};
use hvbak_repo::{Level, Manifest, RunKind, RunOutcome, RunRecord, RunVm, Unassigned};
use hvbak_types::{Inventory, PointId, VmId};
use jiff::Timestamp;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::{
    backup_template::backup_template,
    backup_vm::backup_vm,
    error::{Result, RunError},
    event::{Event, Events},
    hook::{HookMoment, Hooks, Told},
    job::{Context, Job, blocking},
    pump::Rate,
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

/// A VM that was not backed up or pruned.
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
    /// Of these, the ones whose state may be another next time.
    pub passing: usize,
    /// VMs whose turn did not come before the window closed.
    pub not_begun: usize,
    /// Commands of the policy that failed without failing anything else.
    pub hooks_failed: usize,
    /// What could not be undone yet, in words.
    pub left_behind: Vec<String>,
}

impl BackupReport {
    /// The exit code that all failures share, if they do.
    pub fn single_exit(&self) -> Option<u8> {
        single_exit(&self.failed)
    }
}

/// The exit code that failures share, if they do.
pub fn single_exit(failed: &[VmFailed]) -> Option<u8> {
    let first = failed.first()?.exit;
    failed.iter().all(|f| f.exit == first).then_some(first)
}

/// What the user asked for, kept for planning a VM again when its turn comes.
#[derive(Debug, Clone)]
pub struct Wishes {
    pub quiesce: Quiesce,
    pub exclude_disks: DiskRules,
    pub host: Option<String>,
    pub wish: Wish,
    /// After how many points, the full included, another full is due.
    pub full_every: Option<usize>,
    /// The policy that asks, for the points' records.
    pub policy: Option<String>,
    /// VMs in no policy, for the run's record; `None` when nobody looked.
    pub unassigned: Option<Vec<Unassigned>>,
    /// When the last VM may be begun.
    pub closes: Option<Timestamp>,
    /// Commands around the run and its VMs.
    pub hooks: Hooks,
    /// How the descriptions of our own snapshots begin.
    pub own: String,
}

impl Wishes {
    /// What commands are told of the run.
    pub(crate) fn told(&self) -> Told {
        Told::default().with("HVBAK_POLICY", self.policy.as_deref().unwrap_or(""))
    }

    /// The plan's input, without VMs.
    pub fn input<'a>(&'a self, inventory: &'a Inventory) -> BackupInput<'a> {
        BackupInput {
            inventory,
            vms: &[],
            quiesce: self.quiesce,
            exclude_disks: &self.exclude_disks,
            host: self.host.as_deref(),
            wish: self.wish,
            full_every: self.full_every,
            own: &self.own,
        }
    }
}

/// Executes a plan; one VM's failure does not stop the others.
///
/// # Errors
/// Only what concerns the run as a whole: the journal, or cancellation.
pub async fn backup(
    context: &Context,
    inventory: &Arc<Inventory>,
    plan: &BackupPlan,
    wishes: &Arc<Wishes>,
) -> Result<BackupReport> {
    let job = Arc::new(Job::start(context).await?);
    let sizes = plan.vms.iter().flat_map(VmPlan::chosen_disks).map(|disk| disk.virtual_size);
    context.events.event(&Event::JobStarted {
        job: context.job,
        kind: "backup",
        total_bytes: Some(sizes.fold(0, u64::saturating_add)),
    });
    let mut report = BackupReport::default();
    let mut record = RunRecord::begin(context.job, RunKind::Backup);
    record.unassigned.clone_from(&wishes.unassigned);
    for vm in &plan.vms {
        if let VmAction::Skip { skip } = &vm.action {
            report.skipped += 1;
            report.passing += usize::from(!skip.is_lasting());
            let reason = skip.to_string();
            let left_out = run_vm(vm, RunOutcome::Skipped, reason.clone());
            record.vms.push(RunVm { passing: !skip.is_lasting(), ..left_out });
            context.events.event(&Event::VmSkipped { vm: vm.id, name: vm.name.clone(), reason });
        }
    }
    if let Err(cause) = wishes.hooks.run(context, HookMoment::Before, None, &wishes.told()).await {
        // What it has begun may have to be undone by its counterpart.
        wishes.hooks.run(context, HookMoment::After, None, &wishes.told()).await?;
        if let Some(job) = Arc::into_inner(job)
            && let Err(end) = job.end().await
        {
            context.warn(None, crate::chain(&end));
        }
        let waiting = plan.vms.iter().filter(|vm| vm.action == VmAction::Backup);
        let why = crate::chain(&cause);
        record.vms.extend(waiting.map(|vm| run_vm(vm, RunOutcome::Stopped, why.clone())));
        note(context, record).await;
        return Err(cause);
    }
    let rate = Rate::new(context.settings.transfer.rate_limit);
    let mut queue = Queue::new(&plan.vms, context.settings.limits);
    let mut tasks = JoinSet::new();
    let mut cancelled = false;
    let open = || wishes.closes.is_none_or(|closes| Timestamp::now() < closes);
    loop {
        while !context.cancel.is_cancelled()
            && open()
            && let Some(vm) = queue.start()
        {
            let (job, inventory) = (job.clone(), inventory.clone());
            let (wishes, rate) = (wishes.clone(), rate.clone());
            tasks.spawn(async move {
                let started = Instant::now();
                let result = if vm.template {
                    backup_template(&job, &inventory, &vm, &wishes, &rate).await
                } else {
                    backup_vm(&job, &inventory, &vm, &wishes, &rate).await
                };
                (vm, result, started.elapsed())
            });
        }
        // Every task is waited for: each undoes its own, also after Ctrl-C.
        let Some(ended) = tasks.join_next().await else { break };
        let (vm, result, time) = ended.map_err(|e| RunError::Task { text: e.to_string() })?;
        queue.ended(&vm);
        match result {
            Ok(manifest) => {
                record.vms.push(run_vm_done(&vm, &manifest, time));
                report.done.push(vm_done(context, &vm, &manifest, time));
            }
            Err(RunError::Cancelled) => cancelled = true,
            Err(cause) => {
                let failed = vm_failed(&context.events, vm.id, &vm.name, &cause);
                let noted = run_vm(&vm, RunOutcome::Failed, failed.error.clone());
                let (seconds, remedy) = (time.as_secs_f64(), failed.hint.clone());
                record.vms.push(RunVm { seconds, remedy, ..noted });
                report.failed.push(failed);
            }
        }
    }
    // Either somebody stops the run, or its window has closed.
    let stopped = context.cancel.is_cancelled();
    cancelled |= stopped && queue.waiting() > 0;
    let why = if stopped { "the run was stopped" } else { "the policy's window has closed" };
    if let Some(job) = Arc::into_inner(job) {
        report.left_behind = job.end().await?;
    }
    context.tell_left_behind(&report.left_behind);
    for vm in &plan.vms {
        if !record.vms.iter().any(|known| known.id == vm.id) {
            record.vms.push(run_vm(vm, RunOutcome::Stopped, why.into()));
            report.not_begun += 1;
        }
    }
    let told = wishes.told();
    let told = told.with("HVBAK_DONE", report.done.len()).with("HVBAK_FAILED", report.failed.len());
    wishes.hooks.run(context, HookMoment::After, None, &told).await?;
    report.hooks_failed = wishes.hooks.failed();
    record.left_behind = report.left_behind.clone();
    note(context, record).await;
    if cancelled { Err(RunError::Cancelled) } else { Ok(report) }
}

/// Stores what the run did. The points are there without it, so a failure is only told.
async fn note(context: &Context, mut record: RunRecord) {
    record.finished = jiff::Timestamp::now();
    let repository = context.repository.clone();
    let noted = blocking("record the run", move || repository.record_run(&record)).await;
    if let Err(cause) = noted {
        context
            .warn(None, format!("`hvbak report` will not know this run: {}", crate::chain(&cause)));
    }
}

fn run_vm(vm: &VmPlan, outcome: RunOutcome, reason: String) -> RunVm {
    RunVm { reason: Some(reason), ..RunVm::new(vm.id, vm.name.clone(), outcome) }
}

fn run_vm_done(vm: &VmPlan, manifest: &Manifest, time: Duration) -> RunVm {
    let mut why: Vec<_> = manifest
        .disks
        .iter()
        .filter(|disk| disk.level == Level::Full)
        .map(|disk| disk.reason.clone())
        .collect();
    why.sort();
    why.dedup();
    RunVm {
        reason: (!why.is_empty()).then(|| why.join("; ")),
        point: Some(manifest.point.clone()),
        level: Some(manifest.level),
        stored_bytes: manifest.stored_bytes(),
        seconds: time.as_secs_f64(),
        ..run_vm(vm, RunOutcome::Done, String::new())
    }
}

fn vm_done(context: &Context, vm: &VmPlan, manifest: &Manifest, time: Duration) -> VmDone {
    let done = VmDone {
        vm: vm.id,
        name: vm.name.clone(),
        point: manifest.point.clone(),
        stored_bytes: manifest.stored_bytes(),
        seconds: time.as_secs_f64(),
    };
    context.events.event(&Event::VmDone {
        vm: vm.id,
        name: vm.name.clone(),
        point: Some(done.point.clone()),
        stored_bytes: done.stored_bytes,
        seconds: done.seconds,
    });
    done
}

/// Tells of a VM that was passed over.
pub(crate) fn vm_failed(events: &Events, vm: VmId, name: &str, cause: &RunError) -> VmFailed {
    let failed = VmFailed {
        vm,
        name: name.to_owned(),
        error: crate::chain(cause),
        hint: cause.hint(),
        exit: cause.exit_code(),
    };
    events.event(&Event::VmFailed {
        vm,
        name: name.to_owned(),
        error: failed.error.clone(),
        hint: failed.hint.clone(),
        correlation: cause.correlation().map(str::to_owned),
    });
    failed
}
