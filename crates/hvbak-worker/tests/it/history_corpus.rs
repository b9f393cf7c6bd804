//! Short histories that are always run: the places where a delta is easily wrong.

use crate::{
    history_steps::{Base, Io, Layer, Shape, Step, What, Wish},
    history_store::History,
};

const KIB: i32 = 2;
const MIB: u32 = 2_048;
const ALL_BASES: [Base; 3] =
    [Base::Raw, Base::Cow(Layer::VDSM), Base::Packed { layer: Layer::VDSM, zstd: true }];

fn io(what: What, at: i32, sectors: i32) -> Io {
    Io { what, at, sectors: sectors as u16 }
}

fn write(seed: u8, at: i32, sectors: i32) -> Step {
    Step::Io(vec![io(What::Write(seed), at, sectors)])
}

fn zero(at: i32, sectors: i32) -> Step {
    Step::Io(vec![io(What::Zero { unmap: true }, at, sectors)])
}

fn backup(wish: Wish) -> Step {
    Step::Backup { wish, layer: Layer::VDSM, packed: true }
}

fn incremental() -> Step {
    backup(Wish::Incremental)
}

fn foreign() -> Step {
    Step::Foreign(Layer::VDSM)
}

/// Runs the history and tells how many of its points had to be deltas.
fn play(base: Base, sectors: u32, steps: &[Step], deltas: usize) {
    let history = History::new(base, sectors).steps(steps);
    assert_eq!(history.deltas(), deltas, "{base:?}");
    history.finish();
}

#[test]
fn zeros_hide_the_data_of_the_parent() {
    for base in ALL_BASES {
        let steps = [
            write(2, 0, 256 * KIB),
            incremental(),
            zero(64 * KIB, 64 * KIB),
            zero(130 * KIB, 3),
            write(0, 192 * KIB, 64 * KIB),
            incremental(),
        ];
        play(base, 2 * MIB, &steps, 1);
    }
}

#[test]
fn discards_over_data_of_the_parent() {
    let discard = |at, sectors| Step::Io(vec![io(What::Discard, at, sectors)]);
    for base in ALL_BASES {
        let steps = [
            write(3, 0, 256 * KIB),
            incremental(),
            discard(60 * KIB, 140 * KIB),
            incremental(),
            write(5, 128 * KIB, 1),
            discard(0, 64 * KIB),
            incremental(),
        ];
        play(base, 2 * MIB, &steps, 2);
    }
}

#[test]
fn an_extended_disk_is_written_at_its_old_unaligned_end() {
    for base in ALL_BASES {
        let steps = [
            write(7, -3, 3),
            incremental(),
            Step::Extend(1),
            incremental(),
            Step::Extend(200),
            write(4, -203, 5),
            incremental(),
            Step::Extend(1_000),
            write(9, -1, 1),
            backup(Wish::Full),
            Step::Extend(77),
            incremental(),
        ];
        play(base, 2 * MIB + 5, &steps, 3);
    }
}

#[test]
fn foreign_snapshots_about_the_kept_one_are_deleted() {
    for base in ALL_BASES {
        // Snapshots, oldest first: foreign 0, kept 1, foreign 2.
        for gone in [&[0][..], &[2], &[0, 1], &[2, 0]] {
            let mut steps = vec![
                write(2, 0, 200 * KIB),
                foreign(),
                write(5, 100 * KIB, 30 * KIB),
                incremental(),
                // Seen only through the foreign snapshot's own layer.
                write(6, 110 * KIB, 9),
                write(7, 600 * KIB, 9),
                foreign(),
                zero(64 * KIB, 64 * KIB),
            ];
            steps.extend(gone.iter().map(|nth| Step::Delete(*nth)));
            steps.extend([write(8, 400 * KIB, 1), incremental(), incremental()]);
            play(base, 2 * MIB, &steps, 2);
        }
    }
}

#[test]
fn going_back_to_before_the_kept_snapshot_is_a_full_and_to_after_it_is_not() {
    for base in ALL_BASES {
        // Snapshots, oldest first: foreign 0, kept 1, foreign 2.
        for (back, deltas) in [(0, 1), (1, 2), (2, 2)] {
            let steps = [
                write(2, 0, 200 * KIB),
                foreign(),
                write(3, 100 * KIB, 64 * KIB),
                incremental(),
                write(4, 300 * KIB, 64 * KIB),
                Step::Extend(300),
                foreign(),
                zero(0, 128 * KIB),
                Step::Commit(back),
                write(5, 310 * KIB, 7),
                incremental(),
                write(6, -9, 9),
                incremental(),
            ];
            play(base, 2 * MIB, &steps, deltas);
        }
    }
}

#[test]
fn without_the_kept_snapshot_it_is_a_full() {
    let steps = [
        write(2, 0, 200 * KIB),
        incremental(),
        write(3, 100 * KIB, 64 * KIB),
        Step::Delete(0),
        incremental(),
        zero(0, 64 * KIB),
        incremental(),
    ];
    play(Base::Raw, 2 * MIB, &steps, 1);
}

#[test]
fn differentials_stand_on_one_full() {
    for base in ALL_BASES {
        let steps = [
            write(2, 0, 300 * KIB),
            backup(Wish::Full),
            write(3, 100 * KIB, 64 * KIB),
            backup(Wish::Differential),
            zero(90 * KIB, 100 * KIB),
            backup(Wish::Differential),
            write(4, 90 * KIB, 1),
            incremental(),
            // The kept point is no full any more.
            backup(Wish::Differential),
        ];
        play(base, 2 * MIB, &steps, 3);
    }
}

#[test]
fn clusters_of_any_size_are_cut_to_the_stored_ones() {
    for cluster_bits in [12, 13, 15, 17, 19, 21] {
        for shape in [Shape::V2, Shape::V3, Shape::Extended] {
            let layer = Layer { cluster_bits, shape };
            let steps = [
                write(3, 0, 300 * KIB),
                Step::Backup { wish: Wish::Full, layer, packed: true },
                // Half of a stored cluster is in the delta, half below.
                write(4, 32 * KIB, 32 * KIB),
                write(5, 100 * KIB, 4 * KIB),
                zero(160 * KIB, 8 * KIB),
                zero(1_024 * KIB, 40 * KIB),
                Step::Backup { wish: Wish::Incremental, layer, packed: false },
                write(6, 65 * KIB, 1),
                incremental(),
            ];
            play(Base::Cow(layer), 3 * MIB + 1, &steps, 2);
        }
    }
}

#[test]
fn compressed_bases_of_any_kind() {
    for cluster_bits in [12, 16, 21] {
        for shape in [Shape::V2, Shape::V3, Shape::Extended] {
            for zstd in [false, true] {
                let base = Base::Packed { layer: Layer { cluster_bits, shape }, zstd };
                let steps = [
                    incremental(),
                    write(4, 32 * KIB, 3),
                    zero(128 * KIB, 64 * KIB),
                    incremental(),
                    write(9, 1_000 * KIB, 100 * KIB),
                    incremental(),
                ];
                play(base, 3 * MIB + 129, &steps, 2);
            }
        }
    }
}
