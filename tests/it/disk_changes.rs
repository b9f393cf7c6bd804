//! What administrators do to disks between two backups: extend, add, unplug, take away and
//! bring back, move to another domain. Each disk is judged by itself, and every point is
//! what the guest had.

use hvbak_tests::{
    Lab, Story, small,
    story::{level, stored},
    wait_for,
};

const ONE: &str = "web1_Disk1";
const TWO: &str = "web1_data";
/// The description that engines give the snapshot of a live migration.
const AUTO: &str = "Auto-generated for Live Storage Migration";

/// Waits until a disk's status is `ok`, in a domain if one is given.
fn settled(lab: &Lab, disk: &str, domain: Option<&str>) {
    wait_for("the disk", || {
        let state = lab.state();
        let found = state["disks"].as_array().into_iter().flatten().find(|d| d["id"] == disk);
        found.is_some_and(|d| d["status"] == "ok" && domain.is_none_or(|id| d["domain"] == id))
    });
}

fn domain_id(lab: &Lab, name: &str) -> String {
    let state = lab.state();
    let mut domains = state["storage_domains"].as_array().into_iter().flatten();
    domains.find(|d| d["name"] == name).unwrap()["id"].as_str().unwrap().to_owned()
}

fn attach(lab: &Lab, vm: &str, disk: &str) {
    let body = format!(
        "<disk_attachment><interface>virtio_scsi</interface><active>true</active><disk id=\"{disk}\"/></disk_attachment>"
    );
    lab.api("POST", &format!("/vms/{}/diskattachments", lab.vm_id(vm)), &body);
}

fn plug(lab: &Lab, disk: &str, active: bool) {
    let body = format!("<disk_attachment><active>{active}</active></disk_attachment>");
    lab.api("PUT", &format!("/vms/{}/diskattachments/{disk}", lab.vm_id("web1")), &body);
}

fn detach(lab: &Lab, vm: &str, disk: &str) {
    lab.api("DELETE", &format!("/vms/{}/diskattachments/{disk}", lab.vm_id(vm)), "");
}

#[test]
fn a_disk_that_was_extended_stays_incremental() {
    let mut story = Story::default();
    story.backup("auto");
    let (vm, disk) = (story.lab.vm_id("web1"), story.disk_id(TWO));
    let size = 96u64 << 20;
    let body = format!(
        "<disk_attachment><disk><provisioned_size>{size}</provisioned_size></disk></disk_attachment>"
    );
    story.lab.api("PUT", &format!("/vms/{vm}/diskattachments/{disk}"), &body);
    story.lab.write("web1", TWO, size - 65_536, 65_536, 0xa1);
    let second = story.backup("auto");
    assert_eq!(level(&second, TWO).0, "incremental");
    assert_eq!(story.disk(&story.then[1].point, TWO)["virtual_size"], size);
    story.end();
    story.restore_last();
}

#[test]
fn a_disk_that_was_added_is_read_in_full_and_the_others_are_not() {
    let mut story = Story::default();
    story.backup("auto");
    let new = "7d0c0d4e-3a51-4f5c-9d3e-5b1f2a6c9e01";
    let domain = domain_id(&story.lab, "nfs1");
    let body = format!(
        "<disk id=\"{new}\"><alias>web1_logs</alias><format>cow</format><provisioned_size>{}</provisioned_size>\
         <storage_domains><storage_domain id=\"{domain}\"/></storage_domains></disk>",
        32 << 20
    );
    story.lab.api("POST", "/disks", &body);
    settled(&story.lab, new, None);
    attach(&story.lab, "web1", new);
    story.lab.write("web1", "web1_logs", 4 << 20, 1 << 20, 0xa2);
    story.lab.write("web1", TWO, 0, 65_536, 0xa3);
    let second = story.backup_disks("auto", &[ONE, TWO, "web1_logs"]);
    let (found, why) = level(&second, "web1_logs");
    assert_eq!(found, "full");
    assert!(why.contains("does not hold the disk"), "{why}");
    assert_eq!((level(&second, ONE).0, level(&second, TWO).0), ("incremental", "incremental"));
    assert_eq!(stored(&second), 17);
    story.lab.write("web1", "web1_logs", 5 << 20, 65_536, 0);
    let third = story.backup_disks("auto", &[ONE, TWO, "web1_logs"]);
    assert_eq!(level(&third, "web1_logs").0, "incremental");
    story.verify();
}

/// No engine merges a disk that a running VM has unplugged, so the snapshot of before, which
/// holds the disk, stays, and all points stand on it until the disk is back.
#[test]
fn a_disk_that_is_unplugged_for_a_while_keeps_the_snapshot_that_holds_it() {
    let mut story = Story::default();
    story.backup("auto");
    let snapshot = story.lab.own_snapshots("web1");
    let disk = story.disk_id(TWO);
    plug(&story.lab, &disk, false);
    for n in 1..=3 {
        story.lab.write("web1", ONE, n << 20, 65_536, 0xb1);
        let (wish, found) = if n == 2 { ("full", "full") } else { ("auto", "incremental") };
        let point = story.backup_disks(wish, &[ONE]);
        assert_eq!(level(&point, ONE).0, found);
        assert!(point["warnings"].to_string().contains("stays until"), "{point:#}");
        assert_eq!(story.lab.own_snapshots("web1"), snapshot);
    }
    plug(&story.lab, &disk, true);
    story.lab.write("web1", TWO, 2 << 20, 65_536, 0xb2);
    let back = story.backup("auto");
    assert_eq!(level(&back, ONE).0, "incremental");
    assert_eq!(level(&back, TWO).0, "incremental");
    assert_ne!(story.lab.own_snapshots("web1"), snapshot);
    let last = story.backup("auto");
    assert_eq!(stored(&last), 0);
    story.end();
    story.restore_last();
}

/// Takes the second disk away from `web1`, writes to it in `db1` and brings it back. The
/// engine allows it only when no snapshot holds the disk.
fn lend(story: &Story, disk: &str) {
    let lab = &story.lab;
    plug(lab, disk, false);
    detach(lab, "web1", disk);
    attach(lab, "db1", disk);
    lab.write("db1", TWO, 10 << 20, 200_000, 0xc1);
    lab.write("db1", TWO, 66_048, 65_536, 0);
    detach(lab, "db1", disk);
    attach(lab, "web1", disk);
    lab.write("web1", TWO, 20 << 20, 65_536, 0xc2);
}

#[test]
fn a_disk_that_another_vm_wrote_meanwhile_is_read_in_full() {
    let mut story = Story::default();
    story.backup("auto");
    let disk = story.disk_id(TWO);
    // One disk's part of our snapshot is deleted: the rest of it is still a base.
    let snapshot = &story.lab.snapshot("web1", &story.lab.own_snapshots("web1")[0]);
    let disks = snapshot["disks"].as_array().unwrap().clone();
    let held = disks.iter().find(|d| d[0] == disk.as_str()).unwrap();
    let (domain, volume) = (domain_id(&story.lab, "nfs1"), held[1].as_str().unwrap());
    let path = format!("/storagedomains/{domain}/disksnapshots/{volume}");
    story.lab.api("DELETE", &path, "");
    wait_for("the merge of one disk", || {
        let now = story.lab.snapshot("web1", &story.lab.own_snapshots("web1")[0]);
        now["status"] == "ok" && now["disks"].as_array().is_some_and(|d| d.len() == 1)
    });
    lend(&story, &disk);
    story.lab.write("web1", ONE, 3 << 20, 65_536, 0xc3);
    let second = story.backup("auto");
    let (found, why) = level(&second, TWO);
    assert_eq!(found, "full");
    assert!(why.contains("does not hold the disk any more"), "{why}");
    assert_eq!(level(&second, ONE).0, "incremental");
    let third = story.backup("auto");
    assert_eq!(stored(&third), 0);
    story.end();
    story.restore_last();
}

#[test]
fn a_disk_that_was_lent_after_our_snapshot_was_deleted_is_read_in_full() {
    let mut story = Story::default();
    story.backup("auto");
    let own = story.lab.own_snapshots("web1");
    story.lab.delete_snapshot("web1", &own[0]);
    lend(&story, &story.disk_id(TWO));
    let second = story.backup("incremental");
    for disk in [ONE, TWO] {
        let (found, why) = level(&second, disk);
        assert_eq!(found, "full");
        assert!(why.contains("gone"), "{why}");
    }
    story.end();
}

/// `web1` on the first of two domains.
fn two_domains() -> Story {
    let lab = Lab::bare(&small(), &["--hosts", "1", "--domains", "nfs,gluster"]);
    lab.enrol();
    Story::of(lab)
}

fn move_to(lab: &Lab, disk: &str, domain: &str) {
    let domain = domain_id(lab, domain);
    let body = format!("<action><storage_domain id=\"{domain}\"/></action>");
    lab.api("POST", &format!("/disks/{disk}/move"), &body);
    settled(lab, disk, Some(&domain));
}

#[test]
fn a_disk_that_moved_to_another_domain_stays_incremental() {
    let mut story = two_domains();
    story.backup("auto");
    move_to(&story.lab, &story.disk_id(TWO), "gluster1");
    story.lab.write("web1", TWO, 5 << 20, 65_536, 0xd1);
    let second = story.backup("auto");
    assert_eq!(level(&second, TWO).0, "incremental");
    assert!(stored(&second) <= 1, "{second:#}");
    story.end();
}

/// A live migration while the guest writes, as an engine does it: a snapshot of its own, the
/// same ids on the other domain (where the base gets another format), the snapshot deleted.
fn migrated(change: &str, format: &str) {
    let mut story = two_domains();
    story.backup("auto");
    let disk = story.disk_id(ONE);
    story.lab.write("web1", ONE, 5 << 20, 65_536, 0xd2);
    story.lab.foreign_snapshot("web1", AUTO);
    story.lab.write("web1", ONE, 6 << 20, 65_536, 0xd3);
    story.lab.fault(&["operation", change]);
    move_to(&story.lab, &disk, "gluster1");
    story.lab.write("web1", ONE, 7 << 20, 65_536, 0);
    // In between a backup takes the engine's snapshot for one more layer.
    let second = story.backup("auto");
    story.lab.delete_snapshot("web1", AUTO);
    story.lab.write("web1", ONE, 8 << 20, 65_536, 0xd4);
    let third = story.backup("auto");
    for (point, clusters) in [(&second, 2), (&third, 1)] {
        let (found, why) = level(point, ONE);
        assert_eq!((found, stored(point)), ("incremental", clusters), "{why}");
    }
    let stored = story.disk(&story.then[2].point, ONE);
    assert_eq!((&stored["format"], &stored["domain_name"]), (&format.into(), &"gluster1".into()));
    story.end();
    story.restore_last();
}

#[test]
fn a_live_migration_that_makes_the_raw_base_qcow2_stays_incremental() {
    migrated("move-makes-cow", "cow");
}

#[test]
fn a_live_migration_that_preallocates_the_base_stays_incremental() {
    migrated("move-preallocates", "raw");
}

#[test]
fn a_merge_in_flight_is_waited_for_by_the_next_run() {
    let mut story = Story::default();
    story.backup("auto");
    let kept = story.lab.own_snapshots("web1");
    story.lab.write("web1", ONE, 5 << 20, 65_536, 0xe1);
    story.lab.foreign_snapshot("web1", AUTO);
    story.lab.fault(&["operation", "merge-waits"]);
    let id = story.lab.snapshot("web1", AUTO)["id"].as_str().unwrap().to_owned();
    let vm = story.lab.vm_id("web1");
    story.lab.api("DELETE", &format!("/vms/{vm}/snapshots/{id}"), "");
    for wish in ["auto", "full"] {
        let run = story.run(wish).says("web1").says(AUTO);
        assert_ne!(run.code, 0, "nothing was backed up: {run}");
    }
    assert_eq!(story.lab.own_snapshots("web1"), kept, "no second snapshot was made");
    story.lab.fault(&["clear"]);
    wait_for("the merge", || story.lab.find_snapshot("web1", AUTO).is_none());
    let second = story.backup("auto");
    assert_eq!((level(&second, ONE).0, stored(&second)), ("incremental", 1));
    story.end();
}
