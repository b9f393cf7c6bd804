//! Broken peers: the worker ends or complains, never hangs, never panics.

use std::{process::Command, time::Duration};

use hvbak_wire::{Answer, Choice, Code, Format, Kind, Op, ReadOptions, Tune};

use crate::support::{MIB, Tree, Worker};

fn big_disk(tree: &Tree) -> crate::support::Volume {
    let v = tree.disk(Format::Raw, 256 * MIB);
    tree.io(&v, &["write -P 5 0 256M"]);
    v
}

fn start_read(tree: &Tree) -> (Worker, u32) {
    let v = big_disk(tree);
    let mut worker = Worker::start(tree.dir.path());
    worker.ask(Op::Open { layers: vec![tree.layer(&v)], top: None }).unwrap();
    let options = ReadOptions { compression: None, ..ReadOptions::default() };
    let id = worker.request(Op::Read { offset: 0, length: u64::MAX, options });
    assert_eq!(worker.frame().kind(), Kind::Clusters);
    (worker, id)
}

#[test]
fn end_of_input_amid_a_read_ends_the_worker() {
    let tree = Tree::nfs();
    // Nobody drains its output any more.
    let (worker, _) = start_read(&tree);
    assert!(worker.end().success());
    // Somebody does.
    let (mut worker, _) = start_read(&tree);
    drop(worker.stdin.take());
    worker.drain();
    worker.wait(Duration::from_secs(10));
}

#[test]
fn end_of_input_amid_a_write_ends_the_worker() {
    let tree = Tree::nfs();
    let v = tree.disk(Format::Raw, 16 * MIB);
    let mut worker = Worker::start(tree.dir.path());
    let op = crate::support::target(tree.at(&v), Format::Raw, 16 * MIB, hvbak_wire::Zeros::Zero);
    let id = worker.request(op);
    assert!(worker.frame().reply().unwrap().is_ok());
    worker.write(id, &[(0, vec![1; 65_536])], false);
    assert!(worker.end().success());
}

#[test]
fn a_closed_output_ends_the_worker() {
    let tree = Tree::nfs();
    let v = big_disk(&tree);
    let mut worker = Worker::start(tree.dir.path());
    worker.ask(Op::Open { layers: vec![tree.layer(&v)], top: None }).unwrap();
    let options = ReadOptions::default();
    worker.request(Op::Read { offset: 0, length: u64::MAX, options });
    let stdin = worker.stdin.take();
    let mut child = std::mem::replace(&mut worker.child, Command::new("true").spawn().unwrap());
    drop(worker);
    let start = std::time::Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(10), "the worker does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(stdin);
}

#[test]
fn a_cancelled_read_leaves_the_session_usable() {
    let tree = Tree::nfs();
    let (mut worker, id) = start_read(&tree);
    worker.request(Op::Cancel { request: id });
    let failed = loop {
        let frame = worker.frame();
        if frame.kind() != Kind::Clusters {
            break frame.reply().unwrap().unwrap_err();
        }
    };
    assert_eq!((failed.request, failed.code), (id, Code::Cancelled));
    let (back, _) = worker.read(0, MIB, ReadOptions::default()).unwrap();
    assert_eq!(back.data.len(), 16);
}

#[test]
fn a_rate_is_kept() {
    let tree = Tree::nfs();
    let v = big_disk(&tree);
    let mut worker = Worker::start(tree.dir.path());
    let tune = Tune { nice: Some(10), low_io: true, rate: Some(16 * MIB) };
    assert_eq!(worker.ask(Op::Tune(tune)), Ok(Answer::Done));
    worker.ask(Op::Open { layers: vec![tree.layer(&v)], top: None }).unwrap();
    let start = std::time::Instant::now();
    worker.read(0, 16 * MIB, ReadOptions::default()).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(700), "{:?}", start.elapsed());
}

#[test]
fn broken_streams_end_the_worker() {
    let tree = Tree::nfs();
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 64],
        &[0; 64],
        &[8, 0, 0, 0, 3, 0, 0, 0, 1, 2, 3, 4],
        &[12, 0, 0],
    ] {
        let mut worker = Worker::start(tree.dir.path());
        worker.raw(bytes);
        let status = worker.end();
        assert_eq!(status.code(), Some(1), "{bytes:?}");
    }
    // A frame out of place, a wrong version, a refusal, silence.
    let choice = Choice { version: Some(1), refuse: None };
    let mut worker = Worker::start(tree.dir.path());
    worker.send(&hvbak_wire::Encoder::choice(&choice).unwrap());
    assert_eq!(worker.end().code(), Some(1));
    let choice = Choice { version: Some(7), refuse: None };
    assert_eq!(Worker::start_with(tree.dir.path(), &choice).end().code(), Some(1));
    let choice = Choice { version: None, refuse: Some("too old".into()) };
    assert_eq!(Worker::start_with(tree.dir.path(), &choice).end().code(), Some(0));
    assert_eq!(Worker::start_silent(tree.dir.path()).end().code(), Some(0));
}

#[test]
fn unreadable_requests_are_answered_by_their_id() {
    let tree = Tree::nfs();
    let mut worker = Worker::start(tree.dir.path());
    for (json, id) in [
        (&br#"{"id":5,"op":{"make_coffee":{}}}"#[..], 5),
        (br#"{"id":6,"op":"bye","guard":true}"#, 6),
        (br#"{"id":7,"op":{"locate":{"at":{"data_center":"../.."}}}}"#, 7),
        (br#"{"op":"bye"}"#, 0),
    ] {
        // Kind 3 with a right checksum, by way of a hello that is renamed.
        let mut frame = ((8 + json.len()) as u32).to_le_bytes().to_vec();
        frame.push(3);
        frame.extend_from_slice(&(json.len() as u32).to_le_bytes()[..3]);
        frame.extend_from_slice(json);
        let sum = crc32(&frame);
        frame.extend_from_slice(&sum.to_le_bytes());
        worker.raw(&frame);
        let failed = worker.frame().reply().unwrap().unwrap_err();
        assert_eq!((failed.request, failed.code), (id, Code::BadRequest));
    }
    assert!(matches!(worker.ask(Op::Bye), Ok(Answer::Farewell(_))));
}

/// CRC-32 (IEEE), bit by bit: an implementation of its own beside the one under test.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

#[test]
fn the_command_line() {
    let run = |arguments: &[&str]| {
        let out =
            Command::new(env!("CARGO_BIN_EXE_hvbak-worker")).args(arguments).output().unwrap();
        (out.status.code(), String::from_utf8(out.stdout).unwrap())
    };
    let (code, text) = run(&["--version"]);
    assert_eq!(code, Some(0));
    assert!(hvbak_wire::parse_version_line(&text).unwrap().is_usable());
    assert_eq!(run(&["--help"]).0, Some(0));
    assert_eq!(run(&["--nonsense"]).0, Some(2));
}
