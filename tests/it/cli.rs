//! The face: help, completions, JSON lines, exit codes, inventory against recorded engines.

use std::process::Command;

use hvbak_tests::{Lab, Replay, Run, Started, bin};

fn plain(args: &[&str]) -> Run {
    Started::new(Command::new(bin("hvbak")).args(args).env_remove("HVBAK_CONFIG")).wait()
}

const COMMANDS: &[&str] = &[
    "init", "enroll", "doctor", "list", "backup", "points", "show", "verify", "restore", "export",
    "cleanup",
];

#[test]
fn without_words_help_is_printed() {
    let run = plain(&[]);
    assert_eq!(run.code, 2, "{run}");
    run.says("Usage: hvbak").says("backup").says("Exit codes");
}

#[test]
fn every_command_has_help() {
    for command in COMMANDS {
        plain(&[command, "--help"]).exits(0).says("Usage: hvbak").says("--json");
    }
    for command in ["init", "enroll", "list", "backup", "verify", "restore", "export"] {
        plain(&[command, "--help"]).exits(0).says("example").says(&format!("hvbak {command}"));
    }
}

#[test]
fn completions_are_scripts_for_the_shell() {
    let script = plain(&["completions", "bash"]).exits(0).stdout;
    let mut bash = Command::new("bash");
    Started::new(bash.args(["-n", "-c", &script])).wait().exits(0);
    plain(&["completions", "zsh"]).exits(0).says("#compdef hvbak");
}

/// Every command that help shows has a page that two readers of pages find nothing wrong with.
#[test]
fn every_command_has_a_manual_page_without_a_fault() {
    let dir = tempfile::tempdir().unwrap();
    let dated = |seconds: &str| {
        let mut hvbak = Command::new(bin("hvbak"));
        let hvbak = hvbak.arg("manual").arg(dir.path()).env("SOURCE_DATE_EPOCH", seconds);
        Started::new(hvbak).wait().exits(0);
    };
    dated("1795219200");
    let pages: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
    let errors = std::fs::read_to_string(dir.path().join("hvbak-errors.7")).unwrap();
    assert!(errors.contains("2026-11-21") && errors.is_ascii(), "{errors}");
    let first = std::fs::read_to_string(dir.path().join("hvbak.1")).unwrap();
    assert!(first.contains("hvbak\\-errors(7)"), "{first}");
    let help = plain(&["--help"]).exits(0).stdout;
    let listed =
        help.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| !l.is_empty());
    // A long description goes on in the next line, further to the right.
    let named: Vec<&str> = listed
        .filter(|l| l.starts_with("  ") && !l.starts_with("   "))
        .filter_map(|l| l.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(named.len() > 15, "{named:?}");
    for name in named {
        let page = dir.path().join(format!("hvbak-{name}.1"));
        let text = std::fs::read_to_string(&page).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(text.contains("2026-11-21"), "{text}");
    }
    for (program, args) in [
        ("mandoc", &["-T", "lint", "-W", "warning"][..]),
        ("groff", &["-man", "-Tutf8", "-ww", "-z"]),
    ] {
        if Command::new(program).arg("--version").output().is_err() {
            hvbak_tests::skip(&format!("{program} is not installed"));
            continue;
        }
        let run = Started::new(Command::new(program).args(args).args(&pages)).wait().exits(0);
        assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", ""), "{run}");
    }
}

#[test]
fn what_cannot_be_typed_is_a_usage_error() {
    plain(&["backup", "--no-such-flag"]).exits(2).says("--no-such-flag");
    plain(&["frobnicate"]).exits(2);
    plain(&["--config", "/nonexistent/hvbak.toml", "points"])
        .exits(2)
        .says("/nonexistent/hvbak.toml")
        .says("hint");
    let lab = Lab::standard();
    lab.hvbak(&["backup"]).exits(2).says("--vm");
    lab.hvbak(&["verify"]).exits(2).says("--all");
}

#[test]
fn with_json_every_line_is_json_and_the_last_is_the_result() {
    let lab = Lab::standard();
    lab.json(&["doctor"]).exits(0);
    lab.json(&["list", "vms"]).exits(0);
    let backup = lab.json(&["backup", "--vm", "web1"]).exits(0);
    for kind in ["vm-started", "disk-started", "disk-done", "vm-done"] {
        assert!(!backup.of(kind).is_empty(), "no {kind}: {backup}");
    }
    lab.json(&["points"]).exits(0);
    lab.json(&["show", "web1"]).exits(0);
    lab.json(&["verify", "--all"]).exits(0);
    lab.json(&["restore", "web1", "--name", "copy"]).exits(0);
    lab.json(&["cleanup"]).exits(0);
    let failed = lab.json(&["show", "nobody"]);
    assert_ne!(failed.code, 0);
    assert!(failed.result()["error"].is_string(), "{failed}");
}

#[test]
fn a_repository_that_is_not_there_is_exit_10() {
    let lab = Lab::standard();
    std::fs::remove_dir_all(lab.path("repository")).unwrap();
    lab.hvbak(&["points"]).exits(10).says("hint").says("init");
    lab.hvbak(&["backup", "--vm", "web1"]).exits(10);
}

#[test]
fn no_secret_is_in_output_or_arguments() {
    let lab = Lab::standard();
    let secret = std::fs::read_to_string(lab.path("engine.password")).unwrap();
    lab.hvbak(&["-vvv", "list", "vms"]).exits(0).never_says(secret.trim());
    lab.hvbak(&["-vvv", "--json", "backup", "--vm", "db1"]).exits(0).never_says(secret.trim());
}

#[test]
fn a_closed_pipe_is_no_error_of_data_commands() {
    let lab = Lab::standard();
    let mut bash = Command::new("bash");
    let line = "set -o pipefail; \"$0\" --config \"$1\" list vms | head -n 1";
    bash.args(["-c", line]).arg(bin("hvbak")).arg(lab.path("hvbak.toml"));
    Started::new(&mut bash).wait().exits(0).never_says("panic");
}

#[test]
fn recorded_engines_are_listed() {
    for (set, vms) in [("replay-4.2dev-2017-08", 8), ("replay-4.3-2020-03", 4)] {
        let replay = Replay::of(set);
        for what in
            ["vms", "hosts", "domains", "disks", "templates", "clusters", "datacenters", "networks"]
        {
            let run = replay.hvbak(&["--json", "list", what]).exits(0);
            assert_eq!(run.result()["type"], "result");
            assert!(run.lines().len() > 1, "{set} has no {what}: {run}");
            if what == "vms" {
                let listed = run.lines().len() - 1;
                assert!(listed >= vms, "{set}: {listed} VMs: {run}");
            }
        }
        replay.hvbak(&["list", "vms"]).exits(0).says("name");
    }
}
