//! Database dumps, checked to their last byte without PostgreSQL.
//!
//! A custom-format dump is walked as pg_restore would: header, table of contents, then
//! every data block chunk by chunk; each entry that promises data must have its block and
//! the file must end after the last one. A plain dump must begin and end with pg_dump's
//! own comments. Layout: PostgreSQL's `pg_backup_archiver.c` and `pg_backup_custom.c`,
//! archive versions 1.10 (8.4) to 1.16 (17).

use std::{
    collections::BTreeSet,
    io::{self, BufRead, Read},
};

use super::tar::Flaw;

/// More entries than any manager has; a bound for memory.
const ENTRIES_MAX: u64 = 1 << 20;
/// Table names that are kept.
const TABLES_MAX: usize = 20_000;
const TAIL: usize = 4096;

/// Whether a dump is pg_dump's own format or SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Custom,
    Plain,
    Sqlite,
}

impl Format {
    /// The word in `config`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Custom => "custom",
            Self::Plain => "plain",
            Self::Sqlite => "sqlite",
        }
    }
}

/// What a dump turned out to be.
#[derive(Debug)]
pub struct Dump {
    pub format: Format,
    /// Bytes after decompression.
    pub size: u64,
    /// Tables that carry data; of custom dumps.
    pub tables: BTreeSet<String>,
    /// Rows of `vm_static`, when they are stored in a way that is understood.
    pub vms: Option<u64>,
}

/// The table whose rows are counted: an engine without any is no engine.
const COUNTED: &str = "vm_static";

fn bad<T>(text: impl Into<String>) -> Result<T, Flaw> {
    Err(Flaw::Bad(text.into()))
}

/// Reads a PostgreSQL dump to its end.
pub fn check(reader: impl Read) -> Result<Dump, Flaw> {
    let mut scan = Scan { inner: io::BufReader::with_capacity(64 << 10, reader), at: 0, int: 4 };
    let start = scan.inner.fill_buf()?;
    if start.is_empty() {
        return bad("the dump is empty");
    }
    if start.starts_with(b"PGDMP") {
        let (tables, vms) = scan.custom()?;
        return Ok(Dump { format: Format::Custom, size: scan.at, tables, vms });
    }
    if start.starts_with(b"--\n-- PostgreSQL database dump") {
        let (size, vms) = plain(scan.inner)?;
        return Ok(Dump { format: Format::Plain, size, tables: BTreeSet::new(), vms });
    }
    bad("it is no dump of PostgreSQL")
}

/// To the end of SQL text; its last lines must say that it is complete.
fn plain(mut reader: impl Read) -> Result<(u64, Option<u64>), Flaw> {
    let (mut tail, mut size) = (Vec::new(), 0);
    let mut rows = Rows::behind(&[b"COPY public.vm_static ", b"COPY vm_static "]);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = reader.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        size += count as u64;
        rows.push(&buffer[..count]);
        tail.extend_from_slice(&buffer[..count]);
        let cut = tail.len().saturating_sub(TAIL);
        tail.drain(..cut);
    }
    let end = b"\n-- PostgreSQL database dump complete\n";
    if !tail.windows(end.len()).any(|w| w == end) {
        return bad("the dump is cut off: pg_dump's last line is missing");
    }
    Ok((size, rows.count()))
}

/// Counts the lines of a COPY up to its end mark, in text that comes in pieces.
struct Rows {
    /// Beginnings of the line before the first; none: the text begins with the first.
    heads: &'static [&'static [u8]],
    state: RowState,
    /// The beginning of the line at hand.
    line: Vec<u8>,
    rows: u64,
}

#[derive(PartialEq, Eq)]
enum RowState {
    Before,
    Within,
    After,
}

impl Rows {
    fn behind(heads: &'static [&'static [u8]]) -> Self {
        let state = if heads.is_empty() { RowState::Within } else { RowState::Before };
        Self { heads, state, line: Vec::new(), rows: 0 }
    }

    fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.state == RowState::After {
                return;
            }
            if byte != b'\n' {
                // Longer beginnings decide nothing.
                if self.line.len() < 64 {
                    self.line.push(byte);
                }
                continue;
            }
            match self.state {
                RowState::Before if self.heads.iter().any(|h| self.line.starts_with(h)) => {
                    self.state = RowState::Within;
                }
                RowState::Within if self.line == b"\\." => self.state = RowState::After,
                RowState::Within => self.rows += 1,
                _ => {}
            }
            self.line.clear();
        }
    }

    /// Only of a COPY that ended.
    fn count(&self) -> Option<u64> {
        (self.state == RowState::After).then_some(self.rows)
    }
}

/// What the table of contents promises.
#[derive(Default)]
struct Contents {
    /// Entries with data.
    promised: BTreeSet<i64>,
    /// Tables with data.
    tables: BTreeSet<String>,
    /// The entry whose rows are counted.
    counted: Option<i64>,
}

struct Scan<R> {
    inner: R,
    at: u64,
    /// Bytes of an integer.
    int: usize,
}

impl<R: BufRead> Scan<R> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Flaw> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), Flaw> {
        match self.inner.read_exact(bytes) {
            Ok(()) => {
                self.at += bytes.len() as u64;
                Ok(())
            }
            Err(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => self.cut(),
            Err(cause) => Err(cause.into()),
        }
    }

    fn cut<T>(&self) -> Result<T, Flaw> {
        bad(format!("the dump is cut off after {} bytes", self.at))
    }

    fn byte(&mut self) -> Result<u8, Flaw> {
        self.bytes::<1>().map(|[byte]| byte)
    }

    /// A sign byte and the magnitude, lowest byte first.
    fn integer(&mut self) -> Result<i64, Flaw> {
        let sign = self.byte()?;
        let mut bytes = [0; 8];
        let width = self.int;
        self.fill(&mut bytes[..width])?;
        let value = i64::try_from(u64::from_le_bytes(bytes)).or_else(|_| bad("a huge number"))?;
        Ok(if sign == 0 { value } else { -value })
    }

    fn skip(&mut self, count: i64) -> Result<(), Flaw> {
        let count = u64::try_from(count).or_else(|_| bad("a negative length"))?;
        let done = io::copy(&mut (&mut self.inner).take(count), &mut io::sink())?;
        self.at += done;
        if done < count { self.cut() } else { Ok(()) }
    }

    /// A string that is not kept; whether there was one.
    fn pass(&mut self) -> Result<bool, Flaw> {
        match self.integer()? {
            -1 => Ok(false),
            length => self.skip(length).map(|()| true),
        }
    }

    /// A short string; a longer one is passed and comes back empty.
    fn short(&mut self) -> Result<String, Flaw> {
        match self.integer()? {
            -1 => Ok(String::new()),
            length @ 0..=256 => {
                let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
                self.fill(&mut bytes)?;
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            length => self.skip(length).map(|()| String::new()),
        }
    }

    /// Tables with data, and the rows of the one that is counted.
    fn custom(&mut self) -> Result<(BTreeSet<String>, Option<u64>), Flaw> {
        let [_, _, _, _, _, major, minor, _, int, offset, format] = self.bytes::<11>()?;
        if major != 1 || !(10..=16).contains(&minor) {
            return bad(format!("archive version {major}.{minor} of pg_dump is not known"));
        }
        if !matches!(int, 4 | 8) || !matches!(offset, 4 | 8) || format != 1 {
            return bad("the header of the dump is damaged");
        }
        self.int = usize::from(int);
        let packed = if minor >= 15 {
            match self.byte()? {
                0 => Packed::No,
                1 => Packed::Zlib,
                _ => Packed::Unknown,
            }
        } else {
            match self.integer()? {
                0 => Packed::No,
                _ => Packed::Zlib,
            }
        };
        for _ in 0..7 {
            self.integer()?;
        }
        for _ in 0..3 {
            self.pass()?;
        }
        let Contents { mut promised, tables, counted } =
            self.contents(minor, usize::from(offset))?;
        let mut rows = None;
        while !self.inner.fill_buf()?.is_empty() {
            let kind = self.byte()?;
            if !matches!(kind, 1 | 3) {
                return bad(format!("no data block begins at byte {}", self.at - 1));
            }
            let id = self.integer()?;
            match kind {
                1 if counted == Some(id) => rows = self.rows(packed)?,
                1 => self.chunks()?,
                _ => {
                    while self.integer()? != 0 {
                        self.chunks()?;
                    }
                }
            }
            if !promised.remove(&id) {
                return bad(format!("a data block of entry {id}, which was not announced"));
            }
        }
        if !promised.is_empty() {
            return bad(format!("the dump is cut off: {} tables have no data", promised.len()));
        }
        Ok((tables, rows))
    }

    /// Counts the rows of a data block while passing it.
    fn rows(&mut self, packed: Packed) -> Result<Option<u64>, Flaw> {
        let mut rows = Rows::behind(&[]);
        let mut chunks = Chunks { scan: self, left: 0, ended: false, flaw: None };
        let mut buffer = vec![0; 16 << 10];
        let damaged = match packed {
            Packed::Unknown => None,
            Packed::No => feed(&mut chunks, &mut buffer, &mut rows),
            Packed::Zlib => {
                feed(&mut flate2::read::ZlibDecoder::new(&mut chunks), &mut buffer, &mut rows)
            }
        };
        // What the decoder did not take belongs to the block, too.
        let rest = io::copy(&mut chunks, &mut io::sink());
        if let Some(flaw) = chunks.flaw.take() {
            return Err(flaw);
        }
        rest?;
        match damaged {
            Some(cause) => bad(format!("the data of table {COUNTED} cannot be unpacked: {cause}")),
            None => Ok(rows.count()),
        }
    }

    /// The table of contents.
    fn contents(&mut self, minor: u8, offset: usize) -> Result<Contents, Flaw> {
        let count = self.integer()?;
        if !u64::try_from(count).is_ok_and(|c| c > 0 && c <= ENTRIES_MAX) {
            return bad(format!("the table of contents claims {count} entries"));
        }
        let mut contents = Contents::default();
        for _ in 0..count {
            let id = self.integer()?;
            let dumper = self.integer()? != 0;
            self.pass()?;
            self.pass()?;
            let tag = self.short()?;
            let what = self.short()?;
            if minor >= 11 {
                self.integer()?;
            }
            // Definition, drop, copy, schema, tablespace, then the access method.
            for _ in 0..if minor >= 14 { 6 } else { 5 } {
                self.pass()?;
            }
            if minor >= 16 {
                self.integer()?;
            }
            // Owner and "with oids", then the dependencies up to a missing one.
            self.pass()?;
            self.pass()?;
            while self.pass()? {}
            let state = self.byte()?;
            self.skip(i64::try_from(offset).unwrap_or(8))?;
            if !(1..=3).contains(&state) {
                return bad(format!("entry {id} of the table of contents is damaged"));
            }
            if dumper && state != 3 {
                contents.promised.insert(id);
                if what == "TABLE DATA" && tag == COUNTED {
                    contents.counted = Some(id);
                }
                if what == "TABLE DATA" && contents.tables.len() < TABLES_MAX {
                    contents.tables.insert(tag);
                }
            }
        }
        Ok(contents)
    }

    fn chunks(&mut self) -> Result<(), Flaw> {
        loop {
            match self.integer()? {
                0 => return Ok(()),
                length => self.skip(length)?,
            }
        }
    }
}

/// How data blocks are packed.
#[derive(Clone, Copy)]
enum Packed {
    No,
    Zlib,
    Unknown,
}

/// Into the counter; what the source cannot give.
fn feed(source: &mut impl Read, buffer: &mut [u8], rows: &mut Rows) -> Option<io::Error> {
    loop {
        match source.read(buffer) {
            Ok(0) => return None,
            Ok(count) => rows.push(&buffer[..count]),
            Err(cause) => return Some(cause),
        }
    }
}

/// The chunks of a data block as one stream.
struct Chunks<'a, R> {
    scan: &'a mut Scan<R>,
    left: u64,
    ended: bool,
    /// The dump broke inside the block.
    flaw: Option<Flaw>,
}

impl<R: BufRead> Chunks<'_, R> {
    fn take_some(&mut self, buffer: &mut [u8]) -> Result<usize, Flaw> {
        while self.left == 0 && !self.ended {
            match self.scan.integer()? {
                0 => self.ended = true,
                length => {
                    self.left = u64::try_from(length).or_else(|_| bad("a negative length"))?
                }
            }
        }
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        self.scan.fill(&mut buffer[..room])?;
        self.left -= room as u64;
        Ok(room)
    }
}

impl<R: BufRead> Read for Chunks<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.flaw.is_some() {
            return Ok(0);
        }
        self.take_some(buffer).or_else(|flaw| {
            self.flaw = Some(flaw);
            Ok(0)
        })
    }
}

/// Reads an SQLite file to its end. Says in words when it holds no table.
pub fn check_sqlite(mut reader: impl Read) -> Result<(Dump, bool), Flaw> {
    let mut head = [0; 108];
    match reader.read_exact(&mut head) {
        Ok(()) => {}
        Err(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => {
            return bad("it is too short for an SQLite file");
        }
        Err(cause) => return Err(cause.into()),
    }
    if !head.starts_with(b"SQLite format 3\0") {
        return bad("it is no SQLite file");
    }
    let be32 = |at: usize| head[at..at + 4].iter().fold(0_u64, |n, b| n << 8 | u64::from(*b));
    let page = match be32(16) >> 16 {
        1 => 65536,
        size @ 512..=32768 if size.is_power_of_two() => size,
        size => return bad(format!("an SQLite file with pages of {size} bytes")),
    };
    let size = head.len() as u64 + io::copy(&mut reader, &mut io::sink())?;
    // The count of pages is valid only when written with the change counter.
    let pages = if be32(24) == be32(92) { be32(28) } else { 0 };
    if !size.is_multiple_of(page) || (pages != 0 && pages * page != size) {
        return bad(format!("an SQLite file of {pages} pages of {page} bytes has {size} bytes"));
    }
    // The b-tree of the schema begins on the first page: kind, then the count of cells.
    let empty = head[100] == 13 && head[103] == 0 && head[104] == 0;
    Ok((Dump { format: Format::Sqlite, size, tables: BTreeSet::new(), vms: None }, empty))
}
