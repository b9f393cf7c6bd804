//! What a job works with, and its journal.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use hvbak_engine::Engine;
use hvbak_repo::{Journal, Repository, StepId};
use hvbak_types::JobId;
use tokio_util::sync::CancellationToken;

use crate::{
    error::{self, Result, RunError},
    event::{Event, Events},
    journal::{self, Outcome, Step},
    settings::Settings,
};

/// The parts a job is given.
#[derive(Clone)]
pub struct Context {
    pub engine: Engine,
    pub repository: Arc<Repository>,
    pub settings: Arc<Settings>,
    pub events: Events,
    pub cancel: CancellationToken,
    pub job: JobId,
}

impl Context {
    /// Tells that a step began.
    pub fn phase(&self, vm: Option<hvbak_types::VmId>, text: impl Into<String>) {
        self.events.event(&Event::Phase { vm, text: text.into() });
    }

    /// Tells of something that is not as it should be.
    pub fn warn(&self, vm: Option<hvbak_types::VmId>, text: impl Into<String>) {
        self.events.event(&Event::Warning { vm, text: text.into() });
    }

    /// Says what a job could not undo.
    pub fn tell_left_behind(&self, left: &[String]) {
        for what in left {
            self.warn(None, format!("could not undo {what}; `hvbak cleanup` tries again"));
        }
    }

    /// Fails when the job was cancelled.
    pub fn check_cancel(&self) -> Result<()> {
        if self.cancel.is_cancelled() { Err(RunError::Cancelled) } else { Ok(()) }
    }
}

/// An open step of the journal.
#[derive(Debug, Clone)]
pub struct Open {
    pub id: StepId,
    pub step: Step,
}

/// A running job: its context and its journal.
pub struct Job {
    pub context: Context,
    journal: Arc<Journal>,
    tags: AtomicU32,
}

impl Job {
    /// Opens the journal of a new job.
    pub async fn start(context: &Context) -> Result<Self> {
        let (repository, id) = (context.repository.clone(), context.job);
        let journal = blocking("open the journal", move || repository.journal(id)).await?;
        Ok(Self { context: context.clone(), journal: Arc::new(journal), tags: AtomicU32::new(0) })
    }

    /// A name for something outside that only one task of the job uses.
    pub fn tag(&self) -> String {
        format!("{}-{}", self.context.job, self.tags.fetch_add(1, Ordering::Relaxed))
    }

    /// Writes down that an effect is about to be made.
    pub async fn intent(&self, step: Step) -> Result<Open> {
        let (journal, value) = (self.journal.clone(), step.clone());
        let id = blocking("write the journal", move || journal.intent(&value)).await?;
        Ok(Open { id, step })
    }

    /// Writes down that it exists now.
    pub async fn done(&self, open: &Open, outcome: Outcome) -> Result<()> {
        let (journal, id) = (self.journal.clone(), open.id);
        blocking("write the journal", move || journal.done(id, &outcome)).await
    }

    /// Writes down that it is gone, or is the job's no longer.
    pub async fn undone(&self, open: &Open) -> Result<()> {
        let (journal, id) = (self.journal.clone(), open.id);
        blocking("write the journal", move || journal.undone(id)).await
    }

    /// Writes down that it stays for the run that goes on where this one stops; until then
    /// [`crate::cleanup`] may undo it.
    pub async fn kept(&self, open: &Open) -> Result<()> {
        self.done(open, Outcome { kept: true, ..Outcome::default() }).await
    }

    /// Ends the job: the journal goes when every step is settled, and stays for
    /// [`crate::cleanup`] otherwise. Tells what is neither settled nor kept, in words.
    pub async fn end(self) -> Result<Vec<String>> {
        let (repository, id) = (self.context.repository.clone(), self.context.job);
        let views = blocking("read the journal", move || repository.open_journals()).await?;
        let open: Vec<_> =
            views.iter().filter(|v| v.job == id).flat_map(|v| v.unsettled()).collect();
        if open.is_empty()
            && let Some(journal) = Arc::into_inner(self.journal)
        {
            blocking("close the journal", move || journal.close()).await?;
        }
        let left = open.into_iter().filter(|step| !journal::is_kept(step));
        Ok(left.map(journal::describe).collect())
    }
}

/// Runs a call of the repository on a thread that may block.
pub async fn blocking<T: Send + 'static>(
    doing: &str,
    call: impl FnOnce() -> hvbak_repo::Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(call)
        .await
        .map_err(|e| RunError::Task { text: e.to_string() })?
        .map_err(error::repository(doing))
}
