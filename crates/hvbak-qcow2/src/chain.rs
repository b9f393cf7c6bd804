//! A chain of explicit layers as one disk: who decides each byte, and the bytes.
//!
//! Layers are given **base first**. Nothing a header names is ever opened. A chain may be
//! read by several threads at once through `&self`: tables are cached behind a lock held
//! only for look-ups, decoders come from a pool, storage is read without any lock.

use std::sync::{Mutex, PoisonError};

use hvbak_types::CLUSTER_SIZE;

use crate::{
    ClusterRuns, Compression, Error, Extents, Layer, ReadAt, Result,
    inflate::{Scratch, whole_frame},
    table::Mapping,
};

/// Bytes of L2 tables a whole chain keeps: maps 64 GiB of vdsm images in any order.
const CACHE_BYTES: u64 = 8 << 20;

/// Layers, base first, seen as one disk of the top layer's size.
pub struct Chain<R> {
    layers: Vec<Layer<R>>,
    idle: Mutex<Vec<Scratch>>,
}

/// What [`Chain::fetch_cluster`] left in its buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    /// No layer says anything about the cluster; the buffer is empty.
    Absent,
    /// The cluster reads as zero (parts may be absent); the buffer is empty.
    Zero,
    /// 65536 guest bytes, zero-padded behind the end of the disk. May still be all zero.
    Plain,
    /// One zstd frame that inflates to the 65536 guest bytes, as it is stored.
    Compressed,
}

impl<R: ReadAt> Chain<R> {
    /// Makes a chain of layers, **base first**; the last one is the disk.
    ///
    /// # Errors
    /// [`Error::EmptyChain`].
    pub fn new(layers: Vec<Layer<R>>) -> Result<Self> {
        if layers.is_empty() {
            return Err(Error::EmptyChain);
        }
        let chain = Self { layers, idle: Mutex::new(Vec::new()) };
        chain.limit_cache(CACHE_BYTES);
        Ok(chain)
    }

    /// Bounds the bytes of L2 tables kept, all layers together; 8 MiB if not called. For
    /// whoever has many chains open at once.
    pub fn limit_cache(&self, bytes: u64) {
        for layer in &self.layers {
            layer.set_cache_bytes(bytes / self.layers.len() as u64);
        }
    }

    /// The layers, base first.
    pub fn layers(&self) -> &[Layer<R>] {
        &self.layers
    }

    /// Size of the disk in bytes: the top layer's.
    pub fn virtual_size(&self) -> u64 {
        self.layers.last().map_or(0, Layer::virtual_size)
    }

    /// Number of 64 KiB guest clusters, the last one perhaps short.
    pub fn clusters(&self) -> u64 {
        self.virtual_size().div_ceil(CLUSTER_SIZE)
    }

    /// What all layers together say about a range: [`Chain::extents_of_top`] of all.
    ///
    /// # Errors
    /// [`Error::Range`].
    pub fn extents(&self, offset: u64, length: u64) -> Result<Extents<'_, R>> {
        self.extents_of_top(self.layers.len(), offset, length)
    }

    /// What the `top` uppermost layers say about a range, merged, at the finest granularity
    /// of the images; `Absent` where none of them says anything. Where a layer above says
    /// nothing and the next asked one is too short, the answer is `Zero`: QEMU reads zeros
    /// there and does not look further down. Items are errors when a table is damaged; the
    /// iterator ends after one.
    ///
    /// # Errors
    /// [`Error::Range`] when the range leaves the disk or `top` is 0 or too many.
    pub fn extents_of_top(&self, top: usize, offset: u64, length: u64) -> Result<Extents<'_, R>> {
        self.check_range(offset, length, self.virtual_size())?;
        if top == 0 || top > self.layers.len() {
            return Err(Error::EmptyChain);
        }
        Ok(Extents::new(Walker::new(self, top), offset, offset + length))
    }

    /// The same in runs of 64 KiB guest clusters: `Data` when any byte of the cluster is
    /// data in the asked layers, or when it mixes zero and absent parts (then only reading
    /// the whole chain tells its content).
    ///
    /// # Errors
    /// Those of [`Chain::extents_of_top`]; the range may run to [`Chain::clusters`].
    pub fn cluster_runs(&self, top: usize, first: u64, count: u64) -> Result<ClusterRuns<'_, R>> {
        let range = || Error::Range {
            offset: first.saturating_mul(CLUSTER_SIZE),
            length: count.saturating_mul(CLUSTER_SIZE),
            virtual_size: self.virtual_size(),
        };
        let end =
            first.checked_add(count).filter(|end| *end <= self.clusters()).ok_or_else(range)?;
        let offset = (first * CLUSTER_SIZE).min(self.virtual_size());
        let end = end.saturating_mul(CLUSTER_SIZE).min(self.virtual_size());
        Ok(ClusterRuns::new(self.extents_of_top(top, offset, end - offset)?))
    }

    /// Guest content of a range: what no layer says reads as zero. The range may reach to
    /// the end of the last 64 KiB cluster; bytes behind the disk are zero.
    ///
    /// Contiguous clusters are one read of the storage.
    ///
    /// # Errors
    /// [`Error::Range`], damage, IO. `buf` is undefined then.
    pub fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let size = self.virtual_size();
        self.check_range(offset, buf.len() as u64, size.next_multiple_of(CLUSTER_SIZE))?;
        let inside = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (buf, behind) = buf.split_at_mut(inside.min(buf.len()));
        behind.fill(0);
        self.read_walking(&mut Walker::new(self, self.layers.len()), buf, offset)
    }

    fn read_walking(&self, walker: &mut Walker<'_, R>, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let pos = offset + done as u64;
            let piece = walker.at(pos, (buf.len() - done) as u64)?;
            let end = done + usize::try_from(piece.length).unwrap_or(buf.len());
            let out = &mut buf[done..end];
            match piece.mapping {
                Mapping::Absent | Mapping::Zero => out.fill(0),
                Mapping::Data(host) => self.layers[piece.layer].read_host(out, host)?,
                Mapping::Compressed(host, length) => {
                    self.read_compressed(out, pos, piece.layer, host, length)?;
                }
            }
            done = end;
        }
        Ok(())
    }

    fn read_compressed(
        &self,
        out: &mut [u8],
        pos: u64,
        layer: usize,
        host: u64,
        length: u64,
    ) -> Result<()> {
        let Some((cluster, method)) = self.layers[layer].packing() else { return Ok(()) };
        self.with_scratch(|scratch| {
            let from = usize::try_from(pos & (cluster - 1)).unwrap_or(0);
            let range = from..from + out.len();
            if let Some(held) = scratch.held(layer, host) {
                out.copy_from_slice(&held[range]);
                return Ok(());
            }
            self.layers[layer].read_packed(&mut scratch.packed, host, length)?;
            if out.len() as u64 == cluster {
                return scratch.inflate(method, out, host);
            }
            let size = usize::try_from(cluster).unwrap_or(0);
            out.copy_from_slice(&scratch.inflate_held(method, size, layer, host)?[range]);
            Ok(())
        })
    }

    /// The content of one 64 KiB guest cluster in its cheapest form; `buf` is replaced.
    /// A cluster that one layer stores as one zstd frame is handed out as that frame,
    /// without its padding; it is not decoded, so its digest is still to be proven.
    ///
    /// # Errors
    /// [`Error::Range`], damage, IO.
    pub fn fetch_cluster(&self, cluster: u64, buf: &mut Vec<u8>) -> Result<Fetched> {
        buf.clear();
        let size = self.virtual_size();
        let offset = cluster.saturating_mul(CLUSTER_SIZE);
        if cluster >= self.clusters() {
            return Err(Error::Range { offset, length: CLUSTER_SIZE, virtual_size: size });
        }
        let length = CLUSTER_SIZE.min(size - offset);
        let mut walker = Walker::new(self, self.layers.len());
        let (mut at, mut absent) = (offset, true);
        let data = loop {
            let piece = walker.at(at, offset + length - at)?;
            match piece.mapping {
                Mapping::Absent => {}
                Mapping::Zero => absent = false,
                Mapping::Data(_) | Mapping::Compressed(..) => break piece,
            }
            at += piece.length;
            if at == offset + length {
                return Ok(if absent { Fetched::Absent } else { Fetched::Zero });
            }
        };
        if let Mapping::Compressed(host, packed) = data.mapping
            && data.length == length
            && self.passes(data.layer, offset)
            && self.pass_on(buf, data.layer, host, packed)?
        {
            return Ok(Fetched::Compressed);
        }
        buf.clear();
        buf.resize(CLUSTER_SIZE as usize, 0);
        let length = usize::try_from(length).unwrap_or(0);
        self.read_walking(&mut walker, &mut buf[..length], offset)?;
        Ok(Fetched::Plain)
    }

    /// Whether a compressed cluster of this layer is one of ours. A cluster that sticks out
    /// of its layer is not: what it holds there is hidden from the guest.
    fn passes(&self, layer: usize, offset: u64) -> bool {
        let layer = &self.layers[layer];
        layer.packing() == Some((CLUSTER_SIZE, Compression::Zstd))
            && layer.virtual_size() - offset >= CLUSTER_SIZE
    }

    fn pass_on(&self, buf: &mut Vec<u8>, layer: usize, host: u64, length: u64) -> Result<bool> {
        self.layers[layer].read_packed(buf, host, length)?;
        let Some(frame) = whole_frame(buf, CLUSTER_SIZE) else { return Ok(false) };
        buf.truncate(frame);
        Ok(true)
    }

    fn with_scratch<T>(&self, work: impl FnOnce(&mut Scratch) -> Result<T>) -> Result<T> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut scratch = idle.unwrap_or_else(Scratch::new);
        let result = work(&mut scratch);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(scratch);
        result
    }

    fn check_range(&self, offset: u64, length: u64, end: u64) -> Result<()> {
        match offset.checked_add(length) {
            Some(last) if last <= end => Ok(()),
            _ => Err(Error::Range { offset, length, virtual_size: self.virtual_size() }),
        }
    }
}

/// A piece of the disk that one layer decides.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    pub layer: usize,
    pub mapping: Mapping,
    pub length: u64,
}

/// Asks the layers from the top; remembers each layer's last run, so that a long absent run
/// above is not walked again for every small run below.
pub(crate) struct Walker<'a, R> {
    layers: &'a [Layer<R>],
    /// Index of the lowest layer asked.
    bottom: usize,
    memo: Vec<Option<(u64, u64, Mapping)>>,
}

impl<'a, R: ReadAt> Walker<'a, R> {
    pub fn new(chain: &'a Chain<R>, top: usize) -> Self {
        let layers = &chain.layers[..];
        Self { layers, bottom: layers.len() - top, memo: vec![None; layers.len()] }
    }

    /// Who decides at `pos`, and for how many of the next `limit` (> 0) bytes.
    pub fn at(&mut self, pos: u64, limit: u64) -> Result<Piece> {
        let mut length = limit;
        for layer in (self.bottom..self.layers.len()).rev() {
            let size = self.layers[layer].virtual_size();
            if pos >= size {
                return Ok(Piece { layer, mapping: Mapping::Zero, length });
            }
            let (mapping, run) = self.layer_at(layer, pos, length.min(size - pos))?;
            length = run;
            if mapping != Mapping::Absent {
                return Ok(Piece { layer, mapping, length });
            }
        }
        Ok(Piece { layer: self.bottom, mapping: Mapping::Absent, length })
    }

    fn layer_at(&mut self, layer: usize, pos: u64, limit: u64) -> Result<(Mapping, u64)> {
        if let Some((start, end, mapping)) = self.memo[layer]
            && (start..end).contains(&pos)
        {
            let mapping = match mapping {
                Mapping::Data(host) => Mapping::Data(host + (pos - start)),
                same => same,
            };
            return Ok((mapping, limit.min(end - pos)));
        }
        let (mapping, run) = self.layers[layer].status(pos, limit)?;
        self.memo[layer] = Some((pos, pos + run, mapping));
        Ok((mapping, run))
    }
}
