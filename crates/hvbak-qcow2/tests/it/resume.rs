//! A writer that goes on where another one stopped, over what was flushed.

use std::sync::{Arc, Mutex};

use hvbak_qcow2::{
    Chain, Compression, Keeper, Layer, Place, ReadAt, WriteAt, Writer, WriterOptions, check,
};
use hvbak_types::CLUSTER_SIZE;

/// A guest cluster, and where its payload lies.
type Kept = (u64, Place);

fn frame(seed: u8, noise: bool) -> (Vec<u8>, Vec<u8>) {
    let mut state = u64::from(seed) | 1 << 40;
    let content: Vec<u8> = (0..CLUSTER_SIZE)
        .map(|i| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            if noise || i < 20_000 { state as u8 } else { seed }
        })
        .collect();
    let packed = zstd::bulk::compress(&content, 1).unwrap();
    (content, packed)
}

fn options() -> WriterOptions {
    WriterOptions { virtual_size: 40 << 20, backing: None, compression: Some(Compression::Zstd) }
}

fn put<W: WriteAt + ReadAt>(writer: &mut Writer<W>, cluster: u64) -> Kept {
    let plain = cluster.is_multiple_of(3);
    let (content, packed) = frame(cluster as u8, plain);
    let (offset, length) = if plain {
        (writer.put_data(cluster, &content).unwrap(), CLUSTER_SIZE)
    } else {
        (writer.put_compressed(cluster, &packed).unwrap(), packed.len() as u64)
    };
    (cluster, Place { offset, length, packed: !plain })
}

#[test]
fn a_writer_goes_on_again_and_again_behind_what_is_kept() {
    let mut file = Vec::new();
    let mut kept: Vec<Kept> = Vec::new();
    let order: Vec<u64> = (0..600).map(|n| n * 7 % 600).collect();
    for (round, part) in order.chunks(150).enumerate() {
        let end = kept.iter().map(|(_, k)| k.offset + k.length).max().unwrap_or(0);
        // Padded with what a dead writer may have left there.
        file.resize(end.next_multiple_of(CLUSTER_SIZE).max(CLUSTER_SIZE) as usize, 0xaa);
        let storage = Arc::new(Mutex::new(file.clone()));
        let mut keeper = Keeper::create(storage, options()).unwrap();
        for (cluster, place) in &kept {
            keeper.keep(*cluster, *place).unwrap();
        }
        let mut writer = keeper.begin().writer;
        for cluster in part {
            kept.push(put(&mut writer, *cluster));
        }
        writer.flush_payloads().unwrap();
        if round == 3 {
            let finished = Arc::clone(writer.storage());
            writer.finish().unwrap();
            file = finished.lock().unwrap().clone();
            continue;
        }
        // A few more that nobody will vouch for.
        for cluster in order[(round + 1) * 150..].iter().take(9) {
            put(&mut writer, *cluster);
        }
        file = writer.storage().lock().unwrap().clone();
    }
    assert_eq!(check(&file).unwrap().errors, 0, "{:?}", check(&file).unwrap().problems);
    let chain = Chain::new(vec![Layer::open_qcow2(file).unwrap()]).unwrap();
    let mut out = Vec::new();
    for cluster in 0..600 {
        out.resize(CLUSTER_SIZE as usize, 0);
        chain.read(&mut out, cluster * CLUSTER_SIZE).unwrap();
        assert_eq!(out, frame(cluster as u8, cluster.is_multiple_of(3)).0, "cluster {cluster}");
    }
}
