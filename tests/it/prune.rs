//! `hvbak prune`: what stays is whole, and the next delta still has its base.

use std::path::PathBuf;

use hvbak_tests::{Lab, Mount, bin, is_root, run_tool, skip, small};

/// Five points of `web1`, with what the guest had on its first disk at each.
fn stored(lab: &Lab) -> Vec<(String, PathBuf)> {
    let mut points = Vec::new();
    for n in 0..5u8 {
        lab.write("web1", "web1_Disk1", u64::from(n) << 20, 200_000, 0x21 + n);
        lab.write("web1", "web1_Disk1", 9 << 20, 65_536, if n % 2 == 0 { 0 } else { n });
        let saved = lab.save("web1", "web1_Disk1");
        let kept = lab.path(&format!("then-{n}.raw"));
        std::fs::rename(saved, &kept).unwrap();
        let run = lab.json(&["backup", "--vm", "web1"]).exits(0);
        let point = run.result()["done"][0]["point"].as_str().unwrap().to_owned();
        points.push((point, kept));
    }
    points
}

#[track_caller]
fn compare(lab: &Lab, points: &[(String, PathBuf)]) {
    lab.hvbak(&["verify", "--all"]).exits(0);
    for (point, reference) in points {
        let out = lab.scratch(&format!("export-{point}"));
        std::fs::create_dir_all(&out).unwrap();
        let (selector, to) = (format!("web1@{point}"), out.to_str().unwrap());
        lab.hvbak(&["export", &selector, "--format", "raw", "--force", "--output", to]).exits(0);
        let image = out.join("web1_Disk1.raw");
        let (image, reference) = (image.to_str().unwrap(), reference.to_str().unwrap());
        run_tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", image, reference]);
    }
}

fn count(lab: &Lab) -> u64 {
    lab.json(&["points", "--vm", "web1"]).exits(0).result()["count"].as_u64().unwrap()
}

#[test]
fn points_that_expire_are_merged_into_what_stands_on_them() {
    let lab = Lab::standard();
    lab.fill_web1();
    let points = stored(&lab);
    lab.hvbak(&["prune", "--keep-last", "3", "--dry-run"]).exits(0);
    assert_eq!(count(&lab), 5, "a dry run removes nothing");
    lab.hvbak(&["prune", "--keep-last", "3"]).exits(0);
    assert_eq!(count(&lab), 3);
    compare(&lab, &points[2..]);
    lab.hvbak(&["prune", "--keep-last", "1"]).exits(0);
    assert_eq!(count(&lab), 1);
    compare(&lab, &points[4..]);
    // The newest point's snapshot is the base as before.
    lab.write("web1", "web1_Disk1", 30 << 20, 65_536, 0x55);
    let run = lab.json(&["backup", "--vm", "web1"]).exits(0);
    assert_eq!(run.of("disk-started")[0]["level"], "incremental", "{run}");
    lab.hvbak(&["verify", "--all"]).exits(0);
    lab.assert_clean();
}

#[test]
fn a_point_on_a_damaged_one_does_not_stand_for_a_whole_one() {
    let lab = Lab::standard();
    lab.fill_web1();
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    let full = lab.json(&["backup", "--vm", "web1", "--level", "full"]).exits(0);
    let full = full.result()["done"][0]["point"].as_str().unwrap().to_owned();
    lab.write("web1", "web1_Disk1", 3 << 20, 65_536, 0x31);
    lab.hvbak(&["backup", "--vm", "web1", "--level", "incremental"]).exits(0);
    let dir = lab.path("repository/vms").join(lab.vm_id("web1")).join(full);
    let images = hvbak_tests::damage::files(&dir, "qcow2");
    assert_eq!(images.len(), 2);
    images.iter().for_each(|image| std::fs::remove_file(image).unwrap());
    lab.hvbak(&["prune", "--keep-last", "1"]).says("damaged");
    assert_eq!(count(&lab), 3, "the first point is the only one that can be restored");
}

#[test]
fn the_last_copy_of_a_disk_that_was_left_out_stays() {
    let lab = Lab::standard();
    lab.fill_web1();
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    for _ in 0..2 {
        let left_out = ["backup", "--vm", "web1", "--exclude-disk", "web1_data"];
        lab.hvbak(&left_out).exits(0);
    }
    lab.hvbak(&["prune", "--keep-last", "1"]).exits(0).says("the newest that holds");
    assert_eq!(count(&lab), 2);
    lab.hvbak(&["verify", "--all"]).exits(0);
    lab.assert_clean();
}

#[test]
fn a_base_of_a_site_that_keeps_no_snapshots_any_more_expires() {
    let lab = Lab::standard();
    lab.fill_web1();
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    lab.configure(|text| text + "\n[backup]\nkeep_snapshot = false\n");
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    lab.hvbak(&["prune", "--keep-last", "1"]).exits(0);
    assert_eq!(count(&lab), 1);
    lab.assert_clean();
}

#[test]
fn without_a_rule_nothing_is_removed() {
    let lab = Lab::standard();
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    lab.hvbak(&["prune"]).exits(2).says("retention");
    assert_eq!(lab.points().len(), 1);
}

#[test]
fn a_repository_on_nfs_is_pruned_where_no_two_names_can_be_swapped() {
    let Some((peers, lab)) = crate::nfs::site() else { return };
    lab.fill_web1();
    let points = stored(&lab);
    // The folder that the server exports gets the repository, the guest that mounts it prunes.
    let (served, own) = (peers.tree("srv").join("srv/backup"), lab.path("repository"));
    std::fs::create_dir(&served).unwrap();
    let tool = |name: &str, args: &[&std::path::Path]| {
        run_tool(name, &args.iter().map(|p| p.to_str().unwrap()).collect::<Vec<_>>());
    };
    tool("cp", &["-a".as_ref(), &own, &bin("hvbak"), &served]);
    let config = "[engine]\nurl = \"https://nowhere/ovirt-engine/api\"\nusername = \"nobody\"\n\
                  [repository]\npath = \"repository\"\n";
    std::fs::write(served.join("hvbak.toml"), config).unwrap();
    tool("chown", &["-R".as_ref(), "36:36".as_ref(), &served]);
    // root is squashed there.
    let there = |args: &str| {
        let run = format!(
            "cd /rhev/data-center/mnt/nfs*/backup && setpriv --reuid=36 --regid=36 --clear-groups \
             ./hvbak --config hvbak.toml {args}"
        );
        peers.in_guest("hv", &run)
    };
    let said = there("--json prune --keep-last 3");
    let result: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!((&result["merged"], &result["removed"]), (&1.into(), &2.into()), "{said}");
    there("verify --all");
    let vm = std::fs::read_dir(served.join("repository/vms")).unwrap().next().unwrap().unwrap();
    let mut left: Vec<_> = std::fs::read_dir(vm.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    let kept: Vec<_> = points[2..].iter().map(|(point, _)| point.clone()).collect();
    assert_eq!(left, kept);
    // And every byte of it, read here.
    std::fs::remove_dir_all(&own).unwrap();
    tool("chown", &["-R".as_ref(), "0:0".as_ref(), &served]);
    tool("cp", &["-a".as_ref(), &served.join("repository"), &own]);
    std::fs::remove_dir_all(&served).unwrap();
    compare(&lab, &points[2..]);
    lab.assert_clean();
}

/// A lab whose repository lies on an XFS of its own, which can share blocks between files.
fn on_xfs() -> Result<(Mount, Lab), String> {
    if !is_root() {
        return Err("a loop device needs root".into());
    }
    let lab = Lab::bare(&small(), &["--hosts", "1", "--domains", "nfs"]);
    let file = lab.scratch("xfs");
    std::fs::File::create(&file).unwrap().set_len(4 << 30).unwrap();
    let image = file.to_str().unwrap();
    let made =
        std::process::Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1", image]).status();
    if !made.as_ref().is_ok_and(std::process::ExitStatus::success) {
        return Err(format!("mkfs.xfs: {made:?}"));
    }
    let mount = Mount::new(&["-o", "loop", image], &lab.path("repository"));
    lab.enrol();
    Ok((mount, lab))
}

#[test]
fn where_blocks_can_be_shared_a_merge_writes_the_delta() {
    let (mount, lab) = match on_xfs() {
        Ok(made) => made,
        Err(why) => return skip(&why),
    };
    lab.write_noise("web1", "web1_Disk1", 24 << 20, 24 << 20);
    let points = stored(&lab);
    let shown = lab.json(&["show", &format!("web1@{}", points[0].0)]).exits(0);
    let oldest = PathBuf::from(shown.result()["path"].as_str().unwrap());
    let id = shown.of("manifest")[0]["disks"]
        .as_array()
        .and_then(|disks| disks.iter().find(|d| d["alias"] == "web1_Disk1"))
        .map(|disk| format!("{}.qcow2", disk["id"].as_str().unwrap()))
        .unwrap();
    // A second name keeps the oldest image, so that what shares its blocks can be seen.
    let witness = mount.dir().join("witness");
    std::fs::hard_link(oldest.join(&id), &witness).unwrap();
    let run = lab.json(&["prune", "--keep-last", "1"]).exits(0);
    let result = run.result();
    assert_eq!((&result["merged"], &result["removed"]), (&1.into(), &4.into()), "{run}");
    let written = result["written_bytes"].as_u64().unwrap();
    // Five deltas of 265 KB that compress well, and tables; not the 24 MiB.
    assert!(written < 4 << 20, "{run}");
    let merged = lab.point("web1").join(&id);
    let extents = run_tool("filefrag", &["-v", merged.to_str().unwrap()]);
    assert!(extents.contains("shared"), "{extents}");
    std::fs::remove_file(&witness).unwrap();
    run_tool("qemu-img", &["check", "-q", "-f", "qcow2", merged.to_str().unwrap()]);
    compare(&lab, &points[4..]);
    // The merged one is a base like any other.
    lab.write("web1", "web1_Disk1", 30 << 20, 65_536, 0x55);
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    lab.hvbak(&["prune", "--keep-last", "1"]).exits(0);
    lab.hvbak(&["verify", "--all"]).exits(0);
    lab.assert_clean();
}
