//! One template's backup: its disks as they are, without a snapshot and without a guest.
//!
//! Invariant: the point is published only when template and volumes are after the transfer
//! what they were before it; whatever happens, the worker is removed and the half-made point
//! discarded, or the journal says what is left. A transfer that was cut begins anew.

use std::{collections::HashMap, sync::Arc};

use hvbak_plan::{
    DiskAction, StoredTemplate, TemplateFacts, VmAction, VmPlan, VmSkip, Wish, plan_template,
};
use hvbak_repo::{
    Consistency, Manifest, ManifestDisk, ManifestTemplate, ManifestVm, Point, Repository,
    SkippedDisk, Staging, VmLock,
};
use hvbak_types::{Inventory, SnapshotDisk, Tag, TemplateId, VmId};

use crate::{
    backup::Wishes,
    backup_vm::{check_space, close, connect},
    base,
    documents::{self, Facts},
    error::{self, Result, RunError},
    event::Event,
    job::{Context, Job, blocking},
    journal::Step,
    pump::Rate,
    read_disk::{DiskSource, read_disk},
};

/// What a plan wants to know of templates. One that is gone is not among them.
///
/// # Errors
/// Engine or repository cannot be read.
pub async fn template_facts(
    context: &Context,
    inventory: &Inventory,
    wanted: &[TemplateId],
) -> Result<Vec<TemplateFacts>> {
    let mut out = Vec::new();
    for id in wanted {
        context.check_cancel()?;
        let doing = || error::engine(format!("read template {id}"));
        let Some(template) = context.engine.find_template(*id).await.map_err(doing())? else {
            continue;
        };
        let (_, attachments) = context.engine.template_attachments(*id).await.map_err(doing())?;
        let (repository, of) = (context.repository.clone(), VmId::new(id.uuid()));
        let stored = blocking("look for the template's points", move || {
            let listing = repository.points(of)?;
            let whole = listing.points.iter().rev().filter_map(|p| stored(&repository, p));
            Ok(whole.collect())
        })
        .await?;
        out.push(TemplateFacts { template, attachments, stored }.on_active_domains(inventory));
    }
    Ok(out)
}

/// A point whose files are there in the length that they had.
fn stored(repository: &Repository, point: &Point) -> Option<StoredTemplate> {
    point.manifest.template.as_ref()?;
    let disks = &point.manifest.disks;
    if disks.iter().any(|disk| base::damage(repository, point, disk.record.id).is_some()) {
        return None;
    }
    let disks =
        disks.iter().map(|d| (d.record.id, d.record.virtual_size, d.volumes.last().copied()));
    Some(StoredTemplate { point: point.id().clone(), disks: disks.collect() })
}

/// Stores one template; gives the published point's manifest, or that of the point in which
/// somebody has stored it since it was planned.
pub(crate) async fn backup_template(
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
    let (repository, of, id) = (context.repository.clone(), plan.id, context.job);
    let lock = Arc::new(blocking("lock the template", move || repository.lock_vm(of, id)).await?);
    let facts = look(context, inventory, plan).await?;
    let again = plan.wish == Wish::Full;
    let mut fresh = plan_template(&wishes.input(inventory), &facts, again, &mut HashMap::new());
    match &fresh.action {
        VmAction::Skip { skip: VmSkip::Stored { point } } => {
            let (repository, point) = (context.repository.clone(), point.clone());
            let found = blocking("read the point", move || repository.point(of, &point)).await?;
            return Ok(found.manifest);
        }
        VmAction::Skip { skip } => return Err(RunError::NotNow { why: skip.to_string() }),
        VmAction::Backup => fresh.host.clone_from(&plan.host),
    }
    let (repository, held) = (context.repository.clone(), lock.clone());
    blocking("remove half-made points", move || repository.sweep_partials(&held, None)).await?;
    check_space(context, &fresh, 0).await?;
    let turn = Turn { job, inventory, plan: &fresh, facts: &facts, wishes, rate };
    turn.store(&lock).await
}

async fn look(context: &Context, inventory: &Inventory, plan: &VmPlan) -> Result<TemplateFacts> {
    let facts = template_facts(context, inventory, &[TemplateId::new(plan.id.uuid())]).await?;
    let gone = || RunError::NotNow { why: "the engine does not know it any more".into() };
    facts.into_iter().next().ok_or_else(gone)
}

/// A template whose turn it is: planned and locked.
struct Turn<'a> {
    job: &'a Job,
    inventory: &'a Inventory,
    plan: &'a VmPlan,
    facts: &'a TemplateFacts,
    wishes: &'a Wishes,
    rate: &'a Arc<Rate>,
}

impl Turn<'_> {
    async fn store(&self, lock: &Arc<VmLock>) -> Result<Manifest> {
        let Self { job, plan, .. } = *self;
        let context = &job.context;
        let started = jiff::Timestamp::now();
        let point = context.repository.new_point_id(plan.id, started);
        let partial = job.intent(Step::Partial { vm: plan.id, point: point.clone() }).await?;
        let (repository, held, name) = (context.repository.clone(), lock.clone(), point.clone());
        let staging = blocking("begin the point", move || repository.stage(&held, &name)).await;
        let made = match staging {
            Ok(staging) => self.fill(staging, self.manifest(&point, started)).await,
            Err(cause) => Err(cause),
        };
        let made = match made {
            Ok((staging, manifest)) => {
                context.phase(Some(plan.id), "publishing the point");
                blocking("publish the point", move || staging.publish(manifest)).await
            }
            Err(cause) => Err(cause),
        };
        if made.is_err() {
            let (repository, held) = (context.repository.clone(), lock.clone());
            let doing = "discard the half-made point";
            blocking(doing, move || repository.remove_partial(&held, &point)).await?;
        }
        job.undone(&partial).await?;
        made.map(|point| point.manifest)
    }

    fn manifest(&self, point: &hvbak_types::PointId, started: jiff::Timestamp) -> Manifest {
        let Self { job, inventory, plan, facts, .. } = *self;
        let template = &facts.template;
        let cluster = inventory.clusters.iter().find(|c| Some(c.id) == template.cluster);
        let center = inventory.data_centers.iter().find(|d| Some(d.id) == plan.data_center);
        let vm = ManifestVm {
            id: plan.id,
            name: plan.name.clone(),
            cluster: cluster.map(|c| c.name.clone()),
            data_center: center.map(|d| d.name.clone()),
            status: template.status.clone(),
        };
        let repository = job.context.repository.id();
        let mut manifest = Manifest::new(repository, point.clone(), vm, job.context.job, started);
        manifest.template = Some(ManifestTemplate {
            base: template.base_template,
            version: template.version_number,
            version_name: template.version_name.clone(),
        });
        manifest.consistency = Consistency::Offline;
        manifest.engine_version = Some(job.context.engine.version().full.clone());
        manifest.warnings = plan.warnings.clone();
        manifest.policy = self.wishes.policy.clone();
        for disk in &plan.disks {
            if let DiskAction::Skip { skip } = &disk.action {
                let (id, alias, reason) = (disk.id, disk.alias.clone(), skip.to_string());
                manifest.skipped.push(SkippedDisk { id, alias, reason });
            }
        }
        manifest
    }

    /// Documents and disks.
    async fn fill(&self, staging: Staging, mut manifest: Manifest) -> Result<(Staging, Manifest)> {
        let Self { job, inventory, plan, .. } = *self;
        let context = &job.context;
        context.phase(Some(plan.id), "reading the template's configuration");
        self.store_documents(&staging).await?;
        if plan.chosen_disks().next().is_some() {
            let (access, center) = connect(job, inventory, plan).await?;
            context.phase(Some(plan.id), "opening the disks");
            let read = self.read_all(&access, center, &staging).await;
            close(job, plan, access).await;
            manifest.disks = read?;
        }
        let after = look(context, inventory, plan).await?;
        if frozen(&after) != frozen(self.facts) {
            let what = "the engine shows other disks of it than before the transfer".into();
            return Err(RunError::Changed { alias: plan.name.clone(), what });
        }
        manifest.finished = jiff::Timestamp::now();
        Ok((staging, manifest))
    }

    async fn read_all(
        &self,
        access: &crate::access::Access,
        center: hvbak_types::DataCenterId,
        staging: &Staging,
    ) -> Result<Vec<ManifestDisk>> {
        let Self { job, plan, facts, rate, .. } = *self;
        let (mut disks, mut sessions) = (Vec::new(), None);
        let frozen = frozen(facts);
        for disk in plan.chosen_disks() {
            let source =
                DiskSource { plan: disk, frozen: &frozen, base: None, data_center: center, rate };
            let attachments = &facts.attachments;
            let (record, back) =
                read_disk(job, access, &source, attachments, sessions.take(), staging).await?;
            sessions = Some(back);
            disks.push(record);
        }
        for session in sessions.into_iter().flatten() {
            // The worker has given all it had; a bad goodbye changes nothing of that.
            let _ = session.bye().await;
        }
        Ok(disks)
    }

    async fn store_documents(&self, staging: &Staging) -> Result<()> {
        let Self { job, inventory, facts, .. } = *self;
        let (engine, id) = (&job.context.engine, facts.template.id);
        let doing = || error::engine(format!("read the configuration of template {id}"));
        let (template_xml, _) = engine.template_document(id).await.map_err(doing())?;
        let (attachments_xml, _) = engine.template_attachments(id).await.map_err(doing())?;
        let (nics_xml, nics) = engine.template_nics(id).await.map_err(doing())?;
        let (tags_xml, tags) = match engine.template_tags(id).await {
            // Tags are a comfort, and not every engine has them of templates.
            Err(cause)
                if cause.is_not_found()
                    || matches!(cause, hvbak_engine::EngineError::Forbidden { .. }) =>
            {
                (b"<tags/>".to_vec(), Vec::<Tag>::new())
            }
            other => other.map_err(doing())?,
        };
        let kept = Facts {
            nics: nics.iter().map(|nic| documents::resolve(inventory, nic)).collect(),
            tags: tags.into_iter().map(|tag| tag.name).collect(),
        };
        let name = documents::FACTS;
        let kept = serde_json::to_vec_pretty(&kept)
            .map_err(|e| RunError::Document { name: name.into(), why: e.to_string() })?;
        let files = [
            (documents::TEMPLATE, template_xml),
            ("attachments.xml", attachments_xml),
            ("nics.xml", nics_xml),
            ("tags.xml", tags_xml),
            (name, kept),
        ];
        let staging = staging.clone();
        blocking("store the template's configuration", move || {
            files.iter().try_for_each(|(name, bytes)| staging.put_document(name, bytes))
        })
        .await
    }
}

/// The disks as a snapshot would name them: a template's volumes are frozen for good.
fn frozen(facts: &TemplateFacts) -> Vec<SnapshotDisk> {
    let disk = |attachment: &hvbak_types::Attachment| {
        let disk = attachment.disk.clone()?;
        Some(SnapshotDisk {
            disk_id: disk.id,
            volume: disk.image_id?,
            alias: disk.alias,
            format: disk.format,
            sparse: disk.sparse,
            provisioned_size: disk.provisioned_size,
            actual_size: disk.actual_size,
            status: disk.status,
            storage_domains: disk.storage_domains,
        })
    };
    facts.attachments.iter().filter_map(disk).collect()
}
