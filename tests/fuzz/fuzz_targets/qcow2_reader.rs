//! Any bytes as a qcow2 image: errors are fine; a panic, a hang or a large allocation is not.
#![no_main]

use hvbak_qcow2::{Chain, Layer, check};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|image: &[u8]| {
    let _ = check(image);
    let Ok(layer) = Layer::open_qcow2(image) else { return };
    let Ok(base) = Layer::open_raw(&image[..], image.len() as u64) else { return };
    let _ = layer.is_blank();
    let Ok(chain) = Chain::new(vec![base, layer]) else { return };
    let size = chain.virtual_size();
    if let Ok(extents) = chain.extents(0, size) {
        let mut end = 0;
        for extent in extents.take(1000).map_while(Result::ok) {
            assert!(extent.offset == end && extent.length > 0);
            end = extent.end();
            assert!(end <= size);
        }
    }
    if let Ok(runs) = chain.cluster_runs(1, 0, chain.clusters()) {
        assert!(runs.take(1000).map_while(Result::ok).all(|run| run.count > 0));
    }
    let (mut cluster, mut piece) = (Vec::new(), vec![0; 70_000]);
    for step in 0..8 {
        let first = (chain.clusters() / 8).max(1) * step;
        let _ = chain.fetch_cluster(first, &mut cluster);
        let _ = chain.read(&mut piece, first * 65536);
        let _ = chain.read(&mut piece[..700], step * 4000 + 13);
    }
});
