//! What a VM has: attached disks, NICs, tags.
//!
//! Raw bytes come along wherever a backup stores the engine's own answer.

use hvbak_types::{
    Attachment, DiskId, DiskInterface, Nic, NicId, Tag, TemplateId, VmId, VnicProfileId,
};

use crate::{
    client::{Engine, Request},
    error::EngineError,
    wait::Created,
    xml::Body,
};

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
    /// As it was; of a LUN.
    pub uses_scsi_reservation: Option<bool>,
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
                    .maybe("uses_scsi_reservation", new.uses_scsi_reservation)
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
        self.create(None, post, find).await
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
        self.create(None, post, find).await
    }

    /// Changes cable, card or profile of a NIC.
    ///
    /// # Errors
    /// As any request.
    pub async fn update_nic(
        &self,
        vm: VmId,
        nic: NicId,
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
    pub async fn delete_nic(&self, vm: VmId, nic: NicId) -> Result<(), EngineError> {
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
}
