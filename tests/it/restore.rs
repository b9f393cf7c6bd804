//! `hvbak restore`: the guest gets back what it had, in a VM that the engine starts.

use hvbak_tests::{Lab, run_tool, wait_for};
use serde_json::Value;

fn vm(lab: &Lab, name: &str) -> Value {
    let state = lab.state();
    let vms = state["vms"].as_array().unwrap();
    vms.iter()
        .find(|v| v["name"] == name)
        .unwrap_or_else(|| panic!("no VM {name}: {state}"))
        .clone()
}

#[test]
fn a_damaged_vm_comes_back_byte_for_byte_beside_itself() {
    let lab = Lab::standard();
    lab.fill_web1();
    let (one, two) = (lab.save("web1", "web1_Disk1"), lab.save("web1", "web1_data"));
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    lab.write("web1", "web1_Disk1", 0, 16 << 20, 0xff);
    lab.hvbak(&["restore", "web1@latest", "--name", "web1-restored"]).exits(0);
    lab.same("web1-restored", "web1_Disk1", &one);
    lab.same("web1-restored", "web1_data", &two);
    for volume in lab.volumes("web1-restored", "web1_data") {
        run_tool("qemu-img", &["check", "-f", "qcow2", volume.to_str().unwrap()]);
    }
    lab.assert_clean_but(&["web1-restored"]);
}

#[test]
fn a_restored_vm_starts_and_has_its_nics_and_attachments() {
    let lab = Lab::standard();
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    lab.hvbak(&["restore", "web1", "--name", "back", "--power-on", "--disconnected"]).exits(0);
    wait_for("the VM's start", || vm(&lab, "back")["status"] == "up");
    let (old, new) = (vm(&lab, "web1"), vm(&lab, "back"));
    assert_eq!(new["disks"].as_array().unwrap().len(), 2);
    let nics = new["nics"].as_array().unwrap();
    assert_eq!((nics.len(), &nics[0]["linked"]), (1, &Value::Bool(false)), "{new}");
    assert_ne!(nics[0]["mac"], old["nics"][0]["mac"], "the original VM still has this address");
    assert_ne!(new["disks"][0], old["disks"][0]);
    lab.assert_clean_but(&["back"]);
}

#[test]
fn a_restored_disk_is_described_as_it_was() {
    let lab = Lab::standard();
    let disk = vm(&lab, "web1")["disks"][0].as_str().unwrap().to_owned();
    let body = "<disk><description>accounts, do not touch</description></disk>";
    lab.api("PUT", &format!("/disks/{disk}"), body);
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    lab.hvbak(&["restore", "web1", "--name", "back"]).exits(0);
    let restored = vm(&lab, "back")["disks"].as_array().unwrap().clone();
    let state = lab.state();
    let described = |id: &Value| {
        let found = state["disks"].as_array().unwrap().iter().find(|d| d["id"] == *id);
        found.unwrap()["description"].as_str().unwrap().to_owned()
    };
    let mut words: Vec<_> = restored.iter().map(described).collect();
    words.sort();
    assert_eq!(words, ["", "accounts, do not touch"]);
    lab.assert_clean_but(&["back"]);
}

#[test]
fn disks_are_restored_in_the_format_that_is_asked_for() {
    let lab = Lab::standard();
    lab.fill_web1();
    let (one, two) = (lab.save("web1", "web1_Disk1"), lab.save("web1", "web1_data"));
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    for format in ["raw-sparse", "raw-preallocated", "cow"] {
        let name = format!("as-{format}");
        lab.hvbak(&["restore", "web1", "--name", &name, "--format", format]).exits(0);
        lab.same(&name, "web1_Disk1", &one);
        lab.same(&name, "web1_data", &two);
        let volume = &lab.volumes(&name, "web1_data")[0];
        let shown = run_tool("qemu-img", &["info", "--output=json", volume.to_str().unwrap()]);
        let shown: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(shown["format"], if format == "cow" { "qcow2" } else { "raw" });
    }
    lab.assert_clean_but(&["as-raw-sparse", "as-raw-preallocated", "as-cow"]);
}

#[test]
fn a_thin_vm_comes_back_without_its_template() {
    let lab = Lab::standard();
    lab.write("thin1", "thin1_Disk1", 2 << 20, 2 << 20, 0x42);
    let reference = lab.save("thin1", "thin1_Disk1");
    lab.hvbak(&["backup", "--vm", "thin1"]).exits(0);
    lab.hvbak(&["restore", "thin1", "--name", "thick1"]).exits(0);
    lab.same("thick1", "thin1_Disk1", &reference);
    assert_eq!(lab.volumes("thick1", "thin1_Disk1").len(), 1);
}

#[test]
fn a_dry_run_of_a_restore_makes_nothing() {
    let lab = Lab::standard();
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    lab.hvbak(&["restore", "db1", "--name", "other", "--dry-run"]).exits(0).says("db1_Disk1");
    assert!(!lab.vm_names().iter().any(|n| n == "other"));
    lab.assert_clean();
}

#[test]
fn a_name_that_is_taken_is_refused_before_anything_is_made() {
    let lab = Lab::standard();
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    let run = lab.hvbak(&["restore", "db1"]);
    assert!(run.code == 1 || run.code == 2, "{run}");
    run.says("db1").says("hint");
    lab.assert_clean();
}

#[test]
fn one_disk_of_a_point_can_be_restored_alone() {
    let lab = Lab::standard();
    lab.fill_web1();
    let two = lab.save("web1", "web1_data");
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    lab.hvbak(&["restore", "web1", "--name", "part", "--disk", "web1_data"]).exits(0);
    lab.same("part", "web1_data", &two);
    assert_eq!(vm(&lab, "part")["disks"].as_array().unwrap().len(), 1);
}

#[test]
fn a_restore_that_fails_takes_away_what_it_made() {
    let lab = Lab::standard();
    lab.fill_web1();
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    let path = "/diskattachments";
    lab.fault(&["http", "--method", "POST", "--path", path, "--status", "400", "--times", "1"]);
    let run = lab.hvbak(&["restore", "web1", "--name", "never"]);
    assert_ne!(run.code, 0, "{run}");
    lab.assert_clean();
}

#[test]
fn an_address_that_another_vm_has_is_refused_before_anything_is_made() {
    let lab = Lab::standard();
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    let events = lab.state()["events"].as_array().unwrap().len();
    lab.hvbak(&["restore", "db1", "--name", "twin", "--mac", "keep"])
        .exits(2)
        .says("VM `db1` has it")
        .says("--mac new");
    assert_eq!(lab.state()["events"].as_array().unwrap().len(), events);
    lab.assert_clean();
}

fn map(lab: &Lab, text: &str) -> String {
    let path = lab.path("site.toml");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn several_points_come_back_in_one_call_as_a_map_says() {
    let lab = Lab::standard();
    lab.fill_web1();
    let (web, db) = (lab.save("web1", "web1_data"), lab.save("db1", "db1_Disk1"));
    lab.hvbak(&["backup", "--vm", "web1", "--vm", "db1"]).exits(0);
    fn both<'a>(more: &[&'a str]) -> Vec<&'a str> {
        ["restore", "web1", "db1"].iter().chain(more).copied().collect()
    }
    lab.hvbak(&both(&["--name", "same"])).exits(2).says("{name}");
    let file = map(
        &lab,
        "name = \"{name}-dr\"\n[vms.db1]\nname = \"books\"\ndisconnected = true\n\
         [vms.db1.disks.db1_Disk1]\nname = \"books_boot\"\ninterface = \"sata\"\n\
         [vms.web1]\npower_on = true\n[vms.web1.disks.web1_data]\nstorage_domain = \"nowhere\"\n",
    );
    let (vms, disks) = (lab.state()["vms"].clone(), lab.state()["disks"].clone());
    let run = lab.json(&both(&["--map", &file, "--dry-run"])).exits(3);
    assert_eq!(run.result()["failed"][0]["name"], "web1", "{run}");
    // One that cannot be planned keeps all from being begun, unless that is not wanted.
    lab.hvbak(&both(&["--map", &file])).exits(2).says("nowhere").says("nothing was begun");
    assert_eq!((&vms, &disks), (&lab.state()["vms"], &lab.state()["disks"]));
    let run = lab.json(&both(&["--map", &file, "--keep-going"])).exits(3);
    assert_eq!(run.result()["done"][0]["name"], "books", "{run}");
    lab.same("books", "books_boot", &db);
    let state = vm(&lab, "books");
    assert!(!state["nics"].as_array().unwrap().iter().any(|n| n["linked"] == true), "{state}");
    let file = map(&lab, "name = \"{name}-dr\"\n[vms.db1]\nskip = true\n");
    let run = lab.json(&both(&["--map", &file, "--disk-name", "web1_data:data"])).exits(2);
    assert!(run.to_string().contains("web1_data"), "it is no disk of db1: {run}");
    lab.hvbak(&[
        "restore",
        "web1",
        "--map",
        &file,
        "--disk-name",
        "web1_data:data",
        "--boot",
        "web1_data",
    ])
    .exits(0);
    lab.same("web1-dr", "data", &web);
    map(&lab, "nmae = \"x\"\n");
    lab.hvbak(&both(&["--map", &file])).exits(2).says("nmae");
    lab.assert_clean_but(&["books", "web1-dr"]);
}

#[test]
fn a_site_is_brought_back_by_what_it_lacks() {
    let lab = Lab::standard();
    let db = lab.save("db1", "db1_Disk1");
    lab.hvbak(&["backup", "--vm", "db1", "--vm", "web1"]).exits(0);
    let id = vm(&lab, "db1")["id"].as_str().unwrap().to_owned();
    let disks = vm(&lab, "db1")["disks"].clone();
    lab.api("DELETE", &format!("/vms/{id}"), "");
    wait_for("the VM is gone", || {
        !lab.state()["vms"].as_array().unwrap().iter().any(|v| v["name"] == "db1")
    });
    // A day before all points is a mistake, not a success.
    lab.hvbak(&["restore", "--all", "--until", "2020-01-01"]).exits(2).says("nothing");
    let file = map(&lab, "[vms.web3]\nskip = true\n");
    lab.hvbak(&["restore", "--all", "--map", &file]).exits(2).says("web3");
    let run = lab.json(&["restore", "--all"]).exits(0);
    assert_eq!(run.result()["existing"], serde_json::json!(["web1"]), "{run}");
    assert_eq!(run.result()["done"][0]["name"], "db1", "{run}");
    assert_ne!(vm(&lab, "db1")["disks"], disks);
    lab.same("db1", "db1_Disk1", &db);
    // What has its name now is another VM, as far as anybody can know: told, and left alone.
    let run = lab.json(&["restore", "--all"]).exits(3);
    assert_eq!(run.result()["done"], serde_json::json!([]), "{run}");
    assert_eq!(run.result()["taken"], serde_json::json!(["db1"]), "{run}");
    // One that cannot be read keeps nobody else from coming back.
    let manifest = lab.point("web1").join("manifest.json");
    std::fs::write(manifest, "{").unwrap();
    let all = ["restore", "--all", "--name", "{name}-2"];
    lab.hvbak(&all).exits(2).says("nothing was begun");
    let run = lab.json(&[&all[..], &["--keep-going"]].concat()).exits(3);
    assert_eq!(run.result()["done"][0]["name"], "db1-2", "{run}");
    lab.same("db1-2", "db1_Disk1", &db);
    let web = vm(&lab, "web1")["id"].as_str().unwrap().to_owned();
    let file = map(&lab, &format!("name = \"{{name}}-3\"\n[vms.\"{web}\"]\nskip = true\n"));
    let run = lab.json(&["restore", "--all", "--map", &file]).exits(0);
    assert_eq!(run.result()["done"][0]["name"], "db1-3", "{run}");
    lab.hvbak(&["restore", "--all", "web1"]).exits(2);
    lab.hvbak(&["restore"]).exits(2);
}
