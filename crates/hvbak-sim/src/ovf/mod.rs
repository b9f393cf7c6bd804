//! The OVF of a VM or of a snapshot, as the engine writes it in broad lines.

mod read;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use uuid::Uuid;

use crate::{
    model::{Attachment, Disk, Snapshot, State, Vm},
    xml::escape,
};

pub use read::{Drive, Read, read};

/// A volume that the document lists.
struct Image<'a> {
    attachment: &'a Attachment,
    disk: &'a Disk,
    volume: Uuid,
    parent: Option<Uuid>,
    snapshot: Uuid,
    active: bool,
}

/// The VM as an OVF document: all volumes that are its own, and its snapshots.
pub fn write(s: &State, v: &Vm) -> String {
    let mut images = Vec::new();
    for x in &v.snapshots {
        images.extend(images_of(s, v, x));
    }
    document(s, v, &images, true)
}

/// A snapshot's configuration: the volumes of that snapshot alone, and no snapshots.
pub fn write_snapshot(s: &State, v: &Vm, x: &Snapshot) -> String {
    document(s, v, &images_of(s, v, x), false)
}

/// The volumes that a snapshot owns; the active entry owns the top ones.
fn images_of<'a>(s: &'a State, v: &'a Vm, x: &Snapshot) -> Vec<Image<'a>> {
    let active = x.kind == "active";
    let image = |attachment: &'a Attachment| {
        let disk = s.disk(attachment.disk)?;
        let volume = match active {
            true => disk.top,
            false => x.disks.iter().find(|(d, _)| *d == disk.id)?.1,
        };
        let chain = s.guest_disk(disk.id)?.domain.chain(disk.id, volume).ok()?;
        let parent = chain.get(1).copied();
        Some(Image { attachment, disk, volume, parent, snapshot: x.id, active })
    };
    v.attachments.iter().filter_map(image).collect()
}

fn document(s: &State, v: &Vm, images: &[Image<'_>], whole: bool) -> String {
    let (mut files, mut disks) = (String::new(), String::new());
    for i in images {
        let Some(domain) = s.domain(i.disk.domain) else { continue };
        let (d, a) = (i.disk, i.attachment);
        let actual = domain.allocated(d.id, i.volume);
        let raw = domain.is_raw(d.id, i.volume).unwrap_or(false);
        let path = format!("{}/{}", d.id, i.volume);
        files.push_str(&format!(
            "<File ovf:href=\"{path}\" ovf:id=\"{}\" ovf:size=\"{actual}\" ovf:description=\"Active VM\" ovf:disk_storage_type=\"IMAGE\"/>",
            i.volume
        ));
        disks.push_str(&format!(
            "<Disk ovf:diskId=\"{}\" ovf:size=\"{}\" ovf:actual_size=\"{}\" ovf:vm_snapshot_id=\"{}\" ovf:parentRef=\"{}\" ovf:fileRef=\"{path}\" ovf:format=\"http://www.vmware.com/specifications/vmdk.html#sparse\" ovf:volume-format=\"{}\" ovf:volume-type=\"{}\" ovf:disk-interface=\"{}\" ovf:read-only=\"{}\" ovf:shareable=\"{}\" ovf:boot=\"{}\" ovf:pass-discard=\"{}\" ovf:incremental-backup=\"false\" ovf:disk-alias=\"{}\" ovf:disk-description=\"{}\" ovf:wipe-after-delete=\"{}\"/>",
            i.volume,
            d.size.div_ceil(1 << 30),
            actual.div_ceil(1 << 30),
            i.snapshot,
            i.parent.map_or_else(String::new, |p| format!("{}/{p}", d.id)),
            if raw { "RAW" } else { "COW" },
            if d.sparse || !raw { "Sparse" } else { "Preallocated" },
            match a.interface.as_str() {
                "virtio" => "VirtIO",
                "virtio_scsi" => "VirtIO_SCSI",
                "sata" => "SATA",
                "spapr_vscsi" => "SPAPR_VSCSI",
                _ => "IDE",
            },
            a.read_only,
            d.shareable,
            a.bootable,
            a.pass_discard,
            escape(&d.alias),
            escape(&d.description),
            d.wipe,
        ));
    }
    let networks: String = v
        .nics
        .iter()
        .map(|n| profile_and_network(s, n.profile).1)
        .filter(|n| !n.is_empty())
        .map(|n| format!("<Network ovf:name=\"{}\"></Network>", escape(n)))
        .collect();
    let content = content(s, v, images, whole);
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ovf:Envelope xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1/\" xmlns:rasd=\"http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData\" xmlns:vssd=\"http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData\" xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" ovf:version=\"4.4.0.0\"><References>{files}</References><NetworkSection><Info>List of networks</Info>{networks}</NetworkSection><Section xsi:type=\"ovf:DiskSection_Type\"><Info>List of Virtual Disks</Info>{disks}</Section>{content}</ovf:Envelope>"
    )
}

/// Names of a NIC's vNIC profile and of that one's network; empty without a profile.
fn profile_and_network(s: &State, profile: Option<Uuid>) -> (&str, &str) {
    let Some(p) = s.profiles.iter().find(|p| Some(p.id) == profile) else { return ("", "") };
    (&p.name, s.networks.iter().find(|n| n.id == p.of).map_or("", |n| &n.name))
}

fn content(s: &State, v: &Vm, images: &[Image<'_>], with_snapshots: bool) -> String {
    let cluster = s.clusters.iter().find(|c| c.id == v.cluster).map_or("", |c| &c.name);
    let template = s.templates.iter().find(|t| t.id == v.template).map_or("Blank", |t| &t.name);
    let bios = match v.bios.as_str() {
        "q35_sea_bios" => 1,
        "q35_ovmf" => 2,
        "q35_secure_boot" => 3,
        _ => 0,
    };
    let mut items = format!(
        "<Item><rasd:Caption>{} virtual cpu</rasd:Caption><rasd:InstanceId>1</rasd:InstanceId><rasd:ResourceType>3</rasd:ResourceType><rasd:num_of_sockets>{}</rasd:num_of_sockets><rasd:cpu_per_socket>{}</rasd:cpu_per_socket><rasd:threads_per_cpu>{}</rasd:threads_per_cpu></Item><Item><rasd:Caption>{} MB of memory</rasd:Caption><rasd:InstanceId>2</rasd:InstanceId><rasd:ResourceType>4</rasd:ResourceType><rasd:AllocationUnits>MegaBytes</rasd:AllocationUnits><rasd:VirtualQuantity>{}</rasd:VirtualQuantity></Item>",
        v.topology.0 * v.topology.1 * v.topology.2,
        v.topology.0,
        v.topology.1,
        v.topology.2,
        v.memory >> 20,
        v.memory >> 20
    );
    for i in images {
        let (d, a) = (i.disk, i.attachment);
        items.push_str(&format!(
            "<Item><rasd:Caption>{alias}</rasd:Caption><rasd:InstanceId>{volume}</rasd:InstanceId><rasd:ResourceType>17</rasd:ResourceType><rasd:HostResource>{id}/{volume}</rasd:HostResource><rasd:Parent>{parent}</rasd:Parent><rasd:Template>{template}</rasd:Template><rasd:ApplicationList></rasd:ApplicationList><rasd:StorageId>{domain}</rasd:StorageId><rasd:StoragePoolId>{pool}</rasd:StoragePoolId><Type>disk</Type><Device>disk</Device><rasd:Address></rasd:Address><BootOrder>{boot}</BootOrder><IsPlugged>{plugged}</IsPlugged><IsReadOnly>{read_only}</IsReadOnly><Alias></Alias></Item>",
            alias = escape(&d.alias),
            volume = i.volume,
            id = d.id,
            parent = i.parent.unwrap_or_default(),
            template = v.template,
            // In a snapshot's own document storage is blank.
            domain = if with_snapshots { d.domain } else { Uuid::nil() },
            pool = s.domain(d.domain).filter(|_| with_snapshots).map(|x| x.data_center).unwrap_or_default(),
            boot = i32::from(a.bootable && i.active),
            plugged = a.active,
            read_only = a.read_only,
        ));
    }
    for n in &v.nics {
        let (profile, network) = profile_and_network(s, n.profile);
        let kind = match n.interface.as_str() {
            "rtl8139" => 1,
            "e1000" => 2,
            "spapr_vlan" => 4,
            "pci_passthrough" => 5,
            "e1000e" => 6,
            _ => 3,
        };
        items.push_str(&format!(
            "<Item><rasd:Caption>Ethernet adapter on {network}</rasd:Caption><rasd:InstanceId>{}</rasd:InstanceId><rasd:ResourceType>10</rasd:ResourceType><rasd:OtherResourceType>{profile}</rasd:OtherResourceType><rasd:ResourceSubType>{kind}</rasd:ResourceSubType><rasd:Connection>{network}</rasd:Connection><rasd:Linked>{}</rasd:Linked><rasd:Name>{}</rasd:Name><rasd:MACAddress>{}</rasd:MACAddress><Type>interface</Type><Device>bridge</Device><IsPlugged>{}</IsPlugged></Item>",
            n.id, n.linked, escape(&n.name), n.mac, n.plugged
        ));
    }
    let mut snapshots = String::new();
    if with_snapshots {
        for x in &v.snapshots {
            let inner = if x.kind == "regular" {
                let nested = write_snapshot(s, v, x);
                format!("<VmConfiguration>{}</VmConfiguration>", STANDARD.encode(nested))
            } else {
                String::new()
            };
            snapshots.push_str(&format!(
                "<Snapshot ovf:id=\"{}\"><Type>{}</Type><Description>{}</Description><CreationDate>{}</CreationDate>{inner}</Snapshot>",
                x.id,
                x.kind.to_uppercase(),
                escape(&x.description),
                x.date.strftime("%Y/%m/%d %H:%M:%S")
            ));
        }
        snapshots =
            format!("<Section xsi:type=\"ovf:SnapshotsSection_Type\">{snapshots}</Section>");
    }
    format!(
        "<Content ovf:id=\"out\" xsi:type=\"ovf:VirtualSystem_Type\"><Name>{name}</Name><Description>{description}</Description><Comment>{comment}</Comment><CreationDate>{created}</CreationDate><ExportDate>{created}</ExportDate><DeleteProtected>{protected}</DeleteProtected><IsSmartcardEnabled>false</IsSmartcardEnabled><ClusterName>{cluster}</ClusterName><TemplateId>{template_id}</TemplateId><TemplateName>{template}</TemplateName><IsStateless>{stateless}</IsStateless><Origin>3</Origin><VmType>1</VmType><DefaultDisplayType>2</DefaultDisplayType><BiosType>{bios}</BiosType><Generation>1</Generation><ClusterCompatibilityVersion>4.7</ClusterCompatibilityVersion><Section ovf:id=\"{id}\" ovf:required=\"false\" xsi:type=\"ovf:OperatingSystemSection_Type\"><Info>Guest Operating System</Info><Description>{os}</Description></Section><Section xsi:type=\"ovf:VirtualHardwareSection_Type\"><Info>hardware</Info>{items}</Section>{snapshots}</Content>",
        name = escape(&v.name),
        description = escape(&v.description),
        comment = escape(&v.comment),
        created = v.created.strftime("%Y/%m/%d %H:%M:%S"),
        protected = v.delete_protected,
        template_id = v.template,
        stateless = v.stateless,
        id = v.id,
        os = escape(&v.os),
    )
}
