//! Points of managers: archives of engine-backup with what was said while they were made.
//!
//! `manager/<fqdn>/<point-id>/` holds `engine.backup` (the program's own archive, usable
//! without hvbak) or `engine.backup.age` (the same, encrypted before a byte of it reaches the
//! disk), its log and output, and a manifest; `.failed-<point-id>` keeps log and
//! output of a run that failed, `.restore-<point-id>` those of a restore. The rules are those of all points: built under a hidden
//! name, fsynced, renamed, manifest last, never changed afterwards. Archives hold the
//! engine's CA key, so everything is its owner's alone (0700, 0600).

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    str::FromStr,
};

use hvbak_types::{JobId, PointId};
use serde::{Deserialize, Serialize};

use crate::{
    durable,
    error::{At, Error, Result},
    layout::{MANIFEST, PARTIAL, is_document_name},
    lock::{PartLock, PointsLock, lock_archives, lock_part},
    manager_point::{ManagerManifest, ManagerPoint},
    manager_staging::ManagerStaging,
    repository::Repository,
};

/// Directory of all managers.
const MANAGER: &str = "manager";
pub const FAILED: &str = ".failed-";
pub const RESTORE: &str = ".restore-";
/// Why a backup failed, beside its log.
pub const FAILURE: &str = "failure.txt";
/// What came of a restore, beside its log.
pub const OUTCOME: &str = "outcome.json";
/// Larger manifests are not ours.
const MANIFEST_MAX: u64 = 4 << 20;

/// A manager's host name, safe as a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ManagerName(String);

impl FromStr for ManagerName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.to_ascii_lowercase();
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-' || c == '_';
        if text.is_empty()
            || text.len() > 200
            || text.starts_with(['.', '-'])
            || !text.chars().all(plain)
        {
            return Err(format!("`{}` is no host name", text.escape_default()));
        }
        Ok(Self(text))
    }
}

impl TryFrom<String> for ManagerName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ManagerName> for String {
    fn from(name: ManagerName) -> Self {
        name.0
    }
}

impl fmt::Display for ManagerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The points of one manager, oldest first.
#[derive(Debug, Default)]
pub struct ManagerListing {
    pub points: Vec<ManagerPoint>,
    /// Directories that cannot be read as points, and why.
    pub damaged: Vec<(PathBuf, Error)>,
}

/// What a kept log is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecordKind {
    /// A restore, or engine-cleanup or engine-setup around it.
    Restore,
    FailedBackup,
}

/// Log and output of something that was done, beside the points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ManagerRecord {
    pub kind: RecordKind,
    /// When it began.
    pub time: PointId,
    #[serde(skip)]
    pub path: PathBuf,
    /// It says what came of it.
    pub is_finished: bool,
}

/// One manager's part of the repository is held until this is dropped.
#[derive(Debug)]
pub struct ManagerLock {
    pub(crate) name: ManagerName,
    _held: PartLock,
}

impl Repository {
    fn managers_dir(&self) -> PathBuf {
        self.path().join(MANAGER)
    }

    pub(crate) fn manager_dir(&self, name: &ManagerName) -> PathBuf {
        self.managers_dir().join(&name.0)
    }

    /// Holds one manager for writing.
    ///
    /// # Errors
    /// [`Error::Locked`] says who holds it.
    pub fn lock_manager(&self, name: &ManagerName, job: JobId) -> Result<ManagerLock> {
        let what = format!("manager {name}");
        let path = self.layout.locks().join(format!("manager-{name}.lock"));
        let held = lock_part(&self.layout, &path, what, job)?;
        Ok(ManagerLock { name: name.clone(), _held: held })
    }

    /// The manager's directory, which may not be there yet.
    pub(crate) fn make_manager_dir(&self, lock: &ManagerLock) -> Result<PathBuf> {
        let dir = self.manager_dir(&lock.name);
        durable::create_dir(&self.managers_dir())?;
        durable::create_dir(&dir)?;
        durable::sync_parent(&dir)?;
        Ok(dir)
    }

    /// Begins a point; a half-made one of the same name is replaced.
    pub fn stage_manager(&self, lock: &ManagerLock, point: &PointId) -> Result<ManagerStaging> {
        let dir = self.make_manager_dir(lock)?;
        let target = dir.join(point.as_str());
        if target.symlink_metadata().is_ok() {
            return Err(Error::OutputExists { path: target });
        }
        let path = dir.join(format!("{PARTIAL}{point}"));
        durable::remove_tree(&path)?;
        durable::create_dir(&path)?;
        Ok(ManagerStaging::new(dir, path, point.clone()))
    }

    /// What of a manager is half-made or half removed. The lock proves that nobody is at it, and
    /// none of it is gone on with.
    pub fn manager_partials(&self, lock: &ManagerLock) -> Result<Vec<PathBuf>> {
        let dir = self.manager_dir(&lock.name);
        let entries = match fs::read_dir(&dir) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.reading(&dir)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.reading(&dir)?;
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(PARTIAL)) {
                found.push(entry.path());
            }
        }
        Ok(found)
    }

    /// Removes them.
    pub fn sweep_manager_partials(&self, lock: &ManagerLock) -> Result<()> {
        for path in self.manager_partials(lock)? {
            durable::remove_tree(&path)?;
        }
        Ok(())
    }

    /// Removes a point: hidden by one rename first, so that a reader sees all of it or
    /// nothing.
    ///
    /// # Errors
    /// [`Error::Locked`] while somebody holds a point of this manager to read it.
    pub fn remove_manager_point(&self, lock: &ManagerLock, point: &PointId) -> Result<()> {
        let _points = lock_archives(&self.layout, &lock.name, true)?;
        let dir = self.manager_dir(&lock.name);
        let hidden = dir.join(format!("{PARTIAL}{point}"));
        durable::remove_tree(&hidden)?;
        durable::rename_new(&dir.join(point.as_str()), &hidden)?;
        durable::remove_tree(&hidden).map(drop)
    }

    /// Managers that have a directory.
    pub fn manager_names(&self) -> Result<Vec<ManagerName>> {
        names(&self.managers_dir())
    }

    /// All points of one manager, oldest first, and what is wrong with unreadable ones.
    pub fn manager_points(&self, name: &ManagerName) -> Result<ManagerListing> {
        let dir = self.manager_dir(name);
        let mut ids: Vec<PointId> = names(&dir)?;
        ids.sort();
        let mut listing = ManagerListing::default();
        for id in ids {
            match read_point(&dir.join(id.as_str()), name, &id) {
                Ok(point) => listing.points.push(point),
                Err(error) => listing.damaged.push((dir.join(id.as_str()), error)),
            }
        }
        Ok(listing)
    }

    /// What came of restores of all managers, by the time they began.
    ///
    /// # Errors
    /// That a directory cannot be read. An outcome that cannot be read tells nothing.
    pub fn manager_outcomes(&self) -> Result<Vec<(PointId, serde_json::Value)>> {
        let mut found = Vec::new();
        for name in self.manager_names()? {
            let dir = self.manager_dir(&name);
            for entry in fs::read_dir(&dir).reading(&dir)? {
                let path = entry.reading(&dir)?.path();
                let id = path.file_name().and_then(|name| name.to_str());
                let id = id.and_then(|name| name.strip_prefix(RESTORE)?.parse().ok());
                let Some(id) = id else { continue };
                let text = File::open(path.join(OUTCOME)).and_then(|file| {
                    let mut text = Vec::new();
                    file.take(MANIFEST_MAX).read_to_end(&mut text).map(|_| text)
                });
                let outcome = text.ok().and_then(|text| serde_json::from_slice(&text).ok());
                found.extend(outcome.map(|outcome| (id, outcome)));
            }
        }
        Ok(found)
    }

    /// The kept logs of one manager: of restores and of failed backups, oldest first.
    pub fn manager_records(&self, name: &ManagerName) -> Result<Vec<ManagerRecord>> {
        let dir = self.manager_dir(name);
        let mut records = Vec::new();
        let entries = match fs::read_dir(&dir) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(records),
            other => other.reading(&dir)?,
        };
        for entry in entries {
            let path = entry.reading(&dir)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
            let kinds = [(RESTORE, RecordKind::Restore), (FAILED, RecordKind::FailedBackup)];
            for (prefix, kind) in kinds {
                let Some(Ok(time)) = name.strip_prefix(prefix).map(str::parse) else { continue };
                let told = if kind == RecordKind::Restore { OUTCOME } else { FAILURE };
                let is_finished = path.join(told).exists();
                records.push(ManagerRecord { kind, time, path: path.clone(), is_finished });
            }
        }
        records.sort_by(|a, b| (&a.time, a.kind).cmp(&(&b.time, b.kind)));
        Ok(records)
    }

    /// Removes a kept log.
    pub fn remove_manager_record(&self, _: &ManagerLock, record: &ManagerRecord) -> Result<()> {
        durable::remove_tree(&record.path).map(drop)
    }

    /// Finds `FQDN`, `FQDN@latest`, `FQDN@20261121T021454Z` or `FQDN@2026-11-21`.
    ///
    /// # Errors
    /// [`Error::Selector`], [`Error::NoPoint`]; a damaged point that is meant is an error,
    /// not replaced by an older one.
    pub fn find_manager_point(&self, selector: &str) -> Result<ManagerPoint> {
        self.find_point_of(selector, |_| Ok(())).map(|(point, ())| point)
    }

    /// As [`Self::find_manager_point`]; no point of its manager is removed while it is held.
    ///
    /// # Errors
    /// As there; [`Error::Locked`] while points of the manager are being removed.
    pub fn hold_manager_point(&self, selector: &str) -> Result<(ManagerPoint, PointsLock)> {
        self.find_point_of(selector, |name| lock_archives(&self.layout, name, false))
    }

    /// Finds a point after something was done about its manager.
    fn find_point_of<T>(
        &self,
        selector: &str,
        first: impl FnOnce(&ManagerName) -> Result<T>,
    ) -> Result<(ManagerPoint, T)> {
        let unreadable = || Error::Selector { text: selector.chars().take(200).collect() };
        let (name, when) = selector.split_once('@').unwrap_or((selector, "latest"));
        let name: ManagerName = name.parse().map_err(|_| unreadable())?;
        let held = first(&name)?;
        let wanted = if when == "latest" { String::new() } else { when.replace('-', "") };
        let digits = |c: char| c.is_ascii_digit() || matches!(c, 'T' | 'Z');
        if when.is_empty() || !wanted.chars().all(digits) {
            return Err(unreadable());
        }
        let dir = self.manager_dir(&name);
        let mut ids: Vec<PointId> = names(&dir)?;
        ids.sort();
        let fits = |id: &&PointId| {
            id.as_str() == when || (when.len() <= 10 && id.as_str().starts_with(&wanted))
        };
        match ids.iter().rfind(|id| when == "latest" || fits(id)) {
            Some(id) => read_point(&dir.join(id.as_str()), &name, id).map(|point| (point, held)),
            None => Err(Error::NoPoint { vm: name.to_string(), when: when.to_owned() }),
        }
    }
}

/// Entries of a directory whose names parse; hidden ones are not points.
fn names<T: FromStr + Ord>(dir: &Path) -> Result<Vec<T>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(dir) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(found),
        other => other.reading(dir)?,
    };
    for entry in entries {
        let name = entry.reading(dir)?.file_name();
        found.extend(name.to_str().and_then(|n| n.parse().ok()));
    }
    found.sort();
    Ok(found)
}

fn read_point(path: &Path, name: &ManagerName, id: &PointId) -> Result<ManagerPoint> {
    let file = path.join(MANIFEST);
    let mut text = Vec::new();
    let opened = File::open(&file).reading(&file)?;
    opened.take(MANIFEST_MAX).read_to_end(&mut text).reading(&file)?;
    let manifest: ManagerManifest = serde_json::from_slice(&text)
        .map_err(|cause| Error::Parse { path: file.clone(), cause })?;
    let plain = manifest.files.iter().all(|f| is_document_name(&f.name));
    if manifest.manager != *name || manifest.point != *id || !plain {
        let why = "its manifest is of another point".to_owned();
        return Err(Error::Inconsistent { path: file, why });
    }
    Ok(ManagerPoint { path: path.to_owned(), manifest })
}

#[cfg(test)]
#[path = "manager_tests.rs"]
mod tests;
