//! How long a fresh image becomes: needed before it is written, where a volume cannot grow.

use hvbak_types::CLUSTER_SIZE;

/// Entries of a table of clusters: 8 bytes each.
const ENTRIES: u64 = CLUSTER_SIZE / 8;
/// Clusters that one refcount block counts: 2 bytes each.
const COUNTED: u64 = CLUSTER_SIZE / 2;

/// Bytes of a stand-alone image of 64 KiB clusters with `data_clusters` plain clusters that
/// lie under `tables` tables of level 2 (one per 512 MiB of the disk). What `qemu-img
/// measure` calls required, and what [`crate::Writer`] writes.
pub fn image_size(virtual_size: u64, data_clusters: u64, tables: u64) -> u64 {
    let level1 = virtual_size.div_ceil(CLUSTER_SIZE).div_ceil(ENTRIES).div_ceil(ENTRIES).max(1);
    // The header, and all that is counted; then the blocks that count, and count themselves.
    let content = 1 + level1 + tables + data_clusters;
    let mut counting = 0;
    loop {
        let blocks = (content + counting).div_ceil(COUNTED);
        let next = blocks + blocks.div_ceil(ENTRIES);
        if next == counting {
            return (content + counting) * CLUSTER_SIZE;
        }
        counting = next;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{Writer, WriterOptions};

    #[test]
    fn the_numbers_of_qemu_img_measure() {
        // `qemu-img measure -O qcow2 --size 1T`, 8T: fully allocated.
        for (size, overhead) in [(1 << 40, 168_034_304), (8 << 40, 1_342_504_960)] {
            let clusters = size / CLUSTER_SIZE;
            assert_eq!(image_size(size, clusters, clusters / ENTRIES), size + overhead);
        }
    }

    #[test]
    fn the_writer_needs_no_more() {
        for (size, clusters) in [
            (1 << 30, vec![]),
            (1 << 30, vec![0]),
            (1 << 30, (0..300).map(|n| n * 37).collect::<Vec<u64>>()),
            (20 << 40, vec![0, 8191, 8192, 300_000_000]),
        ] {
            let options = WriterOptions { virtual_size: size, backing: None, compression: None };
            let mut writer = Writer::create(Mutex::new(Vec::new()), options).unwrap();
            for cluster in &clusters {
                writer.put_data(*cluster, &[7; CLUSTER_SIZE as usize]).unwrap();
            }
            let mut tables: Vec<_> = clusters.iter().map(|c| c / ENTRIES).collect();
            tables.dedup();
            let expected = image_size(size, clusters.len() as u64, tables.len() as u64);
            assert_eq!(writer.finish().unwrap().file_size, expected, "{size} {clusters:?}");
        }
    }
}
