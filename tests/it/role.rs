//! `hvbak role`: the least role is enough, and what it lacks is told.

use hvbak_tests::Lab;

#[test]
fn the_least_role_is_enough_for_a_backup_and_a_restore_and_lacks_are_named() {
    let lab = Lab::standard();
    lab.configure(|text| format!("{text}\n[notify]\nwhen = \"always\"\nengine_event = true\n"));
    let printed = lab.json(&["role", "print", "backup", "restore", "events"]).exits(0);
    let permits: Vec<String> = printed
        .of("permit")
        .iter()
        .map(|permit| permit["name"].as_str().unwrap().to_owned())
        .collect();
    assert!(permits.len() > 10, "{printed}");
    let hold = |names: &[&str]| lab.fault(&[&["permits"], names].concat());
    let all: Vec<&str> = permits.iter().map(String::as_str).collect();
    hold(&all);
    lab.hvbak(&["role", "check", "backup", "restore", "events"]).exits(0).never_says("MISSING");
    lab.fill_web1();
    let disk = lab.save("web1", "web1_data");
    lab.hvbak(&["--notify", "backup", "--vm", "web1"]).exits(0).never_says("nobody was told");
    lab.write("web1", "web1_data", 3 << 20, 70_000, 0x33);
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    let older = lab.json(&["points", "--vm", "web1"]).of("point")[0]["point"].clone();
    let point = format!("web1@{}", older.as_str().unwrap());
    lab.hvbak(&["restore", &point, "--name", "back", "--power-on"]).exits(0);
    lab.same("back", "web1_data", &disk);
    // A restore that fails is undone with it, too.
    lab.fault(&["http", "--method", "POST", "--path", "/nics", "--status", "400"]);
    let run = lab.hvbak(&["restore", &point, "--name", "never"]);
    assert_ne!(run.code, 0, "{run}");
    assert!(!lab.vm_names().iter().any(|name| name == "never"));
    // Each permit that the simulated engine asks for is missed when it is not there.
    let less: Vec<&str> =
        all.iter().filter(|name| **name != "manipulate_vm_snapshots").copied().collect();
    hold(&less);
    let run = lab.json(&["role", "check"]).exits(3);
    assert_eq!(run.result()["missing"], serde_json::json!(["manipulate_vm_snapshots"]), "{run}");
    lab.hvbak(&["role", "check", "events"]).exits(0);
    lab.hvbak(&["backup", "--vm", "db1"]).exits(1).says("not authorized").says("role");
    lab.assert_clean_but(&["back"]);
}
