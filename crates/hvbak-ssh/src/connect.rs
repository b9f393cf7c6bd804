//! A logged-in connection and what it can carry.
//!
//! Invariant: while a byte stream runs on a connection nothing else does, since a stream
//! that nobody reads for a while would freeze everything beside it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use russh::{Disconnect, client};

use crate::{
    algorithms::Negotiated,
    auth,
    client::{Client, Notes},
    error::{Error, Result},
    handshake::{Verdict, shake_hands, within},
    hostkey::{HostKey, HostTrust},
    output::Output,
    process::Process,
    reading,
    target::{SshOptions, Target},
};

/// A logged-in SSH connection to one host.
///
/// It carries short commands ([`Connection::exec`], several at a time) or one byte stream
/// ([`Connection::spawn`]); asking for both at once is [`Error::Busy`]. Clones share the
/// connection. It ends with [`Connection::close`] or when the last clone and the last
/// [`Process`] part are dropped.
#[derive(Clone)]
pub struct Connection {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) handle: client::Handle<Client>,
    pub(crate) host: String,
    pub(crate) options: SshOptions,
    pub(crate) notes: Notes,
    pub(crate) streaming: AtomicBool,
    /// Keeps the session that carries ours alive.
    _jump: Option<Connection>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("host", &self.inner.host).finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects, judges the host key, logs in. At most four starts per second and host.
    ///
    /// # Errors
    /// Network and handshake failures, [`Error::HostKeyMismatch`],
    /// [`Error::HostKeyUnknown`], [`Error::AuthRefused`] and the key file errors.
    pub async fn connect(target: &Target) -> Result<Self> {
        let jump = connect_jump(target).await?;
        let (mut handle, notes) = match shake_hands(target, jump.as_ref()).await? {
            Verdict::Accepted(handle, notes) => (handle, notes),
            Verdict::Refused(offered) => {
                return Err(target.trust.refusal(&target.name, &offered));
            }
        };
        let limit = target.options.connect_timeout;
        within(target, "login", limit, auth::authenticate(&mut handle, target, &notes)).await??;
        tracing::debug!(host = %target.name, agreed = ?notes.lock().negotiated, "logged in");
        Ok(Self {
            inner: Arc::new(Inner {
                handle,
                host: target.name.clone(),
                options: target.options.clone(),
                notes,
                streaming: AtomicBool::new(false),
                _jump: jump,
            }),
        })
    }

    /// All keys a host shows, one per kind, like `ssh-keyscan`: for asking somebody whether
    /// one of them is right. Nothing is sent to the host; its `trust` is not looked at.
    ///
    /// # Errors
    /// Network and handshake failures.
    pub async fn scan(target: &Target) -> Result<Vec<HostKey>> {
        let jump = connect_jump(target).await?;
        // Pinned to nothing: every kind is asked for and none accepted.
        let asking = Target { trust: HostTrust::Pinned(Vec::new()), ..target.clone() };
        match shake_hands(&asking, jump.as_ref()).await? {
            Verdict::Refused(offered) => Ok(offered),
            Verdict::Accepted(..) => Ok(Vec::new()),
        }
    }

    /// The name given in the target.
    pub fn host(&self) -> &str {
        &self.inner.host
    }

    /// The host's accepted key, to be recorded after consent.
    pub fn host_key(&self) -> Option<HostKey> {
        self.inner.notes.lock().accepted.clone()
    }

    /// The algorithms in use.
    pub fn negotiated(&self) -> Negotiated {
        self.inner.notes.lock().negotiated.clone()
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.inner.handle.is_closed()
    }

    /// Whether the other side answers a question of the protocol itself within `limit`, whatever
    /// commands are at work on it.
    pub async fn answers_within(&self, limit: Duration) -> bool {
        let asked = tokio::time::timeout(limit, self.inner.handle.send_ping()).await;
        // One that has ended answers nothing and is no error either.
        matches!(asked, Ok(Ok(()))) && !self.is_closed()
    }

    /// Runs a short command through the login shell, with empty standard input.
    ///
    /// # Errors
    /// [`Error::Busy`] while a stream runs here, [`Error::CommandTimeout`], connection
    /// failures. A command that fails is not an error; see [`Output::check`].
    pub async fn exec(&self, command: &str) -> Result<Output> {
        self.exec_with_stdin(command, Bytes::new()).await
    }

    /// As [`Connection::exec`], with `stdin` as standard input. A command that ends
    /// without reading all of it is judged by its status alone.
    ///
    /// # Errors
    /// As [`Connection::exec`].
    pub async fn exec_with_stdin(
        &self,
        command: &str,
        stdin: impl Into<Bytes> + Send,
    ) -> Result<Output> {
        self.exec_within(command, stdin, self.inner.options.command_timeout).await
    }

    /// As [`Connection::exec_with_stdin`], with a time limit of its own.
    ///
    /// # Errors
    /// As [`Connection::exec`].
    pub async fn exec_within(
        &self,
        command: &str,
        stdin: impl Into<Bytes> + Send,
        limit: Duration,
    ) -> Result<Output> {
        if self.inner.streaming.load(Ordering::Acquire) {
            return Err(Error::Busy { host: self.inner.host.clone() });
        }
        let run = reading::run(&self.inner, command, stdin.into());
        match tokio::time::timeout(limit, run).await {
            Ok(result) => result,
            Err(_) => Err(Error::CommandTimeout {
                host: self.inner.host.clone(),
                seconds: limit.as_secs(),
            }),
        }
    }

    /// Starts a command as a byte stream. The connection is its own until the command has
    /// ended and its output was read.
    ///
    /// # Errors
    /// [`Error::Busy`] when another stream runs here; connection failures.
    pub async fn spawn(&self, command: &str) -> Result<Process> {
        if self.inner.streaming.swap(true, Ordering::AcqRel) {
            return Err(Error::Busy { host: self.inner.host.clone() });
        }
        let started = reading::start(&self.inner, command, true).await;
        if started.is_err() {
            self.inner.streaming.store(false, Ordering::Release);
        }
        started
    }

    /// Says goodbye and waits up to a second for the session to end. Running commands see
    /// end-of-file on their standard input.
    pub async fn close(self) {
        let bye = self.inner.handle.disconnect(Disconnect::ByApplication, "", "");
        let _ = tokio::time::timeout(Duration::from_secs(1), async {
            let _ = bye.await;
            while !self.inner.handle.is_closed() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

impl Inner {
    pub(crate) async fn open_channel(&self) -> Result<russh::Channel<client::Msg>> {
        self.handle.channel_open_session().await.map_err(|cause| match cause {
            russh::Error::ChannelOpenFailure(_) => {
                Error::OpenChannel { host: self.host.clone(), cause: Box::new(cause) }
            }
            _ => self.lost(),
        })
    }

    pub(crate) fn lost(&self) -> Error {
        Error::ConnectionLost { host: self.host.clone(), cause: self.notes.cause() }
    }
}

async fn connect_jump(target: &Target) -> Result<Option<Connection>> {
    let Some(hop) = &target.jump else { return Ok(None) };
    let wrap = |cause| Error::Jump {
        host: target.name.clone(),
        jump: hop.name.clone(),
        cause: Box::new(cause),
    };
    Ok(Some(Box::pin(Connection::connect(hop)).await.map_err(wrap)?))
}
