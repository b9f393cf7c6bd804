//! VMs: documents for the backup, making and unmaking for the restore, power.

use std::time::{Duration, Instant};

use hvbak_types::{BiosType, ClusterId, HostId, TemplateId, Vm, VmId, VmStatus};
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
        self.create(None, post, find).await
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

    /// Deletes a VM; gone already is fine. Without `detach_only` its disks go with it.
    /// Only ever call this with the id of a VM that this job made, or that a person has
    /// confirmed to be replaced.
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

    /// Asks once for a VM's deletion, with its disks: sent again, the request would meet its own
    /// doing and be refused, which must not be taken for a "no". Already gone is fine.
    ///
    /// # Errors
    /// `OutcomeUnknown` when the answer is lost; `Conflict` also where a lock is passing.
    pub async fn delete_vm_once(&self, id: VmId) -> Result<(), EngineError> {
        let request = Request::delete(format!("/vms/{id}"), format!("deleting VM {id}"));
        match self.send(request.once()).await {
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

    /// Gives a VM another name.
    ///
    /// # Errors
    /// `Conflict` when the name is in use, or as any request.
    pub async fn rename_vm(&self, id: VmId, name: &str) -> Result<(), EngineError> {
        let body = Body::default().nest("vm", &[], |b| b.text("name", name)).finish();
        self.send(Request::put(format!("/vms/{id}"), body, format!("renaming VM {id} to {name}")))
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
