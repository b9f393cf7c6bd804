//! Archives that are encrypted: nothing of them is ever in plain where they are stored, what
//! is wrong with them is found before, and they come back as they were made.

use std::{fs, path::Path, time::Duration};

use hvbak_repo::{Error, Identities, ManagerPoint, Recipients};
use hvbak_run::{ManagerBackupOptions, ManagerContext, RunError, manager_backup, manager_restore};
use hvbak_types::Secret;

use crate::{
    restore::options as restore_options,
    stage::{Stage, fixture, options, text},
};

const PUBLIC: &str = "age1zj8w38z6sf4r6qa6xpm38vclmjs0jud83m9eev69xvtwrn0wnguq0usvu0";

fn identity(file: &str) -> Option<Identities> {
    let text = fs::read_to_string(fixture(file)).unwrap();
    Some(Identities::parse(&Secret::new(text), file).unwrap())
}

fn encrypted() -> ManagerBackupOptions {
    let recipients = Recipients::parse(&[PUBLIC]).unwrap();
    ManagerBackupOptions { recipients, ..options(&["all"]) }
}

fn with_key(stage: &Stage, file: &str) -> ManagerContext {
    ManagerContext { identities: identity(file), ..stage.context() }
}

/// No file below it holds a piece of the archive.
#[track_caller]
fn check_nothing_in_plain(dir: &Path, archive: &[u8]) {
    let pieces = [&archive[..64], &archive[archive.len() / 2..][..64]];
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let bytes = fs::read(&path).unwrap();
            let holds = pieces.iter().any(|p| bytes.windows(p.len()).any(|w| w == *p));
            assert!(!holds, "{}", path.display());
        }
    }
}

/// A machine to restore to whose stored archive is encrypted.
async fn restorable() -> (Stage, ManagerPoint) {
    let stage = Stage::restorable("4.5.7").await;
    fs::remove_dir_all(stage.stored()).unwrap();
    stage.play("b_ok_all");
    stage.archive("4.5.7-all.backup");
    let report = manager_backup(&stage.context(), &encrypted()).await.unwrap();
    fs::remove_file(stage.sshd.root().join("play/archive")).unwrap();
    fs::remove_file(stage.sshd.root().join("calls")).unwrap();
    fs::remove_dir_all(stage.work()).unwrap();
    stage.play("r_ok_perm");
    (stage, report.point)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_archive_is_checked_as_any_other_and_never_stored_in_plain() {
    for (version, transcript, archive, scopes) in [
        ("4.5.7", "b_ok_all", "4.5.7-all.backup", 5),
        ("4.2.8.9", "b_4.2.8.9", "4.2.8.9-all.backup", 3),
    ] {
        let stage = Stage::new(version);
        stage.play(transcript);
        stage.archive(archive);
        let report = manager_backup(&stage.context(), &encrypted()).await.unwrap();
        let (point, plain) = (&report.point, fs::read(fixture(archive)).unwrap());
        assert_eq!((report.archive.parts.len(), point.manifest.scopes.len()), (scopes, scopes));
        let sealed = point.manifest.encrypted.as_ref().unwrap();
        assert_eq!(
            (sealed.recipients.as_slice(), sealed.size),
            (&[PUBLIC.to_owned()][..], plain.len() as u64)
        );
        check_nothing_in_plain(stage.repository.path(), &plain);
        assert!(point.compare().unwrap().is_empty());
        let mine = identity("test-identity.txt");
        assert_eq!(point.compare_plain(mine.as_ref()).unwrap(), None);
        let mut back = Vec::new();
        std::io::Read::read_to_end(&mut point.open_archive(mine.as_ref()).unwrap(), &mut back)
            .unwrap();
        assert_eq!(back, plain);
        assert_eq!(stage.left(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_01_a_bad_archive_is_found_although_it_is_encrypted_on_its_way() {
    let whole = fs::read(fixture("4.5.7-all.backup")).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for archive in [Vec::new(), whole[..whole.len() / 2].to_vec(), flipped] {
        let stage = Stage::new("4.5.7");
        stage.play("b_ok_all");
        stage.put("archive", &archive);
        let error = manager_backup(&stage.context(), &encrypted()).await.unwrap_err();
        assert!(matches!(error, RunError::ManagerArchive { .. }), "{error:?}");
        let kept = fs::read_dir(stage.stored()).unwrap().next().unwrap().unwrap().path();
        let names: Vec<_> = fs::read_dir(&kept).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(
            !names.iter().any(|n| n.to_string_lossy().starts_with("engine.backup")),
            "{names:?}"
        );
        assert!(kept.join("engine-backup.log").exists());
        assert_eq!(stage.left(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_picked_up_is_encrypted_as_well() {
    let stage = Stage::new("4.5.7");
    stage.play("b_ok_all");
    stage.archive("4.5.7-all.backup");
    stage.put("wait", b"");
    let context = stage.context();
    // Begun by an hvbak that knew of no recipients yet.
    let job = tokio::spawn(async move { manager_backup(&context, &options(&["all"])).await });
    while !stage.sshd.root().join("calls").exists() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    job.abort();
    assert!(job.await.unwrap_err().is_cancelled());
    tokio::time::sleep(Duration::from_millis(1100)).await;
    stage.put("go", b"");
    let report = manager_backup(&stage.context(), &encrypted()).await.unwrap();
    assert_eq!(report.picked_up.len(), 1);
    assert_eq!(report.picked_up[0].manifest.recipients(), [PUBLIC]);
    let plain = fs::read(fixture("4.5.7-all.backup")).unwrap();
    check_nothing_in_plain(stage.repository.path(), &plain);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_kept_holds_no_password() {
    let stage = Stage::new("4.5.7");
    stage.play("b_badpw");
    stage.put(
        "log",
        b"psql \"postgresql://engine:geheim@db/engine\"\nPGPASSWORD=geheim\nFATAL: no\n",
    );
    let error = stage.backup(&["all"]).await.unwrap_err();
    let RunError::ManagerRun { kept: Some(kept), .. } = &error else { panic!("{error:?}") };
    let log = fs::read_to_string(kept.join("engine-backup.log")).unwrap();
    assert!(log.contains("FATAL: no") && !log.contains("geheim"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_printed_is_judged_and_not_what_is_kept_of_it() {
    // Kept, the line that names the error is cut behind `password:`; judged, it is an error.
    let stage = Stage::restorable("4.5.7").await;
    stage.put("log", b"password:pg_restore:error: x\nsecret='pg_restore: error: geheim'\n");
    let error = manager_restore(&stage.context(), &restore_options(&["all"])).await.unwrap_err();
    assert!(text(&error).contains("its log holds 1 errors"), "{}", text(&error));
    assert!(!text(&error).contains("geheim"), "{}", text(&error));
    let kept = &stage.kept()[0];
    for file in fs::read_dir(kept).unwrap() {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(6).any(|w| w == b"geheim"), "{}", kept.display());
    }
    // A secret on the standard output neither hides the end nor comes into a message.
    let stage = Stage::new("4.5.7");
    stage.play("b_ok_all");
    stage.archive("4.5.7-all.backup");
    stage.put("stdout", b"Start of engine-backup\npassword='\nDone.\nPassword: Done.\n");
    let error = stage.backup(&["all"]).await.unwrap_err();
    assert!(text(&error).contains("its last line is `Password: [removed]`"), "{}", text(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_archive_is_restored_and_lies_nowhere_in_plain() {
    let (stage, point) = restorable().await;
    stage.machine("vms", "4");
    let context = with_key(&stage, "test-identity.txt");
    let done = manager_restore(&context, &restore_options(&["all"])).await.unwrap();
    assert_eq!((done.vms, done.expected_vms), (Some(4), Some(4)));
    let restored = stage.on_manager("restored").unwrap();
    assert_eq!(restored[..64], point.manifest.plain().unwrap().sha256.to_string());
    check_nothing_in_plain(
        stage.repository.path(),
        &fs::read(fixture("4.5.7-all.backup")).unwrap(),
    );
    assert_eq!(stage.left(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_09_without_the_right_identity_or_a_whole_file_nothing_is_said_to_the_manager() {
    let (stage, point) = restorable().await;
    let restore = |context: ManagerContext| async move {
        manager_restore(&context, &restore_options(&["all"])).await.unwrap_err()
    };
    let error = restore(stage.context()).await;
    assert!(text(&error).contains(PUBLIC) && error.exit_code() == 2, "{}", text(&error));
    assert!(error.hint().unwrap().contains("--identity"), "{:?}", error.hint());
    let error = restore(with_key(&stage, "test-identity-of-others.txt")).await;
    assert!(
        matches!(&error, RunError::Repository { cause: Error::WrongIdentity { .. }, .. }),
        "{error:?}"
    );
    assert!(text(&error).contains("not encrypted to this identity"), "{}", text(&error));
    assert_eq!(error.exit_code(), 2);
    let whole = fs::read(point.archive_path()).unwrap();
    for at in [whole.len() - 1, whole.len() / 2] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        for damaged in [&bytes[..], &whole[..at]] {
            fs::write(point.archive_path(), damaged).unwrap();
            let error = restore(with_key(&stage, "test-identity.txt")).await;
            assert!(text(&error).contains("not what was stored"), "{}", text(&error));
            assert_eq!(error.exit_code(), 15);
        }
    }
    assert_eq!(stage.calls(), "");
    assert_eq!(stage.left(), Vec::<String>::new());
}
