//! The commands of `FORMAT.md`, run as they stand there against a full and an incremental
//! point, and against an encrypted archive; what they bring back is compared with what there
//! was.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{path::Path, process::Command};

use hvbak_repo::{
    DiskOptions, DiskWriter, Encrypted, Level, ManagerManifest, Manifest, ManifestDisk, ManifestVm,
    Payload, Recipients, Repository,
};
use hvbak_types::{Digest, DiskId, JobId, PointId, VmId};

const CLUSTER: usize = 65_536;

/// The fenced blocks marked `sh` of a section.
fn blocks(section: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("FORMAT.md");
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.split(&format!("\n## {section}\n")).nth(1).unwrap();
    let text = text.split("\n## ").next().unwrap();
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

    let blocks = blocks("A VM brought back by hand");
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

/// Writes to the skip log; nothing is skipped in CI.
fn skip(why: &str) {
    assert!(std::env::var_os("HVBAK_NO_SKIP").is_none(), "{why}");
    eprintln!("SKIP: {why}");
    if let Some(log) = std::env::var_os("HVBAK_SKIP_LOG") {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(log);
        let _ = file.and_then(|mut f| std::io::Write::write_all(&mut f, why.as_bytes()));
    }
}

/// Publishes an archive of the fixtures and follows the page; what was printed.
fn bring_back(archive: &str, version: &str, recipients: &[&str]) -> String {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/engine-backup");
    let plain = std::fs::read(fixtures.join(archive)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let repository = Repository::init(dir.path()).unwrap();
    let (name, point) = ("engine.example.test".parse().unwrap(), "20261121T021454Z");
    let lock = repository.lock_manager(&name, JobId::random()).unwrap();
    let mut staging = repository.stage_manager(&lock, &point.parse().unwrap()).unwrap();
    let recipients = Recipients::parse(recipients).unwrap();
    let mut writer = staging.create_archive(&recipients).unwrap();
    writer.write(&plain).unwrap();
    staging.finish(writer).unwrap();
    staging.add("stdout.txt", b"Done.\n").unwrap();
    let sum = Command::new("sha256sum").arg(fixtures.join(archive)).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap()[..64].to_owned();
    let encrypted = Encrypted {
        with: "age".into(),
        recipients: recipients.names().to_vec(),
        size: plain.len() as u64,
        sha256: sum.parse().unwrap(),
    };
    let manifest = ManagerManifest {
        format: 1,
        manager: name,
        point: point.parse().unwrap(),
        started: point.parse::<PointId>().unwrap().time().unwrap(),
        finished: point.parse::<PointId>().unwrap().time().unwrap(),
        hvbak: "0".into(),
        version: version.into(),
        requested: vec!["all".into()],
        scopes: vec!["files".into()],
        absent: Vec::new(),
        command: Vec::new(),
        seconds: 1.0,
        databases: Default::default(),
        engine: None,
        files: Vec::new(),
        in_sums: false,
        encrypted: (!recipients.is_empty()).then_some(encrypted),
        warnings: Vec::new(),
    };
    staging.publish(manifest).unwrap();
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let blocks = blocks("A manager brought back by hand");
    assert_eq!(blocks.len(), 4);
    let mut printed = String::new();
    for block in &blocks {
        let run = Command::new("bash")
            .args(["-euo", "pipefail", "-c", block])
            .env("LC_ALL", "C")
            .env("REPOSITORY", dir.path())
            .env("FQDN", "engine.example.test")
            .env("POINT", point)
            .env("KEY", fixtures.join("test-identity.txt"))
            .env("OUT", &out)
            .output()
            .unwrap();
        assert!(run.status.success(), "{block}\n{run:?}");
        printed.push_str(&String::from_utf8_lossy(&run.stdout));
    }
    for told in ["manifest.json: OK", "stdout.txt: OK", "files: OK", version] {
        assert!(printed.contains(told), "{told} is not in\n{printed}");
    }
    assert!(printed.contains(&format!("\"sha256\": \"{sum}\"")), "{printed}");
    assert!(std::fs::read(out.join("engine.backup")).unwrap() == plain);
    assert!(!out.join("inside").exists(), "its keys are left there");
    printed
}

#[test]
fn a_managers_archive_comes_back_with_stock_tools_alone() {
    bring_back("4.2.8.9-all.backup", "4.2.8.9", &[]);
    let printed = bring_back("4.5.7-all.backup", "4.5.7", &[]);
    assert!(printed.contains("engine.backup: OK"), "{printed}");
    if Command::new("age").arg("--version").output().is_err() {
        return skip("age is not installed (Debian: apt-get install age)\n");
    }
    let key = "age1zj8w38z6sf4r6qa6xpm38vclmjs0jud83m9eev69xvtwrn0wnguq0usvu0";
    let printed = bring_back("4.5.7-all.backup", "4.5.7", &[key]);
    assert!(printed.contains("engine.backup.age: OK"), "{printed}");
}
