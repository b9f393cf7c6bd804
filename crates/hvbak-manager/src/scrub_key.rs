//! Private keys within a log: where one begins, and which lines belong to it, also where a
//! logger has stamped every one of them.
//!
//! Invariant: a line that is stamped belongs to a key only when nothing but a piece of one
//! stands behind the stamp.

/// Longer ones are no stamps.
const STAMP_MAX: usize = 512;
/// A word of so many letters of base64 is a line of a key, whatever the stamp before it.
const LINE: usize = 40;
/// What else stands in a key that is locked.
const HEADERS: [&[u8]; 2] = [b"Proc-Type:", b"DEK-Info:"];

/// A key that has begun and not ended.
#[derive(Debug, Default)]
pub struct Key {
    /// What stood before its lines.
    stamp: Vec<u8>,
}

impl Key {
    /// One whose first line has this before it.
    pub fn begun(before: &[u8]) -> Self {
        Self { stamp: if before.len() > STAMP_MAX { Vec::new() } else { before.to_vec() } }
    }

    /// Whether a line that begins as the program's own do belongs to it.
    pub fn holds(&mut self, line: &[u8]) -> bool {
        let line = line.trim_ascii_end();
        if let Some(rest) = self.behind_stamp(line)
            && (is_base64(rest) || HEADERS.iter().any(|header| rest.starts_with(header)))
        {
            return true;
        }
        let from = line.iter().rposition(u8::is_ascii_whitespace).map_or(0, |at| at + 1);
        let is_body = line.len() - from >= LINE && is_base64(&line[from..]);
        if is_body && from <= STAMP_MAX {
            // The first line may have more before it than these.
            self.stamp = line[..from].to_vec();
        }
        is_body
    }

    /// Whether it is the stamped last line.
    pub fn is_ended_by(&self, line: &[u8]) -> bool {
        self.behind_stamp(line).is_some_and(|rest| rest.starts_with(b"-----END "))
    }

    /// What follows the same stamp with other numbers.
    fn behind_stamp<'a>(&self, line: &'a [u8]) -> Option<&'a [u8]> {
        let digits = |text: &[u8]| text.iter().take_while(|b| b.is_ascii_digit()).count();
        let (mut stamp, mut rest) = (self.stamp.trim_ascii_end(), line);
        while let Some(first) = stamp.first() {
            let (theirs, ours) = (digits(stamp), digits(rest));
            if (theirs == 0) != (ours == 0) || (theirs == 0 && rest.first() != Some(first)) {
                return None;
            }
            stamp = &stamp[theirs.max(1)..];
            rest = &rest[ours.max(1)..];
        }
        Some(rest.trim_ascii_start())
    }
}

fn is_base64(text: &[u8]) -> bool {
    text.iter().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(b))
}

/// Where a private key begins.
pub fn begin(line: &[u8]) -> Option<usize> {
    let begin = super::find(line, b"-----BEGIN ")?;
    super::find(&line[begin..], b"PRIVATE KEY").map(|_| begin)
}

/// Whether a line begins as the program's own do: `2026-11-21 02:14:54 123: `.
pub fn is_own(line: &[u8]) -> bool {
    line.len() > 20 && line[4] == b'-' && line[7] == b'-' && line[13] == b':'
}
