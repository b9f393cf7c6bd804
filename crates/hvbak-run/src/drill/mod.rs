//! The rehearsal of a disaster that has not happened: stored points are verified, exported
//! to a scratch directory and booted; archives of managers are read into a database.
//!
//! Nothing here knows a host, a manager or an engine: it works on the repository and on this
//! machine alone, and leaves nothing but its record. Invariant: an outcome says what was
//! seen, never what is hoped.

mod boot;
mod child;
mod choose;
mod complaints;
mod console;
mod machine;
mod manager;
mod postgres;
mod psql;
mod qmp;
mod scratch;
mod vm;

use std::{path::PathBuf, sync::Arc, time::Duration};

use hvbak_repo::{
    Identities, ManagerPoint, Point, Repository, RunKind, RunManager, RunOutcome, RunRecord, RunVm,
};
use hvbak_types::{JobId, VmId};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use self::{scratch::Scratch, vm::Rehearsed};
use crate::{
    error::{Result, RunError},
    event::{Event, Events},
    job::blocking,
};

/// What the configuration says of drills.
#[derive(Debug, Clone)]
pub struct DrillSettings {
    /// Below it the scratch directory is made.
    pub scratch: PathBuf,
    /// Of a booted machine.
    pub memory_mib: u64,
    /// Whom machines and databases run as when this process is root.
    pub user: String,
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct DrillWishes {
    /// Selectors of VMs; empty: all.
    pub vms: Vec<String>,
    /// So many VMs, those first whose turn it is.
    pub count: Option<usize>,
    /// Whether VMs are rehearsed at all, and managers.
    pub with_vms: bool,
    pub with_managers: bool,
    pub boot: bool,
    /// How long a machine is watched.
    pub limit: Duration,
    /// The scratch directory stays.
    pub keep: bool,
}

/// What a drill works with.
#[derive(Clone)]
pub struct DrillContext {
    pub repository: Arc<Repository>,
    /// Private keys that open encrypted archives of managers.
    pub identities: Option<Identities>,
    pub settings: DrillSettings,
    pub wishes: DrillWishes,
    pub events: Events,
    pub cancel: CancellationToken,
    pub job: JobId,
}

impl DrillContext {
    fn phase(&self, vm: Option<VmId>, text: impl Into<String>) {
        self.events.event(&Event::Phase { vm, text: text.into() });
    }

    fn warn(&self, text: impl Into<String>) {
        self.events.event(&Event::Warning { vm: None, text: text.into() });
    }
}

/// What is rehearsed, and with what.
#[derive(Debug)]
pub struct DrillPlan {
    pub points: Vec<Point>,
    /// Upper bounds of the room that the points need, in the same order; bytes.
    pub needed: Vec<u64>,
    pub managers: Vec<ManagerPoint>,
    /// Free in the scratch directory; bytes.
    pub free: u64,
    pub qemu: Option<PathBuf>,
    pub kvm: bool,
    /// Major version of the PostgreSQL that is installed here.
    pub postgres: Option<u32>,
    /// Why no foreign system is run here at all.
    pub unfit: Option<&'static str>,
    /// Points that cannot be read.
    unreadable: Vec<Unreadable>,
}

/// A point that is damaged: a drill that passed it over would lie.
#[derive(Debug)]
struct Unreadable {
    vm: Option<VmId>,
    name: String,
    why: String,
}

/// What was seen.
#[derive(Debug)]
pub struct DrillReport {
    pub record: RunRecord,
    /// How many were damaged.
    pub damaged: usize,
    /// Where everything was left, when it was asked for.
    pub kept: Option<PathBuf>,
}

/// Looks what would be done.
///
/// # Errors
/// A VM that is not in the repository; that the repository cannot be read.
pub async fn drill_plan(drill: &DrillContext) -> Result<DrillPlan> {
    let free = scratch::free(&drill.settings.scratch)?;
    let (repository, wishes) = (drill.repository.clone(), drill.wishes.clone());
    let mut plan = blocking("choose the points", move || {
        let mut plan = DrillPlan {
            points: Vec::new(),
            needed: Vec::new(),
            managers: Vec::new(),
            free,
            qemu: vm::qemu(),
            kvm: vm::kvm().0,
            postgres: None,
            unfit: child::unfit(),
            unreadable: Vec::new(),
        };
        if wishes.with_vms {
            points(&repository, &wishes, &mut plan)?;
        }
        if wishes.with_managers {
            for name in repository.manager_names()? {
                let mut listing = repository.manager_points(&name)?;
                if let Some((_, error)) = listing.damaged.pop() {
                    let (name, why) = (name.to_string(), crate::chain(&error));
                    plan.unreadable.push(Unreadable { vm: None, name, why });
                }
                plan.managers.extend(listing.points.pop());
            }
        }
        Ok(plan)
    })
    .await?;
    plan.postgres = postgres::find().map(|programs| programs.major);
    Ok(plan)
}

fn points(
    repository: &Repository,
    wishes: &DrillWishes,
    plan: &mut DrillPlan,
) -> hvbak_repo::Result<()> {
    let mut wanted = Vec::new();
    for text in &wishes.vms {
        wanted.push(repository.find_vm(text)?);
    }
    let all = repository.all_points()?;
    let wanted = |id: VmId| wanted.is_empty() || wanted.contains(&id);
    for bad in all.damaged.iter().filter(|bad| wanted(bad.vm)) {
        let (vm, why) = (Some(bad.vm), crate::chain(&bad.error));
        plan.unreadable.push(Unreadable { vm, name: format!("{}@{}", bad.vm, bad.point), why });
    }
    // Oldest first within a VM: the last one of each is its newest.
    let mut newest: Vec<Point> = Vec::new();
    for point in all.points.into_iter().filter(|point| wanted(point.vm())) {
        match newest.last_mut() {
            Some(last) if last.vm() == point.vm() => *last = point,
            _ => newest.push(point),
        }
    }
    plan.points = choose::choose(newest, &repository.runs()?.runs, wishes.count);
    plan.needed = plan.points.iter().map(|point| vm::needed(repository, point)).collect();
    Ok(())
}

/// Rehearses what was planned, and stores what was seen.
///
/// # Errors
/// That there is no place to work, or that it was cancelled; what was seen until then is
/// stored nevertheless.
pub async fn drill(drill: &DrillContext, plan: DrillPlan) -> Result<DrillReport> {
    let base = drill.settings.scratch.clone();
    let scratch = Scratch::make(&base, drill.job, drill.wishes.keep)?;
    let mut record = RunRecord::begin(drill.job, RunKind::Drill);
    drill.events.event(&Event::JobStarted { job: drill.job, kind: "drill", total_bytes: None });
    let mut damaged = 0;
    let result = everything(drill, &scratch, &plan, &mut record, &mut damaged).await;
    record.finished = Timestamp::now();
    let (repository, stored) = (drill.repository.clone(), record.clone());
    if let Err(error) = blocking("record the run", move || repository.record_run(&stored)).await {
        drill.warn(format!("`hvbak report` will not know this: {}", crate::chain(&error)));
    }
    let kept = drill.wishes.keep.then(|| scratch.path().to_owned());
    drop(scratch);
    result.map(|()| DrillReport { record, damaged, kept })
}

async fn everything(
    drill: &DrillContext,
    scratch: &Scratch,
    plan: &DrillPlan,
    record: &mut RunRecord,
    damaged: &mut usize,
) -> Result<()> {
    for bad in &plan.unreadable {
        *damaged += 1;
        drill.warn(format!("damaged: {}: {}", bad.name, bad.why));
        if let Some(id) = bad.vm
            && !plan.points.iter().any(|point| point.vm() == id)
        {
            let seen = Rehearsed::damage(format!("damaged: {}", bad.why));
            record.vms.push(run_vm((id, &bad.name), None, &seen, 0.0));
        }
    }
    for point in &plan.points {
        let began = std::time::Instant::now();
        let result = vm::rehearse(drill, scratch, point).await;
        let (seen, ended) = match result {
            Ok(seen) => (seen, Ok(())),
            Err(error) => {
                (Rehearsed::new(RunOutcome::Stopped, "the drill was stopped"), Err(error))
            }
        };
        let (id, name, seconds) =
            (point.vm(), &point.manifest.vm.name, began.elapsed().as_secs_f64());
        *damaged += usize::from(seen.damaged);
        tell(drill, Some(id), &point.title(), &seen, seconds);
        record.vms.push(run_vm((id, name), Some(point), &seen, seconds));
        ended?;
    }
    for point in &plan.managers {
        let began = std::time::Instant::now();
        let name = &point.manifest.manager;
        let result = manager::rehearse(drill, scratch, name, point).await;
        let (seen, ended) = match result {
            Ok(seen) => (seen, Ok(())),
            Err(error) => {
                (Rehearsed::new(RunOutcome::Stopped, "the drill was stopped"), Err(error))
            }
        };
        let seconds = began.elapsed().as_secs_f64();
        *damaged += usize::from(seen.damaged);
        tell(drill, None, &point.title(), &seen, seconds);
        record.managers.push(RunManager {
            name: name.clone(),
            outcome: seen.outcome,
            reason: Some(seen.text),
            point: Some(point.manifest.point.clone()),
            seconds,
        });
        ended?;
    }
    if drill.cancel.is_cancelled() { Err(RunError::Cancelled) } else { Ok(()) }
}

fn tell(drill: &DrillContext, vm: Option<VmId>, what: &str, seen: &Rehearsed, seconds: f64) {
    let (outcome, text) = (seen.outcome, seen.text.clone());
    drill.events.event(&Event::Drilled { vm, what: what.to_owned(), outcome, text, seconds });
}

fn run_vm(
    (id, name): (VmId, &str),
    point: Option<&Point>,
    seen: &Rehearsed,
    seconds: f64,
) -> RunVm {
    RunVm {
        reason: Some(seen.text.clone()),
        point: point.map(|point| point.id().clone()),
        seconds,
        ..RunVm::new(id, name, seen.outcome)
    }
}
