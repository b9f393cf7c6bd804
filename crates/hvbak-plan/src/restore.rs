//! The plan of a restore: which VM, disks and NICs are made, where, and from what.

use hvbak_types::{
    ClusterId, DataCenterId, DiskFormat, DiskId, DomainId, DomainKind, DomainStatus, Inventory,
    PointId, StorageDomain, VmId, VnicProfileId,
};
use serde::Serialize;

use crate::host::{HostChoice, choose_host};

/// How a restored disk is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
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
    /// The stored ones when the original VM is gone, new ones while it exists.
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
    pub cluster_name: Option<String>,
    pub disks: Vec<PointDisk>,
    pub nics: Vec<NicFacts>,
    pub tags: Vec<String>,
}

/// What the user wants different from the original.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    pub name: Option<String>,
    pub cluster: Option<String>,
    /// `SD` for all disks or `DISK:SD` for one (disk by alias or id, domain by name or id).
    pub storage_domains: Vec<String>,
    /// Only these disks, by alias or id.
    pub disks: Vec<String>,
    pub exclude_disks: Vec<String>,
    pub format: Option<RestoreFormat>,
    /// Disk interface for all disks.
    pub interface: Option<String>,
    pub no_nics: bool,
    pub mac: Option<MacRule>,
    pub disconnected: bool,
    pub power_on: bool,
    pub host: Option<String>,
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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
    pub name: String,
    pub cluster: ClusterId,
    pub cluster_name: String,
    pub data_center: DataCenterId,
    /// Writes the disks; `None` when there are none.
    pub host: Option<HostChoice>,
    pub disks: Vec<RestoreDisk>,
    pub nics: Vec<NicTarget>,
    pub tags: Vec<String>,
    pub power_on: bool,
    pub warnings: Vec<String>,
}

/// Why a restore cannot be planned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    #[error("a VM named `{name}` exists")]
    NameTaken { name: String },
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
    #[error("{why}")]
    NoHost { why: String },
    #[error("the restore selects no disk")]
    NoDisk,
}

impl RestoreError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::NameTaken { .. } => "give another name with `--name`",
            Self::Unknown { what: "disk", .. } => "see the point's disks with `hvbak show POINT`",
            Self::Unknown { what: "cluster", .. } => {
                "choose one of `hvbak list clusters` with `--cluster`"
            }
            Self::Unknown { .. }
            | Self::Domain { .. }
            | Self::DomainGone { .. }
            | Self::NoSpace { .. } => "choose one of `hvbak list domains` with `--storage-domain`",
            Self::NoDataCenter { .. } => "choose another cluster with `--cluster`",
            Self::NoHost { .. } => {
                "activate a host of that data center, or choose a cluster elsewhere with `--cluster`"
            }
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
    let name = options.name.clone().unwrap_or_else(|| point.name.clone());
    if inventory.vms.iter().any(|vm| vm.name == name) {
        return Err(RestoreError::NameTaken { name });
    }
    let cluster = find_cluster(inventory, point, options)?;
    let data_center = cluster
        .data_center
        .ok_or_else(|| RestoreError::NoDataCenter { name: cluster.name.clone() })?;
    let mut warnings = Vec::new();
    let disks = plan_disks(inventory, point, options, data_center)?;
    check_space(inventory, &disks)?;
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
        plan_nics(inventory, point, options, data_center, &mut warnings)
    };
    let mut tags = Vec::new();
    for tag in &point.tags {
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
        cluster: cluster.id,
        cluster_name: cluster.name.clone(),
        data_center,
        host,
        disks,
        nics,
        tags,
        power_on: options.power_on,
        warnings,
    })
}

fn find_cluster<'a>(
    inventory: &'a Inventory,
    point: &PointFacts,
    options: &RestoreOptions,
) -> Result<&'a hvbak_types::Cluster, RestoreError> {
    let text = options.cluster.as_ref().or(point.cluster_name.as_ref());
    let text =
        text.ok_or(RestoreError::Unknown { what: "cluster", text: "(not recorded)".into() })?;
    inventory
        .clusters
        .iter()
        .find(|c| c.name == *text || c.id.to_string() == *text)
        .ok_or_else(|| RestoreError::Unknown { what: "cluster", text: text.clone() })
}

fn plan_disks(
    inventory: &Inventory,
    point: &PointFacts,
    options: &RestoreOptions,
    data_center: DataCenterId,
) -> Result<Vec<RestoreDisk>, RestoreError> {
    let names = |disk: &PointDisk, text: &str| disk.alias == text || disk.id.to_string() == text;
    let mappings: Vec<(Option<&str>, &str)> = options
        .storage_domains
        .iter()
        .map(|text| match text.split_once(':') {
            Some((disk, domain)) => (Some(disk), domain),
            None => (None, text.as_str()),
        })
        .collect();
    let mentioned = options.disks.iter().chain(&options.exclude_disks).map(String::as_str);
    for text in mentioned.chain(mappings.iter().filter_map(|(disk, _)| *disk)) {
        if !point.disks.iter().any(|d| names(d, text)) {
            return Err(RestoreError::Unknown { what: "disk", text: text.to_owned() });
        }
    }
    let mut out = Vec::new();
    for disk in &point.disks {
        if !options.disks.is_empty() && !options.disks.iter().any(|t| names(disk, t))
            || options.exclude_disks.iter().any(|t| names(disk, t))
        {
            continue;
        }
        let wanted = mappings
            .iter()
            .find(|(d, _)| d.is_some_and(|t| names(disk, t)))
            .or_else(|| mappings.iter().find(|(d, _)| d.is_none()))
            .map(|(_, domain)| *domain);
        let domain = match wanted {
            Some(text) => inventory
                .storage_domains
                .iter()
                .find(|d| d.name == text || d.id.to_string() == text)
                .ok_or_else(|| RestoreError::Unknown { what: "domain", text: text.to_owned() })?,
            None => original_domain(inventory, disk)?,
        };
        check_target(domain, data_center)?;
        out.push(RestoreDisk {
            source: disk.id,
            alias: disk.alias.clone(),
            virtual_size: disk.virtual_size,
            data_bytes: disk.data_bytes,
            domain: domain.id,
            domain_name: domain.name.clone(),
            format: format_on(domain, disk.format, options.format)?,
            block: domain.storage.is_block(),
            interface: options
                .interface
                .clone()
                .or_else(|| disk.interface.clone())
                .unwrap_or_else(|| "virtio_scsi".to_owned()),
            bootable: disk.bootable,
            active: disk.active,
            read_only: disk.read_only,
            pass_discard: disk.pass_discard,
            wipe_after_delete: disk.wipe_after_delete,
        });
    }
    if out.is_empty() && !point.disks.is_empty() {
        return Err(RestoreError::NoDisk);
    }
    Ok(out)
}

fn original_domain<'a>(
    inventory: &'a Inventory,
    disk: &PointDisk,
) -> Result<&'a StorageDomain, RestoreError> {
    let by_id = inventory.storage_domains.iter().find(|d| Some(d.id) == disk.domain);
    by_id
        .or_else(|| {
            inventory.storage_domains.iter().find(|d| Some(&d.name) == disk.domain_name.as_ref())
        })
        .ok_or_else(|| RestoreError::DomainGone { alias: disk.alias.clone() })
}

fn check_target(domain: &StorageDomain, data_center: DataCenterId) -> Result<(), RestoreError> {
    let refuse = |why: String| Err(RestoreError::Domain { name: domain.name.clone(), why });
    if domain.kind != DomainKind::Data {
        return refuse(format!("is a domain of type {}: it cannot hold VM disks", domain.kind));
    }
    if !domain.data_centers.contains(&data_center) {
        return refuse("is not attached to the cluster's data center".into());
    }
    if let Some(status) = &domain.status
        && *status != DomainStatus::Active
    {
        return refuse(format!("is {status}"));
    }
    if !domain.storage.is_file() && !domain.storage.is_block() {
        return refuse(format!("is {}: disks there are neither files nor LVs", domain.storage));
    }
    Ok(())
}

/// Block domains hold no sparse raw volumes: what was one becomes qcow2, thin as before.
fn format_on(
    domain: &StorageDomain,
    stored: RestoreFormat,
    wanted: Option<RestoreFormat>,
) -> Result<RestoreFormat, RestoreError> {
    match wanted.unwrap_or(stored) {
        RestoreFormat::RawSparse if domain.storage.is_block() => match wanted {
            None => Ok(RestoreFormat::Cow),
            Some(_) => Err(RestoreError::Domain {
                name: domain.name.clone(),
                why: format!("is {}: it cannot hold sparse raw disks", domain.storage),
            }),
        },
        format => Ok(format),
    }
}

/// Space that the restore takes at once: all of a preallocated disk, the guest data of
/// another.
fn check_space(inventory: &Inventory, disks: &[RestoreDisk]) -> Result<(), RestoreError> {
    for domain in &inventory.storage_domains {
        let needed: u64 = disks
            .iter()
            .filter(|d| d.domain == domain.id)
            .map(|d| match d.format {
                RestoreFormat::RawPreallocated => d.virtual_size,
                RestoreFormat::RawSparse | RestoreFormat::Cow => d.data_bytes,
            })
            .sum();
        let reserve = domain.critical_space_gib.unwrap_or(0) << 30;
        if needed > 0
            && let Some(available) = domain.available
            && available.saturating_sub(reserve) < needed
        {
            let name = domain.name.clone();
            return Err(RestoreError::NoSpace { name, available, reserve, needed });
        }
    }
    Ok(())
}

fn plan_nics(
    inventory: &Inventory,
    point: &PointFacts,
    options: &RestoreOptions,
    data_center: DataCenterId,
    warnings: &mut Vec<String>,
) -> Vec<NicTarget> {
    let original_exists = inventory.vms.iter().any(|vm| vm.id == point.vm);
    let keep = match options.mac.unwrap_or(MacRule::Auto) {
        MacRule::Auto => !original_exists,
        MacRule::Keep => true,
        MacRule::New => false,
    };
    let network_of = |id| inventory.networks.iter().find(|n| Some(n.id) == id);
    let in_center = |p: &hvbak_types::VnicProfile| {
        network_of(p.network).is_some_and(|n| n.data_center == Some(data_center))
    };
    point
        .nics
        .iter()
        .map(|nic| {
            let by_id = inventory
                .vnic_profiles
                .iter()
                .find(|p| Some(p.id) == nic.profile_id && in_center(p));
            let profile = by_id.or_else(|| {
                let (profile, network) = nic.profile.as_ref()?;
                inventory.vnic_profiles.iter().find(|p| {
                    p.name == *profile
                        && in_center(p)
                        && network_of(p.network).is_some_and(|n| n.name == *network)
                })
            });
            if profile.is_none() && (nic.profile.is_some() || nic.profile_id.is_some()) {
                warnings.push(format!(
                    "NIC `{}` gets no network: its vNIC profile does not exist in the data center",
                    nic.name
                ));
            }
            NicTarget {
                name: nic.name.clone(),
                interface: nic.interface.clone(),
                mac: if keep { nic.mac.clone() } else { None },
                linked: nic.linked && !options.disconnected,
                plugged: nic.plugged,
                profile: profile.map(|p| p.id),
                profile_name: profile.map(|p| p.name.clone()),
            }
        })
        .collect()
}

#[cfg(test)]
#[path = "restore_tests.rs"]
mod tests;
