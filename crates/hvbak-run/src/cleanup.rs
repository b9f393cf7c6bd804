//! Undoing what a job that died has left: the journal replayed backwards.
//!
//! Invariant: only what a journal names is touched, newest first; a journal whose process
//! lives is left alone; a step that cannot be undone now keeps its journal for the next
//! time.

use hvbak_repo::{JournalView, StepState, StepView};
use hvbak_ssh::{Connection, deliver::remove_command, probe};
use hvbak_types::{Inventory, VmId, VmStatus};

use crate::{
    base,
    error::{self, Result, RunError},
    event::Event,
    gather, hosts,
    job::{Context, blocking},
    journal::{Step, describe},
    restore::{self, Replacing, Settled},
    snapshot,
};

/// How a cleanup ended.
#[derive(Debug, Clone, Default)]
pub struct CleanupReport {
    /// Effects undone, or that would be.
    pub undone: usize,
    /// What could not be undone, as text.
    pub failed: Vec<String>,
    /// Journals of jobs that are at work.
    pub running: usize,
}

/// Replays the journals of dead jobs.
pub async fn cleanup(context: &Context, dry_run: bool) -> Result<CleanupReport> {
    let repository = context.repository.clone();
    let views = blocking("read the journals", move || repository.open_journals()).await?;
    let mut report = CleanupReport::default();
    let mut inventory = None;
    for view in views {
        if view.alive {
            report.running += 1;
            continue;
        }
        if let Some(damage) = &view.damage {
            report.failed.push(format!("journal of job {}: {damage}", view.job));
        }
        if dry_run {
            let skipped = tell_replacement(context, &view, &mut report);
            for step in view.unsettled().filter(|step| !skipped || !is_of_replacement(step)) {
                let text = format!("would undo {}", describe(step));
                context.events.event(&Event::Undone { text });
                report.undone += 1;
            }
            continue;
        }
        // Why a replacement could not be ended is in the report.
        let _ = replay(context, &view, &mut inventory, &mut report).await?;
    }
    sweep_archives(context, dry_run, &mut report).await?;
    if !dry_run {
        // Of no weight: a record is for people, and this one is of a run that died at its end.
        let repository = context.repository.clone();
        blocking("sweep unfinished records of runs", move || repository.sweep_records()).await?;
    }
    Ok(report)
}

/// What half-made points of managers are left, journal or not. Of a manager that somebody holds
/// they are his.
async fn sweep_archives(
    context: &Context,
    dry_run: bool,
    report: &mut CleanupReport,
) -> Result<()> {
    let (repository, job) = (context.repository.clone(), context.job);
    let found = blocking("sweep half-made points of managers", move || {
        let mut found = Vec::new();
        for name in repository.manager_names()? {
            let lock = match repository.lock_manager(&name, job) {
                Err(hvbak_repo::Error::Locked { .. }) => continue,
                other => other?,
            };
            found.extend(repository.manager_partials(&lock)?);
            if !dry_run {
                repository.sweep_manager_partials(&lock)?;
            }
        }
        Ok(found)
    })
    .await?;
    for path in found {
        let what = if dry_run { "would remove" } else { "removed" };
        let text = format!("{what} {}, which is half-made", path.display());
        context.events.event(&Event::Undone { text });
        report.undone += 1;
    }
    Ok(())
}

/// Says of a dry run how a replacement would be ended. Whether there is one whose old VM may be
/// gone: its steps are not undone then.
fn tell_replacement(context: &Context, view: &JournalView, report: &mut CleanupReport) -> bool {
    let Some((step, _)) = restore::find_replacement(view) else { return false };
    let asked = step.state == StepState::Done;
    if asked {
        let what = describe(step);
        let text = format!("would end {what}: forward if the old VM is gone, else back");
        context.events.event(&Event::Undone { text });
        report.undone += 1;
    }
    asked
}

/// Whether a step is settled with a replacement.
fn is_of_replacement(step: &StepView) -> bool {
    restore::made_by_restore(step)
        || matches!(serde_json::from_value(step.step.clone()), Ok(Step::Replace { .. }))
}

/// Ends the replacement of VM `vm` that a dead restore has left, and undoes the rest of that
/// restore. Gives what it was, when the new VM is in its place now.
///
/// # Errors
/// It could not be ended.
pub async fn end_replacement(context: &Context, vm: VmId) -> Result<Option<Replacing>> {
    let repository = context.repository.clone();
    let views = blocking("read the journals", move || repository.open_journals()).await?;
    let of_vm = |view: &&JournalView| {
        !view.alive && restore::find_replacement(view).is_some_and(|(_, it)| it.old.vm == vm)
    };
    let mut done = None;
    for view in views.iter().filter(of_vm) {
        let (mut inventory, mut report) = (None, CleanupReport::default());
        let ended = replay(context, view, &mut inventory, &mut report).await?;
        // What is half-way must be ended before anything else is planned: the site looks as if
        // there were nothing to replace, or another VM.
        let ended = ended?;
        for text in report.failed {
            context.warn(None, text);
        }
        done = ended.or(done);
    }
    Ok(done)
}

/// Undoes what a journal holds; a replacement is ended instead, and given when that was forward,
/// or why it could not be ended.
async fn replay(
    context: &Context,
    view: &JournalView,
    inventory: &mut Option<Inventory>,
    report: &mut CleanupReport,
) -> Result<Result<Option<Replacing>>> {
    let (repository, job, me) = (context.repository.clone(), view.job, context.job);
    let (journal, view) =
        blocking("take the journal over", move || repository.adopt_journal(job, me)).await?;
    let mut all = true;
    let settled = restore::settle_dead(context, &journal, &view).await;
    let mut steps: Vec<_> = view.unsettled().collect();
    match &settled {
        Ok(Settled::None) => {}
        Ok(Settled::Back) => steps.retain(|step| {
            !matches!(serde_json::from_value(step.step.clone()), Ok(Step::Replace { .. }))
        }),
        Ok(Settled::Forward(it)) => {
            steps.retain(|step| !is_of_replacement(step));
            report.undone += 1;
            let text = format!("ended: VM `{}` is replaced by {}", it.old.name, it.new);
            context.events.event(&Event::Undone { text });
        }
        Err(cause) => {
            all = false;
            steps.retain(|step| !is_of_replacement(step));
            let hint = cause.hint().map_or_else(String::new, |hint| format!("; {hint}"));
            report.failed.push(format!("{}{hint}", crate::chain(cause)));
        }
    }
    // A frozen guest waits for nothing. Half-made points go before their snapshots: a merge
    // that fails gives a snapshot back that was written to, and nothing may be gone on with
    // then.
    steps.sort_by_key(|step| match serde_json::from_value(step.step.clone()) {
        Ok(Step::Freeze { .. }) => 0,
        Ok(Step::Partial { .. }) => 1,
        _ => 2,
    });
    for step in steps {
        let what = describe(step);
        let undone = match serde_json::from_value::<Step>(step.step.clone()) {
            Err(cause) => {
                Err(RunError::Document { name: "journal".into(), why: cause.to_string() })
            }
            Ok(step) => undo(context, &step, inventory).await,
        };
        match undone {
            Ok(was_there) => {
                // Settling is a line in a file that this process holds.
                journal.undone(step.id).map_err(error::repository("write the journal"))?;
                if was_there {
                    report.undone += 1;
                    context.events.event(&Event::Undone { text: format!("undone: {what}") });
                }
            }
            Err(cause) => {
                all = false;
                report.failed.push(format!("{what}: {}", crate::chain(&cause)));
            }
        }
    }
    if all && view.damage.is_none() {
        blocking("close the journal", move || journal.close()).await?;
    }
    Ok(settled.map(|settled| match settled {
        Settled::Forward(replacing) => Some(*replacing),
        Settled::None | Settled::Back => None,
    }))
}

/// Undoes one step. Says whether there was anything.
async fn undo(context: &Context, step: &Step, inventory: &mut Option<Inventory>) -> Result<bool> {
    match step {
        Step::Freeze { vm } => thaw(context, *vm).await,
        Step::Snapshot { description, .. } | Step::Retire { description, .. }
            if !description.starts_with(&base::own_prefix(context.repository.id())) =>
        {
            Err(RunError::Foreign { what: format!("snapshot `{description}`") })
        }
        // The run died after its point was published: the next delta stands on it.
        Step::Snapshot { vm, description, .. }
            if base::is_kept(context, *vm, description).await? =>
        {
            Ok(false)
        }
        // A living run has gone on with the point of the dead one.
        Step::Snapshot { description, .. } if is_in_use(context, description).await? => Ok(false),
        // What one run wanted to retire, a later one has gone on with and published.
        Step::Retire { vm, description, .. }
            if base::is_base(context, *vm, description).await? =>
        {
            Ok(false)
        }
        Step::Snapshot { vm, vm_name, description } | Step::Retire { vm, vm_name, description } => {
            let (repository, of, job) = (context.repository.clone(), *vm, context.job);
            // A run that goes on with a half-made point must not meet this.
            let _lock = blocking("lock the VM", move || repository.lock_vm(of, job)).await?;
            Ok(snapshot::remove(context, *vm, vm_name, description).await? > 0)
        }
        Step::Partial { vm, point } => {
            let (repository, vm, point) = (context.repository.clone(), *vm, point.clone());
            let job = context.job;
            blocking("remove the half-made point", move || {
                let lock = repository.lock_vm(vm, job)?;
                let there = repository.remove_partial(&lock, &point)?;
                Ok(repository.configurations().remove_partial(&lock, &point)? || there)
            })
            .await
        }
        Step::Worker { host, host_name, tag } => {
            if inventory.is_none() {
                *inventory = Some(gather::inventory(context).await?);
            }
            let Some(inventory) = inventory else { return Ok(false) };
            // A host that left the engine cannot be asked; its /run forgets at reboot.
            let Ok(host) = hosts::find_host(inventory, *host) else {
                context.warn(
                    None,
                    format!("host {host_name} is gone; its worker is left to its /run"),
                );
                return Ok(false);
            };
            let target = hosts::target(&context.settings, host)?;
            let connection =
                Connection::connect(&target).await.map_err(error::ssh(host_name, "log in"))?;
            let info = probe(&connection).await.map_err(error::ssh(host_name, "look around"))?;
            let remove = remove_command(&info, tag)
                .map_err(error::ssh(host_name, "name the worker's directory"))?;
            let removed = connection.exec(&remove).await;
            connection.close().await;
            removed
                .and_then(|output| output.check("remove the worker"))
                .map_err(error::ssh(host_name, "remove the worker"))?;
            Ok(true)
        }
        Step::ManagerRun { manager, base, point }
        | Step::ManagerRestore { manager, base, run: point, .. } => {
            let Some(settings) = &context.settings.manager else {
                return Err(RunError::ManagerUnfit {
                    manager: manager.clone(),
                    why: "the configuration has no section [manager] any more".into(),
                });
            };
            let restore = matches!(step, Step::ManagerRestore { .. });
            let name = manager
                .parse::<hvbak_repo::ManagerName>()
                .map_err(|why| RunError::ManagerUnfit { manager: manager.clone(), why })?;
            let (repository, job) = (context.repository.clone(), context.job);
            // A run that takes it home must not meet this.
            let _lock =
                blocking("lock the manager", move || repository.lock_manager(&name, job)).await?;
            let (here, cancel) = (&context.settings, &context.cancel);
            crate::manager::undo(here, settings, base, point, restore, cancel).await?;
            Ok(true)
        }
        Step::Disk { .. } | Step::Vm { .. } | Step::NamedVm { .. } | Step::Template { .. } => {
            restore::undo(context, step).await
        }
        // Ended before all others.
        Step::Replace { .. } => Ok(false),
    }
}

/// Whether a living job has this snapshot among its open steps. A journal that somebody has
/// taken over, as this cleanup did with the one that is replayed, is no living job's.
async fn is_in_use(context: &Context, wanted: &str) -> Result<bool> {
    let repository = context.repository.clone();
    let views = blocking("read the journals", move || repository.open_journals()).await?;
    let lives = |view: &&JournalView| {
        view.alive && view.holder.as_ref().is_some_and(|holder| holder.job == view.job)
    };
    let mut open = views.iter().filter(lives).flat_map(JournalView::unsettled);
    Ok(open.any(|step| {
        matches!(
            serde_json::from_value(step.step.clone()),
            Ok(Step::Snapshot { description, .. }) if description == wanted
        )
    }))
}

/// Thaws a guest. One that is gone or down is not frozen any more.
async fn thaw(context: &Context, vm: VmId) -> Result<bool> {
    let doing = || error::engine(format!("thaw VM {vm}"));
    let Err(cause) = context.engine.thaw(vm).await else { return Ok(true) };
    match context.engine.find_vm(vm).await.map_err(doing())? {
        None => Ok(false),
        Some(found) if found.status == VmStatus::Down => Ok(false),
        Some(_) => Err(doing()(cause)),
    }
}
