//! Every recorded run of the real programs is judged as it really ended.

use hvbak_manager::{
    Request, Scope,
    transcript::{Ended, RunFailed, Transcript, judge_backup},
};

use crate::support::fixture;

#[derive(Debug)]
pub struct Run {
    pub name: String,
    pub command: String,
    pub rc: i32,
    pub stdout: String,
    pub stderr: String,
}

pub fn runs(prefix: &str) -> Vec<Run> {
    let text = std::fs::read_to_string(fixture("transcripts.jsonl")).unwrap();
    let runs: Vec<_> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|v| Run {
            name: v["name"].as_str().unwrap().into(),
            command: v["command"].as_str().unwrap().into(),
            rc: i32::try_from(v["rc"].as_i64().unwrap()).unwrap(),
            stdout: v["stdout"].as_str().unwrap().into(),
            stderr: v["stderr"].as_str().unwrap().into(),
        })
        .filter(|r| r.name.starts_with(prefix))
        .collect();
    assert!(!runs.is_empty());
    runs
}

pub fn run(name: &str) -> Run {
    runs(name).into_iter().find(|r| r.name == name).unwrap()
}

impl Run {
    pub fn transcript(&self) -> Transcript<'_> {
        Transcript { ended: Ended::Code(self.rc), stdout: &self.stdout, stderr: &self.stderr }
    }

    fn request(&self) -> Request {
        let scopes: Vec<_> =
            self.command.split(' ').filter_map(|a| a.strip_prefix("--scope=")).collect();
        Request::parse(&scopes).unwrap()
    }
}

fn failure(name: &str) -> String {
    let failed = judge_backup(&Request::All, &run(name).transcript()).unwrap_err();
    failed.to_string()
}

#[test]
fn rule_01_success_needs_the_code_and_the_last_line() {
    for run in runs("b_") {
        // These ask for scopes that the version does not have, or print other things.
        if ["b_badscope", "b_help", "b_relfile"].contains(&run.name.as_str()) {
            continue;
        }
        let judged = judge_backup(&run.request(), &run.transcript());
        assert_eq!(judged.is_ok(), run.rc == 0, "{}: {judged:?}", run.name);
    }
    // The same text with the end missing is no success, whatever the code.
    let good = run("b_ok_all");
    for cut in good.stdout.match_indices('\n').map(|(at, _)| at) {
        let stdout = &good.stdout[..cut];
        let run = Transcript { stdout, ..good.transcript() };
        assert_eq!(
            judge_backup(&Request::All, &run).is_ok(),
            cut + 1 == good.stdout.trim_end().len() + 1 || stdout.ends_with("Done."),
            "{stdout}"
        );
    }
    let empty = Transcript { ended: Ended::Code(0), stdout: "", stderr: "" };
    assert!(matches!(judge_backup(&Request::All, &empty), Err(RunFailed::NotDone { .. })));
}

#[test]
fn rule_03_content_lines_are_compared_with_what_was_asked() {
    let said = judge_backup(&Request::All, &run("b_notsetup").transcript()).unwrap();
    assert_eq!((said.content, said.absent), (vec![Scope::Files], vec![Scope::Db]));
    let request = Request::parse(&["keycloakdb"]).unwrap();
    let said = judge_backup(&request, &run("b_keycloakdb").transcript()).unwrap();
    assert_eq!((said.content, said.absent), (vec![], vec![Scope::KeycloakDb]));
    let said = judge_backup(&Request::All, &run("b_ok_all").transcript()).unwrap();
    assert_eq!(
        said.content,
        [Scope::Files, Scope::Db, Scope::DwhDb, Scope::KeycloakDb, Scope::GrafanaDb]
    );
    assert!(said.absent.is_empty());
}

#[test]
fn the_first_fatal_line_is_the_cause() {
    assert!(failure("b_baddwh").contains("Database ovirt_engine_history backup failed"));
    assert!(failure("b_badcomp").contains("invalid compressor 'zstd'"));
    let low = failure("b_full_tmp");
    assert!(
        low.contains("Database engine backup failed") && low.contains("Low free space"),
        "{low}"
    );
    let full = failure("b_full_target");
    assert!(full.contains("Cannot create") && full.contains("No space left"), "{full}");
    assert!(failure("b_nonroot").contains("Permission denied"));
    let grow = failure("b_grow");
    assert!(grow.contains("Failed backing up /etc/ovirt-engine") && !grow.contains('\n'), "{grow}");
}

#[test]
fn rule_13_noise_on_stderr_is_no_failure() {
    let good = run("b_ok_all");
    let stderr = "/usr/lib/python3.9/x.py:5: DeprecationWarning: old\n";
    let said = judge_backup(&Request::All, &Transcript { stderr, ..good.transcript() }).unwrap();
    assert!(said.noise.unwrap().contains("DeprecationWarning"));
}

#[test]
fn rule_14_a_killed_run_is_a_failure_without_fatal() {
    let begun = Transcript { ended: Ended::Code(141), stdout: "Backing up:\n", stderr: "" };
    let failed = judge_backup(&Request::All, &begun).unwrap_err();
    assert_eq!(failed, RunFailed::Signal { signal: 13 });
    let gone = Transcript { ended: Ended::Vanished, ..begun };
    assert_eq!(judge_backup(&Request::All, &gone).unwrap_err(), RunFailed::Vanished);
}

#[test]
fn rule_15_a_database_that_is_down_fails_every_scope() {
    for name in ["b_dbdown", "b_badpw", "b_badpw_files"] {
        let failed = judge_backup(&Request::All, &run(name).transcript()).unwrap_err();
        assert!(failed.hint().contains("database"), "{name}: {}", failed.hint());
    }
}
