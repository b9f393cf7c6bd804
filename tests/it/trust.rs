//! What must not be believed, and what must not be touched: guests left frozen, forged
//! journals, files that changed places.

use std::{fs, path::Path};

use hvbak_tests::{Lab, damage::files, small};
use serde_json::{Value, json};

fn vm(lab: &Lab, name: &str) -> Value {
    let state = lab.state();
    let found = state["vms"].as_array().unwrap().iter().find(|v| v["name"] == name).cloned();
    found.unwrap_or_else(|| panic!("no VM {name}"))
}

#[test]
fn a_guest_is_never_left_frozen_in_silence() {
    let lab = Lab::standard();
    // Once refused: the thaw is tried again.
    lab.fault(&["operation", "snapshot-fails"]);
    let refuse = ["http", "--method", "POST", "--path", "thawfilesystems", "--status", "500"];
    lab.fault(&[&refuse[..], &["--times", "1"]].concat());
    lab.hvbak(&["backup", "--vm", "web1", "--quiesce", "require"]).exits(1);
    lab.assert_clean();
    // Refused for good: it is told, stays in the journal, and `cleanup` does it.
    lab.fault(&["operation", "snapshot-fails"]);
    lab.fault(&[&refuse[..], &["--times", "100"]].concat());
    let run = lab.hvbak(&["backup", "--vm", "web1", "--quiesce", "require"]).exits(1);
    run.says("may still be frozen").says("cleanup");
    assert_eq!(vm(&lab, "web1")["frozen"], true);
    lab.hvbak(&["cleanup"]).exits(3).says("frozen");
    lab.fault(&["clear"]);
    lab.hvbak(&["cleanup"]).exits(0);
    assert_eq!(vm(&lab, "web1")["frozen"], false);
    lab.assert_clean();
}

#[test]
fn a_disk_that_is_unplugged_while_the_vm_runs_is_left_out_by_name() {
    let lab = Lab::standard();
    let id = lab.vm_id("web1");
    let disk = vm(&lab, "web1")["disks"][1].as_str().unwrap().to_owned();
    let path = format!("/vms/{id}/diskattachments/{disk}");
    lab.api("PUT", &path, "<disk_attachment><active>false</active></disk_attachment>");
    for _ in 0..2 {
        lab.hvbak(&["backup", "--vm", "web1"]).exits(0).says("unplugged");
        lab.assert_clean();
    }
    assert_eq!(lab.own_snapshots("web1").len(), 1);
}

/// A journal as an attacker with write access to the repository would leave it.
fn forge(lab: &Lab, step: &Value) {
    let folder = lab.path("repository").join("journal");
    // The form is learned from a real one: a run is killed in the middle.
    let run =
        lab.start_until(&["backup", "--vm", "db1"], |lab| !lab.own_snapshots("db1").is_empty());
    run.signal(nix::sys::signal::Signal::SIGKILL);
    run.wait();
    let file = files(&folder, "jsonl").pop().expect("a journal");
    let text = fs::read_to_string(&file).unwrap();
    lab.hvbak(&["cleanup"]).exits(0);
    let forged: Vec<String> = text
        .lines()
        .map(|line| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            if line["step"].is_object() {
                line["step"] = step.clone();
            }
            line.to_string()
        })
        .collect();
    fs::write(&file, forged.join("\n") + "\n").unwrap();
}

#[test]
fn a_forged_journal_runs_no_command_and_deletes_nothing_of_others() {
    let lab = Lab::standard();
    let db1 = lab.vm_id("db1");
    let disk = vm(&lab, "db1")["disks"][0].clone();
    let marker = lab.path("pwned");
    let host = lab.json(&["list", "hosts"]).exits(0);
    let host = host.of("host")[0]["id"].clone();
    lab.foreign_snapshot("web1", "theirs");
    let steps = [
        json!({ "step": "worker", "host": host, "host_name": "hv1", "tag": format!("x; touch {}", marker.display()) }),
        json!({ "step": "vm", "id": db1, "name": "db1" }),
        json!({ "step": "disk", "id": disk, "alias": "db1_Disk1" }),
        json!({ "step": "retire", "vm": lab.vm_id("web1"), "vm_name": "web1", "description": "theirs" }),
    ];
    for step in steps {
        forge(&lab, &step);
        let run = lab.hvbak(&["cleanup"]);
        assert_eq!(run.code, 3, "{step}: {run}");
        assert!(!Path::new(&marker).exists(), "{step} ran a command");
        assert!(lab.vm_names().contains(&"db1".to_owned()));
        assert_eq!(vm(&lab, "db1")["disks"][0], disk);
        assert!(lab.state().to_string().contains("theirs"));
        for journal in files(&lab.path("repository").join("journal"), "jsonl") {
            fs::remove_file(journal).unwrap();
        }
    }
    lab.assert_clean();
}

#[test]
fn older_files_in_the_place_of_newer_ones_are_neither_exported_nor_restored() {
    let lab = Lab::standard();
    let point = |lab: &Lab| lab.point("db1");
    lab.hvbak(&["backup", "--vm", "db1", "--level", "full"]).exits(0);
    let old = point(&lab);
    lab.write("db1", "db1_Disk1", 0, 1 << 20, 0x77);
    lab.hvbak(&["backup", "--vm", "db1", "--level", "full"]).exits(0);
    let new = point(&lab);
    assert_ne!(old, new);
    for ending in ["qcow2", "digests"] {
        let (from, to) = (&files(&old, ending)[0], &files(&new, ending)[0]);
        fs::remove_file(to).unwrap();
        fs::copy(from, to).unwrap();
    }
    let out = lab.scratch("swapped");
    let to = out.to_str().unwrap();
    lab.hvbak(&["export", "db1", "--format", "raw", "--output", to]).exits(15);
    lab.hvbak(&["restore", "db1", "--name", "swapped"]).exits(15);
    lab.hvbak(&["verify", "db1"]).exits(15);
    lab.assert_clean();
}

#[test]
fn a_restore_that_is_killed_while_its_vm_starts_stays_with_the_user() {
    let lab = Lab::standard();
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    let args = ["restore", "db1", "--name", "back", "--power-on"];
    let run = lab.start_until(&args, |lab| {
        let state = lab.state();
        let vms = state["vms"].as_array().cloned().unwrap_or_default();
        vms.iter()
            .any(|v| v["name"] == "back" && v["status"] != "down" && v["status"] != "image_locked")
    });
    run.signal(nix::sys::signal::Signal::SIGKILL);
    run.wait();
    lab.hvbak(&["cleanup"]).exits(0);
    assert!(lab.vm_names().contains(&"back".to_owned()));
    lab.assert_clean_but(&["back"]);
}

#[test]
fn a_start_that_is_refused_does_not_undo_the_restore() {
    let lab = Lab::standard();
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    let refuse =
        ["http", "--method", "POST", "--path", "/start", "--status", "400", "--times", "90"];
    lab.fault(&refuse);
    let run = lab.json(&["restore", "db1", "--name", "back", "--power-on"]).exits(3);
    lab.fault(&["clear"]);
    assert!(run.result()["not_started"].is_string(), "{run}");
    lab.assert_clean_but(&["back"]);
}

#[test]
fn a_snapshot_that_cannot_be_deleted_is_no_success() {
    let lab = Lab::standard();
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    lab.fault(&["operation", "merge-fails", "--times", "50"]);
    let run = lab.json(&["backup", "--vm", "web1"]).exits(3);
    assert_eq!(run.result()["left_behind"].as_array().unwrap().len(), 1, "{run}");
    assert_eq!(lab.own_snapshots("web1").len(), 2);
    // With two of them no third is made.
    let stuck = lab.hvbak(&["backup", "--vm", "web1"]);
    assert_ne!(stuck.code, 0, "{stuck}");
    assert_eq!(lab.own_snapshots("web1").len(), 2);
    lab.fault(&["clear"]);
    let run = lab.json(&["backup", "--vm", "web1"]).exits(0);
    assert_eq!(run.of("disk-started")[0]["level"], "incremental", "{run}");
    assert_eq!(lab.own_snapshots("web1").len(), 1);
    lab.hvbak(&["cleanup"]).exits(0);
    lab.assert_clean();
}

#[test]
fn space_for_a_restore_is_counted_in_guest_data() {
    let mut seed = small();
    seed["vms"][1]["disks"][0] =
        json!({ "alias": "db1_Disk1", "size": 2u64 << 30, "format": "cow" });
    let lab = Lab::with(&seed);
    // 300 MiB that compress to nothing.
    lab.write("db1", "db1_Disk1", 0, 300 << 20, 0x42);
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    lab.fault(&["space", "nfs1", &((5u64 << 30) + (100 << 20)).to_string()]);
    let run = lab.hvbak(&["restore", "db1", "--name", "back", "--dry-run"]).exits(1);
    run.says("314572800 are needed").says("reserve");
}
