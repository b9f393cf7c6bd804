//! Reading: content, maps and chains equal to QEMU's over a matrix of images.

use std::{fs::File, path::Path, sync::Arc};

use hvbak_qcow2::{Chain, Error, Fetched, Header, Layer, check};
use hvbak_types::{CLUSTER_SIZE, Extent, ExtentKind};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::support::*;

/// Makes an image of `size` with `options`, scribbles, and compares everything.
fn compare(dir: &Path, options: &str, size: u64, packed: Option<u64>, seed: u64) {
    let image = dir.join(format!("{seed}.qcow2"));
    run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-o", options, path(&image), &size.to_string()],
    );
    scribble(&image, size, seed, packed);
    let chain = chain(&[&image]);
    assert_eq!(chain.virtual_size(), size, "{options}");
    assert_eq!(extents(&chain, 1), map(&image, true), "map of {options}");
    let oracle = content(&image);
    assert!(read_all(&chain, 1 << 20) == oracle, "content of {options}");
    assert!(read_all(&chain, 13_331) == oracle, "content in odd pieces of {options}");
    let report = check(&File::open(&image).unwrap()).unwrap();
    assert!(report.is_clean() && report.leaks == 0, "{options}: {report:?}");
    // The scribbling must have made what this is about.
    assert!(packed.is_none() || report.compressed_clusters > 0, "{options}: {report:?}");
    let said = run("qemu-img", &["check", "--output=json", path(&image)]);
    assert!(
        said.contains(&format!("\"image-end-offset\": {}", report.image_end_offset)),
        "{options}: {said} {report:?}"
    );
    runs_and_clusters(&chain, &oracle);
}

/// Cluster runs cover the disk, and every fetched cluster is the content.
fn runs_and_clusters(chain: &Chain<File>, oracle: &[u8]) {
    let mut next = 0;
    let mut buf = Vec::new();
    for run in chain.cluster_runs(1, 0, chain.clusters()).unwrap() {
        let run = run.unwrap();
        assert_eq!(run.cluster, next);
        next += run.count;
        for cluster in run.cluster..next {
            let fetched = chain.fetch_cluster(cluster, &mut buf).unwrap();
            let start = (cluster * CLUSTER_SIZE) as usize;
            let mut wanted = oracle[start..oracle.len().min(start + 65536)].to_vec();
            wanted.resize(65536, 0);
            let got = match fetched {
                Fetched::Absent | Fetched::Zero => vec![0; 65536],
                Fetched::Plain => buf.clone(),
                Fetched::Compressed => zstd::bulk::decompress(&buf, 65536).unwrap(),
            };
            assert!(got == wanted, "cluster {cluster} as {fetched:?}");
            match run.kind {
                ExtentKind::Absent => assert_eq!(fetched, Fetched::Absent),
                ExtentKind::Zero => assert_eq!(fetched, Fetched::Zero),
                ExtentKind::Data => {}
            }
        }
    }
    assert_eq!(next, chain.clusters());
}

#[test]
fn every_kind_of_image_reads_as_qemu_reads_it() {
    if !qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut seed = 0;
    for options in [
        "compat=0.10,cluster_size=512",
        "compat=0.10,cluster_size=4k",
        "compat=0.10",
        "compat=0.10,cluster_size=2M",
        "compat=1.1,cluster_size=512,refcount_bits=64",
        "compat=1.1,cluster_size=4k,refcount_bits=32",
        "compat=1.1",
        "compat=1.1,refcount_bits=8",
        "compat=1.1,refcount_bits=1",
        "compat=1.1,cluster_size=2M,refcount_bits=4",
        "compat=1.1,extended_l2=on,cluster_size=16k",
        "compat=1.1,extended_l2=on",
        "compat=1.1,extended_l2=on,cluster_size=2M",
        "compat=1.1,lazy_refcounts=on",
        "compat=1.1,preallocation=metadata",
    ] {
        for size in [8 << 20, (3 << 20) + 1536, 512, 65536 + 512] {
            seed += 1;
            compare(dir.path(), options, size, None, seed);
        }
    }
}

#[test]
fn compressed_clusters_inflate() {
    if !qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut seed = 100;
    for (options, unit) in [
        ("compat=0.10,cluster_size=4k", 4096),
        ("compat=0.10", 65536),
        ("compat=1.1", 65536),
        ("compat=1.1,cluster_size=512", 512),
        ("compat=1.1,cluster_size=2M", 2 << 20),
        ("compat=1.1,compression_type=zstd", 65536),
        ("compat=1.1,compression_type=zstd,cluster_size=4k", 4096),
        ("compat=1.1,compression_type=zstd,cluster_size=2M", 2 << 20),
        ("compat=1.1,compression_type=zstd,extended_l2=on", 65536),
    ] {
        for size in [16 << 20, (5 << 20) + 512] {
            seed += 1;
            compare(dir.path(), options, size.max(40 * unit + 512), Some(unit), seed);
        }
    }
}

#[test]
fn converted_zstd_clusters_are_passed_on_as_frames() {
    if !qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (raw, image) = (dir.path().join("a.raw"), dir.path().join("a.qcow2"));
    let mut bytes = vec![0; 4 << 20];
    let mut random = StdRng::seed_from_u64(7);
    for (nth, cluster) in bytes.chunks_mut(65536).enumerate() {
        match nth % 4 {
            0 => random.fill(cluster),
            1 | 2 => cluster.iter_mut().enumerate().for_each(|(i, b)| *b = (i / 7 * nth) as u8),
            _ => {}
        }
    }
    std::fs::write(&raw, &bytes).unwrap();
    let options = "compression_type=zstd";
    run("qemu-img", &["convert", "-c", "-O", "qcow2", "-o", options, path(&raw), path(&image)]);
    let chain = chain(&[&image]);
    let (mut frames, mut plain, mut buf) = (0, 0, Vec::new());
    for cluster in 0..chain.clusters() {
        match chain.fetch_cluster(cluster, &mut buf).unwrap() {
            Fetched::Compressed => frames += 1,
            Fetched::Plain => plain += 1,
            Fetched::Absent | Fetched::Zero => {}
        }
    }
    assert_eq!((frames, plain), (32, 16));
    runs_and_clusters(&chain, &bytes);
}

#[test]
fn chains_read_as_qemu_reads_them() {
    if !qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mib = 1 << 20;
    // Sizes base to top: grown, shrunk and grown again, one middle layer short.
    for (nth, sizes) in [
        [8 * mib, 8 * mib, 8 * mib, 8 * mib],
        [4 * mib + 512, 6 * mib, 6 * mib, 9 * mib + 1024],
        [8 * mib, 3 * mib + 4096, 8 * mib, 8 * mib],
        [8 * mib, 8 * mib, 8 * mib, 5 * mib + 512],
    ]
    .into_iter()
    .enumerate()
    {
        let dir = dir.path().join(nth.to_string());
        std::fs::create_dir(&dir).unwrap();
        let options = [
            "compat=0.10,cluster_size=4k",
            "compat=1.1",
            "compat=1.1,extended_l2=on",
            "compat=1.1",
        ];
        let mut images = Vec::new();
        for (level, (size, options)) in sizes.into_iter().zip(options).enumerate() {
            let image = dir.join(format!("{level}.qcow2"));
            let size_text = size.to_string();
            let below = format!("{}.qcow2", level.saturating_sub(1));
            let mut args = vec!["create", "-q", "-f", "qcow2", "-o", options];
            if level > 0 {
                args.extend(["-b", &below, "-F", "qcow2"]);
            }
            args.extend([path(&image), &size_text]);
            run("qemu-img", &args);
            scribble(&image, size, (nth * 10 + level) as u64, None);
            images.push(image);
        }
        let paths: Vec<_> = images.iter().map(|image| image.as_path()).collect();
        for layers in 1..=paths.len() {
            let chain = chain(&paths[..layers]);
            let top = paths[layers - 1];
            assert!(read_all(&chain, 100_000) == content(top), "{nth}: content of {layers} layers");
            let (ours, theirs) = (flat(extents(&chain, layers)), flat(map(top, false)));
            assert_eq!(ours, theirs, "{nth}: map of {layers} layers");
            assert_eq!(extents(&chain, 1), map(top, true), "{nth}: top layer of {layers}");
            if layers > 1 {
                let below = format!("{}.qcow2", layers - 2);
                assert_eq!(chain.layers()[layers - 1].backing_name(), Some(below.as_str()));
            }
        }
    }
}

/// Absent as zero: `qemu-img map` calls zeros behind a short middle layer "not present",
/// although they hide what older layers hold.
fn flat(extents: Vec<Extent>) -> Vec<Extent> {
    let mut flat: Vec<Extent> = Vec::new();
    for mut extent in extents {
        if extent.kind == ExtentKind::Absent {
            extent.kind = ExtentKind::Zero;
        }
        match flat.last_mut() {
            Some(last) if last.kind == extent.kind => last.length += extent.length,
            _ => flat.push(extent),
        }
    }
    flat
}

#[test]
fn a_short_layer_hides_what_lies_below_it() {
    if !qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let [base, middle, top] = ["base", "middle", "top"].map(|name| dir.path().join(name));
    run("qemu-img", &["create", "-q", "-f", "qcow2", path(&base), "8M"]);
    run("qemu-io", &["-c", "write -P 7 0 8M", path(&base)]);
    for (image, below, size) in [(&middle, "base", "3M"), (&top, "middle", "8M")] {
        run(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", path(image), size],
        );
    }
    let chain = chain(&[&base, &middle, &top]);
    assert!(read_all(&chain, 65536) == content(&top));
    let kinds = |top| -> Vec<_> {
        extents(&chain, top).iter().map(|e| (e.offset >> 20, e.length >> 20, e.kind)).collect()
    };
    use ExtentKind::{Absent, Data, Zero};
    assert_eq!(kinds(3), [(0, 3, Data), (3, 5, Zero)]);
    assert_eq!(kinds(2), [(0, 3, Absent), (3, 5, Zero)]);
    assert_eq!(kinds(1), [(0, 8, Absent)]);
}

#[test]
fn a_raw_base_is_told_and_capped() {
    if !qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (base, top) = (dir.path().join("base"), dir.path().join("top"));
    // A guest wrote a qcow2 header into its raw disk; behind the disk lies foreign data.
    let mut bytes = vec![0x5a; 1 << 20];
    bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    std::fs::write(&base, &bytes).unwrap();
    let size = (bytes.len() + 65536).to_string();
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", path(&top), &size]);
    scribble(&top, 1 << 20, 5, None);
    let mut wanted = content(&top);
    bytes.extend([0xff; 4096]);
    std::fs::write(&base, &bytes).unwrap();
    let raw = Layer::open_raw(File::open(&base).unwrap(), 1 << 20).unwrap();
    let chain = Chain::new(vec![raw, layer(&top)]).unwrap();
    assert!(read_all(&chain, 50_000) == wanted);
    let all = extents(&chain, 2);
    assert_eq!(all.last().unwrap().kind, ExtentKind::Zero);
    // Reads may fill the last cluster: zeros behind the disk.
    let chain = Chain::new(vec![Layer::open_raw(File::open(&base).unwrap(), 65536 + 512).unwrap()])
        .unwrap();
    let mut cluster = vec![1; 65536];
    chain.read(&mut cluster, 65536).unwrap();
    assert!(cluster[..512] == bytes[65536..66048] && cluster[512..].iter().all(|b| *b == 0));
    assert!(matches!(chain.read(&mut cluster, 65537), Err(Error::Range { .. })));
    // A raw file shorter than its disk is damage, not zeros.
    wanted.clear();
    let short = Layer::open_raw(wanted, 513);
    assert!(matches!(short.err(), Some(Error::Truncated { .. })));
}

#[test]
fn internal_snapshots_and_bitmaps_are_passed_by() {
    if !qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("a.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", path(&image), "4M"]);
    scribble(&image, 4 << 20, 1, None);
    run("qemu-img", &["snapshot", "-c", "inner", path(&image)]);
    run("qemu-img", &["bitmap", "--add", path(&image), "bits"]);
    scribble(&image, 4 << 20, 2, None);
    let chain = chain(&[&image]);
    assert!(read_all(&chain, 1 << 20) == content(&image));
    assert_eq!(extents(&chain, 1), map(&image, true));
    let header = chain.layers()[0].header().unwrap();
    assert!(header.internal_snapshots == 1 && header.has_bitmaps);
    let report = check(&File::open(&image).unwrap()).unwrap();
    assert!(report.is_clean() && report.limited.is_some(), "{report:?}");
}

#[test]
fn an_image_that_was_not_closed_reads_without_its_refcounts() {
    if !qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("a.qcow2");
    let options = "lazy_refcounts=on";
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, path(&image), "4M"]);
    // Ends by a signal, as a host that loses power does.
    let crash = ["-c", "write -P 9 1M 1M", "-c", "flush", "-c", "abort", path(&image)];
    let mut crashing = std::process::Command::new("qemu-io");
    crashing.args(crash).current_dir(dir.path()).output().unwrap();
    let chain = chain(&[&image]);
    assert!(chain.layers()[0].header().unwrap().dirty());
    assert_eq!(extents(&chain, 1), map(&image, true));
    assert!(read_all(&chain, 65536)[1 << 20..2 << 20].iter().all(|byte| *byte == 9));
    let report = check(&File::open(&image).unwrap()).unwrap();
    assert!(report.is_clean() && report.limited.is_some(), "{report:?}");
}

#[test]
fn the_map_of_a_huge_empty_disk_is_one_extent() {
    if !qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("a.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", path(&image), "1P"]);
    run("qemu-io", &["-c", "write 900T 64k", path(&image)]);
    let chain = chain(&[&image]);
    let all = extents(&chain, 1);
    assert_eq!(all.len(), 3);
    assert_eq!((all[1].offset, all[1].length, all[1].kind), (900 << 40, 65536, ExtentKind::Data));
    assert!(!chain.layers()[0].is_blank().unwrap());
}

#[test]
fn threads_share_a_chain() {
    if !qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("a.qcow2");
    let size = 16u64 << 20;
    let options = "compression_type=zstd,cluster_size=4k";
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, path(&image), "16M"]);
    scribble(&image, size, 3, Some(4096));
    let wanted = Arc::new(content(&image));
    let chain = Arc::new(chain(&[&image]));
    let threads: Vec<_> = (0..4)
        .map(|seed| {
            let (chain, wanted) = (chain.clone(), wanted.clone());
            std::thread::spawn(move || {
                let mut random = StdRng::seed_from_u64(seed);
                for _ in 0..500 {
                    let length = random.random_range(1..200_000);
                    let at = random.random_range(0..wanted.len() - length);
                    let mut buf = vec![0; length];
                    chain.read(&mut buf, at as u64).unwrap();
                    assert!(buf == wanted[at..at + length]);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn hostile_backing_names_are_only_text() {
    if !qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("a.qcow2");
    for name in ["/etc/shadow", "json:{\"driver\":\"nbd\",\"host\":\"evil\"}", "../../../x"] {
        run("qemu-img", &["create", "-q", "-f", "qcow2", path(&image), "1M"]);
        run("qemu-img", &["rebase", "-u", "-b", name, "-F", "raw", path(&image)]);
        let header = Header::read(&File::open(&image).unwrap()).unwrap();
        assert_eq!(header.backing_name.as_deref(), Some(name));
        assert_eq!(header.backing_format.as_deref(), Some("raw"));
        assert!(read_all(&chain(&[&image]), 65536).iter().all(|byte| *byte == 0));
        assert!(chain(&[&image]).layers()[0].is_blank().unwrap());
    }
}
