//! Block domains, end to end: two hypervisors with real LVM on one LUN; VMs that are down,
//! and one whose disks QEMU writes on one of the hypervisors.

use hvbak_tests::{
    Lab, Story, is_root, skip,
    story::{Then, level, stored},
    wait_for,
};
use serde_json::{Value, json};

use crate::{
    mid_stream,
    resume::{self, BACKUP, Blow, LIMITED},
};

/// A lab of guests with an inventory; `None`, told loudly, where none can be run.
fn lab(seed: &Value) -> Option<Lab> {
    let have = ["/usr/bin/linux.uml", "/usr/bin/socat", "/usr/sbin/lvm", "/usr/bin/busybox"];
    if !is_root() || have.iter().any(|program| !std::path::Path::new(program).exists()) {
        skip("block domains need root, user-mode-linux, socat, lvm2 and busybox-static");
        return None;
    }
    let lab = Lab::bare(seed, &["--hosts", "2", "--domains", "block"]);
    lab.enrol();
    Some(lab)
}

/// A VM with a raw and a qcow2 disk. Whole extents: a raw volume of a block domain is as
/// large as its LV.
fn vm(name: &str, running: bool) -> Value {
    json!({ "vms": [{ "name": name, "nics": 1, "running": running, "agent": true, "disks": [
        { "alias": format!("{name}_Disk1"), "size": 128 << 20, "format": "raw-preallocated" },
        { "alias": format!("{name}_data"), "size": 192 << 20, "format": "cow" },
    ]}]})
}

#[test]
fn disks_on_lvs_come_back_byte_for_byte() {
    let Some(lab) = lab(&vm("db1", false)) else { return };
    lab.write("db1", "db1_Disk1", 1 << 20, 5 << 20, 0xab);
    lab.write_noise("db1", "db1_Disk1", (127 << 20) + 512, 1 << 19);
    lab.write_noise("db1", "db1_data", 66_048, 4 << 20);
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    // An increment: the snapshot that the first left is the lower half of the chain.
    lab.write("db1", "db1_data", 100 << 20, 3 << 20, 7);
    lab.write("db1", "db1_Disk1", 2 << 20, 1 << 20, 0);
    lab.hvbak(&["backup", "--vm", "db1", "--level", "incremental"]).exits(0);
    let (one, two) = (lab.save("db1", "db1_Disk1"), lab.save("db1", "db1_data"));
    lab.write("db1", "db1_Disk1", 0, 1 << 20, 0xff);
    lab.hvbak(&["verify", "--all"]).exits(0);
    lab.hvbak(&["restore", "db1", "--name", "back"]).exits(0);
    lab.same("back", "db1_Disk1", &one);
    lab.same("back", "db1_data", &two);
    for host in ["hv1", "hv2"] {
        assert_eq!(lab.active_volumes(host), "", "LVs are left active on {host}");
    }
    lab.assert_clean_but(&["back"]);
}

/// The guest writes between all backups, its active layers outgrow their LVs and are made
/// larger by the pool's manager, live merges run on the VM's host.
#[test]
fn a_running_vm_on_lvs_is_read_on_its_own_host_and_on_another() {
    let Some(lab) = lab(&vm("web1", true)) else { return };
    let mut story = Story::of(lab);
    let first = story.run("auto").exits(0);
    assert_eq!(first.of("disk-started")[0]["host"], "hv2", "where the VM runs: {first}");
    let running = story.lab.active_volumes("hv2");
    assert_eq!(running.lines().count(), 4, "{running}");
    // More than fits in the LV that a new layer gets.
    story.lab.write("web1", "web1_data", 50 << 20, 120 << 20, 0x31);
    story.lab.write("web1", "web1_Disk1", 30 << 20, 65_536, 0x32);
    let disk = story.lab.disk("web1_data");
    let now = story.lab.api("GET", &format!("/disks/{}", disk["id"].as_str().unwrap()), "");
    assert!(now.contains(&format!("<actual_size>{}<", 256 << 20)), "not extended: {now}");
    let second = story.backup("auto");
    assert_eq!((level(&second, "web1_data").0, stored(&second)), ("incremental", 1921));
    // Through the pool's manager, which has nothing of it active and other ideas of sizes.
    story.options = vec!["--host", "hv1"];
    story.lab.foreign_snapshot("web1", "theirs");
    story.lab.write("web1", "web1_data", 60 << 20, 1 << 20, 0);
    story.lab.write("web1", "web1_Disk1", 31 << 20, 65_536, 0x33);
    let third = story.backup("auto");
    assert_eq!((level(&third, "web1_Disk1").0, stored(&third)), ("incremental", 1));
    story.lab.delete_snapshot("web1", "theirs");
    assert_eq!(story.lab.active_volumes("hv1"), "", "LVs are left active on hv1");
    // The VM stops while its LVs are read, so that its host cannot deactivate them.
    story.lab.write_noise("web1", "web1_Disk1", 4 << 20, 40 << 20);
    mid_stream::slow(&story);
    let disks = story.remember(&["web1_Disk1", "web1_data"]);
    let mut run = story.lab.start(&["--json", "backup", "--vm", "web1"]);
    wait_for("the middle of the transfer", || mid_stream::arriving(&story) || run.ended());
    story.lab.act("web1", "stop", "");
    story.lab.await_status("web1", "down");
    assert!(!run.ended() && !story.lab.active_volumes("hv2").is_empty(), "too late");
    let run = run.wait().exits(0);
    assert_eq!(run.of("disk-started")[0]["level"], "incremental", "{run}");
    let point = run.result()["done"][0]["point"].as_str().unwrap().to_owned();
    story.then.push(Then { point, disks });
    assert_eq!(story.lab.active_volumes("hv2"), "", "LVs are left active on hv2");
    story.end();
}

/// The manager removes an LV that a worker has open on the VM's host: the descriptor still
/// reads, perhaps another disk's bytes by now, and none of them is kept. The device of what is
/// no LV any more stays on that host, as nothing but `dmsetup remove` could take it away.
#[test]
fn a_snapshot_that_is_deleted_while_its_lvs_are_read_spoils_the_run_alone() {
    let Some(lab) = lab(&vm("web1", true)) else { return };
    let mut story = Story::of(lab);
    mid_stream::prepare(&mut story, 40);
    mid_stream::deleted(&story, "theirs");
    let next = story.backup("auto");
    assert_eq!(level(&next, "web1_Disk1").0, "incremental");
    story.end();
    assert_eq!(story.lab.active_volumes("hv1"), "", "LVs are left active on hv1");
}

#[test]
fn a_cut_transfer_from_lvs_goes_on_unless_its_snapshot_was_written_to() {
    let Some(lab) = lab(&vm("web1", true)) else { return };
    let mut story = Story::of(lab);
    story.lab.write_noise("web1", "web1_Disk1", 8 << 20, 44 << 20);
    story.lab.configure(|text| format!("{text}\n[transfer]\n{LIMITED}\n"));
    // Cut, and the guest goes on writing.
    let disks = story.remember(&["web1_Disk1", "web1_data"]);
    resume::strike(&story.lab, Blow::Hvbak);
    resume::write_after(&story.lab);
    resume::set_speed(&story.lab, false);
    let (run, _) = resume::goes_on(&mut story, disks);
    let (rest, there) = resume::sent(&run);
    eprintln!("{rest} bytes were sent, {there} were there");
    // Cut, and a merge into what was read failed: nothing on the storage shows it.
    story.lab.write_noise("web1", "web1_Disk1", 8 << 20, 44 << 20);
    resume::set_speed(&story.lab, true);
    resume::strike(&story.lab, Blow::Hvbak);
    resume::write_after(&story.lab);
    let own = story.lab.own_snapshots("web1").pop().expect("the snapshot of the cut transfer");
    story.lab.delete_snapshot_in_vain("web1", &own);
    resume::set_speed(&story.lab, false);
    resume::starts_anew(&mut story, "touched by somebody");
    // The same while the LVs are read.
    story.lab.write_noise("web1", "web1_Disk1", 8 << 20, 44 << 20);
    resume::set_speed(&story.lab, true);
    let points = story.lab.points().len();
    let old = story.lab.own_snapshots("web1");
    let mut run = story.lab.start_until(&BACKUP, resume::midway);
    let own = story.lab.own_snapshots("web1");
    let own = own.iter().find(|s| !old.contains(s)).expect("the run's snapshot");
    resume::write_after(&story.lab);
    story.lab.delete_snapshot_in_vain("web1", own);
    assert!(!run.ended(), "the merge took longer than the transfer");
    let run = run.wait().exits(1);
    // An LV that was made larger for the merge shows it, one that was large enough does not.
    let seen = ["changed while it was read", "touched by somebody"];
    assert!(seen.iter().any(|text| run.stdout.contains(text)), "{run}");
    assert_eq!(story.lab.points().len(), points);
    resume::set_speed(&story.lab, false);
    story.backup("auto");
    story.lab.hvbak(&["cleanup"]).exits(0);
    story.end();
    story.lab.act("web1", "stop", "");
    story.lab.await_status("web1", "down");
    for host in ["hv1", "hv2"] {
        assert_eq!(story.lab.active_volumes(host), "", "LVs are left active on {host}");
    }
}
