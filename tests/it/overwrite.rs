//! `hvbak restore --overwrite`: a VM is replaced by what a point holds, and whatever happens on the
//! way, one whole VM of that name is left: the old one as it was, or the new one in its place.

use std::{path::PathBuf, time::Duration};

use hvbak_tests::{Lab, Run, Started, small, wait_for};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// `web1` is down, has two disks, a LUN, a shareable disk and one that is left out by the restore.
struct Site {
    lab: Lab,
    /// The VM before the restore.
    old: Value,
    /// What its boot disk held when it was backed up.
    stored: PathBuf,
    /// What the disk that is left out holds now.
    kept: PathBuf,
}

const RESTORE: &[&str] = &["restore", "web1", "--overwrite", "--exclude-disk", "scratch"];

fn vm(lab: &Lab, id: &str) -> Option<Value> {
    lab.state()["vms"].as_array()?.iter().find(|v| v["id"] == id || v["name"] == id).cloned()
}

fn disks(vm: &Value) -> Vec<&str> {
    vm["disks"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn site() -> Site {
    let mut seed = small();
    let web1 = &mut seed["vms"][0];
    assert_eq!(web1["name"], "web1");
    web1["running"] = false.into();
    let list = web1["disks"].as_array_mut().unwrap();
    list.push(json!({ "alias": "scratch", "size": 1 << 20 }));
    list.push(json!({ "alias": "lun_1", "size": 1 << 20, "storage_type": "lun" }));
    list.push(json!({ "alias": "shared_1", "size": 1 << 20, "format": "raw-preallocated", "shareable": true }));
    let lab = Lab::with(&seed);
    lab.write("web1", "web1_Disk1", 1 << 20, 1 << 20, 0xab);
    let stored = lab.save("web1", "web1_Disk1");
    lab.hvbak(&["backup", "--vm", "web1"]);
    lab.write("web1", "web1_Disk1", 0, 4 << 20, 0xff);
    lab.write("web1", "scratch", 0, 4096, 0x33);
    let kept = lab.save("web1", "scratch");
    let old = vm(&lab, "web1").unwrap();
    assert_eq!(lab.own_snapshots("web1").len(), 1);
    Site { lab, old, stored, kept }
}

impl Site {
    fn id(&self) -> &str {
        self.old["id"].as_str().unwrap()
    }

    fn restore(&self, more: &[&str]) -> Run {
        self.lab.hvbak(&[RESTORE, more].concat())
    }

    fn start(&self) -> Started {
        self.lab.start(&[RESTORE, &["--confirm", "web1"]].concat())
    }

    /// Ids of the disks that the restore brings back.
    fn own(&self) -> Vec<&str> {
        disks(&self.old)[..2].to_vec()
    }

    /// The old VM is as it was, and nothing else is there.
    #[track_caller]
    fn is_old(&self, what: &str) {
        let now = vm(&self.lab, "web1").unwrap_or_else(|| panic!("{what}: no web1"));
        for key in ["id", "nics", "tags", "description"] {
            assert_eq!(now[key], self.old[key], "{what}: {key}");
        }
        let (mut had, mut has) = (disks(&self.old), disks(&now));
        had.sort_unstable();
        has.sort_unstable();
        assert_eq!(had, has, "{what}");
        self.settles(what);
    }

    /// The new VM is in the place of the old one.
    #[track_caller]
    fn is_new(&self, what: &str) {
        assert!(vm(&self.lab, self.id()).is_none(), "{what}: the old VM is there");
        let now = vm(&self.lab, "web1").unwrap_or_else(|| panic!("{what}: no web1"));
        assert_eq!(now["nics"], self.old["nics"], "{what}");
        assert_eq!(now["tags"], self.old["tags"], "{what}");
        assert_eq!(now["description"], self.old["description"], "{what}: the mark");
        let there = |id: &str| {
            let state = self.lab.state();
            state["disks"].as_array().unwrap().iter().any(|d| d["id"] == id)
        };
        for id in self.own() {
            wait_for("the old disks' deletion", || !there(id));
        }
        let now = disks(&now);
        assert_eq!(now.len(), 5, "{what}");
        for id in &disks(&self.old)[2..] {
            assert!(now.contains(id), "{what}: disk {id} is not kept");
        }
        self.lab.same("web1", "web1_Disk1", &self.stored);
        self.lab.same("web1", "scratch", &self.kept);
        self.settles(what);
    }

    #[track_caller]
    fn settles(&self, what: &str) {
        let settled = || self.lab.leftovers(&["web1"]).is_empty();
        for _ in 0..300 {
            if settled() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{what}: left behind: {:#?}", self.lab.leftovers(&["web1"]));
    }
}

#[test]
fn a_vm_is_replaced_with_its_name_addresses_tags_and_the_disks_that_are_not_restored() {
    let site = site();
    let shown = site.restore(&["--dry-run"]).exits(0);
    let text = shown.to_string();
    for id in site.own() {
        let line = text.lines().find(|line| line.contains(id)).unwrap();
        assert!(line.contains("DELETED"), "{line}");
    }
    for (id, alias) in disks(&site.old)[2..].iter().zip(["scratch", "lun_1", "shared_1"]) {
        let line = text.lines().find(|line| line.contains(id)).unwrap();
        assert!(line.contains("kept") && line.contains(alias), "{line}");
    }
    site.is_old("after the dry run");
    let run =
        site.restore(&["--confirm", "web1", "--power-on"]).exits(0).says("next backup is full");
    site.lab.await_status("web1", "up");
    site.is_new(&run.to_string());
    // The point's VM is gone for good, and the other one is not taken for it.
    site.restore(&["--confirm", "web1"]).exits(2).says("is another");
    site.lab.act("web1", "stop", "");
    site.lab.await_status("web1", "down");
    site.restore(&["--confirm", "web1"]).exits(2).says("is another");
    // The next backup is of another VM, so it is full.
    let run = site.lab.hvbak(&["backup", "--vm", "web1", "--dry-run"]);
    assert!(run.to_string().contains("full"), "{run}");
}

#[test]
fn nothing_is_deleted_whose_name_was_not_said() {
    let site = site();
    site.restore(&[]).exits(16).says("--confirm").says("DELETED");
    site.restore(&["--confirm", "web2"]).exits(2).says("`web2` is not `web1`");
    let typed = |line| site.lab.typed(RESTORE, &[line]);
    typed("yes").exits(2).says("nothing was begun");
    site.is_old("not confirmed");
    typed("web1").exits(0);
    site.is_new("typed");
}

#[test]
fn a_vm_that_somebody_would_miss_is_left_alone_and_the_remedy_is_said() {
    let site = site();
    let (lab, path) = (&site.lab, format!("/vms/{}", site.id()));
    let refused = |text: &str, remedy: &str| {
        site.restore(&["--confirm", "web1"]).exits(2).says(text).says(remedy);
    };
    lab.api("PUT", &path, "<vm><delete_protected>true</delete_protected></vm>");
    refused("protected", "take its delete protection away");
    lab.api("PUT", &path, "<vm><delete_protected>false</delete_protected></vm>");
    lab.foreign_snapshot("web1", "before the update");
    refused("before the update", "delete it if nobody needs it");
    lab.delete_snapshot("web1", "before the update");
    lab.act("web1", "start", "");
    lab.await_status("web1", "up");
    refused("not down", "shut it down");
    lab.act("web1", "stop", "");
    lab.await_status("web1", "down");
    site.is_old("refused");
    site.restore(&["--confirm", "web1"]).exits(0);
    site.is_new("in the end");
}

#[test]
fn a_vm_that_is_started_in_between_stays() {
    let site = site();
    site.lab.fault(&[
        "http",
        "--method",
        "POST",
        "--path",
        "/vms",
        "--delay-ms",
        "1500",
        "--times",
        "1",
    ]);
    let made = |lab: &Lab| lab.state()["disks"].as_array().unwrap().len() > 8;
    let started = site.lab.start_until(&[RESTORE, &["--confirm", "web1"]].concat(), made);
    site.lab.act("web1", "start", "");
    let run = started.wait();
    assert_eq!(run.code, 1, "{run}");
    run.says("not down").says("nothing of it was deleted");
    site.is_old("started in between");
    assert_eq!(vm(&site.lab, "web1").unwrap()["status"], "up");
}

/// The deletion of the old VM itself is answered so; those of its disks' attachments are let
/// through.
fn at_deletion(site: &Site, how: &[&str]) {
    let through = ["http", "--method", "DELETE", "--path", "/diskattachments", "--times", "3"];
    site.lab.fault(&through);
    site.lab.fault(&["http", "--method", "DELETE", "--path", "/snapshots", "--times", "1"]);
    let path = format!("/vms/{}", site.id());
    site.lab
        .fault(&[&["http", "--method", "DELETE", "--path", &path, "--times", "1"], how].concat());
}

#[test]
fn a_deletion_that_the_engine_refuses_is_taken_back() {
    let site = site();
    let fault = "<fault><detail>[Cannot remove VM. VM is running.]</detail><reason>Operation Failed</reason></fault>";
    at_deletion(&site, &["--status", "409", "--body", fault]);
    let run = site.restore(&["--confirm", "web1"]).exits(1).says("Cannot remove VM");
    site.is_old(&run.to_string());
    site.restore(&["--confirm", "web1"]).exits(0);
    site.is_new("the second time");
}

#[test]
fn a_deletion_that_is_under_way_when_hvbak_dies_does_not_take_both_vms() {
    let site = site();
    at_deletion(&site, &["--delay-ms", "4000"]);
    let detached = |lab: &Lab| vm(lab, site.id()).is_some_and(|v| disks(&v).len() == 2);
    let started = site.lab.start_until(&[RESTORE, &["--confirm", "web1"]].concat(), detached);
    std::thread::sleep(Duration::from_millis(1500));
    started.signal(Signal::SIGKILL);
    started.wait();
    site.lab.hvbak(&["cleanup"]).exits(0).says("protected against deletion now");
    // The simulated engine comes to the request now.
    std::thread::sleep(Duration::from_millis(5000));
    site.is_old("after the late request");
    site.restore(&["--confirm", "web1"]).exits(2).says("take its delete protection away");
}

#[test]
fn an_answer_that_is_lost_does_not_keep_the_new_vm_from_its_place() {
    let site = site();
    at_deletion(&site, &["--drop"]);
    // The request is said again: a VM that is gone already is as good.
    let run = site.restore(&["--confirm", "web1"]).exits(0);
    site.is_new(&run.to_string());
}

/// Lets each request of a kind take its time, so that a moment between two can be hit.
fn slow(lab: &Lab, method: &str) {
    lab.fault(&["http", "--method", method, "--path", "/vms", "--delay-ms", "250", "--times", "0"]);
}

/// A moment of a replacement: its name, and what can be seen of it.
type Moment = (&'static str, fn(&Site) -> bool);

fn moments() -> Vec<Moment> {
    fn new(site: &Site) -> Option<Value> {
        let state = site.lab.state();
        let mut all = state["vms"].as_array()?.iter();
        let is_new = |v: &&Value| {
            let name = v["name"].as_str().unwrap_or("");
            v["id"] != site.id() && (name == "web1" || name.starts_with("web1-hvbak-"))
        };
        all.find(is_new).cloned()
    }
    fn old(site: &Site) -> Option<Value> {
        vm(&site.lab, site.id())
    }
    vec![
        ("the new VM stands", |s| new(s).is_some()),
        ("our snapshot is gone", |s| {
            old(s).is_none_or(|v| v["snapshots"].as_array().unwrap().len() == 1)
        }),
        ("a disk is detached", |s| old(s).is_none_or(|v| disks(&v).len() < 5)),
        ("all kept disks are detached", |s| old(s).is_none_or(|v| disks(&v).len() < 3)),
        ("the old VM is gone", |s| old(s).is_none()),
        ("the new VM has the name", |s| vm(&s.lab, "web1").is_some_and(|v| v["id"] != s.id())),
        ("a kept disk is attached", |s| {
            old(s).is_none() && new(s).is_some_and(|v| disks(&v).len() > 2)
        }),
        ("it has a NIC", |s| new(s).is_some_and(|v| !v["nics"].as_array().unwrap().is_empty())),
        ("it has its tag", |s| new(s).is_some_and(|v| !v["tags"].as_array().unwrap().is_empty())),
        ("its mark is gone", |s| new(s).is_some_and(|v| v["description"] == s.old["description"])),
    ]
}

/// Every third of them.
fn few(first: usize) -> Vec<Moment> {
    moments().into_iter().skip(first).step_by(3).collect()
}

/// Kills a replacement at those moments, and lets `go_on` end it.
fn killed_at(moments: Vec<Moment>, go_on: fn(&Site, &str)) {
    for (what, reached) in moments {
        let site = site();
        for method in ["POST", "PUT", "DELETE"] {
            slow(&site.lab, method);
        }
        let mut started = site.start();
        wait_for(what, || reached(&site) || started.ended());
        started.signal(Signal::SIGKILL);
        started.wait();
        go_on(&site, what);
        site.lab.fault(&["clear"]);
        let before = site.lab.state();
        site.lab.hvbak(&["cleanup"]).exits(0).says("nothing is left behind");
        site.settles(what);
        assert_eq!(before["vms"], site.lab.state()["vms"], "{what}: the second cleanup");
    }
}

#[test]
fn a_replacement_that_was_killed_is_ended_by_cleanup() {
    killed_at(moments(), |site, what| {
        let shown = site.lab.hvbak(&["cleanup"]).exits(0);
        let what = format!("{what}\n{shown}");
        match vm(&site.lab, site.id()) {
            Some(_) => site.is_old(&what),
            None => site.is_new(&what),
        }
    });
}

#[test]
fn a_replacement_that_was_killed_is_ended_by_the_same_restore() {
    // Before the first, the job that died is one like others, for `hvbak cleanup`.
    killed_at(few(1), |site, what| {
        let mut shown = site.restore(&["--confirm", "web1"]);
        if shown.code == 2 {
            // Its deletion may have been asked for.
            shown.says("take its delete protection away");
            let body = "<vm><delete_protected>false</delete_protected></vm>";
            site.lab.api("PUT", &format!("/vms/{}", site.id()), body);
            shown = site.restore(&["--confirm", "web1"]);
        }
        let shown = shown.exits(0);
        site.is_new(&format!("{what}\n{shown}"));
    });
}

#[test]
fn an_interrupted_replacement_is_whole_one_way_or_the_other() {
    for (what, reached) in few(0) {
        let site = site();
        slow(&site.lab, "PUT");
        slow(&site.lab, "DELETE");
        let mut started = site.start();
        wait_for(what, || reached(&site) || started.ended());
        started.signal(Signal::SIGINT);
        let run = started.wait();
        let what = format!("{what}\n{run}");
        match run.code {
            0 => site.is_new(&what),
            130 => site.is_old(&what),
            _ => panic!("{what}"),
        }
    }
}

#[test]
fn a_name_that_is_taken_in_the_last_moment_is_told_and_gone_on_with() {
    let site = site();
    slow(&site.lab, "PUT");
    let mut started = site.start();
    wait_for("the old VM is gone", || vm(&site.lab, site.id()).is_none() || started.ended());
    let body = "<vm><name>web1</name><cluster><name>Default</name></cluster><template><name>Blank</name></template></vm>";
    site.lab.api("POST", "/vms", body);
    let run = started.wait();
    assert_eq!(run.code, 1, "{run}");
    run.says("is deleted").says("delete nothing").says("cleanup");
    site.lab.fault(&["clear"]);
    site.lab.hvbak(&["cleanup"]).exits(3).says("name is already in use");
    let other = vm(&site.lab, "web1").unwrap()["id"].as_str().unwrap().to_owned();
    site.lab.api("DELETE", &format!("/vms/{other}"), "");
    site.lab.hvbak(&["cleanup"]).exits(0).says("is replaced by");
    site.is_new("after the name was free");
}
