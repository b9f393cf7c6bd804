//! The decision as a table.

use hvbak_types::SnapshotKind;

use super::*;

fn id<T: std::str::FromStr<Err: std::fmt::Debug>>(n: u8) -> T {
    format!("00000000-0000-4000-8000-0000000000{n:02x}").parse().unwrap()
}

/// All that the decision looks at.
struct Case {
    left: Left,
    wish: Wish,
    base: Option<Base>,
    disks: Vec<DiskId>,
    snapshots: Vec<Snapshot>,
}

fn base(point: &str) -> Base {
    Base {
        point: point.parse().unwrap(),
        snapshot: id(1),
        description: "hvbak:r:p".into(),
        disks: vec![],
    }
}

fn decide(change: impl FnOnce(&mut Case)) -> Result<(), WhyAnew> {
    let left = Left {
        point: "20260102T000000Z".parse().unwrap(),
        snapshot: id(2),
        description: "hvbak:r:n".into(),
        taken: jiff::Timestamp::UNIX_EPOCH,
        age: RESUME_DAYS * 86_400,
        wish: Wish::Auto,
        base: Some("20260101T000000Z".parse().unwrap()),
        disks: vec![id(10), id(11)],
        data_bytes: 0,
    };
    let mut case = Case {
        snapshots: vec![snapshot(1, "hvbak:r:p"), snapshot(2, "hvbak:r:n")],
        left,
        wish: Wish::Auto,
        base: Some(base("20260101T000000Z")),
        disks: vec![id(11), id(10)],
    };
    change(&mut case);
    may_continue(&case.left, case.wish, case.base.as_ref(), &case.disks, &case.snapshots)
}

#[test]
fn only_the_point_that_is_asked_for_now_is_continued() {
    use WhyAnew as W;
    assert_eq!(decide(|_| {}), Ok(()));
    assert_eq!(decide(|c| c.wish = Wish::Full), Err(W::Full));
    let both = |c: &mut Case| (c.wish, c.left.wish) = (Wish::Full, Wish::Full);
    assert_eq!(decide(both), Err(W::Full));
    let both = |c: &mut Case| (c.wish, c.left.wish) = (Wish::Differential, Wish::Differential);
    assert_eq!(decide(both), Ok(()));
    assert_eq!(decide(|c| c.wish = Wish::Differential), Err(W::Wish));
    assert_eq!(decide(|c| c.left.wish = Wish::Full), Err(W::Wish));
    assert_eq!(decide(|c| c.left.age += 1), Err(W::Old));
    assert_eq!(decide(|c| c.base = None), Err(W::Base));
    assert_eq!(decide(|c| c.left.base = None), Err(W::Base));
    assert_eq!(decide(|c| c.base = Some(base("20260102T000000Z"))), Err(W::Base));
    let none = |c: &mut Case| (c.base, c.left.base) = (None, None);
    assert_eq!(decide(none), Ok(()));
    assert_eq!(decide(|c| c.disks.truncate(1)), Err(W::Disks));
    assert_eq!(decide(|c| c.disks.push(id(12))), Err(W::Disks));
    assert_eq!(decide(|c| c.disks[0] = id(12)), Err(W::Disks));
}

#[test]
fn the_snapshot_must_be_there_and_be_ours() {
    use WhyAnew as W;
    assert_eq!(decide(|c| c.snapshots.truncate(1)), Err(W::SnapshotGone));
    // An id that is another snapshot's now, and one of ours with another id.
    assert_eq!(decide(|c| c.snapshots[1].description = "mine".into()), Err(W::SnapshotGone));
    assert_eq!(decide(|c| c.snapshots[1].id = id(3)), Err(W::SnapshotGone));
    let locked = |c: &mut Case| c.snapshots[1].status = Some(SnapshotStatus::Locked);
    assert!(matches!(decide(locked), Err(W::SnapshotState { .. })));
    assert!(matches!(decide(|c| c.snapshots[1].status = None), Err(W::SnapshotState { .. })));
}

fn snapshot(n: u8, description: &str) -> Snapshot {
    Snapshot {
        id: id(n),
        description: description.into(),
        kind: SnapshotKind::Regular,
        status: Some(SnapshotStatus::Ok),
        date: None,
        memory: None,
    }
}
