//! Every kind of damage to every kind of file is named, with the file.

use std::{collections::BTreeSet, fs};

use hvbak_types::DiskId;

use super::*;
use crate::testing::{Guest, Lab};

/// Two disks, a full and a delta of each.
struct Stored {
    lab: Lab,
    disks: [DiskId; 2],
    full: Point,
    delta: Point,
}

fn stored() -> Stored {
    let lab = Lab::new();
    let disks = [DiskId::random(), DiskId::random()];
    let a = Guest::blank(64 << 16).fill(1, [0, 1, 2, 3, 40]);
    let b = Guest::blank(64 << 16).fill(2, [0, 1, 2, 5, 41, 63]);
    let full = lab.point("20261121T021454Z", &[(disks[0], None, &a), (disks[1], None, &b)]);
    let (a2, b2) = (a.clone().fill(3, [2, 3]).zero([0]), b.clone().fill(4, [5, 6, 7]));
    let delta = lab.point(
        "20261122T021454Z",
        &[(disks[0], Some((&full, &a)), &a2), (disks[1], Some((&full, &b)), &b2)],
    );
    Stored { lab, disks, full, delta }
}

impl Stored {
    fn verify(&self, point: &Point) -> VerifyReport {
        self.lab.repository.verify(point, &VerifyOptions::default(), &|_| true).unwrap()
    }

    /// Verifies as `--all` does: damaged manifests included.
    fn all(&self) -> Vec<Finding> {
        let listing = self.lab.repository.all_points().unwrap();
        let mut findings: Vec<_> =
            listing.damaged.iter().map(|d| self.lab.repository.damage_of(d)).collect();
        let options = VerifyOptions { parents: false, threads: 2, ..VerifyOptions::default() };
        for point in &listing.points {
            findings
                .extend(self.lab.repository.verify(point, &options, &|_| true).unwrap().findings);
        }
        findings
    }

    fn image(&self, point: &Point, disk: usize) -> PathBuf {
        point.path.join(format!("{}.qcow2", self.disks[disk]))
    }

    fn digests(&self, point: &Point, disk: usize) -> PathBuf {
        point.path.join(format!("{}.digests", self.disks[disk]))
    }

    /// The one finding there must be.
    #[track_caller]
    fn only(&self, findings: &[Finding], file: &Path, kind: FindingKind) -> String {
        let file = self.lab.repository.relative(file);
        assert_eq!(findings.len(), 1, "{findings:#?}");
        assert_eq!((&findings[0].file, findings[0].kind), (&file, kind), "{findings:#?}");
        findings[0].text.clone()
    }
}

fn swap(a: &Path, b: &Path) {
    let aside = a.with_extension("aside");
    fs::rename(a, &aside).unwrap();
    fs::rename(b, a).unwrap();
    fs::rename(&aside, b).unwrap();
}

#[test]
fn a_whole_point_is_clean_and_its_chain_is_counted() {
    let s = stored();
    let (told, threads) = (std::sync::Mutex::new(Vec::new()), 2);
    let options = VerifyOptions { threads, ..VerifyOptions::default() };
    let progress = |p: VerifyProgress| {
        told.lock().unwrap().push(p);
        true
    };
    let report = s.lab.repository.verify(&s.delta, &options, &progress).unwrap();
    assert!(report.is_clean() && report.notes.is_empty(), "{report:#?}");
    assert_eq!(report.clusters, 5 + 6 + 2 + 3);
    assert_eq!(report.points, [s.delta.id().clone(), s.full.id().clone()]);
    let told = told.into_inner().unwrap();
    assert!(told.iter().any(|p| p.done == p.total && p.total == 16 << 16), "{told:?}");
    assert_eq!(s.verify(&s.full).clusters, 11);
    let cancelled = s.lab.repository.verify(&s.delta, &options, &|_| false);
    assert!(matches!(cancelled, Err(Error::Cancelled)));
}

#[test]
fn each_file_missing_cut_or_flipped_is_named() {
    let s = stored();
    assert_eq!(s.all(), []);
    for point in [&s.full, &s.delta] {
        let files: BTreeSet<PathBuf> =
            fs::read_dir(&point.path).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(files.len(), 8);
        for file in files {
            let good = fs::read(&file).unwrap();
            let name = s.lab.repository.relative(&file);
            let image = file.extension().is_some_and(|e| e == "qcow2");
            fs::remove_file(&file).unwrap();
            let findings = s.all();
            assert!(
                findings.iter().any(|f| f.file == name && f.kind == FindingKind::Missing),
                "{} missing: {findings:#?}",
                name.display()
            );
            for length in [0, good.len() / 2, good.len() - 1] {
                fs::write(&file, &good[..length]).unwrap();
                let findings = s.all();
                assert!(
                    findings.iter().any(|f| f.file == name),
                    "{} cut to {length}: {findings:#?}",
                    name.display()
                );
                if image {
                    assert!(findings.iter().any(|f| f.kind == FindingKind::Truncated));
                }
            }
            // Images: magic, version, cluster bits, size, L1 offset. Padding may be anything.
            let step = (good.len() / 8).clamp(1, 97);
            let flips: Vec<_> = match image {
                true => vec![1, 7, 23, 29, 45],
                false => (0..good.len()).step_by(step).collect(),
            };
            for at in flips {
                let mut bytes = good.clone();
                bytes[at] ^= 0x20;
                fs::write(&file, bytes).unwrap();
                let findings = s.all();
                assert!(
                    findings.iter().any(|f| f.file == name),
                    "{} flipped at {at}: {findings:#?}",
                    name.display()
                );
            }
            fs::write(&file, &good).unwrap();
        }
    }
    assert_eq!(s.all(), []);
}

#[test]
fn a_flipped_bit_in_the_data_names_image_and_cluster() {
    let s = stored();
    let file = s.image(&s.full, 0);
    let good = fs::read(&file).unwrap();
    // An uncompressed cluster, found by its content.
    let noise = Guest::blank(64 << 16).fill(1, [0, 1, 2, 3, 40]).cluster(3);
    let at = good.windows(32).position(|w| w == &noise[..32]).unwrap();
    let mut bytes = good.clone();
    bytes[at + 40_000] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let text = s.only(&s.verify(&s.full).findings, &file, FindingKind::Damaged);
    assert!(text.starts_with("cluster 3 "), "{text}");
    // The delta that stands on it is damaged as well, and the base's file is named.
    let report = s.verify(&s.delta);
    s.only(&report.findings, &file, FindingKind::Damaged);
    assert_eq!(report.findings[0].point, *s.full.id());
    // A compressed one: somewhere in its frame.
    let frame = [0x28, 0xb5, 0x2f, 0xfd];
    let at = good.windows(4).position(|w| w == frame).unwrap();
    for skip in [0, 4, 12] {
        let mut bytes = good.clone();
        bytes[at + skip] ^= 1;
        fs::write(&file, &bytes).unwrap();
        let findings = s.verify(&s.full).findings;
        let text = s.only(&findings, &file, FindingKind::Damaged);
        assert!(text.starts_with("cluster "), "{text}");
    }
}

#[test]
fn files_that_changed_places_are_told_apart_from_damaged_ones() {
    let s = stored();
    let check = |a: &Path, b: &Path| {
        swap(a, b);
        let findings = s.all();
        for file in [a, b] {
            let name = s.lab.repository.relative(file);
            assert!(
                findings.iter().any(|f| f.file == name && f.kind == FindingKind::Swapped),
                "{}: {findings:#?}",
                name.display()
            );
        }
        assert!(findings.iter().all(|f| f.kind == FindingKind::Swapped), "{findings:#?}");
        let other = b.file_name().unwrap().to_str().unwrap();
        assert!(findings.iter().any(|f| f.text.contains(other)), "{findings:#?}");
        swap(a, b);
    };
    // Two disks of a point; two points of a disk; their digests; images with digests.
    check(&s.image(&s.full, 0), &s.image(&s.full, 1));
    check(&s.image(&s.full, 0), &s.image(&s.delta, 0));
    check(&s.digests(&s.full, 0), &s.digests(&s.full, 1));
    check(&s.digests(&s.full, 1), &s.digests(&s.delta, 1));
    swap(&s.image(&s.full, 0), &s.image(&s.full, 1));
    check(&s.digests(&s.full, 0), &s.digests(&s.full, 1));
    swap(&s.image(&s.full, 0), &s.image(&s.full, 1));
    check(&s.full.path.join("vm.ovf"), &s.delta.path.join("vm.ovf"));
    check(&s.full.path.join("vm.ovf"), &s.full.path.join("nics.xml"));
    assert_eq!(s.all(), []);
}

#[test]
fn an_edited_manifest_is_named() {
    let s = stored();
    let file = s.delta.path.join("manifest.json");
    let good = fs::read_to_string(&file).unwrap();
    let edits = [
        ("\"name\": \"web\"", "\"name\": \"db\""),
        ("\"consistency\": \"filesystem\"", "\"consistency\": \"offline\""),
        ("\"format\": 1", "\"format\": 1 "),
    ];
    for (from, to) in edits {
        assert!(good.contains(from), "{from}");
        fs::write(&file, good.replacen(from, to, 1)).unwrap();
        s.only(&s.all(), &file, FindingKind::ManifestEdited);
    }
    // Edits that make it unusable are told from the listing.
    let id = s.delta.id().as_str();
    for (from, to) in [
        (format!("\"point\": \"{id}\""), format!("\"point\": \"{}\"", s.full.id())),
        (format!("\"file\": \"{}.qcow2\"", s.disks[0]), "\"file\": \"../../x\"".to_owned()),
        ("\"vm\"".to_owned(), "\"mv\"".to_owned()),
    ] {
        assert!(good.contains(&from), "{from}");
        fs::write(&file, good.replacen(&from, &to, 1)).unwrap();
        s.only(&s.all(), &file, FindingKind::ManifestEdited);
        assert!(s.lab.repository.find("web").unwrap_err().is_damage());
        assert!(s.lab.repository.find("web@2026-11-21").is_ok());
    }
    fs::remove_file(&file).unwrap();
    s.only(&s.all(), &file, FindingKind::Missing);
    assert!(s.lab.repository.find("web").unwrap_err().is_damage());
}

#[test]
fn a_missing_parent_is_named_with_the_point_that_needs_it() {
    let s = stored();
    fs::rename(&s.full.path, s.lab.file("aside")).unwrap();
    let findings = s.verify(&s.delta).findings;
    assert_eq!(findings.len(), 2, "{findings:#?}");
    for finding in &findings {
        assert_eq!(finding.kind, FindingKind::Chain);
        assert!(finding.text.contains(s.full.id().as_str()), "{}", finding.text);
    }
    assert!(s.lab.repository.disk_reader(&s.delta, s.disks[0]).unwrap_err().is_damage());
    fs::rename(s.lab.file("aside"), &s.full.path).unwrap();
    // Another backing file than the manifest says.
    let file = s.image(&s.delta, 0);
    let mut bytes = fs::read(&file).unwrap();
    let name = format!("../{}/", s.full.id());
    let at = bytes.windows(name.len()).position(|w| w == name.as_bytes()).unwrap();
    bytes[at + 3..at + 11].copy_from_slice(b"20200101");
    fs::write(&file, bytes).unwrap();
    s.only(&s.verify(&s.delta).findings, &file, FindingKind::Chain);
}

#[test]
fn what_nobody_knows_is_a_note() {
    let s = stored();
    fs::write(s.full.path.join("README"), "mine").unwrap();
    let report = s.verify(&s.full);
    assert!(report.is_clean());
    assert!(report.notes.len() == 1 && report.notes[0].contains("README"), "{report:?}");
}
