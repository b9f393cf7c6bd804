//! `hvbak policy`: which VMs the policies mean, why, and which none means.

use std::collections::BTreeMap;

use comfy_table::{Table, presets::NOTHING};
use hvbak_plan::{Assignments, Why, assign_vms, pick_templates, window_closes, window_opens};
use hvbak_types::Inventory;
use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Value, json};

use super::{Face, Outcome};
use crate::{
    cli::{PolicyArgs, PolicyCommand},
    config::Config,
    exit::{CliError, DONE, PARTLY},
    policy::{Policies, PolicySection, protecting, selections},
};

/// The section of a name.
pub fn find<'a>(policies: &'a Policies, name: &str) -> Result<&'a PolicySection, CliError> {
    policies.get(name).ok_or_else(|| {
        let known: Vec<_> = policies.keys().map(String::as_str).collect();
        CliError::Usage {
            text: format!("there is no policy `{name}` in the configuration"),
            hint: Some(match known.as_slice() {
                [] => format!("add `[policy.{name}]`"),
                known => format!("there are: {}", known.join(", ")),
            }),
        }
    })
}

pub async fn run(face: &Face, args: PolicyArgs) -> Outcome {
    let config = face.config()?;
    if config.policies.is_empty() {
        return Err(CliError::Usage {
            text: "the configuration has no policy".into(),
            hint: Some("add `[policy.nightly]` with `all = true`; see hvbak.example.toml".into()),
        });
    }
    match args.command {
        PolicyCommand::List => list(face, &config.policies),
        PolicyCommand::Test { name } => test(face, &config, name.as_deref()).await,
    }
}

fn list(face: &Face, policies: &Policies) -> Outcome {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["POLICY", "LEVEL", "FULL EVERY", "WINDOWS", "NOW", "COMMANDS"]);
    for (name, policy) in policies {
        let now = Timestamp::now();
        let hours = Hours::of(name, policy, now)?;
        let level = format!("{:?}", policy.level).to_lowercase();
        let every = policy.full_every.map(|n| format!("{n} points"));
        let windows = policy.windows.join(", ");
        let (commands, state) = (policy.commands.len(), hours.to_string());
        face.printer.record(
            "policy",
            &json!({ "policy": name, "level": level, "full_every": policy.full_every, "windows": policy.windows, "open": hours.open, "closes": hours.closes, "opens": hours.opens, "commands": commands }),
        );
        table.add_row([
            name.clone(),
            level,
            every.unwrap_or_else(|| "-".into()),
            if windows.is_empty() { "always".into() } else { windows },
            state,
            commands.to_string(),
        ]);
    }
    face.printer.data(&table.to_string());
    Ok((DONE, json!({ "policies": policies.len() })))
}

/// The windows of a policy at a moment.
#[derive(Debug)]
pub struct Hours {
    pub open: bool,
    /// When the last VM may be begun.
    pub closes: Option<Timestamp>,
    pub opens: Option<Timestamp>,
    zone: TimeZone,
}

impl Hours {
    pub fn of(name: &str, policy: &PolicySection, now: Timestamp) -> Result<Self, CliError> {
        let usage = |cause: crate::policy::PolicyError| CliError::usage(cause.to_string());
        let (windows, zone) =
            (policy.windows(name).map_err(usage)?, policy.zone(name).map_err(usage)?);
        let closes = window_closes(&windows, now, &zone);
        let opens = window_opens(&windows, now, &zone);
        Ok(Self { open: windows.is_empty() || closes.is_some(), closes, opens, zone })
    }
}

impl std::fmt::Display for Hours {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let local =
            |at: Timestamp| at.to_zoned(self.zone.clone()).strftime("%a %F %H:%M").to_string();
        match (self.open, self.closes, self.opens) {
            (true, Some(closes), _) => write!(f, "open until {}", local(closes)),
            (true, None, _) => f.write_str("open"),
            (false, _, Some(opens)) => write!(f, "closed until {}", local(opens)),
            (false, _, None) => f.write_str("closed"),
        }
    }
}

async fn test(face: &Face, config: &Config, only: Option<&str>) -> Outcome {
    if let Some(name) = only {
        find(&config.policies, name)?;
    }
    let engine = face.engine(config).await?;
    let inventory = tokio::select! {
        inventory = hvbak_run::list_inventory(&engine) => inventory,
        () = face.cancel.cancelled() => Err(hvbak_run::RunError::Cancelled),
    };
    engine.logout().await;
    let inventory = inventory?;
    let all = assign_vms(&inventory, &selections(&config.policies))
        .map_err(|(name, cause)| CliError::usage(format!("policy `{name}`: {cause}")))?;
    show(face, &all, only);
    let unknown = templates(face, &inventory, &config.policies, only)?;
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for why in all.vms.iter().flat_map(|vm| &vm.policies) {
        *counts.entry(&why.policy).or_default() += 1;
    }
    let protected = assign_vms(&inventory, &protecting(&config.policies))
        .map_err(|(name, cause)| CliError::usage(format!("policy `{name}`: {cause}")))?;
    for (name, _) in config.policies.iter().filter(|(_, policy)| policy.config_only) {
        face.printer.say(&format!("policy {name} stores configurations alone, and no data"));
    }
    let unassigned: Vec<_> = protected.unassigned().map(|vm| vm.name.as_str()).collect();
    if !unassigned.is_empty() {
        face.printer.say(&format!("in no policy: {}", unassigned.join(", ")));
    }
    for (policy, cause) in &all.missing {
        face.printer.say(&format!("policy {policy}: {cause}"));
    }
    let missing = all
        .missing
        .iter()
        .map(|(policy, cause)| json!({ "policy": policy, "text": cause.to_string() }))
        .chain(unknown.iter().cloned());
    let code = if all.missing.is_empty() && unknown.is_empty() && unassigned.is_empty() {
        DONE
    } else {
        PARTLY
    };
    Ok((
        code,
        json!({ "policies": counts, "unassigned": unassigned, "missing": missing.collect::<Vec<_>>() }),
    ))
}

fn show(face: &Face, all: &Assignments, only: Option<&str>) {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["VM", "POLICY", "WHY"]);
    for vm in &all.vms {
        let wanted = |why: &&Why| only.is_none_or(|name| why.policy == name);
        let (taken, left): (Vec<_>, Vec<_>) = (
            vm.policies.iter().filter(wanted).collect(),
            vm.excluded.iter().filter(wanted).collect(),
        );
        if only.is_some() && taken.is_empty() && left.is_empty() {
            continue;
        }
        face.printer.record("vm", vm);
        for why in &taken {
            table.add_row([vm.name.as_str(), &why.policy, &why.why]);
        }
        for why in &left {
            table.add_row([vm.name.clone(), format!("not {}", why.policy), why.why.clone()]);
        }
        if taken.is_empty() && left.is_empty() {
            let why = if vm.is_engine {
                "it runs the engine: `hvbak manager-backup`"
            } else {
                "in no policy"
            };
            table.add_row([vm.name.as_str(), "-", why]);
        }
    }
    face.printer.data(&table.to_string());
}

/// Templates that the policies store themselves; gives the words that mean none.
fn templates(
    face: &Face,
    inventory: &Inventory,
    policies: &Policies,
    only: Option<&str>,
) -> Result<Vec<Value>, CliError> {
    let (mut table, mut unknown) = (Table::new(), Vec::new());
    table.load_style(NOTHING);
    table.set_header(["TEMPLATE", "POLICY", "WHY"]);
    for (policy, section) in policies.iter().filter(|(name, _)| only.is_none_or(|o| o == *name)) {
        let own = pick_templates(inventory, &section.save_templates)
            .map_err(|cause| CliError::usage(format!("policy `{policy}`: {cause}")))?;
        for cause in own.missing {
            face.printer.say(&format!("policy {policy}: {cause}"));
            unknown.push(json!({ "policy": policy, "text": cause.to_string() }));
        }
        for (id, why) in own.templates {
            let named = inventory.templates.iter().find(|t| t.id == id);
            let name = named.map_or_else(|| id.to_string(), |t| t.name.clone());
            let record = json!({ "template": id, "name": name, "policy": policy, "why": why });
            face.printer.record("template", &record);
            table.add_row([name, policy.clone(), format!("`{why}`")]);
        }
    }
    if !table.is_empty() {
        face.printer.data(&table.to_string());
    }
    Ok(unknown)
}
