//! `hvbak backup`: what is stored is what the guest had at the snapshot.

use std::path::Path;

use hvbak_tests::{Lab, damage::files, run_tool, small};
use serde_json::json;

/// Exports all disks of a point and compares them with what the guest had.
fn compare_export(lab: &Lab, point: &str, references: &[(&str, &Path)]) {
    let out = lab.scratch("export");
    std::fs::create_dir_all(&out).unwrap();
    lab.hvbak(&["export", point, "--format", "raw", "--output", out.to_str().unwrap()]).exits(0);
    for (disk, reference) in references {
        let exported = out.join(format!("{disk}.raw"));
        let (exported, reference) = (exported.to_str().unwrap(), reference.to_str().unwrap());
        run_tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", exported, reference]);
    }
}

#[test]
fn a_running_vm_is_stored_as_its_guest_had_it_and_goes_on() {
    let lab = Lab::standard();
    lab.fill_web1();
    let (one, two) = (lab.save("web1", "web1_Disk1"), lab.save("web1", "web1_data"));
    let run = lab.json(&["backup", "--vm", "web1"]).exits(0);
    assert_eq!(run.result()["done"].as_array().unwrap().len(), 1, "{run}");
    // What the guest writes afterwards is not in the point.
    lab.write("web1", "web1_Disk1", 0, 1 << 20, 0xee);
    compare_export(&lab, "web1@latest", &[("web1_Disk1", &one), ("web1_data", &two)]);
    for image in files(&lab.point("web1"), "qcow2") {
        run_tool("qemu-img", &["check", image.to_str().unwrap()]);
    }
    lab.hvbak(&["verify", "--all"]).exits(0);
    lab.assert_clean();
}

#[test]
fn zeros_and_holes_cost_nothing_in_the_repository() {
    let lab = Lab::standard();
    lab.write("web1", "web1_Disk1", 0, 32 << 20, 0);
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    let stored: u64 =
        files(&lab.point("web1"), "qcow2").iter().map(|f| f.metadata().unwrap().len()).sum();
    assert!(stored < 2 << 20, "{stored} bytes for nothing but zeros");
}

#[test]
fn a_vm_that_is_down_and_one_on_a_template_are_stored_whole() {
    let lab = Lab::standard();
    lab.write("db1", "db1_Disk1", 3 << 20, 5 << 20, 0x5a);
    lab.write("thin1", "thin1_Disk1", 1 << 20, 1 << 20, 0x66);
    let (db, thin) = (lab.save("db1", "db1_Disk1"), lab.save("thin1", "thin1_Disk1"));
    lab.hvbak(&["backup", "--vm", "db1", "--vm", "thin1"]).exits(0);
    compare_export(&lab, "db1", &[("db1_Disk1", &db)]);
    compare_export(&lab, "thin1", &[("thin1_Disk1", &thin)]);
    lab.assert_clean();
}

#[test]
fn disks_on_every_kind_of_file_domain_are_read() {
    let disk = |alias: &str, domain: &str, format: &str| json!({ "alias": alias, "size": 20 << 20, "format": format, "domain": domain });
    let seed = json!({ "vms": [
        { "name": "shared", "running": true, "disks": [disk("on_nfs", "nfs1", "cow"), disk("on_gluster", "gluster1", "raw-sparse")] },
        { "name": "local", "disks": [disk("on_local", "local1", "cow")] },
    ]});
    let lab = Lab::bare(&seed, &["--hosts", "1", "--domains", "nfs,gluster,localfs"]);
    lab.enrol();
    let mut references = Vec::new();
    for (n, (vm, disk)) in [("shared", "on_nfs"), ("shared", "on_gluster"), ("local", "on_local")]
        .into_iter()
        .enumerate()
    {
        lab.write(vm, disk, (n as u64) << 20, 2 << 20, 0x30 + n as u8);
        references.push((disk, lab.save(vm, disk)));
    }
    lab.hvbak(&["backup", "--all"]).exits(0);
    compare_export(
        &lab,
        "shared",
        &[("on_nfs", &references[0].1), ("on_gluster", &references[1].1)],
    );
    compare_export(&lab, "local", &[("on_local", &references[2].1)]);
    lab.assert_clean();
}

#[test]
fn a_dry_run_prints_the_plan_and_touches_nothing() {
    let lab = Lab::standard();
    let run = lab.hvbak(&["backup", "--vm", "web1", "--dry-run"]).exits(0).says("web1_Disk1");
    assert!(run.stdout.contains("web1"), "{run}");
    assert!(lab.points().is_empty());
    let plan = lab.json(&["backup", "--all", "--dry-run"]).exits(0);
    assert_eq!(plan.of("plan").len(), 1, "{plan}");
    lab.assert_clean();
}

#[test]
fn snapshots_of_others_are_read_through_and_left_alone() {
    let lab = Lab::standard();
    lab.fill_web1();
    lab.foreign_snapshot("web1", "before the update");
    lab.write("web1", "web1_Disk1", 2 << 20, 1 << 20, 0x77);
    lab.write("web1", "web1_data", 41 << 20, 1 << 20, 0x78);
    let (one, two) = (lab.save("web1", "web1_Disk1"), lab.save("web1", "web1_data"));
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    compare_export(&lab, "web1", &[("web1_Disk1", &one), ("web1_data", &two)]);
    assert!(lab.state().to_string().contains("before the update"));
    lab.same("web1", "web1_Disk1", &one);
    lab.assert_clean();
}

#[test]
fn each_run_makes_a_point_of_its_own() {
    let lab = Lab::standard();
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    assert_eq!(lab.json(&["points", "--vm", "db1"]).exits(0).result()["count"], 2);
    assert_eq!(lab.points().len(), 2);
    lab.assert_clean();
}

#[test]
fn disks_that_cannot_be_read_are_left_out_by_name() {
    let mut seed = small();
    let disks = seed["vms"][0]["disks"].as_array_mut().unwrap();
    disks.push(json!({ "alias": "lun_1", "size": 1 << 20, "storage_type": "lun" }));
    disks.push(json!({ "alias": "shared_1", "size": 1 << 20, "format": "raw-preallocated", "shareable": true }));
    let lab = Lab::with(&seed);
    let plan = lab.hvbak(&["backup", "--vm", "web1", "--dry-run"]).says("lun_1").says("shared_1");
    assert!(plan.code == 0 || plan.code == 3, "{plan}");
    let run = lab.json(&["backup", "--vm", "web1"]);
    assert!(run.code == 0 || run.code == 3, "{run}");
    let shown = lab.hvbak(&["show", "web1"]).exits(0);
    shown.says("lun_1").says("shared_1");
    lab.assert_clean();
}

#[test]
fn selections_unite_and_exclusions_win() {
    let lab = Lab::standard();
    let names = |args: &[&str]| {
        let run = lab.json(&[&["backup", "--dry-run"], args].concat());
        let text = run.stdout;
        ["web1", "db1", "thin1"]
            .into_iter()
            .filter(|n| text.contains(&format!("\"{n}\"")))
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&["--tag", "gold"]), ["web1"]);
    assert_eq!(names(&["--match", "*b1"]), ["web1", "db1"]);
    assert_eq!(names(&["--all", "--exclude-vm", "web*"]), ["db1", "thin1"]);
}
