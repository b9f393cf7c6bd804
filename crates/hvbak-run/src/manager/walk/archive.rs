//! The archive of a walk: that it can be opened, and whose it is.
//!
//! Invariants: a walk that will have to open an archive has shown that it can before its first
//! step; an archive of another manager is taken only when that was asked for, and then the
//! restored engine is called as the archive calls it.

use hvbak_manager::{
    archive,
    sequence::{Act, Archive, Step},
};
use hvbak_repo::ManagerName;

use super::{Walker, unseen};
use crate::{
    error::{Result, RunError},
    job::blocking,
};

impl Walker<'_> {
    /// The name of the engine that is restored.
    pub(super) fn engine(&self) -> ManagerName {
        self.record.engine().unwrap_or_else(|| self.context.name.clone())
    }

    /// Asks for the key before anything stops: a step that is still to come needs it.
    pub(super) async fn ensure_key(&mut self) -> Result<()> {
        let opens = |act| matches!(act, Act::Copy | Act::Overwrite | Act::Restore);
        let mut open = self.steps.iter().zip(self.record.states());
        if !open.any(|(step, state)| step.act.is_some_and(opens) && !state.is_over()) {
            return Ok(());
        }
        let keys = self.context.identities.clone();
        let mut made = self.steps.iter().zip(self.record.states());
        if !made.any(|(step, state)| step.act == Some(Act::BackUp) && !state.is_over()) {
            let archive = self.record.archive(&self.context.repository)?;
            let Some(Archive { title, .. }) = archive else { return Ok(()) };
            let repository = self.context.repository.clone();
            return blocking("open the archive", move || {
                repository.find_manager_point(&title)?.open_archive(keys.as_ref()).map(drop)
            })
            .await;
        }
        let recipients = self.context.recipients.clone();
        if recipients.is_empty() {
            return Ok(());
        }
        let names = recipients.names().to_vec();
        let Some(keys) = keys else {
            return Err(RunError::WalkNeedsKey { recipients: names, wrong: false });
        };
        let opened = blocking("try the key", move || recipients.are_opened_by(&keys)).await?;
        if opened { Ok(()) } else { Err(RunError::WalkNeedsKey { recipients: names, wrong: true }) }
    }

    /// Learns the engine's name from an archive that may be another manager's, before the fresh
    /// host is asked for that name.
    pub(super) async fn learn_engine(&mut self) -> Result<()> {
        if !self.options.other_name || self.record.engine().is_some() {
            return Ok(());
        }
        let Some(archive) = self.record.archive(&self.context.repository)? else { return Ok(()) };
        if let Some(theirs) = self.manager_in(&archive).await? {
            self.record.set_engine(&theirs)?;
            self.refresh()?;
        }
        Ok(())
    }

    /// An archive of another manager takes command of another site's hosts.
    pub(super) async fn ensure_same_manager(&self, step: &Step, archive: &Archive) -> Result<()> {
        let ours = &self.context.name;
        let theirs = self.manager_in(archive).await?;
        if self.options.other_name || theirs.as_ref() == Some(ours) {
            return Ok(());
        }
        let of = theirs.map_or("does not say of which manager it is".into(), |theirs| {
            format!("is of manager {theirs}")
        });
        let why = format!(
            "{} {of}, and the engine here is {ours}; `--other-name` takes it all the same",
            archive.title
        );
        Err(unseen(step, why))
    }

    /// Which manager an archive says it is of; reads all of it.
    async fn manager_in(&self, archive: &Archive) -> Result<Option<ManagerName>> {
        let (repository, title) = (self.context.repository.clone(), archive.title.clone());
        let keys = self.context.identities.clone();
        let opened = blocking("open the archive", move || {
            let point = repository.find_manager_point(&title)?;
            let wrong = point.compare()?;
            if !wrong.is_empty() {
                let (path, why) = (point.path, wrong.join("; "));
                return Err(hvbak_repo::Error::Damaged { path, why });
            }
            point.open_archive(keys.as_ref())
        })
        .await?;
        let read = move || archive::verify(opened).map_err(|archive::ReadError(cause)| cause);
        let report = tokio::task::spawn_blocking(read)
            .await
            .map_err(|e| RunError::Task { text: e.to_string() })?
            .map_err(|cause| RunError::Local { doing: "read the archive".into(), cause })?;
        // What is no host name is nobody's.
        Ok(report.conf.fqdn.and_then(|name| name.parse().ok()))
    }
}
