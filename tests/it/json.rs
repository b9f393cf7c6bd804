//! `--json` prints what its page says: kinds of lines, their keys, and those of each result.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use hvbak_tests::{Lab, Run};
use serde_json::Value;

const PAGE: &str = include_str!("../../crates/hvbak/JSON.md");

/// Words in backquotes.
fn words(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The rows of the tables below a heading: what is in the first cell, and in the others.
fn rows(heading: &str) -> Vec<(Vec<&'static str>, &'static str)> {
    let (_, rest) = PAGE.split_once(heading).unwrap();
    let section = rest.split("\n## ").next().unwrap();
    let lines = section.lines().filter(|line| line.starts_with("| `"));
    lines
        .filter_map(|line| line.trim_start_matches("| ").split_once(" | "))
        .map(|(first, rest)| (words(first), rest))
        .collect()
}

/// Keys that a kind of line has, and which of them may be missing.
fn keys(kind: &str, command: &str) -> Option<BTreeMap<&'static str, bool>> {
    // Lines of one kind differ between commands that only look.
    let of_command = rows("## What commands tell").into_iter().filter(|(_, rest)| {
        rest.rsplit_once(" | ").is_some_and(|(_, of)| words(of).contains(&command))
    });
    let mut all = rows("## While a job works").into_iter().chain(of_command);
    let (_, rest) = all.find(|(kinds, _)| kinds == &[kind])?;
    let cell = rest.split(" | ").next()?;
    // A cell of words that are not keys alone tells in words what is there.
    let plain = cell.split('`').step_by(2).all(|between| between.trim().is_empty());
    plain.then(|| {
        words(cell).into_iter().map(|w| (w.trim_end_matches('?'), w.ends_with('?'))).collect()
    })
}

fn agrees(run: &Run, command: &str) {
    for line in run.stdout.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let object = line.as_object().unwrap();
        let kind = line["type"].as_str().unwrap();
        let own: BTreeSet<&str> =
            object.keys().map(String::as_str).filter(|k| *k != "type").collect();
        if kind == "result" {
            let heading = "## The last line";
            let (_, rest) = rows(heading)
                .into_iter()
                .find(|(first, _)| first == &[command])
                .unwrap_or_else(|| panic!("no result of `{command}`"));
            let mut said: BTreeSet<&str> =
                words(rest).into_iter().map(|word| word.trim_end_matches('?')).collect();
            said.extend(["status", "exit", "error", "hint"]);
            let more: Vec<_> = own.difference(&said).collect();
            assert!(more.is_empty(), "result of `{command}` has {more:?}: {line}");
        } else if let Some(keys) = keys(kind, command) {
            let said: BTreeSet<&str> = keys.keys().copied().collect();
            let more: Vec<_> = own.difference(&said).collect();
            assert!(more.is_empty(), "`{kind}` has {more:?}: {line}");
            let less: Vec<_> =
                keys.iter().filter(|(key, may)| !**may && !own.contains(*key)).collect();
            assert!(less.is_empty(), "`{kind}` lacks {less:?}: {line}");
        }
    }
}

#[test]
fn lines_and_results_have_the_keys_that_the_page_says() {
    let lab = Lab::standard();
    lab.configure(|text| format!("{text}\n[policy.nightly]\nmatch = [\"web*\"]\n"));
    lab.fill_web1();
    let out = lab.scratch("out");
    let out = out.to_str().unwrap();
    let list: &[(&str, &[&str])] = &[
        ("doctor", &["doctor"]),
        ("list", &["list", "vms"]),
        ("list", &["list", "disks"]),
        ("backup", &["backup", "--vm", "web1", "--dry-run"]),
        ("backup", &["backup", "--vm", "web1", "--vm", "db1"]),
        ("backup", &["backup", "--policy", "nightly"]),
        ("points", &["points"]),
        ("show", &["show", "web1@latest"]),
        ("verify", &["verify", "--all"]),
        ("export", &["export", "db1@latest", "--output", out]),
        ("restore", &["restore", "db1", "--name", "db1-a", "--dry-run"]),
        ("restore", &["restore", "db1", "--name", "db1-a"]),
        ("restore", &["restore", "db1", "web1", "--name", "{name}-b"]),
        ("policy list", &["policy", "list"]),
        ("policy test", &["policy", "test"]),
        ("role print", &["role", "print"]),
        ("role check", &["role", "check"]),
        ("prune", &["prune", "--keep-last", "1"]),
        ("report", &["report"]),
        ("cleanup", &["cleanup"]),
        ("drill", &["drill", "--dry-run"]),
        // Ways in which commands fail.
        ("restore", &["restore", "nobody", "--name", "x"]),
        ("manager-backup", &["manager-backup"]),
    ];
    for (command, args) in list {
        agrees(&lab.json(args), command);
    }
}

#[test]
fn every_kind_of_line_is_on_the_page() {
    let all: Vec<_> = ["## While a job works", "## What commands tell"].map(rows).concat();
    let known: BTreeSet<&str> = all.into_iter().flat_map(|(kinds, _)| kinds).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut folders = vec![root.join("crates/hvbak/src")];
    let mut found = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            for call in text.split(".record(").skip(1) {
                let Some(kind) = call.trim_start().strip_prefix('"') else { continue };
                let kind = kind.split('"').next().unwrap();
                // Events bring their own kind.
                if kind != "event" {
                    assert!(
                        known.contains(kind),
                        "{}: `{kind}` is not on the page",
                        path.display()
                    );
                    found += 1;
                }
            }
        }
    }
    assert!(found > 25, "{found}");
}
