//! Walks when hosts are gone for good, when somebody else does something meanwhile, and what a
//! person's word is worth.

use std::{fs, os::unix::fs::PermissionsExt};

use nix::sys::signal::Signal;

use crate::walk_site::{ANSWERS, ARCHIVE, FRESH, MANAGER, OLD, Site, WAITING, fixtures};

fn answered_by_nobody(site: &Site) -> String {
    let stale = fs::read_to_string(fixtures().join("vm-status/stale.json")).unwrap();
    let stale = stale.replace("\"global_maintenance\": false", "\"global_maintenance\": true");
    let up = "\"vm\": \"up\", \"health\": \"good\"";
    assert!(stale.contains(up));
    let over = stale.replacen(up, "\"vm\": \"down\", \"health\": \"bad\"", 1);
    fs::write(site.roots[OLD].join("play/he/override"), &over).unwrap();
    over
}

#[test]
fn a_person_answers_for_a_step_where_a_silent_host_alone_could_tell_and_nowhere_else() {
    let site = Site::new();
    site.waits_at("spm", "move", &["--yes"]);
    site.waits_at("shutdown", "move", &["--yes", "--confirm", "spm", "--confirm", "stop-engine"]);
    for (word, said) in [("copy", "hvbak sees itself"), ("shutdwn", "no step `shutdwn`")] {
        site.walk("move", &["--yes", "--witness", word]).exits(2).says(said);
    }
    // The VM is seen: nobody's word counts against that.
    site.waits_at("shutdown", "move", &["--yes", "--witness", "shutdown"]);
    answered_by_nobody(&site);
    let run = site.walk("move", &["--yes", "--confirm", "shutdown"]).exits(1);
    run.says("nobody can tell whether step `shutdown` is done: without live data")
        .says("--witness shutdown")
        .says("--host OTHER");
    site.walk("move", &["--yes", "--confirm", "shutdown"]).exits(1);
    assert_eq!(site.state_of("shutdown"), "begun");
    let run = site.waits_at("deploy", "move", &["--yes", "--witness", "shutdown"]);
    run.says("a person's word is taken for it");
    // It is remembered, and holds as long as nothing is seen against it.
    site.waits_at("deploy", "move", &["--yes"]).says("without live data");
    fs::remove_file(site.roots[OLD].join("play/he/override")).unwrap();
    site.set(OLD, "down", false);
    site.waits_at("shutdown", "move", &["--yes"]).says("`shutdown` no longer holds");
    // It was for that time.
    answered_by_nobody(&site);
    site.walk("move", &["--yes", "--confirm", "shutdown"]).exits(1).says("nobody can tell");
    // On a terminal it is asked for, and Enter is not enough.
    let lines = ["yes", "", "yes", "q"];
    let run = site.typed("move", &["--yes"], &lines).exits(WAITING);
    run.says("I have seen it done, and answer for it").says("waiting at step `deploy`");
}

#[test]
fn another_host_is_asked_when_the_first_one_is_gone_and_not_before() {
    let site = Site::new();
    site.lab.hvbak(&["manager-backup"]).exits(0);
    site.waits_at("restore", "overwrite", &["--yes"]);
    let (first, other) = (&site.names[OLD], &site.names[FRESH]);
    let by = ["hosted-engine", "plan", "overwrite", "--host", other, "--run", "--yes"];
    let run = site.lab.hvbak(&by).exits(2);
    run.says(&format!("by way of host {first}, and that one answers"));
    let port = format!("port = {}\n", site.lab.up["hosts"][OLD]["port"]);
    site.lab.configure(|text| text.replace(&port, "port = 1\n"));
    site.walk("overwrite", &["--yes"]).exits(1).says("cannot log in").says("--host OTHER");
    // One that was never deployed knows nothing.
    site.lab.hvbak(&by).exits(1).says(&format!("host {other} cannot be asked instead"));
    assert_eq!(site.record()["host"], first.as_str());
    site.deploy();
    site.set(FRESH, "maintained", true);
    let run = site.lab.hvbak(&by).exits(WAITING).says("waiting at step `restore`");
    run.says(&format!("host {first} is gone")).says(&format!("{other} is asked instead"));
    let record = site.record();
    assert_eq!(
        (&record["host"], &record["gone_hosts"][0]),
        (&other.as_str().into(), &first.as_str().into())
    );
    site.lab.hvbak(&by).exits(WAITING);
}

#[test]
fn a_deployment_is_begun_when_somebody_says_so_or_it_is_seen_and_not_by_being_shown() {
    let site = Site::new();
    site.moved_to_deploy();
    assert_eq!(site.state_of("deploy"), "shown");
    let (archive, answers) = (site.roots[FRESH].join(ARCHIVE), site.roots[FRESH].join(ANSWERS));
    let good = fs::read(&archive).unwrap();
    let is_good = || fs::read(&archive).is_ok_and(|there| there == good);
    // What is filled in stays, whoever could read it meanwhile.
    let filled =
        fs::read_to_string(&answers).unwrap() + "OVEHOSTED_NETWORK/gateway=str:192.0.2.1\n";
    fs::write(&answers, &filled).unwrap();
    fs::set_permissions(&answers, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&archive, "something else").unwrap();
    let run = site.waits_at("deploy", "move", &["--yes"]);
    run.says("`copy` no longer holds").says("`answers` no longer holds");
    assert!(is_good());
    assert_eq!(fs::read_to_string(&answers).unwrap(), filled);
    assert_eq!(fs::metadata(&answers).unwrap().permissions().mode() & 0o777, 0o600);
    // There is a way back to a step before it.
    site.waits_at("deploy", "move", &["--yes", "--from", "copy"]);
    // Somebody types that it was started.
    site.typed("move", &["--yes"], &["s", "q"]).exits(WAITING).says("s: it was started");
    assert_eq!(site.state_of("deploy"), "begun");
    // While it is at work nothing is changed below it.
    site.set(FRESH, "deploying", true);
    fs::write(&archive, "its program has it open").unwrap();
    site.waits_at("deploy", "move", &["--yes"]).says("do not start another one");
    assert!(!is_good());
    site.walk("move", &["--yes", "--from", "copy"]).exits(2).says("`deploy` was begun");
    // It failed, and was cleaned up: before the call is shown again, all is as it should be.
    site.set(FRESH, "deploying", false);
    site.waits_at("deploy", "move", &["--yes"]).says("`copy` no longer holds");
    assert!(is_good());
    site.waits_at("deploy", "move", &["--yes", "--from", "copy"]);
    // Begun by somebody who told nobody.
    site.set(FRESH, "deploying", true);
    fs::write(&archive, "its program has it open").unwrap();
    site.waits_at("deploy", "move", &["--yes"]);
    assert!(!is_good() && site.state_of("deploy") == "begun");
    site.set(FRESH, "deploying", false);
    site.deploy();
    site.waits_at("redeploy", "move", &["--yes"]);
}

#[test]
fn a_step_that_was_never_reached_is_not_answered_for() {
    let site = Site::new();
    for step in ["spm", "stop-engine", "shutdown", "deploy", "restart"] {
        site.walk("move", &["--yes", "--confirm", step]).exits(2);
    }
    assert_eq!(site.calls(OLD, "") + site.calls(FRESH, "") + site.calls(MANAGER, ""), 0);
    site.waits_at("spm", "move", &["--yes"]);
    for (step, said) in [
        ("stop-engine", "step `stop-engine` was not shown yet: the sequence is open at `spm`"),
        ("deploy", "step `deploy` was not shown yet"),
        ("stop-engin", "no step `stop-engin`"),
    ] {
        site.walk("move", &["--yes", "--confirm", step]).exits(2).says(said);
    }
    assert!(!site.is(MANAGER, "off") && !site.is(OLD, "maintained"));
    assert_eq!(site.state_of("spm"), "begun");
}

#[test]
fn an_overwrite_that_dies_between_its_parts_does_each_once_and_leaves_others_maintenance_alone() {
    let site = Site::new();
    site.lab.hvbak(&["manager-backup"]).exits(0);
    site.broken();
    let root = &site.roots[MANAGER];
    let machine = root.join("play/machine");
    let sure = ["--yes", "--confirm", "restore"];
    let counts = || {
        ["engine-cleanup", "--mode=restore", "engine-setup"].map(|call| site.manager_calls(call))
    };
    let die_at = |call: &str| {
        let walk =
            site.lab.start_until(&site.args("overwrite", &sure), |_| site.manager_calls(call) == 1);
        walk.signal(Signal::SIGKILL);
        walk.wait();
        assert_eq!(site.state_of("restore"), "begun", "{call}");
    };
    site.waits_at("restore", "overwrite", &["--yes"]);
    fs::write(machine.join("cleanup-wait"), "").unwrap();
    fs::write(root.join("play/wait"), "").unwrap();
    fs::write(machine.join("setup-wait"), "").unwrap();
    die_at("engine-cleanup");
    assert_eq!(counts(), [1, 0, 0]);
    // It ends without hvbak; the next one finds nothing to clean up and goes on behind it.
    fs::remove_file(machine.join("cleanup-wait")).unwrap();
    die_at("--mode=restore");
    assert_eq!(counts(), [1, 1, 0]);
    fs::write(root.join("play/go"), "").unwrap();
    die_at("engine-setup");
    assert_eq!(counts(), [1, 1, 1]);
    fs::remove_file(machine.join("setup-wait")).unwrap();
    site.waits_at("shutdown", "overwrite", &sure);
    assert_eq!(counts(), [1, 1, 1]);
    let run = site.walk("overwrite", &["--yes", "--confirm", "shutdown"]).exits(1);
    run.says("step `healthy` is not seen to be done");
    assert!(!site.is(OLD, "maintained"), "its own maintenance has ended");
    // Somebody sets one on purpose.
    site.set(OLD, "maintained", true);
    let run = site.walk("overwrite", &["--yes"]).exits(1);
    run.says("`release` no longer holds: the hosts still show global maintenance");
    assert!(site.is(OLD, "maintained"), "a maintenance of somebody else's was ended");
    assert_eq!(site.calls(OLD, "--mode=none"), 1);
    site.set(OLD, "down", false);
    site.waits_at("again", "overwrite", &["--yes"]);
    assert!(site.is(OLD, "maintained"));
}
