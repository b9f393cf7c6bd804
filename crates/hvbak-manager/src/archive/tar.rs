//! Tar files member by member, from a stream, with bounded memory.
//!
//! The `tar` crate decodes the header fields. Its own iterator is not used: it reads long
//! names into memory whatever size they claim. Sparse members (GNU, as `tar -S` writes
//! them) are handed out expanded, which is what their checksums are over.

use std::{
    collections::VecDeque,
    io::{self, Read},
};

use tar::{EntryType, Header};

const BLOCK: usize = 512;
/// Longest name or extended header that is taken.
const NAME_MAX: u64 = 64 << 10;
/// Most pieces of one sparse member.
const PIECES_MAX: usize = 1 << 18;
/// Larger members are not believed.
const SIZE_MAX: u64 = 1 << 50;

/// Why a tar file cannot be read on.
#[derive(Debug)]
pub enum Flaw {
    /// It could not be read.
    Io(io::Error),
    /// It is not what it should be.
    Bad(String),
}

impl From<io::Error> for Flaw {
    fn from(cause: io::Error) -> Self {
        Self::Io(cause)
    }
}

fn bad<T>(text: impl Into<String>) -> Result<T, Flaw> {
    Err(Flaw::Bad(text.into()))
}

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    /// A device, a pipe, or something unheard of.
    Other(u8),
}

/// One member.
#[derive(Debug)]
pub struct Member {
    pub name: Vec<u8>,
    pub kind: Kind,
    /// Target of a hard or symbolic link.
    pub link: Vec<u8>,
    /// Bytes with holes filled.
    pub size: u64,
}

/// Walks a tar file.
pub struct Walker<R> {
    inner: R,
    /// Logical size of the current member and how far it was read.
    size: u64,
    at: u64,
    pieces: VecDeque<(u64, u64)>,
    /// Bytes of the current member that are still in the stream, and its padding.
    stored: u64,
    padding: u64,
    ended: bool,
}

impl<R: Read> Walker<R> {
    pub fn new(inner: R) -> Self {
        let pieces = VecDeque::new();
        Self { inner, size: 0, at: 0, pieces, stored: 0, padding: 0, ended: false }
    }

    /// The next member; `None` after the end mark, when nothing but zeros follows it.
    pub fn next_member(&mut self) -> Result<Option<Member>, Flaw> {
        let (mut long_name, mut long_link, mut long_size) = (None, None, None);
        loop {
            let Some(header) = self.next_header()? else { return Ok(None) };
            let size = header.entry_size().map_err(|e| Flaw::Bad(e.to_string()))?;
            match header.entry_type() {
                EntryType::GNULongName => long_name = Some(self.text(size)?),
                EntryType::GNULongLink => long_link = Some(self.text(size)?),
                EntryType::XGlobalHeader => drop(self.text(size)?),
                EntryType::XHeader => {
                    let text = self.text(size)?;
                    for (key, value) in records(&text)? {
                        match key {
                            b"path" => long_name = Some(value.to_vec()),
                            b"linkpath" => long_link = Some(value.to_vec()),
                            b"size" => {
                                let size = std::str::from_utf8(value).ok();
                                long_size = size.and_then(|v| v.parse::<u64>().ok());
                            }
                            _ if key.starts_with(b"GNU.sparse") => {
                                return bad("a sparse member in a format engine-backup never uses");
                            }
                            _ => {}
                        }
                    }
                }
                kind => {
                    let name = long_name.unwrap_or_else(|| header.path_bytes().into_owned());
                    let link = long_link.unwrap_or_else(|| {
                        header.link_name_bytes().unwrap_or_default().into_owned()
                    });
                    let size = long_size.unwrap_or(size);
                    self.begin(&header, kind, size)?;
                    return Ok(Some(Member { name, kind: kind_of(kind), link, size: self.size }));
                }
            }
        }
    }

    /// Reads the current member, holes as zeros.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Flaw> {
        let room = u64::try_from(buffer.len()).unwrap_or(u64::MAX).min(self.size - self.at);
        if room == 0 {
            return Ok(0);
        }
        while self.pieces.front().is_some_and(|(at, len)| at + len <= self.at) {
            self.pieces.pop_front();
        }
        let (hole, count) = match self.pieces.front() {
            Some((start, len)) if *start <= self.at => (false, room.min(start + len - self.at)),
            Some((start, _)) => (true, room.min(start - self.at)),
            None => (true, room),
        };
        let count = usize::try_from(count).unwrap_or(buffer.len());
        let Some(part) = buffer.get_mut(..count) else { return Ok(0) };
        if hole {
            part.fill(0);
        } else {
            self.inner.read_exact(part).map_err(cut)?;
            self.stored -= count as u64;
        }
        self.at += count as u64;
        Ok(count)
    }

    fn skip(&mut self, count: u64) -> Result<(), Flaw> {
        let done = io::copy(&mut (&mut self.inner).take(count), &mut io::sink())?;
        if done < count { bad("it ends in the middle of a member") } else { Ok(()) }
    }

    fn next_header(&mut self) -> Result<Option<Header>, Flaw> {
        if self.ended {
            return Ok(None);
        }
        self.skip(self.stored + self.padding)?;
        (self.stored, self.padding, self.size, self.at) = (0, 0, 0, 0);
        self.pieces.clear();
        let mut block = [0; BLOCK];
        self.inner.read_exact(&mut block).map_err(cut)?;
        if block.iter().all(|b| *b == 0) {
            self.ended = true;
            return self.rest().map(|()| None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 = header.as_bytes().iter().enumerate().fold(0, |sum, (at, byte)| {
            // The field itself counts as eight blanks.
            sum + if (148..156).contains(&at) { 32 } else { u32::from(*byte) }
        });
        match header.cksum() {
            Ok(stored) if stored == sum => {}
            _ => return bad("a member's header is damaged"),
        }
        let size = header.entry_size().map_err(|e| Flaw::Bad(e.to_string()))?;
        if size > SIZE_MAX {
            return bad(format!("a member claims {size} bytes"));
        }
        Ok(Some(header))
    }

    /// What follows the first zero block: at least one more, and nothing else.
    fn rest(&mut self) -> Result<(), Flaw> {
        let mut buffer = [0; 8192];
        let mut total = 0;
        loop {
            match self.inner.read(&mut buffer) {
                Ok(0) if total < BLOCK => return bad("its end mark is cut"),
                Ok(0) => return Ok(()),
                Ok(count) => {
                    total = total.saturating_add(count);
                    if buffer.iter().take(count).any(|b| *b != 0) {
                        return bad("data follows the end mark");
                    }
                }
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause.into()),
            }
        }
    }

    /// The body of an extension header: a name or records.
    fn text(&mut self, size: u64) -> Result<Vec<u8>, Flaw> {
        if size > NAME_MAX {
            return bad(format!("a member's name claims {size} bytes"));
        }
        let mut text = Vec::new();
        (&mut self.inner).take(size).read_to_end(&mut text)?;
        if (text.len() as u64) < size {
            return bad("it ends in the middle of a name");
        }
        self.skip(pad(size))?;
        while text.last() == Some(&0) {
            text.pop();
        }
        Ok(text)
    }

    fn begin(&mut self, header: &Header, kind: EntryType, size: u64) -> Result<(), Flaw> {
        if size > SIZE_MAX {
            return bad(format!("a member claims {size} bytes"));
        }
        // Links say the size of their target and carry nothing.
        let carried =
            matches!(kind, EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse);
        if !carried {
            return Ok(());
        }
        (self.stored, self.padding) = (size, pad(size));
        self.size = size;
        if kind != EntryType::GNUSparse {
            self.pieces.push_back((0, size));
            return Ok(());
        }
        let field = |value: io::Result<u64>| value.map_err(|e| Flaw::Bad(e.to_string()));
        let Some(gnu) = header.as_gnu() else { return bad("a sparse member without a map") };
        self.size = field(gnu.real_size())?;
        if self.size > SIZE_MAX {
            return bad(format!("a sparse member claims {} bytes", self.size));
        }
        let (mut end, mut sum) = (0, 0_u64);
        let mut extended = gnu.is_extended();
        let mut parts: Vec<_> = gnu.sparse.iter().map(|p| (p.offset(), p.length())).collect();
        loop {
            for (offset, length) in parts {
                // The list ends where an offset field is empty.
                let (Ok(offset), Ok(length)) = (offset, length) else { break };
                if length == 0 {
                    continue;
                }
                let stop = offset.checked_add(length);
                let Some(stop) = stop.filter(|s| offset >= end && *s <= self.size) else {
                    return bad("the map of a sparse member contradicts itself");
                };
                if self.pieces.len() == PIECES_MAX {
                    return bad("a sparse member has too many pieces");
                }
                self.pieces.push_back((offset, length));
                (end, sum) = (stop, sum + length);
            }
            if !extended {
                break;
            }
            let mut block = [0; BLOCK];
            self.inner.read_exact(&mut block).map_err(cut)?;
            // 21 entries of two octal fields, then whether another block follows.
            extended = block[504] == 1;
            parts =
                block[..504].chunks_exact(24).map(|p| (octal(&p[..12]), octal(&p[12..]))).collect();
        }
        if sum != size {
            return bad("the map of a sparse member contradicts its size");
        }
        Ok(())
    }
}

fn kind_of(kind: EntryType) -> Kind {
    match kind {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::HardLink,
        other => Kind::Other(other.as_byte()),
    }
}

/// A numeric field: octal text, or big-endian binary behind a set top bit.
fn octal(field: &[u8]) -> io::Result<u64> {
    let wrong = || io::Error::from(io::ErrorKind::InvalidData);
    if field.first().is_some_and(|b| b & 0x80 != 0) {
        return Ok(field.iter().skip(field.len() - 8).fold(0, |n, b| n << 8 | u64::from(*b)));
    }
    let text = std::str::from_utf8(field).map_err(|_| wrong())?;
    u64::from_str_radix(text.trim_matches(['\0', ' ']), 8).map_err(|_| wrong())
}

/// Key and value of an extended header.
type Record<'a> = (&'a [u8], &'a [u8]);

/// `LENGTH KEY=VALUE\n`, repeated.
fn records(mut text: &[u8]) -> Result<Vec<Record<'_>>, Flaw> {
    let mut found = Vec::new();
    while !text.is_empty() {
        let record = text
            .iter()
            .position(|b| *b == b' ')
            .and_then(|blank| {
                let length: usize = std::str::from_utf8(&text[..blank]).ok()?.parse().ok()?;
                let record = text.get(blank + 1..length)?;
                text = &text[length..];
                Some(record)
            })
            .and_then(|record| {
                let record = record.strip_suffix(b"\n").unwrap_or(record);
                let equals = record.iter().position(|b| *b == b'=')?;
                Some((&record[..equals], &record[equals + 1..]))
            });
        match record {
            Some(record) => found.push(record),
            None => return bad("an extended header is damaged"),
        }
    }
    Ok(found)
}

fn pad(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

fn cut(cause: io::Error) -> Flaw {
    if cause.kind() == io::ErrorKind::UnexpectedEof && cause.get_ref().is_none() {
        return Flaw::Bad("it is cut off".into());
    }
    Flaw::Io(cause)
}
