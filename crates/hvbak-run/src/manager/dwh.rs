//! `dwh move-database`: the Data Warehouse's database to another PostgreSQL, by the stock
//! tools on the manager, and back again.
//!
//! The order is: everything that can be known, the originals into the repository, the service
//! stopped, a copy in one transaction (detached, as engine-backup is), every row counted on
//! both sides, the files, the service. The old database is read and nothing else.
//!
//! Invariants: how far it is is in the repository before each step, so that the same command
//! goes on wherever the one before died, and `--revert` puts every file back byte for byte;
//! nothing is ever dropped; a copy that failed leaves the service on the old database.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use hvbak_manager::{
    dwh::{self, CopyFailed, DwhFacts, Edit, Record, State, Target},
    remote::{Kind, Seen},
    restore::{Finding, Weight},
};
use hvbak_types::{PointId, Secret};
use serde::Serialize;

use super::{
    ManagerContext, PlannedCommand, dwh_check as check,
    dwh_files::{self as files, Move, Planned, Writing},
    pick_up,
    restore_part::{Gift, Session},
};
use crate::error::{self, Result, RunError};

/// What is asked for.
#[derive(Debug, Clone)]
pub struct DwhDatabaseOptions {
    pub target: Target,
    pub password: Secret,
    /// How long a sign of the service in the new database is waited for.
    pub patience: Duration,
}

/// What a move would do.
#[derive(Debug, Clone, Serialize)]
pub struct DwhPlan {
    pub manager: String,
    pub from: String,
    pub to: String,
    /// Of a move that was begun and not ended.
    pub state: Option<State>,
    pub findings: Vec<Finding>,
    /// The changes of each file, without passwords.
    pub diffs: Vec<String>,
    pub commands: Vec<PlannedCommand>,
}

impl DwhPlan {
    /// Whether a move would be begun.
    pub fn is_clear(&self) -> bool {
        self.findings.iter().all(|f| f.weight != Weight::Stops)
    }
}

/// A move that is done.
#[derive(Debug, Clone, Serialize)]
pub struct DwhMoved {
    pub manager: String,
    pub from: String,
    pub to: String,
    /// What both databases have: tables and rows.
    pub same: String,
    pub files: Vec<String>,
    /// The service works on the new database.
    pub is_active: bool,
    /// Where the originals lie.
    pub kept: PathBuf,
    /// An earlier hvbak had begun it.
    pub went_on: bool,
}

/// Looks and says what would be done; changes nothing.
///
/// # Errors
/// See [`RunError`]; what stops the move is in the plan.
pub async fn dwh_database_plan(
    context: &ManagerContext,
    options: &DwhDatabaseOptions,
) -> Result<DwhPlan> {
    check(context, options)?;
    let mut session = Session::open(context).await?;
    let result = async {
        let open = files::newest(&session)?.filter(|m| m.record.state.is_open());
        let (facts, findings) = look(&mut session, options, open.as_ref()).await?;
        let (planned, from) = match &open {
            Some(open) => {
                fits(&session, open, options)?;
                let planned =
                    files::plan_again(&session, open, &options.target, &options.password)?;
                (planned, open.record.from.clone())
            }
            None if facts.dwhd.is_unset() => (Vec::new(), String::new()),
            None => {
                let planned = files::plan(&mut session, &options.target, &options.password).await?;
                (planned, facts.dwhd.to_string())
            }
        };
        Ok(DwhPlan {
            manager: session.name.to_string(),
            from,
            to: options.target.to_string(),
            state: open.map(|open| open.record.state),
            findings,
            diffs: planned.iter().map(|f| dwh::diff(f.path, &f.before, &f.after)).collect(),
            commands: commands(&session, &options.target),
        })
    }
    .await;
    session.close().await;
    result
}

fn commands(session: &Session<'_>, target: &Target) -> Vec<PlannedCommand> {
    let dir = format!("{}/RUN", session.base());
    let copy: Vec<_> = copy_command(&dir, target, "copy");
    let copy = copy.iter().map(|w| hvbak_ssh::sh_quote(w)).collect::<Vec<_>>().join(" ");
    let service =
        |what, verb| PlannedCommand { what, line: format!("systemctl {verb} {}", dwh::UNIT) };
    let mut commands = vec![
        service("nothing writes to the old database any more", "stop"),
        PlannedCommand {
            what: "send the new password (mode 0600, removed when the copy ends)",
            line: format!("cat >{dir}/{}", dwh::PASSFILE),
        },
        PlannedCommand {
            what: "pg_dump, pg_restore in one transaction, every row counted on both sides",
            line: copy,
        },
    ];
    for path in [dwh::DWHD_CONF, dwh::ENGINE_CONF] {
        let what = "the original is in the repository; owner, mode and context stay";
        commands.push(PlannedCommand { what, line: format!("cat >{path}") });
    }
    commands.push(service("on the new database; only if it was at work", "start"));
    commands
}

/// Moves the database.
///
/// # Errors
/// [`RunError::DwhPreflight`] before anything was changed; [`RunError::DwhCopy`] says whether
/// the service works on the old database again.
pub async fn dwh_move_database(
    context: &ManagerContext,
    options: &DwhDatabaseOptions,
) -> Result<DwhMoved> {
    check(context, options)?;
    let mut session = Session::open(context).await?;
    let result = move_with(&mut session, options).await;
    session.close().await;
    result
}

fn check(context: &ManagerContext, options: &DwhDatabaseOptions) -> Result<()> {
    let manager = context.manager.address.clone();
    dwh::check_target(&options.target, &options.password)
        .map_err(|cause| RunError::DwhEdit { manager, cause })
}

/// What is known, and what speaks against it.
async fn look(
    session: &mut Session<'_>,
    options: &DwhDatabaseOptions,
    open: Option<&Move>,
) -> Result<(DwhFacts, Vec<Finding>)> {
    session.context.phase("looking for what speaks against a move");
    session.look_again().await?;
    let facts = facts(session, Some(options)).await?;
    let state = open.map(|open| open.record.state);
    let findings = dwh::preflight(&session.look, &facts, &options.target, state);
    Ok((facts, findings))
}

pub(super) async fn facts(
    session: &mut Session<'_>,
    options: Option<&DwhDatabaseOptions>,
) -> Result<DwhFacts> {
    let doing = "look at the Data Warehouse";
    let lines = dwh::target_lines(options.map(|o| (&o.target, &o.password)));
    let input = Bytes::from(lines.unwrap_or_default());
    let output = session.feed(dwh::FACTS, &[], &input, doing).await?;
    let manager = &session.context.manager.address;
    Ok(DwhFacts::parse(&output.check(doing).map_err(error::ssh(manager, doing))?.text()))
}

/// Whether a move that was begun is the one that is asked for.
fn fits(session: &Session<'_>, open: &Move, options: &DwhDatabaseOptions) -> Result<()> {
    let record = &open.record;
    let what = match record.state {
        State::Reverting => "it is being put back".to_owned(),
        _ if record.target != options.target => format!("to {}", record.target),
        _ => return Ok(()),
    };
    Err(RunError::DwhOther { manager: session.name.to_string(), what })
}

async fn move_with(session: &mut Session<'_>, options: &DwhDatabaseOptions) -> Result<DwhMoved> {
    session.lock().await?;
    refuse_away(session)?;
    let open = files::newest(session)?.filter(|m| m.record.state.is_open());
    if let Some(open) = &open {
        fits(session, open, options)?;
        files::plan_again(session, open, &options.target, &options.password)?;
    }
    let (facts, findings) = look(session, options, open.as_ref()).await?;
    let (stops, tells): (Vec<_>, Vec<_>) =
        findings.into_iter().partition(|f| f.weight == Weight::Stops);
    for finding in tells {
        let remedy = finding.remedy.as_ref().map_or_else(String::new, |r| format!(" ({r})"));
        session.context.warn(format!("{}{remedy}", finding.text));
    }
    if !stops.is_empty() {
        let manager = session.name.to_string();
        return Err(RunError::DwhPreflight { manager, findings: stops, begun: open.is_some() });
    }
    let went_on = open.is_some();
    let (mut this, planned) = match open {
        Some(open) => {
            let planned = files::plan_again(session, &open, &options.target, &options.password)?;
            (open, planned)
        }
        None => begin(session, options, &facts).await?,
    };
    if this.record.state < State::Copied {
        copy(session, &mut this, options, &facts).await?;
    }
    edit(session, &mut this, &planned, options).await?;
    let record = &this.record;
    Ok(DwhMoved {
        manager: session.name.to_string(),
        from: record.from.clone(),
        to: record.target.to_string(),
        same: record.compared.clone().unwrap_or_default(),
        files: record.edits.iter().map(|e| e.path.clone()).collect(),
        is_active: record.was_active,
        kept: this.notes.path().to_owned(),
        went_on,
    })
}

/// The service elsewhere has the database's place in files of its own.
pub(super) fn refuse_away(session: &Session<'_>) -> Result<()> {
    if super::dwh_service::is_away(session)? {
        let what = "its service is not on the manager; `hvbak dwh move-service --revert` first";
        return Err(RunError::DwhOther { manager: session.name.to_string(), what: what.into() });
    }
    Ok(())
}

async fn begin(
    session: &mut Session<'_>,
    options: &DwhDatabaseOptions,
    facts: &DwhFacts,
) -> Result<(Move, Vec<Planned>)> {
    let planned = files::plan(session, &options.target, &options.password).await?;
    let edits = planned.iter().enumerate().map(|(n, file)| Edit {
        path: file.path.to_owned(),
        before: files::sum(file.before.as_bytes()),
        after: files::sum(file.after.as_bytes()),
        kept: format!("{n}-{}", file.path.rsplit('/').next().unwrap_or("file")),
    });
    let record = Record {
        format: 1,
        state: State::Begun,
        target: options.target.clone(),
        from: facts.dwhd.to_string(),
        was_active: facts.is_active(dwh::UNIT),
        edits: edits.collect(),
        compared: None,
    };
    let begun = files::begin(session, record, &planned).await?;
    Ok((begun, planned))
}

pub(super) async fn service(session: &mut Session<'_>, verb: &'static str) -> Result<()> {
    let doing = match verb {
        "start" => "start the Data Warehouse's service",
        "enable" => "enable the Data Warehouse's service",
        "disable" => "disable the Data Warehouse's service",
        _ => "stop the Data Warehouse's service",
    };
    let output = session.feed(dwh::SERVICE, &[verb], &Bytes::new(), doing).await?;
    let manager = session.context.manager.address.clone();
    output.check(doing).map(drop).map_err(error::ssh(&manager, doing))
}

fn copy_command(dir: &str, target: &Target, what: &str) -> Vec<String> {
    let port = target.port.to_string();
    let script = format!("{dir}/{}", dwh::COPY_FILE);
    let (user, database, mode) = (&target.user, &target.database, target.sslmode());
    ["/bin/sh", &script, dir, &target.host, &port, user, database, mode, what]
        .map(ToOwned::to_owned)
        .to_vec()
}

/// Copies, or takes home the copy of an earlier hvbak; the service may have been started
/// since that one.
async fn copy(
    session: &mut Session<'_>,
    this: &mut Move,
    options: &DwhDatabaseOptions,
    facts: &DwhFacts,
) -> Result<()> {
    let target = &options.target;
    let mut earlier = None;
    for run in copies(session) {
        if session.is_started(&run).await? {
            session.context.phase("picking up the copy of an earlier hvbak");
            earlier = Some(session.take_home(Kind::DwhCopy, run, None).await?);
        } else {
            forget(session, &run).await?;
        }
    }
    let ran = match earlier {
        Some(ran) => ran,
        None => {
            service(session, "stop").await?;
            // What is in it can only be the whole of an earlier copy, whose end nobody saw.
            let there =
                this.record.state == State::Copying && facts.target.common.empty == Some(false);
            this.record.state = State::Copying;
            files::save(session, this)?;
            let password = Bytes::from(format!("{}\n", options.password.expose()));
            let gifts = [
                Gift::Script { name: dwh::COPY_FILE, text: dwh::COPY },
                Gift::Secret { name: dwh::PASSFILE.into(), bytes: password },
            ];
            let what = if there { "compare" } else { "copy" };
            let command = |dir: &str| Ok(copy_command(dir, target, what));
            match session.run(Kind::DwhCopy, &target.to_string(), &gifts, command).await {
                Ok(ran) => ran,
                Err(cause @ RunError::ManagerBusy { .. }) => {
                    take_back(session, this).await?;
                    return Err(cause);
                }
                Err(cause) => return Err(cause),
            }
        }
    };
    let judged = dwh::judge_copy(&ran.ended, &ran.texts.stdout);
    let outcome = serde_json::json!({
        "target": target.to_string(),
        "same": judged.as_ref().ok().map(|said| &said.same),
        "failed": judged.as_ref().err().map(ToString::to_string),
    });
    let kept = session.finish(ran, &outcome).await?;
    match judged {
        Ok(said) => {
            if let Some(why) = said.ungranted {
                session.context.warn(format!(
                    "the rights of other roles in the old database were not copied: {why}"
                ));
            }
            this.record.compared = Some(said.same);
            this.record.state = State::Copied;
            files::save(session, this)?;
            Ok(())
        }
        Err(cause) => {
            // One that vanished can have ended well behind everybody's back.
            let taken_back = !matches!(cause, CopyFailed::Vanished);
            if taken_back {
                take_back(session, this).await?;
            }
            let (manager, again) = (session.name.to_string(), target.made_by());
            Err(RunError::DwhCopy { manager, cause, kept, taken_back, again })
        }
    }
}

/// The copies of this repository that lie on the manager.
pub(super) fn copies(session: &Session<'_>) -> Vec<PointId> {
    let mine = session.context.repository.id().to_string();
    let ours = |seen: &&Seen| seen.kind == Kind::DwhCopy && seen.owner == mine;
    session.look.runs.iter().filter(ours).filter_map(|seen| seen.name.parse().ok()).collect()
}

pub(super) async fn forget(session: &mut Session<'_>, run: &PointId) -> Result<()> {
    session.forget(run).await?;
    pick_up::settle(session.context, &session.name, run).await
}

/// Before any file was changed: the service works on as it did.
pub(super) async fn take_back(session: &mut Session<'_>, this: &mut Move) -> Result<()> {
    if this.record.was_active {
        service(session, "start").await?;
    }
    this.record.state = State::Reverted;
    files::save(session, this)
}

/// Changes the files and lets the service work on the new database.
async fn edit(
    session: &mut Session<'_>,
    this: &mut Move,
    planned: &[Planned],
    options: &DwhDatabaseOptions,
) -> Result<()> {
    let mut files = planned.iter();
    // The service's own, from which on it can only work on the new database.
    if let Some(first) = files.next() {
        let from = files::sum(first.before.as_bytes());
        let mut tries = 0..4;
        loop {
            // A reboot or a watchdog may have started it meanwhile, also while a connection that
            // broke was tried again: the copy's own comparison is too long ago to go by.
            service(session, "stop").await?;
            let now = files::sum(&files::read(session, first.path).await?);
            if now == from {
                still_same(session, this, options).await?;
            }
            this.record.state = State::Editing;
            files::save(session, this)?;
            session.context.phase(format!("changing {}", first.path));
            let after = first.after.clone().into_bytes();
            match files::write(session, first.path, &from, after, Writing::WhileQuiet).await {
                Err(RunError::DwhAtWork { .. }) if tries.next().is_some() => {
                    session.context.warn("somebody started the service: stopping it again");
                }
                other => break other?,
            }
        }
    }
    for file in files {
        session.context.phase(format!("changing {}", file.path));
        let from = files::sum(file.before.as_bytes());
        let after = file.after.clone().into_bytes();
        files::write(session, file.path, &from, after, Writing::Anyway).await?;
    }
    let mut silent = None;
    if this.record.was_active {
        // One that was started a moment ago would go on with the old database.
        service(session, "stop").await?;
        let mark = check::mark(session.link()).await?;
        if let Some(mark) = mark.as_ref().filter(|mark| mark.at != options.target.to_string()) {
            let (manager, at) = (session.name.to_string(), mark.at.clone());
            return Err(RunError::DwhElsewhere { manager, at });
        }
        service(session, "start").await?;
        session.context.phase("waiting for the service to be seen in the new database");
        silent = check::silence(session.link(), mark.as_ref(), options.patience).await?;
    }
    this.record.state = State::Done;
    files::save(session, this)?;
    let Some(why) = silent else { return Ok(()) };
    Err(RunError::DwhSilent {
        manager: session.name.to_string(),
        at: options.target.to_string(),
        why,
        way_back: Some("hvbak dwh move-database --revert"),
    })
}

/// Compares both databases once more: whoever started the service since the copy let it
/// collect rows in the old one alone. When they differ no file is changed, and the service
/// works on as it did.
async fn still_same(
    session: &mut Session<'_>,
    this: &mut Move,
    options: &DwhDatabaseOptions,
) -> Result<()> {
    let found = check::compare(session, &options.target.with(&options.password)).await?;
    if found.is_same() {
        this.record.compared = found.same;
        return Ok(());
    }
    if found.differs.is_empty() {
        // Nothing is known: the move stays as it is, for the next try.
        let what = found.told("the old one", "the new one");
        return Err(RunError::DwhUncompared { manager: session.name.to_string(), what });
    }
    take_back(session, this).await?;
    Err(RunError::DwhDiffer {
        manager: session.name.to_string(),
        what: found.told("old", "new"),
        again: options.target.made_by(),
    })
}
