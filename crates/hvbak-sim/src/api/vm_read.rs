//! VMs and their parts, as the engine shows them.

use super::{Reply, Request, uuid};
use crate::{
    fault::Refusal,
    model::{Lab, State, Vm},
    ovf, render,
    search::select,
    xml::X,
};

const FIELDS: [&str; 9] =
    ["name", "id", "status", "host", "cluster", "datacenter", "tag", "description", "comment"];

fn values(s: &State, v: &Vm, field: &str) -> Vec<String> {
    match field {
        "name" => vec![v.name.clone()],
        "id" => vec![v.id.to_string()],
        "status" => vec![v.status.clone()],
        "host" => s.hosts.iter().filter(|h| Some(h.id) == v.host).map(|h| h.name.clone()).collect(),
        "cluster" => vec![s.cluster_names(v.cluster).0],
        "datacenter" => vec![s.cluster_names(v.cluster).1],
        "tag" => s.tags.iter().filter(|t| v.tags.contains(&t.id)).map(|t| t.name.clone()).collect(),
        "description" => vec![v.description.clone()],
        _ => vec![v.comment.clone()],
    }
}

pub(super) fn get(
    lab: &Lab,
    q: &Request,
    parts: &[&str],
    follow: &[&str],
    all_content: bool,
) -> Reply {
    let s = lab.state();
    let ok = |x| Ok((200, x));
    let Some(first) = parts.first() else {
        let list = select(q, s.vms.iter().collect(), &FIELDS, |v: &&Vm, f| values(&s, v, f))?;
        return ok(X::list("vms", list.into_iter().map(|v| render::vm(&s, v, follow, None))));
    };
    let v = s.vm(uuid(first)?).ok_or(Refusal::NotFound)?;
    match &parts[1..] {
        [] => {
            let locked =
                v.attachments.iter().any(|a| s.disk(a.disk).is_some_and(|d| d.status == "locked"));
            let ovf =
                (all_content && !locked && v.status != "image_locked").then(|| ovf::write(&s, v));
            ok(render::vm(&s, v, follow, ovf))
        }
        ["diskattachments"] => ok(render::attachments(
            &s,
            &format!("vms/{}", v.id),
            &v.attachments,
            follow.contains(&"disk"),
        )),
        ["diskattachments", id] => {
            let id = uuid(id)?;
            let a = v.attachments.iter().find(|a| a.disk == id).ok_or(Refusal::NotFound)?;
            ok(render::attachment(&s, &format!("vms/{}", v.id), a, follow.contains(&"disk")))
        }
        ["nics"] => ok(X::list("nics", v.nics.iter().map(|n| render::nic(v.id, n)))),
        ["nics", id] => {
            let id = uuid(id)?;
            ok(render::nic(v.id, v.nics.iter().find(|n| n.id == id).ok_or(Refusal::NotFound)?))
        }
        ["tags"] => ok(render::tags(&s, &v.tags)),
        ["snapshots"] => ok(render::snapshots(v)),
        ["snapshots", id, rest @ ..] => {
            let id = uuid(id)?;
            let x = v.snapshots.iter().find(|x| x.id == id).ok_or(Refusal::NotFound)?;
            match rest {
                [] => {
                    let regular = x.kind == "regular" && x.status == "ok";
                    let ovf = (all_content && regular).then(|| ovf::write_snapshot(&s, v, x));
                    ok(render::snapshot_with(v, x, ovf))
                }
                ["disks"] => ok(X::list(
                    "disks",
                    x.disks.iter().map(|(d, volume)| render::snapshot_disk(&s, id, *d, *volume)),
                )),
                // The lab keeps no configuration of the past: NICs are today's.
                ["nics"] => ok(X::list("nics", v.nics.iter().map(|n| render::nic(v.id, n)))),
                ["cdroms"] => ok(X::list("cdroms", [])),
                _ => Err(Refusal::NotFound),
            }
        }
        ["reporteddevices"] => ok(X::list("reported_devices", [])),
        ["applications"] => ok(X::list("applications", [])),
        ["cdroms"] => ok(X::list("cdroms", [])),
        _ => Err(Refusal::NotFound),
    }
}
