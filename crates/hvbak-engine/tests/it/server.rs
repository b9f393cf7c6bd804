//! A small HTTPS server with a CA of its own and an answer per request by closure.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use http_body_util::{BodyExt as _, Full};
use hvbak_engine::{CaSource, Engine, EngineConfig, EngineError, Timeouts};
use hvbak_types::Secret;
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_rustls::{TlsAcceptor, rustls};

pub const HOST: &str = "engine.test";
pub const TOKEN_PATH: &str = "/ovirt-engine/sso/oauth/token";
pub const API_ROOT: &str = "<api><product_info><name>oVirt Engine</name><vendor>ovirt.org</vendor><version><build>5</build><full_version>4.5.5-1.el8</full_version><major>4</major><minor>5</minor><revision>0</revision></version></product_info></api>";

/// What a client sent.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub query: BTreeMap<String, String>,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Seen {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// What a client gets.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub content_type: &'static str,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    pub delay: Duration,
    /// Cut the connection instead of answering.
    pub cut: bool,
}

impl Reply {
    pub fn new(status: u16, content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            content_type,
            headers: Vec::new(),
            body: body.into(),
            delay: Duration::ZERO,
            cut: false,
        }
    }
    pub fn xml(body: impl Into<Vec<u8>>) -> Self {
        Self::new(200, "application/xml;charset=UTF-8", body)
    }
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }
    pub fn fault(status: u16, detail: &str) -> Self {
        Self::xml(format!(
            "<fault><detail>[{detail}]</detail><reason>Operation Failed</reason></fault>"
        ))
        .status(status)
    }
    pub fn json(status: u16, body: &str) -> Self {
        Self::new(status, "application/json;charset=UTF-8", body)
    }
    pub fn html(status: u16, title: &str) -> Self {
        Self::new(
            status,
            "text/html; charset=iso-8859-1",
            format!("<!DOCTYPE HTML><html><head><title>{title}</title></head><body/></html>"),
        )
    }
    pub fn empty(status: u16) -> Self {
        Self::new(status, "", "")
    }
    pub fn token(token: &str) -> Self {
        Self::json(
            200,
            &format!(
                r#"{{"access_token":"{token}","scope":"ovirt-app-api","exp":"9223372036854775807","token_type":"bearer"}}"#
            ),
        )
    }
    pub fn cut() -> Self {
        Self { cut: true, ..Self::empty(200) }
    }
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// The names of the server's certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Names {
    Host,
    Other,
    None,
}

pub struct Server {
    pub addr: SocketAddr,
    pub ca_pem: String,
    pub cert_der: Vec<u8>,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Starts with a handler; the handler also gets how many requests of the same method
    /// and path came before.
    pub async fn start(handler: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_as(Names::Host, handler).await
    }

    pub async fn start_as(
        names: Names,
        handler: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(DnType::CommonName, "test CA");
        let ca_cert = ca.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate().unwrap();
        let san = match names {
            Names::Host => vec![HOST.to_owned()],
            Names::Other => vec!["other.test".to_owned()],
            Names::None => Vec::new(),
        };
        let mut params = CertificateParams::new(san).unwrap();
        params.distinguished_name.push(DnType::CommonName, HOST);
        let cert = params.signed_by(&key, &issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![cert.der().clone()],
                rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::<Seen>::new()));
        let handler = Arc::new(handler);
        let log = seen.clone();
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let (acceptor, handler, log) = (acceptor.clone(), handler.clone(), log.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (handler, log) = (handler.clone(), log.clone());
                        async move { answer(request, &*handler, &log).await }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { addr, ca_pem: ca_cert.pem(), cert_der: cert.der().to_vec(), seen, task }
    }

    pub fn config(&self) -> EngineConfig {
        let mut config = EngineConfig::new(
            format!("https://{HOST}/ovirt-engine/api"),
            CaSource::Pem(self.ca_pem.clone().into_bytes()),
            "admin@internal",
            Secret::new("s3cret&=+ü"),
        );
        config.connect_to = Some(self.addr);
        config.timeouts = Timeouts::quick();
        config
    }

    pub async fn connect(&self) -> Result<Engine, EngineError> {
        Engine::connect(self.config()).await
    }

    /// The requests so far, as `METHOD path`.
    pub fn lines(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().map(|s| format!("{} {}", s.method, s.path)).collect()
    }

    pub fn count(&self, line: &str) -> usize {
        self.lines().iter().filter(|l| *l == line).count()
    }

    pub fn last(&self, line: &str) -> Seen {
        let seen = self.seen.lock().unwrap();
        seen.iter().rev().find(|s| format!("{} {}", s.method, s.path) == line).unwrap().clone()
    }
}

async fn answer(
    request: Request<Incoming>,
    handler: &(dyn Fn(&Seen, usize) -> Reply + Send + Sync),
    log: &Mutex<Vec<Seen>>,
) -> std::io::Result<Response<Full<bytes::Bytes>>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let url = reqwest::Url::parse(&format!("https://{HOST}{}", parts.uri)).unwrap();
    let seen = Seen {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: url.query_pairs().into_owned().collect(),
        headers: parts
            .headers
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_str().unwrap_or_default().to_owned()))
            .collect(),
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    let before = {
        let mut log = log.lock().unwrap();
        let before = log.iter().filter(|s| s.method == seen.method && s.path == seen.path).count();
        log.push(seen.clone());
        before
    };
    let reply = handler(&seen, before);
    tokio::time::sleep(reply.delay).await;
    if reply.cut {
        return Err(std::io::Error::other("cut"));
    }
    let mut response = Response::builder().status(reply.status);
    if !reply.content_type.is_empty() {
        response = response.header("content-type", reply.content_type);
    }
    for (name, value) in &reply.headers {
        response = response.header(*name, value);
    }
    response.body(Full::from(reply.body)).map_err(std::io::Error::other)
}

/// The answers every test needs: a token, a root, a logout.
pub fn usual(seen: &Seen) -> Option<Reply> {
    match (seen.method.as_str(), seen.path.as_str()) {
        ("POST", TOKEN_PATH) => Some(Reply::token("tok")),
        ("POST", "/ovirt-engine/services/sso-logout") => Some(Reply::json(200, "{}")),
        ("GET", "/ovirt-engine/api") => Some(Reply::xml(API_ROOT)),
        _ => None,
    }
}
