//! Filling targets, and the guards in front of them.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, process::Command};

use hvbak_wire::{Answer, Code, Format, Guards, Op, ReadOptions, Slice, Zeros};
use rand::{RngCore, SeedableRng};

use crate::support::{CLUSTER, MIB, Tree, Volume, Worker, qemu_img, target};

/// Mixed clusters at scattered places.
fn clusters(indices: &[u64]) -> Vec<(u64, Vec<u8>)> {
    let mut rng = rand::rngs::StdRng::seed_from_u64(7);
    let fill = |index: &u64| {
        let mut content = vec![*index as u8 | 1; 65_536];
        if index.is_multiple_of(2) {
            rng.fill_bytes(&mut content);
        }
        (*index, content)
    };
    indices.iter().map(fill).collect()
}

fn expected(clusters: &[(u64, Vec<u8>)], size: u64) -> Vec<u8> {
    let mut disk = vec![0; usize::try_from(size.next_multiple_of(CLUSTER)).unwrap()];
    for (index, content) in clusters {
        let at = usize::try_from(index * CLUSTER).unwrap();
        disk[at..at + 65_536].copy_from_slice(content);
    }
    disk.truncate(usize::try_from(size).unwrap());
    disk
}

fn fill(worker: &mut Worker, op: Op, data: &[(u64, Vec<u8>)]) -> hvbak_wire::Written {
    let id = worker.request(op);
    let reply = worker.frame().reply().unwrap();
    assert!(matches!(reply, Ok((i, Answer::Target(_))) if i == id), "{reply:?}");
    worker.write(id, data, true);
    match worker.ask(Op::Finish { target: id, clusters: data.len() as u64 }) {
        Ok(Answer::Written(written)) => written,
        other => panic!("{other:?}"),
    }
}

#[test]
fn raw_and_qcow2_targets_hold_what_was_sent() {
    for (format, size) in [(Format::Raw, 40 * MIB + 512), (Format::Cow, 40 * MIB)] {
        let tree = Tree::nfs();
        let v = tree.disk(format, size);
        let inode = fs::metadata(tree.path(&v)).unwrap().ino();
        let data = clusters(&[0, 1, 2, 3, 17, 18, 100, 101, 102, 300, 639, size / CLUSTER - 1]);
        let data: BTreeMap<_, _> = data.into_iter().collect();
        let mut data: Vec<_> = data.into_iter().collect();
        if size % CLUSTER != 0 {
            // The short last cluster travels padded.
            let mut content = vec![9; 65_536];
            content[512..].fill(0);
            data.push((size / CLUSTER, content));
        }
        let mut worker = Worker::start(tree.dir.path());
        let written = fill(&mut worker, target(tree.at(&v), format, size, Zeros::Zero), &data);
        assert_eq!(written.totals.clusters, data.len() as u64);
        let path = tree.path(&v);
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "in place");
        if format == Format::Cow {
            qemu_img(&["check", "-q", path.to_str().unwrap()]);
        } else {
            assert_eq!(fs::metadata(&path).unwrap().len(), size, "neither cut nor extended");
            assert!(written.written_bytes < MIB, "holes stay holes");
        }
        let want = expected(&data, size);
        fs::write(tree.dir.path().join("want.raw"), &want).unwrap();
        let (want_path, kind) = (tree.dir.path().join("want.raw"), crate::support::kind(format));
        qemu_img(&[
            "compare",
            "-q",
            "-f",
            "raw",
            "-F",
            kind,
            want_path.to_str().unwrap(),
            path.to_str().unwrap(),
        ]);
        // Read again past the cache, digests alone.
        let opened = worker.ask(Op::Open { layers: vec![tree.layer(&v)], top: None });
        assert!(opened.is_ok(), "{opened:?}");
        let options = ReadOptions { digest_only: true, uncached: true, ..ReadOptions::default() };
        let (back, _) = worker.read(0, u64::MAX, options).unwrap();
        let sent: BTreeMap<_, _> = data
            .iter()
            .map(|(i, c)| (*i, hvbak_types::Digest(*blake3::hash(c).as_bytes())))
            .collect();
        assert_eq!(back.digests, sent);
    }
}

#[test]
fn unknown_bytes_are_overwritten_with_zeros() {
    let tree = Tree::nfs();
    let v = tree.disk(Format::Raw, 8 * MIB);
    // As a block volume that held another disk: the first 4 KiB were wiped.
    tree.io(&v, &["write -P 0xee 0 8M"]);
    tree.io(&v, &["write -P 0 0 4k"]);
    let data = clusters(&[3, 5, 64]);
    let mut worker = Worker::start(tree.dir.path());
    let op = target(tree.at(&v), Format::Raw, 8 * MIB, Zeros::Unknown);
    let failed = worker.ask(op.clone()).unwrap_err();
    assert_eq!(failed.code, Code::Guard, "not empty: {failed}");
    let Op::Target { at, format, virtual_size, slice, reads, check_digests, .. } = op else {
        panic!()
    };
    let guards = Guards { must_be_empty: false, ..Guards::default() };
    let op = Op::Target { at, format, virtual_size, slice, reads, guards, check_digests };
    fill(&mut worker, op, &data);
    assert_eq!(fs::read(tree.path(&v)).unwrap(), expected(&data, 8 * MIB));
}

#[test]
fn two_workers_fill_one_disk() {
    let tree = Tree::nfs();
    let v = tree.disk(Format::Raw, 16 * MIB);
    let data = clusters(&[0, 1, 127, 128, 200, 255]);
    let slice = |offset, length| {
        let guards = Guards::default();
        Op::Target {
            at: tree.at(&v),
            format: Format::Raw,
            virtual_size: 16 * MIB,
            slice: Some(Slice { offset, length }),
            reads: Zeros::Unknown,
            guards,
            check_digests: true,
        }
    };
    let mut workers = [Worker::start(tree.dir.path()), Worker::start(tree.dir.path())];
    let ids = [0, 1].map(|i| workers[i].request(slice(i as u64 * 8 * MIB, 8 * MIB)));
    for w in &mut workers {
        assert!(matches!(w.frame().reply().unwrap(), Ok((_, Answer::Target(_)))));
    }
    workers[0].write(ids[0], &data[..3], true);
    workers[1].write(ids[1], &data[3..], false);
    for (w, id) in workers.iter_mut().zip(ids) {
        let answer = w.ask(Op::Finish { target: id, clusters: 3 });
        assert!(matches!(answer, Ok(Answer::Written(_))), "{answer:?}");
    }
    assert_eq!(fs::read(tree.path(&v)).unwrap(), expected(&data, 16 * MIB));
    // Outside its slice nobody writes.
    let v = Volume { ..tree.disk(Format::Raw, 16 * MIB) };
    let Op::Target { format, virtual_size, slice, reads, guards, check_digests, .. } =
        slice(0, 8 * MIB)
    else {
        panic!()
    };
    let at = tree.at(&v);
    let op = Op::Target { at, format, virtual_size, slice, reads, guards, check_digests };
    let id = workers[0].request(op);
    assert!(workers[0].frame().reply().unwrap().is_ok());
    workers[0].write(id, &clusters(&[128]), true);
    let failed = workers[0].frame().reply().unwrap().unwrap_err();
    assert_eq!((failed.code, failed.request), (Code::BadData, id));
}

#[test]
fn each_wrong_target_is_refused_untouched() {
    let size = 4 * MIB;
    for format in [Format::Raw, Format::Cow] {
        let tree = Tree::nfs();
        let v = tree.disk(format, size);
        let mut worker = Worker::start(tree.dir.path());
        let good = target(tree.at(&v), format, size, Zeros::Zero);
        let meta = fs::read_to_string(tree.meta_path(&v)).unwrap();
        let mut refuse = |why: &str, op: &Op, code: Code| {
            let before = fs::read(tree.path(&v)).unwrap();
            let failed = worker.ask(op.clone()).expect_err(why);
            assert_eq!(failed.code, code, "{why}: {failed}");
            assert_eq!(fs::read(tree.path(&v)).unwrap(), before, "{why}");
        };
        let image = format!("IMAGE={}", v.image);
        for (from, to) in [
            (image.as_str(), "IMAGE=00000000-0000-4000-8000-000000000bad"),
            ("VOLTYPE=LEAF", "VOLTYPE=INTERNAL"),
            ("VOLTYPE=LEAF", "VOLTYPE=SHARED"),
            ("LEGALITY=LEGAL", "LEGALITY=ILLEGAL"),
            ("DISKTYPE=DATA", "DISKTYPE=OVFS"),
            ("CAP=4194304", "CAP=8388608"),
            ("PUUID=00000000-0000-0000", "PUUID=00000000-0000-4000"),
        ] {
            tree.edit_meta(&v, from, to);
            refuse(to, &good, Code::Guard);
            fs::write(tree.meta_path(&v), &meta).unwrap();
        }
        let other = if format == Format::Raw { Format::Cow } else { Format::Raw };
        refuse("format", &target(tree.at(&v), other, size, Zeros::Zero), Code::Guard);
        refuse("size", &target(tree.at(&v), format, size * 2, Zeros::Zero), Code::Guard);

        // Held open by QEMU.
        let mut vm = Command::new("qemu-io")
            .args(["-f", crate::support::kind(format)])
            .arg(tree.path(&v))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // Its prompt tells that the image is open.
        let mut byte = [0];
        std::io::Read::read_exact(vm.stdout.as_mut().unwrap(), &mut byte).unwrap();
        refuse("held open", &good, Code::Guard);
        vm.kill().unwrap();
        vm.wait().unwrap();

        // A second name for the same file.
        let link = tree.path(&v).with_extension("link");
        fs::hard_link(tree.path(&v), &link).unwrap();
        refuse("hard link", &good, Code::Guard);
        fs::remove_file(link).unwrap();

        // Somebody's data.
        tree.io(&v, &["write -P 1 2M 64k"]);
        if format == Format::Raw {
            // Near the start, where any partition table is, and at the sampled places.
            refuse("data", &good, Code::Guard);
        } else {
            refuse("allocated cluster", &good, Code::Guard);
        }
        // A symbolic link in its place.
        let path = tree.path(&v);
        fs::rename(&path, path.with_extension("real")).unwrap();
        std::os::unix::fs::symlink(path.with_extension("real"), &path).unwrap();
        let failed = worker.ask(good.clone()).unwrap_err();
        assert_eq!(failed.code, Code::Io, "{failed}");
    }
    // A snapshot layer.
    let tree = Tree::nfs();
    let base = tree.disk(Format::Cow, size);
    let top = tree.overlay(&base, size);
    let mut worker = Worker::start(tree.dir.path());
    for v in [&base, &top] {
        let op = target(tree.at(v), Format::Cow, size, Zeros::Zero);
        assert_eq!(worker.ask(op).unwrap_err().code, Code::Guard);
    }
}

#[test]
fn a_claimed_target_cannot_be_opened_by_qemu() {
    let tree = Tree::nfs();
    let v = tree.disk(Format::Raw, MIB);
    let mut worker = Worker::start(tree.dir.path());
    worker.ask(target(tree.at(&v), Format::Raw, MIB, Zeros::Zero)).unwrap();
    let vm = Command::new("qemu-io")
        .args(["-f", "raw", "-c", "write 0 512"])
        .arg(tree.path(&v))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&vm.stderr);
    assert!(text.contains("lock"), "{text}");
}

#[test]
fn wrong_clusters_fail_the_target_and_only_it() {
    let size = 4 * MIB;
    let tree = Tree::nfs();
    let mut worker = Worker::start(tree.dir.path());
    for (why, indices) in [("twice", &[1, 1][..]), ("outside", &[1, 64])] {
        let v = tree.disk(Format::Raw, size);
        let id = worker.request(target(tree.at(&v), Format::Raw, size, Zeros::Zero));
        assert!(worker.frame().reply().unwrap().is_ok());
        for i in indices {
            worker.write(id, &clusters(&[*i]), true);
        }
        let failed = worker.frame().reply().unwrap().unwrap_err();
        assert_eq!((failed.request, failed.code), (id, Code::BadData), "{why}");
        // More of the same is dropped; the end is a failure too.
        worker.write(id, &clusters(&[5]), true);
        assert!(worker.ask(Op::Finish { target: id, clusters: 3 }).is_err());
    }
    // A digest that does not fit its content.
    let v = tree.disk(Format::Raw, size);
    let id = worker.request(target(tree.at(&v), Format::Raw, size, Zeros::Zero));
    assert!(worker.frame().reply().unwrap().is_ok());
    let mut frame = hvbak_wire::ClustersBuilder::default();
    let (digest, body) = (hvbak_types::Digest([7; 32]), hvbak_wire::Body::Plain(&[1; 65_536]));
    frame.push(&hvbak_wire::Cluster { index: 0, digest, body }).unwrap();
    worker.send(&frame.seal(id).unwrap());
    let failed = worker.ask(Op::Finish { target: id, clusters: 1 }).unwrap_err();
    assert_eq!(failed.code, Code::BadData);
    assert!(fs::read(tree.path(&v)).unwrap().iter().all(|b| *b == 0), "nothing was written");
    // A payload that is no zstd, or inflates to something else.
    for payload in [
        &b"garbage"[..],
        &zstd::bulk::compress(&[0; 70_000], 1).unwrap(),
        &zstd::bulk::compress(&[0; 9], 1).unwrap(),
    ] {
        let id = worker.request(target(tree.at(&v), Format::Raw, size, Zeros::Zero));
        assert!(worker.frame().reply().unwrap().is_ok());
        let mut frame = hvbak_wire::ClustersBuilder::default();
        let body = hvbak_wire::Body::Zstd(payload);
        frame.push(&hvbak_wire::Cluster { index: 0, digest, body }).unwrap();
        worker.send(&frame.seal(id).unwrap());
        let failed = worker.ask(Op::Finish { target: id, clusters: 1 }).unwrap_err();
        assert_eq!(failed.code, Code::BadData);
    }
    // Missing clusters.
    let id = worker.request(target(tree.at(&v), Format::Raw, size, Zeros::Zero));
    assert!(worker.frame().reply().unwrap().is_ok());
    worker.write(id, &clusters(&[5]), true);
    let failed = worker.ask(Op::Finish { target: id, clusters: 2 }).unwrap_err();
    assert_eq!(failed.code, Code::BadRequest);
    // Clusters of nothing.
    worker.write(999, &clusters(&[5]), true);
    assert_eq!(worker.frame().reply().unwrap().unwrap_err().request, 999);
    assert!(worker.end().success());
}
