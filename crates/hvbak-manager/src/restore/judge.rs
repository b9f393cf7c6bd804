//! What came of a restore: its output, its log, and the rows that are there afterwards.
//!
//! `Done.` and exit code 0 are not enough (engine-backup.md §1, rules 6 and 7): the program
//! ignores the exit code of pg_restore, and a scope that the archive lacks is a success to
//! it. One failure is none (§7.6): with other credentials it fails on the configuration of
//! a database that is not set up, after everything was restored.

use std::io::{self, BufRead};

use serde::Serialize;

use super::Wishes;
use crate::{
    scope::Scope,
    transcript::{Ended, RunFailed, Transcript, quote, said_well},
};

/// Bytes of a line of the log that are looked at.
const LINE_MAX: usize = 4096;
/// Hidden errors that are quoted.
const QUOTE_MAX: usize = 10;

/// SQL errors that a good restore prints (engine-backup.md §7.5). `must be owner of
/// extension uuid-ossp` is in the log of every one.
const HARMLESS: &[&str] = &[
    "language \"plpgsql\" already exists",
    "must be owner of language plpgsql",
    "extension \"plpgsql\" already exists",
    "must be owner of extension plpgsql",
    "extension \"uuid-ossp\" already exists",
    "must be owner of extension uuid-ossp",
    "schema \"public\" already exists",
    "must be owner of schema public",
    "must be member of role \"postgres\"",
    "permission denied to change default privileges",
    "permission denied for language c",
    "function \"uuid_",
    "function public.uuid_",
    "must be owner of function uuid_",
    "must be owner of function public.uuid_",
    "permission denied to create extension",
];

/// What a log hides behind a good exit code.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct LogScan {
    /// Lines of pg_restore that say it failed; the first few.
    pub hidden: Vec<String>,
    /// How many there are.
    pub count: u64,
    /// Errors that every good restore has.
    pub harmless: u64,
}

impl LogScan {
    /// Reads a log to its end, with bounded memory.
    pub fn read(mut reader: impl BufRead) -> io::Result<Self> {
        let mut scan = Self::default();
        let mut line = Vec::new();
        loop {
            let piece = reader.fill_buf()?;
            if piece.is_empty() {
                scan.line(&String::from_utf8_lossy(&line));
                return Ok(scan);
            }
            let end = piece.iter().position(|b| *b == b'\n');
            let taken = end.unwrap_or(piece.len());
            let room = LINE_MAX.saturating_sub(line.len()).min(taken);
            line.extend_from_slice(&piece[..room]);
            reader.consume(end.map_or(taken, |at| at + 1));
            if end.is_some() {
                scan.line(&String::from_utf8_lossy(&line));
                line.clear();
            }
        }
    }

    fn line(&mut self, line: &str) {
        // PostgreSQL up to 11 writes the part of the program in brackets.
        let said = line.contains("pg_restore: error:")
            || line.contains("pg_restore: [")
            || line.contains("a worker process died");
        if !said {
            return;
        }
        let sql = line.split_once("ERROR:").map(|(_, text)| text);
        let is_harmless = |text: &str| {
            HARMLESS.iter().any(|known| text.contains(known))
                || (text.contains("extension \"") && text.contains("does not exist"))
        };
        let context = ["Error while PROCESSING TOC", "Error from TOC entry"];
        if sql.is_some_and(is_harmless) {
            self.harmless += 1;
        } else if !context.iter().any(|c| line.contains(c)) {
            self.count += 1;
            if self.hidden.len() < QUOTE_MAX {
                self.hidden.push(quote(line));
            }
        }
    }
}

/// A restore that went well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoreSaid {
    /// What was restored.
    pub content: Vec<Scope>,
    /// The failure that is none: what the program did not find, to be looked at by hand.
    pub by_hand: Option<String>,
    /// Apache's configuration was left out, because the system is another.
    pub other_system: bool,
}

/// Why a restore counts as failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum RestoreFailed {
    #[error(transparent)]
    Run(#[from] RunFailed),
    #[error("engine-backup says it worked and did not restore {}", names(.scopes))]
    Missing { scopes: Vec<Scope> },
    #[error(
        "engine-backup says it worked, and its log holds {count} errors of pg_restore: {first}"
    )]
    Hidden { count: u64, first: String },
    #[error("engine-backup says it worked, and has left no log that could show what that hides")]
    NoLog,
    #[error("engine-backup says it worked, and the engine's database holds no VM and no template")]
    NoVms,
    #[error(
        "engine-backup says it worked, and the engine's database holds {found} VMs and templates instead of {expected}"
    )]
    Vms { found: u64, expected: u64 },
}

impl RestoreFailed {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Run(cause) => cause.hint(),
            _ => {
                "do not run engine-setup; empty the databases (engine-cleanup) and restore again, or another point"
            }
        }
    }
}

fn names(scopes: &[Scope]) -> String {
    scopes.iter().map(|s| s.title()).collect::<Vec<_>>().join(", ")
}

/// Rows of `vm_static`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rows {
    /// In the archive, where known.
    pub expected: Option<u64>,
    /// Now, where they could be counted.
    pub found: Option<u64>,
    /// The engine is at work on the restored database, so that they change: it is judged
    /// late. Then a difference shows nothing.
    pub in_use: bool,
}

impl Rows {
    /// What is to be said of a database that is in use and differs.
    pub fn changed(&self) -> Option<String> {
        let (found, expected) = (self.found?, self.expected?);
        (self.in_use && found != expected).then(|| {
            format!("the engine is at work, and its database holds {found} VMs and templates where the archive has {expected}")
        })
    }
}

/// Judges a restore. `held` is what the archive holds; `log` is its log, scanned to its end.
pub fn judge_restore(
    wishes: &Wishes,
    held: &[Scope],
    run: &Transcript<'_>,
    log: Option<&LogScan>,
    rows: Rows,
) -> Result<RestoreSaid, RestoreFailed> {
    let by_hand = match said_well(run) {
        Ok(()) => None,
        Err(cause) => Some(false_failure(wishes, run).ok_or(cause)?),
    };
    let mut content: Vec<_> = run.stdout.lines().filter_map(Scope::of_content_line).collect();
    content.sort();
    content.dedup();
    let mut missing = wishes.parts(held);
    missing.retain(|scope| !content.contains(scope));
    if !missing.is_empty() || content.is_empty() {
        return Err(RestoreFailed::Missing { scopes: missing });
    }
    let log = log.ok_or(RestoreFailed::NoLog)?;
    if let Some(first) = log.hidden.first() {
        return Err(RestoreFailed::Hidden { count: log.count, first: first.clone() });
    }
    if content.contains(&Scope::Db)
        && let Some(found) = rows.found
        && !rows.in_use
    {
        // Removing a self-hosted engine's own VM takes rows away.
        let removes = wishes.he_remove_storage_vm || wishes.he_remove_hosts;
        match rows.expected.filter(|_| !removes) {
            _ if found == 0 && rows.expected != Some(0) => return Err(RestoreFailed::NoVms),
            Some(expected) if expected != found => {
                return Err(RestoreFailed::Vms { found, expected });
            }
            _ => {}
        }
    }
    let other_system = run.stdout.contains("Apache httpd configuration will not be restored.");
    Ok(RestoreSaid { content, by_hand, other_system })
}

/// Exactly the failure of §7.6: code 1, one FATAL about a configuration file of a database
/// that is not set up, and before it both files rewritten.
fn false_failure(wishes: &Wishes, run: &Transcript<'_>) -> Option<String> {
    let mut fatals = run.stderr.lines().filter(|line| line.starts_with("FATAL: "));
    let (fatal, None) = (fatals.next()?, fatals.next()) else { return None };
    let file = fatal.strip_prefix("FATAL: Can not find ")?;
    let unset = ["cinderlib", "keycloak", "managedblock"]
        .iter()
        .any(|db| file == format!("/etc/ovirt-engine/engine.conf.d/10-setup-{db}-database.conf"));
    let mut lines = run.stdout.lines().rev().filter(|line| !line.trim().is_empty());
    let rewritten = [
        "Rewriting /etc/ovirt-engine-dwh/ovirt-engine-dwhd.conf.d/10-setup-database.conf",
        "Rewriting /etc/ovirt-engine/engine.conf.d/10-setup-database.conf",
    ];
    let both = rewritten.iter().all(|wanted| lines.next() == Some(*wanted));
    let asked = !wishes.credentials.is_empty();
    (run.ended == Ended::Code(1) && unset && both && asked).then(|| quote(fatal))
}
