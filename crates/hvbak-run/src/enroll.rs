//! Giving hypervisors hvbak's key, taking it away, replacing it.
//!
//! No engine is asked here: in a disaster there is none. Invariants: the host is judged by the
//! engine's record, or by the fingerprint that was given, before a password or key is shown to it; an enrolment counts only when a login with hvbak's own key has worked; a rotation
//! removes the old key nowhere before the new one works everywhere.

use std::{path::PathBuf, sync::Arc};

use hvbak_repo::Repository;
use hvbak_ssh::{
    Connection, HostTrust, Identity, Pin, PinStore, Russh, Target,
    enroll::{
        Change, Grant, KeyKind, Revoke, SudoScope, generate_key, install, install_sudoers, prove,
        public_key, remove_sudoers, revoke,
    },
    probe,
};
use hvbak_types::{Host, Secret};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{
    error::{self, Result, RunError},
    event::{Event, Events},
    hosts,
    job::Context,
    settings::Settings,
};

/// The parts that an enrolment is given.
#[derive(Clone)]
pub struct EnrollContext {
    pub repository: Arc<Repository>,
    pub settings: Arc<Settings>,
    pub events: Events,
    pub cancel: CancellationToken,
}

impl From<&Context> for EnrollContext {
    fn from(context: &Context) -> Self {
        Self {
            repository: context.repository.clone(),
            settings: context.settings.clone(),
            events: context.events.clone(),
            cancel: context.cancel.clone(),
        }
    }
}

impl EnrollContext {
    fn phase(&self, text: impl Into<String>) {
        self.events.event(&Event::Phase { vm: None, text: text.into() });
    }

    fn warn(&self, text: impl Into<String>) {
        self.events.event(&Event::Warning { vm: None, text: text.into() });
    }
}

/// How the first login is made.
#[derive(Debug, Clone)]
pub enum Bootstrap {
    /// With hvbak's own key, which is there already.
    Own,
    Password(Secret),
    Key(PathBuf),
    Agent,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnrollMode {
    Install,
    Revoke,
    Rotate,
}

/// How.
#[derive(Debug, Clone)]
pub struct EnrollOptions {
    pub mode: EnrollMode,
    pub bootstrap: Bootstrap,
    pub bootstrap_user: String,
    pub key_kind: KeyKind,
    /// sshd's `from=` list; empty: the address that the host sees us come from.
    pub from: Vec<String>,
    pub accept_new_host_keys: bool,
    /// One of these is the host's key, as somebody has seen at its console: fingerprints or
    /// whole keys. What the engine or the configuration says of it must hold as well; what hvbak
    /// itself remembers of it is replaced.
    pub host_keys: Vec<String>,
}

/// A host and how it went.
#[derive(Debug, Clone, Serialize)]
pub struct EnrollOutcome {
    pub host: String,
    pub error: Option<String>,
    pub hint: Option<String>,
    pub exit: u8,
}

/// Enrols, revokes or rotates on every host; one host's failure does not stop the others,
/// except that a rotation goes back when one host fails.
///
/// # Errors
/// Only what concerns the key itself.
pub async fn enroll(
    context: &EnrollContext,
    hosts: &[&Host],
    options: &EnrollOptions,
) -> Result<Vec<EnrollOutcome>> {
    let key_file = context.settings.ssh.key_file.clone();
    if options.mode == EnrollMode::Rotate {
        return rotate_all(context, hosts, options).await;
    }
    if options.mode == EnrollMode::Install && !key_file.exists() {
        make_key(context, options, key_file.clone()).await?;
    }
    let key = own_key(&key_file)?;
    let mut outcomes = Vec::new();
    for host in hosts {
        if context.cancel.is_cancelled() {
            return Err(RunError::Cancelled);
        }
        let result = match options.mode {
            EnrollMode::Revoke => revoke_on(context, host, options, &key).await,
            _ => install_on(context, host, options, &key).await,
        };
        outcomes.push(tell(context, host, result));
    }
    Ok(outcomes)
}

fn tell(context: &EnrollContext, host: &Host, result: Result<String>) -> EnrollOutcome {
    let (text, error) = match result {
        Ok(text) => (text, None),
        Err(cause) => (format!("failed: {}", crate::chain(&cause)), Some(cause)),
    };
    context.events.event(&Event::HostDone { host: host.id, name: host.name.clone(), text });
    EnrollOutcome {
        host: host.name.clone(),
        hint: error.as_ref().and_then(RunError::hint),
        exit: error.as_ref().map_or(0, RunError::exit_code),
        error: error.as_ref().map(|e| crate::chain(e)),
    }
}

fn tag(context: &EnrollContext) -> String {
    format!("hvbak:{}", context.repository.id())
}

async fn make_key(context: &EnrollContext, options: &EnrollOptions, path: PathBuf) -> Result<()> {
    context.phase(format!("making the key {}", path.display()));
    let (kind, comment) = (options.key_kind, tag(context));
    let passphrase = context.settings.ssh.passphrase.clone();
    tokio::task::spawn_blocking(move || generate_key(kind, &path, passphrase.as_ref(), &comment))
        .await
        .map_err(|e| RunError::Task { text: e.to_string() })?
        .map_err(error::ssh("this machine", "make a key"))?;
    Ok(())
}

fn own_key(path: &std::path::Path) -> Result<String> {
    public_key(path).map_err(error::ssh("this machine", "read hvbak's key"))
}

/// A machine by its name in the configuration, or by its address, without asking the engine.
pub fn host_by_address(name: &str) -> Host {
    hosts::unlisted(name)
}

/// What a host shows of its keys, for somebody to compare; nothing when one is recorded.
///
/// # Errors
/// That it cannot be reached.
pub async fn unknown_host_keys(context: &EnrollContext, host: &Host) -> Result<Vec<String>> {
    let target = hosts::target(&context.settings, host)?;
    if !matches!(target.trust, HostTrust::Unknown) {
        return Ok(Vec::new());
    }
    let keys =
        Connection::scan(&target).await.map_err(error::ssh(&host.name, "ask for its key"))?;
    Ok(keys.iter().map(|key| key.describe()).collect())
}

fn pins(host: &Host, options: &EnrollOptions) -> Result<Vec<Pin>> {
    let pins = options.host_keys.iter().map(|text| text.parse()).collect::<hvbak_ssh::Result<_>>();
    pins.map_err(error::ssh(&host.name, "understand the given fingerprint"))
}

/// The target of the first login, with the user's consent to unknown keys when given.
fn first_target(context: &EnrollContext, host: &Host, options: &EnrollOptions) -> Result<Target> {
    let settings = &context.settings;
    let mut target = match &options.bootstrap {
        Bootstrap::Own => hosts::target(settings, host)?,
        Bootstrap::Password(secret) => {
            let identity = vec![Identity::Password(secret.clone())];
            hosts::target_as(settings, host, options.bootstrap_user.clone(), identity)?
        }
        Bootstrap::Key(path) => {
            let identity = vec![Identity::KeyFile { path: path.clone(), passphrase: None }];
            hosts::target_as(settings, host, options.bootstrap_user.clone(), identity)?
        }
        Bootstrap::Agent => {
            let identity = vec![Identity::Agent { socket: None }];
            hosts::target_as(settings, host, options.bootstrap_user.clone(), identity)?
        }
    };
    let pins = pins(host, options)?;
    // A machine that was installed anew has another key than the one that we remember.
    if !pins.is_empty() && hosts::is_known_to_us_alone(settings, host) {
        target.trust = HostTrust::Pinned(pins);
    } else if options.accept_new_host_keys && matches!(target.trust, HostTrust::Unknown) {
        let (context, name) = (context.clone(), host.name.clone());
        target.trust = HostTrust::Consent(Arc::new(move |key| {
            context.warn(format!("{name}: host key {} accepted unseen", key.describe()));
            true
        }));
    }
    Ok(target)
}

async fn first_login(
    context: &EnrollContext,
    host: &Host,
    options: &EnrollOptions,
) -> Result<(Connection, hvbak_ssh::HostInfo)> {
    let target = first_target(context, host, options)?;
    let pins = pins(host, options)?;
    let is_new = matches!(target.trust, HostTrust::Consent(_)) || !pins.is_empty();
    let connection =
        Connection::connect(&target).await.map_err(error::ssh(&host.name, "log in"))?;
    let key = connection.host_key();
    if let Some(key) = &key
        && !pins.is_empty()
        && !pins.iter().any(|pin| pin.matches(key))
    {
        let (host, shown) = (host.name.clone(), key.describe());
        connection.close().await;
        return Err(RunError::HostKeyNotGiven { host, shown });
    }
    if is_new && let Some(key) = key {
        PinStore::open(hosts::pin_file(&context.settings))
            .and_then(|mut store| {
                if !pins.is_empty() && !store.keys(&target.host, target.port).contains(&key) {
                    store.remove(&target.host, target.port)?;
                }
                store.add(&target.host, target.port, &key)
            })
            .map_err(error::ssh(&host.name, "remember the host key"))?;
    }
    let info = probe(&connection).await.map_err(error::ssh(&host.name, "look around"))?;
    Ok((connection, info))
}

fn grant(
    context: &EnrollContext,
    options: &EnrollOptions,
    info: &hvbak_ssh::HostInfo,
    key: &str,
) -> Grant {
    let mut from = options.from.clone();
    if from.is_empty() {
        from.extend(info.client_address.clone());
    }
    Grant { key: key.to_owned(), from, tag: tag(context) }
}

async fn install_on(
    context: &EnrollContext,
    host: &Host,
    options: &EnrollOptions,
    key: &str,
) -> Result<String> {
    let (connection, info) = first_login(context, host, options).await?;
    let own = hosts::target(&context.settings, host)?;
    let user = (own.user != info.user).then_some(own.user.as_str());
    let installed = async {
        let change =
            install(&connection, &info, user, &grant(context, options, &info, key)).await?;
        // A login that is not root needs sudo for the storage's files.
        let rule = if own.user != "root" && info.host_root.is_empty() && info.is_root() {
            let scope = if context.settings.worker.push {
                SudoScope::All
            } else {
                SudoScope::InstalledWorker
            };
            Some(install_sudoers(&connection, &info, &own.user, scope).await?)
        } else {
            None
        };
        prove(&Russh, &own).await?;
        Ok((change, rule))
    }
    .await;
    connection.close().await;
    let (change, rule) = installed.map_err(error::ssh(&host.name, "enrol"))?;
    let word = match change {
        Change::Unchanged => "enrolled already",
        Change::Installed => "enrolled",
        Change::Replaced => "enrolled, key line renewed",
    };
    let sudo =
        if rule.is_some_and(|c| c != Change::Unchanged) { ", sudo rule written" } else { "" };
    Ok(format!("{word}{sudo}, login proven"))
}

async fn revoke_on(
    context: &EnrollContext,
    host: &Host,
    options: &EnrollOptions,
    key: &str,
) -> Result<String> {
    let (connection, info) = first_login(context, host, options).await?;
    let user = context.settings.hosts.get(&host.name).and_then(|o| o.user.clone());
    let user = user.unwrap_or_else(|| context.settings.ssh.user.clone());
    let other = (user != info.user).then_some(user.as_str());
    let revoked = async {
        if user != "root" && info.host_root.is_empty() && info.is_root() {
            remove_sudoers(&connection, &info).await?;
        }
        let lines = revoke(&connection, &info, other, &Revoke::Tag(tag(context))).await?;
        let more = revoke(&connection, &info, other, &Revoke::Key(key.to_owned())).await?;
        Ok(lines + more)
    }
    .await;
    connection.close().await;
    let lines = revoked.map_err(error::ssh(&host.name, "revoke the key"))?;
    Ok(if lines > 0 { "key revoked".into() } else { "had no key of ours".into() })
}

/// New key on every host, proven; then the files are swapped; then the old key goes.
async fn rotate_all(
    context: &EnrollContext,
    hosts: &[&Host],
    options: &EnrollOptions,
) -> Result<Vec<EnrollOutcome>> {
    let key_file = context.settings.ssh.key_file.clone();
    let old = own_key(&key_file)?;
    let mut new_file = key_file.clone().into_os_string();
    new_file.push(".new");
    let new_file = PathBuf::from(new_file);
    remove_pair(&new_file);
    make_key(context, options, new_file.clone()).await?;
    let new = own_key(&new_file)?;
    let mut outcomes = Vec::new();
    for host in hosts {
        let result = add_new(context, host, options, &new, &new_file).await;
        outcomes.push(tell(context, host, result));
    }
    if outcomes.iter().any(|o| o.error.is_some()) {
        for host in hosts {
            let _ = drop_key(context, host, &new).await;
        }
        remove_pair(&new_file);
        context.warn("the old key stays everywhere: not every host took the new one");
        return Ok(outcomes);
    }
    for (from, to) in [(&new_file, &key_file), (&public(&new_file), &public(&key_file))] {
        std::fs::rename(from, to).map_err(|cause| RunError::Local {
            doing: format!("put {} in place", to.display()),
            cause,
        })?;
    }
    for host in hosts {
        if let Err(cause) = drop_key(context, host, &old).await {
            context.warn(format!(
                "{}: the old key is still there: {}",
                host.name,
                crate::chain(&cause)
            ));
        }
    }
    Ok(outcomes)
}

async fn add_new(
    context: &EnrollContext,
    host: &Host,
    options: &EnrollOptions,
    key: &str,
    file: &std::path::Path,
) -> Result<String> {
    let own = hosts::target(&context.settings, host)?;
    let connection = Connection::connect(&own).await.map_err(error::ssh(&host.name, "log in"))?;
    let added = async {
        let info = probe(&connection).await?;
        install(&connection, &info, None, &grant(context, options, &info, key)).await?;
        let passphrase = context.settings.ssh.passphrase.clone();
        let identity = vec![Identity::KeyFile { path: file.to_owned(), passphrase }];
        prove(&Russh, &Target { identity, ..own.clone() }).await
    }
    .await;
    connection.close().await;
    added.map_err(error::ssh(&host.name, "install the new key"))?;
    Ok("new key installed, login proven".into())
}

async fn drop_key(context: &EnrollContext, host: &Host, key: &str) -> Result<()> {
    let own = hosts::target(&context.settings, host)?;
    let connection = Connection::connect(&own).await.map_err(error::ssh(&host.name, "log in"))?;
    let dropped = async {
        let info = probe(&connection).await?;
        revoke(&connection, &info, None, &Revoke::Key(key.to_owned())).await
    }
    .await;
    connection.close().await;
    dropped.map(drop).map_err(error::ssh(&host.name, "remove a key"))
}

fn public(path: &std::path::Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

fn remove_pair(path: &std::path::Path) {
    // Absent is what is wanted; anything else shows when the key is made.
    let _ = std::fs::remove_file(path);
    let _ = std::fs::remove_file(public(path));
}
