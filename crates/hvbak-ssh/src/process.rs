//! A command on a host as a byte stream: standard input, standard output, a tail of
//! standard error, and how it ended.
//!
//! A write to a command that has ended waits for ever inside the SSH library: here every
//! write races the end. Dropping a session does not end the remote process: dropping
//! standard input sends end-of-file, and dropping all three parts closes the channel, upon
//! which sshd hangs up on the command.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    error::{Error, Result},
    output::{ExitStatus, Tail, one_line},
    transport::Outlet,
};

/// After the exit status, how long to wait for the channel's end: a process left in the
/// background may hold the output open for ever.
pub(crate) const LINGER: Duration = Duration::from_secs(5);

/// How far a command is.
#[derive(Debug, Clone)]
pub(crate) enum Stage {
    Running,
    /// The status is known, output may still come.
    Exited(ExitStatus),
    /// The channel is closed.
    Closed(Option<ExitStatus>),
    /// The connection broke.
    Lost(String),
}

pub(crate) struct Shared {
    pub(crate) host: String,
    pub(crate) stderr: Mutex<Tail>,
}

impl Shared {
    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().unwrap_or_else(PoisonError::into_inner).text()
    }
}

/// Dropped with the last part of a process, which tells the tasks that nobody is left.
pub(crate) struct Alive(
    #[allow(dead_code, reason = "its drop is the message")] pub(crate) oneshot::Sender<()>,
);

/// A running command. Use it whole, or [`Process::split`] it for two tasks.
///
/// Read standard output (or drop it): while it is not read the command is held back, and
/// with it everything else on this connection.
pub struct Process {
    /// Where to write.
    pub stdin: ProcessStdin,
    /// Where to read.
    pub stdout: ProcessStdout,
    /// How it ends.
    pub exit: ProcessExit,
}

/// Standard input of a command. Dropping it sends end-of-file.
pub struct ProcessStdin {
    pub(crate) outlet: Box<dyn Outlet>,
    pub(crate) stage: watch::Receiver<Stage>,
    pub(crate) shared: Arc<Shared>,
    /// Sent when finished by hand, dropped otherwise.
    pub(crate) finished: Option<oneshot::Sender<()>>,
    pub(crate) _alive: Arc<Alive>,
}

/// Standard output of a command.
pub struct ProcessStdout {
    pub(crate) queue: mpsc::Receiver<Bytes>,
    pub(crate) stage: watch::Receiver<Stage>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) _alive: Arc<Alive>,
}

/// The end of a command.
pub struct ProcessExit {
    pub(crate) stage: watch::Receiver<Stage>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) _alive: Arc<Alive>,
}

impl Process {
    /// The three parts, each for a task of its own.
    pub fn split(self) -> (ProcessStdin, ProcessStdout, ProcessExit) {
        (self.stdin, self.stdout, self.exit)
    }

    /// Sends end-of-file, throws remaining output away and waits for the end.
    ///
    /// # Errors
    /// [`Error::ConnectionLost`].
    pub async fn wait(self) -> Result<ExitStatus> {
        let (stdin, stdout, exit) = self.split();
        drop((stdin, stdout));
        exit.wait().await
    }
}

impl ProcessStdin {
    /// Sends all of `data`, which is not copied; waits while the command does not read.
    /// Never waits for a command that has ended. Not cancel-safe: a cancelled write
    /// leaves an unknown part sent.
    ///
    /// # Errors
    /// [`Error::CommandGone`] with the status and stderr, [`Error::ConnectionLost`].
    pub async fn write_all(&mut self, data: impl Into<Bytes>) -> Result<()> {
        tokio::select! {
            biased;
            () = ended(&mut self.stage) => {}
            sent = self.outlet.send(data.into()) => {
                if sent.is_ok() {
                    return Ok(());
                }
            }
        }
        Err(self.gone().await)
    }

    /// Sends end-of-file. A command that has ended already is no error.
    ///
    /// # Errors
    /// [`Error::ConnectionLost`].
    pub async fn finish(mut self) -> Result<()> {
        if let Some(finished) = self.finished.take() {
            let _ = finished.send(());
        }
        tokio::select! {
            biased;
            () = ended(&mut self.stage) => {}
            sent = self.outlet.eof() => {
                if sent.is_ok() {
                    return Ok(());
                }
            }
        }
        match self.gone().await {
            Error::CommandGone { .. } => Ok(()),
            lost => Err(lost),
        }
    }

    async fn gone(&mut self) -> Error {
        let stage = end_of(&mut self.stage).await;
        let host = self.shared.host.clone();
        let status = match stage {
            Stage::Lost(cause) => return Error::ConnectionLost { host, cause },
            Stage::Exited(status) => Some(status),
            Stage::Closed(status) => status,
            Stage::Running => None,
        };
        Error::CommandGone { host, status, stderr: one_line(&self.shared.stderr()) }
    }
}

impl ProcessStdout {
    /// The next piece (up to 32 KiB), or `None` at end-of-file. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::ConnectionLost`] when the connection broke before end-of-file: a cut
    /// stream is never mistaken for a finished one.
    pub async fn recv(&mut self) -> Result<Option<Bytes>> {
        if let Some(data) = self.queue.recv().await {
            return Ok(Some(data));
        }
        match &*self.stage.borrow() {
            Stage::Lost(cause) => {
                Err(Error::ConnectionLost { host: self.shared.host.clone(), cause: cause.clone() })
            }
            _ => Ok(None),
        }
    }
}

impl ProcessExit {
    /// Waits until the command has ended. Standard output must be read or dropped
    /// meanwhile. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::ConnectionLost`], also when the channel closed without a status.
    pub async fn wait(mut self) -> Result<ExitStatus> {
        let host = self.shared.host.clone();
        match end_of(&mut self.stage).await {
            Stage::Exited(status) | Stage::Closed(Some(status)) => Ok(status),
            Stage::Closed(None) | Stage::Running => {
                Err(Error::ConnectionLost { host, cause: "channel closed without a status".into() })
            }
            Stage::Lost(cause) => Err(Error::ConnectionLost { host, cause }),
        }
    }

    /// The last 16 KiB of standard error so far, neutralised.
    pub fn stderr_tail(&self) -> String {
        self.shared.stderr()
    }
}

/// Resolves as soon as the command is known to read nothing any more.
pub(crate) async fn ended(stage: &mut watch::Receiver<Stage>) {
    // An error means the reading task is gone, which is an end too.
    let _ = stage.wait_for(|s| !matches!(s, Stage::Running)).await;
}

/// The final stage; after an exit status the close is awaited for [`LINGER`].
async fn end_of(stage: &mut watch::Receiver<Stage>) -> Stage {
    ended(stage).await;
    let last = |s: &Stage| matches!(s, Stage::Closed(_) | Stage::Lost(_));
    let _ = tokio::time::timeout(LINGER, stage.wait_for(last)).await;
    stage.borrow().clone()
}
