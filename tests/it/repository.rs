//! `hvbak verify`, `points`, `show`, `export`: stored points prove themselves, and each
//! kind of damage is named.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use hvbak_tests::{
    Lab, Run,
    damage::{cut, files, flip, overwrite, swap},
    run_tool,
};

/// A lab with one point of `web1`.
fn stored() -> (Lab, PathBuf) {
    let lab = Lab::standard();
    lab.fill_web1();
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    let point = lab.point("web1");
    lab.hvbak(&["verify", "--all"]).exits(0).says("whole");
    (lab, point)
}

/// Verifies in both ways; each finds damage, and a finding names the file.
#[track_caller]
fn damaged(lab: &Lab, file: &str) -> Run {
    lab.hvbak(&["verify", "web1@latest"]).exits(15).says("DAMAGED");
    let run = lab.json(&["verify", "--all"]).exits(15);
    assert_eq!(run.result()["status"], "damage");
    let named = run.of("finding").iter().any(|f| f["file"].as_str().unwrap_or("").contains(file));
    assert!(named, "no finding names {file}: {run}");
    run
}

fn name(path: &std::path::Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn a_flipped_bit_in_the_data_is_found() {
    let (lab, point) = stored();
    let image = &files(&point, "qcow2")[0];
    flip(image, fs::metadata(image).unwrap().len() / 2);
    damaged(&lab, &name(image));
}

#[test]
fn a_flipped_bit_in_the_tables_is_found() {
    let (lab, point) = stored();
    let image = &files(&point, "qcow2")[1];
    flip(image, 27);
    damaged(&lab, &name(image));
}

#[test]
fn a_flipped_bit_in_the_digests_is_found() {
    let (lab, point) = stored();
    let digests = &files(&point, "digests")[0];
    flip(digests, fs::metadata(digests).unwrap().len() - 3);
    damaged(&lab, &name(digests));
}

#[test]
fn a_missing_file_is_named() {
    let (lab, point) = stored();
    let image = &files(&point, "qcow2")[0];
    fs::remove_file(image).unwrap();
    damaged(&lab, &name(image)).says("missing");
}

#[test]
fn a_truncated_file_is_named() {
    let (lab, point) = stored();
    let image = &files(&point, "qcow2")[0];
    cut(image, 4096);
    damaged(&lab, &name(image)).says("truncated");
}

#[test]
fn two_exchanged_files_are_named() {
    let (lab, point) = stored();
    let images = files(&point, "qcow2");
    swap(&images[0], &images[1]);
    damaged(&lab, &name(&images[0])).says("swapped");
}

#[test]
fn an_edited_manifest_is_named() {
    let (lab, point) = stored();
    let manifest = point.join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::set_permissions(&manifest, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fs::write(&manifest, text.replace("web1_data", "web1_dota")).unwrap();
    damaged(&lab, "manifest.json");
}

#[test]
fn a_manifest_that_is_no_json_does_not_hide_the_other_points() {
    let (lab, point) = stored();
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    overwrite(&point.join("manifest.json"), 0, b"}}}}");
    let run = lab.json(&["points"]).exits(15);
    assert_eq!((&run.result()["count"], &run.result()["damaged"]), (&1.into(), &1.into()), "{run}");
    lab.hvbak(&["verify", "db1"]).exits(0);
}

#[test]
fn an_edited_document_of_the_engine_is_named() {
    let (lab, point) = stored();
    let ovf = point.join("vm.ovf");
    let text = fs::read_to_string(&ovf).unwrap();
    overwrite(&ovf, text.find("web1").unwrap() as u64, b"weby");
    damaged(&lab, "vm.ovf");
}

#[test]
fn a_damaged_point_is_not_restored_silently() {
    let (lab, point) = stored();
    for image in files(&point, "qcow2") {
        // In the middle of the stored clusters of each disk.
        flip(&image, fs::metadata(&image).unwrap().len() / 2);
    }
    let run = lab.hvbak(&["restore", "web1", "--name", "bad"]);
    assert_ne!(run.code, 0, "{run}");
    lab.assert_clean();
}

#[test]
fn every_stored_file_is_a_qcow2_that_stock_tools_read() {
    let (lab, point) = stored();
    let reference = lab.save("web1", "web1_Disk1");
    let shown = lab.json(&["show", "web1"]).exits(0).of("manifest")[0].to_string();
    let mut same = 0;
    for image in files(&point, "qcow2") {
        let path = image.to_str().unwrap();
        run_tool("qemu-img", &["check", path]);
        let info: serde_json::Value =
            serde_json::from_str(&run_tool("qemu-img", &["info", "--output=json", path])).unwrap();
        assert_eq!(info["format-specific"]["data"]["compat"], "1.1");
        assert_eq!(info["format-specific"]["data"]["compression-type"], "zstd");
        assert!(shown.contains(image.file_stem().unwrap().to_str().unwrap()));
        if info["virtual-size"] == 64 << 20 {
            run_tool(
                "qemu-img",
                &["compare", "-f", "qcow2", "-F", "raw", path, reference.to_str().unwrap()],
            );
            same += 1;
        }
    }
    assert_eq!(same, 1);
}

#[test]
fn exports_are_equal_in_both_formats_and_never_overwrite() {
    let (lab, _) = stored();
    let reference = lab.save("web1", "web1_data");
    for (format, tool) in [("qcow2", "qcow2"), ("raw", "raw")] {
        let out = lab.scratch(&format!("one.{format}"));
        let out = out.to_str().unwrap();
        let args = ["export", "web1", "--disk", "web1_data", "--format", format, "--output", out];
        lab.hvbak(&args).exits(0);
        run_tool(
            "qemu-img",
            &["compare", "-f", tool, "-F", "raw", out, reference.to_str().unwrap()],
        );
        let again = lab.hvbak(&args);
        assert_ne!(again.code, 0, "{again}");
        again.says("--force");
        lab.hvbak(&[&args[..], &["--force"]].concat()).exits(0);
    }
}

#[test]
fn reading_commands_need_no_engine() {
    let (lab, _) = stored();
    lab.configure(|text| text.replace("https://localhost:", "https://localhost:1"));
    lab.hvbak(&["points"]).exits(0).says("web1");
    lab.hvbak(&["show", "web1@latest"]).exits(0).says("web1_data");
    lab.hvbak(&["verify", "--all"]).exits(0);
    let out = lab.scratch("out");
    fs::create_dir_all(&out).unwrap();
    lab.hvbak(&["export", "web1", "--output", out.to_str().unwrap()]).exits(0);
    // The documents come along, for the owner alone, and are not written over unasked.
    let stored = lab.point("web1");
    let (ovf, stored) = (out.join(format!("web1-{}/vm.ovf", name(&stored))), stored.join("vm.ovf"));
    assert_eq!(fs::read(&ovf).unwrap(), fs::read(stored).unwrap());
    assert_eq!(fs::metadata(&ovf).unwrap().permissions().mode() & 0o777, 0o600);
    for image in ["web1_Disk1.qcow2", "web1_data.qcow2"] {
        fs::remove_file(out.join(image)).unwrap();
    }
    let again = ["export", "web1", "--output", out.to_str().unwrap()];
    lab.hvbak(&again).exits(2).says("exists").says("--force");
    lab.hvbak(&[&again[..], &["--force"]].concat()).exits(0);
}

#[test]
fn points_are_found_by_name_id_time_and_day() {
    let (lab, point) = stored();
    let id = name(&point);
    let vm = name(point.parent().unwrap());
    let day = format!("{}-{}-{}", &id[..4], &id[4..6], &id[6..8]);
    for text in ["web1".into(), "web1@latest".into(), format!("{vm}@{id}"), format!("web1@{day}")] {
        lab.hvbak(&["show", &text]).exits(0).says(&id);
    }
    for text in ["web2", "web1@1999-01-01", "web1@yesterday"] {
        let run = lab.hvbak(&["show", text]);
        assert!(run.code == 1 || run.code == 2, "{run}");
    }
}
