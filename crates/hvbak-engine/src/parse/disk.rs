//! Disks and their attachments.

use hvbak_types::{Attachment, ContentType, Disk, DiskFormat, DiskInterface, DiskStatus};

use super::{Entity, ParseError, own_id};
use crate::xml::Element;

impl Entity for Disk {
    const ITEM: &'static str = "disk";
    const LIST: &'static str = "disks";
    fn read(e: &Element) -> Result<Self, ParseError> {
        read(e)
    }
}

pub(super) fn read(e: &Element) -> Result<Disk, ParseError> {
    let text = |path: &str| e.word(path).map(str::to_owned);
    let mut luns: Vec<String> = Vec::new();
    for unit in e.every("lun_storage/logical_units/logical_unit") {
        if let Some(id) = unit.attr("id")
            && !luns.iter().any(|l| l == id)
        {
            luns.push(id.to_owned());
        }
    }
    Ok(Disk {
        id: own_id(e, "disk")?,
        alias: e.string("alias").or_else(|| e.string("name")).unwrap_or_default(),
        description: e.string("description"),
        status: e.word("status").map(DiskStatus::from_word),
        storage_type: text("storage_type"),
        content_type: e.word("content_type").map(ContentType::from_word),
        format: e.word("format").map(DiskFormat::from_word),
        sparse: e.flag("sparse"),
        shareable: e.flag("shareable"),
        provisioned_size: e.value("provisioned_size"),
        actual_size: e.value("actual_size"),
        total_size: e.value("total_size"),
        initial_size: e.value("initial_size"),
        image_id: e.value("image_id"),
        storage_domains: e
            .every("storage_domains/storage_domain")
            .into_iter()
            .filter_map(|d| d.attr("id")?.parse().ok())
            .collect(),
        wipe_after_delete: e.flag("wipe_after_delete"),
        propagate_errors: e.flag("propagate_errors"),
        qcow_version: text("qcow_version"),
        backup: text("backup"),
        disk_profile: e.at("disk_profile").and_then(|p| p.attr("id")).map(str::to_owned),
        quota: e.at("quota").and_then(|q| q.attr("id")).map(str::to_owned),
        luns,
    })
}

impl Entity for Attachment {
    const ITEM: &'static str = "disk_attachment";
    const LIST: &'static str = "disk_attachments";
    fn read(e: &Element) -> Result<Self, ParseError> {
        // The attachment's id is the disk's, but the disk element says so itself.
        let disk = e.child("disk");
        let disk_id = disk
            .and_then(|d| d.attr("id")?.parse().ok())
            .map_or_else(|| own_id(e, Self::ITEM), Ok)?;
        // `follow=disk` inlines the disk; a bare reference has attributes alone.
        let inlined =
            disk.filter(|d| d.children.iter().any(|c| c.name != "link" && c.name != "actions"));
        Ok(Self {
            disk_id,
            disk: inlined.and_then(|d| read(d).ok()),
            active: e.flag("active"),
            bootable: e.flag("bootable"),
            interface: e.word("interface").map(DiskInterface::from_word),
            read_only: e.flag("read_only"),
            pass_discard: e.flag("pass_discard"),
            uses_scsi_reservation: e.flag("uses_scsi_reservation"),
            logical_name: e.word("logical_name").map(str::to_owned),
        })
    }
}
