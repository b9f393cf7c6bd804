//! Commands of psql's own in a plain dump.
//!
//! Reads, and runs nothing. Invariant: a dump in which psql could find one is named, at the
//! price of refusing some that are sound.

use std::io::{self, BufRead};

/// The number of the first line in which psql could find a command of its own: it would start
/// programs and write files. psql finds them wherever it sees no text in quotes, and who
/// wrote the dump decides what it sees: so every backslash of every line counts.
///
/// Harmless are those of data (`\N`, `\\`, `\t`, …), for no command that does anything begins
/// so, as long as no program is named in backticks behind them. In some encodings a
/// backslash belongs to the byte before it, if that is not ASCII.
pub fn own_command(dump: impl BufRead) -> io::Result<Option<u64>> {
    for (number, line) in (1..).zip(dump.split(b'\n')) {
        let line = line?;
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        // psql's line would end there, and its next one begin anywhere.
        if line.contains(&0) {
            return Ok(Some(number));
        }
        let unrestrict = line.strip_prefix(b"\\unrestrict ");
        let end = unrestrict.is_some_and(|key| key.iter().all(u8::is_ascii_alphanumeric));
        if !line.contains(&b'\\') || line == b"\\." || end {
            continue;
        }
        if line.contains(&b'`') || !line_is_data(line) {
            return Ok(Some(number));
        }
    }
    Ok(None)
}

fn line_is_data(line: &[u8]) -> bool {
    let mut at = 0;
    while let Some(found) = line[at..].iter().position(|byte| *byte == b'\\') {
        let start = at + found;
        let length = line[start..].iter().take_while(|byte| **byte == b'\\').count();
        at = start + length;
        let shifted = start > 0 && line[start - 1] >= 0x80;
        let escapes = length % 2 == 1 || shifted;
        if escapes && !line.get(at).is_some_and(|next| b"Nbfnrtv".contains(next)) {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_of_psql_are_found_wherever_they_hide() {
        let found = |text: &[u8]| own_command(text).unwrap();
        for good in [
            &b"\\restrict abc1\nCOPY a FROM stdin;\n\\N\tb\\tc\\\\d\n\\.\n\\unrestrict abc1\n"[..],
            b"select E'\\\\d+';\r\n\\.\r\n",
            b"f\xc3\xbc\\n\n`a`\n",
            b"",
        ] {
            assert_eq!(found(good), None, "{}", String::from_utf8_lossy(good));
        }
        for bad in [
            &b"\n\\! id\n"[..],
            b"\n  \\connect x",
            b"\nselect 1; \\! id",
            b"\n\\.\\! id",
            b"\n\\f `id`",
            b"\n\\unrestrict a \\! id",
            b"\n\x81\\\\! id",
            b"\n\\\0\n",
            b"\nx\\",
        ] {
            assert_eq!(found(bad), Some(2), "{}", String::from_utf8_lossy(bad));
        }
    }
}
