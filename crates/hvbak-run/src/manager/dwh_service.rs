//! `dwh move-service`: the Data Warehouse's service to a machine of its own, and back again.
//!
//! The order is: everything that can be known on both machines, the record, the manager's
//! service stopped and disabled, its configuration on the new machine, the manager's setup
//! without the Data Warehouse, the new host's name in the engine's database, the new service.
//! At no moment do both run: the new one is started last, and on the way back stopped first.
//!
//! Invariants: as in `dwh.rs`; on the new machine nothing is overwritten, and only what hvbak
//! made there is removed, as long as it is what it was made as.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use bytes::Bytes;
use hvbak_manager::{
    Scope,
    archive::{Connection, read_conf},
    dwh::{
        self, DwhFacts, Edit, Machine, NewFile, ServiceCase, ServiceRecord, State,
        service_preflight,
    },
    restore::{self, DbFacts, Finding, Probe, Weight},
};
use hvbak_repo::ManagerNotes;
use hvbak_ssh::{ExitStatus, Output};
use serde::Serialize;

use super::{
    ManagerContext, ManagerSettings, dwh_check as check,
    dwh_files::{self as files, Writing},
    link::Link,
    restore_part::Session,
};
use crate::error::{self, Result, RunError};

const RECORD: &str = "service.json";

/// What is asked for.
#[derive(Debug, Clone)]
pub struct DwhServiceOptions {
    /// A name in [hosts], or an address.
    pub to: String,
    /// By what name the engine's database is reached from there; needed when it is on the
    /// manager.
    pub engine_host: Option<String>,
    /// How long a sign of the service in its database is waited for.
    pub patience: Duration,
}

/// What a move would do.
#[derive(Debug, Clone, Serialize)]
pub struct DwhServicePlan {
    pub manager: String,
    pub to: String,
    /// Of a move that was begun and not ended.
    pub state: Option<State>,
    pub findings: Vec<Finding>,
    /// The changes of each file, without passwords; of the new machine's against the manager's.
    pub diffs: Vec<String>,
    /// Files that the new machine gets.
    pub files: Vec<String>,
}

impl DwhServicePlan {
    /// Whether a move would be begun.
    pub fn is_clear(&self) -> bool {
        self.findings.iter().all(|f| f.weight != Weight::Stops)
    }
}

/// A move that is done, or was put back.
#[derive(Debug, Clone, Serialize)]
pub struct DwhServiceMoved {
    pub manager: String,
    pub to: String,
    /// Files of the new machine that were made or removed.
    pub files: Vec<String>,
    /// Files of the manager that were changed or put back.
    pub edits: Vec<String>,
    /// Where the originals lie.
    pub kept: PathBuf,
    /// An earlier hvbak had begun it.
    pub went_on: bool,
    /// What the new machine still has, because it was not asked.
    pub left_there: Vec<String>,
}

/// A move with its notes.
pub(super) struct Moving {
    pub notes: ManagerNotes,
    pub record: ServiceRecord,
}

/// Both machines and what is known of them.
pub(super) struct Site<'a> {
    pub session: Session<'a>,
    pub new: Link,
    facts: DwhFacts,
    manager: Machine,
    pub machine: Machine,
}

/// A file of the new machine.
struct Made {
    path: String,
    content: String,
    before: String,
}

/// Looks and says what would be done; changes nothing.
///
/// # Errors
/// See [`RunError`]; what stops the move is in the plan.
pub async fn dwh_service_plan(
    context: &ManagerContext,
    options: &DwhServiceOptions,
) -> Result<DwhServicePlan> {
    let mut site = Site::open(context, &options.to).await?;
    let result = async {
        let open = newest(&site.session)?.filter(|m| m.record.state.is_open());
        let (made, findings) = site.look(options, open.as_ref()).await?;
        let mut diffs: Vec<_> = made
            .iter()
            .filter(|file| file.before != file.content)
            .map(|file| {
                dwh::diff(&format!("{}:{}", options.to, file.path), &file.before, &file.content)
            })
            .collect();
        if let Some((before, after)) = setup(&mut site.session).await? {
            diffs.push(dwh::diff(dwh::SETUP_CONF, &before, &after));
        }
        Ok(DwhServicePlan {
            manager: site.session.name.to_string(),
            to: site.machine.name.clone(),
            state: open.map(|m| m.record.state),
            findings,
            diffs,
            files: made.into_iter().map(|file| file.path).collect(),
        })
    }
    .await;
    site.close().await;
    result
}

/// Moves the service.
///
/// # Errors
/// [`RunError::DwhPreflight`] before anything was changed.
pub async fn dwh_move_service(
    context: &ManagerContext,
    options: &DwhServiceOptions,
) -> Result<DwhServiceMoved> {
    let mut site = Site::open(context, &options.to).await?;
    let result = site.move_it(options).await;
    site.close().await;
    result
}

/// Whether the service is, or may be, away from the manager: then its database stays where
/// it is.
pub(super) fn is_away(session: &Session<'_>) -> Result<bool> {
    Ok(newest(session)?.is_some_and(|m| m.record.state != State::Reverted))
}

impl<'a> Site<'a> {
    /// How the machine is reached.
    pub fn settings(context: &ManagerContext, to: &str) -> ManagerSettings {
        let known = context.settings.hosts.get(to).cloned().unwrap_or_default();
        ManagerSettings {
            address: known.address.unwrap_or_else(|| to.to_owned()),
            port: known.port.unwrap_or(22),
            user: known.user.unwrap_or_else(|| context.settings.ssh.user.clone()),
            host_key: known.host_key,
            ..context.manager.clone()
        }
    }

    pub async fn open(context: &'a ManagerContext, to: &str) -> Result<Self> {
        let settings = Self::settings(context, to);
        let mut session = Session::open(context).await?;
        let mut new = Link::open(&context.settings, &settings, &context.cancel).await?;
        let facts = super::dwh::facts(&mut session, None).await?;
        let looked = session.feed(dwh::MACHINE, &[], &Bytes::new(), "look at the manager").await?;
        let manager = machine(looked, &context.manager.address)?;
        let looked = new.script(dwh::MACHINE, &[], "look at the new machine").await?;
        let machine = machine(looked, to)?;
        Ok(Self { session, new, facts, manager, machine })
    }

    pub async fn close(self) {
        self.new.close().await;
        self.session.close().await;
    }

    /// What the new machine gets, and what speaks against it.
    async fn look(
        &mut self,
        options: &DwhServiceOptions,
        open: Option<&Moving>,
    ) -> Result<(Vec<Made>, Vec<Finding>)> {
        let mut made = Vec::new();
        let local = self.facts.keeper.is_local();
        let engine_host = match &options.engine_host {
            Some(host) => Some(host.clone()),
            None if local => None,
            None => Some(self.facts.keeper.host.clone()),
        };
        let mut probes = Vec::new();
        for (name, _) in &self.manager.files {
            if dwh::is_of_package(name) {
                continue;
            }
            let path = format!("{}/{name}", dwh::CONF_DIR);
            let bytes = files::read(&mut self.session, &path).await?;
            let failed =
                |cause| RunError::DwhEdit { manager: self.session.name.to_string(), cause };
            let text = String::from_utf8(bytes)
                .map_err(|_| failed(dwh::EditError::NotText { path: path.clone() }))?;
            let mut content = text.clone();
            if let (Some(host), true) = (&engine_host, path == dwh::DWHD_CONF) {
                content = dwh::reach_engine(&path, &text, host).map_err(failed)?;
                probes = databases(&content);
            }
            made.push(Made { path, content, before: text });
        }
        let seen = self.ask(&probes).await?;
        let case = ServiceCase {
            facts: &self.facts,
            manager: &self.manager,
            new: &self.machine,
            engine_host: engine_host.as_deref(),
            engine_database: seen.get(&Scope::Db),
            dwh_database: seen.get(&Scope::DwhDb),
            begun: open.is_some(),
        };
        let mut findings = service_preflight(&case);
        if open.is_some_and(|m| m.record.state == State::Editing) {
            // Only the new service is left to start.
            findings.retain(|finding| finding.check == "later-file");
        }
        Ok((made, findings))
    }

    /// The databases as the new machine sees them.
    async fn ask(&mut self, probes: &[Probe]) -> Result<BTreeMap<Scope, DbFacts>> {
        let lines: Option<String> = probes.iter().map(Probe::lines).collect();
        let input = Bytes::from(lines.unwrap_or_default());
        let doing = "reach the databases from the new machine";
        let output = self.new.feed(restore::DATABASES, &[], &input, doing).await?;
        let output = output.check(doing).map_err(error::ssh(&self.new.name, doing))?;
        Ok(restore::parse_databases(&output.text()))
    }

    async fn move_it(&mut self, options: &DwhServiceOptions) -> Result<DwhServiceMoved> {
        self.session.lock().await?;
        let manager = self.session.name.to_string();
        let open = newest(&self.session)?.filter(|m| m.record.state != State::Reverted);
        if let Some(open) = &open {
            let what = match open.record.state {
                State::Done => Some(format!("its service is on {} already", open.record.name)),
                State::Reverting => Some("it is being put back".to_owned()),
                _ if open.record.host != options.to => Some(format!("to {}", open.record.host)),
                _ => None,
            };
            if let Some(what) = what {
                return Err(RunError::DwhOther { manager, what });
            }
        }
        if files::newest(&self.session)?.is_some_and(|m| m.record.state.is_open()) {
            let what = "its database is on the way".into();
            return Err(RunError::DwhOther { manager, what });
        }
        self.session.context.phase("looking for what speaks against a move");
        let (made, findings) = self.look(options, open.as_ref()).await?;
        let (stops, tells): (Vec<_>, Vec<_>) =
            findings.into_iter().partition(|f| f.weight == Weight::Stops);
        for finding in tells {
            let remedy = finding.remedy.as_ref().map_or_else(String::new, |r| format!(" ({r})"));
            self.session.context.warn(format!("{}{remedy}", finding.text));
        }
        if !stops.is_empty() {
            let begun = open.is_some();
            return Err(RunError::DwhPreflight { manager, findings: stops, begun });
        }
        let went_on = open.is_some();
        let mut moving = match open {
            Some(open) => open,
            None => self.begin(options, &made).await?,
        };
        let same = moving.record.files.len() == made.len()
            && moving.record.files.iter().zip(&made).all(|(file, made)| {
                file.path == made.path && file.sum == files::sum(made.content.as_bytes())
            });
        if !same {
            let what = "with another configuration than is there now".into();
            return Err(RunError::DwhOther { manager, what });
        }
        super::dwh::service(&mut self.session, "stop").await?;
        super::dwh::service(&mut self.session, "disable").await?;
        let after = super::dwh::facts(&mut self.session, None).await?;
        if after.is_running == Some(true) {
            self.session.context.warn(dwh::STILL_RUNNING.to_owned());
        }
        moving.record.state = State::Editing;
        save(&self.session, &moving)?;
        for file in &made {
            self.session.context.phase(format!("making {} on {}", file.path, self.machine.name));
            let sum = files::sum(file.content.as_bytes());
            let input = Bytes::from(file.content.clone());
            self.on_new(dwh::CREATE, &file.path, &sum, &input, "is there already").await?;
        }
        if let Some(edit) = moving.record.edits.first()
            && let Some((before, after)) = setup(&mut self.session).await?
        {
            let from = files::sum(before.as_bytes());
            if from != edit.before {
                let why = "was changed by somebody else and stays as it is".into();
                return Err(RunError::DwhFile { manager, path: edit.path.clone(), why });
            }
            files::write(&mut self.session, &edit.path, &from, after.into_bytes(), Writing::Anyway)
                .await?;
        }
        register(&mut self.session, &self.machine.name).await?;
        let mut silent = None;
        if moving.record.was_active {
            self.new_service("stop").await?;
            let mark = check::mark(&mut self.new).await?;
            for verb in ["enable", "start"] {
                self.new_service(verb).await?;
            }
            self.session.context.phase("waiting for the service to be seen in its database");
            silent = check::silence(&mut self.new, mark.as_ref(), options.patience).await?;
        }
        moving.record.state = State::Done;
        save(&self.session, &moving)?;
        if let Some(why) = silent {
            let at = self.facts.dwhd.to_string();
            let way_back = Some("hvbak dwh move-service --revert");
            return Err(RunError::DwhSilent { manager, at, why, way_back });
        }
        Ok(told(&self.session, &moving, went_on))
    }

    async fn begin(&mut self, options: &DwhServiceOptions, made: &[Made]) -> Result<Moving> {
        let mut originals = Vec::new();
        let mut edits = Vec::new();
        if let Some((before, after)) = setup(&mut self.session).await? {
            edits.push(Edit {
                path: dwh::SETUP_CONF.into(),
                before: files::sum(before.as_bytes()),
                after: files::sum(after.as_bytes()),
                kept: "0-20-setup-ovirt-post.conf".into(),
            });
            originals.push(before);
        }
        let file = |file: &Made| NewFile {
            path: file.path.clone(),
            sum: files::sum(file.content.as_bytes()),
        };
        let engine_host = options.engine_host.clone();
        let record = ServiceRecord {
            format: 1,
            state: State::Begun,
            host: options.to.clone(),
            name: self.machine.name.clone(),
            engine_host: engine_host.unwrap_or_else(|| self.facts.keeper.host.clone()),
            was_active: self.facts.is_active(dwh::UNIT),
            was_enabled: self.facts.enabled.iter().any(|unit| unit == dwh::UNIT),
            was_registered: self.facts.registered_host.clone(),
            edits,
            files: made.iter().map(file).collect(),
        };
        let notes = files::new_notes(&self.session).await?;
        let lock = self.session.held()?;
        for (edit, original) in record.edits.iter().zip(originals) {
            let put = notes.put(lock, &edit.kept, original.as_bytes());
            put.map_err(error::repository("keep the original"))?;
        }
        let moving = Moving { notes, record };
        save(&self.session, &moving)?;
        Ok(moving)
    }

    pub async fn new_service(&mut self, verb: &'static str) -> Result<()> {
        let doing = "switch the Data Warehouse's service on the new machine";
        let output = self.new.script(dwh::SERVICE, &[verb], doing).await?;
        output.check(doing).map(drop).map_err(error::ssh(&self.new.name, doing))
    }

    pub async fn on_new(
        &mut self,
        script: &str,
        path: &str,
        sum: &str,
        input: &Bytes,
        why: &'static str,
    ) -> Result<()> {
        let doing = "write the Data Warehouse's configuration on the new machine";
        let output = self.new.feed(script, &[path, sum], input, doing).await?;
        if output.status == ExitStatus::Code(77) {
            let path = format!("{}:{path}", self.machine.name);
            let manager = self.session.name.to_string();
            return Err(RunError::DwhFile { manager, path, why: why.into() });
        }
        output.check(doing).map(drop).map_err(error::ssh(&self.new.name, doing))
    }
}

fn machine(output: Output, host: &str) -> Result<Machine> {
    let doing = "look at the machine";
    Ok(Machine::parse(&output.check(doing).map_err(error::ssh(host, doing))?.text()))
}

pub(super) fn told(session: &Session<'_>, moving: &Moving, went_on: bool) -> DwhServiceMoved {
    DwhServiceMoved {
        manager: session.name.to_string(),
        to: moving.record.name.clone(),
        files: moving.record.files.iter().map(|file| file.path.clone()).collect(),
        edits: moving.record.edits.iter().map(|edit| edit.path.clone()).collect(),
        kept: moving.notes.path().to_owned(),
        went_on,
        left_there: Vec::new(),
    }
}

/// Both databases as the file names them.
fn databases(text: &str) -> Vec<Probe> {
    let found: BTreeMap<Scope, Connection> = read_conf(text).databases;
    let both = [Scope::Db, Scope::DwhDb].into_iter();
    both.filter_map(|scope| Some(Probe { scope, at: Some(found.get(&scope)?.clone()) })).collect()
}

/// The manager's setup as it is and without the Data Warehouse; `None`: nothing to change.
async fn setup(session: &mut Session<'_>) -> Result<Option<(String, String)>> {
    let before = match files::read(session, dwh::SETUP_CONF).await {
        Ok(bytes) => bytes,
        Err(RunError::DwhFile { why, .. }) if why == files::MISSING => return Ok(None),
        Err(cause) => return Err(cause),
    };
    let Ok(before) = String::from_utf8(before) else { return Ok(None) };
    Ok(dwh::without_dwh(&before).map(|after| (before, after)))
}

/// Whom the engine's database names.
pub(super) async fn register(session: &mut Session<'_>, name: &str) -> Result<()> {
    let doing = "name the new machine in the engine's database";
    let output = session.feed(dwh::HOSTNAME, &[name], &Bytes::new(), doing).await?;
    let manager = session.context.manager.address.clone();
    output.check(doing).map(drop).map_err(error::ssh(&manager, doing))
}

pub(super) fn newest(session: &Session<'_>) -> Result<Option<Moving>> {
    let Some((notes, bytes)) = files::newest_note(session, RECORD)? else { return Ok(None) };
    let record: ServiceRecord = serde_json::from_slice(&bytes).map_err(|cause| {
        let name = notes.path().join(RECORD).display().to_string();
        RunError::Document { name, why: cause.to_string() }
    })?;
    if record.format != 1 {
        let why = format!("it is of format {}, made by a newer hvbak", record.format);
        return Err(RunError::Document { name: RECORD.into(), why });
    }
    Ok(Some(Moving { notes, record }))
}

pub(super) fn save(session: &Session<'_>, of: &Moving) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(&of.record)
        .map_err(|cause| RunError::Task { text: cause.to_string() })?;
    text.push(b'\n');
    let put = of.notes.put(session.held()?, RECORD, &text);
    put.map_err(error::repository("write the record of the move"))
}
