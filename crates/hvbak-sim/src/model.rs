//! The state of the simulated engine, behind one mutex.
//!
//! Long work runs in threads that take the mutex only to read and to write; what an
//! operation has locked shows as `locked`, as in the engine.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    engine_backup::Backups,
    hosts::Host,
    qsd::{GuestDisk, Running},
    storage::Domain,
};

#[derive(Debug, Clone)]
pub struct DataCenter {
    pub id: Uuid,
    pub name: String,
    pub local: bool,
}

#[derive(Debug, Clone)]
pub struct Cluster {
    pub id: Uuid,
    pub name: String,
    pub data_center: Uuid,
}

#[derive(Debug, Clone)]
pub struct Disk {
    pub id: Uuid,
    pub alias: String,
    pub description: String,
    pub size: u64,
    /// Format of the top volume.
    pub cow: bool,
    pub sparse: bool,
    pub domain: Uuid,
    pub status: &'static str,
    pub top: Uuid,
    pub shareable: bool,
    pub storage_type: String,
    pub content_type: String,
    pub wipe: bool,
    /// What a block domain was asked to take at first.
    pub initial_size: Option<u64>,
}

#[derive(Debug, Clone)]
pub struct Attachment {
    pub disk: Uuid,
    pub interface: String,
    pub bootable: bool,
    pub active: bool,
    pub read_only: bool,
    pub pass_discard: bool,
}

#[derive(Debug, Clone)]
pub struct Nic {
    pub id: Uuid,
    pub name: String,
    pub interface: String,
    pub mac: String,
    pub linked: bool,
    pub plugged: bool,
    pub profile: Option<Uuid>,
}

#[derive(Debug, Clone)]
pub struct Snapshot {
    pub id: Uuid,
    pub description: String,
    /// `regular` or `active`.
    pub kind: &'static str,
    pub status: &'static str,
    pub date: Timestamp,
    /// Disk and the volume that is read-only since.
    pub disks: Vec<(Uuid, Uuid)>,
}

#[derive(Debug, Clone)]
pub struct Vm {
    pub id: Uuid,
    pub name: String,
    pub description: String,
    pub comment: String,
    pub status: String,
    pub host: Option<Uuid>,
    pub cluster: Uuid,
    pub template: Uuid,
    pub memory: u64,
    pub topology: (u32, u32, u32),
    pub os: String,
    pub bios: String,
    pub agent: bool,
    pub frozen: bool,
    pub stateless: bool,
    pub delete_protected: bool,
    pub origin: String,
    pub created: Timestamp,
    pub tags: Vec<Uuid>,
    pub nics: Vec<Nic>,
    pub attachments: Vec<Attachment>,
    /// Oldest first; the active one is last.
    pub snapshots: Vec<Snapshot>,
    /// The running disks; whoever works on them holds this.
    pub running: Arc<Mutex<Option<Running>>>,
}

#[derive(Debug, Clone)]
pub struct Template {
    pub id: Uuid,
    pub name: String,
    pub description: String,
    pub cluster: Uuid,
    /// `ok` or `locked`.
    pub status: &'static str,
    pub created: Timestamp,
    pub memory: u64,
    pub topology: (u32, u32, u32),
    pub os: String,
    pub bios: String,
    pub nics: Vec<Nic>,
    pub attachments: Vec<Attachment>,
}

#[derive(Debug, Clone)]
pub struct Named {
    pub id: Uuid,
    pub name: String,
    /// Data center of a network, network of a profile.
    pub of: Uuid,
}

#[derive(Debug, Clone)]
pub struct Event {
    pub id: u64,
    pub code: i64,
    pub severity: String,
    pub time: Timestamp,
    pub description: String,
    pub correlation: String,
    pub origin: String,
    pub custom_id: Option<i64>,
    pub vm: Option<Uuid>,
}

/// An answer that is given instead of the right one.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct HttpFault {
    /// `GET`, `POST`, …; empty: all.
    #[serde(default)]
    pub method: String,
    /// Part of the path.
    pub path: String,
    #[serde(default)]
    pub status: u16,
    #[serde(default)]
    pub body: String,
    #[serde(default)]
    pub content_type: String,
    #[serde(default)]
    pub delay_ms: u64,
    /// Close the connection without an answer.
    #[serde(default)]
    pub drop: bool,
    /// How often; 0 = for ever.
    #[serde(default)]
    pub times: u32,
    #[serde(default)]
    pub used: u32,
}

#[derive(Debug, Default)]
pub struct State {
    pub data_centers: Vec<DataCenter>,
    pub clusters: Vec<Cluster>,
    pub domains: Vec<Domain>,
    pub hosts: Vec<Host>,
    pub vms: Vec<Vm>,
    pub templates: Vec<Template>,
    pub disks: Vec<Disk>,
    /// Volumes that are frozen, and whether the engine knows them as raw.
    pub raw: HashMap<Uuid, bool>,
    pub networks: Vec<Named>,
    pub profiles: Vec<Named>,
    pub tags: Vec<Named>,
    pub events: Vec<Event>,
    pub backups: Backups,
    pub tokens: HashSet<String>,
    /// What the account's role holds; everything when a test has not said.
    pub permits: Option<HashSet<String>>,
    pub http_faults: Vec<HttpFault>,
    /// Named faults of operations and how often they strike: `snapshot-fails`,
    /// `snapshot-live-fails`, `freeze-fails`, `merge-fails`, `merge-breaks`, `disk-fails`, `move-makes-cow`,
    /// `move-preallocates`, `template-fails`; while `merge-waits` is there, no merge begins, while
    /// `template-waits` is, no template's disk is copied.
    pub faults: HashMap<String, u32>,
    pub next_event: u64,
    pub next_mac: u32,
}

/// The running lab.
#[derive(Debug)]
pub struct Lab {
    pub dir: PathBuf,
    pub username: String,
    pub password: String,
    pub delay: Duration,
    pub instance: Uuid,
    pub ca_pem: String,
    state: Mutex<State>,
}

impl Lab {
    pub fn new(
        dir: PathBuf,
        password: String,
        delay: Duration,
        ca_pem: String,
        state: State,
    ) -> Self {
        Self {
            dir,
            username: "admin@internal".into(),
            password,
            delay,
            instance: Uuid::new_v4(),
            ca_pem,
            state: Mutex::new(state),
        }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a VM's daemon has its sockets. Short: socket paths end at 107 characters.
    pub fn vm_dir(&self, vm: Uuid) -> PathBuf {
        self.dir.join("vm").join(&vm.simple().to_string()[..12])
    }
}

impl State {
    pub fn vm(&self, id: Uuid) -> Option<&Vm> {
        self.vms.iter().find(|v| v.id == id)
    }

    pub fn vm_mut(&mut self, id: Uuid) -> Option<&mut Vm> {
        self.vms.iter_mut().find(|v| v.id == id)
    }

    pub fn disk(&self, id: Uuid) -> Option<&Disk> {
        self.disks.iter().find(|d| d.id == id)
    }

    pub fn disk_mut(&mut self, id: Uuid) -> Option<&mut Disk> {
        self.disks.iter_mut().find(|d| d.id == id)
    }

    pub fn domain(&self, id: Uuid) -> Option<&Domain> {
        self.domains.iter().find(|d| d.id == id)
    }

    /// The disk as its VM opens it; `None` for one without volumes (a direct LUN).
    pub fn guest_disk(&self, id: Uuid) -> Option<GuestDisk> {
        let disk = self.disk(id).filter(|d| d.storage_type == "image")?;
        let domain = self.domain(disk.domain)?.clone();
        Some(GuestDisk { disk: id, domain, top: disk.top })
    }

    /// Name of a data center, empty for none.
    pub fn center_name(&self, id: Uuid) -> String {
        self.data_centers.iter().find(|d| d.id == id).map_or_else(String::new, |d| d.name.clone())
    }

    /// Names of a cluster and of its data center.
    pub fn cluster_names(&self, id: Uuid) -> (String, String) {
        match self.clusters.iter().find(|c| c.id == id) {
            Some(c) => (c.name.clone(), self.center_name(c.data_center)),
            None => Default::default(),
        }
    }

    /// The VMs that have a disk.
    pub fn owners(&self, disk: Uuid) -> Vec<Uuid> {
        self.vms
            .iter()
            .filter(|v| v.attachments.iter().any(|a| a.disk == disk))
            .map(|v| v.id)
            .collect()
    }

    pub fn event(
        &mut self,
        code: i64,
        severity: &str,
        text: String,
        correlation: &str,
        vm: Option<Uuid>,
    ) {
        self.next_event += 1;
        let event = Event {
            id: self.next_event,
            code,
            severity: severity.into(),
            time: Timestamp::now(),
            description: text,
            correlation: correlation.into(),
            origin: "oVirt".into(),
            custom_id: None,
            vm,
        };
        self.events.push(event);
    }

    /// Whether a named fault strikes now.
    pub fn strikes(&mut self, name: &str) -> bool {
        match self.faults.get_mut(name) {
            Some(left) if *left > 0 => {
                *left -= 1;
                true
            }
            _ => false,
        }
    }

    pub fn new_mac(&mut self) -> String {
        loop {
            self.next_mac += 1;
            let [_, a, b, c] = self.next_mac.to_be_bytes();
            let mac = format!("56:6f:5a:{a:02x}:{b:02x}:{c:02x}");
            if !self.mac_taken(&mac) {
                return mac;
            }
        }
    }

    pub fn mac_taken(&self, mac: &str) -> bool {
        self.vms.iter().flat_map(|v| &v.nics).any(|n| n.mac.eq_ignore_ascii_case(mac))
    }
}

impl Template {
    /// One without disks and NICs, of the size that new VMs have here.
    pub fn bare(id: Uuid, name: &str, cluster: Uuid) -> Self {
        Self {
            id,
            name: name.to_owned(),
            description: String::new(),
            cluster,
            status: "ok",
            created: Timestamp::now(),
            memory: 1 << 30,
            topology: (1, 2, 1),
            os: "rhel_8x64".into(),
            bios: "q35_sea_bios".into(),
            nics: Vec::new(),
            attachments: Vec::new(),
        }
    }
}

impl Vm {
    /// The volume that stands directly on `volume`, and the snapshot that owns it
    /// (`None`: the active layer `top`).
    pub fn above(&self, disk: Uuid, snapshot: usize, top: Uuid) -> (Uuid, Option<usize>) {
        for (i, s) in self.snapshots.iter().enumerate().skip(snapshot + 1) {
            if let Some((_, volume)) = s.disks.iter().find(|(d, _)| *d == disk) {
                return (*volume, Some(i));
            }
        }
        (top, None)
    }
}
