//! The printed sequences of a self-hosted engine, filled from a repository.

use std::fs;

use hvbak_tests::{Lab, run_tool};
use serde_json::json;

/// A stored archive, as FORMAT.md says; its bytes do not matter here.
fn store(lab: &Lab, point: &str, scopes: &[&str]) {
    let dir = lab.path("repository/manager/engine.example.test").join(point);
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join("engine.backup");
    fs::write(&file, point).unwrap();
    let sum = run_tool("sha256sum", &[file.to_str().unwrap()]);
    let manifest = json!({
        "format": 1, "manager": "engine.example.test", "point": point,
        "started": format!("2026-11-{}T02:00:00Z", &point[6..8]),
        "finished": "2026-11-22T03:00:00Z", "hvbak": "0", "version": "4.5.7",
        "requested": ["all"], "scopes": scopes, "command": [], "seconds": 1.0,
        "files": [{ "name": "engine.backup", "size": point.len(), "sha256": sum.split(' ').next() }],
    });
    fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
}

#[test]
fn a_sequence_names_the_newest_whole_archive_and_its_sum_holds() {
    let lab = Lab::standard();
    let recover = ["hosted-engine", "plan", "recover", "--host", "hv1", "--to", "hv9"];
    lab.hvbak(&recover).exits(2).says("no stored archive");
    store(&lab, "20261120T020000Z", &["files", "db", "dwhdb"]);
    store(&lab, "20261121T020000Z", &["files"]);
    let shown = lab.hvbak(&recover).exits(0);
    let line = shown.stdout.lines().find(|line| line.contains("scp -p")).unwrap();
    assert!(line.contains("20261120T020000Z/engine.backup root@hv9:"), "{line}");
    // What is printed for the other side holds for the file that is copied.
    let line = shown.stdout.lines().find(|line| line.contains("sha256sum --check")).unwrap();
    let sum = line.split("'echo ").nth(1).unwrap().split(' ').next().unwrap();
    let file = lab.path("repository/manager/engine.example.test/20261120T020000Z/engine.backup");
    assert!(run_tool("sha256sum", &[file.to_str().unwrap()]).starts_with(sum));
    assert!(shown.stdout.contains("done when"), "{shown}");
    let run = lab.json(&["hosted-engine", "plan", "overwrite", "--host", "hv1"]).exits(0);
    assert_eq!(run.result()["archive"], "engine.example.test@20261120T020000Z", "{run}");
    assert_eq!(run.of("step").len() as u64, run.result()["steps"].as_u64().unwrap(), "{run}");
    lab.hvbak(&["hosted-engine", "plan", "move", "--host", "hv1"]).exits(2).says("fresh host");
    let half = "engine.example.test@20261121T020000Z";
    lab.hvbak(&[&recover[..], &["--archive", half]].concat()).exits(2).says("no stored archive");
    fs::write(file, "another").unwrap();
    lab.hvbak(&recover).exits(15).says("not what was stored");
}
