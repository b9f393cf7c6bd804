//! TLS towards the engine: the CA of the configuration and nothing else, or one pinned
//! certificate.
//!
//! Never: an unverified connection. The one exception is fetching the CA itself
//! (`download_ca`), which sends no credentials and whose fingerprint the caller pins.

use std::sync::Arc;

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};

use crate::{config::CaSource, error::EngineError};

fn config_error(reason: impl Into<String>) -> EngineError {
    EngineError::Config { reason: reason.into() }
}

/// Whom the client accepts. `None` = the system's store, which reqwest sets up itself.
pub(crate) fn client_config(ca: &CaSource) -> Result<Option<ClientConfig>, EngineError> {
    match ca {
        CaSource::System => {
            // reqwest takes the process-wide provider here; a second install is harmless.
            let _ = rustls::crypto::ring::default_provider().install_default();
            Ok(None)
        }
        CaSource::Pem(pem) => {
            let mut roots = RootCertStore::empty();
            for cert in CertificateDer::pem_slice_iter(pem) {
                let cert =
                    cert.map_err(|e| config_error(format!("the CA file is not PEM: {e}")))?;
                roots.add(cert).map_err(|e| {
                    config_error(format!("the CA file holds no usable certificate: {e}"))
                })?;
            }
            if roots.is_empty() {
                return Err(config_error("the CA file holds no certificate"));
            }
            Ok(Some(builder()?.with_root_certificates(roots).with_no_client_auth()))
        }
        CaSource::PinnedCert(der) => Ok(Some(with_verifier(Expect::Exactly(der.clone()))?)),
    }
}

/// Accepts every certificate; only for fetching the CA, before any trust exists.
pub(crate) fn unverified() -> Result<ClientConfig, EngineError> {
    with_verifier(Expect::Anything)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, EngineError> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| config_error(format!("TLS cannot be set up: {e}")))
}

fn with_verifier(expect: Expect) -> Result<ClientConfig, EngineError> {
    let verifier = Verifier { expect, algorithms: provider().signature_verification_algorithms };
    Ok(builder()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

#[derive(Debug)]
enum Expect {
    Exactly(Vec<u8>),
    Anything,
}

/// Compares the server's own certificate byte by byte; signatures are always checked, so
/// the peer proves that it holds the key.
#[derive(Debug)]
struct Verifier {
    expect: Expect,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.expect {
            Expect::Exactly(der) if der.as_slice() != end_entity.as_ref() => {
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// What TLS disliked, when an HTTP error has TLS at its root: the text, and whether the
/// certificate had no subjectAltName.
pub(crate) fn tls_cause(error: &(dyn std::error::Error + 'static)) -> Option<(String, bool)> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return certificate_cause(tls);
        }
        // An io::Error shows what it wraps by `get_ref` alone, and there may be several.
        if let Some(inner) =
            error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref)
        {
            next = Some(inner);
            continue;
        }
        next = error.source();
    }
    None
}

fn certificate_cause(error: &rustls::Error) -> Option<(String, bool)> {
    let rustls::Error::InvalidCertificate(cause) = error else {
        // Alerts and protocol errors are the engine's refusal of us, not ours of it, but
        // they do not go away by repeating either.
        return matches!(
            error,
            rustls::Error::AlertReceived(_)
                | rustls::Error::PeerIncompatible(_)
                | rustls::Error::InvalidMessage(_)
                | rustls::Error::PeerMisbehaved(_)
        )
        .then(|| (error.to_string(), false));
    };
    let no_san = matches!(cause, CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty());
    let text = match cause {
        CertificateError::ApplicationVerificationFailure => {
            "it is not the pinned certificate".to_owned()
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "it is not signed by the configured CA".to_owned()
        }
        _ if no_san => "it has no subjectAltName".to_owned(),
        other => other.to_string(),
    };
    Some((text, no_san))
}
