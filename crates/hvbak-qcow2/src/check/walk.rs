//! Walks L1 and L2 tables in the order they lie in the file.
//!
//! A table that two L1 entries name is reported and walked once, so the work is bounded by
//! the file and not by what a hostile L1 table claims.

use super::{By, CheckReport, Counts};
use crate::{
    Error, Header, ReadAt, Result,
    header::{be64, inside},
    table::{COMPRESSED, COPIED, Geometry, L1_RESERVED, L2_RESERVED, OFFSET_MASK, ZERO},
};

pub(super) struct Walk<'a, R: ?Sized> {
    src: &'a R,
    size: u64,
    geometry: Geometry,
    l1_clusters: std::ops::Range<u64>,
    l1_offset: u64,
    /// Usable L1 entries as (L2 offset, index, copied), by offset.
    tables: Vec<(u64, u32, bool)>,
}

impl<'a, R: ReadAt + ?Sized> Walk<'a, R> {
    pub fn open(src: &'a R, header: &Header, size: u64, report: &mut CheckReport) -> Result<Self> {
        let geometry = header.geometry();
        let cluster = geometry.cluster_size();
        let (offset, bytes) = (header.l1_offset, u64::from(header.l1_size) * 8);
        inside("the L1 table", offset, bytes, size)?;
        let mut raw = vec![0; usize::try_from(bytes).unwrap_or(0)];
        src.read_at(&mut raw, offset).map_err(|source| Error::Read {
            what: "the L1 table",
            offset,
            source,
        })?;
        let mut tables = Vec::new();
        for (index, word) in (0u32..).zip(raw.chunks_exact(8)) {
            let entry = be64(word, 0);
            let at = offset + u64::from(index) * 8;
            let table = entry & OFFSET_MASK;
            if entry & L1_RESERVED != 0 {
                report.problem(at, "an L1 entry has reserved bits set");
            }
            if table == 0 {
                continue;
            }
            if !table.is_multiple_of(cluster) {
                report.problem(at, "an L2 table is not aligned");
            } else if inside("", table, cluster, size).is_err() {
                report.problem(at, "an L2 table lies behind the end of the file");
            } else {
                tables.push((table, index, entry & COPIED != 0));
            }
        }
        tables.sort_unstable();
        tables.dedup_by(|later, kept| {
            let double = later.0 == kept.0;
            if double {
                let at = offset + u64::from(later.1) * 8;
                report.problem(at, "two L1 entries name one L2 table");
            }
            double
        });
        let first = offset / cluster;
        let l1_clusters = first..first + bytes.div_ceil(cluster);
        Ok(Self { src, size, geometry, l1_clusters, l1_offset: offset, tables })
    }

    /// Marks all references of the window; with `first` also reports and counts entries.
    /// Gives the highest host cluster referred to.
    pub fn run(&self, counts: &mut Counts, report: &mut CheckReport, first: bool) -> Result<u64> {
        let bytes = self.geometry.cluster_size();
        let mut highest = self.l1_clusters.end;
        for cluster in self.l1_clusters.clone() {
            counts.mark(cluster, By::Whole, bytes, report);
        }
        let mut raw = vec![0; usize::try_from(bytes).unwrap_or(0)];
        for &(offset, index, copied) in &self.tables {
            let cluster = offset / bytes;
            counts.mark(cluster, By::Whole, bytes, report);
            highest = highest.max(cluster);
            let at = self.l1_offset + u64::from(index) * 8;
            check_copied(counts, cluster, copied, at, report);
            self.src.read_at(&mut raw, offset).map_err(|source| Error::Read {
                what: "an L2 table",
                offset,
                source,
            })?;
            let mut table = Table { walk: self, counts, report, first, highest };
            for (nth, words) in raw.chunks_exact(8 * self.geometry.words()).enumerate() {
                let at = offset + (nth * 8 * self.geometry.words()) as u64;
                let bitmap = if self.geometry.extended_l2 { be64(words, 8) } else { 0 };
                table.entry(be64(words, 0), bitmap, at);
            }
            highest = table.highest;
        }
        Ok(highest)
    }
}

/// One L2 table under the check.
struct Table<'a, 'b, R: ?Sized> {
    walk: &'a Walk<'b, R>,
    counts: &'a mut Counts,
    report: &'a mut CheckReport,
    first: bool,
    highest: u64,
}

impl<R: ReadAt + ?Sized> Table<'_, '_, R> {
    fn problem(&mut self, at: u64, text: &str) {
        if self.first {
            self.report.problem(at, text);
        }
    }

    fn entry(&mut self, entry: u64, bitmap: u64, at: u64) {
        if entry == 0 && bitmap == 0 {
            return;
        }
        let geometry = self.walk.geometry;
        let bytes = geometry.cluster_size();
        if entry & COMPRESSED != 0 {
            return self.compressed(entry, bitmap, at);
        }
        let reserved = if geometry.extended_l2 || geometry.version < 3 { ZERO } else { 0 };
        if entry & (L2_RESERVED | reserved) != 0 {
            self.problem(at, "an L2 entry has reserved bits set");
        }
        let host = entry & OFFSET_MASK;
        let (data, zero) = if geometry.extended_l2 {
            let (allocated, zeros) = (bitmap & 0xffff_ffff, bitmap >> 32);
            if allocated & zeros != 0 {
                self.problem(at, "a subcluster is both allocated and zero");
            }
            if allocated != 0 && host == 0 {
                self.problem(at, "an allocated subcluster has no data cluster");
            }
            (allocated != 0, zeros == 0xffff_ffff)
        } else {
            (host != 0 && entry & ZERO == 0, entry & ZERO != 0)
        };
        if self.first {
            self.report.data_clusters += u64::from(data);
            self.report.zero_clusters += u64::from(zero);
        }
        if host == 0 {
            return;
        }
        if !host.is_multiple_of(bytes) {
            self.problem(at, "a data cluster is not aligned");
        } else if host >= self.walk.size {
            self.problem(at, "a data cluster lies behind the end of the file");
        } else {
            let cluster = host / bytes;
            self.highest = self.highest.max(cluster);
            self.counts.mark(cluster, By::Whole, bytes, self.report);
            check_copied(self.counts, cluster, entry & COPIED != 0, at, self.report);
        }
    }

    fn compressed(&mut self, entry: u64, bitmap: u64, at: u64) {
        let bytes = self.walk.geometry.cluster_size();
        if self.first {
            self.report.compressed_clusters += 1;
        }
        if entry & COPIED != 0 {
            self.problem(at, "a compressed cluster has the copied bit");
        }
        if bitmap != 0 {
            self.problem(at, "a compressed cluster has subclusters");
        }
        let (offset, length) = self.walk.geometry.compressed(entry);
        let last = offset + length - 1;
        // The last sector is a claim rounded up; only its cluster has to begin in the file.
        if offset >= self.walk.size || last / bytes * bytes >= self.walk.size {
            self.problem(at, "a compressed cluster lies behind the end of the file");
            return;
        }
        for cluster in offset / bytes..=last / bytes {
            self.highest = self.highest.max(cluster);
            self.counts.mark(cluster, By::Part, bytes, self.report);
        }
    }
}

/// The copied bit promises a refcount of exactly one; a wrong one lets a writer overwrite
/// shared data.
fn check_copied(counts: &Counts, cluster: u64, copied: bool, at: u64, report: &mut CheckReport) {
    if counts.comparing && counts.stored(cluster).is_some_and(|stored| (stored == 1) != copied) {
        report.problem(at, "the copied bit disagrees with the refcount");
    }
}
