//! HTTPS in front of [`crate::api`], with a CA of the lab's own.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context, Result};
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request as HttpRequest,
    http::{HeaderValue, Response, StatusCode},
};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::{
    api::{self, Answer, Request},
    model::Lab,
};

/// Largest request that is read.
const MAX_BODY: usize = 64 << 20;

/// A CA and a server certificate for loopback names, as PEM.
pub struct Certificates {
    pub ca: String,
    pub server: String,
    pub key: String,
}

/// Makes the lab's CA and certificate.
pub fn certificates() -> Result<Certificates> {
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.distinguished_name.push(DnType::CommonName, "hvbak-lab CA");
    let ca_key = KeyPair::generate()?;
    let ca_cert = ca.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca, ca_key);
    let mut server = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()])?;
    server.distinguished_name.push(DnType::CommonName, "localhost");
    let key = KeyPair::generate()?;
    let cert = server.signed_by(&key, &issuer)?;
    Ok(Certificates { ca: ca_cert.pem(), server: cert.pem(), key: key.serialize_pem() })
}

/// What answers requests; a lab or a recorded set.
pub type Handler = Arc<dyn Fn(&Request) -> Option<Answer> + Send + Sync>;

/// The handler of a lab, with its ordered faults.
pub fn lab_handler(lab: Arc<Lab>) -> Handler {
    Arc::new(move |request| match api::injected(&lab, request) {
        Some(answer) => answer,
        None => Some(api::handle(&lab, request)),
    })
}

/// Serves until the process ends; gives the bound address at once.
pub async fn serve(certificates: &Certificates, port: u16, handler: Handler) -> Result<SocketAddr> {
    let chain = CertificateDer::pem_slice_iter(certificates.server.as_bytes())
        .collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(certificates.key.as_bytes())?;
    let tls = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind(("127.0.0.1", port)).await.context("bind")?;
    let address = listener.local_addr()?;
    let router =
        Router::new().fallback(move |request: HttpRequest| answer(request, handler.clone()));
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let _ = stream.set_nodelay(true);
            let (acceptor, router) = (acceptor.clone(), router.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = TowerToHyperService::new(router);
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    Ok(address)
}

async fn answer(request: HttpRequest, handler: Handler) -> Response<Body> {
    let (head, body) = request.into_parts();
    let headers = head
        .headers
        .iter()
        .filter_map(|(k, v)| Some((k.as_str().to_lowercase(), v.to_str().ok()?.to_owned())))
        .collect();
    let Ok(body) = to_bytes(body, MAX_BODY).await else { return plain(413) };
    // Matrix parameters (`;a=b`) are as good as query parameters.
    let (path, matrix) = head.uri.path().split_once(';').unwrap_or((head.uri.path(), ""));
    let mut query = api::decode_pairs(head.uri.query().unwrap_or(""));
    query.extend(api::decode_pairs(&matrix.replace(';', "&")));
    let request = Request {
        method: head.method.to_string(),
        path: path.to_owned(),
        query,
        headers,
        body: body.to_vec(),
    };
    // The state's mutex and the storage block; they have threads of their own.
    let answered = tokio::task::spawn_blocking(move || handler(&request)).await;
    let Ok(answered) = answered else { return plain(500) };
    let Some(answered) = answered else {
        // A body that never comes: the client sees a broken connection.
        let stream = futures_pending();
        return Response::new(stream);
    };
    let mut response = Response::new(Body::from(answered.body));
    *response.status_mut() =
        StatusCode::from_u16(answered.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static(answered.content_type));
    if answered.status == 401 {
        headers.insert("www-authenticate", HeaderValue::from_static("Basic realm=\"RESTAPI\""));
    }
    if let Some(value) = answered.correlation.and_then(|c| HeaderValue::from_str(&c).ok()) {
        headers.insert("correlation-id", value);
    }
    response
}

/// A body that breaks off at once, which makes hyper close the connection.
fn futures_pending() -> Body {
    Body::new(Broken)
}

struct Broken;

impl hyper::body::Body for Broken {
    type Data = axum::body::Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
        std::task::Poll::Ready(Some(Err(std::io::Error::other("dropped on purpose"))))
    }
}

fn plain(status: u16) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}
