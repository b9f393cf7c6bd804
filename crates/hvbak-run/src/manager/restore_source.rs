//! The point that is restored: its files compared with what was recorded when it was made,
//! and its archive read, before anything is said to the manager.
//!
//! engine-backup sources a member of the archive as root, so an archive that is not what
//! was stored goes nowhere (engine-backup.md §1, rule 9).

use hvbak_manager::archive::{self, Report};
use hvbak_repo::ManagerPoint;

use super::ManagerContext;
use crate::{
    error::{Result, RunError},
    job::blocking,
};

/// A point, whole.
#[derive(Debug)]
pub struct Source {
    pub point: ManagerPoint,
    pub archive: Report,
    /// Bytes of the archive, and its recorded SHA-256.
    pub size: u64,
    pub sum: String,
}

impl Source {
    /// Finds, compares and reads.
    ///
    /// # Errors
    /// No such point; one that is not what was stored; one without an archive.
    pub async fn open(context: &ManagerContext, selector: &str) -> Result<Self> {
        context.phase("comparing the archive with its recorded sum");
        let (repository, text) = (context.repository.clone(), selector.to_owned());
        let point = blocking("find the point", move || {
            let point = repository.find_manager_point(&text)?;
            let wrong = point.compare()?;
            if wrong.is_empty() && point.manifest.archive().is_some() {
                return Ok(point);
            }
            let why = if wrong.is_empty() { "it has no archive".into() } else { wrong.join("; ") };
            Err(hvbak_repo::Error::Damaged { path: point.path, why })
        })
        .await?;
        let path = point.archive_path();
        let read = move || {
            archive::verify(std::fs::File::open(path)?).map_err(|archive::ReadError(cause)| cause)
        };
        let archive = tokio::task::spawn_blocking(read)
            .await
            .map_err(|e| RunError::Task { text: e.to_string() })?
            .map_err(|cause| RunError::Local { doing: "read the archive".into(), cause })?;
        let file = point.manifest.archive();
        let (size, sum) = file.map_or((0, String::new()), |f| (f.size, f.sha256.to_string()));
        Ok(Self { point, archive, size, sum })
    }
}
