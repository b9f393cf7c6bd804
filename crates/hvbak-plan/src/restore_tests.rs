//! Tables for the restore plan.

use hvbak_types::{Inventory, Network, NetworkId, StorageKind, VnicProfile};

use super::*;
use crate::backup::tests::{inventory, vm};

fn point() -> PointFacts {
    PointFacts {
        point: "20261121T021454Z".parse().unwrap(),
        vm: VmId::random(),
        name: "web1".into(),
        cluster_name: Some("Default".into()),
        disks: vec![PointDisk {
            id: DiskId::random(),
            alias: "web1_Disk1".into(),
            virtual_size: 10 << 30,
            data_bytes: 1 << 30,
            format: RestoreFormat::RawSparse,
            domain: Some("00000003-0000-4000-8000-000000000001".parse().unwrap()),
            domain_name: Some("data1".into()),
            interface: Some("virtio".into()),
            bootable: true,
            active: true,
            read_only: false,
            pass_discard: false,
            wipe_after_delete: false,
        }],
        nics: vec![NicFacts {
            name: "nic1".into(),
            interface: Some("virtio".into()),
            mac: Some("00:1a:4a:16:01:0a".into()),
            linked: true,
            plugged: true,
            profile: Some(("ovirtmgmt".into(), "ovirtmgmt".into())),
            profile_id: None,
        }],
        tags: vec!["gold".into()],
    }
}

fn with_network() -> Inventory {
    let mut inv = inventory();
    let network = Network {
        id: NetworkId::random(),
        name: "ovirtmgmt".into(),
        data_center: Some(inv.data_centers[0].id),
        vlan: None,
        mtu: None,
    };
    let profile = VnicProfile {
        id: VnicProfileId::random(),
        name: "ovirtmgmt".into(),
        network: Some(network.id),
    };
    inv.networks.push(network);
    inv.vnic_profiles.push(profile);
    inv
}

#[test]
fn a_vm_that_is_gone_comes_back_as_it_was() {
    let inv = with_network();
    let plan = plan_restore(&inv, &point(), &RestoreOptions::default()).unwrap();
    assert_eq!((plan.name.as_str(), plan.cluster_name.as_str()), ("web1", "Default"));
    assert_eq!(plan.disks[0].format, RestoreFormat::RawSparse);
    assert_eq!(plan.disks[0].interface, "virtio");
    assert_eq!(plan.nics[0].mac.as_deref(), Some("00:1a:4a:16:01:0a"));
    assert_eq!(plan.nics[0].profile, Some(inv.vnic_profiles[0].id));
    assert!(plan.host.is_some());
    assert_eq!(plan.warnings, ["tag `gold` does not exist any more"]);
}

#[test]
fn beside_the_original_macs_are_new() {
    let mut inv = with_network();
    let p = point();
    let mut original = vm("web1");
    original.id = p.vm;
    inv.vms.push(original);
    let options = |mac| RestoreOptions { name: Some("copy".into()), mac, ..Default::default() };
    let mac = |o| plan_restore(&inv, &p, &o).unwrap().nics[0].mac.clone();
    assert_eq!(mac(options(None)), None);
    assert_eq!(mac(options(Some(MacRule::Keep))).as_deref(), Some("00:1a:4a:16:01:0a"));
}

#[test]
fn sparse_raw_disks_become_qcow2_on_block_domains() {
    let mut inv = with_network();
    inv.storage_domains[0].storage = StorageKind::Iscsi;
    for (stored, made) in [
        (RestoreFormat::RawSparse, RestoreFormat::Cow),
        (RestoreFormat::RawPreallocated, RestoreFormat::RawPreallocated),
        (RestoreFormat::Cow, RestoreFormat::Cow),
    ] {
        let mut p = point();
        p.disks[0].format = stored;
        let plan = plan_restore(&inv, &p, &RestoreOptions::default()).unwrap();
        assert_eq!((plan.disks[0].format, plan.disks[0].block), (made, true));
    }
}

#[test]
fn what_cannot_be_restored_is_refused_before_anything_is_done() {
    fn check(
        change: impl FnOnce(&mut Inventory, &mut PointFacts, &mut RestoreOptions),
        expected: &str,
    ) {
        let (mut inv, mut p, mut o) = (with_network(), point(), RestoreOptions::default());
        change(&mut inv, &mut p, &mut o);
        let error = plan_restore(&inv, &p, &o).unwrap_err();
        assert!(error.to_string().contains(expected), "{error} / {expected}");
        assert!(error.hint().is_some());
    }
    check(|i, _, _| i.vms.push(vm("web1")), "`web1` exists");
    check(|_, _, o| o.cluster = Some("nope".into()), "no cluster `nope`");
    check(|_, _, o| o.disks = vec!["nope".into()], "no disk `nope`");
    check(|_, _, o| o.exclude_disks = vec!["web1_Disk1".into()], "no disk");
    check(|_, _, o| o.storage_domains = vec!["nope".into()], "no domain `nope`");
    check(|_, _, o| o.storage_domains = vec!["x:data1".into()], "no disk `x`");
    check(|i, _, _| i.storage_domains.clear(), "gone");
    check(|i, _, _| i.storage_domains[0].storage = StorageKind::Glance, "glance");
    check(
        |i, _, o| {
            i.storage_domains[0].storage = StorageKind::Fcp;
            o.format = Some(RestoreFormat::RawSparse);
        },
        "cannot hold sparse raw",
    );
    check(|i, _, _| i.storage_domains[0].kind = DomainKind::Iso, "iso");
    check(|i, _, _| i.storage_domains[0].data_centers.clear(), "not attached");
    check(|i, _, _| i.storage_domains[0].available = Some(5 << 30), "bytes free");
    check(|i, _, _| i.hosts.clear(), "no host");
}
