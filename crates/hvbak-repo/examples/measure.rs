//! Measures the repository alone: `cargo run --release -p hvbak-repo --example measure DIR
//! [GIB [tiny]]`. With `tiny` each cluster shrinks to some bytes, to see what huge disks
//! cost in memory. Prints speeds of writing, proving, exporting and reading back, and peak memory.
//! DIR must be empty or new; it is left as a repository to look at.

use std::{collections::BTreeMap, path::Path, time::Instant};

use hvbak_repo::{
    DiskOptions, ExportFormat, ExportOptions, Manifest, ManifestDisk, ManifestVm, Payload,
    Repository, VerifyOptions,
};
use hvbak_types::{Digest, DiskId, JobId, VmId};

const CLUSTER: usize = 65_536;
/// Different clusters, so that the data does not fit into the caches.
const VARIETY: usize = 1024;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("name a directory")?;
    let gib: u64 = args.next().map_or(Ok(2), |text| text.parse())?;
    let clusters = gib << 30 >> 16;
    let samples = if args.next().is_some() { tiny() } else { samples() };
    peak("before");
    let payload: usize = (0..clusters).map(|n| samples[n as usize % samples.len()].0.len()).sum();
    println!("{gib} GiB of guest data, {} MiB of payload", payload >> 20);

    let repository = Repository::init(&dir)?;
    let (vm, disk, job) = (VmId::random(), DiskId::random(), JobId::random());
    let started = jiff::Timestamp::now();
    let lock = repository.lock_vm(vm, job)?;
    let id = repository.new_point_id(vm, started);
    let staging = repository.stage(&lock, &id)?;
    let mut writer = staging.disk_writer(disk, DiskOptions::full(clusters << 16))?;
    let clock = Clock::start();
    for n in 0..clusters {
        let (bytes, digest) = &samples[n as usize % samples.len()];
        let payload = match bytes.len() {
            CLUSTER => Payload::Plain(bytes),
            _ => Payload::Compressed(bytes),
        };
        writer.put(n, payload, digest)?;
    }
    tell("put, payload", payload as u64, clock);
    let clock = Clock::start();
    let record = writer.finish()?;
    tell("finish (fsync)", payload as u64, clock);
    println!("stored {} bytes, {:.3} of payload", record.stored_bytes, ratio(&record, payload));
    let owner = ManifestVm {
        id: vm,
        name: "measure".into(),
        cluster: None,
        data_center: None,
        status: None,
    };
    let mut manifest = Manifest::new(repository.id(), id, owner, job, started);
    let disk_json = serde_json::json!({ "alias": "measure", "level": "full" });
    let mut fields: BTreeMap<String, serde_json::Value> = serde_json::from_value(disk_json)?;
    let record_json = serde_json::to_value(&record)?;
    fields.extend(record_json.as_object().cloned().unwrap_or_default());
    let entry: ManifestDisk = serde_json::from_value(serde_json::to_value(fields)?)?;
    manifest.disks.push(entry);
    let clock = Clock::start();
    let point = staging.publish(manifest)?;
    tell("publish", 0, clock);
    peak("after writing");

    for threads in [1, 0] {
        let clock = Clock::start();
        let options = VerifyOptions { threads, ..VerifyOptions::default() };
        let report = repository.verify(&point, &options, &|_| true)?;
        assert!(report.is_clean(), "{report:?}");
        tell(&format!("verify, guest bytes, {threads} threads"), clusters << 16, clock);
    }
    let clock = Clock::start();
    let reader = repository.disk_reader(&point, disk)?;
    let mut buffer = Vec::new();
    let mut read = 0;
    for run in reader.stored() {
        let run = run?;
        for cluster in run.cluster..run.cluster + run.count {
            reader.read_in(&run, cluster, &mut buffer)?;
            read += buffer.len() as u64;
        }
    }
    tell("read as stored, payload, 1 thread", read, clock);
    for (format, name) in [(ExportFormat::Raw, "raw"), (ExportFormat::Qcow2, "qcow2")] {
        let output = Path::new(&dir).join(format!("export.{name}"));
        let clock = Clock::start();
        repository.export(&point, disk, &ExportOptions::new(format), &output, &|_, _| true)?;
        tell(&format!("export {name}, guest bytes, with fsync"), clusters << 16, clock);
        std::fs::remove_file(output)?;
    }
    peak("at the end");
    Ok(())
}

fn ratio(record: &hvbak_repo::DiskRecord, payload: usize) -> f64 {
    record.stored_bytes as f64 / payload as f64
}

/// Half text, half noise in each compressible cluster; every eighth is noise alone.
fn samples() -> Vec<(Vec<u8>, Digest)> {
    let mut state = 1u64;
    let mut noise = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..VARIETY)
        .map(|n| {
            let mut bytes = vec![0; CLUSTER];
            for (i, byte) in bytes.iter_mut().enumerate() {
                *byte =
                    if n % 8 == 0 || i % 256 < 120 { noise() } else { b'a' + (i / 256 % 26) as u8 };
            }
            let digest = Digest(blake3::hash(&bytes).into());
            let frame = zstd::bulk::compress(&bytes, 1).unwrap_or_default();
            let small = !frame.is_empty() && frame.len() < CLUSTER - 512;
            (if small { frame } else { bytes }, digest)
        })
        .collect()
}

/// One byte, repeated.
fn tiny() -> Vec<(Vec<u8>, Digest)> {
    let cluster = |n: u8| vec![n; CLUSTER];
    let frame = |bytes: Vec<u8>| {
        let digest = Digest(blake3::hash(&bytes).into());
        (zstd::bulk::compress(&bytes, 1).unwrap_or_default(), digest)
    };
    (1..17).map(|n| frame(cluster(n))).collect()
}

fn tell(what: &str, bytes: u64, clock: Clock) {
    let seconds = clock.0.elapsed().as_secs_f64();
    let (user, system) = cpu();
    println!(
        "{what}: {seconds:.2} s, {:.0} MiB/s; CPU {:.2} s user, {:.2} s system",
        bytes as f64 / seconds / (1 << 20) as f64,
        user - clock.1.0,
        system - clock.1.1
    );
}

/// Wall clock and the CPU seconds at its start.
struct Clock(Instant, (f64, f64));

impl Clock {
    fn start() -> Self {
        Self(Instant::now(), cpu())
    }
}

/// User and system CPU seconds of this process.
fn cpu() -> (f64, f64) {
    use nix::sys::{resource, time::TimeValLike};
    let usage = resource::getrusage(resource::UsageWho::RUSAGE_SELF);
    usage.map_or((0.0, 0.0), |u| {
        let seconds = |t: nix::sys::time::TimeVal| t.num_microseconds() as f64 / 1e6;
        (seconds(u.user_time()), seconds(u.system_time()))
    })
}

fn peak(when: &str) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap_or("VmHWM: unknown");
    println!("peak memory {when}: {}", line.trim_start_matches("VmHWM:").trim());
}
