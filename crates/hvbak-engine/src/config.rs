//! How to reach the engine, and how patient to be.

use std::{net::SocketAddr, time::Duration};

use hvbak_types::Secret;

/// Whom to trust as the engine.
#[derive(Debug, Clone)]
pub enum CaSource {
    /// One or more PEM certificates; nothing else is trusted.
    Pem(Vec<u8>),
    /// The trust store of the system, for web certificates of a public or company CA.
    System,
    /// Exactly this server certificate (DER), whatever its names and its issuer: the way
    /// out for certificates without subjectAltName.
    PinnedCert(Vec<u8>),
}

/// How to log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AuthMode {
    /// A token; HTTP Basic when the engine has no token service (404).
    #[default]
    Auto,
    /// A token alone.
    Token,
    /// HTTP Basic with a session cookie (deprecated by the engine, not with Keycloak).
    Basic,
}

/// Limits of single requests and of repeated ones.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// TCP and TLS.
    pub connect: Duration,
    /// A reading request, until the whole body is here.
    pub get: Duration,
    /// A changing request; the engine blocks for minutes in some.
    pub change: Duration,
    /// How long to repeat while the engine is unreachable or restarting.
    pub unavailable: Duration,
    /// The same before the engine has ever answered: a wrong name or port is likelier then
    /// than a restart, and somebody may sit before the terminal.
    pub first_contact: Duration,
    /// How long to repeat while the engine names a lock.
    pub conflict: Duration,
    /// How long to repeat after a 409 whose text is unknown.
    pub unknown_conflict: Duration,
    /// First pause between repetitions.
    pub retry_first: Duration,
    /// Longest pause between repetitions.
    pub retry_max: Duration,
    /// Pause between looks at a state during the first `poll_fast_for`.
    pub poll_first: Duration,
    /// How long to look at the first pace.
    pub poll_fast_for: Duration,
    /// Pause after that; it grows to `poll_max`.
    pub poll_then: Duration,
    /// Longest pause.
    pub poll_max: Duration,
    /// How long to wait for an OVF that is being written.
    pub ovf: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self {
            connect: s(15),
            get: s(60),
            change: s(600),
            unavailable: s(120),
            first_contact: s(20),
            conflict: s(300),
            unknown_conflict: s(120),
            retry_first: s(1),
            retry_max: s(15),
            poll_first: s(1),
            poll_fast_for: s(10),
            poll_then: s(5),
            poll_max: s(15),
            ovf: s(120),
        }
    }
}

impl Timeouts {
    /// Milliseconds instead of seconds everywhere, for tests and simulators.
    pub fn quick() -> Self {
        let ms = Duration::from_millis;
        Self {
            connect: ms(2_000),
            get: ms(10_000),
            change: ms(10_000),
            unavailable: ms(3_000),
            first_contact: ms(3_000),
            conflict: ms(4_000),
            unknown_conflict: ms(1_000),
            retry_first: ms(10),
            retry_max: ms(50),
            poll_first: ms(10),
            poll_fast_for: ms(500),
            poll_then: ms(50),
            poll_max: ms(100),
            ovf: ms(2_000),
        }
    }
}

/// Everything needed to talk to one engine.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// `https://engine.example.com/ovirt-engine/api`; the path may be left out.
    pub url: String,
    /// Whom to trust.
    pub ca: CaSource,
    /// As typed at login: `admin@internal`, `admin@ovirt@internalsso`.
    pub username: String,
    /// The password.
    pub password: Secret,
    /// Connect here instead of resolving the URL's host; the certificate is still
    /// checked against the URL's host. A port in the URL wins over this one; a URL with an
    /// address instead of a name is connected to as it is.
    pub connect_to: Option<SocketAddr>,
    /// How to log in.
    pub auth: AuthMode,
    /// Patience.
    pub timeouts: Timeouts,
    /// Largest body accepted, in bytes; 4,000 VMs are about 10 MB.
    pub max_body: u64,
}

impl EngineConfig {
    /// A configuration with the default timeouts.
    pub fn new(
        url: impl Into<String>,
        ca: CaSource,
        username: impl Into<String>,
        password: Secret,
    ) -> Self {
        Self {
            url: url.into(),
            ca,
            username: username.into(),
            password,
            connect_to: None,
            auth: AuthMode::Auto,
            timeouts: Timeouts::default(),
            max_body: 256 << 20,
        }
    }
}
