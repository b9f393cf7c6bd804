//! Runs on the manager whose hvbak died: taken home, or swept when that was done already, or
//! when they never began.
//!
//! Invariant: a run's directory is swept only when its point is published and readable, or
//! when what it made was judged and its log kept; the dead job's journal is settled after
//! that, not before. Cancelled, an earlier run stays as it is: it may be the only backup.

use hvbak_manager::remote::{Kind, Seen};
use hvbak_repo::{ManagerName, ManagerPoint};
use hvbak_types::PointId;

use super::{
    ManagerContext,
    backup::{self, Place},
    link::Link,
    run::Run,
};
use crate::{
    error::{self, Result, RunError},
    job::blocking,
    journal::Step,
};

/// Deals with every run of ours that lies below `base`; gives the points that came of it.
///
/// # Errors
/// Cancellation. What else goes wrong with an old run is a warning: it must not stop a new
/// one.
pub async fn pick_up(
    context: &ManagerContext,
    link: &mut Link,
    at: &Place<'_>,
    base: &str,
) -> Result<Vec<ManagerPoint>> {
    let (look, name) = (at.look, at.name);
    let mut picked_up = Vec::new();
    for Seen { name: run, owner, kind } in &look.runs {
        let Ok(point) = run.parse::<PointId>() else { continue };
        let mine = *owner == context.repository.id().to_string();
        if matches!(kind, Kind::Cleanup | Kind::Restore | Kind::Setup) && mine {
            let mut run = Run::new(context, link, base.to_owned(), point.clone());
            match sweep_unstarted(&mut run, name, *kind).await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(cause) => context.warn(format!("the earlier run: {}", crate::chain(&cause))),
            }
        }
        if *kind != Kind::Backup {
            // Only a restore can tell what became of a restore, only a move what of a move.
            context.warn(format!(
                "{} of an earlier hvbak lies in {base} on the manager: `{}` takes it home",
                kind.program(),
                kind.picked_up_by()
            ));
            continue;
        }
        if !mine {
            context.warn(format!("another hvbak's run {run} lies in {base} on the manager"));
            continue;
        }
        let mut run = Run::new(context, link, base.to_owned(), point.clone());
        let ended = if is_published(context, name, &point).await? {
            context.phase(format!("sweeping the run {point}, which is stored already"));
            run.sweep().await
        } else {
            context.phase(format!("picking up the run {point} of an earlier hvbak"));
            let taken = backup::fetch_and_judge(&mut run, at).await;
            match taken {
                Ok((point, _)) => {
                    picked_up.push(point);
                    Ok(())
                }
                Err(RunError::Cancelled) => {
                    context.warn(format!(
                        "{} of an earlier hvbak stays on the manager, with the archive in plain: the next `hvbak manager-backup` takes it home, or `hvbak cleanup` removes it",
                        run.dir()
                    ));
                    Err(RunError::Cancelled)
                }
                Err(cause) if run.is_swept() => {
                    context.warn(format!("the earlier run: {}", crate::chain(&cause)));
                    Ok(())
                }
                Err(cause) => Err(cause),
            }
        };
        match ended {
            Ok(()) => {
                if let Err(cause) = settle(context, name, &point).await {
                    context
                        .warn(format!("its journal stays for `cleanup`: {}", crate::chain(&cause)));
                }
            }
            Err(RunError::Cancelled) => return Err(RunError::Cancelled),
            Err(cause) => context.warn(format!("the earlier run: {}", crate::chain(&cause))),
        }
    }
    Ok(picked_up)
}

/// A part of a restore that never began: its archive was sent, is in plain, and nothing will
/// ever use it. Says whether it was one.
async fn sweep_unstarted(run: &mut Run<'_>, name: &ManagerName, kind: Kind) -> Result<bool> {
    if run.poll().await?.started {
        return Ok(false);
    }
    run.context.phase(format!("sweeping {} {}, which never began", kind.program(), run.point));
    run.sweep().await?;
    settle(run.context, name, &run.point).await?;
    Ok(true)
}

async fn is_published(
    context: &ManagerContext,
    name: &ManagerName,
    point: &PointId,
) -> Result<bool> {
    let (repository, name, point) = (context.repository.clone(), name.clone(), point.clone());
    blocking("look for the point", move || {
        let listing = repository.manager_points(&name)?;
        Ok(listing.points.iter().any(|p| p.manifest.point == point))
    })
    .await
}

/// Closes the journal of the dead job that began the run.
pub(super) async fn settle(
    context: &ManagerContext,
    name: &ManagerName,
    point: &PointId,
) -> Result<()> {
    let (repository, me, point) = (context.repository.clone(), context.job, point.clone());
    let views = {
        let repository = repository.clone();
        blocking("read the journals", move || repository.open_journals()).await?
    };
    let begun = |step: &serde_json::Value| {
        matches!(
            serde_json::from_value::<Step>(step.clone()),
            Ok(Step::ManagerRun { manager, point: of, .. }
                | Step::ManagerRestore { manager, run: of, .. })
                if of == point && manager == name.to_string()
        )
    };
    for view in views.iter().filter(|view| !view.alive) {
        let Some(step) = view.unsettled().find(|step| begun(&step.step)) else { continue };
        let (id, job, repository) = (step.id, view.job, repository.clone());
        let journal = blocking("settle the dead job's journal", move || {
            let (journal, now) = repository.adopt_journal(job, me)?;
            journal.undone(id)?;
            let rest = now.unsettled().filter(|step| step.id != id).count();
            Ok((rest == 0 && now.damage.is_none()).then_some(journal))
        });
        if let Some(journal) = journal.await? {
            journal.close().map_err(error::repository("close the journal"))?;
        }
    }
    Ok(())
}
