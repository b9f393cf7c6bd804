//! Templates: made from a VM that is down by copying each disk into one volume that is shared
//! from then on (vdsm: VOLTYPE SHARED), and deleted with their disks.
//!
//! While its disks are copied the template and the VM are locked, as in the engine
//! (`AddVmTemplateCommand`); one whose copying fails is gone afterwards and the VM is free.
//! The lab copies no LVs: a template on a block domain is refused.

use std::{collections::HashMap, process::Command, sync::Arc, thread};

use anyhow::{Context, Result};
use uuid::Uuid;

use super::conflict;
use crate::{
    fault::Refusal,
    model::{Attachment, Disk, Lab, Template},
    storage::{Domain, NewVolume, run},
};

/// A disk that is copied: from where, and what becomes of it.
struct Copy {
    domain: Domain,
    from: Disk,
    to: Disk,
    attachment: Attachment,
}

/// `POST /templates`: `new` holds what the request and the VM say of it, without disks.
/// `described`: descriptions that the request gives to the copies of the VM's disks.
pub fn create_template(
    lab: &Arc<Lab>,
    vm: Uuid,
    new: Template,
    described: &HashMap<Uuid, String>,
) -> Result<(), Refusal> {
    let mut s = lab.state();
    let v = s.vm(vm).ok_or(Refusal::NotFound)?.clone();
    if v.status != "down" {
        return Err(conflict(
            "Cannot add Template. VM is locked or still running, try again once VM is in the Down state.",
        ));
    }
    if s.templates.iter().any(|t| t.name == new.name) {
        return Err(conflict(
            "Cannot add Template. The Template name is already in use, please choose a unique name and try again.",
        ));
    }
    let mut copies = Vec::new();
    for a in &v.attachments {
        // A template can only have disk images (`BackendTemplatesResource`).
        let Some(from) = s.disk(a.disk).filter(|d| d.storage_type == "image").cloned() else {
            continue;
        };
        if from.status != "ok" {
            return Err(conflict(format!(
                "Cannot add Template: The following disks are locked: {}. Please try again in a few minutes.",
                from.alias
            )));
        }
        let domain = s.domain(from.domain).ok_or(Refusal::NotFound)?.clone();
        if domain.lun.is_some() {
            return Err(conflict("Cannot add Template. The lab copies no LVs."));
        }
        let to = Disk {
            id: Uuid::new_v4(),
            top: Uuid::new_v4(),
            status: "locked",
            description: described.get(&a.disk).unwrap_or(&from.description).clone(),
            ..from.clone()
        };
        let attachment = Attachment { disk: to.id, ..a.clone() };
        copies.push(Copy { domain, from, to, attachment });
    }
    let fails = s.strikes("template-fails");
    let id = new.id;
    s.disks.extend(copies.iter().map(|c| c.to.clone()));
    let attachments = copies.iter().map(|c| c.attachment.clone()).collect();
    s.templates.push(Template { attachments, status: "locked", ..new });
    if let Some(v) = s.vm_mut(vm) {
        v.status = "image_locked".into();
    }
    drop(s);
    let lab = lab.clone();
    thread::spawn(move || {
        thread::sleep(lab.delay);
        while lab.state().faults.get("template-waits").is_some_and(|left| *left > 0) {
            thread::sleep(lab.delay);
        }
        let made = copies.iter().try_for_each(copy);
        if let Err(error) = &made {
            tracing::warn!("template {id}: {error:#}");
        }
        if fails || made.is_err() {
            for c in &copies {
                let _ = c.domain.delete_image(c.to.id);
            }
        }
        let mut s = lab.state();
        if fails || made.is_err() {
            s.templates.retain(|t| t.id != id);
            s.disks.retain(|d| !copies.iter().any(|c| c.to.id == d.id));
        }
        for c in &copies {
            if let Some(d) = s.disk_mut(c.to.id) {
                d.status = "ok";
            }
        }
        if let Some(t) = s.templates.iter_mut().find(|t| t.id == id) {
            t.status = "ok";
        }
        if let Some(v) = s.vm_mut(vm) {
            v.status = "down".into();
        }
    });
    Ok(())
}

/// The chain of a disk becomes one volume of the top one's format.
fn copy(c: &Copy) -> Result<()> {
    let (from, to) = (&c.from, &c.to);
    c.domain.create_volume(&NewVolume {
        image: to.id,
        volume: to.top,
        parent: None,
        cow: to.cow,
        preallocated: !to.sparse,
        capacity: to.size,
        alias: to.alias.clone(),
    })?;
    let format = if from.cow { "qcow2" } else { "raw" };
    // Into the file that is there, so that owner and mode stay.
    run(Command::new("qemu-img")
        .args(["convert", "-n", "-f", format, "-O", format])
        .arg(c.domain.volume_path(from.id, from.top))
        .arg(c.domain.volume_path(to.id, to.top)))
    .with_context(|| format!("copy disk {}", from.alias))?;
    c.domain.set_meta(to.id, to.top, "VOLTYPE", "SHARED")
}

/// `DELETE /templates/{id}`.
pub fn delete_template(lab: &Arc<Lab>, id: Uuid) -> Result<(), Refusal> {
    let mut s = lab.state();
    let t = s.templates.iter().find(|t| t.id == id).ok_or(Refusal::NotFound)?.clone();
    if id.is_nil() {
        return Err(conflict("Cannot remove Template. The Blank Template cannot be removed."));
    }
    if t.status != "ok" {
        return Err(conflict(
            "Cannot remove Template. The Template is locked. Please try again in a few minutes.",
        ));
    }
    let thin: Vec<_> = s.vms.iter().filter(|v| v.template == id).map(|v| v.name.clone()).collect();
    if !thin.is_empty() {
        return Err(conflict(format!(
            "Cannot remove Template. The following VMs are based on it: {}.",
            thin.join(", ")
        )));
    }
    for a in &t.attachments {
        if let Some(d) = s.disk_mut(a.disk) {
            d.status = "locked";
        }
    }
    if let Some(t) = s.templates.iter_mut().find(|t| t.id == id) {
        t.status = "locked";
    }
    drop(s);
    let lab = lab.clone();
    thread::spawn(move || {
        thread::sleep(lab.delay);
        let mut s = lab.state();
        for a in &t.attachments {
            let domain = s.disk(a.disk).and_then(|d| s.domain(d.domain));
            if let Some(Err(error)) = domain.map(|d| d.delete_image(a.disk)) {
                tracing::warn!("deleting template {}: {error:#}", t.name);
            }
        }
        s.disks.retain(|d| !t.attachments.iter().any(|a| a.disk == d.id));
        s.templates.retain(|t| t.id != id);
    });
    Ok(())
}
