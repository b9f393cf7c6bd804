//! The file of `hvbak restore --map`: what another site calls things, and what is different
//! about single VMs.
//!
//! Only what is written there, as the plan wants it. Invariant: what is typed counts before the
//! file, a VM's section before the whole; an unknown key is an error.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use hvbak_plan::{DiskRule, NicRule, PointFacts, RestoreOptions, SiteNames};
use hvbak_types::VmId;
use serde::Deserialize;

/// Longer files are no maps of somebody's hand.
const MAX: u64 = 16 << 20;

/// The file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RestoreMap {
    /// Of all VMs; `{name}` and `{point}` in it stand for the stored ones.
    pub name: Option<String>,
    pub clusters: BTreeMap<String, String>,
    pub storage_domains: BTreeMap<String, String>,
    pub vnic_profiles: BTreeMap<String, String>,
    /// By stored name or id.
    pub vms: BTreeMap<String, VmSection>,
}

/// `[vms.NAME]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VmSection {
    /// With `--all`, it stays away.
    pub skip: bool,
    pub name: Option<String>,
    pub cluster: Option<String>,
    /// Of all its disks.
    pub storage_domain: Option<String>,
    pub exclude_disks: Vec<String>,
    pub disks: BTreeMap<String, DiskRule>,
    pub nics: BTreeMap<String, NicRule>,
    pub only_nics: Vec<String>,
    pub disconnected: Option<bool>,
    pub power_on: Option<bool>,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    #[error("{} is larger than {} MiB", path.display(), MAX >> 20)]
    Long { path: PathBuf },
    #[error("{} is wrong:\n{cause}", path.display())]
    Parse { path: PathBuf, cause: toml::de::Error },
    #[error("{}: `{text}` of [vnic_profiles] is no NETWORK/PROFILE", path.display())]
    Profile { path: PathBuf, text: String },
}

impl RestoreMap {
    /// Reads the file.
    pub fn read(path: &Path) -> Result<Self, MapError> {
        let read = |cause| MapError::Read { path: path.to_owned(), cause };
        if std::fs::metadata(path).map_err(read)?.len() > MAX {
            return Err(MapError::Long { path: path.to_owned() });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        let map: Self = toml::from_str(&text)
            .map_err(|cause| MapError::Parse { path: path.to_owned(), cause })?;
        match map.vnic_profiles.keys().find(|key| !key.contains('/')) {
            Some(key) => Err(MapError::Profile { path: path.to_owned(), text: key.clone() }),
            None => Ok(map),
        }
    }

    /// The section of a VM; what looks like an id is no name.
    pub fn section(&self, vm: VmId, name: &str) -> Option<&VmSection> {
        let by_name = || self.vms.get(name).filter(|_| name.parse::<VmId>().is_err());
        self.vms.get(&vm.to_string()).or_else(by_name)
    }

    /// What was typed, with what the file says of this VM where nothing was typed.
    pub fn complete(&self, typed: RestoreOptions, point: &PointFacts) -> RestoreOptions {
        let vm = self.section(point.vm, &point.name).cloned().unwrap_or_default();
        let mut all = typed;
        all.name = all.name.or(vm.name).or_else(|| self.name.clone());
        all.cluster = all.cluster.or(vm.cluster);
        let everywhere = all.storage_domains.iter().any(|text| !text.contains(':'));
        let boots = all.disk_rules.values().any(|rule| rule.bootable == Some(true));
        if !everywhere {
            all.storage_domains.extend(vm.storage_domain);
        }
        all.exclude_disks.extend(vm.exclude_disks);
        for (disk, rule) in vm.disks {
            let typed = all.disk_rules.remove(&disk).unwrap_or_default();
            // What was typed for all disks counts before the file's word for one.
            let rule = DiskRule {
                name: typed.name.or(rule.name),
                storage_domain: rule.storage_domain.filter(|_| !everywhere),
                format: rule.format.filter(|_| all.format.is_none()),
                interface: rule.interface.filter(|_| all.interface.is_none()),
                active: typed.active.or(rule.active),
                bootable: typed.bootable.or(rule.bootable.filter(|_| !boots)),
            };
            all.disk_rules.insert(disk, rule);
        }
        for (nic, rule) in vm.nics {
            let rule = NicRule {
                profile: rule.profile.filter(|_| all.nic_profile.is_none()),
                mac: rule.mac.filter(|_| all.mac.is_none()),
                linked: rule.linked.filter(|_| !all.disconnected),
            };
            all.nic_rules.insert(nic, rule);
        }
        if all.nics.is_empty() {
            all.nics = vm.only_nics;
        }
        all.disconnected |= vm.disconnected.unwrap_or(false);
        all.power_on |= vm.power_on.unwrap_or(false);
        all.site = SiteNames {
            clusters: self.clusters.clone(),
            storage_domains: self.storage_domains.clone(),
            vnic_profiles: self.vnic_profiles.clone(),
        };
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point() -> PointFacts {
        PointFacts {
            point: "20261121T021454Z".parse().unwrap(),
            vm: hvbak_types::VmId::random(),
            name: "web1".into(),
            template: false,
            cluster_name: None,
            disks: Vec::new(),
            nics: Vec::new(),
            tags: Vec::new(),
            left_out: Vec::new(),
        }
    }

    #[test]
    fn what_is_typed_counts_before_the_vm_and_that_before_the_file() {
        let text = "name = \"{name}-dr\"\n[clusters]\nDefault = \"dr\"\n[vms.web1]\ncluster = \"fast\"\n\
             storage_domain = \"ssd\"\nonly_nics = [\"nic1\"]\n\
             disks = { web1_data = { name = \"data\", bootable = true } }\n";
        let map: RestoreMap = toml::from_str(text).unwrap();
        let made = map.complete(RestoreOptions::default(), &point());
        assert_eq!(
            (made.name.as_deref(), made.cluster.as_deref()),
            (Some("{name}-dr"), Some("fast"))
        );
        assert_eq!((made.storage_domains, made.nics), (vec!["ssd".into()], vec!["nic1".into()]));
        assert_eq!(made.disk_rules["web1_data"].bootable, Some(true));
        assert_eq!(made.site.clusters["Default"], "dr");
        let rule = DiskRule { name: Some("typed".into()), ..DiskRule::default() };
        let typed = RestoreOptions {
            name: Some("x".into()),
            storage_domains: vec!["slow".into()],
            disk_rules: [("web1_data".into(), rule)].into(),
            ..RestoreOptions::default()
        };
        let made = map.complete(typed, &point());
        assert_eq!((made.name.as_deref(), made.storage_domains), (Some("x"), vec!["slow".into()]));
        let rule = &made.disk_rules["web1_data"];
        assert_eq!((rule.name.as_deref(), rule.bootable), (Some("typed"), Some(true)));
        // A trial on a wire of its own stays there, whatever the file says of single NICs.
        let text = "[vms.web1.nics.nic1]\nprofile = \"dr/dr\"\nmac = \"56:6f:00:00:00:01\"\nlinked = true\n";
        let map: RestoreMap = toml::from_str(text).unwrap();
        let typed = RestoreOptions {
            nic_profile: Some("none".into()),
            mac: Some(hvbak_plan::MacRule::New),
            disconnected: true,
            ..RestoreOptions::default()
        };
        let made = map.complete(typed, &point());
        assert_eq!(made.nic_rules["nic1"], NicRule::default());
        assert!(toml::from_str::<RestoreMap>("[vms.web1]\nclster = \"x\"\n").is_err());
    }
}
