//! A merged disk as one file: sparse raw, or a qcow2 that stands alone.
//!
//! Every cluster is inflated and compared with its digest on the way, so a file that was
//! exported is proven. It is written as `<output>.partial` and renamed when it is whole;
//! an export that fails leaves neither.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use hvbak_types::{CLUSTER_SIZE, DiskId};
use serde::Serialize;

use crate::{
    catalogue::Point,
    disk_reader::{Buffers, Content, DiskReader},
    durable,
    error::{At, Error, Result},
    image::ImageWriter,
    parallel,
    repository::Repository,
};

/// Bytes of a write into a raw file: threads take turns on the inode, so fewer and larger
/// writes. UNMEASURED: on the test machine fresh page cache dominates.
const WRITE: usize = 1 << 20;

/// What kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportFormat {
    /// A sparse image of the guest's bytes.
    Raw,
    /// A compressed qcow2 without a backing file.
    Qcow2,
}

/// How to export.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    pub format: ExportFormat,
    /// Replace a file that is there.
    pub overwrite: bool,
    /// Threads that inflate and hash; 0 = as many as there are CPUs.
    pub threads: usize,
}

impl ExportOptions {
    /// Refuses to overwrite, all CPUs.
    pub fn new(format: ExportFormat) -> Self {
        Self { format, overwrite: false, threads: 0 }
    }
}

/// What was exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ExportSummary {
    pub virtual_size: u64,
    pub data_clusters: u64,
    /// Length of the file; a sparse one occupies less.
    pub bytes: u64,
}

impl Repository {
    /// Exports a disk of a point. `progress` gets done and total guest bytes of data, from
    /// any thread, and returns false to cancel.
    ///
    /// # Errors
    /// [`Error::OutputExists`], [`Error::NoSpace`], damage, [`Error::Cancelled`]. Nothing
    /// is left at `output` then.
    pub fn export(
        &self,
        point: &Point,
        disk: DiskId,
        options: &ExportOptions,
        output: &Path,
        progress: &(dyn Fn(u64, u64) -> bool + Sync),
    ) -> Result<ExportSummary> {
        let _lock = self.lock_shared()?;
        if !options.overwrite && output.symlink_metadata().is_ok() {
            return Err(Error::OutputExists { path: output.to_owned() });
        }
        let reader = self.disk_reader(point, disk)?;
        let mut name = output.as_os_str().to_owned();
        // A name that nobody else has: a file of the user's is never taken for ours.
        name.push(format!(".partial-{}", uuid::Uuid::new_v4().simple()));
        let mut partial = Partial { path: PathBuf::from(name), armed: true };
        let data_clusters = reader.data_clusters()?;
        let total = data_clusters * CLUSTER_SIZE;
        let done = AtomicU64::new(0);
        let progress = |clusters: u64| {
            let bytes = clusters * CLUSTER_SIZE;
            progress(done.fetch_add(bytes, Ordering::Relaxed) + bytes, total)
        };
        let bytes = match options.format {
            ExportFormat::Raw => raw(&reader, &partial.path, options.threads, progress)?,
            ExportFormat::Qcow2 => qcow2(&reader, &partial.path, options.threads, progress)?,
        };
        if options.overwrite {
            durable::rename_over(&partial.path, output)?;
        } else {
            durable::rename_new(&partial.path, output)?;
        }
        partial.armed = false;
        Ok(ExportSummary { virtual_size: reader.virtual_size(), data_clusters, bytes })
    }
}

/// Removes the unfinished file when an export fails.
struct Partial {
    path: PathBuf,
    armed: bool,
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.armed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn raw(
    reader: &DiskReader,
    path: &Path,
    threads: usize,
    progress: impl Fn(u64) -> bool + Sync,
) -> Result<u64> {
    let file: File =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).writing(path)?;
    let size = reader.virtual_size();
    file.set_len(size).writing(path)?;
    parallel::each_data_chunk(
        reader,
        threads,
        || (Buffers::default(), Vec::with_capacity(WRITE)),
        |(buffers, gathered), chunk| {
            let mut start = chunk.cluster;
            for cluster in chunk.clusters() {
                let content = reader.read_proven(chunk, cluster, buffers)?;
                match buffers.guest(content) {
                    Some(bytes) => gathered.extend_from_slice(bytes),
                    None => gathered.resize(gathered.len() + CLUSTER_SIZE as usize, 0),
                }
                if gathered.len() >= WRITE || cluster + 1 == chunk.clusters().end {
                    let offset = start * CLUSTER_SIZE;
                    // The padding of the last cluster is not the guest's.
                    let length = (gathered.len() as u64).min(size - offset) as usize;
                    file.write_all_at(&gathered[..length], offset).writing(path)?;
                    gathered.clear();
                    start = cluster + 1;
                }
            }
            Ok(())
        },
        progress,
    )?;
    durable::sync_file(&file, path)?;
    Ok(size)
}

fn qcow2(
    reader: &DiskReader,
    path: &Path,
    threads: usize,
    progress: impl Fn(u64) -> bool + Sync,
) -> Result<u64> {
    let writer = Mutex::new(ImageWriter::create(path, reader.virtual_size(), None)?);
    parallel::each_data_chunk(
        reader,
        threads,
        Buffers::default,
        |buffers, chunk| {
            for cluster in chunk.clusters() {
                let content = reader.read_proven(chunk, cluster, buffers)?;
                let stored = &buffers.stored;
                let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
                match content {
                    Content::Zero => {}
                    Content::Plain { .. } => {
                        writer.put_data(cluster, stored)?;
                    }
                    Content::Compressed { .. } => {
                        writer.put_compressed(cluster, stored)?;
                    }
                }
            }
            Ok(())
        },
        progress,
    )?;
    writer.into_inner().unwrap_or_else(PoisonError::into_inner).finish()
}

#[cfg(test)]
#[path = "export_tests.rs"]
mod tests;
