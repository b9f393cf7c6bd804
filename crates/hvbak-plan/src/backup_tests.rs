//! Tables for the backup plan; the builders serve the other rooms' tests too.

use hvbak_types::*;

use super::*;

pub(crate) fn inventory() -> Inventory {
    let center = DataCenter {
        id: "00000001-0001-0001-0001-000000000311".parse().unwrap(),
        name: "Default".into(),
        description: None,
        status: None,
        local: None,
        storage_format: None,
        quota_mode: None,
        version: None,
    };
    let cluster = Cluster {
        id: "00000002-0002-0002-0002-000000000311".parse().unwrap(),
        name: "Default".into(),
        description: None,
        data_center: Some(center.id),
        version: None,
        cpu_architecture: None,
        cpu_type: None,
        mac_pool: None,
    };
    let domain = StorageDomain {
        id: "00000003-0000-4000-8000-000000000001".parse().unwrap(),
        name: "data1".into(),
        description: None,
        kind: DomainKind::Data,
        storage: StorageKind::Nfs,
        data_centers: vec![center.id],
        status: Some(DomainStatus::Active),
        master: None,
        format: None,
        address: None,
        path: None,
        vfs_type: None,
        nfs_version: None,
        mount_options: None,
        volume_group: None,
        luns: vec![],
        available: Some(100 << 30),
        used: None,
        committed: None,
        block_size: None,
        critical_space_gib: Some(5),
    };
    let host = |name: &str, spm| Host {
        id: HostId::random(),
        name: name.into(),
        address: name.into(),
        status: HostStatus::Up,
        cluster: Some(cluster.id),
        ssh: HostSsh::default(),
        spm,
        host_type: None,
        os: None,
        vdsm_version: None,
        hardware_uuid: None,
        active_vms: None,
    };
    Inventory {
        hosts: vec![host("hv1", true), host("hv2", false)],
        data_centers: vec![center],
        clusters: vec![cluster],
        storage_domains: vec![domain],
        ..Inventory::default()
    }
}

pub(crate) fn vm(name: &str) -> Vm {
    Vm {
        id: VmId::random(),
        name: name.into(),
        description: None,
        comment: None,
        status: VmStatus::Up,
        host: None,
        cluster: Some("00000002-0002-0002-0002-000000000311".parse().unwrap()),
        template: None,
        original_template: None,
        memory: None,
        cpu_sockets: None,
        cpu_cores: None,
        cpu_threads: None,
        os_type: None,
        bios_type: None,
        vm_type: None,
        origin: None,
        stateless: None,
        pool: false,
        delete_protected: None,
        high_availability: None,
        fqdn: None,
        agent_hint: true,
        creation_time: None,
        tags: vec![],
    }
}

fn disk() -> Disk {
    Disk {
        id: DiskId::random(),
        alias: "web1_Disk1".into(),
        description: None,
        status: Some(DiskStatus::Ok),
        storage_type: Some("image".into()),
        content_type: Some(ContentType::Data),
        format: Some(DiskFormat::Raw),
        sparse: Some(true),
        shareable: Some(false),
        provisioned_size: Some(10 << 30),
        actual_size: Some(1 << 30),
        total_size: Some(3 << 30),
        initial_size: None,
        image_id: None,
        storage_domains: vec!["00000003-0000-4000-8000-000000000001".parse().unwrap()],
        wipe_after_delete: None,
        propagate_errors: None,
        qcow_version: None,
        backup: None,
        disk_profile: None,
        quota: None,
        luns: vec![],
    }
}

pub(crate) fn attachment() -> Attachment {
    let d = disk();
    Attachment {
        disk_id: d.id,
        disk: Some(d),
        active: Some(true),
        bootable: Some(true),
        interface: None,
        read_only: None,
        pass_discard: None,
        uses_scsi_reservation: None,
        logical_name: None,
    }
}

fn plan_of(change: impl FnOnce(&mut Inventory, &mut VmFacts)) -> VmPlan {
    let mut inv = inventory();
    let mut facts = VmFacts {
        vm: vm("web1"),
        attachments: vec![attachment()],
        snapshots: vec![],
        base: None,
        deltas: 0,
        left: None,
    };
    change(&mut inv, &mut facts);
    let vms = [facts];
    let input = BackupInput {
        inventory: &inv,
        vms: &vms,
        quiesce: Quiesce::Auto,
        exclude_disks: &DiskRules::new(&["excluded".to_owned()], None).unwrap(),
        host: None,
        wish: Wish::Auto,
        full_every: None,
        own: "hvbak:r:",
    };
    plan_backup(&input).vms.remove(0)
}

#[test]
fn a_plain_vm_is_read_through_a_host_that_is_not_the_spm() {
    let plan = plan_of(|_, _| {});
    assert_eq!(plan.action, VmAction::Backup);
    assert_eq!(plan.host.unwrap().name, "hv2");
    assert!(plan.freeze);
    assert_eq!(plan.expected_bytes, 3 << 30);
    assert!(plan.warnings.is_empty());
}

#[test]
fn a_running_vm_with_lvs_is_read_where_it_runs_and_others_beside_the_spm() {
    fn chosen(change: impl FnOnce(&mut Inventory, &mut VmFacts)) -> (String, String) {
        let host = plan_of(change).host.unwrap();
        (host.name, host.why)
    }
    let lvs = |i: &mut Inventory| i.storage_domains[0].storage = StorageKind::Iscsi;
    let runs = |i: &Inventory, f: &mut VmFacts, n: usize| f.vm.host = Some(i.hosts[n].id);
    let (name, why) = chosen(|i, f| {
        lvs(i);
        runs(i, f, 0);
    });
    assert!(name == "hv1" && why.contains("runs the VM"), "even on the SPM: {why}");
    let (name, why) = chosen(|i, _| lvs(i));
    assert!(name == "hv2" && why.contains("does not manage"), "{why}");
    // Files are the same everywhere.
    let (name, _) = chosen(|i, f| runs(i, f, 0));
    assert_eq!(name, "hv2");
    let (name, why) = chosen(|i, f| {
        lvs(i);
        runs(i, f, 1);
        i.hosts[1].status = HostStatus::NonResponsive;
    });
    assert!(name == "hv1" && why.contains("the only one"), "{why}");
}

#[test]
fn every_vm_that_cannot_be_snapshotted_is_left_out_by_name() {
    fn check(change: impl FnOnce(&mut Inventory, &mut VmFacts), expected: &str) {
        let plan = plan_of(change);
        let VmAction::Skip { skip } = plan.action else { panic!("not skipped: {expected}") };
        assert!(skip.to_string().contains(expected), "{skip} / {expected}");
    }
    fn snap(kind: SnapshotKind, status: SnapshotStatus) -> Snapshot {
        Snapshot {
            id: SnapshotId::random(),
            description: "s".into(),
            kind,
            status: Some(status),
            date: None,
            memory: None,
        }
    }
    check(|_, f| f.vm.origin = Some("managed_hosted_engine".into()), "manager-backup");
    check(|_, f| f.vm.stateless = Some(true), "stateless");
    check(|_, f| f.vm.pool = true, "pool");
    check(|_, f| f.vm.status = VmStatus::Suspended, "suspended");
    check(|_, f| f.vm.status = VmStatus::Migrating, "migrating");
    check(|_, f| f.vm.status = VmStatus::ImageLocked, "image_locked");
    check(
        |_, f| f.snapshots = vec![snap(SnapshotKind::Regular, SnapshotStatus::InPreview)],
        "preview",
    );
    check(|_, f| f.snapshots = vec![snap(SnapshotKind::Preview, SnapshotStatus::Ok)], "preview");
    check(|_, f| f.snapshots = vec![snap(SnapshotKind::Regular, SnapshotStatus::Locked)], "locked");
    check(
        |_, f| f.attachments[0].disk.as_mut().unwrap().status = Some(DiskStatus::Illegal),
        "illegal",
    );
    check(|i, _| i.storage_domains[0].status = Some(DomainStatus::Maintenance), "maintenance");
    check(|i, _| i.storage_domains[0].available = Some(4 << 30), "4 GiB left");
    check(
        |i, _| i.hosts.iter_mut().for_each(|h| h.status = HostStatus::NonResponsive),
        "hv1 is non_responsive",
    );
    check(|i, _| i.hosts.clear(), "no host");
    check(|i, _| i.clusters[0].data_center = None, "data center");
}

#[test]
fn every_disk_that_cannot_be_read_is_left_out_by_name() {
    fn check(change: impl FnOnce(&mut Inventory, &mut Disk), expected: &DiskSkip) {
        let plan = plan_of(|i, f| change(i, f.attachments[0].disk.as_mut().unwrap()));
        let DiskAction::Skip { skip } = &plan.disks[0].action else { panic!("{expected:?}") };
        assert_eq!(skip, expected);
        assert_eq!(plan.expected_bytes, 0);
        assert_eq!(plan.action, VmAction::Backup, "the configuration is still stored");
        assert!(plan.warnings.iter().any(|w| w.contains("only the configuration")));
    }
    check(|_, d| d.storage_type = Some("lun".into()), &DiskSkip::DirectLun);
    check(|_, d| d.storage_type = Some("cinder".into()), &DiskSkip::ManagedBlock);
    check(|_, d| d.shareable = Some(true), &DiskSkip::Shareable);
    check(|_, d| d.alias = "excluded".into(), &DiskSkip::Excluded);
    check(|_, d| d.storage_domains.clear(), &DiskSkip::NoDomain);
    check(
        |_, d| d.content_type = Some(ContentType::OvfStore),
        &DiskSkip::NotData { kind: "ovf_store".into() },
    );
    check(
        |_, d| (d.content_type, d.alias) = (None, "OVF_STORE".into()),
        &DiskSkip::NotData { kind: "ovf_store".into() },
    );
}

#[test]
fn disks_of_block_domains_are_read_and_marked() {
    let plan = plan_of(|i, _| i.storage_domains[0].storage = StorageKind::Iscsi);
    assert!(plan.disks[0].block);
    assert!(matches!(plan.disks[0].action, DiskAction::Backup { .. }));
    assert!(!plan_of(|_, _| ()).disks[0].block);
}

#[test]
fn a_base_stays_while_its_snapshot_is_there_and_holds_an_unplugged_disk() {
    use crate::level::BaseDisk;
    let stays = |plugged: bool, there: bool, held: bool| {
        plan_of(|_, facts| {
            facts.attachments[0].active = Some(plugged);
            let id = if held { facts.attachments[0].disk_id } else { DiskId::random() };
            let base = Base {
                point: "20261121T021454Z".parse().unwrap(),
                snapshot: SnapshotId::random(),
                description: "hvbak:r:20261121T021454Z".into(),
                disks: vec![BaseDisk { id, virtual_size: 1 << 30, full: true, damage: None }],
            };
            let snapshot = Snapshot {
                id: base.snapshot,
                description: base.description.clone(),
                kind: SnapshotKind::Regular,
                status: Some(SnapshotStatus::Ok),
                date: None,
                memory: None,
            };
            facts.snapshots.extend(there.then_some(snapshot));
            facts.base = Some(base);
        })
        .base_stays
    };
    assert!(stays(false, true, true));
    assert!(!stays(true, true, true));
    // Somebody has deleted it: a new one is kept, or every run would be a full.
    assert!(!stays(false, false, true));
    assert!(!stays(false, true, false));
}
