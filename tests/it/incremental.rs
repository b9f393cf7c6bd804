//! Deltas: what they hold, what they stand on, and when a disk is read in full instead.
//!
//! Every test ends in the same way: each point is exported and compared with what the
//! guest had then.

use std::path::PathBuf;

use hvbak_tests::{
    Lab, Story,
    story::{level, same, stored},
};

#[test]
fn deltas_hold_what_changed_and_every_point_is_what_the_guest_had() {
    let mut story = Story::default();
    let first = story.backup("auto");
    assert_eq!(level(&first, "web1_Disk1"), ("full", "no earlier point has kept its snapshot"));
    story.lab.write("web1", "web1_Disk1", (3 << 20) + 100, 70_000, 0x51);
    // Zeros over data, and a discard: they must hide what the full holds.
    story.lab.write("web1", "web1_Disk1", 1 << 20, 1 << 20, 0);
    let discard =
        ["--vm", "web1", "--disk", "web1_data", "--offset", "41943040", "--length", "1048576"];
    story.lab.lab("guest-discard", &discard);
    let second = story.backup("auto");
    assert_eq!(level(&second, "web1_Disk1").0, "incremental");
    assert_eq!(second["level"], "incremental");
    assert!(stored(&second) <= 3, "{second:#}");
    let third = story.backup("incremental");
    assert_eq!(stored(&third), 0, "nothing was written in between");
    story.lab.write("web1", "web1_data", (48 << 20) - 512, 512, 0x52);
    story.backup("auto");
    story.end();
    story.restore_last();
}

#[test]
fn foreign_snapshots_in_between_are_more_layers_and_their_deletion_is_no_harm() {
    let mut story = Story::default();
    story.lab.foreign_snapshot("web1", "before all");
    story.backup("auto");
    story.lab.write("web1", "web1_Disk1", 2 << 20, 300_000, 0x61);
    story.lab.foreign_snapshot("web1", "theirs");
    story.lab.write("web1", "web1_Disk1", (2 << 20) + 65_536, 65_536, 0x62);
    story.lab.write("web1", "web1_data", 0, 65_536, 0);
    let second = story.backup("auto");
    assert_eq!(level(&second, "web1_data").0, "incremental");
    story.lab.write("web1", "web1_Disk1", 9 << 20, 65_536, 0x63);
    // Both sides of our own snapshot.
    story.lab.delete_snapshot("web1", "theirs");
    story.lab.delete_snapshot("web1", "before all");
    let third = story.backup("auto");
    assert_eq!(level(&third, "web1_Disk1").0, "incremental");
    assert!(stored(&third) <= 1, "{third:#}");
    story.end();
}

#[test]
fn our_snapshot_deleted_by_hand_means_a_full_that_says_so() {
    let mut story = Story::default();
    story.backup("auto");
    let own = story.lab.own_snapshots("web1");
    assert_eq!(own.len(), 1);
    story.lab.delete_snapshot("web1", &own[0]);
    story.lab.write("web1", "web1_Disk1", 0, 65_536, 0x71);
    let second = story.backup("incremental");
    let (found, why) = level(&second, "web1_Disk1");
    assert_eq!(found, "full");
    assert!(why.contains("gone"), "{why}");
    let point = format!("web1@{}", story.then[1].point);
    story.lab.hvbak(&["show", &point]).exits(0).says("full: ").says(why);
    let third = story.backup("auto");
    assert_eq!(level(&third, "web1_Disk1").0, "incremental");
    story.end();
}

#[test]
fn differentials_stand_on_the_last_full_which_stays() {
    let mut story = Story::default();
    let full = story.backup("full");
    let kept = story.lab.own_snapshots("web1");
    for n in 1..=2u8 {
        story.lab.write("web1", "web1_Disk1", u64::from(n) << 20, 65_536, 0x80 + n);
        let manifest = story.backup("differential");
        assert_eq!(level(&manifest, "web1_Disk1").0, "differential");
        assert_eq!(manifest["parent"], full["point"]);
        assert_eq!(stored(&manifest), u64::from(n), "all since the full");
        assert_eq!(story.lab.own_snapshots("web1"), kept);
    }
    let manifest = story.backup("incremental");
    assert_eq!(manifest["parent"], full["point"]);
    // Its snapshot is an incremental's now: no differential can stand on it.
    let manifest = story.backup("differential");
    assert_eq!(level(&manifest, "web1_Disk1").0, "full");
    story.end();
}

#[test]
fn a_failed_run_keeps_the_old_snapshot_and_the_next_is_incremental() {
    let mut story = Story::default();
    story.backup("auto");
    let kept = story.lab.own_snapshots("web1");
    story.lab.write("web1", "web1_Disk1", 5 << 20, 65_536, 0x91);
    story.lab.fault(&[
        "http",
        "--method",
        "GET",
        "--path",
        "/snapshots/",
        "--status",
        "500",
        "--times",
        "40",
    ]);
    let run = story.run("auto");
    story.lab.fault(&["clear"]);
    assert_ne!(run.code, 0, "{run}");
    story.lab.hvbak(&["cleanup"]).exits(0);
    assert_eq!(story.lab.own_snapshots("web1"), kept);
    let second = story.backup("auto");
    assert_eq!(level(&second, "web1_Disk1").0, "incremental");
    story.end();
}

#[test]
fn without_keep_snapshot_nothing_stays_and_everything_is_full() {
    let mut story = Story::default();
    story.lab.configure(|text| format!("{text}\n[backup]\nkeep_snapshot = false\n"));
    story.backup("auto");
    assert!(story.lab.own_snapshots("web1").is_empty());
    let second = story.backup("auto");
    assert_eq!(level(&second, "web1_Disk1").0, "full");
    story.end();
}

#[test]
fn a_base_that_was_damaged_in_the_repository_is_not_built_upon() {
    let mut story = Story::default();
    story.backup("auto");
    let id = story.disk_id("web1_data");
    let vm = story.lab.path("repository/vms").join(story.lab.vm_id("web1"));
    let image = vm.join(&story.then[0].point).join(format!("{id}.qcow2"));
    hvbak_tests::damage::cut(&image, 65_536);
    story.then.clear();
    let second = story.backup("auto");
    assert_eq!(level(&second, "web1_data").0, "full");
    assert_eq!(level(&second, "web1_Disk1").0, "incremental");
    let point = format!("web1@{}", story.then[0].point);
    story.lab.hvbak(&["verify", &point]).exits(0);
}

fn preview_and_commit(lab: &Lab, description: &str) {
    let id = lab.snapshot("web1", description)["id"].as_str().unwrap().to_owned();
    lab.act("web1", "stop", "");
    lab.await_status("web1", "down");
    lab.act("web1", "previewsnapshot", &format!("<snapshot id=\"{id}\"/>"));
    lab.write("web1", "web1_Disk1", 30 << 20, 65_536, 0xc1);
    let run = lab.hvbak(&["backup", "--vm", "web1"]);
    assert_ne!(run.code, 0, "a previewed VM is left out: {run}");
    lab.act("web1", "commitsnapshot", "");
    lab.act("web1", "start", "");
    lab.await_status("web1", "up");
}

#[test]
fn commit_to_before_our_snapshot_means_a_full_and_to_after_it_does_not() {
    let mut story = Story::default();
    story.lab.foreign_snapshot("web1", "long ago");
    story.lab.write("web1", "web1_Disk1", 1 << 20, 65_536, 0xb1);
    story.backup("auto");
    story.lab.write("web1", "web1_Disk1", 2 << 20, 65_536, 0xb2);
    story.lab.foreign_snapshot("web1", "yesterday");
    story.lab.write("web1", "web1_Disk1", 3 << 20, 65_536, 0xb3);
    preview_and_commit(&story.lab, "yesterday");
    let second = story.backup("auto");
    assert_eq!(level(&second, "web1_Disk1").0, "incremental");
    preview_and_commit(&story.lab, "long ago");
    let third = story.backup("auto");
    let (found, why) = level(&third, "web1_Disk1");
    assert_eq!(found, "full", "{why}");
    story.end();
}

#[test]
fn a_volume_that_is_illegal_stops_the_backup_by_name() {
    let mut story = Story::default();
    story.backup("auto");
    let kept = story.lab.own_snapshots("web1");
    story.lab.write("web1", "web1_data", 7 << 20, 65_536, 0xe1);
    let bottom = story.lab.volumes("web1", "web1_data").pop().unwrap();
    let meta = PathBuf::from(format!("{}.meta", bottom.display()));
    let good = std::fs::read_to_string(&meta).unwrap();
    std::fs::write(&meta, good.replace("LEGALITY=LEGAL", "LEGALITY=ILLEGAL")).unwrap();
    let run = story.run("auto").exits(1);
    run.says("web1").says("ILLEGAL");
    std::fs::write(&meta, good).unwrap();
    assert_eq!(story.lab.own_snapshots("web1"), kept, "the failed run's snapshot is gone");
    let second = story.backup("auto");
    assert_eq!(level(&second, "web1_data").0, "incremental");
    story.end();
}

#[test]
fn a_thin_vm_never_reads_its_template_again() {
    let lab = Lab::standard();
    lab.write("thin1", "thin1_Disk1", 1 << 20, 65_536, 0x66);
    lab.hvbak(&["backup", "--vm", "thin1"]).exits(0);
    lab.write("thin1", "thin1_Disk1", 2 << 20, 65_536, 0x67);
    let reference = lab.save("thin1", "thin1_Disk1");
    let run = lab.json(&["backup", "--vm", "thin1"]).exits(0);
    let started = run.of("disk-started");
    assert_eq!(started[0]["level"], "incremental", "{run}");
    let out = lab.scratch("thin");
    std::fs::create_dir_all(&out).unwrap();
    let to = out.to_str().unwrap();
    lab.hvbak(&["export", "thin1", "--format", "raw", "--output", to]).exits(0);
    same("raw", &out.join("thin1_Disk1.raw"), &reference);
    lab.assert_clean();
}

#[test]
fn a_site_that_keeps_no_snapshots_any_more_loses_the_last_one() {
    let mut story = Story::default();
    story.backup("auto");
    assert_eq!(story.lab.own_snapshots("web1").len(), 1);
    story.lab.configure(|text| text + "\n[backup]\nkeep_snapshot = false\n");
    story.lab.write("web1", "web1_data", 6 << 20, 65_536, 0xf1);
    let second = story.backup("auto");
    assert_eq!(level(&second, "web1_data").0, "full");
    assert_eq!(story.lab.own_snapshots("web1"), Vec::<String>::new());
    story.end();
}
