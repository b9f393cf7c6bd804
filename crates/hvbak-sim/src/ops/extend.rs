//! A disk grows: the top volume only, whether its VM runs or not.

use std::{
    process::Command,
    sync::{Arc, PoisonError},
};

use anyhow::Result;
use uuid::Uuid;

use super::conflict;
use crate::{
    fault::Refusal,
    model::Lab,
    qsd::{GuestDisk, Running},
    storage::run,
};

/// `PUT …/disks/{id}` with a larger `provisioned_size`.
pub fn extend(lab: &Arc<Lab>, disk: Uuid, size: u64) -> Result<(), Refusal> {
    let s = lab.state();
    let d = s.disk(disk).ok_or(Refusal::NotFound)?;
    if size == d.size {
        return Ok(());
    }
    if size < d.size {
        return Err(conflict("Cannot edit Virtual Disk. New disk size must be larger."));
    }
    if d.status != "ok" {
        return Err(conflict(format!(
            "Cannot edit Virtual Disk: The following disks are locked: {}. Please try again in a few minutes.",
            d.alias
        )));
    }
    let guest = s.guest_disk(disk).ok_or(Refusal::NotFound)?;
    let plugged = |v: &&crate::model::Vm| v.attachments.iter().any(|a| a.disk == disk && a.active);
    let running = s.vms.iter().find(plugged).map(|v| v.running.clone());
    drop(s);
    let mut daemon = running.as_ref().map(|r| r.lock().unwrap_or_else(PoisonError::into_inner));
    let daemon = daemon.as_mut().and_then(|d| d.as_mut());
    grow(&guest, size, daemon).map_err(|error| {
        tracing::warn!("extending disk {disk}: {error:#}");
        conflict(format!("Failed to extend: {error:#}"))
    })?;
    if let Some(d) = lab.state().disk_mut(disk) {
        d.size = size;
    }
    Ok(())
}

fn grow(disk: &GuestDisk, size: u64, daemon: Option<&mut Running>) -> Result<()> {
    match daemon {
        Some(daemon) => daemon.resize(disk, size)?,
        None => {
            let raw = disk.domain.is_raw(disk.disk, disk.top)?;
            let path = disk.domain.volume_path(disk.disk, disk.top);
            let format = if raw { "raw" } else { "qcow2" };
            run(Command::new("qemu-img")
                .args(["resize", "-q", "-f", format])
                .arg(path)
                .arg(size.to_string()))?;
        }
    }
    disk.domain.set_meta(disk.disk, disk.top, "CAP", &size.to_string())
}
