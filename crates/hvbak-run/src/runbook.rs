//! The facts of the runbook: the engine's inventory and the repository's catalogue.
//!
//! It only reads. Points are looked through as `prune` does, without reading their clusters.

use std::sync::Arc;

use hvbak_repo::{Holder, Point, Repository, RunOutcome, VerifyOptions};
use hvbak_runbook::{
    DiskFacts, DomainFacts, DrillEnd, DrillFacts, EngineFacts, Facts, HostFacts, MacPoolFacts,
    ManagerDrillFacts, ManagerPointFacts, NetworkFacts, PointFacts, SkippedFacts, VerifyFacts,
    VmFacts,
};
use hvbak_types::{
    CLUSTER_SIZE, ClusterId, DataCenterId, Inventory, JobId, MacPool, StorageDomain, Vm,
};
use jiff::Timestamp;

use crate::{
    error::{self, Result},
    gather,
    job::{Context, blocking},
    report::{self, LastRun},
};

/// Smaller transfers say nothing of a speed.
const WORTH_MEASURING: u64 = 16 << 20;

/// What the site wants in its pages.
#[derive(Debug, Clone)]
pub struct RunbookWishes {
    pub engine_url: String,
    pub contacts: Vec<String>,
    /// A tag `PREFIXn` gives a VM the priority n.
    pub priority_tag: String,
}

/// Reads the site.
///
/// # Errors
/// As reading the inventory and the catalogue.
pub async fn runbook_facts(context: &Context, wishes: RunbookWishes) -> Result<Facts> {
    let inventory = gather::inventory(context).await?;
    let pools = context.engine.mac_pools().await.map_err(error::engine("list the MAC pools"))?;
    let repository = context.repository.clone();
    let facts =
        blocking("read the catalogue", move || assemble(&repository, &inventory, wishes)).await?;
    Ok(Facts { mac_pools: pools.iter().map(mac_pool_facts).collect(), ..facts })
}

fn assemble(
    repository: &Arc<Repository>,
    inventory: &Inventory,
    wishes: RunbookWishes,
) -> hvbak_repo::Result<Facts> {
    let report = report::read(repository, Timestamp::now(), &report::Targets::default())?;
    let mut speeds = Vec::new();
    let mut vms = Vec::new();
    for vm in inventory.vms.iter().filter(|vm| !vm.is_hosted_engine()) {
        let listing = repository.points(vm.id)?;
        let newest = match listing.points.last() {
            None => None,
            Some(point) => {
                speeds.extend(speed(point));
                Some(point_facts(repository, point)?)
            }
        };
        let known = report.vms.iter().find(|known| known.vm == vm.id);
        let drill = known.and_then(|known| known.last_drill.as_ref()).map(drill_facts);
        let verified = known.and_then(|known| known.last_verify.as_ref()).map(verify_facts);
        vms.push(VmFacts {
            drill,
            verified,
            ..vm_facts(inventory, vm, &wishes.priority_tag, newest)
        });
    }
    vms.sort_by(|a, b| {
        let key = |vm: &VmFacts| (vm.priority.unwrap_or(u32::MAX), vm.name.clone());
        key(a).cmp(&key(b))
    });
    speeds.sort_unstable();
    let host = wishes.engine_url.split("://").nth(1).unwrap_or(&wishes.engine_url);
    let fqdn = host.split(['/', ':']).next().unwrap_or(host).to_owned();
    let hosted = inventory.vms.iter().find(|vm| vm.is_hosted_engine()).map(|vm| vm.name.clone());
    Ok(Facts {
        read: Timestamp::now(),
        backup_host: Holder::me(JobId::random()).host,
        hvbak: env!("CARGO_PKG_VERSION").into(),
        repository: repository.path().display().to_string(),
        repository_id: repository.id().to_string(),
        contacts: wishes.contacts,
        engine: EngineFacts {
            url: wishes.engine_url,
            fqdn,
            version: inventory.version.full.clone(),
            hosted_engine_vm: hosted,
        },
        hosts: inventory.hosts.iter().map(|host| host_facts(inventory, host)).collect(),
        domains: inventory.storage_domains.iter().map(|d| domain_facts(inventory, d)).collect(),
        networks: networks(inventory),
        mac_pools: Vec::new(),
        vms,
        manager_points: manager_points(repository)?,
        manager_drills: report
            .manager_drills
            .iter()
            .map(|one| ManagerDrillFacts {
                manager: one.manager.to_string(),
                drill: drill_facts(&one.last),
            })
            .collect(),
        speed: speeds.get(speeds.len() / 2).copied(),
    })
}

fn vm_facts(
    inventory: &Inventory,
    vm: &Vm,
    priority_tag: &str,
    newest: Option<PointFacts>,
) -> VmFacts {
    let priority = |tag: &String| tag.strip_prefix(priority_tag)?.parse::<u32>().ok();
    VmFacts {
        name: vm.name.clone(),
        id: vm.id.to_string(),
        cluster: cluster(inventory, vm.cluster).0,
        status: vm.status.to_string(),
        priority: vm.tags.iter().filter_map(priority).min(),
        highly_available: vm.high_availability == Some(true),
        newest,
        verified: None,
        drill: None,
    }
}

fn verify_facts(last: &LastRun) -> VerifyFacts {
    VerifyFacts {
        at: last.finished,
        point: last.point.as_ref().map(ToString::to_string),
        passed: last.outcome == RunOutcome::Done,
    }
}

fn drill_facts(last: &LastRun) -> DrillFacts {
    DrillFacts {
        at: last.finished,
        point: last.point.as_ref().map(ToString::to_string),
        came: match last.outcome {
            RunOutcome::Done => DrillEnd::Through,
            RunOutcome::Failed => DrillEnd::Failed,
            RunOutcome::Skipped | RunOutcome::Stopped => DrillEnd::NotDone,
        },
        seen: last.reason.clone().unwrap_or_default(),
        skipped_since: last.skipped_since.as_ref().map(|since| SkippedFacts {
            at: since.finished,
            why: since.reason.clone().unwrap_or_default(),
        }),
    }
}

/// Bytes of content per second of a point's transfer.
fn speed(point: &Point) -> Option<u64> {
    let m = &point.manifest;
    let bytes: u64 = m.disks.iter().map(|d| d.record.data_clusters * CLUSTER_SIZE).sum();
    let seconds = m.finished.duration_since(m.started).as_secs_f64();
    (bytes >= WORTH_MEASURING && seconds > 0.0).then(|| (bytes as f64 / seconds) as u64)
}

fn point_facts(repository: &Repository, point: &Point) -> hvbak_repo::Result<PointFacts> {
    let options = VerifyOptions { parents: true, data: false, ..VerifyOptions::default() };
    let report = repository.verify(point, &options, &|_| true)?;
    let damage = report.findings.first().map(|f| format!("{}: {}", f.file.display(), f.text));
    let mut content = 0;
    let mut disks = Vec::new();
    for disk in &point.manifest.disks {
        let chain = repository.disk_chain(point, disk.record.id).unwrap_or_default();
        let layers = chain.iter().filter_map(|p| p.manifest.disk(disk.record.id));
        // No layer knows what another hides: an upper bound.
        let clusters: u64 = layers.map(|d| d.record.data_clusters).sum();
        content += (clusters * CLUSTER_SIZE).min(disk.record.virtual_size);
        disks.push(DiskFacts {
            alias: disk.alias.clone(),
            image: point.path.join(&disk.record.file).display().to_string(),
            virtual_size: disk.record.virtual_size,
            domain: disk.domain_name.clone().unwrap_or_default(),
            format: if disk.format.as_deref() == Some("raw") { "raw" } else { "qcow2" }.into(),
            bootable: disk.bootable,
        });
    }
    let consistency = serde_json::to_value(point.manifest.consistency)
        .ok()
        .and_then(|v| v.as_str().map(str::to_owned))
        .unwrap_or_default();
    Ok(PointFacts {
        id: point.id().to_string(),
        taken: point.manifest.started,
        consistency,
        damage,
        content,
        disks,
    })
}

fn host_facts(inventory: &Inventory, host: &hvbak_types::Host) -> HostFacts {
    let (cluster, data_center) = cluster(inventory, host.cluster);
    HostFacts {
        name: host.name.clone(),
        address: host.address.clone(),
        port: host.ssh.port.unwrap_or(22),
        cluster,
        data_center,
        status: host.status.to_string(),
        fingerprint: host.ssh.fingerprint.clone().or(host.ssh.public_key.clone()),
        os: host.os.clone(),
    }
}

fn domain_facts(inventory: &Inventory, domain: &StorageDomain) -> DomainFacts {
    let d = domain;
    let path = d.path.clone().unwrap_or_default();
    let mut connection = match (&d.address, d.luns.as_slice()) {
        (_, luns @ [_, ..]) => format!("LUN {}", luns.join(", ")),
        (Some(address), _) => format!("{address}:{path}"),
        (None, _) => path,
    };
    for more in [&d.vfs_type, &d.nfs_version, &d.mount_options].into_iter().flatten() {
        connection += &format!(" ({more})");
    }
    let centers = d.data_centers.iter().map(|id| data_center(inventory, *id));
    DomainFacts {
        name: d.name.clone(),
        id: d.id.to_string(),
        kind: d.kind.to_string(),
        storage: d.storage.to_string(),
        connection,
        data_centers: centers.collect::<Vec<_>>().join(", "),
        status: d.status.as_ref().map_or_else(String::new, ToString::to_string),
        master: d.master == Some(true),
        used: d.used,
        available: d.available,
    }
}

fn networks(inventory: &Inventory) -> Vec<NetworkFacts> {
    let facts = |network: &hvbak_types::Network| NetworkFacts {
        name: network.name.clone(),
        data_center: network.data_center.map_or_else(String::new, |id| data_center(inventory, id)),
        vlan: network.vlan,
        mtu: network.mtu,
        profiles: inventory
            .vnic_profiles
            .iter()
            .filter(|p| p.network == Some(network.id))
            .map(|p| p.name.clone())
            .collect(),
    };
    inventory.networks.iter().map(facts).collect()
}

fn mac_pool_facts(pool: &MacPool) -> MacPoolFacts {
    MacPoolFacts {
        name: pool.name.clone(),
        ranges: pool.ranges.iter().map(|(from, to)| format!("{from} – {to}")).collect(),
        duplicates: pool.allow_duplicates,
        default: pool.default == Some(true),
    }
}

fn manager_points(repository: &Repository) -> hvbak_repo::Result<Vec<ManagerPointFacts>> {
    let mut facts = Vec::new();
    for name in repository.manager_names()? {
        for point in repository.manager_points(&name)?.points {
            let m = &point.manifest;
            facts.push(ManagerPointFacts {
                manager: m.manager.to_string(),
                id: m.point.to_string(),
                taken: m.started,
                version: m.version.clone(),
                scopes: m.scopes.clone(),
                archive: point.archive_path().display().to_string(),
                sha256: m.plain().map(|plain| plain.sha256.to_string()),
                size: m.archive().map_or(0, |file| file.size),
                recipients: m.recipients().to_vec(),
            });
        }
    }
    facts.sort_by_key(|point| std::cmp::Reverse(point.taken));
    Ok(facts)
}

/// Names of a cluster and its data center.
fn cluster(inventory: &Inventory, id: Option<ClusterId>) -> (String, String) {
    let Some(found) = inventory.clusters.iter().find(|c| Some(c.id) == id) else {
        return Default::default();
    };
    let center = found.data_center.map_or_else(String::new, |id| data_center(inventory, id));
    (found.name.clone(), center)
}

fn data_center(inventory: &Inventory, id: DataCenterId) -> String {
    let found = inventory.data_centers.iter().find(|d| d.id == id);
    found.map_or_else(|| id.to_string(), |d| d.name.clone())
}
