//! The REST API: requests to answers. Behaves as the facts about real engines say, not as
//! is convenient for a client.

mod disks;
mod events;
mod inventory;
mod rights;
mod templates;
mod vm_change;
mod vm_create;
mod vm_parts;
mod vm_read;

pub use inventory::MAC_POOL;

use std::{collections::HashMap, sync::Arc, thread, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    fault::Refusal,
    model::Lab,
    xml::{X, at},
};

pub use vm_create::active;

/// A request as the router sees it.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: HashMap<String, String>,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub content_type: &'static str,
    pub body: String,
    pub correlation: Option<String>,
}

impl Answer {
    fn xml(status: u16, body: impl Into<String>) -> Self {
        let body = body.into();
        Self { status, content_type: "application/xml;charset=UTF-8", body, correlation: None }
    }

    fn json(status: u16, body: String) -> Self {
        Self { status, content_type: "application/json", body, correlation: None }
    }
}

const XML_HEAD: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\" standalone=\"yes\"?>\n";
const LOGIN_HTML: &str = "<html><head><title>Error</title></head><body>Unauthorized</body></html>";

type Reply = Result<(u16, X), Refusal>;

/// Answers a request.
pub fn handle(lab: &Arc<Lab>, request: &Request) -> Answer {
    let path = request.path.trim_end_matches('/');
    match path {
        "/ovirt-engine/sso/oauth/token" => return token(lab, request),
        "/ovirt-engine/services/sso-logout" => {
            if let Some(token) = form(&request.body).get("token") {
                lab.state().tokens.remove(token);
            }
            return Answer::json(200, "{}".into());
        }
        "/ovirt-engine/services/pki-resource" => {
            return Answer {
                status: 200,
                content_type: "application/x-pem-file",
                body: lab.ca_pem.clone(),
                correlation: None,
            };
        }
        "/ovirt-engine/services/health" => {
            return Answer {
                status: 200,
                content_type: "text/plain",
                body: "DB Up!Welcome to Health Status!".into(),
                correlation: None,
            };
        }
        _ => {}
    }
    let Some(rest) = path.strip_prefix("/ovirt-engine/api") else {
        return Answer {
            status: 404,
            content_type: "text/html",
            body: "<html><body>Not Found</body></html>".into(),
            correlation: None,
        };
    };
    let rest = rest.strip_prefix("/v4").unwrap_or(rest);
    if !logged_in(lab, request.headers.get("authorization").map_or("", String::as_str)) {
        return Answer {
            status: 401,
            content_type: "text/html",
            body: LOGIN_HTML.into(),
            correlation: None,
        };
    }
    let correlation: String = request
        .headers
        .get("correlation-id")
        .or_else(|| request.query.get("correlation_id"))
        .map(|c| {
            c.chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).take(36).collect()
        })
        .unwrap_or_else(|| Uuid::new_v4().to_string());
    let parts: Vec<&str> = rest.split('/').filter(|p| !p.is_empty()).collect();
    let is_action = request.method == "POST"
        && parts.len() == 3
        && !["snapshots", "diskattachments", "nics", "tags"].contains(&parts[2]);
    let reply = match std::str::from_utf8(&request.body) {
        Ok(body) => route(lab, request, &parts, body, &correlation),
        Err(_) => Err(Refusal::bad("Request syntactically incorrect.", "not UTF-8")),
    };
    let mut answer = match reply {
        Ok((status, x)) => Answer::xml(status, format!("{XML_HEAD}{}", x.0)),
        Err(refusal) => {
            let (status, body) = refusal.answer(is_action);
            let body = if body.is_empty() { body } else { format!("{XML_HEAD}{body}") };
            Answer::xml(status, body)
        }
    };
    answer.correlation = Some(correlation);
    answer
}

/// A token of this engine, or name and password in every request (deprecated, but there).
fn logged_in(lab: &Lab, authorization: &str) -> bool {
    if let Some(token) = authorization.strip_prefix("Bearer ") {
        return lab.state().tokens.contains(token);
    }
    let given = authorization.strip_prefix("Basic ").and_then(|text| STANDARD.decode(text).ok());
    given.is_some_and(|g| g == format!("{}:{}", lab.username, lab.password).as_bytes())
}

fn form(body: &[u8]) -> HashMap<String, String> {
    decode_pairs(&String::from_utf8_lossy(body))
}

/// `a=b&c=d` with percent escapes.
pub fn decode_pairs(text: &str) -> HashMap<String, String> {
    let unescape = |t: &str| {
        let bytes = t.as_bytes();
        let (mut out, mut i) = (Vec::new(), 0);
        while i < bytes.len() {
            let hex = bytes.get(i + 1..i + 3).and_then(|h| std::str::from_utf8(h).ok());
            match (bytes[i], hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
                (b'%', Some(byte)) => {
                    out.push(byte);
                    i += 3;
                    continue;
                }
                (b'+', _) => out.push(b' '),
                (byte, _) => out.push(byte),
            }
            i += 1;
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    text.split('&')
        .filter(|p| !p.is_empty())
        .map(|p| p.split_once('=').unwrap_or((p, "")))
        .map(|(k, v)| (unescape(k), unescape(v)))
        .collect()
}

fn token(lab: &Lab, request: &Request) -> Answer {
    if !request.headers.get("accept").is_some_and(|a| a.contains("application/json")) {
        return Answer::json(
            400,
            "{\"error\":\"invalid_request\",\"error_description\":\"Accept\"}".into(),
        );
    }
    let form = form(&request.body);
    let get = |key: &str| form.get(key).map_or("", String::as_str);
    if get("username") != lab.username || get("password") != lab.password {
        let text = format!(
            "Cannot authenticate user '{}': The user name or password is incorrect..",
            get("username")
        );
        return Answer::json(
            400,
            serde_json::json!({ "error_code": "access_denied", "error": text }).to_string(),
        );
    }
    let token = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
    // Without the scope the token is issued, and no use.
    if get("scope").split_whitespace().any(|s| s == "ovirt-app-api") {
        lab.state().tokens.insert(token.clone());
    }
    let body = serde_json::json!({ "access_token": token, "scope": "ovirt-app-api", "exp": "9223372036854775807", "token_type": "bearer" });
    Answer::json(200, body.to_string())
}

fn uuid(text: &str) -> Result<Uuid, Refusal> {
    text.parse().map_err(|_| Refusal::bad("Operation failed", "Invalid UUID"))
}

fn root<'a>(
    doc: &'a roxmltree::Document<'a>,
    names: &[&str],
) -> Result<roxmltree::Node<'a, 'a>, Refusal> {
    let root = doc.root_element();
    if names.contains(&root.tag_name().name()) {
        return Ok(root);
    }
    Err(Refusal::bad(
        "Request syntactically incorrect.",
        "For correct usage, see the API documentation",
    ))
}

fn parse(body: &str) -> Result<roxmltree::Document<'_>, Refusal> {
    roxmltree::Document::parse(body).map_err(|_| {
        Refusal::bad(
            "Request syntactically incorrect.",
            "For correct usage, see the API documentation",
        )
    })
}

fn done() -> Reply {
    let id = Uuid::new_v4();
    Ok((
        200,
        X::default().n(
            "action",
            "",
            X::default().n("job", &at("jobs", id), X::default()).t("status", "complete"),
        ),
    ))
}

fn route(lab: &Arc<Lab>, q: &Request, parts: &[&str], body: &str, correlation: &str) -> Reply {
    let method = q.method.as_str();
    let follow: Vec<&str> =
        q.query.get("follow").map_or_else(Vec::new, |f| f.split(',').map(str::trim).collect());
    let all_content = q.query.get("all_content").is_some_and(|v| v == "true")
        || q.headers.get("all-content").is_some_and(|v| v == "true");
    rights::check(lab, method, parts)?;
    match (method, parts) {
        ("GET", []) => Ok((200, api_root(lab))),
        _ if rights::is_mine(q, parts) => rights::get(lab, parts),
        ("GET", ["vms", rest @ ..]) => vm_read::get(lab, q, rest, &follow, all_content),
        ("POST", ["vms"]) => vm_create::create(lab, body),
        (_, ["vms", id, rest @ ..]) => {
            vm_change::change(lab, q, uuid(id)?, rest, body, correlation)
        }
        (_, ["templates", rest @ ..]) => templates::handle(lab, q, rest, body),
        (_, ["disks", rest @ ..]) => disks::handle(lab, q, rest, body),
        ("GET", ["events"]) => events::list(lab, q),
        ("POST", ["events"]) => events::post(lab, body),
        (_, ["tags", ..]) => events::tags(lab, q, parts, body),
        ("DELETE", ["storagedomains", _, "disksnapshots", volume]) => {
            crate::ops::delete_disk_snapshot(lab, uuid(volume)?).and_then(|()| done())
        }
        ("GET", _) => inventory::get(lab, q, parts),
        _ => Err(Refusal::NotFound),
    }
}

fn api_root(lab: &Lab) -> X {
    let version = X::default()
        .t("major", 4)
        .t("minor", 5)
        .t("build", 7)
        .t("revision", 0)
        .t("full_version", "4.5.7-1.el9");
    let product = X::default()
        .t("instance_id", lab.instance)
        .t("name", "oVirt Engine")
        .t("vendor", "ovirt.org")
        .n("version", "", version);
    let inner = X::default()
        .n("product_info", "", product)
        .t("time", crate::xml::time(Timestamp::now()))
        .r("authenticated_user", "users", rights::USER);
    let mut s = lab.state();
    crate::engine_backup::take_in(&mut s);
    let inner = match crate::engine_backup::dates(&s) {
        Some(dates) => inner.n("engine_backup", "", dates),
        None => inner,
    };
    X::default().n("api", "", inner)
}

/// A fault that was ordered for this request, if any; waits as long as it says.
pub fn injected(lab: &Lab, request: &Request) -> Option<Option<Answer>> {
    let fault = {
        let mut s = lab.state();
        let found = s.http_faults.iter_mut().find(|f| {
            (f.method.is_empty() || f.method == request.method)
                && request.path.contains(&f.path)
                && (f.times == 0 || f.used < f.times)
        })?;
        found.used += 1;
        found.clone()
    };
    if fault.delay_ms > 0 {
        thread::sleep(Duration::from_millis(fault.delay_ms));
    }
    if fault.drop {
        return Some(None);
    }
    if fault.status == 0 {
        return None;
    }
    let content_type = match fault.content_type.as_str() {
        "" | "application/xml" => "application/xml",
        "text/html" => "text/html",
        _ => "application/json",
    };
    Some(Some(Answer { status: fault.status, content_type, body: fault.body, correlation: None }))
}
