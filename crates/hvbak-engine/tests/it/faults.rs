//! An engine that refuses, stalls, lies and dies: what the client makes of it.

use std::time::Duration;

use hvbak_engine::{AuthMode, CaSource, Engine, EngineError, download_ca, fingerprint};
use hvbak_types::Secret;

use crate::server::{API_ROOT, Names, Reply, Server, TOKEN_PATH, usual};

const ROOT: &str = "GET /ovirt-engine/api";

/// Serves `then` for `/vms`, everything else as usual.
async fn vms(then: impl Fn(usize) -> Reply + Send + Sync + 'static) -> Server {
    Server::start(move |seen, n| match seen.path.as_str() {
        "/ovirt-engine/api/vms" => then(n),
        _ => usual(seen).unwrap_or(Reply::empty(404)),
    })
    .await
}

#[tokio::test]
async fn every_request_carries_the_headers_of_the_api() {
    let server = vms(|_| Reply::xml("<vms/>")).await;
    let engine = server.connect().await.unwrap();
    engine.vms(Some("name=\"a b&c\"")).await.unwrap();
    let token = server.last(&format!("POST {TOKEN_PATH}"));
    assert_eq!(token.header("content-type"), "application/x-www-form-urlencoded");
    assert_eq!(token.header("accept"), "application/json");
    assert_eq!(
        token.body,
        "grant_type=password&scope=ovirt-app-api&username=admin%40internal&password=s3cret%26%3D%2B%C3%BC"
    );
    let seen = server.last("GET /ovirt-engine/api/vms");
    assert_eq!(seen.header("authorization"), "Bearer tok");
    assert_eq!(seen.header("version"), "4");
    assert_eq!(seen.header("accept"), "application/xml");
    assert_eq!(seen.header("accept-language"), "en-US");
    assert_eq!(seen.query["search"], "name=\"a b&c\"");
    let root = server.last(ROOT);
    assert!(root.header("correlation-id").starts_with("hvbak-"));
    assert_ne!(root.header("correlation-id"), seen.header("correlation-id"));
    engine.logout().await;
    let out = server.last("POST /ovirt-engine/services/sso-logout");
    assert_eq!(out.body, "scope=ovirt-app-api&token=tok");
    // After the logout a request logs in again.
    engine.vms(None).await.unwrap();
    assert_eq!(server.count(&format!("POST {TOKEN_PATH}")), 2);
}

#[tokio::test]
async fn a_wrong_password_is_refused_in_both_shapes_and_without_a_second_try() {
    for (status, body, code) in [
        (
            400,
            r#"{"error_code":"access_denied","error":"Cannot authenticate user 'admin@internal': The username or password is incorrect.."}"#,
            "access_denied",
        ),
        (
            401,
            r#"{"error":"invalid_grant","error_description":"The provided authorization grant is invalid"}"#,
            "invalid_grant",
        ),
    ] {
        let server = Server::start(move |_, _| Reply::json(status, body)).await;
        let error = server.connect().await.unwrap_err();
        let EngineError::LoginRefused { user, code: found, .. } = &error else {
            panic!("{error:?}")
        };
        assert_eq!((user.as_str(), found.as_str()), ("admin@internal", code));
        assert!(error.hint().is_some() && !error.retryable());
        assert_eq!(server.lines().len(), 1);
        assert!(!format!("{error:?} {error}").contains("s3cret"));
    }
}

#[tokio::test]
async fn a_missing_profile_is_named_in_the_hint() {
    let server = Server::start(|_, _| {
        Reply::json(
            400,
            r#"{"error_code":"access_denied","error":"No valid profile found in credentials.."}"#,
        )
    })
    .await;
    let error = server.connect().await.unwrap_err();
    assert!(error.hint().unwrap().contains("admin@internal"), "{error}");
}

#[tokio::test]
async fn an_expired_token_is_renewed_once_and_the_request_repeated() {
    let server =
        Server::start(|seen, n| match (seen.path.as_str(), seen.header("authorization")) {
            (TOKEN_PATH, _) => Reply::token(&format!("t{n}")),
            ("/ovirt-engine/api", _) => Reply::xml(API_ROOT),
            (_, "Bearer t0") => {
                Reply::html(401, "Error").with("www-authenticate", "Basic realm=\"RESTAPI\"")
            }
            _ => Reply::xml("<vms/>"),
        })
        .await;
    let engine = server.connect().await.unwrap();
    // Several at once notice together; one of them logs in.
    let (a, b, c) = tokio::join!(engine.vms(None), engine.vms(None), engine.vms(None));
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    assert_eq!(server.count(&format!("POST {TOKEN_PATH}")), 2);
}

#[tokio::test]
async fn a_token_that_is_never_accepted_ends_as_refused() {
    let server = vms(|_| Reply::html(401, "Error")).await;
    let engine = server.connect().await.unwrap();
    assert!(matches!(engine.vms(None).await, Err(EngineError::LoginRefused { .. })));
    assert_eq!(server.count("GET /ovirt-engine/api/vms"), 2);
}

#[tokio::test]
async fn an_engine_that_restarts_is_waited_for() {
    let server = vms(|n| match n {
        0 => Reply::html(503, "503 Service Unavailable"),
        1 => Reply::html(502, "502 Proxy Error"),
        2 => Reply::cut(),
        3 => Reply::html(500, "Error"),
        _ => Reply::xml("<vms/>"),
    })
    .await;
    let engine = server.connect().await.unwrap();
    assert!(engine.vms(None).await.unwrap().is_empty());
    assert_eq!(server.count("GET /ovirt-engine/api/vms"), 5);
}

#[tokio::test]
async fn an_engine_that_stays_down_is_unreachable() {
    let server = vms(|_| Reply::html(503, "503 Service Unavailable")).await;
    let engine = server.connect().await.unwrap();
    let error = engine.vms(None).await.unwrap_err();
    let EngineError::Unreachable { detail, .. } = &error else { panic!("{error:?}") };
    assert!(detail.contains("503"), "{detail}");
    assert!(error.retryable());
    assert!(server.count("GET /ovirt-engine/api/vms") > 3);
}

#[tokio::test]
async fn a_login_against_a_starting_engine_is_waited_for() {
    let server = Server::start(|seen, n| match (seen.path.as_str(), n) {
        (TOKEN_PATH, 0..=2) => Reply::html(503, "503"),
        _ => usual(seen).unwrap_or(Reply::empty(404)),
    })
    .await;
    server.connect().await.unwrap();
}

#[tokio::test]
async fn nobody_listening_is_unreachable_with_the_reason() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let server = vms(|_| Reply::xml("<vms/>")).await;
    let mut config = server.config();
    config.connect_to = Some(addr);
    config.timeouts.unavailable = Duration::from_millis(50);
    let error = Engine::connect(config).await.unwrap_err();
    let EngineError::Unreachable { detail, url, .. } = &error else { panic!("{error:?}") };
    assert!(detail.contains("refused"), "{detail}");
    assert_eq!(url, "https://engine.test");
}

#[tokio::test]
async fn a_foreign_ca_a_foreign_name_and_a_nameless_certificate_are_told_apart() {
    let other = vms(|_| Reply::xml("<vms/>")).await;
    let server = vms(|_| Reply::xml("<vms/>")).await;
    let mut config = server.config();
    config.ca = CaSource::Pem(other.ca_pem.clone().into_bytes());
    let error = Engine::connect(config).await.unwrap_err();
    assert!(matches!(&error, EngineError::Tls { no_san: false, .. }), "{error:?}");
    assert!(error.to_string().contains("not signed by the configured CA"), "{error}");
    assert!(error.hint().unwrap().contains("ca_file"));
    assert!(server.lines().is_empty(), "nothing was sent");

    let server = Server::start_as(Names::Other, |s, _| usual(s).unwrap_or(Reply::empty(404))).await;
    let error = server.connect().await.unwrap_err();
    assert!(matches!(&error, EngineError::Tls { no_san: false, .. }), "{error:?}");

    let server = Server::start_as(Names::None, |s, _| usual(s).unwrap_or(Reply::empty(404))).await;
    let error = server.connect().await.unwrap_err();
    assert!(matches!(&error, EngineError::Tls { no_san: true, .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("engine-setup --offline"));
    // A private CA is unknown to the system.
    let mut config = server.config();
    config.ca = CaSource::System;
    assert!(matches!(Engine::connect(config).await, Err(EngineError::Tls { .. })));
    // The way out: the certificate itself.
    let mut config = server.config();
    config.ca = CaSource::PinnedCert(server.cert_der.clone());
    Engine::connect(config.clone()).await.unwrap();
    config.ca = CaSource::PinnedCert(other.cert_der.clone());
    let error = Engine::connect(config).await.unwrap_err();
    assert!(error.to_string().contains("not the pinned certificate"), "{error}");
}

#[tokio::test]
async fn unusable_configurations_are_refused_before_anything_is_sent() {
    let server = vms(|_| Reply::xml("<vms/>")).await;
    for ca in
        [&b""[..], b"not pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
    {
        let mut config = server.config();
        config.ca = CaSource::Pem(ca.to_vec());
        assert!(matches!(Engine::connect(config).await, Err(EngineError::Config { .. })));
    }
    let mut config = server.config();
    config.url = "http://engine.test/ovirt-engine/api".into();
    assert!(matches!(Engine::connect(config).await, Err(EngineError::Config { .. })));
    assert!(server.lines().is_empty());
}

#[tokio::test]
async fn a_slow_engine_runs_into_the_time_limit() {
    let server = vms(|_| Reply::xml("<vms/>").after(Duration::from_secs(60))).await;
    let mut config = server.config();
    config.timeouts.get = Duration::from_millis(100);
    config.timeouts.unavailable = Duration::from_millis(150);
    let engine = Engine::connect(config).await.unwrap();
    let error = engine.vms(None).await.unwrap_err();
    assert!(matches!(error, EngineError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_body_beyond_the_cap_is_not_read() {
    let server = vms(|_| Reply::xml(vec![b' '; 3 << 20])).await;
    let mut config = server.config();
    config.max_body = 1 << 20;
    let engine = Engine::connect(config).await.unwrap();
    let error = engine.vms(None).await.unwrap_err();
    assert!(error.to_string().contains("1048576"), "{error}");
    assert_eq!(server.count("GET /ovirt-engine/api/vms"), 1);
}

#[tokio::test]
async fn answers_that_are_not_the_apis_are_named() {
    for (reply, word) in [
        (Reply::html(200, "Login"), "a web page"),
        (Reply::xml(""), "an empty body"),
        (Reply::xml("<hosts/>"), "expected <vms>, found <hosts>"),
        (Reply::xml("<vms><vm>"), "not readable as XML"),
        (Reply::new(302, "", "").with("location", "https://evil.test/"), "redirection"),
        (Reply::html(404, "Not Found"), "404"),
    ] {
        let server = vms(move |_| reply.clone()).await;
        let engine = server.connect().await.unwrap();
        let error = engine.vms(None).await.unwrap_err();
        assert!(matches!(error, EngineError::Unexpected { .. }), "{word}: {error:?}");
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
}

#[tokio::test]
async fn a_fault_under_200_and_a_missing_permit_are_errors() {
    let server = vms(|n| match n {
        0 => Reply::fault(200, "odd"),
        _ => Reply::fault(403, "User is not authorized to perform this action."),
    })
    .await;
    let engine = server.connect().await.unwrap();
    let error = engine.vms(None).await.unwrap_err();
    assert!(matches!(&error, EngineError::Fault { detail, .. } if detail == "odd"), "{error:?}");
    let error = engine.vms(None).await.unwrap_err();
    assert!(matches!(&error, EngineError::Forbidden { .. }), "{error:?}");
    assert!(error.correlation().unwrap().starts_with("hvbak-"));
}

#[tokio::test]
async fn without_a_token_service_basic_is_used_with_its_cookie() {
    let server = Server::start(|seen, _| match seen.path.as_str() {
        TOKEN_PATH => Reply::html(404, "Not Found"),
        "/ovirt-engine/api" => Reply::xml(API_ROOT)
            .with("set-cookie", "locale=en_US; path=/")
            .with("set-cookie", "JSESSIONID=abc123; path=/ovirt-engine/api; secure; HttpOnly"),
        _ => Reply::xml("<vms/>"),
    })
    .await;
    let engine = server.connect().await.unwrap();
    engine.vms(None).await.unwrap();
    let first = &server.seen.lock().unwrap()[1].clone();
    assert_eq!((first.header("cookie"), first.header("prefer")), ("", "persistent-auth"));
    // base64("admin@internal:s3cret&=+ü")
    assert_eq!(first.header("authorization"), "Basic YWRtaW5AaW50ZXJuYWw6czNjcmV0Jj0rw7w=");
    assert_eq!(server.last("GET /ovirt-engine/api/vms").header("cookie"), "JSESSIONID=abc123");
    engine.logout().await;
    let out = server.last(ROOT);
    assert_eq!((out.header("cookie"), out.header("prefer")), ("JSESSIONID=abc123", ""));

    let mut config = server.config();
    config.auth = AuthMode::Token;
    assert!(matches!(Engine::connect(config).await, Err(EngineError::Unexpected { .. })));
}

#[tokio::test]
async fn a_wrong_password_with_basic_is_refused() {
    let server = Server::start(|seen, _| match seen.path.as_str() {
        TOKEN_PATH => Reply::empty(404),
        _ => Reply::html(401, "Error"),
    })
    .await;
    let mut config = server.config();
    config.password = Secret::new("wrong");
    assert!(matches!(Engine::connect(config).await, Err(EngineError::LoginRefused { .. })));
    assert_eq!(server.count(ROOT), 2);
}

#[tokio::test]
async fn the_ca_is_fetched_without_trust_and_shown_by_fingerprint() {
    let server = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
    let pem = server.clone();
    let running = Server::start(move |seen, _| {
        match (seen.path.as_str(), seen.query.get("resource").map(String::as_str)) {
            ("/ovirt-engine/services/pki-resource", Some("ca-certificate"))
                if seen.query["format"] == "X509-PEM-CA"
                    && seen.header("authorization").is_empty() =>
            {
                Reply::new(200, "application/x-x509-ca-cert", pem.get().unwrap().clone())
            }
            _ => usual(seen).unwrap_or(Reply::empty(404)),
        }
    })
    .await;
    server.set(running.ca_pem.clone()).unwrap();
    let ca = download_ca("https://engine.test/ovirt-engine/api", Some(running.addr)).await.unwrap();
    assert_eq!(ca.pem, running.ca_pem.as_bytes());
    assert_eq!(ca.fingerprints.len(), 1);
    assert_eq!(ca.fingerprints[0].len(), 95);
    // openssl says the same.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.pem");
    std::fs::write(&file, &ca.pem).unwrap();
    match std::process::Command::new("openssl")
        .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
        .arg(&file)
        .output()
    {
        Ok(out) => {
            let text = String::from_utf8(out.stdout).unwrap();
            assert_eq!(text.trim().rsplit('=').next().unwrap(), ca.fingerprints[0]);
        }
        Err(error) => eprintln!("SKIPPED comparison with openssl: {error}"),
    }
    let mut config = running.config();
    config.ca = CaSource::Pem(ca.pem);
    Engine::connect(config).await.unwrap();
    assert_eq!(
        fingerprint(b""),
        "E3:B0:C4:42:98:FC:1C:14:9A:FB:F4:C8:99:6F:B9:24:27:AE:41:E4:64:9B:93:4C:A4:95:99:1B:78:52:B8:55"
    );
    assert!(matches!(
        download_ca("https://engine.test/else/api", Some(running.addr)).await,
        Err(EngineError::Unexpected { .. })
    ));
}

#[tokio::test]
async fn a_path_where_nothing_is_does_not_look_like_an_empty_site() {
    let server = Server::start(|_, _| Reply::empty(404)).await;
    let engine = server.connect().await.unwrap();
    assert_eq!(engine.version().full, "");
    assert!(engine.inventory().await.unwrap_err().is_not_found());
}
