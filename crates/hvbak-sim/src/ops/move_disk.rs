//! A disk moves to another domain: same image and volume ids, new place.
//!
//! Cold moves copy the files. Of a live move the lab does what can be seen from outside
//! before and after it (same ids elsewhere); the guest is switched over by closing and
//! opening its disk, which an engine does by mirroring. As between file and block domains a
//! raw base may become qcow2 or preallocated on the way.

use std::{
    process::Command,
    sync::{Arc, PoisonError},
    thread,
};

use anyhow::{Context, Result};
use uuid::Uuid;

use super::conflict;
use crate::{
    fault::Refusal,
    model::Lab,
    qsd::{GuestDisk, Running},
    storage::{Domain, run},
};

/// `POST /disks/{id}/move`.
pub fn move_disk(lab: &Arc<Lab>, disk: Uuid, to: Uuid) -> Result<(), Refusal> {
    let mut s = lab.state();
    let target = s.domain(to).ok_or(Refusal::NotFound)?.clone();
    let guest = s.guest_disk(disk).ok_or(Refusal::NotFound)?;
    let d = s.disk_mut(disk).ok_or(Refusal::NotFound)?;
    if d.status != "ok" {
        return Err(conflict(format!(
            "Cannot move Virtual Disk: The following disks are locked: {}. Please try again in a few minutes.",
            d.alias
        )));
    }
    if d.domain == to {
        return Err(conflict("Cannot move Virtual Disk. Source and target domains are the same."));
    }
    d.status = "locked";
    let change = if s.strikes("move-makes-cow") {
        Some(true)
    } else {
        s.strikes("move-preallocates").then_some(false)
    };
    let plugged = |v: &&crate::model::Vm| v.attachments.iter().any(|a| a.disk == disk && a.active);
    let running = s.vms.iter().find(plugged).map(|v| v.running.clone());
    drop(s);
    let lab = lab.clone();
    thread::spawn(move || {
        thread::sleep(lab.delay);
        let mut held = running.as_ref().map(|r| r.lock().unwrap_or_else(PoisonError::into_inner));
        let moved = carry(&guest, &target, change, held.as_mut().and_then(|d| d.as_mut()));
        let mut s = lab.state();
        if let (Ok(base), Some(cow)) = (&moved, change) {
            s.raw.insert(*base, !cow);
        }
        if let Some(d) = s.disk_mut(disk) {
            d.status = "ok";
            match moved {
                Ok(base) => {
                    d.domain = to;
                    if base == d.top
                        && let Some(cow) = change
                    {
                        (d.cow, d.sparse) = (cow, cow);
                    }
                }
                Err(error) => tracing::warn!("moving disk {}: {error:#}", d.alias),
            }
        }
    });
    Ok(())
}

/// Gives the oldest volume. `change`: what a raw one becomes, qcow2 or preallocated.
fn carry(
    guest: &GuestDisk,
    target: &Domain,
    change: Option<bool>,
    mut daemon: Option<&mut Running>,
) -> Result<Uuid> {
    if let Some(daemon) = daemon.as_mut() {
        daemon.detach(guest)?;
    }
    let dir = |domain: &Domain| {
        let path = domain.volume_path(guest.disk, guest.top);
        path.parent().map(std::path::Path::to_owned).context("a volume lies in a directory")
    };
    let (from, to) = (dir(&guest.domain)?, dir(target)?);
    run(Command::new("cp").args(["-a", "--sparse=always"]).arg(&from).arg(&to))?;
    let moved = GuestDisk { domain: target.clone(), ..guest.clone() };
    for volume in target.chain(guest.disk, guest.top)? {
        target.set_meta(guest.disk, volume, "DOMAIN", &target.id.to_string())?;
    }
    let chain = target.chain(guest.disk, guest.top)?;
    let base = *chain.last().context("a chain has a volume")?;
    if let Some(cow) = change {
        target.change_base(guest.disk, &chain, cow)?;
    }
    if let Some(daemon) = daemon {
        daemon.attach(&moved)?;
    }
    guest.domain.delete_image(guest.disk)?;
    Ok(base)
}
