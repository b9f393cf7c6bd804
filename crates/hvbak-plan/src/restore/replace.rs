//! Which VM a restore replaces, and what becomes of its disks.
//!
//! Invariants: only the VM that the point came from is replaced, known by its id; only disks that
//! the point brings back are deleted with it. Everything else of it stays and goes to the new VM:
//! disks that are not in the point hold what nobody has stored.

use hvbak_types::{
    Attachment, ContentType, Disk, DiskId, DiskInterface, DiskStatus, Inventory, Snapshot,
    SnapshotKind, Vm, VmId, VmStatus,
};
use serde::{Deserialize, Serialize};

use super::{PointFacts, RestoreError};

/// What the engine says of the VM that is to be replaced.
#[derive(Debug, Clone, PartialEq)]
pub struct OldVm {
    pub vm: Vm,
    pub attachments: Vec<Attachment>,
    pub snapshots: Vec<Snapshot>,
    /// How the descriptions of our own snapshots begin.
    pub own_prefix: String,
}

/// A VM that is deleted once its successor stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replace {
    pub vm: VmId,
    /// Its name now, which the successor gets.
    pub name: String,
    /// Disks that are deleted with it; the point brings them back.
    pub deleted: Vec<OldDisk>,
    /// Disks that are detached before, and attached to the successor.
    pub kept: Vec<KeptDisk>,
    /// Descriptions of our snapshots of it, which go with it.
    pub snapshots: Vec<String>,
    /// The successor boots from a disk that is brought back, so from none that is kept.
    #[serde(default)]
    pub boots_anew: bool,
}

/// A disk that is deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OldDisk {
    pub id: DiskId,
    pub alias: String,
    /// Bytes.
    pub virtual_size: Option<u64>,
}

/// A disk that stays, and how it is attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptDisk {
    pub id: DiskId,
    pub alias: String,
    pub why: String,
    /// It has volumes, which snapshots may hold.
    pub image: bool,
    /// The engine's word.
    pub interface: String,
    pub bootable: bool,
    pub active: bool,
    pub read_only: bool,
    pub pass_discard: bool,
    #[serde(default)]
    pub scsi_reservation: bool,
}

/// The id of the VM that a restore of this point would replace.
///
/// # Errors
/// [`RestoreError::CannotReplace`]: the VM is gone, whether or not another has its name.
pub fn replaced_vm(inventory: &Inventory, point: &PointFacts) -> Result<VmId, RestoreError> {
    if inventory.vms.iter().any(|vm| vm.id == point.vm) {
        return Ok(point.vm);
    }
    let (name, id) = (point.name.clone(), point.vm);
    if point.template {
        let (why, remedy) = ("the point is a template's".into(), "leave `--overwrite` away".into());
        return Err(RestoreError::CannotReplace { name, why, remedy });
    }
    let (why, remedy) = match inventory.vms.iter().find(|vm| vm.name == name) {
        Some(other) => (
            format!(
                "VM {id}, which the point is of, is gone, and the VM of that name is another, {}",
                other.id
            ),
            "look which VM it is; restore beside it with `--name`",
        ),
        None => (
            format!("VM {id}, which the point is of, is gone: there is nothing to replace"),
            "leave `--overwrite` away",
        ),
    };
    Err(RestoreError::CannotReplace { name, why, remedy: remedy.into() })
}

impl Replace {
    /// What replacing this VM means; `restored` are the stored disks that come back.
    ///
    /// # Errors
    /// [`RestoreError::CannotReplace`] with the remedy. Nobody is asked to give up what is not in
    /// the point.
    pub fn judge(old: &OldVm, restored: &[DiskId]) -> Result<Self, RestoreError> {
        let OldVm { vm, attachments, snapshots, own_prefix } = old;
        let refuse = |why: String, remedy: &str| {
            let name = vm.name.clone();
            Err(RestoreError::CannotReplace { name, why, remedy: remedy.into() })
        };
        if vm.is_hosted_engine() {
            return refuse("it runs the engine".into(), "see `hvbak hosted-engine plan`");
        }
        if vm.pool || vm.stateless == Some(true) {
            let remedy = "restore beside it with `--name`";
            return refuse("it belongs to a pool or is stateless".into(), remedy);
        }
        if vm.status != VmStatus::Down {
            let remedy = "shut it down; hvbak does not do that for you";
            return refuse(format!("it is {}, not down", vm.status), remedy);
        }
        if vm.delete_protected == Some(true) {
            let remedy = "take its delete protection away: Edit, High Availability";
            return refuse("it is protected against deletion".into(), remedy);
        }
        let mut own = Vec::new();
        for snapshot in snapshots {
            let text = &snapshot.description;
            match snapshot.kind {
                SnapshotKind::Active => {}
                SnapshotKind::Regular if text.starts_with(own_prefix) => own.push(text.clone()),
                _ => {
                    let remedy =
                        "a restore would lose it: delete it if nobody needs it, or end its preview";
                    return refuse(format!("it has snapshot `{text}`, which is not ours"), remedy);
                }
            }
        }
        let (mut deleted, mut kept) = (Vec::new(), Vec::new());
        for attachment in attachments {
            let id = attachment.disk_id;
            let Some(disk) = &attachment.disk else {
                let remedy = "look at it in the engine";
                return refuse(format!("the engine does not show its disk {id}"), remedy);
            };
            if disk.status == Some(DiskStatus::Locked) {
                let remedy = "wait for the backup, transfer or move that holds it";
                return refuse(format!("its disk `{}` is locked", disk.alias), remedy);
            }
            match stays(disk, restored) {
                None => deleted.push(OldDisk {
                    id,
                    alias: disk.alias.clone(),
                    virtual_size: disk.provisioned_size,
                }),
                Some(why) => kept.push(KeptDisk {
                    id,
                    alias: disk.alias.clone(),
                    why: why.into(),
                    image: is_image(disk),
                    interface: match &attachment.interface {
                        Some(interface) => interface.as_word().to_owned(),
                        None => DiskInterface::VirtioScsi.as_word().to_owned(),
                    },
                    bootable: attachment.bootable == Some(true),
                    active: attachment.active != Some(false),
                    read_only: attachment.read_only == Some(true),
                    pass_discard: attachment.pass_discard == Some(true),
                    scsi_reservation: attachment.uses_scsi_reservation == Some(true),
                }),
            }
        }
        own.sort();
        let (vm, name) = (vm.id, vm.name.clone());
        Ok(Self { vm, name, deleted, kept, snapshots: own, boots_anew: false })
    }
}

fn is_image(disk: &Disk) -> bool {
    disk.storage_type.as_deref().is_none_or(|kind| kind == "image")
}

/// Why a disk is not deleted, if it is not.
fn stays(disk: &Disk, restored: &[DiskId]) -> Option<&'static str> {
    if !is_image(disk) {
        return Some("it is no image");
    }
    if disk.shareable == Some(true) {
        return Some("it is shareable: other VMs may have it");
    }
    if disk.content_type.as_ref().is_some_and(|kind| *kind != ContentType::Data) {
        return Some("it holds no data of a guest");
    }
    (!restored.contains(&disk.id)).then_some("this restore does not bring it back")
}

#[cfg(test)]
#[path = "replace_tests.rs"]
mod tests;
