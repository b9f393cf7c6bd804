//! The image header: parsed with an allow-list, every field bounded before it is used.
//!
//! Limits are QEMU's (`block/qcow2.h`): L1 table 32 MiB, refcount table 8 MiB, backing name
//! 1023 bytes, cluster 512 B to 2 MiB. An encrypted image is refused here: a reader that
//! overlooks `crypt_method` returns ciphertext without an error.

use crate::{Error, ReadAt, Result, table::Geometry};

pub(crate) const MAGIC: u32 = 0x5146_49fb;
pub(crate) const DIRTY: u64 = 1;
pub(crate) const CORRUPT: u64 = 1 << 1;
pub(crate) const EXTERNAL_DATA: u64 = 1 << 2;
pub(crate) const COMPRESSION_TYPE: u64 = 1 << 3;
pub(crate) const EXTENDED_L2: u64 = 1 << 4;
const KNOWN: u64 = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2;

pub(crate) const EXT_END: u32 = 0;
pub(crate) const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
pub(crate) const EXT_FEATURE_NAMES: u32 = 0x6803_f857;
pub(crate) const EXT_BITMAPS: u32 = 0x2385_2875;

const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFTABLE_BYTES: u64 = 8 << 20;
pub(crate) const MAX_BACKING_NAME: u32 = 1023;
/// Largest disk: offsets up to here survive every sum this room makes.
const MAX_VIRTUAL_SIZE: u64 = 1 << 62;

/// How compressed clusters of an image are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate streams; what every QEMU reads.
    Zlib,
    /// zstd frames; QEMU 5.1 and later.
    Zstd,
}

/// A parsed and bounded header.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// What the image says its backing file is; to be compared, never to be opened. Not
    /// UTF-8 is shown with replacement characters (and then compares unequal).
    pub backing_name: Option<String>,
    /// Format of the backing file as the image says it.
    pub backing_format: Option<String>,
    /// Cluster size as a power of two, 9..=21.
    pub cluster_bits: u32,
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Where the L1 table is.
    pub l1_offset: u64,
    /// Entries of the L1 table.
    pub l1_size: u32,
    /// Where the refcount table is.
    pub refcount_table_offset: u64,
    /// Clusters of the refcount table.
    pub refcount_table_clusters: u32,
    /// Width of a refcount in bits, as a power of two, 0..=6.
    pub refcount_order: u32,
    /// Number of internal snapshots; they are not read.
    pub internal_snapshots: u32,
    /// How compressed clusters are packed.
    pub compression: Compression,
    /// The incompatible feature bits as stored.
    pub incompatible: u64,
    /// The autoclear feature bits as stored.
    pub autoclear: u64,
    /// Whether persistent bitmaps are in the image; they are not read.
    pub has_bitmaps: bool,
}

impl Header {
    /// Refcounts may be stale (lazy refcounts): harmless for reading.
    pub fn dirty(&self) -> bool {
        self.incompatible & DIRTY != 0
    }
    /// QEMU found damage in the image while writing to it.
    pub fn corrupt(&self) -> bool {
        self.incompatible & CORRUPT != 0
    }
    /// L2 entries have subclusters.
    pub fn extended_l2(&self) -> bool {
        self.incompatible & EXTENDED_L2 != 0
    }
    /// Bytes per cluster.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }
    pub(crate) fn geometry(&self) -> Geometry {
        Geometry::new(self.cluster_bits, self.extended_l2(), self.version)
    }

    /// Reads and checks the header of `src`.
    ///
    /// # Errors
    /// [`Error::NotQcow2`], [`Error::Unsupported`] (encryption, external data file, unknown
    /// incompatible bits, unknown compression), [`Error::Header`], [`Error::Truncated`],
    /// [`Error::Read`].
    pub fn read<R: ReadAt + ?Sized>(src: &R) -> Result<Self> {
        let read = |offset| move |source| Error::Read { what: "the header", offset, source };
        let size = src.size().map_err(read(0))?;
        if size < 72 {
            return Err(Error::NotQcow2);
        }
        let mut raw = [0; 112];
        let have = usize::try_from(size.min(112)).unwrap_or(112);
        src.read_at(&mut raw[..have], 0).map_err(read(0))?;
        if be32(&raw, 0) != MAGIC {
            return Err(Error::NotQcow2);
        }
        let version = be32(&raw, 4);
        if !(2..=3).contains(&version) {
            return Err(Error::Unsupported { feature: format!("qcow version {version}") });
        }
        let cluster_bits = be32(&raw, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(bad("cluster_bits", cluster_bits.into(), "must be 9 to 21"));
        }
        match be32(&raw, 32) {
            0 => {}
            1 => return Err(Error::Unsupported { feature: "AES encryption".into() }),
            2 => return Err(Error::Unsupported { feature: "LUKS encryption".into() }),
            n => return Err(Error::Unsupported { feature: format!("encryption method {n}") }),
        }
        let v3 = version == 3;
        if v3 && have < 104 {
            return Err(Error::Truncated { what: "the header", offset: 0, size });
        }
        let incompatible = if v3 { be64(&raw, 72) } else { 0 };
        if incompatible & !KNOWN != 0 {
            let feature = format!("unknown incompatible features {:#x}", incompatible & !KNOWN);
            return Err(Error::Unsupported { feature });
        }
        if incompatible & EXTERNAL_DATA != 0 {
            return Err(Error::Unsupported { feature: "an external data file".into() });
        }
        let refcount_order = if v3 { be32(&raw, 96) } else { 4 };
        if refcount_order > 6 {
            return Err(bad("refcount_order", refcount_order.into(), "must be 0 to 6"));
        }
        let header_length = if v3 { u64::from(be32(&raw, 100)) } else { 72 };
        let cluster_size = 1 << cluster_bits;
        if header_length < 72 || (v3 && header_length < 104) || header_length > cluster_size {
            return Err(bad("header_length", header_length, "does not fit version and cluster"));
        }
        if !header_length.is_multiple_of(8) {
            return Err(bad("header_length", header_length, "must be a multiple of 8"));
        }
        let compression_byte = if header_length > 104 && have > 104 { raw[104] } else { 0 };
        let compression = match compression_byte {
            0 => Compression::Zlib,
            1 => Compression::Zstd,
            n => return Err(Error::Unsupported { feature: format!("compression type {n}") }),
        };
        // QEMU refuses an image whose byte and bit disagree; so do we.
        if (compression != Compression::Zlib) != (incompatible & COMPRESSION_TYPE != 0) {
            let value = compression_byte.into();
            return Err(bad("compression_type", value, "disagrees with the feature bit"));
        }
        let mut header = Self {
            version,
            backing_name: None,
            backing_format: None,
            cluster_bits,
            virtual_size: be64(&raw, 24),
            l1_offset: be64(&raw, 40),
            l1_size: be32(&raw, 36),
            refcount_table_offset: be64(&raw, 48),
            refcount_table_clusters: be32(&raw, 56),
            refcount_order,
            internal_snapshots: be32(&raw, 60),
            compression,
            incompatible,
            autoclear: if v3 { be64(&raw, 88) } else { 0 },
            has_bitmaps: false,
        };
        header.check_tables(size)?;
        let backing_offset = be64(&raw, 8);
        header.read_backing_name(src, size, backing_offset, be32(&raw, 16))?;
        let end = if backing_offset == 0 { cluster_size } else { backing_offset.min(cluster_size) };
        header.read_extensions(src, header_length, end.min(size))?;
        Ok(header)
    }

    fn check_tables(&self, size: u64) -> Result<()> {
        let cluster = self.cluster_size();
        if self.extended_l2() && self.cluster_bits < 14 {
            let value = self.cluster_bits.into();
            return Err(bad("cluster_bits", value, "extended L2 entries need 16 KiB clusters"));
        }
        if self.virtual_size > MAX_VIRTUAL_SIZE {
            return Err(bad("size", self.virtual_size, "no disk is that large"));
        }
        let l1_bytes = u64::from(self.l1_size) * 8;
        if l1_bytes > MAX_L1_BYTES {
            return Err(bad("l1_size", self.l1_size.into(), "the L1 table is over 32 MiB"));
        }
        if u64::from(self.l1_size) < self.geometry().l1_entries(self.virtual_size) {
            return Err(bad("l1_size", self.l1_size.into(), "too small for the size of the disk"));
        }
        if !self.l1_offset.is_multiple_of(cluster) {
            return Err(bad("l1_table_offset", self.l1_offset, "is not aligned to a cluster"));
        }
        if self.l1_size > 0 && self.l1_offset == 0 {
            return Err(bad("l1_table_offset", 0, "lies on the header"));
        }
        inside("the L1 table", self.l1_offset, l1_bytes, size)?;
        let clusters = u64::from(self.refcount_table_clusters);
        if clusters * cluster > MAX_REFTABLE_BYTES {
            return Err(bad("refcount_table_clusters", clusters, "the table is over 8 MiB"));
        }
        if !self.refcount_table_offset.is_multiple_of(cluster) {
            let value = self.refcount_table_offset;
            return Err(bad("refcount_table_offset", value, "is not aligned to a cluster"));
        }
        Ok(())
    }

    fn read_backing_name<R: ReadAt + ?Sized>(
        &mut self,
        src: &R,
        size: u64,
        offset: u64,
        length: u32,
    ) -> Result<()> {
        if offset == 0 || length == 0 {
            return Ok(());
        }
        if length > MAX_BACKING_NAME {
            return Err(bad("backing_file_size", length.into(), "over 1023 bytes"));
        }
        // The specification keeps the name in the first cluster; QEMU does not insist, but
        // no tool writes it elsewhere.
        if offset < 72 || offset.saturating_add(length.into()) > self.cluster_size() {
            return Err(bad("backing_file_offset", offset, "outside the header cluster"));
        }
        inside("the backing file name", offset, length.into(), size)?;
        let mut name = vec![0; length as usize];
        src.read_at(&mut name, offset).map_err(|source| Error::Read {
            what: "the backing file name",
            offset,
            source,
        })?;
        self.backing_name = Some(String::from_utf8_lossy(&name).into_owned());
        Ok(())
    }

    fn read_extensions<R: ReadAt + ?Sized>(
        &mut self,
        src: &R,
        mut at: u64,
        end: u64,
    ) -> Result<()> {
        let read =
            |offset| move |source| Error::Read { what: "a header extension", offset, source };
        while at + 8 <= end {
            let mut head = [0; 8];
            src.read_at(&mut head, at).map_err(read(at))?;
            let (kind, length) = (be32(&head, 0), u64::from(be32(&head, 4)));
            if kind == EXT_END {
                break;
            }
            at += 8;
            if length > end - at {
                return Err(bad("header extension length", length, "runs out of the header"));
            }
            if kind == EXT_BACKING_FORMAT && length <= 64 {
                let mut name = vec![0; usize::try_from(length).unwrap_or(0)];
                src.read_at(&mut name, at).map_err(read(at))?;
                self.backing_format = Some(String::from_utf8_lossy(&name).into_owned());
            }
            self.has_bitmaps |= kind == EXT_BITMAPS;
            at += length.next_multiple_of(8);
        }
        Ok(())
    }
}

/// Errs unless `offset..offset + length` lies inside a file of `size` bytes.
pub(crate) fn inside(what: &'static str, offset: u64, length: u64, size: u64) -> Result<()> {
    match offset.checked_add(length) {
        Some(end) if end <= size => Ok(()),
        _ => Err(Error::Truncated { what, offset, size }),
    }
}

fn bad(field: &'static str, value: u64, reason: &'static str) -> Error {
    Error::Header { field, value, reason }
}

/// Big-endian words at a fixed place inside a buffer that is known to be long enough.
pub(crate) fn be32(raw: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&raw[at..at + 4]);
    u32::from_be_bytes(word)
}

pub(crate) fn be64(raw: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&raw[at..at + 8]);
    u64::from_be_bytes(word)
}
