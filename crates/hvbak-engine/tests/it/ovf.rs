//! The recorded OVF documents: read, edited, and what must not change.

use hvbak_engine::ovf::{Edit, for_restore, read};

use crate::replay::fixtures;

const RECORDED: [&str; 2] =
    ["vms-17a94da8.all_content--4.3-2019-12.ovf", "vms-17a94da8.put--4.3-2019-12.ovf"];
const UNIT: &str = "vm-lun-disk-and-memory-snapshot--3.3-engine-test.ovf";

fn load(name: &str) -> String {
    std::fs::read_to_string(fixtures().join("ovf").join(name)).unwrap()
}

#[test]
fn the_recorded_vm_is_read() {
    for name in RECORDED {
        let ovf = read(&load(name)).unwrap();
        assert_eq!(ovf.vm_id.unwrap().to_string(), "17a94da8-3d02-430e-9b83-5e39f92907e8");
        assert_eq!(ovf.name, "rhel7s");
        assert_eq!(ovf.os.as_deref(), Some("rhel_7x64"));
        assert_eq!(ovf.memory, Some(3072 << 20));
        assert_eq!((ovf.cores, ovf.threads), (Some(1), Some(1)));
        assert!(ovf.sockets == Some(2) || ovf.sockets == Some(4), "{:?}", ovf.sockets);
        assert_eq!((ovf.bios, ovf.vm_type, ovf.origin), (Some(0), Some(1), Some(0)));
        assert!(ovf.template.unwrap().is_nil());
        assert_eq!(ovf.cluster.as_deref(), Some("depot_cl"));
        assert_eq!(ovf.cluster_level.as_deref(), Some("4.3"));
        assert_eq!(ovf.networks, ["ovirtmgmt"]);
        assert_eq!(ovf.description, None);
        let disk = &ovf.disks[0];
        assert_eq!(ovf.disks.len(), 1);
        assert_eq!(disk.disk.unwrap().to_string(), "f6e4775b-53be-4136-9e30-f0be18b70668");
        assert_eq!(disk.volume.unwrap().to_string(), "13b96488-ccf7-4eb6-9e08-a0c2f195278a");
        assert_eq!(disk.file_size, Some(2_052_321_280));
        assert_eq!(disk.size_gib, Some(15));
        assert_eq!(disk.volume_format.as_deref(), Some("RAW"));
        assert_eq!(disk.volume_type.as_deref(), Some("Sparse"));
        assert_eq!(disk.interface.as_deref(), Some("VirtIO_SCSI"));
        assert_eq!((disk.boot, disk.plugged, disk.boot_order), (Some(true), Some(true), Some(1)));
        assert_eq!(disk.domain.as_deref(), Some("cfbc93a1-17b7-4d03-a8ca-3b3bfef52729"));
        let nic = &ovf.nics[0];
        assert_eq!(ovf.nics.len(), 1);
        assert_eq!(nic.mac.as_deref(), Some("56:6f:85:ae:00:00"));
        assert_eq!((nic.model, nic.linked), (Some(3), Some(true)));
        assert_eq!(nic.network.as_deref(), Some("ovirtmgmt"));
        assert_eq!(ovf.snapshots.len(), 1);
        assert_eq!(ovf.snapshots[0].kind.as_deref(), Some("ACTIVE"));
    }
}

#[test]
fn luns_and_memory_snapshots_are_read() {
    let ovf = read(&load(UNIT)).unwrap();
    assert_eq!(ovf.vm_id.unwrap().to_string(), "70f24c82-a7b8-4e0b-9192-cffd5705cf5c");
    assert_eq!(ovf.disks.len(), 2);
    assert_eq!(ovf.disks[0].lun, None);
    assert_eq!(ovf.disks[1].lun.as_deref(), Some("36001405bb1b5071cfb44a4e9576aef7c"));
    assert_eq!(ovf.disks[1].volume, None);
    assert_eq!(ovf.disks[1].disk.unwrap().to_string(), "eb331cad-8842-48d9-9c56-40b893dc8b1e");
    assert_eq!(ovf.snapshots.len(), 2);
    assert!(ovf.snapshots[1].memory && !ovf.snapshots[0].memory);
    assert!(ovf.nics.is_empty());
}

#[test]
fn an_edited_ovf_keeps_everything_else() {
    for name in [RECORDED[0], RECORDED[1], UNIT] {
        let source = load(name);
        let before = read(&source).unwrap();
        let edit = Edit { name: Some("restored \"<1>\"".into()), ..Edit::default() };
        let edited = for_restore(&source, &edit).unwrap();
        let after = read(&edited.ovf).unwrap();
        assert!(after.disks.is_empty() && after.snapshots.is_empty());
        assert_eq!(after.name, "restored \"<1>\"");
        assert_eq!(
            (after.vm_id, after.memory, &after.os),
            (before.vm_id, before.memory, &before.os)
        );
        assert_eq!((after.nics, after.networks), (before.nics, before.networks));
        for part in ["disks", "disk items", "file references", "snapshots", "name"] {
            assert!(edited.changes.iter().any(|c| c == part), "{part}: {:?}", edited.changes);
        }
        // Every line or element that is left stands in the source as it is.
        let document = roxmltree::Document::parse(&edited.ovf).unwrap();
        for item in document.descendants().filter(|n| n.has_tag_name("Item")) {
            assert!(source.contains(&edited.ovf[item.range()]));
        }
        let count = |text: &str| {
            let document = roxmltree::Document::parse(text).unwrap();
            document.descendants().filter(|n| n.has_tag_name("Item")).count()
        };
        let disk_items = source.matches("<rasd:ResourceType>17<").count();
        assert_eq!(count(&edited.ovf), count(&source) - disk_items);
    }
}

#[test]
fn nics_cd_quota_and_id_go_when_asked() {
    let source = load(RECORDED[0]);
    let id = hvbak_types::VmId::random();
    let edit = Edit {
        vm_id: Some(id),
        strip_nics: true,
        eject_cd: true,
        strip_quota: true,
        ..Edit::default()
    };
    let edited = for_restore(&source, &edit).unwrap();
    let after = read(&edited.ovf).unwrap();
    assert_eq!(after.vm_id, Some(id));
    assert!(after.nics.is_empty() && after.networks.is_empty());
    assert!(!edited.ovf.contains("rhel-server-7.7") && !edited.ovf.contains("quota_id"));
    assert!(edited.ovf.contains("<Device>cdrom</Device>"));
    assert_eq!(after.name, "rhel7s");
}
