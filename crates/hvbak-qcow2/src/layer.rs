//! One open volume, qcow2 or raw: what it says about each guest byte, and its own bytes.
//!
//! A layer knows nothing of the ones below. Its format is told, never probed.

use hvbak_types::CLUSTER_SIZE;

use crate::{
    Compression, Error, Header, ReadAt, Result,
    cache::{SLICE_BYTES, Slice, SliceCache},
    header::{be64, inside},
    table::{Geometry, Mapping, OFFSET_MASK, decode},
};

/// Slices kept when nobody says otherwise: 1 MiB, which maps 8 GiB of a vdsm image.
const DEFAULT_SLICES: usize = 16;

/// Where an image stores one cluster, in its own bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Host offset of the first byte.
    pub offset: u64,
    /// Bytes: 65536 for a plain cluster; to the end of the last sector for a packed one.
    pub length: u64,
    /// Whether it is one packed payload.
    pub packed: bool,
}

/// One open volume.
pub struct Layer<R> {
    src: R,
    /// Length of the file, asked once.
    size: u64,
    kind: Kind,
}

enum Kind {
    Raw { virtual_size: u64 },
    Qcow2(Box<Tables>),
}

struct Tables {
    header: Header,
    geometry: Geometry,
    /// Only the entries the disk needs; at most 32 MiB.
    l1: Box<[u64]>,
    cache: SliceCache,
}

impl<R: ReadAt> Layer<R> {
    /// Opens a qcow2 volume and reads its L1 table.
    ///
    /// # Errors
    /// Those of [`Header::read`]; [`Error::Unsupported`] when QEMU marked it corrupt.
    pub fn open_qcow2(src: R) -> Result<Self> {
        let header = Header::read(&src)?;
        if header.corrupt() {
            return Err(Error::Unsupported { feature: "the corrupt mark".into() });
        }
        let size = src.size().map_err(|source| Error::Read {
            what: "the size of the image",
            offset: 0,
            source,
        })?;
        let geometry = header.geometry();
        let entries = geometry.l1_entries(header.virtual_size);
        let l1 = read_words(&src, "the L1 table", header.l1_offset, entries * 8, size)?;
        let cache = SliceCache::new(DEFAULT_SLICES);
        Ok(Self { src, size, kind: Kind::Qcow2(Box::new(Tables { header, geometry, l1, cache })) })
    }

    /// Opens a raw volume whose guest sees `virtual_size` bytes; what the file or LV has
    /// behind them is never read (it may belong to deleted disks).
    ///
    /// # Errors
    /// [`Error::Truncated`] when the source is shorter. A last sector may be incomplete, as
    /// QEMU allows; it reads as zero.
    pub fn open_raw(src: R, virtual_size: u64) -> Result<Self> {
        let size = src.size().map_err(|source| Error::Read {
            what: "the size of the volume",
            offset: 0,
            source,
        })?;
        let what = "the end of the raw disk";
        inside(what, 0, virtual_size, size.saturating_add(511) & !511)?;
        Ok(Self { src, size, kind: Kind::Raw { virtual_size } })
    }

    /// Size of the disk in bytes as this layer sees it.
    pub fn virtual_size(&self) -> u64 {
        match &self.kind {
            Kind::Raw { virtual_size } => *virtual_size,
            Kind::Qcow2(tables) => tables.header.virtual_size,
        }
    }

    /// What the header names as backing file: to be compared with what the caller found.
    pub fn backing_name(&self) -> Option<&str> {
        self.header()?.backing_name.as_deref()
    }

    /// The header, none for a raw layer.
    pub fn header(&self) -> Option<&Header> {
        match &self.kind {
            Kind::Raw { .. } => None,
            Kind::Qcow2(tables) => Some(&tables.header),
        }
    }

    /// The storage below.
    pub fn source(&self) -> &R {
        &self.src
    }

    /// Whether the layer maps no guest byte at all: a fresh qcow2. Reads L2 tables only
    /// where an L1 entry exists. False for raw.
    ///
    /// # Errors
    /// Damage and IO.
    pub fn is_blank(&self) -> Result<bool> {
        let (mut at, end) = (0, self.virtual_size());
        if matches!(self.kind, Kind::Raw { .. }) {
            return Ok(false);
        }
        while at < end {
            match self.status(at, end - at)? {
                (Mapping::Absent, length) => at += length,
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Where the image stores a cluster of 64 KiB; `None` when it holds no data there.
    ///
    /// # Errors
    /// Damage and IO; [`Error::Unsupported`] for other images than [`crate::Writer`] makes
    /// with zstd: another cluster size or compression, or raw.
    pub fn place(&self, cluster: u64) -> Result<Option<Place>> {
        if self.packing() != Some((CLUSTER_SIZE, Compression::Zstd)) {
            let feature = "another cluster size or compression than this program's".into();
            return Err(Error::Unsupported { feature });
        }
        let offset = cluster.saturating_mul(CLUSTER_SIZE);
        let Some(left) = self.virtual_size().checked_sub(offset).filter(|left| *left > 0) else {
            let (length, virtual_size) = (CLUSTER_SIZE, self.virtual_size());
            return Err(Error::Range { offset, length, virtual_size });
        };
        let (mapping, length) = self.status(offset, left.min(CLUSTER_SIZE))?;
        Ok(match mapping {
            Mapping::Data(_) if length < left.min(CLUSTER_SIZE) => {
                return Err(Error::Unsupported { feature: "a cluster in pieces".into() });
            }
            Mapping::Data(offset) => Some(Place { offset, length: CLUSTER_SIZE, packed: false }),
            Mapping::Compressed(offset, length) => Some(Place { offset, length, packed: true }),
            Mapping::Absent | Mapping::Zero => None,
        })
    }

    pub(crate) fn set_cache_bytes(&self, bytes: u64) {
        if let Kind::Qcow2(tables) = &self.kind {
            let slice = tables.header.cluster_size().min(SLICE_BYTES);
            // More than 256 slices make the linear look-up slow.
            let slots = (bytes / slice).clamp(1, 256);
            tables.cache.set_capacity(usize::try_from(slots).unwrap_or(1));
        }
    }

    /// Cluster size and compression, none for raw.
    pub(crate) fn packing(&self) -> Option<(u64, Compression)> {
        self.header().map(|header| (header.cluster_size(), header.compression))
    }

    /// What is at guest byte `pos`, and for how many bytes (1..=`limit`) the same holds; data
    /// is contiguous in the file then. `pos + limit` must lie inside the disk.
    pub(crate) fn status(&self, pos: u64, limit: u64) -> Result<(Mapping, u64)> {
        match &self.kind {
            Kind::Raw { .. } => {
                let range = self.src.data_range(pos, pos + limit);
                let what = "the holes of the volume";
                let range = range.map_err(|source| Error::Read { what, offset: pos, source })?;
                Ok(match range {
                    Some((from, to)) if from <= pos && to > pos => {
                        (Mapping::Data(pos), limit.min(to - pos))
                    }
                    Some((from, _)) if from > pos => (Mapping::Zero, limit.min(from - pos)),
                    // An empty range says nothing: read it.
                    Some(_) => (Mapping::Data(pos), limit),
                    None => (Mapping::Zero, limit),
                })
            }
            Kind::Qcow2(tables) => self.lookup(tables, pos, limit),
        }
    }

    fn lookup(&self, tables: &Tables, pos: u64, limit: u64) -> Result<(Mapping, u64)> {
        let geometry = tables.geometry;
        let shift = geometry.l1_shift();
        let index = usize::try_from(pos >> shift).unwrap_or(usize::MAX);
        let l1 = tables.l1.get(index..).unwrap_or_default();
        let Some(&entry) = l1.first() else {
            return Err(Error::Range {
                offset: pos,
                length: limit,
                virtual_size: self.virtual_size(),
            });
        };
        if entry & OFFSET_MASK == 0 {
            let enough = (limit >> shift) + 2;
            let empty = l1.iter().take(usize::try_from(enough).unwrap_or(usize::MAX));
            let empty = empty.take_while(|&&entry| entry & OFFSET_MASK == 0).count() as u64;
            let end = ((pos >> shift) + empty) << shift;
            return Ok((Mapping::Absent, limit.min(end - pos)));
        }
        let table = entry & OFFSET_MASK;
        if table & (geometry.cluster_size() - 1) != 0 {
            let reason = "the L2 table is not aligned";
            return Err(Error::Entry { table: "L1", entry, guest: pos >> shift << shift, reason });
        }
        let words = geometry.words();
        let slice_bytes = geometry.cluster_size().min(SLICE_BYTES);
        let per_slice = slice_bytes / (8 * words as u64);
        let in_table = pos >> geometry.cluster_bits & ((1 << geometry.l2_bits) - 1);
        let slice_at = table + in_table / per_slice * slice_bytes;
        let slice: Slice = tables.cache.get(slice_at, || {
            Ok(read_words(&self.src, "an L2 table", slice_at, slice_bytes, self.size)?.into())
        })?;
        let first = usize::try_from(in_table % per_slice).unwrap_or(0);
        self.run(geometry, &slice[first * words..], pos, limit)
    }

    /// The longest run of one kind from `pos`, whose entry is the first in `entries`.
    fn run(&self, g: Geometry, entries: &[u64], pos: u64, limit: u64) -> Result<(Mapping, u64)> {
        let (cluster, piece) = (g.cluster_size(), g.piece_size());
        let start = pos & !(cluster - 1);
        // A failed look behind the asked range must not fail the asked range, so `limit` ends
        // the walk before the next entry is decoded.
        let mut found: Option<(Mapping, u64)> = None;
        let mut at = pos;
        while at < pos + limit {
            let nth = usize::try_from((at - start) >> g.cluster_bits).unwrap_or(usize::MAX);
            let Some(&entry) = entries.get(nth * g.words()) else { break };
            let bitmap = if g.extended_l2 { entries[nth * 2 + 1] } else { 0 };
            let sub = (at & (cluster - 1)) / piece;
            let mut mapping = decode(g, entry, bitmap, sub, at & !(cluster - 1))?;
            let mut end = (at & !(piece - 1)) + piece;
            match &mut mapping {
                Mapping::Data(host) => {
                    self.check_start(*host & !(cluster - 1), "a data cluster")?;
                    *host += at & (piece - 1);
                }
                Mapping::Compressed(host, _) => {
                    self.check_start(*host, "a compressed cluster")?;
                    end = (at & !(cluster - 1)) + cluster;
                }
                Mapping::Absent | Mapping::Zero => {}
            }
            match (found, mapping) {
                (None, _) => {}
                (Some((Mapping::Data(host), length)), Mapping::Data(next))
                    if host + length == next => {}
                (Some((Mapping::Zero, _)), Mapping::Zero)
                | (Some((Mapping::Absent, _)), Mapping::Absent) => {}
                _ => break,
            }
            let (first, _) = found.unwrap_or((mapping, 0));
            found = Some((first, end.min(pos + limit) - pos));
            if matches!(first, Mapping::Compressed(..)) {
                break;
            }
            at = end;
        }
        found.ok_or(Error::Range { offset: pos, length: limit, virtual_size: self.virtual_size() })
    }

    fn check_start(&self, offset: u64, what: &'static str) -> Result<()> {
        if offset < self.size {
            return Ok(());
        }
        Err(Error::Truncated { what, offset, size: self.size })
    }

    /// Reads stored bytes at a host offset that [`Self::status`] gave.
    ///
    /// QEMU leaves the last cluster of a file short when only its beginning was written; the
    /// rest of that one cluster reads as zero. Anything further out is an error.
    pub(crate) fn read_host(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let unit = self.packing().map_or(512, |(cluster, _)| cluster);
        let what = "guest data";
        let length = buf.len() as u64;
        inside(what, offset, length, self.size.saturating_add(unit - 1) & !(unit - 1))?;
        let there = self.size.saturating_sub(offset).min(length);
        let (stored, rest) = buf.split_at_mut(usize::try_from(there).unwrap_or(0));
        rest.fill(0);
        if stored.is_empty() {
            return Ok(());
        }
        self.src.read_at(stored, offset).map_err(|source| Error::Read { what, offset, source })
    }

    /// Reads the packed sectors of a compressed cluster, as many as the file has.
    pub(crate) fn read_packed(&self, packed: &mut Vec<u8>, offset: u64, length: u64) -> Result<()> {
        let what = "a compressed cluster";
        self.check_start(offset, what)?;
        let length = length.min(self.size - offset);
        packed.resize(usize::try_from(length).unwrap_or(0), 0);
        self.src.read_at(packed, offset).map_err(|source| Error::Read { what, offset, source })
    }
}

/// Reads big-endian words; `bytes` is bounded by the caller (L1 32 MiB, slice 64 KiB).
fn read_words<R: ReadAt>(
    src: &R,
    what: &'static str,
    offset: u64,
    bytes: u64,
    size: u64,
) -> Result<Box<[u64]>> {
    inside(what, offset, bytes, size)?;
    let mut raw = vec![0; usize::try_from(bytes).unwrap_or(0)];
    src.read_at(&mut raw, offset).map_err(|source| Error::Read { what, offset, source })?;
    Ok(raw.chunks_exact(8).map(|word| be64(word, 0)).collect())
}
