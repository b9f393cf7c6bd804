//! Points of managers: archives of engine-backup with what was said while they were made.
//!
//! `manager/<fqdn>/<point-id>/` holds `engine.backup` (the program's own archive, usable
//! without hvbak), its log and output, and a manifest; `.failed-<point-id>` keeps log and
//! output of a run that failed, `.restore-<point-id>` those of a restore. The rules are those of all points: built under a hidden
//! name, fsynced, renamed, manifest last, never changed afterwards. Archives hold the
//! engine's CA key, so everything is its owner's alone (0700, 0600).

use std::{
    fmt,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufReader, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use hvbak_types::{Digest, JobId, PointId};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    durable,
    error::{At, Error, Result, write_error},
    identity::Holder,
    layout::{MANIFEST, PARTIAL, SUMS, is_document_name},
    lock::{RepositoryLock, lock_shared},
    repository::Repository,
    sums,
};

/// Directory of all managers.
const MANAGER: &str = "manager";
const FAILED: &str = ".failed-";
const RESTORE: &str = ".restore-";
/// What came of a restore, beside its log.
const OUTCOME: &str = "outcome.json";
/// The archive's name in a point.
pub const ARCHIVE: &str = "engine.backup";
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

/// A file of a manager's point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerFile {
    pub name: String,
    pub size: u64,
    pub sha256: Digest,
}

/// `manifest.json` of a manager's point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ManagerManifest {
    pub format: u32,
    pub manager: ManagerName,
    pub point: PointId,
    pub started: jiff::Timestamp,
    pub finished: jiff::Timestamp,
    /// hvbak's version.
    pub hvbak: String,
    /// engine-backup's version.
    pub version: String,
    /// As in `--scope=`.
    pub requested: Vec<String>,
    /// What is in the archive and whole.
    pub scopes: Vec<String>,
    /// Asked for and not set up on the manager.
    #[serde(default)]
    pub absent: Vec<String>,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Seconds that the program ran, as seen from here.
    pub seconds: f64,
    pub files: Vec<ManagerFile>,
    #[serde(default)]
    pub warnings: Vec<String>,
}

impl ManagerManifest {
    /// The archive's entry.
    pub fn archive(&self) -> Option<&ManagerFile> {
        self.files.iter().find(|f| f.name == ARCHIVE)
    }
}

/// A stored point of a manager.
#[derive(Debug, Clone)]
pub struct ManagerPoint {
    pub path: PathBuf,
    pub manifest: ManagerManifest,
}

impl ManagerPoint {
    /// `FQDN@POINT`.
    pub fn title(&self) -> String {
        format!("{}@{}", self.manifest.manager, self.manifest.point)
    }

    /// Where the archive lies.
    pub fn archive_path(&self) -> PathBuf {
        self.path.join(ARCHIVE)
    }

    /// Compares every file with the manifest. Returns what is wrong.
    ///
    /// # Errors
    /// Only that a file which is there cannot be read.
    pub fn compare(&self) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        for file in &self.manifest.files {
            let path = self.path.join(&file.name);
            let reader = match File::open(&path) {
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                    wrong.push(format!("{} is missing", file.name));
                    continue;
                }
                other => other.reading(&path)?,
            };
            let size = reader.metadata().reading(&path)?.len();
            let real = sums::of_reader(BufReader::new(reader)).reading(&path)?;
            if size != file.size || real != file.sha256 {
                wrong.push(format!("{} is not what was stored: its SHA-256 is {real}", file.name));
            }
        }
        Ok(wrong)
    }
}

/// The points of one manager, oldest first.
#[derive(Debug, Default)]
pub struct ManagerListing {
    pub points: Vec<ManagerPoint>,
    /// Directories that cannot be read as points, and why.
    pub damaged: Vec<(PathBuf, Error)>,
}

/// One manager's part of the repository is held until this is dropped.
#[derive(Debug)]
pub struct ManagerLock {
    name: ManagerName,
    file: File,
    _repository: RepositoryLock,
}

impl Drop for ManagerLock {
    fn drop(&mut self) {
        let _ = self.file.set_len(0);
        let _ = self.file.unlock();
    }
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
        let repository = lock_shared(&self.layout)?;
        let path = self.layout.locks().join(format!("manager-{name}.lock"));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).writing(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = Vec::new();
                let holder = (&mut file).take(4096).read_to_end(&mut text).ok();
                let holder = holder.and_then(|_| serde_json::from_slice(&text).ok());
                return Err(Error::Locked { what: format!("manager {name}"), holder });
            }
            Err(TryLockError::Error(cause)) => return Err(cause).writing(&path),
        }
        let text = serde_json::to_vec(&Holder::me(job))
            .map_err(|cause| Error::Encode { path: path.clone(), cause })?;
        file.set_len(0).writing(&path)?;
        file.write_all(&text).writing(&path)?;
        Ok(ManagerLock { name: name.clone(), file, _repository: repository })
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
        Ok(ManagerStaging { dir, path, point: point.clone(), files: Vec::new() })
    }

    /// Removes a half-made point; whether there was one.
    pub fn remove_manager_partial(&self, lock: &ManagerLock, point: &PointId) -> Result<bool> {
        durable::remove_tree(&self.manager_dir(&lock.name).join(format!("{PARTIAL}{point}")))
    }

    /// Removes a point: hidden by one rename first, so that a reader sees all of it or
    /// nothing. What an earlier removal that was stopped has left goes, too.
    pub fn remove_manager_point(&self, lock: &ManagerLock, point: &PointId) -> Result<()> {
        let dir = self.manager_dir(&lock.name);
        let hidden = dir.join(format!("{PARTIAL}{point}"));
        durable::remove_tree(&hidden)?;
        durable::rename_new(&dir.join(point.as_str()), &hidden)?;
        durable::remove_tree(&hidden)?;
        for entry in fs::read_dir(&dir).reading(&dir)? {
            let path = entry.reading(&dir)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
            if name.starts_with(PARTIAL) {
                durable::remove_tree(&path)?;
            }
        }
        Ok(())
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

    /// Finds `FQDN`, `FQDN@latest`, `FQDN@20261121T021454Z` or `FQDN@2026-11-21`.
    ///
    /// # Errors
    /// [`Error::Selector`], [`Error::NoPoint`]; a damaged point that is meant is an error,
    /// not replaced by an older one.
    pub fn find_manager_point(&self, selector: &str) -> Result<ManagerPoint> {
        let unreadable = || Error::Selector { text: selector.chars().take(200).collect() };
        let (name, when) = selector.split_once('@').unwrap_or((selector, "latest"));
        let name: ManagerName = name.parse().map_err(|_| unreadable())?;
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
            Some(id) => read_point(&dir.join(id.as_str()), &name, id),
            None => Err(Error::NoPoint { vm: name.to_string(), when: when.to_owned() }),
        }
    }
}

/// A point that is being made.
#[derive(Debug)]
pub struct ManagerStaging {
    dir: PathBuf,
    path: PathBuf,
    point: PointId,
    files: Vec<ManagerFile>,
}

impl ManagerStaging {
    /// Forgets a file that did not arrive whole.
    pub fn discard(&mut self, name: &str) -> Result<()> {
        self.files.retain(|f| f.name != name);
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause).writing(&path),
            _ => Ok(()),
        }
    }

    /// Begins a file.
    pub fn create(&self, name: &str) -> Result<ManagerWriter> {
        if !is_document_name(name) {
            return Err(Error::DocumentName { name: name.to_owned() });
        }
        let path = self.path.join(name);
        let file = durable::create_file(&path)?;
        Ok(ManagerWriter { name: name.into(), path, file, hasher: Sha256::new(), size: 0 })
    }

    /// Ends a file: it is on stable storage and has its sum.
    pub fn finish(&mut self, writer: ManagerWriter) -> Result<ManagerFile> {
        durable::sync_file(&writer.file, &writer.path)?;
        let sha256 = Digest(writer.hasher.finalize().into());
        let file = ManagerFile { name: writer.name, size: writer.size, sha256 };
        self.files.push(file.clone());
        Ok(file)
    }

    /// A file in one piece.
    pub fn add(&mut self, name: &str, bytes: &[u8]) -> Result<ManagerFile> {
        let mut writer = self.create(name)?;
        writer.write(bytes)?;
        self.finish(writer)
    }

    /// Where a file lies until the point is published.
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Puts the point in its place. Its `files` are those that were added.
    pub fn publish(self, mut manifest: ManagerManifest) -> Result<ManagerPoint> {
        manifest.files.clone_from(&self.files);
        let list = self.files.iter().map(|f| (f.name.clone(), f.sha256)).collect();
        durable::write_new(&self.path.join(SUMS), sums::render(list).as_bytes())?;
        let path = self.path.join(MANIFEST);
        let mut text = serde_json::to_vec_pretty(&manifest)
            .map_err(|cause| Error::Encode { path: path.clone(), cause })?;
        text.push(b'\n');
        durable::write_new(&path, &text)?;
        durable::sync_dir(&self.path)?;
        let target = self.dir.join(self.point.as_str());
        durable::rename_new(&self.path, &target)?;
        Ok(ManagerPoint { path: target, manifest })
    }

    /// Keeps log, output and outcome of what was done with a point. Returns where.
    pub fn keep(self, outcome: &impl Serialize) -> Result<PathBuf> {
        let path = self.path.join(OUTCOME);
        let mut text = serde_json::to_vec_pretty(outcome)
            .map_err(|cause| Error::Encode { path: path.clone(), cause })?;
        text.push(b'\n');
        durable::write_new(&path, &text)?;
        durable::sync_dir(&self.path)?;
        let target = self.dir.join(format!("{RESTORE}{}", self.point));
        durable::remove_tree(&target)?;
        durable::rename_new(&self.path, &target)?;
        Ok(target)
    }

    /// Keeps log and output of a failed run, and nothing else of it. Returns where.
    pub fn fail(self, why: &str) -> Result<PathBuf> {
        let archive = self.path.join(ARCHIVE);
        match fs::remove_file(&archive) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                return Err(cause).writing(&archive);
            }
            _ => {}
        }
        durable::write_new(&self.path.join("failure.txt"), format!("{why}\n").as_bytes())?;
        let target = self.dir.join(format!("{FAILED}{}", self.point));
        durable::remove_tree(&target)?;
        durable::rename_new(&self.path, &target)?;
        Ok(target)
    }
}

/// A file that is being written.
#[derive(Debug)]
pub struct ManagerWriter {
    name: String,
    path: PathBuf,
    file: File,
    hasher: Sha256,
    size: u64,
}

impl ManagerWriter {
    /// Appends.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|cause| write_error(&self.path, cause))?;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
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
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn manifest(name: &ManagerName, point: &PointId) -> ManagerManifest {
        ManagerManifest {
            format: 1,
            manager: name.clone(),
            point: point.clone(),
            started: jiff::Timestamp::UNIX_EPOCH,
            finished: jiff::Timestamp::UNIX_EPOCH,
            hvbak: "0".into(),
            version: "4.5.7".into(),
            requested: vec!["all".into()],
            scopes: vec!["files".into()],
            absent: vec![],
            command: vec![],
            seconds: 1.0,
            files: vec![],
            warnings: vec![],
        }
    }

    #[test]
    fn a_point_is_published_whole_found_and_compared() {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::init(dir.path()).unwrap();
        let name: ManagerName = "Engine.example.test".parse().unwrap();
        let lock = repository.lock_manager(&name, JobId::random()).unwrap();
        assert!(matches!(
            repository.lock_manager(&name, JobId::random()),
            Err(Error::Locked { holder: Some(_), .. })
        ));
        for id in ["20261120T000000Z", "20261121T021454Z"] {
            let point: PointId = id.parse().unwrap();
            let mut staging = repository.stage_manager(&lock, &point).unwrap();
            staging.add(ARCHIVE, b"archive").unwrap();
            staging.add("stdout.txt", b"Done.\n").unwrap();
            let point = staging.publish(manifest(&name, &point)).unwrap();
            let mode = fs::metadata(point.archive_path()).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let ManagerListing { points, damaged } = repository.manager_points(&name).unwrap();
        assert_eq!((points.len(), damaged.len()), (2, 0));
        assert!(points[1].compare().unwrap().is_empty());
        let title = |s: &str| repository.find_manager_point(s).map(|p| p.title());
        let newest = "engine.example.test@20261121T021454Z";
        for selector in [
            "engine.example.test",
            "engine.example.test@latest",
            "engine.example.test@2026-11-21",
            newest,
        ] {
            assert_eq!(title(selector).unwrap(), newest);
        }
        assert!(title("engine.example.test@2026-11-20").unwrap().contains("1120"));
        assert!(matches!(title("engine.example.test@2026-01-01"), Err(Error::NoPoint { .. })));
        assert!(matches!(title("../x@latest"), Err(Error::Selector { .. })));
        fs::write(points[1].archive_path(), b"archivE").unwrap();
        assert!(points[1].compare().unwrap()[0].contains("not what was stored"));
        fs::write(points[1].path.join(MANIFEST), b"{}").unwrap();
        assert_eq!(repository.manager_points(&name).unwrap().damaged.len(), 1);
        assert!(title("engine.example.test").unwrap_err().is_damage());
    }

    #[test]
    fn a_failed_run_keeps_its_log_and_no_archive() {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::init(dir.path()).unwrap();
        let name: ManagerName = "e".parse().unwrap();
        let lock = repository.lock_manager(&name, JobId::random()).unwrap();
        let point = "20261121T021454Z".parse().unwrap();
        let mut staging = repository.stage_manager(&lock, &point).unwrap();
        staging.add(ARCHIVE, b"half").unwrap();
        staging.add("engine-backup.log", b"FATAL").unwrap();
        let kept = staging.fail("why").unwrap();
        assert!(kept.join("engine-backup.log").exists() && !kept.join(ARCHIVE).exists());
        let point = "20261121T021455Z".parse().unwrap();
        let mut staging = repository.stage_manager(&lock, &point).unwrap();
        staging.add("engine-backup.log", b"Done.").unwrap();
        let kept = staging.keep(&"well").unwrap();
        assert_eq!(fs::read_to_string(kept.join(OUTCOME)).unwrap(), "\"well\"\n");
        assert!(repository.manager_points(&name).unwrap().points.is_empty());
    }
}
