//! A session with a manager that is being restored, and the parts that run there: each
//! prepared, given its files, started detached, waited for, taken home, and swept.
//!
//! Invariant: a part's directory is in the journal before it is made; it is swept and
//! settled after its outcome is in the repository, and not before. Until it is started any
//! failure sweeps it at once.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use bytes::Bytes;
use hvbak_manager::{
    Scope,
    remote::{self, Kind, Look, State},
    restore::{self, DbFacts, MachineFacts, Probe},
    scrub,
    transcript::Ended,
};
use hvbak_repo::{Journal, ManagerLock, ManagerName, ManagerStaging, StepId};
use hvbak_ssh::Output;
use hvbak_types::PointId;
use serde::Serialize;

use super::{
    ManagerContext, backup,
    fetch::Texts,
    link::{Link, is_broken},
    pick_up,
    run::{Parcel, Run},
};
use crate::{
    error::{self, Result, RunError},
    job::blocking,
    journal::Step,
};

/// A conversation with the manager.
pub struct Session<'a> {
    pub context: &'a ManagerContext,
    link: Link,
    pub look: Look,
    pub name: ManagerName,
    /// engine-cleanup was run since the login.
    pub cleaned: bool,
    lock: Option<ManagerLock>,
    journal: Option<Journal>,
    /// Steps of the journal that are not settled.
    open: usize,
    last: Option<PointId>,
}

/// A file that a part is given.
pub enum Gift {
    /// Of the repository, with its recorded SHA-256.
    Archive { name: String, parcel: Box<Parcel> },
    /// Removed on the manager as soon as the part ends.
    Secret { name: String, bytes: Bytes },
    /// What the part runs.
    Script { name: &'static str, text: &'static str },
}

/// A part that has its files and was not started.
#[must_use]
pub struct Ready {
    kind: Kind,
    run: PointId,
    step: StepId,
    command: Vec<String>,
}

/// A part that has ended.
#[derive(Debug)]
pub struct Ran {
    pub kind: Kind,
    pub run: PointId,
    pub ended: Ended,
    pub seconds: f64,
    /// As they were printed: nothing of them is told unscrubbed.
    pub texts: Texts,
    staging: Option<ManagerStaging>,
    /// Its step in this job's journal; `None`: another job's.
    step: Option<StepId>,
}

impl Ran {
    /// The end of what it said.
    pub fn last_words(&self) -> String {
        let said = [&self.texts.stdout, &self.texts.stderr].map(|text| scrub::text(text));
        let mut lines: Vec<_> = said
            .iter()
            .flat_map(|text| text.lines())
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        let from = lines.len().saturating_sub(3);
        lines.drain(..from);
        lines.join("; ").chars().take(600).collect()
    }
}

impl<'a> Session<'a> {
    /// Logs in and looks around.
    pub async fn open(context: &'a ManagerContext) -> Result<Self> {
        let mut link = Link::open(&context.settings, &context.manager, &context.cancel).await?;
        let look = link.look(&context.manager).await?;
        let name = backup::manager_name(context, &look)?;
        Ok(Self {
            context,
            link,
            look,
            name,
            cleaned: false,
            lock: None,
            journal: None,
            open: 0,
            last: None,
        })
    }

    /// hvbak's directory there.
    pub fn base(&self) -> String {
        format!("{}{}", self.look.root, self.context.manager.work_dir)
    }

    /// Holds the manager in the repository.
    pub async fn lock(&mut self) -> Result<()> {
        let (repository, name) = (self.context.repository.clone(), self.name.clone());
        let job = self.context.job;
        let lock = blocking("lock the manager", move || {
            let lock = repository.lock_manager(&name, job)?;
            repository.sweep_manager_partials(&lock)?;
            Ok(lock)
        });
        self.lock = Some(lock.await?);
        Ok(())
    }

    /// Hangs up; the journal goes when nothing of it is open.
    pub async fn close(self) {
        if let Some(journal) = self.journal
            && self.open == 0
            && let Err(cause) = blocking("close the journal", move || journal.close()).await
        {
            self.context.warn(crate::chain(&cause));
        }
        self.link.close().await;
    }

    /// Looks around once more.
    pub async fn look_again(&mut self) -> Result<()> {
        self.look = self.link.look(&self.context.manager).await?;
        Ok(())
    }

    /// What the machine is like.
    pub async fn machine(&mut self) -> Result<MachineFacts> {
        let doing = "look at the machine";
        let output =
            self.link.script(restore::FACTS, &[&self.context.manager.work_dir], doing).await?;
        let output = output.check(doing).map_err(error::ssh(&self.link.name, doing))?;
        MachineFacts::parse(&output.text())
            .map_err(|cause| RunError::ManagerAnswer { manager: self.link.name.clone(), cause })
    }

    /// What its databases are like.
    pub async fn databases(&mut self, probes: &[Probe]) -> Result<BTreeMap<Scope, DbFacts>> {
        let text = self.ask(restore::DATABASES, probes, "look at the databases").await?;
        Ok(restore::parse_databases(&text))
    }

    /// Rows of `vm_static`; `None`: they cannot be counted.
    pub async fn vms(&mut self, probe: &Probe) -> Result<Option<u64>> {
        let probes = std::slice::from_ref(probe);
        let text = self.ask(restore::VMS, probes, "count VMs in the database").await?;
        Ok(restore::parse_vms(&text))
    }

    /// What the engine's health page says.
    pub async fn health(&mut self) -> Result<String> {
        let output = self.link.script(restore::HEALTH, &[], "ask the engine's health").await?;
        Ok(restore::parse_health(&output.text()))
    }

    async fn ask(&mut self, script: &str, probes: &[Probe], doing: &'static str) -> Result<String> {
        let mut input = String::new();
        for probe in probes {
            let why = "it, the host or the user holds a line break";
            let lines = probe.lines();
            input.push_str(&lines.ok_or(RunError::ManagerPassword { scope: probe.scope, why })?);
        }
        let output = self.link.feed(script, &[], &Bytes::from(input), doing).await?;
        Ok(output.check(doing).map_err(error::ssh(&self.link.name, doing))?.text())
    }

    /// Runs a part and takes home what it printed.
    pub async fn run(
        &mut self,
        kind: Kind,
        of: &str,
        gifts: &[Gift],
        command: impl FnOnce(&str) -> Result<Vec<String>>,
    ) -> Result<Ran> {
        let ready = self.make_ready(kind, of, gifts, command).await?;
        self.start(ready).await
    }

    /// Makes a part's directory and gives it its files, which may take hours; nothing is
    /// started. What is made ready must be started or given up.
    pub async fn make_ready(
        &mut self,
        kind: Kind,
        of: &str,
        gifts: &[Gift],
        command: impl FnOnce(&str) -> Result<Vec<String>>,
    ) -> Result<Ready> {
        let run = self.next_run().await;
        let step = self.intend(kind, &run).await?;
        let base = self.base();
        let mut part = Run::new(self.context, &mut self.link, base, run.clone());
        let command = command(&part.dir());
        let given = async {
            part.prepare(kind, of).await?;
            for gift in gifts {
                match gift {
                    Gift::Archive { name, parcel } => {
                        part.context.phase("sending the archive");
                        part.send(name, parcel).await?;
                    }
                    Gift::Secret { name, bytes } => part.give(name, bytes).await?,
                    Gift::Script { name, text } => {
                        part.give(name, &Bytes::from_static(text.as_bytes())).await?;
                    }
                }
            }
            command
        }
        .await;
        match given {
            Ok(command) => Ok(Ready { kind, run, step, command }),
            Err(cause) => Err(self.swept(&run, step, cause).await?),
        }
    }

    /// Starts what was made ready, and takes home what it printed.
    pub async fn start(&mut self, ready: Ready) -> Result<Ran> {
        let Ready { kind, run, step, command } = ready;
        let base = self.base();
        let mut part = Run::new(self.context, &mut self.link, base, run.clone());
        let started = async {
            if part.context.cancel.is_cancelled() {
                return Err(Unstarted::Surely(RunError::Cancelled));
            }
            part.context.phase(format!("{} begins", kind.program()));
            begin(&mut part, &command).await
        }
        .await;
        match started {
            Ok(()) => self.take_home(kind, run, Some(step)).await,
            Err(Unstarted::Surely(cause)) => Err(self.swept(&run, step, cause).await?),
            Err(Unstarted::Perhaps(cause)) => {
                self.context.warn(format!(
                    "whether {} has begun on the manager is not known; `{}` waits for it and judges it, or sweeps it",
                    kind.program(),
                    kind.picked_up_by()
                ));
                Err(cause)
            }
        }
    }

    /// Gives up what was made ready, because of `cause`.
    pub async fn give_up(&mut self, ready: Ready, cause: RunError) -> Result<RunError> {
        self.swept(&ready.run, ready.step, cause).await
    }

    /// Sweeps a part that was not started. One that cannot be swept keeps its step.
    async fn swept(&mut self, run: &PointId, step: StepId, cause: RunError) -> Result<RunError> {
        match self.forget(run).await {
            Ok(()) => self.settle(step).await?,
            Err(why) => self.context.warn(format!(
                "{}/{run} stays on the manager, with the archive and passwords in plain: `hvbak cleanup` removes it ({})",
                self.base(),
                crate::chain(&why)
            )),
        }
        Ok(cause)
    }

    /// Waits for a part, whoever started it, and takes home what it printed.
    pub async fn take_home(
        &mut self,
        kind: Kind,
        run: PointId,
        step: Option<StepId>,
    ) -> Result<Ran> {
        let base = self.base();
        let mut part = Run::new(self.context, &mut self.link, base, run.clone());
        let (ended, seconds) = match part.wait().await {
            Ok(end) => end,
            Err(cause) => {
                part.context.warn(format!(
                    "{} goes on on the manager; `{}` waits for it and judges it",
                    kind.program(),
                    kind.picked_up_by()
                ));
                return Err(cause);
            }
        };
        let Some(lock) = &self.lock else {
            return Err(RunError::Task { text: "the manager is not locked".into() });
        };
        let staged = self.context.repository.stage_manager(lock, &run);
        let mut staging = Some(staged.map_err(error::repository("keep the log"))?);
        let texts = part.fetch_texts(&mut staging).await?;
        Ok(Ran { kind, run, ended, seconds, texts, staging, step })
    }

    /// Keeps what a part printed with its outcome, and removes it from the manager.
    pub async fn finish(&mut self, ran: Ran, outcome: &impl Serialize) -> Result<Option<PathBuf>> {
        let Ran { staging, run, step, .. } = ran;
        let outcome = serde_json::to_value(outcome)
            .map_err(|cause| RunError::Task { text: cause.to_string() })?;
        let kept = match staging {
            Some(staging) => Some(blocking("keep the log", move || staging.keep(&outcome)).await?),
            None => None,
        };
        self.forget(&run).await?;
        match step {
            Some(step) => self.settle(step).await?,
            None => pick_up::settle(self.context, &self.name, &run).await?,
        }
        Ok(kept)
    }

    /// Removes a part's directory.
    pub async fn forget(&mut self, run: &PointId) -> Result<()> {
        let base = self.base();
        Run::new(self.context, &mut self.link, base, run.clone()).sweep().await
    }

    /// Ends a part that is at work.
    pub async fn stop(&mut self, run: &PointId) -> Result<()> {
        let (base, doing) = (self.base(), "stop what runs on the manager");
        let args = [base.as_str(), run.as_str()];
        let output = self.link.script(remote::STOP, &args, doing).await?;
        output.check(doing).map(drop).map_err(error::ssh(&self.link.name, doing))
    }

    /// A script that may be repeated, with standard input.
    pub async fn feed(
        &mut self,
        script: &str,
        args: &[&str],
        input: &Bytes,
        doing: &'static str,
    ) -> Result<Output> {
        self.link.feed(script, args, input, doing).await
    }

    /// The connection, for a script that may be repeated.
    pub fn link(&mut self) -> &mut Link {
        &mut self.link
    }

    /// The manager, as it is held in the repository.
    pub fn held(&self) -> Result<&ManagerLock> {
        let text = "the manager is not locked";
        self.lock.as_ref().ok_or_else(|| RunError::Task { text: text.into() })
    }

    /// Whether a part was started.
    pub async fn is_started(&mut self, run: &PointId) -> Result<bool> {
        let base = self.base();
        let mut part = Run::new(self.context, &mut self.link, base, run.clone());
        Ok(part.poll().await?.started)
    }

    /// What a part is about: the title of its point.
    pub async fn about(&mut self, run: &PointId) -> Result<String> {
        let doing = "read what the run is about";
        let base = self.base();
        let args = [base.as_str(), run.as_str(), "of"];
        let output = self.link.script(remote::SEND, &args, doing).await?;
        Ok(output.text().trim().to_owned())
    }

    /// A name that no other part has; they are seconds.
    async fn next_run(&mut self) -> PointId {
        loop {
            let run = PointId::at(jiff::Timestamp::now());
            if self.last.as_ref() != Some(&run) {
                self.last = Some(run.clone());
                return run;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn intend(&mut self, kind: Kind, run: &PointId) -> Result<StepId> {
        let journal = match self.journal.take() {
            Some(journal) => journal,
            None => {
                let (repository, job) = (self.context.repository.clone(), self.context.job);
                blocking("open the journal", move || repository.journal(job)).await?
            }
        };
        let step = Step::ManagerRestore {
            manager: self.name.to_string(),
            base: self.base(),
            run: run.clone(),
            kind: kind.program().to_owned(),
        };
        let id = journal.intent(&step).map_err(error::repository("write the journal"));
        self.journal = Some(journal);
        self.open += usize::from(id.is_ok());
        id
    }

    async fn settle(&mut self, step: StepId) -> Result<()> {
        if let Some(journal) = &self.journal {
            journal.undone(step).map_err(error::repository("write the journal"))?;
            self.open = self.open.saturating_sub(1);
        }
        Ok(())
    }
}

/// A part that was to be started and cannot be waited for.
enum Unstarted {
    Surely(RunError),
    /// Nobody could be asked: it may be at work, or have ended and wait for its judge.
    Perhaps(RunError),
}

/// Starts a part. When the connection breaks meanwhile, whether it began is asked; one that
/// has not begun by then never does, once it is swept.
async fn begin(part: &mut Run<'_>, command: &[String]) -> std::result::Result<(), Unstarted> {
    let Err(cause) = part.start(remote::PREPARED, command).await else { return Ok(()) };
    let is_open = match &cause {
        RunError::Ssh { cause, .. } => is_broken(cause),
        RunError::Cancelled => true,
        _ => false,
    };
    if !is_open {
        return Err(Unstarted::Surely(cause));
    }
    match part.poll().await {
        Ok(poll) if poll.started && poll.state != State::Absent => Ok(()),
        Ok(_) => Err(Unstarted::Surely(cause)),
        Err(_) if matches!(cause, RunError::Cancelled) => Err(Unstarted::Perhaps(cause)),
        Err(why) => Err(Unstarted::Perhaps(why)),
    }
}
