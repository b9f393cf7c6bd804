//! The log as written, cut off and flipped anywhere.

use super::*;
use crate::storage::Storage;

fn head() -> Head {
    Head { virtual_size: 1 << 30, parent: None, source: serde_json::json!({ "chain": [1, 2] }) }
}

/// A log of three batches: one data cluster, one run of zeros, what was told of them.
fn log(dir: &std::path::Path) -> std::path::PathBuf {
    let image = dir.join("image");
    let storage = std::sync::Arc::new(Storage::create(&image).unwrap());
    let path = dir.join("log");
    let mut progress = Progress::create(&path, &head(), storage, &image).unwrap();
    for n in 0..3 {
        progress.data(n * 10, 65_536 * (n + 1), 100, &Digest([n as u8; 32]));
        progress.zero(n * 10 + 1, 5);
        progress.told(n * 10, 4);
        progress.told(n * 10 + 4, 6);
        progress.commit().unwrap();
    }
    progress.end().unwrap();
    path
}

fn batches(path: &std::path::Path) -> Option<Vec<Vec<Record>>> {
    let mut replay = Replay::open(path).unwrap()?;
    assert_eq!(replay.head(), &head());
    let mut all = Vec::new();
    while let Some(records) = replay.next().unwrap() {
        all.push(records);
    }
    Some(all)
}

fn expected(n: u64) -> Vec<Record> {
    let digest = Digest([n as u8; 32]);
    vec![
        Record::Data { cluster: n * 10, offset: 65_536 * (n + 1), length: 100, digest },
        Record::Zero { cluster: n * 10 + 1, count: 5 },
        Record::Told { cluster: n * 10, count: 10 },
    ]
}

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(batches(&log(dir.path())).unwrap(), [0, 1, 2].map(expected));
    assert!(batches(&dir.path().join("none")).is_none());
}

#[test]
fn cut_off_anywhere_the_whole_batches_before_count_and_the_log_goes_on_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = log(dir.path());
    let whole = std::fs::read(&path).unwrap();
    let batch = START + 3 * RECORD + HASH;
    let first = whole.len() - 3 * batch;
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        let Some(found) = batches(&path) else {
            assert!(length < first, "{length}");
            continue;
        };
        assert_eq!(found.len(), (length - first) / batch, "{length}");
        if length % 37 == 0 {
            let mut replay = Replay::open(&path).unwrap().unwrap();
            while replay.next().unwrap().is_some() {}
            let (length, before) = replay.reached();
            let image = dir.path().join("image");
            let storage = std::sync::Arc::new(Storage::reopen(&image, 0).unwrap());
            let mut log = Progress::reopen(&path, length, before, storage, &image).unwrap();
            log.told(77, 1);
            log.commit().unwrap();
            log.end().unwrap();
            let more = batches(&path).unwrap();
            assert_eq!(more[..found.len()], found);
            assert_eq!(more[found.len()..], [vec![Record::Told { cluster: 77, count: 1 }]]);
        }
    }
}

#[test]
fn a_flipped_byte_ends_the_log_before_its_batch() {
    let dir = tempfile::tempdir().unwrap();
    let path = log(dir.path());
    let whole = std::fs::read(&path).unwrap();
    let batch = START + 3 * RECORD + HASH;
    let first = whole.len() - 3 * batch;
    for at in (0..whole.len()).step_by(3) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        std::fs::write(&path, bytes).unwrap();
        let found = batches(&path).map(|b| b.len());
        assert_eq!(found, at.checked_sub(first).map(|behind| behind / batch), "{at}");
    }
}
