//! Deltas: what they hold, what they stand on, and when a disk is read in full instead.
//!
//! Every test ends in the same way: each point is exported and compared with what the
//! guest had then.

use std::path::PathBuf;

use hvbak_tests::{Lab, Run, run_tool};
use serde_json::Value;

/// What the guest had on each disk when a point was taken.
pub(crate) struct Then {
    pub(crate) point: String,
    pub(crate) disks: Vec<(&'static str, PathBuf)>,
}

const WEB1: [&str; 2] = ["web1_Disk1", "web1_data"];

/// A lab in which points are taken and remembered.
pub(crate) struct Story {
    pub(crate) lab: Lab,
    pub(crate) then: Vec<Then>,
}

impl Story {
    fn new() -> Self {
        Self::of(Lab::standard())
    }

    /// The same over a lab of the test's.
    pub(crate) fn of(lab: Lab) -> Self {
        lab.fill_web1();
        Self { lab, then: Vec::new() }
    }

    /// Backs `web1` up; gives its manifest.
    #[track_caller]
    pub(crate) fn backup(&mut self, level: &str) -> Value {
        self.backup_disks(level, &WEB1)
    }

    #[track_caller]
    fn backup_disks(&mut self, level: &str, disks: &[&'static str]) -> Value {
        let number = self.then.len();
        let keep = |disk: &&'static str| {
            let saved = self.lab.save("web1", disk);
            let kept = self.lab.path(&format!("then-{number}-{disk}.raw"));
            std::fs::rename(saved, &kept).unwrap();
            (*disk, kept)
        };
        let disks = disks.iter().map(keep).collect();
        let run = self.run(level).exits(0);
        let point = run.result()["done"][0]["point"].as_str().unwrap().to_owned();
        let manifest = self.manifest(&point);
        self.then.push(Then { point, disks });
        manifest
    }

    fn run(&self, level: &str) -> Run {
        self.lab.json(&["backup", "--vm", "web1", "--level", level])
    }

    fn manifest(&self, point: &str) -> Value {
        let vm = self.lab.vm_id("web1");
        let file = self.lab.path("repository").join("vms").join(vm).join(point);
        serde_json::from_slice(&std::fs::read(file.join("manifest.json")).unwrap()).unwrap()
    }

    /// Every point is what the guest had, by qemu-img's own reading of the chain.
    #[track_caller]
    pub(crate) fn end(&self) {
        self.lab.hvbak(&["verify", "--all"]).exits(0);
        for then in &self.then {
            let out = self.lab.scratch(&format!("export-{}", then.point));
            std::fs::create_dir_all(&out).unwrap();
            let point = format!("web1@{}", then.point);
            let to = out.to_str().unwrap();
            self.lab.hvbak(&["export", &point, "--format", "raw", "--output", to]).exits(0);
            for (disk, reference) in &then.disks {
                let exported = out.join(format!("{disk}.raw"));
                same("raw", &exported, reference);
                let id = self.disk(&then.point, disk)["id"].as_str().unwrap().to_owned();
                let folder = self.lab.path("repository/vms").join(self.lab.vm_id("web1"));
                let stored = folder.join(&then.point).join(format!("{id}.qcow2"));
                same("qcow2", &stored, reference);
                run_tool("qemu-img", &["check", stored.to_str().unwrap()]);
            }
        }
        self.lab.assert_clean();
        assert!(self.lab.own_snapshots("web1").len() <= 1);
    }

    fn disk(&self, point: &str, alias: &str) -> Value {
        let manifest = self.manifest(point);
        let disks = manifest["disks"].as_array().unwrap();
        disks.iter().find(|d| d["alias"] == alias).expect("the disk").clone()
    }
}

#[track_caller]
fn same(format: &str, image: &std::path::Path, reference: &std::path::Path) {
    let (image, reference) = (image.to_str().unwrap(), reference.to_str().unwrap());
    run_tool("qemu-img", &["compare", "-f", format, "-F", "raw", image, reference]);
}

/// Level of a disk, and why.
#[track_caller]
pub(crate) fn level<'a>(manifest: &'a Value, alias: &str) -> (&'a str, &'a str) {
    let disks = manifest["disks"].as_array().unwrap();
    let disk = disks.iter().find(|d| d["alias"] == alias).expect("the disk");
    (disk["level"].as_str().unwrap(), disk["reason"].as_str().unwrap())
}

fn stored(manifest: &Value) -> u64 {
    let disks = manifest["disks"].as_array().unwrap();
    disks.iter().map(|d| d["data_clusters"].as_u64().unwrap()).sum()
}

#[test]
fn deltas_hold_what_changed_and_every_point_is_what_the_guest_had() {
    let mut story = Story::new();
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
    // And back into the engine, from the end of the chain.
    let point = format!("web1@{}", story.then[3].point);
    story.lab.hvbak(&["restore", &point, "--name", "back"]).exits(0);
    for (disk, reference) in &story.then[3].disks {
        story.lab.same("back", disk, reference);
    }
    story.lab.assert_clean_but(&["back"]);
}

#[test]
fn foreign_snapshots_in_between_are_more_layers_and_their_deletion_is_no_harm() {
    let mut story = Story::new();
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
    let mut story = Story::new();
    story.backup("auto");
    let own = story.lab.own_snapshots("web1");
    assert_eq!(own.len(), 1);
    story.lab.delete_snapshot("web1", &own[0]);
    story.lab.write("web1", "web1_Disk1", 0, 65_536, 0x71);
    let second = story.backup("incremental");
    let (found, why) = level(&second, "web1_Disk1");
    assert_eq!(found, "full");
    assert!(why.contains("gone"), "{why}");
    let third = story.backup("auto");
    assert_eq!(level(&third, "web1_Disk1").0, "incremental");
    story.end();
}

#[test]
fn differentials_stand_on_the_last_full_which_stays() {
    let mut story = Story::new();
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
    let mut story = Story::new();
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
fn a_disk_that_was_extended_or_added_is_treated_by_itself() {
    let mut story = Story::new();
    story.backup("auto");
    let vm = story.lab.vm_id("web1");
    let disk = story.disk(&story.then[0].point, "web1_data")["id"].as_str().unwrap().to_owned();
    let size = 96u64 << 20;
    let body = format!(
        "<disk_attachment><disk><provisioned_size>{size}</provisioned_size></disk></disk_attachment>"
    );
    story.lab.api("PUT", &format!("/vms/{vm}/diskattachments/{disk}"), &body);
    story.lab.write("web1", "web1_data", size - 65_536, 65_536, 0xa1);
    let second = story.backup("auto");
    assert_eq!(level(&second, "web1_data").0, "incremental");
    assert_eq!(story.disk(&story.then[1].point, "web1_data")["virtual_size"], size);
    story.end();
}

#[test]
fn without_keep_snapshot_nothing_stays_and_everything_is_full() {
    let mut story = Story::new();
    story.lab.configure(|text| format!("{text}\n[backup]\nkeep_snapshot = false\n"));
    story.backup("auto");
    assert!(story.lab.own_snapshots("web1").is_empty());
    let second = story.backup("auto");
    assert_eq!(level(&second, "web1_Disk1").0, "full");
    story.end();
}

#[test]
fn a_base_that_was_damaged_in_the_repository_is_not_built_upon() {
    let mut story = Story::new();
    story.backup("auto");
    let id = story.disk(&story.then[0].point, "web1_data")["id"].as_str().unwrap().to_owned();
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

/// Asks the engine to do something with `web1` and waits until its disks are free.
fn act(lab: &Lab, action: &str, body: &str) {
    let vm = lab.vm_id("web1");
    lab.api("POST", &format!("/vms/{vm}/{action}"), &format!("<action>{body}</action>"));
}

fn status(lab: &Lab, wanted: &str) {
    hvbak_tests::wait_for("the VM's state", || {
        let state = lab.state();
        let vms = state["vms"].as_array().unwrap();
        vms.iter().any(|v| v["name"] == "web1" && v["status"] == wanted)
    });
}

fn snapshot_id(lab: &Lab, description: &str) -> String {
    let state = lab.state();
    let vms = state["vms"].as_array().unwrap().clone();
    let all = vms.iter().flat_map(|v| v["snapshots"].as_array().unwrap().clone());
    let found = all.into_iter().find(|s| s["description"] == description);
    found.expect("the snapshot")["id"].as_str().unwrap().to_owned()
}

fn preview_and_commit(lab: &Lab, description: &str) {
    let id = snapshot_id(lab, description);
    act(lab, "stop", "");
    status(lab, "down");
    act(lab, "previewsnapshot", &format!("<snapshot id=\"{id}\"/>"));
    lab.write("web1", "web1_Disk1", 30 << 20, 65_536, 0xc1);
    let run = lab.hvbak(&["backup", "--vm", "web1"]);
    assert_ne!(run.code, 0, "a previewed VM is left out: {run}");
    act(lab, "commitsnapshot", "");
    act(lab, "start", "");
    status(lab, "up");
}

#[test]
fn commit_to_before_our_snapshot_means_a_full_and_to_after_it_does_not() {
    let mut story = Story::new();
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
fn a_disk_that_moved_to_another_domain_stays_incremental() {
    let seed = hvbak_tests::small();
    let lab = Lab::bare(&seed, &["--hosts", "1", "--domains", "nfs,gluster"]);
    lab.enrol();
    lab.fill_web1();
    let mut story = Story { lab, then: Vec::new() };
    story.backup("auto");
    let disk = story.disk(&story.then[0].point, "web1_data")["id"].as_str().unwrap().to_owned();
    let state = story.lab.state();
    let domains = state["storage_domains"].as_array().expect("domains").clone();
    let target = domains.iter().find(|d| d["name"] == "gluster1").expect("gluster1");
    let body = format!("<action><storage_domain id={}/></action>", target["id"]);
    story.lab.api("POST", &format!("/disks/{disk}/move"), &body);
    hvbak_tests::wait_for("the move", || {
        let state = story.lab.state();
        let disks = state["disks"].as_array().unwrap();
        let found = disks.iter().find(|d| d["id"] == disk.as_str()).unwrap();
        found["domain"] == target["id"] && found["status"] == "ok"
    });
    story.lab.write("web1", "web1_data", 5 << 20, 65_536, 0xd1);
    let second = story.backup("auto");
    assert_eq!(level(&second, "web1_data").0, "incremental");
    assert!(stored(&second) <= 1, "{second:#}");
    story.end();
}

#[test]
fn a_volume_that_is_illegal_or_in_disagreement_stops_the_backup_by_name() {
    let mut story = Story::new();
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
