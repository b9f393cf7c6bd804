//! Where words go: data to stdout, talk to stderr, JSON lines when asked.
//!
//! Invariant: with `--json` stdout carries nothing but JSON lines, and the last one has
//! `"type":"result"`.

use std::io::{IsTerminal, Write};

use hvbak_repo::{Level, RunOutcome};
use hvbak_run::{Event, Sink};
use indicatif::HumanBytes;
use serde::Serialize;

use crate::{
    exit::{CliError, chain},
    progress::Bars,
    service::Service,
};

/// How a command speaks.
pub struct Printer {
    pub json: bool,
    /// Who started us, when that is systemd.
    pub service: Service,
    quiet: bool,
    bars: Bars,
}

impl Printer {
    pub fn new(json: bool, quiet: bool, journal: bool) -> Self {
        let live = !json && !quiet && std::io::stderr().is_terminal();
        Self { json, service: Service::new(journal), quiet, bars: Bars::new(live) }
    }

    /// A line of data for people; nothing with `--json`.
    pub fn data(&self, text: &str) {
        if !self.json {
            self.out(text);
        }
    }

    /// A JSON line; nothing without `--json`.
    pub fn record(&self, kind: &str, value: &impl Serialize) {
        if !self.json {
            return;
        }
        let mut value = serde_json::to_value(value).unwrap_or_default();
        let object = match value.as_object_mut() {
            Some(object) => {
                object.entry("type").or_insert_with(|| kind.into());
                value
            }
            None => serde_json::json!({ "type": kind, "value": value }),
        };
        self.out(&object.to_string());
    }

    /// Talk for people, on stderr.
    pub fn say(&self, text: &str) {
        if !self.quiet && !self.json {
            self.err(text);
        }
    }

    /// A question for people, on stderr, whatever else is silent.
    pub fn ask(&self, text: &str) {
        let write = || {
            let mut err = std::io::stderr().lock();
            let _ = write!(err, "{text} ").and_then(|()| err.flush());
        };
        self.bars.aside(write);
    }

    /// Ends a command well or badly: the last line of `--json`, the error for people.
    pub fn finish(&self, code: u8, result: serde_json::Value, error: Option<&CliError>) {
        self.bars.end();
        if self.json {
            let status = match code {
                0 => "done",
                3 => "partly",
                15 => "damage",
                16 => "waiting",
                130 | 143 => "cancelled",
                _ => "failed",
            };
            let mut line = serde_json::json!({ "type": "result", "status": status, "exit": code });
            if let (Some(object), serde_json::Value::Object(more)) = (line.as_object_mut(), result)
            {
                object.extend(more);
                if let Some(error) = error {
                    object.insert("error".into(), chain(error).into());
                    object.insert("hint".into(), error.hint().into());
                }
            }
            self.out(&line.to_string());
        } else if let Some(error) = error {
            self.err(&format!("error: {}", chain(error)));
            if let Some(hint) = error.hint() {
                self.err(&format!("hint: {hint}"));
            }
        }
    }

    fn out(&self, text: &str) {
        let write = || {
            let mut out = std::io::stdout().lock();
            let newline = if text.ends_with('\n') { "" } else { "\n" };
            // A reader that has gone (`| head`) is no error of ours.
            let _ = write!(out, "{text}{newline}").and_then(|()| out.flush());
        };
        self.bars.aside(write);
    }

    fn err(&self, text: &str) {
        if self.service.line(text) {
            return;
        }
        let write = || {
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        };
        self.bars.aside(write);
    }
}

impl Sink for Printer {
    fn event(&self, event: &Event) {
        self.service.during(event, || self.tell(event));
    }
}

impl Printer {
    fn tell(&self, event: &Event) {
        if self.json {
            self.record("event", event);
            return;
        }
        match event {
            Event::JobStarted { total_bytes, .. } => {
                if let Some(total) = total_bytes {
                    self.bars.run(*total);
                }
            }
            Event::VmStarted { name, expected_bytes, .. } => {
                self.say(&format!("{name}: at most {} to read", HumanBytes(*expected_bytes)));
            }
            Event::Phase { text, .. } => self.say(&format!("  {text}")),
            Event::DiskStarted {
                disk,
                alias,
                virtual_size,
                host,
                level,
                reason,
                resumed_bytes,
                ..
            } => {
                if let Some(there) = resumed_bytes {
                    self.say(&format!("  {alias}: {} are there already", HumanBytes(*there)));
                }
                // A full that nobody asked for is worth a line.
                if *level == Some(Level::Full)
                    && let Some(why) = reason
                    && why != "asked for"
                {
                    self.say(&format!("  {alias}: full, {why}"));
                }
                if self.bars.live {
                    self.bars.disk(*disk, alias, *virtual_size);
                } else {
                    self.say(&format!("  {alias}: {} through {host}", HumanBytes(*virtual_size)));
                }
            }
            Event::DiskProgress { disk, done, payload_bytes, .. } => {
                self.bars.disk_at(*disk, *done, *payload_bytes);
            }
            Event::DiskDone { disk, alias, data_bytes, payload_bytes, seconds } => {
                self.bars.disk_done(*disk);
                let rate = (*data_bytes as f64 / seconds.max(0.001)) as u64;
                self.say(&format!(
                    "  {alias}: {} of data, {} moved, {seconds:.1} s ({}/s)",
                    HumanBytes(*data_bytes),
                    HumanBytes(*payload_bytes),
                    HumanBytes(rate)
                ));
            }
            Event::Warning { text, .. } => self.err(&format!("warning: {text}")),
            Event::VmSkipped { name, reason, .. } => {
                self.err(&format!("warning: {name} is left out: {reason}"));
            }
            Event::VmDone { name, point, stored_bytes, seconds, .. } => {
                let what = point.as_ref().map_or_else(String::new, |p| format!(" as {name}@{p}"));
                self.say(&format!(
                    "{name}: done{what}, {} in {seconds:.1} s",
                    HumanBytes(*stored_bytes)
                ));
            }
            Event::Verdict { name, point, action, why, merged_over, .. } => {
                let merged = merged_over.as_ref().map_or("", |_| "; takes over what it stands on");
                let why =
                    if why.is_empty() { String::new() } else { format!(" ({})", why.join(", ")) };
                self.data(&format!("{action:6} {name}@{point}{why}{merged}"));
            }
            Event::MergeProgress { name, done, total, .. } => {
                self.bars.merge_at(name, *done, *total);
            }
            Event::Pruned { .. } => self.bars.merged(),
            Event::VmFailed { name, error, hint, .. } => {
                self.bars.merged();
                self.err(&format!("error: {name}: {error}"));
                if let Some(hint) = hint {
                    self.err(&format!("hint: {hint}"));
                }
            }
            Event::Drilled { what, outcome, text, seconds, .. } => {
                let failed = match outcome {
                    RunOutcome::Done => "",
                    RunOutcome::Failed => "FAILED: ",
                    RunOutcome::Skipped | RunOutcome::Stopped => "not done: ",
                };
                self.data(&format!("{what}: {failed}{text} ({seconds:.0} s)"));
            }
            Event::HostDone { name, text, .. } => self.data(&format!("{name}: {text}")),
            Event::Undone { text } => self.data(text),
        }
    }
}
