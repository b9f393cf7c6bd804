//! What can go wrong with the engine, one variant per way it fails.
//!
//! Invariant: no variant holds a password, a token or a whole body; texts of the server
//! are cut and freed of control characters before they get here.

use std::time::Duration;

/// A failed conversation with the engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The configuration cannot be used.
    #[error("the engine configuration is not usable: {reason}")]
    Config {
        /// Why, in words for the administrator.
        reason: String,
    },
    /// No connection, or the web server in front of the engine says it is down.
    #[error("the engine at {url} is unreachable while {what}: {detail}")]
    Unreachable {
        /// What was being done.
        what: String,
        /// Scheme, host and port.
        url: String,
        /// Reason in short.
        detail: String,
        /// The error below.
        #[source]
        source: Option<reqwest::Error>,
    },
    /// The certificate was not accepted.
    #[error("the certificate of {url} is not trusted: {detail}")]
    Tls {
        /// Scheme, host and port.
        url: String,
        /// What TLS said.
        detail: String,
        /// The certificate has no subjectAltName at all.
        no_san: bool,
    },
    /// User name, password or the right to log in.
    #[error("the engine refused the login of {user}: {detail}")]
    LoginRefused {
        /// User as configured.
        user: String,
        /// Code of the SSO service (`access_denied`, `invalid_grant`), or the HTTP status.
        code: String,
        /// Its text.
        detail: String,
    },
    /// A permit is missing.
    #[error("the engine forbids {what}: {detail}")]
    Forbidden {
        /// What was being done.
        what: String,
        /// The engine's text.
        detail: String,
        /// Correlation id of the request.
        correlation: String,
    },
    /// The entity does not exist (any more).
    #[error("the engine does not know it: {what}")]
    NotFound {
        /// What was being done.
        what: String,
        /// Correlation id of the request.
        correlation: String,
    },
    /// HTTP 409: a lock (transient) or a state that somebody must change.
    #[error("the engine refused {what}: {detail}")]
    Conflict {
        /// What was being done.
        what: String,
        /// The engine's text.
        detail: String,
        /// Waiting may help.
        transient: bool,
        /// Correlation id of the request.
        correlation: String,
    },
    /// Any other fault of the engine.
    #[error("{what} failed with status {status}: {reason}: {detail}")]
    Fault {
        /// What was being done.
        what: String,
        /// HTTP status.
        status: u16,
        /// The fault's `reason`.
        reason: String,
        /// The fault's `detail`.
        detail: String,
        /// Correlation id of the request.
        correlation: String,
    },
    /// An answer that is not the API's.
    #[error("unexpected answer to {what} from {url}: {detail}")]
    Unexpected {
        /// What was being done.
        what: String,
        /// Path of the request.
        url: String,
        /// What came instead.
        detail: String,
    },
    /// A changing request was sent and its answer never came; it may have been executed.
    #[error("the outcome of {what} is unknown: {detail}")]
    OutcomeUnknown {
        /// What was being done.
        what: String,
        /// What broke.
        detail: String,
        /// Correlation id of the request.
        correlation: String,
    },
    /// The awaited state did not come in time.
    #[error("{what} did not finish within {} s, last seen: {last}", limit.as_secs())]
    Timeout {
        /// What was awaited.
        what: String,
        /// The budget.
        limit: Duration,
        /// Last state seen.
        last: String,
    },
    /// The engine carried the work out and it failed.
    #[error("{what} ended as {state}")]
    Failed {
        /// What was awaited.
        what: String,
        /// The final state.
        state: String,
    },
    /// The caller asked to stop.
    #[error("cancelled while {what}")]
    Cancelled {
        /// What was awaited.
        what: String,
    },
}

impl EngineError {
    /// Whether the same call may succeed later without anybody's help.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } => true,
            Self::Conflict { transient, .. } => *transient,
            Self::Fault { status, .. } => *status >= 502,
            _ => false,
        }
    }

    /// Whether the entity is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// The id under which the engine logged the request, for `engine.log` and the events.
    pub fn correlation(&self) -> Option<&str> {
        match self {
            Self::Forbidden { correlation, .. }
            | Self::NotFound { correlation, .. }
            | Self::Conflict { correlation, .. }
            | Self::Fault { correlation, .. }
            | Self::OutcomeUnknown { correlation, .. } => Some(correlation),
            _ => None,
        }
    }

    /// What the administrator can do about it.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Config { .. } => return None,
            Self::Unreachable { .. } => {
                "check `engine.url`, the network, and that ovirt-engine and httpd run on the manager"
            }
            Self::Tls { no_san: true, .. } => {
                "the certificate has no subjectAltName (made before 2017): renew it with \
                 `engine-setup --offline` on the manager"
            }
            Self::Tls { .. } => {
                "use the CA that signed the web server's certificate as `engine.ca_file`, and the name in the \
                 certificate as host in `engine.url` (`connect_to` sets another address)"
            }
            Self::LoginRefused { detail, .. } if detail.contains("profile") => {
                "the user name needs its profile: `admin@internal`, with Keycloak `admin@ovirt@internalsso`"
            }
            Self::LoginRefused { .. } => {
                "check user name (with profile, as typed at login) and password; locked or expired accounts and \
                 accounts without the permit `login` are refused too"
            }
            Self::Forbidden { .. } => {
                "give the backup account an admin-type role with the missing permit, at System level"
            }
            Self::Conflict { transient: true, .. } => "another operation holds it; try again later",
            Self::Conflict { detail, .. } if detail.contains("Low disk space") => {
                "free space on the storage domain or lower its critical space action blocker"
            }
            Self::Conflict { .. } => "the named state must change before this can work",
            Self::Fault { reason, .. } if reason.contains("syntactically") => {
                "the engine does not know an element of the request; please report this with the engine's version"
            }
            Self::Failed { .. } => "the engine's events of the VM or disk name the cause",
            Self::Fault { .. } | Self::OutcomeUnknown { .. } => {
                return self.correlation().map(|id| {
                    format!("engine.log and the events name the cause under correlation id {id}")
                });
            }
            Self::NotFound { .. } => {
                "it was removed meanwhile, or the account may not see it (`hvbak role check`)"
            }
            Self::Unexpected { .. } => {
                "is `engine.url` the engine's API (https://engine.example.com/ovirt-engine/api)?"
            }
            Self::Timeout { .. } => {
                "look at the tasks of the engine; the work may still be running"
            }
            Self::Cancelled { .. } => return None,
        };
        Some(text.to_owned())
    }
}

/// Text of the other side for a message: control characters out, at most 600 characters.
pub(crate) fn clean(text: &str) -> String {
    let mut out = String::new();
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        out.extend(word.chars().filter(|c| !c.is_control()));
        if out.chars().count() > 600 {
            out = out.chars().take(600).collect();
            out.push('…');
            break;
        }
    }
    out
}
