//! `hvbak prune`: what stays is whole, and the next delta still has its base.

use std::path::PathBuf;

use hvbak_tests::{Lab, run_tool};

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
fn without_a_rule_nothing_is_removed() {
    let lab = Lab::standard();
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    lab.hvbak(&["prune"]).exits(2).says("retention");
    assert_eq!(lab.points().len(), 1);
}
