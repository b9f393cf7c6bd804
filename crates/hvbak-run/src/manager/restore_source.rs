//! The point that is restored: its files compared with what was recorded when it was made,
//! and its archive read, before anything is said to the manager.
//!
//! Invariant: from before it is looked for until it is dropped no prune removes it.
//!
//! An encrypted archive is opened as a stream, once for each look at it; nothing of it is
//! written here.
//!
//! engine-backup sources a member of the archive as root, so an archive that is not what
//! was stored goes nowhere (engine-backup.md §1, rule 9).

use hvbak_manager::archive::{self, Report};
use hvbak_repo::{ManagerPoint, PointsLock};

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
    /// Bytes of the archive, and its recorded SHA-256, both in plain.
    pub size: u64,
    pub sum: String,
    /// The manager it is of need not be the one that it is restored onto.
    _held: PointsLock,
}

impl Source {
    /// Finds, compares and reads.
    ///
    /// # Errors
    /// No such point; one that is not what was stored; one without an archive.
    pub async fn open(context: &ManagerContext, selector: &str) -> Result<Self> {
        context.phase("comparing the archive with its recorded sum");
        let (repository, text) = (context.repository.clone(), selector.to_owned());
        let identities = context.identities.clone();
        let (point, held) = blocking("open the point", move || {
            let (point, held) = repository.hold_manager_point(&text)?;
            let mut wrong = point.compare()?;
            if wrong.is_empty() {
                wrong.extend(point.compare_plain(identities.as_ref())?);
            }
            if wrong.is_empty() && point.manifest.archive().is_some() {
                return Ok((point, held));
            }
            let why = if wrong.is_empty() { "it has no archive".into() } else { wrong.join("; ") };
            Err(hvbak_repo::Error::Damaged { path: point.path, why })
        })
        .await?;
        let (of, identities) = (point.clone(), context.identities.clone());
        let source =
            blocking("open the archive", move || of.open_archive(identities.as_ref())).await?;
        let read = move || archive::verify(source).map_err(|archive::ReadError(cause)| cause);
        let archive = tokio::task::spawn_blocking(read)
            .await
            .map_err(|e| RunError::Task { text: e.to_string() })?
            .map_err(|cause| RunError::Local { doing: "read the archive".into(), cause })?;
        let plain = point.manifest.plain();
        let (size, sum) = plain.map_or((0, String::new()), |p| (p.size, p.sha256.to_string()));
        Ok(Self { point, archive, size, sum, _held: held })
    }
}
