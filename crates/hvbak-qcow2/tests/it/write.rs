//! Writing: every image passes `qemu-img check` and holds what was put.

use std::{
    fs::File,
    io,
    path::Path,
    sync::{Arc, Mutex},
};

use hvbak_qcow2::{
    Backing, BackingFormat, Compression, Error, ReadAt, WriteAt, Writer, WriterOptions, check,
};
use hvbak_types::CLUSTER_SIZE;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::support::*;

fn options(virtual_size: u64, compression: Option<Compression>) -> WriterOptions {
    WriterOptions { virtual_size, backing: None, compression }
}

fn create(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap()
}

fn frame(data: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(data, 1).unwrap()
}

/// Guest clusters of mixed compressibility; the last one of the disk may be short.
fn cluster(random: &mut StdRng, size: u64, index: u64) -> Vec<u8> {
    let mut data = vec![0; 65536];
    match random.random_range(0..3) {
        0 => random.fill(&mut data[..]),
        1 => random.fill(&mut data[..20_000]),
        _ => random.fill(&mut data[..300]),
    }
    let inside = (size - index * CLUSTER_SIZE).min(CLUSTER_SIZE) as usize;
    data[inside..].fill(0);
    data
}

/// Both checkers are content with the image.
fn sound(image: &Path) {
    run("qemu-img", &["check", path(image)]);
    let report = check(&File::open(image).unwrap()).unwrap();
    assert!(report.is_clean() && report.leaks == 0 && report.limited.is_none(), "{report:?}");
    let length = std::fs::metadata(image).unwrap().len();
    assert!(report.image_end_offset <= length && length.is_multiple_of(CLUSTER_SIZE));
}

/// Puts a random part of the clusters in random order; gives the content.
fn fill(writer: &mut Writer<File>, guest: &mut [u8], seed: u64, part: f64, zeros: bool) {
    let mut random = StdRng::seed_from_u64(seed);
    let size = guest.len() as u64;
    let mut order: Vec<u64> = (0..size.div_ceil(CLUSTER_SIZE)).collect();
    order.shuffle(&mut random);
    for index in order {
        if !random.random_bool(part) {
            continue;
        }
        let start = (index * CLUSTER_SIZE) as usize;
        let end = guest.len().min(start + 65536);
        if zeros && random.random_bool(0.3) {
            writer.put_zero(index, 1).unwrap();
            guest[start..end].fill(0);
            continue;
        }
        let data = cluster(&mut random, size, index);
        guest[start..end].copy_from_slice(&data[..end - start]);
        let packed = frame(&data);
        if packed.len() < 65_024 {
            writer.put_compressed(index, &packed).unwrap();
        } else {
            writer.put_data(index, &data).unwrap();
        }
    }
}

#[test]
fn clusters_in_any_order_make_a_sound_image() {
    if !qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("a.qcow2");
    for (seed, size) in [512u64, 65536, 1 << 20, (20 << 20) + 512, 40 << 20].into_iter().enumerate()
    {
        for part in [0.0, 0.1, 1.0] {
            let mut writer =
                Writer::create(create(&image), options(size, Some(Compression::Zstd))).unwrap();
            let mut guest = vec![0; size as usize];
            fill(&mut writer, &mut guest, seed as u64, part, true);
            let summary = writer.finish().unwrap();
            assert_eq!(summary.file_size, std::fs::metadata(&image).unwrap().len());
            sound(&image);
            assert!(content(&image) == guest, "size {size}, part {part}");
            let chain = chain(&[&image]);
            assert!(read_all(&chain, 1 << 20) == guest);
            let report = check(&File::open(&image).unwrap()).unwrap();
            assert_eq!(report.data_clusters, summary.data_clusters);
            assert_eq!(report.compressed_clusters, summary.compressed_clusters);
        }
    }
}

#[test]
fn packing_wastes_little() {
    if !qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("a.qcow2");
    let size = 64u64 << 20;
    let mut writer =
        Writer::create(create(&image), options(size, Some(Compression::Zstd))).unwrap();
    fill(&mut writer, &mut vec![0; size as usize], 9, 1.0, false);
    let summary = writer.finish().unwrap();
    sound(&image);
    let tables = 6 * CLUSTER_SIZE;
    assert!(
        summary.file_size <= summary.payload_bytes + summary.payload_bytes / 25 + tables,
        "{summary:?}"
    );
}

#[test]
fn a_delta_names_its_parent_and_hides_it_with_zeros() {
    if !qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("p1")).unwrap();
    std::fs::create_dir_all(dir.path().join("p2")).unwrap();
    let (full, delta) = (dir.path().join("p1/d.qcow2"), dir.path().join("p2/d.qcow2"));
    let (old, new) = ((10u64 << 20) + 512, 14u64 << 20);
    let mut guest = vec![0; old as usize];
    let mut writer = Writer::create(create(&full), options(old, Some(Compression::Zstd))).unwrap();
    fill(&mut writer, &mut guest, 1, 0.8, false);
    writer.finish().unwrap();

    let backing = Backing {
        name: "../p1/d.qcow2".into(),
        format: BackingFormat::Qcow2,
        virtual_size: Some(old),
    };
    let options = WriterOptions {
        virtual_size: new,
        backing: Some(backing),
        compression: Some(Compression::Zstd),
    };
    guest.resize(new as usize, 0);
    let mut writer = Writer::create(create(&delta), options).unwrap();
    // The second half of the disk is explicit zeros, far over the parent's end.
    let half = new / 2 / CLUSTER_SIZE;
    fill(&mut writer, &mut guest[..(new / 2) as usize], 2, 0.4, true);
    writer.put_zero(half, new / CLUSTER_SIZE - half).unwrap();
    guest[(new / 2) as usize..].fill(0);
    writer.finish().unwrap();
    sound(&delta);
    assert!(content(&delta) == guest);
    let chain = chain(&[&full, &delta]);
    assert!(read_all(&chain, 77_777) == guest);
    assert_eq!(extents(&chain, 1), map(&delta, true));
    assert_eq!(chain.layers()[1].backing_name(), Some("../p1/d.qcow2"));
    let info = run("qemu-img", &["info", "-U", path(&delta)]);
    assert!(info.contains("backing file format: qcow2") && info.contains("compression type: zstd"));
    let report = check(&File::open(&delta).unwrap()).unwrap();
    // Behind the parent's end (cluster 161) zeros need no entry.
    assert!(report.zero_clusters < (old.div_ceil(CLUSTER_SIZE) - half) + half);
}

#[test]
fn zlib_and_plain_images_for_old_hypervisors() {
    if !qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("a.qcow2");
    let mut writer =
        Writer::create(create(&image), options(4 << 20, Some(Compression::Zlib))).unwrap();
    let mut guest = vec![0; 4 << 20];
    // A stored deflate block is larger than its input, so pack what is nearly nothing.
    for index in [3u64, 1, 40] {
        let data = vec![index as u8; 65536];
        let mut packed = Vec::with_capacity(70_000);
        flate2::Compress::new(flate2::Compression::fast(), false)
            .compress_vec(&data, &mut packed, flate2::FlushCompress::Finish)
            .unwrap();
        writer.put_compressed(index, &packed).unwrap();
        guest[index as usize * 65536..][..65536].copy_from_slice(&data);
    }
    writer.finish().unwrap();
    sound(&image);
    assert!(content(&image) == guest && read_all(&chain(&[&image]), 65536) == guest);

    let mut writer = Writer::create(create(&image), options(4 << 20, None)).unwrap();
    writer.put_data(63, &[7; 65536]).unwrap();
    assert!(matches!(writer.put_compressed(1, &frame(&[1; 65536])), Err(Error::Payload { .. })));
    writer.finish().unwrap();
    sound(&image);
    let info = run("qemu-img", &["info", path(&image)]);
    assert!(info.contains("compat: 1.1") && info.contains("compression type: zlib"));
}

#[test]
fn wrong_use_is_refused_and_harms_nothing() {
    let out = Arc::new(Mutex::new(Vec::new()));
    let mut writer =
        Writer::create(out.clone(), options((1 << 20) + 512, Some(Compression::Zstd))).unwrap();
    let good = frame(&[1; 65536]);
    writer.put_compressed(3, &good).unwrap();
    assert!(matches!(writer.put_compressed(3, &good), Err(Error::Duplicate { cluster: 3 })));
    assert!(matches!(writer.put_data(3, &[0; 65536]), Err(Error::Duplicate { cluster: 3 })));
    assert!(matches!(writer.put_data(17, &[0; 65536]), Err(Error::Range { .. })));
    assert!(matches!(writer.put_data(u64::MAX, &[0; 65536]), Err(Error::Range { .. })));
    assert!(matches!(writer.put_zero(16, 2), Err(Error::Range { .. })));
    assert!(matches!(writer.put_zero(1, u64::MAX), Err(Error::Range { .. })));
    for bad in [&[0; 65535][..], &[]] {
        assert!(matches!(writer.put_data(4, bad), Err(Error::Payload { .. })));
    }
    let mut two = good.clone();
    two.extend(&good);
    let short = frame(&[1; 65535]);
    for bad in [&good[..good.len() - 1], &two, &[0; 300], &short, &[1; 70_000], &[]] {
        assert!(matches!(writer.put_compressed(4, bad), Err(Error::Payload { .. })));
    }
    writer.put_data(4, &[9; 65536]).unwrap();
    let summary = writer.finish().unwrap();
    assert_eq!((summary.data_clusters, summary.compressed_clusters), (1, 1));
    let report = check(&out).unwrap();
    assert!(report.is_clean() && report.leaks == 0);

    let long = Backing { name: "x".repeat(1024), format: BackingFormat::Raw, virtual_size: None };
    for options in [
        options(513, None),
        options((2 << 50) + 512, None),
        options(u64::MAX, None),
        WriterOptions { backing: Some(long), ..options(512, None) },
        WriterOptions {
            backing: Some(Backing {
                name: String::new(),
                format: BackingFormat::Raw,
                virtual_size: None,
            }),
            ..options(512, None)
        },
    ] {
        let created = Writer::create(Mutex::new(Vec::new()), options);
        assert!(matches!(created.err(), Some(Error::Options { .. })));
    }
}

/// Storage that is full after some bytes.
struct Full(Mutex<Vec<u8>>, u64);

impl ReadAt for Full {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buf, offset)
    }
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
}

impl WriteAt for Full {
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if offset + buf.len() as u64 > self.1 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.write_at(buf, offset)
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_unfinished_image_is_none_wherever_the_storage_ends() {
    let limits = (0..40).map(|n| n * CLUSTER_SIZE);
    for limit in limits {
        let out = Arc::new(Full(Mutex::new(vec![0xff; 100]), limit));
        let made = Writer::create(out.clone(), options(4 << 20, None)).and_then(|mut writer| {
            for index in 0..30 {
                writer.put_data(index, &[3; 65536])?;
            }
            writer.finish()
        });
        match made {
            Ok(summary) => {
                assert!(summary.file_size <= limit);
                assert!(check(&out).unwrap().is_clean());
            }
            Err(Error::Write { source, .. }) => {
                assert_eq!(source.kind(), io::ErrorKind::StorageFull);
                assert!(check(&out).is_err(), "limit {limit}: an unfinished image opens");
            }
            Err(other) => panic!("{other}"),
        }
    }
}

/// A file that takes zeros as holes, for large images without large writes.
struct Holes(File);

impl ReadAt for Holes {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        ReadAt::read_at(&self.0, buf, offset)
    }
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
}

impl WriteAt for Holes {
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let end = offset + buf.len() as u64;
        if end > self.0.size()? {
            self.0.set_len(end)?;
        }
        if buf.chunks(4096).all(|part| part == &[0; 4096][..part.len()]) {
            return Ok(());
        }
        WriteAt::write_at(&self.0, buf, offset)
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn refcount_blocks_of_a_large_file() {
    if !qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("a.qcow2");
    let clusters = 3 * 32768 + 500;
    let mut writer = Writer::create(
        Holes(create(&image)),
        options(clusters * CLUSTER_SIZE, Some(Compression::Zstd)),
    )
    .unwrap();
    let (zero, packed) = (vec![0; 65536], frame(&[5; 65536]));
    for index in 0..clusters {
        if index % 700 == 3 {
            writer.put_compressed(index, &packed).unwrap();
        } else {
            writer.put_data(index, &zero).unwrap();
        }
    }
    let summary = writer.finish().unwrap();
    assert!(summary.file_size > 3 * (2 << 30));
    sound(&image);
}

#[test]
fn tables_that_leave_memory_come_back() {
    if !qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("a.qcow2");
    // 300 tables of 512 MiB; 256 are kept.
    let size = 300 * (512u64 << 20);
    let mut writer =
        Writer::create(Holes(create(&image)), options(size, Some(Compression::Zstd))).unwrap();
    let packed: Vec<_> = (0..4u8).map(|round| frame(&[round + 1; 65536])).collect();
    for (round, packed) in packed.iter().enumerate() {
        for table in 0..300u64 {
            let table = if round % 2 == 0 { table } else { 299 - table };
            writer.put_compressed(table * 8192 + round as u64 * 17, packed).unwrap();
        }
    }
    for table in [0, 299, 100] {
        let twice = writer.put_compressed(table * 8192 + 17, &packed[0]);
        assert!(matches!(twice, Err(Error::Duplicate { .. })));
    }
    let summary = writer.finish().unwrap();
    assert_eq!(summary.compressed_clusters, 1200);
    sound(&image);
    let chain = chain(&[&image]);
    let mut buf = vec![0; 65536];
    for table in 0..300u64 {
        for round in 0..4u64 {
            chain.read(&mut buf, (table * 8192 + round * 17) * CLUSTER_SIZE).unwrap();
            assert!(buf.iter().all(|byte| u64::from(*byte) == round + 1));
        }
    }
}

#[test]
fn an_image_grows_in_place_over_an_older_one() {
    if !qemu() {
        return;
    }
    // Restore: the volume holds a fresh qcow2 that the engine made.
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("a.qcow2");
    run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path(&image), "8M"],
    );
    let file = File::options().read(true).write(true).open(&image).unwrap();
    let mut writer = Writer::create(file, options(8 << 20, None)).unwrap();
    writer.put_data(5, &[1; 65536]).unwrap();
    writer.finish().unwrap();
    sound(&image);
    let mut guest = vec![0; 8 << 20];
    guest[5 * 65536..6 * 65536].fill(1);
    assert!(content(&image) == guest);
}
