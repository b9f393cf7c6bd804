//! Round trips, refusals and golden frames.

use std::{collections::BTreeMap, path::PathBuf};

use hvbak_types::Digest;
use proptest::prelude::*;

use super::*;

fn address() -> VolumeAddress {
    VolumeAddress {
        data_center: "00000000-0000-4000-8000-0000000000dc".parse().unwrap(),
        domain: "00000000-0000-4000-8000-00000000005d".parse().unwrap(),
        image: "00000000-0000-4000-8000-000000000001".parse().unwrap(),
        volume: "00000000-0000-4000-8000-000000000002".parse().unwrap(),
    }
}

fn identity() -> FileIdentity {
    FileIdentity { device: 2049, inode: 77, mtime_ns: 1_795_000_000_000_000_000 }
}

fn request(id: u32, op: Op) -> Sealed {
    Encoder::request(&Request { id, op }).unwrap()
}

fn reply(request: u32, answer: Answer) -> Sealed {
    Encoder::answer(&Reply { request, answer }).unwrap()
}

fn clusters() -> Sealed {
    let mut b = ClustersBuilder::default();
    let plain = vec![0x5a; CLUSTER_BYTES];
    b.push(&Cluster { index: 3, digest: Digest([1; 32]), body: Body::Plain(&plain) }).unwrap();
    b.push(&Cluster { index: 4, digest: Digest([2; 32]), body: Body::Zstd(b"frame") }).unwrap();
    b.push(&Cluster { index: 9, digest: Digest([9; 32]), body: Body::Zero { count: 7 } }).unwrap();
    b.push(&Cluster { index: 16, digest: Digest([3; 32]), body: Body::Digest }).unwrap();
    b.seal(7).unwrap()
}

/// One of each message of version 1.
fn samples() -> Vec<(&'static str, Sealed)> {
    let at = address();
    let stats = Stats { user_ms: 10, system_ms: 20, peak_rss: 8 << 20 };
    let totals =
        Totals { clusters: 2, zero_clusters: 7, data_bytes: 131_072, payload_bytes: 65_541 };
    let layer = Layer {
        volume: at.volume,
        image: at.image,
        path: "/rhev/data-center/dc/sd/images/img/vol".into(),
        format: Format::Cow,
        allocation: "SPARSE".into(),
        voltype: "INTERNAL".into(),
        legality: "LEGAL".into(),
        capacity: 1 << 30,
        header_size: 1 << 30,
        parent: None,
        backing_name: None,
        file_size: 196_616,
        allocated: 200_704,
        ctime: Some(1_795_000_000),
        generation: Some(0),
        disk_type: Some("DATA".into()),
        links: 1,
        identity: identity(),
        lv: None,
    };
    let lv = Layer {
        path: "/dev/sd/vol".into(),
        lv: Some(LvFacts {
            uuid: "8WPH3m-ZGO0-j7tK-2kJd-jkqm-Yz1A-abcdef".into(),
            extents: "/dev/mapper/lun0:41-43".into(),
        }),
        ..layer.clone()
    };
    let open = LayerAddress {
        place: Place::Volume(at),
        format: Format::Cow,
        capacity: None,
        identity: Some(identity()),
    };
    let base = LayerAddress {
        place: Place::Path("/rhev/x".into()),
        format: Format::Raw,
        capacity: Some(1 << 30),
        identity: None,
    };
    let tune = Tune { nice: Some(10), low_io: true, rate: Some(100 << 20) };
    let target = Op::Target {
        at,
        format: Format::Raw,
        virtual_size: 1 << 30,
        slice: Some(Slice { offset: 0, length: 1 << 29 }),
        reads: Zeros::Zero,
        guards: Guards::default(),
        check_digests: true,
    };
    let read = Op::Read { offset: 0, length: 1 << 30, options: ReadOptions::default() };
    let located = Located {
        path: "/rhev/x".into(),
        mount: MountKind::Nfs,
        fs: FsKind::Nfs,
        file_size: 1,
        allocated: 512,
        identity: identity(),
        pool_link: true,
    };
    let ready = TargetReady {
        path: "/rhev/x".into(),
        file_size: 196_616,
        allocated: 200_704,
        qcow2_version: Some(3),
        identity: identity(),
    };
    let map = MapIs { data: 1, zero: 2, absent: 3, clusters: 1, pieces: vec![0, 65_536] };
    let end = End { totals, digest: Digest([7; 32]), read_bytes: 9, stats };
    let written = Written {
        totals,
        digest: Digest([7; 32]),
        written_bytes: 131_072,
        file_size: 1 << 30,
        stats,
    };
    let failed = Failed {
        request: 4,
        code: Code::Guard,
        message: "volume is not empty".into(),
        nouns: BTreeMap::from([("volume".into(), at.volume.to_string())]),
    };
    let hello = Hello {
        protocols: vec![1],
        build: "0.1.0".into(),
        features: vec!["file".into()],
        cores: 2,
        uid: 0,
        host_root: String::new(),
    };
    let opened = Opened { virtual_size: 1 << 30, clusters: 16_384, top: 1, direct: true };
    vec![
        ("hello", Encoder::hello(&hello).unwrap()),
        ("choice", Encoder::choice(&Choice { version: Some(1), refuse: None }).unwrap()),
        ("refusal", Encoder::choice(&Choice { version: None, refuse: Some("no".into()) }).unwrap()),
        ("tune", request(1, Op::Tune(tune))),
        ("locate", request(2, Op::Locate { at })),
        ("chain", request(3, Op::Chain { at })),
        ("open", request(4, Op::Open { layers: vec![open, base], top: Some(1) })),
        ("map", request(5, Op::Map { offset: 0, length: 1 << 30, pieces: 2 })),
        ("read", request(6, read)),
        ("close", request(7, Op::Close)),
        ("target", request(8, target)),
        ("finish", request(9, Op::Finish { target: 8, clusters: 2 })),
        ("cancel", request(10, Op::Cancel { request: 6 })),
        ("bye", request(11, Op::Bye)),
        ("done", reply(1, Answer::Done)),
        ("located", reply(2, Answer::Located(located))),
        ("chain-is", reply(3, Answer::Chain(ChainIs { layers: vec![layer] }))),
        ("chain-is-lv", reply(3, Answer::Chain(ChainIs { layers: vec![lv] }))),
        ("opened", reply(4, Answer::Opened(opened))),
        ("map-is", reply(5, Answer::Map(map))),
        ("end", reply(6, Answer::End(end))),
        ("target-ready", reply(8, Answer::Target(ready))),
        ("written", reply(9, Answer::Written(written))),
        ("farewell", reply(11, Answer::Farewell(stats))),
        ("failed", Encoder::failed(&failed).unwrap()),
        ("clusters", clusters()),
    ]
}

/// The frames of a released version never change. `HVBAK_GOLDEN=write` makes new ones.
#[test]
fn golden_frames_of_version_1() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/v1");
    for (name, frame) in samples() {
        let file = dir.join(format!("{name}.bin"));
        if std::env::var_os("HVBAK_GOLDEN").is_some_and(|v| v == "write") {
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(&file, frame.as_bytes()).unwrap();
        }
        let golden = std::fs::read(&file).unwrap();
        assert_eq!(golden, frame.as_bytes(), "{name} is encoded in another way than before");
        let again = decode_one(&golden);
        if matches!(again.kind(), Kind::Answer | Kind::Failed) {
            again.reply().unwrap().ok();
        }
        match again.kind() {
            Kind::Hello => drop(again.hello().unwrap()),
            Kind::Choice => drop(again.choice().unwrap()),
            Kind::Request => drop(again.request().unwrap()),
            Kind::Clusters => assert_eq!(again.clusters().unwrap().stream(), 7),
            Kind::Answer | Kind::Failed => {}
        }
    }
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), samples().len(), "stray golden files");
}

fn decode_one(bytes: &[u8]) -> Frame {
    let mut d = Decoder::without_magic();
    d.push(bytes);
    let Event::Frame(frame) = d.next().unwrap() else { panic!("incomplete") };
    d.finish().unwrap();
    frame
}

#[test]
fn every_way_to_cut_a_stream_gives_the_same_frames() {
    let mut all = MAGIC.to_vec();
    let frames = samples();
    frames.iter().for_each(|(_, f)| all.extend_from_slice(f.as_bytes()));
    for step in [1, 2, 3, 7, 8, 9, 4096, 32_768, 65_537, all.len()] {
        let mut d = Decoder::with_magic();
        let mut got = Vec::new();
        for part in all.chunks(step) {
            d.push(part);
            while let Event::Frame(f) = d.next().unwrap() {
                got.push(f.header().to_vec());
                d.recycle(f.into_buffer());
            }
        }
        d.finish().unwrap();
        assert_eq!(got.len(), frames.len());
        for (g, (name, f)) in got.iter().zip(&frames) {
            assert_eq!(g, decode_one(f.as_bytes()).header(), "{name}, step {step}");
        }
    }
    let mut input = &all[..];
    read_magic(&mut input).unwrap();
    let mut n = 0;
    while let Some(f) = read_frame(&mut input, Vec::new()).unwrap() {
        assert_eq!(f.header(), decode_one(frames[n].1.as_bytes()).header());
        n += 1;
    }
    assert_eq!(n, frames.len());
}

#[test]
fn clusters_survive_the_wire() {
    let frame = decode_one(clusters().as_bytes());
    let view = frame.clusters().unwrap();
    let all: Vec<_> = view.iter().collect();
    assert_eq!((view.len(), all.len(), view.is_empty()), (4, 4, false));
    assert_eq!(all[0].body, Body::Plain(&[0x5a; CLUSTER_BYTES]));
    assert_eq!(all[1].body, Body::Zstd(b"frame"));
    assert_eq!(all[2].body, Body::Zero { count: 7 });
    assert_eq!(all[2].digest, Digest([0; 32]), "a zero run has no digest");
    assert_eq!((all[3].index, all[3].end(), all[3].digest), (16, 17, Digest([3; 32])));
    let mut tally = Tally::of_range(0, 17 * 65_536);
    tally.add(&view).unwrap();
    assert_eq!(tally.totals().zero_clusters, 7);
    assert_eq!(tally.totals().payload_bytes, 65_541);
    assert!(tally.add(&view).is_err(), "again");
    assert!(Tally::of_range(4 * 65_536, 1 << 30).add(&view).is_err(), "before the range");
    assert!(Tally::of_range(0, 16 * 65_536).add(&view).is_err(), "behind the range");
}

#[test]
fn the_builder_refuses_what_the_decoder_would() {
    let d = Digest([0; 32]);
    let plain = [0; CLUSTER_BYTES];
    let check = |bodies: &[(u64, Body<'_>)]| {
        let mut b = ClustersBuilder::default();
        bodies.iter().try_for_each(|&(index, body)| b.push(&Cluster { index, digest: d, body }))
    };
    check(&[(5, Body::Digest), (6, Body::Digest)]).unwrap();
    check(&[(5, Body::Digest), (5, Body::Digest)]).unwrap_err();
    check(&[(0, Body::Zero { count: 2 }), (1, Body::Digest)]).unwrap_err();
    check(&[(0, Body::Zero { count: 0 })]).unwrap_err();
    check(&[(0, Body::Zstd(&[]))]).unwrap_err();
    check(&[(0, Body::Zstd(&plain[..MAX_COMPRESSED + 1]))]).unwrap_err();
    check(&[(0, Body::Plain(&plain[1..]))]).unwrap_err();
    check(&[(u64::MAX, Body::Digest)]).unwrap_err();
    check(&(0..65).map(|i| (i, Body::Digest)).collect::<Vec<_>>()).unwrap_err();
    ClustersBuilder::default().seal(1).unwrap_err();
    let mut full = ClustersBuilder::default();
    for index in 0..64 {
        full.push(&Cluster { index, digest: d, body: Body::Plain(&plain) }).unwrap();
    }
    let sealed = full.seal(1).unwrap();
    assert!(sealed.as_bytes().len() <= MAX_FRAME);
    assert_eq!(decode_one(sealed.as_bytes()).clusters().unwrap().len(), 64);
}

/// A frame with a right checksum around whatever header and bulk.
fn forge(kind: u8, header: &[u8], bulk: &[u8]) -> Vec<u8> {
    let mut out = ((8 + header.len() + bulk.len()) as u32).to_le_bytes().to_vec();
    out.push(kind);
    out.extend_from_slice(&(header.len() as u32).to_le_bytes()[..3]);
    out.extend_from_slice(header);
    out.extend_from_slice(bulk);
    let sum = crc32fast::hash(&out);
    out.extend_from_slice(&sum.to_le_bytes());
    out
}

fn first(bytes: &[u8]) -> Result<Event, WireError> {
    let mut d = Decoder::without_magic();
    d.push(bytes);
    d.next()
}

#[test]
fn hostile_frames_are_errors() {
    let good = forge(3, br#"{"id":1,"op":"bye"}"#, b"");
    assert!(matches!(first(&good).unwrap(), Event::Frame(_)));
    let mut flipped = good.clone();
    flipped[10] ^= 1;
    assert!(matches!(first(&flipped), Err(WireError::Checksum { .. })));
    assert!(matches!(first(&forge(0, b"", b"")), Err(WireError::Kind { kind: 0 })));
    assert!(matches!(first(&forge(99, b"", b"")), Err(WireError::Kind { kind: 99 })));
    assert!(matches!(first(&forge(3, b"{}", b"bulk")), Err(WireError::Length { .. })), "no bulk");
    assert!(matches!(first(&[0; 8]), Err(WireError::Kind { .. })));
    let huge = [0xff, 0xff, 0xff, 0xff, 6, 0, 0, 0];
    assert!(matches!(first(&huge), Err(WireError::Length { .. })));
    let wide = [0xff, 0, 0, 0, 6, 0xff, 0xff, 0xff];
    assert!(matches!(first(&wide), Err(WireError::Length { .. })));
    let short = [7, 0, 0, 0, 4, 0, 0, 0];
    assert!(matches!(first(&short), Err(WireError::Length { .. })), "length below the minimum");

    for header in [&b""[..], b"{", b"[]", b"{\"id\":-1}", br#"{"id":1,"op":"bye","x":1}"#] {
        let frame = decode_one(&forge(3, header, b""));
        assert!(matches!(frame.request(), Err(WireError::Header { .. })), "{header:?}");
        assert!(matches!(frame.hello(), Err(WireError::Unexpected { .. })));
    }
    let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
    assert!(decode_one(&forge(3, &deep, b"")).request().is_err(), "nesting is bounded");

    let mut d = Decoder::without_magic();
    d.push(&flipped);
    assert!(d.next().is_err());
    d.push(&good);
    assert!(d.next().is_err(), "dead after an error");
}

#[test]
fn wrong_tables_are_errors() {
    let table = |count: u32, entries: &[(u64, u32, u32, u8)]| {
        let mut h = 1u32.to_le_bytes().to_vec();
        h.extend_from_slice(&count.to_le_bytes());
        for &(index, kind, length, digest) in entries {
            h.extend_from_slice(&index.to_le_bytes());
            h.extend_from_slice(&kind.to_le_bytes());
            h.extend_from_slice(&length.to_le_bytes());
            h.extend_from_slice(&[digest; 32]);
        }
        h
    };
    let check = |header: Vec<u8>, bulk: &[u8]| {
        decode_one(&forge(6, &header, bulk)).clusters().map(|c| c.iter().count())
    };
    assert_eq!(check(table(1, &[(0, 1, 4, 1)]), b"abcd").unwrap(), 1);
    for (why, header, bulk) in [
        ("empty", table(0, &[]), &b""[..]),
        ("count", table(2, &[(0, 3, 0, 1)]), b""),
        ("count of a full table", table(u32::MAX, &[(0, 3, 0, 1)]), b""),
        ("short payload", table(1, &[(0, 1, 5, 1)]), b"abcd"),
        ("long payload", table(1, &[(0, 1, 3, 1)]), b"abcd"),
        ("order", table(2, &[(1, 3, 0, 1), (0, 3, 0, 1)]), b""),
        ("overlap", table(2, &[(0, 2, 9, 0), (8, 3, 0, 1)]), b""),
        ("kind", table(1, &[(0, 4, 0, 1)]), b""),
        ("zero with digest", table(1, &[(0, 2, 9, 1)]), b""),
        ("empty run", table(1, &[(0, 2, 0, 0)]), b""),
        ("digest with payload", table(1, &[(0, 3, 4, 1)]), b"abcd"),
        ("plain length", table(1, &[(0, 0, 4, 1)]), b"abcd"),
        ("compressed length", table(1, &[(0, 1, 65_025, 1)]), &[0; 65_025]),
        ("index", table(1, &[(u64::MAX, 3, 0, 1)]), b""),
        ("run beyond", table(1, &[((1 << 46) - 1, 2, 2, 0)]), b""),
        ("no table", vec![1, 2, 3], b""),
    ] {
        assert!(matches!(check(header, bulk), Err(WireError::Table { .. })), "{why}");
    }
}

#[test]
fn what_is_no_worker_is_named() {
    let mut d = Decoder::with_magic();
    d.push(b"Welcome to hv1!\n\x1b[31mAll access is logged");
    let e = d.next().unwrap_err();
    assert_eq!(
        e.to_string(),
        "the peer is not an hvbak worker, it said `Welcome to hv1!··[31mAll access is logged`"
    );
    assert!(e.hint().is_some());
    let mut d = Decoder::with_magic();
    d.push(&MAGIC[..3]);
    assert!(matches!(d.next().unwrap(), Event::NeedMore));
    assert!(d.finish().is_err());
    assert!(read_magic(&mut &b"sh: no such file"[..]).is_err());
    assert!(read_magic(&mut &MAGIC[..7]).is_err());
}

#[test]
fn ends_inside_frames_are_errors() {
    let (_, frame) = &samples()[0];
    let whole = frame.as_bytes();
    for cut in 1..whole.len() {
        let mut d = Decoder::without_magic();
        d.push(&whole[..cut]);
        assert!(matches!(d.next().unwrap(), Event::NeedMore));
        assert!(matches!(d.finish(), Err(WireError::Truncated { .. })), "{cut}");
        assert!(matches!(
            read_frame(&mut &whole[..cut], Vec::new()),
            Err(WireError::Truncated { .. })
        ));
    }
}

#[test]
fn versions_are_negotiated_by_message() {
    let mut hello = decode_one(samples()[0].1.as_bytes()).hello().unwrap();
    hello.protocols = vec![9, 1];
    assert_eq!(choose(&hello).unwrap().version, Some(1));
    hello.protocols = vec![2, 3];
    hello.build = "9.9.9\n\u{7}".into();
    let e = choose(&hello).unwrap_err();
    assert_eq!(e.to_string(), "worker 9.9.9 speaks protocol [2, 3], this program speaks [1]");
    let own = parse_version_line(&format!("{}\n", version_line())).unwrap();
    assert!(own.is_usable() && own.build == build_id());
    for line in ["", "hvbak-worker", "hvbak-worker 1 protocols x", "bash 1 protocols 1", "a b c d"]
    {
        assert_eq!(parse_version_line(line), None, "{line}");
    }
    assert!(!parse_version_line("hvbak-worker 9.0 protocols 8,9").unwrap().is_usable());
}

#[test]
fn answers_of_newer_workers_are_read() {
    let text = br#"{"request":4,"code":"brand_new","message":"m","later":[1]}"#;
    let failed = decode_one(&forge(5, text, b"")).reply().unwrap().unwrap_err();
    assert_eq!((failed.code, failed.request), (Code::Other, 4));
    let text =
        br#"{"request":1,"answer":{"farewell":{"user_ms":1,"system_ms":2,"peak_rss":3,"x":4}}}"#;
    decode_one(&forge(4, text, b"")).reply().unwrap().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0u8..9) {
        let mut d = Decoder::with_magic();
        d.push(&bytes);
        let _ = d.next();
        let framed = forge(kind, &bytes, b"");
        if let Ok(Event::Frame(f)) = first(&framed) {
            let _ = (f.hello().is_ok(), f.choice().is_ok(), f.request().is_ok(), f.reply().is_ok());
            if let Ok(c) = f.clusters() {
                prop_assert!(c.iter().all(|c| c.end() > c.index));
            }
        }
    }

    #[test]
    fn mutated_frames_never_panic(which in 0usize..25, at in 0usize..400, with: u8) {
        let (_, frame) = samples().swap_remove(which);
        let mut bytes = frame.as_bytes().to_vec();
        let at = at % bytes.len();
        prop_assume!(bytes[at] != with);
        bytes[at] = with;
        let mut d = Decoder::without_magic();
        d.push(&bytes);
        // A longer length waits for more; everything else is seen.
        match d.next() {
            Ok(Event::Frame(_)) => prop_assert!(false, "a changed byte was not seen"),
            Ok(Event::NeedMore) => prop_assert!(d.finish().is_err()),
            Err(_) => {}
        }
    }
}
