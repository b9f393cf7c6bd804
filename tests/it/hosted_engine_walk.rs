//! Walks through the sequences of a self-hosted engine with the whole program. What a person
//! does is done here by hand.

use std::{fs, os::unix::fs::PermissionsExt};

use hvbak_tests::Lab;
use nix::sys::signal::Signal;

use crate::walk_site::{ANSWERS, ARCHIVE, FRESH, MANAGER, OLD, Site, WAITING, fixtures};

#[test]
fn a_move_is_walked_to_its_end_on_a_terminal() {
    let site = Site::new();
    let print = site.lab.hvbak(&["hosted-engine", "plan", "move", "--host", "a", "--to", "b"]);
    print.exits(0).says("4. stop-engine:");
    assert!(site.calls(OLD, "") + site.calls(FRESH, "") == 0, "a printed plan asks nobody");
    // spm, stop-engine (an empty line is not enough), shutdown, deploy that is not done.
    let lines = ["", "", "yes", "yes", "", "q"];
    let run = site.typed("move", &["--yes"], &lines).exits(WAITING);
    let run =
        run.says("seen so far").says("no deployment is at work").says("waiting at step `deploy`");
    drop(run);
    assert!(site.is(OLD, "maintained") && site.is(OLD, "down") && site.is(MANAGER, "off"));
    let there = fs::read(site.roots[FRESH].join(ARCHIVE)).unwrap();
    assert!(there == fs::read(fixtures().join("4.5.7-all.backup")).unwrap());
    for name in [ARCHIVE, ANSWERS] {
        let mode = fs::metadata(site.roots[FRESH].join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let answers = fs::read_to_string(site.roots[FRESH].join(ANSWERS)).unwrap();
    assert!(answers.contains("OVEHOSTED_NETWORK/fqdn=str:engine.example.test\n"), "{answers}");
    assert!(!answers.to_lowercase().contains("password="), "{answers}");
    site.deploy();
    // redeploy, old-domain, again.
    let run = site.typed("move", &["--yes"], &["", "", ""]).exits(0).says("all steps are done");
    assert!(!run.stdout.contains("stop-engine"), "what is done is not shown again: {run}");
    assert!(!site.lies(ARCHIVE) && !site.lies(ANSWERS));
    let kept = fs::read_dir(site.lab.path("repository/manager/engine.example.test")).unwrap();
    let kept: Vec<_> = kept.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(kept.iter().any(|name| name.starts_with(".walked-")), "{kept:?}");
    assert!(!kept.contains(&".walk.json".to_owned()), "{kept:?}");
    assert_eq!(site.calls(OLD, "--vm-shutdown"), 1);
    assert_eq!(site.calls(MANAGER, "disable --now"), 1);
    let journals = fs::read_dir(site.lab.path("repository/journal")).unwrap().count();
    assert_eq!(journals, 0, "steps are left open");
}

#[test]
fn without_a_terminal_it_stops_where_somebody_is_needed_and_says_how_to_go_on() {
    let site = Site::new();
    let run = site.waits_at("spm", "move", &[]);
    let go_on = format!(
        "hvbak --config {} hosted-engine plan move --host {} --to {} --run --wait 0 --confirm spm",
        site.lab.path("hvbak.toml").display(),
        site.names[OLD],
        site.names[FRESH]
    );
    run.says(&go_on);
    // Harmless or not: hvbak changes nothing that nobody allowed.
    site.waits_at("maintenance", "move", &["--confirm", "spm"]);
    assert!(!site.is(OLD, "maintained"));
    let run = site.lab.json(&site.args("move", &["--yes"])).exits(WAITING);
    let result = run.result();
    assert_eq!((&result["status"], &result["step"]), (&"waiting".into(), &"stop-engine".into()));
    assert!(result["go_on"].as_str().unwrap().ends_with("--yes --confirm stop-engine"), "{run}");
    let steps: Vec<_> = run.of("step").iter().map(|s| s["name"].to_string()).collect();
    assert_eq!(steps, ["\"maintenance\"", "\"stop-engine\""], "{run}");
    assert_eq!(run.of("step-done")[0]["already"], false, "{run}");
    assert!(site.is(OLD, "maintained") && !site.is(MANAGER, "off"));
    // A person's step that was never shown is not done because somebody says so beforehand.
    let all = ["--yes", "--confirm", "stop-engine", "--confirm", "shutdown", "--confirm", "deploy"];
    site.walk("move", &all).exits(2).says("open at `stop-engine`");
    site.waits_at("deploy", "move", &all[..5]);
    // What was shown and is not seen is not believed.
    let run = site.walk("move", &["--yes", "--confirm", "deploy"]).exits(1);
    run.says("not seen to be done").says("never deployed").says("no deployment is at work");
    assert_eq!(site.state_of("deploy"), "begun");
    site.set(FRESH, "deploying", true);
    site.waits_at("deploy", "move", &["--yes"]).says("do not start another one");
    let lock = site.roots[FRESH].join("tmp/ansible.abc_he_setup_lock");
    fs::write(&lock, "").unwrap();
    let run = site.waits_at("deploy", "move", &["--yes"]);
    run.says("has paused").says("delete /tmp/ansible.abc_he_setup_lock");
    fs::remove_file(lock).unwrap();
    site.deploy();
    site.waits_at("redeploy", "move", &["--yes"]);
}

#[test]
fn a_walk_that_is_killed_goes_on_and_repeats_nothing() {
    let site = Site::new();
    site.waits_at("spm", "move", &["--yes"]);
    // While the manager is backed up.
    fs::write(site.roots[MANAGER].join("play/wait"), "").unwrap();
    let sure = ["--yes", "--confirm", "spm", "--confirm", "stop-engine"];
    let calls = || fs::read_to_string(site.roots[MANAGER].join("calls")).unwrap_or_default();
    let backups = || calls().matches("--mode=backup").count();
    let walk = site.lab.start_until(&site.args("move", &sure), |_| backups() == 1);
    site.walk("move", &sure).exits(11).says("locked");
    walk.signal(Signal::SIGKILL);
    walk.wait();
    assert_eq!(site.state_of("backup"), "begun");
    fs::write(site.roots[MANAGER].join("play/go"), "").unwrap();
    site.waits_at("shutdown", "move", &["--yes"]);
    assert_eq!((site.calls(MANAGER, "disable --now"), site.calls(OLD, "--mode=global")), (1, 1));
    // While the VM goes down: it does so without hvbak.
    site.set(OLD, "stays-up", true);
    let mut args = site.args("move", &["--yes", "--confirm", "shutdown", "--wait", "5"]);
    args.retain(|arg| *arg != "0");
    let at = args.iter().position(|arg| *arg == "--wait").unwrap();
    args.remove(at);
    let walk = site.lab.start_until(&args, |_| site.calls(OLD, "--vm-shutdown") == 1);
    walk.signal(Signal::SIGKILL);
    walk.wait();
    site.set(OLD, "down", true);
    site.waits_at("deploy", "move", &["--yes"]);
    assert_eq!(site.calls(OLD, "--vm-shutdown"), 1, "it was down already");
    // Within the deployment nobody goes back.
    site.set(FRESH, "deploying", true);
    let run = site.walk("move", &["--yes", "--from", "backup"]).exits(2);
    run.says("`deploy` was begun").says("--restart");
    site.waits_at("restart", "move", &["--yes", "--restart"]).says("--restart --confirm restart");
    assert_eq!(site.state_of("deploy"), "begun");
    assert!(site.lies(ARCHIVE));
    site.set(FRESH, "deploying", false);
    let run = site.waits_at("spm", "move", &["--yes", "--restart", "--confirm", "restart"]);
    drop(run);
    assert!(!site.lies(ARCHIVE), "what the walk before has copied goes");
}

#[test]
fn what_must_go_on_holding_is_looked_at_when_a_walk_goes_on() {
    let site = Site::new();
    site.waits_at("spm", "move", &["--yes"]);
    site.waits_at("shutdown", "move", &["--yes", "--confirm", "spm", "--confirm", "stop-engine"]);
    let archive = site.record()["archive"].clone();
    // Somebody ended the maintenance: it is set again, and nothing else is done again.
    site.set(OLD, "maintained", false);
    site.waits_at("shutdown", "move", &["--yes"]).says("`maintenance` no longer holds");
    assert!(site.is(OLD, "maintained") && site.record()["archive"] == archive);
    // Another archive lies there, or anybody can read it.
    let there = site.roots[FRESH].join(ARCHIVE);
    fs::write(&there, "something else").unwrap();
    site.waits_at("shutdown", "move", &["--yes"]).says("`copy` no longer holds");
    fs::set_permissions(&there, fs::Permissions::from_mode(0o644)).unwrap();
    site.waits_at("shutdown", "move", &["--yes"]).says("mode 644");
    assert!(fs::read(&there).unwrap() == fs::read(fixtures().join("4.5.7-all.backup")).unwrap());
    // The engine ran again: what it did since is in no archive.
    site.set(MANAGER, "off", false);
    let run = site.waits_at("stop-engine", "move", &["--yes"]);
    run.says("`stop-engine` no longer holds: ovirt-engine runs");
    assert_eq!((site.state_of("backup"), site.state_of("copy")), ("open".into(), "open".into()));
    std::thread::sleep(std::time::Duration::from_millis(1100));
    site.waits_at("shutdown", "move", &["--yes", "--confirm", "stop-engine"]);
    assert_ne!(site.record()["archive"], archive, "it was backed up anew");
    // Maintenance that cannot be seen is not believed to be there.
    fs::copy(
        fixtures().join("vm-status/broker-down.stderr.txt"),
        site.roots[OLD].join("play/he/broker-down"),
    )
    .unwrap();
    let run = site.walk("move", &["--yes", "--confirm", "shutdown"]).exits(1);
    run.says("HA broker does not answer").says("systemctl start ovirt-ha-broker");
    assert!(!site.is(OLD, "down"));
    site.set(OLD, "broker-down", false);
    site.waits_at("deploy", "move", &["--yes", "--confirm", "shutdown"]);
}

#[test]
fn a_host_that_is_not_heard_is_not_believed_to_be_without_the_vm() {
    let site = Site::new();
    site.waits_at("spm", "move", &["--yes"]);
    let sure = ["--yes", "--confirm", "spm", "--confirm", "stop-engine"];
    site.waits_at("shutdown", "move", &sure);
    let stale = fs::read_to_string(fixtures().join("vm-status/stale.json")).unwrap();
    let stale = stale.replace("\"global_maintenance\": false", "\"global_maintenance\": true");
    let over = site.roots[OLD].join("play/he/override");
    fs::write(&over, &stale).unwrap();
    let run = site.walk("move", &["--yes", "--confirm", "shutdown"]).exits(1);
    run.says("host1.example.test runs the engine's VM");
    let down = stale.replacen(
        "\"vm\": \"up\", \"health\": \"good\"",
        "\"vm\": \"down\", \"health\": \"bad\"",
        1,
    );
    assert_ne!(down, stale);
    fs::write(&over, &down).unwrap();
    let run = site.walk("move", &["--yes", "--confirm", "shutdown"]).exits(1);
    run.says("without live data: host2.example.test (last said at its second 1200: vm down)");
    assert_eq!(site.state_of("shutdown"), "begun");
    // Heard again.
    fs::write(&over, down.replace("\"live-data\": false", "\"live-data\": true")).unwrap();
    site.waits_at("deploy", "move", &["--yes"]);
}

#[test]
fn a_host_that_is_gone_stops_the_walk_which_goes_on_when_it_is_back() {
    let site = Site::new();
    site.waits_at("spm", "move", &["--yes"]);
    let port = |at: usize| format!("port = {}\n", site.lab.up["hosts"][at]["port"]);
    let sure = ["--yes", "--confirm", "spm", "--confirm", "stop-engine", "--confirm", "shutdown"];
    for (gone, state) in [(OLD, "spm"), (MANAGER, "stop-engine"), (FRESH, "copy")] {
        site.lab.configure(|text| text.replace(&port(gone), "port = 1\n"));
        let run = site.walk("move", &sure).exits(1);
        let named = if gone == MANAGER { "127.0.0.1" } else { &site.names[gone] };
        run.says(&format!("cannot log in on host {named}"));
        site.lab.configure(|text| text.replace("port = 1\n", &port(gone)));
        let next = site.record()["steps"]
            .as_array()
            .unwrap()
            .iter()
            .find(|s| s["state"] != "done")
            .cloned();
        let next = next.unwrap()["name"].as_str().unwrap().to_owned();
        assert!([state, "maintenance"].contains(&next.as_str()), "{next}");
    }
    assert!(!site.is(OLD, "down"), "it went down before the archive was away");
    site.waits_at("deploy", "move", &sure);
    assert_eq!((site.calls(OLD, "--mode=global"), site.calls(MANAGER, "disable --now")), (1, 1));
}

#[test]
fn a_vm_that_somebody_else_has_shut_down_is_down() {
    let site = Site::new();
    let sure = ["--yes", "--confirm", "spm", "--confirm", "stop-engine"];
    site.waits_at("spm", "move", &["--yes"]);
    site.waits_at("shutdown", "move", &sure);
    // Typed by an impatient hand: the manager cannot be asked any more whether its engine rests.
    site.set(OLD, "down", true);
    let port = format!("port = {}\n", site.lab.up["hosts"][MANAGER]["port"]);
    site.lab.configure(|text| text.replace(&port, "port = 1\n"));
    site.waits_at("deploy", "move", &["--yes", "--confirm", "shutdown"]);
}

#[test]
fn a_fresh_host_that_cannot_take_the_engine_stops_it_before_anything_stops() {
    let site = Site::new();
    for (name, said) in [
        ("deployed", "is deployed to it already"),
        ("no-dns", "cannot resolve engine.example.test"),
        ("deploying", "a deployment is at work"),
    ] {
        site.set(FRESH, name, true);
        site.walk("move", &["--yes"]).exits(1).says("cannot take the engine").says(said);
        site.set(FRESH, name, false);
    }
    let nobody = ["hosted-engine", "plan", "move", "--host", &site.names[OLD], "--to", "127.0.0.2"];
    site.lab.hvbak(&[&nobody[..], &["--run", "--restart"]].concat()).exits(1).says("127.0.0.2");
    assert_eq!(site.calls(OLD, ""), 0, "nothing was asked of the old one");
    site.waits_at("spm", "move", &["--yes", "--restart"]);
    // A walk is one thing: other hosts and other sequences are another walk.
    site.walk("to-standalone", &["--yes"]).exits(2).says("`move` is open");
    site.lab.hvbak(&[&nobody[..], &["--run"]].concat()).exits(2).says("with --to");
    site.walk("move", &["--from", "nowhere"]).exits(2).says("stop-engine, backup, copy");
}

#[test]
fn what_cannot_be_noted_is_not_begun() {
    let site = Site::new();
    site.waits_at("spm", "move", &["--yes"]);
    site.waits_at("stop-engine", "move", &["--yes", "--confirm", "spm"]);
    let at = site.lab.path("repository/manager/engine.example.test/.walk.json.tmp");
    fs::create_dir(&at).unwrap();
    site.walk("move", &["--yes", "--confirm", "stop-engine"]).exits(1).says(".walk.json");
    assert!(!site.is(MANAGER, "off"), "the engine was stopped and nobody knows it");
    fs::remove_dir(&at).unwrap();
    // A record that is cut tells nothing; nothing is guessed from it.
    let record = site.lab.path("repository/manager/engine.example.test/.walk.json");
    let whole = fs::read_to_string(&record).unwrap();
    fs::write(&record, &whole[..whole.len() / 2]).unwrap();
    site.walk("move", &["--yes", "--confirm", "stop-engine"]).exits(15).says(".walk.json");
    assert!(!site.is(MANAGER, "off"));
    fs::write(&record, whole).unwrap();
    site.waits_at("shutdown", "move", &["--yes", "--confirm", "stop-engine"]);
}

#[test]
fn an_archive_that_arrives_otherwise_never_counts() {
    let site = Site::new();
    site.waits_at("spm", "move", &["--yes"]);
    let sure = ["--yes", "--confirm", "spm", "--confirm", "stop-engine"];
    site.set(FRESH, "lies", true);
    let run = site.walk("move", &sure).exits(1);
    run.says("step `copy` is not seen to be done");
    assert!(!site.lies(ARCHIVE), "what arrived otherwise was left there");
    assert!(!site.lies("root/hvbak-engine.backup.new"));
    site.set(FRESH, "lies", false);
    // A link of that name is not followed.
    let target = site.roots[FRESH].join("etc-shadow");
    fs::write(&target, "secret").unwrap();
    std::os::unix::fs::symlink(&target, site.roots[FRESH].join(ARCHIVE)).unwrap();
    site.walk("move", &sure).exits(1).says("a link or a directory has its name");
    assert_eq!(fs::read_to_string(&target).unwrap(), "secret");
    fs::remove_file(site.roots[FRESH].join(ARCHIVE)).unwrap();
    // The stored one is no longer what was stored.
    let title = site.record()["archive"].as_str().unwrap().to_owned();
    let point = title.split('@').next_back().unwrap().to_owned();
    let stored = site.lab.path("repository/manager/engine.example.test").join(point);
    let stored = stored.join("engine.backup");
    let good = fs::read(&stored).unwrap();
    hvbak_tests::damage::flip(&stored, 1000);
    site.walk("move", &sure).exits(15).says("not what was stored");
    assert!(!site.lies(ARCHIVE));
    fs::write(&stored, good).unwrap();
    site.waits_at("shutdown", "move", &sure);
}

#[test]
fn a_lost_engine_is_recovered_without_asking_who_is_lost() {
    let site = Site::new();
    site.walk("recover", &["--yes"]).exits(2).says("no stored archive");
    site.lab.hvbak(&["manager-backup"]).exits(0);
    fs::remove_file(site.roots[OLD].join("play/he/deployed")).unwrap();
    // The VM is seen up on a host that answers: it is not lost.
    site.set(OLD, "deployed", true);
    site.waits_at("dead", "recover", &["--yes"]).says("runs the engine's VM");
    let run = site.walk("recover", &["--yes", "--confirm", "dead"]).exits(1);
    run.says("runs the engine's VM");
    // Nobody answers any more.
    fs::copy(
        fixtures().join("vm-status/broker-down.stderr.txt"),
        site.roots[OLD].join("play/he/broker-down"),
    )
    .unwrap();
    let run = site.waits_at("dead", "recover", &["--yes"]);
    run.says("HA broker does not answer");
    let run = site.typed("recover", &["--yes"], &["", "yes", "q"]).exits(WAITING);
    run.says("waiting at step `deploy`");
    assert!(site.lies(ARCHIVE));
    site.deploy();
    site.waits_at("redeploy", "recover", &["--yes"]);
    // A newer archive that came meanwhile changes nothing.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    site.lab.hvbak(&["manager-backup"]).exits(0);
    let run = site.waits_at("old-domain", "recover", &["--yes", "--confirm", "redeploy"]);
    drop(run);
    let done = ["--yes", "--confirm", "old-domain"];
    site.waits_at("again", "recover", &done);
    site.walk("recover", &["--confirm", "again"]).exits(0).says("all steps are done");
    assert!(!site.lies(ARCHIVE));
}

#[test]
fn a_machine_of_its_own_becomes_a_self_hosted_engine() {
    let site = Site::new();
    site.waits_at("stop-engine", "to-hosted", &["--yes"]);
    let run = site.waits_at("old-machine", "to-hosted", &["--yes", "--confirm", "stop-engine"]);
    drop(run);
    // Its machine is off: nothing after this asks it.
    fs::remove_dir_all(site.roots[MANAGER].join("usr")).unwrap();
    site.waits_at("deploy", "to-hosted", &["--yes", "--confirm", "old-machine"]);
    site.deploy();
    site.waits_at("redeploy", "to-hosted", &["--yes"]);
    site.waits_at("again", "to-hosted", &["--yes", "--confirm", "redeploy"]);
    site.walk("to-hosted", &["--confirm", "again"]).exits(0);
    assert_eq!(site.calls(OLD, ""), 0, "there is no old host in it");
}

#[test]
fn steps_that_are_done_elsewhere_are_passed_and_what_they_left_is_looked_at() {
    let site = Site::new();
    site.moved_to_deploy();
    let title = site.record()["archive"].as_str().unwrap().to_owned();
    let again = ["--yes", "--restart", "--confirm", "restart", "--archive", &title];
    let run = site.walk("move", &[&again[..], &["--from", "answers"]].concat());
    // What passed steps should have left is not there: the copy is made, by name.
    run.exits(WAITING).says("`copy` no longer holds").says("waiting at step `deploy`");
    assert_eq!(site.state_of("spm"), "passed");
    assert!(site.lies(ARCHIVE));
    // Without the maintenance the walk does not stand where somebody says it stands.
    site.set(OLD, "maintained", false);
    site.set(OLD, "down", false);
    let run = site.waits_at("shutdown", "move", &["--yes"]);
    drop(run);
    assert!(site.is(OLD, "maintained"));
}

#[test]
fn a_broken_engine_is_restored_once_whenever_hvbak_dies() {
    let site = Site::new();
    site.lab.hvbak(&["manager-backup"]).exits(0);
    site.broken();
    let root = &site.roots[MANAGER];
    let run = site.waits_at("restore", "overwrite", &["--yes"]);
    run.says(&format!("--engine-setup --hosted-engine-host {}", site.names[OLD]));
    assert!(site.is(OLD, "maintained") && site.manager_calls("engine-cleanup") == 0);
    fs::write(root.join("play/wait"), "").unwrap();
    let sure = ["--yes", "--confirm", "restore"];
    let reached = |_: &Lab| site.manager_calls("--mode=restore") == 1;
    let walk = site.lab.start_until(&site.args("overwrite", &sure), reached);
    walk.signal(Signal::SIGKILL);
    walk.wait();
    assert_eq!(site.state_of("restore"), "begun");
    fs::write(root.join("play/go"), "").unwrap();
    site.waits_at("shutdown", "overwrite", &sure);
    let counts = || {
        ["engine-cleanup", "--mode=restore", "engine-setup"].map(|call| site.manager_calls(call))
    };
    assert_eq!(counts(), [1, 1, 1]);
    // It was judged, and hvbak died before it noted that.
    site.unnote("restore");
    site.waits_at("shutdown", "overwrite", &sure);
    assert_eq!(counts(), [1, 1, 1], "it was restored twice");
    site.unnote("restore");
    fs::write(root.join("play/machine/health"), "not yet").unwrap();
    let run = site.walk("overwrite", &sure).exits(1);
    run.says("was restored, and the engine does not answer");
    assert_eq!(counts(), [1, 1, 1], "it was restored twice");
    fs::remove_file(root.join("play/machine/health")).unwrap();
    // The agent starts the VM when it may, and not at once.
    let run = site.walk("overwrite", &["--yes", "--confirm", "restore", "--confirm", "shutdown"]);
    run.exits(1).says("step `healthy` is not seen to be done: no host runs the engine's VM");
    assert!(!site.is(OLD, "maintained"));
    site.set(OLD, "down", false);
    site.waits_at("again", "overwrite", &["--yes"]);
    site.walk("overwrite", &["--confirm", "again"]).exits(0);
    assert_eq!(site.calls(OLD, "--vm-shutdown"), 1);
}

#[test]
fn a_self_hosted_engine_gets_a_machine_of_its_own() {
    let site = Site::new();
    site.waits_at("spm", "to-standalone", &["--yes"]);
    site.waits_at("evacuate", "to-standalone", &["--yes", "--confirm", "spm"]);
    let sure = ["--yes", "--confirm", "evacuate", "--confirm", "stop-engine"];
    site.waits_at("shutdown", "to-standalone", &sure);
    site.waits_at("machine", "to-standalone", &["--yes", "--confirm", "shutdown"]);
    site.restorable();
    site.waits_at("restore", "to-standalone", &["--yes", "--confirm", "machine"]);
    // Agents that are let loose would start the old VM.
    site.set(OLD, "maintained", false);
    let run = site.waits_at("undeploy", "to-standalone", &["--yes", "--confirm", "restore"]);
    run.says("`maintenance` no longer holds");
    assert!(site.is(OLD, "maintained"));
    for call in ["--provision-all-databases", "--he-remove-storage-vm", "--he-remove-hosts"] {
        assert_eq!(site.manager_calls(call), 1, "{call}");
    }
    for step in ["undeploy", "hosts", "old-domain"] {
        site.walk("to-standalone", &["--confirm", step]).exits(WAITING);
    }
    site.walk("to-standalone", &["--confirm", "again"]).exits(0).says("all steps are done");
    assert_eq!((site.calls(FRESH, ""), site.calls(OLD, "--vm-shutdown")), (0, 1));
}
