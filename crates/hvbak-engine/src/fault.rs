//! What an answer that is not a success means.
//!
//! The engine's errors come as `<fault>`, as `<action><fault>`, as the web server's HTML,
//! as JSON of the SSO service, and as nothing at all. The content decides, the status
//! only when the content says nothing.

use crate::{
    error::{EngineError, clean},
    xml::Element,
};

/// Fragments of the engine's messages for locks that go away by themselves.
const TRANSIENT: [&str; 23] = [
    "VM is locked",
    "disks are locked",
    "disk is locked",
    "is locked",
    "are locked",
    "Image Locked",
    "performing an operation on a Snapshot",
    "Snapshot is currently being created",
    "Related operation is currently in progress",
    "is being transferred",
    "is being exported",
    "is being imported",
    "is being cloned",
    "is being converted",
    "is being migrated",
    "is being updated",
    "is being removed",
    "is being moved or copied",
    "during a backup operation",
    "try again in a few minutes",
    "try again later",
    "Migrating status",
    "Powering",
];

/// Fragments for states that somebody has to change. They win over the transient ones:
/// `Low disk space ... try again later` does not get better by waiting.
const PERMANENT: [&str; 21] = [
    "Low disk space",
    "name is already in use",
    "already exists",
    "MAC Address",
    "MAC address",
    "VM is running",
    "VM is not down",
    "not down",
    "must be in status",
    "previewing a Snapshot",
    "unplugged or unattached",
    "ILLEGAL status",
    "Storage Domain's status is",
    "Quota",
    "only allowed for regular snapshots",
    "Snapshot does not exist",
    "no configuration available",
    "disk configuration is not supported",
    "disk configuration not supported",
    "already attached",
    "delete protection",
];

/// How a 409 text reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConflictKind {
    /// A lock.
    Transient,
    /// A state.
    Permanent,
    /// A text that neither table knows.
    Unknown,
}

/// Sorts a 409 by its English text.
pub fn classify_conflict(detail: &str) -> ConflictKind {
    let has = |fragments: &[&str]| fragments.iter().any(|f| detail.contains(f));
    // "because the VM is in Powering Up status" is both; the moving states are transient.
    let moving = ["Migrating", "Powering", "Reboot", "Saving", "Restoring", "Image Locked"]
        .iter()
        .any(|s| {
            detail.contains(&format!("{s} status"))
                || detail.contains(&format!("{s} Up status"))
                || detail.contains(&format!("{s} Down status"))
        });
    if moving {
        ConflictKind::Transient
    } else if has(&PERMANENT)
        || (detail.contains("because the VM is in") && detail.contains("status"))
    {
        ConflictKind::Permanent
    } else if has(&TRANSIENT) {
        ConflictKind::Transient
    } else {
        ConflictKind::Unknown
    }
}

/// Reason and detail of a fault document.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FaultText {
    /// `Operation Failed`.
    pub reason: String,
    /// `[Cannot ...]`, without the brackets.
    pub detail: String,
}

/// Finds the fault in a `<fault>`, or in an `<action>` that failed.
pub fn fault_in(root: &Element) -> Option<FaultText> {
    let fault = match root.name.as_str() {
        "fault" => root,
        _ => match root.child("fault") {
            Some(fault) => fault,
            None if root.name == "action"
                && (root.word("status") == Some("failed")
                    || root.word("status/state") == Some("failed")) =>
            {
                return Some(FaultText {
                    reason: "Operation Failed".into(),
                    detail: String::new(),
                });
            }
            None => return None,
        },
    };
    let detail = clean(&fault.string("detail").unwrap_or_default());
    let inner = detail.strip_prefix('[').and_then(|d| d.strip_suffix(']')).unwrap_or(&detail);
    Some(FaultText {
        reason: clean(&fault.string("reason").unwrap_or_default()),
        detail: inner.to_owned(),
    })
}

/// An answer of the SSO service that is not a token: code and text, in both shapes.
pub fn sso_error(body: &[u8]) -> Option<(String, String)> {
    let json: serde_json::Value = serde_json::from_slice(body).ok()?;
    let text = |key: &str| json.get(key).and_then(|v| v.as_str()).map(clean);
    match (text("error_code"), text("error"), text("error_description")) {
        (Some(code), Some(message), _) => Some((code, message)),
        (Some(code), None, message) => Some((code, message.unwrap_or_default())),
        (None, Some(code), message) => Some((code, message.unwrap_or_default())),
        (None, None, _) => None,
    }
}

/// An answer with everything that a message needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context<'a> {
    pub what: &'a str,
    /// Scheme, host and port.
    pub origin: &'a str,
    pub path: &'a str,
    pub user: &'a str,
    pub correlation: &'a str,
}

/// Whether a body is a web page rather than a document of the API.
pub(crate) fn is_html(content_type: &str, body: &[u8]) -> bool {
    let head: String =
        String::from_utf8_lossy(&body[..body.len().min(200)]).trim_start().to_ascii_lowercase();
    content_type.starts_with("text/html")
        || head.starts_with("<html")
        || head.starts_with("<!doctype html")
}

/// The title of a web page, for messages.
fn title(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(&body[..body.len().min(8192)]);
    let start = text.find("<title>")? + "<title>".len();
    let end = text[start..].find("</title>")?;
    Some(clean(&text[start..start + end]))
}

/// The error that a status other than 2xx means.
pub(crate) fn error_for(
    status: u16,
    content_type: &str,
    body: &[u8],
    cx: Context<'_>,
) -> EngineError {
    let what = cx.what.to_owned();
    let correlation = cx.correlation.to_owned();
    let html = is_html(content_type, body);
    let fault = if html || body.is_empty() {
        None
    } else {
        Element::parse(body)
            .ok()
            .and_then(|root| fault_in(&root))
            .or_else(|| sso_error(body).map(|(reason, detail)| FaultText { reason, detail }))
    };
    let text = |fallback: &str| match &fault {
        Some(f) if !f.detail.is_empty() => f.detail.clone(),
        Some(f) if !f.reason.is_empty() => f.reason.clone(),
        _ => title(body).filter(|_| html).unwrap_or_else(|| fallback.to_owned()),
    };
    match status {
        401 => EngineError::LoginRefused {
            user: cx.user.to_owned(),
            code: "401".into(),
            detail: text("not authorized"),
        },
        403 => EngineError::Forbidden { what, detail: text("no permission"), correlation },
        // An unknown entity has an empty body or a fault; a page means an unknown path.
        404 if html => EngineError::Unexpected {
            what,
            url: cx.path.to_owned(),
            detail: format!("404, {}", text("a web page")),
        },
        404 => EngineError::NotFound { what, correlation },
        409 => {
            let detail = text("conflict");
            let transient = classify_conflict(&detail) != ConflictKind::Permanent;
            EngineError::Conflict { what, detail, transient, correlation }
        }
        502..=504 => EngineError::Unreachable {
            what,
            url: cx.origin.to_owned(),
            detail: format!("status {status}, {}", text("the web server has no engine behind it")),
            source: None,
        },
        // The engine's own 500 is a fault; a page comes from a server that is (re)starting.
        500 if html => EngineError::Unreachable {
            what,
            url: cx.origin.to_owned(),
            detail: format!("status 500, {}", text("a web page")),
            source: None,
        },
        _ if html => EngineError::Unexpected {
            what,
            url: cx.path.to_owned(),
            detail: format!("status {status}, {}", text("a web page")),
        },
        300..=399 => EngineError::Unexpected {
            what,
            url: cx.path.to_owned(),
            detail: format!("a redirection ({status})"),
        },
        _ => {
            let (reason, detail) = match fault {
                Some(f) => (f.reason, f.detail),
                None => (
                    "no reason given".into(),
                    clean(&String::from_utf8_lossy(&body[..body.len().min(300)])),
                ),
            };
            EngineError::Fault { what, status, reason, detail, correlation }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(status: u16, content_type: &str, body: &str) -> EngineError {
        let cx = Context {
            what: "testing",
            origin: "https://e",
            path: "/x",
            user: "u",
            correlation: "c",
        };
        error_for(status, content_type, body.as_bytes(), cx)
    }

    #[test]
    fn conflicts_are_sorted_by_their_text() {
        use ConflictKind::*;
        for (text, expected) in [
            ("Cannot create Snapshot: VM is locked. Please try again in a few minutes.", Transient),
            (
                "Cannot remove Snapshot. The following disks are locked: a_Disk1. Please try again in a few minutes.",
                Transient,
            ),
            ("Cannot create Snapshot. Snapshot is currently being created for VM a.", Transient),
            (
                "Cannot run VM. The VM is performing an operation on a Snapshot. Please wait for the operation to finish, and try again.",
                Transient,
            ),
            (
                "Cannot remove Virtual Disk. Related operation is currently in progress. Please try again later.",
                Transient,
            ),
            ("Cannot add Virtual Disk. Low disk space on Storage Domain data1.", Permanent),
            (
                "Cannot add VM. The VM name is already in use, please choose a unique name and try again.",
                Permanent,
            ),
            ("Cannot remove VM. VM is running.", Permanent),
            (
                "Cannot create Snapshot. The VM is previewing a Snapshot. Please select another Snapshot to restore to, or commit or undo the Snapshot preview.",
                Permanent,
            ),
            ("Cannot migrate because the VM is in Up status.", Permanent),
            (
                "Cannot remove Snapshot because the VM is in Powering Up status. Please try again.",
                Transient,
            ),
            ("Cannot create Snapshot because the VM is in Migrating status.", Transient),
            ("The relevant Storage Domain's status is Maintenance.", Permanent),
            ("Something new and unheard of. Please try again.", Unknown),
        ] {
            assert_eq!(classify_conflict(text), expected, "{text}");
        }
    }

    #[test]
    fn every_shape_of_an_error_is_told_apart() {
        let xml = "application/xml;charset=UTF-8";
        let fault = "<fault><detail>[Cannot create Snapshot: VM is locked. Please try again in a few minutes.]</detail><reason>Operation Failed</reason></fault>";
        assert!(
            matches!(check(409, xml, fault), EngineError::Conflict { transient: true, detail, .. } if detail.starts_with("Cannot create"))
        );
        let action = "<action><fault><detail>[VM is running]</detail><reason>Operation Failed</reason></fault><status>failed</status></action>";
        assert!(
            matches!(check(409, xml, action), EngineError::Conflict { transient: false, detail, .. } if detail == "VM is running")
        );
        assert!(
            matches!(check(400, xml, action), EngineError::Fault { status: 400, reason, .. } if reason == "Operation Failed")
        );
        assert!(matches!(check(404, "", ""), EngineError::NotFound { .. }));
        assert!(matches!(
            check(404, "text/html", "<html><title>Not here</title>"),
            EngineError::Unexpected { .. }
        ));
        assert!(
            matches!(check(503, "text/html", "<html><head><title>503 Service Unavailable</title>"), EngineError::Unreachable { detail, .. } if detail.contains("503 Service Unavailable"))
        );
        assert!(matches!(
            check(401, "text/html", "<html><head><title>Error</title>"),
            EngineError::LoginRefused { .. }
        ));
        assert!(matches!(
            check(
                403,
                xml,
                "<fault><detail>[User is not authorized to perform this action.]</detail></fault>"
            ),
            EngineError::Forbidden { .. }
        ));
        assert!(
            matches!(check(500, "application/json", "{\"error\":\"x\",\"error_code\":\"server_error\"}"), EngineError::Fault { reason, .. } if reason == "server_error")
        );
        assert!(matches!(check(302, "", ""), EngineError::Unexpected { .. }));
        assert!(
            matches!(check(500, xml, "<fault><reason>R</reason><detail>DISKS_ILLEGAL\u{7}</detail></fault>"), EngineError::Fault { detail, .. } if detail == "DISKS_ILLEGAL")
        );
    }

    #[test]
    fn sso_errors_come_in_two_shapes() {
        assert_eq!(
            sso_error(br#"{"error_code":"access_denied","error":"Cannot authenticate user"}"#)
                .unwrap(),
            ("access_denied".into(), "Cannot authenticate user".into())
        );
        assert_eq!(
            sso_error(br#"{"error":"invalid_grant","error_description":"no"}"#).unwrap(),
            ("invalid_grant".into(), "no".into())
        );
        assert_eq!(sso_error(b"<html>"), None);
        assert_eq!(sso_error(br#"{"access_token":"x"}"#), None);
    }
}
