//! A manager's point in the making: its files, the archive encrypted on its way to the disk,
//! and what becomes of the whole when it is done or has failed.
//!
//! Invariants: what is to be encrypted reaches the file system only behind the cipher; what is
//! neither published nor kept is removed, whatever the reason.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
};

use age::stream::StreamWriter;
use hvbak_types::{Digest, PointId};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::{
    durable,
    error::{At, Error, Result, write_error},
    layout::{MANIFEST, SUMS, is_document_name},
    manager::{FAILED, FAILURE, OUTCOME, RESTORE},
    manager_point::{ARCHIVE, ARCHIVE_SEALED, ManagerFile, ManagerManifest, ManagerPoint},
    seal::Recipients,
    sums,
};

/// A point that is being made. Dropped, nothing is left of it: the run it is of is fetched again
/// from its beginning, or not at all.
#[derive(Debug)]
pub struct ManagerStaging {
    dir: PathBuf,
    path: PathBuf,
    point: PointId,
    files: Vec<ManagerFile>,
    /// It has the name it stays under.
    is_in_place: bool,
}

impl Drop for ManagerStaging {
    fn drop(&mut self) {
        if !self.is_in_place {
            // What this cannot remove, the next one that holds the manager removes.
            let _ = durable::remove_tree(&self.path);
        }
    }
}

impl ManagerStaging {
    pub(crate) fn new(dir: PathBuf, path: PathBuf, point: PointId) -> Self {
        Self { dir, path, point, files: Vec::new(), is_in_place: false }
    }

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
        let sink = Sink { file, hasher: Sha256::new(), size: 0 };
        Ok(ManagerWriter { name: name.into(), path, out: Out::Plain(sink) })
    }

    /// Begins the archive: with recipients it is encrypted on its way to the disk.
    pub fn create_archive(&self, recipients: &Recipients) -> Result<ManagerWriter> {
        if recipients.is_empty() {
            return self.create(ARCHIVE);
        }
        let ManagerWriter { name, path, out } = self.create(ARCHIVE_SEALED)?;
        let out = match out {
            Out::Plain(sink) => Out::Sealed(Box::new(recipients.seal(sink, &path)?)),
            sealed => sealed,
        };
        Ok(ManagerWriter { name, path, out })
    }

    /// Ends a file: it is on stable storage and has its sum.
    pub fn finish(&mut self, writer: ManagerWriter) -> Result<ManagerFile> {
        let ManagerWriter { name, path, out } = writer;
        let sink = match out {
            Out::Plain(sink) => sink,
            Out::Sealed(sealed) => sealed.finish().map_err(|cause| write_error(&path, cause))?,
        };
        durable::sync_file(&sink.file, &path)?;
        let sha256 = Digest(sink.hasher.finalize().into());
        let file = ManagerFile { name, size: sink.size, sha256 };
        self.files.push(file.clone());
        Ok(file)
    }

    /// Forgets the archive, in whichever form it was begun.
    pub fn discard_archive(&mut self) -> Result<()> {
        self.discard(ARCHIVE)?;
        self.discard(ARCHIVE_SEALED)
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
    pub fn publish(mut self, mut manifest: ManagerManifest) -> Result<ManagerPoint> {
        manifest.files.clone_from(&self.files);
        manifest.in_sums = true;
        let path = self.path.join(MANIFEST);
        let mut text = serde_json::to_vec_pretty(&manifest)
            .map_err(|cause| Error::Encode { path: path.clone(), cause })?;
        text.push(b'\n');
        durable::write_new(&path, &text)?;
        let mut list: Vec<_> = self.files.iter().map(|f| (f.name.clone(), f.sha256)).collect();
        list.push((MANIFEST.to_owned(), sums::of_bytes(&text)));
        durable::write_new(&self.path.join(SUMS), sums::render(list).as_bytes())?;
        durable::sync_dir(&self.path)?;
        let target = self.dir.join(self.point.as_str());
        durable::rename_new(&self.path, &target)?;
        self.is_in_place = true;
        Ok(ManagerPoint { path: target, manifest })
    }

    /// Keeps log, output and outcome of what was done with a point. Returns where.
    pub fn keep(mut self, outcome: &impl Serialize) -> Result<PathBuf> {
        let path = self.path.join(OUTCOME);
        let mut text = serde_json::to_vec_pretty(outcome)
            .map_err(|cause| Error::Encode { path: path.clone(), cause })?;
        text.push(b'\n');
        durable::write_new(&path, &text)?;
        durable::sync_dir(&self.path)?;
        let target = self.dir.join(format!("{RESTORE}{}", self.point));
        durable::remove_tree(&target)?;
        durable::rename_new(&self.path, &target)?;
        self.is_in_place = true;
        Ok(target)
    }

    /// Keeps log and output of a failed run, and nothing else of it. Returns where.
    pub fn fail(mut self, why: &str) -> Result<PathBuf> {
        self.discard_archive()?;
        durable::write_new(&self.path.join(FAILURE), format!("{why}\n").as_bytes())?;
        let target = self.dir.join(format!("{FAILED}{}", self.point));
        durable::remove_tree(&target)?;
        durable::rename_new(&self.path, &target)?;
        self.is_in_place = true;
        Ok(target)
    }
}

/// A file that is being written.
pub struct ManagerWriter {
    name: String,
    path: PathBuf,
    out: Out,
}

impl fmt::Debug for ManagerWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManagerWriter").field("path", &self.path).finish_non_exhaustive()
    }
}

impl ManagerWriter {
    /// Appends.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = match &mut self.out {
            Out::Plain(sink) => sink.write_all(bytes),
            Out::Sealed(sealed) => sealed.write_all(bytes),
        };
        written.map_err(|cause| write_error(&self.path, cause))
    }
}

enum Out {
    Plain(Sink),
    Sealed(Box<StreamWriter<Sink>>),
}

/// A file and the sum of what is in it.
struct Sink {
    file: File,
    hasher: Sha256,
    size: u64,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
