//! `dwh move-database --revert`: every file back byte for byte, the service as it was.
//!
//! Invariants: before the first file is put back the old database is seen to be there and is
//! compared with the new one, since rows that were collected since the move are in the new
//! one alone: they are left behind only when that is said, and then a comparison that cannot be made
//! keeps nobody from it. A revert that died goes on with
//! the same command.

use std::time::Duration;

use hvbak_manager::{
    Scope,
    archive::read_conf,
    dwh::{DWHD_CONF, Other, Setup, State, revert_preflight, setup},
    restore::{Finding, Weight},
};
use serde::Serialize;

use super::{
    ManagerContext,
    dwh::{copies, forget, refuse_away, service, take_back},
    dwh_check as check,
    dwh_files::{self as files, Move, Writing},
    restore_part::Session,
};
use crate::error::{Result, RunError};

/// What is asked for.
#[derive(Debug, Clone)]
pub struct DwhRevertOptions {
    /// What was collected since the move may stay behind.
    pub lose_rows: bool,
    /// Only look.
    pub dry_run: bool,
    /// How long a sign of the service is waited for.
    pub patience: Duration,
}

/// A move that was put back, or would be.
#[derive(Debug, Clone, Serialize)]
pub struct DwhReverted {
    pub manager: String,
    pub to: String,
    pub from: String,
    /// Files that are given their original content.
    pub files: Vec<String>,
    /// The service works again.
    pub is_active: bool,
    /// What speaks against it, and what is lost.
    pub findings: Vec<Finding>,
}

impl DwhReverted {
    /// Whether it was put back, or would be.
    pub fn is_clear(&self) -> bool {
        self.findings.iter().all(|f| f.weight != Weight::Stops)
    }
}

/// Puts the newest move back: every file byte for byte, the service as it was.
///
/// # Errors
/// [`RunError::DwhNone`]; before anything is put back [`RunError::DwhBack`] when rows would
/// be lost or the old database is gone, and [`RunError::DwhFile`] when a file is neither what
/// it was nor what the move made of it.
pub async fn dwh_revert_database(
    context: &ManagerContext,
    options: &DwhRevertOptions,
) -> Result<DwhReverted> {
    let mut session = Session::open(context).await?;
    let result = revert(&mut session, options).await;
    session.close().await;
    result
}

async fn revert(session: &mut Session<'_>, options: &DwhRevertOptions) -> Result<DwhReverted> {
    session.lock().await?;
    refuse_away(session)?;
    session.look_again().await?;
    let manager = session.name.to_string();
    let newest = files::newest(session)?.filter(|m| m.record.state != State::Reverted);
    let Some(mut this) = newest else { return Err(RunError::DwhNone { manager }) };
    let mut changed = Vec::new();
    let mut old = None;
    for edit in &this.record.edits {
        let original = files::original(session, &this, edit)?;
        let now = files::sum(&files::read(session, &edit.path).await?);
        if now == edit.after {
            if edit.path == DWHD_CONF {
                old = Some(named(session, &original)?);
            }
            changed.push((edit.path.clone(), now, original));
        } else if now != edit.before {
            let why = "was changed by somebody else since and stays as it is".into();
            return Err(RunError::DwhFile { manager, path: edit.path.clone(), why });
        }
    }
    let mut done = DwhReverted {
        manager,
        to: this.record.target.to_string(),
        from: this.record.from.clone(),
        files: changed.iter().map(|(path, ..)| path.clone()).collect(),
        is_active: this.record.was_active,
        findings: Vec::new(),
    };
    // While the service's file is as it was, all that it has collected is in the old database.
    let mut needs = Setup::Done;
    if let Some(old) = &old {
        (done.findings, needs) = look(session, &this, old, options.lose_rows).await?;
        done.is_active &= needs == Setup::Done;
    }
    if options.dry_run {
        return Ok(done);
    }
    refuse(session, &done.findings)?;
    for finding in &done.findings {
        session.context.warn(finding.text.clone());
    }
    for run in copies(session) {
        session.context.phase("stopping the copy");
        session.stop(&run).await?;
        forget(session, &run).await?;
    }
    service(session, "stop").await?;
    if let Some(old) = old.as_ref().filter(|_| !options.lose_rows) {
        // It was at work while they were counted.
        let (findings, _) = look(session, &this, old, false).await?;
        if let Err(cause) = refuse(session, &findings) {
            if this.record.was_active && this.record.state == State::Done {
                service(session, "start").await?;
            }
            return Err(cause);
        }
    }
    // A revert that dies and is given again must not start it either.
    this.record.was_active = done.is_active;
    this.record.state = State::Reverting;
    files::save(session, &this)?;
    for (path, now, original) in changed.into_iter().rev() {
        session.context.phase(format!("putting {path} back"));
        files::write(session, &path, &now, original, Writing::Anyway).await?;
    }
    // Somebody may have started it meanwhile: then `start` would do nothing.
    service(session, "stop").await?;
    let mark = if done.is_active { check::mark(session.link()).await? } else { None };
    take_back(session, &mut this).await?;
    if let Some(remedy) = needs.remedy() {
        session.context.warn(format!("the service is stopped: {remedy}"));
    }
    if done.is_active
        && let Some(why) = check::silence(session.link(), mark.as_ref(), options.patience).await?
    {
        let at = done.from.clone();
        return Err(RunError::DwhSilent { manager: done.manager, at, why, way_back: None });
    }
    Ok(done)
}

/// What going back costs, and what the old database needs before the service works on it.
async fn look(
    session: &mut Session<'_>,
    this: &Move,
    old: &Other,
    lose_rows: bool,
) -> Result<(Vec<Finding>, Setup)> {
    let compared = if lose_rows {
        check::compare_if_possible(session, old).await?
    } else {
        check::compare(session, old).await?
    };
    let (from, to) = (&this.record.from, this.record.target.to_string());
    Ok((revert_preflight(&compared, from, &to, lose_rows), setup(&compared)))
}

fn refuse(session: &Session<'_>, findings: &[Finding]) -> Result<()> {
    let stops: Vec<_> = findings.iter().filter(|f| f.weight == Weight::Stops).cloned().collect();
    if stops.is_empty() {
        return Ok(());
    }
    Err(RunError::DwhBack { manager: session.name.to_string(), findings: stops })
}

/// The old database as the service's original file names it.
fn named(session: &Session<'_>, original: &[u8]) -> Result<Other> {
    let conf = read_conf(&String::from_utf8_lossy(original));
    let found = conf.databases.get(&Scope::DwhDb).cloned().ok_or_else(|| RunError::DwhFile {
        manager: session.name.to_string(),
        path: DWHD_CONF.into(),
        why: "cannot be put back: its original in the repository names no database".into(),
    })?;
    Ok(Other {
        host: found.host,
        port: found.port,
        user: found.user,
        database: found.database,
        sslmode: if found.secured { "require" } else { "prefer" },
        password: found.password,
    })
}
