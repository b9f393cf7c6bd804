//! `POST /vms`: from an OVF or from nothing.

use std::{sync::Arc, thread};

use jiff::Timestamp;
use uuid::Uuid;

use super::{Reply, parse, root};
use crate::{
    fault::Refusal,
    model::{Attachment, Lab, Nic, Snapshot, Vm},
    ovf, render,
    xml::{child, flag, id_of, text},
};

pub(super) fn create(lab: &Arc<Lab>, body: &str) -> Reply {
    let doc = parse(body)?;
    let vm = root(&doc, &["vm"])?;
    let config = child(vm, "initialization").and_then(|i| child(i, "configuration"));
    let data = config.and_then(|c| text(c, "data")).filter(|d| !d.is_empty());
    let from = match &data {
        Some(data) => Some(ovf::read(data).ok_or_else(|| {
            Refusal::bad("Operation Failed", "Cannot import VM. The OVF is malformed.")
        })?),
        None => None,
    };
    let regenerate =
        child(vm, "initialization").and_then(|i| flag(i, "regenerate_ids")).unwrap_or(false);
    let name = text(vm, "name")
        .or_else(|| from.as_ref().map(|f| f.name.clone()))
        .filter(|n| !n.is_empty());
    let name =
        name.ok_or_else(|| Refusal::bad("Incomplete parameters", "Vm [name] required for add"))?;
    let mut s = lab.state();
    let cluster = child(vm, "cluster").ok_or_else(|| {
        Refusal::bad("Incomplete parameters", "Vm [cluster.id|name] required for add")
    })?;
    let wanted = (id_of(vm, "cluster"), text(cluster, "name"));
    let found =
        s.clusters.iter().find(|c| Some(c.id) == wanted.0 || Some(&c.name) == wanted.1.as_ref());
    let cluster = found.ok_or(Refusal::NotFound)?.id;
    if s.vms.iter().any(|v| v.name == name) {
        return Err(Refusal::conflict(
            "Cannot add VM. The VM name is already in use, please choose a unique name and try again.",
        ));
    }
    let id = match &from {
        Some(f) if !regenerate => f.id.unwrap_or_else(Uuid::new_v4),
        _ => Uuid::new_v4(),
    };
    if s.vm(id).is_some() {
        return Err(Refusal::conflict(
            "Cannot import VM. VM with the same identifier already exists.",
        ));
    }
    let number = |path: &str| text(vm, path).and_then(|t| t.parse::<u64>().ok());
    let center = s.clusters.iter().find(|c| c.id == cluster).map(|c| c.data_center);
    let mut nics = Vec::new();
    for (nic, profile, network) in from.iter().flat_map(|f| &f.nics) {
        // By the names of profile and network; without a match there is no network.
        let of = |id: Uuid| {
            s.networks.iter().any(|n| n.id == id && Some(n.of) == center && n.name == *network)
        };
        let found = s.profiles.iter().find(|p| p.name == *profile && of(p.of)).map(|p| p.id);
        nics.push(Nic { profile: found, ..nic.clone() });
    }
    for nic in &mut nics {
        if regenerate {
            nic.mac = s.new_mac();
        } else if s.mac_taken(&nic.mac) {
            return Err(Refusal::conflict("Cannot import VM. MAC address is already in use."));
        }
    }
    let mut attachments = Vec::new();
    let mut missing = Vec::new();
    for drive in from.iter().flat_map(|f| &f.drives) {
        let free = s.owners(drive.disk).is_empty();
        if s.disk(drive.disk).is_none_or(|d| d.status != "ok") || !free {
            missing.push(drive.disk.to_string());
        } else {
            attachments.push(Attachment {
                disk: drive.disk,
                interface: drive.interface.clone(),
                bootable: drive.bootable,
                active: drive.plugged,
                read_only: false,
                pass_discard: false,
            });
        }
    }
    let topology = ["sockets", "cores", "threads"]
        .map(|k| number(&format!("cpu/topology/{k}")).unwrap_or(1) as u32);
    let mut template = Uuid::nil();
    if from.is_none() {
        let wanted = (id_of(vm, "template"), text(vm, "template/name"));
        if wanted.0.is_none() && wanted.1.is_none() {
            return Err(Refusal::bad(
                "Incomplete parameters",
                "Vm [template.id|name] required for add",
            ));
        }
        let known = s
            .templates
            .iter()
            .find(|t| Some(t.id) == wanted.0 || Some(&t.name) == wanted.1.as_ref());
        let known = known.ok_or(Refusal::NotFound)?.clone();
        if known.status != "ok" {
            return Err(Refusal::conflict("Cannot add VM. The Template is locked."));
        }
        template = known.id;
        for nic in known.nics {
            nics.push(Nic { id: Uuid::new_v4(), mac: s.new_mac(), ..nic });
        }
        let thin = crate::seed::thin_disks(&s, template, &name).map_err(|error| {
            Refusal::Fault(500, "Operation Failed", format!("Cannot add VM: {error:#}"))
        })?;
        for (disk, attachment) in thin {
            s.disks.push(disk);
            attachments.push(attachment);
        }
    }
    let f = from.as_ref();
    let new = Vm {
        id,
        name,
        description: text(vm, "description")
            .or_else(|| f.map(|f| f.description.clone()))
            .unwrap_or_default(),
        comment: text(vm, "comment").unwrap_or_default(),
        status: "image_locked".into(),
        host: None,
        cluster,
        template,
        memory: number("memory").or_else(|| f.map(|f| f.memory)).unwrap_or(1 << 30),
        topology: f.map_or((topology[0], topology[1], topology[2]), |f| f.topology),
        os: text(vm, "os/type")
            .or_else(|| f.map(|f| f.os.clone()))
            .unwrap_or_else(|| "other".into()),
        bios: text(vm, "bios/type")
            .or_else(|| f.map(|f| f.bios.clone()))
            .unwrap_or_else(|| "q35_sea_bios".into()),
        agent: false,
        frozen: false,
        stateless: false,
        delete_protected: false,
        origin: "ovirt".into(),
        created: Timestamp::now(),
        tags: Vec::new(),
        nics,
        attachments,
        snapshots: vec![active()],
        running: Arc::default(),
    };
    let shown = render::vm(&s, &new, &[], None);
    if from.is_some() {
        let (code, severity, rest) = match missing.is_empty() {
            true => (174, "normal", String::new()),
            false => (175, "warning", format!(" Failed to attach disks: {}.", missing.join(", "))),
        };
        let text = format!("VM {} has been imported from the given configuration.{rest}", new.name);
        s.event(code, severity, text, "", Some(id));
    }
    s.vms.push(new);
    drop(s);
    let lab = lab.clone();
    thread::spawn(move || {
        thread::sleep(lab.delay);
        if let Some(v) = lab.state().vm_mut(id) {
            v.status = "down".into();
        }
    });
    Ok((201, shown))
}

/// The entry that every VM has.
pub fn active() -> Snapshot {
    Snapshot {
        id: Uuid::new_v4(),
        description: "Active VM".into(),
        kind: "active",
        status: "ok",
        date: Timestamp::now(),
        disks: Vec::new(),
    }
}
