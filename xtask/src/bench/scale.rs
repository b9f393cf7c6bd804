//! What must not grow: the time of an incremental with the disk, memory with the streams,
//! requests with the VMs.

use anyhow::Result;
use serde_json::json;

use super::{
    Bench,
    image::{self, Recipe},
    lab::{Kind, Lab},
    report::{Report, Work},
};

/// `size` is that of the small disk; the large one is 25 times as large.
pub fn run(bench: &Bench, size: u64, rounds: usize, report: &mut Report) -> Result<()> {
    deltas(bench, size, rounds, report)?;
    streams(bench, size, report)?;
    plan(bench, rounds, report)
}

/// The same delta on disks of different size: 1 % of the larger one.
fn deltas(bench: &Bench, size: u64, rounds: usize, report: &mut Report) -> Result<()> {
    let delta = size * 25 / 100 / 65_536 * 65_536;
    report.delta_bytes = delta;
    let up = |name: &str, size| Lab::empty(&bench.bin, &bench.worker, &bench.base.join(name), size);
    eprintln!("preparing disks of {} and {} GiB", size >> 30, (size * 25) >> 30);
    let disks = [
        (up("small", size)?, size, Work::Small),
        (up("large", size * 25)?, size * 25, Work::Large),
    ];
    for (lab, ..) in &disks {
        lab.backup("full")?;
    }
    for round in 0..rounds {
        eprintln!("incremental of {} MiB, round {} of {rounds}", delta >> 20, round + 1);
        for (lab, size, work) in &disks {
            image::dirty(&lab.volume()?, *size, delta, round as u64, &bench.base)?;
            report.add(*work, lab.backup("incremental")?);
        }
    }
    Ok(())
}

/// Memory with sixteen streams.
fn streams(bench: &Bench, size: u64, report: &mut Report) -> Result<()> {
    eprintln!("full backup through 16 streams");
    let recipe = Recipe { size, files: size / 40 * 9, random: size / 40 * 6 };
    let (lab, _) = bench.lab(recipe, Kind::Raw, false)?;
    lab.configure("[transfer]\nstreams = 16\n")?;
    report.add(Work::Streams, lab.backup("full")?);
    Ok(())
}

/// A plan for a large site.
fn plan(bench: &Bench, rounds: usize, report: &mut Report) -> Result<()> {
    eprintln!("preparing 1000 VMs");
    let disk = |vm: usize, n: usize| json!({ "alias": format!("vm{vm}_Disk{n}"), "size": 1 << 20 });
    let vms: Vec<_> = (0..1000)
        .map(|vm| {
            let disks: Vec<_> = (0..3).map(|n| disk(vm, n)).collect();
            json!({ "name": format!("vm{vm}"), "disks": disks, "nics": 1 })
        })
        .collect();
    let lab = Lab::of(&bench.bin, &bench.worker, &bench.base.join("lab"), &json!(vms), "")?;
    report.plan_requests = Some(lab.plan_requests()?);
    for _ in 0..rounds {
        report.add(Work::Plan, lab.plan()?);
    }
    Ok(())
}
