//! Going on with a disk whose writer died: what its log vouches for is looked at again, taken
//! over where it is still right, and told to the caller as read; the rest is to be read anew.
//!
//! Invariant: a payload is taken over only if it inflates to what its digest says. Memory: a
//! batch of the log, what an image being written takes, and the ranges.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    num::NonZero,
    os::unix::fs::FileExt,
    path::Path,
    thread,
};

use hvbak_qcow2::Place;
use hvbak_types::{CLUSTER_SIZE, Digest, DiskId};

use crate::{
    digests::Spool,
    disk_writer::{DiskOptions, DiskWriter},
    durable,
    error::{At, Error, Result},
    image::{ImageKeeper, Inflater},
    layout::{digests_name, image_name, progress_name},
    progress::{Progress, Record, Replay},
    stage::Shared,
};

/// More bad clusters are not worth the pieces.
const BAD_MAX: usize = 1 << 14;

/// What of a half-made disk was there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Salvage {
    /// Data clusters taken over.
    pub clusters: u64,
    /// Data clusters that were noted as stored and are not what they should be.
    pub dropped: u64,
    /// What is still to be read, in guest order: first cluster and number.
    pub open: Vec<(u64, u64)>,
}

impl Salvage {
    /// Nothing was there.
    pub(crate) fn nothing(options: &DiskOptions) -> Self {
        let all = options.virtual_size.div_ceil(CLUSTER_SIZE);
        Self { open: Ranges::default().gaps(all), ..Self::default() }
    }
}

/// Goes on with a disk. `None` when nothing can be taken over; the files are gone then.
pub(crate) fn reopen(
    dir: &Path,
    id: DiskId,
    options: &DiskOptions,
    shared: Shared,
    wanted: &dyn Fn() -> bool,
) -> Result<Option<(DiskWriter, Salvage)>> {
    // A writer that died while it finished may have left it.
    let digests = dir.join(digests_name(id));
    durable::remove_file(&digests)?;
    durable::remove_file(&digests.with_extension("digests.tmp"))?;
    let (image, log) = (dir.join(image_name(id)), dir.join(progress_name(id)));
    if let Some(survey) = survey(&log, options)?
        && image.is_file()
        && let Some(done) = take_over(dir, id, options, shared, survey, wanted)?
    {
        return Ok(Some(done));
    }
    durable::remove_file(&log)?;
    durable::remove_file(&image)?;
    Ok(None)
}

/// What the log says at large.
struct Survey {
    /// Host bytes below which all payloads lie.
    end: u64,
    /// Guest clusters of which everything is known.
    told: Ranges,
    /// The log's length and last hash.
    reached: (u64, [u8; 32]),
}

fn survey(log: &Path, options: &DiskOptions) -> Result<Option<Survey>> {
    let Some(mut replay) = Replay::open(log)? else { return Ok(None) };
    let head = replay.head();
    if (head.virtual_size, &head.parent) != (options.virtual_size, &options.parent) {
        return Ok(None);
    }
    let (mut end, mut told) = (0, Ranges::default());
    while let Some(records) = replay.next()? {
        for record in records {
            match record {
                Record::Data { offset, length, .. } => {
                    end = end.max(offset.saturating_add(length.into()));
                }
                Record::Zero { .. } => {}
                Record::Told { cluster, count } => told.add(cluster, count),
            }
        }
    }
    Ok(Some(Survey { end, told, reached: replay.reached() }))
}

fn take_over(
    dir: &Path,
    id: DiskId,
    options: &DiskOptions,
    shared: Shared,
    survey: Survey,
    wanted: &dyn Fn() -> bool,
) -> Result<Option<(DiskWriter, Salvage)>> {
    let (path, log) = (dir.join(image_name(id)), dir.join(progress_name(id)));
    let Survey { end, mut told, reached } = survey;
    // What lies behind the end of the file was lost, whatever the log says.
    let end = end.min(fs::metadata(&path).reading(&path)?.len());
    let backing = options.backing(id);
    let mut image = ImageKeeper::reopen(&path, options.virtual_size, backing.as_deref(), end)?;
    let mut spool = Spool::new(dir.join(digests_name(id)));
    let file = File::open(&path).reading(&path)?;
    let all = options.virtual_size.div_ceil(CLUSTER_SIZE);
    let mut bad = BTreeSet::new();
    let mut clusters = 0;
    let Some(mut replay) = Replay::open(&log)? else { return Ok(None) };
    while let Some(records) = replay.next()? {
        if !wanted() {
            return Err(Error::Cancelled);
        }
        let stored: Vec<Payload> = records.iter().filter_map(Payload::of).collect();
        for (payload, good) in stored.iter().zip(examine(&file, &stored)) {
            let Payload { cluster, offset, length, digest } = *payload;
            if cluster >= all || spool.contains(cluster) {
                continue;
            }
            let packed = u64::from(length) < CLUSTER_SIZE;
            let place = Place { offset, length: length.into(), packed };
            match good.then(|| image.keep(cluster, place)) {
                Some(Ok(())) => {}
                // No writer would have put it there.
                None | Some(Err(Error::Image { .. })) => {
                    bad.insert(cluster);
                    continue;
                }
                Some(Err(error)) => return Err(error),
            }
            spool.put(cluster, &digest)?;
            told.add(cluster, 1);
            clusters += 1;
        }
        if bad.len() > BAD_MAX {
            return Ok(None);
        }
    }
    // What was read once is worth any hole.
    let Some(image) = image.begin(u64::MAX, u64::MAX)? else { return Ok(None) };
    let mut writer = DiskWriter::with(image, spool, path.clone(), id, options.clone(), shared);
    if !zeros(&mut writer, &log, &mut told)? {
        return Ok(None);
    }
    bad.retain(|cluster| !writer.spool.contains(*cluster));
    bad.iter().for_each(|cluster| told.remove(*cluster));
    let (length, before) = reached;
    let storage = writer.image.storage().clone();
    writer.progress = Some(Progress::reopen(&log, length, before, storage, &path)?);
    let open = told.gaps(writer.clusters);
    Ok(Some((writer, Salvage { clusters, dropped: bad.len() as u64, open })))
}

/// Notes the zeros once all payloads have their place. `false`: the log contradicts itself,
/// and what it says of other clusters is not to be believed either.
fn zeros(writer: &mut DiskWriter, log: &Path, told: &mut Ranges) -> Result<bool> {
    let Some(mut replay) = Replay::open(log)? else { return Ok(true) };
    while let Some(records) = replay.next()? {
        for record in records {
            let Record::Zero { cluster, count } = record else { continue };
            let end = cluster.saturating_add(count);
            if end > writer.clusters || writer.spool.known_in(cluster, count).is_some() {
                return Ok(false);
            }
            writer.put_zero(cluster, count)?;
            told.add(cluster, count);
        }
    }
    Ok(true)
}

/// A payload that is said to be stored.
#[derive(Clone, Copy)]
struct Payload {
    cluster: u64,
    offset: u64,
    length: u32,
    digest: Digest,
}

impl Payload {
    fn of(record: &Record) -> Option<Self> {
        match *record {
            Record::Data { cluster, offset, length, digest } => {
                Some(Self { cluster, offset, length, digest })
            }
            _ => None,
        }
    }

    fn is_good(&self, file: &File, inflater: &mut Inflater, buffers: &mut [Vec<u8>; 2]) -> bool {
        let [stored, content] = buffers;
        if u64::from(self.length) > CLUSTER_SIZE {
            return false;
        }
        stored.resize(self.length as usize, 0);
        if file.read_exact_at(stored, self.offset).is_err() {
            return false;
        }
        let plain = u64::from(self.length) == CLUSTER_SIZE;
        if !plain && inflater.inflate(stored, content).is_err() {
            return false;
        }
        let bytes = if plain { &*stored } else { &*content };
        blake3::hash(bytes).as_bytes() == &self.digest.0
    }
}

/// Which of the payloads are what they should be; all processors work.
fn examine(file: &File, payloads: &[Payload]) -> Vec<bool> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let part = payloads.len().div_ceil(threads).max(64);
    let look = |payloads: &[Payload]| {
        let (mut inflater, mut buffers) = (Inflater::default(), <[Vec<u8>; 2]>::default());
        payloads.iter().map(|p| p.is_good(file, &mut inflater, &mut buffers)).collect::<Vec<_>>()
    };
    thread::scope(|scope| {
        let parts: Vec<_> =
            payloads.chunks(part).map(|part| (part, scope.spawn(move || look(part)))).collect();
        // A thread that panicked has found nothing good.
        let found = parts
            .into_iter()
            .flat_map(|(part, thread)| thread.join().unwrap_or_else(|_| vec![false; part.len()]));
        found.collect()
    })
}

/// Disjoint ranges: start to end.
#[derive(Debug, Default)]
struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    fn add(&mut self, start: u64, count: u64) {
        let (mut start, mut end) = (start, start.saturating_add(count));
        while let Some((&from, &to)) = self.0.range(..=end).next_back() {
            if to < start {
                break;
            }
            self.0.remove(&from);
            (start, end) = (start.min(from), end.max(to));
        }
        if start < end {
            self.0.insert(start, end);
        }
    }

    fn remove(&mut self, at: u64) {
        let Some((&from, &to)) = self.0.range(..=at).next_back() else { return };
        if at < to {
            self.0.remove(&from);
            self.add(from, at - from);
            self.add(at + 1, to - at - 1);
        }
    }

    /// What is not in them below `all`, as start and count.
    fn gaps(&self, all: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut at = 0;
        for (&from, &to) in &self.0 {
            if from.min(all) > at {
                gaps.push((at, from.min(all) - at));
            }
            at = at.max(to);
        }
        if at < all {
            gaps.push((at, all - at));
        }
        gaps
    }
}

#[cfg(test)]
#[path = "salvage_tests.rs"]
mod tests;
