//! One request to the engine: headers, session, repetition, and what the answer means.
//!
//! Rules that a reader would break: a POST that may have been executed is never repeated
//! here (`OutcomeUnknown` goes up, the operation looks first); a 409 was not executed and
//! may be repeated whatever the method; a 401 gets one new login and one repetition.
//! Every attempt has a correlation id of its own, because a failed job of an earlier
//! attempt would be found again under the same id.

use std::{
    fmt::Write as _,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use backon::{BackoffBuilder, ExponentialBuilder};
use hvbak_types::EngineVersion;
use reqwest::{Method, Url, header};

use crate::{
    auth::Session,
    config::{EngineConfig, Timeouts},
    error::EngineError,
    fault::{self, ConflictKind, Context},
    tls,
    transport::{Broken, Cause, head_root, http_client, innermost, receive, urls},
    xml::Element,
};

/// A logged-in client of one engine. Clones share the connection pool and the session.
#[derive(Clone)]
pub struct Engine(pub(crate) Arc<Inner>);

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("url", &self.0.api.as_str()).finish_non_exhaustive()
    }
}

pub(crate) struct Inner {
    pub config: EngineConfig,
    pub http: reqwest::Client,
    /// `https://host/ovirt-engine/api`, no slash at the end.
    pub api: Url,
    /// `https://host/ovirt-engine`.
    pub root: Url,
    /// `https://host:port`, for messages.
    pub origin: String,
    pub session: tokio::sync::Mutex<Session>,
    pub version: OnceLock<EngineVersion>,
}

/// What a request is for.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub method: Method,
    /// Below the API root, with a leading slash, or empty.
    pub path: String,
    pub query: Vec<(&'static str, String)>,
    pub body: Option<String>,
    /// For messages: "creating a snapshot of VM …".
    pub what: String,
    pub all_content: bool,
    /// Repeating it after an unknown outcome does no harm.
    pub idempotent: bool,
    /// Repeat while the engine names a lock.
    pub wait_for_locks: bool,
    pub timeout: Option<Duration>,
    /// Upper bound for all repetitions together.
    pub patience: Option<Duration>,
}

impl Request {
    pub fn get(path: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            query: Vec::new(),
            body: None,
            what: what.into(),
            all_content: false,
            idempotent: true,
            wait_for_locks: false,
            timeout: None,
            patience: None,
        }
    }

    pub fn post(path: impl Into<String>, body: String, what: impl Into<String>) -> Self {
        Self {
            method: Method::POST,
            body: Some(body),
            idempotent: false,
            wait_for_locks: true,
            ..Self::get(path, what)
        }
    }

    pub fn put(path: impl Into<String>, body: String, what: impl Into<String>) -> Self {
        Self { method: Method::PUT, idempotent: true, ..Self::post(path, body, what) }
    }

    pub fn delete(path: impl Into<String>, what: impl Into<String>) -> Self {
        Self { method: Method::DELETE, wait_for_locks: true, ..Self::get(path, what) }
    }

    pub fn query(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.query.push((key, value.into()));
        self
    }

    pub fn all_content(mut self) -> Self {
        self.all_content = true;
        self.query("all_content", "true")
    }

    pub fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    /// Is sent once and no more, whatever the answer.
    pub fn once(mut self) -> Self {
        self.idempotent = false;
        self.wait_for_locks = false;
        self
    }

    pub fn no_waiting(mut self) -> Self {
        self.wait_for_locks = false;
        self
    }

    pub fn patience(mut self, patience: Option<Duration>) -> Self {
        self.patience = patience;
        self
    }

    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

/// A successful answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub body: Vec<u8>,
    /// Id of the attempt that succeeded.
    pub correlation: String,
    pub what: String,
    pub path: String,
}

impl Answer {
    /// The document, whose root must not be a fault; `None` for an empty body.
    pub fn document(&self) -> Result<Option<Element>, EngineError> {
        if self.body.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        Element::parse(&self.body).map(Some).map_err(|e| self.unexpected(e.to_string()))
    }

    /// The document, which must be there.
    pub fn element(&self) -> Result<Element, EngineError> {
        self.document()?.ok_or_else(|| self.unexpected("an empty body"))
    }

    pub fn list<T: crate::parse::Entity>(&self) -> Result<Vec<T>, EngineError> {
        if self.body.iter().all(u8::is_ascii_whitespace) {
            return Err(self.unexpected("an empty body"));
        }
        let list = crate::parse::list(&self.body).map_err(|e| self.unexpected(e.to_string()))?;
        Ok(list.items)
    }

    pub fn one<T: crate::parse::Entity>(&self) -> Result<T, EngineError> {
        crate::parse::one_in(&self.element()?).map_err(|e| self.unexpected(e.to_string()))
    }

    pub fn unexpected(&self, detail: impl Into<String>) -> EngineError {
        EngineError::Unexpected {
            what: self.what.clone(),
            url: self.path.clone(),
            detail: detail.into(),
        }
    }
}

/// An id for one attempt: 18 characters, which the engine keeps as they are.
pub(crate) fn fresh_correlation() -> String {
    let mut id = String::from("hvbak-");
    for byte in rand::random::<[u8; 6]>() {
        let _ = write!(id, "{byte:02x}");
    }
    id
}

/// Growing pauses with jitter.
pub(crate) fn pauses(t: &Timeouts) -> impl Iterator<Item = Duration> + Send + use<> {
    ExponentialBuilder::default()
        .with_min_delay(t.retry_first)
        .with_max_delay(t.retry_max)
        .with_jitter()
        .without_max_times()
        .build()
}

impl Engine {
    /// Connects, logs in and reads the engine's version.
    ///
    /// # Errors
    /// `Config`, `Unreachable`, `Tls`, `LoginRefused`, or whatever the API root answers.
    pub async fn connect(config: EngineConfig) -> Result<Self, EngineError> {
        let (api, root) = urls(&config.url)?;
        let host = api.host_str().unwrap_or_default().to_owned();
        let tls = tls::client_config(&config.ca)?;
        let http = http_client(&config, tls, &host)?;
        let origin = api.origin().ascii_serialization();
        let engine = Self(Arc::new(Inner {
            config,
            http,
            api,
            root,
            origin,
            session: tokio::sync::Mutex::default(),
            version: OnceLock::new(),
        }));
        let version = match engine.send(Request::get("", "reading the API root")).await {
            Ok(answer) => crate::parse::version(&answer.element()?)
                .map_err(|e| answer.unexpected(e.to_string()))?,
            // Recorded engines have no root. A wrong URL answers with a page instead.
            Err(error) if error.is_not_found() => {
                tracing::warn!("the engine does not tell its version; treated as the oldest");
                EngineVersion::default()
            }
            Err(error) => return Err(error),
        };
        tracing::debug!(version = %version.full, product = %version.product, "engine connected");
        let _ = engine.0.version.set(version);
        Ok(engine)
    }

    /// The engine's version, as read at login.
    pub fn version(&self) -> EngineVersion {
        self.0.version.get().cloned().unwrap_or_default()
    }

    /// Scheme, host and port.
    pub fn origin(&self) -> &str {
        &self.0.origin
    }

    pub(crate) fn timeouts(&self) -> &Timeouts {
        &self.0.config.timeouts
    }

    /// How long to repeat while the engine does not answer.
    pub(crate) fn unreachable_for(&self) -> Duration {
        let t = self.timeouts();
        if self.0.version.get().is_some() {
            t.unavailable
        } else {
            t.unavailable.min(t.first_contact)
        }
    }

    /// Sends until the answer is final.
    pub(crate) async fn send(&self, request: Request) -> Result<Answer, EngineError> {
        let start = Instant::now();
        let t = self.timeouts();
        let mut pauses = pauses(t);
        let mut logged_in_again = false;
        loop {
            let correlation = fresh_correlation();
            let used = self.credentials().await?;
            let error = match self.attempt(&request, &used.header, &correlation).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let budget = match &error {
                // The token died (idle limit, engine restart): one new login, one repetition.
                EngineError::LoginRefused { .. } if !logged_in_again => {
                    logged_in_again = true;
                    tracing::debug!(what = request.what, "session lost, logging in again");
                    self.forget(used.generation).await;
                    continue;
                }
                EngineError::Unreachable { .. } => self.unreachable_for(),
                EngineError::Conflict { detail, transient: true, .. } if request.wait_for_locks => {
                    match fault::classify_conflict(detail) {
                        ConflictKind::Transient => t.conflict,
                        _ => t.unknown_conflict,
                    }
                }
                _ => return Err(error),
            };
            let pause = pauses.next().unwrap_or(t.retry_max);
            if start.elapsed() + pause > request.patience.map_or(budget, |p| p.min(budget)) {
                return Err(error);
            }
            tracing::info!(what = request.what, correlation, %error, "trying again in {} ms", pause.as_millis());
            tokio::time::sleep(pause).await;
        }
    }

    /// Sends once.
    async fn attempt(
        &self,
        request: &Request,
        credentials: &[(header::HeaderName, header::HeaderValue)],
        correlation: &str,
    ) -> Result<Answer, EngineError> {
        let inner = &*self.0;
        let mut url = inner.api.clone();
        url.set_path(&format!("{}{}", inner.api.path(), request.path));
        if !request.query.is_empty() {
            url.query_pairs_mut().extend_pairs(request.query.iter().map(|(k, v)| (*k, v.as_str())));
        }
        let default = if request.method == Method::GET {
            inner.config.timeouts.get
        } else {
            inner.config.timeouts.change
        };
        let mut builder = inner
            .http
            .request(request.method.clone(), url)
            .timeout(request.timeout.unwrap_or(default))
            .header(header::ACCEPT, "application/xml")
            .header(header::ACCEPT_LANGUAGE, "en-US")
            .header("Version", "4")
            .header("Correlation-Id", correlation);
        for (name, value) in credentials {
            builder = builder.header(name, value);
        }
        if request.all_content {
            builder = builder.header("All-Content", "true");
        }
        if let Some(body) = &request.body {
            builder = builder.header(header::CONTENT_TYPE, "application/xml").body(body.clone());
        }
        let started = Instant::now();
        let raw = match receive(builder, inner.config.max_body).await {
            Ok(raw) => raw,
            Err(Broken { error, sent }) => {
                return Err(self.broken(request, correlation, error, sent));
            }
        };
        tracing::debug!(
            method = %request.method, path = request.path, status = raw.status, bytes = raw.body.len(),
            ms = started.elapsed().as_millis() as u64, correlation, "engine"
        );
        self.note_cookies(&raw.cookies).await;
        let cx = Context {
            what: &request.what,
            origin: &inner.origin,
            path: &request.path,
            user: &inner.config.username,
            correlation,
        };
        if !(200..300).contains(&raw.status) {
            let error = fault::error_for(raw.status, &raw.content_type, &raw.body, cx);
            // A gateway that gave up does not tell whether the engine did it.
            return Err(match error {
                EngineError::Unreachable { detail, .. } if !request.idempotent => {
                    EngineError::OutcomeUnknown {
                        what: request.what.clone(),
                        detail,
                        correlation: correlation.to_owned(),
                    }
                }
                error => error,
            });
        }
        let answer = Answer {
            body: raw.body,
            correlation: correlation.to_owned(),
            what: request.what.clone(),
            path: request.path.clone(),
        };
        if fault::is_html(&raw.content_type, &answer.body) {
            return Err(answer.unexpected("a web page"));
        }
        // An action may carry its fault under a 200.
        if let Some(root) = answer.body.starts_with(b"<").then(|| head_root(&answer.body)).flatten()
            && (root == "fault" || root == "action")
            && let Some(f) = answer.document()?.as_ref().and_then(fault::fault_in)
        {
            return Err(EngineError::Fault {
                what: request.what.clone(),
                status: raw.status,
                reason: f.reason,
                detail: f.detail,
                correlation: correlation.to_owned(),
            });
        }
        Ok(answer)
    }

    fn broken(
        &self,
        request: &Request,
        correlation: &str,
        cause: Cause,
        sent: bool,
    ) -> EngineError {
        let url = self.0.origin.clone();
        let error = match cause {
            Cause::TooLarge => {
                return EngineError::Unexpected {
                    what: request.what.clone(),
                    url: request.path.clone(),
                    detail: format!("a body of more than {} bytes", self.0.config.max_body),
                };
            }
            Cause::Http(error) => error,
        };
        if let Some((detail, no_san)) = tls::tls_cause(&error) {
            return EngineError::Tls { url, detail, no_san };
        }
        let detail = innermost(&error);
        if sent && !request.idempotent {
            return EngineError::OutcomeUnknown {
                what: request.what.clone(),
                detail,
                correlation: correlation.to_owned(),
            };
        }
        EngineError::Unreachable {
            what: request.what.clone(),
            url,
            detail,
            source: Some(error.without_url()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn correlation_ids_survive_the_engine() {
        let id = fresh_correlation();
        assert_eq!(id.len(), 18);
        assert!(id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'));
        assert_ne!(id, fresh_correlation());
    }
}
