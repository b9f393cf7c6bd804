//! `hvbak restore`: one point, several, or each VM's newest.
//!
//! Invariant: everything is planned before anything is begun; with several, one that fails does
//! not keep the others.

mod overwrite;

use std::collections::BTreeMap;

use hvbak_plan::{
    DiskRule, MacRule, PointFacts, RestoreError, RestoreFormat, RestoreKind, RestoreOptions,
    RestorePlan, explain_restore, plan_restore,
};
use hvbak_repo::{NewestOf, Point};
use hvbak_run::{Context, RunError};
use hvbak_types::{Inventory, JobId};
use serde_json::{Value, json};

use super::{Face, Outcome, repo_error};
use crate::{
    cli::{DiskFormatArg, InterfaceArg, MacArg, NicArg, RestoreArgs},
    exit::{CliError, DONE, FAILED, PARTLY, chain},
    restore_map::RestoreMap,
};

pub async fn run(face: &Face, args: RestoreArgs) -> Outcome {
    let several = args.all || args.points.len() > 1;
    let name = args.as_template.as_ref().or(args.name.as_ref());
    let patterned = name.is_none_or(|name| name.contains("{name}"));
    if several && !patterned {
        return Err(CliError::Usage {
            text: "one name cannot be that of several".into(),
            hint: Some("say what becomes of each, as `--name '{name}-restored'`".into()),
        });
    }
    let map = args.map.as_deref().map(RestoreMap::read).transpose().map_err(|cause| {
        CliError::Usage { text: chain(&cause), hint: Some("README.md shows such a file".into()) }
    })?;
    if several && args.overwrite {
        return Err(CliError::usage("`--overwrite` replaces one VM at a time"));
    }
    let typed = options(&args)?;
    let context = face.context().await?;
    let work = Work { face, context: &context, typed, map: map.unwrap_or_default() };
    let result = match (several, args.overwrite) {
        (true, _) => work.several(&args).await,
        (false, true) => work.overwrite(&args).await,
        (false, false) => work.one(&args).await,
    };
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
        self.check_map()?;
        let selector = args.points.first().map(String::as_str).unwrap_or_default();
        let point = hvbak_run::find_point(&context.repository, selector).await?;
        meant(args, &point)?;
        let facts = hvbak_run::point_facts(&context.repository, &point)?;
        let inventory = hvbak_run::inventory_for_restore(context).await?;
        let plan = self.plan(&inventory, &facts)?;
        if args.dry_run {
            self.explain(&plan);
            return Ok((DONE, json!({ "dry_run": true })));
        }
        let done = self.restore(context, &inventory, &point, &plan).await?;
        if args.config_only {
            let name = &plan.name;
            self.face.printer.say(&format!(
                "warning: VM {name} has NO DISKS: of {selector} the configuration alone is stored"
            ));
        }
        Ok((if is_whole(&done) { DONE } else { PARTLY }, done))
    }

    async fn restore(
        &self,
        context: &Context,
        inventory: &Inventory,
        point: &Point,
        plan: &RestorePlan,
    ) -> Result<Value, RunError> {
        let done = hvbak_run::restore(context, inventory, point, plan).await?;
        // The VM that a template was made from is gone, and its disks with it.
        let (vm, disks) = match done.template {
            None => (Some(done.vm), done.disks),
            Some(_) => (None, Vec::new()),
        };
        let id = done.template.map_or_else(|| done.vm.to_string(), |id| id.to_string());
        let what = if done.template.is_some() { "template" } else { "VM" };
        self.face.printer.data(&format!("{what} {} restored as {id}", plan.name));
        Ok(json!({
            "job": context.job, "vm": vm, "template": done.template, "name": plan.name,
            "disks": disks, "not_started": done.not_started, "left_behind": done.left_behind,
        }))
    }

    /// A section for a VM that is not stored is a mistake of which nobody would hear.
    fn check_map(&self) -> Result<(), CliError> {
        for key in self.map.vms.keys() {
            self.context.repository.find_vm(key).map_err(|cause| CliError::Usage {
                text: format!("the map speaks of `{key}`: {}", chain(&cause)),
                hint: Some("`hvbak points` shows the stored VMs; twins go by id".into()),
            })?;
        }
        Ok(())
    }

    /// The wished points in the order of their turn, with what they hold.
    async fn wanted(&self, args: &RestoreArgs, told: &mut Told) -> Result<Vec<Wanted>, CliError> {
        let repository = &self.context.repository;
        let mut wanted = Vec::new();
        for selector in &args.points {
            let point = hvbak_run::find_point(repository, selector).await?;
            meant(args, &point)?;
            let facts = hvbak_run::point_facts(repository, &point)?;
            wanted.push(Wanted { point, facts });
        }
        if !args.all {
            return Ok(wanted);
        }
        for NewestOf { vm, name, point } in hvbak_run::newest_points(repository, args.until).await?
        {
            if self.map.section(vm, &name).is_some_and(|section| section.skip) {
                told.skipped.push(name);
                continue;
            }
            let point = match point {
                Ok(Some(point)) => point,
                Ok(None) => {
                    told.without_point.push(name);
                    continue;
                }
                Err(cause) => {
                    told.bad(&name, &repo_error("read the newest point")(cause).into());
                    continue;
                }
            };
            match hvbak_run::point_facts(repository, &point) {
                Ok(facts) => wanted.push(Wanted { point, facts }),
                Err(cause) => told.bad(&name, &cause.into()),
            }
        }
        let prefix = self.face.config()?.runbook.priority_tag.clone();
        let turn = |facts: &PointFacts| {
            let number = |tag: &String| tag.strip_prefix(&prefix)?.parse::<u32>().ok();
            facts.tags.iter().filter_map(number).min().unwrap_or(u32::MAX)
        };
        wanted.sort_by_key(|one| (turn(&one.facts), one.facts.name.clone()));
        Ok(wanted)
    }

    /// Plans each beside the others: names and room are given away once.
    fn plan_all(
        &self,
        inventory: &Inventory,
        wanted: Vec<Wanted>,
        all: bool,
        told: &mut Told,
    ) -> Vec<(Wanted, RestorePlan)> {
        let mut room = inventory.clone();
        let mut planned: Vec<(Wanted, RestorePlan)> = Vec::new();
        for one in wanted {
            // A site is brought back by what it lacks; a VM is known by its id, not by its name.
            let exists = match one.facts.template {
                false => inventory.vms.iter().any(|vm| vm.id == one.facts.vm),
                true => inventory.templates.iter().any(|t| t.id.uuid() == one.facts.vm.uuid()),
            };
            if all && exists {
                told.existing.push(one.facts.name);
                continue;
            }
            match self.plan(&room, &one.facts) {
                Ok(plan) => {
                    plan.reserve(&mut room);
                    planned.push((one, plan));
                }
                Err(RestoreError::NameTaken { name } | RestoreError::TemplateTaken { name })
                    if all =>
                {
                    told.taken.push(name)
                }
                Err(cause) => told.bad(&one.facts.name, &cause.into()),
            }
        }
        // Which of two that want one name is meant, nobody can know.
        let mut names = BTreeMap::<(&str, String), usize>::new();
        let key = |plan: &RestorePlan| (plan.kind.word(), plan.name.clone());
        planned.iter().for_each(|(_, plan)| *names.entry(key(plan)).or_default() += 1);
        planned.retain(|(one, plan)| {
            let alone = names.get(&key(plan)) == Some(&1);
            if !alone {
                let text =
                    format!("several would be named `{}`; this one is {}", plan.name, one.facts.vm);
                let hint = Some("`skip = true` or another name by its id in a map".into());
                told.bad(&one.facts.name, &CliError::Usage { text, hint });
            }
            alone
        });
        planned
    }

    async fn several(&self, args: &RestoreArgs) -> Outcome {
        self.check_map()?;
        let mut told = Told::default();
        let wanted = self.wanted(args, &mut told).await?;
        let inventory = hvbak_run::inventory_for_restore(self.context).await?;
        let planned = self.plan_all(&inventory, wanted, args.all, &mut told);
        told.say(self.face);
        if args.dry_run {
            planned.iter().for_each(|(_, plan)| self.explain(plan));
            let code = if told.is_quiet() { DONE } else { PARTLY };
            return Ok((
                code,
                json!({ "dry_run": true, "failed": told.failed, "existing": told.existing, "taken": told.taken, "without_point": told.without_point, "skipped": told.skipped }),
            ));
        }
        if planned.is_empty() && told.existing.is_empty() && told.taken.is_empty() {
            return Err(CliError::usage(
                "nothing that is stored can be restored; nothing was begun",
            ));
        }
        if !told.failed.is_empty() && !args.keep_going {
            let all = told.failed.len() + planned.len();
            return Err(CliError::Usage {
                text: format!(
                    "{} of {all} cannot be restored; nothing was begun",
                    told.failed.len()
                ),
                hint: Some(
                    "look at all plans with `--dry-run`; `--keep-going` restores the others".into(),
                ),
            });
        }
        let (mut done, mut stopped) = (Vec::new(), false);
        for (one, plan) in planned {
            // Each is a job of its own, planned from what the engine says when its turn comes.
            let context = Context { job: JobId::random(), ..self.context.clone() };
            let restored = async {
                let inventory = hvbak_run::inventory_for_restore(&context).await?;
                let plan = self.plan(&inventory, &one.facts)?;
                Ok::<_, CliError>(self.restore(&context, &inventory, &one.point, &plan).await?)
            };
            match restored.await {
                Ok(value) => done.push(value),
                Err(cause) => {
                    stopped |= context.cancel.is_cancelled();
                    self.face.printer.say(&format!("error: {}: {}", plan.name, chain(&cause)));
                    told.bad(&one.facts.name, &cause);
                }
            }
            if stopped {
                self.face.printer.say(&format!("stopped; {} were restored", done.len()));
                self.face.printer.record("restored", &json!({ "done": done }));
                return Err(RunError::Cancelled.into());
            }
        }
        let waiting = done.iter().filter(|one| !is_whole(one)).count();
        let code = match (done.len(), told.failed.len()) {
            (0, failed) if failed > 0 => FAILED,
            _ if told.is_quiet() && waiting == 0 => DONE,
            _ => PARTLY,
        };
        Ok((
            code,
            json!({ "done": done, "failed": told.failed, "existing": told.existing, "taken": told.taken, "without_point": told.without_point, "skipped": told.skipped }),
        ))
    }
}

/// Whether a restore did all that was wished, and left nothing behind.
pub(crate) fn is_whole(done: &Value) -> bool {
    done["not_started"].is_null() && done["left_behind"].as_array().is_none_or(Vec::is_empty)
}

/// A VM without disks is made only for somebody who knows, and one with disks is not made for
/// somebody who wants none.
pub(crate) fn meant(args: &RestoreArgs, point: &Point) -> Result<(), CliError> {
    let (text, hint) = match (point.manifest.configuration_only, args.config_only) {
        (true, false) => (
            "holds a configuration alone, no disk",
            "`--config-only` makes the VM without disks; leave `config:` away for its data",
        ),
        (false, true) => ("holds disks", "leave `--config-only` away, or say `config:` before it"),
        _ => return Ok(()),
    };
    Err(CliError::Usage { text: format!("{} {text}", point.title()), hint: Some(hint.into()) })
}

/// A point that is to be restored.
struct Wanted {
    point: Point,
    facts: PointFacts,
}

/// What is not restored, and why; names.
#[derive(Default)]
struct Told {
    failed: Vec<Value>,
    /// The VM itself is there.
    existing: Vec<String>,
    /// Another VM has its name.
    taken: Vec<String>,
    without_point: Vec<String>,
    skipped: Vec<String>,
}

impl Told {
    fn bad(&mut self, name: &str, cause: &CliError) {
        self.failed.push(json!({ "name": name, "error": chain(cause), "hint": cause.hint() }));
    }

    /// Nothing is missing that was not left out by somebody's word.
    fn is_quiet(&self) -> bool {
        self.failed.is_empty() && self.taken.is_empty() && self.without_point.is_empty()
    }

    fn say(&self, face: &Face) {
        let list = |names: &[String], words: &str| {
            names.iter().for_each(|name| face.printer.say(&format!("{name} {words}")));
        };
        list(&self.existing, "exists and is left alone");
        list(&self.taken, "is not restored: another VM has its name; look which of them it is");
        list(&self.without_point, "has no point of that time");
        list(&self.skipped, "is skipped by the map");
        for one in &self.failed {
            let text = |key: &str| one[key].as_str().unwrap_or("-").to_owned();
            face.printer.say(&format!(
                "error: {}: {}\n  hint: {}",
                text("name"),
                text("error"),
                text("hint")
            ));
        }
    }
}

/// What is typed, as the plan wants it.
fn options(args: &RestoreArgs) -> Result<RestoreOptions, CliError> {
    let mut disk_rules = BTreeMap::<String, DiskRule>::new();
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
        name: args.as_template.as_ref().or(args.name.as_ref()).cloned(),
        kind: match (&args.as_template, args.as_vm) {
            (Some(_), _) => Some(RestoreKind::Template),
            (None, true) => Some(RestoreKind::Vm),
            (None, false) => None,
        },
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
        nic_rules: BTreeMap::new(),
        mac: args.mac.map(|m| match m {
            MacArg::Keep => MacRule::Keep,
            MacArg::New => MacRule::New,
        }),
        disconnected: args.disconnected,
        power_on: args.power_on,
        host: args.host.clone(),
        overwrite: None,
        site: hvbak_plan::SiteNames::default(),
    })
}
