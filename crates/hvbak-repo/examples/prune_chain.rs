//! Prunes a chain of points made for it and says what that cost; run by `cargo xtask bench`.
//!
//! `prune_chain DIR MIB`: a full of MIB of data and 29 deltas of a hundredth of it each, in a new
//! repository in DIR. First its oldest point expires, as every day, then all but the newest.
//! A line of JSON per prune: seconds, bytes written, bytes of the deltas that were merged.

use std::{error::Error, path::Path, time::Instant};

use hvbak_repo::{
    DiskOptions, Level, Manifest, ManifestDisk, ManifestVm, Payload, Point, Repository,
};
use hvbak_types::{Digest, DiskId, JobId, PointId, VmId};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::index::sample};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const CLUSTER: usize = 65_536;
const POINTS: usize = 30;
/// Different contents of clusters, which come again and again.
const KINDS: usize = 64;

struct Chain {
    repository: Repository,
    vm: VmId,
    disk: DiskId,
    /// Packed, and the digest of the 64 KiB.
    kinds: Vec<(Vec<u8>, Digest)>,
    clusters: usize,
}

impl Chain {
    fn new(dir: &Path, mib: usize) -> Result<Self> {
        let mut rng = StdRng::seed_from_u64(1);
        let mut kinds = Vec::new();
        for _ in 0..KINDS {
            // Half noise, so that it packs to about a half.
            let mut bytes = vec![0; CLUSTER];
            rng.fill(&mut bytes[..CLUSTER / 2]);
            let digest = Digest(blake3::hash(&bytes).into());
            kinds.push((zstd::bulk::compress(&bytes, 1)?, digest));
        }
        Ok(Self {
            repository: Repository::init(dir.join("repository"))?,
            vm: VmId::random(),
            disk: DiskId::random(),
            kinds,
            clusters: mib * 16,
        })
    }

    /// A point of these clusters; gives the bytes of its image.
    fn add(&self, number: usize, parent: Option<&Point>, clusters: &[usize]) -> Result<Point> {
        let lock = self.repository.lock_vm(self.vm, JobId::random())?;
        let id: PointId = format!("202611{:02}T000000Z", number + 1).parse()?;
        let staging = self.repository.stage(&lock, &id)?;
        let size = (self.clusters * CLUSTER) as u64;
        let options = match parent {
            None => DiskOptions::full(size),
            Some(parent) => DiskOptions::delta(size, parent.id().clone()),
        };
        let mut writer = staging.disk_writer(self.disk, options)?;
        for cluster in clusters {
            let (frame, digest) = &self.kinds[(cluster + number) % KINDS];
            writer.put(*cluster as u64, Payload::Compressed(frame), digest)?;
        }
        let record = writer.finish()?;
        let name = "chain".to_owned();
        let vm = ManifestVm { id: self.vm, name, cluster: None, data_center: None, status: None };
        let started = id.time().ok_or("the id has no time")?;
        let mut manifest = Manifest::new(self.repository.id(), id, vm, JobId::random(), started);
        manifest.level = if parent.is_some() { Level::Incremental } else { Level::Full };
        manifest.parent = record.parent.clone();
        manifest.disks.push(ManifestDisk {
            alias: "chain_Disk1".into(),
            description: None,
            level: manifest.level,
            record,
            reason: "made for a benchmark".into(),
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
        Ok(staging.publish(manifest)?)
    }

    /// Expires points and tells the cost; `delta` are the bytes of what was merged.
    fn expire(&self, what: &str, expired: &[PointId], delta: u64) -> Result<()> {
        let lock = self.repository.lock_vm(self.vm, JobId::random())?;
        let began = Instant::now();
        let plan = self.repository.plan_expiry(self.vm, expired, &[])?;
        let summary = self.repository.expire(&lock, &plan, 0, &|_, _| true)?;
        let seconds = began.elapsed().as_secs_f64();
        let written = summary.written_bytes;
        println!(
            "{{\"prune\":\"{what}\",\"seconds\":{seconds:.3},\"written_bytes\":{written},\"delta_bytes\":{delta}}}"
        );
        Ok(())
    }
}

fn main() -> Result<()> {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let [dir, mib] = words.as_slice() else { return Err("usage: prune_chain DIR MIB".into()) };
    let chain = Chain::new(Path::new(dir), mib.parse()?)?;
    let mut rng = StdRng::seed_from_u64(2);
    let all: Vec<_> = (0..chain.clusters).collect();
    let mut points = vec![chain.add(0, None, &all)?];
    for number in 1..POINTS {
        let mut changed = sample(&mut rng, chain.clusters, chain.clusters / 100).into_vec();
        changed.sort_unstable();
        points.push(chain.add(number, points.last(), &changed)?);
    }
    let ids: Vec<_> = points.iter().map(|point| point.id().clone()).collect();
    let bytes = |from: usize, to: usize| -> u64 {
        points[from..to].iter().map(|point| point.manifest.stored_bytes()).sum()
    };
    chain.expire("oldest", &ids[..1], bytes(1, 2))?;
    chain.expire("all but the newest", &ids[1..POINTS - 1], bytes(2, POINTS))
}
