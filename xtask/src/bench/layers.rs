//! Chain (b): a qcow2 base and two overlays, with few dirty clusters in the newest.
//!
//! Each round is a full backup of what there is, then as much written as a guest writes in
//! a day, then an incremental. The layer is copied before hvbak's snapshot freezes it, so
//! that peers read what hvbak read, after it was merged away.

use std::fs;

use anyhow::Result;

use super::{
    Bench,
    image::{self, Recipe},
    lab::Kind,
    peers::Peers,
    report::{CAT, CAT_LAYER, IMAGEIO, QEMU, Report, Work},
};

/// Dirty bytes in the newest layer of a 4 GiB disk; the design's 206 MB, of 64 KiB each.
const DIRTY: u64 = 3144 * 65_536;

pub fn run(bench: &Bench, size: u64, rounds: usize, report: &mut Report) -> Result<()> {
    eprintln!("preparing chain (b): {} MiB, a base and its overlays", size >> 20);
    let dirty = DIRTY * (size >> 20) / 4096;
    let recipe = Recipe { size, files: size / 40 * 9, random: size / 40 * 6 };
    let (lab, _) = bench.lab(recipe, Kind::Layers, false)?;
    lab.foreign_snapshot()?;
    image::dirty(&lab.volume()?, size, dirty, 0, &bench.base)?;
    let layer = bench.base.join("layer");
    for round in 0..rounds {
        eprintln!("chain (b), round {} of {rounds}", round + 1);
        report.add(Work::Chain, lab.backup("full")?);
        // What it read is below the leaf that its snapshot made.
        let chain = lab.layers()?.split_off(1);
        let peers = Peers::new(&lab, &bench.base, bench.imageio.as_ref(), chain, size)?;
        report.add(Work::Chain, peers.run(CAT)?);
        if bench.imageio.is_some() {
            report.add(Work::Chain, peers.run(IMAGEIO)?);
        }
        // A minute: qemu-img asks for each extent and waits for a delayed answer.
        if round == 0 {
            report.add(Work::Chain, peers.run(QEMU)?);
        }
        drop(peers);
        let leaf = lab.volume()?;
        image::dirty(&leaf, size, dirty, round as u64 + 1, &bench.base)?;
        fs::copy(&leaf, &layer)?;
        report.layer_bytes = fs::metadata(&layer)?.len();
        report.add(Work::Layer, lab.backup("incremental")?);
        let peers =
            Peers::new(&lab, &bench.base, bench.imageio.as_ref(), vec![layer.clone()], size)?;
        report.add(Work::Layer, peers.run(CAT_LAYER)?);
        if bench.imageio.is_some() {
            report.add(Work::Layer, peers.run(IMAGEIO)?);
        }
    }
    Ok(())
}
