//! Fixtures, and archives taken apart and put together again with right sums.

use std::{
    io::{Read, Write},
    path::PathBuf,
};

use hvbak_manager::archive::{Report, verify};
use sha2::{Digest, Sha256};
use tar::{Archive, Builder, EntryType, Header};

pub fn fixture(name: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/engine-backup");
    root.join(name)
}

pub fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap()
}

/// A regular member.
#[derive(Debug, Clone)]
pub struct Piece {
    pub name: String,
    pub kind: EntryType,
    pub data: Vec<u8>,
}

impl Piece {
    pub fn file(name: &str, data: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), kind: EntryType::Regular, data: data.into() }
    }
}

/// The regular members of a gzip archive.
pub fn pieces(archive: &[u8]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for entry in Archive::new(flate2::read::GzDecoder::new(archive)).entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.header().entry_type().is_file() {
            let name = entry.path().unwrap().display().to_string();
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            pieces.push(Piece::file(name.trim_start_matches("./"), data));
        }
    }
    pieces
}

/// Replaces (or adds, or with `None` removes) a member and makes the sums right again.
pub fn with(archive: &[u8], name: &str, data: Option<&[u8]>) -> Vec<u8> {
    let mut pieces = pieces(archive);
    pieces.retain(|p| p.name != name);
    pieces.extend(data.map(|d| Piece::file(name, d)));
    gzip(&pack(&resum(pieces)))
}

/// Recomputes `sha256sum`.
pub fn resum(mut pieces: Vec<Piece>) -> Vec<Piece> {
    pieces.retain(|p| p.name != "sha256sum");
    let mut sums = String::new();
    for piece in pieces.iter().filter(|p| p.kind == EntryType::Regular) {
        let sum: String = Sha256::digest(&piece.data).iter().map(|b| format!("{b:02x}")).collect();
        sums.push_str(&format!("{sum}  {}\n", piece.name));
    }
    pieces.push(Piece::file("sha256sum", sums));
    pieces
}

/// A tar file of these members; names are written as they are, however bad.
pub fn pack(pieces: &[Piece]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for piece in pieces {
        let mut header = Header::new_gnu();
        let name = if piece.name.starts_with(['.', '/']) {
            piece.name.clone()
        } else {
            format!("./{}", piece.name)
        };
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(piece.kind);
        header.set_mode(0o600);
        let size = if piece.kind == EntryType::Regular { piece.data.len() } else { 0 };
        header.set_size(size as u64);
        if piece.kind == EntryType::Symlink {
            header.set_link_name_literal(&piece.data).unwrap();
        }
        header.set_cksum();
        builder.append(&header, &piece.data[..size]).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(data).unwrap();
    out.finish().unwrap()
}

pub fn report(archive: &[u8]) -> Report {
    verify(archive).unwrap()
}

/// The findings as one text; panics when there is none.
#[track_caller]
pub fn damage(archive: &[u8]) -> String {
    let report = report(archive);
    assert!(!report.is_whole(), "it passed: {report:?}");
    report
        .findings
        .iter()
        .map(|f| format!("{}: {}\n", f.member.as_deref().unwrap_or("-"), f.text))
        .collect()
}
