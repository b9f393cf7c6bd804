//! Login, session and logout.
//!
//! A token is idle-limited (30 minutes by default) and dies with an engine restart, so a
//! session carries a generation: whoever finds it dead forgets that generation, and only
//! one of the callers that notice at the same time logs in again.

use base64::Engine as _;
use hvbak_types::Secret;
use reqwest::header::{self, HeaderName, HeaderValue};

use crate::{
    client::{Engine, Request, pauses},
    config::AuthMode,
    error::{EngineError, clean},
    fault, tls,
    transport::{Broken, Cause, innermost, receive},
};

/// What is known about the login.
#[derive(Default)]
pub(crate) struct Session {
    login: Option<Login>,
    generation: u64,
}

enum Login {
    Token(Secret),
    /// Basic, with the `JSESSIONID` that keeps the engine's session.
    Basic {
        cookie: Option<Secret>,
    },
}

/// Headers for one attempt and the session they come from.
pub(crate) struct Credentials {
    pub header: Vec<(HeaderName, HeaderValue)>,
    pub generation: u64,
}

impl Engine {
    /// Headers of the present session; logs in when there is none.
    pub(crate) async fn credentials(&self) -> Result<Credentials, EngineError> {
        let mut session = self.0.session.lock().await;
        if session.login.is_none() {
            session.login = Some(self.login().await?);
        }
        let secret = |text: String| -> Result<HeaderValue, EngineError> {
            let mut value = HeaderValue::try_from(text).map_err(|_| EngineError::Config {
                reason: "user name, password or token cannot stand in a header".into(),
            })?;
            value.set_sensitive(true);
            Ok(value)
        };
        let mut headers = Vec::new();
        match &session.login {
            Some(Login::Token(token)) => {
                headers
                    .push((header::AUTHORIZATION, secret(format!("Bearer {}", token.expose()))?));
            }
            Some(Login::Basic { cookie }) => {
                let config = &self.0.config;
                let pair = format!("{}:{}", config.username, config.password.expose());
                let pair = base64::engine::general_purpose::STANDARD.encode(pair);
                headers.push((header::AUTHORIZATION, secret(format!("Basic {pair}"))?));
                headers.push((
                    HeaderName::from_static("prefer"),
                    HeaderValue::from_static("persistent-auth"),
                ));
                if let Some(cookie) = cookie {
                    headers
                        .push((header::COOKIE, secret(format!("JSESSIONID={}", cookie.expose()))?));
                }
            }
            None => {}
        }
        Ok(Credentials { header: headers, generation: session.generation })
    }

    /// Drops the session, unless somebody else has already replaced it.
    pub(crate) async fn forget(&self, generation: u64) {
        let mut session = self.0.session.lock().await;
        if session.generation == generation {
            session.generation += 1;
            session.login = None;
        }
    }

    /// Keeps the engine's session cookie when Basic is used.
    pub(crate) async fn note_cookies(&self, cookies: &[String]) {
        let Some(value) = cookies.iter().find_map(|c| {
            let value = c.strip_prefix("JSESSIONID=")?.split(';').next()?.trim();
            (!value.is_empty()).then_some(value)
        }) else {
            return;
        };
        if let Some(Login::Basic { cookie }) = &mut self.0.session.lock().await.login {
            *cookie = Some(Secret::new(value));
        }
    }

    async fn login(&self) -> Result<Login, EngineError> {
        match self.0.config.auth {
            AuthMode::Basic => Ok(Login::Basic { cookie: None }),
            mode => match self.token().await? {
                Some(token) => Ok(Login::Token(token)),
                None if mode == AuthMode::Auto => {
                    tracing::info!("the engine has no token service, using HTTP Basic");
                    Ok(Login::Basic { cookie: None })
                }
                None => Err(EngineError::Unexpected {
                    what: "logging in".into(),
                    url: self.0.root.path().to_owned() + "/sso/oauth/token",
                    detail: "there is no token service (404)".into(),
                }),
            },
        }
    }

    /// Asks for a token, repeating while the engine is unreachable. `None` when there is
    /// no token service.
    async fn token(&self) -> Result<Option<Secret>, EngineError> {
        let start = std::time::Instant::now();
        let t = self.timeouts();
        let mut pauses = pauses(t);
        loop {
            let error = match self.token_once().await {
                Err(error @ EngineError::Unreachable { .. }) => error,
                done => return done,
            };
            let pause = pauses.next().unwrap_or(t.retry_max);
            if start.elapsed() + pause > self.unreachable_for() {
                return Err(error);
            }
            tracing::info!(%error, "login: trying again in {} ms", pause.as_millis());
            tokio::time::sleep(pause).await;
        }
    }

    async fn token_once(&self) -> Result<Option<Secret>, EngineError> {
        let inner = &*self.0;
        let config = &inner.config;
        let mut url = inner.root.clone();
        url.set_path(&format!("{}/sso/oauth/token", inner.root.path()));
        let path = url.path().to_owned();
        // The user name goes as typed: with Keycloak it has two `@`.
        let builder = inner
            .http
            .post(url)
            .timeout(config.timeouts.get)
            .header(header::ACCEPT, "application/json")
            .form(&[
                ("grant_type", "password"),
                ("scope", "ovirt-app-api"),
                ("username", &config.username),
                ("password", config.password.expose()),
            ]);
        let unexpected = |detail: String| EngineError::Unexpected {
            what: "logging in".into(),
            url: path.clone(),
            detail,
        };
        let raw = match receive(builder, 1 << 20).await {
            Ok(raw) => raw,
            Err(Broken { error: Cause::TooLarge, .. }) => {
                return Err(unexpected("a body of more than 1 MiB".into()));
            }
            Err(Broken { error: Cause::Http(error), .. }) => {
                if let Some((detail, no_san)) = tls::tls_cause(&error) {
                    return Err(EngineError::Tls { url: inner.origin.clone(), detail, no_san });
                }
                return Err(EngineError::Unreachable {
                    what: "logging in".into(),
                    url: inner.origin.clone(),
                    detail: innermost(&error),
                    source: Some(error.without_url()),
                });
            }
        };
        tracing::debug!(status = raw.status, "token request");
        match raw.status {
            404 => return Ok(None),
            502..=504 => {
                return Err(EngineError::Unreachable {
                    what: "logging in".into(),
                    url: inner.origin.clone(),
                    detail: format!("status {}", raw.status),
                    source: None,
                });
            }
            _ => {}
        }
        let json: Option<serde_json::Value> = serde_json::from_slice(&raw.body).ok();
        let token = json.as_ref().and_then(|j| j.get("access_token")?.as_str());
        if let (200..=299, Some(token)) = (raw.status, token) {
            return Ok(Some(Secret::new(token)));
        }
        if let Some((code, detail)) = fault::sso_error(&raw.body) {
            return Err(match code.as_str() {
                // The service's own trouble, not a wrong password.
                "server_error" => EngineError::Fault {
                    what: "logging in".into(),
                    status: raw.status,
                    reason: code,
                    detail,
                    correlation: String::new(),
                },
                _ => EngineError::LoginRefused { user: config.username.clone(), code, detail },
            });
        }
        match raw.status {
            401 | 403 => Err(EngineError::LoginRefused {
                user: config.username.clone(),
                code: raw.status.to_string(),
                detail: "not authorized".into(),
            }),
            status @ 500..=599 => Err(EngineError::Unreachable {
                what: "logging in".into(),
                url: inner.origin.clone(),
                detail: format!("status {status}"),
                source: None,
            }),
            status => Err(unexpected(format!(
                "status {status} without a token: {}",
                if fault::is_html(&raw.content_type, &raw.body) {
                    "a web page".to_owned()
                } else if token.is_some() {
                    "a token under an error status".to_owned()
                } else {
                    clean(&String::from_utf8_lossy(&raw.body[..raw.body.len().min(200)]))
                }
            ))),
        }
    }

    /// Ends the session. Errors do not matter: an idle session ends by itself.
    pub async fn logout(&self) {
        let login = {
            let mut session = self.0.session.lock().await;
            session.generation += 1;
            session.login.take()
        };
        let inner = &*self.0;
        let timeout = inner.config.timeouts.get.min(std::time::Duration::from_secs(10));
        let builder = match &login {
            Some(Login::Token(token)) => {
                let mut url = inner.root.clone();
                url.set_path(&format!("{}/services/sso-logout", inner.root.path()));
                inner
                    .http
                    .post(url)
                    .header(header::ACCEPT, "application/json")
                    .form(&[("scope", "ovirt-app-api"), ("token", token.expose())])
            }
            // A request with the cookie and without `Prefer` closes the session.
            Some(Login::Basic { cookie: Some(cookie) }) => inner
                .http
                .get(inner.api.clone())
                .basic_auth(&inner.config.username, Some(inner.config.password.expose()))
                .header(header::COOKIE, format!("JSESSIONID={}", cookie.expose())),
            _ => return,
        };
        match receive(builder.timeout(timeout), 1 << 20).await {
            Ok(raw) => tracing::debug!(status = raw.status, "logged out"),
            Err(_) => tracing::debug!("the logout request failed; the session ends by itself"),
        }
    }

    /// Touches the session so that it does not reach its idle limit during long work
    /// without requests; call at least every 10 minutes.
    ///
    /// # Errors
    /// As any request.
    pub async fn keep_alive(&self) -> Result<(), EngineError> {
        self.send(Request::get("", "keeping the session alive")).await.map(drop)
    }
}
