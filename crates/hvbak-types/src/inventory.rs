//! What the engine says exists. Plain values: `engine` fills them, `plan` reads them.
//!
//! Invariant: a value the engine did not send is `None` (or the `Other`/`Unknown`
//! variant), never a made-up default that a plan could mistake for a fact.

use crate::{
    ClusterId, DataCenterId, DiskId, DomainId, HostId, MacPoolId, NetworkId, NicId, SnapshotId,
    TagId, TemplateId, VmId, VnicProfileId, VolumeId,
};

/// An enum of the engine's lower-case words with a catch-all for words of other versions.
macro_rules! words {
    ($($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        #[allow(missing_docs)]
        pub enum $name { $($variant,)* Other(String) }
        impl $name {
            /// Reads the engine's word; an unknown one is kept as it is.
            pub fn from_word(word: &str) -> Self {
                match word { $($word => Self::$variant,)* other => Self::Other(other.to_owned()) }
            }
            /// The engine's word.
            pub fn as_word(&self) -> &str {
                match self { $(Self::$variant => $word,)* Self::Other(word) => word }
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(self.as_word()) }
        }
    )*};
}

words! {
    /// `host/status`.
    HostStatus {
        Up = "up", Maintenance = "maintenance", PreparingForMaintenance = "preparing_for_maintenance",
        NonOperational = "non_operational", NonResponsive = "non_responsive", Connecting = "connecting",
        Down = "down", Error = "error", Reboot = "reboot", Kdumping = "kdumping", Unassigned = "unassigned",
        Initializing = "initializing", Installing = "installing", InstallingOs = "installing_os",
        InstallFailed = "install_failed", PendingApproval = "pending_approval",
    }
    /// `vm/status`.
    VmStatus {
        Up = "up", Down = "down", Paused = "paused", PoweringUp = "powering_up", PoweringDown = "powering_down",
        Suspended = "suspended", SavingState = "saving_state", RestoringState = "restoring_state",
        Migrating = "migrating", WaitForLaunch = "wait_for_launch", RebootInProgress = "reboot_in_progress",
        NotResponding = "not_responding", ImageLocked = "image_locked", Unknown = "unknown", Unassigned = "unassigned",
    }
    /// `storage_domain/status`, only known through a data center (or `unattached`).
    DomainStatus {
        Active = "active", Inactive = "inactive", Locked = "locked", Mixed = "mixed", Maintenance = "maintenance",
        PreparingForMaintenance = "preparing_for_maintenance", Detaching = "detaching", Activating = "activating",
        Unknown = "unknown", Unattached = "unattached",
    }
    /// `storage_domain/type`.
    DomainKind {
        Data = "data", Iso = "iso", Export = "export", Image = "image", Volume = "volume",
        ManagedBlockStorage = "managed_block_storage",
    }
    /// `storage_domain/storage/type`.
    StorageKind {
        Nfs = "nfs", Glusterfs = "glusterfs", Posixfs = "posixfs", Localfs = "localfs", Iscsi = "iscsi",
        Fcp = "fcp", Glance = "glance", Cinder = "cinder", ManagedBlockStorage = "managed_block_storage",
    }
    /// `disk/status`.
    DiskStatus { Ok = "ok", Locked = "locked", Illegal = "illegal" }
    /// `disk/format`: the format of the top volume only.
    DiskFormat { Raw = "raw", Cow = "cow" }
    /// `disk/content_type`.
    ContentType {
        Data = "data", OvfStore = "ovf_store", MemoryDump = "memory_dump_volume",
        MemoryMetadata = "memory_metadata_volume", Iso = "iso", HostedEngine = "hosted_engine",
        HostedEngineSanlock = "hosted_engine_sanlock", HostedEngineMetadata = "hosted_engine_metadata",
        HostedEngineConfiguration = "hosted_engine_configuration", BackupScratch = "backup_scratch",
    }
    /// `disk_attachment/interface`.
    DiskInterface { Virtio = "virtio", VirtioScsi = "virtio_scsi", Ide = "ide", Sata = "sata", SpaprVscsi = "spapr_vscsi" }
    /// `snapshot/snapshot_status`.
    SnapshotStatus { Ok = "ok", Locked = "locked", InPreview = "in_preview" }
    /// `snapshot/snapshot_type`.
    SnapshotKind { Regular = "regular", Active = "active", Stateless = "stateless", Preview = "preview" }
    /// `vm/bios/type`.
    BiosType {
        ClusterDefault = "cluster_default", I440fxSeaBios = "i440fx_sea_bios", Q35SeaBios = "q35_sea_bios",
        Q35Ovmf = "q35_ovmf", Q35SecureBoot = "q35_secure_boot",
    }
}

impl StorageKind {
    /// Volumes are LVs of a VG named by the domain id.
    pub fn is_block(&self) -> bool {
        matches!(self, Self::Iscsi | Self::Fcp)
    }
    /// Volumes are files below a mount point.
    pub fn is_file(&self) -> bool {
        matches!(self, Self::Nfs | Self::Glusterfs | Self::Posixfs | Self::Localfs)
    }
}

/// Version of the engine, as `product_info/version` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EngineVersion {
    pub major: u32,
    pub minor: u32,
    pub build: u32,
    /// The RPM version, `4.5.5-1.0.18.el8`.
    pub full: String,
    /// `product_info/name`.
    pub product: String,
}

impl EngineVersion {
    /// Whether the engine is at least this version.
    pub fn at_least(&self, major: u32, minor: u32, build: u32) -> bool {
        (self.major, self.minor, self.build) >= (major, minor, build)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct DataCenter {
    pub id: DataCenterId,
    pub name: String,
    pub description: Option<String>,
    pub status: Option<String>,
    pub local: Option<bool>,
    pub storage_format: Option<String>,
    pub quota_mode: Option<String>,
    /// Compatibility level `(major, minor)`.
    pub version: Option<(u32, u32)>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    pub id: ClusterId,
    pub name: String,
    pub description: Option<String>,
    pub data_center: Option<DataCenterId>,
    pub version: Option<(u32, u32)>,
    pub cpu_architecture: Option<String>,
    pub cpu_type: Option<String>,
    /// Where its VMs' NICs get addresses, and within which none is given twice.
    pub mac_pool: Option<MacPoolId>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct StorageDomain {
    pub id: DomainId,
    pub name: String,
    pub description: Option<String>,
    pub kind: DomainKind,
    pub storage: StorageKind,
    /// Every data center it is attached to.
    pub data_centers: Vec<DataCenterId>,
    /// From the data center's sub-collection.
    pub status: Option<DomainStatus>,
    pub master: Option<bool>,
    /// `v1` … `v5`.
    pub format: Option<String>,
    pub address: Option<String>,
    pub path: Option<String>,
    pub vfs_type: Option<String>,
    pub nfs_version: Option<String>,
    pub mount_options: Option<String>,
    /// LVM's VG UUID (not its name, which is the domain id).
    pub volume_group: Option<String>,
    /// LUN ids (WWID), each once.
    pub luns: Vec<String>,
    /// Bytes, multiples of 1 GiB.
    pub available: Option<u64>,
    pub used: Option<u64>,
    pub committed: Option<u64>,
    pub block_size: Option<u32>,
    /// GiB below which the engine refuses disks and snapshots.
    pub critical_space_gib: Option<u64>,
}

/// What the engine knows for trusting a host's SSH server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostSsh {
    pub port: Option<u16>,
    /// `SHA256:…` without padding, or colon-separated MD5.
    pub fingerprint: Option<String>,
    /// One OpenSSH line; engines from 4.4.5.
    pub public_key: Option<String>,
    pub user: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    pub id: HostId,
    pub name: String,
    pub address: String,
    pub status: HostStatus,
    pub cluster: Option<ClusterId>,
    pub ssh: HostSsh,
    /// Whether it is the storage pool manager now.
    pub spm: bool,
    pub host_type: Option<String>,
    pub os: Option<String>,
    pub vdsm_version: Option<String>,
    pub hardware_uuid: Option<String>,
    pub active_vms: Option<u32>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Vm {
    pub id: VmId,
    pub name: String,
    pub description: Option<String>,
    pub comment: Option<String>,
    pub status: VmStatus,
    /// Where it runs; `None` when it does not.
    pub host: Option<HostId>,
    pub cluster: Option<ClusterId>,
    pub template: Option<TemplateId>,
    pub original_template: Option<TemplateId>,
    pub memory: Option<u64>,
    pub cpu_sockets: Option<u32>,
    pub cpu_cores: Option<u32>,
    pub cpu_threads: Option<u32>,
    pub os_type: Option<String>,
    pub bios_type: Option<BiosType>,
    pub vm_type: Option<String>,
    pub origin: Option<String>,
    pub stateless: Option<bool>,
    pub pool: bool,
    pub delete_protected: Option<bool>,
    pub high_availability: Option<bool>,
    pub fqdn: Option<String>,
    /// A sign of a guest agent (fqdn, guest OS); only a freeze proves one.
    pub agent_hint: bool,
    /// RFC 3339 with the engine's offset, as UTC.
    pub creation_time: Option<jiff::Timestamp>,
    /// Names of tags, when they were asked for.
    pub tags: Vec<String>,
}

impl Vm {
    /// The VM that runs the engine itself.
    pub fn is_hosted_engine(&self) -> bool {
        matches!(self.origin.as_deref(), Some("hosted_engine" | "managed_hosted_engine"))
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    pub id: TemplateId,
    pub name: String,
    pub description: Option<String>,
    pub status: Option<String>,
    pub cluster: Option<ClusterId>,
    pub version_number: Option<u32>,
    pub version_name: Option<String>,
    pub base_template: Option<TemplateId>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Disk {
    pub id: DiskId,
    pub alias: String,
    pub description: Option<String>,
    pub status: Option<DiskStatus>,
    /// `image`, `lun`, `cinder`, `managed_block_storage`.
    pub storage_type: Option<String>,
    pub content_type: Option<ContentType>,
    pub format: Option<DiskFormat>,
    pub sparse: Option<bool>,
    pub shareable: Option<bool>,
    /// Virtual size in bytes.
    pub provisioned_size: Option<u64>,
    /// Bytes of the top volume.
    pub actual_size: Option<u64>,
    /// Bytes of all volumes.
    pub total_size: Option<u64>,
    pub initial_size: Option<u64>,
    /// The top (active) volume.
    pub image_id: Option<VolumeId>,
    /// A VM's disk has one; a template's may have several.
    pub storage_domains: Vec<DomainId>,
    pub wipe_after_delete: Option<bool>,
    pub propagate_errors: Option<bool>,
    pub qcow_version: Option<String>,
    /// `none` or `incremental`.
    pub backup: Option<String>,
    pub disk_profile: Option<String>,
    pub quota: Option<String>,
    /// WWIDs of a direct LUN.
    pub luns: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Attachment {
    pub disk_id: DiskId,
    /// Filled when the answer inlined it (`follow=disk`).
    pub disk: Option<Disk>,
    pub active: Option<bool>,
    pub bootable: Option<bool>,
    pub interface: Option<DiskInterface>,
    pub read_only: Option<bool>,
    pub pass_discard: Option<bool>,
    pub uses_scsi_reservation: Option<bool>,
    pub logical_name: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Nic {
    pub id: NicId,
    pub name: String,
    pub interface: Option<String>,
    pub mac: Option<String>,
    pub linked: Option<bool>,
    pub plugged: Option<bool>,
    pub vnic_profile: Option<VnicProfileId>,
    pub network: Option<NetworkId>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    pub id: SnapshotId,
    pub description: String,
    pub kind: SnapshotKind,
    pub status: Option<SnapshotStatus>,
    pub date: Option<jiff::Timestamp>,
    pub memory: Option<bool>,
}

/// A disk as of a snapshot: `volume` is read-only since then.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotDisk {
    pub disk_id: DiskId,
    pub volume: VolumeId,
    pub alias: String,
    pub format: Option<DiskFormat>,
    pub sparse: Option<bool>,
    pub provisioned_size: Option<u64>,
    pub actual_size: Option<u64>,
    pub status: Option<DiskStatus>,
    pub storage_domains: Vec<DomainId>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Tag {
    pub id: TagId,
    pub name: String,
    pub description: Option<String>,
    pub parent: Option<TagId>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    pub id: NetworkId,
    pub name: String,
    pub data_center: Option<DataCenterId>,
    pub vlan: Option<u32>,
    pub mtu: Option<u32>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct VnicProfile {
    pub id: VnicProfileId,
    pub name: String,
    pub network: Option<NetworkId>,
}

/// Addresses that the engine gives to NICs.
#[derive(Debug, Clone, PartialEq)]
pub struct MacPool {
    pub id: MacPoolId,
    pub name: String,
    /// First and last address of each range.
    pub ranges: Vec<(String, String)>,
    pub allow_duplicates: Option<bool>,
    /// Whether new clusters get it.
    pub default: Option<bool>,
}

/// An address that a NIC of a VM has.
#[derive(Debug, Clone, PartialEq)]
pub struct MacUse {
    pub mac: String,
    pub vm: VmId,
    pub vm_name: String,
    pub cluster: Option<ClusterId>,
}

/// Everything of one inventory pass.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Inventory {
    pub version: EngineVersion,
    pub data_centers: Vec<DataCenter>,
    pub clusters: Vec<Cluster>,
    pub storage_domains: Vec<StorageDomain>,
    pub hosts: Vec<Host>,
    pub vms: Vec<Vm>,
    pub templates: Vec<Template>,
    pub disks: Vec<Disk>,
    pub networks: Vec<Network>,
    pub vnic_profiles: Vec<VnicProfile>,
    pub tags: Vec<Tag>,
    /// Empty until they are asked for: only a restore wants to know them.
    pub mac_pools: Vec<MacPool>,
    /// Which VM has which address; as `mac_pools`.
    pub macs: Vec<MacUse>,
}
