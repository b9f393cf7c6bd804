//! From a target to a connection whose host key was judged.
//!
//! One attempt per set of host key algorithms: a fingerprint may belong to any key of the
//! host, so refused kinds are taken from the offer until one matches or none is left.

use std::{
    collections::HashMap,
    future::Future,
    io,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use russh::{AlgorithmKind, client};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use crate::{
    algorithms::{CipherSet, config},
    client::{Client, Notes},
    connect::Connection,
    error::{Error, Result},
    guard::WriteGuard,
    hostkey::{Family, HostKey, HostTrust},
    limiter,
    prompt::Prompt,
    target::Target,
};

/// Which kind of key matched a fingerprint last, per `host:port`: the next connection
/// asks for it first instead of trying all kinds again.
static MATCHED: LazyLock<Mutex<HashMap<String, Family>>> = LazyLock::new(Mutex::default);

/// A handshake that ended with a verdict on the host key.
pub(crate) enum Verdict {
    Accepted(client::Handle<Client>, Notes),
    Refused(Vec<HostKey>),
}

/// Attempts until the host key is accepted or refused for good.
pub(crate) async fn shake_hands(target: &Target, jump: Option<&Connection>) -> Result<Verdict> {
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
            let stream = Prompt(within(target, "the TCP connection", limit, dial(target)).await??);
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

pub(crate) async fn within<T>(
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
