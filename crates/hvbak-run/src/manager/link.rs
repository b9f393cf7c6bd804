//! The way to the manager: constant scripts over SSH, again over a new connection when
//! the old one broke.
//!
//! Only scripts that may be repeated go through [`Link::script`]; a start is not one.
//!
//! Whoever cancels waits for no connection: none is tried again, what only reads for hours ends at
//! once, and a short script that was begun is left to its end for as long as the other side
//! answers. Afterwards one attempt is left for what has to be tidied up there.

use std::{
    future::Future,
    io::{self, Read},
    time::Duration,
};

use bytes::Bytes;
use hvbak_manager::remote::{self, Look};
use hvbak_ssh::{
    Connection, ExitStatus, HostTrust, Identity, Output, Pin, PinStore, Process, Target,
};
use tokio_util::sync::CancellationToken;

use super::ManagerSettings;
use crate::{
    error::{self, Result, RunError},
    hosts,
    settings::Settings,
};

/// How long a connection that broke is tried again.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// How long the rows of a database are counted, or an archive is hashed, at most.
pub const READ_WHOLE: Duration = Duration::from_secs(6 * 3600);
/// How long a connection may take to answer, when somebody has cancelled; else it is dead.
const ANSWERS: Duration = Duration::from_millis(1500);
/// How long somebody who has cancelled waits for a new connection, to tidy up by.
const TIDY: Duration = Duration::from_secs(3);
/// Bytes of one write towards the other side.
const PIECE: usize = 256 << 10;

/// Up to [`PIECE`] bytes; none at the end.
fn next_piece(source: &mut impl Read) -> io::Result<Bytes> {
    let mut piece = Vec::with_capacity(PIECE);
    source.take(PIECE as u64).read_to_end(&mut piece)?;
    Ok(piece.into())
}

/// The way was lost, or what stood at its end.
pub fn is_broken(cause: &hvbak_ssh::Error) -> bool {
    cause.retryable() || matches!(cause, hvbak_ssh::Error::CommandGone { .. })
}

/// What comes of it, unless somebody cancels.
pub async fn unless_cancelled<T>(
    cancel: &CancellationToken,
    what: impl Future<Output = T>,
) -> Result<T> {
    tokio::select! {
        biased;
        ended = what => Ok(ended),
        () = cancel.cancelled() => Err(RunError::Cancelled),
    }
}

/// Logs in. The outer error is that somebody has cancelled, the inner one of the way.
async fn login(
    target: &Target,
    cancel: &CancellationToken,
) -> Result<std::result::Result<Connection, hvbak_ssh::Error>> {
    let connect = Connection::connect(target);
    if !cancel.is_cancelled() {
        return unless_cancelled(cancel, connect).await;
    }
    let (host, seconds) = (target.name.clone(), TIDY.as_secs());
    let connected = tokio::time::timeout(TIDY, connect).await;
    Ok(connected.unwrap_or(Err(hvbak_ssh::Error::ConnectTimeout { host, phase: "login", seconds })))
}

/// A connection to the manager that is made anew when it breaks.
pub struct Link {
    pub name: String,
    target: Target,
    sudo: bool,
    connection: Option<Connection>,
    cancel: CancellationToken,
}

/// Where and as whom.
pub fn target(settings: &Settings, manager: &ManagerSettings) -> Result<Target> {
    let mut target = Target::new(&manager.address, &manager.address, &manager.user);
    target.port = manager.port;
    target.identity = vec![Identity::KeyFile {
        path: settings.ssh.key_file.clone(),
        passphrase: settings.ssh.passphrase.clone(),
    }];
    if settings.ssh.agent {
        target.identity.push(Identity::Agent { socket: None });
    }
    target.options = hosts::options(settings);
    target.jump = hosts::jump(settings)?.map(Box::new);
    let trust = match &manager.host_key {
        Some(line) => line.parse().map(|pin: Pin| HostTrust::Pinned(vec![pin])),
        None => PinStore::open(hosts::pin_file(settings))
            .map(|store| store.trust(&manager.address, manager.port).unwrap_or(HostTrust::Unknown)),
    };
    target.trust =
        trust.map_err(error::ssh(&manager.address, "understand the recorded host key"))?;
    Ok(target)
}

impl Link {
    /// Logs in.
    pub async fn open(
        settings: &Settings,
        manager: &ManagerSettings,
        cancel: &CancellationToken,
    ) -> Result<Self> {
        let target = target(settings, manager)?;
        Self::to(target, manager.address.clone(), manager.user != "root", cancel).await
    }

    /// Logs in to a host by its name in the configuration, or by its address. The engine,
    /// which would know its key, may be down: the key is the configured one or the one
    /// accepted earlier.
    pub async fn to_host(
        settings: &Settings,
        name: &str,
        cancel: &CancellationToken,
    ) -> Result<Self> {
        let target = hosts::target(settings, &hosts::unlisted(name))?;
        let sudo = target.user != "root";
        Self::to(target, name.to_owned(), sudo, cancel).await
    }

    async fn to(
        target: Target,
        name: String,
        sudo: bool,
        cancel: &CancellationToken,
    ) -> Result<Self> {
        let connection = login(&target, cancel).await?.map_err(error::ssh(&name, "log in"))?;
        Ok(Self { name, target, sudo, connection: Some(connection), cancel: cancel.clone() })
    }

    /// Looks around.
    pub async fn look(&mut self, manager: &ManagerSettings) -> Result<Look> {
        let doing = "look around";
        let output =
            self.script(remote::LOOK, &[&manager.work_dir, &manager.program], doing).await?;
        let output = output.check(doing).map_err(error::ssh(&self.name, doing))?;
        Look::parse(&output.text(), &manager.program)
            .map_err(|cause| RunError::ManagerAnswer { manager: self.name.clone(), cause })
    }

    /// Runs a script that may be repeated, over a new connection if need be.
    pub async fn script(
        &mut self,
        body: &str,
        args: &[&str],
        doing: &'static str,
    ) -> Result<Output> {
        self.feed(body, args, &Bytes::new(), doing).await
    }

    /// As [`Link::script`], with standard input.
    pub async fn feed(
        &mut self,
        body: &str,
        args: &[&str],
        input: &Bytes,
        doing: &'static str,
    ) -> Result<Output> {
        self.repeated(body, args, input, None, doing).await
    }

    /// As [`Link::feed`], for a script that may take long; one that does not end within
    /// `limit` is an error and is not begun again.
    pub async fn feed_within(
        &mut self,
        body: &str,
        args: &[&str],
        input: &Bytes,
        limit: Duration,
        doing: &'static str,
    ) -> Result<Output> {
        self.repeated(body, args, input, Some(limit), doing).await
    }

    async fn repeated(
        &mut self,
        body: &str,
        args: &[&str],
        input: &Bytes,
        limit: Option<Duration>,
        doing: &'static str,
    ) -> Result<Output> {
        let line = self.line(body, args);
        let until = tokio::time::Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(500);
        let tidies = self.cancel.is_cancelled();
        loop {
            let failed = match self.attempt(&line, input.clone(), limit).await? {
                Ok(output) => return Ok(output),
                Err(cause) => cause,
            };
            let too_long =
                limit.is_some() && matches!(failed, hvbak_ssh::Error::CommandTimeout { .. });
            let is_over = tidies || tokio::time::Instant::now() >= until;
            if too_long || is_over || !failed.retryable() {
                return Err(error::ssh(&self.name, doing)(failed));
            }
            tracing::info!(manager = %self.name, "the connection broke; trying again");
            unless_cancelled(&self.cancel, tokio::time::sleep(pause)).await?;
            pause = (pause * 2).min(Duration::from_secs(30));
        }
    }

    /// Runs a script. The outer error is that somebody has cancelled, the inner one of the way.
    async fn attempt(
        &mut self,
        line: &str,
        input: Bytes,
        limit: Option<Duration>,
    ) -> Result<std::result::Result<Output, hvbak_ssh::Error>> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => match login(&self.target, &self.cancel).await? {
                Ok(connection) => connection,
                Err(cause) => return Ok(Err(cause)),
            },
        };
        let ended = match limit {
            Some(limit) => {
                let run = connection.exec_within(line, input, limit);
                match unless_cancelled(&self.cancel, run).await {
                    Ok(ended) => ended,
                    Err(cancelled) => {
                        // It may be as good as ever, for what is to be tidied up.
                        self.connection = Some(connection);
                        return Err(cancelled);
                    }
                }
            }
            None => tokio::select! {
                biased;
                ended = connection.exec_with_stdin(line, input) => ended,
                () = self.is_dead(&connection) => return Err(RunError::Cancelled),
            },
        };
        if ended.is_ok() {
            self.connection = Some(connection);
        }
        Ok(ended)
    }

    /// Ends when somebody has cancelled and the other side does not answer any more.
    async fn is_dead(&self, connection: &Connection) {
        self.cancel.cancelled().await;
        while connection.answers_within(ANSWERS).await {
            tokio::time::sleep(ANSWERS).await;
        }
    }

    /// Runs a script once; a broken connection is an error. Cancelled, it may have run.
    pub async fn once(&mut self, body: &str, args: &[&str], doing: &'static str) -> Result<Output> {
        let line = self.line(body, args);
        self.attempt(&line, Bytes::new(), None).await?.map_err(error::ssh(&self.name, doing))
    }

    /// A script as a stream, over a connection of its own. The outer error is that somebody has
    /// cancelled, the inner one of the way.
    pub async fn stream(
        &self,
        body: &str,
        args: &[&str],
    ) -> Result<std::result::Result<(Connection, Process), hvbak_ssh::Error>> {
        let begin = async {
            let connection = Connection::connect(&self.target).await?;
            let process = connection.spawn(&self.line(body, args)).await?;
            Ok((connection, process))
        };
        unless_cancelled(&self.cancel, begin).await
    }

    /// A script that takes what a reader gives on standard input, once, over a connection of
    /// its own. The outer error is of this machine or that somebody has cancelled, the inner one
    /// of the way.
    pub async fn pour(
        &self,
        body: &str,
        args: &[&str],
        mut source: Box<dyn Read + Send>,
    ) -> Result<std::result::Result<ExitStatus, hvbak_ssh::Error>> {
        let local = |cause| RunError::Local { doing: "read the archive".into(), cause };
        let (connection, process) = match self.stream(body, args).await? {
            Ok(parts) => parts,
            Err(cause) => return Ok(Err(cause)),
        };
        let (mut stdin, stdout, exit) = process.split();
        drop(stdout);
        let sent = loop {
            let (back, piece) = tokio::task::spawn_blocking(move || {
                let piece = next_piece(&mut source);
                (source, piece)
            })
            .await
            .map_err(|e| RunError::Task { text: e.to_string() })?;
            source = back;
            let piece = piece.map_err(local)?;
            if piece.is_empty() {
                break unless_cancelled(&self.cancel, stdin.finish()).await?;
            }
            let written = unless_cancelled(&self.cancel, stdin.write_all(piece)).await?;
            if let Err(cause) = written {
                break Err(cause);
            }
        };
        let ended = match sent {
            Ok(()) => unless_cancelled(&self.cancel, exit.wait()).await?,
            Err(cause) => Err(cause),
        };
        connection.close().await;
        Ok(ended)
    }

    /// Hangs up.
    pub async fn close(self) {
        if let Some(connection) = self.connection {
            connection.close().await;
        }
    }

    fn line(&self, body: &str, args: &[&str]) -> String {
        let line = hvbak_ssh::script(body, args);
        match line.strip_prefix("exec ") {
            Some(rest) if self.sudo => format!("exec sudo -n {rest}"),
            _ => line,
        }
    }
}
