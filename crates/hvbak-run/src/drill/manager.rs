//! A manager's rehearsal: its newest archive is proven, its dumps are read into a
//! PostgreSQL of the drill's own, and what is in them is counted.
//!
//! The archive is compared with what was recorded when it came, before anything of it is
//! fed to a database. Nothing is sent to the manager. An encrypted archive is opened as a
//! stream with the identity that was given; its dumps lie in plain in the scratch directory
//! (0700) while PostgreSQL reads them, as those of any archive do. Without an identity its
//! stored bytes are compared, and it counts as skipped: nothing more was seen.

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io::{self, BufReader},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use hvbak_manager::{
    Scope,
    archive::{self, Format},
};
use hvbak_repo::{ManagerName, ManagerPoint, RunOutcome};
use jiff::Timestamp;

use super::{
    DrillContext,
    child::{self, Owner, Start},
    postgres::{self, Cluster, Programs},
    psql,
    scratch::{self, Scratch, local},
    vm::Rehearsed,
};
use crate::{
    error::{Result, RunError},
    job::blocking,
};

/// A database needs more room than its dump; PostgreSQL itself, too.
const GROWTH: u64 = 8;
const ROOM: u64 = (384 << 20) + scratch::RESERVE;
const TABLES: &str = "select count(*) from pg_catalog.pg_tables \
     where schemaname not in ('pg_catalog', 'information_schema')";

/// A database dump of an archive, unpacked.
struct Dump {
    scope: Scope,
    plain: bool,
    path: PathBuf,
    /// The line of a plain one that has a command for psql.
    command: Option<u64>,
}

/// Rehearses a manager's newest point. Its own failures are in the answer.
pub async fn rehearse(
    drill: &DrillContext,
    scratch: &Scratch,
    name: &ManagerName,
    point: &ManagerPoint,
) -> Result<Rehearsed> {
    match attempt(drill, scratch, name, point).await {
        Err(RunError::Cancelled) => Err(RunError::Cancelled),
        Err(_) if drill.cancel.is_cancelled() => Err(RunError::Cancelled),
        Err(error) => Ok(Rehearsed {
            damaged: error.exit_code() == 15,
            ..Rehearsed::new(RunOutcome::Failed, crate::chain(&error))
        }),
        done => done,
    }
}

async fn attempt(
    drill: &DrillContext,
    scratch: &Scratch,
    name: &ManagerName,
    point: &ManagerPoint,
) -> Result<Rehearsed> {
    drill.phase(None, format!("verifying {}", point.title()));
    let stored = point.clone();
    let wrong = blocking("read the archive", move || stored.compare()).await?;
    if !wrong.is_empty() {
        return Ok(Rehearsed::damage(format!("damaged: {}", wrong.join("; "))));
    }
    if point.manifest.encrypted.is_some() && drill.identities.is_none() {
        let recipients = point.manifest.recipients().join(", ");
        let text = format!(
            "compared stored bytes, NOT opened and not restored: it is encrypted to {recipients}, and no identity was given"
        );
        drill.warn(format!("{}: {text} (--identity FILE)", point.title()));
        return Ok(Rehearsed::new(RunOutcome::Skipped, text));
    }
    let (of, identities) = (point.clone(), drill.identities.clone());
    let wrong = blocking("open the archive", move || of.compare_plain(identities.as_ref())).await?;
    if let Some(why) = wrong {
        return Ok(Rehearsed::damage(format!("damaged: {why}")));
    }
    let source = open(drill, point).await?;
    let report = on_thread("read the archive", move || {
        archive::verify(source).map_err(|archive::ReadError(cause)| cause)
    })
    .await?;
    if let Some(finding) = report.findings.first() {
        let member = finding.member.as_deref().unwrap_or("archive");
        return Ok(Rehearsed::damage(format!("damaged: {member}: {}", finding.text)));
    }
    let unpacked = |part: &archive::Part| match part.format {
        Some(Format::Custom | Format::Plain) => part.unpacked,
        _ => 0,
    };
    let dumps: u64 = report.parts.iter().map(unpacked).sum();
    if dumps == 0 {
        return Ok(only_checked("it holds no database dump"));
    }
    let Some(programs) = postgres::find() else {
        return Ok(only_checked("no PostgreSQL server is installed on this machine"));
    };
    let owner = Owner::find(&drill.settings.user)?;
    if let Some(why) = child::unfit() {
        return Ok(only_checked(why));
    }
    if let Some(why) = scratch.lacks(dumps.saturating_mul(GROWTH) + ROOM)? {
        return Ok(Rehearsed::new(RunOutcome::Failed, why));
    }
    let dir = scratch.fresh("manager")?;
    let seen = unpack_and_restore(drill, &owner, &dir, &programs, name, point, &report).await;
    scratch.remove(&dir)?;
    seen
}

fn only_checked(why: &str) -> Rehearsed {
    let text = format!("checked archive, not restored into a database: {why}");
    Rehearsed::new(RunOutcome::Done, text)
}

async fn unpack_and_restore(
    drill: &DrillContext,
    owner: &Owner,
    dir: &Path,
    programs: &Programs,
    name: &ManagerName,
    point: &ManagerPoint,
    report: &archive::Report,
) -> Result<Rehearsed> {
    let (source, to) = (open(drill, point).await?, dir.to_owned());
    let scopes = on_thread("unpack the archive", move || unpack(source, &to)).await?;
    let plain = |scope: Scope| {
        report.parts.iter().any(|part| part.scope == scope && part.format == Some(Format::Plain))
    };
    let mut dumps = Vec::new();
    for scope in scopes {
        let (path, plain) = (dir.join(file(scope)), plain(scope));
        let command = if plain {
            let path = path.clone();
            let look = move || psql::own_command(BufReader::new(File::open(path)?));
            on_thread("read the dump", look).await?
        } else {
            None
        };
        owner.give(&path)?;
        dumps.push(Dump { scope, plain, path, command });
    }
    // Only now: until here nobody else could lay a link in it.
    owner.give(dir)?;
    drill.phase(None, format!("restoring {} into PostgreSQL {}", point.title(), programs.major));
    let mut cluster = Cluster::start(programs, owner, dir, &drill.cancel).await?;
    let result = restore(drill, &mut cluster, dir, owner, &dumps, programs, (name, point)).await;
    cluster.stop().await;
    result
}

/// File of a scope's dump in the scratch directory.
fn file(scope: Scope) -> String {
    format!("{}.dump", scope.name())
}

/// The archive, decrypted when it is encrypted.
async fn open(drill: &DrillContext, point: &ManagerPoint) -> Result<Box<dyn io::Read + Send>> {
    let (point, identities) = (point.clone(), drill.identities.clone());
    blocking("open the archive", move || point.open_archive(identities.as_ref())).await
}

fn unpack(archive: impl io::Read, dir: &Path) -> io::Result<Vec<Scope>> {
    let mut found = Vec::new();
    let unpacked = archive::each_dump(archive, |scope, dump| {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        io::copy(dump, &mut options.open(dir.join(file(scope)))?)?;
        found.push(scope);
        Ok(())
    });
    unpacked.map_err(|archive::ReadError(cause)| cause).map(|()| found)
}

async fn restore(
    drill: &DrillContext,
    cluster: &mut Cluster<'_>,
    dir: &Path,
    owner: &Owner,
    dumps: &[Dump],
    programs: &Programs,
    (name, point): (&ManagerName, &ManagerPoint),
) -> Result<Rehearsed> {
    let cancel = &drill.cancel;
    let (mut seen, mut restored) = (Vec::new(), false);
    for dump in dumps {
        let title = dump.scope.title();
        if let Some(line) = dump.command {
            let why = format!("line {line} of it could give psql a command to run");
            seen.push(format!("{title} checked only, not restored: {why}"));
            continue;
        }
        if let Some(from) = dumped_from(drill, dir, owner, dump, programs).await?
            && from > programs.major
        {
            let here = programs.major;
            seen.push(format!(
                "{title} not restored: it is of PostgreSQL {from}, and this machine has {here}"
            ));
            continue;
        }
        let database = dump.scope.name();
        let complaints = cluster.restore(database, &dump.path, dump.plain, cancel).await?;
        if let Some(first) = complaints.first() {
            let n = complaints.len();
            let text = format!("{title}: {n} errors while it was restored, the first: {first}");
            return Ok(Rehearsed::new(RunOutcome::Failed, text));
        }
        let tables = number(&cluster.query(database, TABLES, cancel).await?);
        if tables == 0 {
            let text = format!("{title}: it has no tables after its restore");
            return Ok(Rehearsed::new(RunOutcome::Failed, text));
        }
        restored = true;
        if dump.scope != Scope::Db {
            seen.push(format!("{title} {tables} tables"));
            continue;
        }
        let rows = cluster.query(database, "select vm_guid from vm_static", cancel).await?;
        seen.push(format!("{title} {tables} tables, {} rows in vm_static", rows.len()));
        if rows.is_empty() {
            let text = format!("{}: no VM is in it", seen.join("; "));
            return Ok(Rehearsed::new(RunOutcome::Failed, text));
        }
        let known = known_vms(drill, point.manifest.started).await?;
        let (missing, text) = compare(&rows, &known);
        seen.extend(text);
        if !missing.is_empty() {
            let names = missing.join(", ");
            drill.warn(format!(
                "VMs with points that the database of {name} does not know: {names}"
            ));
        }
    }
    if !restored {
        return Ok(only_checked(&seen.join("; ")));
    }
    let text = format!("restored into PostgreSQL {}: {}", programs.major, seen.join("; "));
    Ok(Rehearsed::new(RunOutcome::Done, text))
}

/// The version of the server that a dump was taken from, if it tells.
async fn dumped_from(
    drill: &DrillContext,
    dir: &Path,
    owner: &Owner,
    dump: &Dump,
    programs: &Programs,
) -> Result<Option<u32>> {
    if dump.plain {
        let head = on_thread("read the dump", {
            let path = dump.path.clone();
            move || {
                let mut head = Vec::new();
                io::Read::read_to_end(
                    &mut io::Read::take(scratch::open_foreign(&path)?, 4096),
                    &mut head,
                )?;
                Ok(head)
            }
        })
        .await?;
        return Ok(from_words(&String::from_utf8_lossy(&head)));
    }
    let tool = Start { owner, dir, group: None, signal: "KILL", reserve: scratch::RESERVE };
    let dump = dump.path.display().to_string();
    let said = tool.run(&drill.cancel, &programs.tool("pg_restore"), &["--list", &dump]).await?;
    // A format that this version cannot read is of a later one.
    if said.stderr.contains("unsupported version") {
        return Ok(Some(programs.major + 1));
    }
    Ok(from_words(&String::from_utf8_lossy(&said.stdout)))
}

/// `Dumped from database version 15.18`, with a colon in lists.
fn from_words(text: &str) -> Option<u32> {
    let line = text.lines().find(|line| line.contains("Dumped from database version"))?;
    postgres::major(line.split("version").nth(1)?.trim_start_matches(':'))
}

fn number(lines: &[String]) -> u64 {
    lines.first().and_then(|line| line.trim().parse().ok()).unwrap_or(0)
}

/// Ids and names of the VMs that had a point before a time.
async fn known_vms(drill: &DrillContext, before: Timestamp) -> Result<Vec<(String, String)>> {
    let repository = drill.repository.clone();
    blocking("read the catalogue", move || {
        let mut known = Vec::new();
        for vm in repository.vms()? {
            let points = repository.points(vm.id)?.points;
            if points.iter().any(|point| point.manifest.started <= before) {
                known.push((vm.id.to_string(), vm.name));
            }
        }
        Ok(known)
    })
    .await
}

/// Names of known VMs that are not among the rows, and what to say; nothing when no VM can
/// be compared.
fn compare(rows: &[String], known: &[(String, String)]) -> (Vec<String>, Option<String>) {
    let rows: BTreeSet<_> = rows.iter().map(|row| row.trim().to_ascii_lowercase()).collect();
    let missing: Vec<_> = known
        .iter()
        .filter(|(id, _)| !rows.contains(&id.to_ascii_lowercase()))
        .map(|(_, name)| name.clone())
        .collect();
    let (there, all) = (known.len() - missing.len(), known.len());
    let text = (all > 0).then(|| format!("{there} of {all} VMs that had points then are in it"));
    (missing, text)
}

/// Work that blocks and is not the repository's.
async fn on_thread<T: Send + 'static>(
    doing: &str,
    call: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(call)
        .await
        .map_err(|error| RunError::Task { text: error.to_string() })?
        .map_err(local(doing.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_compared_with_the_vms_of_that_time() {
        let own = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let known = [("aa".to_owned(), "web1".to_owned()), ("BB".to_owned(), "db1".to_owned())];
        let (missing, text) = compare(&own(&["AA", "cc"]), &known);
        assert_eq!(
            (missing, text.unwrap()),
            (own(&["db1"]), "1 of 2 VMs that had points then are in it".into())
        );
        assert_eq!(compare(&own(&["aa", "bb"]), &known).0, own(&[]));
        assert_eq!(compare(&own(&["aa"]), &[]), (vec![], None));
    }

    #[test]
    fn the_version_of_the_server_is_read_from_lists_and_from_sql() {
        assert_eq!(from_words(";     Dumped from database version: 15.18 (Debian)\n"), Some(15));
        assert_eq!(from_words("--\n-- Dumped from database version 12.9\n"), Some(12));
        assert_eq!(from_words(""), None);
    }
}
