//! Long work of the engine: snapshots, merges, disks, power. Each function checks and
//! locks at once, then works in a thread and settles the state.

use std::{sync::Arc, thread};

use anyhow::{Context, Result};
use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    fault::Refusal,
    model::{Disk, Lab, Snapshot, State},
    qsd::{GuestDisk, Running},
    storage::NewVolume,
};

/// Texts and codes as the engine uses them (engine-api §3, §15).
fn conflict(text: impl Into<String>) -> Refusal {
    Refusal::conflict(text)
}

/// Statuses in which a VM's disks are open.
pub fn is_running(status: &str) -> bool {
    matches!(status, "up" | "paused" | "powering_up" | "powering_down" | "reboot_in_progress")
}

/// `POST /vms/{id}/snapshots`.
pub fn create_snapshot(
    lab: &Arc<Lab>,
    vm: Uuid,
    description: String,
    wanted: Option<Vec<(Uuid, Option<Uuid>)>>,
    correlation: String,
) -> Result<Uuid, Refusal> {
    let mut s = lab.state();
    let v = s.vm(vm).ok_or(Refusal::NotFound)?.clone();
    if v.snapshots.iter().any(|x| x.status == "locked") {
        return Err(conflict(
            "Cannot create Snapshot. The VM is performing an operation on a Snapshot. Please wait for the operation to finish, and try again.",
        ));
    }
    if v.snapshots.iter().any(|x| x.status == "in_preview") {
        return Err(conflict("Cannot create Snapshot. VM is previewing a Snapshot."));
    }
    if !is_running(&v.status) && v.status != "down" {
        return Err(conflict(format!("Cannot create Snapshot. The VM is in {} status.", v.status)));
    }
    if v.stateless && is_running(&v.status) {
        return Err(conflict("Cannot create Snapshot. VM is running as stateless."));
    }
    let mut chosen = Vec::new();
    for a in &v.attachments {
        let Some(d) = s.disk(a.disk) else { continue };
        if d.storage_type != "image" || d.shareable {
            continue;
        }
        let new = match &wanted {
            None => Some(None),
            Some(list) => list.iter().find(|(id, _)| *id == a.disk).map(|(_, image)| *image),
        };
        if let Some(image) = new {
            if d.status != "ok" {
                return Err(conflict(format!(
                    "Cannot create Snapshot: The following disks are locked: {}. Please try again in a few minutes.",
                    d.alias
                )));
            }
            if let Some(domain) = s.domain(d.domain)
                && domain.available.is_some_and(|a| a >> 30 < 5)
            {
                return Err(conflict(format!(
                    "Cannot create Snapshot. Low disk space on Storage Domain {}.",
                    domain.name
                )));
            }
            chosen.push((a.disk, image.unwrap_or_else(Uuid::new_v4)));
        }
    }
    let fails = s.strikes("snapshot-fails");
    let live_fails = s.strikes("snapshot-live-fails");
    for (disk, _) in &chosen {
        if let Some(d) = s.disk_mut(*disk) {
            d.status = "locked";
        }
    }
    s.event(
        45,
        "normal",
        format!(
            "Snapshot '{description}' creation for VM '{}' was initiated by admin@internal-authz.",
            v.name
        ),
        &correlation,
        Some(vm),
    );
    let old: Vec<_> = chosen.iter().filter_map(|(disk, _)| s.guest_disk(*disk)).collect();
    let Some(v) = s.vm_mut(vm) else { return Err(Refusal::NotFound) };
    // The returned id is the one that the active entry had; the active gets a new one.
    let Some(active) = v.snapshots.last_mut() else { return Err(Refusal::NotFound) };
    let id = active.id;
    active.id = Uuid::new_v4();
    let at = v.snapshots.len() - 1;
    v.snapshots.insert(
        at,
        Snapshot {
            id,
            description: description.clone(),
            kind: "regular",
            status: "locked",
            date: Timestamp::now(),
            disks: Vec::new(),
        },
    );
    let (running, name) = (v.running.clone(), v.name.clone());
    drop(s);
    let lab = lab.clone();
    thread::spawn(move || {
        thread::sleep(lab.delay);
        let pairs: Vec<(GuestDisk, Uuid)> =
            old.into_iter().zip(chosen.iter().map(|(_, new)| *new)).collect();
        let made = if fails {
            Err(anyhow::anyhow!("fault"))
        } else {
            layers(&pairs, &running, live_fails)
        };
        let mut s = lab.state();
        for (disk, _) in &pairs {
            if let Some(d) = s.disk_mut(disk.disk) {
                d.status = "ok";
            }
        }
        let text =
            |what: &str| format!("Snapshot '{description}' creation for VM '{name}' {what}.");
        match made {
            Ok(()) => {
                for (disk, new) in &pairs {
                    if let Some(d) = s.disk_mut(disk.disk) {
                        d.top = *new;
                        d.cow = true;
                        d.sparse = true;
                    }
                }
                if live_fails {
                    s.event(170, "warning", format!("Snapshot '{description}' creation for VM '{name}' was completed, but the VM must be restarted to use it."), &correlation, Some(vm));
                } else {
                    s.event(68, "normal", text("has been completed"), &correlation, Some(vm));
                }
                if let Some(v) = s.vm_mut(vm)
                    && let Some(x) = v.snapshots.iter_mut().find(|x| x.id == id)
                {
                    x.status = "ok";
                    x.disks = pairs.iter().map(|(d, _)| (d.disk, d.top)).collect();
                    v.frozen = false; // vdsm thaws unconditionally
                }
            }
            Err(error) => {
                tracing::warn!("snapshot of {name}: {error:#}");
                s.event(69, "error", text("has failed"), &correlation, Some(vm));
                if let Some(v) = s.vm_mut(vm) {
                    v.snapshots.retain(|x| x.id != id);
                }
            }
        }
    });
    Ok(id)
}

fn layers(
    pairs: &[(GuestDisk, Uuid)],
    running: &std::sync::Mutex<Option<Running>>,
    live_fails: bool,
) -> Result<()> {
    let mut daemon = running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for (disk, new) in pairs {
        disk.domain.create_volume(&NewVolume {
            image: disk.disk,
            volume: *new,
            parent: Some(disk.top),
            cow: true,
            preallocated: false,
            capacity: disk.domain.meta(disk.disk, disk.top, "CAP")?.parse()?,
            alias: String::new(),
        })?;
    }
    match daemon.as_mut() {
        Some(daemon) if !live_fails => daemon.snapshot(pairs),
        _ => Ok(()),
    }
}

/// `DELETE /vms/{id}/snapshots/{s}`: each disk's child is committed into the snapshot's
/// volume, which survives and goes to the next newer owner (engine-api §9.1).
pub fn delete_snapshot(
    lab: &Arc<Lab>,
    vm: Uuid,
    id: Uuid,
    correlation: String,
) -> Result<(), Refusal> {
    let mut s = lab.state();
    let v = s.vm(vm).ok_or(Refusal::NotFound)?.clone();
    let index = v.snapshots.iter().position(|x| x.id == id).ok_or(Refusal::NotFound)?;
    let snapshot = v.snapshots[index].clone();
    if snapshot.kind != "regular" {
        return Err(conflict(
            "Cannot remove Snapshot. This operation is only allowed for regular snapshots.",
        ));
    }
    if v.snapshots.iter().any(|x| x.status == "locked") {
        return Err(conflict(
            "Cannot remove Snapshot. The VM is performing an operation on a Snapshot. Please wait for the operation to finish, and try again.",
        ));
    }
    if !is_running(&v.status) && v.status != "down" {
        return Err(conflict(format!("Cannot remove Snapshot. The VM is in {} status.", v.status)));
    }
    struct Merge {
        disk: GuestDisk,
        parent: Uuid,
        child: Uuid,
        owner: Option<usize>,
        above: Option<Uuid>,
    }
    let mut merges = Vec::new();
    for (disk, parent) in &snapshot.disks {
        let Some(guest) = s.guest_disk(*disk) else { continue };
        let (child, owner) = v.above(*disk, index, guest.top);
        let above = owner.map(|i| v.above(*disk, i, guest.top).0);
        merges.push(Merge { disk: guest, parent: *parent, child, owner, above });
    }
    let fails = s.strikes("merge-fails");
    if let Some(x) = s.vm_mut(vm).and_then(|v| v.snapshots.get_mut(index)) {
        x.status = "locked";
    }
    s.event(
        342,
        "normal",
        format!(
            "Snapshot '{}' deletion for VM '{}' was initiated by admin@internal-authz.",
            snapshot.description, v.name
        ),
        &correlation,
        Some(vm),
    );
    drop(s);
    let (lab, running) = (lab.clone(), v.running.clone());
    thread::spawn(move || {
        thread::sleep(lab.delay);
        let mut result = if fails { Err(anyhow::anyhow!("fault")) } else { Ok(()) };
        let mut done = Vec::new();
        if !fails {
            let mut daemon = running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            for m in &merges {
                let merged = match daemon.as_mut() {
                    Some(daemon) => daemon.merge(&m.disk, m.child, m.parent).and_then(|()| {
                        m.disk.domain.after_merge(m.disk.disk, m.child, m.parent, m.above)
                    }),
                    None => m.disk.domain.cold_merge(m.disk.disk, m.child, m.parent, m.above),
                };
                match merged.with_context(|| format!("merge disk {}", m.disk.disk)) {
                    Ok(()) => done.push(m),
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                }
            }
        }
        let mut s = lab.state();
        for m in &done {
            match m.owner {
                Some(owner) => {
                    let owned = s.vm_mut(vm).and_then(|v| v.snapshots.get_mut(owner));
                    if let Some(entry) =
                        owned.and_then(|x| x.disks.iter_mut().find(|(d, _)| *d == m.disk.disk))
                    {
                        entry.1 = m.parent;
                    }
                }
                None => {
                    let raw = m.disk.domain.is_raw(m.disk.disk, m.parent).unwrap_or(false);
                    if let Some(d) = s.disk_mut(m.disk.disk) {
                        d.top = m.parent;
                        d.cow = !raw;
                    }
                }
            }
        }
        let text =
            |what: &str| format!("Snapshot '{}' {what} for VM '{}'.", snapshot.description, v.name);
        if let Err(error) = &result {
            tracing::warn!("deleting a snapshot of {}: {error:#}", v.name);
            s.event(357, "error", text("deletion failed"), &correlation, Some(vm));
        } else {
            s.event(356, "normal", text("deletion has been completed"), &correlation, Some(vm));
        }
        if let Some(v) = s.vm_mut(vm) {
            match result {
                Ok(()) => v.snapshots.retain(|x| x.id != id),
                Err(_) => {
                    if let Some(x) = v.snapshots.iter_mut().find(|x| x.id == id) {
                        x.status = "ok";
                        // What was merged already is no more the snapshot's.
                        x.disks.retain(|(d, _)| !done.iter().any(|m| m.disk.disk == *d));
                    }
                }
            }
        }
    });
    Ok(())
}

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
        let made = domain.create_volume(&NewVolume {
            image: disk.id,
            volume: disk.top,
            parent: None,
            cow: disk.cow,
            preallocated: !disk.sparse,
            capacity: disk.size,
            alias: disk.alias.clone(),
        });
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

/// Starts a VM's daemon; done when it returns.
pub fn start(lab: &Arc<Lab>, vm: Uuid) -> Result<(), Refusal> {
    let mut s = lab.state();
    let v = s.vm(vm).ok_or(Refusal::NotFound)?.clone();
    if v.status != "down" {
        return Err(conflict("Cannot run VM. VM is running."));
    }
    if v.snapshots.iter().any(|x| x.status == "locked") {
        return Err(conflict("Cannot run VM. VM is locked. Please try again in a few minutes."));
    }
    let disks: Vec<_> =
        v.attachments.iter().filter(|a| a.active).filter_map(|a| s.guest_disk(a.disk)).collect();
    let center = s.clusters.iter().find(|c| c.id == v.cluster).map(|c| c.data_center);
    let host = s.hosts.iter().find(|h| {
        h.status == "up"
            && s.clusters.iter().any(|c| c.id == h.cluster && Some(c.data_center) == center)
    });
    let Some(host) = host.map(|h| h.id) else {
        return Err(conflict(
            "Cannot run VM. There is no host that satisfies current scheduling constraints.",
        ));
    };
    set_status(&mut s, vm, "powering_up", Some(host));
    drop(s);
    let lab = lab.clone();
    thread::spawn(move || {
        thread::sleep(lab.delay);
        let started = Running::start(&lab.vm_dir(vm), &disks);
        let mut daemon = v.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut s = lab.state();
        match started {
            Ok(running) => {
                *daemon = Some(running);
                set_status(&mut s, vm, "up", Some(host));
            }
            Err(error) => {
                tracing::warn!("starting {}: {error:#}", v.name);
                s.event(
                    119,
                    "error",
                    format!("VM {} is down with error. Exit message: {error:#}.", v.name),
                    "",
                    Some(vm),
                );
                set_status(&mut s, vm, "down", None);
            }
        }
    });
    Ok(())
}

/// Powers a VM off.
pub fn stop(lab: &Arc<Lab>, vm: Uuid) -> Result<(), Refusal> {
    let mut s = lab.state();
    let v = s.vm(vm).ok_or(Refusal::NotFound)?.clone();
    if !is_running(&v.status) {
        return Err(conflict("Cannot stop VM. VM is not running."));
    }
    set_status(&mut s, vm, "powering_down", v.host);
    drop(s);
    let lab = lab.clone();
    thread::spawn(move || {
        let mut daemon = v.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *daemon = None;
        set_status(&mut lab.state(), vm, "down", None);
    });
    Ok(())
}

fn set_status(s: &mut State, vm: Uuid, status: &str, host: Option<Uuid>) {
    if let Some(v) = s.vm_mut(vm) {
        v.status = status.into();
        v.host = host;
    }
}
