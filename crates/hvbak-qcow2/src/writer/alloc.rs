//! Host clusters and their refcounts.
//!
//! Clusters are handed out at the end of the file. A refcount block (32768 clusters, 2 GiB)
//! gets its place when its first cluster is referenced and is written as soon as nothing
//! below the open regions can change, so only a few blocks are ever in memory.

use std::{collections::BTreeMap, ops::Range};

use hvbak_types::CLUSTER_SIZE;

use super::{stored, write};
use crate::{Result, WriteAt};

/// 16-bit refcounts in one cluster.
const PER_BLOCK: u64 = CLUSTER_SIZE / 2;
/// Block offsets in one cluster of the refcount table.
const PER_TABLE: u64 = CLUSTER_SIZE / 8;

pub(super) struct Allocator {
    /// First cluster that was never handed out.
    next: u64,
    /// Given back below `next`; only tables are put there.
    free: Vec<Range<u64>>,
    /// Refcounts that may still change, by block.
    open: BTreeMap<u64, Box<[u16]>>,
    /// Host cluster of each block, 0 when it has none yet.
    placed: Vec<u64>,
}

impl Allocator {
    /// Cluster 0 is the header's; those below `kept` are not handed out.
    pub fn new(kept: u64) -> Self {
        let mut new =
            Self { next: kept.max(1), free: Vec::new(), open: BTreeMap::new(), placed: Vec::new() };
        new.reference(0);
        new
    }

    /// References to a cluster whose refcount may still change.
    pub fn count(&self, cluster: u64) -> u16 {
        let block = self.open.get(&(cluster / PER_BLOCK));
        block.map_or(0, |counts| counts[usize::try_from(cluster % PER_BLOCK).unwrap_or(0)])
    }

    /// Takes the clusters in `1..kept` that nobody references as holes; gives them.
    pub fn reclaim(&mut self, kept: u64) -> Vec<Range<u64>> {
        let mut holes = Vec::<Range<u64>>::new();
        for cluster in (1..kept).filter(|cluster| self.count(*cluster) == 0) {
            match holes.last_mut() {
                Some(hole) if hole.end == cluster => hole.end += 1,
                _ => holes.push(cluster..cluster + 1),
            }
        }
        self.free.extend(holes.iter().cloned());
        holes
    }

    /// First cluster behind everything handed out.
    pub fn end(&self) -> u64 {
        self.next
    }

    /// Hands out `count` clusters in a row, not yet referenced.
    pub fn take(&mut self, count: u64) -> u64 {
        let first = self.next;
        self.next += count;
        first
    }

    /// Hands out one cluster, from a hole if there is one, and references it.
    pub fn take_one(&mut self) -> u64 {
        let cluster = match self.free.last_mut() {
            Some(hole) => {
                let cluster = hole.start;
                hole.start += 1;
                if hole.is_empty() {
                    self.free.pop();
                }
                cluster
            }
            None => self.take(1),
        };
        self.reference(cluster);
        cluster
    }

    /// Takes back clusters that were never referenced.
    pub fn release(&mut self, clusters: Range<u64>) {
        if clusters.end == self.next {
            self.next = clusters.start;
        } else if !clusters.is_empty() {
            self.free.push(clusters);
        }
    }

    /// Counts one more reference to a cluster that was handed out.
    pub fn reference(&mut self, cluster: u64) {
        let block = cluster / PER_BLOCK;
        let index = usize::try_from(block).unwrap_or(usize::MAX);
        if self.placed.len() <= index {
            self.placed.resize(index + 1, 0);
        }
        if self.placed[index] == 0 {
            let place = self.take(1);
            self.placed[index] = place;
            self.open.insert(block, vec![0; PER_BLOCK as usize].into());
            // Lies in this block or a later one, so this ends.
            self.reference(place);
        }
        if let Some(counts) = self.open.get_mut(&block) {
            counts[usize::try_from(cluster % PER_BLOCK).unwrap_or(0)] += 1;
        } else {
            debug_assert!(false, "cluster {cluster} is referenced after its block was written");
        }
    }

    pub fn open_blocks(&self) -> usize {
        self.open.len()
    }

    /// Writes the blocks that lie below `low` and below everything still to come.
    pub fn retire<W: WriteAt>(&mut self, out: &W, low: u64) -> Result<()> {
        let whole = low.min(self.next) / PER_BLOCK;
        while let Some(entry) = self.open.first_entry() {
            if *entry.key() >= whole {
                break;
            }
            let (block, counts) = entry.remove_entry();
            self.write_block(out, block, &counts)?;
        }
        self.free.retain(|hole| hole.start >= whole * PER_BLOCK);
        Ok(())
    }

    /// Writes all that is left and the refcount table; gives the table's host offset and its
    /// clusters. Nothing may be handed out afterwards.
    pub fn finish<W: WriteAt>(&mut self, out: &W) -> Result<(u64, u32)> {
        // Table and new blocks count themselves: grow until it fits. Two spare blocks cover
        // those that the table's own clusters may open.
        let mut clusters = 1;
        while ((self.next + clusters).div_ceil(PER_BLOCK) + 2).div_ceil(PER_TABLE) > clusters {
            clusters += 1;
        }
        let first = self.take(clusters);
        for cluster in first..first + clusters {
            self.reference(cluster);
        }
        for (block, counts) in std::mem::take(&mut self.open) {
            self.write_block(out, block, &counts)?;
        }
        let mut table: Vec<u64> = self.placed.iter().map(|place| place * CLUSTER_SIZE).collect();
        table.resize(usize::try_from(clusters * PER_TABLE).unwrap_or(0), 0);
        write(out, "the refcount table", &stored(&table), first * CLUSTER_SIZE)?;
        Ok((first * CLUSTER_SIZE, u32::try_from(clusters).unwrap_or(u32::MAX)))
    }

    fn write_block<W: WriteAt>(&self, out: &W, block: u64, counts: &[u16]) -> Result<()> {
        let place = self.placed[usize::try_from(block).unwrap_or(usize::MAX)];
        let bytes: Vec<u8> = counts.iter().flat_map(|count| count.to_be_bytes()).collect();
        write(out, "a refcount block", &bytes, place * CLUSTER_SIZE)
    }
}
