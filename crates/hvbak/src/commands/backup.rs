//! `hvbak backup`.

use std::sync::Arc;

use hvbak_plan::{
    BackupInput, DiskRules, Quiesce, SelectError, Selection, Wish, assign_vms, explain_backup,
    pick_templates, plan_backup, plan_templates, select_vms,
};
use hvbak_repo::Unassigned;
use hvbak_run::{Context, Wishes};
use hvbak_types::{Inventory, TemplateId, VmId};
use jiff::Timestamp;
use serde_json::json;

use super::{
    Face, Outcome,
    policy::{self, Hours},
};
use crate::{
    cli::{BackupArgs, LevelArg, QuiesceArg, SelectArgs},
    config::QuiesceSetting,
    exit::{CliError, DONE, FAILED, PARTLY},
    policy::{Policies, PolicySection, protecting},
};

pub async fn run(face: &Face, args: BackupArgs) -> Outcome {
    let config = face.config()?;
    let named = match &args.policy {
        None => None,
        Some(name) => Some((name.as_str(), policy::find(&config.policies, name)?)),
    };
    let section = named.map(|(_, section)| section);
    let set = section.and_then(|policy| policy.quiesce).unwrap_or(config.backup.quiesce);
    let quiesce = match (args.quiesce, set) {
        (Some(QuiesceArg::Auto), _) | (None, QuiesceSetting::Auto) => Quiesce::Auto,
        (Some(QuiesceArg::Require), _) | (None, QuiesceSetting::Require) => Quiesce::Require,
        (Some(QuiesceArg::Never), _) | (None, QuiesceSetting::Never) => Quiesce::Never,
    };
    let wish = match args.level {
        None => section.map_or(Wish::Auto, PolicySection::wish),
        Some(LevelArg::Auto) => Wish::Auto,
        Some(LevelArg::Full) => Wish::Full,
        Some(LevelArg::Incremental) => Wish::Incremental,
        Some(LevelArg::Differential) => Wish::Differential,
    };
    let hours = match named {
        None => None,
        Some((name, section)) => Some(Hours::of(name, section, Timestamp::now())?),
    };
    if let (Some(hours), false, false) = (&hours, args.ignore_windows, args.dry_run)
        && !hours.open
    {
        face.printer
            .say(&format!("the policy is {hours}; nothing is begun (`--ignore-windows` does)"));
        return Ok((PARTLY, json!({ "closed": true, "opens": hours.opens })));
    }
    let rules = match named {
        None => DiskRules::new(&args.exclude_disk, None)?,
        Some((name, section)) => {
            section.disk_rules(name).map_err(|cause| CliError::usage(cause.to_string()))?
        }
    };
    let config_only = args.config_only || section.is_some_and(|policy| policy.config_only);
    let mut context = face.context().await?;
    if let Some(section) = section {
        limit(&mut context, section);
    }
    let result = async {
        let own = hvbak_run::own_prefix(context.repository.id());
        let inventory = Arc::new(hvbak_run::inventory(&context).await?);
        let (ids, templates, missing) = match named {
            None => typed(&inventory, &args)?,
            Some((name, section)) => picked(face, &inventory, name, section)?,
        };
        if config_only {
            return configurations(face, &context, &inventory, (&ids, missing), &args).await;
        }
        let ids = match args.max_age {
            Some(age) => hvbak_run::older_than(&context, &ids, age).await?,
            None => ids,
        };
        let vms = hvbak_run::vm_facts(&context, &ids).await?;
        let templates = hvbak_run::template_facts(&context, &inventory, &templates).await?;
        let unassigned = named.map(|_| unassigned(face, &inventory, &config.policies)).transpose()?;
        let names: Vec<_> = unassigned.iter().flatten().map(|vm| vm.name.clone()).collect();
        let wishes = Arc::new(Wishes {
            quiesce,
            exclude_disks: rules,
            host: args.host.clone(),
            wish,
            full_every: section.and_then(|policy| policy.full_every),
            policy: args.policy.clone(),
            unassigned,
            closes: hours.filter(|_| !args.ignore_windows).and_then(|hours| hours.closes),
            hooks: section.map(PolicySection::hooks).unwrap_or_default().into(),
            own,
        });
        let input = BackupInput { vms: &vms, ..wishes.input(&inventory) };
        let mut plan = plan_backup(&input);
        // Only a person's word stores again what cannot have changed; a policy's would do so
        // every night.
        let again = matches!(args.level, Some(LevelArg::Full));
        plan_templates(&mut plan, &input, &templates, again);
        if args.dry_run {
            face.printer.data(&explain_backup(&plan));
            face.printer.record("plan", &plan);
            return Ok((DONE, json!({ "dry_run": true, "expected_bytes": plan.expected_bytes })));
        }
        let report = hvbak_run::backup(&context, &inventory, &plan, &wishes).await?;
        let short = report.failed.len() + report.passing + report.left_behind.len();
        let other = report.not_begun + report.hooks_failed + missing.len();
        let code = match (report.done.len(), short + other) {
            (_, 0) => DONE,
            (0, _) if short > 0 => report.single_exit().unwrap_or(FAILED),
            _ => PARTLY,
        };
        Ok((
            code,
            json!({ "job": context.job, "done": report.done, "failed": report.failed, "skipped": report.skipped, "left_behind": report.left_behind, "not_begun": report.not_begun, "commands_failed": report.hooks_failed, "missing": missing, "unassigned": names }),
        ))
    }
    .await;
    context.engine.logout().await;
    result
}

/// What is to be backed up, and words that mean nothing.
type Meant = (Vec<VmId>, Vec<TemplateId>, Vec<String>);

/// What is typed.
fn typed(inventory: &Inventory, args: &BackupArgs) -> Result<Meant, CliError> {
    let own = pick_templates(inventory, &args.templates.save_template)?;
    if let Some(error) = own.missing.into_iter().next() {
        return Err(error.into());
    }
    let selection = selection(&args.select);
    // Templates alone are enough.
    let vms = match own.templates.is_empty() || selection.names_vms() {
        true => select_vms(inventory, &selection)?,
        false => Vec::new(),
    };
    Ok((vms, own.templates.into_iter().map(|(id, _)| id).collect(), Vec::new()))
}

/// `--config-only`, or a policy that says so.
async fn configurations(
    face: &Face,
    context: &Context,
    inventory: &Inventory,
    (ids, missing): (&[VmId], Vec<String>),
    args: &BackupArgs,
) -> Outcome {
    if args.dry_run {
        for vm in inventory.vms.iter().filter(|vm| ids.contains(&vm.id)) {
            face.printer.data(&format!("{}: its configuration alone, no disk", vm.name));
        }
        return Ok((DONE, json!({ "dry_run": true, "config_only": true })));
    }
    let policy = args.policy.as_deref();
    let report = hvbak_run::backup_configurations(context, inventory, ids, policy).await?;
    for one in &report.stored {
        face.printer.data(&format!("{}: configuration stored as {}", one.name, one.point));
    }
    for one in &report.unchanged {
        face.printer.data(&format!("{}: unchanged since {}", one.name, one.point));
    }
    let done = report.stored.len() + report.unchanged.len();
    let code = match (done, report.failed.len() + report.left_behind.len() + missing.len()) {
        (_, 0) => DONE,
        (0, _) => hvbak_run::single_exit(&report.failed).unwrap_or(FAILED),
        _ => PARTLY,
    };
    Ok((
        code,
        json!({ "job": context.job, "config_only": true, "stored": report.stored, "unchanged": report.unchanged, "failed": report.failed, "missing": missing }),
    ))
}

/// What a policy means now. VMs that are gone do not keep the others from being backed up.
fn picked(
    face: &Face,
    inventory: &Inventory,
    name: &str,
    section: &PolicySection,
) -> Result<Meant, CliError> {
    let picked = section.pick(inventory)?;
    let own = pick_templates(inventory, &section.save_templates)?;
    let missing: Vec<_> =
        picked.missing.iter().chain(&own.missing).map(ToString::to_string).collect();
    for text in &missing {
        face.printer.say(&format!("warning: policy {name}: {text}"));
    }
    if picked.vms.is_empty() && own.templates.is_empty() {
        return Err(SelectError::Empty.into());
    }
    let vms = picked.vms.into_iter().map(|(vm, _)| vm).collect();
    Ok((vms, own.templates.into_iter().map(|(id, _)| id).collect(), missing))
}

/// VMs that no policy speaks of: told at every run of one, as nobody else may look for them.
fn unassigned(
    face: &Face,
    inventory: &Inventory,
    policies: &Policies,
) -> Result<Vec<Unassigned>, CliError> {
    let all = assign_vms(inventory, &protecting(policies))
        .map_err(|(name, cause)| CliError::usage(format!("policy `{name}`: {cause}")))?;
    let vms: Vec<_> =
        all.unassigned().map(|vm| Unassigned { id: vm.vm, name: vm.name.clone() }).collect();
    if !vms.is_empty() {
        let names: Vec<_> = vms.iter().map(|vm| vm.name.as_str()).collect();
        face.printer.say(&format!(
            "warning: in no policy, so no timer backs them up: {} (`hvbak policy test`)",
            names.join(", ")
        ));
    }
    Ok(vms)
}

/// The policy's limits instead of the configuration's.
fn limit(context: &mut Context, section: &PolicySection) {
    let own = section.limits;
    let settings = Arc::make_mut(&mut context.settings);
    let limits = &mut settings.limits;
    limits.total = own.vms.unwrap_or(limits.total);
    limits.per_host = own.vms_per_host.unwrap_or(limits.per_host);
    limits.per_domain = own.vms_per_storage_domain.unwrap_or(limits.per_domain);
}

/// The typed selection as the plan wants it.
pub fn selection(args: &SelectArgs) -> Selection {
    Selection {
        names: args.vm.clone(),
        ids: args.id.clone(),
        globs: args.globs.clone(),
        regexes: args.regex.clone(),
        tags: args.tag.clone(),
        clusters: args.cluster.clone(),
        data_centers: args.datacenter.clone(),
        templates: args.template.clone(),
        all: args.all,
        exclude: args.exclude_vm.clone(),
        exclude_tags: args.exclude_tag.clone(),
    }
}
