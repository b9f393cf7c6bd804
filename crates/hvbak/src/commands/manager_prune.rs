//! `hvbak manager-prune`: the same rules as for VMs, and the job's words.

use std::{collections::BTreeSet, sync::Arc};

use hvbak_repo::{ManagerName, RecordKind};
use indicatif::HumanBytes;
use serde_json::json;

use super::{Face, Outcome, prune, repo_error};
use crate::{
    cli::ManagerPruneArgs,
    exit::{CliError, DONE},
};

pub async fn run(face: &Face, args: ManagerPruneArgs) -> Outcome {
    let config = face.config()?;
    let rules = prune::rules(&args.keep, &config.retention)?;
    let zone = prune::zone(&config.retention)?;
    let repository = Arc::new(hvbak_run::open_repository(&config.repository.path)?);
    let all = repository.manager_names().map_err(repo_error("list the managers"))?;
    let unknown = |name: &&String| !all.iter().any(|known| known.to_string() == **name);
    if let Some(name) = args.manager.iter().find(unknown) {
        return Err(CliError::Usage {
            text: format!("the repository has no points of manager `{name}`"),
            hint: Some("`hvbak manager-points` shows what there is".into()),
        });
    }
    let wanted = |name: &ManagerName| {
        args.manager.is_empty() || args.manager.iter().any(|text| *text == name.to_string())
    };
    let (mut removed, mut freed, mut logs, mut walks) = (0, 0, 0, 0);
    let mut told = BTreeSet::new();
    for name in all.into_iter().filter(wanted) {
        let done =
            hvbak_run::manager_prune(&repository, name, rules, zone.clone(), args.dry_run).await?;
        face.printer.record("manager-prune", &done);
        for warning in &done.warnings {
            // Each manager's prune meets the same record.
            if told.insert(warning.clone()) {
                face.printer.say(&format!("warning: {warning}"));
            }
        }
        for verdict in &done.verdicts {
            let (action, why) = match verdict.expires() {
                true => ("remove", String::new()),
                false => ("keep", format!("  ({})", verdict.keep.join(", "))),
            };
            face.printer.data(&format!("{action:7}{}@{}{why}", done.manager, verdict.point));
        }
        for record in &done.removed_logs {
            let kind = match record.kind {
                RecordKind::Restore => "restore",
                RecordKind::FailedBackup => "failed backup",
            };
            face.printer
                .data(&format!("remove log of the {kind} of {} at {}", done.manager, record.time));
        }
        for walk in &done.removed_walks {
            let of = &done.manager;
            face.printer
                .data(&format!("remove record of the walk of {of} that ended {}", walk.time));
        }
        walks += done.removed_walks.len();
        logs += done.removed_logs.len();
        removed += done.removed.len();
        freed += done.freed_bytes;
    }
    let word = if args.dry_run { "would be removed" } else { "removed" };
    face.printer.say(&format!(
        "{removed} points and {logs} logs of runs {word}, {} freed",
        HumanBytes(freed)
    ));
    Ok((
        DONE,
        json!({ "removed": removed, "removed_logs": logs, "removed_walks": walks, "freed_bytes": freed, "dry_run": args.dry_run }),
    ))
}
