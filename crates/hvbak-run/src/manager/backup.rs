//! `manager-backup`: engine-backup on the manager, its archive in the repository.
//!
//! Success needs all of: exit code 0, the last line, a content line for what was asked, an
//! archive that arrived with the sum it has on the manager, and an archive that is whole
//! and holds what the program said (engine-backup.md §1, rules 1 and 3). A failed run
//! leaves its log in the repository and nothing on the manager; a cancelled one leaves nothing
//! on either side. Invariant: the journal is settled when the run's directory is gone from the
//! manager, and not before: in it the archive lies in plain.

use hvbak_manager::{
    Request, Scope,
    archive::Report,
    command::{self, Format, Paths},
    remote::{self, Look},
    scrub,
    transcript::{BackupSaid, Transcript, judge_backup},
    witness::Witness,
};
use hvbak_repo::{
    Encrypted, EngineSaid, ManagerLock, ManagerManifest, ManagerName, ManagerPoint, ManagerStaging,
    Recipients,
};
use hvbak_types::PointId;

use super::{
    ManagerContext,
    fetch::Texts,
    link::Link,
    pick_up::pick_up,
    run::Run,
    witness::{self, EngineAccess},
};
use crate::{
    error::{self, Result, RunError},
    job::blocking,
    journal::Step,
};

/// What is asked for.
#[derive(Debug, Clone)]
pub struct ManagerBackupOptions {
    pub request: Request,
    pub format: Format,
    /// Whom the archive is encrypted to, and those that are picked up.
    pub recipients: Recipients,
    /// The second witness, or why there is none.
    pub engine: std::result::Result<EngineAccess, String>,
}

/// What came of it.
#[derive(Debug)]
pub struct ManagerBackupReport {
    /// The new point.
    pub point: ManagerPoint,
    /// What the archive holds.
    pub archive: Report,
    /// Points of earlier runs that had lost their hvbak.
    pub picked_up: Vec<ManagerPoint>,
}

/// Backs the manager up.
///
/// # Errors
/// See [`RunError`]; where the log of a failed run is kept is part of the message.
pub async fn manager_backup(
    context: &ManagerContext,
    options: &ManagerBackupOptions,
) -> Result<ManagerBackupReport> {
    let mut link = Link::open(&context.settings, &context.manager, &context.cancel).await?;
    let result = with_link(context, options, &mut link).await;
    link.close().await;
    result
}

async fn with_link(
    context: &ManagerContext,
    options: &ManagerBackupOptions,
    link: &mut Link,
) -> Result<ManagerBackupReport> {
    let look = link.look(&context.manager).await?;
    let name = manager_name(context, &look)?;
    let base = format!("{}{}", look.root, context.manager.work_dir);
    let (repository, job, of) = (context.repository.clone(), context.job, name.clone());
    let lock = blocking("lock the manager", move || repository.lock_manager(&of, job)).await?;
    let recipients = &options.recipients;
    let engine = options.engine.as_ref();
    let at = Place { look: &look, lock: &lock, name: &name, recipients, engine };
    context.repository.sweep_manager_partials(&lock).map_err(error::repository("sweep"))?;
    let picked_up = pick_up(context, link, &at, &base).await?;
    check_fit(context, &look, &name)?;
    let point = PointId::at(jiff::Timestamp::now());
    let mut run = Run::new(context, link, base, point.clone());
    let arguments = command::backup(
        &look.version,
        &options.request,
        &options.format,
        &Paths::in_dir(&run.dir()),
    )
    .map_err(|cause| RunError::ManagerCommand { cause })?;
    let mut command = vec![format!("{}{}", look.root, context.manager.program)];
    command.extend(arguments);
    let (repository, step) = (
        context.repository.clone(),
        Step::ManagerRun { manager: name.to_string(), base: run.base.clone(), point },
    );
    let journal = blocking("open the journal", move || repository.journal(job)).await?;
    let id = journal.intent(&step).map_err(error::repository("write the journal"))?;
    if options.format.has_plain() {
        context.warn(command::PLAIN_TOLD);
    }
    context.phase(format!("engine-backup {} begins on {name}", look.version));
    if let Err(cause) = run.start(remote::FRESH, &command).await {
        // Whether it began is unknown when the connection broke: then the journal stays.
        if matches!(cause, RunError::ManagerBusy { .. }) {
            settle(journal, id).await?;
        }
        if matches!(cause, RunError::Cancelled) {
            context.warn(format!(
                "whether engine-backup has begun is not known: {} may lie on the manager, and the next `hvbak manager-backup` takes it home, or `hvbak cleanup` removes it",
                run.dir()
            ));
        }
        return Err(cause);
    }
    let result = take_home(&mut run, &at).await;
    if run.is_swept() {
        settle(journal, id).await?;
    } else {
        context.warn(format!(
            "{} stays on the manager, with the archive in plain: the next `hvbak manager-backup` takes it home, or `hvbak cleanup` removes it",
            run.dir()
        ));
    }
    let (point, archive) = result?;
    Ok(ManagerBackupReport { point, archive, picked_up })
}

async fn settle(journal: hvbak_repo::Journal, id: hvbak_repo::StepId) -> Result<()> {
    blocking("close the journal", move || {
        journal.undone(id)?;
        journal.close()
    })
    .await
}

pub(super) fn manager_name(context: &ManagerContext, look: &Look) -> Result<ManagerName> {
    let text = context.manager.name.clone().unwrap_or_else(|| look.name.clone());
    text.parse().map_err(|why| RunError::ManagerUnfit {
        manager: context.manager.address.clone(),
        why: format!("{why}; set `manager.name`"),
    })
}

/// Everything that can be known to go wrong before anything is started.
fn check_fit(context: &ManagerContext, look: &Look, name: &ManagerName) -> Result<()> {
    let unfit = |why: String| Err(RunError::ManagerUnfit { manager: name.to_string(), why });
    if !look.is_root {
        return unfit(format!(
            "engine-backup must run as root, and `{}` is not",
            context.manager.user
        ));
    }
    if !look.missing_tools.is_empty() {
        return unfit(format!("it has no {}", look.missing_tools.join(", ")));
    }
    if look.free < look.needed() {
        return unfit(format!(
            "{} has {} MiB free and the backup may need {} (dumps, files and the archive); set `manager.work_dir` to a larger file system",
            context.manager.work_dir,
            look.free >> 20,
            look.needed().div_ceil(1 << 20)
        ));
    }
    for database in &look.unknown {
        context.warn(format!("the size of database {database} cannot be asked; space is a guess"));
    }
    Ok(())
}

/// Which manager it is, and how its archives are stored.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub look: &'a Look,
    pub lock: &'a ManagerLock,
    pub name: &'a ManagerName,
    pub recipients: &'a Recipients,
    pub engine: std::result::Result<&'a EngineAccess, &'a String>,
}

/// Takes this job's own run home. A cancelled one is stopped and swept; whether that went
/// well, the run tells.
async fn take_home(run: &mut Run<'_>, at: &Place<'_>) -> Result<(ManagerPoint, Report)> {
    let taken = fetch_and_judge(run, at).await;
    if let Err(RunError::Cancelled) = taken {
        run.context.phase("cancelled: stopping engine-backup and sweeping the manager");
        if let Err(cause) = run.give_up().await {
            run.context.warn(format!("the cancelled run: {}", crate::chain(&cause)));
        }
    }
    taken
}

/// Waits for a run, fetches what it made, judges it, publishes or keeps the log, sweeps.
/// Cancelled, it leaves the run as it is.
pub(super) async fn fetch_and_judge(
    run: &mut Run<'_>,
    at: &Place<'_>,
) -> Result<(ManagerPoint, Report)> {
    let Place { look, lock, name, recipients, engine } = *at;
    let context = run.context;
    let (ended, seconds) = run.wait().await?;
    let mut staging = Some(
        context
            .repository
            .stage_manager(lock, &run.point)
            .map_err(error::repository("begin the point"))?,
    );
    let Texts { stdout, stderr, command, log: _ } = run.fetch_texts(&mut staging).await?;
    let scopes: Vec<_> = command.iter().filter_map(|a| a.strip_prefix("--scope=")).collect();
    let request = Request::parse(&scopes).unwrap_or(Request::All);
    let transcript = Transcript { ended, stdout: &stdout, stderr: &stderr };
    let said = match judge_backup(&request, &transcript) {
        Ok(said) => said,
        Err(cause) => {
            let kept = keep_and_sweep(run, staging, &cause.to_string()).await;
            return Err(RunError::ManagerRun { manager: name.to_string(), cause, kept });
        }
    };
    let sealed = if recipients.is_empty() { "" } else { ", encrypting it" };
    context.phase(format!("fetching the archive{sealed}"));
    let arrived = run.fetch_archive(&mut staging, recipients).await?;
    let (plain, report) = arrived.unzip();
    let report = report.unwrap_or_default();
    if let Some(why) = contradiction(&said, &report) {
        let kept = keep_and_sweep(run, staging, &why).await;
        return Err(RunError::ManagerArchive { manager: name.to_string(), why, kept });
    }
    let log = format!("{}/engine-backup.log", run.dir());
    let witness = witness::ask(engine, &log, &report.scopes()).await;
    let mut warnings = warnings(&said, &report, look);
    let witness = match witness {
        Witness::Agrees => EngineSaid { said: "agrees".into(), why: None },
        Witness::Silent(why) => EngineSaid { said: "not asked".into(), why: Some(why) },
        Witness::Disagrees(why) => {
            warnings.push(format!("the engine disagrees, although the archive is whole: {why}"));
            EngineSaid { said: "disagrees".into(), why: Some(why) }
        }
    };
    for text in &warnings {
        context.warn(text.clone());
    }
    let manifest = ManagerManifest {
        format: 1,
        manager: name.clone(),
        point: run.point.clone(),
        started: run.point.time().unwrap_or_else(jiff::Timestamp::now),
        finished: jiff::Timestamp::now(),
        hvbak: env!("CARGO_PKG_VERSION").into(),
        version: report.version.as_ref().unwrap_or(&look.version).to_string(),
        requested: request.names().iter().map(ToString::to_string).collect(),
        scopes: words(&report.scopes()),
        absent: words(&said.absent),
        command: command.iter().map(|word| scrub::text(word)).collect(),
        seconds,
        databases: look.databases.clone(),
        engine: Some(witness),
        files: Vec::new(),
        in_sums: false,
        encrypted: plain.filter(|_| !recipients.is_empty()).map(|plain| Encrypted {
            with: "age".into(),
            recipients: recipients.names().to_vec(),
            size: plain.size,
            sha256: plain.sha256,
        }),
        warnings,
    };
    let Some(staging) = staging else { return Err(RunError::Cancelled) };
    let point = blocking("publish the point", move || staging.publish(manifest)).await?;
    run.sweep().await?;
    Ok((point, report))
}

fn words(scopes: &[Scope]) -> Vec<String> {
    scopes.iter().map(ToString::to_string).collect()
}

/// Why an archive is not what the program said it is.
fn contradiction(said: &BackupSaid, report: &Report) -> Option<String> {
    if report.version.is_none() && report.findings.is_empty() {
        return Some("there is no archive".into());
    }
    if let Some(finding) = report.findings.first() {
        let member = finding.member.as_deref().map_or_else(String::new, |m| format!("{m}: "));
        return Some(format!("{member}{}", finding.text));
    }
    let held = report.scopes();
    if let Some(scope) = said.content.iter().find(|s| !held.contains(s)) {
        return Some(format!("the {} was announced and is not in it", scope.title()));
    }
    if held.is_empty() {
        let asked = words(&said.absent).join(", ");
        return Some(format!("nothing was backed up: {asked} is not set up on this manager"));
    }
    None
}

fn warnings(said: &BackupSaid, report: &Report, look: &Look) -> Vec<String> {
    let mut warnings: Vec<String> = said
        .absent
        .iter()
        .map(|s| {
            format!("{s} was asked for and is not set up on this manager: it is NOT in the backup")
        })
        .collect();
    warnings.extend(said.noise.iter().map(|noise| format!("engine-backup says: {noise}")));
    warnings.extend(report.notes.iter().cloned());
    if report.scopes().contains(&Scope::Files) {
        let lost = look.extra.iter().filter(|path| !report.has_extra(path));
        warnings.extend(lost.map(|path| {
            format!("{path} is in the list of `hvbak manager-paths` and NOT in the backup")
        }));
    }
    warnings
}

/// Keeps log and output of a failed run, and removes it from the manager once they are kept:
/// with a full repository they are nowhere else. What goes wrong here is told and does not
/// take the place of why the run failed.
async fn keep_and_sweep(
    run: &mut Run<'_>,
    staging: Option<ManagerStaging>,
    why: &str,
) -> super::Kept {
    let why = why.to_owned();
    let kept = match staging {
        Some(staging) => blocking("keep the log", move || staging.fail(&why)).await.map(Some),
        None => Ok(None),
    };
    match kept {
        Ok(kept) => {
            if let Err(cause) = run.sweep().await {
                run.context.warn(format!("the failed run: {}", crate::chain(&cause)));
            }
            kept
        }
        Err(cause) => {
            let (cause, dir) = (crate::chain(&cause), run.dir());
            run.context
                .warn(format!("the failed run's log stays on the manager, in {dir}: {cause}"));
            None
        }
    }
}
