//! Where to connect, as whom, trusting which key, with which patience.

use std::{path::PathBuf, time::Duration};

use hvbak_types::Secret;

use crate::hostkey::HostTrust;

/// A host and everything needed to log in.
#[derive(Debug, Clone)]
pub struct Target {
    /// The name for messages (the engine's name of the host).
    pub name: String,
    /// DNS name or address to connect to.
    pub host: String,
    /// TCP port of sshd.
    pub port: u16,
    /// Login name.
    pub user: String,
    /// How its host key is judged.
    pub trust: HostTrust,
    /// Tried in this order until one opens the host.
    pub identity: Vec<Identity>,
    /// A host to go through; it is judged and logged in to by its own fields.
    pub jump: Option<Box<Target>>,
    /// Limits and preferences.
    pub options: SshOptions,
}

impl Target {
    /// A target on port 22 that trusts nothing and knows no identity yet.
    pub fn new(name: impl Into<String>, host: impl Into<String>, user: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            host: host.into(),
            port: 22,
            user: user.into(),
            trust: HostTrust::Unknown,
            identity: Vec::new(),
            jump: None,
            options: SshOptions::default(),
        }
    }
}

/// A way to prove who we are.
#[derive(Debug, Clone)]
pub enum Identity {
    /// A private key file (OpenSSH, PEM, PKCS#8), not readable by others.
    KeyFile {
        /// The file.
        path: PathBuf,
        /// Its passphrase, if it has one.
        passphrase: Option<Secret>,
    },
    /// Keys of an SSH agent; `None` means `$SSH_AUTH_SOCK`.
    Agent {
        /// The agent's socket.
        socket: Option<PathBuf>,
    },
    /// A password, for enrolment only; also answers keyboard-interactive prompts.
    Password(Secret),
}

impl Identity {
    /// An unprotected key file.
    pub fn key_file(path: impl Into<PathBuf>) -> Self {
        Self::KeyFile { path: path.into(), passphrase: None }
    }
}

/// Limits and preferences of one connection.
#[derive(Debug, Clone)]
pub struct SshOptions {
    /// Each of: TCP connect, key exchange, login. Default 20 s.
    pub connect_timeout: Duration,
    /// Idle time before a keepalive is sent. Default 15 s: hardened hosts hang up on
    /// clients that are silent for longer than their ClientAlive interval.
    pub keepalive: Duration,
    /// Unanswered keepalives after which the connection is dead. Default 3.
    pub keepalive_max: usize,
    /// Time a TCP write may make no progress before the connection is dead. Default 60 s.
    pub write_stall: Duration,
    /// Time a short command may take. Default 120 s.
    pub command_timeout: Duration,
    /// Bytes of stdout kept of a short command. Default 4 MiB.
    pub max_output: usize,
    /// Receive window in bytes. Default 2 MiB, fastest on a LAN; a download is capped at
    /// window / round trip time, so 16 MiB for remote sites.
    pub window: u32,
    /// Also offer SHA-1 signatures, group14-sha1, HMAC-SHA1 and CBC. Default off.
    pub legacy: bool,
}

impl Default for SshOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(20),
            keepalive: Duration::from_secs(15),
            keepalive_max: 3,
            write_stall: Duration::from_secs(60),
            command_timeout: Duration::from_secs(120),
            max_output: 4 << 20,
            window: 2 << 20,
            legacy: false,
        }
    }
}
