//! Valid images, changed byte-wise: everything may fail, nothing may panic or hang.

use std::sync::{Mutex, OnceLock};

use hvbak_qcow2::{
    Backing, BackingFormat, Chain, Compression, Layer, Writer, WriterOptions, check,
};
use proptest::prelude::*;

use crate::support;

/// Small images of all kinds; QEMU's kinds only where QEMU is.
fn seeds() -> &'static [Vec<u8>] {
    static SEEDS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    SEEDS.get_or_init(|| {
        let mut seeds = vec![ours()];
        if support::qemu() {
            for (nth, (options, packed)) in [
                ("compat=0.10,cluster_size=512", Some(512)),
                ("compat=1.1,cluster_size=512,refcount_bits=1", None),
                ("compat=1.1,cluster_size=4k,compression_type=zstd", Some(4096)),
                ("compat=1.1,cluster_size=16k,extended_l2=on", Some(16384)),
            ]
            .into_iter()
            .enumerate()
            {
                let dir = tempfile::tempdir().unwrap();
                let image = dir.path().join("a");
                let name = support::path(&image);
                support::run(
                    "qemu-img",
                    &["create", "-q", "-f", "qcow2", "-o", options, name, "100k"],
                );
                support::scribble(&image, 100 << 10, nth as u64, packed);
                seeds.push(std::fs::read(&image).unwrap());
            }
        }
        seeds
    })
}

fn ours() -> Vec<u8> {
    let out = Mutex::new(Vec::new());
    let backing = Backing { name: "../b".into(), format: BackingFormat::Qcow2, virtual_size: None };
    let options = WriterOptions {
        virtual_size: 1 << 30,
        backing: Some(backing),
        compression: Some(Compression::Zstd),
    };
    let mut writer = Writer::create(&out, options).unwrap();
    writer.put_data(0, &[0x11; 65536]).unwrap();
    writer.put_compressed(1, &zstd::bulk::compress(&[0x22; 65536], 1).unwrap()).unwrap();
    writer.put_zero(2, 5).unwrap();
    writer.put_data(9000, &[0x33; 65536]).unwrap();
    writer.finish().unwrap();
    out.into_inner().unwrap()
}

/// Everything a caller can do with an image, bounded.
fn exercise(image: Vec<u8>) {
    let _ = check(&image);
    let Ok(layer) = Layer::open_qcow2(image.clone()) else { return };
    let _ = layer.is_blank();
    let size = layer.virtual_size();
    let base = Layer::open_qcow2(ours()).unwrap();
    let chain = Chain::new(vec![base, layer]).unwrap();
    let mut end = 0;
    for extent in chain.extents(0, size).unwrap().take(2000) {
        let Ok(extent) = extent else { break };
        assert_eq!(extent.offset, end);
        assert!(extent.length > 0);
        end = extent.end();
        assert!(end <= size);
    }
    for run in chain.cluster_runs(1, 0, chain.clusters()).unwrap().take(200) {
        let Ok(run) = run else { break };
        assert!(run.count > 0);
    }
    let mut buf = Vec::new();
    let mut piece = vec![0; 100_000];
    for step in 0..20 {
        let cluster = (chain.clusters() / 20).max(1) * step;
        let _ = chain.fetch_cluster(cluster, &mut buf);
        let _ = chain.read(&mut piece, cluster * 65536);
        let _ = chain.read(&mut piece[..700], step * 4000 + 13);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn mutated_images_never_panic(
        seed in any::<prop::sample::Index>(),
        changes in prop::collection::vec((0..4u8, any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let mut image = seeds()[seed.index(seeds().len())].clone();
        // Most changes hit the header and the tables: that is where offsets are.
        let table = |image: &[u8], at: usize| {
            let bytes = image[at..at + 8].try_into().unwrap();
            (u64::from_be_bytes(bytes) & 0xff_ffff_ffff_fe00).min(image.len() as u64 - 520) as usize
        };
        let l1 = table(&image, 40);
        let l2 = table(&image, l1);
        for (area, index, byte) in changes {
            let at = match area {
                0 => index.index(112),
                1 => l1 + index.index(64),
                2 => l2 + index.index(512),
                _ => index.index(image.len()),
            };
            image[at] = byte;
        }
        if let Some(cut) = cut {
            let length = cut.index(image.len());
            image.truncate(length);
        }
        exercise(image);
    }

    #[test]
    fn garbage_behind_the_magic_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 104..2000)) {
        bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        bytes[20..24].copy_from_slice(&[0, 0, 0, 9]);
        bytes[32..36].fill(0);
        bytes[72..80].fill(0);
        exercise(bytes);
    }
}
