//! `manager-restore`: an archive of the repository back onto a manager.
//!
//! engine-backup overwrites the configuration before it checks anything, so the order here
//! is: the point held against a prune, its archive against its recorded sum, all pre-flights
//! (`hvbak-manager/src/restore`), the archive sent, the pre-flights again because that takes
//! its time, engine-cleanup when it is wished, the pre-flights once more, and only then the
//! restore. Its output, its log and the rows that are there afterwards are judged together.
//!
//! Invariants: nothing is changed while a finding stops it, and nothing is taken away by
//! engine-cleanup before what comes in its place lies whole on the manager; a part that was started is never
//! stopped or forgotten, whoever loses the connection or dies: the next
//! [`manager_restore_pick_up`] waits for it and judges it. Nothing of ours stays on the
//! manager after the judgement; log and outcome are in the repository.

use std::collections::BTreeMap;

use bytes::Bytes;
use hvbak_manager::{
    Scope,
    remote::Kind,
    restore::{self, Finding, Probe, Stage, Weight, Wishes},
    transcript::Ended,
};
use hvbak_types::Secret;
use serde::Serialize;

use super::{
    ManagerContext,
    restore_part::{Gift, Ran, Ready, Session},
    restore_source::Source,
    restored::{self, ManagerRestored, PickedUp, SetupDone},
    run::Parcel,
};
use crate::error::{Result, RunError};

/// What is asked for.
#[derive(Debug, Clone)]
pub struct ManagerRestoreOptions {
    /// FQDN, FQDN@latest, FQDN@POINT.
    pub point: String,
    pub wishes: Wishes,
    /// Of the databases that are given credentials.
    pub passwords: BTreeMap<Scope, Secret>,
    /// A host of the self-hosted engine, which is asked for global maintenance.
    pub hosted_engine_host: Option<String>,
    /// engine-setup comes afterwards.
    pub setup: Option<SetupWish>,
}

/// engine-setup after the restore.
#[derive(Debug, Clone)]
pub struct SetupWish {
    /// Content of an answer file.
    pub answers: Option<Secret>,
}

/// What a restore would do.
#[derive(Debug, Clone, Serialize)]
pub struct ManagerRestorePlan {
    pub manager: String,
    pub point: String,
    pub findings: Vec<Finding>,
    /// Each command on the manager, and what it is for.
    pub commands: Vec<PlannedCommand>,
}

impl ManagerRestorePlan {
    /// Whether a restore would be begun.
    pub fn is_clear(&self) -> bool {
        self.findings.iter().all(|f| f.weight != Weight::Stops)
    }
}

/// A command on the manager.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedCommand {
    pub what: &'static str,
    pub line: String,
}

/// The name of the archive in a run's directory.
const ARCHIVE: &str = "engine.backup";
/// The name of the answer file there; like every secret it goes when the program ends.
const ANSWERS: &str = "secret.answers";

/// Looks and says what would be done; changes nothing.
///
/// # Errors
/// See [`RunError`]; what stops the restore is in the plan.
pub async fn manager_restore_plan(
    context: &ManagerContext,
    options: &ManagerRestoreOptions,
) -> Result<ManagerRestorePlan> {
    let source = Source::open(context, &options.point).await?;
    let mut session = Session::open(context).await?;
    let plan = plan(&mut session, &source, options).await;
    session.close().await;
    plan
}

async fn plan(
    session: &mut Session<'_>,
    source: &Source,
    options: &ManagerRestoreOptions,
) -> Result<ManagerRestorePlan> {
    let stage = if options.wishes.cleanup { Stage::BeforeCleanup } else { Stage::BeforeRestore };
    let findings = look(session, source, options, stage, false).await?;
    let dir = format!("{}/RUN", session.base());
    let mut commands = Vec::new();
    let mut add = |what, line| commands.push(PlannedCommand { what, line });
    let words = |words: &[String]| {
        words.iter().map(|w| hvbak_ssh::sh_quote(w)).collect::<Vec<_>>().join(" ")
    };
    let sealed =
        if source.point.manifest.encrypted.is_some() { ", decrypted on its way" } else { "" };
    let line =
        format!("cat >{dir}/{ARCHIVE}  # {} bytes, SHA-256 {}{sealed}", source.size, source.sum);
    add("send the archive and compare its sum there", line);
    for scope in options.passwords.keys() {
        let line = format!("cat >{dir}/{}", restore::passfile(*scope));
        add("send a password (mode 0600, removed when the restore ends)", line);
    }
    if options.wishes.cleanup {
        let line = words(&cleanup_command(session));
        add("empty the databases and remove the configuration", line);
    }
    add("restore", words(&restore_command(session, &options.wishes, &dir)?));
    add("remove archive, log and passwords", format!("rm -rf {dir}"));
    if let Some(setup) = &options.setup {
        let answers = setup.answers.as_ref().map(|_| format!("{dir}/{ANSWERS}"));
        add("set the engine up", words(&setup_command(session, answers.as_deref())));
    }
    Ok(ManagerRestorePlan {
        manager: session.name.to_string(),
        point: source.point.title(),
        findings,
        commands,
    })
}

/// Restores.
///
/// # Errors
/// [`RunError::ManagerPreflight`] before anything was changed; [`RunError::ManagerRestore`]
/// with the place of the kept log; [`RunError::Cancelled`] leaves a started part at work.
pub async fn manager_restore(
    context: &ManagerContext,
    options: &ManagerRestoreOptions,
) -> Result<ManagerRestored> {
    let source = Source::open(context, &options.point).await?;
    let mut session = Session::open(context).await?;
    let result = restore_with(&mut session, &source, options).await;
    session.close().await;
    result
}

/// Takes home what an earlier restore has left: waits for it, judges it.
///
/// # Errors
/// As [`manager_restore`].
pub async fn manager_restore_pick_up(context: &ManagerContext) -> Result<PickedUp> {
    let mut session = Session::open(context).await?;
    let result = async {
        session.lock().await?;
        restored::pick_up(&mut session).await
    }
    .await;
    session.close().await;
    result
}

async fn restore_with(
    session: &mut Session<'_>,
    source: &Source,
    options: &ManagerRestoreOptions,
) -> Result<ManagerRestored> {
    // Refused before anything is asked.
    restore_command(session, &options.wishes, "/RUN")?;
    session.lock().await?;
    if let Some(earlier) = restored::pick_up(session).await?.restored {
        // To restore once more over what was just restored is for the user to say.
        return go_on(session, source, options, earlier).await;
    }
    let mut told = Vec::new();
    let first = if options.wishes.cleanup { Stage::BeforeCleanup } else { Stage::BeforeRestore };
    check(session, source, options, (first, false), &mut told).await?;
    let ready = send(session, source, options).await?;
    // Sending takes its time, and somebody may have started the engine meanwhile.
    if let Err(cause) = clear(session, source, options, &mut told).await {
        return Err(session.give_up(ready, cause).await?);
    }
    let ran = session.start(ready).await?;
    let given = options.wishes.credentials.iter().any(|c| c.scope == Scope::Db);
    let probes = restore::connections(&options.wishes, &source.archive, &options.passwords);
    let probe = probes.into_iter().find(|p| given && p.scope == Scope::Db);
    let probe = probe.unwrap_or(Probe { scope: Scope::Db, at: None });
    let mut done =
        restored::judge(session, ran, Some(source), &options.wishes, &probe, false).await?;
    if let Some(setup) = &options.setup {
        done.setup = Some(set_up(session, source, setup).await?);
    }
    Ok(done)
}

/// The last looks before the restore is started, and engine-cleanup between them when it is
/// wished.
async fn clear(
    session: &mut Session<'_>,
    source: &Source,
    options: &ManagerRestoreOptions,
    told: &mut Vec<Finding>,
) -> Result<()> {
    if options.wishes.cleanup {
        check(session, source, options, (Stage::BeforeCleanup, true), told).await?;
        let command = cleanup_command(session);
        let ran = session.run(Kind::Cleanup, &source.point.title(), &[], |_| Ok(command)).await?;
        finish_tool(session, ran).await?;
        session.cleaned = true;
    }
    check(session, source, options, (Stage::BeforeRestore, true), told).await
}

/// Makes the restore ready: the archive and the passwords lie on the manager, and nothing is
/// started.
async fn send(
    session: &mut Session<'_>,
    source: &Source,
    options: &ManagerRestoreOptions,
) -> Result<Ready> {
    let parcel = Parcel {
        point: source.point.clone(),
        identities: session.context.identities.clone(),
        sum: source.sum.clone(),
    };
    let mut gifts = vec![Gift::Archive { name: ARCHIVE.into(), parcel: Box::new(parcel) }];
    for (scope, password) in &options.passwords {
        let bytes = Bytes::from(format!("{}\n", password.expose()));
        gifts.push(Gift::Secret { name: restore::passfile(*scope), bytes });
    }
    let root = session.look.root.clone();
    let (version, program) =
        (session.look.version.clone(), session.context.manager.program.clone());
    session
        .make_ready(Kind::Restore, &source.point.title(), &gifts, |dir| {
            let arguments = restore::restore(&version, &options.wishes, dir)
                .map_err(|cause| RunError::ManagerCommand { cause })?;
            Ok([vec![format!("{root}{program}")], arguments].concat())
        })
        .await
}

/// After a restore that an earlier hvbak began: it is the wished one or another; of the
/// wished one only engine-setup can be left to do.
async fn go_on(
    session: &mut Session<'_>,
    source: &Source,
    options: &ManagerRestoreOptions,
    mut earlier: ManagerRestored,
) -> Result<ManagerRestored> {
    let wished = source.point.title();
    let parts = options.wishes.parts(&source.archive.scopes());
    let content = &earlier.said.content;
    let all = content.is_empty() || parts.iter().all(|scope| content.contains(scope));
    if earlier.point.as_ref() != Some(&wished) || !all {
        let names = |scopes: &[Scope]| {
            let names: Vec<_> = scopes.iter().map(|s| s.name()).collect();
            if names.is_empty() { "engine-setup".to_owned() } else { names.join(", ") }
        };
        let point = earlier.point.unwrap_or_else(|| "a point that is not stored any more".into());
        return Err(RunError::ManagerOtherRestore {
            manager: earlier.manager,
            earlier: format!("{point} ({})", names(content)),
            wished: format!("{wished} ({})", names(&parts)),
        });
    }
    if let (None, Some(setup)) = (&earlier.setup, &options.setup) {
        // Somebody was quicker.
        let done = if session.machine().await?.engine_at_work() {
            let why = "the engine is at work already, so engine-setup was not run; run it by hand where that is not as it should be";
            SetupDone { seconds: 0.0, failed: Some(why.into()), health: session.health().await? }
        } else {
            set_up(session, source, setup).await?
        };
        earlier.setup = Some(done);
    }
    Ok(earlier)
}

async fn set_up(session: &mut Session<'_>, source: &Source, wish: &SetupWish) -> Result<SetupDone> {
    let gifts: Vec<_> = wish
        .answers
        .iter()
        .map(|text| Gift::Secret {
            name: ANSWERS.into(),
            bytes: Bytes::from(text.expose().to_owned()),
        })
        .collect();
    let with_answers = !gifts.is_empty();
    let root = session.look.root.clone();
    let ran = session
        .run(Kind::Setup, &source.point.title(), &gifts, |dir| {
            let answers = with_answers.then(|| format!("{dir}/{ANSWERS}"));
            Ok([vec![format!("{root}/usr/bin/engine-setup")], restore::setup(answers.as_deref())]
                .concat())
        })
        .await?;
    finish_setup(session, ran).await
}

/// What came of engine-setup; that it failed does not undo the restore before it.
pub(super) async fn finish_setup(session: &mut Session<'_>, ran: Ran) -> Result<SetupDone> {
    let seconds = ran.seconds;
    match finish_tool(session, ran).await {
        Ok(()) => Ok(SetupDone { seconds, failed: None, health: session.health().await? }),
        Err(cause @ RunError::ManagerTool { .. }) => {
            Ok(SetupDone { seconds, failed: Some(crate::chain(&cause)), health: String::new() })
        }
        Err(cause) => Err(cause),
    }
}

/// engine-cleanup and engine-setup tell by their code alone how they ended.
pub(super) async fn finish_tool(session: &mut Session<'_>, ran: Ran) -> Result<()> {
    let program = ran.kind.program();
    let why = match ran.ended {
        Ended::Code(0) => None,
        Ended::Code(code) => Some(format!("it ended with {code}: {}", ran.last_words())),
        Ended::Vanished => Some("it vanished without an exit code".to_owned()),
    };
    let outcome = serde_json::json!({ "program": program, "failed": why });
    let kept = session.finish(ran, &outcome).await?;
    match why {
        None => Ok(()),
        Some(why) => {
            Err(RunError::ManagerTool { manager: session.name.to_string(), program, why, kept })
        }
    }
}

/// Looks, and fails when something stops the restore; tells the rest, each once.
async fn check(
    session: &mut Session<'_>,
    source: &Source,
    options: &ManagerRestoreOptions,
    (stage, sent): (Stage, bool),
    told: &mut Vec<Finding>,
) -> Result<()> {
    let findings = look(session, source, options, stage, sent).await?;
    let (stops, tells): (Vec<_>, Vec<_>) =
        findings.into_iter().partition(|f| f.weight == Weight::Stops);
    for finding in tells {
        if told.contains(&finding) {
            continue;
        }
        let remedy = finding.remedy.as_ref().map_or_else(String::new, |r| format!(" ({r})"));
        session.context.warn(format!("{}{remedy}", finding.text));
        told.push(finding);
    }
    if stops.is_empty() {
        return Ok(());
    }
    let (manager, cleaned) = (session.name.to_string(), session.cleaned);
    Err(RunError::ManagerPreflight { manager, findings: stops, cleaned })
}

async fn look(
    session: &mut Session<'_>,
    source: &Source,
    options: &ManagerRestoreOptions,
    stage: Stage,
    sent: bool,
) -> Result<Vec<Finding>> {
    session.context.phase("looking for what speaks against a restore");
    session.look_again().await?;
    let machine = session.machine().await?;
    let probes = restore::connections(&options.wishes, &source.archive, &options.passwords);
    let databases = session.databases(&probes).await?;
    let own =
        if machine.is_set_up { session.databases(&restore::own()).await? } else { BTreeMap::new() };
    let global_maintenance = match &options.hosted_engine_host {
        None => None,
        Some(host) => Some(
            super::hosted_engine_status(&session.context.settings, host).await?.global_maintenance,
        ),
    };
    Ok(restore::preflight(&restore::Case {
        stage,
        sent,
        wishes: &options.wishes,
        archive: &source.archive,
        of: &source.point.manifest.manager.to_string(),
        archive_size: source.size,
        sizes: &source.point.manifest.databases,
        look: &session.look,
        machine: &machine,
        databases: &databases,
        own: &own,
        global_maintenance,
    }))
}

fn cleanup_command(session: &Session<'_>) -> Vec<String> {
    [vec![format!("{}/usr/bin/engine-cleanup", session.look.root)], restore::cleanup()].concat()
}

fn setup_command(session: &Session<'_>, answers: Option<&str>) -> Vec<String> {
    [vec![format!("{}/usr/bin/engine-setup", session.look.root)], restore::setup(answers)].concat()
}

fn restore_command(session: &Session<'_>, wishes: &Wishes, dir: &str) -> Result<Vec<String>> {
    let arguments = restore::restore(&session.look.version, wishes, dir)
        .map_err(|cause| RunError::ManagerCommand { cause })?;
    let program = format!("{}{}", session.look.root, session.context.manager.program);
    Ok([vec![program], arguments].concat())
}
