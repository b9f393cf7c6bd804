//! The section `[notify]`, and the words of a notice.
//!
//! Invariant: a command ends as it would have without `--notify`.

use std::path::PathBuf;

use hvbak_run::notify::{self, LIMIT, Notice};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    commands::Face,
    config::{Config, read_secret},
    exit::{CliError, chain},
};

/// `[notify]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NotifySection {
    pub when: When,
    pub mail_to: Vec<String>,
    /// Without it: hvbak@ and this machine's name.
    pub mail_from: Option<String>,
    pub sendmail: String,
    /// File with the address, which may hold a token.
    pub web_hook_file: Option<PathBuf>,
    pub engine_event: bool,
}

impl Default for NotifySection {
    fn default() -> Self {
        Self {
            when: When::Failure,
            mail_to: Vec::new(),
            mail_from: None,
            sendmail: "/usr/sbin/sendmail".into(),
            web_hook_file: None,
            engine_event: false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum When {
    /// When the exit code is not 0.
    Failure,
    Always,
}

/// Tells whom the configuration names how a command has ended.
pub async fn send(face: &Face, code: u8, result: &Value, error: Option<&CliError>) {
    // Without a configuration there is nobody to tell; the command has said so.
    let Ok(config) = face.config() else { return };
    let section = &config.notify;
    if code == 0 && section.when == When::Failure {
        return;
    }
    let host = machine();
    let command = command_line(std::env::args().skip(1));
    let notice = notice(&host, &command, code, result, error);
    let from = section.mail_from.clone().unwrap_or_else(|| format!("hvbak@{host}"));
    let mut bad = Vec::new();
    if !section.mail_to.is_empty() {
        let sent = notify::mail(&notice, &section.sendmail, &from, &section.mail_to).await;
        bad.extend(sent.err().map(CliError::from));
    }
    if let Some(file) = &section.web_hook_file {
        match read_secret("web hook file", file) {
            Ok(url) => {
                bad.extend(notify::web_hook(&notice, url.expose()).await.err().map(CliError::from));
            }
            Err(cause) => bad.push(cause.into()),
        }
    }
    if section.engine_event {
        bad.extend(event(face, &config, &notice).await.err());
    }
    for cause in bad {
        face.printer.say(&format!("warning: nobody was told: {}", chain(&cause)));
    }
}

/// Login and event together have an end, and a command that was stopped is told of as well.
async fn event(face: &Face, config: &Config, notice: &Notice) -> Result<(), CliError> {
    let (config_path, printer) = (face.config_path.clone(), face.printer.clone());
    let face = Face { config_path, printer, cancel: CancellationToken::new() };
    let post = async {
        let engine = face.engine(config).await?;
        let posted = notify::engine_event(notice, &engine).await;
        engine.logout().await;
        Ok(posted?)
    };
    let late = |_| {
        let text = format!("the engine did not take the event within {} s", LIMIT.as_secs());
        CliError::from(hvbak_run::RunError::Tool { tool: "an event".into(), text })
    };
    tokio::time::timeout(LIMIT, post).await.map_err(late)?
}

/// This machine's name.
pub fn machine() -> String {
    nix::unistd::gethostname()
        .map_or_else(|_| "unknown".into(), |name| name.to_string_lossy().into_owned())
}

/// What was typed, without where the configuration is.
fn command_line(args: impl Iterator<Item = String>) -> String {
    let mut words = Vec::new();
    let mut args = args;
    while let Some(word) = args.next() {
        match word.as_str() {
            "--config" | "-c" => drop(args.next()),
            "--notify" | "--json" | "--quiet" | "-q" => {}
            glued if glued.starts_with("--config=") => {}
            glued if glued.starts_with("-c") && !glued.starts_with("--") => {}
            _ => words.push(word),
        }
    }
    words.join(" ")
}

fn notice(host: &str, command: &str, code: u8, result: &Value, error: Option<&CliError>) -> Notice {
    let word = match code {
        0 => "done",
        3 => "partly done",
        15 => "DAMAGE found",
        130 | 143 => "stopped",
        _ => "FAILED",
    };
    let mut lines = vec![format!("hvbak {command} on {host}: {word} (exit code {code})")];
    if let Some(error) = error {
        lines.push(format!("error: {}", chain(error)));
        lines.extend(error.hint().map(|hint| format!("hint: {hint}")));
    }
    let list = |key: &str| result[key].as_array().cloned().unwrap_or_default();
    for one in list("failed") {
        let text = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
        lines.push(format!("failed: {}: {}", text("name"), text("error")));
        if !text("hint").is_empty() {
            lines.push(format!("  hint: {}", text("hint")));
        }
    }
    for (key, words) in [
        ("left_behind", "left behind"),
        ("missing", "not there"),
        ("too_old", "no recent point"),
        ("verified_too_old", "no recent verified point"),
        ("managers_too_old", "no recent archive of manager"),
        ("unassigned", "in no policy"),
    ] {
        for one in list(key) {
            lines.push(format!("{words}: {}", one.as_str().unwrap_or_default()));
        }
    }
    for (key, words) in [
        ("not_begun", "VMs were not begun before the window closed"),
        ("commands_failed", "commands of the policy failed"),
        ("damaged", "points are damaged"),
        ("found_damaged", "points were found damaged by the last look at them"),
    ] {
        let count = result[key].as_u64().unwrap_or(0);
        if count > 0 {
            lines.push(format!("{count} {words}"));
        }
    }
    if result["no_manager"] == true {
        lines.push("there is no archive of any manager".into());
    }
    if let Some(why) = result["not_started"].as_str() {
        lines.push(format!("restored, but not started: {why}"));
    }
    if result["closed"] == true {
        let opens = result["opens"].as_str().unwrap_or("never");
        lines.push(format!("the policy's windows are closed; they open next: {opens}"));
    }
    let told = list("done").len();
    if told > 0 {
        lines.push(format!("done: {told}"));
    }
    let error = error.map(|error| json!({ "text": chain(error), "hint": error.hint() }));
    Notice {
        subject: format!("hvbak {command} on {host}: {word}"),
        text: lines.join("\n"),
        json: json!({ "host": host, "command": command, "exit": code, "result": result, "error": error, "text": lines }),
        failed: code != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_names_what_failed_and_what_to_do() {
        let result = json!({
            "done": [{ "name": "web1" }],
            "failed": [{ "name": "db1", "error": "no route to hv1", "hint": "look at the switch" }],
            "left_behind": ["a snapshot of db1"],
            "not_begun": 40,
        });
        let notice = notice("backup1", "backup --policy nightly", 3, &result, None);
        assert_eq!(notice.subject, "hvbak backup --policy nightly on backup1: partly done");
        for line in [
            "failed: db1: no route to hv1",
            "  hint: look at the switch",
            "left behind: a snapshot of db1",
            "done: 1",
            "40 VMs were not begun before the window closed",
        ] {
            assert!(notice.text.lines().any(|l| l == line), "{line}: {}", notice.text);
        }
        let args = ["--config", "/etc/x", "--notify", "backup", "--policy", "nightly"];
        assert_eq!(command_line(args.map(String::from).into_iter()), "backup --policy nightly");
        for config in ["--config=/etc/x", "-c/etc/x", "-c=/etc/x"] {
            let args = [config, "verify", "--all"].map(String::from);
            assert_eq!(command_line(args.into_iter()), "verify --all");
        }
    }
}
