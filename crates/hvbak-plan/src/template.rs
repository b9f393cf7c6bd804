//! Which templates are stored, and whether they are already.
//!
//! A template's disks never change, so it is stored once, in full and without a snapshot.
//! Invariant: it counts as stored only where a point holds each of its disks, of the same size
//! and read from the same volume, and nothing of that point is seen to be missing.

use std::collections::HashMap;

use hvbak_types::{
    Attachment, DiskId, DiskStatus, DomainStatus, HostId, Inventory, PointId, Template, TemplateId,
    VmId, VolumeId,
};

use crate::{
    backup::{
        BackupInput, BackupPlan, DiskAction, DiskPlan, VmAction, VmPlan, VmSkip, find_domain,
        plan_disk,
    },
    host::choose_host,
    level::{Level, Wish},
    select::{SelectError, glob},
};

/// A whole point of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTemplate {
    pub point: PointId,
    /// Each disk with its size in bytes and the volume that was read.
    pub disks: Vec<(DiskId, u64, Option<VolumeId>)>,
}

/// What is known of a template beyond the inventory.
#[derive(Debug, Clone)]
pub struct TemplateFacts {
    pub template: Template,
    /// With their disks. The first storage domain of each is the one to read from.
    pub attachments: Vec<Attachment>,
    /// Newest first.
    pub stored: Vec<StoredTemplate>,
}

impl TemplateFacts {
    /// Puts a domain that is active first: a template's disk may lie on several.
    #[must_use]
    pub fn on_active_domains(mut self, inventory: &Inventory) -> Self {
        let inactive = |id: &hvbak_types::DomainId| {
            let domain = inventory.storage_domains.iter().find(|d| d.id == *id);
            domain.is_none_or(|d| d.status.as_ref().is_some_and(|s| *s != DomainStatus::Active))
        };
        for disk in self.attachments.iter_mut().filter_map(|a| a.disk.as_mut()) {
            disk.storage_domains.sort_by_key(inactive);
        }
        self
    }
}

/// What words mean at a site.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PickedTemplates {
    /// In order of name then id, each once, with the words that mean it.
    pub templates: Vec<(TemplateId, String)>,
    /// Words that mean none.
    pub missing: Vec<SelectError>,
}

/// The templates that names, ids or shell patterns mean.
///
/// # Errors
/// A pattern that is none; the Blank template by its name or id.
pub fn pick_templates(
    inventory: &Inventory,
    texts: &[String],
) -> Result<PickedTemplates, SelectError> {
    let (mut found, mut missing) = (Vec::<(&Template, String)>::new(), Vec::new());
    for text in texts {
        let exact = |t: &&Template| t.name == *text || t.id.to_string() == *text;
        let mut meant: Vec<_> = inventory.templates.iter().filter(exact).collect();
        if meant.iter().any(|t| t.id.is_nil()) {
            return Err(SelectError::Blank);
        }
        if meant.is_empty() {
            let matcher = glob(text)?;
            let fits = |t: &&Template| !t.id.is_nil() && matcher.is_match(&t.name);
            meant = inventory.templates.iter().filter(fits).collect();
        }
        if meant.is_empty() {
            missing.push(SelectError::Unknown { what: "template", text: text.clone() });
        }
        for template in meant {
            if !found.iter().any(|(known, _)| known.id == template.id) {
                found.push((template, text.clone()));
            }
        }
    }
    found.sort_by(|(a, _), (b, _)| (&a.name, a.id).cmp(&(&b.name, b.id)));
    let templates = found.into_iter().map(|(t, text)| (t.id, text)).collect();
    Ok(PickedTemplates { templates, missing })
}

/// Adds templates to a plan; `again` stores those that are stored, too.
pub fn plan_templates(
    plan: &mut BackupPlan,
    input: &BackupInput<'_>,
    templates: &[TemplateFacts],
    again: bool,
) {
    let mut load: HashMap<HostId, u64> = HashMap::new();
    for vm in &plan.vms {
        if let Some(host) = &vm.host {
            *load.entry(host.id).or_default() += vm.expected_bytes.max(1);
        }
    }
    for facts in templates {
        let planned = plan_template(input, facts, again, &mut load);
        if planned.action == VmAction::Backup {
            plan.expected_bytes += planned.expected_bytes;
        }
        plan.vms.push(planned);
    }
}

/// Plans one. `load`: bytes that are read through each host so far.
pub fn plan_template(
    input: &BackupInput<'_>,
    facts: &TemplateFacts,
    again: bool,
    load: &mut HashMap<HostId, u64>,
) -> VmPlan {
    let template = &facts.template;
    let data_center = template
        .cluster
        .and_then(|id| input.inventory.clusters.iter().find(|c| c.id == id))
        .and_then(|c| c.data_center);
    let mut disks: Vec<_> = facts.attachments.iter().map(|a| plan_disk(input, None, a)).collect();
    for disk in &mut disks {
        if let DiskAction::Backup { level, reason } = &mut disk.action {
            (*level, *reason) = (Level::Full, "a template is stored once".into());
        }
    }
    let mut plan = VmPlan {
        id: VmId::new(template.id.uuid()),
        name: template.name.clone(),
        template: true,
        action: VmAction::Backup,
        host: None,
        data_center,
        freeze: false,
        freeze_required: false,
        expected_bytes: 0,
        warnings: Vec::new(),
        disks,
        // What is read is always everything; this says whether it is read again.
        wish: if again { Wish::Full } else { Wish::Auto },
        base: None,
        base_stays: false,
        resume: None,
    };
    plan.expected_bytes = plan.chosen_disks().map(|d| d.expected_bytes).sum();
    for disk in &plan.disks {
        if let DiskAction::Skip { skip } = &disk.action {
            plan.warnings.push(format!("disk `{}` is left out: {skip}", disk.alias));
        }
    }
    if let Err(skip) = check(input, facts, &mut plan, again, load) {
        plan.action = VmAction::Skip { skip };
    }
    plan
}

fn check(
    input: &BackupInput<'_>,
    facts: &TemplateFacts,
    plan: &mut VmPlan,
    again: bool,
    load: &mut HashMap<HostId, u64>,
) -> Result<(), VmSkip> {
    if let Some(stored) = facts.stored.iter().find(|stored| !again && holds(stored, facts, plan)) {
        return Err(VmSkip::Stored { point: stored.point.clone() });
    }
    if let Some(status) = facts.template.status.as_ref().filter(|status| *status != "ok") {
        return Err(VmSkip::TemplateState { status: status.clone() });
    }
    for disk in facts.attachments.iter().filter_map(|a| a.disk.as_ref()) {
        if let Some(status) = disk.status.as_ref().filter(|status| **status != DiskStatus::Ok) {
            let (alias, status) = (disk.alias.clone(), status.to_string());
            return Err(VmSkip::DiskState { alias, status });
        }
    }
    for domain in plan.chosen_disks().filter_map(|d| find_domain(input.inventory, d.domain)) {
        if let Some(status) = domain.status.as_ref().filter(|s| **s != DomainStatus::Active) {
            let (name, status) = (domain.name.clone(), status.to_string());
            return Err(VmSkip::DomainState { name, status });
        }
    }
    if plan.chosen_disks().next().is_none() {
        return Ok(());
    }
    let center = plan.data_center.ok_or(VmSkip::NoDataCenter)?;
    let so_far = |host: HostId| load.get(&host).copied().unwrap_or(0);
    let host = choose_host(input.inventory, center, input.host, None, so_far)
        .map_err(|why| VmSkip::NoHost { why })?;
    *load.entry(host.id).or_default() += plan.expected_bytes.max(1);
    plan.host = Some(host);
    Ok(())
}

/// Whether a point holds the disks that would be read, and no others.
fn holds(stored: &StoredTemplate, facts: &TemplateFacts, plan: &VmPlan) -> bool {
    let volume = |disk: &DiskPlan| {
        let attached = facts.attachments.iter().find(|a| a.disk_id == disk.id)?;
        attached.disk.as_ref()?.image_id
    };
    let same = |disk: &DiskPlan| {
        stored.disks.iter().any(|(id, size, read)| {
            (*id, *size) == (disk.id, disk.virtual_size) && *read == volume(disk)
        })
    };
    plan.chosen_disks().count() == stored.disks.len() && plan.chosen_disks().all(same)
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
