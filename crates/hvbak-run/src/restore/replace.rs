//! The last part of a restore that replaces a VM: the old one goes, the new one takes its place.
//!
//! Invariants: nothing of the old VM is changed before the new one stands with disks that were
//! re-read. Before the first change the whole of what is to come is in the journal, and "done" is
//! written to it before the old VM's deletion is asked for: as long as it is not there, all is taken
//! back; from then on the engine is asked what became of the old VM (see [`fate`]). Once that is
//! gone, the new one is never undone: whoever comes next goes on, by the same function. Nobody but
//! the job that a person has confirmed asks for the deletion.

use hvbak_engine::{EngineError, NewAttachment, Parts};
use hvbak_plan::{KeptDisk, NicTarget, OldVm, Replace, RestorePlan};
use hvbak_repo::{Journal, JournalView, StepState, StepView};
use hvbak_types::{DiskId, DiskInterface, Inventory, PointId, Vm, VmId, VmStatus};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    base,
    error::{self, Result, RunError},
    job::{Context, Job, blocking},
    journal::{Outcome, Step},
    restore::{add_nic, is_marked},
    snapshot,
};

/// Between two looks at a VM that is being deleted.
const LOOK: std::time::Duration = std::time::Duration::from_millis(500);

/// How often the old VM's deletion is asked for when no answer comes.
const ATTEMPTS: u32 = 3;

/// How late a request of a job that died may come.
const LATE: std::time::Duration = std::time::Duration::from_secs(5);

/// What is to be done, as it lies in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replacing {
    pub point: PointId,
    pub old: Replace,
    pub new: VmId,
    /// What the new VM is called until the name is free.
    pub temporary: String,
    pub nics: Vec<NicTarget>,
    pub tags: Vec<String>,
    /// The new VM's description in the end.
    pub description: String,
    /// Those of its new disks.
    pub disks: Vec<(DiskId, String)>,
}

/// What a replacement that did not go through has left.
pub(super) enum Halted {
    /// The old VM is as it was; the new one is to be undone.
    Back(RunError),
    /// The old VM is gone, or nobody knows; the new one stays.
    Stays(RunError),
}

/// What becomes of a replacement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// The old VM is gone: what is left is done.
    Forward,
    /// The old VM is as it was: what was done is taken back.
    Back,
}

/// Names of new VMs until the old one is gone. Engines take 64 characters where `MaxVmNameLength`
/// was not raised.
pub(super) fn temporary_name(name: &str, context: &Context) -> String {
    const WITHOUT_SUFFIX: usize = 64 - "-hvbak-12345678".len();
    let short: String = name.chars().take(WITHOUT_SUFFIX).collect();
    let job: String = context.job.to_string().chars().take(8).collect();
    format!("{short}-hvbak-{job}")
}

/// What the plan wants to know of the VM that is to be replaced.
pub async fn old_vm(context: &Context, inventory: &Inventory, vm: VmId) -> Result<OldVm> {
    let parts = Parts { attachments: true, snapshots: true, ..Parts::default() };
    let doing = error::engine(format!("look at VM {vm}"));
    let with = context.engine.vm_with(vm, parts).await.map_err(doing)?;
    let listed = inventory.vms.iter().find(|one| one.id == vm);
    Ok(OldVm {
        // Its tags come with the inventory.
        vm: Vm { tags: listed.map(|one| one.tags.clone()).unwrap_or_default(), ..with.vm },
        attachments: with.attachments,
        snapshots: with.snapshots,
        own_prefix: base::own_prefix(context.repository.id()),
    })
}

/// Puts the new VM into the old one's place. What was `made` is settled on the way.
pub(super) async fn replace(
    job: &Job,
    plan: &RestorePlan,
    replacing: &Replacing,
    made: &[crate::job::Open],
) -> std::result::Result<(), Halted> {
    let context = &job.context;
    let name = &replacing.old.name;
    context.phase(None, format!("looking at VM {name} once more"));
    check(context, plan, &replacing.old).await.map_err(Halted::Back)?;
    let begun = job.intent(Step::Replace { replacing: Box::new(replacing.clone()) }).await;
    let step = begun.map_err(Halted::Back)?;
    let ready = match detach(context, &replacing.old).await {
        Ok(()) => job.done(&step, Outcome::default()).await,
        Err(cause) => Err(cause),
    };
    if let Err(cause) = ready {
        return Err(match take_back(context, &replacing.old).await {
            // Whoever reads the journal would take back once more, which is harmless.
            Ok(_) => match job.undone(&step).await {
                Ok(()) => Halted::Back(cause),
                Err(second) => Halted::Stays(second),
            },
            Err(second) => {
                context.warn(None, crate::chain(&second));
                Halted::Back(cause)
            }
        });
    }
    context.phase(None, format!("deleting VM {name} ({})", replacing.old.vm));
    if let Err((cause, answered)) = delete(context, &replacing.old).await {
        let declined = match answered {
            true => declined(context, &replacing.old, &cause).await,
            false => Ok(false),
        };
        let fate = match declined {
            Ok(true) => take_back(context, &replacing.old).await.map(|_| Fate::Back),
            Ok(false) => fate(context, &replacing.old).await,
            Err(second) => Err(second),
        };
        match fate {
            Ok(Fate::Forward) => {}
            Ok(Fate::Back) => {
                return Err(match job.undone(&step).await {
                    Ok(()) => Halted::Back(cause),
                    Err(second) => Halted::Stays(second),
                });
            }
            Err(second) => {
                context.warn(None, crate::chain(&cause));
                return Err(Halted::Stays(second));
            }
        }
    }
    let ended = async {
        take_place(context, replacing).await?;
        // From here on it is the user's.
        for step in made {
            job.undone(step).await?;
        }
        take_marks_off(context, replacing).await?;
        job.undone(&step).await
    };
    ended.await.map_err(|cause| Halted::Stays(halted(replacing, cause)))
}

fn halted(replacing: &Replacing, cause: RunError) -> RunError {
    RunError::ReplaceHalted {
        name: replacing.old.name.clone(),
        temporary: replacing.temporary.clone(),
        new: replacing.new,
        cause: Box::new(cause),
    }
}

/// Whether the old VM still is what was confirmed. Changes nothing.
async fn check(context: &Context, plan: &RestorePlan, old: &Replace) -> Result<()> {
    context.check_cancel()?;
    let now = old_vm(context, &Inventory::default(), old.vm).await?;
    let restored: Vec<_> = plan.disks.iter().map(|disk| disk.source).collect();
    let mut fresh = Replace::judge(&now, &restored).map_err(|refused| RunError::CannotReplace {
        remedy: refused.hint().unwrap_or_default(),
        why: refused.to_string(),
    })?;
    fresh.boots_anew = old.boots_anew;
    if fresh != *old {
        return Err(RunError::CannotReplace {
            why: format!("VM `{}` is not as it was confirmed any more", old.name),
            remedy: "look at `--dry-run` again".into(),
        });
    }
    Ok(())
}

/// Everything before the deletion; can be taken back, but for our snapshots.
async fn detach(context: &Context, old: &Replace) -> Result<()> {
    // A disk that a snapshot holds cannot be detached.
    if old.kept.iter().any(|disk| disk.image) {
        for description in &old.snapshots {
            context.check_cancel()?;
            context.phase(None, format!("deleting snapshot `{description}`"));
            snapshot::remove(context, old.vm, &old.name, description).await?;
        }
    }
    for disk in &old.kept {
        context.check_cancel()?;
        context.phase(None, format!("detaching disk {}, which is kept", disk.alias));
        let doing = error::engine(format!("detach disk {} from {}", disk.alias, old.name));
        context.engine.detach_disk(old.vm, disk.id).await.map_err(doing)?;
    }
    // The last moment: what the engine deletes with the VM is what was shown.
    let doing = || error::engine(format!("look at VM {}", old.name));
    let (_, left) = context.engine.attachments(old.vm).await.map_err(doing())?;
    if let Some(more) = left.iter().find(|a| !old.deleted.iter().any(|d| d.id == a.disk_id)) {
        return Err(RunError::CannotReplace {
            why: format!("VM `{}` has got another disk, {}", old.name, more.disk_id),
            remedy: "look at `--dry-run` again".into(),
        });
    }
    context.check_cancel()
}

/// Gives the old VM back what was detached. Says whether something was.
async fn take_back(context: &Context, old: &Replace) -> Result<bool> {
    let doing = || error::engine(format!("look at VM {}", old.name));
    if context.engine.find_vm(old.vm).await.map_err(doing())?.is_none() {
        return Ok(false);
    }
    attach(context, old, old.vm).await
}

/// Attaches the kept disks that are attached nowhere yet.
async fn attach(context: &Context, old: &Replace, to: VmId) -> Result<bool> {
    let doing = || error::engine(format!("look at the disks of VM {to}"));
    let (_, there) = context.engine.attachments(to).await.map_err(doing())?;
    let mut any = false;
    for disk in &old.kept {
        if there.iter().any(|a| a.disk_id == disk.id) {
            continue;
        }
        // The old one boots as it did.
        let boots = disk.bootable && (to == old.vm || !old.boots_anew);
        let doing = || error::engine(format!("attach disk {} to VM {to}", disk.alias));
        if context.engine.disk(disk.id).await.map_err(doing())?.is_none() {
            context.warn(None, format!("disk {} ({}) is gone", disk.alias, disk.id));
            continue;
        }
        let attachment = NewAttachment {
            disk: disk.id,
            interface: DiskInterface::from_word(&disk.interface),
            bootable: boots,
            active: disk.active,
            read_only: disk.read_only.then_some(true),
            pass_discard: disk.pass_discard.then_some(true),
            uses_scsi_reservation: disk.scsi_reservation.then_some(true),
        };
        context.engine.attach_disk(to, &attachment).await.map_err(doing())?;
        any = true;
    }
    Ok(any)
}

/// Deletes the old VM; of a failure, whether it is the engine's answer to the only request.
async fn delete(context: &Context, old: &Replace) -> std::result::Result<(), (RunError, bool)> {
    let doing = |answered| {
        let named = error::engine(format!("delete VM {}", old.name));
        move |cause| (named(cause), answered)
    };
    // Not cancelled by Ctrl-C: half of it would be the worst.
    let never = CancellationToken::new();
    let limit = context.settings.timeouts.disk;
    for attempt in 0..ATTEMPTS {
        match context.engine.delete_vm_once(old.vm).await {
            Err(EngineError::OutcomeUnknown { .. }) if attempt + 1 < ATTEMPTS => {}
            // A later one may have met what an earlier one has begun.
            asked => {
                asked.map_err(doing(attempt == 0))?;
                break;
            }
        }
        // It may come to the request yet; asked again, it is as well when it does.
        match context.engine.wait_vm_gone(old.vm, LATE, &never).await {
            Err(EngineError::Timeout { .. }) => {}
            other => return other.map_err(doing(false)),
        }
        let vm = context.engine.find_vm(old.vm).await.map_err(doing(false))?;
        if vm.is_none_or(|vm| vm.status == VmStatus::ImageLocked) {
            break;
        }
    }
    context.engine.wait_vm_gone(old.vm, limit, &never).await.map_err(doing(false))
}

/// Whether the engine has answered the one request, said no, and nothing of the VM is gone or
/// being deleted: only then is nothing under way.
async fn declined(context: &Context, old: &Replace, cause: &RunError) -> Result<bool> {
    use EngineError::{Conflict, Forbidden};
    if !matches!(cause, RunError::Engine { cause: Conflict { .. } | Forbidden { .. }, .. }) {
        return Ok(false);
    }
    let doing = || error::engine(format!("look at VM {}", old.name));
    let vm = context.engine.find_vm(old.vm).await.map_err(doing())?;
    let idle = vm.is_some_and(|vm| vm.status != VmStatus::ImageLocked);
    Ok(idle && lost(context, old).await?.is_none())
}

/// What became of the old VM after its deletion may have been asked for. A request that is still
/// under way must not find it after all else was taken back: when it is there, it is protected
/// against deletion, and stays so, which is told. What has begun shows then.
///
/// # Errors
/// Nobody can tell; nothing was changed but the protection.
async fn fate(context: &Context, old: &Replace) -> Result<Fate> {
    let doing = || error::engine(format!("look at VM {}", old.name));
    let until = std::time::Instant::now() + context.settings.timeouts.vm;
    // What is being deleted is locked.
    while let Some(vm) = context.engine.find_vm(old.vm).await.map_err(doing())? {
        if vm.status != VmStatus::ImageLocked || std::time::Instant::now() >= until {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    match context.engine.protect_vm(old.vm, true).await {
        Err(cause) if cause.is_not_found() => return Ok(Fate::Forward),
        other => other.map_err(doing())?,
    }
    if let Some(lost) = lost(context, old).await? {
        return Err(RunError::ReplaceUnclear { name: old.name.clone(), vm: old.vm, lost });
    }
    context.warn(
        None,
        format!(
            "VM {} has its disks as before, and is protected against deletion now: a request to delete it may be under way{}",
            old.name,
            if old.snapshots.is_empty() { "" } else { "; its next backup may be a full one" }
        ),
    );
    take_back(context, old).await?;
    Ok(Fate::Back)
}

/// The first of the disks that were to go with the VM and is not there any more.
async fn lost(context: &Context, old: &Replace) -> Result<Option<String>> {
    for disk in &old.deleted {
        let doing = error::engine(format!("look at disk {}", disk.alias));
        if context.engine.disk(disk.id).await.map_err(doing)?.is_none() {
            return Ok(Some(disk.alias.clone()));
        }
    }
    Ok(None)
}

/// Name, kept disks, NICs and tags for the new VM. Each may be done already.
async fn take_place(context: &Context, replacing: &Replacing) -> Result<()> {
    let Replacing { old, new, nics, tags, .. } = replacing;
    let engine = &context.engine;
    let doing = || error::engine(format!("look at VM {}", replacing.temporary));
    let Some(vm) = engine.find_vm(*new).await.map_err(doing())? else {
        let text = format!("VM {} ({new}) is gone: somebody has deleted it", replacing.temporary);
        context.warn(None, text);
        return Ok(());
    };
    if !is_marked(context, vm.description.as_deref()) {
        // All of this was done, and the mark taken off, or it is not ours.
        return if vm.name == old.name {
            Ok(())
        } else {
            Err(RunError::Foreign { what: format!("VM {}", vm.name) })
        };
    }
    if vm.name != old.name {
        context.phase(None, format!("giving the new VM the name {}", old.name));
        let doing = error::engine(format!("rename {} to {}", vm.name, old.name));
        engine.rename_vm(*new, &old.name).await.map_err(doing)?;
    }
    attach(context, old, *new).await?;
    let doing = || error::engine(format!("look at the NICs of {}", old.name));
    let (_, there) = engine.nics(*new).await.map_err(doing())?;
    for nic in nics.iter().filter(|nic| !there.iter().any(|have| have.name == nic.name)) {
        add_late_nic(context, *new, nic).await?;
    }
    super::add_tags(context, *new, tags).await;
    Ok(())
}

/// Adds a NIC when there is no way back any more. Its address or profile was free when all was
/// planned; what the engine refuses meanwhile it gets without, and that is told.
async fn add_late_nic(context: &Context, vm: VmId, nic: &NicTarget) -> Result<()> {
    use EngineError::{Conflict, Fault, NotFound};
    let refused = |cause: &RunError| {
        matches!(
            cause,
            RunError::Engine { cause: Conflict { .. } | Fault { .. } | NotFound { .. }, .. }
        )
    };
    let told = |what: &str, cause: &RunError| {
        context.warn(None, format!("NIC {} {what}: {}", nic.name, crate::chain(cause)));
    };
    let cause = match add_nic(context, vm, nic).await {
        Err(cause) if refused(&cause) => cause,
        other => return other,
    };
    let mut less = nic.clone();
    if less.mac.take().is_some() {
        match add_nic(context, vm, &less).await {
            Err(second) if refused(&second) => {}
            other => {
                told("gets a new MAC address", &cause);
                return other;
            }
        }
    }
    if less.profile.take().is_none() {
        return Err(cause);
    }
    told("is in no network, and has a new MAC address", &cause);
    add_nic(context, vm, &less).await
}

/// The descriptions that the VM and its disks had; the VM's last, since by it is seen that all
/// else is done.
async fn take_marks_off(context: &Context, replacing: &Replacing) -> Result<()> {
    for disk in &replacing.old.deleted {
        let doing = error::engine(format!("look at disk {}", disk.alias));
        if context.engine.disk(disk.id).await.map_err(doing)?.is_some() {
            let text = format!("disk {} of the old VM is still being deleted", disk.alias);
            context.phase(None, text);
        }
    }
    for (disk, text) in &replacing.disks {
        let described = context.engine.describe_disk(*disk, Some(replacing.new), text).await;
        if !described.is_ok_and(|done| done) {
            context.warn(None, format!("disk {disk} keeps our mark as description"));
        }
    }
    let text = &replacing.description;
    if let Err(cause) = context.engine.describe_vm(replacing.new, text).await {
        context
            .warn(None, format!("the VM keeps our mark as description: {}", crate::chain(&cause)));
    }
    Ok(())
}

/// A job that dies may have asked for one more disk to be detached, and the engine comes to it after
/// all was taken back. What is late is awaited for a while.
async fn await_late_detach(context: &Context, old: &Replace) -> Result<()> {
    let doing = || error::engine(format!("look at the disks of {}", old.name));
    let until = std::time::Instant::now() + LATE;
    let mut next = None;
    while std::time::Instant::now() < until {
        let there = match context.engine.attachments(old.vm).await {
            Err(cause) if cause.is_not_found() => return Ok(()),
            other => other.map_err(doing())?.1,
        };
        let attached = |disk: &&KeptDisk| there.iter().any(|a| a.disk_id == disk.id);
        let first = old.kept.iter().find(attached).map(|disk| disk.id);
        // None is left, or the one that was late is detached now.
        if first.is_none() || next.is_some_and(|next| Some(next) != first) {
            break;
        }
        next = first;
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// How the replacement of a dead job was ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Settled {
    /// There is none.
    None,
    /// The new VM is in its place. Its steps are settled.
    Forward(Box<Replacing>),
    /// The old VM is as it was; the other steps are to be undone.
    Back,
}

/// Ends the replacement of a dead job, whose journal the caller has taken over.
///
/// # Errors
/// It could not be ended: none of the steps that made the new VM may be undone.
pub(crate) async fn settle_dead(
    context: &Context,
    journal: &Journal,
    view: &JournalView,
) -> Result<Settled> {
    let Some((step, replacing)) = find(view) else { return Ok(Settled::None) };
    let (repository, vm, id) = (context.repository.clone(), replacing.old.vm, context.job);
    let _lock = blocking("lock the VM", move || repository.lock_vm(vm, id)).await?;
    let noted = || error::repository("write the journal");
    let fate = match step.state {
        StepState::Done => fate(context, &replacing.old).await?,
        // The deletion was not asked for.
        _ => {
            await_late_detach(context, &replacing.old).await?;
            take_back(context, &replacing.old).await.map(|_| Fate::Back)?
        }
    };
    if fate == Fate::Back {
        journal.undone(step.id).map_err(noted())?;
        return Ok(Settled::Back);
    }
    let ended = async {
        take_place(context, &replacing).await?;
        for made in view.unsettled().filter(|made| made_by_restore(made)) {
            journal.undone(made.id).map_err(noted())?;
        }
        take_marks_off(context, &replacing).await?;
        journal.undone(step.id).map_err(noted())
    };
    ended.await.map_err(|cause| halted(&replacing, cause))?;
    Ok(Settled::Forward(Box::new(replacing)))
}

/// The replacement that a journal holds.
pub(crate) fn find(view: &JournalView) -> Option<(&StepView, Replacing)> {
    view.unsettled().find_map(|step| match serde_json::from_value(step.step.clone()) {
        Ok(Step::Replace { replacing }) => Some((step, *replacing)),
        _ => None,
    })
}

/// Whether a step is a VM or a disk that a restore has made.
pub(crate) fn made_by_restore(step: &StepView) -> bool {
    let step = serde_json::from_value(step.step.clone());
    matches!(step, Ok(Step::Vm { .. } | Step::Disk { .. }))
}
