//! The stored refcounts: table, blocks, and counts of 1 to 64 bits.

use std::ops::Range;

use super::{By, CheckReport, Counts};
use crate::{
    Error, Header, ReadAt, Result,
    header::{be64, inside},
};

/// Bits 9–63 of a refcount table entry: offset of a block.
const BLOCK_MASK: u64 = !0x1ff;

pub(super) struct Refcounts<'a, R: ?Sized> {
    src: &'a R,
    cluster: u64,
    order: u32,
    table_clusters: Range<u64>,
    /// Host offset of each block, 0 where there is none or where it cannot be read.
    blocks: Vec<u64>,
}

impl<'a, R: ReadAt + ?Sized> Refcounts<'a, R> {
    /// Reads the table; at most 8 MiB, as [`Header::read`] made sure.
    pub fn open(src: &'a R, header: &Header, size: u64, report: &mut CheckReport) -> Result<Self> {
        let cluster = header.cluster_size();
        let (offset, count) =
            (header.refcount_table_offset, u64::from(header.refcount_table_clusters));
        let mut new = Self {
            src,
            cluster,
            order: header.refcount_order,
            table_clusters: 0..0,
            blocks: Vec::new(),
        };
        if count == 0 || inside("", offset, count * cluster, size).is_err() {
            report.problem(offset, "the refcount table is missing or behind the end of the file");
            return Ok(new);
        }
        let first = offset / cluster;
        new.table_clusters = first..first + count;
        let mut raw = vec![0; usize::try_from(count * cluster).unwrap_or(0)];
        src.read_at(&mut raw, offset).map_err(|source| Error::Read {
            what: "the refcount table",
            offset,
            source,
        })?;
        for (index, word) in raw.chunks_exact(8).enumerate() {
            let entry = be64(word, 0);
            let block = entry & BLOCK_MASK;
            let at = offset + index as u64 * 8;
            if entry != block {
                report.problem(at, "a refcount table entry has reserved bits set");
            }
            let aligned = block.is_multiple_of(cluster);
            let good = aligned && inside("", block, cluster, size).is_ok();
            if !aligned {
                report.problem(at, "a refcount block is not aligned");
            } else if !good {
                report.problem(at, "a refcount block lies behind the end of the file");
            }
            new.blocks.push(if good { block } else { 0 });
        }
        let used = new.blocks.iter().rposition(|block| *block != 0).map_or(0, |last| last + 1);
        new.blocks.truncate(used);
        Ok(new)
    }

    fn per_block(&self) -> u64 {
        (self.cluster * 8) >> self.order
    }

    /// First cluster behind what the blocks can count.
    pub fn covered(&self) -> u64 {
        (self.blocks.len() as u64).saturating_mul(self.per_block())
    }

    /// Marks table and blocks themselves.
    pub fn mark(&self, counts: &mut Counts, report: &mut CheckReport) {
        counts.mark(0, By::Whole, self.cluster, report);
        for cluster in self.table_clusters.clone() {
            counts.mark(cluster, By::Whole, self.cluster, report);
        }
        for block in self.blocks.iter().filter(|block| **block != 0) {
            counts.mark(block / self.cluster, By::Whole, self.cluster, report);
        }
    }

    /// Refcounts of a window of host clusters, cut to 16 bits.
    pub fn load(&self, window: Range<u64>) -> Result<Vec<u16>> {
        let length = usize::try_from(window.end - window.start).unwrap_or(0);
        let mut counts = vec![0; length];
        let per_block = self.per_block();
        let mut raw = vec![0; usize::try_from(self.cluster).unwrap_or(0)];
        let first = window.start / per_block;
        for (index, &offset) in self.blocks.iter().enumerate().skip(first as usize) {
            let start = index as u64 * per_block;
            if start >= window.end {
                break;
            }
            if offset == 0 {
                continue;
            }
            self.src.read_at(&mut raw, offset).map_err(|source| Error::Read {
                what: "a refcount block",
                offset,
                source,
            })?;
            let end = (start + per_block).min(window.end);
            for cluster in start.max(window.start)..end {
                let count = count_at(&raw, self.order, (cluster - start) as usize);
                counts[(cluster - window.start) as usize] = count;
            }
        }
        Ok(counts)
    }
}

/// The refcount number `index` of a block, at most 65535.
fn count_at(raw: &[u8], order: u32, index: usize) -> u16 {
    let width = 1usize << order;
    if width < 8 {
        // Smaller than a byte: packed from the least significant bit.
        let bit = index * width;
        return u16::from(raw[bit / 8] >> (bit % 8)) & ((1 << width) - 1);
    }
    let bytes = &raw[index * width / 8..(index + 1) * width / 8];
    let count = bytes.iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    u16::try_from(count).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::count_at;

    #[test]
    fn counts_of_every_width() {
        let raw = [0b1110_0100, 0x0f, 0, 2, 0, 0, 0, 1];
        assert_eq!([0, 2, 5].map(|index| count_at(&raw, 0, index)), [0, 1, 1]);
        assert_eq!([0, 1, 2, 3].map(|index| count_at(&raw, 1, index)), [0, 1, 2, 3]);
        assert_eq!([0, 1, 2].map(|index| count_at(&raw, 2, index)), [4, 14, 15]);
        assert_eq!(count_at(&raw, 3, 3), 2);
        assert_eq!(count_at(&raw, 4, 1), 2);
        assert_eq!(count_at(&raw, 5, 1), 1);
        assert_eq!(count_at(&raw, 6, 0), u16::MAX);
    }
}
