//! Disks: creating, deleting, plugging into a running VM.

use std::{
    sync::{Arc, PoisonError},
    thread,
};

use uuid::Uuid;

use super::{conflict, is_running};
use crate::{
    fault::Refusal,
    model::{Disk, Lab},
    storage::NewVolume,
};

/// `POST /disks`: the disk is `locked`, then `ok` (or `illegal`).
pub fn create_disk(lab: &Arc<Lab>, disk: Disk) -> Result<(), Refusal> {
    let mut s = lab.state();
    if s.disk(disk.id).is_some() {
        return Err(conflict("Cannot add Virtual Disk. Disk already exists."));
    }
    let domain = s
        .domain(disk.domain)
        .ok_or_else(|| conflict("Cannot add Virtual Disk. Storage Domain doesn't exist."))?
        .clone();
    if domain.available.is_some_and(|a| a >> 30 < 5) {
        return Err(conflict(format!(
            "Cannot add Virtual Disk. Low disk space on Storage Domain {}.",
            domain.name
        )));
    }
    let block = domain.lun.is_some();
    if block && !disk.cow && disk.sparse {
        return Err(conflict(
            "Cannot add Virtual Disk. Disk configuration (RAW Sparse backup-None) is incompatible with the storage domain type.",
        ));
    }
    if disk.cow && !disk.sparse {
        return Err(conflict(
            "Cannot add Virtual Disk. Disk configuration (COW Preallocated backup-None) is incompatible with the storage domain type.",
        ));
    }
    let fails = s.strikes("disk-fails");
    s.disks.push(Disk { status: "locked", ..disk.clone() });
    drop(s);
    let lab = lab.clone();
    thread::spawn(move || {
        thread::sleep(lab.delay);
        let new = NewVolume {
            image: disk.id,
            volume: disk.top,
            parent: None,
            cow: disk.cow,
            preallocated: !disk.sparse,
            capacity: disk.size,
            alias: disk.alias.clone(),
        };
        let made = domain.create_sized(&new, disk.initial_size);
        if let Err(error) = &made {
            tracing::warn!("disk {}: {error:#}", disk.alias);
        }
        if let Some(d) = lab.state().disk_mut(disk.id) {
            d.status = if fails || made.is_err() { "illegal" } else { "ok" };
        }
    });
    Ok(())
}

/// `DELETE /disks/{id}`.
pub fn delete_disk(lab: &Arc<Lab>, id: Uuid) -> Result<(), Refusal> {
    let mut s = lab.state();
    let d = s.disk(id).ok_or(Refusal::NotFound)?.clone();
    if d.status == "locked" {
        return Err(conflict(format!(
            "Cannot remove Virtual Disk: The following disks are locked: {}. Please try again in a few minutes.",
            d.alias
        )));
    }
    if s.templates.iter().any(|t| t.attachments.iter().any(|a| a.disk == id)) {
        return Err(conflict("Cannot remove Virtual Disk. The disk belongs to a Template."));
    }
    for owner in s.owners(id) {
        let Some(v) = s.vm(owner) else { continue };
        if is_running(&v.status) {
            return Err(conflict(
                "Cannot remove Virtual Disk. At least one of the VMs is not down.",
            ));
        }
    }
    if let Some(d) = s.disk_mut(id) {
        d.status = "locked";
    }
    drop(s);
    let lab = lab.clone();
    thread::spawn(move || {
        thread::sleep(lab.delay);
        let mut s = lab.state();
        if let Some(domain) = s.domain(d.domain)
            && let Err(error) = domain.delete_image(id)
        {
            tracing::warn!("deleting disk {}: {error:#}", d.alias);
        }
        s.disks.retain(|x| x.id != id);
        for v in &mut s.vms {
            v.attachments.retain(|a| a.disk != id);
        }
    });
    Ok(())
}

/// Plugs an attached disk in or out; a running VM does it at once.
pub fn plug(lab: &Arc<Lab>, vm: Uuid, disk: Uuid, active: bool) -> Result<(), Refusal> {
    let (running, guest) = {
        let s = lab.state();
        let v = s.vm(vm).ok_or(Refusal::NotFound)?;
        let a = v.attachments.iter().find(|a| a.disk == disk).ok_or(Refusal::NotFound)?;
        if a.active == active {
            return Ok(());
        }
        if s.disk(disk).is_none_or(|d| d.status != "ok")
            || v.snapshots.iter().any(|x| x.status == "locked")
        {
            return Err(conflict(
                "Cannot update Virtual Disk. The following disks are locked. Please try again in a few minutes.",
            ));
        }
        (v.running.clone(), s.guest_disk(disk).ok_or(Refusal::NotFound)?)
    };
    if let Some(daemon) = running.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
        let done = if active { daemon.attach(&guest) } else { daemon.detach(&guest) };
        done.map_err(|e| conflict(format!("Failed to hot-plug disk: {e:#}")))?;
    }
    let mut s = lab.state();
    let v = s.vm_mut(vm).ok_or(Refusal::NotFound)?;
    v.attachments.iter_mut().filter(|a| a.disk == disk).for_each(|a| a.active = active);
    Ok(())
}
