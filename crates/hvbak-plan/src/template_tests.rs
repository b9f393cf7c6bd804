//! Tables for the plan of templates.

use hvbak_types::Disk;

use super::*;
use crate::{
    backup::{Quiesce, tests},
    disk_rules::DiskRules,
};

fn template(name: &str) -> Template {
    Template {
        id: TemplateId::random(),
        name: name.into(),
        description: None,
        status: Some("ok".into()),
        cluster: tests::vm("x").cluster,
        version_number: None,
        version_name: None,
        base_template: None,
    }
}

fn facts() -> TemplateFacts {
    let mut attachment = tests::attachment();
    let disk = attachment.disk.as_mut().unwrap();
    disk.image_id = Some(VolumeId::random());
    // Nobody runs a template: whether its disk is plugged does not matter.
    attachment.active = Some(false);
    TemplateFacts { template: template("base"), attachments: vec![attachment], stored: vec![] }
}

fn disk(facts: &TemplateFacts) -> &Disk {
    facts.attachments[0].disk.as_ref().unwrap()
}

fn planned(inventory: &Inventory, facts: &TemplateFacts, again: bool) -> VmPlan {
    let input = BackupInput {
        inventory,
        vms: &[],
        quiesce: Quiesce::Require,
        exclude_disks: &DiskRules::new(&["*".into()], None).unwrap(),
        host: None,
        wish: Wish::Auto,
        full_every: None,
        own: "hvbak:",
    };
    let mut plan = BackupPlan { vms: Vec::new(), expected_bytes: 0 };
    plan_templates(&mut plan, &input, std::slice::from_ref(facts), again);
    plan.vms.remove(0)
}

fn skip(plan: &VmPlan) -> Option<&VmSkip> {
    match &plan.action {
        VmAction::Skip { skip } => Some(skip),
        VmAction::Backup => None,
    }
}

#[test]
fn a_template_is_read_whole_without_freezing_anybody() {
    let plan = planned(&tests::inventory(), &facts(), false);
    assert_eq!(plan.action, VmAction::Backup);
    assert!(plan.template && !plan.freeze && plan.host.is_some());
    assert!(plan.warnings.is_empty() && plan.chosen_disks().count() == 1, "{plan:?}");
}

#[test]
fn it_is_stored_again_only_when_something_is_other_or_it_is_asked_for() {
    let inv = tests::inventory();
    let mut facts = facts();
    let (id, size, volume) =
        (disk(&facts).id, disk(&facts).provisioned_size.unwrap(), disk(&facts).image_id);
    let point: PointId = "20261121T021454Z".parse().unwrap();
    let mut with = |disks: Vec<(DiskId, u64, Option<VolumeId>)>| {
        facts.stored = vec![StoredTemplate { point: point.clone(), disks }];
        let plan = planned(&inv, &facts, false);
        assert_eq!(planned(&inv, &facts, true).action, VmAction::Backup);
        skip(&plan).cloned()
    };
    let stored = Some(VmSkip::Stored { point: point.clone() });
    assert!(stored.as_ref().unwrap().is_lasting());
    assert_eq!(with(vec![(id, size, volume)]), stored);
    assert_eq!(with(vec![(DiskId::random(), size, volume)]), None);
    assert_eq!(with(vec![(id, size + 1, volume)]), None);
    assert_eq!(with(vec![(id, size, Some(VolumeId::random()))]), None);
    assert_eq!(with(vec![(id, size, volume), (DiskId::random(), size, None)]), None);
    assert_eq!(with(vec![]), None);
}

#[test]
fn what_is_not_ready_is_left_out_and_the_domain_that_is_active_is_read() {
    let mut inv = tests::inventory();
    let mut locked = facts();
    locked.template.status = Some("locked".into());
    let plan = planned(&inv, &locked, false);
    assert_eq!(skip(&plan), Some(&VmSkip::TemplateState { status: "locked".into() }));
    assert!(!skip(&plan).unwrap().is_lasting());
    // The disk lies on two domains, the first of which is in maintenance.
    let mut other = inv.storage_domains[0].clone();
    (other.id, other.name) = (hvbak_types::DomainId::random(), "data2".into());
    inv.storage_domains[0].status = Some(DomainStatus::Maintenance);
    let mut both = facts();
    both.attachments[0].disk.as_mut().unwrap().storage_domains.push(other.id);
    let alone = planned(&inv, &facts().on_active_domains(&inv), false);
    assert!(matches!(skip(&alone), Some(VmSkip::DomainState { .. })), "{alone:?}");
    inv.storage_domains.push(other.clone());
    let plan = planned(&inv, &both.on_active_domains(&inv), false);
    assert_eq!((plan.action, plan.disks[0].domain), (VmAction::Backup, Some(other.id)));
}

#[test]
fn names_ids_and_patterns_mean_templates_and_blank_is_never_meant() {
    let mut inv = tests::inventory();
    inv.templates = vec![template("Blank"), template("rhel8"), template("rhel9"), template("a[b")];
    inv.templates[0].id = TemplateId::nil();
    let pick = |texts: &[&str]| {
        let texts: Vec<_> = texts.iter().map(ToString::to_string).collect();
        pick_templates(&inv, &texts).map(|PickedTemplates { templates: found, missing }| {
            let name = |id: &TemplateId| inv.templates.iter().find(|t| t.id == *id).unwrap();
            let names: Vec<_> = found.iter().map(|(id, _)| name(id).name.as_str()).collect();
            (names, missing.len())
        })
    };
    let id = inv.templates[2].id.to_string();
    assert_eq!(pick(&["rhel*", "rhel8"]), Ok((vec!["rhel8", "rhel9"], 0)));
    assert_eq!(pick(&[&id, "gone", "x*"]), Ok((vec!["rhel9"], 2)));
    assert_eq!(pick(&["*"]).unwrap().0.len(), 3);
    assert_eq!(pick(&["Blank"]), Err(SelectError::Blank));
    assert!(matches!(pick(&["rhel["]), Err(SelectError::Pattern { .. })));
}
