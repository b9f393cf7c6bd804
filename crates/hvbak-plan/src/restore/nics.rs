//! The NICs of a restore: which, on which networks, with which addresses.

use hvbak_types::{Cluster, DataCenterId, Inventory, VnicProfile};
use serde::Deserialize;

use super::{
    MacRule, NicFacts, NicTarget, PointFacts, RestoreError, RestoreOptions,
    macs::{Macs, Wish},
};

/// What is different about one NIC.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NicRule {
    /// `NETWORK/PROFILE`, a profile's name, or `none`.
    pub profile: Option<String>,
    /// This address, whatever the rule for all says.
    pub mac: Option<String>,
    pub linked: Option<bool>,
}

/// Plans them; one whose profile is gone gets no network, which is told.
///
/// # Errors
/// A NIC, or a wished profile, that there is not; a wished address that another VM has. Nothing
/// that was wished is left out silently.
pub(super) fn plan_nics(
    inventory: &Inventory,
    point: &PointFacts,
    (name, options): (&str, &RestoreOptions),
    (cluster, data_center): (&Cluster, DataCenterId),
    warnings: &mut Vec<String>,
) -> Result<Vec<NicTarget>, RestoreError> {
    let replaced = options.overwrite.as_ref().map(|old| old.vm.id);
    let original_exists = inventory.vms.iter().any(|vm| vm.id == point.vm);
    let mac_rule = options.mac.unwrap_or(MacRule::Auto);
    let keep = match mac_rule {
        // Under another name it may be the second that is restored: addresses are given once.
        MacRule::Auto => replaced.is_some() || !original_exists && name == point.name,
        MacRule::Keep => true,
        MacRule::New => false,
    };
    for text in options.nics.iter().chain(options.nic_rules.keys()) {
        if !point.nics.iter().any(|nic| nic.name == *text) {
            return Err(RestoreError::Unknown { what: "NIC", text: text.clone() });
        }
    }
    let profiles = Profiles { inventory, data_center };
    let macs = Macs { inventory, cluster: cluster.id, replaced };
    let mut out: Vec<NicTarget> = Vec::new();
    for nic in &point.nics {
        if !options.nics.is_empty() && !options.nics.contains(&nic.name) {
            continue;
        }
        let rule = options.nic_rules.get(&nic.name).cloned().unwrap_or_default();
        let wanted = rule.profile.as_ref().or(options.nic_profile.as_ref());
        let profile = match wanted.or_else(|| here(nic, options)) {
            Some(text) if text == "none" => None,
            Some(text) => Some(profiles.find(text)?),
            None => profiles.original(nic, warnings),
        };
        let firm = rule.mac.is_some() || mac_rule == MacRule::Keep;
        let mut target = NicTarget {
            name: nic.name.clone(),
            interface: nic.interface.clone(),
            mac: rule.mac.or_else(|| nic.mac.clone().filter(|_| keep)),
            linked: rule.linked.unwrap_or(nic.linked && !options.disconnected),
            plugged: nic.plugged,
            profile: profile.map(|p| p.id),
            profile_name: profile.map(|p| p.name.clone()),
        };
        let wish = if firm { Wish::Firm } else { Wish::Yielding };
        macs.settle(&mut target, wish, warnings)?;
        let same = |other: &&NicTarget| other.mac.is_some() && other.mac == target.mac;
        if let (Some(twin), Some(mac)) = (out.iter().find(same), &target.mac) {
            let vm = format!("{name}, as NIC {}", twin.name);
            return Err(RestoreError::MacTaken { nic: target.name, mac: mac.clone(), vm });
        }
        out.push(target);
    }
    Ok(out)
}

/// What this site calls the NIC's stored profile.
fn here<'a>(nic: &NicFacts, options: &'a RestoreOptions) -> Option<&'a String> {
    let (profile, network) = nic.profile.as_ref()?;
    options.site.vnic_profiles.get(&format!("{network}/{profile}"))
}

/// The profiles of a data center.
struct Profiles<'a> {
    inventory: &'a Inventory,
    data_center: DataCenterId,
}

impl<'a> Profiles<'a> {
    fn network(&self, profile: &VnicProfile) -> Option<&'a str> {
        let networks = &self.inventory.networks;
        let of = networks.iter().find(|n| Some(n.id) == profile.network)?;
        (of.data_center == Some(self.data_center)).then_some(of.name.as_str())
    }

    fn all(&self) -> impl Iterator<Item = (&'a VnicProfile, &'a str)> {
        self.inventory.vnic_profiles.iter().filter_map(|p| Some((p, self.network(p)?)))
    }

    /// `NETWORK/PROFILE`, or a profile's name that only one has.
    fn find(&self, text: &str) -> Result<&'a VnicProfile, RestoreError> {
        let fits = |(profile, network): &(&VnicProfile, &str)| match text.split_once('/') {
            Some((of, name)) => *network == of && profile.name == name,
            None => profile.name == text,
        };
        let found: Vec<_> = self.all().filter(fits).collect();
        match found.as_slice() {
            [(one, _)] => Ok(one),
            _ => Err(RestoreError::Unknown { what: "vNIC profile", text: text.to_owned() }),
        }
    }

    /// The stored one, by its id, else by its names.
    fn original(&self, nic: &NicFacts, warnings: &mut Vec<String>) -> Option<&'a VnicProfile> {
        let by_id = self.all().find(|(p, _)| Some(p.id) == nic.profile_id);
        let found = by_id.or_else(|| {
            let (profile, network) = nic.profile.as_ref()?;
            self.all().find(|(p, of)| p.name == *profile && of == network)
        });
        if found.is_none() && (nic.profile.is_some() || nic.profile_id.is_some()) {
            warnings.push(format!(
                "NIC `{}` gets no network: its vNIC profile does not exist in the data center",
                nic.name
            ));
        }
        found.map(|(profile, _)| profile)
    }
}
