//! A merged image that begins as a clone of one of its layers.
//!
//! The clone shares its blocks with the layer, which is removed afterwards, so clusters that
//! stay where they are cost nothing but their entries in new tables and digests (0.06 % of
//! them). What no entry names is punched out; ends of clusters that share 64 KiB with living
//! ones stay as garbage. Invariant: with too much garbage or too many holes the merge copies
//! instead, which leaves none, so files do not grow without end.

use std::{collections::BTreeMap, fs, path::Path};

use crate::{
    digests::Spool,
    disk_reader::DiskReader,
    disk_writer::{DiskOptions, DiskWriter},
    error::{At, Error, Result},
    image::ImageKeeper,
    layout::{digests_name, image_name},
    stage::Shared,
};

/// Garbage that a clone may hold: a quarter of what it keeps, or so many bytes. Of holes, as
/// much as it keeps: they take no room, but the file's length tells them.
const GARBAGE_MIN: u64 = if cfg!(test) { 1 << 20 } else { 16 << 20 };

/// A writer that holds all that a merge takes from one layer.
pub(super) struct Cloned {
    pub writer: DiskWriter,
    /// That layer's number.
    pub layer: usize,
    /// Length of its image.
    pub length: u64,
}

/// Begins with the layer that gives most; `None` where the file system cannot clone, or a copy
/// is better.
pub(super) fn over_a_layer(
    reader: &DiskReader,
    options: &DiskOptions,
    dir: &Path,
    count: &mut dyn FnMut(u64) -> bool,
) -> Result<Option<Cloned>> {
    let Some((layer, clusters)) = largest(reader)? else { return Ok(None) };
    let Some(from) = reader.layer_path(layer) else { return Ok(None) };
    let disk = reader.disk();
    let path = dir.join(image_name(disk));
    let backing = options.backing(disk);
    let keeper = ImageKeeper::create(from, &path, options.virtual_size, backing.as_deref())?;
    let Some(mut image) = keeper else { return Ok(None) };
    let mut spool = Spool::new(dir.join(digests_name(disk)));
    let mut kept = 0;
    for run in reader.stored() {
        let run = run?;
        if !run.data || run.layer != layer {
            continue;
        }
        for cluster in run.clusters() {
            let (place, digest) = reader.place_in(&run, cluster)?;
            match image.keep(cluster, place) {
                Ok(()) => {}
                // Where no writer of ours would have put it: a copy puts it in order.
                Err(Error::Image { .. }) => {
                    drop(image);
                    fs::remove_file(&path).writing(&path)?;
                    return Ok(None);
                }
                Err(other) => return Err(other),
            }
            spool.put(cluster, &digest)?;
            kept += place.length;
        }
        if !count(0) {
            return Err(Error::Cancelled);
        }
    }
    let length = fs::metadata(&path).reading(&path)?.len();
    let Some(image) = image.begin((kept / 4).max(GARBAGE_MIN), kept.max(GARBAGE_MIN))? else {
        fs::remove_file(&path).writing(&path)?;
        return Ok(None);
    };
    if !count(clusters) {
        return Err(Error::Cancelled);
    }
    let options = options.clone();
    let writer = DiskWriter::with(image, spool, path, disk, options, Shared::default());
    Ok(Some(Cloned { writer, layer, length }))
}

/// The layer that decides most data clusters, and how many.
fn largest(reader: &DiskReader) -> Result<Option<(usize, u64)>> {
    let mut clusters = BTreeMap::<usize, u64>::new();
    for run in reader.stored() {
        let run = run?;
        if run.data {
            *clusters.entry(run.layer).or_default() += run.count;
        }
    }
    Ok(clusters.into_iter().max_by_key(|(_, count)| *count))
}
