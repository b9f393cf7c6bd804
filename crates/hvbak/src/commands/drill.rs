//! `hvbak drill`: a rehearsal on this machine.

use std::{path::PathBuf, sync::Arc, time::Duration};

use hvbak_repo::RunOutcome;
use hvbak_run::{DrillContext, DrillPlan, DrillSettings, DrillWishes};
use hvbak_types::JobId;
use indicatif::HumanBytes;
use serde_json::json;

use super::{Face, Outcome, identities};
use crate::{
    cli::DrillArgs,
    exit::{DAMAGE, DONE, FAILED, PARTLY},
};

pub async fn run(face: &Face, args: DrillArgs) -> Outcome {
    let config = face.config()?;
    let section = &config.drill;
    let scratch = args.scratch.clone().or_else(|| section.scratch.clone());
    let default = || std::env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), PathBuf::from);
    let limit = match args.time_limit {
        Some(limit) => limit.unsigned_abs(),
        None => Duration::from_secs(section.boot_seconds),
    };
    // A day is longer than any boot, and no deadline overflows by it.
    let limit = limit.clamp(Duration::from_secs(1), Duration::from_secs(86_400));
    let context = DrillContext {
        repository: Arc::new(hvbak_run::open_repository(&config.repository.path)?),
        identities: identities(&args.key)?,
        settings: DrillSettings {
            scratch: std::path::absolute(scratch.unwrap_or_else(default)).unwrap_or_default(),
            memory_mib: section.memory_mib.clamp(64, 1 << 20),
            user: section.user.clone(),
        },
        wishes: DrillWishes {
            with_vms: !args.manager || !args.vm.is_empty(),
            with_managers: args.manager || args.vm.is_empty(),
            vms: args.vm,
            count: args.count,
            boot: !args.no_boot,
            limit,
            keep: args.keep,
        },
        events: face.printer.clone(),
        cancel: face.cancel.clone(),
        job: JobId::random(),
    };
    let plan = hvbak_run::drill_plan(&context).await?;
    tell(face, &context, &plan);
    if args.dry_run {
        let (vms, managers) = (plan.points.len(), plan.managers.len());
        return Ok((DONE, json!({ "dry_run": true, "vms": vms, "managers": managers })));
    }
    let report = hvbak_run::drill(&context, plan).await?;
    if let Some(kept) = &report.kept {
        face.printer.say(&format!("everything is left in {}", kept.display()));
    }
    let record = &report.record;
    let outcomes: Vec<_> = record
        .vms
        .iter()
        .map(|vm| vm.outcome)
        .chain(record.managers.iter().map(|manager| manager.outcome))
        .collect();
    let code = exit_code(&outcomes, report.damaged);
    let count = |what| outcomes.iter().filter(|outcome| **outcome == what).count();
    let skipped = count(RunOutcome::Skipped);
    let failed = outcomes.len() - count(RunOutcome::Done) - skipped;
    Ok((
        code,
        json!({
            "vms": record.vms.len(), "managers": record.managers.len(), "failed": failed,
            "skipped": skipped, "damaged": report.damaged, "kept": report.kept,
        }),
    ))
}

/// Only what was rehearsed and came through is done.
fn exit_code(outcomes: &[RunOutcome], damaged: usize) -> u8 {
    let is = |what: &RunOutcome| outcomes.iter().all(|outcome| outcome == what);
    let any = |what: &RunOutcome| outcomes.contains(what);
    match damaged {
        0 if is(&RunOutcome::Done) => DONE,
        0 if any(&RunOutcome::Done) || any(&RunOutcome::Skipped) => PARTLY,
        0 => FAILED,
        _ => DAMAGE,
    }
}

/// What will be done, and with what.
fn tell(face: &Face, context: &DrillContext, plan: &DrillPlan) {
    let scratch = &context.settings.scratch;
    face.printer.record(
        "plan",
        &json!({
            "points": plan.points.iter().map(|point| point.title()).collect::<Vec<_>>(),
            "needed": plan.needed,
            "archives": plan.managers.iter().map(|point| point.title()).collect::<Vec<_>>(),
            "scratch": scratch, "free": plan.free, "qemu": plan.qemu, "kvm": plan.kvm,
            "postgresql": plan.postgres,
        }),
    );
    face.printer.say(&format!("in {}, {} free", scratch.display(), HumanBytes(plan.free)));
    for (point, needed) in plan.points.iter().zip(&plan.needed) {
        face.printer.say(&format!("  {}: at most {}", point.title(), HumanBytes(*needed)));
    }
    let with = match (&plan.qemu, plan.kvm) {
        _ if plan.unfit.is_some() => {
            format!("images are checked and not booted: {}", plan.unfit.unwrap_or_default())
        }
        (None, _) => "no QEMU here: images are checked and not booted".to_owned(),
        (Some(path), true) => format!("booted by {} with KVM", path.display()),
        (Some(path), false) => format!("booted by {}, emulated", path.display()),
    };
    if !plan.points.is_empty() && context.wishes.boot {
        face.printer.say(&with);
    }
    for point in &plan.managers {
        let with = match (plan.unfit, plan.postgres) {
            (Some(why), _) => format!("checked only, {why}"),
            (_, None) => "checked only, no PostgreSQL server here".to_owned(),
            (_, Some(major)) => format!("into a PostgreSQL {major} of its own"),
        };
        face.printer.say(&format!("  {}: {with}", point.title()));
    }
    if plan.points.is_empty() && plan.managers.is_empty() {
        face.printer.say("there is nothing to rehearse");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_rehearsed_is_not_done() {
        use RunOutcome::{Done, Failed, Skipped, Stopped};
        for (outcomes, damaged, code) in [
            (&[][..], 0, DONE),
            (&[Done, Done], 0, DONE),
            (&[Skipped], 0, PARTLY),
            (&[Done, Skipped], 0, PARTLY),
            (&[Failed, Skipped], 0, PARTLY),
            (&[Done, Failed], 0, PARTLY),
            (&[Failed, Stopped], 0, FAILED),
            (&[Skipped, Failed], 1, DAMAGE),
        ] {
            assert_eq!(exit_code(outcomes, damaged), code, "{outcomes:?}");
        }
    }
}
