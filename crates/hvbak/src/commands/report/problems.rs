//! What somebody should look at, and what they can do: the part of a report that matters.
//!
//! Invariant: whatever `report` ends with another code than 0 for is among them.

use hvbak_repo::RunOutcome;
use hvbak_run::{LastRun, ManagerReport, Report, VmReport};
use serde::Serialize;

use super::age;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something cannot be restored, or not as new as it should be.
    Failed,
    Warning,
}

/// One thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub severity: Severity,
    /// The VM or manager; the repository is `-`.
    pub about: String,
    pub text: String,
    pub remedy: String,
}

/// The worst first, then as the report tells them.
pub fn problems(report: &Report) -> Vec<Problem> {
    let mut all: Vec<_> = report.vms.iter().flat_map(of_vm).collect();
    all.extend(report.managers.iter().flat_map(of_manager));
    if report.no_manager {
        let remedy = "`hvbak manager-backup --scope=all`, and hvbak-manager.timer";
        all.push(failed("manager", "there is no archive of any manager", remedy));
    }
    for drill in &report.manager_drills {
        all.extend(failed_drill(&drill.manager.to_string(), &drill.last));
    }
    for vm in report.unassigned.iter().flat_map(|(_, vms)| vms) {
        let text = "is in no policy, so no timer backs it up";
        let remedy = "select it in a policy, or exclude it there; see `hvbak policy test`";
        all.push(warning(&vm.name, text, remedy));
    }
    for left in report.run.iter().flat_map(|run| &run.left_behind) {
        all.push(warning("-", format!("the last run left behind: {left}"), "`hvbak cleanup`"));
    }
    if !report.dead.is_empty() {
        let text = format!("{} runs died or were cut and left something", report.dead.len());
        let remedy = "the VM's next backup goes on with a cut transfer, `hvbak cleanup` undoes it";
        all.push(warning("-", text, remedy));
    }
    if report.damaged_records > 0 {
        let text = format!("{} run records cannot be read", report.damaged_records);
        let remedy = "look at the file system; records are for people, the points do not need them";
        all.push(warning("-", text, remedy));
    }
    all.sort_by_key(|problem| problem.severity);
    all
}

fn of_vm(vm: &VmReport) -> Vec<Problem> {
    let mut all = Vec::new();
    let name = vm.name.as_str();
    let typed = quoted(name);
    let verify = format!("`hvbak verify {typed}`");
    let option = if vm.template { "--save-template" } else { "--vm" };
    if vm.damaged > 0 {
        let text = format!("{} points cannot be read", vm.damaged);
        all.push(failed(name, text, format!("{verify} says why; then make a full of it")));
    }
    if !vm.found_damaged.is_empty() {
        let points: Vec<_> = vm.found_damaged.iter().map(ToString::to_string).collect();
        let text = format!("damage was found in {}, and what stands on it", points.join(", "));
        let remedy = format!("make a new full: `hvbak backup {option} {typed} --level full`");
        all.push(failed(name, text, remedy));
    }
    if vm.too_old {
        let remedy = format!("`hvbak backup {option} {typed}`; look why the last run did not");
        let newest = vm.newest.as_ref().map(|newest| newest.age_seconds);
        all.push(failed(name, late("point", newest, vm.target_seconds), remedy));
    }
    // Of a VM without a point that is all there is to say.
    if vm.verified_too_old && vm.newest.is_some() {
        let newest = vm.verified.as_ref().map(|verified| verified.age_seconds);
        let text = late("verified point", newest, vm.verified_target_seconds);
        all.push(failed(name, text, verify));
    }
    if let Some(last) = vm.last_run.as_ref().filter(|last| last.outcome == RunOutcome::Failed) {
        let remedy = last.remedy.clone().unwrap_or_else(|| "`hvbak doctor`".into());
        all.push(failed(name, format!("the last backup failed {}", seen(last)), remedy));
    }
    if let Some(last) = vm.last_run.as_ref().filter(|last| last.outcome == RunOutcome::Stopped) {
        let text = format!("the last backup was stopped {}", seen(last));
        all.push(warning(name, text, format!("`hvbak backup {option} {typed}`")));
    }
    let left_out = |last: &&LastRun| last.outcome == RunOutcome::Skipped && last.passing;
    if let Some(last) = vm.last_run.as_ref().filter(left_out) {
        let text = format!("the last backup left it out {}", seen(last));
        let remedy = format!("when that is mended: `hvbak backup {option} {typed}`");
        all.push(warning(name, text, remedy));
    }
    for text in vm.newest.iter().flat_map(|newest| &newest.warnings) {
        let remedy = "`hvbak show` tells what is in the point; back up by other means what is not";
        all.push(warning(name, format!("its newest point: {text}"), remedy));
    }
    all.extend(vm.last_drill.as_ref().and_then(|last| failed_drill(name, last)));
    all
}

fn of_manager(manager: &ManagerReport) -> Vec<Problem> {
    let mut all = Vec::new();
    let name = manager.manager.to_string();
    if manager.damaged > 0 {
        let text = format!("{} archives cannot be read", manager.damaged);
        all.push(failed(&name, text, "`hvbak manager-verify` says why"));
    }
    if manager.too_old {
        let newest = manager.newest.as_ref().map(|newest| newest.age_seconds);
        let text = late("archive", newest, manager.target_seconds);
        all.push(failed(&name, text, "`hvbak manager-backup --scope=all`"));
    }
    all
}

fn failed_drill(name: &str, last: &LastRun) -> Option<Problem> {
    (last.outcome == RunOutcome::Failed).then(|| {
        let text = format!("its rehearsal failed {}", seen(last));
        failed(name, text, "`hvbak verify`; then `hvbak drill --keep` and look at what it left")
    })
}

/// `newest point is 3d old, it may be 26h`; of a clock that was wrong there is no age.
fn late(what: &str, newest: Option<i64>, target: Option<i64>) -> String {
    let may = target.map_or_else(String::new, |target| format!(", it may be {}", age(target)));
    match newest {
        None => format!("there is no {what}"),
        Some(seconds) if seconds < 0 => format!("newest {what} is dated in the future"),
        Some(seconds) => format!("newest {what} is {} old{may}", age(seconds)),
    }
}

fn seen(last: &LastRun) -> String {
    let reason = last.reason.as_deref().unwrap_or("no reason is recorded");
    format!("on {}: {reason}", last.finished.strftime("%F %R"))
}

/// A name as a shell takes it: it comes from the engine, and the line is for copying.
fn quoted(name: &str) -> String {
    shlex::try_quote(name).map_or_else(|_| "NAME".into(), |quoted| quoted.into_owned())
}

fn failed(about: &str, text: impl Into<String>, remedy: impl Into<String>) -> Problem {
    let (about, text, remedy) = (about.to_owned(), text.into(), remedy.into());
    Problem { severity: Severity::Failed, about, text, remedy }
}

fn warning(about: &str, text: impl Into<String>, remedy: impl Into<String>) -> Problem {
    Problem { severity: Severity::Warning, ..failed(about, text, remedy) }
}
