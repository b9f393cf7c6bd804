//! `hvbak list` against recorded engines: every element of the recording is there, counted
//! and named by another reader of the same XML.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod common;

use std::{collections::BTreeMap, path::Path, process::Command};

use common::{Kept, LAB, run};
use serde_json::Value;

/// What to list, the recording's file, and the element that names an item.
const LISTS: [(&str, &str, &str); 8] = [
    ("vms", "vms", "name"),
    ("hosts", "hosts", "name"),
    ("domains", "storagedomains", "name"),
    ("disks", "disks", "alias"),
    ("templates", "templates", "name"),
    ("clusters", "clusters", "name"),
    ("datacenters", "datacenters", "name"),
    ("networks", "networks", "name"),
];

/// Id to name and status of what is in a recorded list.
fn recorded(set: &Path, file: &str, name: &str) -> BTreeMap<String, (String, Option<String>)> {
    let label = set.file_name().unwrap().to_str().unwrap().trim_start_matches("replay-");
    let text = std::fs::read_to_string(set.join(format!("{file}--{label}.xml"))).unwrap();
    let doc = roxmltree::Document::parse(&text).unwrap();
    let child = |n: roxmltree::Node<'_, '_>, name: &str| {
        let found = n.children().find(|c| c.tag_name().name() == name)?;
        Some(found.text().unwrap_or("").to_owned())
    };
    let elements = doc.root_element().children().filter(|n| n.is_element());
    elements
        .map(|n| {
            let id = n.attribute("id").unwrap().to_owned();
            (id, (child(n, name).unwrap_or_default(), child(n, "status")))
        })
        .collect()
}

#[test]
fn every_recorded_element_is_listed() {
    let hvbak = Path::new(LAB).with_file_name("hvbak");
    assert!(hvbak.is_file(), "{} is not built: cargo build -p hvbak", hvbak.display());
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/engine-api");
    for set in ["replay-4.2dev-2017-08", "replay-4.3-2020-03"] {
        let (set, out) = (fixtures.join(set), tempfile::tempdir().unwrap());
        let mut server = Kept::start(
            Command::new(LAB).args(["replay", "--dir"]).arg(&set).arg("--out").arg(out.path()),
        );
        let about: Value = serde_json::from_str(&server.line()).unwrap();
        assert!(about["engine_url"].as_str().unwrap().starts_with("https://"));
        for (what, file, name) in LISTS {
            let mut list = Command::new(&hvbak);
            list.arg("-c").arg(about["hvbak_config"].as_str().unwrap());
            let lines = run(list.args(["list", what, "--json"]));
            let mut lines: Vec<Value> =
                lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
            let result = lines.pop().unwrap();
            let wanted = recorded(&set, file, name);
            assert!(!wanted.is_empty());
            assert_eq!(result["count"], wanted.len(), "{} {what}", set.display());
            assert_eq!(lines.len(), wanted.len(), "{} {what}", set.display());
            for line in &lines {
                let id = line["id"].as_str().unwrap();
                let (title, status) = wanted.get(id).unwrap_or_else(|| panic!("{what}: {line}"));
                assert_eq!(line[name], title.as_str(), "{what}: {line}");
                // Domains have theirs from their data center, not from this list.
                if let Some(status) = status.as_deref().filter(|_| what != "domains") {
                    assert_eq!(line["status"], status, "{what}: {line}");
                }
            }
        }
    }
}
