//! Reading chains: what arrives equals what the guest sees by qemu-img.

use hvbak_wire::{Answer, Code, Format, LayerAddress, Op, Place, ReadOptions};

use crate::support::{CLUSTER, MIB, Tree, Volume, Worker, qemu_img};

fn open(worker: &mut Worker, layers: Vec<LayerAddress>, top: Option<u32>) -> hvbak_wire::Opened {
    match worker.ask(Op::Open { layers, top }) {
        Ok(Answer::Opened(opened)) => opened,
        other => panic!("{other:?}"),
    }
}

fn full(tree: &Tree, chain: &[&Volume]) -> (Worker, Vec<u8>) {
    let mut worker = Worker::start(tree.dir.path());
    let opened = open(&mut worker, chain.iter().map(|v| tree.layer(v)).collect(), None);
    let guest = tree.guest(chain[0]);
    assert_eq!(opened.virtual_size, guest.len() as u64);
    (worker, guest)
}

fn assert_same(found: &[u8], expected: &[u8]) {
    assert_eq!(found.len(), expected.len());
    if let Some(at) = found.iter().zip(expected).position(|(a, b)| a != b) {
        panic!("first difference at byte {at}");
    }
}

/// base ← one ← two, with zeros, discards and unaligned writes.
fn three_layers(tree: &Tree, base: Format) -> [Volume; 3] {
    let v0 = tree.disk(base, 24 * MIB);
    tree.io(&v0, &["write -P 1 0 3M", "write -P 2 5000k 100k", "write -P 3 23M 1M"]);
    let v1 = tree.overlay(&v0, 24 * MIB);
    tree.io(
        &v1,
        &["write -P 4 1M 64k", "write -z 2M 128k", "write -P 5 70k 1k", "write -P 0 8M 64k"],
    );
    let v2 = tree.overlay(&v1, 32 * MIB);
    tree.io(&v2, &["write -P 6 30M 200k", "discard 2560k 64k", "write -P 7 1100k 4k"]);
    [v2, v1, v0]
}

#[test]
fn a_full_read_is_what_the_guest_sees() {
    for base in [Format::Raw, Format::Cow] {
        let tree = Tree::nfs();
        let [v2, v1, v0] = three_layers(&tree, base);
        let (mut worker, guest) = full(&tree, &[&v2, &v1, &v0]);
        let threads = Some(3);
        for compression in [Some(1), Some(3), None] {
            let options = ReadOptions { compression, threads, ..ReadOptions::default() };
            let (back, end) = worker.read(0, u64::MAX, options).unwrap();
            assert_same(&back.over(Vec::new(), guest.len() as u64), &guest);
            assert!(back.zeros.is_empty(), "a full read leaves zeros out");
            let non_zero =
                guest.chunks(65_536).filter(|c| c.iter().any(|b| *b != 0)).count() as u64;
            assert_eq!(end.totals.clusters, non_zero);
            assert!(end.stats.peak_rss > 0);
        }
        // In ranges, several one after the other on one session.
        let mut joined = Vec::new();
        for offset in (0..guest.len() as u64).step_by(3 * MIB as usize) {
            let (back, _) = worker.read(offset, 3 * MIB, ReadOptions::default()).unwrap();
            joined.push(back);
        }
        let mut content = Vec::new();
        for back in joined {
            content = back.over(content, guest.len() as u64);
        }
        assert_same(&content, &guest);
        assert!(worker.end().success());
    }
}

#[test]
fn a_sub_chain_over_the_parent_gives_the_child() {
    for base in [Format::Raw, Format::Cow] {
        let tree = Tree::nfs();
        let [v2, v1, v0] = three_layers(&tree, base);
        let parent = tree.guest(&v0);
        let (mut worker, guest) = full(&tree, &[&v2, &v1, &v0]);
        let layers = vec![tree.layer(&v2), tree.layer(&v1), tree.layer(&v0)];
        assert_eq!(open(&mut worker, layers, Some(2)).top, 2);
        let options = ReadOptions { zeros: true, ..ReadOptions::default() };
        let (back, end) = worker.read(0, u64::MAX, options).unwrap();
        assert!(!back.zeros.is_empty(), "zeros hide the parent's data");
        assert_same(&back.over(parent, guest.len() as u64), &guest);
        assert!(end.totals.clusters < 20, "the base is not sent: {:?}", end.totals);
        // Only the newest layer, over the middle one.
        let layers = vec![tree.layer(&v2), tree.layer(&v1), tree.layer(&v0)];
        open(&mut worker, layers, Some(1));
        let options = ReadOptions { zeros: true, ..ReadOptions::default() };
        let (back, _) = worker.read(0, u64::MAX, options).unwrap();
        assert_same(&back.over(tree.guest(&v1), guest.len() as u64), &guest);
    }
}

#[test]
fn small_clusters_are_completed_from_below() {
    let tree = Tree::nfs();
    let v0 = tree.disk(Format::Raw, 4 * MIB);
    tree.io(&v0, &["write -P 1 0 4M"]);
    let v1 = tree.overlay(&v0, 4 * MIB);
    let (path, backing) = (tree.path(&v1), v0.volume.to_string());
    qemu_img(&[
        "create",
        "-q",
        "-u",
        "-f",
        "qcow2",
        "-o",
        "cluster_size=4k",
        "-F",
        "raw",
        "-b",
        &backing,
        path.to_str().unwrap(),
        "4M",
    ]);
    tree.io(&v1, &["write -P 9 100k 4k", "write -z 1M 8k"]);
    let (mut worker, guest) = full(&tree, &[&v1, &v0]);
    open(&mut worker, vec![tree.layer(&v1), tree.layer(&v0)], Some(1));
    let options = ReadOptions { zeros: true, ..ReadOptions::default() };
    let (back, end) = worker.read(0, u64::MAX, options).unwrap();
    assert_eq!(end.totals.clusters, 2, "one written and one mixed cluster");
    assert_same(&back.over(tree.guest(&v0), 4 * MIB), &guest);
}

#[test]
fn odd_sizes_holes_and_templates() {
    let tree = Tree::nfs();
    // Size no multiple of 64 KiB; a sparse raw file.
    let raw = tree.disk(Format::Raw, 10 * MIB + 512);
    tree.io(&raw, &["write -P 1 0 4k", "write -P 2 6M 70k", "write -P 3 10M 512"]);
    let (mut worker, guest) = full(&tree, &[&raw]);
    let (back, end) = worker.read(0, u64::MAX, ReadOptions::default()).unwrap();
    assert_same(&back.over(Vec::new(), raw.size), &guest);
    assert_eq!(end.totals.clusters, 4);
    assert!(end.read_bytes < MIB, "holes are not read: {}", end.read_bytes);
    assert!(back.data[&160][512..].iter().all(|b| *b == 0), "the last cluster is padded");

    // A thin disk on a template: the base is hard-linked and keeps its owner.
    let base = tree.disk(Format::Cow, 2 * MIB);
    tree.io(&base, &["write -P 8 0 1M"]);
    tree.edit_meta(&base, "VOLTYPE=LEAF", "VOLTYPE=SHARED");
    let image = hvbak_types::DiskId::random();
    let linked = Volume { image, ..base };
    let thin = tree.volume(image, Format::Cow, 2 * MIB, Some(&base));
    std::fs::hard_link(tree.path(&base), tree.path(&linked)).unwrap();
    std::fs::hard_link(tree.meta_path(&base), tree.meta_path(&linked)).unwrap();
    tree.io(&thin, &["write -P 9 512k 64k"]);
    let Ok(Answer::Chain(chain)) = worker.ask(Op::Chain { at: tree.at(&thin) }) else { panic!() };
    assert_eq!(chain.layers.len(), 2);
    assert_eq!((chain.layers[1].image, chain.layers[1].links), (base.image, 2));
    let layers = chain
        .layers
        .iter()
        .map(|l| LayerAddress {
            place: Place::Path(l.path.clone()),
            format: l.format,
            capacity: None,
            identity: Some(l.identity),
        })
        .collect();
    open(&mut worker, layers, None);
    let (back, _) = worker.read(0, u64::MAX, ReadOptions::default()).unwrap();
    assert_same(&back.over(Vec::new(), 2 * MIB), &tree.guest(&thin));
}

#[test]
fn digests_alone_and_past_the_cache() {
    let tree = Tree::nfs();
    let v = tree.disk(Format::Raw, 8 * MIB);
    tree.io(&v, &["write -P 5 1M 2M"]);
    let (mut worker, _) = full(&tree, &[&v]);
    let (with_data, _) = worker.read(0, u64::MAX, ReadOptions::default()).unwrap();
    let options = ReadOptions { digest_only: true, uncached: true, ..ReadOptions::default() };
    let (alone, end) = worker.read(0, u64::MAX, options).unwrap();
    assert_eq!(alone.digests, with_data.digests);
    assert_eq!((alone.data.len(), end.totals.payload_bytes), (0, 0));
    assert_eq!(end.totals.clusters, 32);
}

#[test]
fn reads_past_the_cache_of_any_alignment() {
    let tree = Tree::nfs();
    let raw = tree.disk(Format::Raw, 3 * MIB + 512);
    tree.io(&raw, &["write -P 1 5k 1M", "write -P 2 3M 512"]);
    let cow = tree.disk(Format::Cow, 4 * MIB);
    tree.io(&cow, &["write -P 3 0 2M", "write -P 4 3M 64k"]);
    let uncached = || ReadOptions { uncached: true, ..ReadOptions::default() };
    for method in ["zlib", "zstd"] {
        // Compressed clusters lie at odd places and the file ends at an odd one.
        let packed = tree.disk(Format::Cow, 4 * MIB);
        let (from, to) = (tree.path(&cow), tree.path(&packed));
        let option = format!("compression_type={method}");
        qemu_img(&[
            "convert",
            "-q",
            "-c",
            "-f",
            "qcow2",
            "-O",
            "qcow2",
            "-o",
            &option,
            from.to_str().unwrap(),
            to.to_str().unwrap(),
        ]);
        for v in [&raw, &cow, &packed] {
            let (mut worker, guest) = full(&tree, &[v]);
            let (back, _) = worker.read(0, u64::MAX, uncached()).unwrap();
            assert_same(&back.over(Vec::new(), v.size), &guest);
            // A second range opens again and sees the same.
            let (back, _) = worker.read(2 * MIB, MIB, uncached()).unwrap();
            let expected = &guest[2 * MIB as usize..3 * MIB as usize];
            assert_same(
                &back.over(Vec::new(), 4 * MIB)[2 * MIB as usize..3 * MIB as usize],
                expected,
            );
        }
    }
}

#[test]
fn maps_and_pieces() {
    let tree = Tree::nfs();
    let v = tree.disk(Format::Cow, 64 * MIB);
    tree.io(&v, &["write -P 5 0 4M", "write -z 8M 1M", "write -P 6 40M 4M"]);
    let (mut worker, _) = full(&tree, &[&v]);
    let Ok(Answer::Map(map)) = worker.ask(Op::Map { offset: 0, length: u64::MAX, pieces: 4 })
    else {
        panic!()
    };
    assert_eq!((map.data, map.zero, map.clusters), (8 * MIB, MIB, 128));
    assert_eq!(map.data + map.zero + map.absent, 64 * MIB);
    assert_eq!(map.pieces.len(), 4);
    let mut ends = map.pieces[1..].to_vec();
    ends.push(64 * MIB);
    for (start, end) in map.pieces.iter().zip(ends) {
        let (_, e) = worker.read(*start, end - start, ReadOptions::default()).unwrap();
        assert_eq!(e.totals.clusters, 32, "equal work");
    }
    let bad = worker.ask(Op::Map { offset: 0, length: 1, pieces: 0 }).unwrap_err();
    assert_eq!(bad.code, Code::BadRequest);
    let empty = tree.disk(Format::Cow, 64 * MIB);
    open(&mut worker, vec![tree.layer(&empty)], None);
    let Ok(Answer::Map(map)) = worker.ask(Op::Map { offset: 0, length: u64::MAX, pieces: 4 })
    else {
        panic!()
    };
    assert_eq!((map.clusters, map.pieces), (0, vec![0]));
    assert_eq!(map.absent, 64 * MIB);
}

#[test]
fn payloads_are_clusters_for_qemu() {
    // Each payload as the only cluster of a compressed image is read by QEMU: covered by
    // the image writer's tests; here: frames are single, sized, without checksum.
    let tree = Tree::nfs();
    let v = tree.disk(Format::Raw, MIB);
    tree.io(&v, &["write -P 5 0 1M"]);
    let (mut worker, _) = full(&tree, &[&v]);
    let (back, _) = worker.read(0, u64::MAX, ReadOptions::default()).unwrap();
    assert_eq!(back.payload.len(), 16);
    for frame in back.payload.values() {
        assert_eq!(frame[..4], [0x28, 0xb5, 0x2f, 0xfd]);
        assert_eq!(frame[4] & 4, 0, "no checksum");
    }
}

#[test]
fn a_truncated_or_damaged_layer_is_an_error() {
    let tree = Tree::nfs();
    let v = tree.disk(Format::Cow, 16 * MIB);
    tree.io(&v, &["write -P 5 0 8M"]);
    let path = tree.path(&v);
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let mut worker = Worker::start(tree.dir.path());
    open(&mut worker, vec![tree.layer(&v)], None);
    let failed = worker.read(0, u64::MAX, ReadOptions::default()).unwrap_err();
    assert_eq!(failed.code, Code::Image, "{failed}");
    // The session goes on.
    std::fs::write(&path, &whole).unwrap();
    open(&mut worker, vec![tree.layer(&v)], None);
    let (back, _) = worker.read(0, u64::MAX, ReadOptions::default()).unwrap();
    assert_eq!(back.data.len(), 128);
    // A raw layer whose file is shorter than the metadata says.
    let raw = tree.disk(Format::Raw, 4 * MIB);
    std::fs::File::options().write(true).open(tree.path(&raw)).unwrap().set_len(MIB).unwrap();
    let layers = vec![tree.layer(&raw)];
    let failed = worker.ask(Op::Open { layers, top: None }).unwrap_err();
    assert_eq!(failed.code, Code::Image, "{failed}");
}

#[test]
fn another_file_under_the_same_name_is_seen() {
    let tree = Tree::nfs();
    let v = tree.disk(Format::Raw, MIB);
    let mut worker = Worker::start(tree.dir.path());
    let Ok(Answer::Located(located)) = worker.ask(Op::Locate { at: tree.at(&v) }) else { panic!() };
    let path = tree.path(&v);
    std::fs::rename(&path, path.with_extension("old")).unwrap();
    std::fs::copy(path.with_extension("old"), &path).unwrap();
    let layer = LayerAddress { identity: Some(located.identity), ..tree.layer(&v) };
    let failed = worker.ask(Op::Open { layers: vec![layer], top: None }).unwrap_err();
    assert_eq!(failed.code, Code::Changed);
}

#[test]
fn requests_out_of_order_are_refused() {
    let tree = Tree::nfs();
    let v = tree.disk(Format::Raw, MIB);
    let mut worker = Worker::start(tree.dir.path());
    let code = |r: Result<Answer, hvbak_wire::Failed>| r.unwrap_err().code;
    let options = ReadOptions::default();
    let read = |offset| Op::Read { offset, length: CLUSTER, options: options.clone() };
    assert_eq!(code(worker.ask(read(0))), Code::BadRequest);
    assert_eq!(code(worker.ask(Op::Open { layers: vec![], top: None })), Code::BadRequest);
    let layers = vec![tree.layer(&v)];
    assert_eq!(code(worker.ask(Op::Open { layers, top: Some(2) })), Code::BadRequest);
    open(&mut worker, vec![tree.layer(&v)], None);
    assert_eq!(code(worker.ask(read(1))), Code::BadRequest);
    let wild = ReadOptions { compression: Some(77), ..options.clone() };
    let op = Op::Read { offset: 0, length: CLUSTER, options: wild };
    assert_eq!(code(worker.ask(op)), Code::BadRequest);
    let (back, _) = worker.read(1 << 40, CLUSTER, options.clone()).unwrap();
    assert!(back.data.is_empty(), "behind the end there is nothing");
    assert_eq!(worker.ask(Op::Close), Ok(Answer::Done));
    assert_eq!(code(worker.ask(read(0))), Code::BadRequest);
    assert!(matches!(worker.ask(Op::Bye), Ok(Answer::Farewell(_))));
    assert!(worker.wait(std::time::Duration::from_secs(5)).success());
}
