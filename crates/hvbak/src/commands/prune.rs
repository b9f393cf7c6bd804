//! `hvbak prune`: which rules of command line and configuration count, and the job's words.

use std::{collections::BTreeMap, sync::Arc};

use hvbak_plan::KeepRules;
use hvbak_run::{Events, PruneWishes};
use indicatif::HumanBytes;
use jiff::tz::TimeZone;
use serde_json::json;

use super::{Face, Outcome, repo_error};
use crate::{
    cli::{KeepArgs, PruneArgs},
    config::RetentionSection,
    exit::{CliError, DONE, FAILED, PARTLY},
    policy::{Policies, PolicySection},
};

pub async fn run(face: &Face, args: PruneArgs) -> Outcome {
    let config = face.config()?;
    let policies = policy_rules(&args.keep, &config.policies);
    let own = policies.iter().flatten().any(|(_, rules)| rules.is_some());
    let rules = match rules(&args.keep, &config.retention) {
        Err(_) if own => KeepRules::default(),
        other => other?,
    };
    let zone = zone(&config.retention)?;
    let repository = Arc::new(hvbak_run::open_repository(&config.repository.path)?);
    let mut vms = repository.vms().map_err(repo_error("list the VMs"))?;
    if !args.vm.is_empty() {
        let mut wanted = Vec::new();
        for text in &args.vm {
            wanted.push(repository.find_vm(text).map_err(repo_error("find the VM"))?);
        }
        vms.retain(|vm| wanted.contains(&vm.id));
    }
    let reserve = config.repository.reserve_gib << 30;
    let wishes = PruneWishes { rules, policies, zone, reserve, dry_run: args.dry_run };
    let events: Events = face.printer.clone();
    let report = hvbak_run::prune(&repository, &vms, wishes, &events, &face.cancel).await?;
    let word = if report.dry_run { "would be removed" } else { "removed" };
    face.printer.say(&format!(
        "{} points {word}, {} merged, {} freed, {} written",
        report.removed,
        report.merged,
        HumanBytes(report.freed_bytes),
        HumanBytes(report.written_bytes)
    ));
    let code = match report.failed.as_slice() {
        [] => DONE,
        failed if failed.len() == report.vms => hvbak_run::single_exit(failed).unwrap_or(FAILED),
        _ => PARTLY,
    };
    Ok((code, json!(report)))
}

/// The policies and their own rules; what is typed counts for all points.
fn policy_rules(
    args: &KeepArgs,
    policies: &Policies,
) -> Option<BTreeMap<String, Option<KeepRules>>> {
    if typed(args) != KeepRules::default() {
        return None;
    }
    let own = |(name, policy): (&String, &PolicySection)| {
        let rules = policy.retention.as_ref().map(RetentionSection::rules);
        (name.clone(), rules.filter(|rules| !rules.is_empty()))
    };
    Some(policies.iter().map(own).collect())
}

/// Whose hours and days are meant.
pub fn zone(section: &RetentionSection) -> Result<TimeZone, CliError> {
    match &section.time_zone {
        None => Ok(TimeZone::UTC),
        Some(name) => TimeZone::get(name).map_err(|_| CliError::Usage {
            text: format!("`retention.time_zone` is no known time zone: {name}"),
            hint: Some(
                "write an IANA name such as \"Europe/Vienna\", or leave it out for UTC".into(),
            ),
        }),
    }
}

fn typed(args: &KeepArgs) -> KeepRules {
    KeepRules {
        last: args.keep_last,
        hourly: args.keep_hourly,
        daily: args.keep_daily,
        weekly: args.keep_weekly,
        monthly: args.keep_monthly,
        yearly: args.keep_yearly,
    }
}

/// The command line's rules, or all of the configuration's.
pub fn rules(args: &KeepArgs, section: &RetentionSection) -> Result<KeepRules, CliError> {
    let typed = typed(args);
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
        assert_eq!(rules(&typed(&[]).keep, &section).unwrap().daily, Some(7));
        let rules = rules(&typed(&["--keep-last", "2"]).keep, &section).unwrap();
        assert_eq!((rules.last, rules.daily), (Some(2), None));
    }

    #[test]
    fn without_a_rule_nothing_is_pruned_and_the_hint_says_what_to_write() {
        for words in [&[][..], &["--keep-daily", "0"]] {
            let error = rules(&typed(words).keep, &RetentionSection::default()).unwrap_err();
            assert_eq!(error.code(), crate::exit::USAGE);
            assert!(error.hint().unwrap().contains("daily = 7"));
        }
    }
}
