//! The files that a move changes on the manager, and its notes in the repository.
//!
//! Invariant: a file is written only when its original is in the repository, and only if it
//! is what the record says it was, or already what it becomes.

use bytes::Bytes;
use hvbak_manager::dwh::{self, Edit, Record, Target};
use hvbak_repo::ManagerNotes;
use hvbak_ssh::ExitStatus;
use hvbak_types::{PointId, Secret};
use sha2::{Digest as _, Sha256};

use super::restore_part::Session;
use crate::error::{self, Result, RunError};

const RECORD: &str = "record.json";
/// Why a file cannot be read that is not there.
pub const MISSING: &str = "does not exist";

/// A file that is to be changed.
pub struct Planned {
    pub path: &'static str,
    pub before: String,
    pub after: String,
}

/// A move with its notes.
pub struct Move {
    pub notes: ManagerNotes,
    pub record: Record,
}

/// The SHA-256 of a file's content.
pub fn sum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Reads the files that name the database and makes their new texts.
pub async fn plan(
    session: &mut Session<'_>,
    target: &Target,
    password: &Secret,
) -> Result<Vec<Planned>> {
    let mut planned = Vec::new();
    // The service's first: what it writes is what counts.
    for path in [dwh::DWHD_CONF, dwh::ENGINE_CONF] {
        let before = read(session, path).await?;
        let failed = failed(session);
        let not_text = |_| dwh::EditError::NotText { path: path.into() };
        let before = String::from_utf8(before).map_err(not_text).map_err(&failed)?;
        let after = dwh::point_at(path, &before, target, password).map_err(&failed)?;
        planned.push(Planned { path, before, after });
    }
    Ok(planned)
}

/// The same from the notes of a move that was begun: what is on the manager may be changed.
pub fn plan_again(
    session: &Session<'_>,
    of: &Move,
    target: &Target,
    password: &Secret,
) -> Result<Vec<Planned>> {
    let mut planned = Vec::new();
    for edit in &of.record.edits {
        let known = [dwh::DWHD_CONF, dwh::ENGINE_CONF].into_iter().find(|p| *p == edit.path);
        let Some(path) = known else { return Err(damaged(session, edit, "is not of this kind")) };
        let before = original(session, of, edit)?;
        let before = String::from_utf8(before).map_err(|_| damaged(session, edit, "is no text"))?;
        let after = dwh::point_at(path, &before, target, password).map_err(failed(session))?;
        if sum(after.as_bytes()) != edit.after {
            let what = format!("to {}, with another password", of.record.target);
            return Err(RunError::DwhOther { manager: session.name.to_string(), what });
        }
        planned.push(Planned { path, before, after });
    }
    Ok(planned)
}

fn failed(session: &Session<'_>) -> impl Fn(dwh::EditError) -> RunError + use<> {
    let manager = session.name.to_string();
    move |cause| RunError::DwhEdit { manager: manager.clone(), cause }
}

fn damaged(session: &Session<'_>, edit: &Edit, why: &str) -> RunError {
    let manager = session.name.to_string();
    let why = format!("cannot be changed: its original in the repository {why}");
    RunError::DwhFile { manager, path: edit.path.clone(), why }
}

/// A file as it was before the move.
pub fn original(session: &Session<'_>, of: &Move, edit: &Edit) -> Result<Vec<u8>> {
    let bytes = of.notes.get(&edit.kept).map_err(error::repository("read the original"))?;
    let bytes = bytes.ok_or_else(|| damaged(session, edit, "is gone"))?;
    if sum(&bytes) != edit.before {
        return Err(damaged(session, edit, "is not what was stored"));
    }
    Ok(bytes)
}

/// A file of the manager, byte for byte.
pub async fn read(session: &mut Session<'_>, path: &str) -> Result<Vec<u8>> {
    let doing = "read the configuration of the Data Warehouse";
    let output = session.feed(dwh::CAT, &[path], &Bytes::new(), doing).await?;
    let why = match output.status {
        ExitStatus::Code(66) => MISSING,
        ExitStatus::Code(76) => "is no plain, small file",
        _ => {
            let manager = session.context.manager.address.clone();
            return output
                .check(doing)
                .map(|output| output.stdout)
                .map_err(error::ssh(&manager, doing));
        }
    };
    let manager = session.name.to_string();
    Err(RunError::DwhFile { manager, path: path.to_owned(), why: why.into() })
}

/// Whether the service may be at work while its file changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writing {
    /// The file stays, and the error is [`RunError::DwhAtWork`].
    WhileQuiet,
    Anyway,
}

/// Gives a file of the manager another content, from one that is known to another.
pub async fn write(
    session: &mut Session<'_>,
    path: &str,
    from: &str,
    content: Vec<u8>,
    when: Writing,
) -> Result<()> {
    let doing = "write the configuration of the Data Warehouse";
    let to = sum(&content);
    let quiet = if when == Writing::WhileQuiet { "quiet" } else { "" };
    let args = [path, from, to.as_str(), quiet];
    let output = session.feed(dwh::WRITE, &args, &Bytes::from(content), doing).await?;
    if output.status == ExitStatus::Code(78) {
        return Err(RunError::DwhAtWork { manager: session.name.to_string() });
    }
    let why = match output.status {
        ExitStatus::Code(76) => "is no plain file any more",
        ExitStatus::Code(77) => "was changed by somebody else and stays as it is",
        _ => {
            let manager = session.context.manager.address.clone();
            return output.check(doing).map(drop).map_err(error::ssh(&manager, doing));
        }
    };
    let manager = session.name.to_string();
    Err(RunError::DwhFile { manager, path: path.to_owned(), why: why.into() })
}

/// The newest notes that hold a record of this name, and the record.
pub fn newest_note(
    session: &Session<'_>,
    name: &'static str,
) -> Result<Option<(ManagerNotes, Vec<u8>)>> {
    let failed = error::repository("read the record of the move");
    let find = || {
        let mut newest = None;
        for notes in session.context.repository.notes(&session.name)? {
            // Without a record nothing was done yet.
            if let Some(bytes) = notes.get(name)? {
                newest = Some((notes, bytes));
            }
        }
        Ok(newest)
    };
    find().map_err(failed)
}

/// The newest move of this manager's database.
pub fn newest(session: &Session<'_>) -> Result<Option<Move>> {
    let Some((notes, bytes)) = newest_note(session, RECORD)? else { return Ok(None) };
    let record: Record = serde_json::from_slice(&bytes).map_err(|cause| RunError::Document {
        name: notes.path().join(RECORD).display().to_string(),
        why: cause.to_string(),
    })?;
    if record.format != 1 {
        let why = format!("it is of format {}, made by a newer hvbak", record.format);
        return Err(RunError::Document { name: RECORD.into(), why });
    }
    Ok(Some(Move { notes, record }))
}

/// Begins notes.
pub async fn new_notes(session: &Session<'_>) -> Result<ManagerNotes> {
    let lock = session.held()?;
    loop {
        // They are named by seconds.
        match session.context.repository.begin_notes(lock, &PointId::at(jiff::Timestamp::now())) {
            Err(hvbak_repo::Error::OutputExists { .. }) => {
                tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            }
            other => return other.map_err(error::repository("begin the record of the move")),
        }
    }
}

/// Stores the originals, and then the record that says they are there.
pub async fn begin(session: &Session<'_>, record: Record, planned: &[Planned]) -> Result<Move> {
    let doing = "begin the record of the move";
    let notes = new_notes(session).await?;
    let lock = session.held()?;
    for (edit, file) in record.edits.iter().zip(planned) {
        notes.put(lock, &edit.kept, file.before.as_bytes()).map_err(error::repository(doing))?;
    }
    let begun = Move { notes, record };
    save(session, &begun)?;
    Ok(begun)
}

/// Writes how far it is.
pub fn save(session: &Session<'_>, of: &Move) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(&of.record)
        .map_err(|cause| RunError::Task { text: cause.to_string() })?;
    text.push(b'\n');
    let put = of.notes.put(session.held()?, RECORD, &text);
    put.map_err(error::repository("write the record of the move"))
}
