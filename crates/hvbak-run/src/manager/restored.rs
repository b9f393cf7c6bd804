//! What came of a restore: judged by everything that can be seen of it, kept, told; also of
//! one whose hvbak died.

use std::path::PathBuf;

use hvbak_manager::{
    Scope,
    archive::Report,
    remote::{Kind, Seen},
    restore::{Probe, RestoreFailed, RestoreSaid, Rows, Wishes, judge_restore},
    transcript::Transcript,
};
use hvbak_types::PointId;
use serde::Serialize;

use super::{
    fetch::Texts,
    restore::{finish_setup, finish_tool},
    restore_part::{Ran, Session},
    restore_source::Source,
};
use crate::error::{Result, RunError};

/// A restore that went well.
#[derive(Debug, Clone, Serialize)]
pub struct ManagerRestored {
    pub manager: String,
    /// `None`: the point of an earlier restore, which is not in the repository any more.
    pub point: Option<String>,
    /// Without content: it was judged by an earlier hvbak, and only its engine-setup was left.
    #[serde(flatten)]
    pub said: RestoreSaid,
    /// Rows of `vm_static` now, where they could be counted, and in the archive.
    pub vms: Option<u64>,
    pub expected_vms: Option<u64>,
    pub seconds: f64,
    /// Where log and output lie.
    pub kept: Option<PathBuf>,
    pub warnings: Vec<String>,
    /// It was begun by an earlier hvbak.
    pub picked_up: bool,
    pub setup: Option<SetupDone>,
}

impl ManagerRestored {
    /// Whether nothing is left to be looked at by hand: all was restored as it should be,
    /// and the rows of the engine's database were counted.
    pub fn is_proven(&self) -> bool {
        let counted = self.vms.is_some() || !self.said.content.contains(&Scope::Db);
        self.said.by_hand.is_none() && counted
    }
}

/// engine-setup has run.
#[derive(Debug, Clone, Serialize)]
pub struct SetupDone {
    pub seconds: f64,
    /// Why it failed. The restore before it went well all the same.
    pub failed: Option<String>,
    /// What the health page says; empty: nothing.
    pub health: String,
}

impl SetupDone {
    /// Whether the engine answers.
    pub fn is_healthy(&self) -> bool {
        self.failed.is_none() && self.health.starts_with("DB Up!")
    }
}

/// Judges a restore that has ended, keeps its log, sweeps.
///
/// # Errors
/// [`RunError::ManagerRestore`] when it failed, whatever it says itself.
pub async fn judge(
    session: &mut Session<'_>,
    ran: Ran,
    source: Option<&Source>,
    wishes: &Wishes,
    probe: &Probe,
    picked_up: bool,
) -> Result<ManagerRestored> {
    let none = Report::default();
    let archive = source.map_or(&none, |s| &s.archive);
    let counts = source.is_none() || wishes.parts(&archive.scopes()).contains(&Scope::Db);
    let vms = if counts { session.vms(probe).await? } else { None };
    // Nobody starts the engine while this hvbak holds the manager.
    let in_use = picked_up && session.machine().await?.engine_at_work();
    let rows = Rows { expected: archive.vms, found: vms, in_use };
    let Texts { stdout, stderr, log, command: _ } = &ran.texts;
    let run = Transcript { ended: ran.ended, stdout, stderr };
    let judged = judge_restore(wishes, &archive.scopes(), &run, log.as_ref(), rows);
    let warnings = judged.as_ref().map_or_else(|_| Vec::new(), |said| warnings(said, rows, wishes));
    let outcome = Outcome {
        point: source.map(|s| s.point.title()),
        restored: judged.as_ref().ok(),
        failed: judged.as_ref().err().map(ToString::to_string),
        failure: judged.as_ref().err(),
        vms,
        expected_vms: archive.vms,
        warnings: &warnings,
    };
    let outcome = serde_json::to_value(&outcome)
        .map_err(|cause| RunError::Task { text: cause.to_string() })?;
    let seconds = ran.seconds;
    let kept = session.finish(ran, &outcome).await?;
    let manager = session.name.to_string();
    let said = match judged {
        Ok(said) => said,
        Err(cause) => return Err(RunError::ManagerRestore { manager, cause, kept, in_use }),
    };
    for text in &warnings {
        session.context.warn(text.clone());
    }
    Ok(ManagerRestored {
        manager,
        point: source.map(|s| s.point.title()),
        said,
        vms,
        expected_vms: archive.vms,
        seconds,
        kept,
        warnings,
        picked_up,
        setup: None,
    })
}

/// `outcome.json` beside the log.
#[derive(Serialize)]
struct Outcome<'a> {
    point: Option<String>,
    restored: Option<&'a RestoreSaid>,
    failed: Option<String>,
    failure: Option<&'a RestoreFailed>,
    vms: Option<u64>,
    expected_vms: Option<u64>,
    warnings: &'a [String],
}

fn warnings(said: &RestoreSaid, rows: Rows, wishes: &Wishes) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(fatal) = &said.by_hand {
        warnings.push(format!(
            "everything was restored; engine-backup's `{fatal}` is about a database that is not set up. Compare the two rewritten 10-setup-database.conf with their dated copies"
        ));
    }
    if said.content.contains(&Scope::Db) && rows.found.is_none() {
        warnings.push("the VMs in the restored database could not be counted".into());
    }
    warnings.extend(rows.changed());
    if said.other_system {
        warnings.push("Apache's configuration was left out; engine-setup asks for it".into());
    }
    if wishes.he_remove_hosts {
        warnings.push("redeploy the hosts of the self-hosted engine at once".into());
    }
    warnings
}

/// What an earlier restore has left.
#[derive(Debug, Default)]
pub struct PickedUp {
    /// Programs before it that were waited for.
    pub tools: Vec<&'static str>,
    /// The restore, or its engine-setup.
    pub restored: Option<ManagerRestored>,
}

/// Of a restore whose engine-setup was left: it is begun only after a good judgement.
fn judged_before(manager: String, point: String) -> ManagerRestored {
    let said = RestoreSaid { content: Vec::new(), by_hand: None, other_system: false };
    ManagerRestored {
        manager,
        point: Some(point).filter(|p| !p.is_empty()),
        said,
        vms: None,
        expected_vms: None,
        seconds: 0.0,
        kept: None,
        warnings: Vec::new(),
        picked_up: true,
        setup: None,
    }
}

/// What a restore is compared with. One that is gone or damaged is told: the restore has ended,
/// and what came of it is told with what there is.
///
/// # Errors
/// That its key is needed.
async fn source_of(session: &Session<'_>, about: &str) -> Result<Option<Source>> {
    use hvbak_repo::Error::{NeedsIdentity, WrongIdentity};
    match Source::open(session.context, about).await {
        Ok(source) => Ok(Some(source)),
        Err(RunError::Repository {
            cause: cause @ (NeedsIdentity { .. } | WrongIdentity { .. }),
            doing,
        }) => Err(RunError::Repository { doing, cause }),
        Err(cause) => {
            session.context.warn(format!(
                "judged without {about}, whose content it is not compared with: {}",
                crate::chain(&cause)
            ));
            Ok(None)
        }
    }
}

/// Takes home what an earlier restore of this repository has left on the manager.
///
/// # Errors
/// What came of it, when it failed.
pub async fn pick_up(session: &mut Session<'_>) -> Result<PickedUp> {
    let mine = session.context.repository.id().to_string();
    let mut picked = PickedUp::default();
    for Seen { name, owner, kind } in session.look.runs.clone() {
        let (Ok(run), true) = (name.parse::<PointId>(), kind != Kind::Backup) else { continue };
        if owner != mine {
            let program = kind.program();
            session.context.warn(format!("another hvbak's {program} {run} lies on the manager"));
            continue;
        }
        if kind == Kind::DwhCopy {
            session.context.warn(format!(
                "a {} is not ended: `{}` goes on with it",
                kind.program(),
                kind.picked_up_by()
            ));
            continue;
        }
        if !session.is_started(&run).await? {
            session.forget(&run).await?;
            super::pick_up::settle(session.context, &session.name, &run).await?;
            continue;
        }
        let program = kind.program();
        session.context.phase(format!("picking up {program} {run} of an earlier restore"));
        let about = session.about(&run).await?;
        // Before it leaves the manager: what a key would show is not judged without it.
        let source = match kind {
            Kind::Restore => source_of(session, &about).await?,
            _ => None,
        };
        let ran = session.take_home(kind, run, None).await?;
        if kind == Kind::Setup {
            let manager = session.name.to_string();
            let setup = finish_setup(session, ran).await?;
            let done = picked.restored.get_or_insert_with(|| judged_before(manager, about));
            done.setup = Some(setup);
            continue;
        }
        if kind != Kind::Restore {
            session.cleaned = true;
            finish_tool(session, ran).await?;
            picked.tools.push(program);
            continue;
        }
        let wishes = Wishes::of_command(&ran.texts.command);
        let probe = Probe { scope: Scope::Db, at: None };
        let done = judge(session, ran, source.as_ref(), &wishes, &probe, true).await?;
        picked.restored = Some(done);
    }
    Ok(picked)
}
