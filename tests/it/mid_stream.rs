//! Snapshots that others delete while a delta is read: the layers are merged under the open
//! files. What was read then is not kept, and the next run is right.

use hvbak_tests::{Story, story::level, wait_for};

/// Noise in the layers that a delta reads: so many MiB, half as many seconds at the rate.
/// They must be more than a merge takes.
pub(crate) fn prepare(story: &mut Story, mib: usize) {
    story.backup("auto");
    story.lab.write_noise("web1", "web1_Disk1", 4 << 20, 1 << 20);
    story.lab.foreign_snapshot("web1", "theirs");
    story.lab.write_noise("web1", "web1_Disk1", 8 << 20, mib << 20);
    slow(story);
}

/// Transfers take seconds.
pub(crate) fn slow(story: &Story) {
    story.lab.configure(|text| format!("{text}\n[transfer]\nrate_limit_mib = 2\n"));
}

/// Bytes of a disk lie in the half-made point.
pub(crate) fn arriving(story: &Story) -> bool {
    let folder = story.lab.path("repository/vms").join(story.lab.vm_id("web1"));
    let list = |dir| std::fs::read_dir(dir).into_iter().flatten().flatten();
    let partial = list(folder).filter(|e| e.file_name().to_string_lossy().starts_with(".partial"));
    partial.flat_map(|e| list(e.path())).any(|e| e.metadata().is_ok_and(|m| m.len() > 2 << 20))
}

/// A delta is read, and in the middle of it somebody deletes a snapshot: the run fails and
/// says that the chain is another one now.
#[track_caller]
pub(crate) fn deleted(story: &Story, description: &str) {
    let points = story.lab.points().len();
    let mut run = story.lab.start(&["backup", "--vm", "web1", "--level", "incremental"]);
    wait_for("the middle of the transfer", || arriving(story) || run.ended());
    story.lab.delete_snapshot("web1", description);
    assert!(!run.ended(), "the merge took longer than the transfer");
    let run = run.wait();
    assert_eq!(run.code, 1, "{run}");
    let run = run.says("web1").says("changed while it was read");
    wait_for("the end of what it left", || story.lab.leftovers(&[]).is_empty());
    assert_eq!(story.lab.points().len(), points, "nothing of it is kept: {run}");
    story.lab.configure(|text| text.replace("rate_limit_mib = 2", "rate_limit_mib = 0"));
}

#[test]
fn a_foreign_snapshot_that_is_deleted_while_a_delta_is_read_spoils_the_run_alone() {
    let mut story = Story::default();
    prepare(&mut story, 12);
    deleted(&story, "theirs");
    let next = story.backup("auto");
    assert_eq!(level(&next, "web1_Disk1").0, "incremental");
    story.end();
    story.restore_last();
}

#[test]
fn our_snapshot_that_is_deleted_while_a_delta_is_read_makes_the_next_a_full() {
    let mut story = Story::default();
    prepare(&mut story, 12);
    let own = story.lab.own_snapshots("web1");
    deleted(&story, &own[0]);
    let next = story.backup("auto");
    let (found, why) = level(&next, "web1_Disk1");
    assert_eq!(found, "full");
    assert!(why.contains("gone"), "{why}");
    story.end();
    story.restore_last();
}
