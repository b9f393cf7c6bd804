//! Round trips in random order against a plain map, and files that are not what they say.

use std::collections::BTreeMap;

use hvbak_types::{CLUSTER_SIZE, Digest};
use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

use super::*;

fn digest(n: u64) -> Digest {
    Digest(blake3::hash(&n.to_le_bytes()).into())
}

/// Reads a file back into a map: `Some` digest for data, `None` for zero.
fn content(digests: &Digests) -> BTreeMap<u64, Option<Digest>> {
    let mut map = BTreeMap::new();
    for run in digests.runs() {
        let run = run.unwrap();
        for i in 0..run.count {
            let value = (run.kind == Kind::Data).then(|| digests.digest(run.digest + i).unwrap());
            assert!(map.insert(run.start + i, value).is_none());
        }
    }
    map
}

fn check(clusters: u64, entries: &[(u64, Option<Digest>)]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.digests");
    let mut spool = Spool::new(path.clone());
    for (cluster, digest) in entries {
        assert!(!spool.contains(*cluster));
        assert_eq!(spool.known_in(*cluster, 1), None);
        match digest {
            Some(digest) => spool.put(*cluster, digest).unwrap(),
            None => spool.put_zero(*cluster, 1),
        }
        assert!(spool.contains(*cluster));
    }
    let written = spool.finish(clusters * CLUSTER_SIZE).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(written.blake3.0, *blake3::hash(&bytes).as_bytes());
    assert_eq!(written.sha256, crate::sums::of_bytes(&bytes));
    let digests = Digests::open(&path).unwrap();
    let expected: BTreeMap<_, _> = entries.iter().copied().collect();
    assert_eq!(content(&digests), expected);
    assert_eq!(written.data, expected.values().filter(|v| v.is_some()).count() as u64);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the spool left something");
    for cluster in 0..clusters.min(300) {
        let found = digests.find(cluster).unwrap();
        let found = found.map(|run| {
            (run.kind == Kind::Data)
                .then(|| digests.digest(run.digest + cluster - run.start).unwrap())
        });
        assert_eq!(found, expected.get(&cluster).copied(), "cluster {cluster}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_order_reads_back(kinds in proptest::collection::vec(0u8..3, 0..700), seed: u64) {
        let mut entries: Vec<_> = kinds
            .iter()
            .enumerate()
            .filter(|(_, kind)| **kind > 0)
            .map(|(i, kind)| (i as u64, (*kind == 1).then(|| digest(i as u64))))
            .collect();
        entries.shuffle(&mut StdRng::seed_from_u64(seed));
        check(kinds.len() as u64, &entries);
    }
}

#[test]
fn scattered_clusters_of_a_large_disk_spill_and_read_back() {
    // More blocks than stay in memory, each touched several times.
    let mut rng = StdRng::seed_from_u64(7);
    let clusters = 40 << 30 >> 16;
    let mut numbers: Vec<u64> = (0..12_000).map(|_| rng.random_range(0..clusters)).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.shuffle(&mut rng);
    let entries: Vec<_> = numbers.iter().map(|n| (*n, Some(digest(*n)))).collect();
    check(clusters, &entries);
}

#[test]
fn long_runs_are_one_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.digests");
    let mut spool = Spool::new(path.clone());
    spool.put_zero(5, 1_000_000);
    for cluster in (0..5).rev() {
        spool.put(cluster, &digest(cluster)).unwrap();
    }
    assert_eq!(spool.known_in(0, 2_000_000), Some(0));
    assert_eq!(spool.known_in(1_000_005, 10), None);
    assert_eq!(spool.known_in(1_000_004, 10), Some(1_000_004));
    spool.finish(2_000_000 * CLUSTER_SIZE).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 64 + 2 * 24 + 5 * 32);
    let digests = Digests::open(&path).unwrap();
    assert_eq!((digests.data(), digests.zero()), (5, 1_000_000));
    assert_eq!(digests.find(1_000_004).unwrap().map(|r| r.kind), Some(Kind::Zero));
    assert_eq!(digests.find(1_000_005).unwrap(), None);
}

#[test]
fn a_file_that_lies_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.digests");
    let mut spool = Spool::new(path.clone());
    for cluster in [1, 2, 9] {
        spool.put(cluster, &digest(cluster)).unwrap();
    }
    spool.put_zero(4, 2);
    spool.finish(10 * CLUSTER_SIZE).unwrap();
    let good = std::fs::read(&path).unwrap();
    let damaged = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        matches!(Digests::open(&path), Err(crate::Error::Damaged { .. }))
    };
    for length in 0..good.len() {
        assert!(damaged(&good[..length]), "cut to {length}");
    }
    // Everything before the digests themselves is checked, except the reserved bytes and
    // the exact virtual size (compared with the image and the manifest by the caller).
    let table = 64 + 3 * 24;
    for at in (0..16).chain(24..52).chain(64..table) {
        for bit in [0x01, 0x80] {
            let mut bytes = good.clone();
            bytes[at] ^= bit;
            let survived = !damaged(&bytes);
            // Moving a run a little within the gaps around it is not detectable here; the
            // BLAKE3 in the manifest tells.
            if survived {
                let digests = Digests::open(&path).unwrap();
                assert_eq!(content(&digests).len(), 5, "byte {at}");
            }
        }
    }
    let mut longer = good.clone();
    longer.push(0);
    assert!(damaged(&longer));
    std::fs::write(&path, &good).unwrap();
    assert!(Digests::open(&path).is_ok());
}
