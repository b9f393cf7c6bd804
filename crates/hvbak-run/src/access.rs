//! A hypervisor made ready for worker sessions: logged in to, worker found or pushed.
//!
//! Invariant: the removal of a pushed worker is in the journal before anything is sent.

use hvbak_ssh::{
    Connection, Target,
    deliver::{
        WorkerCommand, WorkerMode, WorkerSource, ensure_worker, remove_command, remove_worker,
    },
    probe,
};
use hvbak_types::Host;
use tokio::{sync::Mutex, task::JoinSet};

use crate::{
    error::{self, Result, RunError},
    hosts,
    job::{Job, Open},
    journal::Step,
    session::Session,
};

/// A host with a worker.
pub struct Access {
    pub name: String,
    target: Target,
    control: Connection,
    worker: WorkerCommand,
    /// Logins for sessions, made while the worker is delivered and the engine takes its time.
    logins: Mutex<JoinSet<Option<Connection>>>,
    /// The journal's step of a pushed worker.
    step: Option<Open>,
}

impl Access {
    /// Logs in and makes sure that a worker can be started. Heeds cancellation, and leaves
    /// nothing on the host when it fails.
    pub async fn open(job: &Job, host: &Host) -> Result<Self> {
        let settings = &job.context.settings;
        let cancel = &job.context.cancel;
        let target = hosts::target(settings, host)?;
        let name = host.name.clone();
        let login = async {
            let control =
                Connection::connect(&target).await.map_err(error::ssh(&name, "log in"))?;
            let info = probe(&control).await.map_err(error::ssh(&name, "look around"))?;
            Ok::<_, RunError>((control, info))
        };
        let (control, info) = tokio::select! {
            // Nothing is on the host yet: the attempt can be dropped.
            login = login => login?,
            () = cancel.cancelled() => return Err(RunError::Cancelled),
        };
        let mut logins = JoinSet::new();
        for _ in 0..settings.transfer.streams {
            let target = target.clone();
            logins.spawn(async move { Connection::connect(&target).await.ok() });
        }
        let source = WorkerSource {
            mode: match (settings.worker.installed, settings.worker.push) {
                (true, true) => WorkerMode::Auto,
                (true, false) => WorkerMode::Installed,
                (false, _) => WorkerMode::Push,
            },
            binary: settings.worker.binary.clone(),
            // VMs of a run may use the host at the same time, and each removes its own.
            tag: job.tag(),
            protocol: u32::from(hvbak_wire::PROTOCOLS[0]),
        };
        let remove = remove_command(&info, &source.tag)
            .map_err(error::ssh(&name, "name the worker's directory"))?;
        let step = Step::Worker { host: host.id, host_name: name.clone(), tag: source.tag.clone() };
        let step = job.intent(step).await?;
        let delivered = tokio::select! {
            delivered = ensure_worker(&control, &info, &source) => {
                delivered.map_err(error::ssh(&name, "deliver the worker"))
            }
            () = cancel.cancelled() => Err(RunError::Cancelled),
        };
        let worker = match delivered {
            Ok(worker) => worker,
            Err(cause) => {
                // Half an upload may lie there. When the host does not answer any more the
                // step stays open, for `cleanup`.
                if control.exec(&remove).await.is_ok_and(|output| output.status.success()) {
                    job.undone(&step).await?;
                }
                control.close().await;
                return Err(cause);
            }
        };
        let step = if worker.remove.is_some() {
            job.done(&step, Default::default()).await?;
            Some(step)
        } else {
            job.undone(&step).await?;
            None
        };
        let logins = Mutex::new(logins);
        Ok(Self { name, target, control, worker, logins, step })
    }

    /// Starts `count` sessions, each over a connection of its own.
    pub async fn sessions(&self, count: usize) -> Result<Vec<Session>> {
        let mut starting = JoinSet::new();
        let mut logins = self.logins.lock().await;
        for _ in 0..count.max(1) {
            let waiting = logins.join_next().await.and_then(|login| login.ok().flatten());
            let (target, command) = (self.target.clone(), self.worker.command.clone());
            starting.spawn(async move { Session::start(&target, waiting, &command).await });
        }
        drop(logins);
        let mut sessions = Vec::new();
        while let Some(joined) = starting.join_next().await {
            let started = joined
                .map_err(|e| RunError::Task { text: e.to_string() })
                .and_then(|started| started);
            sessions.push(started?);
        }
        Ok(sessions)
    }

    /// Removes a pushed worker and logs out.
    pub async fn close(self, job: &Job) -> Result<()> {
        drop(self.logins);
        let removed = remove_worker(&self.control, &self.worker).await;
        self.control.close().await;
        removed.map_err(error::ssh(&self.name, "remove the worker"))?;
        if let Some(step) = &self.step {
            job.undone(step).await?;
        }
        Ok(())
    }
}
