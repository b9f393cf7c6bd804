//! Hostile and damaged images: an error that names the damage, never a panic or zeros.

use std::sync::Mutex;

use hvbak_qcow2::{Chain, Compression, Error, Header, Layer, Writer, WriterOptions, check};

const K64: usize = 65536;

/// A sound image of 2 MiB: plain 0, zstd 1; header, L1 and its L2 table found by its own words.
fn image() -> Vec<u8> {
    let out = Mutex::new(Vec::new());
    let options = WriterOptions {
        virtual_size: 2 << 20,
        backing: None,
        compression: Some(Compression::Zstd),
    };
    let mut writer = Writer::create(&out, options).unwrap();
    writer.put_data(0, &[0x11; K64]).unwrap();
    writer.put_compressed(1, &zstd::bulk::compress(&[0x22; K64], 1).unwrap()).unwrap();
    writer.finish().unwrap();
    out.into_inner().unwrap()
}

fn word(image: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(image[at..at + 8].try_into().unwrap())
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

fn l1(image: &[u8]) -> usize {
    word(image, 40) as usize
}

fn l2(image: &[u8]) -> usize {
    (word(image, l1(image)) & 0x00ff_ffff_ffff_fe00) as usize
}

/// Reads the first three clusters one by one.
fn read(image: Vec<u8>) -> Result<[Result<u8, Error>; 3], Error> {
    let chain = Chain::new(vec![Layer::open_qcow2(image)?])?;
    Ok([0, 1, 2].map(|cluster| {
        let mut buf = vec![0; K64];
        chain.read(&mut buf, cluster * K64 as u64).map(|()| buf[0])
    }))
}

#[test]
fn the_sound_image_is_sound() {
    let [a, b, c] = read(image()).unwrap();
    assert_eq!((a.unwrap(), b.unwrap(), c.unwrap()), (0x11, 0x22, 0));
    let report = check(&image()).unwrap();
    assert!(report.is_clean() && report.leaks == 0, "{report:?}");
    assert_eq!((report.data_clusters, report.compressed_clusters), (1, 1));
}

#[test]
fn bad_headers_are_refused() {
    let cases: &[(&str, usize, &[u8])] = &[
        ("magic", 0, b"QFI\xfa"),
        ("version 1", 4, &[0, 0, 0, 1]),
        ("version 4", 4, &[0, 0, 0, 4]),
        ("cluster bits 8", 20, &[0, 0, 0, 8]),
        ("cluster bits 22", 20, &[0, 0, 0, 22]),
        ("cluster bits -1", 20, &[255; 4]),
        ("virtual size beyond L1", 24, &[0, 0, 1, 0, 0, 0, 0, 0]),
        ("virtual size -1", 24, &[255; 8]),
        ("AES", 32, &[0, 0, 0, 1]),
        ("LUKS", 32, &[0, 0, 0, 2]),
        ("unknown cipher", 32, &[0, 0, 0, 9]),
        ("L1 of 32 GiB", 36, &[255; 4]),
        ("L1 over 32 MiB", 36, &[0, 0x40, 0, 1]),
        ("no L1", 36, &[0; 4]),
        ("L1 on the header", 40, &[0; 8]),
        ("L1 unaligned", 40, &[0, 0, 0, 0, 0, 1, 0, 8]),
        ("L1 behind the end", 40, &[0, 0, 1, 0, 0, 0, 0, 0]),
        ("L1 offset overflow", 40, &[255, 255, 255, 255, 255, 255, 0, 0]),
        ("refcount table of 256 TiB", 56, &[255; 4]),
        ("refcount table unaligned", 48, &[0, 0, 0, 0, 0, 1, 0, 1]),
        ("external data file", 79, &[0x0c]),
        ("unknown incompatible bit", 79, &[0x28]),
        ("unknown high incompatible bit", 72, &[0x80]),
        ("corrupt mark", 79, &[0x0a]),
        ("zstd bit without zstd byte", 104, &[0]),
        ("zstd byte without zstd bit", 79, &[0]),
        ("unknown compression", 104, &[2]),
        ("refcount order 7", 96, &[0, 0, 0, 7]),
        ("header length 0", 100, &[0; 4]),
        ("header length 72 in version 3", 100, &[0, 0, 0, 72]),
        ("header length beyond the cluster", 100, &[0, 1, 0, 8]),
        ("header length odd", 100, &[0, 0, 0, 113]),
        ("backing name of 1024 bytes", 8, &[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 4, 0]),
        ("backing name behind the cluster", 8, &[0, 0, 0, 0, 0, 0, 255, 255, 0, 0, 0, 9]),
        ("backing name inside the header", 8, &[0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 9]),
        ("backing name overflow", 8, &[255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 9]),
        ("extension of 4 GiB", 116, &[255; 4]),
    ];
    for (name, at, bytes) in cases {
        let mut image = image();
        put(&mut image, *at, bytes);
        let error = Layer::open_qcow2(image).err().unwrap_or_else(|| panic!("{name} was opened"));
        assert!(!matches!(error, Error::Read { .. }), "{name}: {error}");
        assert!(!error.to_string().ends_with('.'), "{error}");
    }
}

#[test]
fn garbage_and_stumps_are_refused() {
    for length in 0..200 {
        assert!(Header::read(&vec![0xaa; length]).is_err());
        assert!(Header::read(&vec![0; length]).is_err());
        assert!(Header::read(&image()[..length].to_vec()).is_err());
    }
}

#[test]
fn bad_table_entries_fail_the_read_they_concern() {
    type Case = (&'static str, usize, u64);
    // (what, which L2 entry, entry); entry 0 is plain, 1 compressed, 2 absent.
    let cases: &[Case] = &[
        ("data unaligned", 0, 1 << 63 | 0x1_0200),
        ("data behind the end", 0, 1 << 63 | 0x7fff_ffff_0000),
        ("data just behind the end", 0, 0x1000_0000),
        ("packed behind the end", 1, 1 << 62 | 0x3f_ffff_ffff_ffff),
        ("packed garbage", 1, 1 << 62),
        ("packed in zeros", 1, 1 << 62 | 0x8000),
    ];
    for (name, entry, value) in cases {
        let mut image = image();
        let at = l2(&image) + entry * 8;
        put(&mut image, at, &value.to_be_bytes());
        let results = read(image.clone()).unwrap();
        for (nth, result) in results.into_iter().enumerate() {
            assert_eq!(result.is_err(), nth == *entry, "{name}, cluster {nth}: {result:?}");
            assert!(result.is_ok_and(|_| true) || nth == *entry);
        }
        // A payload of garbage has a sound place: only the references tell.
        let report = check(&image).unwrap();
        assert!(!report.is_clean(), "{name}: {report:?}");
    }
}

#[test]
fn bad_l1_entries_fail_every_read_below() {
    for value in [0x1_0200u64, 0x7fff_ffff_0000, 0x00ff_ffff_ffff_0000] {
        let mut image = image();
        let at = l1(&image);
        put(&mut image, at, &value.to_be_bytes());
        assert!(read(image.clone()).unwrap().iter().all(Result::is_err), "{value:#x}");
        assert!(!check(&image).unwrap().is_clean());
    }
}

#[test]
fn tables_that_point_at_themselves_are_only_wrong() {
    let sound = image();
    for target in [0, l1(&sound) as u64] {
        let mut image = sound.clone();
        put(&mut image, l1(&sound), &target.to_be_bytes());
        let _ = read(image.clone()).unwrap();
        let report = check(&image).unwrap();
        assert!(target == 0 || !report.is_clean());
        assert!(target != 0 || report.leaks == 3, "{report:?}");
    }
    let mut image = sound.clone();
    put(&mut image, l2(&sound), &(l2(&sound) as u64).to_be_bytes());
    assert!(read(image.clone()).unwrap()[0].is_ok());
    assert!(!check(&image).unwrap().is_clean());
}

#[test]
fn a_truncated_layer_is_an_error_and_not_zeros() {
    let sound = image();
    // Tables lie at the end: every cut before them must fail.
    let last = l2(&sound).max(l1(&sound)) + K64;
    for length in (200..last).step_by(4099).chain([last - 1]) {
        let mut image = sound.clone();
        image.truncate(length);
        if let Ok(results) = read(image) {
            assert!(results.iter().all(Result::is_err), "cut at {length}");
        }
    }
}

#[test]
fn only_the_last_cluster_may_be_short() {
    let sound = image();
    let mut image = sound.clone();
    let end = image.len();
    image.extend([0x33; 1000]);
    let at = l2(&sound);
    put(&mut image, at, &(end as u64).to_be_bytes());
    let chain = Chain::new(vec![Layer::open_qcow2(image.clone()).unwrap()]).unwrap();
    let mut buf = vec![1; K64];
    chain.read(&mut buf, 0).unwrap();
    assert!(buf[..1000] == [0x33; 1000] && buf[1000..].iter().all(|byte| *byte == 0));
    chain.read(&mut buf[..10], 2000).unwrap();
    assert_eq!(buf[..10], [0; 10]);
    put(&mut image, at, &((end + K64) as u64).to_be_bytes());
    assert!(matches!(read(image).unwrap()[0], Err(Error::Truncated { .. })));
}

#[test]
fn wrong_refcounts_are_named() {
    let sound = image();
    let table = word(&sound, 48) as usize;
    let block = word(&sound, table) as usize;
    let host = (word(&sound, l2(&sound)) & 0xff_ffff_ffff_0000) as usize / K64;
    for (count, errors, leaks) in [(0u16, 2, 0), (2, 1, 1), (1, 0, 0)] {
        let mut image = sound.clone();
        put(&mut image, block + host * 2, &count.to_be_bytes());
        let report = check(&image).unwrap();
        assert_eq!((report.errors, report.leaks), (errors, leaks), "{count}: {report:?}");
    }
    for (what, at, bytes) in [
        ("block unaligned", table, 0x1_0200u64),
        ("block behind the end", table, 0x7fff_0000),
        ("block is the L1 table", table, l1(&sound) as u64),
        ("no block", table, 0),
        ("no table", 48, 0x7fff_0000),
    ] {
        let mut image = sound.clone();
        put(&mut image, at, &bytes.to_be_bytes());
        let report = check(&image).unwrap();
        assert!(!report.is_clean(), "{what}");
        // Content does not need refcounts.
        assert!(read(image).unwrap().iter().all(Result::is_ok));
    }
}

#[test]
fn two_entries_of_one_cluster_are_an_overlap() {
    let sound = image();
    let mut image = sound.clone();
    let entry = word(&sound, l2(&sound));
    put(&mut image, l2(&sound) + 16, &entry.to_be_bytes());
    let report = check(&image).unwrap();
    assert!(report.problems.iter().any(|p| p.text.contains("twice")), "{report:?}");
}

#[test]
fn problems_are_counted_beyond_the_list() {
    let sound = image();
    let mut image = sound.clone();
    for nth in 3..8192 {
        put(&mut image, l2(&sound) + nth * 8, &0x10_0000_0000u64.to_be_bytes());
    }
    let report = check(&image).unwrap();
    assert!(report.problems.len() == 1000 && report.errors > 8000);
}

#[test]
fn bombs_and_short_payloads_do_not_inflate() {
    for content in [vec![0; 10 * K64], vec![0; K64 - 1]] {
        let sound = image();
        let mut image = sound.clone();
        let at = image.len();
        let mut packed = zstd::bulk::compress(&content, 1).unwrap();
        packed.resize(1024, 0);
        image.extend(&packed);
        let entry = 1u64 << 62 | 1 << 54 | at as u64;
        put(&mut image, l2(&sound) + 8, &entry.to_be_bytes());
        let error = read(image).unwrap()[1].as_ref().unwrap_err().to_string();
        assert!(error.contains("decompress"), "{error}");
    }
}
