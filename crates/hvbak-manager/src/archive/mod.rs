//! An archive of engine-backup, read from a stream and judged: stricter than the program's
//! own `--mode=verify` and without it (engine-backup.md §5.4, §6).
//!
//! One pass. Whatever is wrong with the archive is a finding in the report; an error is
//! only that it could not be read. Nothing of it is unpacked, sourced or run.

mod compress;
mod conf;
mod dump;
mod nested;
mod small;
mod tar;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, BufReader, Read},
};

use md5::{Digest, Md5};
use serde::Serialize;
use sha2::Sha256;

pub use compress::Compression;
pub use conf::{Conf, Connection, read_conf};
pub use dump::Format;
pub use small::Setting;

use self::{
    compress::Decoder,
    small::{Sums, SumsKind},
    tar::{Flaw, Kind, Walker},
};
use crate::{extra::is_standard, scope::Scope, version::Version};

/// Members of an archive; engine-backup makes a dozen.
const MEMBERS_MAX: usize = 200;
/// Bytes of `config`, `version`, `os_version` and the sums that are read.
const SMALL_MAX: u64 = 64 << 10;

/// The archive could not be read, which says nothing of what is in it.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the archive")]
pub struct ReadError(#[from] pub io::Error);

/// Something that is wrong with the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The member it is about; `None`: the archive as a whole.
    pub member: Option<String>,
    pub text: String,
}

/// One scope's part of the archive.
#[derive(Debug, Clone, Serialize)]
pub struct Part {
    pub scope: Scope,
    /// Bytes in the archive.
    pub size: u64,
    /// Bytes after decompression.
    pub unpacked: u64,
    /// Of database dumps.
    pub format: Option<Format>,
    pub compression: Compression,
    /// Tables with data (custom dumps), or members of the nested tar file.
    pub items: u64,
}

/// What is in an archive and what is wrong with it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// The engine-backup that made it.
    pub version: Option<Version>,
    /// Distribution and major version: `centos9`.
    pub os_version: Option<String>,
    /// Whole parts, in scope order.
    pub parts: Vec<Part>,
    /// Sum of all members' sizes: what verify and restore need in their temporary folder.
    pub unpacked: u64,
    /// VMs and templates of the engine: rows of `vm_static` in its dump, where they can be
    /// counted.
    pub vms: Option<u64>,
    /// The member with the sums.
    pub sums: Option<&'static str>,
    /// `config` names a dump in pg_dump's own format, restored or not: then a restore must
    /// be told what to do with permissions.
    #[serde(skip)]
    pub has_custom: bool,
    /// What `files` says of the databases; holds passwords and is never written out.
    #[serde(skip)]
    pub conf: Conf,
    /// Files that engine-backup was told to take along beyond its own (`BACKUP_PATHS`); of a
    /// directory its name alone.
    pub extra: Vec<String>,
    /// Damage. Empty: the archive is whole.
    pub findings: Vec<Finding>,
    /// True, and worth knowing.
    pub notes: Vec<String>,
}

impl Report {
    /// Nothing is wrong.
    pub fn is_whole(&self) -> bool {
        self.findings.is_empty()
    }

    /// Scopes that can be restored from it.
    pub fn scopes(&self) -> Vec<Scope> {
        self.parts.iter().map(|p| p.scope).collect()
    }

    /// Whether a path that was to be taken along is in it, as far as its list of such goes.
    pub fn has_extra(&self, path: &str) -> bool {
        let holds = |extra: &String| {
            path.strip_prefix(extra).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.extra.len() >= nested::EXTRA_MAX || is_standard(path) || self.extra.iter().any(holds)
    }

    /// Whether any database lies in it as SQL text.
    pub fn has_plain(&self) -> bool {
        self.parts.iter().any(|p| p.format == Some(Format::Plain))
    }

    /// A part with a finding is none; without a whole archive no sum was compared.
    fn keep_whole_parts(&mut self) {
        let wrong: BTreeSet<_> = self.findings.iter().map(|f| f.member.clone()).collect();
        let whole = !wrong.contains(&None);
        self.parts.retain(|p| whole && !wrong.contains(&Some(p.scope.member().to_owned())));
        self.parts.sort_by_key(|p| p.scope);
    }

    fn find(&mut self, member: Option<&str>, text: impl Into<String>) {
        let member = member.map(ToOwned::to_owned);
        self.findings.push(Finding { member, text: text.into() });
    }
}

/// Reads an archive to its last byte.
///
/// # Errors
/// [`ReadError`] when the source fails; everything else is in the report.
pub fn verify(source: impl Read) -> Result<Report, ReadError> {
    let mut report = Report::default();
    let mut seen = Seen::default();
    let source = BufReader::with_capacity(64 << 10, Source { inner: source });
    let mut decoder = Decoder::open(source)?;
    let outcome = walk(&mut decoder, &mut report, &mut seen);
    match outcome {
        Ok(()) => seen.compare(&mut report),
        Err(Flaw::Bad(text)) => report.find(None, text),
        // The source's own errors carry a number of the system; decoders' do not.
        Err(Flaw::Io(cause)) if is_foreign(&cause) => return Err(ReadError(cause)),
        Err(Flaw::Io(cause)) => report.find(None, format!("it cannot be unpacked: {cause}")),
    }
    report.keep_whole_parts();
    if report.has_plain() {
        report.notes.push(
            "dumps in plain format: `engine-backup --mode=verify` fails on them although they are whole"
                .into(),
        );
    }
    Ok(report)
}

/// Hands every database dump out, unpacked, one after the other. For archives that
/// [`verify`] found whole; what `take` does not read of a dump is passed.
///
/// # Errors
/// [`ReadError`] when the source, `take` or the archive fails.
pub fn each_dump(
    source: impl Read,
    mut take: impl FnMut(Scope, &mut dyn Read) -> io::Result<()>,
) -> Result<(), ReadError> {
    let failed = |flaw| match flaw {
        Flaw::Io(cause) => ReadError(cause),
        Flaw::Bad(text) => ReadError(io::Error::new(io::ErrorKind::InvalidData, text)),
    };
    let mut decoder = Decoder::open(BufReader::with_capacity(64 << 10, source))?;
    let mut walker = Walker::new(&mut decoder);
    while let Some(member) = walker.next_member().map_err(failed)? {
        let name = nested::inside(&member.name).map_err(failed)?;
        let scope = Scope::of_member(&nested::show(name));
        let Some(scope) = scope.filter(|s| s.config_prefix().is_some()) else { continue };
        if member.kind != Kind::File {
            continue;
        }
        let body = BufReader::with_capacity(64 << 10, nested::Body(&mut walker));
        take(scope, &mut Decoder::open(body)?)?;
    }
    Ok(())
}

/// Marks errors of the source, so that decoders' errors can be told from them.
struct Source<R> {
    inner: R,
}

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct SourceFailed(io::Error);

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buffer) {
            Err(cause) if cause.kind() != io::ErrorKind::Interrupted => {
                Err(io::Error::new(cause.kind(), SourceFailed(cause)))
            }
            other => other,
        }
    }
}

fn is_foreign(cause: &io::Error) -> bool {
    let mut at: Option<&(dyn std::error::Error + 'static)> =
        cause.get_ref().map(|e| e as &(dyn std::error::Error + 'static));
    while let Some(error) = at {
        if error.is::<SourceFailed>() {
            return true;
        }
        at = error.source();
    }
    false
}

/// What the walk collects for the comparison at its end.
#[derive(Default)]
struct Seen {
    /// SHA-256 and MD5 of every regular member.
    sums: BTreeMap<String, (String, String)>,
    listed: Option<Sums>,
    config: Option<Vec<Setting>>,
    names: BTreeSet<String>,
}

fn walk(source: &mut impl Read, report: &mut Report, seen: &mut Seen) -> Result<(), Flaw> {
    let mut walker = Walker::new(source);
    while let Some(member) = walker.next_member()? {
        let name = match nested::inside(&member.name) {
            Ok(name) => nested::show(name),
            Err(Flaw::Bad(text)) => {
                report.find(None, text);
                continue;
            }
            Err(other) => return Err(other),
        };
        if seen.names.len() >= MEMBERS_MAX {
            return Err(Flaw::Bad(format!("more than {MEMBERS_MAX} members")));
        }
        if !seen.names.insert(name.clone()) {
            report.find(Some(&name), "it is in the archive twice");
        }
        match member.kind {
            Kind::Directory => {}
            Kind::File => one_file(&mut walker, &name, member.size, report, seen)?,
            _ => report.find(Some(&name), "neither a file nor a directory"),
        }
    }
    Ok(())
}

fn one_file<R: Read>(
    walker: &mut Walker<R>,
    name: &str,
    size: u64,
    report: &mut Report,
    seen: &mut Seen,
) -> Result<(), Flaw> {
    report.unpacked = report.unpacked.saturating_add(size);
    let mut hashing = Hashing { walker, sha: Sha256::new(), md5: Md5::new(), flaw: None };
    match Scope::of_member(name) {
        Some(scope) => match part(&mut hashing, scope, size, report) {
            Ok(part) => report.parts.push(part),
            Err(Flaw::Bad(text)) => report.find(Some(name), text),
            Err(Flaw::Io(cause)) if is_foreign(&cause) => return Err(Flaw::Io(cause)),
            Err(Flaw::Io(cause)) if hashing.flaw.is_none() => {
                report.find(Some(name), format!("it cannot be unpacked: {cause}"));
            }
            Err(Flaw::Io(_)) => {}
        },
        None => {
            let mut text = Vec::new();
            (&mut hashing).take(SMALL_MAX).read_to_end(&mut text)?;
            if size > SMALL_MAX {
                report.find(Some(name), format!("{size} bytes are too many"));
            } else {
                small_file(name, &text, report, seen);
            }
        }
    }
    // Whatever was not looked at counts for the hash.
    io::copy(&mut hashing, &mut io::sink())?;
    if let Some(flaw) = hashing.flaw {
        return Err(flaw);
    }
    let sums = (hex(&hashing.sha.finalize()), hex(&hashing.md5.finalize()));
    seen.sums.insert(name.to_owned(), sums);
    Ok(())
}

fn small_file(name: &str, text: &[u8], report: &mut Report, seen: &mut Seen) {
    match name {
        "version" => match small::version(text) {
            Ok(version) => report.version = Some(version),
            Err(why) => report.find(Some(name), why),
        },
        "os_version" => match small::os_version(text) {
            Ok(os) => report.os_version = Some(os),
            Err(why) => report.find(Some(name), why),
        },
        "config" => match small::config(text) {
            Ok(config) => seen.config = Some(config),
            Err(why) => report.find(Some(name), why),
        },
        "sha256sum" | "md5sum" => {
            let kind = if name == "md5sum" { SumsKind::Md5 } else { SumsKind::Sha256 };
            match small::sums(kind, text) {
                // The program takes the first it finds, sha256sum before md5sum.
                Ok(sums) if seen.listed.is_none() => seen.listed = Some(sums),
                Ok(_) => report.find(Some(name), "there are two lists of sums"),
                Err(why) => report.find(Some(name), why),
            }
        }
        _ => report.notes.push(format!("`{name}` is no member that engine-backup makes")),
    }
}

/// Looks into a scope's member.
fn part(
    source: &mut impl Read,
    scope: Scope,
    size: u64,
    report: &mut Report,
) -> Result<Part, Flaw> {
    if size == 0 {
        return Err(Flaw::Bad("it is empty".into()));
    }
    if scope == Scope::Files {
        let files = nested::check(source)?;
        if !files.has_ca {
            report.notes.push("`files` holds no etc/pki/ovirt-engine/ca.pem".into());
        }
        report.conf = files.conf;
        report.extra = files.extra;
        return Ok(Part {
            scope,
            size,
            unpacked: files.size,
            format: None,
            compression: files.compression,
            items: files.members,
        });
    }
    if scope == Scope::GrafanaDb {
        let (dump, empty) = dump::check_sqlite(source)?;
        if empty {
            return Err(Flaw::Bad(
                "an SQLite file without tables: grafana.db was missing on the manager".into(),
            ));
        }
        return Ok(Part {
            scope,
            size,
            unpacked: dump.size,
            format: Some(dump.format),
            compression: Compression::None,
            items: 0,
        });
    }
    let decoder = Decoder::open(BufReader::with_capacity(64 << 10, source))?;
    let compression = decoder.kind();
    let dump = dump::check(decoder)?;
    if scope == Scope::Db {
        report.vms = dump.vms;
    }
    if scope == Scope::Db && dump.format == Format::Custom && !dump.tables.contains("vdc_options") {
        return Err(Flaw::Bad("it has no table vdc_options: no engine database".into()));
    }
    Ok(Part {
        scope,
        size,
        unpacked: dump.size,
        format: Some(dump.format),
        compression,
        items: dump.tables.len() as u64,
    })
}

impl Seen {
    /// What can be said only when all members are known.
    fn compare(&self, report: &mut Report) {
        for name in ["config", "version"] {
            if !self.names.contains(name) {
                report.find(None, format!("it has no member `{name}`"));
            }
        }
        match &self.listed {
            None if !self.names.contains("sha256sum") && !self.names.contains("md5sum") => {
                report.find(None, "it has no list of sums (sha256sum or md5sum)");
            }
            None => {}
            Some(listed) => self.compare_sums(listed, report),
        }
        report.sums = self.listed.as_ref().map(|listed| listed.kind.member());
        if let Some(config) = &self.config {
            report.has_custom = config
                .iter()
                .any(|s| s.name.ends_with("DB_DUMP_FORMAT") && s.value == Format::Custom.word());
            for part in &report.parts.clone() {
                let Some(prefix) = part.scope.config_prefix() else { continue };
                self.compare_part(config, prefix, part, report);
            }
        }
        if report.is_whole() && report.parts.is_empty() {
            report.notes.push(
                "it holds nothing that can be restored: the component it was asked of is not set up"
                    .into(),
            );
        }
    }

    fn compare_sums(&self, listed: &Sums, report: &mut Report) {
        for (name, (sha, md5)) in &self.sums {
            if name == listed.kind.member() {
                continue;
            }
            let real = if listed.kind == SumsKind::Md5 { md5 } else { sha };
            match listed.sums.get(name) {
                None => report.find(Some(name), "it is not in the list of sums"),
                Some(sum) if sum != real => {
                    report.find(Some(name), format!("its sum is {real}, the list has {sum}"));
                }
                Some(_) => {}
            }
        }
        for name in listed.sums.keys().filter(|n| !self.sums.contains_key(*n)) {
            report.find(Some(name), "it is in the list of sums but not in the archive");
        }
    }

    fn compare_part(&self, config: &[Setting], prefix: &str, part: &Part, report: &mut Report) {
        let member = part.scope.member();
        let word = |end: &str| {
            let name = format!("{prefix}DB_DUMP_{end}");
            config.iter().find(|s| s.name == name).map(|s| s.value.as_str())
        };
        let Some(format) = part.format else { return };
        for (end, real) in [("FORMAT", format.word()), ("COMPRESSOR", part.compression.word())] {
            match word(end) {
                Some(said) if said == real => {}
                said => report.find(
                    Some(member),
                    format!(
                        "config says `{}` for its {}, it is `{real}`",
                        said.unwrap_or("nothing"),
                        end.to_ascii_lowercase()
                    ),
                ),
            }
        }
    }
}

/// A member's bytes, hashed as they are read.
struct Hashing<'a, R> {
    walker: &'a mut Walker<R>,
    sha: Sha256,
    md5: Md5,
    /// The outer archive broke inside this member.
    flaw: Option<Flaw>,
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.flaw.is_some() {
            return Ok(0);
        }
        // Full buffers, so that the first bytes of a stream come together.
        let mut done = 0;
        while let Some(room) = buffer.get_mut(done..).filter(|r| !r.is_empty()) {
            match self.walker.read(room) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Flaw::Io(cause)) if is_foreign(&cause) => return Err(cause),
                Err(flaw) => {
                    self.flaw = Some(flaw);
                    break;
                }
            }
        }
        let read = buffer.get(..done).unwrap_or_default();
        self.sha.update(read);
        self.md5.update(read);
        Ok(done)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
