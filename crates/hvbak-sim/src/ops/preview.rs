//! Preview of a snapshot, with real volumes: a new leaf over the older volume beside the
//! branch that was active; commit deletes that branch, undo deletes the leaf
//! (hypervisor.md §13.4).

use std::{collections::HashSet, sync::Arc};

use anyhow::Result;
use jiff::Timestamp;
use uuid::Uuid;

use super::{conflict, snapshots_free};
use crate::{
    fault::Refusal,
    model::{Lab, Snapshot, State},
    qsd::GuestDisk,
    storage::NewVolume,
};

/// `POST /vms/{id}/previewsnapshot`.
pub fn preview(lab: &Arc<Lab>, vm: Uuid, snapshot: Uuid) -> Result<(), Refusal> {
    let mut s = lab.state();
    let v = s.vm(vm).ok_or(Refusal::NotFound)?;
    snapshots_free(v, "preview")?;
    if v.status != "down" {
        return Err(conflict("Cannot preview Snapshot. VM is not down."));
    }
    let regular = v.snapshots.iter().find(|x| x.id == snapshot && x.kind == "regular");
    let wanted = regular.ok_or(Refusal::NotFound)?.disks.clone();
    let mut old = Vec::new();
    for (disk, volume) in wanted {
        let Some(guest) = s.guest_disk(disk) else { continue };
        let leaf = Uuid::new_v4();
        branch(&guest, volume, leaf).map_err(failed)?;
        old.push((disk, guest.top));
        if let Some(d) = s.disk_mut(disk) {
            (d.top, d.cow, d.sparse) = (leaf, true, true);
        }
    }
    let v = s.vm_mut(vm).ok_or(Refusal::NotFound)?;
    v.snapshots.iter_mut().filter(|x| x.id == snapshot).for_each(|x| x.status = "in_preview");
    let at = v.snapshots.len() - 1;
    v.snapshots.insert(
        at,
        Snapshot {
            id: Uuid::new_v4(),
            description: "Active VM before the preview".into(),
            kind: "preview",
            status: "ok",
            date: Timestamp::now(),
            disks: old,
        },
    );
    Ok(())
}

fn failed(error: anyhow::Error) -> Refusal {
    conflict(format!("Failed to preview Snapshot: {error:#}"))
}

/// A leaf over `volume`, which may have another child already.
fn branch(guest: &GuestDisk, volume: Uuid, leaf: Uuid) -> Result<()> {
    guest.domain.create_volume(&NewVolume {
        image: guest.disk,
        volume: leaf,
        parent: Some(volume),
        cow: true,
        preallocated: false,
        capacity: guest.domain.meta(guest.disk, volume, "CAP")?.parse()?,
        alias: String::new(),
    })
}

/// `POST /vms/{id}/undosnapshot`.
pub fn undo(lab: &Arc<Lab>, vm: Uuid) -> Result<(), Refusal> {
    let mut s = lab.state();
    let before = previewed(&s, vm, "revert to")?.1;
    for (disk, top) in before.disks {
        let Some(guest) = s.guest_disk(disk) else { continue };
        guest.domain.delete_volume(disk, guest.top).map_err(failed)?;
        set_top(&mut s, disk, top).map_err(failed)?;
    }
    let v = s.vm_mut(vm).ok_or(Refusal::NotFound)?;
    v.snapshots.retain(|x| x.kind != "preview");
    v.snapshots.iter_mut().for_each(|x| x.status = "ok");
    Ok(())
}

/// `POST /vms/{id}/commitsnapshot`: the branch that was active goes, with its snapshots.
pub fn commit(lab: &Arc<Lab>, vm: Uuid) -> Result<(), Refusal> {
    let mut s = lab.state();
    let (target, before) = previewed(&s, vm, "commit")?;
    for (disk, top) in &before.disks {
        let Some(guest) = s.guest_disk(*disk) else { continue };
        let chain = |from| guest.domain.chain(*disk, from);
        let stays: HashSet<Uuid> = chain(guest.top).map_err(failed)?.into_iter().collect();
        for volume in chain(*top).map_err(failed)? {
            if !stays.contains(&volume) {
                guest.domain.delete_volume(*disk, volume).map_err(failed)?;
            }
        }
        // It may have grown since; the guest sees the older size again.
        set_top(&mut s, *disk, guest.top).map_err(failed)?;
    }
    let v = s.vm_mut(vm).ok_or(Refusal::NotFound)?;
    let at = v.snapshots.iter().position(|x| x.id == target.id).ok_or(Refusal::NotFound)?;
    let mut index = 0;
    v.snapshots.retain(|x| {
        index += 1;
        index <= at + 1 || x.kind == "active"
    });
    v.snapshots.iter_mut().for_each(|x| x.status = "ok");
    Ok(())
}

/// The snapshot in preview, and the entry of what was active before.
fn previewed(s: &State, vm: Uuid, action: &str) -> Result<(Snapshot, Snapshot), Refusal> {
    let v = s.vm(vm).ok_or(Refusal::NotFound)?;
    let find = |wanted: &dyn Fn(&Snapshot) -> bool| v.snapshots.iter().find(|x| wanted(x)).cloned();
    find(&|x| x.status == "in_preview").zip(find(&|x| x.kind == "preview")).ok_or_else(|| {
        conflict(format!("Cannot {action} Snapshot. There is no Snapshot in preview."))
    })
}

fn set_top(s: &mut State, disk: Uuid, top: Uuid) -> Result<()> {
    let Some(guest) = s.guest_disk(disk) else { return Ok(()) };
    let size = guest.domain.meta(disk, top, "CAP")?.parse()?;
    let (raw, sparse) = (guest.domain.is_raw(disk, top)?, guest.domain.is_sparse(disk, top)?);
    if let Some(d) = s.disk_mut(disk) {
        (d.top, d.size, d.cow, d.sparse) = (top, size, !raw, sparse);
    }
    Ok(())
}
