//! The configuration file. Unknown keys are errors; relative paths are relative to it.
//!
//! Invariant: the file holds no secret, only names of files that do.

use std::{
    collections::BTreeMap,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use hvbak_repo::{Identities, Recipients};
use hvbak_run::{RunError, Target, Targets};
use hvbak_types::Secret;
use jiff::SignedDuration;
use serde::Deserialize;

use crate::{
    exit::CliError,
    notify::NotifySection,
    policy::{self, Policies, PolicyError, PolicySection},
};

/// Bytes of private keys that are read from the standard input.
const IDENTITY_MAX: u64 = 1 << 20;

/// `hvbak.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub engine: EngineSection,
    pub repository: RepositorySection,
    #[serde(default)]
    pub ssh: SshSection,
    #[serde(default)]
    pub worker: WorkerSection,
    #[serde(default)]
    pub transfer: TransferSection,
    #[serde(default)]
    pub limits: LimitsSection,
    #[serde(default)]
    pub backup: BackupSection,
    /// The machine that engine-backup runs on; only for the `manager-…` commands.
    pub manager: Option<ManagerSection>,
    #[serde(default)]
    pub retention: RetentionSection,
    #[serde(default)]
    pub report: ReportSection,
    #[serde(default)]
    pub runbook: RunbookSection,
    #[serde(default)]
    pub drill: DrillSection,
    /// Who is told how commands with `--notify` end.
    #[serde(default)]
    pub notify: NotifySection,
    /// Overrides per host, by the engine's name of it.
    #[serde(default)]
    pub hosts: BTreeMap<String, HostSection>,
    /// What is backed up together, by name.
    #[serde(default, rename = "policy")]
    pub policies: Policies,
    /// The way into guests in which commands of policies run, by the VM's name.
    #[serde(default)]
    pub guests: BTreeMap<String, GuestSection>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineSection {
    pub url: String,
    /// PEM bundle; without it the system's roots are trusted.
    pub ca_file: Option<PathBuf>,
    pub username: String,
    /// Without it: `$CREDENTIALS_DIRECTORY/engine.password` (systemd).
    pub password_file: Option<PathBuf>,
    /// `ADDRESS[:PORT]` to connect to instead of the URL's name.
    pub connect_to: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepositorySection {
    pub path: PathBuf,
    /// GiB that are left free.
    #[serde(default = "default_reserve")]
    pub reserve_gib: u64,
}

fn default_reserve() -> u64 {
    1
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SshSection {
    pub user: String,
    /// hvbak's own private key.
    pub key_file: PathBuf,
    pub passphrase_file: Option<PathBuf>,
    /// Also offer the keys of the running agent.
    pub agent: bool,
    /// `[USER@]HOST[:PORT]` through which hosts are reached.
    pub jump: Option<String>,
    /// OpenSSH line of the jump host's key.
    pub jump_host_key: Option<String>,
    pub connect_timeout_seconds: u64,
    /// Silence after which a host is asked for a sign of life; it is given up after four times
    /// that, so with the default a cut cable is noticed within 60 s.
    pub keepalive_seconds: u64,
}

impl Default for SshSection {
    fn default() -> Self {
        Self {
            user: "root".into(),
            key_file: "id_hvbak".into(),
            passphrase_file: None,
            agent: false,
            jump: None,
            jump_host_key: None,
            connect_timeout_seconds: 20,
            keepalive_seconds: 15,
        }
    }
}

#[derive(Debug, Clone, Copy, Deserialize, PartialEq, Eq, Default)]
#[serde(rename_all = "lowercase")]
pub enum WorkerMode {
    /// The installed worker when it fits, else a pushed one.
    #[default]
    Auto,
    Installed,
    Push,
}

#[derive(Debug, Clone, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerSection {
    pub mode: WorkerMode,
    /// The binary that is pushed.
    pub path: Option<PathBuf>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransferSection {
    /// SSH connections per disk.
    pub streams: usize,
    /// Threads of each worker; 0 = as many as the host has, at most 4.
    pub threads: u32,
    /// zstd level; 0 stores uncompressed.
    pub compression: u32,
    /// MiB per second over all streams of a run; 0 = no limit.
    pub rate_limit_mib: u64,
}

/// How many VMs are backed up at the same time.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSection {
    pub vms: usize,
    pub vms_per_host: usize,
    pub vms_per_storage_domain: usize,
}

impl Default for LimitsSection {
    fn default() -> Self {
        Self { vms: 4, vms_per_host: 2, vms_per_storage_domain: 4 }
    }
}

impl Default for TransferSection {
    fn default() -> Self {
        Self { streams: 2, threads: 0, compression: 1, rate_limit_mib: 0 }
    }
}

#[derive(Debug, Clone, Copy, Deserialize, PartialEq, Eq, Default)]
#[serde(rename_all = "lowercase")]
pub enum QuiesceSetting {
    #[default]
    Auto,
    Require,
    Never,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackupSection {
    pub quiesce: QuiesceSetting,
    /// Leave the last snapshot on the VM, so that the next backup reads only what changed.
    pub keep_snapshot: bool,
    pub snapshot_timeout_minutes: u64,
    pub merge_timeout_minutes: u64,
    pub disk_timeout_minutes: u64,
}

impl Default for BackupSection {
    fn default() -> Self {
        Self {
            quiesce: QuiesceSetting::Auto,
            keep_snapshot: true,
            snapshot_timeout_minutes: 30,
            merge_timeout_minutes: 720,
            disk_timeout_minutes: 30,
        }
    }
}

/// How `drill` rehearses.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DrillSection {
    /// Directory to work below; `$TMPDIR` or `/var/tmp` without it.
    pub scratch: Option<PathBuf>,
    /// How long a booted VM is watched.
    pub boot_seconds: u64,
    /// Memory of a booted VM.
    pub memory_mib: u64,
    /// Whom machines and databases run as when hvbak is root.
    pub user: String,
}

impl Default for DrillSection {
    fn default() -> Self {
        Self { scratch: None, boot_seconds: 180, memory_mib: 1024, user: "nobody".into() }
    }
}

/// What `prune` keeps. Spelled out here, since unknown keys are errors.
#[derive(Debug, Clone, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionSection {
    pub last: Option<u32>,
    pub hourly: Option<u32>,
    pub daily: Option<u32>,
    pub weekly: Option<u32>,
    pub monthly: Option<u32>,
    pub yearly: Option<u32>,
    /// IANA name of the zone whose hours and days are meant; UTC without it.
    pub time_zone: Option<String>,
}

impl RetentionSection {
    pub fn rules(&self) -> hvbak_plan::KeepRules {
        let Self { last, hourly, daily, weekly, monthly, yearly, .. } = *self;
        hvbak_plan::KeepRules { last, hourly, daily, weekly, monthly, yearly }
    }
}

/// How old what is stored may be before `report` complains.
#[derive(Debug, Clone, Copy, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct ReportSection {
    pub max_age: Option<SignedDuration>,
    /// Of the newest point that was found whole by `verify` or `drill`.
    pub max_verified_age: Option<SignedDuration>,
    /// Of a manager's newest archive.
    pub max_manager_age: Option<SignedDuration>,
}

/// What the disaster pages say of people and of the order of restoration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunbookSection {
    /// Who is called, a line each.
    pub contacts: Vec<String>,
    /// VMs with a tag of this beginning and a number are restored in that order.
    pub priority_tag: String,
}

impl Default for RunbookSection {
    fn default() -> Self {
        Self { contacts: Vec::new(), priority_tag: "hvbak-priority-".into() }
    }
}

#[derive(Debug, Clone, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct HostSection {
    pub address: Option<String>,
    pub port: Option<u16>,
    pub user: Option<String>,
    /// OpenSSH line or `SHA256:…`; wins over the engine's record.
    pub host_key: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestSection {
    pub address: String,
    #[serde(default = "default_ssh_port")]
    pub port: u16,
    #[serde(default = "default_manager_user")]
    pub user: String,
    /// Private key; hvbak's own without it.
    pub key_file: Option<PathBuf>,
    /// OpenSSH line or `SHA256:…`.
    pub host_key: String,
}

/// Where the manager is.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManagerSection {
    /// DNS name or address.
    pub host: String,
    #[serde(default = "default_ssh_port")]
    pub port: u16,
    /// Login; other users than root need `sudo` without a password.
    #[serde(default = "default_manager_user")]
    pub user: String,
    /// OpenSSH line or `SHA256:…` of its host key; without it the one accepted at
    /// enrolment.
    pub host_key: Option<String>,
    /// Its name in the repository; without it what it calls itself.
    pub name: Option<String>,
    /// hvbak's directory there; needs room for all dumps, the files and the archive.
    #[serde(default = "default_work_dir")]
    pub work_dir: String,
    /// engine-backup.
    #[serde(default = "default_program")]
    pub program: String,
    /// Public keys that archives are encrypted to; none: they are stored as they are.
    #[serde(default)]
    pub recipients: Vec<String>,
    /// A file with more of them, one a line.
    pub recipients_file: Option<PathBuf>,
}

impl ManagerSection {
    /// Whom archives are encrypted to: both lists together.
    pub fn all_recipients(&self) -> Result<Recipients, RunError> {
        let wrong = |cause| RunError::Repository {
            doing: "read whom archives are encrypted to".into(),
            cause,
        };
        let typed = Recipients::parse(&self.recipients).map_err(wrong)?;
        match &self.recipients_file {
            None => Ok(typed),
            Some(path) => Ok(typed.and(Recipients::read(path).map_err(wrong)?)),
        }
    }
}

fn default_ssh_port() -> u16 {
    22
}

fn default_manager_user() -> String {
    "root".into()
}

fn default_work_dir() -> String {
    "/var/lib/hvbak-manager".into()
}

fn default_program() -> String {
    "/usr/bin/engine-backup".into()
}

/// Why the configuration cannot be used. All are usage errors (exit 2).
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read configuration {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    #[error("configuration {} is wrong:\n{cause}", path.display())]
    Parse { path: PathBuf, cause: toml::de::Error },
    #[error("cannot read {what} {}", path.display())]
    SecretFile {
        what: &'static str,
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    #[error("{what} {} can be read by others (mode {mode:o})", path.display())]
    SecretOpen { what: &'static str, path: PathBuf, mode: u32 },
    #[error("configuration {} is wrong", path.display())]
    Policy {
        path: PathBuf,
        #[source]
        cause: PolicyError,
    },
    #[error("{what} is the credential `{name}`, which was not passed")]
    NoCredential { what: &'static str, name: String },
    #[error("configuration {}: ssh.key_file cannot be a credential", path.display())]
    KeyCredential { path: PathBuf },
    #[error("configuration {} names no password_file", path.display())]
    NoPassword { path: PathBuf },
}

impl ConfigError {
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Read { .. } => "write one with `hvbak init`, or name one with `--config`".into(),
            Self::Parse { .. } => {
                "hvbak.example.toml (in /usr/share/doc/hvbak, or packaging/ of the sources) has every key with its default".into()
            }
            Self::SecretOpen { path, .. } => format!("chmod 600 {}", path.display()),
            Self::NoPassword { .. } => {
                "set engine.password_file, or pass the systemd credential `engine.password`".into()
            }
            Self::NoCredential { name, .. } => {
                format!("systemd passes it: `LoadCredential={name}:FILE` in the service")
            }
            Self::KeyCredential { .. } => {
                "the hosts' keys are kept beside it; a credential can be its passphrase".into()
            }
            Self::SecretFile { .. } => {
                "it must be there, and readable for the user that runs hvbak".into()
            }
            Self::Policy { .. } => return None,
        })
    }
}

impl Config {
    /// How old what is stored may be.
    pub fn targets(&self) -> Targets {
        let ReportSection { max_age, max_verified_age, max_manager_age } = self.report;
        let of = |policy: &PolicySection| Target {
            point: policy.max_age.or(max_age),
            verified: policy.max_verified_age.or(max_verified_age),
        };
        Targets {
            other: Target { point: max_age, verified: max_verified_age },
            policies: self.policies.iter().map(|(name, p)| (name.clone(), of(p))).collect(),
            manager: max_manager_age,
        }
    }

    /// Reads the file and makes its paths absolute.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |cause| ConfigError::Read { path: path.to_owned(), cause };
        let text = std::fs::read_to_string(path).map_err(read)?;
        let mut config: Self = toml::from_str(&text)
            .map_err(|cause| ConfigError::Parse { path: path.to_owned(), cause })?;
        let base = std::path::absolute(path).map_err(read)?;
        let base = base.parent().unwrap_or(Path::new("/"));
        let fix = |p: &mut PathBuf| {
            if credential(p).is_none() {
                *p = base.join(&*p);
            }
        };
        if credential(&config.ssh.key_file).is_some() {
            return Err(ConfigError::KeyCredential { path: path.to_owned() });
        }
        fix(&mut config.repository.path);
        fix(&mut config.ssh.key_file);
        let optional = [
            &mut config.engine.ca_file,
            &mut config.engine.password_file,
            &mut config.ssh.passphrase_file,
            &mut config.worker.path,
            &mut config.drill.scratch,
            &mut config.notify.web_hook_file,
        ];
        let lists = config.manager.as_mut().and_then(|m| m.recipients_file.as_mut());
        optional.into_iter().flatten().chain(lists).for_each(fix);
        config.guests.values_mut().filter_map(|guest| guest.key_file.as_mut()).for_each(fix);
        policy::check(&config.policies)
            .map_err(|cause| ConfigError::Policy { path: path.to_owned(), cause })?;
        Ok(config)
    }

    /// The engine's password.
    pub fn engine_password(&self, config_path: &Path) -> Result<Secret, ConfigError> {
        let path = match &self.engine.password_file {
            Some(path) => path.clone(),
            None => std::env::var_os("CREDENTIALS_DIRECTORY")
                .map(|dir| PathBuf::from(dir).join("engine.password"))
                .filter(|p| p.exists())
                .ok_or_else(|| ConfigError::NoPassword { path: config_path.to_owned() })?,
        };
        read_secret("password file", &path)
    }
}

/// Reads a secret: the first line of a file that others cannot read.
pub fn read_secret(what: &'static str, path: &Path) -> Result<Secret, ConfigError> {
    let text = read_secret_text(what, path)?;
    Ok(Secret::new(text.expose().lines().next().unwrap_or("")))
}

/// The name in `credential:NAME`.
fn credential(path: &Path) -> Option<&str> {
    path.to_str()?.strip_prefix("credential:")
}

/// Where a secret is: `credential:NAME` lies in the directory that systemd passed.
fn locate(what: &'static str, path: &Path, passed: Option<&Path>) -> Result<PathBuf, ConfigError> {
    let Some(name) = credential(path) else { return Ok(path.to_owned()) };
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains('/');
    passed
        .filter(|_| plain)
        .map(|dir| dir.join(name))
        .filter(|path| path.is_file())
        .ok_or_else(|| ConfigError::NoCredential { what, name: name.to_owned() })
}

/// Private keys for archives: a file that others cannot read, or `-` for the standard input.
pub fn read_identities(path: &Path) -> Result<Identities, CliError> {
    let (text, from) = if path == Path::new("-") {
        let mut text = String::new();
        let fail = |cause| CliError::Io { text: "cannot read the identity".into(), cause };
        std::io::stdin().take(IDENTITY_MAX).read_to_string(&mut text).map_err(fail)?;
        (Secret::new(text), "of the standard input".to_owned())
    } else {
        (read_secret_text("identity file", path)?, path.display().to_string())
    };
    let cause = match Identities::parse(&text, &from) {
        Ok(identities) => return Ok(identities),
        Err(cause) => cause,
    };
    Err(RunError::Repository { doing: "read the identity".into(), cause }.into())
}

/// All of a file that nobody else may read.
pub fn read_secret_text(what: &'static str, path: &Path) -> Result<Secret, ConfigError> {
    let passed = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let path = &locate(what, path, passed.as_deref())?;
    let fail = |cause| ConfigError::SecretFile { what, path: path.to_owned(), cause };
    let mode = std::fs::metadata(path).map_err(fail)?.mode();
    if mode & 0o007 != 0 {
        return Err(ConfigError::SecretOpen { what, path: path.to_owned(), mode: mode & 0o7777 });
    }
    Ok(Secret::new(std::fs::read_to_string(path).map_err(fail)?))
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
