//! What a command left behind: exit status, capped output, text made harmless.
//!
//! Text of a host may carry terminal escapes or be endless; nothing of it reaches a log
//! or a terminal except through [`neutralise`] and a cap.

use std::fmt;

use crate::error::{Error, Result};

/// Bytes of stderr kept per command: enough for a backtrace, too little to flood a log.
pub(crate) const STDERR_CAP: usize = 16 * 1024;

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(u32),
    /// A signal killed it; the name is without `SIG` (`TERM`, `KILL`).
    Signal(String),
}

impl ExitStatus {
    /// Code 0.
    pub fn success(&self) -> bool {
        *self == Self::Code(0)
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(name) => write!(f, "killed by SIG{name}"),
        }
    }
}

/// The outcome of a short command.
#[derive(Debug, Clone)]
pub struct Output {
    /// The host, for messages.
    pub host: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output, at most `SshOptions::max_output` bytes.
    pub stdout: Vec<u8>,
    /// Whether output beyond the cap was thrown away.
    pub truncated: bool,
    /// The last 16 KiB of standard error, neutralised.
    pub stderr: String,
}

impl Output {
    /// Standard output as neutralised text without the final newline.
    pub fn text(&self) -> String {
        neutralise(&self.stdout).trim_end_matches('\n').to_owned()
    }

    /// The output if the command succeeded, else [`Error::Command`] that says what
    /// `action` ("read the clock") was attempted.
    pub fn check(self, action: &'static str) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        Err(Error::Command {
            host: self.host,
            action,
            status: self.status,
            stderr: one_line(&self.stderr),
        })
    }
}

/// Makes foreign text harmless for terminals and logs: invalid UTF-8, control characters
/// except newline and tab, and bidirectional overrides become U+FFFD.
pub fn neutralise(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|c| match c {
            '\n' | '\t' => c,
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' => {
                char::REPLACEMENT_CHARACTER
            }
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect()
}

/// The last lines of a text on one line, at most 600 characters, for error messages.
pub(crate) fn one_line(text: &str) -> String {
    let joined = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let count = joined.chars().count();
    if count <= 600 {
        return joined;
    }
    let tail: String = joined.chars().skip(count - 600).collect();
    format!("…{tail}")
}

/// The last [`STDERR_CAP`] bytes of a stream.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    bytes: Vec<u8>,
    cut: bool,
}

impl Tail {
    pub(crate) fn push(&mut self, more: &[u8]) {
        let more = if more.len() > STDERR_CAP {
            self.cut = true;
            &more[more.len() - STDERR_CAP..]
        } else {
            more
        };
        self.bytes.extend_from_slice(more);
        // Cut with slack, so that a flood moves each byte about once.
        if self.bytes.len() > 2 * STDERR_CAP {
            self.cut = true;
            let from = self.bytes.len() - STDERR_CAP;
            self.bytes.drain(..from);
        }
    }

    pub(crate) fn text(&self) -> String {
        let from = self.bytes.len().saturating_sub(STDERR_CAP);
        let text = neutralise(&self.bytes[from..]);
        if self.cut || from > 0 { format!("…{text}") } else { text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_cannot_drive_a_terminal() {
        assert_eq!(
            neutralise(b"a\x1b[31mb\tc\nd\r\x07\xff"),
            "a\u{fffd}[31mb\tc\nd\u{fffd}\u{fffd}\u{fffd}"
        );
        assert_eq!(neutralise("x\u{202e}y\u{9b}".as_bytes()), "x\u{fffd}y\u{fffd}");
    }

    #[test]
    fn the_tail_keeps_the_end() {
        let mut tail = Tail::default();
        for i in 0..100_000 {
            tail.push(format!("line {i}\n").as_bytes());
        }
        let text = tail.text();
        assert!(text.len() <= STDERR_CAP + 4 && text.ends_with("line 99999\n"));
        assert!(text.starts_with('…'));
        tail.push(&vec![b'x'; 1 << 20]);
        assert!(tail.text().ends_with("xxx"));
    }
}
