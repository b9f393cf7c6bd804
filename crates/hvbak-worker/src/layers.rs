//! The layers that are open for reading, and what a range of them holds.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
};

use hvbak_qcow2::{Chain, Layer};
use hvbak_types::{CLUSTER_SIZE, DomainId, ExtentKind, VolumeId};
use hvbak_wire::{FileIdentity, Format, LayerAddress, MapIs, Opened, Place};

use crate::{
    block::BlockDomains,
    error::{Error, Result},
    host::Host,
    locate::{find_domain, find_volume},
    volume::{Meter, Volume},
};

const MAX_LAYERS: usize = 64;
const MAX_PIECES: u32 = 64;

/// An open chain.
pub struct OpenChain {
    chain: Chain<Arc<Volume>>,
    /// How to open it again past the page cache.
    paths: Vec<(PathBuf, Format, Option<u64>)>,
    top: usize,
    meter: Arc<Meter>,
}

impl OpenChain {
    /// Opens layers, given newest first.
    ///
    /// # Errors
    /// A layer is not there, is another file than before, or is damaged.
    pub fn open(
        host: &Host,
        block: &mut BlockDomains,
        layers: &[LayerAddress],
        top: Option<u32>,
        meter: &Arc<Meter>,
    ) -> Result<(Self, Opened)> {
        if layers.is_empty() || layers.len() > MAX_LAYERS {
            return Err(Error::bad_request("a chain has 1 to 64 layers"));
        }
        let top = top.map_or(layers.len(), |top| top as usize);
        if top == 0 || top > layers.len() {
            return Err(Error::bad_request("`top` must be 1 to the number of layers"));
        }
        if layers[..layers.len() - 1].iter().any(|l| l.format == Format::Raw) {
            return Err(Error::bad_request("only the oldest layer can be raw"));
        }
        let mut paths = Vec::new();
        let mut opened = Vec::new();
        let mut lvs = hold_lvs(host, block, layers)?;
        for layer in layers {
            let (path, lv) = match &layer.place {
                Place::Path(path) => (PathBuf::from(path), None),
                Place::Volume(at) => match lvs.remove(&at.volume) {
                    Some((path, identity)) => (path, Some(identity)),
                    None => (find_volume(&find_domain(host, at)?, at)?, None),
                },
            };
            let volume = Volume::open(&path, false, Arc::clone(meter))?;
            if let Some(known) = layer.identity {
                let found = lv.unwrap_or_else(|| volume.identity());
                if (known.device, known.inode) != (found.device, found.inode) {
                    return Err(Error::Changed { path });
                }
            }
            opened.push((Arc::new(volume), layer.format, layer.capacity));
            paths.push((path, layer.format, layer.capacity));
        }
        let direct = opened.iter().any(|(volume, ..)| volume.is_direct());
        let chain = build(opened)?;
        let answer = Opened {
            virtual_size: chain.virtual_size(),
            clusters: chain.clusters(),
            // At most 64.
            top: top as u32,
            direct,
        };
        Ok((Self { chain, paths, top, meter: Arc::clone(meter) }, answer))
    }

    /// The chain.
    pub fn chain(&self) -> &Chain<Arc<Volume>> {
        &self.chain
    }

    /// Newest layers that decide what is sent.
    pub const fn top(&self) -> usize {
        self.top
    }

    /// Opens the same layers again, past the page cache.
    ///
    /// # Errors
    /// As [`OpenChain::open`].
    pub fn reopen_uncached(&mut self) -> Result<()> {
        let mut opened = Vec::new();
        for (path, format, capacity) in &self.paths {
            let volume = Volume::open(path, true, Arc::clone(&self.meter))?;
            opened.push((Arc::new(volume), *format, *capacity));
        }
        self.chain = build(opened)?;
        Ok(())
    }

    /// The clusters of a byte range, cut at the end of the disk.
    ///
    /// # Errors
    /// An offset that is no multiple of 64 KiB.
    pub fn clusters_of(&self, offset: u64, length: u64) -> Result<(u64, u64)> {
        if !offset.is_multiple_of(CLUSTER_SIZE) {
            return Err(Error::bad_request("the offset is no multiple of 64 KiB"));
        }
        let end = offset.saturating_add(length).min(self.chain.virtual_size());
        let first = (offset / CLUSTER_SIZE).min(self.chain.clusters());
        Ok((first, end.div_ceil(CLUSTER_SIZE).max(first)))
    }

    /// Answers `Map`. The pieces hold about equal numbers of data clusters, because these
    /// are what a read costs.
    ///
    /// # Errors
    /// Damage, IO, a range that makes no sense.
    pub fn map(&self, offset: u64, length: u64, pieces: u32) -> Result<MapIs> {
        if pieces == 0 || pieces > MAX_PIECES {
            return Err(Error::bad_request("1 to 64 pieces"));
        }
        let (first, end) = self.clusters_of(offset, length)?;
        let stop = (end * CLUSTER_SIZE).min(self.chain.virtual_size());
        let start = (first * CLUSTER_SIZE).min(stop);
        let fail = |source| Error::ReadChain { offset: start, length: stop - start, source };
        let mut map = MapIs { data: 0, zero: 0, absent: 0, clusters: 0, pieces: Vec::new() };
        for extent in self.chain.extents_of_top(self.top, start, stop - start).map_err(fail)? {
            let extent = extent.map_err(fail)?;
            match extent.kind {
                ExtentKind::Data => map.data += extent.length,
                ExtentKind::Zero => map.zero += extent.length,
                ExtentKind::Absent => map.absent += extent.length,
            }
            self.give_up_when_gone()?;
        }
        let runs = || self.chain.cluster_runs(self.top, first, end - first).map_err(fail);
        for run in runs()? {
            let run = run.map_err(fail)?;
            if run.kind == ExtentKind::Data {
                map.clusters += run.count;
            }
        }
        let share = map.clusters.div_ceil(u64::from(pieces)).max(1);
        map.pieces.push(offset);
        let mut room = share;
        for run in runs()? {
            let run = run.map_err(fail)?;
            if run.kind != ExtentKind::Data {
                continue;
            }
            let (mut at, mut left) = (run.cluster, run.count);
            while left > room {
                at += room;
                left -= room;
                room = share;
                map.pieces.push(at * CLUSTER_SIZE);
            }
            room -= left;
        }
        Ok(map)
    }

    fn give_up_when_gone(&self) -> Result<()> {
        if self.meter.stop.is_gone() { Err(Error::Gone) } else { Ok(()) }
    }
}

/// Makes the layers that are LVs active, all of a domain at once.
fn hold_lvs(
    host: &Host,
    block: &mut BlockDomains,
    layers: &[LayerAddress],
) -> Result<HashMap<VolumeId, (PathBuf, FileIdentity)>> {
    let mut domains: BTreeMap<DomainId, Vec<VolumeId>> = BTreeMap::new();
    for layer in layers {
        if let Place::Volume(at) = &layer.place
            && BlockDomains::is_block(host, at)
        {
            domains.entry(at.domain).or_default().push(at.volume);
        }
    }
    let mut lvs = HashMap::new();
    for (domain, volumes) in domains {
        let held = block.get(host, domain)?.hold_volumes(&volumes)?;
        lvs.extend(volumes.into_iter().zip(held));
    }
    Ok(lvs)
}

/// Makes a chain of volumes given newest first.
fn build(volumes: Vec<(Arc<Volume>, Format, Option<u64>)>) -> Result<Chain<Arc<Volume>>> {
    let mut layers = Vec::new();
    for (volume, format, capacity) in volumes.into_iter().rev() {
        let path = volume.path().to_owned();
        let size = capacity.unwrap_or_else(|| volume.size());
        let layer = match format {
            Format::Raw => Layer::open_raw(volume, size),
            Format::Cow => Layer::open_qcow2(volume),
        };
        layers.push(layer.map_err(|source| Error::Image { path, source })?);
    }
    Chain::new(layers).map_err(|_| Error::bad_request("a chain has 1 to 64 layers"))
}
