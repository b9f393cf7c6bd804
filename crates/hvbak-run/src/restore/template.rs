//! A template from a point: the VM that was restored is copied by the engine, then deleted.
//!
//! Invariant: the template bears this job's mark until it is whole; only then is it the user's,
//! and only then does the VM in between go.

use hvbak_engine::{NewTemplate, NewVm, hardware_of_template};
use hvbak_plan::{RestoreKind, RestorePlan};
use hvbak_repo::Point;
use hvbak_types::{TemplateId, VmId, VmStatus};
use tokio_util::sync::CancellationToken;

use super::{Restored, mark, stored_ovf, undo};
use crate::{
    base, documents,
    error::{self, Result, RunError},
    job::{Context, Job, Open},
    journal::{Outcome, Step},
};

/// What a VM is made from.
pub(super) enum Stored {
    Ovf(String),
    /// Of a template there is no OVF.
    Hardware(NewVm),
}

impl Stored {
    /// Reads it from a point.
    pub(super) fn of(point: &Point) -> Result<Self> {
        if point.manifest.template.is_none() {
            return stored_ovf(point).map(Self::Ovf);
        }
        let name = documents::TEMPLATE;
        let unusable = |why: String| RunError::Document { name: name.into(), why };
        let bytes = point
            .document(name)
            .map_err(error::repository("read the point"))?
            .ok_or_else(|| unusable("the point does not hold it".into()))?;
        hardware_of_template(&bytes).map(Self::Hardware).map_err(|e| unusable(crate::chain(&e)))
    }

    /// What the original was described with.
    pub(super) fn description(&self) -> String {
        let text = match self {
            Self::Ovf(ovf) => hvbak_engine::ovf::read(ovf).ok().and_then(|read| read.description),
            Self::Hardware(new) => new.description.clone(),
        };
        text.unwrap_or_default()
    }
}

/// The name of the VM: for a template one that nobody else has, of letters that every engine
/// takes (at most 64).
pub(super) fn vm_name(context: &Context, plan: &RestorePlan) -> String {
    match plan.kind {
        RestoreKind::Vm => plan.name.clone(),
        RestoreKind::Template => format!("hvbak-template-{}", context.job),
    }
}

/// Makes a VM from the Blank template; the engine chooses its id.
pub(super) async fn make_vm(
    job: &Job,
    plan: &RestorePlan,
    hardware: &NewVm,
    made: &mut Vec<Open>,
) -> Result<VmId> {
    let context = &job.context;
    context.check_cancel()?;
    let (name, description) = (vm_name(context, plan), mark(context));
    context.phase(None, format!("making VM {name}"));
    let step =
        job.intent(Step::NamedVm { name: name.clone(), description: description.clone() }).await?;
    made.push(step.clone());
    let doing = || error::engine(format!("make VM {name}"));
    let new = NewVm { name: name.clone(), description: Some(description), ..hardware.clone() };
    let created = context.engine.create_vm(plan.cluster, &new).await.map_err(doing())?;
    let vm = created.entity.id;
    job.done(&step, Outcome { vm: Some(vm), ..Outcome::default() }).await?;
    let limit = context.settings.timeouts.vm;
    context
        .engine
        .wait_vm_status(vm, &[VmStatus::Down], limit, &context.cancel)
        .await
        .map_err(doing())?;
    Ok(vm)
}

/// Lets the engine copy the restored VM, and waits until the template is whole.
pub(super) async fn make(
    job: &Job,
    point: &Point,
    plan: &RestorePlan,
    restored: &Restored,
    made: &mut Vec<Open>,
) -> Result<TemplateId> {
    let context = &job.context;
    context.check_cancel()?;
    context.phase(None, format!("making template {}", plan.name));
    let described = |source| {
        let stored = point.manifest.disk(source).and_then(|d| d.description.clone());
        stored.unwrap_or_default()
    };
    let new = NewTemplate {
        name: plan.name.clone(),
        description: mark(context),
        cluster: plan.cluster,
        vm: restored.vm,
        disks: restored.disks.iter().map(|d| (d.disk, described(d.source))).collect(),
    };
    let intent = Step::Template { name: new.name.clone(), description: new.description.clone() };
    let step = job.intent(intent).await?;
    made.push(step.clone());
    let doing = || error::engine(format!("make template {}", plan.name));
    let template = context.engine.create_template(&new).await.map_err(doing())?.entity.id;
    job.done(&step, Outcome::default()).await?;
    // The engine copies all of the disks, as it does in a merge.
    let limit = context.settings.timeouts.merge;
    let engine = &context.engine;
    engine.wait_template_ok(template, limit, &context.cancel).await.map_err(doing())?;
    Ok(template)
}

/// The template is the user's; what it was made from goes. What fails here does not undo it.
pub(super) async fn finish(
    job: &Job,
    template: TemplateId,
    description: &str,
    made: Vec<Open>,
) -> Result<()> {
    let context = &job.context;
    let (templates, rest): (Vec<_>, Vec<_>) =
        made.into_iter().partition(|open| matches!(open.step, Step::Template { .. }));
    for step in &templates {
        job.undone(step).await?;
    }
    if let Err(cause) = context.engine.describe_template(template, description).await {
        let why = crate::chain(&cause);
        context.warn(None, format!("the template keeps our mark as description: {why}"));
    }
    context.phase(None, "deleting the VM in between");
    for step in rest.iter().rev() {
        match undo(context, &step.step).await {
            Ok(_) => job.undone(step).await?,
            Err(cause) => context.warn(None, crate::chain(&cause)),
        }
    }
    Ok(())
}

/// Removes a template that was begun, or a VM whose id the engine chose. Says whether there was
/// one. What has another description is somebody else's and is left alone.
pub(super) async fn undo_named(
    context: &Context,
    step: &Step,
    never: &CancellationToken,
) -> Result<bool> {
    let engine = &context.engine;
    let own = |text: &str| text.starts_with(&base::own_prefix(context.repository.id()));
    match step {
        Step::Template { name, description } if own(description) => {
            let doing = || error::engine(format!("delete template {name}"));
            let found = engine.described_template(name, description).await.map_err(doing())?;
            let Some(found) = found else { return Ok(false) };
            // One that is still copied cannot be deleted, and may vanish by itself.
            let limit = context.settings.timeouts.merge;
            let _ = engine.wait_template_ok(found.id, limit, never).await;
            engine.delete_template(found.id).await.map_err(doing())?;
            engine.wait_template_gone(found.id, limit, never).await.map_err(doing())?;
            Ok(true)
        }
        Step::NamedVm { name, description } if own(description) => {
            let doing = error::engine(format!("find VM {name}"));
            let found = engine.vms_named(name).await.map_err(doing)?;
            let ours =
                found.iter().find(|vm| vm.description.as_deref() == Some(description.as_str()));
            let Some(vm) = ours else { return Ok(false) };
            Box::pin(undo(context, &Step::Vm { id: vm.id, name: name.clone() })).await
        }
        Step::Template { name, .. } | Step::NamedVm { name, .. } => {
            Err(RunError::Foreign { what: name.clone() })
        }
        _ => Ok(false),
    }
}
