//! `hvbak restore`: one point, several, or each VM's newest.
//!
//! Invariant: everything is planned before anything is begun; with several, one that fails does
//! not keep the others.

use std::collections::BTreeSet;

use hvbak_plan::{
    DiskRule, MacRule, PointFacts, RestoreError, RestoreFormat, RestoreOptions, RestorePlan,
    explain_restore, plan_restore,
};
use hvbak_repo::Point;
use hvbak_run::{Context, RunError};
use hvbak_types::{Inventory, JobId};
use serde_json::{Value, json};

use super::{Face, Outcome};
use crate::{
    cli::{DiskFormatArg, InterfaceArg, MacArg, NicArg, RestoreArgs},
    exit::{CliError, DONE, FAILED, PARTLY, chain},
    restore_map::RestoreMap,
};

pub async fn run(face: &Face, args: RestoreArgs) -> Outcome {
    let several = args.all || args.points.len() > 1;
    let patterned = args.name.as_ref().is_none_or(|name| name.contains("{name}"));
    if several && !patterned {
        return Err(CliError::Usage {
            text: "one name cannot be that of several VMs".into(),
            hint: Some("say what becomes of each, as `--name '{name}-restored'`".into()),
        });
    }
    let map = args.map.as_deref().map(RestoreMap::read).transpose().map_err(|cause| {
        CliError::Usage { text: chain(&cause), hint: Some("README.md shows such a file".into()) }
    })?;
    let typed = options(&args)?;
    let context = face.context().await?;
    let work = Work { face, context: &context, typed, map: map.unwrap_or_default() };
    let result = if several { work.several(&args).await } else { work.one(&args).await };
    context.engine.logout().await;
    result
}

struct Work<'a> {
    face: &'a Face,
    context: &'a Context,
    typed: RestoreOptions,
    map: RestoreMap,
}

impl Work<'_> {
    fn plan(&self, inventory: &Inventory, facts: &PointFacts) -> Result<RestorePlan, RestoreError> {
        plan_restore(inventory, facts, &self.map.complete(self.typed.clone(), facts))
    }

    fn explain(&self, plan: &RestorePlan) {
        self.face.printer.data(&explain_restore(plan));
        self.face.printer.record("plan", plan);
    }

    async fn one(&self, args: &RestoreArgs) -> Outcome {
        let context = self.context;
        let selector = args.points.first().map(String::as_str).unwrap_or_default();
        let point = hvbak_run::find_point(&context.repository, selector).await?;
        let facts = hvbak_run::point_facts(&context.repository, &point)?;
        let inventory = hvbak_run::inventory(context).await?;
        let plan = self.plan(&inventory, &facts)?;
        if args.dry_run {
            self.explain(&plan);
            return Ok((DONE, json!({ "dry_run": true })));
        }
        let done = self.restore(context, &inventory, &point, &plan).await?;
        let code = if done["not_started"].is_null() { DONE } else { PARTLY };
        Ok((code, done))
    }

    async fn restore(
        &self,
        context: &Context,
        inventory: &Inventory,
        point: &Point,
        plan: &RestorePlan,
    ) -> Result<Value, RunError> {
        let done = hvbak_run::restore(context, inventory, point, plan).await?;
        self.face.printer.data(&format!("VM {} restored as {}", plan.name, done.vm));
        Ok(json!({
            "job": context.job, "vm": done.vm, "name": plan.name, "disks": done.disks,
            "not_started": done.not_started,
        }))
    }

    /// The wished points in the order of their turn, with what they hold.
    async fn wanted(&self, args: &RestoreArgs) -> Result<Vec<(Point, PointFacts)>, CliError> {
        let repository = &self.context.repository;
        let mut points = Vec::new();
        for selector in &args.points {
            points.push(hvbak_run::find_point(repository, selector).await?);
        }
        if args.all {
            points = hvbak_run::newest_points(repository, args.until).await?;
        }
        let mut wanted = Vec::new();
        for point in points {
            let facts = hvbak_run::point_facts(repository, &point)?;
            if !args.all || !self.map.section(&facts).is_some_and(|vm| vm.skip) {
                wanted.push((point, facts));
            }
        }
        if args.all {
            let prefix = self.face.config()?.runbook.priority_tag.clone();
            let turn = |facts: &PointFacts| {
                let number = |tag: &String| tag.strip_prefix(&prefix)?.parse::<u32>().ok();
                facts.tags.iter().filter_map(number).min().unwrap_or(u32::MAX)
            };
            wanted.sort_by_key(|(_, facts)| (turn(facts), facts.name.clone()));
        }
        Ok(wanted)
    }

    async fn several(&self, args: &RestoreArgs) -> Outcome {
        let wanted = self.wanted(args).await?;
        let inventory = hvbak_run::inventory(self.context).await?;
        let (mut planned, mut bad, mut there) = (Vec::new(), Vec::new(), Vec::new());
        let mut names = BTreeSet::new();
        for (point, facts) in wanted {
            match self.plan(&inventory, &facts) {
                Ok(plan) if names.insert(plan.name.clone()) => planned.push((point, facts, plan)),
                Ok(plan) => bad.push((facts.name, RestoreError::NameTaken { name: plan.name })),
                // A site is brought back by what it lacks.
                Err(RestoreError::NameTaken { name }) if args.all => there.push(name),
                Err(cause) => bad.push((facts.name, cause)),
            }
        }
        for name in &there {
            self.face.printer.say(&format!("{name} exists and is left alone"));
        }
        for (name, cause) in &bad {
            let hint = cause.hint().unwrap_or_default();
            self.face.printer.say(&format!("error: {name}: {cause}\n  hint: {hint}"));
        }
        let told: Vec<_> = bad
            .iter()
            .map(|(name, cause)| json!({ "name": name, "error": cause.to_string(), "hint": cause.hint() }))
            .collect();
        if args.dry_run {
            planned.iter().for_each(|(_, _, plan)| self.explain(plan));
            let code = if bad.is_empty() { DONE } else { PARTLY };
            return Ok((code, json!({ "dry_run": true, "failed": told, "existing": there })));
        }
        if !bad.is_empty() && !args.keep_going {
            return Err(CliError::Usage {
                text: format!(
                    "{} of {} cannot be restored; nothing was begun",
                    bad.len(),
                    bad.len() + planned.len()
                ),
                hint: Some(
                    "look at all plans with `--dry-run`; `--keep-going` restores the others".into(),
                ),
            });
        }
        let mut failed = told;
        let (mut done, mut stopped) = (Vec::new(), None);
        for (point, facts, _) in planned {
            // Each is a job of its own, planned from what the engine says when its turn comes.
            let context = Context { job: JobId::random(), ..self.context.clone() };
            let restored = async {
                let inventory = hvbak_run::inventory(&context).await?;
                let plan = self.plan(&inventory, &facts)?;
                Ok::<_, CliError>(self.restore(&context, &inventory, &point, &plan).await?)
            };
            match restored.await {
                Ok(value) => done.push(value),
                Err(cause) if context.cancel.is_cancelled() => {
                    stopped = Some(cause);
                    break;
                }
                Err(cause) => {
                    let text = chain(&cause);
                    self.face.printer.say(&format!("error: {}: {text}", facts.name));
                    failed.push(json!({ "name": facts.name, "error": text, "hint": cause.hint() }));
                }
            }
        }
        if let Some(cause) = stopped {
            return Err(cause);
        }
        let waiting = done.iter().filter(|one| !one["not_started"].is_null()).count();
        let code = match (done.len(), failed.len() + waiting) {
            (_, 0) => DONE,
            (0, _) => FAILED,
            _ => PARTLY,
        };
        Ok((code, json!({ "done": done, "failed": failed, "existing": there })))
    }
}

/// What is typed, as the plan wants it.
fn options(args: &RestoreArgs) -> Result<RestoreOptions, CliError> {
    let mut disk_rules = std::collections::BTreeMap::<String, DiskRule>::new();
    for text in &args.disk_name {
        let (disk, name) = text
            .split_once(':')
            .filter(|(disk, name)| !disk.is_empty() && !name.is_empty())
            .ok_or_else(|| CliError::usage(format!("`{text}` is no DISK:NAME")))?;
        disk_rules.entry(disk.to_owned()).or_default().name = Some(name.to_owned());
    }
    if let Some(disk) = &args.boot {
        disk_rules.entry(disk.clone()).or_default().bootable = Some(true);
    }
    for disk in &args.inactive {
        disk_rules.entry(disk.clone()).or_default().active = Some(false);
    }
    Ok(RestoreOptions {
        name: args.name.clone(),
        cluster: args.cluster.clone(),
        storage_domains: args.storage_domain.clone(),
        disks: args.disk.clone(),
        exclude_disks: args.exclude_disk.clone(),
        format: args.format.map(|f| match f {
            DiskFormatArg::RawSparse => RestoreFormat::RawSparse,
            DiskFormatArg::RawPreallocated => RestoreFormat::RawPreallocated,
            DiskFormatArg::Cow => RestoreFormat::Cow,
        }),
        interface: args.interface.map(|i| {
            match i {
                InterfaceArg::Virtio => "virtio",
                InterfaceArg::VirtioScsi => "virtio_scsi",
                InterfaceArg::Sata => "sata",
                InterfaceArg::Ide => "ide",
            }
            .to_owned()
        }),
        disk_rules,
        no_nics: args.nic == NicArg::None,
        nics: args.only_nic.clone(),
        nic_profile: args.nic_profile.clone(),
        nic_rules: std::collections::BTreeMap::new(),
        mac: args.mac.map(|m| match m {
            MacArg::Keep => MacRule::Keep,
            MacArg::New => MacRule::New,
        }),
        disconnected: args.disconnected,
        power_on: args.power_on,
        host: args.host.clone(),
        site: hvbak_plan::SiteNames::default(),
    })
}
