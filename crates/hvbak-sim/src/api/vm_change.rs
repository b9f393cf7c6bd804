//! Everything that changes a VM that is there.

use std::sync::Arc;

use uuid::Uuid;

use super::{
    Reply, Request, done, parse, root, uuid,
    vm_parts::{attach, nic},
};
use crate::{
    fault::Refusal,
    model::Lab,
    ops, render,
    xml::{child, flag, id_of, text},
};

pub(super) fn change(
    lab: &Arc<Lab>,
    q: &Request,
    id: Uuid,
    parts: &[&str],
    body: &str,
    correlation: &str,
) -> Reply {
    if lab.state().vm(id).is_none() {
        return Err(Refusal::NotFound);
    }
    match (q.method.as_str(), parts) {
        ("PUT", []) => {
            let doc = parse(body)?;
            let vm = root(&doc, &["vm"])?;
            let mut s = lab.state();
            if let Some(name) = text(vm, "name")
                && s.vms.iter().any(|v| v.name == name && v.id != id)
            {
                return Err(Refusal::conflict(
                    "Cannot edit VM. The VM name is already in use, please choose a unique name and try again.",
                ));
            }
            let v = s.vm_mut(id).ok_or(Refusal::NotFound)?;
            for (path, field) in [
                ("name", &mut v.name),
                ("description", &mut v.description),
                ("comment", &mut v.comment),
            ] {
                if let Some(value) = text(vm, path) {
                    *field = value;
                }
            }
            if let Some(value) = flag(vm, "delete_protected") {
                v.delete_protected = value;
            }
            let v = s.vm(id).ok_or(Refusal::NotFound)?;
            Ok((200, render::vm(&s, v, &[], None)))
        }
        ("DELETE", []) => {
            vm_delete(lab, id, q.query.get("detach_only").is_some_and(|v| v == "true"))
        }
        ("POST", ["start"]) => ops::start(lab, id).and_then(|()| done()),
        ("POST", ["suspend"]) => ops::suspend(lab, id).and_then(|()| done()),
        ("POST", ["previewsnapshot"]) => {
            let doc = parse(body)?;
            let snapshot = id_of(root(&doc, &["action"])?, "snapshot").ok_or_else(|| {
                Refusal::bad("Incomplete parameters", "Action [snapshot.id] required")
            })?;
            ops::preview(lab, id, snapshot).and_then(|()| done())
        }
        ("POST", ["undosnapshot"]) => ops::undo(lab, id).and_then(|()| done()),
        ("POST", ["commitsnapshot"]) => ops::commit(lab, id).and_then(|()| done()),
        ("POST", ["stop" | "shutdown"]) => ops::stop(lab, id).and_then(|()| done()),
        ("POST", ["freezefilesystems"]) => {
            let mut s = lab.state();
            let fails = s.strikes("freeze-fails");
            let v = s.vm_mut(id).ok_or(Refusal::NotFound)?;
            if v.status != "up" {
                return Err(Refusal::conflict("Cannot freeze VM. VM is not running."));
            }
            if fails || !v.agent {
                return Err(Refusal::Fault(
                    400,
                    "Operation Failed",
                    "General command validation failure. Guest agent is not responding.".into(),
                ));
            }
            v.frozen = true;
            done()
        }
        ("POST", ["thawfilesystems"]) => {
            let mut s = lab.state();
            let v = s.vm_mut(id).ok_or(Refusal::NotFound)?;
            v.frozen = false;
            done()
        }
        ("POST", ["snapshots"]) => {
            let doc = parse(body)?;
            let x = root(&doc, &["snapshot"])?;
            let description = text(x, "description").filter(|d| !d.is_empty());
            let description = description.ok_or_else(|| {
                Refusal::bad("Incomplete parameters", "Snapshot [description] required for add")
            })?;
            // Asked for when not denied; a VM that does not run has none.
            let running = lab.state().vm(id).is_some_and(|v| ops::is_running(&v.status));
            if flag(x, "persist_memorystate").unwrap_or(true) && running {
                return Err(Refusal::conflict("Cannot create Snapshot. The lab keeps no memory."));
            }
            let disks = child(x, "disk_attachments").map(|list| {
                list.children()
                    .filter_map(|a| {
                        let disk = child(a, "disk")?;
                        Some((
                            disk.attribute("id")?.parse().ok()?,
                            text(disk, "image_id").and_then(|t| t.parse().ok()),
                        ))
                    })
                    .collect()
            });
            let made = ops::create_snapshot(lab, id, description, disks, correlation.to_owned())?;
            let s = lab.state();
            let v = s.vm(id).ok_or(Refusal::NotFound)?;
            let x = v.snapshots.iter().find(|x| x.id == made).ok_or(Refusal::NotFound)?;
            Ok((202, render::snapshot(v, x)))
        }
        ("DELETE", ["snapshots", x]) => {
            ops::delete_snapshot(lab, id, uuid(x)?, correlation.to_owned()).and_then(|()| done())
        }
        ("POST", ["diskattachments"]) => attach(lab, id, body),
        ("PUT", ["diskattachments", disk]) => {
            let disk = uuid(disk)?;
            let doc = parse(body)?;
            let a = root(&doc, &["disk_attachment"])?;
            let mut s = lab.state();
            if let Some(value) = child(a, "disk").and_then(|d| text(d, "description"))
                && let Some(d) = s.disk_mut(disk)
            {
                d.description = value;
            }
            let v = s.vm_mut(id).ok_or(Refusal::NotFound)?;
            let found =
                v.attachments.iter_mut().find(|a| a.disk == disk).ok_or(Refusal::NotFound)?;
            found.bootable = flag(a, "bootable").unwrap_or(found.bootable);
            drop(s);
            let size = child(a, "disk").and_then(|d| text(d, "provisioned_size"));
            if let Some(size) = size.and_then(|t| t.parse().ok()) {
                ops::extend(lab, disk, size)?;
            }
            if let Some(active) = flag(a, "active") {
                ops::plug(lab, id, disk, active)?;
            }
            let s = lab.state();
            let v = s.vm(id).ok_or(Refusal::NotFound)?;
            let found = v.attachments.iter().find(|a| a.disk == disk).ok_or(Refusal::NotFound)?;
            Ok((200, render::attachment(&s, &format!("vms/{id}"), found, false)))
        }
        ("DELETE", ["diskattachments", disk]) => {
            let disk = uuid(disk)?;
            let mut s = lab.state();
            let v = s.vm_mut(id).ok_or(Refusal::NotFound)?;
            let a = v.attachments.iter().find(|a| a.disk == disk).ok_or(Refusal::NotFound)?;
            if a.active && v.status != "down" {
                return Err(Refusal::conflict(
                    "Cannot detach Virtual Disk. VM is not down and the disk is plugged.",
                ));
            }
            if v.snapshots.iter().any(|x| x.disks.iter().any(|(d, _)| *d == disk)) {
                return Err(Refusal::conflict(
                    "Cannot detach Virtual Disk. The disk has snapshots.",
                ));
            }
            v.attachments.retain(|a| a.disk != disk);
            drop(s);
            if q.query.get("detach_only").is_some_and(|v| v == "false") {
                ops::delete_disk(lab, disk)?;
            }
            done()
        }
        ("POST", ["nics"]) => nic(lab, id, body),
        ("PUT", ["nics", n]) => {
            let n = uuid(n)?;
            let doc = parse(body)?;
            let x = root(&doc, &["nic"])?;
            let mut s = lab.state();
            let v = s.vm_mut(id).ok_or(Refusal::NotFound)?;
            let found = v.nics.iter_mut().find(|f| f.id == n).ok_or(Refusal::NotFound)?;
            found.linked = flag(x, "linked").unwrap_or(found.linked);
            found.plugged = flag(x, "plugged").unwrap_or(found.plugged);
            Ok((200, render::nic(id, found)))
        }
        ("DELETE", ["nics", n]) => {
            let n = uuid(n)?;
            let mut s = lab.state();
            let v = s.vm_mut(id).ok_or(Refusal::NotFound)?;
            let at = v.nics.iter().position(|x| x.id == n).ok_or(Refusal::NotFound)?;
            v.nics.remove(at);
            done()
        }
        ("POST", ["tags"]) => {
            let doc = parse(body)?;
            let x = root(&doc, &["tag"])?;
            let (name, tag) =
                (text(x, "name"), x.attribute("id").and_then(|t| t.parse::<Uuid>().ok()));
            let mut s = lab.state();
            let known = s
                .tags
                .iter()
                .find(|t| Some(&t.name) == name.as_ref() || Some(t.id) == tag)
                .cloned();
            let known = known.ok_or(Refusal::NotFound)?;
            let v = s.vm_mut(id).ok_or(Refusal::NotFound)?;
            if !v.tags.contains(&known.id) {
                v.tags.push(known.id);
            }
            Ok((201, render::tag(&known)))
        }
        ("DELETE", ["tags", tag]) => {
            let tag = uuid(tag)?;
            let mut s = lab.state();
            let v = s.vm_mut(id).ok_or(Refusal::NotFound)?;
            let at = v.tags.iter().position(|t| *t == tag).ok_or(Refusal::NotFound)?;
            v.tags.remove(at);
            done()
        }
        _ => Err(Refusal::NotFound),
    }
}

pub(super) fn vm_delete(lab: &Arc<Lab>, id: Uuid, detach_only: bool) -> Reply {
    let mut s = lab.state();
    let v = s.vm(id).ok_or(Refusal::NotFound)?.clone();
    if v.delete_protected {
        return Err(Refusal::conflict(
            "Cannot remove VM. Delete protection is enabled. In order to delete, disable Delete protection first.",
        ));
    }
    if ops::is_running(&v.status) {
        return Err(Refusal::conflict("Cannot remove VM. VM is running."));
    }
    if v.status != "down" || v.snapshots.iter().any(|x| x.status == "locked") {
        return Err(Refusal::conflict(
            "Cannot remove VM. VM is locked. Please try again in a few minutes.",
        ));
    }
    if detach_only && !v.template.is_nil() && !v.attachments.is_empty() {
        return Err(Refusal::conflict(
            "Cannot remove VM. The VM disks depend on the template and cannot be detached.",
        ));
    }
    if detach_only && v.snapshots.len() > 1 {
        return Err(Refusal::conflict("Cannot remove VM. The VM disks have snapshots."));
    }
    s.vms.retain(|x| x.id != id);
    drop(s);
    if !detach_only {
        for a in &v.attachments {
            let _ = ops::delete_disk(lab, a.disk);
        }
    }
    done()
}
