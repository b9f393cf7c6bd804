//! The restore job: disks made and filled first, then the VM around them.
//!
//! Invariant: until the very end everything that was made is in the journal as ours to
//! undo, newest first; a VM or disk that this job did not make is never touched.

mod replace;
mod template;

use hvbak_engine::{
    NewAttachment, NewNic,
    ovf::{self, Edit},
};
use hvbak_plan::{NicTarget, PointDisk, PointFacts, RestoreFormat, RestoreKind, RestorePlan};
use hvbak_repo::{Point, Repository};
use hvbak_types::{CLUSTER_SIZE, DiskId, DiskInterface, Inventory, TemplateId, VmId, VmStatus};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{
    access::Access,
    base,
    documents::{self, Facts},
    error::{self, Result, RunError},
    event::Event,
    hosts,
    job::{Context, Job, Open, blocking},
    journal::{Outcome, Step},
    write_disk,
};

pub use self::replace::{Replacing, old_vm};
pub(crate) use self::replace::{Settled, find as find_replacement, made_by_restore, settle_dead};

/// A restored VM, or a template that was made of one.
#[derive(Debug, Clone, Serialize)]
pub struct Restored {
    /// With a template: the VM in between, which is gone.
    pub vm: VmId,
    pub template: Option<TemplateId>,
    pub disks: Vec<RestoredDisk>,
    /// Why the VM was not started although that was asked for.
    pub not_started: Option<String>,
    /// What could not be undone yet, in words.
    pub left_behind: Vec<String>,
}

/// Which new disk came from which stored one.
#[derive(Debug, Clone, Serialize)]
pub struct RestoredDisk {
    pub source: DiskId,
    pub disk: DiskId,
    pub alias: String,
}

/// What a point holds, as the restore plan wants it.
pub fn point_facts(repository: &Repository, point: &Point) -> Result<PointFacts> {
    let manifest = &point.manifest;
    let facts =
        match point.document(documents::FACTS).map_err(error::repository("read the point"))? {
            None => Facts::default(),
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|e| RunError::Document {
                name: documents::FACTS.into(),
                why: e.to_string(),
            })?,
        };
    let mut disks = Vec::new();
    for d in &manifest.disks {
        let chain = repository
            .disk_chain(point, d.record.id)
            .map_err(error::repository("read the point"))?;
        let held = chain.iter().filter_map(|p| p.manifest.disk(d.record.id));
        disks.push(PointDisk {
            id: d.record.id,
            alias: d.alias.clone(),
            virtual_size: d.record.virtual_size,
            // Layers hide parts of each other: at the most, and never more than the disk.
            data_bytes: held
                .fold(0u64, |sum, d| sum.saturating_add(d.record.data_clusters))
                .saturating_mul(CLUSTER_SIZE)
                .min(d.record.virtual_size),
            format: match (d.format.as_deref(), d.sparse) {
                (Some("raw"), Some(false)) => RestoreFormat::RawPreallocated,
                (Some("raw"), _) => RestoreFormat::RawSparse,
                _ => RestoreFormat::Cow,
            },
            domain: d.domain,
            domain_name: d.domain_name.clone(),
            interface: d.interface.clone(),
            bootable: d.bootable,
            active: d.active,
            read_only: d.read_only,
            pass_discard: d.pass_discard,
            wipe_after_delete: d.wipe_after_delete,
        });
    }
    Ok(PointFacts {
        point: manifest.point.clone(),
        vm: manifest.vm.id,
        name: manifest.vm.name.clone(),
        template: manifest.template.is_some(),
        cluster_name: manifest.vm.cluster.clone(),
        disks,
        nics: facts.nics.into_iter().map(Into::into).collect(),
        tags: facts.tags,
        left_out: manifest.skipped.iter().map(|d| (d.alias.clone(), d.reason.clone())).collect(),
    })
}

/// Executes a restore plan; on failure or cancellation undoes all of it.
///
/// # Errors
/// The first failure, after the undo. What could not be undone stays in the journal.
pub async fn restore(
    context: &Context,
    inventory: &Inventory,
    point: &Point,
    plan: &RestorePlan,
) -> Result<Restored> {
    let job = Job::start(context).await?;
    let total = plan.disks.iter().fold(0u64, |sum, disk| sum.saturating_add(disk.virtual_size));
    context.events.event(&Event::JobStarted {
        job: context.job,
        kind: "restore",
        total_bytes: Some(total),
    });
    for text in &plan.warnings {
        context.warn(None, text.clone());
    }
    // No backup of the VM begins that is to be replaced, and none is at work.
    let lock = match &plan.replace {
        None => Ok(None),
        Some(replace) => {
            let (repository, vm, id) = (context.repository.clone(), replace.vm, context.job);
            blocking("lock the VM", move || repository.lock_vm(vm, id)).await.map(Some)
        }
    };
    // The point may expire when its disks were read, and what was made is good all the same.
    let description = stored_description(point);
    let mut made = Vec::new();
    let (lock, result) = match lock {
        Err(cause) => (None, Err(cause)),
        Ok(lock) => (lock, execute(&job, inventory, point, plan, &mut made).await),
    };
    let result = match (result, &plan.replace) {
        (Ok(restored), Some(_)) => {
            succeed(&job, point, plan, &description, restored, &mut made).await
        }
        (result, _) => result,
    };
    let result = if let Ok(restored) = result {
        // From here on it is the user's, also when it does not start.
        match restored.template {
            Some(id) => template::finish(&job, id, &description, made).await.map(|()| restored),
            None => {
                for step in &made {
                    job.undone(step).await?;
                }
                finish(context, point, plan, &description, restored).await
            }
        }
    } else {
        if !made.is_empty() {
            context.phase(None, "undoing what was made");
        }
        for step in made.iter().rev() {
            match undo(context, &step.step).await {
                Ok(_) => job.undone(step).await?,
                Err(cause) => context.warn(None, crate::chain(&cause)),
            }
        }
        result
    };
    drop(lock);
    let left_behind = job.end().await?;
    context.tell_left_behind(&left_behind);
    result.map(|restored| Restored { left_behind, ..restored })
}

/// Puts a VM that is complete but for its NICs into the place of the one that it replaces. What is
/// left in `made` is to be undone or settled.
async fn succeed(
    job: &Job,
    point: &Point,
    plan: &RestorePlan,
    description: &str,
    restored: Restored,
    made: &mut Vec<Open>,
) -> Result<Restored> {
    let Some(old) = plan.replace.clone() else { return Ok(restored) };
    let described = |disk: &RestoredDisk| {
        let stored = point.manifest.disk(disk.source).and_then(|d| d.description.clone());
        (disk.disk, stored.unwrap_or_default())
    };
    let replacing = Replacing {
        point: point.id().clone(),
        temporary: made_name(&job.context, plan),
        old,
        new: restored.vm,
        nics: plan.nics.clone(),
        tags: plan.tags.clone(),
        description: description.to_owned(),
        disks: restored.disks.iter().map(described).collect(),
    };
    match replace::replace(job, plan, &replacing, made).await {
        Ok(()) => {
            made.clear();
            Ok(restored)
        }
        Err(replace::Halted::Back(cause)) => Err(cause),
        Err(replace::Halted::Stays(cause)) => {
            made.clear();
            Err(cause)
        }
    }
}

/// What a VM is called while it is made.
fn made_name(context: &Context, plan: &RestorePlan) -> String {
    match &plan.replace {
        None => template::vm_name(context, plan),
        Some(_) => replace::temporary_name(&plan.name, context),
    }
}

async fn execute(
    job: &Job,
    inventory: &Inventory,
    point: &Point,
    plan: &RestorePlan,
    made: &mut Vec<Open>,
) -> Result<Restored> {
    let context = &job.context;
    // All disks are of this point as it is now, whatever a prune wants meanwhile.
    let (repository, of, id) = (context.repository.home_of(point), point.vm(), point.id().clone());
    let (held, point) = blocking("hold the point", move || {
        Ok((repository.hold_points(of)?, repository.point(of, &id)?))
    })
    .await?;
    let stored = template::Stored::of(&point)?;
    let mut disks = Vec::new();
    if let Some(choice) = &plan.host {
        let host = hosts::find_host(inventory, choice.id)?;
        context.phase(None, format!("connecting to {}", host.name));
        let access = Access::open(job, host).await?;
        let filled = fill_disks(job, &access, &point, plan, made, &mut disks).await;
        if let Err(cause) = access.close(job).await {
            context.warn(None, crate::chain(&cause));
        }
        filled?;
    }
    drop(held);
    let vm = match &stored {
        template::Stored::Ovf(ovf) => make_vm(job, plan, ovf, made).await?,
        template::Stored::Hardware(new) => template::make_vm(job, plan, new, made).await?,
    };
    for (disk, restored) in plan.disks.iter().zip(&disks) {
        context.check_cancel()?;
        let attachment = NewAttachment {
            disk: restored.disk,
            interface: DiskInterface::from_word(&disk.interface),
            bootable: disk.bootable,
            active: disk.active,
            read_only: disk.read_only.then_some(true),
            pass_discard: disk.pass_discard.then_some(true),
            uses_scsi_reservation: None,
        };
        let doing = error::engine(format!("attach disk {}", disk.alias));
        context.engine.attach_disk(vm, &attachment).await.map_err(doing)?;
    }
    if plan.replace.is_some() {
        // The VM that goes has its addresses still.
        return Ok(Restored {
            vm,
            template: None,
            disks,
            not_started: None,
            left_behind: Vec::new(),
        });
    }
    for nic in &plan.nics {
        context.check_cancel()?;
        add_nic(context, vm, nic).await?;
    }
    add_tags(context, vm, &plan.tags).await;
    let mut restored =
        Restored { vm, template: None, disks, not_started: None, left_behind: Vec::new() };
    if plan.kind == RestoreKind::Template {
        restored.template = Some(template::make(job, &point, plan, &restored, made).await?);
    }
    Ok(restored)
}

async fn add_nic(context: &Context, vm: VmId, nic: &NicTarget) -> Result<()> {
    let new = NewNic {
        name: nic.name.clone(),
        interface: nic.interface.clone(),
        mac: nic.mac.clone(),
        vnic_profile: nic.profile,
        linked: Some(nic.linked),
        plugged: Some(nic.plugged),
    };
    let doing = error::engine(format!("add NIC {}", nic.name));
    context.engine.add_nic(vm, &new).await.map_err(doing)?;
    Ok(())
}

async fn add_tags(context: &Context, vm: VmId, tags: &[String]) {
    for tag in tags {
        if let Err(cause) = context.engine.add_tag(vm, tag).await {
            context.warn(None, format!("tag `{tag}` was not set: {}", crate::chain(&cause)));
        }
    }
}

fn stored_description(point: &Point) -> String {
    template::Stored::of(point).map(|stored| stored.description()).unwrap_or_default()
}

/// Takes the marks off and starts the VM. What fails here does not undo a good restore.
async fn finish(
    context: &Context,
    point: &Point,
    plan: &RestorePlan,
    description: &str,
    mut restored: Restored,
) -> Result<Restored> {
    if plan.replace.is_none() {
        take_off(context, point, description, &restored).await;
    }
    if plan.power_on {
        context.phase(None, "starting the VM");
        if let Err(cause) = start(context, plan, restored.vm).await {
            let why = crate::chain(&cause);
            context.warn(None, format!("{} is restored and was not started: {why}", plan.name));
            restored.not_started = Some(why);
        }
    }
    Ok(restored)
}

async fn take_off(context: &Context, point: &Point, description: &str, restored: &Restored) {
    for disk in &restored.disks {
        let stored = point.manifest.disk(disk.source).and_then(|d| d.description.as_deref());
        let text = stored.unwrap_or_default();
        let described = context.engine.describe_disk(disk.disk, Some(restored.vm), text).await;
        if !described.is_ok_and(|done| done) {
            context.warn(None, format!("disk {} keeps our mark as description", disk.alias));
        }
    }
    if let Err(cause) = context.engine.describe_vm(restored.vm, description).await {
        context
            .warn(None, format!("the VM keeps our mark as description: {}", crate::chain(&cause)));
    }
}

async fn start(context: &Context, plan: &RestorePlan, vm: VmId) -> Result<()> {
    let doing = || error::engine(format!("start {}", plan.name));
    context.engine.start_vm(vm, None).await.map_err(doing())?;
    let up = [VmStatus::Up, VmStatus::PoweringUp];
    let limit = context.settings.timeouts.vm;
    context.engine.wait_vm_status(vm, &up, limit, &context.cancel).await.map_err(doing())?;
    Ok(())
}

/// What disks and the VM of an unfinished restore are described with.
fn mark(context: &Context) -> String {
    format!("hvbak:{}:{}", context.repository.id(), context.job)
}

/// Whether a description is such a mark of this repository.
fn is_marked(context: &Context, description: Option<&str>) -> bool {
    description.is_some_and(|d| d.starts_with(&base::own_prefix(context.repository.id())))
}

async fn fill_disks(
    job: &Job,
    access: &Access,
    point: &Point,
    plan: &RestorePlan,
    made: &mut Vec<Open>,
    disks: &mut Vec<RestoredDisk>,
) -> Result<()> {
    let context = &job.context;
    let mark = mark(context);
    for disk in &plan.disks {
        let (repository, point, source) = (context.repository.clone(), point.clone(), disk.source);
        let sized = disk.block && disk.format == RestoreFormat::Cow;
        let (reader, image_size) = blocking("open the stored disk", move || {
            let reader = repository.disk_reader(&point, source)?;
            let image_size = sized.then(|| reader.image_size()).transpose()?;
            Ok((reader, image_size))
        })
        .await?;
        context.phase(None, format!("making disk {}", disk.alias));
        let begun = write_disk::Begun::new(job, disk).await?;
        made.push(begun.step.clone());
        let (at, size) = begun.make(job, disk, plan.data_center, &mark, image_size).await?;
        context.phase(None, format!("filling disk {}", disk.alias));
        write_disk::fill(job, access, disk, reader, at, size).await?;
        disks.push(RestoredDisk { source: disk.source, disk: begun.id, alias: disk.alias.clone() });
    }
    Ok(())
}

fn stored_ovf(point: &Point) -> Result<String> {
    let unusable = |why: String| RunError::Document { name: documents::OVF.into(), why };
    let bytes = point
        .document(documents::OVF)
        .map_err(error::repository("read the point"))?
        .ok_or_else(|| unusable("the point does not hold it".into()))?;
    String::from_utf8(bytes).map_err(|e| unusable(e.to_string()))
}

async fn make_vm(
    job: &Job,
    plan: &RestorePlan,
    stored: &str,
    made: &mut Vec<Open>,
) -> Result<VmId> {
    let context = &job.context;
    context.check_cancel()?;
    let name = made_name(context, plan);
    context.phase(None, format!("making VM {name}"));
    // An id of our own choice is found again whatever becomes of the answer.
    let id = VmId::random();
    let edit = Edit {
        name: Some(name.clone()),
        vm_id: Some(id),
        description: Some(mark(context)),
        strip_nics: true,
        eject_cd: true,
        strip_quota: true,
        keep_delete_protection: false,
    };
    let edited = ovf::for_restore(stored, &edit)
        .map_err(|e| RunError::Document { name: documents::OVF.into(), why: crate::chain(&e) })?;
    let step = job.intent(Step::Vm { id, name: name.clone() }).await?;
    made.push(step.clone());
    let doing = || error::engine(format!("make VM {name}"));
    let created = context
        .engine
        .create_vm_from_ovf(&name, plan.cluster, &edited.ovf, false)
        .await
        .map_err(doing())?;
    let vm = created.entity.id;
    job.done(&step, Outcome { vm: Some(vm), ..Outcome::default() }).await?;
    if vm != id {
        return Err(RunError::Document {
            name: documents::OVF.into(),
            why: format!("the engine gave the VM the id {vm} instead of {id}"),
        });
    }
    let limit = context.settings.timeouts.vm;
    context
        .engine
        .wait_vm_status(vm, &[VmStatus::Down], limit, &context.cancel)
        .await
        .map_err(doing())?;
    Ok(vm)
}

/// Removes what a step made. Already gone is fine. Says whether something was there.
pub(crate) async fn undo(context: &Context, step: &Step) -> Result<bool> {
    let engine = &context.engine;
    // Not cancelled by Ctrl-C: this *is* the undoing.
    let never = CancellationToken::new();
    let limit = context.settings.timeouts.disk;
    match step {
        Step::Vm { id, name } => {
            let doing = || error::engine(format!("delete VM {name}"));
            let Some(vm) = engine.find_vm(*id).await.map_err(doing())? else { return Ok(false) };
            // A restore starts nothing before it is finished: one that runs is in use.
            let idle = matches!(vm.status, VmStatus::Down | VmStatus::ImageLocked);
            if !idle || !is_marked(context, vm.description.as_deref()) {
                return Err(RunError::Foreign { what: format!("VM {name}") });
            }
            let _ = engine.wait_vm_status(*id, &[VmStatus::Down], limit, &never).await;
            // Disks are steps of their own.
            engine.delete_vm(*id, true).await.map_err(doing())?;
            engine.wait_vm_gone(*id, limit, &never).await.map_err(doing())?;
            Ok(true)
        }
        Step::Disk { id, alias } => {
            let doing = || error::engine(format!("delete disk {alias}"));
            let Some(disk) = engine.disk(*id).await.map_err(doing())? else { return Ok(false) };
            if !is_marked(context, disk.description.as_deref()) {
                return Err(RunError::Foreign { what: format!("disk {alias}") });
            }
            let _ = engine.wait_disk_ok(*id, limit, &never).await;
            engine.delete_disk(*id).await.map_err(doing())?;
            engine.wait_disk_gone(*id, limit, &never).await.map_err(doing())?;
            Ok(true)
        }
        other => template::undo_named(context, other, &never).await,
    }
}
