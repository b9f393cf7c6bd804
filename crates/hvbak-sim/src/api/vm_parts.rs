//! Attaching disks and adding NICs.

use std::sync::Arc;

use uuid::Uuid;

use super::{Reply, disks::read_disk, parse, root};
use crate::{
    fault::Refusal,
    model::{Attachment, Lab, Nic},
    ops, render,
    xml::{child, flag, id_of, text},
};

pub(super) fn attach(lab: &Arc<Lab>, id: Uuid, body: &str) -> Reply {
    let doc = parse(body)?;
    let a = root(&doc, &["disk_attachment"])?;
    let interface = text(a, "interface").ok_or_else(|| {
        Refusal::bad("Incomplete parameters", "DiskAttachment [interface] required for add")
    })?;
    if !["virtio", "virtio_scsi", "ide", "sata", "spapr_vscsi"].contains(&interface.as_str()) {
        return Err(Refusal::bad(
            "Invalid value",
            format!("{interface} is not a member of DiskInterface"),
        ));
    }
    let inline = child(a, "disk").ok_or_else(|| {
        Refusal::bad("Incomplete parameters", "DiskAttachment [disk] required for add")
    })?;
    let existing: Option<Uuid> = inline.attribute("id").and_then(|t| t.parse().ok());
    let disk = match existing {
        Some(disk) => disk,
        None => {
            let new = read_disk(&lab.state(), inline)?;
            let disk = new.id;
            ops::create_disk(lab, new)?;
            disk
        }
    };
    let mut s = lab.state();
    let d = s.disk(disk).ok_or(Refusal::NotFound)?.clone();
    if existing.is_some() && d.status != "ok" {
        return Err(Refusal::conflict(format!(
            "Cannot attach Virtual Disk: The following disks are locked: {}. Please try again in a few minutes.",
            d.alias
        )));
    }
    let owners = s.owners(disk);
    if owners.contains(&id) || (!owners.is_empty() && !d.shareable) {
        return Err(Refusal::conflict(
            "Cannot attach Virtual Disk. The disk is already attached to a VM.",
        ));
    }
    let guest = s.guest_disk(disk);
    let v = s.vm_mut(id).ok_or(Refusal::NotFound)?;
    if v.status == "image_locked" {
        return Err(Refusal::conflict(
            "Cannot attach Virtual Disk. VM is locked. Please try again in a few minutes.",
        ));
    }
    let bootable = flag(a, "bootable").unwrap_or(false);
    if bootable && v.attachments.iter().any(|x| x.bootable) {
        return Err(Refusal::conflict(
            "Cannot attach Virtual Disk. The VM already has a bootable disk.",
        ));
    }
    let new = Attachment {
        disk,
        interface,
        bootable,
        active: flag(a, "active").unwrap_or(false),
        read_only: flag(a, "read_only").unwrap_or(false),
        pass_discard: flag(a, "pass_discard").unwrap_or(false),
    };
    v.attachments.push(new.clone());
    let running = v.running.clone();
    let shown = render::attachment(&s, &format!("vms/{id}"), &new, false);
    drop(s);
    if new.active && existing.is_some() {
        let mut daemon = running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let (Some(daemon), Some(guest)) = (daemon.as_mut(), guest)
            && let Err(error) = daemon.attach(&guest)
        {
            return Err(Refusal::conflict(format!("Failed to hot-plug disk: {error:#}")));
        }
    }
    Ok((201, shown))
}

pub(super) fn nic(lab: &Lab, id: Uuid, body: &str) -> Reply {
    let doc = parse(body)?;
    let x = root(&doc, &["nic"])?;
    let name = text(x, "name")
        .ok_or_else(|| Refusal::bad("Incomplete parameters", "Nic [name] required for add"))?;
    let mut s = lab.state();
    let mac = match child(x, "mac").and_then(|m| text(m, "address")) {
        Some(mac) if s.mac_taken(&mac) => {
            return Err(Refusal::conflict(format!(
                "Cannot add Network Interface. The MAC address {mac} is already in use."
            )));
        }
        Some(mac) => mac,
        None => s.new_mac(),
    };
    let profile = id_of(x, "vnic_profile");
    if profile.is_some_and(|p| !s.profiles.iter().any(|k| k.id == p)) {
        return Err(Refusal::NotFound);
    }
    let v = s.vm_mut(id).ok_or(Refusal::NotFound)?;
    if v.nics.iter().any(|n| n.name == name) {
        return Err(Refusal::conflict("Cannot add Network Interface. The name is already in use."));
    }
    let new = Nic {
        id: Uuid::new_v4(),
        name,
        interface: text(x, "interface").unwrap_or_else(|| "virtio".into()),
        mac,
        linked: flag(x, "linked").unwrap_or(true),
        plugged: flag(x, "plugged").unwrap_or(true),
        profile,
    };
    v.nics.push(new.clone());
    Ok((201, render::nic(id, &new)))
}
