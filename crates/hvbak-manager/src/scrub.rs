//! Logs and outputs without what looks like a secret: values of passwords, passwords in
//! addresses and in lines of a passfile, private keys.
//!
//! A log is kept readable where the archive beside it is encrypted: it tells why a run
//! failed, on the machine that has no key. Recorded logs of the real program hold no secret
//! (the tests say so); this is for what psql, tar or a site's own hooks may print. A line is
//! looked at as a whole up to [`LINE_MAX`] bytes; every other byte stays as it is.

/// Longer lines are looked at in pieces.
const LINE_MAX: usize = 64 << 10;
const REMOVED: &[u8] = b"[removed]";
/// What the name of a secret ends or begins with.
const WORDS: [&[u8]; 4] = [b"password", b"passwd", b"passphrase", b"secret"];

/// Scrubs a stream.
#[derive(Debug, Default)]
pub struct Scrubber {
    line: Vec<u8>,
    in_key: bool,
}

impl Scrubber {
    /// Takes what comes next; gives what may be kept of the lines that ended.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut kept = Vec::with_capacity(bytes.len());
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.line.len() >= LINE_MAX {
                self.flush(&mut kept);
            }
        }
        kept
    }

    /// What is left of the last line.
    pub fn end(mut self) -> Vec<u8> {
        let mut kept = Vec::new();
        self.flush(&mut kept);
        kept
    }

    fn flush(&mut self, kept: &mut Vec<u8>) {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return;
        }
        let says = |what: &[u8]| find(&line, what).is_some();
        if says(b"-----BEGIN ") && says(b"PRIVATE KEY") {
            self.in_key = true;
            kept.extend_from_slice(b"[a private key was removed]\n");
        }
        if self.in_key {
            // Whatever stands where a key should: nothing of it until its end, or a line
            // that begins as the program's own do.
            let own = line.len() > 20 && line[4] == b'-' && line[7] == b'-' && line[13] == b':';
            self.in_key = !says(b"-----END ") && !own;
            if !own {
                return;
            }
        }
        scrub(&line, kept);
    }
}

/// One line.
fn scrub(line: &[u8], kept: &mut Vec<u8>) {
    let secrets = [values(line), address(line), passfile(line)].concat();
    let mut at = 0;
    let mut sorted = secrets;
    sorted.sort_unstable();
    for (from, to) in sorted {
        if from < at || from >= to {
            continue;
        }
        kept.extend_from_slice(&line[at..from]);
        kept.extend_from_slice(REMOVED);
        at = to;
    }
    kept.extend_from_slice(&line[at..]);
}

/// `NAME_PASSWORD=value`, `password: value`, quoted or up to a blank.
fn values(line: &[u8]) -> Vec<(usize, usize)> {
    let lower = line.to_ascii_lowercase();
    let mut found = Vec::new();
    for word in WORDS {
        let mut at = 0;
        while let Some(next) = find(&lower[at..], word) {
            at += next + word.len();
            let is_path = lower[..at].iter().rev().take_while(|b| **b != b' ').any(|b| *b == b'/');
            let name = |b: &u8| b.is_ascii_alphanumeric() || b"_\"'".contains(b);
            let mut from = at + lower[at..].iter().take_while(|b| name(b)).count();
            let separator = match lower.get(from..) {
                Some([b'=', ..]) => 1,
                Some([b':', b' ' | b'"', ..]) if !is_path => 1,
                Some([b' ', b'=', ..]) => 2,
                _ => continue,
            };
            from += separator;
            from += lower[from..].iter().take_while(|b| **b == b' ').count();
            let end = match lower.get(from) {
                Some(quote @ (b'"' | b'\'')) => {
                    from += 1;
                    lower[from..].iter().position(|b| b == quote)
                }
                _ => lower[from..].iter().position(|b| b" \t\r\n;,&".contains(b)),
            };
            found.push((from, from + end.unwrap_or(lower.len() - from)));
        }
    }
    found
}

/// `scheme://user:password@host`.
fn address(line: &[u8]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(next) = find(&line[at..], b"://") {
        at += next + 3;
        let rest = &line[at..];
        let end = rest.iter().position(|b| b" \t\r\n/\"'".contains(b)).unwrap_or(rest.len());
        let user = &rest[..end];
        if let Some(host) = user.iter().rposition(|b| *b == b'@')
            && let Some(colon) = user[..host].iter().position(|b| *b == b':')
        {
            found.push((at + colon + 1, at + host));
        }
    }
    found
}

/// `host:port:database:user:password`, the whole line.
fn passfile(line: &[u8]) -> Vec<(usize, usize)> {
    let text = line.trim_ascii_end();
    let fields: Vec<&[u8]> = text.splitn(5, |b| *b == b':').collect();
    let [host, port, database, user, password] = fields[..] else { return Vec::new() };
    let plain = [host, database, user].iter().all(|f| !f.is_empty() && !f.contains(&b' '));
    let number = port == b"*" || (!port.is_empty() && port.iter().all(u8::is_ascii_digit));
    if plain && number && !password.is_empty() {
        vec![(text.len() - password.len(), text.len())]
    } else {
        Vec::new()
    }
}

fn find(line: &[u8], what: &[u8]) -> Option<usize> {
    line.windows(what.len()).position(|w| w == what)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn whole(text: &[u8], pieces: usize) -> Vec<u8> {
        let mut scrubber = Scrubber::default();
        let mut kept: Vec<u8> = text.chunks(pieces).flat_map(|p| scrubber.take(p)).collect();
        kept.extend(scrubber.end());
        kept
    }

    #[test]
    fn secrets_go_and_the_rest_of_the_line_stays() {
        for (line, kept) in [
            ("ENGINE_DB_PASSWORD=\"a b c\"\n", "ENGINE_DB_PASSWORD=\"[removed]\"\n"),
            ("x PGPASSWORD=abc psql -w\n", "x PGPASSWORD=[removed] psql -w\n"),
            (
                "{\"adminPassword\": \"abc\", \"a\": 1}",
                "{\"adminPassword\": \"[removed]\", \"a\": 1}",
            ),
            ("client_secret = abc\r\n", "client_secret = [removed]\r\n"),
            ("postgresql://engine:a:b@db/engine?x", "postgresql://engine:[removed]@db/engine?x"),
            ("localhost:5432:engine:engine:a:b c\n", "localhost:5432:engine:engine:[removed]\n"),
            ("*:*:*:engine:abc", "*:*:*:engine:[removed]"),
            ("password=", "password="),
            (
                "a\n-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\nb\n",
                "a\n[a private key was removed]\nb\n",
            ),
            (
                "-----BEGIN PRIVATE KEY-----\nAAAA\n2026-11-21 02:36:56 77: OUTPUT: - Files\n",
                "[a private key was removed]\n2026-11-21 02:36:56 77: OUTPUT: - Files\n",
            ),
        ] {
            for pieces in [1, 7, 4096] {
                assert_eq!(
                    String::from_utf8_lossy(&whole(line.as_bytes(), pieces)),
                    kept,
                    "{line} in {pieces}"
                );
            }
        }
    }

    #[test]
    fn what_a_person_needs_to_see_stays() {
        for line in [
            "psql: FATAL:  password authentication failed for user \"engine\"\n",
            "FATAL: --db-passfile or --db-password is missing\n",
            "2026-11-21 02:36:56 77: OUTPUT: - Engine database 'engine'\n",
            "cp /var/lib/pgsql/.pgpass: Permission denied\n",
            "tar: /etc/x/secret: Permission denied\n",
            "a:1:b c:d:e\n",
            "https://engine.example.test/ovirt-engine\n",
            "\u{fffd}\0binary\n",
        ] {
            assert_eq!(whole(line.as_bytes(), 5), line.as_bytes(), "{line}");
        }
    }

    #[test]
    fn a_line_without_an_end_takes_no_more_memory_than_its_limit() {
        let mut scrubber = Scrubber::default();
        for _ in 0..100 {
            scrubber.take(&[b'x'; 50_000]);
            assert!(scrubber.line.len() < LINE_MAX + 50_000);
        }
    }

    #[test]
    fn recorded_logs_and_outputs_of_the_real_program_are_kept_as_they_are() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/engine-backup");
        for name in ["4.5.7-all.log", "4.2.8.9-all.log"] {
            let log = fs::read(dir.join(name)).unwrap();
            assert!(whole(&log, 8192) == log, "{name}");
        }
        let runs = fs::read_to_string(dir.join("transcripts.jsonl")).unwrap();
        for run in runs.lines() {
            let run: serde_json::Value = serde_json::from_str(run).unwrap();
            for key in ["stdout", "stderr"] {
                let text = run[key].as_str().unwrap_or_default().as_bytes();
                assert!(whole(text, 100) == text, "{} {key}", run["name"]);
            }
        }
    }
}
