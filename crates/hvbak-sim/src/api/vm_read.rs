//! VMs and their parts, as the engine shows them.

use super::{Reply, Request, select, uuid};
use crate::{
    fault::Refusal,
    model::{Lab, Vm},
    ovf, render,
    xml::X,
};

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
        let list = select(q, s.vms.iter().collect(), |v: &&Vm| (v.name.clone(), v.id.to_string()));
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
                [] => ok(render::snapshot(v, x)),
                ["disks"] => ok(X::list(
                    "disks",
                    x.disks.iter().map(|(d, volume)| render::snapshot_disk(&s, id, *d, *volume)),
                )),
                ["nics"] => ok(X::list("nics", [])),
                _ => Err(Refusal::NotFound),
            }
        }
        ["reporteddevices"] => ok(X::list("reported_devices", [])),
        ["applications"] => ok(X::list("applications", [])),
        ["cdroms"] => ok(X::list("cdroms", [])),
        _ => Err(Refusal::NotFound),
    }
}
