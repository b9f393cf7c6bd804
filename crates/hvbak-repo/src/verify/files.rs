//! The small files of a point: `SHA256SUMS`, the manifest, the documents, and that nothing
//! is missing or too much.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
};

use hvbak_types::Digest;

use super::{Check, FindingKind, swap};
use crate::{
    catalogue::Point,
    layout::{MANIFEST, SUMS},
    sums,
};

/// Longest list that is read.
const SUMS_MAX: u64 = 1 << 20;

impl Check<'_> {
    pub(super) fn files(&mut self, point: &Point) {
        self.listed = self.sums(point);
        self.manifest(point);
        for document in &point.manifest.documents {
            let path = point.path.join(&document.name);
            let Some((length, sha256)) = self.hash(point, &path) else { continue };
            if sha256 != document.sha256 {
                let owner = swap::document(self.repository, point, &document.name, sha256);
                let (kind, text) = match owner {
                    Some(owner) => (FindingKind::Swapped, owner),
                    None if length < document.size => {
                        let text = format!("it has {length} of {} bytes", document.size);
                        (FindingKind::Truncated, text)
                    }
                    None => {
                        let text = "its SHA-256 is not the one in the manifest".into();
                        (FindingKind::Damaged, text)
                    }
                };
                self.find(point, &path, kind, text);
            } else {
                self.listed_as(point, &document.name, sha256);
            }
        }
        if point.manifest.repository != self.repository.id() {
            let id = point.manifest.repository;
            self.report.notes.push(format!("{} was written into repository {id}", point.title()));
        }
        self.strangers(point);
    }

    /// The list, if it is whole.
    fn sums(&mut self, point: &Point) -> Option<BTreeMap<String, Digest>> {
        let path = point.path.join(SUMS);
        let text = match fs::metadata(&path) {
            Ok(meta) if meta.len() > SUMS_MAX => Err(io::ErrorKind::InvalidData.into()),
            Ok(_) => fs::read_to_string(&path),
            Err(cause) => Err(cause),
        };
        let text = match text {
            Ok(text) => text,
            Err(cause) if cause.kind() == io::ErrorKind::InvalidData => {
                self.find(point, &path, FindingKind::Damaged, "it is no list of sums".into());
                return None;
            }
            Err(cause) => {
                self.unreadable(point, &path, &cause);
                return None;
            }
        };
        let Some(entries) = sums::parse(&text) else {
            self.find(point, &path, FindingKind::Damaged, "it is no list of sums".into());
            return None;
        };
        let manifest = &point.manifest;
        let mut expected: BTreeSet<&str> = BTreeSet::from([MANIFEST]);
        expected.extend(manifest.documents.iter().map(|d| d.name.as_str()));
        expected.extend(manifest.disks.iter().map(|d| d.record.digests.as_str()));
        let listed: BTreeMap<_, _> = entries.into_iter().collect();
        let names: BTreeSet<&str> = listed.keys().map(String::as_str).collect();
        if names != expected {
            let odd: Vec<_> = names.symmetric_difference(&expected).copied().take(8).collect();
            let text =
                format!("it and the manifest do not list the same files: {}", odd.join(", "));
            self.find(point, &path, FindingKind::Damaged, text);
        }
        Some(listed)
    }

    fn manifest(&mut self, point: &Point) {
        let path = point.path.join(MANIFEST);
        let Some((_, sha256)) = self.hash(point, &path) else { return };
        let listed = self.listed.as_ref().and_then(|l| l.get(MANIFEST));
        if listed.is_some_and(|listed| *listed != sha256) {
            let text = format!("its SHA-256 is not the one in {SUMS}: it was edited or damaged");
            self.find(point, &path, FindingKind::ManifestEdited, text);
        }
    }

    /// A file that the manifest confirms must be confirmed by the list as well.
    pub(super) fn listed_as(&mut self, point: &Point, name: &str, sha256: Digest) {
        let listed = self.listed.as_ref().and_then(|l| l.get(name));
        if listed.is_some_and(|listed| *listed != sha256) {
            let text = format!("its sum of {name} is not the one of that file, which is whole");
            self.find(point, &point.path.join(SUMS), FindingKind::Damaged, text);
        }
    }

    /// Length and SHA-256 of a file, or a finding.
    pub(super) fn hash(&mut self, point: &Point, path: &Path) -> Option<(u64, Digest)> {
        let answer = fs::metadata(path)
            .and_then(|meta| Ok((meta.len(), sums::of_reader(fs::File::open(path)?)?)));
        match answer {
            Ok(answer) => Some(answer),
            Err(cause) => {
                self.unreadable(point, path, &cause);
                None
            }
        }
    }

    pub(super) fn unreadable(&mut self, point: &Point, path: &Path, cause: &io::Error) {
        if cause.kind() == io::ErrorKind::NotFound {
            self.find(point, path, FindingKind::Missing, "it is missing".into());
        } else {
            self.find(point, path, FindingKind::Unreadable, format!("it cannot be read: {cause}"));
        }
    }

    /// Files that no part of the point knows.
    fn strangers(&mut self, point: &Point) {
        let manifest = &point.manifest;
        let mut known = BTreeSet::from([MANIFEST.to_owned(), SUMS.to_owned()]);
        known.extend(manifest.documents.iter().map(|d| d.name.clone()));
        for disk in &manifest.disks {
            known.extend([disk.record.file.clone(), disk.record.digests.clone()]);
        }
        for entry in fs::read_dir(&point.path).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !known.contains(&name) {
                let file = self.repository.relative(&entry.path());
                self.report.notes.push(format!("{} belongs to no point", file.display()));
            }
        }
    }
}
