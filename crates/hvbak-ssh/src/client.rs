//! The callbacks of one SSH session: judging the host key, noting what was agreed on and
//! why the session ended.
//!
//! Invariant: a key that was not accepted is answered with `false` before anything else
//! happens, so no identity is ever shown to a host that failed its test.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use russh::{
    Names,
    client::{DisconnectReason, Handler, Session},
    keys::PublicKeyOrCertificate,
};

use crate::{
    algorithms::Negotiated,
    hostkey::{HostKey, HostTrust},
    output::{neutralise, one_line},
};

/// What the session task tells the rest.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The key the host showed, accepted or not.
    pub(crate) offered: Option<HostKey>,
    /// The key that was accepted.
    pub(crate) accepted: Option<HostKey>,
    pub(crate) negotiated: Negotiated,
    /// Why the session ended.
    pub(crate) lost: Option<String>,
}

/// Shared between the session task and the connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notes(Arc<Mutex<Seen>>);

impl Notes {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cause of the end for messages.
    pub(crate) fn cause(&self) -> String {
        self.lock().lost.clone().unwrap_or_else(|| "closed by the host".into())
    }
}

pub(crate) struct Client {
    pub(crate) trust: HostTrust,
    pub(crate) notes: Notes,
}

impl Handler for Client {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        key: &PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        // Certificate algorithms are not offered; a host that sends one anyway is refused.
        if key.certificate().is_some() {
            return Ok(false);
        }
        let key = HostKey::of(&key.public_key());
        // A rekey shows the key again: consent is asked once, and it must stay the same.
        let before = self.notes.lock().accepted.clone();
        let accepted = before.map_or_else(|| self.trust.accepts(&key), |known| known == key);
        let mut seen = self.notes.lock();
        seen.offered = Some(key.clone());
        if accepted {
            seen.accepted = Some(key);
        }
        Ok(accepted)
    }

    async fn kex_done(
        &mut self,
        _secret: Option<&[u8]>,
        names: &Names,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.notes.lock().negotiated = Negotiated {
            kex: names.kex.as_ref().to_owned(),
            host_key: names.key.as_str().to_owned(),
            cipher: names.cipher.as_ref().to_owned(),
            mac: names.client_mac.as_ref().to_owned(),
        };
        Ok(())
    }

    async fn auth_banner(&mut self, text: &str, _: &mut Session) -> Result<(), Self::Error> {
        tracing::debug!(banner = %one_line(&neutralise(text.as_bytes())), "login banner");
        Ok(())
    }

    async fn disconnected(
        &mut self,
        reason: DisconnectReason<Self::Error>,
    ) -> Result<(), Self::Error> {
        let (text, result) = match reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                (format!("host said: {}", one_line(&neutralise(info.message.as_bytes()))), Ok(()))
            }
            DisconnectReason::Error(error) => {
                let text = match &error {
                    russh::Error::KeepaliveTimeout => "no answer to keepalives".to_owned(),
                    russh::Error::Disconnect | russh::Error::HUP => "closed by the host".into(),
                    other => other.to_string(),
                };
                (text, Err(error))
            }
        };
        self.notes.lock().lost.get_or_insert(text);
        result
    }
}
