//! From a target to a logged-in connection.
//!
//! One attempt per set of host key algorithms: a fingerprint may belong to any key of the
//! host, so refused kinds are taken from the offer until one matches or none is left.

use std::{
    collections::HashMap,
    future::Future,
    io,
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use russh::{AlgorithmKind, Disconnect, client};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use crate::{
    algorithms::{CipherSet, Negotiated, config},
    auth,
    client::{Client, Notes},
    error::{Error, Result},
    guard::WriteGuard,
    hostkey::{Family, HostKey, HostTrust},
    limiter,
    output::Output,
    process::{self, Process},
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
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    handle: client::Handle<Client>,
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
        let run = process::run(&self.inner, command, stdin.into());
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
        let started = process::start(&self.inner, command, true).await;
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

/// Which kind of key matched a fingerprint last, per `host:port`: the next connection
/// asks for it first instead of trying all kinds again.
static MATCHED: LazyLock<Mutex<HashMap<String, Family>>> = LazyLock::new(Mutex::default);

/// A handshake that ended with a verdict on the host key.
enum Verdict {
    Accepted(client::Handle<Client>, Notes),
    Refused(Vec<HostKey>),
}

/// Attempts until the host key is accepted or refused for good.
async fn shake_hands(target: &Target, jump: Option<&Connection>) -> Result<Verdict> {
    let (mut families, mut rest) = target.trust.families();
    let place = format!("{}:{}", target.host, target.port);
    let matched = MATCHED.lock().unwrap_or_else(PoisonError::into_inner).get(&place).copied();
    families.sort_by_key(|f| Some(*f) != matched);
    let mut ciphers = CipherSet::Aes;
    let mut offered = Vec::new();
    loop {
        let notes = Notes::default();
        let error = match attempt(target, jump, &families, ciphers, &notes).await? {
            Ok(handle) => {
                let key = notes.lock().accepted.clone();
                if let Some(family) = key.and_then(|key| Family::named(&key.algorithm)) {
                    MATCHED.lock().unwrap_or_else(PoisonError::into_inner).insert(place, family);
                }
                return Ok(Verdict::Accepted(handle, notes));
            }
            Err(error) => error,
        };
        let refused = {
            let mut seen = notes.lock();
            if seen.accepted.is_none() { seen.offered.take() } else { None }
        };
        if let Some(key) = refused {
            let family = Family::named(&key.algorithm);
            offered.push(key);
            families.retain(|f| Some(*f) != family);
            let pinned = matches!(target.trust, HostTrust::Pinned(_));
            if pinned && family.is_some() && !families.is_empty() {
                continue;
            }
            return Ok(Verdict::Refused(offered));
        }
        match error {
            russh::Error::NoCommonAlgo { kind: AlgorithmKind::Key, .. } if !offered.is_empty() => {
                return Ok(Verdict::Refused(offered));
            }
            // The host has no key of the recorded kind: ask what it has, to show it.
            russh::Error::NoCommonAlgo { kind: AlgorithmKind::Key, .. } if !rest.is_empty() => {
                families = std::mem::take(&mut rest);
            }
            russh::Error::NoCommonAlgo { kind: AlgorithmKind::Cipher, .. }
                if ciphers == CipherSet::Aes =>
            {
                ciphers = CipherSet::ChaCha;
            }
            russh::Error::NoCommonAlgo { kind, ours, theirs } => {
                return Err(no_common(target, kind, ours, theirs));
            }
            cause => {
                return Err(Error::Handshake { host: target.name.clone(), cause: Box::new(cause) });
            }
        }
    }
}

/// One TCP (or forwarded) connection and key exchange.
async fn attempt(
    target: &Target,
    jump: Option<&Connection>,
    families: &[Family],
    ciphers: CipherSet,
    notes: &Notes,
) -> Result<Result<client::Handle<Client>, russh::Error>> {
    limiter::wait_turn(&target.host, target.port).await;
    let config = Arc::new(config(&target.options, families, ciphers));
    let handler = Client { trust: target.trust.clone(), notes: notes.clone() };
    let limit = target.options.connect_timeout;
    match jump {
        None => {
            let stream = within(target, "the TCP connection", limit, dial(target)).await??;
            shake(target, limit, client_over(config, stream, target, handler)).await
        }
        Some(jump) => {
            let open = jump.inner.handle.channel_open_direct_tcpip(
                target.host.clone(),
                u32::from(target.port),
                "127.0.0.1",
                0,
            );
            let channel = within(target, "forwarding", limit, open).await?.map_err(|cause| {
                Error::Forward {
                    host: target.name.clone(),
                    jump: jump.inner.host.clone(),
                    cause: Box::new(cause),
                }
            })?;
            let stream = channel.into_stream();
            shake(target, limit, client_over(config, stream, target, handler)).await
        }
    }
}

async fn client_over<S>(
    config: Arc<client::Config>,
    stream: S,
    target: &Target,
    handler: Client,
) -> Result<client::Handle<Client>, russh::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let guarded = WriteGuard::new(stream, target.options.write_stall);
    client::connect_stream(config, guarded, handler).await
}

async fn shake<T>(
    target: &Target,
    limit: Duration,
    work: impl Future<Output = Result<T, russh::Error>>,
) -> Result<Result<T, russh::Error>> {
    within(target, "key exchange", limit, work).await
}

async fn dial(target: &Target) -> Result<TcpStream> {
    let resolve = |cause| Error::Resolve { host: target.host.clone(), cause };
    let addresses =
        tokio::net::lookup_host((target.host.as_str(), target.port)).await.map_err(resolve)?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                // Small requests must not wait for Nagle; failing to say so is no reason to stop.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(Error::Connect { host: target.host.clone(), port: target.port, cause: last })
}

async fn within<T>(
    target: &Target,
    phase: &'static str,
    limit: Duration,
    work: impl Future<Output = T>,
) -> Result<T> {
    tokio::time::timeout(limit, work).await.map_err(|_| Error::ConnectTimeout {
        host: target.name.clone(),
        phase,
        seconds: limit.as_secs(),
    })
}

fn no_common(
    target: &Target,
    kind: AlgorithmKind,
    ours: Vec<String>,
    theirs: Vec<String>,
) -> Error {
    let kind = match kind {
        AlgorithmKind::Kex => "key exchange",
        AlgorithmKind::Key => "host key",
        AlgorithmKind::Cipher => "cipher",
        AlgorithmKind::Compression => "compression",
        AlgorithmKind::Mac => "MAC",
    };
    // The list is the peer's: bounded and harmless before it is shown.
    let clean = |names: Vec<String>| {
        names.iter().take(40).map(|n| crate::output::neutralise(n.as_bytes())).collect()
    };
    Error::NoCommonAlgorithm {
        host: target.name.clone(),
        kind,
        ours: clean(ours),
        theirs: clean(theirs),
    }
}
