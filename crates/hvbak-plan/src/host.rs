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
/// File domains are reachable from every such host, so the one with the least `load` and
/// then the fewest running VMs is taken, and a host other than the SPM before the SPM
/// (which also deletes snapshots). `wanted` names a host that the user insists on; `load`
/// tells the bytes that the plan gives a host already.
pub fn choose_host(
    inventory: &Inventory,
    data_center: DataCenterId,
    wanted: Option<&str>,
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
    let best = hosts
        .iter()
        .filter(|h| h.status == HostStatus::Up)
        .min_by_key(|h| (h.spm && hosts.len() > 1, load(h.id), running(h.id), &h.name));
    match best {
        Some(host) => Ok(HostChoice {
            id: host.id,
            name: host.name.clone(),
            why: format!("up, {} running VMs", running(host.id)),
        }),
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
