//! Snapshots: create, look, delete, and the guest's quiescence around them.
//!
//! Facts that a reader would break: `persist_memorystate` defaults to true in the engine,
//! so false is always sent; the id of "Active VM" changes with every snapshot; a deleted
//! snapshot's volume survives and the newer one's disappears, so volume ids are read again
//! after every deletion.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use hvbak_types::{DiskId, Snapshot, SnapshotDisk, SnapshotId, SnapshotStatus, VmId};
use tokio_util::sync::CancellationToken;

use crate::{
    client::{Engine, Request},
    error::EngineError,
    wait::{Created, Look},
    xml::Body,
};

/// How a deletion ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotGone {
    /// The engine does not know it any more.
    Gone,
    /// The merge failed or was never started; it may be deleted again. With the status.
    StillThere(SnapshotStatus),
}

impl Engine {
    /// Snapshots of a VM, "Active VM" included (`SnapshotKind::Active`), in no fixed order.
    ///
    /// # Errors
    /// As any request.
    pub async fn snapshots(&self, vm: VmId) -> Result<Vec<Snapshot>, EngineError> {
        let what = format!("listing the snapshots of VM {vm}");
        self.send(Request::get(format!("/vms/{vm}/snapshots"), what)).await?.list()
    }

    /// One snapshot; `None` when there is none (any more).
    ///
    /// # Errors
    /// As any request.
    pub async fn snapshot(
        &self,
        vm: VmId,
        id: SnapshotId,
    ) -> Result<Option<Snapshot>, EngineError> {
        let what = format!("reading snapshot {id} of VM {vm}");
        match self.send(Request::get(format!("/vms/{vm}/snapshots/{id}"), what)).await {
            Ok(answer) => answer.one().map(Some),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The volumes that are read-only since the snapshot. Disks without a volume id (LUNs)
    /// are left out.
    ///
    /// # Errors
    /// As any request; `NotFound` when the snapshot is gone.
    pub async fn snapshot_disks(
        &self,
        vm: VmId,
        id: SnapshotId,
    ) -> Result<Vec<SnapshotDisk>, EngineError> {
        let what = format!("reading the disks of snapshot {id} of VM {vm}");
        self.send(Request::get(format!("/vms/{vm}/snapshots/{id}/disks"), what)).await?.list()
    }

    /// Asks for a snapshot without memory; it is `locked` at first, see `wait_snapshot`.
    /// `disks`: only these; `None`: all that can be snapshotted.
    ///
    /// `description` must be unique among the VM's snapshots: after a lost answer the
    /// snapshot is looked for by it before the request is repeated.
    ///
    /// # Errors
    /// `Conflict` when the VM's state forbids it, or a lock outlasts the budget.
    pub async fn create_snapshot(
        &self,
        vm: VmId,
        description: &str,
        disks: Option<&[DiskId]>,
    ) -> Result<Created<Snapshot>, EngineError> {
        self.create_snapshot_within(None, vm, description, disks).await
    }

    /// As `create_snapshot`, but asks and repeats for no longer than `patience`: with a frozen guest
    /// minutes of waiting for a lock would be minutes of a hanging guest.
    ///
    /// # Errors
    /// As `create_snapshot`.
    pub async fn create_snapshot_within(
        &self,
        patience: Option<Duration>,
        vm: VmId,
        description: &str,
        disks: Option<&[DiskId]>,
    ) -> Result<Created<Snapshot>, EngineError> {
        let body = Body::default()
            .nest("snapshot", &[], |b| {
                let b = b.text("description", description).text("persist_memorystate", "false");
                match disks {
                    None => b,
                    Some(disks) => b.nest("disk_attachments", &[], |b| {
                        disks.iter().fold(b, |b, disk| {
                            b.nest("disk_attachment", &[], |b| b.reference("disk", Some(disk)))
                        })
                    }),
                }
            })
            .finish();
        let what = format!("creating a snapshot of VM {vm}");
        let post = || async {
            let path = format!("/vms/{vm}/snapshots");
            let mut request =
                Request::post(path, body.clone(), &what).no_waiting().patience(patience);
            if let Some(patience) = patience {
                request = request.timeout(patience);
            }
            let answer = self.send(request).await?;
            Ok((answer.one::<Snapshot>()?, answer.correlation))
        };
        let find = || async {
            // Not by type: an early 4.2 engine gave snapshots each other's types.
            let all = self.snapshots(vm).await?;
            Ok(all.into_iter().find(|s| s.description == description))
        };
        self.create(patience, post, find).await
    }

    /// Waits until a snapshot is `ok`. The engine's own limit is 30 minutes.
    ///
    /// # Errors
    /// `Failed` when it was rolled back (gone) or is in preview; `Timeout`; `Cancelled`.
    pub async fn wait_snapshot(
        &self,
        vm: VmId,
        id: SnapshotId,
        limit: Duration,
        cancel: &CancellationToken,
    ) -> Result<Snapshot, EngineError> {
        let what = format!("snapshot {id} of VM {vm}");
        let failed =
            |state: &str| EngineError::Failed { what: what.clone(), state: state.to_owned() };
        let look = || async {
            let Some(snapshot) = self.snapshot(vm, id).await? else {
                return Err(failed("rolled back by the engine"));
            };
            match &snapshot.status {
                Some(SnapshotStatus::Ok) => Ok(Look::Done(snapshot)),
                Some(SnapshotStatus::InPreview) => Err(failed("in_preview")),
                Some(status) => Ok(Look::Not(status.to_string())),
                None => Ok(Look::Not("no status".into())),
            }
        };
        self.poll(&what, limit, cancel, look).await
    }

    /// Starts the deletion, that is the merge. A snapshot that is gone already is fine.
    ///
    /// # Errors
    /// `Conflict` when the VM's state forbids it, or a lock outlasts the budget.
    pub async fn delete_snapshot(&self, vm: VmId, id: SnapshotId) -> Result<(), EngineError> {
        let what = format!("deleting snapshot {id} of VM {vm}");
        self.delete_at(format!("/vms/{vm}/snapshots/{id}"), what).await
    }

    /// Waits for the merge: hours are normal.
    ///
    /// # Errors
    /// `Timeout`, `Cancelled`; the engine goes on merging in both cases.
    pub async fn wait_snapshot_gone(
        &self,
        vm: VmId,
        id: SnapshotId,
        limit: Duration,
        cancel: &CancellationToken,
    ) -> Result<SnapshotGone, EngineError> {
        let what = format!("deletion of snapshot {id} of VM {vm}");
        let start = Instant::now();
        // Right after the request it can still be `ok` for a moment; once it was locked,
        // `ok` means that the merge failed.
        let grace = self.timeouts().poll_fast_for * 3;
        let was_locked = AtomicBool::new(false);
        let look = || async {
            let Some(snapshot) = self.snapshot(vm, id).await? else {
                return Ok(Look::Done(SnapshotGone::Gone));
            };
            let status = snapshot.status.unwrap_or(SnapshotStatus::Other(String::new()));
            if status == SnapshotStatus::Locked {
                was_locked.store(true, Ordering::Relaxed);
            } else if was_locked.load(Ordering::Relaxed) || start.elapsed() > grace {
                return Ok(Look::Done(SnapshotGone::StillThere(status)));
            }
            Ok(Look::Not(status.to_string()))
        };
        self.poll(&what, limit, cancel, look).await
    }

    /// Freezes the guest's file systems; an error means that they are not frozen for sure.
    /// Call `thaw` in every path afterwards, after an error too.
    ///
    /// # Errors
    /// No agent, the VM is not up, no permit.
    pub async fn freeze(&self, vm: VmId) -> Result<(), EngineError> {
        let path = format!("/vms/{vm}/freezefilesystems");
        self.send(
            Request::post(path, action(), format!("freezing the guest of VM {vm}")).no_waiting(),
        )
        .await
        .map(drop)
    }

    /// Thaws the guest's file systems. vdsm thaws by itself after a snapshot, so an error
    /// here is no failure of the job; repeating is harmless.
    ///
    /// # Errors
    /// As `freeze`.
    pub async fn thaw(&self, vm: VmId) -> Result<(), EngineError> {
        let path = format!("/vms/{vm}/thawfilesystems");
        let request = Request::post(path, action(), format!("thawing the guest of VM {vm}"));
        self.send(request.idempotent().no_waiting()).await.map(drop)
    }

    /// Deletes; what is gone already is fine.
    pub(crate) async fn delete_at(&self, path: String, what: String) -> Result<(), EngineError> {
        match self.send(Request::delete(path, what)).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The body of an action without parameters.
pub(crate) fn action() -> String {
    "<action/>".to_owned()
}
