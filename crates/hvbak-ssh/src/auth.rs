//! Logging in: keys, agent, and for enrolment a password.
//!
//! Identities are tried in the given order. Passwords are only sent after the host key
//! was accepted, and never to a jump host unless it is that target's own identity.

use std::{os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use hvbak_types::Secret;
use russh::{
    MethodKind,
    client::{AuthResult, Handle, KeyboardInteractiveAuthResponse},
    keys::{
        self, Algorithm, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey,
        agent::{AgentIdentity, client::AgentClient},
    },
};
use tokio::net::UnixStream;

use crate::{
    client::{Client, Notes},
    error::{Error, Result},
    target::{Identity, Target},
};

/// Keys of an agent that are tried: STIG hosts hang up after four failures, others six.
const AGENT_KEYS: usize = 4;

/// What happened so far in one login.
struct Login<'a> {
    handle: &'a mut Handle<Client>,
    target: &'a Target,
    notes: &'a Notes,
    tried: Vec<String>,
    allowed: Vec<String>,
}

/// Logs in with the first identity that the host takes.
pub(crate) async fn authenticate(
    handle: &mut Handle<Client>,
    target: &Target,
    notes: &Notes,
) -> Result<()> {
    let mut login = Login { handle, target, notes, tried: Vec::new(), allowed: Vec::new() };
    let mut unusable = None;
    for identity in &target.identity {
        let done = match identity {
            Identity::KeyFile { path, passphrase } => {
                match load_key(path.clone(), passphrase.clone()).await {
                    Ok(key) => login.key(Arc::new(key), path).await?,
                    // Another identity may still do; if none does, this is the cause to show.
                    Err(error) => {
                        unusable.get_or_insert(error);
                        false
                    }
                }
            }
            Identity::Agent { socket } => match open_agent(socket.as_deref()).await {
                Ok(agent) => login.agent(agent).await?,
                Err(error) => {
                    unusable.get_or_insert(error);
                    false
                }
            },
            Identity::Password(password) => login.password(password).await?,
        };
        if done {
            return Ok(());
        }
        if login.handle.is_closed() {
            break;
        }
    }
    match unusable {
        Some(error) if login.tried.is_empty() => Err(error),
        _ => Err(login.refused()),
    }
}

impl Login<'_> {
    fn refused(self) -> Error {
        let mut tried = self.tried;
        if self.handle.is_closed() {
            tried.push(format!("then the host hung up: {}", self.notes.cause()));
        }
        Error::AuthRefused {
            host: self.target.name.clone(),
            user: self.target.user.clone(),
            tried,
            allowed: self.allowed,
        }
    }

    fn lost(&self) -> Error {
        Error::ConnectionLost { host: self.target.name.clone(), cause: self.notes.cause() }
    }

    /// Notes the answer; true means logged in.
    fn judge(&mut self, what: String, answer: AuthResult) -> bool {
        match answer {
            AuthResult::Success => true,
            AuthResult::Failure { remaining_methods, partial_success } => {
                let note =
                    if partial_success { " (accepted, but the host wants more)" } else { "" };
                self.tried.push(format!("{what}{note}"));
                if !remaining_methods.is_empty() {
                    self.allowed = remaining_methods.iter().map(String::from).collect();
                }
                false
            }
        }
    }

    /// Signature hashes to try for an RSA key, best first; one `None` for other keys.
    async fn hashes(&mut self, algorithm: &Algorithm) -> Vec<Option<HashAlg>> {
        if !matches!(algorithm, Algorithm::Rsa { .. }) {
            return vec![None];
        }
        match self.handle.best_supported_rsa_hash().await {
            Ok(Some(Some(hash))) => vec![Some(hash)],
            // SHA-1 is all the host admits to, or it does not say (before OpenSSH 7.2).
            Ok(Some(None)) if self.target.options.legacy => vec![None],
            Ok(None) if self.target.options.legacy => vec![Some(HashAlg::Sha512), None],
            _ => vec![Some(HashAlg::Sha512)],
        }
    }

    async fn key(&mut self, key: Arc<PrivateKey>, path: &Path) -> Result<bool> {
        let name = format!("key {} {}", key.algorithm().as_str(), path.display());
        for hash in self.hashes(&key.algorithm()).await {
            let with_hash = PrivateKeyWithHashAlg::new(key.clone(), hash);
            let answer = self
                .handle
                .authenticate_publickey(self.target.user.clone(), with_hash)
                .await
                .map_err(|_| self.lost())?;
            if self.judge(name.clone(), answer) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn agent(&mut self, mut agent: AgentClient<UnixStream>) -> Result<bool> {
        let identities = agent.request_identities().await.map_err(agent_error)?;
        if identities.is_empty() {
            self.tried.push("agent (holds no keys)".into());
        }
        for identity in identities.into_iter().take(AGENT_KEYS) {
            let public: PublicKey = identity.public_key().into_owned();
            let name = format!("agent key {}", crate::hostkey::HostKey::of(&public).describe());
            let hash = self.hashes(&public.algorithm()).await.into_iter().next().flatten();
            let user = self.target.user.clone();
            let answer = match identity {
                AgentIdentity::PublicKey { key, .. } => {
                    self.handle.authenticate_publickey_with(user, key, hash, &mut agent).await
                }
                AgentIdentity::Certificate { certificate, .. } => {
                    self.handle
                        .authenticate_certificate_with(user, certificate, hash, &mut agent)
                        .await
                }
            };
            match answer {
                Ok(answer) => {
                    if self.judge(name, answer) {
                        return Ok(true);
                    }
                }
                Err(error) => self.tried.push(format!("{name} (agent: {error})")),
            }
            if self.handle.is_closed() {
                break;
            }
        }
        Ok(false)
    }

    async fn password(&mut self, password: &Secret) -> Result<bool> {
        let answer = self
            .handle
            .authenticate_password(self.target.user.clone(), password.expose())
            .await
            .map_err(|_| self.lost())?;
        if self.judge("password".into(), answer) {
            return Ok(true);
        }
        let asks =
            self.allowed.iter().any(|m| *m == String::from(&MethodKind::KeyboardInteractive));
        if !asks || self.handle.is_closed() {
            return Ok(false);
        }
        self.interactive(password).await
    }

    /// PAM hosts often ask for the password as a keyboard-interactive question.
    async fn interactive(&mut self, password: &Secret) -> Result<bool> {
        let mut answer = self
            .handle
            .authenticate_keyboard_interactive_start(self.target.user.clone(), None::<String>)
            .await
            .map_err(|_| self.lost())?;
        // A host could ask for ever; two rounds are the question and an empty farewell.
        for _ in 0..4 {
            let prompts = match answer {
                KeyboardInteractiveAuthResponse::Success => return Ok(true),
                KeyboardInteractiveAuthResponse::Failure { remaining_methods, partial_success } => {
                    let answer = AuthResult::Failure { remaining_methods, partial_success };
                    return Ok(self.judge("keyboard-interactive".into(), answer));
                }
                KeyboardInteractiveAuthResponse::InfoRequest { prompts, .. } => prompts,
            };
            // The password only goes where the host said it will not be shown.
            let secret = |echo: bool| if echo { String::new() } else { password.expose().into() };
            let replies = prompts.iter().map(|p| secret(p.echo)).collect();
            answer = self
                .handle
                .authenticate_keyboard_interactive_respond(replies)
                .await
                .map_err(|_| self.lost())?;
        }
        self.tried.push("keyboard-interactive (too many questions)".into());
        Ok(false)
    }
}

/// Reads a private key; deciphering takes a while, so it happens off the async threads.
pub(crate) async fn load_key(
    path: std::path::PathBuf,
    passphrase: Option<Secret>,
) -> Result<PrivateKey> {
    let shown = path.clone();
    tokio::task::spawn_blocking(move || load_key_now(&path, passphrase.as_ref()))
        .await
        .unwrap_or_else(|panic| Err(Error::KeyFile { path: shown, cause: Box::new(panic) }))
}

fn load_key_now(path: &Path, passphrase: Option<&Secret>) -> Result<PrivateKey> {
    let io = |cause: std::io::Error| Error::KeyFile { path: path.into(), cause: Box::new(cause) };
    let mode = std::fs::metadata(path).map_err(io)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Error::KeyMode { path: path.into(), mode });
    }
    match keys::load_secret_key(path, passphrase.map(Secret::expose)) {
        Ok(key) if key.is_encrypted() => Err(Error::KeyLocked { path: path.into() }),
        Ok(key) => Ok(key),
        Err(keys::Error::KeyIsEncrypted) => Err(Error::KeyLocked { path: path.into() }),
        Err(keys::Error::SshKey(keys::ssh_key::Error::Crypto)) if passphrase.is_some() => {
            Err(Error::KeyPassphrase { path: path.into() })
        }
        Err(error) => Err(Error::KeyFile { path: path.into(), cause: Box::new(error) }),
    }
}

async fn open_agent(socket: Option<&Path>) -> Result<AgentClient<UnixStream>> {
    match socket {
        Some(path) => AgentClient::connect_uds(path).await,
        None => AgentClient::connect_env().await,
    }
    .map_err(agent_error)
}

fn agent_error(error: keys::Error) -> Error {
    Error::Agent { cause: Box::new(error) }
}
