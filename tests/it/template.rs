//! Templates: made of points, and stored once. What the engine copies is compared by `qemu-img`
//! through VMs that are thin on it.

use std::time::Duration;

use hvbak_tests::{Lab, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;

fn templates(lab: &Lab) -> Vec<Value> {
    lab.state()["templates"].as_array().unwrap().clone()
}

fn template(lab: &Lab, name: &str) -> Value {
    let all = templates(lab);
    all.iter().find(|t| t["name"] == name).unwrap_or_else(|| panic!("no {name}: {all:?}")).clone()
}

/// A VM that is thin on a template.
fn thin(lab: &Lab, template: &str, vm: &str) {
    let body = format!(
        "<vm><name>{vm}</name><cluster><name>Default</name></cluster>\
         <template><name>{template}</name></template></vm>"
    );
    lab.api("POST", "/vms", &body);
    lab.await_status(vm, "down");
}

/// The fault that keeps templates locked for ever.
const WAITS: &[&str] = &["operation", "template-waits", "--times", "1000000"];

#[test]
fn a_running_vms_point_becomes_a_template_and_nothing_else_stays() {
    let lab = Lab::standard();
    lab.fill_web1();
    let disk = lab.vm_id("web1");
    let body = "<vm><description>shop, front</description></vm>";
    lab.api("PUT", &format!("/vms/{disk}"), body);
    let (one, two) = (lab.save("web1", "web1_Disk1"), lab.save("web1", "web1_data"));
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    lab.write("web1", "web1_data", 0, 1 << 20, 0xff);
    let run = lab.json(&["restore", "web1", "--as-template", "golden"]).exits(0);
    let made = template(&lab, "golden");
    assert_eq!(run.result()["template"], made["id"], "{run}");
    assert_eq!(run.result()["vm"], Value::Null, "{run}");
    assert_eq!((&made["status"], &made["description"]), (&"ok".into(), &"shop, front".into()));
    assert_eq!(made["nics"].as_array().unwrap().len(), 1, "{made}");
    for id in made["disks"].as_array().unwrap() {
        let state = lab.state();
        let disk = state["disks"].as_array().unwrap().iter().find(|d| d["id"] == *id).unwrap();
        assert_eq!(disk["description"], "", "our mark must not stay: {disk}");
    }
    lab.assert_clean_but(&["golden"]);
    thin(&lab, "golden", "leaf");
    lab.same("leaf", "leaf_Disk1", &one);
    lab.same("leaf", "leaf_Disk2", &two);
}

#[test]
fn a_templates_name_that_is_taken_is_refused_before_anything_is_made() {
    let lab = Lab::standard();
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    let run = lab.hvbak(&["restore", "db1", "--as-template", "base"]).exits(2);
    run.says("template named `base` exists").says("--as-template");
    // A VM of that name is in nobody's way.
    lab.hvbak(&["restore", "db1", "--as-template", "db1"]).exits(0);
    lab.assert_clean_but(&["db1"]);
}

#[test]
fn a_dry_run_says_that_a_template_takes_its_room_twice_and_makes_nothing() {
    let lab = Lab::standard();
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    let words = ["restore", "db1", "--as-template", "{name}-{point}", "--dry-run"];
    lab.hvbak(&words).exits(0).says("template `db1-2").says("room twice");
    lab.assert_clean();
}

#[test]
fn a_template_that_the_engine_cannot_copy_leaves_nothing() {
    let lab = Lab::standard();
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    lab.fault(&["operation", "template-fails"]);
    let run = lab.hvbak(&["restore", "db1", "--as-template", "golden"]);
    assert_ne!(run.code, 0, "{run}");
    run.says("make template golden").says("removed");
    lab.assert_clean();
    lab.fault(&["http", "--method", "POST", "--path", "/templates", "--status", "400"]);
    let run = lab.hvbak(&["restore", "db1", "--as-template", "golden"]);
    assert_ne!(run.code, 0, "{run}");
    lab.assert_clean();
}

#[test]
fn a_request_that_is_lost_makes_one_template() {
    let lab = Lab::standard();
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    lab.fault(&["http", "--method", "POST", "--path", "/templates", "--drop", "--times", "1"]);
    lab.hvbak(&["restore", "db1", "--as-template", "golden"]).exits(0);
    assert_eq!(template(&lab, "golden")["description"], "");
    lab.assert_clean_but(&["golden"]);
}

#[test]
fn killed_while_the_engine_copies_a_restore_is_undone_by_cleanup() {
    let lab = Lab::standard();
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    lab.fault(WAITS);
    let locked = |lab: &Lab| templates(lab).iter().any(|t| t["name"] == "golden");
    let run = lab.start_until(&["restore", "db1", "--as-template", "golden"], locked);
    run.signal(Signal::SIGKILL);
    run.wait();
    // The engine goes on with its copy.
    lab.fault(&["clear"]);
    lab.hvbak(&["cleanup"]).exits(0).says("template `golden`");
    lab.assert_clean();
    lab.hvbak(&["cleanup"]).exits(0);
}

#[test]
fn killed_at_any_moment_a_template_is_whole_or_undone_by_cleanup() {
    let lab = Lab::standard();
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    let began = std::time::Instant::now();
    lab.hvbak(&["restore", "db1", "--as-template", "whole"]).exits(0);
    let whole = began.elapsed();
    let mut kept = vec!["whole".to_owned()];
    for n in 1..=8 {
        let name = format!("t{n}");
        let run = lab.start(&["restore", "db1", "--as-template", &name]);
        std::thread::sleep(whole * n / 8);
        run.signal(Signal::SIGKILL);
        run.wait();
        lab.hvbak(&["cleanup"]).exits(0);
        if templates(&lab).iter().any(|t| t["name"] == name.as_str()) {
            // It was the user's already; at most the mark is still on it.
            assert_eq!(template(&lab, &name)["status"], "ok");
            kept.push(name);
        }
        let names: Vec<_> = kept.iter().map(String::as_str).collect();
        wait_for("nothing but templates", || lab.leftovers(&names).is_empty());
    }
}

#[test]
fn stopped_while_the_engine_copies_a_restore_undoes_itself() {
    let lab = Lab::standard();
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    lab.fault(WAITS);
    let locked = |lab: &Lab| templates(lab).iter().any(|t| t["name"] == "golden");
    let run = lab.start_until(&["restore", "db1", "--as-template", "golden"], locked);
    run.signal(Signal::SIGINT);
    std::thread::sleep(Duration::from_millis(300));
    lab.fault(&["clear"]);
    run.wait().exits(130);
    lab.assert_clean();
}

#[test]
fn of_two_at_once_one_gets_the_name_and_the_other_leaves_nothing() {
    let lab = Lab::standard();
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    let words = ["restore", "db1", "--as-template", "golden"];
    let (one, two) = (lab.start(&words), lab.start(&words));
    let mut codes = [one.wait().code, two.wait().code];
    codes.sort_unstable();
    assert!(codes[0] == 0 && codes[1] != 0, "{codes:?}");
    lab.assert_clean_but(&["golden"]);
}

#[test]
fn the_role_for_templates_is_enough_to_make_and_to_undo_one() {
    let lab = Lab::standard();
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    let printed = lab.json(&["role", "print", "templates"]).exits(0);
    let permits = printed.of("permit");
    let names: Vec<&str> = permits.iter().map(|p| p["name"].as_str().unwrap()).collect();
    lab.fault(&[&["permits"], names.as_slice()].concat());
    lab.hvbak(&["role", "check", "templates"]).exits(0);
    lab.hvbak(&["restore", "db1", "--as-template", "golden"]).exits(0);
    lab.fault(&["operation", "template-fails"]);
    assert_ne!(lab.hvbak(&["restore", "db1", "--as-template", "never"]).code, 0);
    lab.assert_clean_but(&["golden"]);
    let less: Vec<&str> = names.iter().filter(|n| **n != "create_template").copied().collect();
    lab.fault(&[&["permits"], less.as_slice()].concat());
    lab.hvbak(&["restore", "db1", "--as-template", "never"]).exits(1).says("not authorized");
    lab.assert_clean_but(&["golden"]);
}

/// The template's disk as a raw image, by `qemu-img` from what lies on the storage.
fn base_disk(lab: &Lab) -> std::path::PathBuf {
    lab.save("thin1", "thin1_Disk1")
}

#[test]
fn a_template_is_stored_once_and_comes_back_as_template_and_as_vm() {
    let lab = Lab::standard();
    // The guest of a thin VM sees the template's content until it writes.
    let seen = base_disk(&lab);
    let dry = lab.json(&["backup", "--save-template", "ba*", "--dry-run"]).exits(0);
    assert_eq!(dry.of("plan")[0]["vms"][0]["template"], true, "{dry}");
    assert!(lab.points().is_empty());
    lab.hvbak(&["backup", "--save-template", "ba*"]).exits(0);
    assert_eq!(lab.points().len(), 1);
    let again = lab.json(&["backup", "--save-template", "base", "--vm", "db1"]).exits(0);
    assert_eq!((&again.result()["skipped"], lab.points().len()), (&1.into(), 2), "{again}");
    lab.hvbak(&["backup", "--save-template", "base"]).exits(0).says("stored already in");
    lab.hvbak(&["verify", "base"]).exits(0);
    lab.hvbak(&["restore", "base"]).exits(2).says("template named `base` exists");
    lab.hvbak(&["restore", "base", "--as-template", "base2"]).exits(0);
    lab.hvbak(&["restore", "base", "--as-vm", "--name", "loose"]).exits(0);
    thin(&lab, "base2", "leaf");
    lab.same("leaf", "leaf_Disk1", &seen);
    lab.same("loose", "base_Disk1", &seen);
    lab.assert_clean_but(&["base2", "leaf", "loose"]);
    lab.hvbak(&["backup", "--save-template", "base", "--level", "full"]).exits(0);
    assert_eq!(lab.points().len(), 3);
    lab.hvbak(&["prune", "--keep-last", "1"]).exits(0);
    assert_eq!(lab.points().len(), 2);
    lab.hvbak(&["verify", "--all"]).exits(0);
}

#[test]
fn a_template_with_content_is_stored_and_restored_byte_for_byte() {
    let lab = Lab::standard();
    lab.write_noise("db1", "db1_Disk1", 3 << 20, 5 << 20);
    let disk = lab.save("db1", "db1_Disk1");
    let body = format!(
        "<template><name>golden</name><description>the best</description><vm id=\"{}\"/></template>",
        lab.vm_id("db1")
    );
    lab.api("POST", "/templates", &body);
    wait_for("the template", || template(&lab, "golden")["status"] == "ok");
    lab.hvbak(&["backup", "--save-template", "golden"]).exits(0);
    let id = template(&lab, "golden")["id"].as_str().unwrap().to_owned();
    lab.api("DELETE", &format!("/templates/{id}"), "");
    wait_for("its end", || !templates(&lab).iter().any(|t| t["name"] == "golden"));
    lab.hvbak(&["restore", "golden"]).exits(0);
    let back = template(&lab, "golden");
    assert_eq!(
        (&back["description"], back["nics"].as_array().unwrap().len()),
        (&"the best".into(), 1)
    );
    thin(&lab, "golden", "leaf");
    lab.same("leaf", "leaf_Disk1", &disk);
    lab.assert_clean_but(&["golden", "leaf"]);
}

/// A template that takes seconds to read.
fn slow(lab: &Lab) -> String {
    lab.configure(|text| format!("{text}\n[transfer]\nrate_limit_mib = 2\n"));
    lab.write_noise("db1", "db1_Disk1", 0, 20 << 20);
    let body = format!("<template><name>golden</name><vm id=\"{}\"/></template>", lab.vm_id("db1"));
    lab.api("POST", "/templates", &body);
    wait_for("the template", || template(lab, "golden")["status"] == "ok");
    template(lab, "golden")["id"].as_str().unwrap().to_owned()
}

fn begun(lab: &Lab, id: &str) -> bool {
    let dir = lab.path("repository").join("vms").join(id);
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.path()).any(|point| {
        let files = std::fs::read_dir(point).into_iter().flatten().flatten();
        files.into_iter().any(|file| file.file_name().to_string_lossy().ends_with(".qcow2"))
    })
}

#[test]
fn a_template_that_is_deleted_while_it_is_read_is_not_stored() {
    let lab = Lab::standard();
    let id = slow(&lab);
    let run = lab.start_until(&["backup", "--save-template", "golden"], |lab| begun(lab, &id));
    lab.api("DELETE", &format!("/templates/{id}"), "");
    let run = run.wait();
    assert_ne!(run.code, 0, "{run}");
    assert!(lab.points().is_empty(), "{run}");
    lab.assert_clean();
}

#[test]
fn a_killed_backup_of_a_template_is_undone_by_cleanup_and_done_by_the_next() {
    let lab = Lab::standard();
    let id = slow(&lab);
    let run = lab.start_until(&["backup", "--save-template", "golden"], |lab| begun(lab, &id));
    run.signal(Signal::SIGKILL);
    run.wait();
    lab.hvbak(&["cleanup"]).exits(0);
    wait_for("nothing", || lab.leftovers(&["golden"]).is_empty());
    assert!(lab.points().is_empty());
    let run = lab.start_until(&["backup", "--save-template", "golden"], |lab| begun(lab, &id));
    run.signal(Signal::SIGINT);
    run.wait().exits(130);
    lab.assert_clean_but(&["golden"]);
    lab.hvbak(&["backup", "--save-template", "golden"]).exits(0);
    lab.hvbak(&["verify", "--all"]).exits(0);
}

#[test]
fn a_policy_stores_templates_and_the_report_does_not_call_them_old() {
    let lab = Lab::standard();
    lab.configure(|text| {
        format!("{text}\n[policy.golden]\nsave_templates = [\"ba*\"]\nlevel = \"full\"\nmax_age = \"1s\"\n")
    });
    let test = lab.json(&["policy", "test", "golden"]);
    assert_eq!(test.of("template")[0]["name"], "base", "{test}");
    for _ in 0..2 {
        lab.hvbak(&["backup", "--policy", "golden"]).exits(0);
        assert_eq!(lab.points().len(), 1);
    }
    std::thread::sleep(Duration::from_secs(2));
    let report = lab.json(&["report"]);
    assert_eq!(report.result()["too_old"], serde_json::json!([]), "{report}");
    assert_eq!(report.of("vm")[0]["template"], true, "{report}");
    // The same of a VM is old by then.
    lab.configure(|text| text.replace("save_templates = [\"ba*\"]", "vms = [\"db1\"]"));
    lab.hvbak(&["backup", "--policy", "golden"]).exits(0);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(lab.json(&["report"]).result()["too_old"], serde_json::json!(["db1"]));
}

#[test]
fn what_is_no_template_is_told_before_anything_begins() {
    let lab = Lab::standard();
    lab.hvbak(&["backup", "--save-template", "Blank"]).exits(2).says("Blank template");
    lab.hvbak(&["backup", "--save-template", "gone*"]).exits(2).says("no template `gone*`");
    lab.hvbak(&["backup", "--save-template", "*", "--dry-run"]).exits(0).never_says("Blank");
    lab.assert_clean();
}

#[test]
fn restore_all_brings_templates_back_beside_vms() {
    let lab = Lab::standard();
    lab.hvbak(&["backup", "--vm", "db1", "--save-template", "base"]).exits(0);
    lab.hvbak(&["restore", "--all"]).exits(0).says("exists and is left alone");
    lab.assert_clean();
}
