//! Which clusters of a target came: each may come once, and what did not come may have to
//! be zeroed.

use std::collections::BTreeMap;

/// Which clusters came: one bit each, in blocks that exist only where something came
/// (8 KiB per 4 GiB of disk).
#[derive(Default)]
pub struct Seen {
    blocks: BTreeMap<u64, Box<[u64; 1024]>>,
}

const PER_BLOCK: u64 = 1024 * 64;

impl Seen {
    /// Marks a cluster; `false` when it was marked before.
    pub fn mark(&mut self, index: u64) -> bool {
        let block = self.blocks.entry(index / PER_BLOCK).or_insert_with(|| Box::new([0; 1024]));
        // Below 1024 by construction.
        let word = &mut block[(index % PER_BLOCK / 64) as usize];
        let bit = 1u64 << (index % 64);
        let fresh = *word & bit == 0;
        *word |= bit;
        fresh
    }

    fn is_marked(&self, index: u64) -> bool {
        self.blocks
            .get(&(index / PER_BLOCK))
            .is_some_and(|b| b[(index % PER_BLOCK / 64) as usize] & (1 << (index % 64)) != 0)
    }

    /// Unmarked runs of a range.
    pub fn gaps(&self, first: u64, end: u64) -> Vec<(u64, u64)> {
        let mut gaps: Vec<(u64, u64)> = Vec::new();
        let mut at = first;
        while at < end {
            // A block that does not exist is one gap.
            let (marked, next) = if self.blocks.contains_key(&(at / PER_BLOCK)) {
                (self.is_marked(at), at + 1)
            } else {
                (false, ((at / PER_BLOCK + 1) * PER_BLOCK).min(end))
            };
            if !marked {
                match gaps.last_mut() {
                    Some(last) if last.1 == at => last.1 = next,
                    _ => gaps.push((at, next)),
                }
            }
            at = next;
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_what_was_not_marked() {
        let mut seen = Seen::default();
        assert_eq!(seen.gaps(0, 0), []);
        assert_eq!(seen.gaps(5, 1 << 40), [(5, 1 << 40)]);
        for i in [0, 1, 63, 64, 70_000, 200_000] {
            assert!(seen.mark(i));
            assert!(!seen.mark(i));
        }
        let expected = [(2, 63), (65, 70_000), (70_001, 200_000), (200_001, 300_000)];
        assert_eq!(seen.gaps(0, 300_000), expected);
        assert_eq!(seen.gaps(64, 65), []);
    }
}
