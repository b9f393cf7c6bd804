//! Preview of a snapshot, as far as others see it: the entries and what they forbid.
//! The disks stay as they are; no test of a backup reads a previewed VM.

use std::sync::Arc;

use jiff::Timestamp;
use uuid::Uuid;

use super::{conflict, snapshots_free};
use crate::{
    fault::Refusal,
    model::{Lab, Snapshot},
};

/// `POST /vms/{id}/previewsnapshot`.
pub fn preview(lab: &Arc<Lab>, vm: Uuid, snapshot: Uuid) -> Result<(), Refusal> {
    let mut s = lab.state();
    let v = s.vm_mut(vm).ok_or(Refusal::NotFound)?;
    snapshots_free(v, "preview")?;
    if v.status != "down" {
        return Err(conflict("Cannot preview Snapshot. VM is not down."));
    }
    let regular = v.snapshots.iter_mut().find(|x| x.id == snapshot && x.kind == "regular");
    regular.ok_or(Refusal::NotFound)?.status = "in_preview";
    let at = v.snapshots.len() - 1;
    v.snapshots.insert(
        at,
        Snapshot {
            id: Uuid::new_v4(),
            description: "Active VM before the preview".into(),
            kind: "preview",
            status: "ok",
            date: Timestamp::now(),
            disks: Vec::new(),
        },
    );
    Ok(())
}

/// `POST /vms/{id}/undosnapshot`.
pub fn undo(lab: &Arc<Lab>, vm: Uuid) -> Result<(), Refusal> {
    let mut s = lab.state();
    let v = s.vm_mut(vm).ok_or(Refusal::NotFound)?;
    if !v.snapshots.iter().any(|x| x.status == "in_preview") {
        return Err(conflict("Cannot revert to Snapshot. There is no Snapshot in preview."));
    }
    v.snapshots.retain(|x| x.kind != "preview");
    v.snapshots.iter_mut().for_each(|x| x.status = "ok");
    Ok(())
}
