//! Geometry of an image and the meaning of L1 and L2 entries.
//!
//! Pure arithmetic on values that were read; knows neither storage nor caches.

use crate::{Error, Result};

/// Bits 9–55 of an L1 or standard L2 entry: host offset.
pub(crate) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63: the refcount of the target is exactly one.
pub(crate) const COPIED: u64 = 1 << 63;
/// Bit 62 of an L2 entry: compressed cluster descriptor.
pub(crate) const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of a standard L2 entry (version 3): reads as zero.
pub(crate) const ZERO: u64 = 1;
/// Bits of an L1 entry that must be zero (0–8 and 56–62).
pub(crate) const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
/// Bits of a standard L2 entry that must be zero (1–8 and 56–61).
pub(crate) const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;

/// How guest offsets split into table indexes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub cluster_bits: u32,
    /// Entries per L2 table, as a power of two.
    pub l2_bits: u32,
    pub extended_l2: bool,
    pub version: u32,
}

impl Geometry {
    pub fn new(cluster_bits: u32, extended_l2: bool, version: u32) -> Self {
        let l2_bits = cluster_bits - if extended_l2 { 4 } else { 3 };
        Self { cluster_bits, l2_bits, extended_l2, version }
    }
    pub fn cluster_size(self) -> u64 {
        1 << self.cluster_bits
    }
    /// Words of 8 bytes per L2 entry.
    pub fn words(self) -> usize {
        if self.extended_l2 { 2 } else { 1 }
    }
    /// Guest bytes that one L1 entry covers, as a power of two (at most 21 + 18).
    pub fn l1_shift(self) -> u32 {
        self.cluster_bits + self.l2_bits
    }
    /// Guest bytes per independently mapped piece.
    pub fn piece_size(self) -> u64 {
        if self.extended_l2 { self.cluster_size() / 32 } else { self.cluster_size() }
    }
    /// L1 entries that a disk of this size needs.
    pub fn l1_entries(self, virtual_size: u64) -> u64 {
        virtual_size.div_ceil(1 << self.l1_shift())
    }
    /// Host offset and number of bytes of a compressed cluster's sectors.
    pub fn compressed(self, entry: u64) -> (u64, u64) {
        let shift = 62 - (self.cluster_bits - 8);
        let offset = entry & ((1 << shift) - 1);
        let sectors = ((entry >> shift) & ((1 << (self.cluster_bits - 8)) - 1)) + 1;
        (offset, sectors * 512 - (offset & 511))
    }
}

/// What one layer says about a piece of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mapping {
    /// Nothing: the layer below decides.
    Absent,
    /// Reads as zero.
    Zero,
    /// Host offset of the piece's first byte.
    Data(u64),
    /// Host offset of the payload and the bytes its sectors span; maps a whole cluster.
    Compressed(u64, u64),
}

/// Decodes the entry of the (sub)cluster that starts at guest byte `guest`.
///
/// `bitmap` is the second word of an extended entry, `sub` the subcluster's number.
pub(crate) fn decode(
    geometry: Geometry,
    entry: u64,
    bitmap: u64,
    sub: u64,
    guest: u64,
) -> Result<Mapping> {
    let bad = |reason| Error::Entry { table: "L2", entry, guest, reason };
    if entry & COMPRESSED != 0 {
        let (offset, length) = geometry.compressed(entry);
        return Ok(Mapping::Compressed(offset, length));
    }
    let host = entry & OFFSET_MASK;
    if host & (geometry.cluster_size() - 1) != 0 {
        return Err(bad("the data cluster is not aligned"));
    }
    if geometry.extended_l2 {
        let allocated = bitmap >> sub & 1 == 1;
        let zero = bitmap >> (32 + sub) & 1 == 1;
        return match (allocated, zero) {
            (true, true) => Err(bad("a subcluster is both allocated and zero")),
            (true, false) if host == 0 => Err(bad("an allocated subcluster has no data cluster")),
            (true, false) => Ok(Mapping::Data(host + sub * geometry.piece_size())),
            (false, true) => Ok(Mapping::Zero),
            (false, false) => Ok(Mapping::Absent),
        };
    }
    if entry & ZERO != 0 {
        if geometry.version < 3 {
            return Err(bad("a zero cluster in a version 2 image"));
        }
        return Ok(Mapping::Zero);
    }
    Ok(if host == 0 { Mapping::Absent } else { Mapping::Data(host) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standard(version: u32, entry: u64) -> Result<Mapping> {
        decode(Geometry::new(16, false, version), entry, 0, 0, 0)
    }

    #[test]
    fn standard_entries() {
        assert_eq!(standard(3, 0).unwrap(), Mapping::Absent);
        assert_eq!(standard(3, COPIED).unwrap(), Mapping::Absent);
        assert_eq!(standard(3, ZERO).unwrap(), Mapping::Zero);
        assert_eq!(standard(3, COPIED | 0x5_0000 | ZERO).unwrap(), Mapping::Zero);
        assert_eq!(standard(2, COPIED | 0x5_0000).unwrap(), Mapping::Data(0x5_0000));
        assert!(standard(2, ZERO).is_err());
        assert!(standard(3, 0x5_0200).is_err());
    }

    #[test]
    fn subclusters() {
        let geometry = Geometry::new(16, true, 3);
        let at = |entry, bitmap, sub| decode(geometry, entry, bitmap, sub, 0);
        assert_eq!(at(0x5_0000, 1 << 4, 4).unwrap(), Mapping::Data(0x5_0000 + 4 * 2048));
        assert_eq!(at(0x5_0000, 1 << 4, 5).unwrap(), Mapping::Absent);
        assert_eq!(at(0, 1 << 63, 31).unwrap(), Mapping::Zero);
        assert!(at(0x5_0000, 1 << 32 | 1, 0).is_err());
        assert!(at(0, 1, 0).is_err());
    }

    #[test]
    fn compressed_descriptors() {
        // 64 KiB clusters: 54 bits of offset, 8 bits of sectors.
        let geometry = Geometry::new(16, false, 3);
        assert_eq!(geometry.compressed(COMPRESSED | 0x1234), (0x1234, 512 - 0x34));
        assert_eq!(geometry.compressed(COMPRESSED | 3 << 54 | 512), (512, 2048));
        let widest = Geometry::new(21, false, 3);
        assert_eq!(widest.compressed(COPIED - 1), ((1 << 49) - 1, 8192 * 512 - 511));
        let narrowest = Geometry::new(9, false, 2);
        assert_eq!(narrowest.compressed(COMPRESSED | 1 << 61), (0, 1024));
    }
}
