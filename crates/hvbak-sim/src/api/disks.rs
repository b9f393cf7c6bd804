//! `/disks`.

use std::sync::Arc;

use uuid::Uuid;

use super::{Reply, Request, done, inventory, parse, root, uuid};
use crate::{
    fault::Refusal,
    model::{Disk, Lab, State},
    ops, render,
    search::{self, select},
    xml::{X, child, flag, id_of, text},
};

pub(super) fn read_disk(s: &State, x: roxmltree::Node<'_, '_>) -> Result<Disk, Refusal> {
    let size = text(x, "provisioned_size").and_then(|t| t.parse::<u64>().ok());
    let size = size.ok_or_else(|| {
        Refusal::bad("Incomplete parameters", "Disk [provisionedSize] required for add")
    })?;
    let format = text(x, "format")
        .ok_or_else(|| Refusal::bad("Incomplete parameters", "Disk [format] required for add"))?;
    let cow = format == "cow";
    let domain = child(x, "storage_domains").and_then(|l| child(l, "storage_domain"));
    let domain = domain.ok_or_else(|| {
        Refusal::bad("Incomplete parameters", "Disk [storageDomains] required for add")
    })?;
    let wanted =
        (domain.attribute("id").and_then(|t| t.parse::<Uuid>().ok()), text(domain, "name"));
    let found =
        s.domains.iter().find(|d| Some(d.id) == wanted.0 || Some(&d.name) == wanted.1.as_ref());
    let domain = found.ok_or(Refusal::NotFound)?.id;
    let parse_id = |t: Option<String>| t.and_then(|t| t.parse().ok());
    Ok(Disk {
        id: x.attribute("id").and_then(|t| t.parse().ok()).unwrap_or_else(Uuid::new_v4),
        alias: text(x, "alias").or_else(|| text(x, "name")).unwrap_or_default(),
        description: text(x, "description").unwrap_or_default(),
        size: size.next_multiple_of(4096),
        cow,
        sparse: flag(x, "sparse").unwrap_or(cow),
        domain,
        status: "ok",
        top: parse_id(text(x, "image_id")).unwrap_or_else(Uuid::new_v4),
        shareable: flag(x, "shareable").unwrap_or(false),
        storage_type: "image".into(),
        content_type: text(x, "content_type").unwrap_or_else(|| "data".into()),
        wipe: flag(x, "wipe_after_delete").unwrap_or(false),
        initial_size: text(x, "initial_size").and_then(|t| t.parse().ok()),
    })
}

pub(super) fn handle(lab: &Arc<Lab>, q: &Request, parts: &[&str], body: &str) -> Reply {
    match (q.method.as_str(), parts) {
        ("GET", []) => {
            let s = lab.state();
            let fields = ["alias", "name", "id", "status", "disk_type", "vm_names"];
            let mut list = select(q, s.disks.iter().collect(), &fields, |d: &&Disk, f| match f {
                "id" => vec![d.id.to_string()],
                "status" => vec![d.status.into()],
                "disk_type" => vec![d.storage_type.clone()],
                "vm_names" => {
                    s.owners(d.id).iter().filter_map(|v| s.vm(*v).map(|v| v.name.clone())).collect()
                }
                _ => vec![d.alias.clone()],
            })?;
            // The engine's own mistake since 4.4: `max` cuts before the page is taken.
            if search::page(q) > 1 && search::number(q, "max").is_some() {
                list.clear();
            }
            Ok((200, X::list("disks", list.into_iter().map(|d| render::disk(&s, d)))))
        }
        ("POST", []) => {
            let doc = parse(body)?;
            let new = read_disk(&lab.state(), root(&doc, &["disk"])?)?;
            let id = new.id;
            ops::create_disk(lab, new)?;
            let s = lab.state();
            Ok((202, render::disk(&s, s.disk(id).ok_or(Refusal::NotFound)?)))
        }
        ("GET", [id]) => {
            let s = lab.state();
            let d = s.disk(uuid(id)?).ok_or(Refusal::NotFound)?;
            Ok((200, render::disk(&s, d)))
        }
        ("GET", [id, "disksnapshots"]) => {
            let s = lab.state();
            let id = s.disk(uuid(id)?).ok_or(Refusal::NotFound)?.id;
            let active = q.query.get("include_active").is_some_and(|v| v == "true");
            let list = inventory::disk_snapshots(&s, active, |d| d.id == id);
            Ok((200, X::list("disk_snapshots", list)))
        }
        ("PUT", [id]) => {
            let id = uuid(id)?;
            let doc = parse(body)?;
            let x = root(&doc, &["disk"])?;
            let mut s = lab.state();
            let d = s.disk_mut(id).ok_or(Refusal::NotFound)?;
            d.description = text(x, "description").unwrap_or_else(|| d.description.clone());
            d.alias =
                text(x, "alias").or_else(|| text(x, "name")).unwrap_or_else(|| d.alias.clone());
            drop(s);
            if let Some(size) = text(x, "provisioned_size").and_then(|t| t.parse().ok()) {
                ops::extend(lab, id, size)?;
            }
            let s = lab.state();
            Ok((200, render::disk(&s, s.disk(id).ok_or(Refusal::NotFound)?)))
        }
        ("POST", [id, "move"]) => {
            let doc = parse(body)?;
            let to = id_of(root(&doc, &["action"])?, "storage_domain").ok_or_else(|| {
                Refusal::bad("Incomplete parameters", "Action [storageDomain.id|name] required")
            })?;
            ops::move_disk(lab, uuid(id)?, to).and_then(|()| done())
        }
        ("DELETE", [id]) => ops::delete_disk(lab, uuid(id)?).and_then(|()| done()),
        _ => Err(Refusal::NotFound),
    }
}
