//! VMs, templates, NICs, snapshots.

use hvbak_types::{
    BiosType, Nic, Snapshot, SnapshotDisk, SnapshotKind, SnapshotStatus, Template, Vm, VmStatus,
};

use super::{Entity, ParseError, name, own_id};
use crate::xml::Element;

impl Entity for Vm {
    const ITEM: &'static str = "vm";
    const LIST: &'static str = "vms";
    fn read(e: &Element) -> Result<Self, ParseError> {
        let text = |path: &str| e.word(path).map(str::to_owned);
        let fqdn = text("fqdn");
        Ok(Self {
            id: own_id(e, Self::ITEM)?,
            name: name(e),
            description: e.string("description"),
            comment: e.string("comment"),
            status: VmStatus::from_word(e.word("status").unwrap_or_default()),
            host: e.id("host"),
            cluster: e.id("cluster"),
            template: e.id("template"),
            original_template: e.id("original_template"),
            memory: e.value("memory"),
            cpu_sockets: e.value("cpu/topology/sockets"),
            cpu_cores: e.value("cpu/topology/cores"),
            cpu_threads: e.value("cpu/topology/threads"),
            os_type: text("os/type"),
            bios_type: e.word("bios/type").map(BiosType::from_word),
            vm_type: text("type"),
            origin: text("origin"),
            stateless: e.flag("stateless"),
            pool: e.child("vm_pool").is_some(),
            delete_protected: e.flag("delete_protected"),
            high_availability: e.flag("high_availability/enabled"),
            agent_hint: fqdn.is_some()
                || e.child("guest_operating_system").is_some_and(|g| !g.children.is_empty()),
            fqdn,
            creation_time: e.time("creation_time"),
            tags: e.every("tags/tag").into_iter().filter_map(|t| t.string("name")).collect(),
        })
    }
}

impl Entity for Template {
    const ITEM: &'static str = "template";
    const LIST: &'static str = "templates";
    fn read(e: &Element) -> Result<Self, ParseError> {
        Ok(Self {
            id: own_id(e, Self::ITEM)?,
            name: name(e),
            description: e.string("description"),
            status: e.word("status").map(str::to_owned),
            cluster: e.id("cluster"),
            version_number: e.value("version/version_number"),
            version_name: e.string("version/version_name"),
            base_template: e.id("version/base_template"),
        })
    }
}

impl Entity for Nic {
    const ITEM: &'static str = "nic";
    const LIST: &'static str = "nics";
    fn read(e: &Element) -> Result<Self, ParseError> {
        Ok(Self {
            id: own_id(e, Self::ITEM)?,
            name: name(e),
            interface: e.word("interface").map(str::to_owned),
            mac: e.word("mac/address").map(str::to_owned),
            linked: e.flag("linked"),
            plugged: e.flag("plugged"),
            vnic_profile: e.id("vnic_profile"),
            network: e.id("network"),
        })
    }
}

impl Entity for Snapshot {
    const ITEM: &'static str = "snapshot";
    const LIST: &'static str = "snapshots";
    fn read(e: &Element) -> Result<Self, ParseError> {
        Ok(Self {
            id: own_id(e, Self::ITEM)?,
            description: e.string("description").unwrap_or_default(),
            kind: SnapshotKind::from_word(e.word("snapshot_type").unwrap_or_default()),
            status: e.word("snapshot_status").map(SnapshotStatus::from_word),
            date: e.time("date"),
            memory: e.flag("persist_memorystate"),
        })
    }
}

impl Entity for SnapshotDisk {
    const ITEM: &'static str = "disk";
    const LIST: &'static str = "disks";
    fn read(e: &Element) -> Result<Self, ParseError> {
        let disk = super::disk::read(e)?;
        Ok(Self {
            disk_id: disk.id,
            volume: disk
                .image_id
                .ok_or(ParseError::Field { element: "disk", field: "image_id" })?,
            alias: disk.alias,
            format: disk.format,
            sparse: disk.sparse,
            provisioned_size: disk.provisioned_size,
            actual_size: disk.actual_size,
            status: disk.status,
            storage_domains: disk.storage_domains,
        })
    }
}
