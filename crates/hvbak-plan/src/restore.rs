//! The plan of a restore: which VM, disks and NICs are made, where, and from what.

mod disks;
mod macs;
mod nics;
mod replace;
mod template;

use std::collections::BTreeMap;

use hvbak_types::{
    ClusterId, DataCenterId, DiskFormat, DiskId, DomainId, Inventory, MacUse, PointId, VmId,
    VnicProfileId,
};
use serde::{Deserialize, Serialize};

pub use self::{
    disks::DiskRule,
    nics::NicRule,
    replace::{KeptDisk, OldDisk, OldVm, Replace, replaced_vm},
};
use crate::host::{HostChoice, choose_host};

/// How a restored disk is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestoreFormat {
    /// A sparse raw file.
    RawSparse,
    /// A raw file with all its space taken.
    RawPreallocated,
    /// qcow2.
    Cow,
}

impl RestoreFormat {
    /// The engine's `format` of it.
    pub fn format(self) -> DiskFormat {
        if self == Self::Cow { DiskFormat::Cow } else { DiskFormat::Raw }
    }

    /// The engine's `sparse` of it.
    pub fn sparse(self) -> bool {
        self != Self::RawPreallocated
    }
}

/// Which MAC addresses the restored NICs get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MacRule {
    /// The stored ones when the original VM is gone and its name stays, else new ones.
    Auto,
    Keep,
    New,
}

/// A disk of a point, as its manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointDisk {
    pub id: DiskId,
    pub alias: String,
    pub virtual_size: u64,
    pub data_bytes: u64,
    /// Format of the chain's base when it was read.
    pub format: RestoreFormat,
    pub domain: Option<DomainId>,
    pub domain_name: Option<String>,
    pub interface: Option<String>,
    pub bootable: bool,
    pub active: bool,
    pub read_only: bool,
    pub pass_discard: bool,
    pub wipe_after_delete: bool,
}

/// A NIC of a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicFacts {
    pub name: String,
    pub interface: Option<String>,
    pub mac: Option<String>,
    pub linked: bool,
    pub plugged: bool,
    /// Names of the profile and its network at backup time.
    pub profile: Option<(String, String)>,
    pub profile_id: Option<VnicProfileId>,
}

/// What a point holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointFacts {
    pub point: PointId,
    pub vm: VmId,
    pub name: String,
    /// It is of a template, whose id is in `vm`.
    pub template: bool,
    pub cluster_name: Option<String>,
    pub disks: Vec<PointDisk>,
    pub nics: Vec<NicFacts>,
    pub tags: Vec<String>,
    /// Alias of each disk that is not in the point, and why.
    pub left_out: Vec<(String, String)>,
}

/// What a restore makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RestoreKind {
    Vm,
    /// A VM first, which the engine copies into a template, and which is deleted then.
    Template,
}

impl RestoreKind {
    /// For messages.
    pub fn word(self) -> &'static str {
        match self {
            Self::Vm => "VM",
            Self::Template => "template",
        }
    }
}

/// What the user wants different from the original.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    /// `{name}` and `{point}` in it stand for the stored ones.
    pub name: Option<String>,
    /// What becomes of the point; what it is of when not given.
    pub kind: Option<RestoreKind>,
    pub cluster: Option<String>,
    /// `SD` for all disks or `DISK:SD` for one (disk by alias or id, domain by name or id).
    pub storage_domains: Vec<String>,
    /// Only these disks, by alias or id.
    pub disks: Vec<String>,
    pub exclude_disks: Vec<String>,
    pub format: Option<RestoreFormat>,
    /// Disk interface for all disks.
    pub interface: Option<String>,
    /// What is different about single disks, by alias or id.
    pub disk_rules: BTreeMap<String, DiskRule>,
    pub no_nics: bool,
    /// Only these NICs, by name.
    pub nics: Vec<String>,
    /// The profile of all NICs: `NETWORK/PROFILE`, a profile's name, or `none`.
    pub nic_profile: Option<String>,
    /// What is different about single NICs, by name.
    pub nic_rules: BTreeMap<String, NicRule>,
    pub mac: Option<MacRule>,
    pub disconnected: bool,
    pub power_on: bool,
    pub host: Option<String>,
    /// The VM that is replaced; its name is taken over.
    pub overwrite: Option<OldVm>,
    /// What this site calls things; counts where nothing above does.
    pub site: SiteNames,
}

/// What another site calls the things that were backed up, by their stored names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SiteNames {
    pub clusters: BTreeMap<String, String>,
    pub storage_domains: BTreeMap<String, String>,
    /// `NETWORK/PROFILE` to `NETWORK/PROFILE` or `none`.
    pub vnic_profiles: BTreeMap<String, String>,
}

/// A disk that will be made and written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoreDisk {
    /// The stored disk.
    pub source: DiskId,
    pub alias: String,
    pub virtual_size: u64,
    pub data_bytes: u64,
    pub domain: DomainId,
    pub domain_name: String,
    pub format: RestoreFormat,
    /// On an LV of a block domain, whose size must be known before it is made.
    #[serde(skip)]
    pub block: bool,
    pub interface: String,
    pub bootable: bool,
    pub active: bool,
    pub read_only: bool,
    pub pass_discard: bool,
    pub wipe_after_delete: bool,
}

/// A NIC that will be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicTarget {
    pub name: String,
    pub interface: Option<String>,
    /// `None`: the engine gives one.
    pub mac: Option<String>,
    pub linked: bool,
    pub plugged: bool,
    pub profile: Option<VnicProfileId>,
    pub profile_name: Option<String>,
}

/// The whole plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestorePlan {
    pub point: PointId,
    pub vm: VmId,
    /// Of the VM, or of the template.
    pub name: String,
    pub kind: RestoreKind,
    pub cluster: ClusterId,
    pub cluster_name: String,
    pub data_center: DataCenterId,
    /// Writes the disks; `None` when there are none.
    pub host: Option<HostChoice>,
    pub disks: Vec<RestoreDisk>,
    pub nics: Vec<NicTarget>,
    pub tags: Vec<String>,
    pub power_on: bool,
    /// The VM that is deleted when the new one stands.
    pub replace: Option<Replace>,
    pub warnings: Vec<String>,
}

impl RestorePlan {
    /// Takes from the inventory what this restore will need, so that others can be planned beside.
    pub fn reserve(&self, inventory: &mut Inventory) {
        for domain in &mut inventory.storage_domains {
            let needed = disks::needed(&self.disks, domain.id);
            domain.available = domain.available.map(|bytes| bytes.saturating_sub(needed));
        }
        let of = |mac: &String| MacUse {
            mac: mac.clone(),
            vm: self.vm,
            vm_name: self.name.clone(),
            cluster: Some(self.cluster),
        };
        inventory.macs.extend(self.nics.iter().filter_map(|nic| nic.mac.as_ref()).map(of));
    }
}

/// Why a restore cannot be planned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    #[error("a VM named `{name}` exists")]
    NameTaken { name: String },
    #[error("a template named `{name}` exists in the data center")]
    TemplateTaken { name: String },
    #[error("there is no {what} `{text}`")]
    Unknown { what: &'static str, text: String },
    #[error("storage domain `{name}` {why}")]
    Domain { name: String, why: String },
    #[error("the original storage domain of disk `{alias}` is gone")]
    DomainGone { alias: String },
    #[error(
        "storage domain `{name}` has {available} bytes free, keeps {reserve} of them as its reserve, and {needed} are needed"
    )]
    NoSpace { name: String, available: u64, reserve: u64, needed: u64 },
    #[error("cluster `{name}` is in no data center")]
    NoDataCenter { name: String },
    #[error("NIC `{nic}` cannot have MAC address {mac}: VM `{vm}` has it")]
    MacTaken { nic: String, mac: String, vm: String },
    #[error("{why}")]
    NoHost { why: String },
    #[error("the restore selects no disk")]
    NoDisk,
    #[error("VM `{name}` cannot be replaced: {why}")]
    CannotReplace { name: String, why: String, remedy: String },
}

impl RestoreError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::NameTaken { .. } => "give another name with `--name`",
            Self::TemplateTaken { .. } => {
                "give another name with `--as-template`; `--as-vm` makes a VM of a template's point"
            }
            Self::Unknown { what: "disk", .. } => "see the point's disks with `hvbak show POINT`",
            Self::Unknown { what: "NIC", .. } => "see the point's NICs with `hvbak show POINT`",
            Self::Unknown { what: "vNIC profile", .. } => {
                "give it as NETWORK/PROFILE, as `hvbak list networks` shows them; `none` for no network"
            }
            Self::Unknown { what: "cluster", .. } => {
                "choose one of `hvbak list clusters` with `--cluster`"
            }
            Self::Unknown { .. }
            | Self::Domain { .. }
            | Self::DomainGone { .. }
            | Self::NoSpace { .. } => "choose one of `hvbak list domains` with `--storage-domain`",
            Self::NoDataCenter { .. } => "choose another cluster with `--cluster`",
            Self::MacTaken { .. } => {
                "take the address from that VM, or let the engine give new ones with `--mac new`"
            }
            Self::NoHost { .. } => {
                "activate a host of that data center, or choose a cluster elsewhere with `--cluster`"
            }
            Self::CannotReplace { remedy, .. } => return Some(remedy.clone()),
            Self::NoDisk => "name disks with `--disk`, or leave the option out for all",
        };
        Some(text.to_owned())
    }
}

/// Plans the restore of a point into the engine.
///
/// # Errors
/// See [`RestoreError`]; nothing is guessed when an original is gone.
pub fn plan_restore(
    inventory: &Inventory,
    point: &PointFacts,
    options: &RestoreOptions,
) -> Result<RestorePlan, RestoreError> {
    let name = match (&options.overwrite, &options.name) {
        (Some(old), _) => old.vm.name.clone(),
        (None, None) => point.name.clone(),
        (None, Some(text)) => {
            text.replace("{name}", &point.name).replace("{point}", &point.point.to_string())
        }
    };
    let like_point = if point.template { RestoreKind::Template } else { RestoreKind::Vm };
    let kind = options.kind.unwrap_or(like_point);
    let template = kind == RestoreKind::Template;
    let replaced = options.overwrite.as_ref().map(|old| old.vm.id);
    let is_other = |id| Some(id) != replaced;
    if !template && inventory.vms.iter().any(|vm| vm.name == name && is_other(vm.id)) {
        return Err(RestoreError::NameTaken { name });
    }
    let cluster = find_cluster(inventory, point, options)?;
    let data_center = cluster
        .data_center
        .ok_or_else(|| RestoreError::NoDataCenter { name: cluster.name.clone() })?;
    if template {
        template::check_name(inventory, &name, data_center)?;
    }
    let left_out = point.left_out.iter();
    let mut warnings: Vec<_> = left_out
        .map(|(alias, why)| format!("disk `{alias}` is not in the point and stays away: {why}"))
        .collect();
    let disks = disks::plan_disks(inventory, point, options, data_center)?;
    let replace = options.overwrite.as_ref().map(|old| plan_replace(old, &disks)).transpose()?;
    // What a restore replaces goes only afterwards: there must be room for both.
    disks::check_space(inventory, &disks, if template { 2 } else { 1 })?;
    if template {
        warnings.extend(template::warnings(&disks, options));
    }
    let host = if disks.is_empty() {
        None
    } else {
        Some(
            choose_host(inventory, data_center, options.host.as_deref(), None, |_| 0)
                .map_err(|why| RestoreError::NoHost { why })?,
        )
    };
    let nics = if options.no_nics {
        Vec::new()
    } else {
        let mut options = options.clone();
        if template {
            // Its cards have no addresses; the VM in between must not take them either.
            options.mac = Some(MacRule::New);
            options.nic_rules.values_mut().for_each(|rule| rule.mac = None);
        }
        let at = (cluster, data_center);
        nics::plan_nics(inventory, point, (&name, &options), at, &mut warnings)?
    };
    let mut tags = Vec::new();
    for tag in point.tags.iter().filter(|_| !template) {
        if inventory.tags.iter().any(|t| t.name == *tag) {
            tags.push(tag.clone());
        } else {
            warnings.push(format!("tag `{tag}` does not exist any more"));
        }
    }
    Ok(RestorePlan {
        point: point.point.clone(),
        vm: point.vm,
        name,
        kind,
        cluster: cluster.id,
        cluster_name: cluster.name.clone(),
        data_center,
        host,
        disks,
        nics,
        tags,
        power_on: options.power_on && !template,
        replace,
        warnings,
    })
}

fn plan_replace(old: &OldVm, disks: &[RestoreDisk]) -> Result<Replace, RestoreError> {
    let restored: Vec<_> = disks.iter().map(|disk| disk.source).collect();
    let mut replace = Replace::judge(old, &restored)?;
    // A VM boots from one disk.
    replace.boots_anew = disks.iter().any(|disk| disk.bootable);
    Ok(replace)
}

fn find_cluster<'a>(
    inventory: &'a Inventory,
    point: &PointFacts,
    options: &RestoreOptions,
) -> Result<&'a hvbak_types::Cluster, RestoreError> {
    let stored = point.cluster_name.as_ref();
    let here = stored.and_then(|name| options.site.clusters.get(name));
    let text = options.cluster.as_ref().or(here).or(stored);
    let text =
        text.ok_or(RestoreError::Unknown { what: "cluster", text: "(not recorded)".into() })?;
    inventory
        .clusters
        .iter()
        .find(|c| c.name == *text || c.id.to_string() == *text)
        .ok_or_else(|| RestoreError::Unknown { what: "cluster", text: text.clone() })
}

#[cfg(test)]
#[path = "restore_tests.rs"]
mod tests;
