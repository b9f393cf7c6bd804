//! What hvbak does itself in a walk, and how it goes on with what an earlier hvbak began.
//!
//! Invariant: a restore that was begun is gone on with, or seen to be over; it is begun again
//! only when nothing of it ever ran, or when it failed and somebody says so.

use hvbak_manager::{
    Request,
    command::Format,
    hosted_engine::{Maintenance, remote::STOP_ENGINE},
    remote::Kind,
    restore::{Provision, Weight, Wishes},
    sequence::{Act, Seen, Step},
};
use hvbak_types::PointId;
use jiff::Timestamp;

use super::{
    super::{
        ManagerBackupOptions, ManagerRestoreOptions, SetupWish,
        backup::manager_backup,
        hosted_engine::{hosted_engine_maintenance, shut_down},
        link::Link,
        restore::manager_restore,
    },
    Walker, files, unseen,
};
use crate::error::{self, Result, RunError};

impl Walker<'_> {
    /// Does it and sees it done. `begun`: when an earlier hvbak began it.
    pub(super) async fn act(&mut self, step: &Step, begun: Option<Timestamp>) -> Result<()> {
        let context = self.context;
        match step.act {
            None => return Ok(()),
            Some(Act::Watch) => {}
            Some(Act::CheckFreshHost) => return self.check_fresh_host(step).await,
            Some(Act::EnterMaintenance) => {
                let host = self.host_of(step)?;
                hosted_engine_maintenance(&context.settings, host, Maintenance::Global).await?;
            }
            Some(Act::LeaveMaintenance) => {
                let host = self.host_of(step)?;
                hosted_engine_maintenance(&context.settings, host, Maintenance::None).await?;
            }
            Some(Act::StopEngine) => {
                self.ask_manager(step, STOP_ENGINE, "stop the engine").await?;
            }
            Some(Act::BackUp) => return self.back_up(step).await,
            Some(Act::Copy) => return self.copy(step).await,
            Some(Act::ShutDown) => shut_down(&context.settings, self.host_of(step)?).await?,
            Some(Act::Answer) => {
                files::answer(context, self.host_of(step)?, &self.engine().to_string()).await?;
            }
            Some(Act::Overwrite) => {
                let mut wishes = Wishes::of(Request::All);
                wishes.cleanup = true;
                wishes.permissions = Some(true);
                wishes.other_name = self.options.other_name;
                let host = self.options.host.clone();
                return match self.restore(step, wishes.clone(), host.clone(), begun).await {
                    // An earlier hvbak has cleaned up, and nothing is left to be cleaned.
                    Err(RunError::ManagerPreflight { findings, .. })
                        if begun.is_some() && findings.iter().any(|f| f.check == "cleanup") =>
                    {
                        wishes.cleanup = false;
                        self.restore(step, wishes, host, begun).await
                    }
                    other => other,
                };
            }
            Some(Act::Restore) => {
                let mut wishes = Wishes::of(Request::All);
                wishes.provision = Provision::All;
                wishes.he_remove_storage_vm = true;
                wishes.he_remove_hosts = true;
                wishes.other_name = self.options.other_name;
                return self.restore(step, wishes, self.options.host.clone(), begun).await;
            }
            Some(Act::Sweep) => files::sweep(context, self.host_of(step)?).await?,
        }
        self.await_sign(step).await
    }

    async fn check_fresh_host(&self, step: &Step) -> Result<()> {
        let (host, engine) = (self.host_of(step)?, self.engine().to_string());
        let facts = files::facts(self.context, host, &engine).await?;
        let size = self.record.archive(&self.context.repository)?;
        let size = size.and_then(|archive| std::fs::metadata(archive.path).ok()).map(|m| m.len());
        let findings = facts.findings(&engine, size);
        let (stops, tells): (Vec<_>, Vec<_>) =
            findings.into_iter().partition(|finding| finding.weight == Weight::Stops);
        for finding in tells {
            let remedy = finding.remedy.map_or_else(String::new, |remedy| format!(" ({remedy})"));
            self.context.warn(format!("{host}: {}{remedy}", finding.text));
        }
        if stops.is_empty() {
            return Ok(());
        }
        Err(RunError::FreshHost { host: host.to_owned(), findings: stops })
    }

    async fn back_up(&mut self, step: &Step) -> Result<()> {
        let manager = self.context.manager(step.name)?;
        let options = ManagerBackupOptions {
            request: Request::All,
            format: Format::default(),
            recipients: self.context.recipients.clone(),
            engine: self.context.engine.clone(),
        };
        let report = manager_backup(&manager, &options).await?;
        let scopes = &report.point.manifest.scopes;
        let title = report.point.title();
        if let Some(missing) = ["files", "db"].iter().find(|s| !scopes.iter().any(|one| one == *s))
        {
            return Err(unseen(step, format!("{title} holds no {missing}")));
        }
        self.context.phase(format!("{title} is stored"));
        self.record.set_archive(title)?;
        // Later steps name it.
        self.refresh()?;
        self.learn_engine().await
    }

    async fn copy(&self, step: &Step) -> Result<()> {
        let host = self.host_of(step)?;
        let Some(archive) = self.record.archive(&self.context.repository)? else {
            return Err(unseen(
                step,
                "it is not known which archive; name it with `--archive`".into(),
            ));
        };
        self.ensure_same_manager(step, &archive).await?;
        files::copy(self.context, host, &archive).await?;
        match files::differs(self.context, host, &archive).await? {
            None => Ok(()),
            Some(why) => Err(unseen(step, why)),
        }
    }

    async fn restore(
        &self,
        step: &Step,
        wishes: Wishes,
        host: Option<String>,
        begun: Option<Timestamp>,
    ) -> Result<()> {
        let context = self.context.manager(step.name)?;
        let Some(archive) = self.record.archive(&self.context.repository)? else {
            return Err(unseen(
                step,
                "it is not known which archive; name it with `--archive`".into(),
            ));
        };
        if let Some(begun) = begun
            && !self.lies_there(step).await?
            && let Some(came) = self.came_of_it(&PointId::at(begun), &archive.title)?
        {
            if let Came::Failed(why) = came {
                if !self.options.confirmed.contains(step.name) {
                    let why = format!(
                        "restoring {} failed: {why}; read the kept log, and let it begin once more with `--confirm {}`",
                        archive.title, step.name
                    );
                    return Err(unseen(step, why));
                }
            } else {
                // It was judged; whether the engine was set up afterwards is seen by the engine.
                return match self.seen(step).await? {
                    Seen::Yes => Ok(()),
                    Seen::No(why) | Seen::Unknown(why) => {
                        let why = format!(
                            "{} was restored, and {why}; run engine-setup there, then this again",
                            archive.title
                        );
                        Err(unseen(step, why))
                    }
                };
            }
        }
        let options = ManagerRestoreOptions {
            point: archive.title.clone(),
            wishes,
            passwords: std::collections::BTreeMap::new(),
            hosted_engine_host: host,
            setup: Some(SetupWish { answers: None }),
        };
        let done = manager_restore(&context, &options).await?;
        if !done.is_proven() {
            self.context.warn(
                "not all of what was restored could be counted or was restored: read the kept log",
            );
        }
        match &done.setup {
            Some(setup) if setup.is_healthy() => Ok(()),
            setup => {
                let why = setup.as_ref().and_then(|setup| setup.failed.clone());
                let why = why.unwrap_or_else(|| "the engine does not answer yet".into());
                let why = format!(
                    "{} was restored, and {why}; run engine-setup there, then this again",
                    archive.title
                );
                Err(unseen(step, why))
            }
        }
    }

    /// Whether a part of a restore of this repository's lies on the manager.
    async fn lies_there(&self, step: &Step) -> Result<bool> {
        let context = self.context.manager(step.name)?;
        let mut link = Link::open(&context.settings, &context.manager, &context.cancel).await?;
        let look = link.look(&context.manager).await;
        link.close().await;
        let owner = context.repository.id().to_string();
        Ok(look?.runs.iter().any(|run| run.owner == owner && run.kind != Kind::Backup))
    }

    /// What came of restoring an archive with its database and files since then; the newest.
    fn came_of_it(&self, since: &PointId, title: &str) -> Result<Option<Came>> {
        let outcomes = self.context.repository.manager_outcomes();
        let outcomes = outcomes.map_err(error::repository("read what came of restores"))?;
        let of_it =
            outcomes.iter().filter(|(at, outcome)| at >= since && outcome["point"] == title);
        let newest = of_it.max_by(|(a, _), (b, _)| a.cmp(b));
        Ok(newest.and_then(|(_, outcome)| {
            if let Some(why) = outcome["failed"].as_str() {
                return Some(Came::Failed(why.to_owned()));
            }
            let content = outcome["restored"]["content"].as_array()?;
            let whole = ["files", "db"].iter().all(|scope| content.iter().any(|c| c == scope));
            whole.then_some(Came::Restored)
        }))
    }
}

/// How an earlier restore ended.
enum Came {
    Restored,
    Failed(String),
}
