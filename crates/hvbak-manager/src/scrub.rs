//! Logs and outputs without what looks like a secret: values of passwords, passwords in
//! addresses and in lines of a passfile, private keys.
//!
//! A log is kept readable where the archive beside it is encrypted: it tells why a run
//! failed, on the machine that has no key. Recorded logs of the real program hold no secret
//! (the tests say so); this is for what psql, tar or a site's own hooks may print. What is
//! judged is what was printed; what is kept and quoted goes through here. Invariants: bytes
//! that are no secret stay as they are; a line without an end takes no more memory than
//! [`LINE_MAX`] and what comes at once, and time in proportion to its length.

#[path = "scrub_key.rs"]
mod key;

use key::Key;

/// Longer lines are looked at in pieces.
const LINE_MAX: usize = 64 << 10;
/// So much of a piece waits for the next one: a name and what divides it from its value.
const HOLD: usize = 256;
/// So far is looked for the end of what may be long and is seldom there.
const NEAR: usize = HOLD - 56;
const REMOVED: &[u8] = b"[removed]";
/// What the name of a secret ends or begins with.
const WORDS: [&[u8]; 4] = [b"password", b"passwd", b"passphrase", b"secret"];
/// What ends a value that is not quoted, and what may stand behind one that is.
const ENDS: &[u8] = b" \t\r\n;,&";
const AFTER_QUOTED: &[u8] = b" \t\r\n;,&)]}>|";
/// What follows the name of an option in a sentence about it.
const SENTENCE: [&[u8]; 16] = [
    b"and", b"are", b"can", b"cannot", b"for", b"has", b"in", b"is", b"may", b"must", b"needs",
    b"not", b"option", b"or", b"to", b"was",
];

/// Scrubs a stream.
#[derive(Debug, Default)]
pub struct Scrubber {
    line: Vec<u8>,
    key: Option<Key>,
    /// The piece before ended within a secret: it goes on until a blank.
    in_value: bool,
}

/// A text in one piece.
pub fn text(text: &str) -> String {
    let mut scrubber = Scrubber::default();
    let mut kept = scrubber.take(text.as_bytes());
    kept.extend(scrubber.end());
    String::from_utf8_lossy(&kept).into_owned()
}

impl Scrubber {
    /// Takes what comes next; gives what may be kept of the lines that ended.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut kept = Vec::with_capacity(bytes.len());
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            for piece in part.chunks(LINE_MAX / 2) {
                self.line.extend_from_slice(piece);
                if piece.ends_with(b"\n") {
                    self.flush(&mut kept, true);
                } else if self.line.len() >= LINE_MAX {
                    self.flush(&mut kept, false);
                }
            }
        }
        kept
    }

    /// What is left of the last line.
    pub fn end(mut self) -> Vec<u8> {
        let mut kept = Vec::new();
        self.flush(&mut kept, true);
        kept
    }

    /// A line, or the piece of one that goes on; what of a piece can only be understood with
    /// the next one stays.
    fn flush(&mut self, kept: &mut Vec<u8>, whole: bool) {
        let mut line = std::mem::take(&mut self.line);
        if self.in_value {
            let end = line.iter().position(u8::is_ascii_whitespace);
            line.drain(..end.unwrap_or(line.len()));
            self.in_value = end.is_none() && !whole;
        }
        if line.is_empty() {
            return;
        }
        let own = key::is_own(&line);
        if let Some(begin) = key::begin(&line) {
            // What stands before it, unless that is the rest of another one.
            let before = if self.key.is_some() && !own { &[] } else { &line[..begin] };
            scrub(before, &secrets(before), kept);
            kept.extend_from_slice(b"[a private key was removed]\n");
            let is_open = find(&line[begin..], b"-----END ").is_none();
            self.key = is_open.then(|| Key::begun(&line[..begin]));
            return;
        }
        if let Some(key) = &mut self.key {
            // Whatever stands where a key should: nothing of it until its end, or a line
            // that begins as the program's own do and holds no piece of the key.
            let ends =
                if own { key.is_ended_by(&line) } else { find(&line, b"-----END ").is_some() };
            let is_of_key = !own || ends || key.holds(&line);
            if ends || !is_of_key {
                self.key = None;
            }
            if is_of_key {
                return;
            }
        }
        let secrets = secrets(&line);
        let mut cut = line.len();
        if !whole {
            cut = line.len().saturating_sub(HOLD);
            for secret in secrets.iter().rev() {
                if secret.to <= cut {
                    break;
                }
                cut = cut.min(secret.name);
            }
            if cut < line.len() / 2 {
                // A secret without an end in sight.
                cut = line.len();
                self.in_value = secrets.last().is_some_and(|last| last.to == cut);
            }
        }
        scrub(&line[..cut], &secrets, kept);
        self.line = line.split_off(cut);
    }
}

/// A secret in a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Secret {
    from: usize,
    to: usize,
    /// Where that begins which says that it is one.
    name: usize,
}

/// All of them, in their order.
fn secrets(line: &[u8]) -> Vec<Secret> {
    let mut found = [values(line), addresses(line), passfile(line)].concat();
    found.sort_unstable();
    // One in another is the other's.
    let mut end = 0;
    found.retain(|secret| {
        let is_new = secret.from >= end && secret.from < secret.to;
        end = if is_new { secret.to } else { end };
        is_new
    });
    found
}

fn scrub(line: &[u8], secrets: &[Secret], kept: &mut Vec<u8>) {
    let mut at = 0;
    for secret in secrets.iter().take_while(|s| s.to <= line.len()) {
        kept.extend_from_slice(&line[at..secret.from]);
        kept.extend_from_slice(REMOVED);
        at = secret.to;
    }
    kept.extend_from_slice(&line[at..]);
}

/// What was seen of the word, and of the tag, that the scan is in.
#[derive(Debug, Default)]
struct Around {
    /// Bytes of the word so far.
    length: usize,
    is_option: bool,
    has_slash: bool,
    /// In `<…`, and not in `</…`.
    in_tag: bool,
}

impl Around {
    fn see(&mut self, byte: u8, before: Option<u8>) {
        match byte {
            b'<' => self.in_tag = true,
            b'>' => self.in_tag = false,
            b'/' if before == Some(b'<') => self.in_tag = false,
            _ => {}
        }
        if matches!(byte, b' ' | b'\t') {
            *self = Self { in_tag: self.in_tag, ..Self::default() };
            return;
        }
        self.is_option |= self.length == 0 && byte == b'-';
        self.has_slash |= byte == b'/';
        self.length += 1;
    }
}

/// `NAME_PASSWORD=value`, `password: value`, `--db-password value`, `PASSWORD 'value'` of SQL,
/// `"password": "value"` of JSON, `<password>value</password>`. Every byte is gone over once.
fn values(line: &[u8]) -> Vec<Secret> {
    let (mut found, mut around, mut at) = (Vec::new(), Around::default(), 0);
    while at < line.len() {
        let mut next = at + 1;
        if let Some(word) = WORDS.iter().find(|word| begins(&line[at..], word)) {
            next = at + word.len();
            next += line[next..].iter().take_while(|b| is_of_name(**b)).count();
            if let Some((from, to)) = value(line, next, &around) {
                found.push(Secret { from, to, name: at });
                next = next.max(to);
            }
        }
        for i in at..next {
            around.see(line[i], i.checked_sub(1).map(|i| line[i]));
        }
        at = next;
    }
    found
}

fn begins(rest: &[u8], word: &[u8]) -> bool {
    rest.get(..word.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(word))
}

fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_-\"'".contains(&byte)
}

/// The value behind a name that ends at `end`, without its quotes.
fn value(line: &[u8], end: usize, around: &Around) -> Option<(usize, usize)> {
    let blanks = |at: usize| line[at..].iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
    let is_quote = |byte: Option<&u8>| matches!(byte, Some(b'"' | b'\''));
    // JSON in a text of JSON: its quotes are escaped.
    let end = if line[end..].starts_with(b"\\\"") { end + 2 } else { end };
    let gap = blanks(end);
    let at = end + gap;
    let rest = &line[at..];
    let named = match rest {
        [b'=', ..] => true,
        // The file of that name: `/etc/secret: Permission denied`.
        [b':', ..] if !around.has_slash => gap == 0 || is_quote(line.get(end - 1)),
        _ => false,
    };
    if named {
        let from = at + 1 + blanks(at + 1);
        return Some(value_at(line, from));
    }
    if rest.first() == Some(&b'>') && around.in_tag {
        let length = rest.iter().position(|b| *b == b'<').unwrap_or(rest.len());
        return Some((at + 1, (at + length).max(at + 1)));
    }
    if gap == 0 {
        return None;
    }
    let near = &rest[..rest.len().min(NEAR)];
    if around.in_tag
        && let Some(close) = near.iter().position(|b| matches!(b, b'<' | b'>'))
        && near[close] == b'>'
        && !near[..close].ends_with(b"/")
        && near[..close].contains(&b'=')
    {
        let from = at + close + 1;
        let length = line[from..].iter().position(|b| *b == b'<');
        return Some((from, length.map_or(line.len(), |length| from + length)));
    }
    let sql = rest.first() == Some(&b'\'') || prefix(rest).is_some();
    if sql {
        return Some(value_at(line, at));
    }
    let word = rest.split(|b| ENDS.contains(b)).next().unwrap_or_default();
    let told = word.is_empty() || word.starts_with(b"-") || SENTENCE.contains(&word);
    (around.is_option && !told).then(|| value_at(line, at))
}

/// What stands before the quote in `E'…'` of SQL, `u'…'` of Python, `str:'…'` of an answer
/// file.
fn prefix(rest: &[u8]) -> Option<usize> {
    let length = match rest {
        [b'E' | b'e' | b'u' | b'b' | b'r', ..] => 1,
        _ if rest.starts_with(b"str:") => 4,
        _ => return None,
    };
    matches!(rest.get(length), Some(b'\'' | b'"')).then_some(length)
}

/// From where to where a value is that begins here.
fn value_at(line: &[u8], from: usize) -> (usize, usize) {
    let from = from + prefix(&line[from..]).unwrap_or(0);
    let rest = &line[from..];
    let until =
        |ends: &[u8]| from + rest.iter().position(|b| ends.contains(b)).unwrap_or(rest.len());
    match rest {
        [quote @ (b'"' | b'\''), ..] => (from + 1, quoted_end(line, from + 1, *quote)),
        [b'\\', b'"', ..] => (from + 2, escaped_end(line, from + 2)),
        [b'[', ..] => (from, until(b"]\r\n")),
        _ => (from, until(ENDS)),
    }
}

/// The end of a value within quotes: where they close for good. A backslash takes the next
/// byte along; what is joined to them, as a shell and SQL do, belongs to it.
fn quoted_end(line: &[u8], from: usize, quote: u8) -> usize {
    let (mut open, mut closed, mut at) = (Some(quote), None, from);
    while at < line.len() {
        let byte = line[at];
        match open {
            _ if matches!(byte, b'\r' | b'\n') => break,
            _ if byte == b'\\' => at += 1,
            Some(quote) if byte == quote => (open, closed) = (None, Some(at)),
            None if matches!(byte, b'"' | b'\'') => open = Some(byte),
            None if AFTER_QUOTED.contains(&byte) => break,
            _ => {}
        }
        at += 1;
    }
    let at = at.min(line.len());
    closed.filter(|closed| closed + 1 == at).unwrap_or(at)
}

/// The end of a value within escaped quotes. An escaped backslash is one of the JSON within,
/// and takes what comes next along.
fn escaped_end(line: &[u8], from: usize) -> usize {
    let unit = |at: usize| if line.get(at) == Some(&b'\\') { 2 } else { 1 };
    let mut at = from;
    while at < line.len() {
        match &line[at..] {
            [b'\\', b'"', ..] | [b'\r' | b'\n', ..] => return at,
            [b'\\', b'\\', ..] => at += 2 + unit(at + 2),
            _ => at += unit(at),
        }
    }
    line.len()
}

/// `scheme://user:password@host`.
fn addresses(line: &[u8]) -> Vec<Secret> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(next) = find(&line[at..], b"://") {
        let name = at + next;
        at = name + 3;
        let rest = &line[at..];
        let end = rest.iter().position(|b| b" \t\r\n/\"'".contains(b)).unwrap_or(rest.len());
        let user = &rest[..end];
        if let Some(host) = user.iter().rposition(|b| *b == b'@')
            && let Some(colon) = user[..host].iter().position(|b| *b == b':')
        {
            found.push(Secret { from: at + colon + 1, to: at + host, name });
        } else if let Some(colon) = user.iter().position(|b| *b == b':')
            && !user.starts_with(b"[")
            && !user[colon + 1..].iter().all(u8::is_ascii_digit)
        {
            // A slash in the password; a number before it is a port.
            let near = &rest[..rest.len().min(NEAR)];
            let word = near.split(|b| b" \t\r\n\"'".contains(b)).next().unwrap_or_default();
            if let Some(host) = word.iter().rposition(|b| *b == b'@').filter(|host| *host > colon) {
                found.push(Secret { from: at + colon + 1, to: at + host, name });
            }
        }
    }
    found
}

/// `host:port:database:user:password`, the whole line.
fn passfile(line: &[u8]) -> Vec<Secret> {
    let text = line.trim_ascii_end();
    let fields: Vec<&[u8]> = text.splitn(5, |b| *b == b':').collect();
    let [host, port, database, user, password] = fields[..] else { return Vec::new() };
    let plain = [host, database, user].iter().all(|f| !f.is_empty() && !f.contains(&b' '));
    let number = port == b"*" || (!port.is_empty() && port.iter().all(u8::is_ascii_digit));
    if plain && number && !password.is_empty() {
        vec![Secret { from: text.len() - password.len(), to: text.len(), name: 0 }]
    } else {
        Vec::new()
    }
}

fn find(line: &[u8], what: &[u8]) -> Option<usize> {
    line.windows(what.len()).position(|w| w == what)
}

#[cfg(test)]
#[path = "scrub_tests.rs"]
mod tests;
