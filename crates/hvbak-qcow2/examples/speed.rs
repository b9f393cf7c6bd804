//! Speed of the reader and the writer on this machine, for comparison with qemu-img.
//!
//!   speed read THREADS BASE… TOP   maps and reads a chain of qcow2 files, base first
//!   speed write FILE GIB           writes GIB of payload, compressed and plain
//!   speed check FILE               checks the structure

use std::{
    error::Error,
    fs::File,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Instant,
};

use hvbak_qcow2::{Chain, Compression, Layer, Writer, WriterOptions, check};
use hvbak_types::{CLUSTER_SIZE, ExtentKind};

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> Outcome {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["read", threads, ref images @ ..] => read(threads.parse()?, images),
        ["write", file, gib] => write(file, gib.parse()?),
        ["check", file] => {
            let start = Instant::now();
            let report = check(&File::open(file)?)?;
            println!("check {:.3} s, {} errors", start.elapsed().as_secs_f64(), report.errors);
            Ok(())
        }
        _ => Err("usage: speed read THREADS IMAGE… | write FILE GIB | check FILE".into()),
    }
}

fn read(threads: u64, images: &[&str]) -> Outcome {
    let open =
        |image: &&str| -> Result<_, Box<dyn Error>> { Ok(Layer::open_qcow2(File::open(image)?)?) };
    let chain = Chain::new(images.iter().map(open).collect::<Result<_, _>>()?)?;
    let start = Instant::now();
    let (mut count, mut bytes) = (0u64, 0);
    for extent in chain.extents(0, chain.virtual_size())? {
        let extent = extent?;
        count += 1;
        bytes += if extent.kind == ExtentKind::Data { extent.length } else { 0 };
    }
    println!("map  {:.3} s, {count} extents", start.elapsed().as_secs_f64());
    let start = Instant::now();
    let next = AtomicU64::new(0);
    let unit = 16;
    std::thread::scope(|scope| {
        let work = || -> Result<(), hvbak_qcow2::Error> {
            let mut buf = vec![0; (unit * CLUSTER_SIZE) as usize];
            loop {
                let first = next.fetch_add(unit, Relaxed);
                if first >= chain.clusters() {
                    return Ok(());
                }
                let count = unit.min(chain.clusters() - first);
                for run in chain.cluster_runs(images.len(), first, count)? {
                    let run = run?;
                    if run.kind == ExtentKind::Data {
                        let part = &mut buf[..(run.count * CLUSTER_SIZE) as usize];
                        chain.read(part, run.cluster * CLUSTER_SIZE)?;
                    }
                }
            }
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Ok(())))
    })?;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "read {seconds:.3} s, {} MiB, {:.0} MiB/s",
        bytes >> 20,
        bytes as f64 / seconds / 1048576.0
    );
    Ok(())
}

fn write(file: &str, gib: u64) -> Outcome {
    // Half noise: a payload of about 32 KiB, the mean of mixed data.
    let mut seed = 1u64;
    let data: Vec<u8> = (0..65536)
        .map(|at| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            if at % 2 == 0 { (seed >> 56) as u8 } else { 0 }
        })
        .collect();
    let packed = zstd::bulk::compress(&data, 1)?;
    for compressed in [true, false] {
        let length = if compressed { packed.len() as u64 } else { CLUSTER_SIZE };
        let count = (gib << 30) / length;
        let out = File::options().read(true).write(true).create(true).truncate(true).open(file)?;
        let start = Instant::now();
        let options = WriterOptions {
            virtual_size: count * CLUSTER_SIZE,
            backing: None,
            compression: Some(Compression::Zstd),
        };
        let mut writer = Writer::create(out, options)?;
        for cluster in 0..count {
            if compressed {
                writer.put_compressed(cluster, &packed)?;
            } else {
                writer.put_data(cluster, &data)?;
            }
        }
        let summary = writer.finish()?;
        let seconds = start.elapsed().as_secs_f64();
        let rate = summary.payload_bytes as f64 / seconds / 1048576.0;
        println!("write {length}-byte payloads: {seconds:.3} s, {rate:.0} MiB/s of payload");
    }
    Ok(())
}
