//! `SHA256SUMS`: the small files of a point in the format of `sha256sum -c`.
//!
//! Images are not in it on purpose: `sha256sum` would read them whole (at a fifth of
//! BLAKE3's speed, on one core) and still not say which cluster is damaged. Their content
//! is covered by the `.digests` files, and those are covered here.

use std::io::{self, Read};

use hvbak_types::Digest;
use sha2::{Digest as _, Sha256};

/// SHA-256 of bytes.
pub fn of_bytes(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

/// SHA-256 of all that a reader gives.
pub fn of_reader(mut from: impl Read) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(Digest(hasher.finalize().into())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// The text of the file for names and digests, sorted by name.
pub fn render(mut entries: Vec<(String, Digest)>) -> String {
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    entries.iter().map(|(name, digest)| format!("{digest}  {name}\n")).collect()
}

/// Reads the file back; `None` for anything that [`render`] does not write.
pub fn parse(text: &str) -> Option<Vec<(String, Digest)>> {
    let entries: Option<Vec<_>> = text
        .lines()
        .map(|line| {
            let (digest, name) = line.split_once("  ")?;
            let plain = !name.is_empty() && !name.contains(['/', '\\']) && !name.starts_with('.');
            plain.then_some((name.to_owned(), digest.parse().ok()?))
        })
        .collect();
    entries.filter(|entries| render(entries.clone()) == text)
}
