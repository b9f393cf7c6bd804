//! `/templates`. An engine gives no OVF of a template, also not with `All-Content`: only
//! `BackendVmsResource` fills `initialization/configuration` (ovirt-engine 4.5).

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use uuid::Uuid;

use super::{Reply, Request, done, parse, root, uuid};
use crate::{
    fault::Refusal,
    model::{Lab, Nic, State, Template},
    ops, render,
    search::select,
    xml::{X, at, child, id_of, text, time},
};

pub(super) fn handle(lab: &Arc<Lab>, q: &Request, parts: &[&str], body: &str) -> Reply {
    match (q.method.as_str(), parts) {
        ("GET", _) => get(&lab.state(), q, parts),
        ("POST", []) => create(lab, body),
        ("PUT", [id]) => update(lab, uuid(id)?, body),
        ("DELETE", [id]) => ops::delete_template(lab, uuid(id)?).and_then(|()| done()),
        _ => Err(Refusal::NotFound),
    }
}

fn find(s: &State, id: &str) -> Result<Template, Refusal> {
    let id = uuid(id)?;
    s.templates.iter().find(|t| t.id == id).cloned().ok_or(Refusal::NotFound)
}

fn get(s: &State, q: &Request, parts: &[&str]) -> Reply {
    let ok = |x| Ok((200, x));
    match parts {
        [] => {
            let fields = ["name", "cluster", "datacenter"];
            let found = select(q, s.templates.iter().collect(), &fields, |t, f| {
                let (cluster, center) = s.cluster_names(t.cluster);
                vec![match f {
                    "name" => t.name.clone(),
                    "cluster" => cluster,
                    _ => center,
                }]
            })?;
            ok(X::list("templates", found.into_iter().map(shown)))
        }
        [id] => ok(shown(&find(s, id)?)),
        [id, "diskattachments"] => ok(render::attachments(
            s,
            &format!("templates/{id}"),
            &find(s, id)?.attachments,
            q.query.contains_key("follow"),
        )),
        [id, "nics"] => ok(X::list("nics", find(s, id)?.nics.iter().map(|n| nic(id, n)))),
        [id, "tags"] => {
            find(s, id)?;
            ok(render::tags(s, &[]))
        }
        _ => Err(Refusal::NotFound),
    }
}

fn create(lab: &Arc<Lab>, body: &str) -> Reply {
    let doc = parse(body)?;
    let x = root(&doc, &["template"])?;
    let incomplete = |what: &str| {
        Refusal::bad("Incomplete parameters", format!("Template [{what}] required for addFromVm"))
    };
    let name = text(x, "name").filter(|n| !n.is_empty()).ok_or_else(|| incomplete("name"))?;
    let from = child(x, "vm").ok_or_else(|| incomplete("vm.id|name"))?;
    let new = {
        let s = lab.state();
        let (wanted, named) = (id_of(x, "vm"), text(from, "name"));
        let found = s.vms.iter().find(|v| Some(v.id) == wanted || Some(&v.name) == named.as_ref());
        let v = found.ok_or(Refusal::NotFound)?;
        let cluster = child(x, "cluster").map(|c| (id_of(x, "cluster"), text(c, "name")));
        let cluster = match cluster {
            None => v.cluster,
            Some((id, name)) => {
                let is =
                    |c: &&crate::model::Cluster| Some(c.id) == id || Some(&c.name) == name.as_ref();
                s.clusters.iter().find(is).ok_or(Refusal::NotFound)?.id
            }
        };
        let template = Template {
            id: Uuid::new_v4(),
            name,
            description: text(x, "description").unwrap_or_default(),
            cluster,
            status: "locked",
            created: Timestamp::now(),
            memory: v.memory,
            topology: v.topology,
            os: v.os.clone(),
            bios: v.bios.clone(),
            // Cards without addresses: each VM made from it gets its own.
            nics: v.nics.iter().map(|n| Nic { id: Uuid::new_v4(), ..n.clone() }).collect(),
            attachments: Vec::new(),
        };
        (v.id, template)
    };
    let described: HashMap<Uuid, String> = child(from, "disk_attachments")
        .into_iter()
        .flat_map(|list| list.children())
        .filter_map(|a| {
            let disk = child(a, "disk")?;
            Some((disk.attribute("id")?.parse().ok()?, text(disk, "description")?))
        })
        .collect();
    let (vm, template) = new;
    let id = template.id;
    ops::create_template(lab, vm, template, &described)?;
    let s = lab.state();
    // 202 and a body: it is locked while its disks are copied.
    Ok((202, shown(s.templates.iter().find(|t| t.id == id).ok_or(Refusal::NotFound)?)))
}

fn update(lab: &Arc<Lab>, id: Uuid, body: &str) -> Reply {
    let doc = parse(body)?;
    let x = root(&doc, &["template"])?;
    let mut s = lab.state();
    let t = s.templates.iter_mut().find(|t| t.id == id).ok_or(Refusal::NotFound)?;
    if t.status != "ok" {
        return Err(Refusal::conflict("Cannot edit Template. The Template is locked."));
    }
    if let Some(value) = text(x, "description") {
        t.description = value;
    }
    Ok((200, shown(t)))
}

fn shown(t: &Template) -> X {
    let topology =
        X::default().t("cores", t.topology.1).t("sockets", t.topology.0).t("threads", t.topology.2);
    let mut version = X::default();
    version = version.t("version_name", "base version").t("version_number", 1);
    let inner = X::default()
        .t("name", &t.name)
        .t("description", &t.description)
        .n("bios", "", X::default().t("type", &t.bios))
        .n("cpu", "", X::default().t("architecture", "x86_64").n("topology", "", topology))
        .t("creation_time", time(t.created))
        .t("memory", t.memory)
        .n("os", "", X::default().t("type", &t.os))
        .t("type", "server")
        .t("status", t.status)
        .n("version", "", version.r("base_template", "templates", t.id))
        .r("cluster", "clusters", t.cluster);
    X::default().n("template", &at("templates", t.id), inner)
}

fn nic(template: &str, n: &Nic) -> X {
    let mut inner = X::default()
        .t("name", &n.name)
        .t("interface", &n.interface)
        .t("linked", n.linked)
        .t("plugged", n.plugged);
    if let Some(profile) = n.profile {
        inner = inner.r("vnic_profile", "vnicprofiles", profile);
    }
    X::default().n("nic", &at(&format!("templates/{template}/nics"), n.id), inner)
}
