//! What `POST /vms` takes from an OVF, whoever wrote it: names are matched without
//! prefixes, whole sections may be missing.

use uuid::Uuid;

use crate::model::Nic;

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
    /// NICs, each with the names of its vNIC profile and network.
    pub nics: Vec<(Nic, String, String)>,
    /// Disks that the document names, each once.
    pub drives: Vec<Drive>,
}

/// How a disk was attached.
pub struct Drive {
    pub disk: Uuid,
    pub interface: String,
    pub bootable: bool,
    pub plugged: bool,
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
        drives: Vec::new(),
    };
    for disk in doc.descendants().filter(|n| n.tag_name().name() == "Disk") {
        let attribute = |name: &str| {
            disk.attributes().find(|a| a.name() == name).map_or("", |a| a.value()).to_owned()
        };
        let image = attribute("fileRef");
        let Some(id) = image.split('/').next().and_then(|d| d.parse().ok()) else { continue };
        let bootable = attribute("boot").eq_ignore_ascii_case("true");
        if let Some(known) = read.drives.iter_mut().find(|d| d.disk == id) {
            known.bootable |= bootable;
            continue;
        }
        let interface = match attribute("disk-interface").as_str() {
            "VirtIO" => "virtio",
            "SATA" => "sata",
            "IDE" => "ide",
            "SPAPR_VSCSI" => "spapr_vscsi",
            _ => "virtio_scsi",
        };
        read.drives.push(Drive { disk: id, interface: interface.into(), bootable, plugged: true });
    }
    for item in doc.descendants().filter(|n| n.tag_name().name() == "Item") {
        let number = |name: &str| value(item, name).parse::<u32>().unwrap_or(1);
        match value(item, "ResourceType").as_str() {
            "3" => {
                read.topology =
                    (number("num_of_sockets"), number("cpu_per_socket"), number("threads_per_cpu"))
            }
            "4" => read.memory = u64::from(number("VirtualQuantity")) << 20,
            "10" => {
                let nic = Nic {
                    id: Uuid::new_v4(),
                    name: value(item, "Name"),
                    interface: match value(item, "ResourceSubType").as_str() {
                        "1" => "rtl8139",
                        "2" => "e1000",
                        "4" => "spapr_vlan",
                        "5" => "pci_passthrough",
                        "6" => "e1000e",
                        _ => "virtio",
                    }
                    .into(),
                    mac: value(item, "MACAddress"),
                    linked: value(item, "Linked") != "false",
                    plugged: value(item, "IsPlugged") != "false",
                    profile: None,
                };
                let names = (value(item, "OtherResourceType"), value(item, "Connection"));
                read.nics.push((nic, names.0, names.1));
            }
            "17" => {
                let resource = value(item, "HostResource");
                let id = resource.split('/').next().and_then(|d| d.parse::<Uuid>().ok());
                if let Some(drive) = read.drives.iter_mut().find(|d| Some(d.disk) == id) {
                    drive.plugged = value(item, "IsPlugged") != "false";
                }
            }
            _ => {}
        }
    }
    Some(read)
}
