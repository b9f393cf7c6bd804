//! `hvbak report`: one line per VM, the last run, and what somebody should look at; besides as
//! files for browsers and for Prometheus.

mod html;
mod problems;
mod prometheus;

use std::{
    fs::Permissions,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use comfy_table::{Table, presets::NOTHING};
use hvbak_repo::{RunOutcome, RunRecord};
use hvbak_run::{LastRun, ManagerReport, NewestPoint, Report, VmReport};
use indicatif::{HumanBytes, HumanDuration};
use jiff::Timestamp;
use serde_json::json;

use self::{
    html::Page,
    problems::{Problem, Severity, problems},
};
use super::{Face, Outcome, points::word, repo_error};
use crate::{
    cli::ReportArgs,
    exit::{CliError, DAMAGE, DONE, PARTLY},
    notify::machine,
};

pub async fn run(face: &Face, args: ReportArgs) -> Outcome {
    let config = face.config()?;
    let repository = Arc::new(hvbak_run::open_repository(&config.repository.path)?);
    let now = Timestamp::now();
    let mut targets = config.targets();
    if args.max_age.is_some() {
        targets.other.point = args.max_age;
        targets.policies.values_mut().for_each(|target| target.point = args.max_age);
    }
    let mut report = hvbak_run::report(&repository, now, targets).await?;
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
        report.managers.clear();
        report.no_manager = false;
        report.unassigned = None;
    }
    let problems = problems(&report);
    // A stream of one kind is for a program.
    let piped = [&args.html, &args.prometheus].into_iter().flatten().any(|f| f == Path::new("-"));
    if piped && face.printer.json {
        return Err(CliError::usage("`--json` and a file `-` both want the standard output"));
    }
    if !piped {
        show(face, &report, &problems, now);
    }
    if let Some(file) = &args.html {
        let (repository, host) = (repository.path().display().to_string(), machine());
        let page = Page { report: &report, problems: &problems, now, repository, host };
        write(file, &page.text())?;
    }
    if let Some(file) = &args.prometheus {
        let text = prometheus::text(&report, now)
            .map_err(|cause| CliError::usage(format!("no metrics can be made: {cause}")))?;
        write(file, &text)?;
    }
    let names = |is: &dyn Fn(&VmReport) -> bool| {
        let vms = report.vms.iter().filter(|vm| is(vm));
        vms.map(|vm| vm.name.clone()).collect::<Vec<_>>()
    };
    let (late, unproven) = (names(&|vm| vm.too_old), names(&|vm| vm.verified_too_old));
    let managers: Vec<_> =
        report.managers.iter().filter(|one| one.too_old).map(|one| &one.manager).collect();
    let damaged = report.vms.iter().map(|vm| vm.damaged).sum::<usize>()
        + report.managers.iter().map(|one| one.damaged).sum::<usize>();
    let found: usize = report.vms.iter().map(|vm| vm.found_damaged.len()).sum();
    let missing = usize::from(report.no_manager);
    let code = match (damaged + found, late.len() + unproven.len() + managers.len() + missing) {
        (0, 0) => DONE,
        (0, _) => PARTLY,
        _ => DAMAGE,
    };
    let unassigned = report.unassigned.iter().flat_map(|(_, vms)| vms).map(|vm| &vm.name);
    Ok((
        code,
        json!({ "vms": report.vms.len(), "problems": problems.len(), "too_old": late, "verified_too_old": unproven, "managers_too_old": managers, "unassigned": unassigned.collect::<Vec<_>>(), "damaged": damaged, "found_damaged": found, "no_manager": report.no_manager, "dead_jobs": report.dead, "damaged_records": report.damaged_records }),
    ))
}

/// Writes a file that others read, whole or not at all; `-` is the standard output.
fn write(path: &Path, text: &str) -> Result<(), CliError> {
    let fail = |cause| CliError::Io { text: format!("cannot write {}", path.display()), cause };
    if path == Path::new("-") {
        return std::io::stdout().write_all(text.as_bytes()).map_err(fail);
    }
    let dir = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .map_or_else(|| PathBuf::from("."), Path::to_path_buf);
    // A collector passes over names that do not end as its files do.
    let mut file = tempfile::Builder::new().prefix(".hvbak-").tempfile_in(dir).map_err(fail)?;
    file.write_all(text.as_bytes()).map_err(fail)?;
    // Names and dates, no secrets: web servers and collectors are other users.
    file.as_file().set_permissions(Permissions::from_mode(0o644)).map_err(fail)?;
    file.persist(path).map_err(|error| fail(error.error))?;
    Ok(())
}

fn show(face: &Face, report: &Report, problems: &[Problem], now: Timestamp) {
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
    for manager in &report.managers {
        face.printer.record("manager", manager);
        face.printer.data(&line(manager));
    }
    for manager in &report.manager_drills {
        face.printer.record("manager-drill", manager);
        let ago = age(now.duration_since(manager.last.finished).as_secs());
        let seen = manager.last.reason.as_deref().unwrap_or("-");
        let word = word(&manager.last.outcome);
        let (name, since) = (&manager.manager, skipped_since(&manager.last));
        face.printer.data(&format!("manager {name}: drill {ago} ago {word}: {seen}{since}"));
    }
    for vm in &report.vms {
        if let Some(drill) = &vm.last_drill {
            let seen = drill.reason.as_deref().unwrap_or("-");
            let (at, since) = (drill.finished, skipped_since(drill));
            face.printer.data(&format!("drill of {} at {at:.0}: {seen}{since}", vm.name));
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
    for problem in problems {
        face.printer.record("problem", problem);
        let sign = match problem.severity {
            Severity::Failed => "FAILED ",
            Severity::Warning => "warning",
        };
        let about = if problem.about == "-" { "" } else { &format!("{}: ", problem.about) };
        face.printer.data(&format!("{sign} {about}{}", problem.text));
        face.printer.data(&format!("        remedy: {}", problem.remedy));
    }
}

/// The newest drill since, which says nothing.
fn skipped_since(drill: &LastRun) -> String {
    drill.skipped_since.as_ref().map_or_else(String::new, |since| {
        let why = since.reason.as_deref().unwrap_or("-");
        format!("; skipped since, at {:.0}: {why}", since.finished)
    })
}

/// One manager's newest archive.
fn line(manager: &ManagerReport) -> String {
    let name = &manager.manager;
    match &manager.newest {
        None => format!("manager {name}: no archive"),
        Some(newest) => format!(
            "manager {name}: {} archives, the newest {} old ({}, {}{})",
            manager.points,
            age(newest.age_seconds),
            newest.version,
            HumanBytes(newest.stored_bytes),
            if newest.encrypted { ", encrypted" } else { "" }
        ),
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
    let late = if vm.verified_too_old { "!" } else { "" };
    let verified = format!("{verified}{late}");
    let drilled = vm.last_drill.as_ref().map_or_else(
        || "-".to_owned(),
        |drill| {
            let ago = age(now.duration_since(drill.finished).as_secs());
            let since = if drill.skipped_since.is_some() { ", skipped since" } else { "" };
            match drill.outcome {
                RunOutcome::Done => format!("{ago}{since}"),
                other => format!("{ago}, {}{since}", word(&other)),
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
