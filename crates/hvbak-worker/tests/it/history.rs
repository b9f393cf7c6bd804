//! Random lives of a disk: whatever the guest, the engine and other people's snapshots did,
//! every point of a backup gives what the guest saw.
//!
//! A history that fails is made smaller and its seed kept in `history_*.regressions`; those
//! worth keeping become plain tests in `history_corpus.rs`. `PROPTEST_CASES` sets how
//! many.

use std::cell::Cell;

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, FileFailurePersistence, TestRunner},
};

use crate::{
    history_steps::{Base, Io, Layer, Shape, Step, What, Wish},
    history_store::History,
};

/// Histories of a run that is not told otherwise: more than 2,000 steps.
const CASES: u32 = 54;

fn layer() -> impl Strategy<Value = Layer> {
    let bits = prop_oneof![3 => Just(16_u32), 2 => Just(12), 1 => Just(21), 3 => 12_u32..=21];
    let shape = prop_oneof![6 => Just(Shape::V3), 1 => Just(Shape::V2), 1 => Just(Shape::Extended)];
    (bits, shape).prop_map(|(cluster_bits, shape)| Layer { cluster_bits, shape })
}

fn qcow2_base() -> impl Strategy<Value = Base> {
    prop_oneof![
        layer().prop_map(Base::Cow),
        (layer(), any::<bool>()).prop_map(|(layer, zstd)| Base::Packed { layer, zstd }),
    ]
}

/// Sectors: anywhere, about the borders of 64 KiB, about the end.
fn place() -> impl Strategy<Value = i32> {
    prop_oneof![
        3 => 0_i32..16_384,
        2 => (0_i32..128, -2_i32..=2).prop_map(|(cluster, by)| cluster * 128 + by),
        1 => -130_i32..0,
    ]
}

fn io() -> impl Strategy<Value = Io> {
    let what = prop_oneof![
        8 => any::<u8>().prop_map(What::Write),
        3 => any::<bool>().prop_map(|unmap| What::Zero { unmap }),
        2 => Just(What::Discard),
    ];
    let sectors =
        prop_oneof![2 => 1_u16..=16, 2 => (1_u16..=4).prop_map(|n| n * 128), 2 => 1_u16..=600];
    (what, place(), sectors).prop_map(|(what, at, sectors)| Io { what, at, sectors })
}

fn step() -> impl Strategy<Value = Step> {
    let wish = prop_oneof![
        1 => Just(Wish::Full),
        5 => Just(Wish::Incremental),
        3 => Just(Wish::Differential),
    ];
    let backup = (wish, layer(), any::<bool>()).prop_map(|(wish, layer, packed)| Step::Backup {
        wish,
        layer,
        packed,
    });
    prop_oneof![
        6 => vec(io(), 1..8).prop_map(Step::Io),
        2 => layer().prop_map(Step::Foreign),
        2 => any::<u8>().prop_map(Step::Delete),
        1 => any::<u8>().prop_map(Step::Commit),
        1 => (1_u32..1_000).prop_map(Step::Extend),
        4 => backup,
    ]
}

#[test]
fn every_point_over_a_raw_base_is_what_the_guest_saw() {
    live(Just(Base::Raw), CASES / 3, "tests/it/history_raw.regressions");
}

#[test]
fn every_point_over_a_qcow2_base_is_what_the_guest_saw() {
    live(qcow2_base(), CASES - CASES / 3, "tests/it/history_qcow2.regressions");
}

/// Runs `cases` histories. The file of seeds lies beside this one; tests run in the
/// directory of their package.
fn live(base: impl Strategy<Value = Base>, cases: u32, seeds: &'static str) {
    let config = Config {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(seeds))),
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(cases),
        max_shrink_iters: 1_000,
        max_shrink_time: 60_000,
        ..Config::default()
    };
    let lives = (base, 2_048_u32..12_000, vec(step(), 8..32));
    let counted = Cell::new((0, 0));
    TestRunner::new(config)
        .run(&lives, |(base, sectors, steps)| {
            let history = History::new(base, sectors).steps(&steps);
            let (actions, deltas) = counted.get();
            counted.set((
                actions + steps.iter().map(weight).sum::<usize>(),
                deltas + history.deltas(),
            ));
            history.finish();
            Ok(())
        })
        .unwrap();
    let (actions, deltas) = counted.get();
    println!("{actions} steps, {deltas} points that are deltas");
    assert!(deltas > 0, "no history made a delta");
}

/// How many things a step does.
fn weight(step: &Step) -> usize {
    match step {
        Step::Io(all) => all.len(),
        _ => 1,
    }
}
