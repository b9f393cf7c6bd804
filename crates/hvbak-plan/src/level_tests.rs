//! The decisions as tables.

use hvbak_types::SnapshotKind;

use super::*;

fn base(disk: DiskId, full: bool) -> Base {
    Base {
        point: "20261121T021454Z".parse().unwrap(),
        snapshot: SnapshotId::random(),
        description: "hvbak:r:20261121T021454Z".into(),
        disks: vec![BaseDisk { id: disk, virtual_size: 1 << 30, full, damage: None }],
    }
}

fn snapshot(base: &Base) -> Snapshot {
    Snapshot {
        id: base.snapshot,
        description: base.description.clone(),
        kind: SnapshotKind::Regular,
        status: Some(SnapshotStatus::Ok),
        date: None,
        memory: None,
    }
}

#[test]
fn levels_follow_wish_catalogue_and_engine() {
    let disk = DiskId::random();
    let (full, delta) = (base(disk, true), base(disk, false));
    let decide = |wish, base: &Base| disk_level(wish, Some(base), &[snapshot(base)], disk);
    assert_eq!(decide(Wish::Auto, &full), Ok(Level::Incremental));
    assert_eq!(decide(Wish::Incremental, &delta), Ok(Level::Incremental));
    assert_eq!(decide(Wish::Differential, &full), Ok(Level::Differential));
    assert!(matches!(decide(Wish::Differential, &delta), Err(WhyFull::NotFull { .. })));
    assert_eq!(decide(Wish::Full, &full), Err(WhyFull::Asked));
    assert_eq!(disk_level(Wish::Auto, None, &[], disk), Err(WhyFull::NoBase));
}

#[test]
fn what_is_not_there_any_more_forces_a_full() {
    let disk = DiskId::random();
    let known = base(disk, true);
    let gone = disk_level(Wish::Auto, Some(&known), &[], disk);
    assert!(matches!(gone, Err(WhyFull::SnapshotGone { .. })));
    // The same description under another id is somebody else's snapshot.
    let other = Snapshot { id: SnapshotId::random(), ..snapshot(&known) };
    let other = disk_level(Wish::Auto, Some(&known), &[other], disk);
    assert!(matches!(other, Err(WhyFull::SnapshotGone { .. })));
    let locked = Snapshot { status: Some(SnapshotStatus::Locked), ..snapshot(&known) };
    let locked = disk_level(Wish::Auto, Some(&known), &[locked], disk);
    assert!(matches!(locked, Err(WhyFull::SnapshotState { .. })));
    let added = disk_level(Wish::Auto, Some(&known), &[snapshot(&known)], DiskId::random());
    assert!(matches!(added, Err(WhyFull::NewDisk { .. })));
    let mut damaged = known.clone();
    damaged.disks[0].damage = Some("file is missing".into());
    let damaged = disk_level(Wish::Auto, Some(&damaged), &[snapshot(&known)], disk);
    assert!(matches!(damaged, Err(WhyFull::Damaged { .. })));
}

#[test]
fn the_sub_chain_ends_above_the_volume_that_the_base_owns_now() {
    let disk = DiskId::random();
    let known = base(disk, true);
    let size = 1 << 30;
    let v: Vec<VolumeId> = (0..4).map(|_| VolumeId::random()).collect();
    let layers = |raw: usize| -> Vec<LayerFacts> {
        v.iter().enumerate().map(|(i, v)| LayerFacts { volume: *v, raw: i == raw }).collect()
    };
    let at = |volume, raw, size| sub_chain(&known, disk, volume, &layers(raw), size);
    assert_eq!(at(Some(v[1]), 3, size), Ok(1));
    // Foreign snapshots in between are more layers.
    assert_eq!(at(Some(v[3]), 3, size), Ok(3));
    assert_eq!(at(Some(v[3]), 3, 2 * size), Ok(3), "an extended disk");
    assert!(matches!(at(Some(v[3]), 3, size - 512), Err(WhyFull::Shrunk { .. })));
    assert!(matches!(at(Some(v[0]), 3, size), Err(WhyFull::NotInChain { .. })));
    let stranger = Some(VolumeId::random());
    assert!(matches!(at(stranger, 3, size), Err(WhyFull::NotInChain { .. })));
    assert!(matches!(at(None, 3, size), Err(WhyFull::NotInSnapshot { .. })));
    assert!(matches!(at(Some(v[3]), 1, size), Err(WhyFull::RawAbove { .. })));
    let other = sub_chain(&known, DiskId::random(), Some(v[1]), &layers(3), size);
    assert!(matches!(other, Err(WhyFull::NewDisk { .. })));
}
