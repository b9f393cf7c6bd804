//! The disks of a restore: which, where, how they are stored and attached.

use hvbak_types::{DataCenterId, DomainId, DomainKind, DomainStatus, Inventory, StorageDomain};
use serde::Deserialize;

use super::{PointDisk, PointFacts, RestoreDisk, RestoreError, RestoreFormat, RestoreOptions};

/// What is different about one disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiskRule {
    pub name: Option<String>,
    pub storage_domain: Option<String>,
    pub format: Option<RestoreFormat>,
    pub interface: Option<String>,
    pub active: Option<bool>,
    /// One disk that is to be booted from takes that from the others.
    pub bootable: Option<bool>,
}

impl DiskRule {
    /// A disk may be named by its alias and by its id.
    fn or(self, other: Self) -> Self {
        Self {
            name: self.name.or(other.name),
            storage_domain: self.storage_domain.or(other.storage_domain),
            format: self.format.or(other.format),
            interface: self.interface.or(other.interface),
            active: self.active.or(other.active),
            bootable: self.bootable.or(other.bootable),
        }
    }
}

pub(super) fn plan_disks(
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
    let mentioned = mentioned.chain(options.disk_rules.keys().map(String::as_str));
    // Firmware boots from one disk: who names another does not mean both.
    let boots = options.disk_rules.values().any(|rule| rule.bootable == Some(true));
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
        let ruled = options.disk_rules.iter().filter(|(text, _)| names(disk, text));
        let rule = ruled.fold(DiskRule::default(), |all, (_, rule)| all.or(rule.clone()));
        let stored = disk.domain_name.as_ref();
        let here = stored.and_then(|name| options.site.storage_domains.get(name));
        let wanted = mappings
            .iter()
            .find(|(d, _)| d.is_some_and(|t| names(disk, t)))
            .map(|(_, domain)| *domain)
            .or(rule.storage_domain.as_deref())
            .or_else(|| mappings.iter().find(|(d, _)| d.is_none()).map(|(_, domain)| *domain))
            .or(here.map(String::as_str));
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
            alias: rule.name.unwrap_or_else(|| disk.alias.clone()),
            virtual_size: disk.virtual_size,
            data_bytes: disk.data_bytes,
            domain: domain.id,
            domain_name: domain.name.clone(),
            format: format_on(domain, disk.format, rule.format.or(options.format))?,
            block: domain.storage.is_block(),
            interface: rule
                .interface
                .or_else(|| options.interface.clone())
                .or_else(|| disk.interface.clone())
                .unwrap_or_else(|| "virtio_scsi".to_owned()),
            bootable: rule.bootable.unwrap_or(disk.bootable && !boots),
            active: rule.active.unwrap_or(disk.active),
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

/// Bytes that these disks take of a domain at once: all of a preallocated disk, the guest data of
/// another.
pub(super) fn needed(disks: &[RestoreDisk], domain: DomainId) -> u64 {
    let bytes = |disk: &RestoreDisk| match disk.format {
        RestoreFormat::RawPreallocated => disk.virtual_size,
        RestoreFormat::RawSparse | RestoreFormat::Cow => disk.data_bytes,
    };
    disks.iter().filter(|disk| disk.domain == domain).map(bytes).sum()
}

/// Whether each domain has room for what it is to hold, `times` over and beside its reserve.
pub(super) fn check_space(
    inventory: &Inventory,
    disks: &[RestoreDisk],
    times: u64,
) -> Result<(), RestoreError> {
    for domain in &inventory.storage_domains {
        let needed = needed(disks, domain.id).saturating_mul(times);
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
