//! What a run did, VM by VM: a small file per run that outlives its journal.
//!
//! Only for people and `hvbak report`: no decision is made by it, and losing all of them
//! loses nothing that is stored. Invariants: a record under its final name is whole; the
//! newest [`RUNS_KEPT`] of each kind stay.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use hvbak_types::{JobId, PointId, VmId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    durable,
    error::{At, Error, Result},
    manager::ManagerName,
    manifest::Level,
    repository::Repository,
};

/// Records of each kind that are kept.
pub const RUNS_KEPT: usize = 100;
/// Longer files are no records of ours: a thousand VMs take 400 KB.
const RECORD_MAX: u64 = 16 << 20;
const FORMAT: u32 = 1;
/// How an unfinished record is named.
const TEMPORARY: &str = ".tmp-";
const TEMPORARY_AGE: Duration = Duration::from_secs(3600);

/// What a run was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunKind {
    Backup,
    /// Points were read and compared with their digests.
    Verify,
    /// A restore was rehearsed: images were booted, dumps read into a database.
    Drill,
}

impl RunKind {
    /// The word that files are named with.
    fn word(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Verify => "verify",
            Self::Drill => "drill",
        }
    }
}

/// What became of a VM in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunOutcome {
    /// Its point was published, was found whole, or came through its rehearsal.
    Done,
    Failed,
    /// The plan left it out, or what it needs was not given: an archive's private key.
    Skipped,
    /// The run was stopped before it was done.
    Stopped,
}

/// One VM of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunVm {
    pub id: VmId,
    pub name: String,
    pub outcome: RunOutcome,
    /// Why it failed or was left out; of a full, why it was one; of a drill, what was seen.
    #[serde(default)]
    pub reason: Option<String>,
    /// What can be done about its failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// Of one that was left out: by something that passes, so that a backup of it was expected.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub passing: bool,
    #[serde(default)]
    pub point: Option<PointId>,
    /// Of a `verify`: the points that were read and found whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub whole: Vec<PointId>,
    /// Of a `verify`: the points in which damage was found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<PointId>,
    #[serde(default)]
    pub level: Option<Level>,
    /// Bytes of its images.
    #[serde(default)]
    pub stored_bytes: u64,
    #[serde(default)]
    pub seconds: f64,
}

impl RunVm {
    /// A VM of which only the outcome is known.
    pub fn new(id: VmId, name: impl Into<String>, outcome: RunOutcome) -> Self {
        Self {
            id,
            name: name.into(),
            outcome,
            reason: None,
            remedy: None,
            passing: false,
            point: None,
            whole: Vec::new(),
            damaged: Vec::new(),
            level: None,
            stored_bytes: 0,
            seconds: 0.0,
        }
    }
}

/// A VM that no policy backs up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unassigned {
    pub id: VmId,
    pub name: String,
}

/// One manager of a drill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunManager {
    pub name: ManagerName,
    pub outcome: RunOutcome,
    /// What was seen, or why it failed.
    #[serde(default)]
    pub reason: Option<String>,
    #[serde(default)]
    pub point: Option<PointId>,
    #[serde(default)]
    pub seconds: f64,
}

/// One run that has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    pub format: u32,
    pub job: JobId,
    pub kind: RunKind,
    /// Version of the hvbak that ran.
    pub hvbak: String,
    pub started: Timestamp,
    pub finished: Timestamp,
    pub vms: Vec<RunVm>,
    /// Managers whose archives were rehearsed; of drills only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub managers: Vec<RunManager>,
    /// VMs that are in no policy; `None` when the run was not a policy's and did not look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unassigned: Option<Vec<Unassigned>>,
    /// What could not be undone yet, in words.
    #[serde(default)]
    pub left_behind: Vec<String>,
}

impl RunRecord {
    /// A run that begins now.
    pub fn begin(job: JobId, kind: RunKind) -> Self {
        let now = Timestamp::now();
        Self {
            format: FORMAT,
            job,
            kind,
            hvbak: env!("CARGO_PKG_VERSION").to_owned(),
            started: now,
            finished: now,
            vms: Vec::new(),
            managers: Vec::new(),
            unassigned: None,
            left_behind: Vec::new(),
        }
    }

    /// How many VMs ended so.
    pub fn count(&self, outcome: RunOutcome) -> usize {
        self.vms.iter().filter(|vm| vm.outcome == outcome).count()
    }
}

/// The records that are there, newest first.
#[derive(Debug, Default)]
pub struct RunListing {
    pub runs: Vec<RunRecord>,
    /// Files that cannot be read as a record.
    pub damaged: Vec<PathBuf>,
}

impl Repository {
    /// Stores the record of a run that has ended, and removes the oldest ones.
    ///
    /// # Errors
    /// That it cannot be written. Nothing else depends on it.
    pub fn record_run(&self, record: &RunRecord) -> Result<()> {
        let dir = self.layout.runs();
        durable::create_dir(&dir)?;
        let kind = record.kind.word();
        let name = format!("{}-{kind}-{}.json", PointId::at(record.started), record.job);
        let (path, temporary) = (dir.join(&name), dir.join(format!("{TEMPORARY}{name}")));
        let mut text = serde_json::to_vec_pretty(record)
            .map_err(|cause| Error::Encode { path: path.clone(), cause })?;
        text.push(b'\n');
        // Between making and locking it a sweeper may have thought that nobody writes it.
        let mut tries = 0..2;
        while let Err(cause) = write_held(&temporary, &path, &text) {
            let _ = fs::remove_file(&temporary);
            let swept = matches!(&cause, Error::Write { cause, .. } if cause.kind() == io::ErrorKind::NotFound);
            if !swept || tries.next().is_none() {
                return Err(cause);
            }
        }
        let names = self.run_names()?;
        let same = names.iter().rev().filter(|name| name.contains(&format!("-{kind}-")));
        for name in same.skip(RUNS_KEPT) {
            remove(dir.join(name))?;
        }
        self.sweep_records().map(drop)
    }

    /// The records of runs that have ended.
    ///
    /// # Errors
    /// That the directory cannot be read.
    pub fn runs(&self) -> Result<RunListing> {
        let mut listing = RunListing::default();
        for name in self.run_names()?.into_iter().rev() {
            let path = self.layout.runs().join(name);
            match read(&path) {
                Some(record) => listing.runs.push(record),
                // A run that ended meanwhile may have removed the oldest.
                None if path.exists() => listing.damaged.push(path),
                None => {}
            }
        }
        listing.runs.sort_by_key(|run| std::cmp::Reverse(run.finished));
        Ok(listing)
    }

    /// Names of records, oldest first.
    fn run_names(&self) -> Result<Vec<String>> {
        let dir = self.layout.runs();
        let mut names = Vec::new();
        let entries = match fs::read_dir(&dir) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(names),
            other => other.reading(&dir)?,
        };
        for entry in entries {
            let name = entry.reading(&dir)?.file_name();
            let name = name.to_str().filter(|n| !n.starts_with('.') && n.ends_with(".json"));
            names.extend(name.map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    /// Removes records that writers who died have left unfinished: a writer holds its file's
    /// lock. Gives their files.
    ///
    /// # Errors
    /// That the directory cannot be read, or a file not removed.
    pub fn sweep_records(&self) -> Result<Vec<PathBuf>> {
        let dir = self.layout.runs();
        let entries = match fs::read_dir(&dir) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.reading(&dir)?,
        };
        let mut swept = Vec::new();
        for entry in entries {
            let entry = entry.reading(&dir)?;
            if !entry.file_name().to_str().is_some_and(|n| n.starts_with(TEMPORARY)) {
                continue;
            }
            let Ok(file) = fs::File::open(entry.path()) else { continue };
            let dead = match file.try_lock() {
                Ok(()) => true,
                Err(fs::TryLockError::WouldBlock) => false,
                // A file system without locks.
                Err(fs::TryLockError::Error(_)) => {
                    let age =
                        entry.metadata().and_then(|meta| meta.modified()).map(|at| at.elapsed());
                    age.is_ok_and(|age| age.is_ok_and(|age| age > TEMPORARY_AGE))
                }
            };
            if dead {
                remove(entry.path())?;
                swept.push(entry.path());
            }
        }
        Ok(swept)
    }
}

/// Writes a file and gives it its name; it is locked until then.
fn write_held(temporary: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = durable::create_file(temporary)?;
    // Without it a sweeper goes by the file's age.
    let _ = file.try_lock();
    file.write_all(bytes).writing(temporary)?;
    durable::sync_file(&file, temporary)?;
    durable::rename_new(temporary, path)
}

fn remove(path: PathBuf) -> Result<()> {
    match fs::remove_file(&path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause).writing(&path),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Option<RunRecord> {
    if fs::metadata(path).ok()?.len() > RECORD_MAX {
        return None;
    }
    let record: RunRecord = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (record.format <= FORMAT).then_some(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Lab;

    fn record(started: &str) -> RunRecord {
        let started: Timestamp = started.parse().unwrap();
        let mut record = RunRecord::begin(JobId::random(), RunKind::Backup);
        (record.started, record.finished) = (started, started);
        record
    }

    #[test]
    fn records_come_back_newest_first_and_the_oldest_go() {
        let lab = Lab::new();
        assert!(lab.repository.runs().unwrap().runs.is_empty());
        let verified = RunRecord { kind: RunKind::Verify, ..record("2026-10-01T00:00:00Z") };
        lab.repository.record_run(&verified).unwrap();
        let mut all = Vec::new();
        for n in 0..RUNS_KEPT + 3 {
            let mut one = record(&format!("2026-11-{:02}T{:02}:00:00Z", 1 + n / 24, n % 24));
            one.vms.push(RunVm {
                reason: Some("no route".into()),
                seconds: 1.5,
                ..RunVm::new(lab.vm, "web1", RunOutcome::Failed)
            });
            lab.repository.record_run(&one).unwrap();
            all.insert(0, one);
        }
        all.truncate(RUNS_KEPT);
        // Another kind has places of its own.
        all.push(verified);
        let listing = lab.repository.runs().unwrap();
        assert!(listing.runs == all && listing.damaged.is_empty());
        assert_eq!(listing.runs[0].count(RunOutcome::Failed), 1);
    }

    #[test]
    fn a_cut_or_newer_record_is_told_and_an_unfinished_one_is_swept() {
        let lab = Lab::new();
        lab.repository.record_run(&record("2026-11-01T00:00:00Z")).unwrap();
        let dir = lab.repository.layout.runs();
        fs::write(dir.join("20261102T000000Z-x.json"), "{\"format\": 1, \"jo").unwrap();
        let newer = RunRecord { format: 2, ..record("2026-11-03T00:00:00Z") };
        fs::write(dir.join("20261103T000000Z-y.json"), serde_json::to_vec(&newer).unwrap())
            .unwrap();
        let dead = dir.join(".tmp-20261101T000000Z-z.json");
        fs::write(&dead, "{").unwrap();
        let written = dir.join(".tmp-20261104T000000Z-w.json");
        let writer = fs::File::create(&written).unwrap();
        writer.lock().unwrap();
        let listing = lab.repository.runs().unwrap();
        assert_eq!((listing.runs.len(), listing.damaged.len()), (1, 2));
        lab.repository.record_run(&record("2026-11-04T00:00:00Z")).unwrap();
        assert!(!dead.exists() && written.exists());
        drop(writer);
        assert_eq!(lab.repository.sweep_records().unwrap(), [written]);
        // None is there any more, and none of those that are whole is taken for one.
        assert!(lab.repository.sweep_records().unwrap().is_empty());
        assert_eq!(lab.repository.runs().unwrap().runs.len(), 2);
    }
}
