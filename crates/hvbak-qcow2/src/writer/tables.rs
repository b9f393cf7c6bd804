//! L1 and L2 tables of the image being written.
//!
//! L2 tables in use are kept, at most 16 MiB of them (128 GiB of disk); the one used longest
//! ago makes room. A table gets its place when it first leaves memory, so tables of small
//! images end up together behind the data.

use std::collections::HashMap;

use hvbak_types::CLUSTER_SIZE;

use super::{alloc::Allocator, stored, write};
use crate::{
    Error, ReadAt, Result, WriteAt,
    header::be64,
    table::{COPIED, OFFSET_MASK},
};

/// Clusters mapped by one L2 table.
const PER_TABLE: u64 = CLUSTER_SIZE / 8;
/// Tables kept: 16 MiB.
const KEPT: usize = 256;

pub(super) struct Tables {
    l1: Vec<u64>,
    l1_cluster: u64,
    kept: HashMap<u64, Kept>,
    /// The table used last, outside the map: most clusters come in guest order.
    current: u64,
    table: Box<[u64]>,
    clock: u64,
}

struct Kept {
    used: u64,
    table: Box<[u64]>,
}

impl Tables {
    /// Reserves the L1 table for a disk of so many clusters.
    pub fn new(alloc: &mut Allocator, clusters: u64) -> Self {
        let entries = clusters.div_ceil(PER_TABLE);
        let l1_clusters = entries.div_ceil(PER_TABLE).max(1);
        let l1_cluster = alloc.take(l1_clusters);
        for cluster in l1_cluster..l1_cluster + l1_clusters {
            alloc.reference(cluster);
        }
        let l1 = vec![0; usize::try_from(entries).unwrap_or(0)];
        Self { l1, l1_cluster, kept: HashMap::new(), current: u64::MAX, table: [].into(), clock: 0 }
    }

    pub fn l1_offset(&self) -> u64 {
        self.l1_cluster * CLUSTER_SIZE
    }

    pub fn l1_size(&self) -> u32 {
        u32::try_from(self.l1.len()).unwrap_or(u32::MAX)
    }

    /// Brings in the table of a guest cluster and errs when the cluster was put before.
    pub fn vacant<W>(&mut self, out: &W, alloc: &mut Allocator, cluster: u64) -> Result<()>
    where
        W: WriteAt + ReadAt,
    {
        let index = cluster / PER_TABLE;
        if index != self.current {
            self.switch(out, alloc, index)?;
        }
        match self.table[slot(cluster)] {
            0 => Ok(()),
            _ => Err(Error::Duplicate { cluster }),
        }
    }

    /// Sets the entry of a cluster that [`Self::vacant`] just looked at.
    pub fn set(&mut self, cluster: u64, entry: u64) {
        self.table[slot(cluster)] = entry;
    }

    /// Writes all tables and the L1 table.
    pub fn finish<W>(&mut self, out: &W, alloc: &mut Allocator) -> Result<()>
    where
        W: WriteAt + ReadAt,
    {
        self.park();
        let mut kept: Vec<_> = self.kept.drain().collect();
        kept.sort_unstable_by_key(|(index, _)| *index);
        for (index, kept) in kept {
            self.write_table(out, alloc, index, &kept.table)?;
        }
        let whole = self.l1.len().next_multiple_of(PER_TABLE as usize).max(PER_TABLE as usize);
        let mut l1 = self.l1.clone();
        l1.resize(whole, 0);
        write(out, "the L1 table", &stored(&l1), self.l1_offset())
    }

    fn switch<W>(&mut self, out: &W, alloc: &mut Allocator, index: u64) -> Result<()>
    where
        W: WriteAt + ReadAt,
    {
        self.park();
        let table = match self.kept.remove(&index) {
            Some(kept) => kept.table,
            None => {
                if self.kept.len() >= KEPT {
                    self.evict(out, alloc)?;
                }
                self.load(out, index)?
            }
        };
        self.table = table;
        self.current = index;
        Ok(())
    }

    /// Puts the current table among the kept ones.
    fn park(&mut self) {
        if self.current == u64::MAX {
            return;
        }
        self.clock += 1;
        let table = std::mem::take(&mut self.table);
        self.kept.insert(self.current, Kept { used: self.clock, table });
        self.current = u64::MAX;
    }

    fn evict<W: WriteAt>(&mut self, out: &W, alloc: &mut Allocator) -> Result<()> {
        let oldest = self.kept.iter().min_by_key(|(_, kept)| kept.used).map(|(index, _)| *index);
        match oldest.and_then(|index| self.kept.remove_entry(&index)) {
            Some((index, kept)) => self.write_table(out, alloc, index, &kept.table),
            None => Ok(()),
        }
    }

    fn load<W: ReadAt>(&self, out: &W, index: u64) -> Result<Box<[u64]>> {
        let offset = self.l1[usize::try_from(index).unwrap_or(usize::MAX)] & OFFSET_MASK;
        if offset == 0 {
            return Ok(vec![0; PER_TABLE as usize].into());
        }
        let mut raw = vec![0; CLUSTER_SIZE as usize];
        out.read_at(&mut raw, offset).map_err(|source| Error::Read {
            what: "an L2 table",
            offset,
            source,
        })?;
        Ok(raw.chunks_exact(8).map(|word| be64(word, 0)).collect())
    }

    fn write_table<W: WriteAt>(
        &mut self,
        out: &W,
        alloc: &mut Allocator,
        index: u64,
        table: &[u64],
    ) -> Result<()> {
        let entry = &mut self.l1[usize::try_from(index).unwrap_or(usize::MAX)];
        if *entry == 0 {
            // A table brought in for a cluster that was refused holds nothing.
            if table.iter().all(|entry| *entry == 0) {
                return Ok(());
            }
            *entry = (alloc.take_one() * CLUSTER_SIZE) | COPIED;
        }
        write(out, "an L2 table", &stored(table), *entry & OFFSET_MASK)
    }
}

fn slot(cluster: u64) -> usize {
    usize::try_from(cluster % PER_TABLE).unwrap_or(0)
}
