//! One VM's backup: plan again under its lock, snapshot, read, compare, publish, settle.
//!
//! Invariant: whatever happens, the guest is thawed, no more than one snapshot of ours
//! stays, the worker is removed and the half-made point discarded, or the journal says
//! what is left. One thing is left on purpose: when the way to the host is lost in the
//! middle of a transfer, the half-made point and its snapshot wait for the next run.

use std::sync::Arc;

use hvbak_plan::{DiskAction, Resume, VmAction, VmPlan, Wish, plan_again};
use hvbak_repo::{
    Consistency, Level, Manifest, ManifestDisk, ManifestSnapshot, ManifestVm, SkippedDisk, Staging,
    VmLock,
};
use hvbak_types::{DataCenterId, Inventory, PointId, Snapshot, VmStatus};

use crate::{
    access::Access,
    backup::Wishes,
    base,
    documents::{self, Documents},
    error::{self, Result, RunError},
    event::Event,
    gather,
    hook::{HookMoment, Told},
    hosts,
    job::{Context, Job, Open, blocking},
    journal::Step,
    pump::Rate,
    read_disk::{DiskSource, read_disk},
    resume::{self, Noted},
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
    let (repository, vm, id) = (context.repository.clone(), plan.id, context.job);
    let lock = Arc::new(blocking("lock the VM", move || repository.lock_vm(vm, id)).await?);
    let (plan, snapshots) = &look_again(job, inventory, plan, wishes).await?;
    let turn = Turn { job, inventory, plan, rate, lock: &lock, snapshots, wishes };
    let made = match &plan.resume {
        None => turn.anew(None).await,
        Some(Resume::Discard { point, why }) => turn.anew(Some((point, why))).await,
        Some(Resume::Continue { point, .. }) => match turn.go_on(point).await {
            Err(RunError::Stale { what }) => turn.anew(Some((point, &what))).await,
            other => other,
        },
    };
    let told = match &made {
        Ok(manifest) => {
            turn.told().with("HVBAK_OUTCOME", "done").with("HVBAK_POINT", &manifest.point)
        }
        Err(_) => turn.told().with("HVBAK_OUTCOME", "failed"),
    };
    wishes.hooks.run(context, HookMoment::AfterVm, Some(&plan.name), &told).await?;
    made
}

/// The VM is planned once more: since the run began hours may have passed, disks may have
/// come, and only now nobody else can add a point.
async fn look_again(
    job: &Job,
    inventory: &Inventory,
    plan: &VmPlan,
    wishes: &Wishes,
) -> Result<(VmPlan, Vec<Snapshot>)> {
    let context = &job.context;
    let facts = gather::vm_facts(context, &[plan.id]).await?;
    let Some(facts) = facts.into_iter().next() else {
        return Err(RunError::NotNow { why: "the engine does not know it any more".into() });
    };
    let fresh = plan_again(&wishes.input(inventory), &facts, plan);
    if let VmAction::Skip { skip } = &fresh.action {
        return Err(RunError::NotNow { why: skip.to_string() });
    }
    Ok((fresh, facts.snapshots))
}

/// A VM whose turn it is: planned and locked.
struct Turn<'a> {
    job: &'a Job,
    inventory: &'a Inventory,
    plan: &'a VmPlan,
    rate: &'a Arc<Rate>,
    lock: &'a Arc<VmLock>,
    /// The VM's, as of the plan.
    snapshots: &'a [Snapshot],
    wishes: &'a Wishes,
}

/// A half-made point, ready for its disks.
struct Begun {
    staging: Staging,
    manifest: Manifest,
    /// `None`: no disk is read.
    reader: Option<Reader>,
}

/// What the disks are read with.
struct Reader {
    access: Access,
    center: DataCenterId,
    taken: Taken,
    docs: Documents,
}

impl Turn<'_> {
    /// Makes a point from the beginning. What earlier runs have left on the VM goes first;
    /// `discarded` is a half-made point that could have been gone on with, and why it is not.
    async fn anew(&self, discarded: Option<(&PointId, &String)>) -> Result<Manifest> {
        let Self { job, plan, .. } = *self;
        let context = &job.context;
        let mut plan = plan.clone();
        if let Some((point, why)) = discarded {
            let text = format!("half-made point {point} is discarded: {why}");
            context.warn(Some(plan.id), format!("{}: {text}", plan.name));
            plan.warnings.push(text);
        }
        // Before their snapshots: a merge that fails gives a snapshot back that was written to.
        let swept = self.sweep_partials(None).await?;
        check_space(context, &plan, 0).await?;
        base::sweep(job, &plan, self.snapshots, None).await?;
        for point in swept {
            let description = snapshot::description(context, &point);
            resume::settle(job, plan.id, &point, &description).await?;
        }
        let started = jiff::Timestamp::now();
        let point = context.repository.new_point_id(plan.id, started);
        let partial = job.intent(Step::Partial { vm: plan.id, point: point.clone() }).await?;
        let vm = ManifestVm {
            id: plan.id,
            name: plan.name.clone(),
            cluster: None,
            data_center: None,
            status: None,
        };
        let id = context.repository.id();
        let manifest = Manifest::new(id, point.clone(), vm, context.job, started);
        let (repository, lock) = (context.repository.clone(), self.lock.clone());
        let staging = blocking("begin the point", move || repository.stage(&lock, &point)).await?;
        let turn = Turn { plan: &plan, ..*self };
        let begun = turn.begin(manifest, staging).await;
        turn.complete(partial, begun).await
    }

    /// Goes on with a half-made point. Nothing of it is touched before the host answers.
    ///
    /// # Errors
    /// [`RunError::Stale`]: it is of no use any more, and gone.
    async fn go_on(&self, point: &PointId) -> Result<Manifest> {
        let Self { job, inventory, plan, .. } = *self;
        let context = &job.context;
        if let Some(Resume::Continue { data_bytes, .. }) = &plan.resume {
            check_space(context, plan, *data_bytes).await?;
        }
        let noted = resume::noted(context, plan.id, point).await?;
        context.phase(Some(plan.id), format!("going on with the transfer of {:.0}", noted.taken));
        base::sweep(job, plan, self.snapshots, Some(noted.snapshot)).await?;
        self.sweep_partials(Some(point)).await?;
        let docs = documents::fetch(context, inventory, plan.id).await?;
        let (access, center) = match connect(job, inventory, plan).await {
            Err(cause) if cause.is_cut() => {
                return Err(RunError::Cut { point: point.clone(), cause: Box::new(cause) });
            }
            other => other?,
        };
        let taken_over = async {
            let partial = job.intent(Step::Partial { vm: plan.id, point: point.clone() }).await?;
            let (vm, vm_name) = (plan.id, plan.name.clone());
            let description = noted.description.clone();
            let step = job.intent(Step::Snapshot { vm, vm_name, description }).await?;
            resume::settle(job, plan.id, point, &noted.description).await?;
            Ok((partial, step))
        };
        let (partial, step) = match taken_over.await {
            Ok(steps) => steps,
            Err(cause) => {
                close(job, plan, access).await;
                return Err(cause);
            }
        };
        let opened = async {
            let (repository, lock, point) =
                (context.repository.clone(), self.lock.clone(), point.clone());
            let opened = move || match repository.resume(&lock, &point) {
                Err(hvbak_repo::Error::Damaged { why, .. }) => Ok(Err(why)),
                other => other.map(Ok),
            };
            let staging = blocking("open the half-made point", opened).await?;
            let staging = staging.map_err(|what| RunError::Stale { what })?;
            Ok((staging, snapshot::adopt(job, plan, &noted, step.clone()).await?))
        };
        let begun = match opened.await {
            Ok((staging, taken)) => {
                let mut manifest = noted.manifest;
                manifest.job = context.job;
                manifest.warnings.push(format!(
                    "the transfer was cut and went on at {:.0}; the content is of {:.0}",
                    jiff::Timestamp::now(),
                    noted.taken
                ));
                Ok(Begun {
                    staging,
                    manifest,
                    reader: Some(Reader { access, center, taken, docs }),
                })
            }
            Err(cause) => {
                close(job, plan, access).await;
                self.delete(&step, &noted.description).await;
                Err(cause)
            }
        };
        self.complete(partial, begun).await
    }

    async fn sweep_partials(&self, but: Option<&PointId>) -> Result<Vec<PointId>> {
        let (repository, lock) = (self.job.context.repository.clone(), self.lock.clone());
        let but = but.cloned();
        let doing = "remove half-made points";
        blocking(doing, move || repository.sweep_partials(&lock, but.as_ref())).await
    }

    /// Deletes the snapshot of a point that comes to nothing; what stays is in the journal.
    /// The half-made point goes before it: when the merge fails, the snapshot is there again
    /// with more in it than what was read, and nothing may be gone on with.
    async fn delete(&self, step: &Open, description: &str) {
        if let Err(cause) = self.sweep_partials(None).await {
            self.job.context.warn(Some(self.plan.id), crate::chain(&cause));
            return;
        }
        if let Err(undo) = snapshot::delete(self.job, self.plan, step, description).await {
            self.job.context.warn(Some(self.plan.id), crate::chain(&undo));
        }
    }

    /// Reads the disks and publishes, or discards; a transfer that was cut is kept.
    async fn complete(&self, partial: Open, begun: Result<Begun>) -> Result<Manifest> {
        let Self { job, plan, .. } = *self;
        let context = &job.context;
        let read = match begun {
            Ok(begun) => self.fill(begun).await,
            Err(cause) => Err(cause),
        };
        let settled = match read {
            Ok((staging, manifest, taken)) => {
                context.phase(Some(plan.id), "publishing the point");
                let published =
                    blocking("publish the point", move || staging.publish(manifest)).await;
                if published.is_err() {
                    self.sweep_partials(None).await?;
                }
                settle_snapshots(job, plan, taken, published.is_ok()).await;
                published.map(|p| p.manifest)
            }
            Err(cause) => Err(cause),
        };
        match &settled {
            Ok(_) => {}
            Err(RunError::Cut { .. }) => {
                job.kept(&partial).await?;
                return settled;
            }
            Err(_) => {
                let (repository, lock) = (context.repository.clone(), self.lock.clone());
                let Step::Partial { point, .. } = partial.step.clone() else { return settled };
                let doing = "discard the half-made point";
                blocking(doing, move || repository.remove_partial(&lock, &point)).await?;
            }
        }
        job.undone(&partial).await?;
        settled
    }
}

/// Once the fate of the point is known: one snapshot of ours stays, the one that the next
/// delta stands on. What cannot be deleted stays in the journal, and the next run tries
/// again before it makes another.
async fn settle_snapshots(job: &Job, plan: &VmPlan, taken: Option<Taken>, published: bool) {
    let context = &job.context;
    let Some(taken) = taken else { return };
    let result = async {
        if !published {
            return snapshot::delete(job, plan, &taken.step, &taken.description).await;
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
/// known before. Less than the whole bound is worth a warning. `there` is what of it is
/// stored already.
pub(crate) async fn check_space(context: &Context, plan: &VmPlan, there: u64) -> Result<()> {
    let repository = context.repository.clone();
    let bytes = plan.expected_bytes.saturating_sub(there);
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

impl Turn<'_> {
    /// Everything up to the first byte of a disk: documents, host, snapshot, and the note for
    /// a run that goes on. When it fails, snapshot and worker are gone.
    async fn begin(&self, mut manifest: Manifest, staging: Staging) -> Result<Begun> {
        let Self { job, inventory, plan, .. } = *self;
        let context = &job.context;
        context.phase(Some(plan.id), "reading the VM's configuration");
        let docs = documents::fetch(context, inventory, plan.id).await?;
        manifest.vm.cluster = docs.cluster.clone();
        manifest.vm.data_center = docs.data_center.clone();
        manifest.vm.status = Some(docs.vm.status.to_string());
        manifest.engine_version = Some(context.engine.version().full.clone());
        manifest.warnings = plan.warnings.clone();
        manifest.policy = self.wishes.policy.clone();
        for disk in &plan.disks {
            if let DiskAction::Skip { skip } = &disk.action {
                manifest.skipped.push(SkippedDisk {
                    id: disk.id,
                    alias: disk.alias.clone(),
                    reason: skip.to_string(),
                });
            }
        }
        store_documents(&staging, &docs).await?;
        if plan.chosen_disks().next().is_none() {
            manifest.consistency = Consistency::Offline;
            return Ok(Begun { staging, manifest, reader: None });
        }
        // A host that cannot be reached is noticed before the guest is touched.
        let (access, center) = connect(job, inventory, plan).await?;
        let running = docs.vm.status != VmStatus::Down;
        let taken = match self.take(&manifest.point, running).await {
            Ok(taken) => taken,
            Err(cause) => {
                close(job, plan, access).await;
                return Err(cause);
            }
        };
        manifest.consistency = taken.consistency;
        // Started in between: its disks were written while the snapshot was made. Who cannot
        // be asked may have been.
        if !running && is_up(context, plan).await.unwrap_or(true) {
            manifest.consistency = Consistency::Crash;
        }
        if let Err(cause) = Noted::of(plan, &manifest, &taken).store(&staging).await {
            close(job, plan, access).await;
            self.delete(&taken.step, &taken.description).await;
            return Err(cause);
        }
        Ok(Begun { staging, manifest, reader: Some(Reader { access, center, taken, docs }) })
    }

    /// Takes the snapshot between the commands that want to know of it.
    async fn take(&self, point: &PointId, running: bool) -> Result<Taken> {
        let Self { job, plan, wishes, .. } = *self;
        let (context, vm) = (&job.context, Some(plan.name.as_str()));
        let told = self.told().with("HVBAK_POINT", point);
        let hooks = &wishes.hooks;
        let ready = hooks.run(context, HookMoment::BeforeSnapshot, vm, &told).await;
        let taken = match ready {
            Ok(()) => snapshot::take(job, plan, point, running).await,
            Err(cause) => Err(cause),
        };
        let outcome = if taken.is_ok() { "done" } else { "failed" };
        let told = told.with("HVBAK_OUTCOME", outcome);
        hooks.run(context, HookMoment::AfterSnapshot, vm, &told).await?;
        taken
    }

    /// What commands are told of the VM.
    fn told(&self) -> Told {
        self.wishes.told().with("HVBAK_VM", &self.plan.name).with("HVBAK_VM_ID", self.plan.id)
    }

    /// Everything between the begun and the complete staging directory. The worker is gone
    /// when this returns, and so is the snapshot unless the next delta is to stand on it, or
    /// a transfer that was cut is to go on.
    async fn fill(&self, begun: Begun) -> Result<(Staging, Manifest, Option<Taken>)> {
        let Self { job, plan, rate, .. } = *self;
        let context = &job.context;
        let Begun { staging, mut manifest, reader } = begun;
        let Some(Reader { access, center, taken, docs }) = reader else {
            return Ok((staging, manifest, None));
        };
        context.phase(Some(plan.id), "opening the disks");
        let reading = Reading { access: &access, center, taken: &taken, docs: &docs, rate };
        let result = read_all(job, plan, &reading, &staging).await;
        close(job, plan, access).await;
        let disks = match result {
            Ok(disks) => disks,
            Err(cause) => {
                let point = manifest.point;
                if cause.is_cut()
                    // See `hvbak_plan::may_continue`.
                    && plan.wish != Wish::Full
                    && resume::is_worth(context, plan.id, &point).await
                {
                    job.kept(&taken.step).await?;
                    return Err(RunError::Cut { point, cause: Box::new(cause) });
                }
                self.delete(&taken.step, &taken.description).await;
                return Err(cause);
            }
        };
        let stands_on_base = disks.iter().any(|d| d.record.parent.is_some());
        let differential = stands_on_base && plan.wish == Wish::Differential;
        let kept = context.settings.keep_snapshot && !differential && !plan.base_stays;
        manifest.snapshot =
            Some(ManifestSnapshot { id: taken.id, description: taken.description.clone(), kept });
        manifest.parent = disks.iter().find_map(|d| d.record.parent.clone());
        manifest.level = match stands_on_base {
            false => Level::Full,
            true if differential => Level::Differential,
            true => Level::Incremental,
        };
        manifest.disks = disks;
        let taken = if kept {
            Some(taken)
        } else {
            let deleted = snapshot::delete(job, plan, &taken.step, &taken.description).await;
            if let Err(cause) = deleted {
                // The data is whole; the snapshot stays in the journal for `cleanup`.
                context.warn(Some(plan.id), crate::chain(&cause));
                let text = format!("the snapshot was not deleted: {}", crate::chain(&cause));
                manifest.warnings.push(text);
            }
            None
        };
        manifest.finished = jiff::Timestamp::now();
        Ok((staging, manifest, taken))
    }
}

async fn is_up(context: &Context, plan: &VmPlan) -> Result<bool> {
    let found = context.engine.find_vm(plan.id).await;
    let found = found.map_err(error::engine(format!("look at {}", plan.name)))?;
    Ok(found.is_some_and(|vm| vm.status != VmStatus::Down))
}

async fn store_documents(staging: &Staging, docs: &Documents) -> Result<()> {
    let (staging, files) = (staging.clone(), docs.files.clone());
    blocking("store the VM's configuration", move || {
        files.iter().try_for_each(|(name, bytes)| staging.put_document(name, bytes))
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
pub(crate) async fn connect(
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
pub(crate) async fn close(job: &Job, plan: &VmPlan, access: Access) {
    if let Err(cause) = access.close(job).await {
        job.context.warn(Some(plan.id), crate::chain(&cause));
    }
}

async fn read_all(
    job: &Job,
    plan: &VmPlan,
    reading: &Reading<'_>,
    staging: &Staging,
) -> Result<Vec<ManifestDisk>> {
    let context = &job.context;
    let Reading { access, center, taken, docs, rate } = *reading;
    let base_disks = snapshot::base_disks(context, plan).await?;
    let mut disks = Vec::new();
    let mut failure = None;
    let mut sessions = None;
    for disk in plan.chosen_disks() {
        let base = plan.base.as_ref().zip(base_disks.as_deref());
        let source =
            DiskSource { plan: disk, frozen: &taken.disks, base, data_center: center, rate };
        match read_disk(job, access, &source, &docs.attachments, sessions.take(), staging).await {
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
        None => Ok(disks),
    }
}
