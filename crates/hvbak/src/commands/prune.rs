//! `hvbak prune`: rules from the command line or the configuration, judged by `hvbak-plan`,
//! carried out by `hvbak-repo`, one VM after the other.

use std::sync::Arc;

use hvbak_plan::{KeepFacts, KeepRules, Verdict, judge_points};
use hvbak_repo::{ExpiryPlan, Repository, VerifyOptions};
use hvbak_run::{Event, Sink};
use hvbak_types::{JobId, PointId, VmId};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use jiff::tz::TimeZone;
use serde_json::json;

use super::{Face, Outcome, repo_error};
use crate::{
    cli::PruneArgs,
    config::RetentionSection,
    exit::{CliError, DONE, PARTLY, chain},
};

/// What is the same for all VMs.
struct Job {
    repository: Arc<Repository>,
    rules: KeepRules,
    zone: TimeZone,
    reserve: u64,
    dry_run: bool,
}

#[derive(Default)]
struct Totals {
    removed: usize,
    merged: usize,
    freed: u64,
    written: u64,
    failed: Vec<String>,
}

pub async fn run(face: &Face, args: PruneArgs) -> Outcome {
    let config = face.config()?;
    let rules = rules(&args, &config.retention)?;
    let zone = match &config.retention.time_zone {
        None => TimeZone::UTC,
        Some(name) => TimeZone::get(name).map_err(|_| CliError::Usage {
            text: format!("`retention.time_zone` is no known time zone: {name}"),
            hint: Some(
                "write an IANA name such as \"Europe/Vienna\", or leave it out for UTC".into(),
            ),
        })?,
    };
    let repository = Arc::new(hvbak_run::open_repository(&config.repository.path)?);
    let vms = if args.vm.is_empty() {
        repository.vms().map_err(repo_error("list the VMs"))?
    } else {
        let mut wanted = Vec::new();
        for text in &args.vm {
            wanted.push(repository.find_vm(text).map_err(repo_error("find the VM"))?);
        }
        let mut all = repository.vms().map_err(repo_error("list the VMs"))?;
        all.retain(|vm| wanted.contains(&vm.id));
        all
    };
    let reserve = config.repository.reserve_gib << 30;
    let job = Arc::new(Job { repository, rules, zone, reserve, dry_run: args.dry_run });
    let mut totals = Totals::default();
    for vm in &vms {
        if face.cancel.is_cancelled() {
            return Err(hvbak_run::RunError::Cancelled.into());
        }
        if let Err(error) = prune(face, &job, vm.id, &vm.name, &mut totals).await {
            if face.cancel.is_cancelled() {
                return Err(error);
            }
            if vms.len() == 1 {
                return Err(error);
            }
            let (name, hint) = (vm.name.clone(), error.hint());
            face.printer.event(&Event::VmFailed { vm: vm.id, name, error: chain(&error), hint });
            totals.failed.push(vm.name.clone());
        }
    }
    let word = if args.dry_run { "would be removed" } else { "removed" };
    face.printer.say(&format!(
        "{} points {word}, {} merged, {} freed, {} written",
        totals.removed,
        totals.merged,
        HumanBytes(totals.freed),
        HumanBytes(totals.written)
    ));
    let code = if totals.failed.is_empty() { DONE } else { PARTLY };
    Ok((
        code,
        json!({ "vms": vms.len(), "removed": totals.removed, "merged": totals.merged, "freed_bytes": totals.freed, "written_bytes": totals.written, "failed": totals.failed, "dry_run": args.dry_run }),
    ))
}

/// The command line's rules, or all of the configuration's.
fn rules(args: &PruneArgs, section: &RetentionSection) -> Result<KeepRules, CliError> {
    let typed = KeepRules {
        last: args.keep_last,
        hourly: args.keep_hourly,
        daily: args.keep_daily,
        weekly: args.keep_weekly,
        monthly: args.keep_monthly,
        yearly: args.keep_yearly,
    };
    let rules = if typed == KeepRules::default() { section.rules() } else { typed };
    if rules.is_empty() {
        return Err(CliError::Usage {
            text: "no rule says which points to keep".into(),
            hint: Some(
                "add `--keep-daily 7` or the like, or write `[retention]` with `daily = 7` into the configuration"
                    .into(),
            ),
        });
    }
    Ok(rules)
}

async fn prune(
    face: &Face,
    job: &Arc<Job>,
    vm: VmId,
    name: &str,
    totals: &mut Totals,
) -> Result<(), CliError> {
    // Held until the VM is done: nobody adds a point in between.
    let lock = match job.dry_run {
        true => None,
        false => {
            Some(job.repository.lock_vm(vm, JobId::random()).map_err(repo_error("lock the VM"))?)
        }
    };
    let (work, held) = (job.clone(), lock);
    let (lock, verdicts, plan) = hvbak_run::blocking("plan", move || {
        if let Some(lock) = &held {
            work.repository.finish_expiry(lock)?;
        }
        let facts = facts(&work.repository, vm)?;
        let verdicts = judge_points(&facts, &work.rules, &work.zone);
        let damaged: Vec<_> =
            facts.into_iter().filter(|f| f.damage.is_some()).map(|f| f.point).collect();
        let expired: Vec<_> =
            verdicts.iter().filter(|v| v.expires()).map(|v| v.point.clone()).collect();
        let plan = work.repository.plan_expiry(vm, &expired, &damaged)?;
        Ok((held, verdicts, plan))
    })
    .await?;
    tell(face, vm, name, &verdicts, &plan);
    let Some(lock) = lock else {
        totals.removed += plan.removes.len();
        totals.merged += plan.merges.len();
        return Ok(());
    };
    if plan.removes.is_empty() {
        return Ok(());
    }
    let bar = bar(face, name);
    let (work, cancel, shown) = (job.clone(), face.cancel.clone(), bar.clone());
    let done = hvbak_run::blocking("prune", move || {
        work.repository.expire(&lock, &plan, work.reserve, &|done, total| {
            shown.set_length(total);
            shown.set_position(done);
            !cancel.is_cancelled()
        })
    })
    .await;
    bar.finish_and_clear();
    let summary = done?;
    face.printer.record("pruned", &json!({ "vm": vm, "name": name, "summary": summary }));
    totals.removed += summary.removed.len();
    totals.merged += summary.merged.len();
    totals.freed += summary.freed_bytes;
    totals.written += summary.written_bytes;
    Ok(())
}

/// What the rules must know. Points are looked through without reading their clusters: a
/// point that is visibly damaged must not stand for a whole one.
fn facts(repository: &Repository, vm: VmId) -> hvbak_repo::Result<Vec<KeepFacts>> {
    let listing = repository.points(vm)?;
    let kept = |p: &&hvbak_repo::Point| p.manifest.snapshot.as_ref().is_some_and(|s| s.kept);
    let base: Option<PointId> = listing.points.iter().rev().find(kept).map(|p| p.id().clone());
    let options = VerifyOptions { parents: false, data: false, ..VerifyOptions::default() };
    let mut facts = Vec::new();
    for point in &listing.points {
        let report = repository.verify(point, &options, &|_| true)?;
        let damage = report.findings.first().map(|f| format!("{}: {}", f.file.display(), f.text));
        let pinned = (base.as_ref() == Some(point.id()))
            .then(|| "its snapshot is kept for the next delta".to_owned());
        let time = point.manifest.started;
        facts.push(KeepFacts { point: point.id().clone(), time, pinned, damage });
    }
    Ok(facts)
}

fn tell(face: &Face, vm: VmId, name: &str, verdicts: &[Verdict], plan: &ExpiryPlan) {
    for verdict in verdicts {
        let stay = plan.stays.iter().find(|s| s.point == verdict.point);
        let merge = plan.merges.iter().find(|m| m.point == verdict.point);
        let action = if plan.removes.contains(&verdict.point) { "remove" } else { "keep" };
        let mut why = verdict.keep.clone();
        why.extend(stay.map(|s| format!("expired, but {}", s.why)));
        face.printer.record("verdict", &json!({ "vm": vm, "name": name, "point": verdict.point, "action": action, "why": why, "merged_over": merge.map(|m| &m.disks) }));
        let merged = if merge.is_some() { "; takes over what it stands on" } else { "" };
        let why = if why.is_empty() { String::new() } else { format!(" ({})", why.join(", ")) };
        face.printer.data(&format!("{action:6} {name}@{}{why}{merged}", verdict.point));
    }
}

/// A bar for a person at a terminal, a hidden one else.
fn bar(face: &Face, name: &str) -> ProgressBar {
    if face.printer.json {
        return ProgressBar::hidden();
    }
    // Draws nothing when stderr is no terminal.
    let bar = ProgressBar::new(0).with_prefix(name.to_owned());
    if let Ok(style) =
        ProgressStyle::with_template("  {prefix:20!} {bar:24} {percent:>3} % merged eta {eta}")
    {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn typed(words: &[&str]) -> PruneArgs {
        let line = ["hvbak", "prune"].iter().chain(words);
        match Cli::try_parse_from(line).unwrap().command {
            Command::Prune(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn typed_rules_replace_the_configured_ones() {
        let section = RetentionSection { daily: Some(7), ..RetentionSection::default() };
        assert_eq!(rules(&typed(&[]), &section).unwrap().daily, Some(7));
        let rules = rules(&typed(&["--keep-last", "2"]), &section).unwrap();
        assert_eq!((rules.last, rules.daily), (Some(2), None));
    }

    #[test]
    fn without_a_rule_nothing_is_pruned_and_the_hint_says_what_to_write() {
        for words in [&[][..], &["--keep-daily", "0"]] {
            let error = rules(&typed(words), &RetentionSection::default()).unwrap_err();
            assert_eq!(error.code(), crate::exit::USAGE);
            assert!(error.hint().unwrap().contains("daily = 7"));
        }
    }
}
