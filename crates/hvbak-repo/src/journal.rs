//! The journal of a job: which outside effects it began and which it settled.
//!
//! One file per job, one JSON object per line, in order: `open`, then `intent`, `done` and
//! `undone` lines that carry the step's number. An intent is on stable storage before the
//! call returns, so the act may follow. A settled job leaves no file.
//!
//! Invariant: the writer holds the file's `flock`; a file that nobody holds belongs to a
//! job that died, and `cleanup` adopts it. A line that a crash cut off at the very end was
//! never acknowledged and is dropped; damage anywhere else is reported, never skipped.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use hvbak_types::JobId;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    durable,
    error::{At, Error, Result, write_error},
    identity::Holder,
    layout::Layout,
};

/// Larger files are not journals of ours.
const JOURNAL_MAX: u64 = 64 << 20;

/// Number of a step in its journal, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StepId(pub u64);

/// How far a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StepState {
    /// Begun; whether the effect exists is unknown.
    Intent,
    /// The effect exists.
    Done,
    /// The effect is gone again, or never came to be.
    Undone,
}

/// A step as the journal tells it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepView {
    pub id: StepId,
    pub state: StepState,
    /// What was written before the act.
    pub step: Value,
    /// What was written after it; null before.
    pub result: Value,
}

/// A journal that lies in the repository.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JournalView {
    pub job: JobId,
    /// Whether a process still writes it.
    pub alive: bool,
    /// Who opened it last; `None` when the first line is lost.
    pub holder: Option<Holder>,
    pub steps: Vec<StepView>,
    /// What in the file could not be understood.
    pub damage: Option<String>,
}

impl JournalView {
    /// The steps that must be undone, newest first.
    pub fn unsettled(&self) -> impl Iterator<Item = &StepView> {
        self.steps.iter().rev().filter(|s| s.state != StepState::Undone)
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Line {
    Open { format: u32, holder: Holder },
    Intent { id: StepId, step: Value },
    Done { id: StepId, result: Value },
    Undone { id: StepId },
}

/// The journal of a running job. Shared by its tasks; each call waits for the disk.
#[derive(Debug)]
pub struct Journal {
    job: JobId,
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    next: u64,
    /// Length up to which every line is whole.
    length: u64,
}

impl Journal {
    /// The job whose journal this is.
    pub fn job(&self) -> JobId {
        self.job
    }

    /// Notes that `step` is about to happen. The act may begin when this has returned.
    pub fn intent<T: Serialize + ?Sized>(&self, step: &T) -> Result<StepId> {
        let step = self.value(step)?;
        let mut state = self.state();
        let id = StepId(state.next);
        self.append(&mut state, &Line::Intent { id, step })?;
        state.next += 1;
        Ok(id)
    }

    /// Notes that the effect of a step exists, and what is known of it.
    pub fn done<T: Serialize + ?Sized>(&self, id: StepId, result: &T) -> Result<()> {
        let result = self.value(result)?;
        self.append(&mut self.state(), &Line::Done { id, result })
    }

    /// Notes that the effect of a step is gone, or is no longer the job's to undo.
    pub fn undone(&self, id: StepId) -> Result<()> {
        self.append(&mut self.state(), &Line::Undone { id })
    }

    /// Removes the file: everything is settled. The caller is the judge of that, since a
    /// step may be done for good (a published point, a restored VM).
    pub fn close(self) -> Result<()> {
        match fs::remove_file(&self.path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                return Err(cause).writing(&self.path);
            }
            _ => {}
        }
        durable::sync_parent(&self.path)
    }

    fn value<T: Serialize + ?Sized>(&self, value: &T) -> Result<Value> {
        serde_json::to_value(value)
            .map_err(|cause| Error::Encode { path: self.path.clone(), cause })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic between two calls leaves the file at a whole line: see `append`.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, state: &mut State, line: &Line) -> Result<()> {
        let mut text = serde_json::to_vec(line)
            .map_err(|cause| Error::Encode { path: self.path.clone(), cause })?;
        text.push(b'\n');
        // A line that failed half-way (full disk) is cut off before the next one.
        let written = state
            .file
            .set_len(state.length)
            .and_then(|()| state.file.seek(SeekFrom::Start(state.length)))
            .and_then(|_| state.file.write_all(&text))
            .and_then(|()| state.file.sync_data());
        written.map_err(|cause| write_error(&self.path, cause))?;
        state.length += text.len() as u64;
        Ok(())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // At once, even if a child that is just starting has a copy of the descriptor.
        let _ = self.state().file.unlock();
    }
}

/// Starts the journal of a new job.
pub(crate) fn create(layout: &Layout, job: JobId) -> Result<Journal> {
    let path = layout.journal(job);
    let file = durable::create_file(&path)?;
    hold(&file, &path, job)?;
    let journal = Journal { job, path, state: Mutex::new(State { file, next: 1, length: 0 }) };
    let line = Line::Open { format: 1, holder: Holder::me(job) };
    journal.append(&mut journal.state(), &line)?;
    durable::sync_parent(&journal.path)?;
    Ok(journal)
}

/// Takes over the journal of a job that died; fails when it lives.
pub(crate) fn adopt(layout: &Layout, job: JobId, me: JobId) -> Result<(Journal, JournalView)> {
    let path = layout.journal(job);
    let mut file = OpenOptions::new().read(true).write(true).open(&path).reading(&path)?;
    hold(&file, &path, job)?;
    let text = read_all(&mut file, &path)?;
    let (view, length) = parse(job, &text, false);
    let next = view.steps.iter().map(|s| s.id.0).max().unwrap_or(0) + 1;
    let journal = Journal { job, path, state: Mutex::new(State { file, next, length }) };
    let line = Line::Open { format: 1, holder: Holder::me(me) };
    journal.append(&mut journal.state(), &line)?;
    Ok((journal, view))
}

/// All journals, of living and dead jobs, by job id.
pub(crate) fn list(layout: &Layout) -> Result<Vec<JournalView>> {
    let dir = layout.journals();
    let mut views = Vec::new();
    let entries = match fs::read_dir(&dir) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(views),
        other => other.reading(&dir)?,
    };
    for entry in entries {
        let entry = entry.reading(&dir)?;
        let name = entry.file_name();
        let job = name.to_str().and_then(|n| n.strip_suffix(".jsonl")).and_then(|n| n.parse().ok());
        let Some(job) = job else { continue };
        let path = entry.path();
        let mut file = match File::open(&path) {
            // Closed by its job since the directory was read.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => continue,
            other => other.reading(&path)?,
        };
        let alive = match file.try_lock_shared() {
            Ok(()) => false,
            Err(TryLockError::WouldBlock) => true,
            Err(TryLockError::Error(cause)) => return Err(cause).reading(&path),
        };
        let text = read_all(&mut file, &path)?;
        let _ = file.unlock();
        views.push(parse(job, &text, alive).0);
    }
    views.sort_by_key(|view| view.job);
    Ok(views)
}

fn hold(file: &File, path: &Path, job: JobId) -> Result<()> {
    match file.try_lock() {
        // Somebody may have taken the file for a dead job's and removed it before the lock
        // was ours; a journal without a name would be found by nobody.
        Ok(()) => match (file.metadata(), fs::metadata(path)) {
            (Ok(ours), Ok(named)) if ours.ino() == named.ino() && ours.dev() == named.dev() => {
                Ok(())
            }
            _ => Err(Error::Locked { what: format!("the journal of job {job}"), holder: None }),
        },
        Err(TryLockError::WouldBlock) => {
            let mut text = Vec::new();
            let reader = file;
            let holder = reader
                .take(JOURNAL_MAX)
                .read_to_end(&mut text)
                .ok()
                .and_then(|_| parse(job, &text, true).0.holder);
            let what = format!("the journal of job {job}");
            Err(Error::Locked { what, holder: holder.map(Box::new) })
        }
        Err(TryLockError::Error(cause)) => Err(cause).writing(path),
    }
}

fn read_all(file: &mut File, path: &Path) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    file.take(JOURNAL_MAX).read_to_end(&mut text).reading(path)?;
    Ok(text)
}

/// Reads the lines; also the length up to which they are whole.
fn parse(job: JobId, text: &[u8], alive: bool) -> (JournalView, u64) {
    let mut steps = BTreeMap::<u64, StepView>::new();
    let mut view = JournalView { job, alive, holder: None, steps: Vec::new(), damage: None };
    let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    for (number, line) in text[..whole].split(|b| *b == b'\n').enumerate() {
        if line.is_empty() {
            continue;
        }
        let known = match serde_json::from_slice(line) {
            Ok(Line::Open { holder, .. }) => {
                view.holder = Some(holder);
                true
            }
            Ok(Line::Intent { id, step }) => {
                let result = Value::Null;
                steps.insert(id.0, StepView { id, state: StepState::Intent, step, result });
                true
            }
            Ok(Line::Done { id, result }) => steps.get_mut(&id.0).is_some_and(|s| {
                s.result = result;
                s.state = StepState::Done;
                true
            }),
            Ok(Line::Undone { id }) => steps.get_mut(&id.0).is_some_and(|s| {
                s.state = StepState::Undone;
                true
            }),
            Err(_) => false,
        };
        if !known && view.damage.is_none() {
            view.damage = Some(format!("line {} makes no sense", number + 1));
        }
    }
    view.steps = steps.into_values().collect();
    (view, whole as u64)
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
