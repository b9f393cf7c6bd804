//! Tables for what a replacement takes away and what it keeps.

use hvbak_types::{
    Attachment, ContentType, Disk, DiskFormat, DiskId, DiskStatus, Snapshot, SnapshotId,
    SnapshotKind, VmStatus,
};

use super::*;
use crate::backup::tests::{inventory, vm};

fn disk(alias: &str) -> Disk {
    Disk {
        id: DiskId::random(),
        alias: alias.into(),
        description: None,
        status: Some(DiskStatus::Ok),
        storage_type: Some("image".into()),
        content_type: Some(ContentType::Data),
        format: Some(DiskFormat::Raw),
        sparse: Some(true),
        shareable: Some(false),
        provisioned_size: Some(10 << 30),
        actual_size: None,
        total_size: None,
        initial_size: None,
        image_id: None,
        storage_domains: vec![],
        wipe_after_delete: None,
        propagate_errors: None,
        qcow_version: None,
        backup: None,
        disk_profile: None,
        quota: None,
        luns: vec![],
    }
}

fn attached(disk: Disk) -> Attachment {
    Attachment {
        disk_id: disk.id,
        disk: Some(disk),
        active: Some(true),
        bootable: Some(false),
        interface: None,
        read_only: None,
        pass_discard: None,
        uses_scsi_reservation: None,
        logical_name: None,
    }
}

fn snapshot(description: &str, kind: SnapshotKind) -> Snapshot {
    let id = SnapshotId::random();
    Snapshot { id, description: description.into(), kind, status: None, date: None, memory: None }
}

fn old() -> OldVm {
    let vm = Vm { status: VmStatus::Down, ..vm("web1") };
    let snapshots = vec![
        snapshot("Active VM", SnapshotKind::Active),
        snapshot("hvbak:us:20261121T021454Z", SnapshotKind::Regular),
    ];
    OldVm { vm, attachments: Vec::new(), snapshots, own_prefix: "hvbak:us:".into() }
}

#[test]
fn only_what_the_point_brings_back_is_deleted() {
    let mut old = old();
    let lun = Disk { storage_type: Some("lun".into()), ..disk("lun") };
    let shared = Disk { shareable: Some(true), ..disk("shared") };
    let memory =
        Disk { content_type: Some(ContentType::from_word("memory_dump_volume")), ..disk("m") };
    let (stored, new) = (disk("stored"), disk("added later"));
    // Being in the point does not make a disk that others may have ours to delete.
    let restored = [stored.id, lun.id, shared.id, memory.id];
    let all = [stored.clone(), lun, shared, memory, new];
    old.attachments = all.into_iter().map(attached).collect();
    let replace = Replace::judge(&old, &restored).unwrap();
    let deleted: Vec<_> = replace.deleted.iter().map(|d| d.id).collect();
    assert_eq!(deleted, [stored.id]);
    let kept: Vec<_> = replace.kept.iter().map(|d| d.alias.as_str()).collect();
    assert_eq!(kept, ["lun", "shared", "m", "added later"]);
    assert!(!replace.kept[0].image && replace.kept[3].image);
    assert_eq!(replace.snapshots, ["hvbak:us:20261121T021454Z"]);
}

#[test]
fn what_somebody_would_miss_is_not_replaced() {
    fn check(change: impl FnOnce(&mut OldVm), expected: &str) {
        let mut old = old();
        change(&mut old);
        let error = Replace::judge(&old, &[]).unwrap_err();
        assert!(error.to_string().contains(expected), "{error} / {expected}");
        assert!(error.hint().is_some_and(|hint| !hint.is_empty()));
    }
    check(|o| o.vm.status = VmStatus::Up, "it is up");
    check(|o| o.vm.status = VmStatus::from_word("suspended"), "it is suspended");
    check(|o| o.vm.delete_protected = Some(true), "protected");
    check(|o| o.vm.pool = true, "pool");
    check(|o| o.vm.stateless = Some(true), "stateless");
    check(|o| o.vm.origin = Some("managed_hosted_engine".into()), "runs the engine");
    check(|o| o.snapshots.push(snapshot("mine", SnapshotKind::Regular)), "`mine`");
    check(|o| o.snapshots.push(snapshot("hvbak:other:x", SnapshotKind::Regular)), "not ours");
    check(|o| o.snapshots.push(snapshot("p", SnapshotKind::from_word("preview"))), "`p`");
    let locked = Disk { status: Some(DiskStatus::Locked), ..disk("busy") };
    check(|o| o.attachments.push(attached(locked)), "`busy` is locked");
    check(
        |o| o.attachments.push(Attachment { disk: None, ..attached(disk("x")) }),
        "does not show",
    );
}

#[test]
fn the_vm_is_known_by_its_id_alone() {
    let mut inv = inventory();
    let point = super::super::tests::point();
    let error = replaced_vm(&inv, &point).unwrap_err();
    assert!(error.to_string().contains("nothing to replace"), "{error}");
    inv.vms.push(vm("web1"));
    let error = replaced_vm(&inv, &point).unwrap_err();
    assert!(error.to_string().contains("is another"), "{error}");
    inv.vms.push(Vm { id: point.vm, ..vm("renamed since") });
    assert_eq!(replaced_vm(&inv, &point).unwrap(), point.vm);
}
