//! Points of managers: published whole, found, compared; encrypted ones opened again.

use std::{io::Write, os::unix::fs::PermissionsExt};

use super::*;
use crate::{
    Encrypted, Identities, Recipients,
    manager_point::{ARCHIVE, ARCHIVE_SEALED},
};
use hvbak_types::Secret;

fn manifest(name: &ManagerName, point: &PointId) -> ManagerManifest {
    ManagerManifest {
        format: 1,
        manager: name.clone(),
        point: point.clone(),
        started: jiff::Timestamp::UNIX_EPOCH,
        finished: jiff::Timestamp::UNIX_EPOCH,
        hvbak: "0".into(),
        version: "4.5.7".into(),
        requested: vec!["all".into()],
        scopes: vec!["files".into()],
        absent: vec![],
        command: vec![],
        seconds: 1.0,
        databases: Default::default(),
        engine: None,
        files: vec![],
        in_sums: false,
        encrypted: None,
        warnings: vec![],
    }
}

#[test]
fn a_point_is_published_whole_found_and_compared() {
    let dir = tempfile::tempdir().unwrap();
    let repository = Repository::init(dir.path()).unwrap();
    let name: ManagerName = "Engine.example.test".parse().unwrap();
    let lock = repository.lock_manager(&name, JobId::random()).unwrap();
    assert!(matches!(
        repository.lock_manager(&name, JobId::random()),
        Err(Error::Locked { holder: Some(_), .. })
    ));
    for id in ["20261120T000000Z", "20261121T021454Z"] {
        let point: PointId = id.parse().unwrap();
        let mut staging = repository.stage_manager(&lock, &point).unwrap();
        staging.add(ARCHIVE, b"archive").unwrap();
        staging.add("stdout.txt", b"Done.\n").unwrap();
        let point = staging.publish(manifest(&name, &point)).unwrap();
        let mode = fs::metadata(point.archive_path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let ManagerListing { points, damaged } = repository.manager_points(&name).unwrap();
    assert_eq!((points.len(), damaged.len()), (2, 0));
    assert!(points[1].compare().unwrap().is_empty());
    let title = |s: &str| repository.find_manager_point(s).map(|p| p.title());
    let newest = "engine.example.test@20261121T021454Z";
    for selector in [
        "engine.example.test",
        "engine.example.test@latest",
        "engine.example.test@2026-11-21",
        newest,
    ] {
        assert_eq!(title(selector).unwrap(), newest);
    }
    assert!(title("engine.example.test@2026-11-20").unwrap().contains("1120"));
    assert!(matches!(title("engine.example.test@2026-01-01"), Err(Error::NoPoint { .. })));
    assert!(matches!(title("../x@latest"), Err(Error::Selector { .. })));
    fs::write(points[1].archive_path(), b"archivE").unwrap();
    assert!(points[1].compare().unwrap()[0].contains("not what was stored"));
    fs::write(points[1].path.join(MANIFEST), b"{}").unwrap();
    assert_eq!(repository.manager_points(&name).unwrap().damaged.len(), 1);
    assert!(title("engine.example.test").unwrap_err().is_damage());
}

#[test]
fn a_failed_run_keeps_its_log_and_no_archive() {
    let dir = tempfile::tempdir().unwrap();
    let repository = Repository::init(dir.path()).unwrap();
    let name: ManagerName = "e".parse().unwrap();
    let lock = repository.lock_manager(&name, JobId::random()).unwrap();
    let point = "20261121T021454Z".parse().unwrap();
    let mut staging = repository.stage_manager(&lock, &point).unwrap();
    staging.add(ARCHIVE, b"half").unwrap();
    staging.add("engine-backup.log", b"FATAL").unwrap();
    let kept = staging.fail("why").unwrap();
    assert!(kept.join("engine-backup.log").exists() && !kept.join(ARCHIVE).exists());
    let point = "20261121T021455Z".parse().unwrap();
    let mut staging = repository.stage_manager(&lock, &point).unwrap();
    staging.add("engine-backup.log", b"Done.").unwrap();
    let kept = staging.keep(&"well").unwrap();
    assert_eq!(fs::read_to_string(kept.join(OUTCOME)).unwrap(), "\"well\"\n");
    assert!(repository.manager_points(&name).unwrap().points.is_empty());
}

#[test]
fn what_is_neither_published_nor_kept_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let repository = Repository::init(dir.path()).unwrap();
    let name: ManagerName = "e".parse().unwrap();
    let lock = repository.lock_manager(&name, JobId::random()).unwrap();
    let point = "20261121T021454Z".parse().unwrap();
    let mut staging = repository.stage_manager(&lock, &point).unwrap();
    staging.add(ARCHIVE, b"half").unwrap();
    assert_eq!(repository.manager_partials(&lock).unwrap().len(), 1);
    drop(staging);
    assert!(repository.manager_partials(&lock).unwrap().is_empty());
    // Nor is what could not be published: there is a point of that name.
    let staging = repository.stage_manager(&lock, &point).unwrap();
    fs::create_dir(repository.manager_dir(&name).join(point.as_str())).unwrap();
    staging.publish(manifest(&name, &point)).unwrap_err();
    assert!(repository.manager_partials(&lock).unwrap().is_empty());
    // What a killed process left is swept by whoever holds the manager.
    fs::create_dir(repository.manager_dir(&name).join(".partial-20260101T000000Z")).unwrap();
    repository.sweep_manager_partials(&lock).unwrap();
    assert!(repository.manager_partials(&lock).unwrap().is_empty());
}

#[test]
fn the_manifest_is_proven_by_the_sums_and_points_of_an_earlier_hvbak_stay_good() {
    let dir = tempfile::tempdir().unwrap();
    let repository = Repository::init(dir.path()).unwrap();
    let name: ManagerName = "e".parse().unwrap();
    let lock = repository.lock_manager(&name, JobId::random()).unwrap();
    let point = "20261121T021454Z".parse().unwrap();
    let mut staging = repository.stage_manager(&lock, &point).unwrap();
    staging.add(ARCHIVE, b"archive").unwrap();
    staging.add("stdout.txt", b"Done.\n").unwrap();
    let stored = staging.publish(manifest(&name, &point)).unwrap();
    let (json, sums) = (stored.path.join(MANIFEST), stored.path.join("SHA256SUMS"));
    let texts = (fs::read_to_string(&json).unwrap(), fs::read_to_string(&sums).unwrap());
    assert!(texts.1.contains("  manifest.json\n"), "{}", texts.1);
    let wrong = || repository.find_manager_point("e").unwrap().compare().unwrap().join("; ");
    assert_eq!(wrong(), "");
    // What no file's own sum covers.
    for (changed, to) in [("4.5.7", "4.5.6"), ("\"in_sums\": true", "\"in_sumz\": true")] {
        assert!(texts.0.contains(changed), "{}", texts.0);
        fs::write(&json, texts.0.replacen(changed, to, 1)).unwrap();
        assert!(wrong().contains("manifest.json is not what was stored"), "{}", wrong());
    }
    fs::write(&json, &texts.0).unwrap();
    let less: String =
        texts.1.lines().filter(|l| !l.ends_with(MANIFEST)).map(|l| format!("{l}\n")).collect();
    for (list, said) in [
        (less.as_str(), "SHA256SUMS lacks manifest.json"),
        ("", "no list of sums"),
        ("junk", "no list of sums"),
        (&texts.1.replace("  stdout.txt", "  stdouT.txt"), "disagree about stdout.txt"),
    ] {
        fs::write(&sums, list).unwrap();
        assert!(wrong().contains(said), "{said}: {}", wrong());
    }
    fs::remove_file(&sums).unwrap();
    assert!(wrong().contains("SHA256SUMS is missing"), "{}", wrong());
    // As an earlier hvbak wrote it.
    fs::write(&sums, &less).unwrap();
    fs::write(&json, texts.0.replace("  \"in_sums\": true,\n", "")).unwrap();
    assert_eq!(wrong(), "");
}

#[test]
fn a_point_that_is_held_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let repository = Repository::init(dir.path()).unwrap();
    let name: ManagerName = "e".parse().unwrap();
    let lock = repository.lock_manager(&name, JobId::random()).unwrap();
    let point: PointId = "20261121T021454Z".parse().unwrap();
    let mut staging = repository.stage_manager(&lock, &point).unwrap();
    staging.add(ARCHIVE, b"archive").unwrap();
    staging.publish(manifest(&name, &point)).unwrap();
    let (held, hold) = repository.hold_manager_point("e").unwrap();
    let error = repository.remove_manager_point(&lock, &point).unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    assert!(held.archive_path().exists());
    // Readers do not keep one another out.
    drop(repository.hold_manager_point("e").unwrap());
    drop(hold);
    repository.remove_manager_point(&lock, &point).unwrap();
    assert!(matches!(repository.hold_manager_point("e"), Err(Error::NoPoint { .. })));
}

const PUBLIC: &str = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";

#[test]
fn an_encrypted_point_holds_nothing_of_the_archive_in_plain() {
    let key = age::x25519::Identity::generate();
    let recipients = Recipients::parse(&[key.to_public().to_string()]).unwrap();
    let secret = Secret::new(age::secrecy::ExposeSecret::expose_secret(&key.to_string()));
    let mine = Identities::parse(&secret, "test").unwrap();
    let plain = b"the CA's private key, again and again. ".repeat(9000);
    let dir = tempfile::tempdir().unwrap();
    let repository = Repository::init(dir.path()).unwrap();
    let name: ManagerName = "e".parse().unwrap();
    let lock = repository.lock_manager(&name, JobId::random()).unwrap();
    let point = "20261121T021454Z".parse().unwrap();
    let mut staging = repository.stage_manager(&lock, &point).unwrap();
    let mut writer = staging.create_archive(&recipients).unwrap();
    for piece in plain.chunks(10_007) {
        writer.write(piece).unwrap();
    }
    // Half-made or whole: never in plain.
    let lies = fs::read(staging.path_of(ARCHIVE_SEALED)).unwrap();
    assert!(!lies.is_empty() && !lies.windows(9).any(|w| w == b"CA's priv"));
    let file = staging.finish(writer).unwrap();
    assert_eq!(file.name, ARCHIVE_SEALED);
    let mut manifest = manifest(&name, &point);
    manifest.encrypted = Some(Encrypted {
        with: "age".into(),
        recipients: recipients.names().to_vec(),
        size: plain.len() as u64,
        sha256: crate::sums::of_bytes(&plain),
    });
    let point = staging.publish(manifest).unwrap();
    let stored = fs::read(point.archive_path()).unwrap();
    assert!(!stored.windows(9).any(|w| w == b"CA's priv"));
    assert!(!point.path.join(ARCHIVE).exists());
    assert!(point.compare().unwrap().is_empty());
    assert_eq!(point.compare_plain(Some(&mine)).unwrap(), None);
    let mut back = Vec::new();
    point.open_archive(Some(&mine)).unwrap().read_to_end(&mut back).unwrap();
    assert_eq!(back, plain);
    assert!(
        matches!(point.open_archive(None), Err(Error::NeedsIdentity { recipients, .. }) if recipients == point.manifest.recipients())
    );
    let other = age::x25519::Identity::generate().to_string();
    let other = Secret::new(age::secrecy::ExposeSecret::expose_secret(&other));
    let other = Identities::parse(&other, "other").unwrap();
    let wrong = point.compare_plain(Some(&other)).unwrap_err();
    assert!(wrong.to_string().contains(&point.manifest.recipients()[0]), "{wrong}");
    assert!(!wrong.is_damage());
    // Sealed by somebody with the public key: whole for age, and not what was backed up.
    let mut out = File::create(point.archive_path()).unwrap();
    let mut sealed = recipients.seal(&mut out, &point.path).unwrap();
    sealed.write_all(b"another").unwrap();
    sealed.finish().unwrap();
    assert!(point.compare_plain(Some(&mine)).unwrap().unwrap().contains("not what was backed up"));
}

#[test]
fn a_failed_run_keeps_no_archive_in_either_form() {
    let dir = tempfile::tempdir().unwrap();
    let repository = Repository::init(dir.path()).unwrap();
    let name: ManagerName = "e".parse().unwrap();
    let lock = repository.lock_manager(&name, JobId::random()).unwrap();
    let point = "20261121T021454Z".parse().unwrap();
    let mut staging = repository.stage_manager(&lock, &point).unwrap();
    let mut writer = staging.create_archive(&Recipients::parse(&[PUBLIC]).unwrap()).unwrap();
    writer.write(b"half").unwrap();
    drop(writer);
    staging.add("engine-backup.log", b"FATAL").unwrap();
    let kept = staging.fail("why").unwrap();
    assert!(!kept.join(ARCHIVE_SEALED).exists() && kept.join("engine-backup.log").exists());
}
