//! One run of engine-backup on the manager: given its files, started, waited for, its
//! directory swept.
//!
//! Invariants: the run's directory is in the journal before it exists; the run itself needs
//! no connection; what is swept is one directory below hvbak's own, by a name without a
//! slash, and never while the run is at work.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hvbak_manager::{
    remote::{self, Kind, Poll, State},
    restore::RECEIVE,
    scrub,
    transcript::Ended,
};
use hvbak_repo::{Identities, ManagerPoint};
use hvbak_ssh::ExitStatus;
use hvbak_types::PointId;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::{
    ManagerContext, ManagerSettings,
    link::{Link, READ_WHOLE, is_broken, unless_cancelled},
};
use crate::{
    error::{self, Result, RunError},
    job::blocking,
    settings::Settings,
};

/// Attempts to move a file whole.
pub const ATTEMPTS: u32 = 5;
const POLL: Duration = Duration::from_millis(500);
const POLL_SLOWLY: Duration = Duration::from_secs(10);
/// How long somebody who cancelled waits until his run is off the manager. STOP alone takes
/// up to 30 s with a program that does not heed its signal.
const GIVE_UP: Duration = Duration::from_secs(60);

/// An archive of the repository for the manager.
#[derive(Debug, Clone)]
pub struct Parcel {
    pub point: ManagerPoint,
    pub identities: Option<Identities>,
    /// SHA-256 of it in plain.
    pub sum: String,
}

/// A run on the manager.
pub struct Run<'a> {
    pub context: &'a ManagerContext,
    pub link: &'a mut Link,
    /// hvbak's directory there, absolute.
    pub base: String,
    pub point: PointId,
    /// Its directory is gone from the manager.
    swept: bool,
}

impl<'a> Run<'a> {
    pub fn new(
        context: &'a ManagerContext,
        link: &'a mut Link,
        base: String,
        point: PointId,
    ) -> Self {
        Self { context, link, base, point, swept: false }
    }

    /// Whether its directory was removed from the manager.
    pub fn is_swept(&self) -> bool {
        self.swept
    }

    /// The run's own directory.
    pub fn dir(&self) -> String {
        format!("{}/{}", self.base, self.point)
    }

    /// Starts it, detached. A lock that is held for a moment only is waited for.
    /// `how`: [`remote::FRESH`] or [`remote::PREPARED`].
    pub async fn start(&mut self, how: &str, command: &[String]) -> Result<()> {
        let owner = self.context.repository.id().to_string();
        let mut args = vec![self.base.as_str(), self.point.as_str(), &owner, how];
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

    /// Waits for the end, over broken connections. Cancelled, it leaves the run at work.
    pub async fn wait(&mut self) -> Result<(Ended, f64)> {
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
                self.context.phase(format!("engine-backup: {}", scrub::text(&poll.line[2..])));
            }
            last = poll.line;
            unless_cancelled(&self.context.cancel, tokio::time::sleep(pause)).await?;
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

    /// Sends it the archive of a point, opened when it is encrypted: in plain it exists only
    /// on its way. Its sum is known from the day it was made.
    pub async fn send(&mut self, name: &str, parcel: &Parcel) -> Result<()> {
        let doing = "send the archive";
        let sum = parcel.sum.as_str();
        for attempt in 1_u32.. {
            let (point, identities) = (parcel.point.clone(), parcel.identities.clone());
            let source =
                blocking("open the archive", move || point.open_archive(identities.as_ref()))
                    .await?;
            let args = [self.base.as_str(), self.point.as_str(), name, sum];
            let sent = self.link.pour(RECEIVE, &args, source).await?;
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
                _ => {
                    let pause = Duration::from_secs(u64::from(attempt));
                    unless_cancelled(&self.context.cancel, tokio::time::sleep(pause)).await?;
                }
            }
        }
        // Once more over what lies there now: root's shell runs a part of it.
        let args = [self.base.as_str(), self.point.as_str(), name];
        let none = Bytes::new();
        let output = self.link.feed_within(remote::SUM, &args, &none, READ_WHOLE, doing).await?;
        if output.text().split_whitespace().next() == Some(sum) {
            return Ok(());
        }
        Err(RunError::ManagerTransfer { manager: self.link.name.clone(), file: name.to_owned() })
    }

    /// Removes the run's directory from the manager.
    pub async fn sweep(&mut self) -> Result<()> {
        sweep(self.link, &self.base, &self.point).await?;
        self.swept = true;
        Ok(())
    }

    /// Stops it and removes its directory, because somebody has cancelled and waits.
    pub async fn give_up(&mut self) -> Result<()> {
        let doing = "stop engine-backup";
        let manager = self.context.manager.address.clone();
        let ended = tokio::time::timeout(GIVE_UP, async {
            let args = [self.base.as_str(), self.point.as_str()];
            self.link.script(remote::STOP, &args, doing).await?;
            self.sweep().await
        });
        ended.await.unwrap_or(Err(RunError::ManagerBusy { manager }))
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
    cancel: &CancellationToken,
) -> Result<()> {
    let mut link = Link::open(settings, manager, cancel).await?;
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
