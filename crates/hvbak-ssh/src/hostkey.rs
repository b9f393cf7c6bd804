//! Judging a host by its key.
//!
//! A key is compared by its key data, never with its comment. A fingerprint does not say
//! of which algorithm its key is, so every algorithm the host has may be asked for; a
//! recorded key is asked for by its own algorithm first, so that a host cannot be
//! "unknown" (and learned anew) by offering another algorithm than the recorded one.

use std::{fmt, sync::Arc};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PublicKey, PublicKeyBase64};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};

/// A host's public key, with the forms people compare.
#[derive(Clone, PartialEq, Eq)]
pub struct HostKey {
    /// `ssh-ed25519`, `ecdsa-sha2-nistp256`, `ssh-rsa`, …
    pub algorithm: String,
    /// `algorithm base64`, as in known_hosts, without a comment.
    pub line: String,
    /// `SHA256:` and base64 without padding.
    pub sha256: String,
    /// `MD5:` and 16 colon-separated bytes.
    pub md5: String,
}

impl HostKey {
    pub(crate) fn of(key: &PublicKey) -> Self {
        let blob = key.public_key_bytes();
        let algorithm = key.algorithm().as_str().to_owned();
        let hex: Vec<String> = md5::compute(&blob).iter().map(|b| format!("{b:02x}")).collect();
        Self {
            line: format!("{algorithm} {}", STANDARD.encode(&blob)),
            sha256: format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(&blob))),
            md5: format!("MD5:{}", hex.join(":")),
            algorithm,
        }
    }

    /// `algorithm SHA256:…`, as `ssh-keygen -l` shows it.
    pub fn describe(&self) -> String {
        format!("{} {}", self.algorithm, self.sha256)
    }
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

impl std::str::FromStr for HostKey {
    type Err = Error;
    /// Reads `algorithm base64 [comment]`.
    fn from_str(line: &str) -> Result<Self> {
        Ok(Self::of(&parse_key(line)?))
    }
}

/// One recorded proof of a host's identity.
#[derive(Clone, PartialEq, Eq)]
pub enum Pin {
    /// The whole key.
    Key(HostKey),
    /// `SHA256:…` without padding.
    Sha256(String),
    /// `MD5:…` with colons, as engines recorded it for hosts added long ago.
    Md5(String),
}

impl std::str::FromStr for Pin {
    type Err = Error;

    /// Reads an OpenSSH public key line, `SHA256:…` (with or without padding), an MD5
    /// fingerprint with or without the `MD5:` in front, or a line with a fingerprint in it
    /// as `ssh-keygen -l` and our own messages print it.
    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let marked = |word: &&str| word.starts_with("SHA256:") || word.starts_with("MD5:");
        let text = text.split_whitespace().find(marked).unwrap_or(text);
        let bad = || Error::BadPin { text: text.chars().take(80).collect() };
        if let Some(rest) = text.strip_prefix("SHA256:") {
            let rest = rest.trim_end_matches('=');
            return match STANDARD_NO_PAD.decode(rest) {
                Ok(bytes) if bytes.len() == 32 => Ok(Self::Sha256(format!("SHA256:{rest}"))),
                _ => Err(bad()),
            };
        }
        if text.contains(' ') {
            return text.parse().map(Self::Key);
        }
        let hex = text.strip_prefix("MD5:").unwrap_or(text).to_ascii_lowercase();
        let pairs: Vec<&str> = hex.split(':').collect();
        let is_pair = |p: &&str| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit());
        if pairs.len() == 16 && pairs.iter().all(is_pair) {
            return Ok(Self::Md5(format!("MD5:{hex}")));
        }
        Err(bad())
    }
}

impl Pin {
    /// Whether `key` is the recorded one.
    pub fn matches(&self, key: &HostKey) -> bool {
        match self {
            Self::Key(known) => known.line == key.line,
            Self::Sha256(known) => *known == key.sha256,
            Self::Md5(known) => *known == key.md5,
        }
    }

    /// For messages: the algorithm where it is known, and the fingerprint.
    pub fn describe(&self) -> String {
        match self {
            Self::Key(key) => key.describe(),
            Self::Sha256(text) | Self::Md5(text) => text.clone(),
        }
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

/// How a host key is judged.
#[derive(Clone)]
pub enum HostTrust {
    /// The key must match one of these.
    Pinned(Vec<Pin>),
    /// Nothing is recorded; this decides. It is asked once per connection and must answer
    /// at once: to ask a person, show them `Connection::scan` and pin what they choose.
    Consent(Arc<dyn Fn(&HostKey) -> bool + Send + Sync>),
    /// Nothing is recorded and nobody consented: connecting fails with
    /// [`Error::HostKeyUnknown`], which shows what the host offers.
    Unknown,
}

impl HostTrust {
    /// From what the engine recorded. The whole key wins over its (deprecated)
    /// fingerprint; with neither the host is [`HostTrust::Unknown`].
    ///
    /// # Errors
    /// [`Error::BadPin`] when the record is neither key nor fingerprint.
    pub fn from_engine(public_key: Option<&str>, fingerprint: Option<&str>) -> Result<Self> {
        let given = |text: Option<&str>| -> Result<Option<Pin>> {
            text.map(str::trim).filter(|t| !t.is_empty()).map(str::parse).transpose()
        };
        Ok(match given(public_key)? {
            Some(pin) => Self::Pinned(vec![pin]),
            None => given(fingerprint)?.map_or(Self::Unknown, |pin| Self::Pinned(vec![pin])),
        })
    }

    /// Pins from texts: key lines and fingerprints mixed.
    ///
    /// # Errors
    /// [`Error::BadPin`] for the first text that is neither.
    pub fn pinned<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        Ok(Self::Pinned(texts.into_iter().map(str::parse).collect::<Result<_>>()?))
    }

    /// Accepts whatever the host shows: explicit consent given beforehand. Read
    /// `Connection::host_key` afterwards and record it.
    pub fn accept_new() -> Self {
        Self::Consent(Arc::new(|_| true))
    }

    pub(crate) fn accepts(&self, key: &HostKey) -> bool {
        match self {
            Self::Pinned(pins) => pins.iter().any(|pin| pin.matches(key)),
            Self::Consent(ask) => ask(key),
            Self::Unknown => false,
        }
    }

    pub(crate) fn refusal(&self, host: &str, offered: &[HostKey]) -> Error {
        let host = host.to_owned();
        match self {
            Self::Pinned(pins) => {
                // Show the offer in the form of the record, or the two cannot be compared.
                let md5 = pins.iter().any(|pin| matches!(pin, Pin::Md5(_)));
                let show = |key: &HostKey| {
                    if md5 { format!("{} {}", key.describe(), key.md5) } else { key.describe() }
                };
                Error::HostKeyMismatch {
                    host,
                    expected: pins.iter().map(Pin::describe).collect(),
                    offered: offered.iter().map(show).collect(),
                }
            }
            _ => Error::HostKeyUnknown {
                host,
                offered: offered.iter().map(HostKey::describe).collect(),
            },
        }
    }

    /// The families to ask the host for, in order; the second part only finds out what
    /// the host has when none of the first exist there.
    pub(crate) fn families(&self) -> (Vec<Family>, Vec<Family>) {
        let all = Family::ALL.to_vec();
        let Self::Pinned(pins) = self else { return (all, Vec::new()) };
        if pins.is_empty() {
            return (all, Vec::new());
        }
        let mut first = Vec::new();
        for pin in pins {
            match pin {
                Pin::Key(key) => first.extend(Family::named(&key.algorithm)),
                Pin::Sha256(_) | Pin::Md5(_) => return (all, Vec::new()),
            }
        }
        let (first, rest) = all.into_iter().partition(|f| first.contains(f));
        (first, rest)
    }
}

impl fmt::Debug for HostTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pinned(pins) => f.debug_tuple("Pinned").field(pins).finish(),
            Self::Consent(_) => f.write_str("Consent"),
            Self::Unknown => f.write_str("Unknown"),
        }
    }
}

/// A kind of host key; RSA is one kind under several signature algorithms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Ed25519,
    P256,
    P384,
    P521,
    Rsa,
}

impl Family {
    pub(crate) const ALL: [Self; 5] =
        [Self::Ed25519, Self::P256, Self::P384, Self::P521, Self::Rsa];

    pub(crate) fn named(algorithm: &str) -> Option<Self> {
        Some(match algorithm {
            "ssh-ed25519" => Self::Ed25519,
            "ecdsa-sha2-nistp256" => Self::P256,
            "ecdsa-sha2-nistp384" => Self::P384,
            "ecdsa-sha2-nistp521" => Self::P521,
            "ssh-rsa" | "rsa-sha2-256" | "rsa-sha2-512" => Self::Rsa,
            _ => return None,
        })
    }

    pub(crate) fn algorithms(self, legacy: bool) -> Vec<Algorithm> {
        let ecdsa = |curve| vec![Algorithm::Ecdsa { curve }];
        match self {
            Self::Ed25519 => vec![Algorithm::Ed25519],
            Self::P256 => ecdsa(EcdsaCurve::NistP256),
            Self::P384 => ecdsa(EcdsaCurve::NistP384),
            Self::P521 => ecdsa(EcdsaCurve::NistP521),
            Self::Rsa => {
                let mut list = vec![
                    Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
                    Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
                ];
                if legacy {
                    list.push(Algorithm::Rsa { hash: None });
                }
                list
            }
        }
    }
}

fn parse_key(line: &str) -> Result<PublicKey> {
    PublicKey::from_openssh(line.trim())
        .map_err(|_| Error::BadPin { text: line.chars().take(80).collect() })
}
