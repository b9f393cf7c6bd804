//! How far somebody is in one of the long sequences around a self-hosted engine.
//!
//! `manager/<fqdn>/.walk.json` while it goes on, `.walked-<time>.json` afterwards. Words and
//! states only: what a step is, and what may follow it, others know. Invariants: the record is
//! replaced whole; one process at a time walks for a manager. It has a lock of its own, since
//! steps of a walk are backups and restores that hold the manager themselves.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::PathBuf,
};

use hvbak_types::{JobId, PointId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    durable,
    error::{At, Error, Result},
    lock::{PartLock, lock_part},
    manager::{ManagerLock, ManagerName},
    repository::Repository,
};

const FORMAT: u32 = 1;
const RECORD: &str = ".walk.json";
const ENDED: &str = ".walked-";
/// Longer files are no records of ours.
const RECORD_MAX: u64 = 1 << 20;

/// One step of a walk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalkStep {
    pub name: String,
    /// `open`, `shown`, `begun`, `done`, `passed`.
    pub state: String,
    /// When it came to that.
    #[serde(default)]
    pub at: Option<Timestamp>,
    /// A person has answered for it: those who could tell were silent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub witnessed: bool,
}

/// A walk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalkRecord {
    pub format: u32,
    pub sequence: String,
    /// Version of the hvbak that wrote it last.
    pub hvbak: String,
    pub started: Timestamp,
    /// Names of hosts, as they were given.
    #[serde(default)]
    pub host: Option<String>,
    #[serde(default)]
    pub to: Option<String>,
    /// `FQDN@POINT` of the archive that is restored, once there is one.
    #[serde(default)]
    pub archive: Option<String>,
    /// The engine's name within the archive, where it is another than the site's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// Hosts that `host` was before they were gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone_hosts: Vec<String>,
    pub steps: Vec<WalkStep>,
}

impl WalkRecord {
    /// A walk that begins now, its steps open.
    pub fn begin(sequence: &str, steps: impl IntoIterator<Item = String>) -> Self {
        let open = |name| WalkStep { name, state: "open".into(), at: None, witnessed: false };
        Self {
            format: FORMAT,
            sequence: sequence.to_owned(),
            hvbak: env!("CARGO_PKG_VERSION").to_owned(),
            started: Timestamp::now(),
            host: None,
            to: None,
            archive: None,
            engine: None,
            gone_hosts: Vec::new(),
            steps: steps.into_iter().map(open).collect(),
        }
    }
}

/// The record of a walk that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EndedWalk {
    /// When it ended.
    pub time: PointId,
    pub path: PathBuf,
}

/// Somebody walks for a manager until this is dropped.
#[derive(Debug)]
pub struct WalkLock {
    dir: PathBuf,
    _held: PartLock,
}

impl Repository {
    /// Walks for a manager.
    ///
    /// # Errors
    /// [`Error::Locked`] says who does.
    pub fn lock_walk(&self, name: &ManagerName, job: JobId) -> Result<WalkLock> {
        let what = format!("the sequence of manager {name}");
        let path = self.layout.locks().join(format!("walk-{name}.lock"));
        let held = lock_part(&self.layout, &path, what, job)?;
        Ok(WalkLock { dir: self.manager_dir(name), _held: held })
    }

    /// The walk that goes on for a manager.
    ///
    /// # Errors
    /// That it cannot be read; [`Error::Parse`] when it is no record.
    pub fn walk(&self, name: &ManagerName) -> Result<Option<WalkRecord>> {
        let path = self.manager_dir(name).join(RECORD);
        let file = match File::open(&path) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.reading(&path)?,
        };
        let mut text = Vec::new();
        file.take(RECORD_MAX).read_to_end(&mut text).reading(&path)?;
        let record: WalkRecord = serde_json::from_slice(&text)
            .map_err(|cause| Error::Parse { path: path.clone(), cause })?;
        if record.format > FORMAT {
            let why = format!("a newer hvbak ({}) wrote it", record.hvbak);
            return Err(Error::Inconsistent { path, why });
        }
        Ok(Some(record))
    }

    /// Whether the bytes of an open walk's record, which need be none, hold the manager's name or
    /// one of its archives. One that cannot be read at all tells nothing.
    pub fn walk_names(&self, name: &ManagerName, manager: &ManagerName) -> bool {
        let mut text = Vec::new();
        let read = File::open(self.manager_dir(name).join(RECORD))
            .and_then(|file| file.take(RECORD_MAX).read_to_end(&mut text));
        let text = String::from_utf8_lossy(&text);
        let named = ["\"", "@"].map(|end| format!("\"{manager}{end}"));
        read.is_ok() && named.iter().any(|name| text.contains(name))
    }

    /// Stores where the walk is.
    ///
    /// # Errors
    /// That it cannot be written; the old record is there still.
    pub fn note_walk(&self, lock: &WalkLock, record: &WalkRecord) -> Result<()> {
        let path = lock.dir.join(RECORD);
        if let Some(managers) = lock.dir.parent() {
            durable::create_dir(managers)?;
        }
        durable::create_dir(&lock.dir)?;
        let mut text = serde_json::to_vec_pretty(record)
            .map_err(|cause| Error::Encode { path: path.clone(), cause })?;
        text.push(b'\n');
        durable::write_over(&path, &text)
    }

    /// Puts the record away, whole or not: the walk has ended, or is begun anew. Nothing
    /// there is fine.
    ///
    /// # Errors
    /// That it cannot be renamed.
    pub fn end_walk(&self, lock: &WalkLock) -> Result<Option<PathBuf>> {
        let path = lock.dir.join(RECORD);
        if fs::symlink_metadata(&path).is_err() {
            return Ok(None);
        }
        let ended = lock.dir.join(format!("{ENDED}{}.json", PointId::at(Timestamp::now())));
        durable::rename_over(&path, &ended)?;
        Ok(Some(ended))
    }

    /// The records of walks that have ended, oldest first. Names that are no time are nobody's.
    ///
    /// # Errors
    /// That the directory cannot be read; a manager without one has none.
    pub fn ended_walks(&self, name: &ManagerName) -> Result<Vec<EndedWalk>> {
        let dir = self.manager_dir(name);
        let entries = match fs::read_dir(&dir) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.reading(&dir)?,
        };
        let mut walks = Vec::new();
        for entry in entries {
            let path = entry.reading(&dir)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
            let time = name.strip_prefix(ENDED).and_then(|rest| rest.strip_suffix(".json"));
            if let Some(Ok(time)) = time.map(str::parse) {
                walks.push(EndedWalk { time, path });
            }
        }
        walks.sort_by(|a, b| a.time.cmp(&b.time));
        Ok(walks)
    }

    /// Removes the record of a walk that has ended.
    ///
    /// # Errors
    /// That it cannot be removed; one that is gone already is fine.
    pub fn remove_ended_walk(&self, _: &ManagerLock, walk: &EndedWalk) -> Result<()> {
        match fs::remove_file(&walk.path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause).writing(&walk.path),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_is_stored_whole_found_again_and_put_away() {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::init(dir.path()).unwrap();
        let name: ManagerName = "engine.example.test".parse().unwrap();
        assert!(repository.walk(&name).unwrap().is_none());
        let lock = repository.lock_walk(&name, JobId::random()).unwrap();
        let other = repository.lock_walk(&name, JobId::random());
        assert!(matches!(other, Err(Error::Locked { holder: Some(_), .. })));
        // Steps of a walk hold the manager themselves.
        drop(repository.lock_manager(&name, JobId::random()).unwrap());
        assert!(repository.end_walk(&lock).unwrap().is_none());
        let mut record = WalkRecord::begin("move", ["spm".into(), "copy".into()]);
        repository.note_walk(&lock, &record).unwrap();
        record.steps[0].state = "done".into();
        record.archive = Some("engine.example.test@20261121T021454Z".into());
        repository.note_walk(&lock, &record).unwrap();
        assert_eq!(repository.walk(&name).unwrap(), Some(record));
        // It is no point and no failed run.
        assert!(repository.manager_points(&name).unwrap().points.is_empty());
        let ended = repository.end_walk(&lock).unwrap().unwrap();
        assert!(ended.exists() && repository.walk(&name).unwrap().is_none());
        fs::write(ended.with_file_name(".walked-of-somebody.json"), "").unwrap();
        let walks = repository.ended_walks(&name).unwrap();
        assert_eq!(walks.iter().map(|walk| &walk.path).collect::<Vec<_>>(), [&ended]);
        let manager = repository.lock_manager(&name, JobId::random()).unwrap();
        for _ in 0..2 {
            repository.remove_ended_walk(&manager, &walks[0]).unwrap();
        }
        assert!(!ended.exists() && repository.ended_walks(&name).unwrap().is_empty());
        drop(lock);
        repository.lock_walk(&name, JobId::random()).unwrap();
    }

    #[test]
    fn a_cut_or_newer_record_is_not_begun_anew_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::init(dir.path()).unwrap();
        let name: ManagerName = "engine.example.test".parse().unwrap();
        let lock = repository.lock_walk(&name, JobId::random()).unwrap();
        let newer = WalkRecord { format: 2, ..WalkRecord::begin("move", []) };
        repository.note_walk(&lock, &newer).unwrap();
        assert!(matches!(repository.walk(&name), Err(Error::Inconsistent { .. })));
        let path = repository.path().join("manager/engine.example.test/.walk.json");
        fs::write(&path, "{\"format\": 1, \"sequ").unwrap();
        assert!(matches!(repository.walk(&name), Err(Error::Parse { .. })));
        // Put away as it is, for whoever wants to look.
        let ended = repository.end_walk(&lock).unwrap().unwrap();
        assert_eq!(fs::read_to_string(ended).unwrap(), "{\"format\": 1, \"sequ");
    }
}
