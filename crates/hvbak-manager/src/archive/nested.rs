//! The member `files`: a tar file in the archive, possibly compressed, walked to its end.
//!
//! It is unpacked over `/` by root, so a name that leads elsewhere is damage: absolute
//! names, `..`, devices, and names that lead through a symbolic link of the same file.

use std::{
    collections::HashSet,
    io::{self, Read},
};

use super::{
    compress::{Compression, Decoder},
    conf::{self, Collector, Conf},
    tar::{Flaw, Kind, Walker},
};
use crate::extra::is_standard;

/// Extra files that are named; more are only counted as files.
pub const EXTRA_MAX: usize = 1000;
/// Bytes of link names that are remembered; more is not believed.
const LINKS_MAX: usize = 32 << 20;

/// What the member held.
#[derive(Debug)]
pub struct Files {
    pub compression: Compression,
    pub members: u64,
    /// Bytes with holes filled.
    pub size: u64,
    /// The engine's certificate authority is in it.
    pub has_ca: bool,
    /// What it says of databases.
    pub conf: Conf,
    /// What engine-backup was told to take along beyond its own, as absolute paths; of a
    /// directory its name alone.
    pub extra: Vec<String>,
}

/// Walks the member.
pub fn check(reader: impl Read) -> Result<Files, Flaw> {
    let decoder = Decoder::open(io::BufReader::with_capacity(64 << 10, reader))?;
    let compression = decoder.kind();
    let mut walker = Walker::new(io::BufReader::with_capacity(64 << 10, decoder));
    let mut files = Files {
        compression,
        members: 0,
        size: 0,
        has_ca: false,
        conf: Conf::default(),
        extra: Vec::new(),
    };
    let mut collector = Collector::default();
    let (mut links, mut bytes) = (HashSet::new(), 0);
    while let Some(member) = walker.next_member()? {
        files.members += 1;
        files.size = files.size.saturating_add(member.size);
        let name = inside(&member.name)?;
        files.has_ca |= name == b"etc/pki/ovirt-engine/ca.pem";
        if (1..name.len()).any(|at| name[at] == b'/' && links.contains(&name[..at])) {
            return Err(Flaw::Bad(format!("`{}` leads through a link", show(name))));
        }
        note_extra(&mut files.extra, name);
        match member.kind {
            Kind::File if conf::is_wanted(name) => {
                collector.add(name, &mut Body(&mut walker)).map_err(of_body)?;
            }
            Kind::File | Kind::Directory => {}
            Kind::HardLink => drop(inside(&member.link)?),
            Kind::Symlink => {
                bytes += name.len();
                if bytes > LINKS_MAX {
                    return Err(Flaw::Bad("too many links".into()));
                }
                links.insert(name.to_vec());
            }
            Kind::Other(_) => return Err(Flaw::Bad(format!("`{}` is a device", show(name)))),
        }
    }
    if files.members == 0 {
        return Err(Flaw::Bad("it holds no file".into()));
    }
    files.conf = collector.finish();
    Ok(files)
}

/// Remembers a file that engine-backup does not take by itself, unless the last one is a
/// directory that holds it: tar names a directory before what is in it.
fn note_extra(extra: &mut Vec<String>, name: &[u8]) {
    let path = format!("/{}", show(name));
    let held = extra
        .last()
        .is_some_and(|last| path.strip_prefix(last).is_some_and(|rest| rest.starts_with('/')));
    if !held && extra.len() < EXTRA_MAX && !is_standard(&path) {
        extra.push(path);
    }
}

/// A member as a reader.
pub struct Body<'a, R>(pub &'a mut Walker<R>);

/// A flaw on its way through a reader.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Flawed(String);

impl<R: Read> Read for Body<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // Full buffers, so that the first bytes of a stream come together.
        let mut done = 0;
        while let Some(room) = buffer.get_mut(done..).filter(|r| !r.is_empty()) {
            match self.0.read(room) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Flaw::Io(cause)) => return Err(cause),
                Err(Flaw::Bad(text)) => return Err(io::Error::other(Flawed(text))),
            }
        }
        Ok(done)
    }
}

fn of_body(cause: io::Error) -> Flaw {
    match cause.get_ref().and_then(|e| e.downcast_ref::<Flawed>()) {
        Some(Flawed(text)) => Flaw::Bad(text.clone()),
        None => Flaw::Io(cause),
    }
}

/// A name that stays below the directory it is unpacked in, without `./` and a final `/`.
pub fn inside(name: &[u8]) -> Result<&[u8], Flaw> {
    let short = name.strip_prefix(b"./").unwrap_or(name);
    let short = short.strip_suffix(b"/").unwrap_or(short);
    let leads_out = name.first() == Some(&b'/')
        || short.contains(&0)
        || short.split(|b| *b == b'/').any(|part| part == b"..");
    if leads_out {
        return Err(Flaw::Bad(format!("the name `{}` leads out of the archive", show(name))));
    }
    Ok(short)
}

/// A foreign name for people: no control characters, not endless.
pub fn show(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(&name[..name.len().min(200)]).into_owned();
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
