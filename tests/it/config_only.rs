//! `hvbak backup --config-only`: the configuration is stored, and counts for nothing else.

use hvbak_tests::{Lab, Run};
use serde_json::Value;

fn vm(lab: &Lab, name: &str) -> Value {
    let state = lab.state();
    state["vms"].as_array().unwrap().iter().find(|v| v["name"] == name).unwrap().clone()
}

fn store(lab: &Lab, name: &str) -> Run {
    lab.json(&["backup", "--vm", name, "--config-only"]).exits(0)
}

/// Something that the OVF tells.
fn change(lab: &Lab, name: &str, text: &str) {
    let path = format!("/vms/{}", lab.vm_id(name));
    lab.api("PUT", &path, &format!("<vm><description>{text}</description></vm>"));
}

fn configurations(lab: &Lab) -> u64 {
    lab.json(&["points", "--config-only"]).exits(0).result()["count"].as_u64().unwrap()
}

#[test]
fn a_configuration_is_stored_without_snapshot_or_host_and_is_nobodys_base_or_point() {
    let lab = Lab::standard();
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    let before = lab.json(&["report"]);
    let events = lab.state()["events"].as_array().unwrap().len();
    lab.fault(&["host", "hv1", "kill"]);
    store(&lab, "web1");
    lab.fault(&["host", "hv1", "start"]);
    assert_eq!(lab.state()["events"].as_array().unwrap().len(), events, "no snapshot, no event");
    assert_eq!(configurations(&lab), 1);
    // Neither newest nor counted.
    let after = lab.json(&["report"]);
    let newest = |run: &Run| run.of("vm")[0]["newest"]["point"].clone();
    assert_eq!((newest(&before), after.of("vm")[0]["points"].as_u64()), (newest(&after), Some(1)));
    let shown = lab.hvbak(&["show", "web1@latest"]).exits(0);
    assert!(shown.to_string().contains("web1_Disk1"), "{shown}");
    // The next one still stands on the snapshot of the last one with disks.
    lab.write("web1", "web1_Disk1", 0, 65536, 0x11);
    let run = lab.json(&["backup", "--vm", "web1"]).exits(0);
    assert!(run.to_string().contains("incremental"), "{run}");
    lab.assert_clean();
}

#[test]
fn configurations_fill_no_place_of_the_rules_and_keep_a_number_of_their_own() {
    let lab = Lab::standard();
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    for n in 0..12 {
        change(&lab, "db1", &format!("number {n}"));
        store(&lab, "db1");
    }
    assert_eq!(configurations(&lab), 10);
    lab.hvbak(&["show", "config:db1"]).exits(0).says("configuration only");
    let run = store(&lab, "db1");
    assert_eq!(run.result()["unchanged"][0]["name"], "db1", "{run}");
    assert_eq!(configurations(&lab), 10);
    lab.hvbak(&["prune", "--keep-last", "1"]).exits(0);
    assert_eq!(configurations(&lab), 10);
    assert_eq!(lab.json(&["points"]).exits(0).result()["count"], 1);
    lab.hvbak(&["verify", "--all"])
        .exits(0)
        .says("configuration only, no disk")
        .says("clusters compared");
    lab.hvbak(&["verify", "config:db1@latest"]).exits(0).says("configuration only");
    let shown = lab.json(&["show", "config:db1"]).exits(0);
    let path = std::path::PathBuf::from(shown.result()["path"].as_str().unwrap());
    std::fs::write(path.join("vm.ovf"), "<other/>").unwrap();
    lab.hvbak(&["verify", "--all"]).exits(15).says("vm.ovf");
    // A damaged one is like nothing: it is stored anew.
    let run = store(&lab, "db1");
    assert_eq!(run.result()["stored"][0]["name"], "db1", "{run}");
    lab.assert_clean();
}

#[test]
fn a_vm_without_disks_is_made_only_for_who_says_so() {
    let lab = Lab::standard();
    lab.hvbak(&["restore", "web1"]).exits(2);
    store(&lab, "web1");
    // It is no point of the VM.
    lab.hvbak(&["restore", "web1"]).exits(2);
    let refused = |args: &[&str], text| drop(lab.hvbak(args).exits(2).says(text));
    refused(&["restore", "config:web1", "--name", "bare"], "--config-only");
    refused(&["restore", "config:web1", "db1", "--name", "{name}-x"], "--config-only");
    refused(&["restore", "config:web1", "--overwrite", "--confirm", "web1"], "--config-only");
    lab.hvbak(&["restore", "config:web1", "--name", "bare", "--config-only"])
        .exits(0)
        .says("NO DISKS")
        .says("web1_data");
    let bare = vm(&lab, "bare");
    assert_eq!(bare["disks"].as_array().unwrap().len(), 0);
    assert_eq!(bare["nics"].as_array().unwrap().len(), 1);
    assert_eq!(bare["tags"], vm(&lab, "web1")["tags"]);
    // A VM that has no disks has whole points, which are no configurations.
    lab.hvbak(&["backup", "--vm", "bare"]).exits(0);
    refused(&["restore", "bare", "--name", "twin", "--config-only"], "leave `--config-only` away");
    lab.hvbak(&["restore", "bare", "--name", "twin"]).exits(0);
    lab.assert_clean_but(&["bare", "twin"]);
}

#[test]
fn a_policy_of_configurations_protects_no_vm() {
    let lab = Lab::standard();
    lab.configure(|text| {
        format!("{text}\n[policy.all-configs]\nall = true\nconfig_only = true\n\n[policy.data]\nvms = [\"db1\"]\n")
    });
    let run = lab.hvbak(&["policy", "test"]).exits(3);
    assert!(run.to_string().contains("in no policy: thin1, web1"), "{run}");
    lab.json(&["backup", "--policy", "all-configs"]).exits(0);
    assert_eq!(configurations(&lab), 3);
    assert_eq!(lab.json(&["points"]).exits(0).result()["count"], 0);
    lab.assert_clean();
}

#[test]
fn an_engine_that_fails_leaves_no_half() {
    let lab = Lab::standard();
    lab.fault(&["http", "--method", "GET", "--path", "/nics", "--status", "500", "--times", "9"]);
    let run = lab.json(&["backup", "--vm", "web1", "--vm", "db1", "--config-only"]);
    assert_ne!(run.code, 0, "{run}");
    lab.fault(&["clear"]);
    lab.assert_clean();
    store(&lab, "web1");
    lab.assert_clean();
}
