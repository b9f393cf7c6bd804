//! Through which hypervisor volumes are read or written.

use hvbak_types::{DataCenterId, Host, HostId, HostStatus, Inventory};
use serde::Serialize;

/// A hypervisor and why it was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostChoice {
    pub id: HostId,
    pub name: String,
    pub why: String,
}

/// Chooses a host that is `up` in the data center.
///
/// Every such host reaches all domains, so the one with the least `load` and then the fewest
/// running VMs is taken, and a host other than the SPM before the SPM (which also deletes
/// snapshots, and cannot remove an LV that it has open). `wanted` names a host that the user
/// insists on. `home` is the host of a running VM with disks on LVs: there they are active
/// and as large as they are, and QEMU's locks guard them (hypervisor.md §8.4), so it comes
/// first. `load` tells the bytes that the plan gives a host already.
pub fn choose_host(
    inventory: &Inventory,
    data_center: DataCenterId,
    wanted: Option<&str>,
    home: Option<HostId>,
    load: impl Fn(HostId) -> u64,
) -> Result<HostChoice, String> {
    let in_center = |host: &&Host| {
        host.cluster
            .and_then(|id| inventory.clusters.iter().find(|c| c.id == id))
            .is_some_and(|c| c.data_center == Some(data_center))
    };
    if let Some(name) = wanted {
        let host = inventory
            .hosts
            .iter()
            .find(|h| h.name == name || h.id.to_string() == name)
            .ok_or_else(|| format!("there is no host `{name}`"))?;
        if !in_center(&host) {
            return Err(format!("host `{name}` is in another data center"));
        }
        if host.status != HostStatus::Up {
            return Err(format!("host `{name}` is {}", host.status));
        }
        return Ok(HostChoice { id: host.id, name: host.name.clone(), why: "asked for".into() });
    }
    let running = |id: HostId| inventory.vms.iter().filter(|vm| vm.host == Some(id)).count();
    let hosts: Vec<_> = inventory.hosts.iter().filter(in_center).collect();
    let up: Vec<_> = hosts.iter().filter(|h| h.status == HostStatus::Up).collect();
    let away = |id: HostId| home.is_some_and(|home| home != id);
    let best = up.iter().min_by_key(|h| (away(h.id), h.spm, load(h.id), running(h.id), &h.name));
    match best {
        Some(host) => {
            let role = match home {
                Some(home) if home == host.id => ", runs the VM on its LVs",
                _ if host.spm => ", the only one though it manages the pool",
                _ if up.iter().any(|h| h.spm) => ", does not manage the pool",
                _ => "",
            };
            let why = format!("up, {} running VMs{role}", running(host.id));
            Ok(HostChoice { id: host.id, name: host.name.clone(), why })
        }
        None if hosts.is_empty() => Err("the data center has no host".into()),
        None => Err(format!(
            "no host of the data center is up ({})",
            hosts
                .iter()
                .map(|h| format!("{} is {}", h.name, h.status))
                .collect::<Vec<_>>()
                .join(", ")
        )),
    }
}
