//! `hvbak report`: one line per VM, and the last run.

use std::{sync::Arc, time::Duration};

use comfy_table::{Table, presets::NOTHING};
use hvbak_repo::{RunOutcome, RunRecord};
use hvbak_run::{NewestPoint, Report, VmReport};
use indicatif::{HumanBytes, HumanDuration};
use jiff::Timestamp;
use serde_json::json;

use super::{Face, Outcome, points::word, repo_error};
use crate::{
    cli::ReportArgs,
    exit::{DAMAGE, DONE, PARTLY},
};

pub async fn run(face: &Face, args: ReportArgs) -> Outcome {
    let repository = Arc::new(hvbak_run::open_repository(&face.config()?.repository.path)?);
    let now = Timestamp::now();
    let mut report = hvbak_run::report(&repository, now, args.max_age).await?;
    if !args.vm.is_empty() {
        let mut wanted = Vec::new();
        for text in &args.vm {
            // One that only a record knows has no points to be found by.
            match report.vms.iter().find(|vm| vm.name == *text || vm.vm.to_string() == *text) {
                Some(vm) => wanted.push(vm.vm),
                None => wanted.push(repository.find_vm(text).map_err(repo_error("find the VM"))?),
            }
        }
        report.vms.retain(|vm| wanted.contains(&vm.vm));
    }
    show(face, &report, now);
    let too_old: Vec<_> = report.vms.iter().filter(|vm| vm.too_old).collect();
    if !too_old.is_empty() {
        let names: Vec<_> = too_old.iter().map(|vm| vm.name.as_str()).collect();
        face.printer.say(&format!("no recent point: {}", names.join(", ")));
    }
    let damaged: usize = report.vms.iter().map(|vm| vm.damaged).sum();
    let code = match (damaged, too_old.len()) {
        (0, 0) => DONE,
        (0, _) => PARTLY,
        _ => DAMAGE,
    };
    Ok((
        code,
        json!({ "vms": report.vms.len(), "too_old": too_old.iter().map(|vm| &vm.name).collect::<Vec<_>>(), "damaged": damaged, "dead_jobs": report.dead, "damaged_records": report.damaged_records }),
    ))
}

fn show(face: &Face, report: &Report, now: Timestamp) {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header([
        "VM", "NEWEST", "AGE", "LEVEL", "CHAIN", "POINTS", "STORED", "SIZE", "VERIFIED", "DRILLED",
        "LAST RUN",
    ]);
    for vm in &report.vms {
        face.printer.record("vm", vm);
        table.add_row(row(vm, now));
    }
    if !report.vms.is_empty() {
        face.printer.data(&table.to_string());
    }
    for vm in report.vms.iter().filter(|vm| vm.damaged > 0) {
        let (name, n) = (&vm.name, vm.damaged);
        face.printer
            .say(&format!("error: {n} points of {name} cannot be read; see `hvbak verify`"));
    }
    for manager in &report.managers {
        face.printer.record("manager-drill", manager);
        let ago = age(now.duration_since(manager.last.finished).as_secs());
        let seen = manager.last.reason.as_deref().unwrap_or("-");
        let word = word(&manager.last.outcome);
        face.printer.data(&format!("manager {}: drill {ago} ago {word}: {seen}", manager.manager));
    }
    for vm in &report.vms {
        if let Some(drill) = &vm.last_drill {
            let seen = drill.reason.as_deref().unwrap_or("-");
            face.printer.data(&format!("drill of {} at {:.0}: {seen}", vm.name, drill.finished));
        }
    }
    if let Some(run) = &report.run {
        face.printer.record("run", run);
        face.printer.data(&summary(run));
        for vm in run.vms.iter().filter(|vm| vm.outcome != RunOutcome::Done) {
            let (word, reason) = (word(&vm.outcome), vm.reason.as_deref().unwrap_or("-"));
            face.printer.data(&format!("  {word:8} {}: {reason}", vm.name));
        }
        for left in &run.left_behind {
            face.printer.data(&format!("  left     {left}"));
        }
    }
    if !report.dead.is_empty() {
        let n = report.dead.len();
        face.printer.say(&format!("{n} runs died or were cut and left something; the VM's next backup goes on with a cut transfer, `hvbak cleanup` undoes it"));
    }
    if report.damaged_records > 0 {
        face.printer.say(&format!("{} run records cannot be read", report.damaged_records));
    }
}

fn row(vm: &VmReport, now: Timestamp) -> Vec<String> {
    let mark = if vm.too_old { "!" } else { "" };
    let last = vm.last_run.as_ref().map_or_else(|| "-".to_owned(), |last| word(&last.outcome));
    let verified = vm.last_verify.as_ref().map_or_else(
        || "-".to_owned(),
        |verify| {
            let ago = age(now.duration_since(verify.finished).as_secs());
            if verify.outcome == RunOutcome::Done { ago } else { format!("{ago}, DAMAGED") }
        },
    );
    let drilled = vm.last_drill.as_ref().map_or_else(
        || "-".to_owned(),
        |drill| {
            let ago = age(now.duration_since(drill.finished).as_secs());
            match drill.outcome {
                RunOutcome::Done => ago,
                other => format!("{ago}, {}", word(&other)),
            }
        },
    );
    let of = |text: &dyn Fn(&NewestPoint) -> String| {
        vm.newest.as_ref().map_or_else(|| "-".to_owned(), text)
    };
    vec![
        vm.name.clone(),
        of(&|newest| newest.point.to_string()),
        format!("{}{mark}", of(&|newest| age(newest.age_seconds))),
        of(&|newest| word(&newest.level)),
        of(&|newest| newest.chain.to_string()),
        vm.points.to_string(),
        HumanBytes(vm.stored_bytes).to_string(),
        of(&|newest| HumanBytes(newest.virtual_size).to_string()),
        verified,
        drilled,
        last,
    ]
}

/// `3h`, `2d`; a clock that was set back makes no negative ages.
fn age(seconds: i64) -> String {
    let seconds = u64::try_from(seconds).unwrap_or(0);
    format!("{:#}", HumanDuration(Duration::from_secs(seconds)))
}

fn summary(run: &RunRecord) -> String {
    let mut counts = Vec::new();
    for outcome in [RunOutcome::Done, RunOutcome::Failed, RunOutcome::Stopped, RunOutcome::Skipped]
    {
        let n = run.count(outcome);
        if n > 0 || outcome == RunOutcome::Done {
            counts.push(format!("{n} {}", word(&outcome)));
        }
    }
    let stored: u64 = run.vms.iter().map(|vm| vm.stored_bytes).sum();
    let seconds = run.finished.duration_since(run.started).as_secs();
    format!(
        "last backup at {:.0}: {}, {} stored in {seconds} s",
        run.started,
        counts.join(", "),
        HumanBytes(stored)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short_and_never_negative() {
        assert_eq!((age(7200).as_str(), age(-5).as_str()), ("2h", "0s"));
    }
}
