//! Disks: read, create, describe, delete.

use std::time::Duration;

use hvbak_types::{Disk, DiskFormat, DiskId, DiskStatus, DomainId, VmId, VolumeId};
use tokio_util::sync::CancellationToken;

use crate::{
    client::{Engine, Request},
    error::EngineError,
    wait::{Created, Look},
    xml::Body,
};

/// A disk to be made. The id is chosen by us, so that a lost answer cannot make two.
#[derive(Debug, Clone, PartialEq)]
pub struct NewDisk {
    /// Its id; `DiskId::random()` unless there is a reason.
    pub id: DiskId,
    /// Name and alias.
    pub name: String,
    /// Shown in the administration portal.
    pub description: Option<String>,
    /// Virtual size in bytes; the engine may round it up, read it back.
    pub provisioned_size: u64,
    /// Raw with `sparse` is refused on block domains.
    pub format: DiskFormat,
    /// Thin.
    pub sparse: bool,
    /// Bytes of the first LV of a thin qcow2 disk on a block domain; vdsm adds 10 %.
    pub initial_size: Option<u64>,
    /// Where.
    pub domain: DomainId,
    /// The volume's id, chosen by us when given.
    pub image_id: Option<VolumeId>,
    /// Zero the blocks on deletion.
    pub wipe_after_delete: Option<bool>,
    /// Report IO errors to the guest.
    pub propagate_errors: Option<bool>,
    /// Changed block tracking (`backup=incremental`); sent to engines from 4.4, qcow2 only.
    pub incremental_backup: bool,
    /// A disk profile of the domain.
    pub disk_profile: Option<String>,
    /// A quota of the data center.
    pub quota: Option<String>,
}

impl NewDisk {
    /// A disk with a fresh id and nothing optional.
    pub fn new(
        name: impl Into<String>,
        size: u64,
        format: DiskFormat,
        sparse: bool,
        domain: DomainId,
    ) -> Self {
        Self {
            id: DiskId::random(),
            name: name.into(),
            description: None,
            provisioned_size: size,
            format,
            sparse,
            initial_size: None,
            domain,
            image_id: None,
            wipe_after_delete: None,
            propagate_errors: None,
            incremental_backup: false,
            disk_profile: None,
            quota: None,
        }
    }
}

impl Engine {
    /// One disk; `None` when there is none (any more).
    ///
    /// # Errors
    /// As any request.
    pub async fn disk(&self, id: DiskId) -> Result<Option<Disk>, EngineError> {
        match self.send(Request::get(format!("/disks/{id}"), format!("reading disk {id}"))).await {
            Ok(answer) => answer.one().map(Some),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks for a disk; it is `locked` at first, see `wait_disk_ok`.
    ///
    /// # Errors
    /// `Conflict` when the id exists already (not made by this call) or space is missing.
    pub async fn create_disk(&self, new: &NewDisk) -> Result<Created<Disk>, EngineError> {
        let id = new.id;
        let tracked = new.incremental_backup
            && new.format == DiskFormat::Cow
            && self.version().at_least(4, 4, 0);
        let body = Body::default()
            .nest("disk", &[("id", &id.to_string())], |b| {
                b.text("name", &new.name)
                    .text("alias", &new.name)
                    .maybe("description", new.description.as_ref())
                    .text("provisioned_size", &new.provisioned_size.to_string())
                    .text("format", new.format.as_word())
                    .text("sparse", &new.sparse.to_string())
                    .maybe("initial_size", new.initial_size)
                    .maybe("image_id", new.image_id)
                    .maybe("wipe_after_delete", new.wipe_after_delete)
                    .maybe("propagate_errors", new.propagate_errors)
                    .maybe("backup", tracked.then_some("incremental"))
                    .reference("disk_profile", new.disk_profile.as_ref())
                    .reference("quota", new.quota.as_ref())
                    .nest("storage_domains", &[], |b| {
                        b.reference("storage_domain", Some(new.domain))
                    })
            })
            .finish();
        let what = format!("creating disk {id}");
        let post = || async {
            let answer =
                self.send(Request::post("/disks", body.clone(), &what).no_waiting()).await?;
            let disk: Disk = answer.one()?;
            // An engine that ignored our id made a disk that no journal knows.
            if disk.id != id {
                return Err(answer.unexpected(format!("it made disk {} instead of {id}", disk.id)));
            }
            Ok((disk, answer.correlation))
        };
        self.create(None, post, || self.disk(id)).await
    }

    /// Waits until a disk is `ok`.
    ///
    /// # Errors
    /// `Failed` when it is `illegal` or gone; `Timeout`; `Cancelled`.
    pub async fn wait_disk_ok(
        &self,
        id: DiskId,
        limit: Duration,
        cancel: &CancellationToken,
    ) -> Result<Disk, EngineError> {
        let what = format!("disk {id}");
        let failed =
            |state: &str| EngineError::Failed { what: what.clone(), state: state.to_owned() };
        let look = || async {
            let Some(disk) = self.disk(id).await? else {
                return Err(failed("removed by the engine"));
            };
            match &disk.status {
                Some(DiskStatus::Ok) => Ok(Look::Done(disk)),
                Some(DiskStatus::Illegal) => Err(failed("illegal")),
                Some(status) => Ok(Look::Not(status.to_string())),
                None => Ok(Look::Not("no status".into())),
            }
        };
        self.poll(&what, limit, cancel, look).await
    }

    /// Starts a deletion; a disk that is gone already is fine.
    ///
    /// # Errors
    /// `Conflict` while it is attached to a running VM or locked beyond the budget.
    pub async fn delete_disk(&self, id: DiskId) -> Result<(), EngineError> {
        self.delete_at(format!("/disks/{id}"), format!("deleting disk {id}")).await
    }

    /// Waits until the engine does not know a disk any more.
    ///
    /// # Errors
    /// `Failed` when it came back as `illegal`; `Timeout`; `Cancelled`.
    pub async fn wait_disk_gone(
        &self,
        id: DiskId,
        limit: Duration,
        cancel: &CancellationToken,
    ) -> Result<(), EngineError> {
        let what = format!("deletion of disk {id}");
        let look = || async {
            match self.disk(id).await? {
                None => Ok(Look::Done(())),
                Some(disk) => {
                    Ok(Look::Not(disk.status.map_or_else(String::new, |s| s.to_string())))
                }
            }
        };
        self.poll(&what, limit, cancel, look).await
    }

    /// Changes a disk's description. `attached_to` is needed before engine 4.4, where only
    /// attached disks can be changed. Tells whether the engine did it.
    ///
    /// # Errors
    /// As any request.
    pub async fn describe_disk(
        &self,
        id: DiskId,
        attached_to: Option<VmId>,
        description: &str,
    ) -> Result<bool, EngineError> {
        let what = format!("describing disk {id}");
        let inner =
            Body::default().nest("disk", &[], |b| b.text("description", description)).finish();
        let request = match attached_to {
            _ if self.version().at_least(4, 4, 0) => {
                Request::put(format!("/disks/{id}"), inner, what)
            }
            Some(vm) => Request::put(
                format!("/vms/{vm}/diskattachments/{id}"),
                format!("<disk_attachment>{inner}</disk_attachment>"),
                what,
            ),
            None => return Ok(false),
        };
        self.send(request).await?;
        // The engine shows an empty one not at all.
        let now = self.disk(id).await?;
        Ok(now.is_some_and(|disk| disk.description.unwrap_or_default() == description))
    }
}
