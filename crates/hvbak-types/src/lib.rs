//! The words of hvbak, shared by all rooms: ids, sizes, extents, inventory, secrets.
//!
//! This room does no IO and logs nothing. Only what two rooms need lives here.
//! Invariant: an id that names a thing in the engine or on a host is a UUID, so it
//! can be put into a path or a command line without quoting.

mod extent;
mod hash;
mod ids;
mod inventory;
mod secret;

pub use extent::{CLUSTER_SIZE, Extent, ExtentKind};
pub use hash::{Digest, DigestError};
pub use ids::{
    ClusterId, DataCenterId, DiskId, DomainId, HostId, IdError, JobId, MacPoolId, NetworkId, NicId,
    PointId, RepositoryId, SnapshotId, TagId, TemplateId, VmId, VnicProfileId, VolumeId,
};
pub use inventory::{
    Attachment, BiosType, Cluster, ContentType, DataCenter, Disk, DiskFormat, DiskInterface,
    DiskStatus, DomainKind, DomainStatus, EngineVersion, Host, HostSsh, HostStatus, Inventory,
    MacPool, MacUse, Network, Nic, Snapshot, SnapshotDisk, SnapshotKind, SnapshotStatus,
    StorageDomain, StorageKind, Tag, Template, Vm, VmStatus, VnicProfile,
};
pub use secret::Secret;
