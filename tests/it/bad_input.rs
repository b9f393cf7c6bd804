//! What goes wrong at a site: each has its exit code, a message with the cause, a remedy,
//! and leaves nothing behind.

use std::fs;

use hvbak_tests::{Lab, Small, damage::overwrite, skip, small, wait_for};
use serde_json::json;

#[test]
fn a_wrong_password_is_a_refused_login() {
    let lab = Lab::standard();
    fs::write(lab.path("engine.password"), "wrong\n").unwrap();
    lab.hvbak(&["list", "vms"]).exits(12).says("hint");
    lab.hvbak(&["backup", "--vm", "web1"]).exits(12);
    let run = lab.json(&["doctor"]).exits(12);
    assert!(run.result()["error"].is_string());
    lab.assert_clean();
}

#[test]
fn an_expired_token_is_replaced_without_a_word() {
    let lab = Lab::standard();
    slow(&lab);
    lab.fill_web1();
    let run = lab.start_until(&["backup", "--vm", "web1"], half_made);
    lab.fault(&["expire-tokens"]);
    run.wait().exits(0);
    lab.assert_clean();
}

#[test]
fn an_engine_that_is_down_is_unreachable() {
    let lab = Lab::standard();
    lab.lab("down", &[]);
    lab.hvbak(&["list", "vms"]).exits(14).says("hint");
    lab.hvbak(&["backup", "--all"]).exits(14);
}

#[test]
fn an_engine_with_another_ca_is_not_trusted() {
    let (lab, other) = (Lab::standard(), Lab::standard());
    fs::copy(other.path("ca.pem"), lab.path("ca.pem")).unwrap();
    lab.hvbak(&["list", "vms"]).exits(14).says("certificate");
}

#[test]
fn an_engine_that_restarts_is_waited_for() {
    let lab = Lab::standard();
    let body = "<html><body>503 Service Unavailable</body></html>";
    let fault = ["http", "--path", "/api", "--status", "503", "--content-type", "text/html"];
    lab.fault(&[&fault[..], &["--times", "2", "--body", body]].concat());
    lab.hvbak(&["list", "vms"]).exits(0).says("web1");
}

#[test]
fn an_engine_that_stays_unavailable_is_told_so() {
    let lab = Lab::standard();
    lab.fault(&["http", "--path", "/ovirt-engine", "--status", "503", "--times", "1000"]);
    let run = lab.hvbak(&["list", "vms"]);
    assert!(run.code == 14 || run.code == 1, "{run}");
    run.says("503");
}

#[test]
fn a_connection_that_breaks_once_is_tried_again() {
    let lab = Lab::standard();
    lab.fault(&["http", "--method", "GET", "--path", "/vms", "--drop", "--times", "1"]);
    lab.hvbak(&["list", "vms"]).exits(0).says("web1");
}

#[test]
fn a_changed_host_key_stops_everything_and_shows_both() {
    let lab = Lab::standard();
    lab.fault(&["host", "hv1", "change-key"]);
    let run = lab.hvbak(&["backup", "--vm", "web1"]).exits(13);
    assert!(run.stderr.matches("SHA256:").count() >= 2, "both fingerprints: {run}");
    run.says("hint");
    lab.hvbak(&["doctor"]).says("hv1");
    lab.assert_clean();
}

#[test]
fn a_host_that_does_not_answer_fails_with_a_remedy() {
    let lab = Lab::standard();
    lab.fault(&["host", "hv1", "kill"]);
    let run = lab.hvbak(&["backup", "--vm", "web1"]);
    assert_eq!(run.code, 1, "{run}");
    run.says("hv1").says("hint");
    let events = lab.api("GET", "/events", "");
    assert!(!events.contains("napshot"), "the guest was touched for nothing: {events}");
    lab.assert_clean();
}

#[test]
fn a_host_that_the_engine_calls_down_is_passed_over() {
    let lab = Lab::bare(&small(), &["--hosts", "2", "--domains", "nfs"]);
    lab.enrol();
    lab.fault(&["host-status", "hv1", "non_responsive"]);
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0).says("hv2");
    lab.fault(&["host-status", "hv2", "maintenance"]);
    let run = lab.hvbak(&["backup", "--vm", "db1"]);
    assert_ne!(run.code, 0, "{run}");
    lab.assert_clean();
}

#[test]
fn an_unknown_vm_is_a_usage_error() {
    let lab = Lab::standard();
    lab.hvbak(&["backup", "--vm", "web9"]).exits(2).says("web9").says("hint");
    lab.hvbak(&["restore", "web9"]).exits(2).says("web9").says("hint");
}

#[test]
fn two_vms_of_one_name_are_told_apart_by_id() {
    let disk = |n: u32| json!({ "alias": format!("d{n}"), "size": 1 << 20 });
    let seed = json!({ "vms": [{ "name": "twin", "disks": [disk(1)] }, { "name": "twin", "disks": [disk(2)] }] });
    let lab = Lab::with(&seed);
    let ids: Vec<String> = lab.state()["vms"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v["id"].as_str().unwrap().to_owned())
        .collect();
    let run = lab.hvbak(&["backup", "--vm", "twin"]).exits(2).says("--id");
    assert!(ids.iter().all(|id| run.stderr.contains(id)), "{run}");
    lab.hvbak(&["backup", "--id", &ids[1]]).exits(0);
    lab.hvbak(&["show", &ids[1]]).exits(0).says("d2");
    lab.assert_clean();
}

#[test]
fn an_unknown_key_of_the_configuration_is_named() {
    let lab = Lab::standard();
    lab.configure(|text| text + "colour = \"red\"\n");
    lab.hvbak(&["points"]).exits(2).says("colour").says("line");
}

#[test]
fn a_password_file_that_others_can_read_is_refused() {
    let lab = Lab::standard();
    let file = lab.path("engine.password");
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    lab.hvbak(&["list", "vms"]).exits(2).says("chmod 600");
}

#[test]
fn a_refused_snapshot_fails_the_vm_and_not_the_others() {
    let lab = Lab::standard();
    let body = "<fault><detail>[Cannot create Snapshot. VM is being migrated.]</detail><reason>Operation Failed</reason></fault>";
    let path = format!("/vms/{}/snapshots", lab.vm_id("web1"));
    let fault = ["http", "--method", "POST", "--path", &path, "--status", "400", "--times", "20"];
    lab.fault(&[&fault[..], &["--body", body]].concat());
    let run = lab.hvbak(&["backup", "--vm", "web1", "--vm", "db1"]).exits(3).says("migrated");
    assert!(run.stderr.contains("web1"), "{run}");
    lab.hvbak(&["show", "db1"]).exits(0);
    lab.assert_clean();
}

#[test]
fn a_snapshot_that_ends_badly_leaves_nothing() {
    let lab = Lab::standard();
    lab.fault(&["operation", "snapshot-fails"]);
    let run = lab.hvbak(&["backup", "--vm", "web1"]);
    assert_eq!(run.code, 1, "{run}");
    run.says("snapshot").says("hint");
    assert!(lab.points().is_empty());
    lab.assert_clean();
}

#[test]
fn a_snapshot_that_the_running_guest_did_not_take_is_not_read() {
    let lab = Lab::standard();
    lab.fault(&["operation", "snapshot-live-fails"]);
    let run = lab.hvbak(&["backup", "--vm", "web1"]);
    assert_eq!(run.code, 1, "{run}");
    run.says("snapshot").says("hint");
    assert!(lab.points().is_empty());
    // The guest still writes below the new layer, so the engine cannot merge it before
    // the VM has stopped; the journal remembers it until then.
    lab.hvbak(&["cleanup", "--dry-run"]).says("would undo snapshot");
    lab.api("POST", &format!("/vms/{}/stop", lab.vm_id("web1")), "<action/>");
    wait_for("the VM's end", || lab.state()["vms"][0]["status"] == "down");
    lab.hvbak(&["cleanup"]).exits(0);
    lab.assert_clean();
}

#[test]
fn a_guest_that_cannot_be_frozen_is_stored_crash_consistent_or_refused() {
    let lab = Lab::standard();
    lab.fault(&["operation", "freeze-fails", "--times", "9"]);
    lab.hvbak(&["backup", "--vm", "web1", "--quiesce", "require"])
        .exits(1)
        .says("freez")
        .says("hint");
    assert!(lab.points().is_empty());
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    lab.hvbak(&["show", "web1"]).exits(0).says("crash");
    lab.assert_clean();
}

#[test]
fn a_merge_that_fails_is_told_and_cleanup_ends_it() {
    let lab = Lab::standard();
    lab.fault(&["operation", "merge-fails"]);
    let run = lab.hvbak(&["backup", "--vm", "web1"]);
    run.says("snapshot");
    let again = lab.hvbak(&["cleanup"]);
    assert_eq!(again.code, 0, "{again}");
    lab.assert_clean();
}

#[test]
fn a_damaged_qcow2_at_the_source_is_refused_by_name() {
    let mut seed = small();
    seed["vms"][1]["disks"][0]["format"] = json!("cow");
    let lab = Lab::with(&seed);
    lab.write("db1", "db1_Disk1", 0, 8 << 20, 9);
    let volume = &lab.volumes("db1", "db1_Disk1")[0];
    let image = fs::read(volume).unwrap();
    let number = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap());
    // Header byte 40: L1 table; its first entry: the L2 table, whose entry now points
    // beyond the file.
    let l2 = number(number(40) as usize) & 0x00ff_ffff_ffff_fe00;
    overwrite(volume, l2 + 8, &0x8000_7fff_ffff_0000_u64.to_be_bytes());
    let run = lab.hvbak(&["backup", "--vm", "db1"]);
    assert_eq!(run.code, 1, "{run}");
    run.says("hint").says("qemu-img check");
    assert!(lab.points().is_empty());
    lab.assert_clean();
}

#[test]
fn one_run_at_a_time_works_on_a_vm() {
    let lab = Lab::standard();
    slow(&lab);
    lab.fill_web1();
    let first = lab.start_until(&["backup", "--vm", "web1"], half_made);
    lab.hvbak(&["backup", "--vm", "web1"]).exits(11).says("hint");
    first.wait().exits(0);
    assert_eq!(lab.points().len(), 1);
    lab.assert_clean();
}

#[test]
fn a_host_lost_mid_stream_fails_the_run_and_cleanup_takes_the_rest() {
    let lab = Lab::standard();
    slow(&lab);
    lab.fill_web1();
    let run = lab.start_until(&["backup", "--vm", "web1"], half_made);
    lab.fault(&["host", "hv1", "kill"]);
    let run = run.wait();
    assert_eq!(run.code, 1, "{run}");
    run.says("hv1");
    assert!(lab.points().iter().all(|p| p.starts_with('.')), "no point may be published");
    // The host is back: what could not be taken from it is taken now.
    lab.fault(&["host", "hv1", "start"]);
    lab.hvbak(&["cleanup"]).exits(0);
    lab.assert_clean();
}

#[test]
fn a_host_lost_while_writing_fails_the_restore_and_cleanup_takes_the_rest() {
    let lab = Lab::standard();
    lab.fill_web1();
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    slow(&lab);
    let disks = lab.state()["disks"].as_array().unwrap().len();
    let run = lab.start_until(&["restore", "web1", "--name", "never"], |lab| {
        lab.state()["disks"].as_array().unwrap().len() > disks && worker_runs(lab)
    });
    lab.fault(&["host", "hv1", "kill"]);
    let run = run.wait();
    assert_ne!(run.code, 0, "{run}");
    lab.fault(&["host", "hv1", "start"]);
    lab.hvbak(&["cleanup"]).exits(0);
    lab.assert_clean();
}

#[test]
fn a_repository_without_room_refuses_before_the_snapshot() {
    let lab = Lab::standard();
    lab.fill_web1();
    lab.configure(|text| text.replace("[repository]", "[repository]\nreserve_gib = 1000000"));
    let run = lab.hvbak(&["backup", "--vm", "web1"]);
    assert_eq!(run.code, 1, "{run}");
    run.says("space").says("hint");
    assert!(!lab.state()["events"].to_string().contains("hvbak:"), "a snapshot was made");
    lab.assert_clean();
}

#[test]
fn a_repository_that_fills_up_mid_stream_leaves_no_half_point() {
    let lab = Lab::standard();
    let Some(small) = Small::mount(&lab.scratch("small"), 96) else {
        return skip("a small file system cannot be mounted here");
    };
    lab.configure(|text| {
        text.replace(
            "path = \"repository\"",
            &format!("path = \"{}\"\nreserve_gib = 0", small.path().join("repository").display()),
        )
    });
    lab.hvbak(&["init"]).exits(0);
    slow(&lab);
    lab.fill_web1();
    let run = lab.start_until(&["backup", "--vm", "web1"], |_| small.has_partial());
    small.fill();
    let run = run.wait();
    assert_eq!(run.code, 1, "{run}");
    run.says("space");
    small.free();
    assert!(!small.has_partial(), "a half-made point is left");
    lab.hvbak(&["points"]).exits(0).says("0 points");
    lab.assert_clean();
}

#[test]
fn a_domain_without_room_refuses_the_restore() {
    let lab = Lab::standard();
    lab.fill_web1();
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    lab.fault(&["space", "nfs1", "1048576"]);
    let run = lab.hvbak(&["restore", "web1", "--name", "never"]);
    assert_ne!(run.code, 0, "{run}");
    run.says("nfs1").says("hint");
    lab.assert_clean();
}

#[test]
fn a_domain_that_fills_up_while_writing_fails_the_restore() {
    let dir = tempfile::Builder::new().prefix("hvbak-it-").tempdir_in("/tmp").unwrap();
    let Some(storage) = Small::mount(&dir.path().join("lab/storage"), 128) else {
        return skip("a small file system cannot be mounted here");
    };
    let lab = Lab::at(dir, &small(), &["--hosts", "1", "--domains", "nfs"]);
    // The engine's figure is minutes old on a real site, so it says little of the truth.
    lab.fault(&["space", "nfs1", "107374182400"]);
    lab.enrol();
    lab.fill_web1();
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    // Room for the empty disk, not for its 11 MiB.
    storage.fill_but(4 << 20);
    let run = lab.hvbak(&["restore", "web1", "--disk", "web1_Disk1", "--name", "never"]);
    storage.free();
    assert_eq!(run.code, 1, "{run}");
    run.says("filling disk").says("space").says("hint");
    lab.assert_clean();
}

#[test]
fn a_disk_that_the_engine_cannot_make_fails_the_restore() {
    let lab = Lab::standard();
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    lab.fault(&["operation", "disk-fails"]);
    let run = lab.hvbak(&["restore", "db1", "--name", "never"]);
    assert_ne!(run.code, 0, "{run}");
    lab.assert_clean();
}

#[test]
fn a_snapshot_deleted_by_somebody_mid_stream_is_noticed() {
    let lab = Lab::standard();
    slow(&lab);
    lab.fill_web1();
    let run = lab.start_until(&["backup", "--vm", "web1"], half_made);
    lab.fault(&["delete-snapshot", "--vm", "web1"]);
    let run = run.wait();
    // Either the engine's merge waited for us, or the run has seen it: never a wrong point.
    if run.code == 0 {
        lab.hvbak(&["verify", "--all"]).exits(0);
    } else {
        wait_for("the merge's end", || lab.leftovers(&[]).is_empty());
        assert!(lab.points().is_empty(), "{run}");
    }
    lab.assert_clean();
}

/// Transfers take seconds instead of an instant.
fn slow(lab: &Lab) {
    lab.configure(|text| format!("{text}\n[transfer]\nrate_limit_mib = 2\n"));
}

fn half_made(lab: &Lab) -> bool {
    lab.points().iter().any(|p| p.starts_with(".partial")) && worker_runs(lab)
}

fn worker_runs(lab: &Lab) -> bool {
    lab.leftovers(&[]).iter().any(|l| l.starts_with("process"))
}
