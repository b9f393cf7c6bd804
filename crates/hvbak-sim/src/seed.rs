//! What a lab holds when it comes up: the default, or a described inventory.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde::Deserialize;
use uuid::Uuid;

use crate::{
    api::active,
    block::Lun,
    guests::Guests,
    hosts::Host,
    model::{Attachment, Cluster, DataCenter, Disk, Named, Nic, State, Template, Vm},
    storage::{Domain, Kind, NewVolume},
};

/// `--seed FILE`: JSON, see the README of this crate.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seed {
    #[serde(default)]
    pub vms: Vec<SeedVm>,
    #[serde(default)]
    pub templates: Vec<SeedTemplate>,
    #[serde(default)]
    pub tags: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedTemplate {
    pub name: String,
    pub disks: Vec<SeedDisk>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedVm {
    pub name: String,
    #[serde(default)]
    pub running: bool,
    #[serde(default)]
    pub agent: bool,
    #[serde(default)]
    pub stateless: bool,
    #[serde(default)]
    pub origin: Option<String>,
    /// Overrides the status of a VM that does not run.
    #[serde(default)]
    pub status: Option<String>,
    #[serde(default)]
    pub tags: Vec<String>,
    #[serde(default)]
    pub disks: Vec<SeedDisk>,
    /// Thin on this template: one overlay per template disk.
    #[serde(default)]
    pub template: Option<String>,
    #[serde(default)]
    pub nics: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedDisk {
    pub alias: String,
    /// Bytes.
    #[serde(default)]
    pub size: u64,
    /// `raw-sparse`, `raw-preallocated` or `cow`.
    #[serde(default = "raw_sparse")]
    pub format: String,
    /// Name of the domain; the first one without it.
    #[serde(default)]
    pub domain: Option<String>,
    #[serde(default)]
    pub interface: Option<String>,
    /// `lun` makes a direct LUN that nothing stands behind.
    #[serde(default)]
    pub storage_type: Option<String>,
    #[serde(default)]
    pub shareable: bool,
    /// A raw image whose bytes the disk gets (linked or copied).
    #[serde(default)]
    pub image: Option<std::path::PathBuf>,
}

fn raw_sparse() -> String {
    "raw-sparse".into()
}

/// The default inventory.
pub fn default_seed() -> Seed {
    let disk = |alias: &str, mib: u64, format: &str| SeedDisk {
        alias: alias.into(),
        size: mib << 20,
        format: format.into(),
        domain: None,
        interface: None,
        storage_type: None,
        shareable: false,
        image: None,
    };
    let vm = |name: &str, disks: Vec<SeedDisk>| SeedVm {
        name: name.into(),
        running: false,
        agent: false,
        stateless: false,
        origin: None,
        status: None,
        tags: Vec::new(),
        disks,
        template: None,
        nics: 1,
    };
    Seed {
        tags: vec!["gold".into()],
        templates: vec![SeedTemplate {
            name: "base".into(),
            disks: vec![disk("base_Disk1", 128, "cow")],
        }],
        vms: vec![
            SeedVm {
                running: true,
                agent: true,
                tags: vec!["gold".into()],
                ..vm(
                    "web1",
                    vec![disk("web1_Disk1", 1024, "raw-sparse"), disk("web1_data", 512, "cow")],
                )
            },
            vm("db1", vec![disk("db1_Disk1", 64, "raw-preallocated")]),
            SeedVm { template: Some("base".into()), ..vm("thin1", Vec::new()) },
        ],
    }
}

/// The inventory of a lab with a block domain: its VMs do not run, because their storage is
/// in the guests and QEMU is not.
pub fn block_seed() -> Seed {
    let mut seed = default_seed();
    for vm in &mut seed.vms {
        vm.running = false;
        for disk in vm.disks.iter_mut().filter(|d| d.format == "raw-sparse") {
            disk.format = "raw-preallocated".into();
        }
    }
    seed
}

/// Makes data centers, clusters, domains and networks; hosts are started. The files of a
/// domain lie in the lab's directory, or where `mounts` says.
pub fn infrastructure(
    dir: &Path,
    hosts: usize,
    kinds: &[Kind],
    mounts: &[(String, PathBuf)],
    authorized: &str,
) -> Result<State> {
    let mut s = State::default();
    let center = |name: &str, local| DataCenter { id: Uuid::new_v4(), name: name.into(), local };
    let shared = center("Default", false);
    let shared_cluster =
        Cluster { id: Uuid::new_v4(), name: "Default".into(), data_center: shared.id };
    let network = Named { id: Uuid::new_v4(), name: "ovirtmgmt".into(), of: shared.id };
    s.profiles.push(Named { id: Uuid::new_v4(), name: "ovirtmgmt".into(), of: network.id });
    s.networks.push(network);
    let local = kinds.contains(&Kind::Local).then(|| center("LocalDC", true));
    let local_cluster = local.as_ref().map(|l| Cluster {
        id: Uuid::new_v4(),
        name: "LocalCluster".into(),
        data_center: l.id,
    });
    if kinds.contains(&Kind::Block) {
        block(&mut s, dir, hosts, shared.id, shared_cluster.id, authorized)?;
    }
    for kind in kinds.iter().filter(|kind| **kind != Kind::Block) {
        let (name, address, path, center) = match kind {
            Kind::Nfs => ("nfs1", "nfs.lab", "/exports/vm_data", shared.id),
            Kind::Gluster => ("gluster1", "gluster.lab", "/data_vol", shared.id),
            Kind::Local | Kind::Block => {
                ("local1", "", "/data/images", local.as_ref().map_or(shared.id, |l| l.id))
            }
        };
        let domain = Domain {
            id: Uuid::new_v4(),
            name: name.into(),
            kind: *kind,
            data_center: center,
            address: address.into(),
            path: path.into(),
            dir: mounts
                .iter()
                .find(|(mounted, _)| mounted == name)
                .map_or_else(|| dir.join("storage").join(name), |(_, dir)| dir.clone()),
            available: None,
            lun: None,
        };
        domain.create()?;
        s.domains.push(domain);
    }
    // The hosts of a block domain are its guests.
    let plain = if s.hosts.is_empty() { hosts } else { 0 };
    for n in 1..=plain {
        let mut host = Host::create(dir, &format!("hv{n}"), shared_cluster.id, authorized)?;
        host.spm = n == 1;
        s.hosts.push(host);
    }
    if let Some(cluster) = &local_cluster {
        let mut host = Host::create(dir, "hvlocal", cluster.id, authorized)?;
        host.spm = true;
        s.hosts.push(host);
    }
    for domain in s.domains.iter().filter(|domain| domain.lun.is_none()) {
        for host in &s.hosts {
            let is_local = local_cluster.as_ref().is_some_and(|c| c.id == host.cluster);
            if is_local == (domain.kind == Kind::Local) {
                domain.link_into(&host.root)?;
                // The first domain of a data center is its master.
                let master = s.domains.iter().find(|d| d.data_center == domain.data_center);
                if master.is_some_and(|m| m.id == domain.id) {
                    let pool =
                        host.root.join("rhev/data-center").join(domain.data_center.to_string());
                    std::os::unix::fs::symlink(domain.id.to_string(), pool.join("mastersd"))?;
                }
            }
        }
    }
    s.data_centers.push(shared);
    s.data_centers.extend(local);
    s.clusters.push(shared_cluster);
    s.clusters.extend(local_cluster);
    s.tags.push(Named { id: Uuid::nil(), name: "root".into(), of: Uuid::nil() });
    s.templates.push(Template::bare(Uuid::nil(), "Blank", s.clusters[0].id));
    Ok(s)
}

/// Starts the guests and makes the domain on their LUN.
fn block(
    s: &mut State,
    dir: &Path,
    hosts: usize,
    data_center: Uuid,
    cluster: Uuid,
    authorized: &str,
) -> Result<()> {
    let guests = Guests::create(dir)?;
    for n in 1..=hosts {
        s.hosts.push(guests.start(dir, n, cluster, authorized)?);
    }
    let names: Vec<_> = s.hosts.iter().map(|h| h.name.clone()).collect();
    let id = Uuid::new_v4();
    let lun = Lun::create(&guests, &names, id, data_center)?;
    s.domains.push(Domain {
        id,
        name: "block1".into(),
        kind: Kind::Block,
        data_center,
        address: String::new(),
        path: String::new(),
        // Its free space is what the file of the LUN may grow by.
        dir: dir.join("guests"),
        available: None,
        lun: Some(Arc::new(lun)),
    });
    Ok(())
}

/// Puts the described VMs into the state; gives the ids of those that run.
pub fn populate(s: &mut State, seed: &Seed) -> Result<Vec<Uuid>> {
    for name in &seed.tags {
        s.tags.push(Named { id: Uuid::new_v4(), name: name.clone(), of: Uuid::nil() });
    }
    for t in &seed.templates {
        let mut attachments = Vec::new();
        for (n, disk) in t.disks.iter().enumerate() {
            let made = make_disk(s, disk)?;
            let domain = s.domain(made.domain).context("domain")?;
            domain.set_meta(made.id, made.top, "VOLTYPE", "SHARED")?;
            attachments.push(attachment(made.id, disk, n == 0));
            s.disks.push(made);
        }
        let bare = Template::bare(Uuid::new_v4(), &t.name, s.clusters[0].id);
        s.templates.push(Template { attachments, ..bare });
    }
    let mut running = Vec::new();
    for v in &seed.vms {
        let vm = make_vm(s, v)?;
        if v.running {
            running.push(vm.id);
        }
        s.vms.push(vm);
    }
    Ok(running)
}

fn attachment(disk: Uuid, seed: &SeedDisk, bootable: bool) -> Attachment {
    Attachment {
        disk,
        interface: seed.interface.clone().unwrap_or_else(|| "virtio_scsi".into()),
        bootable,
        active: true,
        read_only: false,
        pass_discard: false,
    }
}

fn make_vm(s: &mut State, seed: &SeedVm) -> Result<Vm> {
    let mut attachments = Vec::new();
    let mut cluster = s.clusters[0].id;
    for (n, disk) in seed.disks.iter().enumerate() {
        let made = make_disk(s, disk)?;
        if let Some(domain) = s.domain(made.domain)
            && let Some(c) = s.clusters.iter().find(|c| c.data_center == domain.data_center)
        {
            cluster = c.id;
        }
        attachments.push(attachment(made.id, disk, n == 0));
        s.disks.push(made);
    }
    let mut template = Uuid::nil();
    if let Some(name) = &seed.template {
        template = s.templates.iter().find(|t| t.name == *name).context("template")?.id;
        for (disk, attachment) in thin_disks(s, template, &seed.name)? {
            s.disks.push(disk);
            attachments.push(attachment);
        }
    }
    let nics = (1..=seed.nics)
        .map(|n| Nic {
            id: Uuid::new_v4(),
            name: format!("nic{n}"),
            interface: "virtio".into(),
            mac: s.new_mac(),
            linked: true,
            plugged: true,
            profile: s.profiles.first().map(|p| p.id),
        })
        .collect();
    let tags = s.tags.iter().filter(|t| seed.tags.contains(&t.name)).map(|t| t.id).collect();
    Ok(Vm {
        id: Uuid::new_v4(),
        name: seed.name.clone(),
        description: String::new(),
        comment: String::new(),
        status: seed.status.clone().unwrap_or_else(|| "down".into()),
        host: None,
        cluster,
        template,
        memory: 1 << 30,
        topology: (1, 2, 1),
        os: "rhel_8x64".into(),
        bios: "q35_sea_bios".into(),
        agent: seed.agent,
        frozen: false,
        stateless: seed.stateless,
        delete_protected: false,
        origin: seed.origin.clone().unwrap_or_else(|| "ovirt".into()),
        created: Timestamp::now(),
        tags,
        nics,
        attachments,
        snapshots: vec![active()],
        running: Arc::default(),
    })
}

/// The disks of a VM that is thin on a template: overlays beside hard links of the
/// template's volumes. Not in the state yet.
pub fn thin_disks(s: &State, template: Uuid, vm: &str) -> Result<Vec<(Disk, Attachment)>> {
    let template = s.templates.iter().find(|t| t.id == template).context("template")?;
    let mut out = Vec::new();
    for (n, attached) in template.attachments.iter().enumerate() {
        let base = s.disk(attached.disk).context("template disk")?.clone();
        let domain = s.domain(base.domain).context("domain")?;
        let (image, volume) = (Uuid::new_v4(), Uuid::new_v4());
        domain.link_template(base.id, base.top, image)?;
        let alias = format!("{vm}_Disk{}", n + 1);
        domain.create_volume(&NewVolume {
            image,
            volume,
            parent: Some(base.top),
            cow: true,
            preallocated: false,
            capacity: base.size,
            alias: alias.clone(),
        })?;
        let disk = Disk { id: image, alias, top: volume, cow: true, sparse: true, ..base };
        out.push((disk, Attachment { disk: image, ..attached.clone() }));
    }
    Ok(out)
}

fn make_disk(s: &State, seed: &SeedDisk) -> Result<Disk> {
    let domain = match &seed.domain {
        None => s.domains.first(),
        Some(name) => s.domains.iter().find(|d| d.name == *name),
    }
    .context("no such domain")?;
    let (cow, preallocated) = match seed.format.as_str() {
        "raw-sparse" => (false, false),
        "raw-preallocated" => (false, true),
        "cow" => (true, false),
        other => bail!("`{other}` is no disk format"),
    };
    let mut size = seed.size;
    if let Some(image) = &seed.image {
        size = std::fs::metadata(image).with_context(|| image.display().to_string())?.len();
    }
    let disk = Disk {
        id: Uuid::new_v4(),
        alias: seed.alias.clone(),
        description: String::new(),
        size,
        cow,
        sparse: !preallocated,
        domain: domain.id,
        status: "ok",
        top: Uuid::new_v4(),
        shareable: seed.shareable,
        storage_type: seed.storage_type.clone().unwrap_or_else(|| "image".into()),
        content_type: "data".into(),
        wipe: false,
        initial_size: None,
    };
    if disk.storage_type != "image" {
        return Ok(disk);
    }
    domain.create_volume(&NewVolume {
        image: disk.id,
        volume: disk.top,
        parent: None,
        cow,
        preallocated: preallocated && seed.image.is_none(),
        capacity: size,
        alias: disk.alias.clone(),
    })?;
    if let Some(image) = &seed.image {
        let path = domain.volume_path(disk.id, disk.top);
        if cow {
            crate::storage::run(
                std::process::Command::new("qemu-img")
                    .args(["convert", "-n", "-f", "raw", "-O", "qcow2"])
                    .arg(image)
                    .arg(&path),
            )?;
        } else {
            // In place, so that owner and mode stay.
            let (mut from, mut to) =
                (std::fs::File::open(image)?, std::fs::OpenOptions::new().write(true).open(&path)?);
            std::io::copy(&mut from, &mut to)?;
        }
    }
    Ok(disk)
}
