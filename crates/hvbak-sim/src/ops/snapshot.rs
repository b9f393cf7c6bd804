//! Creating a snapshot: a new layer per disk, live or not.

use std::{sync::Arc, thread};

use anyhow::Result;
use jiff::Timestamp;
use uuid::Uuid;

use super::{conflict, is_running, snapshots_free};
use crate::{
    fault::Refusal,
    model::{Lab, Snapshot},
    qsd::{GuestDisk, Running},
    storage::NewVolume,
};

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
    snapshots_free(&v, "create")?;
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
            chosen.push((a.disk, image.unwrap_or_else(Uuid::new_v4), d.size));
        }
    }
    let fails = s.strikes("snapshot-fails");
    let live_fails = s.strikes("snapshot-live-fails");
    for (disk, ..) in &chosen {
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
    let old: Vec<_> = chosen.iter().filter_map(|(disk, ..)| s.guest_disk(*disk)).collect();
    let plugged: Vec<Uuid> = v.attachments.iter().filter(|a| a.active).map(|a| a.disk).collect();
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
            old.into_iter().zip(chosen.iter().map(|(_, new, _)| *new)).collect();
        let sizes: Vec<u64> = chosen.iter().map(|(.., size)| *size).collect();
        let made = if fails {
            Err(anyhow::anyhow!("fault"))
        } else {
            layers(&pairs, &sizes, &plugged, &running, live_fails)
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
                        let raw = !d.cow;
                        d.top = *new;
                        d.cow = true;
                        d.sparse = true;
                        s.raw.insert(disk.top, raw);
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

/// Makes the new layers, as large as the engine has the disks, and switches a running VM
/// over.
fn layers(
    pairs: &[(GuestDisk, Uuid)],
    sizes: &[u64],
    plugged: &[Uuid],
    running: &std::sync::Mutex<Option<Running>>,
    live_fails: bool,
) -> Result<()> {
    let mut daemon = running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for ((disk, new), size) in pairs.iter().zip(sizes) {
        disk.domain.create_volume(&NewVolume {
            image: disk.disk,
            volume: *new,
            parent: Some(disk.top),
            cow: true,
            preallocated: false,
            capacity: *size,
            alias: String::new(),
        })?;
    }
    match daemon.as_mut() {
        Some(daemon) if !live_fails => {
            // An unplugged disk gets its layer; there is nothing to switch.
            let open: Vec<_> =
                pairs.iter().filter(|(d, _)| plugged.contains(&d.disk)).cloned().collect();
            daemon.snapshot(&open)
        }
        _ => Ok(()),
    }
}
