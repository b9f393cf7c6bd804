//! Backups of a disk with a history, as the coordinator makes them: the coordinator's own
//! decisions, the real worker's pieces, the real repository; full or as a delta, one snapshot
//! kept. Only the engine is missing: its list of snapshots is made from the disk's.
//!
//! Invariant: every point that was made is read back and compared with the memory of that
//! moment after every further point, and by QEMU over the stored chain at the end.

use std::process::Command;

use hvbak_plan::{Base as Planned, BaseDisk, LayerFacts, WhyFull, disk_level, sub_chain};
use hvbak_repo::{
    Buffers, Consistency, DiskOptions, DiskRecord, Level, Manifest, ManifestDisk, ManifestVm,
    Payload, Point, Repository, Staging, VmLock,
};
use hvbak_types::{
    JobId, PointId, Snapshot, SnapshotId, SnapshotKind, SnapshotStatus, VmId, VolumeId,
};
use hvbak_wire::{Answer, Format, Layer as Found, LayerAddress, Op, Place, ReadOptions};

use crate::{
    history_disk::{Disk, Owner, assert_same},
    history_steps::{Base, Layer, Step, Wish},
    support::{CLUSTER, Worker},
};

/// A point and what the guest saw then.
struct Stored {
    point: Point,
    /// The engine's id of its snapshot.
    snapshot: SnapshotId,
    guest: Vec<u8>,
    full: bool,
}

pub struct History {
    pub disk: Disk,
    worker: Worker,
    repository: Repository,
    lock: VmLock,
    job: JobId,
    vm: VmId,
    points: Vec<Stored>,
    /// The point whose snapshot is kept.
    base: Option<usize>,
}

impl History {
    pub fn new(base: Base, sectors: u32) -> Self {
        let disk = Disk::new(base, sectors);
        let worker = Worker::start(disk.tree.dir.path());
        let repository = Repository::init(disk.tree.dir.path().join("repository")).unwrap();
        let (vm, job) = (VmId::random(), JobId::random());
        let lock = repository.lock_vm(vm, job).unwrap();
        Self { disk, worker, repository, lock, job, vm, points: Vec::new(), base: None }
    }

    /// Makes steps; chains stay shorter than vdsm's longest.
    pub fn steps(mut self, steps: &[Step]) -> Self {
        for step in steps {
            match step {
                Step::Io(all) => self.disk.io(all),
                Step::Foreign(layer) if self.disk.volumes.len() < 10 => {
                    self.disk.snapshot(Owner::Foreign, *layer);
                }
                Step::Delete(nth) if !self.disk.snapshots.is_empty() => {
                    self.disk.delete(usize::from(*nth) % self.disk.snapshots.len());
                }
                Step::Commit(nth) if !self.disk.snapshots.is_empty() => {
                    self.disk.commit(usize::from(*nth) % self.disk.snapshots.len());
                }
                Step::Foreign(_) | Step::Delete(_) | Step::Commit(_) => {}
                Step::Extend(sectors) => self.disk.extend(*sectors),
                Step::Backup { wish, layer, packed } => {
                    self.backup(*wish, *layer, *packed);
                    self.read_back();
                }
            }
        }
        self
    }

    /// How many of the points are deltas.
    pub fn deltas(&self) -> usize {
        self.points.iter().filter(|p| !p.full).count()
    }

    /// Compares everything, at last by QEMU; ends the worker.
    pub fn finish(self) {
        self.read_back();
        assert_same("the disk", &self.disk.seen(self.disk.active()), &self.disk.guest);
        for stored in &self.points {
            let file = stored.point.path.join(&stored.point.manifest.disks[0].record.file);
            let file = file.to_str().unwrap();
            let text = judged(&["check", "-f", "qcow2", file]);
            assert!(text.contains("No errors were found"), "{text}");
            let raw = self.disk.tree.dir.path().join("expected.raw");
            std::fs::write(&raw, &stored.guest).unwrap();
            let raw = raw.to_str().unwrap();
            judged(&["compare", "-f", "raw", "-F", "qcow2", raw, file]);
        }
        assert!(self.worker.end().success());
    }

    fn backup(&mut self, wish: Wish, layer: Layer, packed: bool) {
        let number = self.points.len();
        let level = self.level(wish);
        self.disk.snapshot(Owner::Own(number), layer);
        let frozen = self.disk.volumes[self.disk.volumes.len() - 2];
        assert_same("the frozen volume", &self.disk.seen(&frozen), &self.disk.guest);
        let chain = self.walk(&frozen.volume);
        let base = level.and(self.base);
        let top = base.and_then(|base| self.sub_chain(base, &chain));
        let (base, level) = match (base, level) {
            (Some(base), Some(hvbak_plan::Level::Differential)) if top.is_some() => {
                (Some(base), Level::Differential)
            }
            (Some(base), _) if top.is_some() => (Some(base), Level::Incremental),
            _ => (None, Level::Full),
        };

        let id: PointId = format!("20260101T{:06}Z", number + 1).parse().unwrap();
        let staging = self.repository.stage(&self.lock, &id).unwrap();
        let options = match base {
            Some(base) => {
                DiskOptions::delta(self.disk.size(), self.points[base].point.id().clone())
            }
            None => DiskOptions::full(self.disk.size()),
        };
        let record = self.read(&chain, top, packed, &staging, options);
        assert_eq!(self.walk(&frozen.volume), chain, "the frozen chain stays as it is");

        let point = staging.publish(self.manifest(&id, record, level)).unwrap();
        let guest = self.disk.guest.clone();
        let snapshot = SnapshotId::random();
        self.points.push(Stored { point, snapshot, guest, full: base.is_none() });

        // One snapshot is kept: the base of differentials, else the newest.
        let gone = match level {
            Level::Differential => Some(number),
            _ => self.base.replace(number),
        };
        if let Some(nth) = gone.and_then(|point| self.disk.own(point)) {
            self.disk.delete(nth);
        }
    }

    /// What the engine lists now.
    fn snapshots(&self) -> Vec<Snapshot> {
        let id = |owner: &Owner| match owner {
            Owner::Own(point) => self.points[*point].snapshot,
            Owner::Foreign => SnapshotId::random(),
        };
        let snapshot = |owner| Snapshot {
            id: id(owner),
            description: "the same for all".into(),
            kind: SnapshotKind::Regular,
            status: Some(SnapshotStatus::Ok),
            date: None,
            memory: None,
        };
        self.disk.snapshots.iter().map(snapshot).collect()
    }

    /// The base as the catalogue has it.
    fn planned(&self, base: usize) -> Planned {
        let stored = &self.points[base];
        let disk = BaseDisk {
            id: self.disk.image,
            virtual_size: stored.guest.len() as u64,
            full: stored.full,
            damage: None,
        };
        Planned {
            point: stored.point.id().clone(),
            snapshot: stored.snapshot,
            description: String::new(),
            disks: vec![disk],
        }
    }

    /// The coordinator's first decision, which is what the history says; `None`: a full.
    fn level(&self, wish: Wish) -> Option<hvbak_plan::Level> {
        let asked = match wish {
            Wish::Full => hvbak_plan::Wish::Full,
            Wish::Incremental => hvbak_plan::Wish::Auto,
            Wish::Differential => hvbak_plan::Wish::Differential,
        };
        let planned = self.base.map(|base| self.planned(base));
        let found = disk_level(asked, planned.as_ref(), &self.snapshots(), self.disk.image);
        let there = self.base.filter(|base| self.disk.own(*base).is_some());
        match (wish, there.map(|base| self.points[base].full)) {
            (Wish::Full, _) => assert_eq!(found, Err(WhyFull::Asked)),
            (_, None) => assert!(
                matches!(found, Err(WhyFull::NoBase | WhyFull::SnapshotGone { .. })),
                "{found:?}"
            ),
            (Wish::Incremental, _) => assert_eq!(found, Ok(hvbak_plan::Level::Incremental)),
            (Wish::Differential, Some(true)) => {
                assert_eq!(found, Ok(hvbak_plan::Level::Differential));
            }
            (Wish::Differential, Some(false)) => {
                assert!(matches!(found, Err(WhyFull::NotFull { .. })), "{found:?}");
            }
        }
        found.ok()
    }

    /// The second decision, from the chain on the storage.
    fn sub_chain(&self, base: usize, chain: &[Found]) -> Option<u32> {
        let planned = self.planned(base);
        let volume = self.disk.own(base).map(|nth| self.disk.volumes[nth].volume);
        let layers: Vec<_> = chain
            .iter()
            .map(|l| LayerFacts { volume: l.volume, raw: l.format == Format::Raw })
            .collect();
        let size = self.disk.size();
        match sub_chain(&planned, self.disk.image, volume, &layers, size) {
            Ok(top) => Some(top as u32),
            Err(why @ WhyFull::NotInChain { .. }) => panic!("{why}"),
            Err(why) => panic!("a full for no reason: {why}"),
        }
    }

    fn walk(&mut self, volume: &VolumeId) -> Vec<Found> {
        let found = self.disk.volumes.iter().find(|v| v.volume == *volume).unwrap();
        let at = self.disk.tree.at(found);
        match self.worker.ask(Op::Chain { at }) {
            Ok(Answer::Chain(chain)) => {
                assert_ne!(chain.layers[0].voltype, "LEAF");
                assert_eq!(chain.layers[0].capacity, self.disk.size());
                chain.layers
            }
            other => panic!("{other:?}"),
        }
    }

    fn read(
        &mut self,
        chain: &[Found],
        top: Option<u32>,
        packed: bool,
        staging: &Staging,
        options: DiskOptions,
    ) -> DiskRecord {
        let size = self.disk.size();
        let layers = chain.iter().map(address).collect();
        match self.worker.ask(Op::Open { layers, top }) {
            Ok(Answer::Opened(opened)) => assert_eq!(opened.virtual_size, size),
            other => panic!("{other:?}"),
        }
        let pieces = match self.worker.ask(Op::Map { offset: 0, length: size, pieces: 16 }) {
            Ok(Answer::Map(map)) => map.pieces,
            other => panic!("{other:?}"),
        };
        let mut writer = staging.disk_writer(self.disk.image, options).unwrap();
        let read = ReadOptions {
            compression: packed.then_some(1),
            threads: Some(2),
            zeros: top.is_some(),
            ..ReadOptions::default()
        };
        for (nth, start) in pieces.iter().enumerate() {
            let end = pieces.get(nth + 1).copied().unwrap_or(size);
            let (back, _) = self.worker.read(*start, end - start, read.clone()).unwrap();
            for (cluster, count) in &back.zeros {
                writer.put_zero(*cluster, u64::from(*count)).unwrap();
            }
            for (cluster, content) in &back.data {
                let digest = &back.digests[cluster];
                let payload = match back.payload.get(cluster) {
                    Some(frame) => Payload::Compressed(frame),
                    None => Payload::Plain(content),
                };
                writer.put(*cluster, payload, digest).unwrap();
            }
        }
        self.worker.ask(Op::Close).unwrap();
        writer.finish().unwrap()
    }

    fn read_back(&self) {
        for stored in &self.points {
            let what = format!("point {}", stored.point.id());
            let reader = self.repository.disk_reader(&stored.point, self.disk.image).unwrap();
            assert_eq!(reader.virtual_size(), stored.guest.len() as u64, "{what}");
            let mut found = vec![0; (reader.clusters() * CLUSTER) as usize];
            let mut buffers = Buffers::default();
            for run in reader.stored() {
                let run = run.unwrap();
                for cluster in run.cluster..run.cluster + run.count {
                    let content = reader.read_proven(&run, cluster, &mut buffers).unwrap();
                    if let Some(bytes) = buffers.guest(content) {
                        let at = (cluster * CLUSTER) as usize;
                        found[at..at + bytes.len()].copy_from_slice(bytes);
                    }
                }
            }
            let padding = found.split_off(stored.guest.len());
            assert!(padding.iter().all(|b| *b == 0), "{what}: padding");
            assert_same(&what, &found, &stored.guest);
        }
    }

    fn manifest(&self, id: &PointId, record: DiskRecord, level: Level) -> Manifest {
        let vm = ManifestVm {
            id: self.vm,
            name: "web".into(),
            cluster: None,
            data_center: None,
            status: None,
        };
        let started = id.time().unwrap();
        let mut manifest = Manifest::new(self.repository.id(), id.clone(), vm, self.job, started);
        manifest.consistency = Consistency::Crash;
        manifest.parent.clone_from(&record.parent);
        manifest.disks.push(ManifestDisk {
            alias: "web_Disk1".into(),
            description: None,
            level,
            record,
            reason: "asked for".into(),
            interface: None,
            bootable: true,
            active: true,
            read_only: false,
            pass_discard: false,
            wipe_after_delete: false,
            format: None,
            sparse: None,
            domain: None,
            domain_name: None,
            volumes: Vec::new(),
        });
        manifest
    }
}

fn address(layer: &Found) -> LayerAddress {
    LayerAddress {
        place: Place::Path(layer.path.clone()),
        format: layer.format,
        capacity: (layer.format == Format::Raw).then_some(layer.capacity),
        identity: Some(layer.identity),
    }
}

/// What `qemu-img` says when it finds nothing wrong.
fn judged(arguments: &[&str]) -> String {
    let out = Command::new("qemu-img").args(arguments).output().expect("qemu-img is installed");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "qemu-img {arguments:?}: {text} {errors}");
    text
}
