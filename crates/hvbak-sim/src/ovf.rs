//! The OVF of a VM, as the engine writes it in broad lines, and what is read of one.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use uuid::Uuid;

use crate::{
    model::{Nic, State, Vm},
    xml::escape,
};

/// The VM as an OVF document.
pub fn write(s: &State, v: &Vm) -> String {
    let body = content(s, v, true);
    document(s, v, &body)
}

fn document(s: &State, v: &Vm, content: &str) -> String {
    let (mut files, mut disks) = (String::new(), String::new());
    for a in &v.attachments {
        let Some(d) = s.disk(a.disk) else { continue };
        let actual = s.domain(d.domain).map_or(0, |x| x.allocated(d.id, d.top));
        files.push_str(&format!(
            "<File ovf:href=\"{}/{}\" ovf:id=\"{}\" ovf:size=\"{actual}\" ovf:description=\"Active VM\" ovf:disk_storage_type=\"IMAGE\"/>",
            d.id, d.top, d.top
        ));
        let snapshot = v.snapshots.last().map(|x| x.id).unwrap_or_default();
        disks.push_str(&format!(
            "<Disk ovf:diskId=\"{}\" ovf:size=\"{}\" ovf:actual_size=\"{}\" ovf:vm_snapshot_id=\"{snapshot}\" ovf:parentRef=\"\" ovf:fileRef=\"{}/{}\" ovf:format=\"http://www.vmware.com/specifications/vmdk.html#sparse\" ovf:volume-format=\"{}\" ovf:volume-type=\"{}\" ovf:disk-interface=\"{}\" ovf:boot=\"{}\" ovf:disk-alias=\"{}\" ovf:wipe-after-delete=\"{}\"/>",
            d.top,
            d.size.div_ceil(1 << 30),
            actual.div_ceil(1 << 30),
            d.id,
            d.top,
            if d.cow { "COW" } else { "RAW" },
            if d.sparse { "Sparse" } else { "Preallocated" },
            match a.interface.as_str() {
                "virtio" => "VirtIO",
                "virtio_scsi" => "VirtIO_SCSI",
                "sata" => "SATA",
                _ => "IDE",
            },
            a.bootable,
            escape(&d.alias),
            d.wipe,
        ));
    }
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ovf:Envelope xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1/\" xmlns:rasd=\"http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData\" xmlns:vssd=\"http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData\" xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" ovf:version=\"4.4.0.0\"><References>{files}</References><NetworkSection><Info>List of networks</Info></NetworkSection><Section xsi:type=\"ovf:DiskSection_Type\"><Info>List of Virtual Disks</Info>{disks}</Section>{content}</ovf:Envelope>"
    )
}

fn content(s: &State, v: &Vm, with_snapshots: bool) -> String {
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
    for a in &v.attachments {
        let Some(d) = s.disk(a.disk) else { continue };
        items.push_str(&format!(
            "<Item><rasd:Caption>{alias}</rasd:Caption><rasd:InstanceId>{top}</rasd:InstanceId><rasd:ResourceType>17</rasd:ResourceType><rasd:HostResource>{id}/{top}</rasd:HostResource><rasd:Parent>{blank}</rasd:Parent><rasd:Template>{template}</rasd:Template><rasd:StorageId>{domain}</rasd:StorageId><Type>disk</Type><Device>disk</Device><BootOrder>{boot}</BootOrder><IsPlugged>{plugged}</IsPlugged><Alias></Alias></Item>",
            alias = escape(&d.alias), top = d.top, id = d.id, blank = Uuid::nil(), template = v.template,
            domain = d.domain, boot = i32::from(a.bootable), plugged = a.active
        ));
    }
    for n in &v.nics {
        let profile = s.profiles.iter().find(|p| Some(p.id) == n.profile).map_or("", |p| &p.name);
        let kind = match n.interface.as_str() {
            "rtl8139" => 1,
            "e1000" => 2,
            _ => 3,
        };
        items.push_str(&format!(
            "<Item><rasd:Caption>Ethernet adapter on {profile}</rasd:Caption><rasd:InstanceId>{}</rasd:InstanceId><rasd:ResourceType>10</rasd:ResourceType><rasd:OtherResourceType>{profile}</rasd:OtherResourceType><rasd:ResourceSubType>{kind}</rasd:ResourceSubType><rasd:Connection>{profile}</rasd:Connection><rasd:Linked>{}</rasd:Linked><rasd:Name>{}</rasd:Name><rasd:MACAddress>{}</rasd:MACAddress><Type>interface</Type><Device>bridge</Device><IsPlugged>{}</IsPlugged></Item>",
            n.id, n.linked, escape(&n.name), n.mac, n.plugged
        ));
    }
    let mut snapshots = String::new();
    if with_snapshots {
        for x in &v.snapshots {
            let inner = if x.kind == "regular" {
                let nested = document(s, v, &content(s, v, false));
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

/// What `POST /vms` takes from an OVF.
pub struct Read {
    pub id: Option<Uuid>,
    pub name: String,
    pub description: String,
    pub template: Option<Uuid>,
    pub memory: u64,
    pub topology: (u32, u32, u32),
    pub os: String,
    pub bios: String,
    pub nics: Vec<Nic>,
    /// Ids of disks that the document names.
    pub disks: Vec<Uuid>,
}

/// Reads an OVF; `None` when it is none.
pub fn read(text: &str) -> Option<Read> {
    let doc = roxmltree::Document::parse(text).ok()?;
    let find =
        |name: &str| doc.descendants().find(|n| n.is_element() && n.tag_name().name() == name);
    let content = find("Content")?;
    let value = |node: roxmltree::Node<'_, '_>, name: &str| {
        node.children()
            .find(|c| c.tag_name().name() == name)
            .and_then(|c| c.text())
            .unwrap_or("")
            .trim()
            .to_owned()
    };
    let os = doc.descendants().find(|n| {
        n.attributes()
            .any(|a| a.name() == "type" && a.value().ends_with("OperatingSystemSection_Type"))
    });
    let mut read = Read {
        id: os.and_then(|n| n.attributes().find(|a| a.name() == "id")?.value().parse().ok()),
        name: value(content, "Name"),
        description: value(content, "Description"),
        template: value(content, "TemplateId").parse().ok(),
        memory: 1 << 30,
        topology: (1, 1, 1),
        os: os.map_or_else(|| "other".into(), |n| value(n, "Description")),
        bios: match value(content, "BiosType").as_str() {
            "1" => "q35_sea_bios",
            "2" => "q35_ovmf",
            "3" => "q35_secure_boot",
            _ => "i440fx_sea_bios",
        }
        .into(),
        nics: Vec::new(),
        disks: Vec::new(),
    };
    for item in doc.descendants().filter(|n| n.tag_name().name() == "Item") {
        let number = |name: &str| value(item, name).parse::<u32>().unwrap_or(1);
        match value(item, "ResourceType").as_str() {
            "3" => {
                read.topology =
                    (number("num_of_sockets"), number("cpu_per_socket"), number("threads_per_cpu"))
            }
            "4" => read.memory = u64::from(number("VirtualQuantity")) << 20,
            "10" => read.nics.push(Nic {
                id: Uuid::new_v4(),
                name: value(item, "Name"),
                interface: match value(item, "ResourceSubType").as_str() {
                    "1" => "rtl8139",
                    "2" => "e1000",
                    _ => "virtio",
                }
                .into(),
                mac: value(item, "MACAddress"),
                linked: value(item, "Linked") != "false",
                plugged: value(item, "IsPlugged") != "false",
                profile: None,
            }),
            "17" => {
                let resource = value(item, "HostResource");
                read.disks.extend(resource.split('/').next().and_then(|d| d.parse::<Uuid>().ok()));
            }
            _ => {}
        }
    }
    Some(read)
}
