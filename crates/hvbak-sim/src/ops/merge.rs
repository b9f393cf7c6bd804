//! Deleting a snapshot: the merge, and which volume survives it.

use std::{sync::Arc, thread, time::Duration};

use anyhow::{Context, Result};
use uuid::Uuid;

use super::{conflict, is_running, snapshots_free};
use crate::{
    fault::Refusal,
    model::Lab,
    qsd::{GuestDisk, Running},
};

/// One disk's part of the work.
struct Merge {
    disk: GuestDisk,
    parent: Uuid,
    child: Uuid,
    owner: Option<usize>,
    above: Option<Uuid>,
}

impl Merge {
    /// When it `breaks`, the parent has everything and the child stays the active volume.
    fn live(&self, daemon: &mut Running, breaks: bool) -> Result<()> {
        let (child, parent) = (self.child, self.parent);
        let Some(lun) = &self.disk.domain.lun else {
            daemon.merge(&self.disk, child, parent, breaks)?;
            return self.disk.domain.after_merge(self.disk.disk, child, parent, self.above);
        };
        lun.before_live_merge(daemon.host(), child, parent)?;
        daemon.merge(&self.disk, child, parent, breaks)?;
        lun.after_live_merge(daemon.host(), child, parent, self.above)
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
    delete(lab, vm, id, None, correlation)
}

/// `DELETE /storagedomains/{id}/disksnapshots/{volume}`: the same for one disk, which the
/// snapshot does not hold any more afterwards.
pub fn delete_disk_snapshot(lab: &Arc<Lab>, volume: Uuid) -> Result<(), Refusal> {
    let (vm, id, disk) = {
        let s = lab.state();
        let all = s.vms.iter().flat_map(|v| v.snapshots.iter().map(move |x| (v.id, x)));
        let mut disks = all.flat_map(|(vm, x)| x.disks.iter().map(move |d| (vm, x, d)));
        let found = disks.find(|(_, x, d)| d.1 == volume && x.kind == "regular");
        found.map(|(vm, x, d)| (vm, x.id, d.0)).ok_or(Refusal::NotFound)?
    };
    delete(lab, vm, id, Some(disk), String::new())
}

/// Merges a snapshot's disks, or the one that is wanted.
fn delete(
    lab: &Arc<Lab>,
    vm: Uuid,
    id: Uuid,
    only: Option<Uuid>,
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
    snapshots_free(&v, "remove")?;
    let unplugged = |disk: &Uuid| v.attachments.iter().any(|a| a.disk == *disk && !a.active);
    if is_running(&v.status) && snapshot.disks.iter().any(|(disk, _)| unplugged(disk)) {
        return Err(conflict(
            "Cannot remove Snapshot. The VM has disks that are unplugged or unattached: they cannot be merged while the VM runs.",
        ));
    }
    let mut merges = Vec::new();
    for (disk, parent) in snapshot.disks.iter().filter(|(d, _)| only.is_none_or(|o| o == *d)) {
        let Some(guest) = s.guest_disk(*disk) else { continue };
        let (child, owner) = v.above(*disk, index, guest.top);
        let above = owner.map(|i| v.above(*disk, i, guest.top).0);
        merges.push(Merge { disk: guest, parent: *parent, child, owner, above });
    }
    let (fails, breaks) = (s.strikes("merge-fails"), s.strikes("merge-breaks"));
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
        while lab.state().faults.contains_key("merge-waits") {
            thread::sleep(Duration::from_millis(20));
        }
        let mut result = if fails { Err(anyhow::anyhow!("fault")) } else { Ok(()) };
        let mut done = Vec::new();
        if !fails {
            let mut daemon = running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            for m in &merges {
                let merged = match daemon.as_mut() {
                    Some(daemon) => m.live(daemon, breaks),
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
                    let sparse = m.disk.domain.is_sparse(m.disk.disk, m.parent).unwrap_or(true);
                    if let Some(d) = s.disk_mut(m.disk.disk) {
                        d.top = m.parent;
                        d.cow = !raw;
                        d.sparse = sparse;
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
                Ok(()) if only.is_none() => v.snapshots.retain(|x| x.id != id),
                _ => {
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
