//! VMs: documents for the backup, making and unmaking for the restore, power.

use std::time::{Duration, Instant};

use hvbak_types::{
    Attachment, BiosType, ClusterId, DiskId, DiskInterface, HostId, Nic, Tag, TemplateId, Vm, VmId,
    VmStatus, VnicProfileId,
};
use tokio_util::sync::CancellationToken;

use crate::{
    client::{Engine, Request},
    error::EngineError,
    snapshot::action,
    wait::{Created, Look, poll_pause},
    xml::{Body, escape},
};

/// A VM as the engine answered it, with its OVF.
#[derive(Debug, Clone)]
pub struct VmDocument {
    /// The answer's bytes.
    pub raw_xml: Vec<u8>,
    /// The same, read.
    pub vm: Vm,
    /// The OVF of `initialization/configuration`; `None` when the engine did not give one
    /// within the time (image locked, OVF being written).
    pub ovf: Option<String>,
}

/// A VM to be made from nothing, when an OVF is refused.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NewVm {
    /// Unique in the data center.
    pub name: String,
    /// Shown in the portal.
    pub description: Option<String>,
    /// Bytes.
    pub memory: Option<u64>,
    /// `(sockets, cores, threads)`.
    pub topology: Option<(u32, u32, u32)>,
    /// `rhel_8x64`, `other`, …
    pub os_type: Option<String>,
    /// Sent to engines from 4.4.
    pub bios_type: Option<BiosType>,
    /// `server`, `desktop`, `high_performance`.
    pub vm_type: Option<String>,
}

/// A disk to be attached.
#[derive(Debug, Clone, PartialEq)]
pub struct NewAttachment {
    /// The existing disk.
    pub disk: DiskId,
    /// How the guest sees it.
    pub interface: DiskInterface,
    /// One per VM.
    pub bootable: bool,
    /// Plugged.
    pub active: bool,
    /// As it was.
    pub read_only: Option<bool>,
    /// As it was.
    pub pass_discard: Option<bool>,
}

/// A NIC to be added.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NewNic {
    /// Unique in the VM.
    pub name: String,
    /// `virtio`, `e1000`, …
    pub interface: Option<String>,
    /// Keeps an address; `None` takes one of the pool.
    pub mac: Option<String>,
    /// `None` = no network.
    pub vnic_profile: Option<VnicProfileId>,
    /// Cable.
    pub linked: Option<bool>,
    /// Card.
    pub plugged: Option<bool>,
}

impl Engine {
    /// One VM.
    ///
    /// # Errors
    /// `NotFound`, or as any request.
    pub async fn vm(&self, id: VmId) -> Result<Vm, EngineError> {
        self.send(Request::get(format!("/vms/{id}"), format!("reading VM {id}"))).await?.one()
    }

    /// One VM; `None` when there is none.
    ///
    /// # Errors
    /// As any request.
    pub async fn find_vm(&self, id: VmId) -> Result<Option<Vm>, EngineError> {
        match self.vm(id).await {
            Ok(vm) => Ok(Some(vm)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A VM with everything, repeated for up to `Timeouts::ovf` until the OVF is there.
    ///
    /// # Errors
    /// `NotFound`, or as any request. A missing OVF is no error here: see `ovf`.
    pub async fn vm_document(&self, id: VmId) -> Result<VmDocument, EngineError> {
        let start = Instant::now();
        loop {
            let what = format!("reading VM {id} with all content");
            let answer = self.send(Request::get(format!("/vms/{id}"), what).all_content()).await?;
            let root = answer.element()?;
            let vm = crate::parse::one_in(&root).map_err(|e| answer.unexpected(e.to_string()))?;
            let ovf = root
                .at("initialization/configuration")
                .filter(|c| c.word("type").is_none_or(|t| t.eq_ignore_ascii_case("ovf")))
                .and_then(|c| c.string("data"));
            let t = self.timeouts();
            if ovf.is_some() || start.elapsed() >= t.ovf {
                return Ok(VmDocument { raw_xml: answer.body, vm, ovf });
            }
            tokio::time::sleep(poll_pause(t, start.elapsed())).await;
        }
    }

    /// The VM's attachments with their disks: the answer's bytes and what they say.
    /// An engine that does not inline the disks is asked for each.
    ///
    /// # Errors
    /// As any request.
    pub async fn attachments(&self, vm: VmId) -> Result<(Vec<u8>, Vec<Attachment>), EngineError> {
        self.attachments_at(format!("/vms/{vm}/diskattachments"), format!("VM {vm}")).await
    }

    /// A template's attachments, as `attachments`.
    ///
    /// # Errors
    /// As any request.
    pub async fn template_attachments(
        &self,
        template: TemplateId,
    ) -> Result<(Vec<u8>, Vec<Attachment>), EngineError> {
        self.attachments_at(
            format!("/templates/{template}/diskattachments"),
            format!("template {template}"),
        )
        .await
    }

    async fn attachments_at(
        &self,
        path: String,
        whose: String,
    ) -> Result<(Vec<u8>, Vec<Attachment>), EngineError> {
        let request =
            Request::get(path, format!("reading the disks of {whose}")).query("follow", "disk");
        let answer = self.send(request).await?;
        let mut list: Vec<Attachment> = answer.list()?;
        for attachment in &mut list {
            if attachment.disk.is_none() {
                attachment.disk = self.disk(attachment.disk_id).await?;
            }
        }
        Ok((answer.body, list))
    }

    /// The VM's NICs: the answer's bytes and what they say.
    ///
    /// # Errors
    /// As any request.
    pub async fn nics(&self, vm: VmId) -> Result<(Vec<u8>, Vec<Nic>), EngineError> {
        let what = format!("reading the NICs of VM {vm}");
        let answer = self.send(Request::get(format!("/vms/{vm}/nics"), what)).await?;
        let list = answer.list()?;
        Ok((answer.body, list))
    }

    /// The VM's tags.
    ///
    /// # Errors
    /// As any request.
    pub async fn vm_tags(&self, vm: VmId) -> Result<Vec<Tag>, EngineError> {
        self.vm_tags_raw(vm).await.map(|(_, tags)| tags)
    }

    /// The VM's tags: the answer's bytes and what they say.
    ///
    /// # Errors
    /// As any request.
    pub async fn vm_tags_raw(&self, vm: VmId) -> Result<(Vec<u8>, Vec<Tag>), EngineError> {
        let what = format!("reading the tags of VM {vm}");
        let answer = self.send(Request::get(format!("/vms/{vm}/tags"), what)).await?;
        let list = answer.list()?;
        Ok((answer.body, list))
    }

    /// Makes a VM from an OVF, which should carry neither disks nor snapshots any more
    /// (`ovf::for_restore`). It may be `image_locked` at first.
    ///
    /// # Errors
    /// `Conflict` when the name or (without `regenerate_ids`) the id is in use.
    pub async fn create_vm_from_ovf(
        &self,
        name: &str,
        cluster: ClusterId,
        ovf: &str,
        regenerate_ids: bool,
    ) -> Result<Created<Vm>, EngineError> {
        let body = format!(
            "<vm><name>{}</name><cluster id=\"{cluster}\"/><initialization>\
             <regenerate_ids>{regenerate_ids}</regenerate_ids>\
             <configuration><type>ovf</type><data>{}</data></configuration></initialization></vm>",
            escape(name),
            escape(ovf),
        );
        self.create_vm_with(name, body).await
    }

    /// Makes a VM from the Blank template.
    ///
    /// # Errors
    /// `Conflict` when the name is in use.
    pub async fn create_vm(
        &self,
        cluster: ClusterId,
        new: &NewVm,
    ) -> Result<Created<Vm>, EngineError> {
        let bios = new.bios_type.as_ref().filter(|_| self.version().at_least(4, 4, 0));
        let body = Body::default()
            .nest("vm", &[], |b| {
                let mut b = b
                    .text("name", &new.name)
                    .maybe("description", new.description.as_ref())
                    .reference("cluster", Some(cluster))
                    .reference("template", Some(TemplateId::nil()))
                    .maybe("memory", new.memory)
                    .maybe("type", new.vm_type.as_ref());
                if let Some((sockets, cores, threads)) = new.topology {
                    b = b.nest("cpu", &[], |b| {
                        b.nest("topology", &[], |b| {
                            b.maybe("sockets", Some(sockets))
                                .maybe("cores", Some(cores))
                                .maybe("threads", Some(threads))
                        })
                    });
                }
                b = b.nest("os", &[], |b| {
                    b.maybe("type", new.os_type.as_ref())
                        .nest("boot", &[], |b| b.nest("devices", &[], |b| b.text("device", "hd")))
                });
                match bios {
                    Some(bios) => b.nest("bios", &[], |b| b.text("type", bios.as_word())),
                    None => b,
                }
            })
            .finish();
        self.create_vm_with(&new.name, body).await
    }

    async fn create_vm_with(&self, name: &str, body: String) -> Result<Created<Vm>, EngineError> {
        // Whatever has the name before is not ours.
        let before: Vec<VmId> = self.vms_named(name).await?.into_iter().map(|vm| vm.id).collect();
        let what = format!("creating VM {name}");
        let post = || async {
            let answer = self.send(Request::post("/vms", body.clone(), &what).no_waiting()).await?;
            Ok((answer.one::<Vm>()?, answer.correlation))
        };
        let find = || async {
            let now = self.vms_named(name).await?;
            Ok(now.into_iter().find(|vm| !before.contains(&vm.id)))
        };
        self.create(post, find).await
    }

    /// Waits until a VM has one of the states.
    ///
    /// # Errors
    /// `Failed` when it is gone; `Timeout`; `Cancelled`.
    pub async fn wait_vm_status(
        &self,
        id: VmId,
        wanted: &[VmStatus],
        limit: Duration,
        cancel: &CancellationToken,
    ) -> Result<Vm, EngineError> {
        let words: Vec<&str> = wanted.iter().map(VmStatus::as_word).collect();
        let what = format!("VM {id} on its way to {}", words.join(" or "));
        let look = || async {
            match self.find_vm(id).await? {
                Some(vm) if wanted.contains(&vm.status) => Ok(Look::Done(vm)),
                Some(vm) => Ok(Look::Not(vm.status.to_string())),
                None => Err(EngineError::Failed { what: what.clone(), state: "removed".into() }),
            }
        };
        self.poll(&what, limit, cancel, look).await
    }

    /// Attaches a disk; done already is fine.
    ///
    /// # Errors
    /// `Conflict` (second bootable disk, disk in use), or as any request.
    pub async fn attach_disk(
        &self,
        vm: VmId,
        new: &NewAttachment,
    ) -> Result<Created<Attachment>, EngineError> {
        let body = Body::default()
            .nest("disk_attachment", &[], |b| {
                b.text("bootable", &new.bootable.to_string())
                    .text("interface", new.interface.as_word())
                    .text("active", &new.active.to_string())
                    .maybe("pass_discard", new.pass_discard)
                    .maybe("read_only", new.read_only)
                    .reference("disk", Some(new.disk))
            })
            .finish();
        let what = format!("attaching disk {} to VM {vm}", new.disk);
        let path = format!("/vms/{vm}/diskattachments");
        let post = || async {
            let answer = self.send(Request::post(&path, body.clone(), &what).no_waiting()).await?;
            Ok((answer.one::<Attachment>()?, answer.correlation))
        };
        let find = || async {
            let what = format!("reading the disks of VM {vm}");
            let list: Vec<Attachment> = self.send(Request::get(&path, what)).await?.list()?;
            Ok(list.into_iter().find(|a| a.disk_id == new.disk))
        };
        self.create(post, find).await
    }

    /// Adds a NIC.
    ///
    /// # Errors
    /// `Conflict` (MAC in use, name taken), or as any request.
    pub async fn add_nic(&self, vm: VmId, new: &NewNic) -> Result<Created<Nic>, EngineError> {
        let body = Body::default()
            .nest("nic", &[], |b| {
                let b = b.text("name", &new.name).maybe("interface", new.interface.as_ref());
                let b = match &new.mac {
                    Some(mac) => b.nest("mac", &[], |b| b.text("address", mac)),
                    None => b,
                };
                b.reference("vnic_profile", new.vnic_profile)
                    .maybe("linked", new.linked)
                    .maybe("plugged", new.plugged)
            })
            .finish();
        let what = format!("adding NIC {} to VM {vm}", new.name);
        let post = || async {
            let path = format!("/vms/{vm}/nics");
            let answer = self.send(Request::post(path, body.clone(), &what).no_waiting()).await?;
            Ok((answer.one::<Nic>()?, answer.correlation))
        };
        let find = || async { Ok(self.nics(vm).await?.1.into_iter().find(|n| n.name == new.name)) };
        self.create(post, find).await
    }

    /// Changes cable, card or profile of a NIC.
    ///
    /// # Errors
    /// As any request.
    pub async fn update_nic(
        &self,
        vm: VmId,
        nic: hvbak_types::NicId,
        linked: Option<bool>,
        plugged: Option<bool>,
        vnic_profile: Option<VnicProfileId>,
    ) -> Result<(), EngineError> {
        let body = Body::default()
            .nest("nic", &[], |b| {
                b.reference("vnic_profile", vnic_profile)
                    .maybe("linked", linked)
                    .maybe("plugged", plugged)
            })
            .finish();
        let what = format!("changing NIC {nic} of VM {vm}");
        self.send(Request::put(format!("/vms/{vm}/nics/{nic}"), body, what)).await.map(drop)
    }

    /// Removes a NIC; gone already is fine.
    ///
    /// # Errors
    /// As any request.
    pub async fn delete_nic(&self, vm: VmId, nic: hvbak_types::NicId) -> Result<(), EngineError> {
        self.delete_at(format!("/vms/{vm}/nics/{nic}"), format!("deleting NIC {nic} of VM {vm}"))
            .await
    }

    /// Detaches a disk and keeps it; done already is fine.
    ///
    /// # Errors
    /// `Conflict` when it has snapshots or the VM runs with it plugged.
    pub async fn detach_disk(&self, vm: VmId, disk: DiskId) -> Result<(), EngineError> {
        self.delete_at(
            format!("/vms/{vm}/diskattachments/{disk}"),
            format!("detaching disk {disk} from VM {vm}"),
        )
        .await
    }

    /// Deletes a VM; gone already is fine. Without `detach_only` its disks go with it.
    /// Only ever call this with the id of a VM that this job made.
    ///
    /// # Errors
    /// `Conflict` while it runs or is protected.
    pub async fn delete_vm(&self, id: VmId, detach_only: bool) -> Result<(), EngineError> {
        let mut request = Request::delete(format!("/vms/{id}"), format!("deleting VM {id}"));
        if detach_only {
            request = request.query("detach_only", "true");
        }
        match self.send(request).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Waits until the engine does not know a VM any more.
    ///
    /// # Errors
    /// `Timeout`; `Cancelled`.
    pub async fn wait_vm_gone(
        &self,
        id: VmId,
        limit: Duration,
        cancel: &CancellationToken,
    ) -> Result<(), EngineError> {
        let look = || async {
            Ok(match self.find_vm(id).await? {
                None => Look::Done(()),
                Some(vm) => Look::Not(vm.status.to_string()),
            })
        };
        self.poll(&format!("deletion of VM {id}"), limit, cancel, look).await
    }

    /// Starts a VM, on a host when one is given.
    ///
    /// # Errors
    /// `Conflict` (locked, running already), or as any request.
    pub async fn start_vm(&self, id: VmId, host: Option<HostId>) -> Result<(), EngineError> {
        let body = match host {
            Some(host) => format!(
                "<action><vm><placement_policy><hosts><host id=\"{host}\"/></hosts></placement_policy></vm></action>"
            ),
            None => action(),
        };
        let done = [VmStatus::Up, VmStatus::PoweringUp, VmStatus::WaitForLaunch];
        self.power(id, "start", body, format!("starting VM {id}"), &done).await
    }

    /// Powers a VM off.
    ///
    /// # Errors
    /// `Conflict` (not running), or as any request.
    pub async fn stop_vm(&self, id: VmId) -> Result<(), EngineError> {
        let done = [VmStatus::Down, VmStatus::PoweringDown];
        self.power(id, "stop", action(), format!("stopping VM {id}"), &done).await
    }

    /// Asks the guest to shut down.
    ///
    /// # Errors
    /// `Conflict` (not running), or as any request.
    pub async fn shutdown_vm(&self, id: VmId) -> Result<(), EngineError> {
        let done = [VmStatus::Down, VmStatus::PoweringDown];
        self.power(id, "shutdown", action(), format!("shutting VM {id} down"), &done).await
    }

    /// A power action; after a lost answer the VM's state says whether it arrived.
    async fn power(
        &self,
        id: VmId,
        verb: &str,
        body: String,
        what: String,
        done: &[VmStatus],
    ) -> Result<(), EngineError> {
        match self.send(Request::post(format!("/vms/{id}/{verb}"), body, what)).await {
            Ok(_) => Ok(()),
            Err(error @ EngineError::OutcomeUnknown { .. }) => {
                tokio::time::sleep(self.timeouts().poll_first).await;
                if done.contains(&self.vm(id).await?.status) { Ok(()) } else { Err(error) }
            }
            Err(error) => Err(error),
        }
    }

    /// Gives a VM a tag that exists.
    ///
    /// # Errors
    /// `NotFound` when there is no such tag, or as any request.
    pub async fn add_tag(&self, vm: VmId, name: &str) -> Result<(), EngineError> {
        if self.vm_tags(vm).await?.iter().any(|t| t.name == name) {
            return Ok(());
        }
        let body = Body::default().nest("tag", &[], |b| b.text("name", name)).finish();
        let what = format!("giving VM {vm} the tag {name}");
        // Adding a tag twice is refused or ignored, never doubled.
        self.send(Request::post(format!("/vms/{vm}/tags"), body, what).idempotent()).await.map(drop)
    }

    /// Changes a VM's description.
    ///
    /// # Errors
    /// As any request.
    pub async fn describe_vm(&self, id: VmId, description: &str) -> Result<(), EngineError> {
        let body = Body::default().nest("vm", &[], |b| b.text("description", description)).finish();
        self.send(Request::put(format!("/vms/{id}"), body, format!("describing VM {id}")))
            .await
            .map(drop)
    }

    /// Switches delete protection.
    ///
    /// # Errors
    /// As any request.
    pub async fn protect_vm(&self, id: VmId, protected: bool) -> Result<(), EngineError> {
        let body = format!("<vm><delete_protected>{protected}</delete_protected></vm>");
        self.send(Request::put(format!("/vms/{id}"), body, format!("protecting VM {id}")))
            .await
            .map(drop)
    }
}
