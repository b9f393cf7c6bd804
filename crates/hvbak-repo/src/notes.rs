//! Notes of a change of a manager that can be taken back: what its files were before, and
//! how far the change is.
//!
//! `manager/<fqdn>/.dwh-<time>/` is one change. A file in it is replaced as a whole and is
//! on stable storage when a call returns. Originals may hold passwords, so all is its
//! owner's alone (0700, 0600). What hvbak does not know in it stays.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use hvbak_types::PointId;

use crate::{
    durable,
    error::{At, Error, Result},
    layout::is_document_name,
    manager::{ManagerLock, ManagerName},
    repository::Repository,
};

const DWH: &str = ".dwh-";
/// Larger notes are not ours.
const NOTE_MAX: u64 = 4 << 20;

/// The notes of one change.
#[derive(Debug, Clone)]
pub struct ManagerNotes {
    path: PathBuf,
}

impl Repository {
    /// Begins notes; the lock keeps others away. The time names them. What writers that died
    /// left in older ones goes.
    ///
    /// # Errors
    /// [`Error::OutputExists`] when there are such already.
    pub fn begin_notes(&self, lock: &ManagerLock, time: &PointId) -> Result<ManagerNotes> {
        let dir = self.make_manager_dir(lock)?;
        for notes in self.notes(&lock.name)? {
            notes.sweep()?;
        }
        let path = dir.join(format!("{DWH}{time}"));
        if path.symlink_metadata().is_ok() {
            return Err(Error::OutputExists { path });
        }
        durable::create_dir(&path)?;
        durable::sync_dir(&dir)?;
        Ok(ManagerNotes { path })
    }

    /// All notes of a manager, oldest first.
    pub fn notes(&self, name: &ManagerName) -> Result<Vec<ManagerNotes>> {
        let dir = self.manager_dir(name);
        let entries = match fs::read_dir(&dir) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.reading(&dir)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.reading(&dir)?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if name.and_then(|name| name.strip_prefix(DWH)?.parse::<PointId>().ok()).is_some() {
                found.push(ManagerNotes { path });
            }
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }
}

impl ManagerNotes {
    /// Where they lie.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one, or replaces it.
    pub fn put(&self, _lock: &ManagerLock, name: &str, bytes: &[u8]) -> Result<()> {
        durable::write_over(&self.file(name)?, bytes)
    }

    /// Reads one; `None`: there is none.
    pub fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.file(name)?;
        let file = match File::open(&path) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.reading(&path)?,
        };
        let mut bytes = Vec::new();
        file.take(NOTE_MAX).read_to_end(&mut bytes).reading(&path)?;
        Ok(Some(bytes))
    }

    /// Removes halves of notes; a folder of nothing else goes with them.
    fn sweep(&self) -> Result<()> {
        let mut swept = false;
        for entry in fs::read_dir(&self.path).reading(&self.path)? {
            let name = entry.reading(&self.path)?.file_name();
            let half = name.to_str().and_then(|name| name.strip_suffix(".tmp"));
            if half.is_some_and(is_document_name) {
                durable::remove_file(&self.path.join(&name))?;
                swept = true;
            }
        }
        if swept {
            // Fails where there are whole notes.
            let _ = fs::remove_dir(&self.path);
        }
        Ok(())
    }

    fn file(&self, name: &str) -> Result<PathBuf> {
        if !is_document_name(name) {
            return Err(Error::DocumentName { name: name.to_owned() });
        }
        Ok(self.path.join(name))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use hvbak_types::JobId;

    use super::*;

    #[test]
    fn notes_are_replaced_whole_and_found_in_order_and_are_no_points() {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::init(dir.path()).unwrap();
        let name: ManagerName = "e".parse().unwrap();
        assert!(repository.notes(&name).unwrap().is_empty());
        let lock = repository.lock_manager(&name, JobId::random()).unwrap();
        for time in ["20261121T021455Z", "20261121T021454Z"] {
            let notes = repository.begin_notes(&lock, &time.parse().unwrap()).unwrap();
            assert!(repository.begin_notes(&lock, &time.parse().unwrap()).is_err());
            assert_eq!(notes.get("record.json").unwrap(), None);
            for text in ["longer", "short"] {
                notes.put(&lock, "record.json", text.as_bytes()).unwrap();
                assert_eq!(notes.get("record.json").unwrap().unwrap(), text.as_bytes());
            }
            assert!(notes.put(&lock, "../x", b"").is_err() && notes.get("../x").is_err());
            // A write that was cut is none, and stops no other.
            fs::write(notes.path().join("record.json.tmp"), "half").unwrap();
            notes.put(&lock, "record.json", b"last").unwrap();
            let mode = fs::metadata(notes.path().join("record.json")).unwrap().permissions();
            assert_eq!(mode.mode() & 0o777, 0o600);
            assert_eq!(fs::read_dir(notes.path()).unwrap().count(), 1);
        }
        // A writer that died and did not come again.
        let found = repository.notes(&name).unwrap();
        fs::write(found[0].path().join("0-x.conf.tmp"), "half").unwrap();
        let empty = repository.begin_notes(&lock, &"20261121T021456Z".parse().unwrap()).unwrap();
        assert_eq!(fs::read_dir(found[0].path()).unwrap().count(), 1);
        fs::write(empty.path().join("0-x.conf.tmp"), "half").unwrap();
        let last = repository.begin_notes(&lock, &"20261121T021457Z".parse().unwrap()).unwrap();
        assert!(!empty.path().exists());
        fs::remove_dir(last.path()).unwrap();
        let found = repository.notes(&name).unwrap();
        assert!(found.len() == 2 && found[0].path().ends_with(".dwh-20261121T021454Z"));
        assert!(repository.manager_points(&name).unwrap().points.is_empty());
    }
}
