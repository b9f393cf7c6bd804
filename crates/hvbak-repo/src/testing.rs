//! What the tests of this room share: a guest disk in memory and points made of it.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use hvbak_types::{CLUSTER_SIZE, Digest, DiskId, JobId, PointId, VmId};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{
    Consistency, DiskOptions, DiskRecord, DiskWriter, Level, Manifest, ManifestDisk, ManifestVm,
    Payload, Point, Repository, VmLock,
};

const CLUSTER: usize = CLUSTER_SIZE as usize;

/// A disk to store: the point and content it is a delta to, and its content now.
pub type Disk<'a> = (DiskId, Option<(&'a Point, &'a Guest)>, &'a Guest);

/// A repository in a temporary directory with one VM to back up.
pub struct Lab {
    pub dir: tempfile::TempDir,
    pub repository: Repository,
    pub vm: VmId,
    pub job: JobId,
}

impl Lab {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::init(dir.path().join("repo")).unwrap();
        Self { dir, repository, vm: VmId::random(), job: JobId::random() }
    }

    /// A repository that another process made.
    pub fn of(root: &str) -> Self {
        let (dir, repository) = (tempfile::tempdir().unwrap(), Repository::open(root).unwrap());
        Self { dir, repository, vm: VmId::random(), job: JobId::random() }
    }

    pub fn lock(&self) -> VmLock {
        self.repository.lock_vm(self.vm, self.job).unwrap()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Publishes a point of some disks: the guest before (for a delta) and now.
    pub fn point(&self, id: &str, disks: &[Disk<'_>]) -> Point {
        let lock = self.lock();
        let id: PointId = id.parse().unwrap();
        let staging = self.repository.stage(&lock, &id).unwrap();
        staging.put_document("vm.ovf", format!("<ovf point=\"{id}\"/>").as_bytes()).unwrap();
        staging.put_document("nics.xml", b"<nics/>").unwrap();
        let mut manifest = self.manifest(&id);
        for (disk, base, now) in disks {
            let options = match base {
                None => DiskOptions::full(now.size()),
                Some((parent, _)) => DiskOptions::delta(now.size(), parent.id().clone()),
            };
            let mut writer = staging.disk_writer(*disk, options).unwrap();
            now.write(base.map(|(_, guest)| guest), &mut writer);
            let record = writer.finish().unwrap();
            manifest.parent = manifest.parent.max(record.parent.clone());
            manifest.disks.push(disk_entry(record));
        }
        staging.publish(manifest).unwrap()
    }

    pub fn manifest(&self, point: &PointId) -> Manifest {
        let vm = ManifestVm {
            id: self.vm,
            name: "web".into(),
            cluster: Some("Default".into()),
            data_center: None,
            status: Some("up".into()),
        };
        let started = point.time().unwrap();
        let mut manifest =
            Manifest::new(self.repository.id(), point.clone(), vm, self.job, started);
        manifest.consistency = Consistency::Filesystem;
        manifest
    }
}

pub fn disk_entry(record: DiskRecord) -> ManifestDisk {
    ManifestDisk {
        alias: format!("web_{}", &record.id.to_string()[..4]),
        description: None,
        level: if record.parent.is_some() { Level::Incremental } else { Level::Full },
        record,
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
    }
}

/// A guest's disk: its bytes.
#[derive(Clone)]
pub struct Guest(pub Vec<u8>);

impl Guest {
    /// `size` bytes of zeros.
    pub fn blank(size: usize) -> Self {
        Self(vec![0; size])
    }

    pub fn size(&self) -> u64 {
        self.0.len() as u64
    }

    /// Fills clusters: even ones with text, odd ones with noise.
    pub fn fill(mut self, seed: u64, clusters: impl IntoIterator<Item = usize>) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        for cluster in clusters {
            let end = self.0.len().min((cluster + 1) * CLUSTER);
            let range = &mut self.0[cluster * CLUSTER..end];
            if cluster % 2 == 0 {
                let line = format!("cluster {cluster} of seed {seed} {}\n", rng.random::<u64>());
                range.iter_mut().zip(line.bytes().cycle()).for_each(|(to, from)| *to = from);
            } else {
                rng.fill(range);
            }
        }
        self
    }

    /// Zeros clusters.
    pub fn zero(mut self, clusters: impl IntoIterator<Item = usize>) -> Self {
        for cluster in clusters {
            let end = self.0.len().min((cluster + 1) * CLUSTER);
            self.0[cluster * CLUSTER..end].fill(0);
        }
        self
    }

    /// A cluster padded to its full size.
    pub fn cluster(&self, number: usize) -> Vec<u8> {
        let mut bytes = self.0[number * CLUSTER..].to_vec();
        bytes.resize(CLUSTER, 0);
        bytes
    }

    pub fn clusters(&self) -> usize {
        self.0.len().div_ceil(CLUSTER)
    }

    /// Puts what differs from `base`, in an order that is not the guest's.
    pub fn write(&self, base: Option<&Guest>, writer: &mut DiskWriter) {
        let half = self.clusters() / 2;
        for number in (half..self.clusters()).chain(0..half) {
            let now = self.cluster(number);
            let before = match base {
                Some(base) if number < base.clusters() => base.cluster(number),
                _ => vec![0; CLUSTER],
            };
            if now != before {
                put(writer, number as u64, &now);
            }
        }
    }
}

/// Puts a cluster as the worker would send it.
pub fn put(writer: &mut DiskWriter, number: u64, bytes: &[u8]) {
    if bytes.iter().all(|b| *b == 0) {
        return writer.put_zero(number, 1).unwrap();
    }
    let digest = Digest(blake3::hash(bytes).into());
    let frame = zstd::bulk::compress(bytes, 1).unwrap();
    if frame.len() < CLUSTER - 512 {
        writer.put(number, Payload::Compressed(&frame), &digest).unwrap();
    } else {
        writer.put(number, Payload::Plain(bytes), &digest).unwrap();
    }
}

/// Runs a stock tool; its output, or a panic with it.
pub fn run(command: &mut Command) -> String {
    let out = command.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success(),
        "{command:?}: {} {text} {}",
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
    text
}

/// `qemu-img check` of every image of a point.
pub fn qemu_check(point: &Point) {
    for disk in &point.manifest.disks {
        let file = point.path.join(&disk.record.file);
        let text = run(Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(&file));
        assert!(text.contains("No errors were found"), "{text}");
    }
}

/// Compares an image with the guest's bytes by `qemu-img compare`.
pub fn qemu_compare(lab: &Lab, guest: &Guest, format: &str, file: &Path) {
    let raw = lab.file("expected.raw");
    std::fs::write(&raw, &guest.0).unwrap();
    run(Command::new("qemu-img").args(["compare", "-f", "raw", "-F", format]).arg(&raw).arg(file));
}
