//! Listings of what a site has besides VMs and disks.

use uuid::Uuid;

use super::{Reply, Request, uuid};
use crate::{
    fault::Refusal,
    model::{Disk, Lab, State},
    render,
    search::select,
    xml::{X, at},
};

/// Of its only pool of MAC addresses.
pub const MAC_POOL: Uuid = Uuid::from_u128(0x58ca_604b_017d_0374_0220_0000_0000_014e);

pub(super) fn get(lab: &Lab, q: &Request, parts: &[&str]) -> Reply {
    let s = lab.state();
    let ok = |x| Ok((200, x));
    match parts {
        ["datacenters"] => {
            let found = select(q, s.data_centers.iter().collect(), &["name", "status"], |d, f| {
                vec![if f == "name" { d.name.clone() } else { "up".into() }]
            })?;
            ok(X::list("data_centers", found.into_iter().map(render::data_center)))
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
                s.domains
                    .iter()
                    .filter(|d| d.data_center == id)
                    .map(|d| render::domain(&s, d, true)),
            ))
        }
        ["clusters"] => {
            let fields = ["name", "datacenter"];
            let found = select(q, s.clusters.iter().collect(), &fields, |c, f| {
                vec![if f == "name" { c.name.clone() } else { s.center_name(c.data_center) }]
            })?;
            ok(X::list("clusters", found.into_iter().map(render::cluster)))
        }
        ["clusters", _, "affinitygroups"] => ok(X::list("affinity_groups", [])),
        ["clusters", id] => {
            let id = uuid(id)?;
            ok(render::cluster(s.clusters.iter().find(|c| c.id == id).ok_or(Refusal::NotFound)?))
        }
        ["hosts"] => {
            let fields = ["name", "id", "status", "address", "cluster", "datacenter"];
            let found = select(q, s.hosts.iter().collect(), &fields, |h, f| {
                vec![match f {
                    "name" => h.name.clone(),
                    "id" => h.id.to_string(),
                    "status" => h.status.clone(),
                    "address" => "127.0.0.1".into(),
                    "cluster" => s.cluster_names(h.cluster).0,
                    _ => s.cluster_names(h.cluster).1,
                }]
            })?;
            ok(X::list("hosts", found.into_iter().map(|h| render::host(&s, h))))
        }
        ["hosts", id] => {
            let id = uuid(id)?;
            ok(render::host(&s, s.hosts.iter().find(|h| h.id == id).ok_or(Refusal::NotFound)?))
        }
        ["storagedomains"] => {
            let fields = ["name", "status", "datacenter", "type"];
            let found = select(q, s.domains.iter().collect(), &fields, |d, f| {
                vec![match f {
                    "name" => d.name.clone(),
                    "status" => "active".into(),
                    "datacenter" => s.center_name(d.data_center),
                    _ => "data".into(),
                }]
            })?;
            ok(X::list("storage_domains", found.into_iter().map(|d| render::domain(&s, d, false))))
        }
        ["storagedomains", id] => {
            let id = uuid(id)?;
            ok(render::domain(&s, s.domain(id).ok_or(Refusal::NotFound)?, false))
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
            let active = q.query.get("include_active").is_some_and(|v| v == "true");
            ok(X::list("disk_snapshots", disk_snapshots(&s, active, |d| d.domain == id)))
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
        ["networks"] => ok(X::list(
            "networks",
            select(q, s.networks.iter().collect(), &["name", "datacenter"], |n, f| {
                vec![if f == "name" { n.name.clone() } else { s.center_name(n.of) }]
            })?
            .into_iter()
            .map(|n| {
                let inner = X::default().t("name", &n.name).t("mtu", 0).r(
                    "data_center",
                    "datacenters",
                    n.of,
                );
                X::default().n("network", &at("networks", n.id), inner)
            }),
        )),
        ["macpools"] => ok(X::list("mac_pools", [mac_pool()])),
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

/// Volumes of the disks that are wanted: the frozen ones, and the top ones if asked for.
pub(super) fn disk_snapshots(s: &State, active: bool, wanted: impl Fn(&Disk) -> bool) -> Vec<X> {
    let mut out = Vec::new();
    for v in &s.vms {
        for x in v.snapshots.iter().filter(|x| active || x.kind == "regular") {
            for a in &v.attachments {
                let Some(d) = s.disk(a.disk).filter(|d| wanted(d)) else { continue };
                let owned = x.disks.iter().find(|(disk, _)| *disk == d.id).map(|(_, v)| *v);
                let volume = if x.kind == "active" { Some(d.top) } else { owned };
                out.extend(volume.and_then(|volume| disk_snapshot(s, x.id, d, volume)));
            }
        }
    }
    out
}

fn disk_snapshot(s: &State, snapshot: Uuid, d: &Disk, volume: Uuid) -> Option<X> {
    let domain = s.guest_disk(d.id)?.domain;
    let mut inner = X::default()
        .t("actual_size", domain.allocated(d.id, volume))
        .t("alias", &d.alias)
        .t("content_type", &d.content_type)
        .t("format", if domain.is_raw(d.id, volume).ok()? { "raw" } else { "cow" })
        .t("provisioned_size", d.size)
        .t("sparse", domain.is_sparse(d.id, volume).ok()?)
        .t("status", d.status)
        .t("storage_type", "image")
        .r("disk", "disks", d.id)
        .id("snapshot", snapshot)
        .id("storage_domain", domain.id);
    // The volume of a template is not the disk's own, so the engine names no such parent.
    let chain = domain.chain(d.id, volume).ok()?;
    if let Some(parent) = chain.get(1)
        && domain.meta(d.id, *parent, "IMAGE").ok()? == d.id.to_string()
    {
        inner = inner.id("parent", parent);
    }
    let path = format!("storagedomains/{}/disksnapshots", domain.id);
    Some(X::default().n("disk_snapshot", &at(&path, volume), inner))
}

/// The pool that an engine is installed with.
fn mac_pool() -> X {
    let range = X::default().t("from", "56:6f:3a:01:00:00").t("to", "56:6f:3a:01:ff:ff");
    let inner = X::default()
        .t("name", "Default")
        .t("description", "Default MAC pool")
        .t("allow_duplicates", false)
        .t("default_pool", true)
        .n("ranges", "", X::default().n("range", "", range));
    X::default().n("mac_pool", &at("macpools", MAC_POOL), inner)
}
