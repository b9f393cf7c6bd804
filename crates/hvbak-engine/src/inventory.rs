//! Listings: few requests for many things.
//!
//! Invariant: `inventory` costs eleven requests plus one per data center, however many
//! VMs there are; whatever is wanted per VM for many VMs comes by `vms_with`, a page of
//! VMs per request.

use std::collections::{BTreeMap, BTreeSet};

use hvbak_types::{
    Attachment, Cluster, DataCenter, DataCenterId, Disk, Host, Inventory, MacPool, MacUse, Network,
    Nic, Snapshot, StorageDomain, Tag, Template, Vm, VmId, VnicProfile,
};

use crate::{
    client::{Engine, Request},
    error::EngineError,
    parse::{Entity, StorageConnection},
    xml::Element,
};

/// VMs per request of `vms_with`: the server makes one query per VM and part.
const PAGE: usize = 100;
/// Up to so many VMs are asked for one by one.
const FEW: usize = 8;

/// Which parts of VMs `vms_with` brings along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parts {
    /// Tags, into `vm.tags`.
    pub tags: bool,
    /// Disk attachments, with their disks inlined.
    pub attachments: bool,
    /// NICs.
    pub nics: bool,
    /// Snapshots.
    pub snapshots: bool,
}

/// A VM with the parts that were asked for; the others are empty.
#[derive(Debug, Clone, PartialEq)]
pub struct VmWith {
    /// The VM.
    pub vm: Vm,
    /// Its attachments.
    pub attachments: Vec<Attachment>,
    /// Its NICs.
    pub nics: Vec<Nic>,
    /// Its snapshots.
    pub snapshots: Vec<Snapshot>,
}

impl Engine {
    async fn list_at<T: Entity>(
        &self,
        path: &str,
        search: Option<&str>,
    ) -> Result<Vec<T>, EngineError> {
        let mut request = Request::get(path, format!("listing {}", T::LIST.replace('_', " ")));
        if let Some(search) = search {
            request = request.query("search", search);
        }
        // Thousands of things take a busy engine minutes.
        self.send(request.timeout(self.timeouts().get * 5)).await?.list()
    }

    /// Data centers.
    ///
    /// # Errors
    /// As any request.
    pub async fn data_centers(&self) -> Result<Vec<DataCenter>, EngineError> {
        self.list_at("/datacenters", None).await
    }

    /// Clusters.
    ///
    /// # Errors
    /// As any request.
    pub async fn clusters(&self) -> Result<Vec<Cluster>, EngineError> {
        self.list_at("/clusters", None).await
    }

    /// Hosts.
    ///
    /// # Errors
    /// As any request.
    pub async fn hosts(&self) -> Result<Vec<Host>, EngineError> {
        self.list_at("/hosts", None).await
    }

    /// Storage domains, each with its status from the data centers it is attached to.
    ///
    /// # Errors
    /// As any request; a data center that vanishes meanwhile is passed over.
    pub async fn storage_domains(&self) -> Result<Vec<StorageDomain>, EngineError> {
        let centers = self.data_centers().await?;
        self.storage_domains_of(&centers.iter().map(|c| c.id).collect::<Vec<_>>()).await
    }

    async fn storage_domains_of(
        &self,
        centers: &[DataCenterId],
    ) -> Result<Vec<StorageDomain>, EngineError> {
        let mut domains: Vec<StorageDomain> = self.list_at("/storagedomains", None).await?;
        for center in centers {
            let attached: Vec<StorageDomain> =
                match self.list_at(&format!("/datacenters/{center}/storagedomains"), None).await {
                    Ok(attached) => attached,
                    Err(error) if error.is_not_found() => continue,
                    Err(error) => return Err(error),
                };
            merge_attached(&mut domains, attached, *center);
        }
        Ok(domains)
    }

    /// Mount options and addresses of a domain; hidden from accounts without an admin role.
    ///
    /// # Errors
    /// As any request.
    pub async fn storage_connections(
        &self,
        domain: hvbak_types::DomainId,
    ) -> Result<Vec<StorageConnection>, EngineError> {
        self.list_at(&format!("/storagedomains/{domain}/storageconnections"), None).await
    }

    /// VMs, all or those of an engine search (`name=web*`). Searching ignores case: compare
    /// names exactly afterwards.
    ///
    /// # Errors
    /// As any request; a malformed search is a `Fault`.
    pub async fn vms(&self, search: Option<&str>) -> Result<Vec<Vm>, EngineError> {
        self.list_at("/vms", search).await
    }

    /// VMs of exactly that name (one per data center at most).
    ///
    /// # Errors
    /// As any request.
    pub async fn vms_named(&self, name: &str) -> Result<Vec<Vm>, EngineError> {
        let found = if name.contains('"') {
            // The search language cannot quote a quotation mark.
            self.vms(None).await?
        } else {
            self.vms(Some(&format!("name=\"{name}\""))).await?
        };
        Ok(found.into_iter().filter(|vm| vm.name == name).collect())
    }

    /// Templates.
    ///
    /// # Errors
    /// As any request.
    pub async fn templates(&self) -> Result<Vec<Template>, EngineError> {
        self.list_at("/templates", None).await
    }

    /// All disks. In one request: paging of disks is broken in engines from 4.4.
    ///
    /// # Errors
    /// As any request.
    pub async fn disks(&self) -> Result<Vec<Disk>, EngineError> {
        self.list_at("/disks", None).await
    }

    /// Logical networks.
    ///
    /// # Errors
    /// As any request.
    pub async fn networks(&self) -> Result<Vec<Network>, EngineError> {
        self.list_at("/networks", None).await
    }

    /// Pools of MAC addresses. Not a part of the inventory: only people want to know them.
    ///
    /// # Errors
    /// As any request.
    pub async fn mac_pools(&self) -> Result<Vec<MacPool>, EngineError> {
        self.list_at("/macpools", None).await
    }

    /// vNIC profiles.
    ///
    /// # Errors
    /// As any request.
    pub async fn vnic_profiles(&self) -> Result<Vec<VnicProfile>, EngineError> {
        self.list_at("/vnicprofiles", None).await
    }

    /// Tags.
    ///
    /// # Errors
    /// As any request.
    pub async fn tags(&self) -> Result<Vec<Tag>, EngineError> {
        self.list_at("/tags", None).await
    }

    /// Everything. VMs carry their tags when there are any tags besides the root.
    ///
    /// # Errors
    /// As any request. Networks, profiles and tags that the account may not see are left
    /// empty, and so are collections that a recorded engine does not have.
    pub async fn inventory(&self) -> Result<Inventory, EngineError> {
        let data_centers = absent(self.data_centers().await)?;
        // Something must be there: a wrong path would otherwise look like an empty site.
        let vms = self.vms(None).await;
        let mut vms = if data_centers.is_empty() { vms? } else { absent(vms)? };
        let centers: Vec<_> = data_centers.iter().map(|c| c.id).collect();
        let tags = optional(self.tags().await)?;
        if tags.iter().any(|t| !t.id.is_nil() && t.name != "root") {
            self.add_tags(&mut vms).await?;
        }
        Ok(Inventory {
            version: self.version(),
            clusters: absent(self.clusters().await)?,
            storage_domains: absent(self.storage_domains_of(&centers).await)?,
            hosts: absent(self.hosts().await)?,
            vms,
            templates: absent(self.templates().await)?,
            disks: absent(self.disks().await)?,
            networks: optional(self.networks().await)?,
            vnic_profiles: optional(self.vnic_profiles().await)?,
            tags,
            data_centers,
            mac_pools: Vec::new(),
            macs: Vec::new(),
        })
    }

    /// Fills in which VM has which MAC address, and the pools that say whether one may be given
    /// twice; a page of VMs per request.
    ///
    /// # Errors
    /// As any request. Pools that the account may not see are left empty.
    pub async fn add_macs(&self, inventory: &mut Inventory) -> Result<(), EngineError> {
        let wanted: Vec<VmId> = inventory.vms.iter().map(|vm| vm.id).collect();
        let parts = Parts { nics: true, ..Parts::default() };
        inventory.macs.clear();
        for VmWith { vm, nics, .. } in self.vms_with(&wanted, parts).await? {
            let of = |mac| MacUse { mac, vm: vm.id, vm_name: vm.name.clone(), cluster: vm.cluster };
            inventory.macs.extend(nics.into_iter().filter_map(|nic| nic.mac).map(of));
        }
        inventory.mac_pools = optional(self.mac_pools().await)?;
        Ok(())
    }

    /// Fills `vm.tags`, a page of VMs per request.
    async fn add_tags(&self, vms: &mut [Vm]) -> Result<(), EngineError> {
        let known = self.followed(Parts { tags: true, ..Parts::default() }, vms.len()).await?;
        for vm in vms {
            if let Some(with) = known.get(&vm.id) {
                vm.tags.clone_from(&with.vm.tags);
            }
        }
        Ok(())
    }

    /// The wanted VMs with parts, a page of VMs per request. VMs that no page brought (the
    /// list moved meanwhile, or the engine did not inline) are asked for one by one; VMs
    /// that are gone are left out.
    ///
    /// # Errors
    /// As any request.
    pub async fn vms_with(
        &self,
        wanted: &[VmId],
        parts: Parts,
    ) -> Result<Vec<VmWith>, EngineError> {
        let mut listed: Option<BTreeMap<VmId, Vm>> = None;
        let mut known = BTreeMap::new();
        // A few VMs: their own requests are cheaper than pages of everything.
        if wanted.len() > FEW {
            let all = self.vm_map().await?;
            if wanted.len() * 4 >= all.len().div_ceil(PAGE) {
                known = self.followed(parts, all.len()).await?;
            }
            listed = Some(all);
        }
        let mut out = Vec::with_capacity(wanted.len());
        for id in wanted {
            if let Some(with) = known.remove(id) {
                out.push(with);
                continue;
            }
            let vm = match listed.as_ref().and_then(|all| all.get(id)) {
                Some(vm) => Some(vm.clone()),
                None => match self.find_vm(*id).await? {
                    Some(vm) => Some(vm),
                    // Recorded engines have VMs in their list alone.
                    None => {
                        if listed.is_none() {
                            listed = Some(self.vm_map().await?);
                        }
                        listed.as_ref().and_then(|all| all.get(id)).cloned()
                    }
                },
            };
            let Some(vm) = vm else { continue };
            match self.with_parts(vm, parts).await {
                Ok(with) => out.push(with),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(out)
    }

    async fn vm_map(&self) -> Result<BTreeMap<VmId, Vm>, EngineError> {
        Ok(self.vms(None).await?.into_iter().map(|vm| (vm.id, vm)).collect())
    }

    /// One VM with parts, a request per part.
    ///
    /// # Errors
    /// `NotFound`, or as any request.
    pub async fn vm_with(&self, id: VmId, parts: Parts) -> Result<VmWith, EngineError> {
        let vm = self.vm(id).await?;
        self.with_parts(vm, parts).await
    }

    async fn with_parts(&self, mut vm: Vm, parts: Parts) -> Result<VmWith, EngineError> {
        let id = vm.id;
        if parts.tags {
            vm.tags = optional(self.vm_tags(id).await)?.into_iter().map(|t| t.name).collect();
        }
        let attachments =
            if parts.attachments { self.attachments(id).await?.1 } else { Vec::new() };
        let nics = if parts.nics { self.nics(id).await?.1 } else { Vec::new() };
        let snapshots = if parts.snapshots { self.snapshots(id).await? } else { Vec::new() };
        Ok(VmWith { vm, attachments, nics, snapshots })
    }

    /// Pages through all VMs with `follow`; only VMs whose parts were really inlined.
    async fn followed(
        &self,
        parts: Parts,
        total: usize,
    ) -> Result<BTreeMap<VmId, VmWith>, EngineError> {
        let follow: Vec<&str> = [
            (parts.tags, "tags"),
            (parts.attachments, "disk_attachments.disk"),
            (parts.nics, "nics"),
            (parts.snapshots, "snapshots"),
        ]
        .into_iter()
        .filter_map(|(wanted, name)| wanted.then_some(name))
        .collect();
        let mut known = BTreeMap::new();
        if follow.is_empty() || total == 0 {
            return Ok(known);
        }
        let mut seen = BTreeSet::new();
        for page in 1..=total.div_ceil(PAGE) + 1 {
            let request = Request::get("/vms", "listing vms with their parts")
                .query("search", format!("sortby name asc page {page}"))
                .query("max", PAGE.to_string())
                .query("follow", follow.join(","))
                .timeout(self.timeouts().change);
            let root = match self.send(request).await {
                Ok(answer) => answer.element()?,
                // An engine that cannot follow is asked VM by VM instead.
                Err(EngineError::Fault { .. } | EngineError::NotFound { .. }) => break,
                Err(error) => return Err(error),
            };
            let elements: Vec<&Element> = root.all("vm").collect();
            let mut fresh = false;
            for element in &elements {
                let Ok(vm) = Vm::read(element) else { continue };
                fresh |= seen.insert(vm.id);
                if let Some(with) = inlined(vm, element, parts) {
                    known.insert(with.vm.id, with);
                }
            }
            // The last page is short; a server that ignores paging repeats itself.
            if elements.len() < PAGE || !fresh {
                break;
            }
        }
        Ok(known)
    }
}

/// The parts of a followed VM; `None` when one of them was not inlined.
fn inlined(vm: Vm, e: &Element, parts: Parts) -> Option<VmWith> {
    fn part<T: Entity>(e: &Element, wanted: bool) -> Option<Vec<T>> {
        if !wanted {
            return Some(Vec::new());
        }
        Some(crate::parse::list_in(e.child(T::LIST)?).ok()?.items)
    }
    let tags: Vec<Tag> = part(e, parts.tags)?;
    let attachments: Vec<Attachment> = part(e, parts.attachments)?;
    // Followed one level only: the attachments came, their disks did not.
    if attachments.iter().any(|a| a.disk.is_none()) {
        return None;
    }
    Some(VmWith {
        vm: Vm { tags: tags.into_iter().map(|t| t.name).collect(), ..vm },
        attachments,
        nics: part(e, parts.nics)?,
        snapshots: part(e, parts.snapshots)?,
    })
}

/// Takes status (and whatever the root listing lacks) from a data center's listing.
fn merge_attached(
    domains: &mut Vec<StorageDomain>,
    attached: Vec<StorageDomain>,
    center: DataCenterId,
) {
    for mut sub in attached {
        match domains.iter_mut().find(|d| d.id == sub.id) {
            Some(domain) => {
                // A domain in several data centers is usable when it is active in one.
                let active = domain.status == Some(hvbak_types::DomainStatus::Active);
                if sub.status.is_some() && !active {
                    domain.status = sub.status;
                }
                domain.master = domain.master.or(sub.master);
                domain.available = domain.available.or(sub.available);
                domain.used = domain.used.or(sub.used);
                domain.committed = domain.committed.or(sub.committed);
                if !domain.data_centers.contains(&center) {
                    domain.data_centers.push(center);
                }
            }
            // Not in the root listing: a restricted account, or made meanwhile.
            None => {
                if !sub.data_centers.contains(&center) {
                    sub.data_centers.push(center);
                }
                domains.push(sub);
            }
        }
    }
}

/// Empty instead of "not there": a real engine has every collection.
fn absent<T>(result: Result<Vec<T>, EngineError>) -> Result<Vec<T>, EngineError> {
    match result {
        Err(error @ EngineError::NotFound { .. }) => {
            tracing::warn!(%error, "a collection is missing and taken as empty");
            Ok(Vec::new())
        }
        other => other,
    }
}

/// Empty instead of "not there" or "not allowed".
pub(crate) fn optional<T>(result: Result<Vec<T>, EngineError>) -> Result<Vec<T>, EngineError> {
    match result {
        Err(EngineError::NotFound { .. } | EngineError::Forbidden { .. }) => Ok(Vec::new()),
        other => other,
    }
}
