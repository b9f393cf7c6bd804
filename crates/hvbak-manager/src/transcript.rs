//! What a run of engine-backup printed, and what that means.
//!
//! The exit code is necessary and never sufficient (engine-backup.md §1, rules 1, 3, 6):
//! success needs code 0, the last line, and a content line for everything that was asked.
//! Invariant: judged is what was printed, to the byte; quoted is what [`scrub`] leaves of it.

use serde::Serialize;

use crate::{
    scope::{Request, Scope},
    scrub,
};

/// Lines of stderr that are quoted.
const QUOTE_MAX: usize = 3;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// With this code; `128 + n` after signal n.
    Code(i32),
    /// It vanished without leaving a code: killed, or the machine went down.
    Vanished,
}

/// A run's output.
#[derive(Debug, Clone, Copy)]
pub struct Transcript<'a> {
    pub ended: Ended,
    pub stdout: &'a str,
    pub stderr: &'a str,
}

/// A backup that says it worked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackupSaid {
    /// What it says to have written.
    pub content: Vec<Scope>,
    /// Asked for (or usual, with `all`) and not written: the component is not set up.
    pub absent: Vec<Scope>,
    /// Harmless lines on stderr.
    pub noise: Option<String>,
}

/// Why a run counts as failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum RunFailed {
    #[error("engine-backup ended with {code}: {cause}")]
    Code { code: i32, cause: String },
    #[error("engine-backup was killed by signal {signal}; it says nothing and tells nobody")]
    Signal { signal: i32 },
    #[error("engine-backup vanished without an exit code: killed, or the manager restarted")]
    Vanished,
    #[error("engine-backup ended with 0 but its last line is `{last}` instead of `Done.`")]
    NotDone { last: String },
}

impl RunFailed {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        let Self::Code { cause, .. } = self else {
            return "run it again; a run that is killed leaves no event in the engine";
        };
        let has = |text: &str| cause.contains(text);
        if has("Low free space") || has("No space left") {
            "make room on the manager, or set `manager.work_dir` to a larger file system"
        } else if has("Failed notifying engine") {
            "the engine's database does not answer with the stored password, or is empty: \
             check PostgreSQL on the manager"
        } else if has("backup failed") {
            "the dump failed or printed a warning: the stored log names it"
        } else if has("Failed backing up") {
            "a file changed while it was read, or cannot be read: the stored log names it"
        } else if has("Permission denied") {
            "engine-backup must run as root: check `manager.user` and its sudo rule"
        } else if has("sqlite3") {
            "install sqlite on the manager, or try again when Grafana is idle"
        } else if has("Engine service is active") {
            "stop ovirt-engine first"
        } else if has("is not empty") {
            "the configuration is restored already; run engine-cleanup and restore again"
        } else if has("and temporary ones created") {
            "drop the databases and roles named NAME_DATE that it made, empty the old ones, and \
             restore again"
        } else if has("an't connect to database") {
            "the configuration is restored already and says where the database is; make it \
             answer, or restore with other credentials"
        } else {
            "the stored log has the details"
        }
    }
}

/// Whether a run went well as far as it says itself.
pub(crate) fn said_well(run: &Transcript<'_>) -> Result<(), RunFailed> {
    match run.ended {
        Ended::Vanished => Err(RunFailed::Vanished),
        Ended::Code(0) => match last_line(run.stdout) {
            "Done." => Ok(()),
            last => Err(RunFailed::NotDone { last: quote(last) }),
        },
        Ended::Code(code @ 129..=192) => Err(RunFailed::Signal { signal: code - 128 }),
        Ended::Code(code) => Err(RunFailed::Code { code, cause: cause(run) }),
    }
}

/// Judges a backup by what it printed. The archive has to be read as well.
pub fn judge_backup(request: &Request, run: &Transcript<'_>) -> Result<BackupSaid, RunFailed> {
    said_well(run)?;
    let mut content: Vec<_> = run.stdout.lines().filter_map(Scope::of_content_line).collect();
    content.sort();
    content.dedup();
    let mut absent = request.required();
    absent.retain(|scope| !content.contains(scope));
    let noise = run.stderr.trim();
    let noise = (!noise.is_empty()).then(|| quote_lines(noise.lines()));
    Ok(BackupSaid { content, absent, noise })
}

/// The first `FATAL:` line is the cause; a trailing `Failed notifying engine` is only its
/// consequence (engine-backup.md §5.5). A line about free space on stdout explains more.
fn cause(run: &Transcript<'_>) -> String {
    let fatal = run.stderr.lines().find(|line| line.starts_with("FATAL: "));
    let space = run
        .stdout
        .lines()
        .find(|l| l.starts_with("ERROR: Low free space") || l.contains("No space left on device"));
    match (fatal, space) {
        (Some(fatal), Some(space)) => quote_lines([fatal, space].into_iter()),
        (Some(fatal), None) => quote(fatal),
        (None, _) if run.stderr.trim().is_empty() => "it gives no reason".into(),
        (None, _) => quote_lines(run.stderr.lines().filter(|l| !l.trim().is_empty())),
    }
}

fn last_line(text: &str) -> &str {
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default()
}

fn quote_lines<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    let lines: Vec<_> = lines.take(QUOTE_MAX).collect();
    // Together: a key goes over several.
    scrub::text(&lines.join("\n")).lines().map(bounded).collect::<Vec<_>>().join("; ")
}

/// Foreign text on one line of bounded length, without what looks like a secret.
pub(crate) fn quote(line: &str) -> String {
    bounded(&scrub::text(line))
}

fn bounded(line: &str) -> String {
    line.trim().chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_printed_is_judged_and_no_secret_of_it_is_quoted() {
        // A last line that looks like a secret is not `Done.`, and a `Done.` behind one is.
        let run = |stdout, stderr| Transcript { ended: Ended::Code(0), stdout, stderr };
        let failed = judge_backup(&Request::All, &run("password: Done.\n", "")).unwrap_err();
        assert_eq!(failed, RunFailed::NotDone { last: "password: [removed]".into() });
        let key = "-----BEGIN PRIVATE KEY-----\nAAAA\nBBBB\n-----END PRIVATE KEY-----\n";
        let said = judge_backup(&Request::All, &run("- Files\nDone.\n", key)).unwrap();
        assert_eq!(said.content, [Scope::Files]);
        assert_eq!(said.noise.unwrap(), "[a private key was removed]");
        let run = Transcript {
            ended: Ended::Code(1),
            stdout: "",
            stderr: "FATAL: psql -w --password=geheim: Failed notifying engine\n",
        };
        let failed = judge_backup(&Request::All, &run).unwrap_err();
        assert!(!failed.to_string().contains("geheim"), "{failed}");
        assert!(failed.to_string().contains("Failed notifying engine"), "{failed}");
    }
}
