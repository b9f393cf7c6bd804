//! The state as the engine shows it.

use uuid::Uuid;

use crate::{
    model::{Attachment, Cluster, DataCenter, Disk, Event, Nic, Snapshot, State, Vm},
    storage::{Domain, Kind},
    xml::{X, at, time},
};

pub fn data_center(d: &DataCenter) -> X {
    let inner = X::default()
        .t("name", &d.name)
        .t("description", "")
        .t("local", d.local)
        .t("quota_mode", "disabled")
        .t("status", "up")
        .t("storage_format", "v5")
        .n("version", "", X::default().t("major", 4).t("minor", 7));
    X::default().n("data_center", &at("datacenters", d.id), inner)
}

pub fn cluster(c: &Cluster) -> X {
    let inner = X::default()
        .t("name", &c.name)
        .t("description", "")
        .n("cpu", "", X::default().t("architecture", "x86_64").t("type", "Intel Westmere Family"))
        .n("version", "", X::default().t("major", 4).t("minor", 7))
        .t("virt_service", true)
        .r("data_center", "datacenters", c.data_center)
        .r("mac_pool", "macpools", crate::api::MAC_POOL);
    X::default().n("cluster", &at("clusters", c.id), inner)
}

pub fn host(s: &State, h: &crate::hosts::Host) -> X {
    let running = s.vms.iter().filter(|v| v.host == Some(h.id)).count();
    let spm = X::default().t("priority", 5).t("status", if h.spm { "spm" } else { "none" });
    let ssh = X::default()
        .t("fingerprint", &h.fingerprint)
        .t("port", h.port)
        .t("public_key", &h.public_key);
    let inner = X::default()
        .t("name", &h.name)
        .t("comment", "")
        .t("address", "127.0.0.1")
        .n("os", "", X::default().t("type", "RHEL"))
        .t("port", 54321)
        .n("spm", "", spm)
        .n("ssh", "", ssh)
        .t("status", &h.status)
        .n("summary", "", X::default().t("active", running).t("total", running))
        .t("type", "rhel")
        .r("cluster", "clusters", h.cluster);
    X::default().n("host", &at("hosts", h.id), inner)
}

/// `with_status`: below a data center; `/storagedomains` shows none.
pub fn domain(s: &State, d: &Domain, with_status: bool) -> X {
    let master = s.domains.iter().find(|x| x.data_center == d.data_center);
    let free = d.available.unwrap_or_else(|| free(&d.dir));
    let mut storage = X::default();
    if matches!(d.kind, Kind::Nfs | Kind::Gluster) {
        storage = storage.t("address", &d.address);
    }
    if let Some(lun) = &d.lun {
        let unit = X::default().t("product_id", "simulated").t("size", 24u64 << 30);
        let units = X::default().n("logical_unit", &format!(" id=\"{}\"", lun.wwid), unit);
        let group = X::default().n("logical_units", "", units);
        storage = storage.n("volume_group", "", group);
    } else {
        storage = storage.t("path", &d.path);
    }
    match d.kind {
        Kind::Nfs => storage = storage.t("nfs_version", "v4_2"),
        Kind::Gluster => storage = storage.t("vfs_type", "glusterfs"),
        Kind::Local | Kind::Block => {}
    }
    storage = storage.t("type", d.kind.word());
    let mut inner = X::default()
        .t("name", &d.name)
        .t("description", "")
        .t("available", free >> 30 << 30)
        .t("backup", false)
        .t("block_size", 512)
        .t("committed", 0)
        .t("critical_space_action_blocker", 5)
        .t("discard_after_delete", false)
        .t("master", master.is_some_and(|m| m.id == d.id));
    if with_status {
        inner = inner.t("status", "active");
    }
    let centers = X::default().id("data_center", d.data_center);
    inner = inner
        .n("storage", "", storage)
        .t("storage_format", "v5")
        .t("type", "data")
        .t("used", 1u64 << 30)
        .t("wipe_after_delete", false)
        .n("data_centers", "", centers);
    X::default().n("storage_domain", &at("storagedomains", d.id), inner)
}

fn free(dir: &std::path::Path) -> u64 {
    nix::sys::statvfs::statvfs(dir).map_or(0, |v| v.blocks_available() * v.fragment_size())
}

pub fn vm(s: &State, v: &Vm, follow: &[&str], ovf: Option<String>) -> X {
    let path = format!("vms/{}", v.id);
    let topology =
        X::default().t("cores", v.topology.1).t("sockets", v.topology.0).t("threads", v.topology.2);
    let mut inner = X::default()
        .t("name", &v.name)
        .t("description", &v.description)
        .t("comment", &v.comment)
        .n("bios", "", X::default().t("type", &v.bios))
        .n("cpu", "", X::default().t("architecture", "x86_64").n("topology", "", topology))
        .t("creation_time", time(v.created))
        .t("delete_protected", v.delete_protected)
        .n("high_availability", "", X::default().t("enabled", false).t("priority", 1))
        .t("memory", v.memory)
        .t("origin", &v.origin)
        .n("os", "", X::default().t("type", &v.os))
        .t("stateless", v.stateless)
        .t("type", "server");
    if v.agent {
        inner = inner.t("fqdn", format!("{}.lab", v.name));
    }
    if let Some(ovf) = ovf {
        let configuration = X::default().t("data", ovf).t("type", "ovf");
        inner = inner.n("initialization", "", X::default().n("configuration", "", configuration));
    }
    inner = inner.r("cluster", "clusters", v.cluster).t("status", &v.status);
    if let Some(host) = v.host {
        inner = inner.r("host", "hosts", host);
    }
    inner = inner.r("template", "templates", v.template).r(
        "original_template",
        "templates",
        v.template,
    );
    let wants =
        |name: &str| follow.iter().any(|f| *f == name || f.starts_with(&format!("{name}.")));
    if wants("disk_attachments") {
        let disk = follow.contains(&"disk_attachments.disk");
        inner = inner.raw(&attachments(s, &path, &v.attachments, disk).0);
    }
    if wants("nics") {
        inner = inner.raw(&X::list("nics", v.nics.iter().map(|n| nic(v.id, n))).0);
    }
    if wants("snapshots") {
        inner = inner.raw(&snapshots(v).0);
    }
    if wants("tags") {
        inner = inner.raw(&tags(s, &v.tags).0);
    }
    X::default().n("vm", &at("vms", v.id), inner)
}

pub fn snapshots(v: &Vm) -> X {
    X::list("snapshots", v.snapshots.iter().rev().map(|x| snapshot(v, x)))
}

pub fn snapshot(v: &Vm, x: &Snapshot) -> X {
    snapshot_with(v, x, None)
}

/// The same with its configuration, as `all_content` asks for.
pub fn snapshot_with(v: &Vm, x: &Snapshot, ovf: Option<String>) -> X {
    let mut inner = X::default()
        .t("description", &x.description)
        .t("date", time(x.date))
        .t("persist_memorystate", false)
        .t("snapshot_status", x.status)
        .t("snapshot_type", x.kind);
    if let Some(ovf) = ovf {
        let configuration = X::default().t("data", ovf).t("type", "ovf");
        inner = inner.n("initialization", "", X::default().n("configuration", "", configuration));
    }
    if x.kind == "regular" {
        inner = inner.n("vm", &format!(" id=\"{}\"", v.id), X::default().t("name", &v.name));
    }
    X::default().n("snapshot", &at(&format!("vms/{}/snapshots", v.id), x.id), inner)
}

pub fn attachments(s: &State, owner: &str, list: &[Attachment], follow: bool) -> X {
    X::list("disk_attachments", list.iter().map(|a| attachment(s, owner, a, follow)))
}

pub fn attachment(s: &State, owner: &str, a: &Attachment, follow: bool) -> X {
    let mut inner = X::default()
        .t("active", a.active)
        .t("bootable", a.bootable)
        .t("interface", &a.interface)
        .t("pass_discard", a.pass_discard)
        .t("read_only", a.read_only)
        .t("uses_scsi_reservation", false);
    inner = match s.disk(a.disk).filter(|_| follow) {
        Some(d) => inner.raw(&disk(s, d).0),
        None => inner.r("disk", "disks", a.disk),
    };
    X::default().n("disk_attachment", &at(&format!("{owner}/diskattachments"), a.disk), inner)
}

pub fn disk(s: &State, d: &Disk) -> X {
    let domain = s.domain(d.domain).filter(|_| d.storage_type == "image");
    let actual = domain.map_or(0, |x| x.allocated(d.id, d.top));
    let total = domain.map_or(0, |x| {
        x.chain(d.id, d.top).map_or(actual, |c| c.iter().map(|v| x.allocated(d.id, *v)).sum())
    });
    let mut inner = X::default()
        .t("name", &d.alias)
        .t("description", &d.description)
        .t("actual_size", actual)
        .t("alias", &d.alias)
        .t("backup", "none")
        .t("content_type", &d.content_type)
        .t("format", if d.cow { "cow" } else { "raw" })
        .t("image_id", d.top)
        .t("propagate_errors", false)
        .t("provisioned_size", d.size);
    if d.cow {
        inner = inner.t("qcow_version", "qcow2_v3");
    }
    inner = inner
        .t("shareable", d.shareable)
        .t("sparse", d.sparse)
        .t("status", d.status)
        .t("storage_type", &d.storage_type)
        .t("total_size", total)
        .t("wipe_after_delete", d.wipe);
    inner = match d.storage_type.as_str() {
        "image" => inner.n("storage_domains", "", X::default().id("storage_domain", d.domain)),
        "lun" => inner.n("lun_storage", "", lun(d)),
        _ => inner,
    };
    X::default().n("disk", &at("disks", d.id), inner)
}

/// Where a direct LUN comes from; its WWID follows the disk's id.
fn lun(d: &Disk) -> X {
    let unit = X::default()
        .t("address", "192.0.2.10")
        .t("lun_mapping", 1)
        .t("port", 3260)
        .t("size", d.size)
        .t("status", "used")
        .t("target", "iqn.2026-11.lab:target");
    let wwid = format!("36001405{}", &d.id.simple().to_string()[..24]);
    let units = X::default().n("logical_unit", &format!(" id=\"{wwid}\""), unit);
    X::default().n("logical_units", "", units).t("type", "iscsi")
}

/// A disk as of a snapshot: no href, `total_size` 0, the snapshot's volume.
pub fn snapshot_disk(s: &State, snapshot: Uuid, disk: Uuid, volume: Uuid) -> X {
    let Some(d) = s.disk(disk) else { return X::default() };
    let Some(domain) = s.domain(d.domain) else { return X::default() };
    // The engine's own book, whatever the storage says by now.
    let known = s.raw.get(&volume).copied();
    let raw = known.unwrap_or_else(|| domain.is_raw(disk, volume).unwrap_or(false));
    let inner = X::default()
        .t("name", &d.alias)
        .t("description", &d.description)
        .t("actual_size", domain.allocated(disk, volume))
        .t("alias", &d.alias)
        .t("content_type", &d.content_type)
        .t("format", if raw { "raw" } else { "cow" })
        .t("image_id", volume)
        .t("provisioned_size", d.size)
        .t("shareable", false)
        .t("sparse", domain.is_sparse(disk, volume).unwrap_or(true))
        .t("status", d.status)
        .t("storage_type", "image")
        .t("total_size", 0)
        .id("snapshot", snapshot)
        .n("storage_domains", "", X::default().id("storage_domain", d.domain));
    X::default().n("disk", &format!(" id=\"{disk}\""), inner)
}

pub fn nic(vm: Uuid, n: &Nic) -> X {
    let mut inner = X::default()
        .t("name", &n.name)
        .t("interface", &n.interface)
        .t("linked", n.linked)
        .n("mac", "", X::default().t("address", &n.mac))
        .t("plugged", n.plugged)
        .r("vm", "vms", vm);
    if let Some(profile) = n.profile {
        inner = inner.r("vnic_profile", "vnicprofiles", profile);
    }
    X::default().n("nic", &at(&format!("vms/{vm}/nics"), n.id), inner)
}

pub fn tags(s: &State, only: &[Uuid]) -> X {
    let shown = s.tags.iter().filter(|t| only.contains(&t.id));
    X::list("tags", shown.map(tag))
}

pub fn tag(t: &crate::model::Named) -> X {
    let mut inner = X::default().t("name", &t.name).t("description", "");
    if !t.id.is_nil() {
        inner = inner.id("parent", Uuid::nil());
    }
    X::default().n("tag", &at("tags", t.id), inner)
}

pub fn event(e: &Event) -> X {
    let mut inner = X::default()
        .t("code", e.code)
        .t("correlation_id", &e.correlation)
        .o("custom_id", e.custom_id)
        .t("description", &e.description)
        .t("origin", &e.origin)
        .t("severity", &e.severity)
        .t("time", time(e.time));
    if let Some(vm) = e.vm {
        inner = inner.r("vm", "vms", vm);
    }
    X::default().n("event", &at("events", e.id), inner)
}
