//! Exports compared with the guest's bytes by qemu-img.

use hvbak_types::DiskId;

use super::*;
use crate::testing::{Guest, Lab, qemu_compare, run};

fn two_points() -> (Lab, DiskId, Point, Guest) {
    let lab = Lab::new();
    let disk = DiskId::random();
    let first = Guest::blank(300 * 65_536 - 512).fill(1, (0..300).filter(|n| n % 3 == 0));
    let second = first.clone().fill(2, [1, 2, 3, 200, 299]).zero([0, 30, 33]);
    let a = lab.point("20261121T021454Z", &[(disk, None, &first)]);
    let b = lab.point("20261122T021454Z", &[(disk, Some((&a, &first)), &second)]);
    (lab, disk, b, second)
}

#[test]
fn both_formats_hold_what_the_guest_had() {
    let (lab, disk, point, guest) = two_points();
    for (format, name) in [(ExportFormat::Raw, "raw"), (ExportFormat::Qcow2, "qcow2")] {
        let output = lab.file(&format!("out.{name}"));
        let told = AtomicU64::new(0);
        let progress = |done: u64, total: u64| {
            assert!(done <= total);
            told.fetch_max(done, Ordering::Relaxed);
            true
        };
        let options = ExportOptions::new(format);
        let summary = lab.repository.export(&point, disk, &options, &output, &progress).unwrap();
        assert_eq!(summary.bytes, fs::metadata(&output).unwrap().len());
        assert_eq!(told.into_inner(), summary.data_clusters * CLUSTER_SIZE);
        qemu_compare(&lab, &guest, name, &output);
    }
    assert_eq!(fs::read(lab.file("out.raw")).unwrap(), guest.0);
    let qcow2 = lab.file("out.qcow2");
    run(std::process::Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(&qcow2));
    let info = run(std::process::Command::new("qemu-img").arg("info").arg(&qcow2));
    assert!(!info.contains("backing file"), "{info}");
    // Sparse: the holes of the guest are holes of the file.
    use std::os::unix::fs::MetadataExt;
    assert!(fs::metadata(lab.file("out.raw")).unwrap().blocks() * 512 < guest.size() / 2);
}

#[test]
fn nothing_is_overwritten_unasked() {
    let (lab, disk, point, guest) = two_points();
    let output = lab.file("out.raw");
    fs::write(&output, "precious").unwrap();
    let mut options = ExportOptions::new(ExportFormat::Raw);
    let export = |options: &ExportOptions| {
        lab.repository.export(&point, disk, options, &output, &|_, _| true)
    };
    assert!(matches!(export(&options), Err(Error::OutputExists { .. })));
    assert_eq!(fs::read(&output).unwrap(), b"precious");
    options.overwrite = true;
    export(&options).unwrap();
    assert_eq!(fs::read(&output).unwrap(), guest.0);
}

#[test]
fn a_failed_or_cancelled_export_leaves_nothing() {
    let (lab, disk, point, _) = two_points();
    let output = lab.file("out.raw");
    let options = ExportOptions::new(ExportFormat::Raw);
    let error = lab.repository.export(&point, disk, &options, &output, &|_, _| false).unwrap_err();
    assert!(matches!(error, Error::Cancelled));
    // A flipped bit in the base, under the delta.
    let base = lab.repository.find("web@2026-11-21").unwrap();
    let image = base.path.join(&base.manifest.disks[0].record.file);
    let mut bytes = fs::read(&image).unwrap();
    let noise = Guest::blank(300 * 65_536).fill(1, (0..300).filter(|n| n % 3 == 0));
    let wanted = &noise.cluster(9)[..64];
    let at = bytes.windows(64).position(|w| w == wanted).unwrap();
    bytes[at] ^= 1;
    fs::write(&image, bytes).unwrap();
    for format in [ExportFormat::Raw, ExportFormat::Qcow2] {
        let options = ExportOptions::new(format);
        let error =
            lab.repository.export(&point, disk, &options, &output, &|_, _| true).unwrap_err();
        assert!(error.is_damage() && error.to_string().contains("cluster 9 "), "{error}");
    }
    let left: Vec<_> = fs::read_dir(lab.dir.path()).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}
