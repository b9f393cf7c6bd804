//! Bytes to and from the engine: URLs, the HTTP client, capped bodies.
//!
//! Nothing here knows the API. Invariants: no redirection is followed and no proxy of the
//! environment used, so credentials reach the configured origin alone; no body grows
//! beyond its cap.

use std::time::Duration;

use reqwest::{Url, header};

use crate::{config::EngineConfig, error::EngineError};

/// Splits the configured URL into the API's and the engine's root.
pub(crate) fn urls(text: &str) -> Result<(Url, Url), EngineError> {
    let bad = |why: &str| EngineError::Config { reason: format!("`{text}` {why}") };
    let mut api = Url::parse(text).map_err(|e| bad(&format!("is not a URL: {e}")))?;
    if api.scheme() != "https" {
        return Err(bad("does not begin with https://"));
    }
    if api.host_str().is_none_or(str::is_empty) {
        return Err(bad("has no host"));
    }
    if !api.username().is_empty() || api.password().is_some() {
        return Err(bad("holds credentials; they belong into `username` and `password_file`"));
    }
    let path = api.path().trim_end_matches('/').to_owned();
    // The versioned prefix would make paths of our own wrong; the header says the same.
    let path = path.strip_suffix("/v4").unwrap_or(&path);
    let prefix = match path {
        "" => "/ovirt-engine",
        path => path.strip_suffix("/api").unwrap_or(path),
    }
    .to_owned();
    api.set_query(None);
    api.set_fragment(None);
    let mut root = api.clone();
    root.set_path(&prefix);
    api.set_path(&format!("{prefix}/api"));
    Ok((api, root))
}

/// A client that neither follows redirections nor uses a proxy of the environment: the
/// credentials go to the configured engine alone.
pub(crate) fn http_client(
    config: &EngineConfig,
    tls: Option<rustls::ClientConfig>,
    host: &str,
) -> Result<reqwest::Client, EngineError> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("hvbak/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(config.timeouts.connect)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .pool_idle_timeout(Duration::from_secs(10))
        .http1_only();
    if let Some(tls) = tls {
        builder = builder.tls_backend_preconfigured(tls);
    }
    if let Some(addr) = config.connect_to {
        builder = builder.resolve_to_addrs(host, &[addr]);
    }
    builder.build().map_err(|e| EngineError::Config {
        reason: format!("the HTTP client cannot be set up: {e}"),
    })
}

/// The bytes of an answer.
pub(crate) struct Raw {
    pub status: u16,
    pub content_type: String,
    pub cookies: Vec<String>,
    pub body: Vec<u8>,
}

pub(crate) enum Cause {
    Http(reqwest::Error),
    TooLarge,
}

/// A request without an answer, and whether it may have reached the engine.
pub(crate) struct Broken {
    pub error: Cause,
    pub sent: bool,
}

pub(crate) async fn receive(
    builder: reqwest::RequestBuilder,
    max_body: u64,
) -> Result<Raw, Broken> {
    let mut response = builder.send().await.map_err(|e| {
        let sent = !e.is_connect() && !e.is_builder();
        Broken { error: Cause::Http(e), sent }
    })?;
    let text = |name: header::HeaderName| {
        response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
    };
    let content_type = text(header::CONTENT_TYPE).to_ascii_lowercase();
    let cookies = response
        .headers()
        .get_all(header::SET_COOKIE)
        .iter()
        .filter_map(|v| v.to_str().ok().map(str::to_owned))
        .collect();
    let status = response.status().as_u16();
    // A promise of the peer, so taken with a limit.
    let promised = response.content_length().unwrap_or(0).min(max_body).min(64 << 20);
    let mut body = Vec::with_capacity(promised as usize);
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                if (body.len() + chunk.len()) as u64 > max_body {
                    return Err(Broken { error: Cause::TooLarge, sent: true });
                }
                body.extend_from_slice(&chunk);
            }
            Ok(None) => return Ok(Raw { status, content_type, cookies, body }),
            Err(e) => return Err(Broken { error: Cause::Http(e), sent: true }),
        }
    }
}

/// Name of the first element, without parsing the rest.
pub(crate) fn head_root(body: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(&body[..body.len().min(512)])
        .unwrap_or_else(|e| std::str::from_utf8(&body[..e.valid_up_to()]).unwrap_or_default());
    text.split('<')
        .map(|part| part.split([' ', '>', '/', '\n', '\r', '\t']).next().unwrap_or_default())
        .find(|name| name.starts_with(|c: char| c.is_ascii_alphabetic()))
}

/// The last cause of an error chain: "Connection refused" instead of "error sending request".
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    crate::error::clean(&error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_completed_and_checked() {
        for (text, api, root) in [
            (
                "https://e.example.com",
                "https://e.example.com/ovirt-engine/api",
                "https://e.example.com/ovirt-engine",
            ),
            (
                "https://e:8443/ovirt-engine/api/",
                "https://e:8443/ovirt-engine/api",
                "https://e:8443/ovirt-engine",
            ),
            ("https://e/ovirt-engine", "https://e/ovirt-engine/api", "https://e/ovirt-engine"),
            (
                "https://e/ovirt-engine/api/v4",
                "https://e/ovirt-engine/api",
                "https://e/ovirt-engine",
            ),
            (
                "https://e/proxy/ovirt-engine/api",
                "https://e/proxy/ovirt-engine/api",
                "https://e/proxy/ovirt-engine",
            ),
        ] {
            let (a, r) = urls(text).unwrap();
            assert_eq!((a.as_str(), r.as_str()), (api, root), "{text}");
        }
        for bad in
            ["", "e.example.com", "http://e/ovirt-engine/api", "https://u:p@e/api", "ftp://e"]
        {
            assert!(matches!(urls(bad), Err(EngineError::Config { .. })), "{bad}");
        }
    }

    #[test]
    fn the_root_is_found_without_parsing() {
        assert_eq!(head_root(b"<?xml version=\"1.0\"?>\n<action><x/>"), Some("action"));
        assert_eq!(head_root(b"<vms/>"), Some("vms"));
        assert_eq!(head_root(b"<!-- c --><fault>"), Some("fault"));
        assert_eq!(head_root(b"nothing"), Some("nothing"));
    }
}
