//! Listings of what a site has besides VMs and disks.

use uuid::Uuid;

use super::{Reply, Request, select, uuid};
use crate::{
    fault::Refusal,
    model::{Lab, State},
    render,
    xml::{X, at},
};

pub(super) fn get(lab: &Lab, q: &Request, parts: &[&str]) -> Reply {
    let s = lab.state();
    let ok = |x| Ok((200, x));
    match parts {
        ["datacenters"] => {
            ok(X::list("data_centers", s.data_centers.iter().map(render::data_center)))
        }
        ["datacenters", id] => {
            let id = uuid(id)?;
            ok(render::data_center(
                s.data_centers.iter().find(|d| d.id == id).ok_or(Refusal::NotFound)?,
            ))
        }
        ["datacenters", id, "storagedomains"] => {
            let id = uuid(id)?;
            ok(X::list(
                "storage_domains",
                s.domains.iter().filter(|d| d.data_center == id).map(|d| render::domain(d, true)),
            ))
        }
        ["clusters"] => ok(X::list("clusters", s.clusters.iter().map(render::cluster))),
        ["clusters", _, "affinitygroups"] => ok(X::list("affinity_groups", [])),
        ["clusters", id] => {
            let id = uuid(id)?;
            ok(render::cluster(s.clusters.iter().find(|c| c.id == id).ok_or(Refusal::NotFound)?))
        }
        ["hosts"] => ok(X::list(
            "hosts",
            select(q, s.hosts.iter().collect(), |h| (h.name.clone(), h.id.to_string()))
                .into_iter()
                .map(|h| render::host(&s, h)),
        )),
        ["hosts", id] => {
            let id = uuid(id)?;
            ok(render::host(&s, s.hosts.iter().find(|h| h.id == id).ok_or(Refusal::NotFound)?))
        }
        ["storagedomains"] => {
            ok(X::list("storage_domains", s.domains.iter().map(|d| render::domain(d, false))))
        }
        ["storagedomains", id] => {
            let id = uuid(id)?;
            ok(render::domain(s.domain(id).ok_or(Refusal::NotFound)?, false))
        }
        ["storagedomains", id, "disks"] => {
            let id = uuid(id)?;
            ok(X::list(
                "disks",
                s.disks.iter().filter(|d| d.domain == id).map(|d| render::disk(&s, d)),
            ))
        }
        ["storagedomains", id, "disksnapshots"] => {
            let id = uuid(id)?;
            ok(X::list("disk_snapshots", disk_snapshots(&s, id)))
        }
        ["storagedomains", id, "storageconnections"] => {
            let d = s.domain(uuid(id)?).ok_or(Refusal::NotFound)?;
            let inner =
                X::default().t("address", &d.address).t("path", &d.path).t("type", d.kind.word());
            ok(X::list(
                "storage_connections",
                [X::default().n(
                    "storage_connection",
                    &at("storageconnections", Uuid::new_v4()),
                    inner,
                )],
            ))
        }
        ["templates"] => ok(X::list("templates", s.templates.iter().map(template))),
        ["templates", id] => {
            let id = uuid(id)?;
            ok(template(s.templates.iter().find(|t| t.id == id).ok_or(Refusal::NotFound)?))
        }
        ["templates", id, "diskattachments"] => {
            let id = uuid(id)?;
            let t = s.templates.iter().find(|t| t.id == id).ok_or(Refusal::NotFound)?;
            ok(render::attachments(
                &s,
                &format!("templates/{id}"),
                &t.attachments,
                q.query.contains_key("follow"),
            ))
        }
        ["networks"] => ok(X::list(
            "networks",
            s.networks.iter().map(|n| {
                let inner = X::default().t("name", &n.name).t("mtu", 0).r(
                    "data_center",
                    "datacenters",
                    n.of,
                );
                X::default().n("network", &at("networks", n.id), inner)
            }),
        )),
        ["vnicprofiles"] => ok(X::list(
            "vnic_profiles",
            s.profiles.iter().map(|p| {
                let inner = X::default().t("name", &p.name).r("network", "networks", p.of);
                X::default().n("vnic_profile", &at("vnicprofiles", p.id), inner)
            }),
        )),
        ["jobs"] => ok(X::list("jobs", [])),
        ["affinitylabels"] => ok(X::list("affinity_labels", [])),
        ["permissions"] => ok(X::list("permissions", [])),
        ["roles"] => ok(X::list("roles", [])),
        _ => Err(Refusal::NotFound),
    }
}

pub(super) fn template(t: &crate::model::Template) -> X {
    let inner = X::default()
        .t("name", &t.name)
        .t("description", "")
        .t("status", "ok")
        .n("version", "", X::default().t("version_name", "base version").t("version_number", 1))
        .r("cluster", "clusters", t.cluster);
    X::default().n("template", &at("templates", t.id), inner)
}

pub(super) fn disk_snapshots(s: &State, domain: Uuid) -> Vec<X> {
    let mut out = Vec::new();
    for x in s.vms.iter().flat_map(|v| &v.snapshots) {
        for (disk, volume) in &x.disks {
            let Some(d) = s.disk(*disk).filter(|d| d.domain == domain) else { continue };
            let inner = X::default()
                .t("alias", &d.alias)
                .t("status", d.status)
                .t("provisioned_size", d.size)
                .id("snapshot", x.id)
                .id("disk", disk)
                .id("storage_domain", domain);
            out.push(X::default().n(
                "disk_snapshot",
                &at(&format!("storagedomains/{domain}/disksnapshots"), volume),
                inner,
            ));
        }
    }
    out
}
