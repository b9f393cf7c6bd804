//! The plan of a backup: per VM and disk what is read, through which host, and why not.

use std::collections::HashMap;

use hvbak_types::{
    Attachment, ContentType, DiskId, DiskStatus, DomainId, DomainKind, DomainStatus, HostId,
    Inventory, PointId, Snapshot, SnapshotKind, SnapshotStatus, StorageDomain, Vm, VmId, VmStatus,
};
use serde::{Deserialize, Serialize};

use crate::{
    disk_rules::DiskRules,
    host::{HostChoice, choose_host},
    level::{Base, Level, Wish, disk_level},
    resume::{Left, Resume, may_continue},
};

/// Whether the guest's file systems are frozen around the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quiesce {
    /// Freeze when the guest shows signs of an agent; go on when it fails.
    Auto,
    /// Fail when freezing fails.
    Require,
    /// Never freeze.
    Never,
}

/// Why a VM is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum VmSkip {
    #[error("it runs the engine itself; use `hvbak manager-backup`")]
    HostedEngine,
    #[error("it is stateless: the engine makes no snapshots of it")]
    Stateless,
    #[error("it belongs to a VM pool: the engine makes no snapshots of it")]
    Pool,
    #[error("it is suspended: the engine makes no live snapshot of it; resume or shut it down")]
    Suspended,
    #[error("it previews a snapshot; commit or undo the preview")]
    Preview,
    #[error("it is {status}: no snapshot can be made now")]
    State { status: String },
    #[error("snapshot `{description}` is locked: another operation is at work or has failed")]
    SnapshotLocked { description: String },
    #[error("disk `{alias}` is {status}; an administrator must repair it first")]
    DiskState { alias: String, status: String },
    #[error("its cluster is in no data center")]
    NoDataCenter,
    #[error("{why}")]
    NoHost { why: String },
    #[error(
        "storage domain `{name}` has {available_gib} GiB left and the engine refuses snapshots below {critical_gib} GiB"
    )]
    DomainFull { name: String, available_gib: u64, critical_gib: u64 },
    #[error("storage domain `{name}` is {status}")]
    DomainState { name: String, status: String },
    #[error("the template is {status}")]
    TemplateState { status: String },
    #[error("stored already in {point}")]
    Stored { point: PointId },
}

/// Why a disk is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum DiskSkip {
    #[error("direct LUN: the engine makes no snapshots of it")]
    DirectLun,
    #[error("shareable: the engine makes no snapshots of it")]
    Shareable,
    #[error("managed block storage: its volumes are neither files nor LVs")]
    ManagedBlock,
    #[error("{kind} is not VM data")]
    NotData { kind: String },
    #[error(
        "unplugged while the VM runs: the engine could not delete a snapshot of it; plug it in, or back up when the VM is down"
    )]
    Unplugged,
    #[error("excluded by the user")]
    Excluded,
    #[error("its storage domain is unknown")]
    NoDomain,
}

impl VmSkip {
    /// Such a VM is left out by its nature, not by a state that will pass; a template because
    /// it is stored.
    pub fn is_lasting(&self) -> bool {
        matches!(self, Self::HostedEngine | Self::Stateless | Self::Pool | Self::Stored { .. })
    }
}

/// What is done with a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "action", rename_all = "lowercase")]
pub enum VmAction {
    Backup,
    Skip { skip: VmSkip },
}

/// What is done with a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "action", rename_all = "lowercase")]
pub enum DiskAction {
    /// Read at this level, and why at this one.
    Backup {
        level: Level,
        reason: String,
    },
    Skip {
        skip: DiskSkip,
    },
}

/// A disk of a planned VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskPlan {
    pub id: DiskId,
    pub alias: String,
    #[serde(flatten)]
    pub action: DiskAction,
    pub domain: Option<DomainId>,
    pub domain_name: Option<String>,
    /// On LVs of a block domain, not in files.
    #[serde(skip)]
    pub block: bool,
    /// Bytes the guest sees.
    pub virtual_size: u64,
    /// Bytes that its volumes hold: what is read at the most.
    pub expected_bytes: u64,
    /// Bytes that all its volumes hold, and the newest one: what a full and an
    /// incremental read at the most.
    #[serde(skip)]
    pub held: Held,
}

/// Bytes in a disk's volumes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    pub all: u64,
    pub newest: u64,
}

/// A VM of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmPlan {
    pub id: VmId,
    pub name: String,
    /// A template, whose id is in `id`: read as it is, without a snapshot.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub template: bool,
    #[serde(flatten)]
    pub action: VmAction,
    pub host: Option<HostChoice>,
    pub data_center: Option<hvbak_types::DataCenterId>,
    pub freeze: bool,
    pub freeze_required: bool,
    pub disks: Vec<DiskPlan>,
    pub expected_bytes: u64,
    pub warnings: Vec<String>,
    /// The level that was asked for.
    pub wish: Wish,
    /// The point that incrementals stand on.
    pub base: Option<Base>,
    /// The base's snapshot cannot be deleted now, so it stays the base, and this backup's
    /// own snapshot goes.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub base_stays: bool,
    /// What becomes of a half-made point that is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume: Option<Resume>,
}

impl VmPlan {
    /// The disks that are read.
    pub fn chosen_disks(&self) -> impl Iterator<Item = &DiskPlan> {
        self.disks.iter().filter(|d| matches!(d.action, DiskAction::Backup { .. }))
    }

    /// Decides the level of each disk that is read, given the base and the VM's snapshots
    /// as they are now. Done while planning, and once more under the VM's lock.
    pub fn set_levels(&mut self, base: Option<Base>, snapshots: &[Snapshot]) {
        self.base = base;
        for disk in &mut self.disks {
            let DiskAction::Backup { level, reason } = &mut disk.action else { continue };
            match disk_level(self.wish, self.base.as_ref(), snapshots, disk.id) {
                Ok(decided) => {
                    let point = self.base.as_ref().map_or("", |b| b.point.as_str());
                    (*level, *reason) = (decided, format!("since {point}"));
                    disk.expected_bytes = disk.held.newest;
                }
                Err(why) => {
                    (*level, *reason) = (Level::Full, why.to_string());
                    disk.expected_bytes = disk.held.all;
                }
            }
        }
        self.expected_bytes = self.chosen_disks().map(|d| d.expected_bytes).sum();
        self.base_stays = self.is_base_stuck(snapshots);
    }

    /// No engine merges a disk that a running VM has unplugged (engine-api §9). That the base
    /// is of use does not matter: a second snapshot beside it would be stuck as well.
    fn is_base_stuck(&self, snapshots: &[Snapshot]) -> bool {
        let Some(base) = &self.base else { return false };
        let held = |disk: &DiskPlan| {
            matches!(disk.action, DiskAction::Skip { skip: DiskSkip::Unplugged })
                && base.disks.iter().any(|held| held.id == disk.id)
        };
        snapshots.iter().any(|s| s.id == base.snapshot) && self.disks.iter().any(held)
    }

    /// Decides whether a half-made point is gone on with, once the levels are set.
    fn set_resume(&mut self, left: Option<&Left>, snapshots: &[Snapshot]) {
        let disks: Vec<_> = self.chosen_disks().map(|d| d.id).collect();
        self.resume = left.map(|left| {
            let point = left.point.clone();
            match may_continue(left, self.wish, self.base.as_ref(), &disks, snapshots) {
                Ok(()) => {
                    let (taken, data_bytes) = (left.taken, left.data_bytes);
                    Resume::Continue { point, taken, data_bytes }
                }
                Err(why) => Resume::Discard { point, why: why.to_string() },
            }
        });
    }
}

/// The whole plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackupPlan {
    pub vms: Vec<VmPlan>,
    /// Sum over the VMs that are backed up.
    pub expected_bytes: u64,
}

/// What the engine says of one VM beyond the inventory.
#[derive(Debug, Clone)]
pub struct VmFacts {
    pub vm: Vm,
    pub attachments: Vec<Attachment>,
    pub snapshots: Vec<Snapshot>,
    /// The newest point whose snapshot was kept.
    pub base: Option<Base>,
    /// How many points were made after the newest full one.
    pub deltas: usize,
    /// What a transfer that was cut has left.
    pub left: Option<Left>,
}

/// What [`plan_backup`] looks at.
#[derive(Debug, Clone)]
pub struct BackupInput<'a> {
    pub inventory: &'a Inventory,
    pub vms: &'a [VmFacts],
    pub quiesce: Quiesce,
    /// Disks to leave out.
    pub exclude_disks: &'a DiskRules,
    /// A host that the user insists on.
    pub host: Option<&'a str>,
    pub wish: Wish,
    /// After how many points, the full included, another full is due.
    pub full_every: Option<usize>,
    /// How the descriptions of our own snapshots begin.
    pub own: &'a str,
}

/// Plans one VM again from fresh facts, read through the host it was given before.
pub fn plan_again(input: &BackupInput<'_>, facts: &VmFacts, before: &VmPlan) -> VmPlan {
    let mut plan = plan_vm(input, facts, &mut HashMap::new());
    if let (Some(host), Some(before)) = (&mut plan.host, &before.host) {
        host.clone_from(before);
    }
    plan
}

/// Plans a backup of the given VMs.
pub fn plan_backup(input: &BackupInput<'_>) -> BackupPlan {
    let mut load = HashMap::new();
    let vms: Vec<_> = input.vms.iter().map(|facts| plan_vm(input, facts, &mut load)).collect();
    let expected_bytes =
        vms.iter().filter(|v| v.action == VmAction::Backup).map(|v| v.expected_bytes).sum();
    BackupPlan { vms, expected_bytes }
}

/// What is asked for, or the full that the cycle wants.
fn wish(input: &BackupInput<'_>, facts: &VmFacts) -> Wish {
    let due = input.full_every.is_some_and(|every| facts.deltas + 1 >= every);
    if due && input.wish != Wish::Full { Wish::Due } else { input.wish }
}

/// `load`: bytes that are read through each host so far.
fn plan_vm(input: &BackupInput<'_>, facts: &VmFacts, load: &mut HashMap<HostId, u64>) -> VmPlan {
    let vm = &facts.vm;
    let disks: Vec<_> = facts.attachments.iter().map(|a| plan_disk(input, Some(vm), a)).collect();
    let data_center = vm
        .cluster
        .and_then(|id| input.inventory.clusters.iter().find(|c| c.id == id))
        .and_then(|c| c.data_center);
    let mut plan = VmPlan {
        id: vm.id,
        name: vm.name.clone(),
        template: false,
        action: VmAction::Backup,
        host: None,
        data_center,
        freeze: vm.status == VmStatus::Up
            && match input.quiesce {
                Quiesce::Auto => vm.agent_hint,
                Quiesce::Require => true,
                Quiesce::Never => false,
            },
        freeze_required: input.quiesce == Quiesce::Require,
        expected_bytes: 0,
        warnings: Vec::new(),
        disks,
        wish: wish(input, facts),
        base: None,
        base_stays: false,
        resume: None,
    };
    plan.set_levels(facts.base.clone(), &facts.snapshots);
    plan.set_resume(facts.left.as_ref(), &facts.snapshots);
    for disk in &plan.disks {
        if let DiskAction::Skip { skip } = &disk.action
            && *skip != DiskSkip::Excluded
        {
            plan.warnings.push(format!("disk `{}` is left out: {skip}", disk.alias));
        }
    }
    if plan.base_stays {
        plan.warnings.push(
            "the last point's snapshot holds an unplugged disk and stays until that is plugged in or the VM is down; later points stand on it too".into(),
        );
    }
    if plan.chosen_disks().next().is_none() {
        plan.warnings.push("no disk is backed up: only the configuration is stored".into());
    }
    match check_vm(input, facts, &plan, load) {
        Ok(host) => {
            if let Some(host) = &host {
                *load.entry(host.id).or_default() += plan.expected_bytes.max(1);
            }
            plan.host = host;
        }
        Err(skip) => plan.action = VmAction::Skip { skip },
    }
    plan
}

/// States in which the engine accepts a snapshot (engine-api §8.2).
fn check_vm(
    input: &BackupInput<'_>,
    facts: &VmFacts,
    plan: &VmPlan,
    load: &HashMap<HostId, u64>,
) -> Result<Option<HostChoice>, VmSkip> {
    let vm = &facts.vm;
    if vm.is_hosted_engine() {
        return Err(VmSkip::HostedEngine);
    }
    if vm.stateless == Some(true) {
        return Err(VmSkip::Stateless);
    }
    if vm.pool {
        return Err(VmSkip::Pool);
    }
    match &vm.status {
        VmStatus::Up | VmStatus::Down | VmStatus::Paused | VmStatus::PoweringUp => {}
        VmStatus::Suspended => return Err(VmSkip::Suspended),
        other => return Err(VmSkip::State { status: other.to_string() }),
    }
    for snapshot in &facts.snapshots {
        if snapshot.kind == SnapshotKind::Preview
            || snapshot.status == Some(SnapshotStatus::InPreview)
        {
            return Err(VmSkip::Preview);
        }
        if snapshot.kind == SnapshotKind::Stateless {
            return Err(VmSkip::Stateless);
        }
        // One of ours may still be merging; the run waits for it.
        if snapshot.status == Some(SnapshotStatus::Locked)
            && !snapshot.description.starts_with(input.own)
        {
            return Err(VmSkip::SnapshotLocked { description: snapshot.description.clone() });
        }
    }
    for attachment in &facts.attachments {
        let Some(disk) = &attachment.disk else { continue };
        let is_image = disk.storage_type.as_deref().unwrap_or("image") == "image";
        if is_image && disk.status.as_ref().is_some_and(|s| *s != DiskStatus::Ok) {
            let status = disk.status.as_ref().map_or_else(String::new, ToString::to_string);
            return Err(VmSkip::DiskState { alias: disk.alias.clone(), status });
        }
    }
    for disk in plan.chosen_disks() {
        let domain = find_domain(input.inventory, disk.domain);
        if let Some(domain) = domain {
            check_domain(domain)?;
        }
    }
    if plan.chosen_disks().next().is_none() {
        return Ok(None);
    }
    let center = plan.data_center.ok_or(VmSkip::NoDataCenter)?;
    let load = |host: HostId| load.get(&host).copied().unwrap_or(0);
    let home = vm.host.filter(|_| plan.chosen_disks().any(|disk| disk.block));
    choose_host(input.inventory, center, input.host, home, load)
        .map(Some)
        .map_err(|why| VmSkip::NoHost { why })
}

fn check_domain(domain: &StorageDomain) -> Result<(), VmSkip> {
    if let Some(status) = &domain.status
        && *status != DomainStatus::Active
    {
        return Err(VmSkip::DomainState { name: domain.name.clone(), status: status.to_string() });
    }
    if let (Some(available), Some(critical)) = (domain.available, domain.critical_space_gib)
        && available >> 30 < critical
    {
        return Err(VmSkip::DomainFull {
            name: domain.name.clone(),
            available_gib: available >> 30,
            critical_gib: critical,
        });
    }
    Ok(())
}

pub(crate) fn find_domain(inventory: &Inventory, id: Option<DomainId>) -> Option<&StorageDomain> {
    let id = id?;
    inventory.storage_domains.iter().find(|d| d.id == id)
}

/// Without a VM it is a template's: nothing excludes it, and nobody runs it.
pub(crate) fn plan_disk(
    input: &BackupInput<'_>,
    vm: Option<&Vm>,
    attachment: &Attachment,
) -> DiskPlan {
    let disk = attachment
        .disk
        .as_ref()
        .or_else(|| input.inventory.disks.iter().find(|d| d.id == attachment.disk_id));
    let Some(disk) = disk else {
        return DiskPlan {
            id: attachment.disk_id,
            alias: attachment.disk_id.to_string(),
            action: DiskAction::Skip { skip: DiskSkip::NoDomain },
            domain: None,
            domain_name: None,
            block: false,
            virtual_size: 0,
            expected_bytes: 0,
            held: Held::default(),
        };
    };
    let domain_id = disk.storage_domains.first().copied();
    let domain = find_domain(input.inventory, domain_id);
    let content = disk.content_type.as_ref().unwrap_or(&ContentType::Data);
    let excluded = vm.is_some_and(|vm| input.exclude_disks.exclude(vm, &disk.alias, disk.id));
    let running = vm.is_some_and(|vm| vm.status != VmStatus::Down);
    let skip = if excluded {
        Some(DiskSkip::Excluded)
    } else {
        match disk.storage_type.as_deref().unwrap_or("image") {
            "lun" => Some(DiskSkip::DirectLun),
            "managed_block_storage" | "cinder" => Some(DiskSkip::ManagedBlock),
            _ if domain.is_some_and(|d| d.kind == DomainKind::ManagedBlockStorage) => {
                Some(DiskSkip::ManagedBlock)
            }
            _ if disk.shareable == Some(true) => Some(DiskSkip::Shareable),
            // A live merge needs all disks plugged (engine-api §9).
            _ if attachment.active == Some(false) && running => Some(DiskSkip::Unplugged),
            // Engines before 4.3 do not send the content type.
            _ if disk.content_type.is_none() && disk.alias == "OVF_STORE" => {
                Some(DiskSkip::NotData { kind: "ovf_store".into() })
            }
            _ if *content != ContentType::Data => {
                Some(DiskSkip::NotData { kind: content.to_string() })
            }
            _ => domain.is_none().then_some(DiskSkip::NoDomain),
        }
    };
    let virtual_size = disk.provisioned_size.unwrap_or(0);
    let allocated = disk.total_size.filter(|t| *t > 0).or(disk.actual_size).unwrap_or(virtual_size);
    let newest = disk.actual_size.unwrap_or(allocated);
    let held = Held { all: allocated.min(virtual_size), newest: newest.min(virtual_size) };
    DiskPlan {
        id: disk.id,
        alias: disk.alias.clone(),
        action: match skip {
            Some(skip) => DiskAction::Skip { skip },
            None => DiskAction::Backup { level: Level::Full, reason: "asked for".into() },
        },
        domain: domain_id,
        domain_name: domain.map(|d| d.name.clone()),
        block: domain.is_some_and(|d| d.storage.is_block()),
        virtual_size,
        expected_bytes: held.all,
        held,
    }
}

#[cfg(test)]
#[path = "backup_tests.rs"]
pub(crate) mod tests;
