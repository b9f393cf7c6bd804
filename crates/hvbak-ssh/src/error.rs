//! What can fail between us and a host, one variant per operation.
//!
//! Display names the host and never the cause (the printer walks `source`), and never a
//! secret. Text that came from a host is neutralised before it gets in here.

use std::{io, path::PathBuf};

use crate::output::ExitStatus;

/// Result of this room.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Failures of connecting, logging in, running commands, pushing and enrolling.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name of the host has no address.
    #[error("cannot resolve host `{host}`")]
    Resolve {
        host: String,
        #[source]
        cause: io::Error,
    },
    /// No TCP connection.
    #[error("cannot connect to {host} port {port}")]
    Connect {
        host: String,
        port: u16,
        #[source]
        cause: io::Error,
    },
    /// Connecting, key exchange or login took longer than allowed.
    #[error("{host} did not finish {phase} within {seconds} s")]
    ConnectTimeout { host: String, phase: &'static str, seconds: u64 },
    /// The SSH handshake broke.
    #[error("SSH handshake with {host} failed")]
    Handshake {
        host: String,
        #[source]
        cause: Box<russh::Error>,
    },
    /// Nothing in common; `kind` is kex, host key, cipher or MAC.
    #[error(
        "{host} and hvbak share no {kind} algorithm (host: {}; hvbak: {})",
        theirs.join(","), ours.join(",")
    )]
    NoCommonAlgorithm { host: String, kind: &'static str, ours: Vec<String>, theirs: Vec<String> },
    /// The host shows another key than the recorded one. Nothing was sent to it.
    #[error(
        "host key of {host} does not match: expected {}, offered {}",
        expected.join(" or "), offered.join(", ")
    )]
    HostKeyMismatch { host: String, expected: Vec<String>, offered: Vec<String> },
    /// No record and no consent.
    #[error("host key of {host} is not known: offered {}", offered.join(", "))]
    HostKeyUnknown { host: String, offered: Vec<String> },
    /// A text that is neither an OpenSSH public key line nor a fingerprint.
    #[error("`{text}` is neither an OpenSSH public key nor a SHA256 or MD5 fingerprint")]
    BadPin { text: String },
    /// The pin file cannot be read or written.
    #[error("cannot use host key file {}", path.display())]
    PinFile {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    /// The private key file cannot be read.
    #[error("cannot read SSH key {}", path.display())]
    KeyFile {
        path: PathBuf,
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Others may read the private key.
    #[error("SSH key {} may be read by others (mode {mode:03o})", path.display())]
    KeyMode { path: PathBuf, mode: u32 },
    /// The key needs a passphrase and none was given.
    #[error("SSH key {} is protected by a passphrase and none was given", path.display())]
    KeyLocked { path: PathBuf },
    /// The passphrase does not open the key.
    #[error("wrong passphrase for SSH key {}", path.display())]
    KeyPassphrase { path: PathBuf },
    /// A new key could not be made or stored.
    #[error("cannot create SSH key {}", path.display())]
    KeyCreate {
        path: PathBuf,
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The SSH agent does not answer.
    #[error("cannot use the SSH agent")]
    Agent {
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The host refused every identity; `tried` names them, `allowed` what the host takes.
    #[error(
        "{host} refused the login of `{user}` (tried: {}; host allows: {})",
        list_or_none(tried),
        list_or_none(allowed)
    )]
    AuthRefused { host: String, user: String, tried: Vec<String>, allowed: Vec<String> },
    /// The jump host before `host` failed.
    #[error("cannot reach {host} through jump host {jump}")]
    Jump {
        host: String,
        jump: String,
        #[source]
        cause: Box<Error>,
    },
    /// The jump host does not forward.
    #[error("jump host {jump} does not forward to {host}")]
    Forward {
        host: String,
        jump: String,
        #[source]
        cause: Box<russh::Error>,
    },
    /// No session channel, or the host refused to run commands.
    #[error("{host} does not start commands")]
    OpenChannel {
        host: String,
        #[source]
        cause: Box<russh::Error>,
    },
    /// The host answered `failure` to the exec request.
    #[error("{host} refused to start the command")]
    ExecRefused { host: String },
    /// This connection carries a byte stream; another command on it could freeze both.
    #[error("the connection to {host} carries a stream; use another connection")]
    Busy { host: String },
    /// A write to a command that has ended.
    #[error(
        "the command on {host} ended ({}) while data was being sent{}",
        show(status),
        tail(stderr)
    )]
    CommandGone { host: String, status: Option<ExitStatus>, stderr: String },
    /// The connection broke.
    #[error("connection to {host} lost: {cause}")]
    ConnectionLost { host: String, cause: String },
    /// A command took longer than allowed; it was hung up on.
    #[error("command on {host} did not end within {seconds} s")]
    CommandTimeout { host: String, seconds: u64 },
    /// A command of ours ended badly.
    #[error("cannot {action} on {host}: {status}{}", tail(stderr))]
    Command { host: String, action: &'static str, status: ExitStatus, stderr: String },
    /// A command answered something else than it should.
    #[error("cannot {action} on {host}: unexpected answer `{answer}`")]
    Answer { host: String, action: &'static str, answer: String },
    /// The local worker binary cannot be read.
    #[error("cannot read worker binary {}", path.display())]
    LocalWorker {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    /// Bytes arrived damaged; the upload was removed and never run.
    #[error("worker arrived damaged on {host}: SHA-256 {found}, expected {expected}")]
    UploadDamaged { host: String, expected: String, found: String },
    /// The pushed or installed worker does not run.
    #[error("{host} does not run the worker: {status}{}", tail(stderr))]
    WorkerRefused { host: String, status: ExitStatus, stderr: String },
    /// The worker runs but speaks another protocol, or is missing.
    #[error("no usable worker on {host}: {found}, needed protocol {needed}")]
    NoWorker { host: String, found: String, needed: String },
    /// A value that must not get into a command or a file on a host.
    #[error("`{text}` is not a valid {what}")]
    BadValue { what: &'static str, text: String },
    /// Login with the newly installed key failed; the old key still works.
    #[error("the new key does not open {host}; the old one was kept")]
    RotateProof {
        host: String,
        #[source]
        cause: Box<Error>,
    },
}

impl Error {
    /// Whether the same attempt may succeed later without anybody changing anything.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Resolve { .. }
            | Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::ConnectionLost { .. }
            | Self::CommandTimeout { .. }
            | Self::UploadDamaged { .. }
            | Self::OpenChannel { .. } => true,
            Self::Handshake { cause, .. } => {
                matches!(
                    **cause,
                    russh::Error::IO(_) | russh::Error::Disconnect | russh::Error::HUP
                )
            }
            Self::Jump { cause, .. } => cause.retryable(),
            _ => false,
        }
    }

    /// Whether nobody answered. Who answers and refuses us is there; that we cannot ask,
    /// because of a key of ours or the jump host, tells nothing.
    pub fn is_silence(&self) -> bool {
        match self {
            Self::Resolve { .. } | Self::Connect { .. } | Self::ConnectTimeout { .. } => true,
            // The jump host has tried, and nobody answered it.
            Self::Forward { cause, .. } => matches!(
                **cause,
                russh::Error::ChannelOpenFailure(russh::ChannelOpenFailure::ConnectFailed)
            ),
            _ => false,
        }
    }

    /// Whether the host's identity is the problem (exit code 13 at the face).
    pub fn is_host_key(&self) -> bool {
        match self {
            Self::HostKeyMismatch { .. } | Self::HostKeyUnknown { .. } => true,
            Self::Jump { cause, .. } | Self::RotateProof { cause, .. } => cause.is_host_key(),
            _ => false,
        }
    }

    /// Whether the login was refused (exit code 12 at the face).
    pub fn is_login(&self) -> bool {
        match self {
            Self::AuthRefused { .. }
            | Self::KeyLocked { .. }
            | Self::KeyPassphrase { .. }
            | Self::KeyMode { .. } => true,
            Self::Jump { cause, .. } | Self::RotateProof { cause, .. } => cause.is_login(),
            _ => false,
        }
    }

    /// What the administrator can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Resolve { .. } => {
                "the engine's address of the host counts; `address` in [hosts.NAME] sets another".into()
            }
            Self::Connect { host, port, .. } => {
                format!("check that sshd on {host} listens on port {port} and no firewall is between")
            }
            Self::ConnectTimeout { .. } => {
                "the host is overloaded, unreachable or limits new connections (MaxStartups)".into()
            }
            Self::NoCommonAlgorithm { .. } => {
                "allow one of hvbak's in the host's sshd_config (on Enterprise Linux 8 and newer with \
                 `update-crypto-policies`), or update its OpenSSH"
                    .into()
            }
            Self::HostKeyMismatch { .. } => "if the host was reinstalled, look at its new key on its \
                 console (`ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub`) and refresh it where it is \
                 recorded: in the engine (host > Edit > fetch SSH public key, or reinstall), as \
                 `host_key` in the configuration, or with `hvbak enroll --fingerprint`; otherwise \
                 somebody may be between"
                .into(),
            Self::HostKeyUnknown { .. } => "compare with `ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub` \
                 on the host's console, then give it (`hvbak enroll --fingerprint`) or write the key into the \
                 configuration"
                .into(),
            Self::KeyMode { path, .. } => format!("run `chmod 600 {}`", path.display()),
            Self::KeyLocked { .. } | Self::KeyPassphrase { .. } => {
                "give a file with it (`passphrase_file` of [ssh]), or load the key into an SSH agent and \
                 set `agent = true`"
                    .into()
            }
            Self::ConnectionLost { .. } | Self::CommandTimeout { .. } => {
                "look whether the host rebooted, was fenced, or hangs on its storage".into()
            }
            Self::AuthRefused { .. } => "run `hvbak enroll` for this host; FIPS and STIG hosts refuse \
                 ed25519 keys, use ECDSA P-256"
                .into(),
            Self::Forward { .. } => {
                "the jump host needs `AllowTcpForwarding yes` (or `local`) for this user".into()
            }
            Self::WorkerRefused { .. } => "fapolicyd or a noexec mount blocks pushed programs: install \
                 the hvbak-worker package there and set `mode = \"installed\"` in [worker]"
                .into(),
            Self::NoWorker { .. } => {
                "install the hvbak-worker package of this hvbak version there, or set `mode = \"push\"` in [worker]"
                    .into()
            }
            Self::Jump { cause, .. } | Self::RotateProof { cause, .. } => return cause.hint(),
            _ => return None,
        })
    }
}

fn list_or_none(list: &[String]) -> String {
    if list.is_empty() { "nothing".into() } else { list.join(", ") }
}

fn show(status: &Option<ExitStatus>) -> String {
    status.as_ref().map_or_else(|| "channel closed".into(), ToString::to_string)
}

fn tail(stderr: &str) -> String {
    let text = stderr.trim();
    if text.is_empty() { String::new() } else { format!(": {text}") }
}
