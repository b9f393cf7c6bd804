//! Places that no honest image has are refused before they reach a table.

use std::sync::{Arc, Mutex};

use hvbak_qcow2::{Compression, Error, Keeper, Layer, Place, Writer, WriterOptions, check};

const CLUSTER: u64 = 65_536;

type Memory = Arc<Mutex<Vec<u8>>>;

fn options() -> WriterOptions {
    let compression = Some(Compression::Zstd);
    WriterOptions { virtual_size: 64 * CLUSTER, backing: None, compression }
}

/// An image of 8 packed and 8 plain clusters in memory.
fn image() -> Memory {
    let out = Memory::default();
    let mut writer = Writer::create(out.clone(), options()).unwrap();
    for cluster in 0..8 {
        let noise: Vec<u8> = (0..CLUSTER).map(|i| (((i * i) >> 7) ^ (i * cluster)) as u8).collect();
        writer.put_data(2 * cluster, &noise).unwrap();
        let packed = zstd::bulk::compress(&noise, 1).unwrap();
        writer.put_compressed(2 * cluster + 1, &packed).unwrap();
    }
    writer.finish().unwrap();
    out
}

fn copy(image: &Memory) -> Memory {
    Arc::new(Mutex::new(image.lock().unwrap().clone()))
}

#[test]
fn what_is_kept_reads_as_before_and_the_rest_is_holes() {
    let out = image();
    let layer = Layer::open_qcow2(out.clone()).unwrap();
    let places: Vec<_> = (0..16).map(|c| layer.place(c).unwrap().unwrap()).collect();
    assert_eq!(layer.place(16).unwrap(), None);
    assert!(layer.place(64).is_err());
    let made = copy(&out);
    let mut keeper = Keeper::create(made.clone(), options()).unwrap();
    for cluster in 0..10 {
        keeper.keep(cluster, places[cluster as usize]).unwrap();
    }
    let begun = keeper.begin();
    // Plain clusters 10, 12 and 14 are gone, and the old tables.
    let holes: u64 = begun.holes.iter().map(|hole| hole.end - hole.start).sum();
    assert!(holes >= 3 * CLUSTER, "{:?}", begun.holes);
    let mut writer = begun.writer;
    writer.put_data(20, &[7; 65536]).unwrap();
    assert!(Layer::open_qcow2(made.clone()).is_err(), "unfinished, it is no image");
    writer.finish().unwrap();
    assert!(check(&made).unwrap().problems.is_empty());
    let made = Layer::open_qcow2(made).unwrap();
    for cluster in 0..16 {
        let kept = (cluster < 10).then_some(places[cluster as usize]);
        assert_eq!(made.place(cluster).unwrap(), kept);
    }
}

#[test]
fn places_that_cannot_be_are_refused() {
    let out = image();
    let size = out.lock().unwrap().len() as u64;
    let place = |offset, length, packed| Place { offset, length, packed };
    for bad in [
        place(0, CLUSTER, false),
        place(CLUSTER - 512, 1024, true),
        place(size, CLUSTER, false),
        place(size - 512, 1024, true),
        place(u64::MAX - 10, 512, true),
        place(CLUSTER + 512, CLUSTER, false),
        place(CLUSTER, CLUSTER / 2, false),
        place(CLUSTER, 0, true),
        place(CLUSTER, 2 * CLUSTER, true),
    ] {
        let mut keeper = Keeper::create(copy(&out), options()).unwrap();
        assert!(matches!(keeper.keep(0, bad), Err(Error::Payload { .. })), "{bad:?}");
    }
    let mut keeper = Keeper::create(copy(&out), options()).unwrap();
    let good = place(5 * CLUSTER, CLUSTER, false);
    assert!(matches!(keeper.keep(64, good), Err(Error::Range { .. })));
    keeper.keep(0, good).unwrap();
    assert!(matches!(keeper.keep(1, good), Err(Error::Payload { .. })));
    assert!(matches!(
        keeper.keep(0, place(6 * CLUSTER, CLUSTER, false)),
        Err(Error::Duplicate { .. })
    ));
}
