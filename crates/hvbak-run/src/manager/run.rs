//! One run of engine-backup on the manager: started, waited for, its files fetched, its
//! directory swept.
//!
//! Invariants: the run's directory is in the journal before it exists; the run itself needs
//! no connection; what is swept is one directory below hvbak's own, by a name without a
//! slash, and never while the run is at work.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hvbak_manager::{
    remote::{self, Kind, Poll, State},
    restore::RECEIVE,
    transcript::Ended,
};
use hvbak_repo::{ManagerFile, ManagerStaging};
use hvbak_ssh::ExitStatus;
use hvbak_types::PointId;
use sha2::{Digest as _, Sha256};

use super::{
    ManagerContext, ManagerSettings,
    link::{Link, is_broken},
};
use crate::{
    error::{self, Result, RunError},
    job::blocking,
    settings::Settings,
};

/// Bytes of log and output that are kept of a run.
const TEXT_MAX: u64 = 64 << 20;
/// Attempts to move a file whole.
const ATTEMPTS: u32 = 5;
const POLL: Duration = Duration::from_millis(500);
const POLL_SLOWLY: Duration = Duration::from_secs(10);

/// What a cancelled job does with its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCancel {
    /// Stops and sweeps it.
    Stop,
    /// Leaves it at work: half a restore is worse than a whole one that nobody waits for.
    Leave,
}

/// A run on the manager.
pub struct Run<'a> {
    pub context: &'a ManagerContext,
    pub link: &'a mut Link,
    /// hvbak's directory there, absolute.
    pub base: String,
    pub point: PointId,
}

impl Run<'_> {
    /// The run's own directory.
    pub fn dir(&self) -> String {
        format!("{}/{}", self.base, self.point)
    }

    /// Starts it, detached. A lock that is held for a moment only is waited for.
    pub async fn start(&mut self, command: &[String]) -> Result<()> {
        let owner = self.context.repository.id().to_string();
        let mut args = vec![self.base.as_str(), self.point.as_str(), &owner];
        args.extend(command.iter().map(String::as_str));
        for _ in 0..5 {
            let output = self.link.once(remote::START, &args, "start engine-backup").await?;
            if output.status != ExitStatus::Code(remote::BUSY) {
                return output
                    .check("start engine-backup")
                    .map(drop)
                    .map_err(error::ssh(&self.link.name, "start engine-backup"));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Err(RunError::ManagerBusy { manager: self.link.name.clone() })
    }

    /// Where it is.
    pub async fn poll(&mut self) -> Result<Poll> {
        let doing = "watch the run";
        let args = [self.base.as_str(), self.point.as_str()];
        let output = self.link.script(remote::POLL, &args, doing).await?;
        let output = output.check(doing).map_err(error::ssh(&self.link.name, doing))?;
        Poll::parse(&output.text())
            .map_err(|cause| RunError::ManagerAnswer { manager: self.link.name.clone(), cause })
    }

    /// Waits for the end, over broken connections.
    pub async fn wait(&mut self, on_cancel: OnCancel) -> Result<(Ended, f64)> {
        let begun = Instant::now();
        let mut pause = POLL;
        let mut last = String::new();
        loop {
            let poll = self.poll().await?;
            match poll.state {
                State::Ended(ended) => return Ok((ended, begun.elapsed().as_secs_f64())),
                State::Absent => return Ok((Ended::Vanished, begun.elapsed().as_secs_f64())),
                State::Running => {}
            }
            if poll.line != last && poll.line.starts_with("- ") {
                self.context.phase(format!("engine-backup: {}", &poll.line[2..]));
            }
            last = poll.line;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.context.cancel.cancelled() => {
                    if on_cancel == OnCancel::Leave {
                        return Err(RunError::Cancelled);
                    }
                    let args = [self.base.as_str(), self.point.as_str()];
                    self.link.script(remote::STOP, &args, "stop engine-backup").await?;
                    self.sweep().await?;
                    return Err(RunError::Cancelled);
                }
            }
            pause = (pause + pause / 4).min(POLL_SLOWLY);
        }
    }

    /// Makes the run's directory, to be given files.
    pub async fn prepare(&mut self, kind: Kind, of: &str) -> Result<()> {
        let doing = "make the run's directory";
        let owner = self.context.repository.id().to_string();
        let args = [self.base.as_str(), self.point.as_str(), &owner, kind.word(), of];
        let output = self.link.script(remote::PREPARE, &args, doing).await?;
        if output.status == ExitStatus::Code(remote::BUSY) {
            return Err(RunError::ManagerBusy { manager: self.link.name.clone() });
        }
        output.check(doing).map(drop).map_err(error::ssh(&self.link.name, doing))
    }

    /// Gives it a small file, as a secret.
    pub async fn give(&mut self, name: &str, bytes: &Bytes) -> Result<()> {
        let doing = "give the run a file";
        let sum = Sha256::digest(bytes);
        let sum: String = sum.iter().map(|b| format!("{b:02x}")).collect();
        let args = [self.base.as_str(), self.point.as_str(), name, &sum];
        let output = self.link.feed(RECEIVE, &args, bytes, doing).await?;
        output.check(doing).map(drop).map_err(error::ssh(&self.link.name, doing))
    }

    /// Sends it a file of the repository, whose sum is known from the day it was made.
    pub async fn send(&mut self, name: &str, from: &Path, sum: &str) -> Result<()> {
        let doing = "send the archive";
        for attempt in 1_u32.. {
            let args = [self.base.as_str(), self.point.as_str(), name, sum];
            let sent = self.link.pour(RECEIVE, &args, from, &self.context.cancel).await?;
            match sent {
                Ok(ExitStatus::Code(0)) => break,
                Ok(_) if attempt >= ATTEMPTS => {
                    return Err(RunError::ManagerTransfer {
                        manager: self.link.name.clone(),
                        file: name.to_owned(),
                    });
                }
                Err(cause) if attempt >= ATTEMPTS || !is_broken(&cause) => {
                    return Err(error::ssh(&self.link.name, doing)(cause));
                }
                _ => tokio::time::sleep(Duration::from_secs(u64::from(attempt))).await,
            }
        }
        // Once more over what lies there now: root's shell runs a part of it.
        let args = [self.base.as_str(), self.point.as_str(), name];
        let output = self.link.script(remote::SUM, &args, doing).await?;
        if output.text().split_whitespace().next() == Some(sum) {
            return Ok(());
        }
        Err(RunError::ManagerTransfer { manager: self.link.name.clone(), file: name.to_owned() })
    }

    /// Fetches a file into the staging area and compares its sum. `None`: there is none.
    pub async fn fetch(
        &mut self,
        staging: &mut Option<ManagerStaging>,
        from: &str,
        to: &'static str,
        cap: Option<u64>,
    ) -> Result<Option<ManagerFile>> {
        let base = self.base.clone();
        let point = self.point.clone();
        let args = [base.as_str(), point.as_str(), from];
        let mut attempt = 0;
        loop {
            attempt += 1;
            let sum = self.link.script(remote::SUM, &args, "sum up a file").await?;
            if !sum.status.success() {
                return Ok(None);
            }
            let sum: String = sum.text().chars().take_while(char::is_ascii_hexdigit).collect();
            let Some(stage) = staging.take() else { return Ok(None) };
            let (stage, result) = self.transfer(stage, &args, to, cap.unwrap_or(u64::MAX)).await?;
            *staging = Some(stage);
            match result {
                Ok(file) if file.sha256.to_string() == sum || cap == Some(file.size) => {
                    return Ok(Some(file));
                }
                Ok(_) if attempt >= ATTEMPTS => {
                    return Err(RunError::ManagerTransfer {
                        manager: self.link.name.clone(),
                        file: from.to_owned(),
                    });
                }
                Err(cause) if attempt >= ATTEMPTS || !cause.retryable() => {
                    return Err(error::ssh(&self.link.name, "fetch a file")(cause));
                }
                _ => tokio::time::sleep(Duration::from_secs(u64::from(attempt))).await,
            }
        }
    }

    /// One attempt; the outer error is of the repository, the inner one of the way.
    async fn transfer(
        &mut self,
        stage: ManagerStaging,
        args: &[&str],
        to: &'static str,
        cap: u64,
    ) -> Result<(ManagerStaging, std::result::Result<ManagerFile, hvbak_ssh::Error>)> {
        let doing = "store what the manager sends";
        let (mut stage, mut writer) = blocking(doing, move || {
            let mut stage = stage;
            stage.discard(to)?;
            let writer = stage.create(to)?;
            Ok((stage, writer))
        })
        .await?;
        let (connection, process) = match self.link.stream(remote::SEND, args).await {
            Ok(parts) => parts,
            Err(cause) => return Ok((stage, Err(cause))),
        };
        let (stdin, mut stdout, exit) = process.split();
        drop(stdin);
        let mut left = cap;
        let sent = loop {
            let data = tokio::select! {
                data = stdout.recv() => data,
                () = self.context.cancel.cancelled() => return Err(RunError::Cancelled),
            };
            match data {
                Ok(Some(data)) => {
                    let part = usize::try_from(left).unwrap_or(usize::MAX).min(data.len());
                    left -= part as u64;
                    writer = blocking(doing, move || {
                        writer.write(&data[..part])?;
                        Ok(writer)
                    })
                    .await?;
                    if left == 0 {
                        break Ok(());
                    }
                }
                Ok(None) => break exit.wait().await.map(drop),
                Err(cause) => break Err(cause),
            }
        };
        drop(stdout);
        connection.close().await;
        if let Err(cause) = sent {
            return Ok((stage, Err(cause)));
        }
        let file = blocking(doing, move || {
            let file = stage.finish(writer)?;
            Ok((stage, file))
        })
        .await?;
        Ok((file.0, Ok(file.1)))
    }

    /// Log and output, as far as there are any.
    pub async fn fetch_texts(
        &mut self,
        staging: &mut Option<ManagerStaging>,
    ) -> Result<(String, String, Vec<String>)> {
        for (from, to) in [
            ("engine-backup.log", "engine-backup.log"),
            ("stdout", "stdout.txt"),
            ("stderr", "stderr.txt"),
            ("command", "command.txt"),
        ] {
            self.fetch(staging, from, to, Some(TEXT_MAX)).await?;
        }
        let read = |name: &str| {
            let path = staging.as_ref().map(|s| s.path_of(name));
            let bytes = path.and_then(|p| std::fs::read(p).ok()).unwrap_or_default();
            hvbak_ssh::neutralise(&bytes)
        };
        let command = read("command.txt").lines().map(ToOwned::to_owned).collect();
        Ok((read("stdout.txt"), read("stderr.txt"), command))
    }

    /// Removes the run's directory from the manager.
    pub async fn sweep(&mut self) -> Result<()> {
        sweep(self.link, &self.base, &self.point).await
    }
}

async fn sweep(link: &mut Link, base: &str, point: &PointId) -> Result<()> {
    let doing = "sweep the run's directory";
    let output = link.script(remote::SWEEP, &[base, point.as_str()], doing).await?;
    if output.status == ExitStatus::Code(remote::BUSY) {
        return Err(RunError::ManagerBusy { manager: link.name.clone() });
    }
    output.check(doing).map(drop).map_err(error::ssh(&link.name, doing))
}

/// Undoes the step of a dead job. A run that is still at work is left to the next
/// manager-backup, which picks it up; a part of a restore that was started is left to
/// manager-restore, which alone can tell what came of it.
pub(crate) async fn undo(
    settings: &Settings,
    manager: &ManagerSettings,
    base: &str,
    point: &PointId,
    restore: bool,
) -> Result<()> {
    let mut link = Link::open(settings, manager).await?;
    let args = [base, point.as_str()];
    let doing = "watch the run";
    let swept = async {
        if restore {
            let output = link.script(remote::POLL, &args, doing).await?;
            let poll = Poll::parse(&output.text())
                .map_err(|cause| RunError::ManagerAnswer { manager: link.name.clone(), cause })?;
            if poll.started && poll.state != State::Absent {
                return Err(RunError::ManagerUnjudged { manager: link.name.clone() });
            }
        }
        sweep(&mut link, base, point).await
    }
    .await;
    link.close().await;
    swept
}
