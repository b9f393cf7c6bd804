//! Templates: documents for the backup, making and unmaking for the restore.
//!
//! An engine gives no OVF of a template, not even with `All-Content`: only its resource of VMs
//! fills `initialization/configuration` (ovirt-engine `BackendVmsResource`, `BackendTemplateResource`).

use std::time::Duration;

use hvbak_types::{BiosType, ClusterId, DiskId, Nic, Tag, Template, TemplateId, VmId};
use tokio_util::sync::CancellationToken;

use crate::{
    client::{Engine, Request},
    error::EngineError,
    parse::ParseError,
    vm::NewVm,
    wait::{Created, Look},
    xml::{Body, Element},
};

/// A template to be made from a VM that is down.
#[derive(Debug, Clone, PartialEq)]
pub struct NewTemplate {
    /// Unique in the data center.
    pub name: String,
    /// Shown in the portal.
    pub description: String,
    /// Where VMs made from it are at home.
    pub cluster: ClusterId,
    /// The VM whose disks are copied.
    pub vm: VmId,
    /// Descriptions of the copies, by the VM's disks.
    pub disks: Vec<(DiskId, String)>,
}

/// What a stored answer of `GET /templates/{id}` says of the machine, for a VM that is made
/// like it: size, processor, operating system, firmware, kind. Its name is the template's.
///
/// # Errors
/// A text that is no such answer.
pub fn hardware_of_template(document: &[u8]) -> Result<NewVm, ParseError> {
    let root = Element::parse(document)?;
    let template: Template = crate::parse::one_in(&root)?;
    let number = |path: &str| root.value::<u32>(path);
    let topology = number("cpu/topology/sockets").map(|sockets| {
        let part = |name: &str| number(&format!("cpu/topology/{name}")).unwrap_or(1);
        (sockets, part("cores"), part("threads"))
    });
    Ok(NewVm {
        name: template.name,
        description: template.description,
        memory: root.value("memory"),
        topology,
        os_type: root.word("os/type").map(str::to_owned),
        bios_type: root.word("bios/type").map(BiosType::from_word),
        vm_type: root.word("type").map(str::to_owned),
    })
}

/// A template's `status` when VMs can be made from it.
const OK: &str = "ok";

impl Engine {
    /// One template; `None` when there is none.
    ///
    /// # Errors
    /// As any request.
    pub async fn find_template(&self, id: TemplateId) -> Result<Option<Template>, EngineError> {
        let what = format!("reading template {id}");
        match self.send(Request::get(format!("/templates/{id}"), what)).await {
            Ok(answer) => Ok(Some(answer.one()?)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A template and the bytes of the answer.
    ///
    /// # Errors
    /// `NotFound`, or as any request.
    pub async fn template_document(
        &self,
        id: TemplateId,
    ) -> Result<(Vec<u8>, Template), EngineError> {
        let what = format!("reading template {id} with all content");
        let answer =
            self.send(Request::get(format!("/templates/{id}"), what).all_content()).await?;
        let template = answer.one()?;
        Ok((answer.body, template))
    }

    /// A template's NICs: the answer's bytes and what they say. They have no addresses.
    ///
    /// # Errors
    /// As any request.
    pub async fn template_nics(&self, id: TemplateId) -> Result<(Vec<u8>, Vec<Nic>), EngineError> {
        let what = format!("reading the NICs of template {id}");
        let answer = self.send(Request::get(format!("/templates/{id}/nics"), what)).await?;
        let list = answer.list()?;
        Ok((answer.body, list))
    }

    /// A template's tags: the answer's bytes and what they say.
    ///
    /// # Errors
    /// As any request.
    pub async fn template_tags(&self, id: TemplateId) -> Result<(Vec<u8>, Vec<Tag>), EngineError> {
        let what = format!("reading the tags of template {id}");
        let answer = self.send(Request::get(format!("/templates/{id}/tags"), what)).await?;
        let list = answer.list()?;
        Ok((answer.body, list))
    }

    /// Makes a template; it is `locked` until its disks are copied. When the answer is lost it
    /// is found again by name and description.
    ///
    /// # Errors
    /// `Conflict` when the name is in use or the VM is not down.
    pub async fn create_template(
        &self,
        new: &NewTemplate,
    ) -> Result<Created<Template>, EngineError> {
        let body = Body::default()
            .nest("template", &[], |b| {
                b.text("name", &new.name)
                    .text("description", &new.description)
                    .reference("cluster", Some(new.cluster))
                    .nest("vm", &[("id", &new.vm.to_string())], |b| {
                        b.nest("disk_attachments", &[], |b| {
                            new.disks.iter().fold(b, |b, (disk, description)| {
                                b.nest("disk_attachment", &[], |b| {
                                    b.nest("disk", &[("id", &disk.to_string())], |b| {
                                        b.text("description", description)
                                    })
                                })
                            })
                        })
                    })
            })
            .finish();
        let what = format!("making template {}", new.name);
        let post = || async {
            let request = Request::post("/templates", body.clone(), &what).no_waiting();
            let answer = self.send(request).await?;
            Ok((answer.one::<Template>()?, answer.correlation))
        };
        let find = || async { self.described_template(&new.name, &new.description).await };
        self.create(None, post, find).await
    }

    /// The template of that name and description.
    ///
    /// # Errors
    /// As any request.
    pub async fn described_template(
        &self,
        name: &str,
        description: &str,
    ) -> Result<Option<Template>, EngineError> {
        let all = self.templates().await?;
        let is = |t: &Template| t.name == name && t.description.as_deref() == Some(description);
        Ok(all.into_iter().find(is))
    }

    /// Waits until VMs can be made from a template.
    ///
    /// # Errors
    /// `Failed` when it is gone (the engine removes one whose disks it could not copy) or
    /// illegal; `Timeout`; `Cancelled`.
    pub async fn wait_template_ok(
        &self,
        id: TemplateId,
        limit: Duration,
        cancel: &CancellationToken,
    ) -> Result<(), EngineError> {
        let what = format!("template {id} on its way to ok");
        let failed = |state: &str| EngineError::Failed { what: what.clone(), state: state.into() };
        let look = || async {
            let Some(found) = self.find_template(id).await? else { return Err(failed("removed")) };
            match found.status.as_deref() {
                Some(OK) => Ok(Look::Done(())),
                Some("illegal") => Err(failed("illegal")),
                other => Ok(Look::Not(other.unwrap_or("without status").to_owned())),
            }
        };
        self.poll(&what, limit, cancel, look).await
    }

    /// Deletes a template with its disks; gone already is fine. Only ever call this with the
    /// id of a template that this repository's mark is on.
    ///
    /// # Errors
    /// `Conflict` while it is locked or VMs are based on it.
    pub async fn delete_template(&self, id: TemplateId) -> Result<(), EngineError> {
        let what = format!("deleting template {id}");
        match self.send(Request::delete(format!("/templates/{id}"), what)).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Waits until the engine does not know a template any more.
    ///
    /// # Errors
    /// `Timeout`; `Cancelled`.
    pub async fn wait_template_gone(
        &self,
        id: TemplateId,
        limit: Duration,
        cancel: &CancellationToken,
    ) -> Result<(), EngineError> {
        let look = || async {
            Ok(match self.find_template(id).await? {
                None => Look::Done(()),
                Some(t) => Look::Not(t.status.unwrap_or_default()),
            })
        };
        self.poll(&format!("deletion of template {id}"), limit, cancel, look).await
    }

    /// Changes a template's description.
    ///
    /// # Errors
    /// As any request.
    pub async fn describe_template(
        &self,
        id: TemplateId,
        description: &str,
    ) -> Result<(), EngineError> {
        let body =
            Body::default().nest("template", &[], |b| b.text("description", description)).finish();
        let what = format!("describing template {id}");
        self.send(Request::put(format!("/templates/{id}"), body, what)).await.map(drop)
    }
}
