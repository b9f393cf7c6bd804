//! Our snapshot of a VM: made around a frozen guest where possible, proven, deleted.
//!
//! Invariant: it is found again by its description `hvbak:REPOSITORY:POINT`, which is in
//! the journal before the engine is asked; foreign snapshots are never touched.

use std::time::Duration;

use hvbak_engine::{EngineError, Event, SnapshotGone};
use hvbak_plan::VmPlan;
use hvbak_repo::Consistency;
use hvbak_types::{DiskId, PointId, SnapshotDisk, SnapshotId, SnapshotStatus};
use tokio_util::sync::CancellationToken;

use crate::{
    error::{self, Result, RunError},
    job::{Context, Job, Open},
    journal::{Outcome, Step},
    resume::Noted,
};

/// Events of the engine that say that a snapshot failed or may still be written
/// (engine-api §8.3).
const BAD_EVENTS: [i64; 3] = [69, 117, 170];

/// Events of a snapshot that is made: begun, done, freezing and thawing (engine-api §8.3).
const MADE_EVENTS: [i64; 9] = [45, 68, 10764, 10765, 10766, 10767, 10768, 10769, 10774];

/// A snapshot that is ready to be read.
pub struct Taken {
    pub id: SnapshotId,
    pub description: String,
    pub disks: Vec<SnapshotDisk>,
    pub consistency: Consistency,
    /// Of the requests that may have made it: its events carry one of them.
    pub correlations: Vec<String>,
    pub step: Open,
}

impl Taken {
    /// The disk as of the snapshot.
    pub fn disk(&self, id: DiskId) -> Option<&SnapshotDisk> {
        self.disks.iter().find(|d| d.disk_id == id)
    }
}

/// How the snapshot of a point is described.
pub fn description(context: &Context, point: &PointId) -> String {
    format!("{}{point}", crate::base::own_prefix(context.repository.id()))
}

/// Freezes the guest when the plan says so, takes the snapshot, thaws, proves.
pub async fn take(job: &Job, plan: &VmPlan, point: &PointId, running: bool) -> Result<Taken> {
    let context = &job.context;
    let description = description(context, point);
    let frozen = if plan.freeze && running { freeze(job, plan).await? } else { None };
    let (step, created) = make(job, plan, &description, frozen.is_some()).await?;
    // Before anything else: undoing a snapshot that failed may take minutes.
    if let Some(frozen) = &frozen {
        thaw(job, plan, frozen, created.is_ok()).await?;
    }
    let (id, correlations) = match created {
        Ok(created) => created,
        Err(cause) => {
            undo_make(job, plan, &description, &step, &cause).await?;
            return Err(error::engine(format!("take a snapshot of {}", plan.name))(cause));
        }
    };
    let consistency = match (running, &frozen) {
        (false, _) => Consistency::Offline,
        (true, Some(_)) => Consistency::Filesystem,
        (true, None) => Consistency::Crash,
    };
    let mut taken = Taken { id, description, disks: Vec::new(), consistency, correlations, step };
    match prove(context, plan, &taken).await {
        Ok(disks) => {
            taken.disks = disks;
            Ok(taken)
        }
        Err(cause) => {
            if let Err(undo) = delete(job, plan, &taken.step, &taken.description).await {
                context.warn(Some(plan.id), crate::chain(&undo));
            }
            Err(cause)
        }
    }
}

/// Takes over the snapshot of a half-made point: the same volumes, frozen as they were.
/// `step` is open in this job's journal.
///
/// # Errors
/// [`RunError::Stale`]: they are not, or it cannot be told.
pub async fn adopt(job: &Job, plan: &VmPlan, noted: &Noted, step: Open) -> Result<Taken> {
    // Events name VMs as they were called then.
    if noted.manifest.vm.name != plan.name {
        return Err(RunError::Stale { what: "the VM was renamed".into() });
    }
    let mut taken = Taken {
        id: noted.snapshot,
        description: noted.description.clone(),
        disks: Vec::new(),
        consistency: noted.manifest.consistency,
        correlations: noted.correlations.clone(),
        step,
    };
    let proven = async {
        let disks = prove(&job.context, plan, &taken).await?;
        match touched(&job.context, plan, &taken).await? {
            Touched::No => Ok(disks),
            Touched::Unknown(what) => Err(RunError::Stale { what }),
        }
    };
    taken.disks = proven.await.map_err(|cause| match cause {
        RunError::Snapshot { what, .. } => RunError::Stale { what: format!("its snapshot {what}") },
        other => other,
    })?;
    match noted
        .volumes
        .iter()
        .find(|(disk, volume)| taken.disk(*disk).is_none_or(|now| now.volume != *volume))
    {
        None => Ok(taken),
        Some((disk, _)) => {
            Err(RunError::Stale { what: format!("disk {disk} has another volume by now") })
        }
    }
}

async fn freeze(job: &Job, plan: &VmPlan) -> Result<Option<Open>> {
    let context = &job.context;
    context.phase(Some(plan.id), "freezing the guest's file systems");
    let step = job.intent(Step::Freeze { vm: plan.id }).await?;
    match context.engine.freeze(plan.id).await {
        Ok(()) => Ok(Some(step)),
        Err(cause) => {
            // The guest may have frozen although the answer was bad. A clear refusal of both
            // says that it has no agent, and without one nothing was frozen.
            thaw(job, plan, &step, matches!(cause, EngineError::Fault { .. })).await?;
            if plan.freeze_required {
                return Err(RunError::Freeze { vm: plan.name.clone(), cause });
            }
            context.warn(
                Some(plan.id),
                format!(
                    "{}: guest not frozen, the point is crash-consistent: {}",
                    plan.name,
                    crate::chain(&cause)
                ),
            );
            Ok(None)
        }
    }
}

/// Thaws the guest. vdsm thaws it after a snapshot that was made, so a refusal is no harm
/// when `harmless`; otherwise the step stays open, and `cleanup` tries again.
async fn thaw(job: &Job, plan: &VmPlan, step: &Open, harmless: bool) -> Result<()> {
    let context = &job.context;
    let mut last = None;
    for pause in [0, 1, 3] {
        tokio::time::sleep(Duration::from_secs(pause)).await;
        match context.engine.thaw(plan.id).await {
            Ok(()) => return job.undone(step).await,
            Err(cause) => last = Some(cause),
        }
        if harmless {
            return job.undone(step).await;
        }
    }
    let why = last.map_or_else(String::new, |cause| crate::chain(&cause));
    context.warn(
        Some(plan.id),
        format!(
            "{}: the guest may still be frozen ({why}); run `hvbak cleanup`, or `fsfreeze --unfreeze` in the guest",
            plan.name
        ),
    );
    Ok(())
}

/// The snapshot's id and the correlation ids of its requests.
type Created = std::result::Result<(SnapshotId, Vec<String>), EngineError>;

async fn make(
    job: &Job,
    plan: &VmPlan,
    description: &str,
    frozen: bool,
) -> Result<(Open, Created)> {
    let context = &job.context;
    context.check_cancel()?;
    context.phase(Some(plan.id), "taking a snapshot");
    let step = job
        .intent(Step::Snapshot {
            vm: plan.id,
            vm_name: plan.name.clone(),
            description: description.to_owned(),
        })
        .await?;
    let disks: Vec<DiskId> = plan.chosen_disks().map(|d| d.id).collect();
    // A frozen guest must not wait for other people's locks.
    let patience = frozen.then_some(Duration::from_secs(10));
    let created =
        context.engine.create_snapshot_within(patience, plan.id, description, Some(&disks)).await;
    let result = match created {
        Ok(created) => {
            let id = created.entity.id;
            job.done(&step, Outcome { snapshot: Some(id), ..Outcome::default() }).await?;
            let limit = context.settings.timeouts.snapshot;
            let waited = context.engine.wait_snapshot(plan.id, id, limit, &context.cancel).await;
            waited.map(|snapshot| (snapshot.id, created.correlations))
        }
        Err(cause) => Err(cause),
    };
    Ok((step, result))
}

/// Removes what a snapshot that failed left. When the engine never answered and shows
/// nothing, the request may still be on its way: the step stays open then.
async fn undo_make(
    job: &Job,
    plan: &VmPlan,
    description: &str,
    step: &Open,
    cause: &EngineError,
) -> Result<()> {
    match remove(&job.context, plan.id, &plan.name, description).await {
        Ok(0) if matches!(cause, EngineError::OutcomeUnknown { .. }) => Ok(()),
        Ok(_) => job.undone(step).await,
        Err(undo) => {
            job.context.warn(Some(plan.id), crate::chain(&undo));
            Ok(())
        }
    }
}

/// The layers below the snapshot are read-only now: status ok, no event that says
/// otherwise, and each active disk writes to another volume than the one to be read.
async fn prove(context: &Context, plan: &VmPlan, taken: &Taken) -> Result<Vec<SnapshotDisk>> {
    let refuse = |what: String| RunError::Snapshot { description: taken.description.clone(), what };
    let doing = || format!("look at the snapshot of {}", plan.name);
    no_bad_event(context, plan, taken).await?;
    let disks =
        context.engine.snapshot_disks(plan.id, taken.id).await.map_err(error::engine(doing()))?;
    let (_, active) = context.engine.attachments(plan.id).await.map_err(error::engine(doing()))?;
    for wanted in plan.chosen_disks() {
        let Some(disk) = disks.iter().find(|d| d.disk_id == wanted.id) else {
            return Err(refuse(format!("does not hold disk {}", wanted.alias)));
        };
        let top = active
            .iter()
            .find(|a| a.disk_id == wanted.id)
            .and_then(|a| a.disk.as_ref())
            .and_then(|d| d.image_id);
        // An engine that names no active volume proves nothing.
        let Some(top) = top else {
            return Err(refuse(format!("leaves open which volume of {} is written", wanted.alias)));
        };
        if top == disk.volume {
            return Err(refuse(format!(
                "left volume {} of disk {} as the one that is written",
                disk.volume, wanted.alias
            )));
        }
    }
    Ok(disks)
}

/// No event of the request says that the guest may still write to what is frozen. Events
/// come late, so it is asked again after the transfer. Gives the oldest event's id.
async fn no_bad_event(context: &Context, plan: &VmPlan, taken: &Taken) -> Result<Option<u64>> {
    let mut oldest = None;
    for correlation in &taken.correlations {
        let search = format!("correlation_id={correlation}");
        for event in events(context, plan, &search, None, 50).await? {
            if let Some(code) = event.code
                && BAD_EVENTS.contains(&code)
            {
                return Err(RunError::Snapshot {
                    description: taken.description.clone(),
                    what: format!("is not safe to read, event {code}: {}", event.description),
                });
            }
            oldest = Some(oldest.map_or(event.id, |id: u64| id.min(event.id)));
        }
    }
    Ok(oldest)
}

async fn events(
    context: &Context,
    plan: &VmPlan,
    search: &str,
    from: Option<u64>,
    max: u32,
) -> Result<Vec<Event>> {
    let found = context.engine.events(Some(search), from, Some(max)).await;
    found.map_err(error::engine(format!("look at the snapshot of {}", plan.name)))
}

/// What the engine's log says of a snapshot since it was made.
enum Touched {
    No,
    /// Why the log is no witness.
    Unknown(String),
}

/// How many events of a VM are looked at.
const EVENTS: u32 = 1000;

/// Whether anybody has asked the engine for something with our snapshot: events name
/// snapshots by their description. A merge that begins and fails gives back a snapshot with
/// more in it than before, and LVs do not show that they were written to.
///
/// # Errors
/// Somebody has.
async fn touched(context: &Context, plan: &VmPlan, taken: &Taken) -> Result<Touched> {
    let Some(made) = no_bad_event(context, plan, taken).await? else {
        return Ok(Touched::Unknown(
            "the engine's log does not know its snapshot (any more)".into(),
        ));
    };
    let search = format!("event_vm=\"{}\"", plan.name);
    let since = events(context, plan, &search, Some(made), EVENTS).await?;
    if since.len() >= EVENTS as usize {
        return Ok(Touched::Unknown(format!("the engine's log has {EVENTS} events of its VM")));
    }
    // Whether all events of the making carry the request's id is the engine's affair.
    let own = |event: &Event| {
        event.correlation_id.as_ref().is_some_and(|id| taken.correlations.contains(id))
            || event.code.is_some_and(|code| MADE_EVENTS.contains(&code))
    };
    match since.iter().find(|e| !own(e) && e.description.contains(&taken.description)) {
        None => Ok(Touched::No),
        Some(event) => Err(RunError::Snapshot {
            description: taken.description.clone(),
            what: format!("was touched by somebody: {}", event.description),
        }),
    }
}

/// After the transfer: the snapshot is still there and still owns the same volumes.
pub async fn prove_unchanged(context: &Context, plan: &VmPlan, taken: &Taken) -> Result<()> {
    let doing = || format!("look at the snapshot of {}", plan.name);
    let refuse = |what: String| RunError::Snapshot { description: taken.description.clone(), what };
    if let Touched::Unknown(what) = touched(context, plan, taken).await? {
        let text = "whether somebody began to delete the snapshot could not be seen";
        context.warn(Some(plan.id), format!("{}: {text}: {what}", plan.name));
    }
    let now = context.engine.snapshot(plan.id, taken.id).await.map_err(error::engine(doing()))?;
    match now.and_then(|s| s.status) {
        Some(SnapshotStatus::Ok) => {}
        None => return Err(refuse("vanished while it was read; the copy is void".into())),
        Some(other) => {
            return Err(refuse(format!("became {other} while it was read; the copy is void")));
        }
    }
    let disks =
        context.engine.snapshot_disks(plan.id, taken.id).await.map_err(error::engine(doing()))?;
    for disk in plan.chosen_disks() {
        let before = taken.disk(disk.id).map(|d| d.volume);
        let after = disks.iter().find(|d| d.disk_id == disk.id).map(|d| d.volume);
        if before != after {
            return Err(refuse(format!(
                "owns another volume of disk {} now; the copy is void",
                disk.alias
            )));
        }
    }
    Ok(())
}

/// The volumes that the base's snapshot owns now; merges hand volumes on, so what the
/// base's manifest says is not asked. `None`: no disk is to stand on it, or it is gone.
pub async fn base_disks(context: &Context, plan: &VmPlan) -> Result<Option<Vec<SnapshotDisk>>> {
    let Some(base) = &plan.base else { return Ok(None) };
    match context.engine.snapshot_disks(plan.id, base.snapshot).await {
        Ok(disks) => Ok(Some(disks)),
        Err(cause) if cause.is_not_found() => Ok(None),
        Err(cause) => {
            Err(error::engine(format!("look at the last snapshot of {}", plan.name))(cause))
        }
    }
}

/// After an older snapshot was merged into this one's volumes: it is still whole.
pub async fn prove_there(context: &Context, plan: &VmPlan, taken: &Taken) -> Result<()> {
    let doing = || format!("look at the snapshot of {}", plan.name);
    let disks =
        context.engine.snapshot_disks(plan.id, taken.id).await.map_err(error::engine(doing()))?;
    match plan.chosen_disks().find(|d| !disks.iter().any(|now| now.disk_id == d.id)) {
        None => Ok(()),
        Some(lost) => Err(RunError::Snapshot {
            description: taken.description.clone(),
            what: format!("lost disk {} when the one before was merged", lost.alias),
        }),
    }
}

/// Leaves the snapshot on the VM: it belongs to its point now, not to the job.
pub async fn keep(job: &Job, taken: &Taken) -> Result<()> {
    job.undone(&taken.step).await
}

/// Deletes the snapshot and waits until it is merged away.
pub async fn delete(job: &Job, plan: &VmPlan, step: &Open, description: &str) -> Result<()> {
    job.context.phase(Some(plan.id), "deleting the snapshot");
    remove(&job.context, plan.id, &plan.name, description).await?;
    job.undone(step).await
}

/// Deletes every snapshot of the VM with exactly this description. Already gone is fine,
/// and so is a VM that is gone. Not cancelled by Ctrl-C: this *is* the undoing.
pub async fn remove(
    context: &Context,
    vm: hvbak_types::VmId,
    vm_name: &str,
    description: &str,
) -> Result<usize> {
    let engine = &context.engine;
    let doing = || format!("delete the snapshot of {vm_name}");
    let snapshots = match engine.snapshots(vm).await {
        Err(cause) if cause.is_not_found() => return Ok(0),
        other => other.map_err(error::engine(doing()))?,
    };
    let mut count = 0;
    for snapshot in snapshots.iter().filter(|s| s.description == description) {
        // One that is still being made cannot be deleted yet.
        let never = CancellationToken::new();
        if snapshot.status == Some(SnapshotStatus::Locked) {
            let limit = context.settings.timeouts.snapshot;
            match engine.wait_snapshot(vm, snapshot.id, limit, &never).await {
                Ok(_) => {}
                Err(cause) if cause.is_not_found() => continue,
                // Whatever state it ended in, deleting it is still the thing to try.
                Err(_) => {}
            }
        }
        delete_one(context, vm, snapshot.id, description).await.map_err(|cause| match cause {
            Undeleted::Engine(cause) => error::engine(doing())(cause),
            Undeleted::Stays(what) => {
                RunError::Snapshot { description: description.to_owned(), what }
            }
        })?;
        count += 1;
    }
    Ok(count)
}

enum Undeleted {
    Engine(EngineError),
    Stays(String),
}

/// Starts the merge and waits for its end; a merge that failed is tried once more, which
/// also finishes one that failed for some disks only (engine-api §9).
async fn delete_one(
    context: &Context,
    vm: hvbak_types::VmId,
    id: SnapshotId,
    description: &str,
) -> std::result::Result<(), Undeleted> {
    let never = CancellationToken::new();
    let limit = context.settings.timeouts.merge;
    let mut last = String::new();
    for _ in 0..2 {
        context.engine.delete_snapshot(vm, id).await.map_err(Undeleted::Engine)?;
        let waited = context.engine.wait_snapshot_gone(vm, id, limit, &never).await;
        match waited.map_err(Undeleted::Engine)? {
            SnapshotGone::Gone => return Ok(()),
            SnapshotGone::StillThere(status) => last = status.to_string(),
        }
        tracing::warn!(%id, description, "deleting the snapshot failed, trying once more");
    }
    Err(Undeleted::Stays(format!("could not be deleted: its merge failed and it is {last}")))
}
