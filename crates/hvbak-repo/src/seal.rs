//! Archives sealed to recipients of `age`, and opened again with one of their identities.
//!
//! Sealing needs public keys only, so a machine that makes archives cannot read the ones it
//! has made. The format is age's own (c2sp.org/age, version 1, binary): stock `age -d`
//! opens what is sealed here. Recipients are X25519 (`age1…`) and SSH keys (`ssh-ed25519`,
//! `ssh-rsa`). Invariants: text that may be a private key is in no message; a header is
//! searched only within [`HEADER_MAX`] bytes; what was cut off or changed is an error
//! before its end is told.

use std::{
    collections::BTreeSet,
    fmt,
    fs::File,
    io::{self, BufReader, Read, Seek, Write},
    path::Path,
    str::FromStr,
    sync::Arc,
};

use age::{DecryptError, Decryptor, Encryptor, ssh, stream::StreamWriter, x25519};
use hvbak_types::{Digest, Secret};
use sha2::{Digest as _, Sha256};

use crate::error::{At, Error, Result};

/// What a sealed file begins with.
const MAGIC: &[u8] = b"age-encryption.org/v1\n";
/// The line before the MAC, which ends the header.
const HEADER_END: &[u8] = b"\n--- ";
/// Longer headers are not read: a recipient takes 100 to 800 bytes.
const HEADER_MAX: u64 = 256 << 10;
/// Bytes of a list of recipients that are read.
const LIST_MAX: u64 = 256 << 10;

/// Public keys that archives are sealed to; none: archives are stored as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recipients(Vec<String>);

impl Recipients {
    /// One recipient each.
    ///
    /// # Errors
    /// [`Error::Recipient`].
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self> {
        let keys = texts.iter().map(|text| Ok(key(text.as_ref())?.0));
        let mut seen = BTreeSet::new();
        let mut names = keys.collect::<Result<Vec<_>>>()?;
        names.retain(|name| seen.insert(name.clone()));
        Ok(Self(names))
    }

    /// A file with a recipient a line; empty ones and those with `#` are passed over.
    ///
    /// # Errors
    /// [`Error::Recipient`] also for a file without any: nothing is stored open because a
    /// list was emptied.
    pub fn read(path: &Path) -> Result<Self> {
        let mut text = String::new();
        File::open(path).reading(path)?.take(LIST_MAX).read_to_string(&mut text).reading(path)?;
        let lines: Vec<_> =
            text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
        if lines.is_empty() {
            let text = path.display().to_string();
            return Err(Error::Recipient { text, why: "the file names none".into() });
        }
        Self::parse(&lines)
    }

    /// Both lists, each recipient once.
    #[must_use]
    pub fn and(self, more: Self) -> Self {
        let mut seen = BTreeSet::new();
        let all = self.0.into_iter().chain(more.0);
        Self(all.filter(|name| seen.insert(name.clone())).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The public keys, without comments.
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// Whether one of these keys opens what is sealed to them; tried in memory.
    ///
    /// # Errors
    /// [`Error::Recipient`].
    pub fn are_opened_by(&self, identities: &Identities) -> Result<bool> {
        let mut sealed = Vec::new();
        let path = Path::new("a trial");
        self.seal(&mut sealed, path)?.finish().writing(path)?;
        let Ok(decryptor) = Decryptor::new(sealed.as_slice()) else { return Ok(false) };
        let keys = identities.0.iter().map(|key| &**key as &dyn age::Identity);
        Ok(decryptor.decrypt(keys).is_ok())
    }

    /// Seals what is written to `out`.
    pub(crate) fn seal<W: Write>(&self, out: W, path: &Path) -> Result<StreamWriter<W>> {
        let keys = self.0.iter().map(|text| Ok(key(text)?.1)).collect::<Result<Vec<_>>>()?;
        let encryptor = Encryptor::with_recipients(
            keys.iter().map(|k| &**k as &dyn age::Recipient),
        )
        .map_err(|cause| Error::Recipient { text: self.0.join(", "), why: cause.to_string() })?;
        encryptor.wrap_output(out).writing(path)
    }
}

type Key = Box<dyn age::Recipient>;

/// A recipient in its plain form, and as a key.
fn key(text: &str) -> Result<(String, Key)> {
    let text = text.trim();
    let no = |why: String| {
        let shown = if text.to_ascii_uppercase().contains("SECRET-KEY") || text.contains("PRIVATE")
        {
            "a private key".to_owned()
        } else {
            format!("`{}`", text.chars().take(120).collect::<String>().escape_debug())
        };
        Err(Error::Recipient { text: shown, why })
    };
    if text.to_ascii_uppercase().contains("SECRET-KEY") || text.contains("PRIVATE") {
        return no(
            "only public keys belong here; `age-keygen -y FILE` shows the one of a file".into()
        );
    }
    if text.starts_with("age1") {
        return match x25519::Recipient::from_str(text) {
            Ok(key) => Ok((key.to_string(), Box::new(key))),
            Err(why) => no(format!("{why}; X25519 recipients (`age1…`) and SSH keys can be used")),
        };
    }
    let why = match ssh::Recipient::from_str(text) {
        Ok(key) => return Ok((key.to_string(), Box::new(key))),
        Err(ssh::ParseRecipientKeyError::RsaModulusTooLarge) => "an RSA key of more than 4096 bits",
        Err(ssh::ParseRecipientKeyError::RsaModulusTooSmall) => "an RSA key of less than 2048 bits",
        Err(ssh::ParseRecipientKeyError::Unsupported(_) | ssh::ParseRecipientKeyError::Ignore) => {
            "age takes SSH keys of ssh-ed25519 and ssh-rsa only"
        }
        Err(_) => "it is neither `age1…` nor a line `ssh-ed25519 …` or `ssh-rsa …`",
    };
    no(why.into())
}

/// Private keys that open archives.
#[derive(Clone)]
pub struct Identities(Arc<Vec<Box<dyn age::Identity + Send + Sync>>>);

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identities({})", self.0.len())
    }
}

impl Identities {
    /// The content of a key file: `AGE-SECRET-KEY-1…` lines as `age-keygen` writes them, or
    /// one SSH private key without a passphrase. `from` names it in errors.
    ///
    /// # Errors
    /// [`Error::Identity`], without a word of the content.
    pub fn parse(text: &Secret, from: &str) -> Result<Self> {
        let no = |why: &str| Err(Error::Identity { from: from.to_owned(), why: why.to_owned() });
        let text = text.expose();
        if text.contains("BEGIN AGE ENCRYPTED FILE") || text.starts_with("age-encryption.org/") {
            return no(
                "it is protected by a passphrase: `age -d FILE` opens it, and `--identity -` reads it from there",
            );
        }
        if text.contains("PRIVATE KEY-----") {
            return match ssh::Identity::from_buffer(text.as_bytes(), None) {
                Ok(key @ ssh::Identity::Unencrypted(_)) => Ok(Self(Arc::new(vec![Box::new(key)]))),
                Ok(ssh::Identity::Encrypted(_)) => no(
                    "the SSH key is protected by a passphrase: give a copy without one (`ssh-keygen -p`)",
                ),
                Ok(ssh::Identity::Unsupported(_)) => {
                    no("age takes SSH keys of Ed25519 and RSA only")
                }
                Err(_) => no("its SSH key cannot be read"),
            };
        }
        let mut keys: Vec<Box<dyn age::Identity + Send + Sync>> = Vec::new();
        let lines = text.lines().map(str::trim).enumerate();
        for (n, line) in lines.filter(|(_, l)| !l.is_empty() && !l.starts_with('#')) {
            match x25519::Identity::from_str(line) {
                Ok(key) => keys.push(Box::new(key)),
                Err(why) => return no(&format!("line {} is no private key of age: {why}", n + 1)),
            }
        }
        if keys.is_empty() { no("it holds no private key") } else { Ok(Self(Arc::new(keys))) }
    }
}

/// Whether a file is sealed.
///
/// # Errors
/// That it cannot be read; [`Error::Damaged`] for age's text form, which is not read here.
pub fn is_sealed(path: &Path) -> Result<bool> {
    let mut head = Vec::new();
    File::open(path).reading(path)?.take(64).read_to_end(&mut head).reading(path)?;
    if head.starts_with(b"-----BEGIN AGE ENCRYPTED FILE-----") {
        let why = "it is in age's text form; `age -d` opens it".into();
        return Err(Error::Damaged { path: path.to_owned(), why });
    }
    Ok(head.starts_with(MAGIC))
}

/// A sealed file, opened. Its end comes only after all of it was authenticated.
///
/// # Errors
/// [`Error::WrongIdentity`]; [`Error::Damaged`] for a header that is none.
pub fn open_sealed(path: &Path, identities: &Identities) -> Result<Box<dyn Read + Send>> {
    let damaged = |why: String| Error::Damaged { path: path.to_owned(), why };
    let mut file = File::open(path).reading(path)?;
    let mut head = Vec::new();
    (&mut file).take(HEADER_MAX).read_to_end(&mut head).reading(path)?;
    if !head.windows(HEADER_END.len()).any(|w| w == HEADER_END) {
        return Err(damaged("it does not begin as a file of age does, or was cut off".into()));
    }
    file.rewind().reading(path)?;
    let failed = |cause| match cause {
        DecryptError::NoMatchingKeys => {
            Error::WrongIdentity { path: path.to_owned(), recipients: Vec::new() }
        }
        DecryptError::Io(cause) if cause.raw_os_error().is_some() => {
            Error::Read { path: path.to_owned(), cause }
        }
        other => damaged(format!("it cannot be opened: {other}")),
    };
    let source = BufReader::with_capacity(128 << 10, file);
    let decryptor = Decryptor::new_buffered(source).map_err(failed)?;
    let keys = identities.0.iter().map(|key| &**key as &dyn age::Identity);
    Ok(Box::new(decryptor.decrypt(keys).map_err(failed)?))
}

/// What came out of a sealed file, or went into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlainSum {
    pub size: u64,
    pub sha256: Digest,
}

/// Opens a sealed file to its end.
///
/// # Errors
/// As [`open_sealed`]; [`Error::Damaged`] when it was cut off or changed anywhere.
pub fn sum_sealed(path: &Path, identities: &Identities) -> Result<PlainSum> {
    let mut reader = open_sealed(path, identities)?;
    let (mut hasher, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 64 << 10]);
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                hasher.update(&buffer[..count]);
                size += count as u64;
            }
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) if cause.raw_os_error().is_some() => {
                return Err(Error::Read { path: path.to_owned(), cause });
            }
            Err(cause) => {
                let why =
                    format!("after {size} bytes of its content it was changed or cut off: {cause}");
                return Err(Error::Damaged { path: path.to_owned(), why });
            }
        }
    }
    Ok(PlainSum { size, sha256: Digest(hasher.finalize().into()) })
}

#[cfg(test)]
#[path = "seal_tests.rs"]
mod tests;
