//! Where things are: data centers, clusters, hosts, storage domains, networks, tags,
//! and the engine's own version.

use hvbak_types::{
    Cluster, DataCenter, DataCenterId, DomainKind, DomainStatus, EngineVersion, Host, HostSsh,
    HostStatus, MacPool, Network, StorageDomain, StorageKind, Tag, VnicProfile,
};

use super::{Entity, ParseError, level, name, own_id};
use crate::xml::Element;

/// Reads the API root (`<api>`).
///
/// # Errors
/// Another root element.
pub fn version(root: &Element) -> Result<EngineVersion, ParseError> {
    super::expect_root(root, "api")?;
    let field = |field| ParseError::Field { element: "api", field };
    let info = root.child("product_info").ok_or(field("product_info"))?;
    let full = info.string("version/full_version").unwrap_or_default();
    // `4.3.11.4-0.1.el7`: the parts repeat major, minor and build, should those be missing.
    let mut parts = full.split(['.', '-']).map(|p| p.parse::<u32>().ok());
    let mut part = || parts.next().flatten();
    let (major, minor, build) = (part(), part(), part());
    Ok(EngineVersion {
        major: info.value("version/major").or(major).ok_or(field("version"))?,
        minor: info.value("version/minor").or(minor).unwrap_or(0),
        build: info.value("version/build").or(build).unwrap_or(0),
        product: info.string("name").unwrap_or_default(),
        full,
    })
}

impl Entity for DataCenter {
    const ITEM: &'static str = "data_center";
    const LIST: &'static str = "data_centers";
    fn read(e: &Element) -> Result<Self, ParseError> {
        Ok(Self {
            id: own_id(e, Self::ITEM)?,
            name: name(e),
            description: e.string("description"),
            status: e.word("status").map(str::to_owned),
            local: e.flag("local"),
            storage_format: e.word("storage_format").map(str::to_owned),
            quota_mode: e.word("quota_mode").map(str::to_owned),
            version: level(e),
        })
    }
}

impl Entity for Cluster {
    const ITEM: &'static str = "cluster";
    const LIST: &'static str = "clusters";
    fn read(e: &Element) -> Result<Self, ParseError> {
        Ok(Self {
            id: own_id(e, Self::ITEM)?,
            name: name(e),
            description: e.string("description"),
            data_center: e.id("data_center"),
            version: level(e),
            cpu_architecture: e.word("cpu/architecture").map(str::to_owned),
            cpu_type: e.string("cpu/type"),
            mac_pool: e.id("mac_pool"),
        })
    }
}

impl Entity for Host {
    const ITEM: &'static str = "host";
    const LIST: &'static str = "hosts";
    fn read(e: &Element) -> Result<Self, ParseError> {
        let os = match (e.string("os/type"), e.string("os/version/full_version")) {
            (Some(kind), Some(version)) => Some(format!("{kind} {version}")),
            (kind, version) => kind.or(version),
        };
        Ok(Self {
            id: own_id(e, Self::ITEM)?,
            name: name(e),
            address: e.word("address").unwrap_or_default().to_owned(),
            // `status` occurs in `spm` too: only the direct child is the host's.
            status: HostStatus::from_word(e.word("status").unwrap_or_default()),
            cluster: e.id("cluster"),
            ssh: HostSsh {
                port: e.value("ssh/port").filter(|p| *p != 0),
                fingerprint: e.word("ssh/fingerprint").map(str::to_owned),
                public_key: e.word("ssh/public_key").map(str::to_owned),
                user: e.word("ssh/user/user_name").map(str::to_owned),
            },
            spm: e.word("spm/status") == Some("spm"),
            host_type: e.word("type").map(str::to_owned),
            os,
            vdsm_version: e.word("version/full_version").map(str::to_owned),
            hardware_uuid: e.word("hardware_information/uuid").map(str::to_owned),
            active_vms: e.value("summary/active"),
        })
    }
}

impl Entity for StorageDomain {
    const ITEM: &'static str = "storage_domain";
    const LIST: &'static str = "storage_domains";
    fn read(e: &Element) -> Result<Self, ParseError> {
        let text = |path: &str| e.word(path).map(str::to_owned);
        let mut data_centers: Vec<DataCenterId> = Vec::new();
        for place in e.every("data_centers/data_center").into_iter().chain(e.all("data_center")) {
            if let Some(id) = place.attr("id").and_then(|id| id.parse().ok())
                && !data_centers.contains(&id)
            {
                data_centers.push(id);
            }
        }
        let mut luns: Vec<String> = Vec::new();
        // One `logical_unit` per path of the same LUN.
        for unit in e
            .every("storage/volume_group/logical_units/logical_unit")
            .into_iter()
            .chain(e.every("storage/logical_units/logical_unit"))
        {
            if let Some(id) = unit.attr("id")
                && !luns.iter().any(|l| l == id)
            {
                luns.push(id.to_owned());
            }
        }
        Ok(Self {
            id: own_id(e, Self::ITEM)?,
            name: name(e),
            description: e.string("description"),
            kind: DomainKind::from_word(e.word("type").unwrap_or_default()),
            storage: StorageKind::from_word(e.word("storage/type").unwrap_or_default()),
            data_centers,
            status: e.word("status").map(DomainStatus::from_word),
            master: e.flag("master"),
            format: text("storage_format"),
            address: text("storage/address"),
            path: text("storage/path"),
            vfs_type: text("storage/vfs_type"),
            nfs_version: text("storage/nfs_version"),
            mount_options: text("storage/mount_options"),
            volume_group: e
                .at("storage/volume_group")
                .and_then(|g| g.attr("id"))
                .map(str::to_owned),
            luns,
            available: e.value("available"),
            used: e.value("used"),
            committed: e.value("committed"),
            block_size: e.value("block_size"),
            critical_space_gib: e.value("critical_space_action_blocker"),
        })
    }
}

impl Entity for Network {
    const ITEM: &'static str = "network";
    const LIST: &'static str = "networks";
    fn read(e: &Element) -> Result<Self, ParseError> {
        Ok(Self {
            id: own_id(e, Self::ITEM)?,
            name: name(e),
            data_center: e.id("data_center"),
            vlan: e.id("vlan"),
            mtu: e.value("mtu"),
        })
    }
}

impl Entity for VnicProfile {
    const ITEM: &'static str = "vnic_profile";
    const LIST: &'static str = "vnic_profiles";
    fn read(e: &Element) -> Result<Self, ParseError> {
        Ok(Self { id: own_id(e, Self::ITEM)?, name: name(e), network: e.id("network") })
    }
}

impl Entity for MacPool {
    const ITEM: &'static str = "mac_pool";
    const LIST: &'static str = "mac_pools";
    fn read(e: &Element) -> Result<Self, ParseError> {
        let ranges = e.child("ranges").into_iter().flat_map(|ranges| ranges.all("range"));
        Ok(Self {
            id: own_id(e, Self::ITEM)?,
            name: name(e),
            ranges: ranges.filter_map(|r| Some((r.string("from")?, r.string("to")?))).collect(),
            allow_duplicates: e.value("allow_duplicates"),
            default: e.value("default_pool"),
        })
    }
}

impl Entity for Tag {
    const ITEM: &'static str = "tag";
    const LIST: &'static str = "tags";
    fn read(e: &Element) -> Result<Self, ParseError> {
        Ok(Self {
            id: own_id(e, Self::ITEM)?,
            name: name(e),
            description: e.string("description"),
            parent: e.id("parent"),
        })
    }
}
