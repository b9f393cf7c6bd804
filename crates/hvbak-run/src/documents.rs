//! What is stored beside the disks: the engine's answers as they came, and the few facts
//! that a restore needs from them, resolved to names while the names are known.

use hvbak_plan::NicFacts;
use hvbak_types::{Attachment, Inventory, Vm, VmId};
use serde::{Deserialize, Serialize};

use crate::{
    error::{self, Result, RunError},
    job::Context,
};

/// Name of the facts for a restore.
pub const FACTS: &str = "restore.json";
/// Name of the engine's OVF.
pub const OVF: &str = "vm.ovf";
/// Name of the engine's answer about a template; an OVF of those it does not give.
pub const TEMPLATE: &str = "template.xml";

/// A VM's configuration, fetched.
pub struct Documents {
    pub vm: Vm,
    pub cluster: Option<String>,
    pub data_center: Option<String>,
    pub attachments: Vec<Attachment>,
    /// Document name and bytes.
    pub files: Vec<(&'static str, Vec<u8>)>,
}

/// `restore.json`: names instead of ids, since ids change when a site is rebuilt.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Facts {
    #[serde(default)]
    pub nics: Vec<NicRecord>,
    #[serde(default)]
    pub tags: Vec<String>,
}

/// A NIC with the names of its profile and network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NicRecord {
    pub name: String,
    #[serde(default)]
    pub interface: Option<String>,
    #[serde(default)]
    pub mac: Option<String>,
    pub linked: bool,
    pub plugged: bool,
    #[serde(default)]
    pub profile_id: Option<hvbak_types::VnicProfileId>,
    #[serde(default)]
    pub profile: Option<String>,
    #[serde(default)]
    pub network: Option<String>,
}

impl From<NicRecord> for NicFacts {
    fn from(nic: NicRecord) -> Self {
        Self {
            name: nic.name,
            interface: nic.interface,
            mac: nic.mac,
            linked: nic.linked,
            plugged: nic.plugged,
            profile: nic.profile.zip(nic.network),
            profile_id: nic.profile_id,
        }
    }
}

/// Asks the engine for everything that is stored of a VM.
pub async fn fetch(context: &Context, inventory: &Inventory, id: VmId) -> Result<Documents> {
    let engine = &context.engine;
    let doing = || error::engine(format!("read the configuration of VM {id}"));
    let document = engine.vm_document(id).await.map_err(doing())?;
    let (attachments_xml, attachments) = engine.attachments(id).await.map_err(doing())?;
    let (nics_xml, nics) = engine.nics(id).await.map_err(doing())?;
    let (tags_xml, tags) = match engine.vm_tags_raw(id).await {
        // Tags are a comfort; an account that may not read them still backs up.
        Err(hvbak_engine::EngineError::Forbidden { .. }) => Default::default(),
        other => other.map_err(doing())?,
    };
    let ovf = document.ovf.ok_or_else(|| RunError::Document {
        name: OVF.into(),
        why: "the engine gave no OVF of the VM; is one of its disks locked?".into(),
    })?;
    let facts = Facts {
        nics: nics.iter().map(|nic| resolve(inventory, nic)).collect(),
        tags: tags.iter().map(|t| t.name.clone()).collect(),
    };
    let facts = serde_json::to_vec_pretty(&facts)
        .map_err(|e| RunError::Document { name: FACTS.into(), why: e.to_string() })?;
    let cluster = document.vm.cluster.and_then(|id| inventory.clusters.iter().find(|c| c.id == id));
    let center = cluster
        .and_then(|c| c.data_center)
        .and_then(|id| inventory.data_centers.iter().find(|d| d.id == id));
    Ok(Documents {
        cluster: cluster.map(|c| c.name.clone()),
        data_center: center.map(|d| d.name.clone()),
        vm: document.vm,
        attachments,
        files: vec![
            ("vm.xml", document.raw_xml),
            (OVF, ovf.into_bytes()),
            ("attachments.xml", attachments_xml),
            ("nics.xml", nics_xml),
            ("tags.xml", tags_xml),
            (FACTS, facts),
        ],
    })
}

pub(crate) fn resolve(inventory: &Inventory, nic: &hvbak_types::Nic) -> NicRecord {
    let profile = inventory.vnic_profiles.iter().find(|p| Some(p.id) == nic.vnic_profile);
    let network_id = profile.and_then(|p| p.network).or(nic.network);
    let network = inventory.networks.iter().find(|n| Some(n.id) == network_id);
    NicRecord {
        name: nic.name.clone(),
        interface: nic.interface.clone(),
        mac: nic.mac.clone(),
        linked: nic.linked.unwrap_or(true),
        plugged: nic.plugged.unwrap_or(true),
        profile_id: nic.vnic_profile,
        profile: profile.map(|p| p.name.clone()),
        network: network.map(|n| n.name.clone()),
    }
}
