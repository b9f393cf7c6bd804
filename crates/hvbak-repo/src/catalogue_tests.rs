//! Listing, choosing, and manifests that somebody made up.

use hvbak_types::JobId;
use proptest::{prelude::*, test_runner::TestRunner};

use super::*;
use crate::{
    ExportFormat, ExportOptions,
    testing::{Guest, Lab, qemu_check, qemu_compare},
};

/// A point without disks.
fn bare(lab: &Lab, vm: VmId, name: &str, id: &str) {
    let lock = lab.repository.lock_vm(vm, JobId::random()).unwrap();
    let id: PointId = id.parse().unwrap();
    let mut manifest = lab.manifest(&id);
    (manifest.vm.id, manifest.vm.name) = (vm, name.to_owned());
    lab.repository.stage(&lock, &id).unwrap().publish(manifest).unwrap();
}

#[test]
fn points_are_chosen_by_name_day_and_id() {
    let lab = Lab::new();
    let (web, db) = (VmId::random(), VmId::random());
    let times = ["20261120T235959Z", "20261121T020000Z", "20261121T030000Z", "20261122T010000Z"];
    for time in times {
        bare(&lab, web, "web", time);
    }
    for n in 2..12 {
        bare(&lab, web, "web", &format!("20261121T030000Z-{n}"));
    }
    // Renamed since: the newest name counts.
    bare(&lab, db, "web", "20261101T000000Z");
    bare(&lab, db, "db@prod", "20261102T000000Z");
    let find = |text: &str| lab.repository.find(text).map(|p| p.id().to_string());
    assert_eq!(find("web").unwrap(), "20261122T010000Z");
    assert_eq!(find("web@latest").unwrap(), "20261122T010000Z");
    assert_eq!(find("web@2026-11-20").unwrap(), "20261120T235959Z");
    assert_eq!(find("web@2026-11-21").unwrap(), "20261121T030000Z-11");
    assert_eq!(find("web@20261121T030000Z-9").unwrap(), "20261121T030000Z-9");
    assert_eq!(find("db@prod").unwrap(), "20261102T000000Z");
    assert_eq!(find("db@prod@2026-11-01").unwrap(), "20261101T000000Z");
    assert_eq!(find(&format!("{db}@latest")).unwrap(), "20261102T000000Z");
    assert!(matches!(find("web@2026-11-19"), Err(Error::NoPoint { .. })));
    assert!(matches!(find("web@20261121T020001Z"), Err(Error::NoPoint { .. })));
    assert!(matches!(find("mail"), Err(Error::NoVm { .. })));
    assert!(matches!(find(&VmId::random().to_string()), Err(Error::NoVm { .. })));
    bare(&lab, db, "web", "20261103T000000Z");
    let error = find("web").unwrap_err();
    assert!(matches!(&error, Error::AmbiguousVm { ids, .. } if ids.len() == 2));
    assert!(error.to_string().contains(&db.to_string()) && error.hint().is_some());
    let vms = lab.repository.vms().unwrap();
    assert_eq!(vms.iter().map(|v| v.points).sum::<usize>(), 14 + 3);
    // What is no point is not listed; what should be one and is not is told.
    let home = lab.repository.layout.vm(web);
    fs::create_dir(home.join(".partial-20261123T000000Z")).unwrap();
    fs::create_dir(home.join("lost+found")).unwrap();
    fs::create_dir(home.join("20261124T000000Z")).unwrap();
    let listing = lab.repository.points(web).unwrap();
    assert_eq!((listing.points.len(), listing.damaged.len()), (14, 1));
    assert!(find(&format!("{web}@latest")).is_err());
    assert_eq!(find(&format!("{web}@2026-11-22")).unwrap(), "20261122T010000Z");
}

#[test]
fn a_disk_that_grew_is_read_over_its_smaller_parent() {
    let lab = Lab::new();
    let disk = DiskId::random();
    let small = Guest::blank(10 * 65_536 + 512).fill(1, [0, 9, 10]);
    let mut large = Guest(small.0.clone());
    large.0.resize(30 * 65_536, 0);
    let large = large.fill(2, [12, 29]);
    let a = lab.point("20261121T000000Z", &[(disk, None, &small)]);
    let b = lab.point("20261122T000000Z", &[(disk, Some((&a, &small)), &large)]);
    qemu_check(&b);
    qemu_compare(&lab, &large, "qcow2", &b.path.join(&b.manifest.disks[0].record.file));
    let output = lab.file("out.raw");
    let options = ExportOptions::new(ExportFormat::Raw);
    lab.repository.export(&b, disk, &options, &output, &|_, _| true).unwrap();
    assert!(fs::read(output).unwrap() == large.0);
    assert!(lab.repository.verify(&b, &Default::default(), &|_| true).unwrap().is_clean());
    // And one that was made smaller again.
    let c = lab.point("20261123T000000Z", &[(disk, Some((&b, &large)), &small)]);
    let reader = lab.repository.disk_reader(&c, disk).unwrap();
    assert_eq!(reader.extents().last().unwrap().unwrap().end(), small.size());
    assert_eq!(reader.data_clusters().unwrap(), 3);
    assert_eq!(reader.points().count(), 3);
}

#[test]
fn readers_keep_prune_away_and_share_a_disk() {
    let lab = Lab::new();
    let disk = DiskId::random();
    let guest = Guest::blank(64 << 16).fill(1, 0..60);
    let point = lab.point("20261121T000000Z", &[(disk, None, &guest)]);
    let reader = lab.repository.disk_reader(&point, disk).unwrap();
    assert!(matches!(lab.repository.lock_exclusive(lab.job), Err(Error::Locked { .. })));
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (reader, guest) = (&reader, &guest);
            scope.spawn(move || {
                let mut buffers = crate::Buffers::default();
                for run in reader.stored().map(Result::unwrap) {
                    for cluster in run.clusters().filter(|c| c % 4 == thread) {
                        let content = reader.read_proven(&run, cluster, &mut buffers).unwrap();
                        assert_eq!(
                            buffers.guest(content).unwrap(),
                            guest.cluster(cluster as usize)
                        );
                    }
                }
            });
        }
    });
    drop(reader);
    lab.repository.lock_exclusive(lab.job).unwrap();
}

#[test]
fn a_point_tells_its_size() {
    let lab = Lab::new();
    let guest = Guest::blank(64 << 16).fill(1, [1, 3, 5]);
    let point = lab.point("20261121T000000Z", &[(DiskId::random(), None, &guest)]);
    let size = lab.repository.point_size(&point).unwrap();
    assert!(size > point.manifest.stored_bytes() && size < point.manifest.stored_bytes() + 8192);
}

#[test]
fn a_made_up_manifest_is_an_error_and_never_leads_out() {
    let lab = Lab::new();
    let guest = Guest::blank(1 << 20).fill(1, [3, 4]);
    let point = lab.point("20261121T000000Z", &[(DiskId::random(), None, &guest)]);
    let file = point.path.join(MANIFEST);
    let good = fs::read(&file).unwrap();
    let edits = proptest::collection::vec((0..good.len(), any::<u8>()), 1..4);
    let mut runner = TestRunner::new(ProptestConfig::with_cases(300));
    let result = runner.run(&edits, |edits| {
        let mut bytes = good.clone();
        edits.iter().for_each(|(at, byte)| bytes[*at] = *byte);
        fs::write(&file, &bytes).unwrap();
        if let Ok(found) = lab.repository.point(lab.vm, point.id()) {
            for disk in &found.manifest.disks {
                prop_assert!(!disk.record.file.contains('/'));
                let _ = lab.repository.disk_reader(&found, disk.record.id);
            }
            let report = lab.repository.verify(&found, &Default::default(), &|_| true).unwrap();
            prop_assert_eq!(report.is_clean(), bytes == good);
        }
        Ok(())
    });
    result.unwrap();
}
