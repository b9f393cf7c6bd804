//! Reading the log of a run that died, batch by batch.

use std::{
    fs::File,
    io::{BufReader, ErrorKind, Read},
    path::{Path, PathBuf},
};

use super::{BATCH, BODY_MAX, HASH, HEAD, Head, MAGIC, RECORD, Record, START, seal};
use crate::error::{At, Result};

/// A log being read.
#[derive(Debug)]
pub struct Replay {
    from: BufReader<File>,
    path: PathBuf,
    head: Head,
    before: [u8; HASH],
    length: u64,
}

impl Replay {
    /// Opens a log; `None` when there is none, or not even its head is whole.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        let file = match File::open(path) {
            Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.reading(path)?,
        };
        let mut from = BufReader::with_capacity(1 << 18, file);
        let mut magic = [0; MAGIC.len()];
        if !fill(&mut from, &mut magic, path)? || magic != MAGIC {
            return Ok(None);
        }
        let mut before = [0; HASH];
        let Some((HEAD, body)) = frame(&mut from, &mut before, path)? else { return Ok(None) };
        let Ok(head) = serde_json::from_slice(&body) else { return Ok(None) };
        let length = (MAGIC.len() + START + body.len() + HASH) as u64;
        Ok(Some(Self { from, path: path.to_owned(), head, before, length }))
    }

    /// What the log says of the whole disk.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The records of the next batch; `None` behind the last whole one.
    pub fn next(&mut self) -> Result<Option<Vec<Record>>> {
        let mut before = self.before;
        let Some((BATCH, body)) = frame(&mut self.from, &mut before, &self.path)? else {
            return Ok(None);
        };
        let (whole, rest) = body.as_chunks::<RECORD>();
        let records: Option<Vec<_>> = whole.iter().map(Record::decode).collect();
        let Some(records) = records.filter(|_| rest.is_empty()) else { return Ok(None) };
        self.before = before;
        self.length += (START + body.len() + HASH) as u64;
        Ok(Some(records))
    }

    /// How long the log is up to the batch that was read last, and that one's hash.
    pub fn reached(&self) -> (u64, [u8; HASH]) {
        (self.length, self.before)
    }
}

/// The next frame, if it is whole.
fn frame(
    from: &mut impl Read,
    before: &mut [u8; HASH],
    path: &Path,
) -> Result<Option<(u32, Vec<u8>)>> {
    let mut start = [0; START];
    if !fill(from, &mut start, path)? {
        return Ok(None);
    }
    let [kind, length] =
        [0, 4].map(|at| u32::from_le_bytes(std::array::from_fn(|i| start[at + i])));
    let length = length as usize;
    if length > BODY_MAX {
        return Ok(None);
    }
    let (mut body, mut hash) = (vec![0; length], [0; HASH]);
    if !fill(from, &mut body, path)? || !fill(from, &mut hash, path)? {
        return Ok(None);
    }
    if seal(before, &start, &body) != hash {
        return Ok(None);
    }
    *before = hash;
    Ok(Some((kind, body)))
}

/// Fills the buffer; `false` at the end of the file.
fn fill(from: &mut impl Read, out: &mut [u8], path: &Path) -> Result<bool> {
    match from.read_exact(out) {
        Err(cause) if cause.kind() == ErrorKind::UnexpectedEof => Ok(false),
        other => other.reading(path).map(|()| true),
    }
}
