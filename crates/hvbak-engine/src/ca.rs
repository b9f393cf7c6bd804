//! Fetching the engine's CA before any trust exists.
//!
//! Nothing secret is sent, and the result is worth nothing until somebody has compared the
//! fingerprint with one from another way (`openssl x509 -fingerprint -sha256` on the manager).

use std::{fmt::Write as _, time::Duration};

use hvbak_types::Secret;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use sha2::{Digest as _, Sha256};

use crate::{
    config::{CaSource, EngineConfig},
    error::EngineError,
    tls,
    transport::{Broken, Cause, http_client, innermost, receive, urls},
};

/// A CA as served by the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownloadedCa {
    /// PEM, as served.
    pub pem: Vec<u8>,
    /// SHA-256 of each certificate, `AB:CD:…`, in the order of the PEM.
    pub fingerprints: Vec<String>,
}

/// `AB:CD:…` of a certificate, as openssl prints it.
pub fn fingerprint(der: &[u8]) -> String {
    Sha256::digest(der).iter().enumerate().fold(String::new(), |mut out, (i, byte)| {
        let _ = write!(out, "{}{byte:02X}", if i == 0 { "" } else { ":" });
        out
    })
}

/// Fetches the engine's internal CA over unverified TLS. It need not be the CA of the web
/// server's certificate when the administrator replaced that.
///
/// # Errors
/// `Config`, `Unreachable`, or `Unexpected` when the answer is no PEM certificate.
pub async fn download_ca(
    url: &str,
    connect_to: Option<std::net::SocketAddr>,
) -> Result<DownloadedCa, EngineError> {
    let (_, root) = urls(url)?;
    let mut config = EngineConfig::new(url, CaSource::System, "", Secret::new(""));
    config.connect_to = connect_to;
    let http = http_client(&config, Some(tls::unverified()?), root.host_str().unwrap_or_default())?;
    let what = "fetching the CA of the engine";
    let mut resource = root.clone();
    resource.set_path(&format!("{}/services/pki-resource", root.path()));
    resource
        .query_pairs_mut()
        .append_pair("resource", "ca-certificate")
        .append_pair("format", "X509-PEM-CA");
    let path = resource.path().to_owned();
    let unexpected = |detail: &str| EngineError::Unexpected {
        what: what.into(),
        url: path.clone(),
        detail: detail.into(),
    };
    let raw = receive(http.get(resource).timeout(Duration::from_secs(30)), 1 << 20).await.map_err(
        |Broken { error, .. }| match error {
            Cause::TooLarge => unexpected("more than 1 MiB"),
            Cause::Http(error) => EngineError::Unreachable {
                what: what.into(),
                url: root.origin().ascii_serialization(),
                detail: innermost(&error),
                source: Some(error.without_url()),
            },
        },
    )?;
    if raw.status != 200 {
        return Err(unexpected(&format!("status {}", raw.status)));
    }
    let mut fingerprints = Vec::new();
    for cert in CertificateDer::pem_slice_iter(&raw.body) {
        let cert = cert.map_err(|_| unexpected("not a PEM certificate"))?;
        fingerprints.push(fingerprint(&cert));
    }
    if fingerprints.is_empty() {
        return Err(unexpected("not a PEM certificate"));
    }
    Ok(DownloadedCa { pem: raw.body, fingerprints })
}
