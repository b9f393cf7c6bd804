//! A stored point of a manager: what its manifest says, its files compared with it, its
//! archive opened.
//!
//! Invariant: an encrypted archive is opened as a stream; nothing here writes.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, Read},
    path::PathBuf,
};

use hvbak_types::{Digest, PointId};
use serde::{Deserialize, Serialize};

use crate::{
    error::{At, Error, Result},
    layout::{MANIFEST, SUMS},
    manager::ManagerName,
    seal::{self, Identities, PlainSum},
    sums,
};

/// The archive's name in a point, and when it is encrypted.
pub const ARCHIVE: &str = "engine.backup";
pub const ARCHIVE_SEALED: &str = "engine.backup.age";

/// Longer lists of sums are not ours.
const SUMS_MAX: u64 = 1 << 20;

/// A file of a manager's point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerFile {
    pub name: String,
    pub size: u64,
    pub sha256: Digest,
}

/// `manifest.json` of a manager's point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ManagerManifest {
    pub format: u32,
    pub manager: ManagerName,
    pub point: PointId,
    pub started: jiff::Timestamp,
    pub finished: jiff::Timestamp,
    /// hvbak's version.
    pub hvbak: String,
    /// engine-backup's version.
    pub version: String,
    /// As in `--scope=`.
    pub requested: Vec<String>,
    /// What is in the archive and whole.
    pub scopes: Vec<String>,
    /// Asked for and not set up on the manager.
    #[serde(default)]
    pub absent: Vec<String>,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Seconds that the program ran, as seen from here.
    pub seconds: f64,
    /// Bytes on disk of the manager's databases then, as far as they could be asked: `ENGINE`,
    /// `DWH`, `CINDERLIB`, `KEYCLOAK`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub databases: BTreeMap<String, u64>,
    /// The second witness; an earlier hvbak did not ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineSaid>,
    pub files: Vec<ManagerFile>,
    /// `SHA256SUMS` lists this manifest; an earlier hvbak left it out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_sums: bool,
    /// How the archive is encrypted; without it, it is stored as it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypted: Option<Encrypted>,
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// What the engine said of the backup. It is the archive that counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineSaid {
    /// `agrees`, `disagrees`, `not asked`.
    pub said: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// An archive that lies encrypted in its point; its entry in `files` is of the stored bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encrypted {
    /// `age`.
    pub with: String,
    /// Public keys; the private key of any of them opens it.
    pub recipients: Vec<String>,
    /// Of the archive as engine-backup made it.
    pub size: u64,
    pub sha256: Digest,
}

impl ManagerManifest {
    /// The archive's entry, of the bytes that are stored.
    pub fn archive(&self) -> Option<&ManagerFile> {
        self.files.iter().find(|f| f.name == self.archive_name())
    }

    /// Size and sum of the archive as engine-backup made it.
    pub fn plain(&self) -> Option<PlainSum> {
        let stored = self.archive()?;
        let stored = PlainSum { size: stored.size, sha256: stored.sha256 };
        let plain = self.encrypted.as_ref().map(|e| PlainSum { size: e.size, sha256: e.sha256 });
        Some(plain.unwrap_or(stored))
    }

    /// The public keys that the archive is encrypted to.
    pub fn recipients(&self) -> &[String] {
        self.encrypted.as_ref().map_or(&[], |e| &e.recipients)
    }

    fn archive_name(&self) -> &'static str {
        if self.encrypted.is_some() { ARCHIVE_SEALED } else { ARCHIVE }
    }
}

/// A stored point of a manager.
#[derive(Debug, Clone)]
pub struct ManagerPoint {
    pub path: PathBuf,
    pub manifest: ManagerManifest,
}

impl ManagerPoint {
    /// `FQDN@POINT`.
    pub fn title(&self) -> String {
        format!("{}@{}", self.manifest.manager, self.manifest.point)
    }

    /// Where the archive lies.
    pub fn archive_path(&self) -> PathBuf {
        self.path.join(self.manifest.archive_name())
    }

    /// The archive as engine-backup made it, opened when it is encrypted. Nothing of it is
    /// written anywhere.
    ///
    /// # Errors
    /// [`Error::NeedsIdentity`], [`Error::WrongIdentity`], [`Error::Damaged`].
    pub fn open_archive(&self, identities: Option<&Identities>) -> Result<Box<dyn Read + Send>> {
        let path = self.archive_path();
        if self.manifest.encrypted.is_none() {
            return Ok(Box::new(File::open(&path).reading(&path)?));
        }
        seal::open_sealed(&path, self.identity(identities)?).map_err(|e| self.name_recipients(e))
    }

    /// Opens an encrypted archive to its end and compares its content with the manifest.
    /// Returns what is wrong; nothing for one that is not encrypted, whose stored bytes
    /// [`Self::compare`] has compared.
    ///
    /// # Errors
    /// As [`Self::open_archive`].
    pub fn compare_plain(&self, identities: Option<&Identities>) -> Result<Option<String>> {
        let Some(encrypted) = &self.manifest.encrypted else { return Ok(None) };
        let found = seal::sum_sealed(&self.archive_path(), self.identity(identities)?)
            .map_err(|e| self.name_recipients(e))?;
        let wanted = PlainSum { size: encrypted.size, sha256: encrypted.sha256 };
        Ok((found != wanted).then(|| {
            format!("what is encrypted is not what was backed up: its SHA-256 is {}", found.sha256)
        }))
    }

    fn identity<'a>(&self, identities: Option<&'a Identities>) -> Result<&'a Identities> {
        identities.ok_or_else(|| Error::NeedsIdentity {
            path: self.archive_path(),
            recipients: self.manifest.recipients().to_vec(),
        })
    }

    fn name_recipients(&self, error: Error) -> Error {
        match error {
            Error::WrongIdentity { path, .. } => {
                Error::WrongIdentity { path, recipients: self.manifest.recipients().to_vec() }
            }
            other => other,
        }
    }

    /// Compares every file with the manifest, and the manifest with the list of sums. Returns
    /// what is wrong.
    ///
    /// # Errors
    /// Only that a file which is there cannot be read.
    pub fn compare(&self) -> Result<Vec<String>> {
        let mut wrong = self.compare_sums()?;
        for file in &self.manifest.files {
            let path = self.path.join(&file.name);
            let reader = match File::open(&path) {
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                    wrong.push(format!("{} is missing", file.name));
                    continue;
                }
                other => other.reading(&path)?,
            };
            let size = reader.metadata().reading(&path)?.len();
            let real = sums::of_reader(BufReader::new(reader)).reading(&path)?;
            if size != file.size || real != file.sha256 {
                wrong.push(format!("{} is not what was stored: its SHA-256 is {real}", file.name));
            }
        }
        Ok(wrong)
    }

    /// The list of sums against the manifest as it lies there, and against what that says. Of a
    /// point of an earlier hvbak the manifest is in no list, and the list may say less.
    fn compare_sums(&self) -> Result<Vec<String>> {
        let path = self.path.join(SUMS);
        let mut text = String::new();
        let read = File::open(&path).and_then(|f| f.take(SUMS_MAX).read_to_string(&mut text));
        match read {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                let missing = self.manifest.in_sums.then(|| format!("{SUMS} is missing"));
                return Ok(missing.into_iter().collect());
            }
            Err(cause) if cause.kind() == io::ErrorKind::InvalidData => text.clear(),
            other => drop(other.reading(&path)?),
        }
        let Some(listed) = sums::parse(&text).filter(|listed| !listed.is_empty()) else {
            return Ok(vec![format!("{SUMS} is not what was stored: it is no list of sums")]);
        };
        let sum_of = |name: &str| listed.iter().find(|(n, _)| n == name).map(|(_, sum)| *sum);
        let mut wrong = Vec::new();
        match sum_of(MANIFEST) {
            Some(sum) => {
                let path = self.path.join(MANIFEST);
                let real = sums::of_reader(File::open(&path).reading(&path)?).reading(&path)?;
                if real != sum {
                    wrong.push(format!("{MANIFEST} is not what was stored: its SHA-256 is {real}"));
                }
            }
            None if self.manifest.in_sums => wrong.push(format!("{SUMS} lacks {MANIFEST}")),
            None => {}
        }
        for file in &self.manifest.files {
            if sum_of(&file.name) != Some(file.sha256) {
                wrong.push(format!("{SUMS} and {MANIFEST} disagree about {}", file.name));
            }
        }
        Ok(wrong)
    }
}
