//! Points are whole or not there, whatever stops the writer.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    process::Command,
};

use hvbak_types::Digest;

use super::*;
use crate::{
    Payload,
    durable::trace,
    testing::{Guest, Lab, disk_entry, put, qemu_check, qemu_compare},
};

#[test]
fn full_and_delta_read_back_through_qemu() {
    let lab = Lab::new();
    let disk = DiskId::random();
    // The last cluster is cut by the end of the disk.
    let first = Guest::blank(40 * 65_536 - 3 * 512).fill(1, [0, 1, 2, 3, 17, 30, 38, 39]);
    let second = first.clone().fill(2, [3, 4, 5, 39]).zero([0, 17]);
    let a = lab.point("20261121T021454Z", &[(disk, None, &first)]);
    let b = lab.point("20261122T021454Z", &[(disk, Some((&a, &first)), &second)]);
    for (point, guest) in [(&a, &first), (&b, &second)] {
        qemu_check(point);
        let file = point.path.join(&point.manifest.disks[0].record.file);
        qemu_compare(&lab, guest, "qcow2", &file);
    }
    let record = &b.manifest.disks[0].record;
    assert_eq!((record.data_clusters, record.zero_clusters), (4, 2));
    assert_eq!(record.parent.as_ref(), Some(a.id()));
    // What was published is what is read, privately.
    assert_eq!(lab.repository.find("web").unwrap(), b);
    assert_eq!(lab.repository.find("web@2026-11-21").unwrap(), a);
    assert_eq!(b.document("nics.xml").unwrap().unwrap(), b"<nics/>");
    for entry in fs::read_dir(&b.path).unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    // Everything in the reader: merged content, extents, cluster by cluster.
    let reader = lab.repository.disk_reader(&b, disk).unwrap();
    assert_eq!(reader.virtual_size(), second.size());
    let mut buffers = crate::Buffers::default();
    let mut seen = 0;
    for run in reader.stored() {
        let run = run.unwrap();
        for cluster in run.cluster..run.cluster + run.count {
            let content = reader.read_proven(&run, cluster, &mut buffers).unwrap();
            let zeros = vec![0; 65_536];
            let bytes = buffers.guest(content).unwrap_or(&zeros);
            assert_eq!(bytes, second.cluster(cluster as usize), "cluster {cluster}");
            let mut alone = Vec::new();
            assert_eq!(reader.read_cluster(cluster, &mut alone).unwrap(), content);
            assert_eq!(alone, buffers.stored);
            seen += 1;
        }
    }
    assert_eq!(seen, 10);
    assert_eq!(reader.data_clusters().unwrap(), 8);
    let mut at = 0;
    for extent in reader.extents() {
        let extent = extent.unwrap();
        assert_eq!(extent.offset, at);
        at = extent.end();
        let range = &second.0[extent.offset as usize..at as usize];
        let zero = range.iter().all(|b| *b == 0);
        assert_eq!(zero, extent.kind == hvbak_types::ExtentKind::Zero, "{extent:?}");
    }
    assert_eq!(at, second.size());
}

#[test]
fn each_file_is_synced_before_its_name_counts() {
    let lab = Lab::new();
    let disk = DiskId::random();
    trace::take();
    let point = lab.point("20261121T021454Z", &[(disk, None, &Guest::blank(1 << 20).fill(1, [3]))]);
    let log = trace::take();
    let at = |what: &str, name: &str| {
        log.iter().rposition(|(w, n)| *w == what && n == name).unwrap_or_else(|| {
            panic!("no {what} of {name} in {log:?}");
        })
    };
    let partial = format!(".partial-{}", point.id());
    let rename = at("rename", point.id().as_str());
    for entry in fs::read_dir(&point.path).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(at("create", &name) < at("fsync", &name), "{name}");
        assert!(at("fsync", &name) < at("fsync-dir", &partial), "{name}");
        assert!(at("create", &name) <= at("create", "manifest.json"), "{name} after the manifest");
    }
    assert!(at("fsync-dir", &partial) < rename);
    // The VM's directory after the rename, `vms` after the VM's directory was made.
    assert!(rename < at("fsync-dir", &lab.vm.to_string()));
    assert!(at("mkdir", &lab.vm.to_string()) < at("fsync-dir", "vms"));
    assert!(at("fsync-dir", "vms") < rename);
}

/// Not a test of its own but the process that the next one stops; does nothing without it.
#[test]
fn publish_until_stopped() {
    let Ok(root) = std::env::var("HVBAK_TEST_CRASH_ROOT") else { return };
    let vm = std::env::var("HVBAK_TEST_CRASH_VM").unwrap().parse().unwrap();
    let lab = Lab { vm, ..Lab::of(&root) };
    let guest = Guest::blank(1 << 20).fill(1, [3, 4]);
    lab.point("20261121T021454Z", &[(DiskId::random(), None, &guest)]);
}

#[test]
fn stopped_anywhere_there_is_no_point_or_a_whole_one() {
    let lab = Lab::new();
    let (mut none, mut whole) = (0, 0);
    for step in 1.. {
        let vm = VmId::random();
        let out = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "stage::tests::publish_until_stopped"])
            .env("HVBAK_TEST_CRASH_ROOT", lab.repository.path())
            // Its temporary directory outlives it.
            .env("TMPDIR", lab.dir.path())
            .env("HVBAK_TEST_CRASH_VM", vm.to_string())
            .env("HVBAK_TEST_CRASH", step.to_string())
            .output()
            .unwrap();
        let ended = out.status.success();
        assert!(ended || out.status.signal() == Some(6), "{out:?}");
        let listing = lab.repository.points(vm).unwrap();
        assert!(listing.damaged.is_empty(), "{listing:?}");
        match listing.points.as_slice() {
            [] => none += 1,
            [point] => {
                whole += 1;
                let report = lab.repository.verify(point, &Default::default(), &|_| true).unwrap();
                assert!(report.is_clean() && report.clusters == 2, "{report:?}");
                qemu_check(point);
            }
            many => panic!("{many:?}"),
        }
        // What is left is swept, and only that.
        let lock = lab.repository.lock_vm(vm, lab.job).unwrap();
        let left = lab.repository.partials(vm).unwrap();
        assert_eq!(lab.repository.sweep_partials(&lock, None).unwrap(), left);
        assert!(lab.repository.partials(vm).unwrap().is_empty());
        assert_eq!(lab.repository.points(vm).unwrap().points.len(), listing.points.len());
        if ended {
            break;
        }
        assert!(step < 100, "it never ends");
    }
    assert!(none > 10 && whole >= 2, "{none} without a point, {whole} with one");
}

#[test]
fn a_point_in_the_making_is_seen_by_nobody() {
    let lab = Lab::new();
    let lock = lab.lock();
    let id: PointId = "20261121T021454Z".parse().unwrap();
    let staging = lab.repository.stage(&lock, &id).unwrap();
    assert_eq!(lab.repository.new_point_id(lab.vm, id.time().unwrap()), id.with_suffix(2));
    assert!(matches!(lab.repository.stage(&lock, &id), Err(Error::PointExists { .. })));
    let mut writer = staging.disk_writer(DiskId::random(), DiskOptions::full(1 << 20)).unwrap();
    put(&mut writer, 3, &[7; 65_536]);
    assert!(lab.repository.all_points().unwrap().points.is_empty());
    assert!(matches!(lab.repository.find("web"), Err(Error::NoVm { .. })));
    drop(writer);
    staging.discard().unwrap();
    assert_eq!(lab.repository.new_point_id(lab.vm, id.time().unwrap()), id);
}

#[test]
fn what_the_manifest_says_is_what_was_written() {
    let lab = Lab::new();
    let lock = lab.lock();
    let id: PointId = "20261121T021454Z".parse().unwrap();
    let disk = DiskId::random();
    let attempt = |edit: &dyn Fn(&Staging, &mut Manifest)| {
        let staging = lab.repository.stage(&lock, &id).unwrap();
        let mut writer = staging.disk_writer(disk, DiskOptions::full(1 << 20)).unwrap();
        put(&mut writer, 3, &[7; 65_536]);
        let mut manifest = lab.manifest(&id);
        manifest.disks.push(disk_entry(writer.finish().unwrap()));
        edit(&staging, &mut manifest);
        let error = staging.publish(manifest).unwrap_err();
        assert!(lab.repository.points(lab.vm).unwrap().points.is_empty());
        assert!(lab.repository.remove_partial(&lock, &id).unwrap());
        error
    };
    let error = attempt(&|_, m| m.disks.clear());
    assert!(matches!(error, Error::DiskMismatch { .. }), "{error}");
    let error = attempt(&|_, m| m.disks[0].record.stored_bytes += 1);
    assert!(matches!(error, Error::DiskMismatch { .. }), "{error}");
    let error = attempt(&|_, m| {
        let mut other = m.disks[0].clone();
        other.record.id = DiskId::random();
        m.disks.push(other);
    });
    assert!(matches!(error, Error::DiskUnknown { .. }), "{error}");
    let error = attempt(&|_, m| m.vm.id = VmId::random());
    assert!(matches!(error, Error::Inconsistent { .. }), "{error}");
    let error = attempt(&|s, _| {
        s.disk_writer(DiskId::random(), DiskOptions::full(1 << 20)).unwrap();
    });
    assert!(matches!(error, Error::DiskUnfinished { .. }), "{error}");
}

#[test]
fn bad_clusters_are_refused() {
    let lab = Lab::new();
    let lock = lab.lock();
    let staging = lab.repository.stage(&lock, &"20261121T021454Z".parse().unwrap()).unwrap();
    let disk = DiskId::random();
    let options = DiskOptions { paranoid: true, ..DiskOptions::full(10 * 65_536 - 512) };
    let mut writer = staging.disk_writer(disk, options.clone()).unwrap();
    assert!(matches!(staging.disk_writer(disk, options.clone()), Err(Error::DiskTwice { .. })));
    let bytes = vec![7; 65_536];
    let digest = Digest(blake3::hash(&bytes).into());
    let frame = zstd::bulk::compress(&bytes, 1).unwrap();
    let mut refused = |cluster, payload, digest| writer.put(cluster, payload, &digest).unwrap_err();
    let error = refused(10, Payload::Plain(&bytes), digest);
    assert!(matches!(error, Error::ClusterOutside { cluster: 10, .. }), "{error}");
    let error = refused(0, Payload::Plain(&bytes[1..]), digest);
    assert!(matches!(error, Error::PayloadLength { .. }), "{error}");
    let error = refused(0, Payload::Compressed(&[]), digest);
    assert!(matches!(error, Error::PayloadLength { .. }), "{error}");
    for payload in [Payload::Plain(&bytes), Payload::Compressed(&frame)] {
        let error = refused(0, payload, Digest([0; 32]));
        assert!(matches!(error, Error::WrongDigest { .. }), "{error}");
    }
    let error = refused(0, Payload::Compressed(&frame[..frame.len() - 1]), digest);
    assert!(matches!(error, Error::WrongDigest { .. }), "{error}");
    writer.put(9, Payload::Compressed(&frame), &digest).unwrap();
    let error = writer.put(9, Payload::Plain(&bytes), &digest).unwrap_err();
    assert!(matches!(error, Error::ClusterTwice { cluster: 9, .. }), "{error}");
    assert!(matches!(writer.put_zero(8, 2), Err(Error::ClusterTwice { cluster: 9, .. })));
    assert!(matches!(writer.put_zero(8, u64::MAX), Err(Error::ClusterOutside { .. })));
    // After a failure the disk can be begun anew.
    writer.abandon().unwrap();
    let mut writer = staging.disk_writer(disk, options).unwrap();
    put(&mut writer, 9, &bytes);
    let record = writer.finish().unwrap();
    let mut manifest = lab.manifest(staging.point());
    manifest.disks.push(disk_entry(record));
    qemu_check(&staging.publish(manifest).unwrap());
}

#[test]
fn a_delta_needs_its_parent() {
    let lab = Lab::new();
    let disk = DiskId::random();
    let a = lab.point("20261121T021454Z", &[(disk, None, &Guest::blank(1 << 20).fill(1, [3]))]);
    let lock = lab.lock();
    let staging = lab.repository.stage(&lock, &"20261122T000000Z".parse().unwrap()).unwrap();
    let refused = |disk, parent: &str| {
        let options = DiskOptions::delta(1 << 20, parent.parse().unwrap());
        staging.disk_writer(disk, options).unwrap_err()
    };
    for error in [
        refused(DiskId::random(), a.id().as_str()),
        refused(disk, "20261120T000000Z"),
        refused(disk, "20261123T000000Z"),
        refused(disk, "20261122T000000Z"),
    ] {
        assert!(matches!(error, Error::BrokenChain { .. }), "{error}");
    }
}

#[test]
fn documents_are_stored_once_under_plain_names() {
    let lab = Lab::new();
    let lock = lab.lock();
    let id: PointId = "20261121T021454Z".parse().unwrap();
    let staging = lab.repository.stage(&lock, &id).unwrap();
    staging.put_document("vm.xml", b"<vm/>").unwrap();
    assert!(matches!(staging.put_document("vm.xml", b""), Err(Error::DocumentTwice { .. })));
    assert!(matches!(staging.put_document("../vm.xml", b""), Err(Error::DocumentName { .. })));
    // A VM without disks is a point as well; the stock tool confirms its sums.
    let point = staging.publish(lab.manifest(&id)).unwrap();
    crate::testing::run(
        Command::new("sha256sum").args(["-c", "--strict", "SHA256SUMS"]).current_dir(&point.path),
    );
}

#[test]
fn a_full_disk_is_told_as_one() {
    // RLIMIT_FSIZE stands in for a full file system; the kernel answers EFBIG when SIGXFSZ
    // is ignored, and ENOSPC takes the same way through the code.
    if let Ok(root) = std::env::var("HVBAK_TEST_FULL_ROOT") {
        return full_disk_child(&root);
    }
    let lab = Lab::new();
    let out = Command::new("bash")
        .arg("-c")
        .arg("trap '' XFSZ; ulimit -f 1024; exec \"$0\" --exact stage::tests::a_full_disk_is_told_as_one --nocapture")
        .arg(std::env::current_exe().unwrap())
        .env("HVBAK_TEST_FULL_ROOT", lab.repository.path())
        .env("TMPDIR", lab.dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && text.contains("no space left for"), "{out:?}");
}

fn full_disk_child(root: &str) {
    let lab = Lab::of(root);
    let lock = lab.lock();
    let id: PointId = "20261121T021454Z".parse().unwrap();
    let staging = lab.repository.stage(&lock, &id).unwrap();
    let mut writer = staging.disk_writer(DiskId::random(), DiskOptions::full(1 << 30)).unwrap();
    let guest = Guest::blank(64 << 16).fill(1, (0..64).map(|n| n | 1));
    let error = (0..64)
        .find_map(|n| {
            let bytes = guest.cluster(n | 1);
            let digest = Digest(blake3::hash(&bytes).into());
            writer.put(n as u64, Payload::Plain(&bytes), &digest).err()
        })
        .or_else(|| writer.finish().err())
        .expect("64 clusters do not fit");
    eprintln!("{error}");
    assert!(matches!(error, Error::NoSpace { .. }));
    assert!(error.hint().unwrap().contains("free space"));
    staging.discard().unwrap();
    assert!(lab.repository.partials(lab.vm).unwrap().is_empty());
}
