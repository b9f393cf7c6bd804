//! Key pairs of our own. The private half is written once, 0600, and never leaves.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use hvbak_types::Secret;
use russh::keys::{
    Algorithm, EcdsaCurve, PrivateKey, PublicKey,
    key::safe_rng,
    ssh_key::{
        LineEnding,
        private::{KeypairData, RsaKeypair},
    },
};

use crate::error::{Error, Result};

/// Kinds of keys to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyKind {
    /// ECDSA P-256: small, and accepted by FIPS and STIG hosts as well as old ones.
    #[default]
    EcdsaP256,
    /// Ed25519; FIPS hosts refuse it.
    Ed25519,
    /// RSA with 3072 bits.
    Rsa3072,
}

impl FromStr for KeyKind {
    type Err = Error;
    /// Reads `ecdsa`, `ed25519` or `rsa`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "ecdsa" => Ok(Self::EcdsaP256),
            "ed25519" => Ok(Self::Ed25519),
            "rsa" => Ok(Self::Rsa3072),
            _ => {
                Err(Error::BadValue { what: "kind of key", text: text.chars().take(80).collect() })
            }
        }
    }
}

/// Makes a key pair: the private half at `path` (0600, OpenSSH format, encrypted when a
/// passphrase is given), the public one beside it with `.pub`. Returns the public line
/// `algorithm base64 comment`. An existing file is never touched.
///
/// # Errors
/// [`Error::KeyCreate`].
pub fn generate_key(
    kind: KeyKind,
    path: &Path,
    passphrase: Option<&Secret>,
    comment: &str,
) -> Result<String> {
    let fail = |cause: Box<dyn std::error::Error + Send + Sync>| Error::KeyCreate {
        path: path.into(),
        cause,
    };
    let mut key = make(kind).map_err(|e| fail(Box::new(e)))?;
    key.set_comment(comment);
    let public = key.public_key().to_openssh().map_err(|e| fail(Box::new(e)))?;
    if let Some(passphrase) = passphrase {
        key = key.encrypt(&mut safe_rng(), passphrase.expose()).map_err(|e| fail(Box::new(e)))?;
    }
    let private = key.to_openssh(LineEnding::LF).map_err(|e| fail(Box::new(e)))?;
    create(path, private.as_bytes(), 0o600).map_err(|e| fail(Box::new(e)))?;
    let beside = public_path(path);
    // A stale public half of a key that is gone is replaced.
    let _ = fs::remove_file(&beside);
    create(&beside, format!("{public}\n").as_bytes(), 0o644).map_err(|e| fail(Box::new(e)))?;
    Ok(public)
}

/// The public line of a key file of ours, without needing its passphrase.
///
/// # Errors
/// [`Error::KeyFile`].
pub fn public_key(path: &Path) -> Result<String> {
    let fail = |cause: Box<dyn std::error::Error + Send + Sync>| Error::KeyFile {
        path: path.into(),
        cause,
    };
    let text = fs::read_to_string(path).map_err(|e| fail(Box::new(e)))?;
    let beside = fs::read_to_string(public_path(path));
    let beside = beside.map(|line| PublicKey::from_openssh(line.trim()));
    // The file itself knows best, but the comment of an encrypted one is encrypted too,
    // and PEM and PKCS#8 files have no readable public half.
    let key = match (PrivateKey::from_openssh(&text), beside) {
        (Ok(own), Ok(Ok(line))) if own.public_key().key_data() == line.key_data() => line,
        (Ok(own), _) => own.public_key().clone(),
        (Err(_), Ok(Ok(line))) => line,
        (Err(error), _) => return Err(fail(Box::new(error))),
    };
    key.to_openssh().map_err(|e| fail(Box::new(e)))
}

fn public_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

fn make(kind: KeyKind) -> std::result::Result<PrivateKey, russh::keys::ssh_key::Error> {
    let mut rng = safe_rng();
    match kind {
        KeyKind::EcdsaP256 => {
            PrivateKey::random(&mut rng, Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 })
        }
        KeyKind::Ed25519 => PrivateKey::random(&mut rng, Algorithm::Ed25519),
        KeyKind::Rsa3072 => {
            PrivateKey::new(KeypairData::Rsa(RsaKeypair::random(&mut rng, 3072)?), "")
        }
    }
}

fn create(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.inspect_err(|_| {
        let _ = fs::remove_file(path);
    })
}
