//! Reading an OVF into plain values.

use std::str::FromStr;

use hvbak_types::{DiskId, SnapshotId, TemplateId, VmId, VolumeId};
use roxmltree::Node;

use super::{OvfError, attr, child, child_text, children, content, parse, sections, text};
use crate::xml::parse_bool;

/// What an OVF says about a VM.
#[derive(Debug, Clone, PartialEq)]
pub struct Ovf {
    /// `ovf:version` of the envelope: the writer's constant, not the engine's version.
    pub writer_version: Option<String>,
    /// The VM's id: `ovf:id` of the operating system section.
    pub vm_id: Option<VmId>,
    /// The VM's name.
    pub name: String,
    /// Its description.
    pub description: Option<String>,
    /// Its comment.
    pub comment: Option<String>,
    /// `rhel_7x64`, `Unassigned`, …
    pub os: Option<String>,
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// Sockets.
    pub sockets: Option<u32>,
    /// Cores per socket.
    pub cores: Option<u32>,
    /// Threads per core.
    pub threads: Option<u32>,
    /// `BiosType` number as written: 0 i440fx, 1 Q35 SeaBIOS, 2 Q35 OVMF, 3 secure boot.
    pub bios: Option<u32>,
    /// `VmType` number: 0 desktop, 1 server, 2 high performance.
    pub vm_type: Option<u32>,
    /// `Origin` number; 5 and 6 are the hosted engine.
    pub origin: Option<i32>,
    /// The template; nil is Blank.
    pub template: Option<TemplateId>,
    /// Its name.
    pub template_name: Option<String>,
    /// Name of the cluster it was in.
    pub cluster: Option<String>,
    /// Compatibility level of that cluster.
    pub cluster_level: Option<String>,
    /// Whether it may not be deleted.
    pub delete_protected: Option<bool>,
    /// High availability.
    pub high_availability: Option<bool>,
    /// Whether it has a lease on a storage domain.
    pub has_lease: bool,
    /// Ids of hosts it is pinned to, as written.
    pub pinned_hosts: Vec<String>,
    /// Host devices passed through.
    pub host_devices: usize,
    /// Names of networks.
    pub networks: Vec<String>,
    /// Disks, in the order of the disk section.
    pub disks: Vec<OvfDisk>,
    /// NICs, in the order of the items.
    pub nics: Vec<OvfNic>,
    /// Snapshots, the active entry included.
    pub snapshots: Vec<OvfSnapshot>,
}

/// A disk of an OVF. One entry per volume that the writer listed, so a disk with
/// snapshots occurs several times.
#[derive(Debug, Clone, PartialEq)]
pub struct OvfDisk {
    /// The disk, from `fileRef`.
    pub disk: Option<DiskId>,
    /// The volume, `diskId`; absent for a LUN, whose `diskId` is the disk itself.
    pub volume: Option<VolumeId>,
    /// Snapshot that owns the volume.
    pub snapshot: Option<SnapshotId>,
    /// Alias.
    pub alias: Option<String>,
    /// Description.
    pub description: Option<String>,
    /// Virtual size in GiB as written: rounded, for display alone.
    pub size_gib: Option<u64>,
    /// Allocated bytes of the volume, from `References/File`.
    pub file_size: Option<u64>,
    /// `RAW`, `COW`.
    pub volume_format: Option<String>,
    /// `Sparse`, `Preallocated`.
    pub volume_type: Option<String>,
    /// `VirtIO`, `VirtIO_SCSI`, `IDE`, `SATA`.
    pub interface: Option<String>,
    /// Boot disk.
    pub boot: Option<bool>,
    /// WWID of a direct LUN.
    pub lun: Option<String>,
    /// Storage domain, from the disk's item.
    pub domain: Option<String>,
    /// Plugged, from the disk's item.
    pub plugged: Option<bool>,
    /// Order among boot devices, from the disk's item; 0 = none.
    pub boot_order: Option<u32>,
}

/// A NIC of an OVF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OvfNic {
    /// Its id as written.
    pub id: Option<String>,
    /// `nic1`.
    pub name: Option<String>,
    /// MAC address.
    pub mac: Option<String>,
    /// Network name.
    pub network: Option<String>,
    /// vNIC profile name.
    pub profile: Option<String>,
    /// 1 rtl8139, 2 e1000, 3 virtio, 4 spapr, 5 pass-through, 6 e1000e.
    pub model: Option<u32>,
    /// Cable.
    pub linked: Option<bool>,
    /// Card.
    pub plugged: Option<bool>,
}

/// A snapshot of an OVF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OvfSnapshot {
    /// Its id.
    pub id: Option<SnapshotId>,
    /// `ACTIVE`, `REGULAR`, …
    pub kind: Option<String>,
    /// Its description.
    pub description: Option<String>,
    /// Whether memory was stored.
    pub memory: bool,
}

/// Reads an OVF.
///
/// # Errors
/// Not XML, or no `Envelope` with a `Content`.
pub fn read(source: &str) -> Result<Ovf, OvfError> {
    let document = parse(source)?;
    let root = document.root_element();
    if root.tag_name().name() != "Envelope" {
        return Err(OvfError::Missing("Envelope"));
    }
    let content = content(root).ok_or(OvfError::Missing("Content"))?;
    let word = |name: &str| child_text(content, name);
    let os = sections(content, "OperatingSystemSection").next();
    let items: Vec<Node<'_, '_>> =
        sections(content, "VirtualHardwareSection").flat_map(|s| children(s, "Item")).collect();
    let of_type = |kind: &'static str| {
        items
            .iter()
            .copied()
            .filter(move |i| child_text(*i, "ResourceType").as_deref() == Some(kind))
    };
    let cpu = of_type("3").next();
    let memory = of_type("4").next();
    Ok(Ovf {
        writer_version: attr(root, "version").map(str::to_owned),
        vm_id: os.and_then(|s| attr(s, "id")?.parse().ok()),
        name: word("Name").ok_or(OvfError::Missing("Name"))?,
        description: word("Description"),
        comment: word("Comment"),
        os: os.and_then(|s| child_text(s, "Description")),
        memory: memory.and_then(mebibytes),
        sockets: cpu.and_then(|i| number(i, "num_of_sockets")),
        cores: cpu.and_then(|i| number(i, "cpu_per_socket")),
        threads: cpu.and_then(|i| number(i, "threads_per_cpu")),
        bios: number(content, "BiosType"),
        vm_type: number(content, "VmType"),
        origin: number(content, "Origin"),
        template: number(content, "TemplateId"),
        template_name: word("TemplateName"),
        cluster: word("ClusterName"),
        cluster_level: word("ClusterCompatibilityVersion"),
        delete_protected: flag(content, "DeleteProtected"),
        high_availability: flag(content, "AutoStartup"),
        has_lease: word("LeaseDomainId").is_some(),
        pinned_hosts: children(content, "DedicatedVmForVds").filter_map(text).collect(),
        host_devices: items
            .iter()
            .filter(|i| child_text(**i, "Type").as_deref() == Some("hostdev"))
            .count(),
        networks: sections(root, "NetworkSection")
            .flat_map(|s| children(s, "Network"))
            .filter_map(|n| attr(n, "name").map(str::to_owned))
            .collect(),
        disks: disks(root, &of_type("17").collect::<Vec<_>>()),
        nics: of_type("10").map(nic).collect(),
        snapshots: sections(content, "SnapshotsSection")
            .flat_map(|s| children(s, "Snapshot"))
            .map(|s| OvfSnapshot {
                id: attr(s, "id").and_then(|id| id.parse().ok()),
                kind: child_text(s, "Type"),
                description: child_text(s, "Description"),
                memory: child_text(s, "Memory").is_some(),
            })
            .collect(),
    })
}

fn number<T: FromStr>(node: Node<'_, '_>, name: &str) -> Option<T> {
    child_text(node, name)?.parse().ok()
}

fn flag(node: Node<'_, '_>, name: &str) -> Option<bool> {
    parse_bool(&child_text(node, name)?)
}

/// The engine writes `MegaBytes` and means MiB.
fn mebibytes(item: Node<'_, '_>) -> Option<u64> {
    let quantity: u64 = number(item, "VirtualQuantity")?;
    let unit = child_text(item, "AllocationUnits").unwrap_or_else(|| "MegaBytes".into());
    let shift = match unit.to_ascii_lowercase().as_str() {
        "gigabytes" | "byte * 2^30" => 30,
        "megabytes" | "byte * 2^20" => 20,
        "kilobytes" | "byte * 2^10" => 10,
        "bytes" | "byte" => 0,
        _ => return None,
    };
    quantity.checked_mul(1 << shift)
}

fn disks(root: Node<'_, '_>, items: &[Node<'_, '_>]) -> Vec<OvfDisk> {
    let files: Vec<Node<'_, '_>> =
        child(root, "References").into_iter().flat_map(|r| children(r, "File")).collect();
    let entries = sections(root, "DiskSection").flat_map(|s| children(s, "Disk"));
    entries
        .map(|entry| {
            let word = |name: &str| {
                attr(entry, name).map(str::trim).filter(|v| !v.is_empty()).map(str::to_owned)
            };
            let id = word("diskId");
            let (disk, volume) = match word("fileRef") {
                Some(path) => match path.split_once('/') {
                    Some((disk, volume)) => (disk.parse().ok(), volume.parse().ok()),
                    // A LUN's file is the disk itself.
                    None => (path.parse().ok(), None),
                },
                None => (None, id.as_ref().and_then(|i| i.parse().ok())),
            };
            let lun = word("lun_id");
            let item = items.iter().copied().find(|i| {
                let instance = child_text(*i, "InstanceId");
                instance.is_some() && instance == id
            });
            let file =
                files.iter().find(|f| attr(**f, "id").is_some_and(|i| Some(i) == id.as_deref()));
            OvfDisk {
                disk,
                volume,
                snapshot: word("vm_snapshot_id").and_then(|s| s.parse().ok()),
                alias: word("disk-alias"),
                description: word("disk-description"),
                size_gib: word("size").and_then(|s| s.parse().ok()),
                file_size: file.and_then(|f| attr(*f, "size")?.trim().parse().ok()),
                volume_format: word("volume-format"),
                volume_type: word("volume-type"),
                interface: word("disk-interface"),
                boot: word("boot").and_then(|b| parse_bool(&b)),
                lun,
                domain: item.and_then(|i| child_text(i, "StorageId")),
                plugged: item.and_then(|i| flag(i, "IsPlugged")),
                boot_order: item.and_then(|i| number(i, "BootOrder")),
            }
        })
        .collect()
}

fn nic(item: Node<'_, '_>) -> OvfNic {
    OvfNic {
        id: child_text(item, "InstanceId"),
        name: child_text(item, "Name").or_else(|| child_text(item, "ElementName")),
        mac: child_text(item, "MACAddress"),
        network: child_text(item, "Connection"),
        profile: child_text(item, "OtherResourceType"),
        model: number(item, "ResourceSubType"),
        linked: flag(item, "Linked"),
        plugged: flag(item, "IsPlugged"),
    }
}
