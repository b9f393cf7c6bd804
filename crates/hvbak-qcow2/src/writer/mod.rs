//! Append-only writer of fresh images: version 3, 64 KiB clusters.
//!
//! The first cluster is zeroed at the start and gets the header last, after everything it
//! points at is flushed: an unfinished file is never taken for an image. Guest clusters may
//! come in any order, each once. Memory is bounded whatever the size: a table cache of
//! 16 MiB, two append buffers of 1 MiB, 8 bytes per 512 MiB of disk and per 2 GiB of file.

mod alloc;
mod header;
mod keep;
mod region;
mod size;
mod tables;

use hvbak_types::CLUSTER_SIZE;

use self::{alloc::Allocator, region::Region, tables::Tables};
pub use self::{
    keep::{Begun, Keeper},
    size::image_size,
};
use crate::{
    Compression, Error, ReadAt, Result, WriteAt,
    inflate::is_frame,
    table::{COMPRESSED, COPIED, ZERO},
};

/// Bits of a sector count behind the host offset in a compressed entry (64 KiB clusters).
const SECTORS_SHIFT: u32 = 62 - (16 - 8);
/// Nothing packs 64 KiB smaller (a frame of zeros takes 16 bytes); keeps refcounts in 16 bits.
const SHORTEST_PAYLOAD: usize = 8;

/// Format of a backing file, written beside its name so that QEMU need not probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackingFormat {
    /// qcow2.
    Qcow2,
    /// Raw bytes.
    Raw,
}

/// The file that absent clusters fall through to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// Name as it is stored, usually relative to the image; at most 1023 bytes.
    pub name: String,
    /// Its format.
    pub format: BackingFormat,
    /// Size of the disk it holds, when known. Behind it absent clusters read as zero, so
    /// explicit zeros there need not be stored.
    pub virtual_size: Option<u64>,
}

/// What image to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriterOptions {
    /// Size of the disk in bytes, a multiple of 512.
    pub virtual_size: u64,
    /// Backing file, none for a stand-alone image.
    pub backing: Option<Backing>,
    /// How payloads given to [`Writer::put_compressed`] are packed; `None` makes an image
    /// that every QEMU since 1.1 reads and accepts plain clusters only.
    pub compression: Option<Compression>,
}

/// What a finished image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Length of the image in bytes, a multiple of 64 KiB.
    pub file_size: u64,
    /// Clusters stored as they are.
    pub data_clusters: u64,
    /// Clusters stored compressed.
    pub compressed_clusters: u64,
    /// Clusters given as zero, stored or not.
    pub zero_clusters: u64,
    /// Bytes of guest content stored, without tables and padding.
    pub payload_bytes: u64,
}

/// Writes one image to `W`, which must be readable too (evicted tables are read back).
pub struct Writer<W> {
    out: W,
    options: WriterOptions,
    clusters: u64,
    alloc: Allocator,
    tables: Tables,
    packed: Region,
    plain: Region,
    summary: Summary,
    /// Set while an operation runs, so that it stays set when one fails.
    failed: bool,
}

impl<W: WriteAt + ReadAt> Writer<W> {
    /// Starts an image at the beginning of `out`, whose old content is not read. A file may
    /// be empty; what lies behind the finished image is left alone.
    ///
    /// # Errors
    /// [`Error::Options`] for sizes and names the format cannot hold, [`Error::Write`].
    pub fn create(out: W, options: WriterOptions) -> Result<Self> {
        Self::behind(out, options, 0)
    }

    /// Starts an image that leaves the clusters of `out` below `kept` alone, but the first.
    fn behind(out: W, options: WriterOptions, kept: u64) -> Result<Self> {
        header::check(&options)?;
        let clusters = options.virtual_size.div_ceil(CLUSTER_SIZE);
        let mut alloc = Allocator::new(kept);
        let tables = Tables::new(&mut alloc, clusters);
        write(&out, "the header", &[0; CLUSTER_SIZE as usize], 0)?;
        Ok(Self {
            out,
            options,
            clusters,
            alloc,
            tables,
            packed: Region::new("compressed clusters"),
            plain: Region::new("data clusters"),
            summary: Summary::default(),
            failed: false,
        })
    }

    /// Stores a guest cluster as the payload of the image's compression: for zstd one whole
    /// frame that inflates to 65536 bytes. The payload is stored byte for byte; only its
    /// frame structure is looked at. A zlib payload is raw deflate with distances of at most
    /// 4 KiB (QEMU inflates with that window) and is not looked at. Gives the payload's host
    /// offset; it is written there by the next [`Writer::flush_payloads`] at the latest.
    ///
    /// # Errors
    /// [`Error::Duplicate`], [`Error::Range`], [`Error::Payload`], [`Error::Write`].
    pub fn put_compressed(&mut self, cluster: u64, payload: &[u8]) -> Result<u64> {
        let length = payload.len();
        let bad = |reason| Err(Error::Payload { cluster, length, reason });
        match self.options.compression {
            None => return bad("the image is uncompressed"),
            Some(_) if length >= CLUSTER_SIZE as usize => return bad("it is not shorter"),
            Some(_) if length < SHORTEST_PAYLOAD => return bad("no packed cluster is so short"),
            Some(Compression::Zstd) if !is_frame(payload, CLUSTER_SIZE) => {
                return bad("it is not one zstd frame of 65536 bytes");
            }
            Some(_) => {}
        }
        self.guarded(cluster, 1, |this| {
            this.tables.vacant(&this.out, &mut this.alloc, cluster)?;
            let at = this.packed.append(&this.out, &mut this.alloc, payload)?;
            let last = at + length as u64 - 1;
            for host in at / CLUSTER_SIZE..=last / CLUSTER_SIZE {
                this.alloc.reference(host);
            }
            this.tables.set(cluster, packed_entry(at, length as u64));
            this.summary.compressed_clusters += 1;
            this.summary.payload_bytes += length as u64;
            Ok(at)
        })
    }

    /// Stores a guest cluster as it is: 65536 bytes, zero-padded behind the end of the disk.
    /// Gives its host offset, as [`Writer::put_compressed`] does.
    ///
    /// # Errors
    /// [`Error::Duplicate`], [`Error::Range`], [`Error::Payload`], [`Error::Write`].
    pub fn put_data(&mut self, cluster: u64, data: &[u8]) -> Result<u64> {
        if data.len() as u64 != CLUSTER_SIZE {
            let reason = "a plain cluster is 65536 bytes";
            return Err(Error::Payload { cluster, length: data.len(), reason });
        }
        self.guarded(cluster, 1, |this| {
            this.tables.vacant(&this.out, &mut this.alloc, cluster)?;
            let at = this.plain.append(&this.out, &mut this.alloc, data)?;
            this.alloc.reference(at / CLUSTER_SIZE);
            this.tables.set(cluster, COPIED | at);
            this.summary.data_clusters += 1;
            this.summary.payload_bytes += CLUSTER_SIZE;
            Ok(at)
        })
    }

    /// Makes `count` clusters read as zero whatever the backing file holds. Where absent
    /// clusters read as zero anyway (no backing file, or behind its known end) nothing is
    /// stored, and giving such a cluster twice is not noticed.
    ///
    /// # Errors
    /// [`Error::Duplicate`], [`Error::Range`], [`Error::Write`].
    pub fn put_zero(&mut self, cluster: u64, count: u64) -> Result<()> {
        self.guarded(cluster, count, |this| {
            let hidden = match &this.options.backing {
                None => 0,
                Some(backing) => {
                    backing.virtual_size.map_or(u64::MAX, |size| size.div_ceil(CLUSTER_SIZE))
                }
            };
            for cluster in cluster..(cluster + count).min(hidden) {
                this.tables.vacant(&this.out, &mut this.alloc, cluster)?;
                this.tables.set(cluster, ZERO);
            }
            this.summary.zero_clusters += count;
            Ok(())
        })
    }

    /// Writes every payload that was put to the host offset that was given for it; a sync of
    /// the storage then makes them outlive a crash. Clusters that are not full yet are written
    /// again later, with the same bytes.
    ///
    /// # Errors
    /// [`Error::Write`], [`Error::Poisoned`].
    pub fn flush_payloads(&mut self) -> Result<()> {
        self.inside(0, 0)?;
        let Self { packed, plain, out, .. } = self;
        let flushed = packed.flush(out).and_then(|()| plain.flush(out));
        self.failed = flushed.is_err();
        flushed
    }

    /// What was put so far; `file_size` is the bytes taken so far, without open tables.
    pub fn progress(&self) -> Summary {
        Summary { file_size: self.alloc.end() * CLUSTER_SIZE, ..self.summary }
    }

    /// The storage below.
    pub fn storage(&self) -> &W {
        &self.out
    }

    /// Writes tables, refcounts and, after a flush, the header; flushes again.
    ///
    /// # Errors
    /// [`Error::Write`], [`Error::Flush`], [`Error::Poisoned`] after an earlier failure: the
    /// file is no image then.
    pub fn finish(mut self) -> Result<Summary> {
        if self.failed {
            return Err(Error::Poisoned);
        }
        // The region that ends the file goes first: what it leaves is given back, and then
        // the other one may end the file. Tables fill what holes remain.
        let (first, second) = if self.packed.end() > self.plain.end() {
            (&mut self.packed, &mut self.plain)
        } else {
            (&mut self.plain, &mut self.packed)
        };
        first.close(&self.out, &mut self.alloc)?;
        second.close(&self.out, &mut self.alloc)?;
        self.tables.finish(&self.out, &mut self.alloc)?;
        let refcounts = self.alloc.finish(&self.out)?;
        let flush = |source| Error::Flush { source };
        self.out.flush().map_err(flush)?;
        let l1 = (self.tables.l1_offset(), self.tables.l1_size());
        write(&self.out, "the header", &header::build(&self.options, l1, refcounts), 0)?;
        self.out.flush().map_err(flush)?;
        self.summary.file_size = self.alloc.end() * CLUSTER_SIZE;
        Ok(self.summary)
    }

    /// Runs one operation on clusters inside the disk. A duplicate found before anything was
    /// changed leaves the writer usable; every other failure ends it.
    fn guarded<T>(
        &mut self,
        cluster: u64,
        count: u64,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        self.inside(cluster, count)?;
        let result = work(self).and_then(|done| self.retire().map(|()| done));
        self.failed = match &result {
            Ok(_) => false,
            Err(Error::Duplicate { .. }) => count > 1,
            Err(_) => true,
        };
        result
    }

    /// The writer works, and the clusters lie inside of the disk.
    fn inside(&self, cluster: u64, count: u64) -> Result<()> {
        if self.failed {
            return Err(Error::Poisoned);
        }
        if cluster.checked_add(count).is_none_or(|end| end > self.clusters) {
            return Err(Error::Range {
                offset: cluster.saturating_mul(CLUSTER_SIZE),
                length: count.saturating_mul(CLUSTER_SIZE),
                virtual_size: self.options.virtual_size,
            });
        }
        Ok(())
    }

    /// Writes refcount blocks that nothing can change any more.
    fn retire(&mut self) -> Result<()> {
        if self.alloc.open_blocks() <= 1 {
            return Ok(());
        }
        let low = [self.packed.low(), self.plain.low()].into_iter().flatten().min();
        self.alloc.retire(&self.out, low.map_or(u64::MAX, |low| low / CLUSTER_SIZE))
    }
}

/// The entry of a packed payload.
fn packed_entry(at: u64, length: u64) -> u64 {
    let sectors = (at + length - 1) / 512 - at / 512;
    COMPRESSED | sectors << SECTORS_SHIFT | at
}

/// Writes bytes of one structure.
fn write<W: WriteAt>(out: &W, what: &'static str, bytes: &[u8], offset: u64) -> Result<()> {
    out.write_at(bytes, offset).map_err(|source| Error::Write { what, offset, source })
}

/// Words as they are stored: big-endian.
fn stored(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}
