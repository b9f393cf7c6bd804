//! The rules of the house that a program can check.
//!
//! Imports between rooms (`rooms.toml`), the head of every source file, sizes, names at the
//! top level, that no file speaks of the machine it was written on, and that every error's text
//! is explained.

mod errors;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::build::cargo;

/// Longest source file; at half of it one looks for a second idea.
const MAX_LINES: usize = 800;

/// All that the top level may hold.
const TOP: &[&str] = &[
    ".cargo",
    ".ci",
    ".config",
    ".git",
    ".gitignore",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "clippy.toml",
    "crates",
    "deny.toml",
    "packaging",
    "rustfmt.toml",
    "scripts",
    "target",
    "tests",
    "xtask",
];

/// Pages that others rely on.
const PAGES: &[&str] = &[
    "crates/README.md",
    "crates/hvbak-wire/PROTOCOL.md",
    "crates/hvbak-repo/FORMAT.md",
    "crates/hvbak/ERRORS.md",
    "LICENSE",
    "SECURITY.md",
];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rooms {
    rooms: BTreeMap<String, Room>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Room {
    ours: BTreeSet<String>,
    never: BTreeSet<String>,
}

/// Checks everything; prints each violation and fails when there is one.
pub fn run() -> Result<()> {
    let mut problems = rooms()?;
    problems.extend(top());
    problems.extend(files()?);
    let missing = PAGES.iter().filter(|page| !Path::new(page).exists());
    problems.extend(missing.map(|page| format!("{page} is missing")));
    for problem in &problems {
        eprintln!("tidy: {problem}");
    }
    if !problems.is_empty() {
        bail!("{} violations", problems.len());
    }
    Ok(())
}

fn rooms() -> Result<Vec<String>> {
    let text = fs::read_to_string("xtask/rooms.toml").context("read xtask/rooms.toml")?;
    let output = cargo().args(["metadata", "--format-version", "1", "--locked"]).output()?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    compare(&toml::from_str(&text)?, &serde_json::from_slice(&output.stdout)?)
}

/// What contradicts the table. `metadata` is cargo's.
fn compare(table: &Rooms, metadata: &Value) -> Result<Vec<String>> {
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let members: BTreeSet<String> = list(&metadata["workspace_members"]).iter().map(text).collect();
    let names: BTreeMap<String, String> =
        list(&metadata["packages"]).iter().map(|p| (text(&p["id"]), text(&p["name"]))).collect();
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in list(&metadata["resolve"]["nodes"]) {
        for dep in list(&node["deps"]) {
            // A kind of null is a normal dependency; "dev" and "build" are not imports.
            if list(&dep["dep_kinds"]).iter().any(|k| k["kind"].is_null()) {
                edges.entry(text(&node["id"])).or_default().insert(text(&dep["pkg"]));
            }
        }
    }
    let mut problems = Vec::new();
    let ours: BTreeSet<&String> = members.iter().filter_map(|id| names.get(id)).collect();
    for missing in table.rooms.keys().filter(|name| !ours.contains(name)) {
        problems.push(format!("rooms.toml has {missing}, which is no room"));
    }
    for id in &members {
        let name = names.get(id).context("member without a package")?;
        let Some(room) = table.rooms.get(name) else {
            problems.push(format!("room {name} is not in rooms.toml"));
            continue;
        };
        let direct: BTreeSet<String> = edges
            .get(id)
            .into_iter()
            .flatten()
            .filter(|dep| members.contains(*dep))
            .filter_map(|dep| names.get(dep).cloned())
            .collect();
        for extra in direct.difference(&room.ours) {
            problems.push(format!("{name} imports {extra}, which rooms.toml does not allow"));
        }
        for unused in room.ours.difference(&direct) {
            problems.push(format!("rooms.toml lets {name} import {unused}, which it does not"));
        }
        let tree = reachable(&edges, id);
        let bad = tree.iter().filter_map(|dep| names.get(dep)).filter(|d| room.never.contains(*d));
        problems
            .extend(bad.map(|d| format!("{name} has {d} in its tree, which must never be there")));
    }
    Ok(problems)
}

fn reachable(edges: &BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut open = vec![from.to_owned()];
    while let Some(at) = open.pop() {
        for dep in edges.get(&at).into_iter().flatten() {
            if seen.insert(dep.clone()) {
                open.push(dep.clone());
            }
        }
    }
    seen
}

fn top() -> Vec<String> {
    let entries = fs::read_dir(".").into_iter().flatten().flatten();
    entries
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|name| !TOP.contains(&name.as_str()))
        .map(|name| format!("`{name}` does not belong to the top level"))
        .collect()
}

fn files() -> Result<Vec<String>> {
    let output = Command::new("git").args(["ls-files", "-z"]).output().context("start git")?;
    let list = String::from_utf8(output.stdout)?;
    let paths = list.split('\0').filter(|p| !p.is_empty());
    let mut problems = errors::check(paths.clone());
    for path in paths {
        let Ok(text) = fs::read_to_string(path) else { continue };
        problems.extend(check_file(path, &text));
    }
    Ok(problems)
}

/// What is wrong with one file. Words are put together so that this file does not find
/// itself.
fn check_file(path: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let mut bad = |what: &str| problems.push(format!("{path}: {what}"));
    for machine in [concat!("/wo", "rk/main"), concat!("/wo", "rk/shared")] {
        if text.contains(machine) && !path.starts_with("tests/fixtures") {
            bad("speaks of the machine it was written on");
        }
    }
    if !path.ends_with(".rs") {
        return problems;
    }
    if !text.starts_with("//!") && !text.starts_with("#!") {
        bad("does not begin with `//!`: what is this room for, and what must it never do?");
    }
    let lines = text.lines().count();
    if lines > MAX_LINES {
        bad(&format!("has {lines} lines; look for the second idea in it"));
    }
    if text.contains(concat!("#[ign", "ore")) {
        bad("ignores a test; a skip must be loud and counted");
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> Value {
        serde_json::json!({
            "workspace_members": ["a", "b"],
            "packages": [
                { "id": "a", "name": "hvbak-a" }, { "id": "b", "name": "hvbak-b" },
                { "id": "t", "name": "tokio" }, { "id": "m", "name": "mio" },
            ],
            "resolve": { "nodes": [
                { "id": "a", "deps": [
                    { "pkg": "b", "dep_kinds": [{ "kind": null }] },
                    { "pkg": "t", "dep_kinds": [{ "kind": "dev" }] },
                ] },
                { "id": "b", "deps": [{ "pkg": "t", "dep_kinds": [{ "kind": null }] }] },
                { "id": "t", "deps": [{ "pkg": "m", "dep_kinds": [{ "kind": null }] }] },
                { "id": "m", "deps": [] },
            ] },
        })
    }

    fn check(table: &str, expected: &[&str]) {
        let found = compare(&toml::from_str(table).unwrap(), &metadata()).unwrap();
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for part in expected {
            assert!(found.iter().any(|f| f.contains(part)), "{found:?} / {part}");
        }
    }

    #[test]
    fn a_violated_table_is_reported() {
        let b = "[rooms.hvbak-b]\nours = []\nnever = []\n";
        let a = |ours: &str, never: &str| {
            format!("[rooms.hvbak-a]\nours = [{ours}]\nnever = [{never}]\n{b}")
        };
        check(&a("\"hvbak-b\"", ""), &[]);
        check(&a("", ""), &["imports hvbak-b"]);
        check(&a("\"hvbak-b\"", "\"mio\""), &["has mio in its tree"]);
        check(b, &["hvbak-a is not in rooms.toml"]);
        check(
            &format!(
                "{}[rooms.hvbak-c]\nours = []\nnever = []\n",
                a("\"hvbak-b\", \"hvbak-c\"", "")
            ),
            &["hvbak-c, which is no room", "import hvbak-c, which it does not"],
        );
    }

    #[test]
    fn a_bad_file_is_reported() {
        assert!(check_file("crates/x/src/a.rs", "//! Good.\nfn a() {}\n").is_empty());
        assert_eq!(check_file("crates/x/src/a.rs", "fn a() {}\n").len(), 1);
        let long = format!("//! x\n{}", "\n".repeat(900));
        assert_eq!(check_file("crates/x/src/a.rs", &long).len(), 1);
        assert_eq!(check_file("a.md", concat!("see /wo", "rk/main/x")).len(), 1);
    }
}
