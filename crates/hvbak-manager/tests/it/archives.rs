//! Every real archive is whole, and says what it can restore.

use hvbak_manager::{
    Scope,
    archive::{Compression, Format},
};

use tar::EntryType;

use crate::support::{Piece, bytes, damage, gzip, pack, pieces, report, with};

const ALL: [(&str, &str, &[Scope]); 9] = [
    (
        "4.5.7-all.backup",
        "4.5.7",
        &[Scope::Files, Scope::Db, Scope::DwhDb, Scope::KeycloakDb, Scope::GrafanaDb],
    ),
    (
        "4.5.7-all-small-size.backup",
        "4.5.7",
        &[Scope::Files, Scope::Db, Scope::DwhDb, Scope::KeycloakDb, Scope::GrafanaDb],
    ),
    ("4.5.7-files.backup", "4.5.7", &[Scope::Files]),
    ("4.5.7-db.backup", "4.5.7", &[Scope::Db]),
    ("4.5.7-files-dwhdb.backup", "4.5.7", &[Scope::Files, Scope::DwhDb]),
    ("4.5.7-grafanadb.backup", "4.5.7", &[Scope::GrafanaDb]),
    ("4.5.7-cinderlibdb-not-configured.backup", "4.5.7", &[]),
    ("4.4.10.7-all.backup", "4.4.10.7", &[Scope::Files, Scope::Db, Scope::DwhDb, Scope::GrafanaDb]),
    ("4.2.8.9-all.backup", "4.2.8.9", &[Scope::Files, Scope::Db, Scope::DwhDb]),
];

#[test]
fn every_real_archive_is_whole_and_says_its_scopes() {
    for (name, version, scopes) in ALL {
        let report = report(&bytes(name));
        assert!(report.is_whole(), "{name}: {:?}", report.findings);
        assert_eq!(report.version.as_ref().unwrap().to_string(), version, "{name}");
        assert_eq!(report.scopes(), scopes, "{name}");
        assert_eq!(report.extra, Vec::<String>::new(), "{name}");
    }
    let report = report(&bytes("4.2.8.9-all.backup"));
    assert_eq!(report.os_version.as_deref(), Some("centos7"));
}

#[test]
fn extra_files_are_named_and_a_directory_once() {
    let whole = bytes("4.5.7-files.backup");
    let names = [
        ("etc/ovirt-engine/x", EntryType::Regular),
        ("etc/ovirt-engine-backup/", EntryType::Directory),
        ("etc/ovirt-engine-backup/a/b.sh", EntryType::Regular),
        ("etc/hosts", EntryType::Regular),
        ("srv/exports/", EntryType::Directory),
        ("srv/exports/x", EntryType::Regular),
        ("srv/exports-old", EntryType::Regular),
        ("var/lib/grafana/plugins", EntryType::Directory),
    ];
    let nested: Vec<_> = names
        .into_iter()
        .map(|(name, kind)| Piece { name: name.into(), kind, data: Vec::new() })
        .collect();
    let report = report(&with(&whole, "files", Some(&pack(&nested))));
    assert!(report.is_whole(), "{:?}", report.findings);
    let expected = ["/etc/ovirt-engine-backup", "/etc/hosts", "/srv/exports", "/srv/exports-old"];
    assert_eq!(report.extra, expected);
}

#[test]
fn rule_03_a_component_that_is_not_set_up_is_told_although_rc_is_0() {
    let report = report(&bytes("4.5.7-cinderlibdb-not-configured.backup"));
    assert!(report.is_whole() && report.parts.is_empty());
    assert!(report.notes.iter().any(|n| n.contains("not set up")), "{:?}", report.notes);
}

#[test]
fn rule_08_plain_dumps_are_whole_although_the_real_verify_fails() {
    let report = report(&bytes("4.5.7-all-small-size.backup"));
    assert!(report.is_whole() && report.has_plain());
    let db = report.parts.iter().find(|p| p.scope == Scope::Db).unwrap();
    assert_eq!((db.format, db.compression), (Some(Format::Plain), Compression::Xz));
    assert!(report.notes.iter().any(|n| n.contains("--mode=verify")), "{:?}", report.notes);
}

#[test]
fn every_cut_and_every_flipped_byte_is_found() {
    let whole = bytes("4.5.7-files-dwhdb.backup");
    for cut in (0..whole.len()).step_by(97) {
        damage(&whole[..cut]);
    }
    for at in (20..whole.len()).step_by(61) {
        let mut broken = whole.clone();
        broken[at] ^= 0x10;
        // A gzip header's spare bits and the padding behind the last block carry nothing.
        damage(&broken);
    }
    damage(&[whole.clone(), b"garbage".to_vec()].concat());
    // What engine-backup leaves behind when it fails: nothing, or half.
    damage(b"");
    damage(b"no archive at all\n");
}

/// The table of engine-backup.md §6: what the real verify passes must be found too.
#[test]
fn what_the_real_verify_lets_pass_is_found() {
    let whole = bytes("4.5.7-all.backup");
    let member = |name: &str| pieces(&whole).into_iter().find(|p| p.name == name).unwrap().data;
    for name in ["db/engine_backup.db", "db/dwh_backup.db", "db/keycloak_backup.db"] {
        let dump = member(name);
        let junk = damage(&with(&whole, name, Some(b"junk, but with right sums")));
        assert!(junk.contains("no dump of PostgreSQL"), "{junk}");
        assert!(damage(&with(&whole, name, Some(b""))).contains("empty"));
        for cut in (1..dump.len()).step_by(211).chain([dump.len() - 1]) {
            damage(&with(&whole, name, Some(&dump[..cut])));
        }
        let longer = [dump.clone(), b"x".to_vec()].concat();
        assert!(damage(&with(&whole, name, Some(&longer))).contains("data block"));
    }
    let junk = damage(&with(&whole, "db/grafana.db", Some(b"junk")));
    assert!(junk.contains("SQLite"), "{junk}");
    let grafana = member("db/grafana.db");
    damage(&with(&whole, "db/grafana.db", Some(&grafana[..8192])));
    let files = member("files");
    for cut in [0, 1, 100, files.len() / 2, files.len() - 1] {
        damage(&with(&whole, "files", Some(&files[..cut])));
    }
    let mut extra = pieces(&whole);
    extra.push(crate::support::Piece::file("db/extra", b"x".to_vec()));
    let extra = damage(&gzip(&crate::support::pack(&extra)));
    assert!(extra.contains("db/extra: it is not in the list of sums"), "{extra}");
}

#[test]
fn what_the_real_verify_finds_is_found() {
    let whole = bytes("4.5.7-all.backup");
    let mut missing = pieces(&whole);
    missing.retain(|p| p.name != "db/engine_backup.db");
    let text = damage(&gzip(&crate::support::pack(&missing)));
    assert!(text.contains("in the list of sums but not in the archive"), "{text}");
    let mut wrong = pieces(&whole);
    for piece in wrong.iter_mut().filter(|p| p.name == "os_version") {
        piece.data = b"centos8\n".to_vec();
    }
    assert!(damage(&gzip(&crate::support::pack(&wrong))).contains("its sum is"));
    let mut unsummed = pieces(&whole);
    unsummed.retain(|p| p.name != "sha256sum");
    assert!(damage(&gzip(&crate::support::pack(&unsummed))).contains("no list of sums"));
    assert!(damage(&with(&whole, "version", None)).contains("no member `version`"));
    assert!(damage(&with(&whole, "config", None)).contains("no member `config`"));
    assert!(damage(&with(&whole, "version", Some(b"$(id)\n"))).contains("no version"));
    let config = b"DB_DUMP_COMPRESSOR=xz\nDB_DUMP_FORMAT=plain\n";
    assert!(damage(&with(&whole, "config", Some(config))).contains("config says `plain`"));
    // Another database under the engine's name.
    let dwh = pieces(&whole).into_iter().find(|p| p.name == "db/dwh_backup.db").unwrap().data;
    assert!(damage(&with(&whole, "db/engine_backup.db", Some(&dwh))).contains("vdc_options"));
}
