//! `dwh move-service --revert`: the service on the manager again, from a machine that answers
//! or from one that is lost.
//!
//! Invariants: as in `dwh_service.rs`. A machine is lost only if nobody answers there (one
//! that refuses us does) and it has not worked on the database lately: else two services would work for one engine. What cannot be
//! undone on a lost one is told.

use std::time::Duration;

use bytes::Bytes;
use hvbak_manager::dwh::{self, State};

use super::{
    ManagerContext, dwh_check as check,
    dwh_files::{self as files, Writing},
    dwh_service::{DwhServiceMoved, Moving, Site, newest, register, save, told},
    link::Link,
    restore_part::Session,
};
use crate::error::{self, Result, RunError};

/// What is asked for.
#[derive(Debug, Clone)]
pub struct DwhServiceRevertOptions {
    /// The new machine will not come back, and is not asked.
    pub machine_is_lost: bool,
    /// Only look.
    pub dry_run: bool,
    /// How long a sign of the service is waited for.
    pub patience: Duration,
}

/// Files of the manager that are put back: path, SHA-256 now, original.
type Originals = Vec<(String, String, Vec<u8>)>;

/// Puts the newest move of the service back.
///
/// # Errors
/// [`RunError::DwhNone`]; before anything is put back [`RunError::DwhFile`], when a file is
/// neither what it was nor what the move made of it, and [`RunError::DwhNotLost`].
pub async fn dwh_revert_service(
    context: &ManagerContext,
    options: &DwhServiceRevertOptions,
) -> Result<DwhServiceMoved> {
    let mut session = Session::open(context).await?;
    let found = newest(&session)?.filter(|m| m.record.state != State::Reverted);
    let manager = session.name.to_string();
    let Some(moving) = found else {
        session.close().await;
        return Err(RunError::DwhNone { manager });
    };
    if options.machine_is_lost {
        let result = without_machine(&mut session, moving, options).await;
        session.close().await;
        return result;
    }
    session.close().await;
    let mut site = Site::open(context, &moving.record.host).await?;
    let result = revert(&mut site, options).await;
    site.close().await;
    result
}

/// What is to be put back on the manager; nothing is changed.
async fn originals(session: &mut Session<'_>, moving: &Moving) -> Result<Originals> {
    let mut originals = Vec::new();
    for edit in &moving.record.edits {
        let original = moving.notes.get(&edit.kept);
        let original = original.map_err(error::repository("read the original"))?;
        let original = original.filter(|bytes| files::sum(bytes) == edit.before);
        let now = files::sum(&files::read(session, &edit.path).await?);
        match original {
            Some(_) if now == edit.before => {}
            Some(bytes) if now == edit.after => originals.push((edit.path.clone(), now, bytes)),
            _ => return Err(changed(session, &edit.path)),
        }
    }
    Ok(originals)
}

fn changed(session: &Session<'_>, path: &str) -> RunError {
    RunError::DwhFile {
        manager: session.name.to_string(),
        path: path.to_owned(),
        why: "was changed by somebody else since and stays as it is".into(),
    }
}

/// The manager as it was; the new machine's service is stopped, or lost.
async fn put_back(
    session: &mut Session<'_>,
    moving: &mut Moving,
    originals: Originals,
    options: &DwhServiceRevertOptions,
) -> Result<()> {
    for (path, now, bytes) in originals {
        files::write(session, &path, &now, bytes, Writing::Anyway).await?;
    }
    let registered = moving.record.was_registered.clone().unwrap_or_default();
    register(session, &registered).await?;
    if moving.record.was_enabled {
        super::dwh::service(session, "enable").await?;
    }
    let mut silent = None;
    if moving.record.was_active {
        let mark = check::mark(session.link()).await?;
        super::dwh::service(session, "start").await?;
        silent = check::silence(session.link(), mark.as_ref(), options.patience).await?;
    }
    moving.record.state = State::Reverted;
    save(session, moving)?;
    let Some(why) = silent else { return Ok(()) };
    let (manager, at) = (session.name.to_string(), "its database".into());
    Err(RunError::DwhSilent { manager, at, why, way_back: None })
}

async fn revert(site: &mut Site<'_>, options: &DwhServiceRevertOptions) -> Result<DwhServiceMoved> {
    site.session.lock().await?;
    let manager = site.session.name.to_string();
    let found = newest(&site.session)?.filter(|m| m.record.state != State::Reverted);
    let Some(mut moving) = found else { return Err(RunError::DwhNone { manager }) };
    // Everything first, then the first change.
    let originals = originals(&mut site.session, &moving).await?;
    for file in &moving.record.files {
        let name = file.path.rsplit('/').next().unwrap_or_default();
        let there = site.machine.files.iter().find(|(of, _)| of == name);
        if there.is_some_and(|(_, sum)| *sum != file.sum) {
            return Err(changed(&site.session, &format!("{}:{}", moving.record.name, file.path)));
        }
    }
    if options.dry_run {
        return Ok(told(&site.session, &moving, false));
    }
    moving.record.state = State::Reverting;
    save(&site.session, &moving)?;
    for verb in ["stop", "disable"] {
        site.new_service(verb).await?;
    }
    for file in &moving.record.files {
        let why = "was changed by somebody else and stays as it is";
        site.on_new(dwh::REMOVE, &file.path, &file.sum, &Bytes::new(), why).await?;
    }
    put_back(&mut site.session, &mut moving, originals, options).await?;
    Ok(told(&site.session, &moving, false))
}

fn is_silence(cause: &RunError) -> bool {
    matches!(cause, RunError::Ssh { cause, .. } if cause.is_silence())
}

/// The new machine is not there any more.
async fn without_machine(
    session: &mut Session<'_>,
    mut moving: Moving,
    options: &DwhServiceRevertOptions,
) -> Result<DwhServiceMoved> {
    session.lock().await?;
    let (manager, name) = (session.name.to_string(), moving.record.name.clone());
    session.context.phase(format!("making sure that {name} does not answer"));
    let settings = Site::settings(session.context, &moving.record.host);
    let answers =
        match Link::open(&session.context.settings, &settings, &session.context.cancel).await {
            Ok(link) => {
                link.close().await;
                Some("it answers".to_owned())
            }
            Err(RunError::Cancelled) => return Err(RunError::Cancelled),
            Err(cause) if is_silence(&cause) => None,
            // A machine that refuses us is there, and its service may be at work.
            Err(cause) => Some(format!("that is no silence: {}", crate::chain(&cause))),
        };
    if let Some(why) = answers {
        return Err(RunError::DwhNotLost { manager, name, why });
    }
    let doing = "look who works on the Data Warehouse's database";
    let output = session.feed(dwh::SESSIONS, &[], &Bytes::new(), doing).await?;
    let output =
        output.check(doing).map_err(error::ssh(&session.context.manager.address, doing))?;
    if let Some(why) = dwh::others_at_work(&output.text()) {
        return Err(RunError::DwhNotLost { manager, name, why });
    }
    let originals = originals(session, &moving).await?;
    let mut done = told(session, &moving, false);
    done.left_there = std::mem::take(&mut done.files);
    if options.dry_run {
        return Ok(done);
    }
    moving.record.state = State::Reverting;
    save(session, &moving)?;
    put_back(session, &mut moving, originals, options).await?;
    Ok(done)
}
