//! Telling people how a command has ended: mail, a web hook, an event in the engine.
//!
//! Each way is tried for itself and has an end. Invariant: a notice that does not get through
//! is told and changes nothing else; nothing in it is a secret.

use std::{process::Stdio, time::Duration};

use hvbak_engine::{Engine, NewEvent};
use tokio::{io::AsyncWriteExt, process::Command};

use crate::error::{self, Result, RunError};

/// How long a way may take.
pub const LIMIT: Duration = Duration::from_secs(30);

/// What is told.
#[derive(Debug, Clone)]
pub struct Notice {
    /// One line.
    pub subject: String,
    pub text: String,
    /// For programs.
    pub json: serde_json::Value,
    pub failed: bool,
}

/// Gives the notice to `sendmail`.
///
/// # Errors
/// That it cannot be started, does not end, or ends with another code than 0.
pub async fn mail(notice: &Notice, sendmail: &str, from: &str, to: &[String]) -> Result<()> {
    let local = |cause| RunError::Local { doing: format!("run {sendmail}"), cause };
    // Addresses come from the configuration, and never look like options behind `--`.
    let mut child = Command::new(sendmail)
        .args(["-oi", "-f", from, "--"])
        .args(to)
        .env_remove("CREDENTIALS_DIRECTORY")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(local)?;
    let letter = letter(notice, from, to);
    let send = async {
        if let Some(mut stdin) = child.stdin.take() {
            // One that ends without reading says why by its code.
            match stdin.write_all(letter.as_bytes()).await {
                Err(cause) if cause.kind() == std::io::ErrorKind::BrokenPipe => {}
                other => other?,
            }
        }
        child.wait().await
    };
    let refused = |text: String| RunError::Tool { tool: sendmail.to_owned(), text };
    match tokio::time::timeout(LIMIT, send).await {
        Err(_) => Err(refused(format!("it did not end within {} s", LIMIT.as_secs()))),
        Ok(Err(cause)) => Err(local(cause)),
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(refused(status.to_string())),
    }
}

fn letter(notice: &Notice, from: &str, to: &[String]) -> String {
    // A header is a line of ASCII; what is no ASCII stands in the text as well.
    let subject: String =
        notice.subject.chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' }).collect();
    let date = jiff::fmt::rfc2822::to_string(&jiff::Zoned::now()).unwrap_or_default();
    format!(
        "From: {from}\nTo: {}\nSubject: {subject}\nDate: {date}\nMIME-Version: 1.0\n\
         Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\
         Auto-Submitted: auto-generated\n\n{}\n",
        to.join(", "),
        notice.text
    )
}

/// Posts the notice as JSON. The address may hold a token and is not told.
///
/// # Errors
/// That it cannot be reached, or answers with another code than 2xx.
pub async fn web_hook(notice: &Notice, url: &str) -> Result<()> {
    let failed = |text: String| RunError::Tool { tool: "the web hook".into(), text };
    let client = reqwest::Client::builder()
        .timeout(LIMIT)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|cause| failed(crate::chain(&cause.without_url())))?;
    let sent = client
        .post(url)
        .header("content-type", "application/json")
        .body(notice.json.to_string())
        .send()
        .await
        .map_err(|cause| failed(crate::chain(&cause.without_url())))?;
    match sent.status() {
        status if status.is_success() => Ok(()),
        status => Err(failed(format!("it answers {status}"))),
    }
}

/// Shows the subject among the engine's events.
///
/// # Errors
/// As any request, e.g. without the permit `inject_external_events`.
pub async fn engine_event(notice: &Notice, engine: &Engine) -> Result<()> {
    // Origin and id together must be new, also of two commands that end in the same second; the
    // engine's field is a signed integer of 32 bits.
    let id = uuid::Uuid::new_v4().as_fields().0 & 0x7fff_ffff;
    let event = NewEvent {
        description: notice.subject.clone(),
        severity: if notice.failed { "error" } else { "normal" }.into(),
        origin: "hvbak".into(),
        custom_id: id,
        vm: None,
    };
    engine.post_event(&event).await.map_err(error::engine("post an event"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_stays_one_line_and_the_text_says_all() {
        let notice = Notice {
            subject: "hvbak: wéb1\nBcc: all@example.com".into(),
            text: "wéb1 failed".into(),
            json: serde_json::Value::Null,
            failed: true,
        };
        let letter = letter(&notice, "hvbak@backup1", &["a@example.com".into()]);
        let (head, text) = letter.split_once("\n\n").unwrap();
        assert!(head.contains("Subject: hvbak: w?b1?Bcc: all@example.com\n"), "{head}");
        assert_eq!(text, "wéb1 failed\n");
    }
}
