//! The report as one HTML page that needs nothing else: no network, no fonts, no images.
//!
//! What somebody has to look at stands first. Invariant: text that comes from anywhere is
//! escaped, by the template's own means.

use hvbak_repo::RunOutcome;
use hvbak_run::{Report, VmReport};
use indicatif::HumanBytes;
use jiff::Timestamp;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{
    age,
    problems::{Problem, Severity},
};
use crate::commands::points::word;

const STYLE: &str = include_str!("report.css");
/// A page that is older tells so by itself.
const OLD_AFTER_HOURS: i64 = 26;

/// What the page is about.
pub struct Page<'a> {
    pub report: &'a Report,
    pub problems: &'a [Problem],
    pub now: Timestamp,
    /// The repository's path.
    pub repository: String,
    /// The machine that wrote it.
    pub host: String,
}

impl Page<'_> {
    /// The file.
    pub fn text(&self) -> String {
        let title = format!("Backups on {}", self.host);
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    title { (title) }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    p #old role="alert" hidden {
                        "This page is OLD: written on " (moment(self.now)) ". Nobody knows what happened since."
                    }
                    header {
                        h1 { (title) }
                        p .quiet {
                            "Repository " code { (self.repository) } ", read on " (moment(self.now))
                            " by hvbak " (env!("CARGO_PKG_VERSION")) "."
                        }
                    }
                    (self.tiles())
                    (self.problem_list())
                    (self.vms())
                    (self.managers())
                    (self.last_run())
                    script { (PreEscaped(self.script())) }
                }
            }
        }
        .into_string()
    }

    fn script(&self) -> String {
        let (read, limit) = (self.now.as_millisecond(), OLD_AFTER_HOURS * 3_600_000);
        format!("document.getElementById(\"old\").hidden = !(Date.now() - {read} > {limit});")
    }

    fn tiles(&self) -> Markup {
        let vms = &self.report.vms;
        let count = |is: &dyn Fn(&VmReport) -> bool| vms.iter().filter(|vm| is(vm)).count();
        let stored: u64 = vms.iter().map(|vm| vm.stored_bytes).sum();
        let late = count(&|vm| vm.too_old);
        let unproven = count(&|vm| vm.verified.is_none());
        let unassigned = self.report.unassigned.as_ref().map(|(_, vms)| vms.len());
        let bad = self.problems.iter().filter(|p| p.severity == Severity::Failed).count();
        html! {
            ul .tiles {
                (tile("to look at", &self.problems.len().to_string(), grade(bad, self.problems.len())))
                (tile("VMs with a point", &format!("{} of {}", count(&|vm| vm.points > 0), vms.len()), "plain"))
                (tile("older than they may be", &late.to_string(), grade(late, late)))
                (tile("never found whole", &unproven.to_string(), grade(0, unproven)))
                @if let Some(n) = unassigned {
                    (tile("in no policy", &n.to_string(), grade(0, n)))
                }
                (tile("stored", &HumanBytes(stored).to_string(), "plain"))
            }
        }
    }

    fn problem_list(&self) -> Markup {
        html! {
            section {
                h2 { "To look at" }
                @if self.problems.is_empty() && self.report.demanding {
                    p .good { "Nothing. Every VM that is known has what it should have." }
                } @else if self.problems.is_empty() {
                    p { "Nothing was found. No age is demanded of any point: " code { "[report]" } " of the configuration." }
                }
                ul .problems {
                    @for problem in self.problems {
                        li .failed[problem.severity == Severity::Failed] {
                            @if problem.about != "-" { strong { (problem.about) } ": " }
                            (problem.text)
                            p .remedy { "Remedy: " (with_code(&problem.remedy)) }
                        }
                    }
                }
            }
        }
    }

    fn vms(&self) -> Markup {
        html! {
            section {
                h2 { "VMs" }
                @if self.report.vms.is_empty() { p .quiet { "None is stored." } }
                @else {
                    table {
                        thead { tr {
                            @for head in ["VM", "Newest", "Verified", "Rehearsed", "Policy", "Points", "Size", "Stored", "Speed", "Last run"] {
                                th scope="col" { (head) }
                            }
                        } }
                        tbody { @for vm in &self.report.vms { (self.vm(vm)) } }
                    }
                }
            }
        }
    }

    fn vm(&self, vm: &VmReport) -> Markup {
        let newest = vm.newest.as_ref();
        let dash = || "-".to_owned();
        let when =
            newest.map_or_else(dash, |n| format!("{} ago, {}", age(n.age_seconds), word(&n.level)));
        let target = vm.target_seconds.map(|seconds| format!("may be {}", age(seconds)));
        let proven =
            vm.verified.as_ref().map_or_else(dash, |v| format!("{} old", age(v.age_seconds)));
        let rehearsed = vm.last_drill.as_ref().map_or_else(dash, |last| {
            let ago = age(self.now.duration_since(last.finished).as_secs());
            let since = if last.skipped_since.is_some() { ", skipped since" } else { "" };
            format!("{ago} ago: {}{since}", word(&last.outcome))
        });
        let points = match newest {
            Some(n) if n.chain > 1 => format!("{}, chain of {}", vm.points, n.chain),
            _ => vm.points.to_string(),
        };
        let run = vm.last_run.as_ref();
        let ended = run.map_or_else(dash, |run| word(&run.outcome));
        html! {
            tr {
                th scope="row" { (vm.name) }
                (cell("Newest", &when, target.as_deref(), vm.too_old || vm.damaged > 0 || !vm.found_damaged.is_empty()))
                (cell("Verified", &proven, None, vm.verified_too_old))
                (cell("Rehearsed", &rehearsed, None, is_failed(vm.last_drill.as_ref())))
                (cell("Policy", newest.and_then(|n| n.policy.as_deref()).unwrap_or("-"), None, false))
                (cell("Points", &points, None, false))
                (cell("Size", &newest.map_or_else(dash, |n| HumanBytes(n.virtual_size).to_string()), None, false))
                (cell("Stored", &HumanBytes(vm.stored_bytes).to_string(), None, false))
                (cell("Speed", &run.and_then(speed).unwrap_or_else(dash), None, false))
                (cell("Last run", &ended, None, is_failed(run)))
            }
        }
    }

    fn managers(&self) -> Markup {
        html! {
            @if !self.report.managers.is_empty() {
                section {
                    h2 { "Managers" }
                    table {
                        thead { tr {
                            @for head in ["Manager", "Newest", "Version", "Scopes", "Encrypted", "Archives", "Stored"] {
                                th scope="col" { (head) }
                            }
                        } }
                        tbody { @for one in &self.report.managers {
                            @let newest = one.newest.as_ref();
                            @let target = one.target_seconds.map(|seconds| format!("may be {}", age(seconds)));
                            @let when = newest.map_or_else(|| "-".into(), |n| format!("{} ago", age(n.age_seconds)));
                            tr {
                                th scope="row" { (one.manager) }
                                (cell("Newest", &when, target.as_deref(), one.too_old || one.damaged > 0))
                                (cell("Version", newest.map_or("-", |n| n.version.as_str()), None, false))
                                (cell("Scopes", &newest.map_or_else(String::new, |n| n.scopes.join(", ")), None, false))
                                (cell("Encrypted", newest.map_or("-", |n| if n.encrypted { "yes" } else { "no" }), None, false))
                                (cell("Archives", &one.points.to_string(), None, false))
                                (cell("Stored", &newest.map_or_else(|| "-".into(), |n| HumanBytes(n.stored_bytes).to_string()), None, false))
                            }
                        } }
                    }
                }
            }
        }
    }

    fn last_run(&self) -> Markup {
        let Some(run) = &self.report.run else {
            return html! { section { h2 { "Last backup" } p .quiet { "None is recorded." } } };
        };
        let other = run.vms.iter().filter(|vm| vm.outcome != RunOutcome::Done);
        html! {
            section {
                h2 { "Last backup" }
                p { (super::summary(run)) }
                ul { @for vm in other {
                    li { strong { (vm.name) } " " (word(&vm.outcome)) ": " (vm.reason.as_deref().unwrap_or("-")) }
                } }
            }
        }
    }
}

fn is_failed(last: Option<&hvbak_run::LastRun>) -> bool {
    last.is_some_and(|last| last.outcome == RunOutcome::Failed)
}

/// Bytes that were stored in each second of the VM's last backup.
fn speed(run: &hvbak_run::LastRun) -> Option<String> {
    let whole = std::time::Duration::try_from_secs_f64(run.seconds).ok()?.as_millis();
    let rate = u128::from(run.stored_bytes).checked_mul(1000)?.checked_div(whole)?;
    (run.outcome == RunOutcome::Done)
        .then(|| format!("{}/s", HumanBytes(u64::try_from(rate).unwrap_or(u64::MAX))))
}

fn tile(label: &str, value: &str, class: &str) -> Markup {
    html! { li class=(class) { strong { (value) } span { (label) } } }
}

fn grade(bad: usize, some: usize) -> &'static str {
    match (bad, some) {
        (0, 0) => "good",
        (0, _) => "some",
        _ => "bad",
    }
}

fn cell(label: &str, text: &str, more: Option<&str>, bad: bool) -> Markup {
    html! {
        td data-label=(label) .bad[bad] {
            (text)
            @if let Some(more) = more { " " span .quiet { (more) } }
        }
    }
}

/// What stands between back quotes is a command.
fn with_code(text: &str) -> Markup {
    html! {
        @for (at, part) in text.split('`').enumerate() {
            @if at % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

fn moment(at: Timestamp) -> String {
    at.to_zoned(jiff::tz::TimeZone::system()).strftime("%F %H:%M %Z").to_string()
}
