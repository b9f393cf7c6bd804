//! The commands of `FORMAT.md`, run as they stand there against a full and an incremental
//! point; what they bring back is compared with what the guest had.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{path::Path, process::Command};

use hvbak_repo::{
    DiskOptions, DiskWriter, Level, Manifest, ManifestDisk, ManifestVm, Payload, Repository,
};
use hvbak_types::{Digest, DiskId, JobId, PointId, VmId};

const CLUSTER: usize = 65_536;

/// The fenced blocks marked `sh`.
fn blocks(text: &str) -> Vec<String> {
    text.split("```sh\n").skip(1).map(|b| b.split("```").next().unwrap().to_owned()).collect()
}

fn put(writer: &mut DiskWriter, guest: &[u8], cluster: usize) {
    let mut bytes = guest[cluster * CLUSTER..guest.len().min((cluster + 1) * CLUSTER)].to_vec();
    bytes.resize(CLUSTER, 0);
    if bytes.iter().all(|b| *b == 0) {
        return writer.put_zero(cluster as u64, 1).unwrap();
    }
    let digest = Digest(blake3::hash(&bytes).into());
    let frame = zstd::bulk::compress(&bytes, 1).unwrap();
    writer.put(cluster as u64, Payload::Compressed(&frame), &digest).unwrap();
}

/// Publishes a point that holds `changed` clusters of `guest`.
fn publish(
    repository: &Repository,
    (vm, disk): (VmId, DiskId),
    point: &str,
    parent: Option<&str>,
    guest: &[u8],
    changed: &[usize],
) {
    let (job, point) = (JobId::random(), point.parse::<PointId>().unwrap());
    let lock = repository.lock_vm(vm, job).unwrap();
    let staging = repository.stage(&lock, &point).unwrap();
    staging.put_document("vm.ovf", b"<ovf:Envelope/>\n").unwrap();
    let size = guest.len() as u64;
    let options = match parent {
        None => DiskOptions::full(size),
        Some(parent) => DiskOptions::delta(size, parent.parse().unwrap()),
    };
    let mut writer = staging.disk_writer(disk, options).unwrap();
    changed.iter().rev().for_each(|cluster| put(&mut writer, guest, *cluster));
    let record = writer.finish().unwrap();
    let owner = ManifestVm {
        id: vm,
        name: "accounting".into(),
        cluster: Some("Default".into()),
        data_center: Some("Default".into()),
        status: Some("up".into()),
    };
    let started = point.time().unwrap();
    let mut manifest = Manifest::new(repository.id(), point, owner, job, started);
    manifest.parent.clone_from(&record.parent);
    manifest.disks.push(ManifestDisk {
        alias: "accounting_Disk1".into(),
        description: None,
        level: if parent.is_some() { Level::Incremental } else { Level::Full },
        reason: "asked for".into(),
        interface: Some("virtio_scsi".into()),
        bootable: true,
        active: true,
        read_only: false,
        pass_discard: false,
        wipe_after_delete: false,
        format: Some("cow".into()),
        sparse: Some(true),
        domain: None,
        domain_name: None,
        volumes: Vec::new(),
        record,
    });
    staging.publish(manifest).unwrap();
}

#[test]
fn a_vm_comes_back_with_qemu_img_and_an_editor_alone() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("repository");
    let repository = Repository::init(&root).unwrap();
    let ids = (VmId::random(), DiskId::random());
    let mut guest = vec![0u8; 33 * CLUSTER + 512];
    let fill = |guest: &mut [u8], cluster: usize, text: &str| {
        let end = guest.len().min((cluster + 1) * CLUSTER);
        let bytes = text.bytes().cycle();
        guest[cluster * CLUSTER..end].iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    };
    for cluster in [0, 1, 8, 33] {
        fill(&mut guest, cluster, &format!("first {cluster} "));
    }
    publish(&repository, ids, "20261121T021454Z", None, &guest, &[0, 1, 8, 33]);
    let first = guest.clone();
    fill(&mut guest, 1, "second");
    fill(&mut guest, 20, "second");
    guest[8 * CLUSTER..9 * CLUSTER].fill(0);
    publish(&repository, ids, "20261122T021454Z", Some("20261121T021454Z"), &guest, &[1, 8, 20]);
    // The repository may lie elsewhere by then.
    drop(repository);
    let moved = dir.path().join("moved repository");
    std::fs::rename(&root, &moved).unwrap();

    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("FORMAT.md"));
    let blocks = blocks(&text.unwrap());
    assert_eq!(blocks.len(), 5);
    for (point, expected) in [("20261121T021454Z", first), ("20261122T021454Z", guest)] {
        let out = dir.path().join(point);
        std::fs::create_dir(&out).unwrap();
        let mut printed = String::new();
        for block in &blocks {
            let run = Command::new("bash")
                .args(["-euo", "pipefail", "-c", block])
                .env("LC_ALL", "C")
                .env("REPOSITORY", &moved)
                .env("VM", ids.0.to_string())
                .env("POINT", point)
                .env("DISK", ids.1.to_string())
                .env("OUT", &out)
                .output()
                .unwrap();
            assert!(run.status.success(), "{block}\n{run:?}");
            printed.push_str(&String::from_utf8_lossy(&run.stdout));
        }
        for told in ["accounting", point, "manifest.json: OK", "No errors", "Images are identical"]
        {
            assert!(printed.contains(told), "{told} is not in\n{printed}");
        }
        assert!(std::fs::read(out.join("disk.raw")).unwrap() == expected, "{point} differs");
    }
    // Nothing of it has changed the point.
    let repository = Repository::open(&moved).unwrap();
    let point = repository.find("accounting").unwrap();
    let report = repository.verify(&point, &Default::default(), &|_| true).unwrap();
    assert!(report.is_clean() && report.notes.is_empty(), "{report:?}");
}
