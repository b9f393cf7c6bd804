//! `manager-backup`: what a good run stores, and that a bad one leaves nothing but its log.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use hvbak_repo::Repository;
use hvbak_run::RunError;
use nix::sys::signal::Signal;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::stage::{Stage, fixture, options, text};

#[tokio::test(flavor = "multi_thread")]
async fn a_good_run_is_stored_as_it_was_made() {
    for (version, transcript, archive, scopes) in [
        ("4.5.7", "b_ok_all", "4.5.7-all.backup", 5),
        ("4.2.8.9", "b_4.2.8.9", "4.2.8.9-all.backup", 3),
    ] {
        let stage = Stage::new(version);
        stage.play(transcript);
        stage.archive(archive);
        let report = stage.backup(&["all"]).await.unwrap();
        let manifest = &report.point.manifest;
        assert_eq!((manifest.scopes.len(), manifest.version.as_str()), (scopes, version));
        let stored = fs::read(report.point.archive_path()).unwrap();
        assert_eq!(stored, fs::read(fixture(archive)).unwrap());
        assert!(report.point.compare().unwrap().is_empty());
        assert!(report.point.path.join("engine-backup.log").exists());
        assert_eq!(stage.left(), Vec::<String>::new());
        // Rule 16: the archive holds the CA's key.
        let mode = fs::metadata(report.point.archive_path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let calls = fs::read_to_string(stage.sshd.root().join("calls")).unwrap();
        assert!(calls.contains("--scope=all\n") && calls.contains("--file=/"), "{calls}");
        // Nothing of the journal is left.
        let journal = stage.repository.path().join("journal");
        assert_eq!(fs::read_dir(journal).unwrap().count(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_does_not_answer_is_noted_and_changes_nothing() {
    let stage = Stage::new("4.5.7");
    stage.play("b_ok_all");
    stage.archive("4.5.7-all.backup");
    // Nobody listens there any more.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let access = hvbak_run::EngineAccess {
        url: format!("https://127.0.0.1:{port}/ovirt-engine/api"),
        ca: None,
        username: "admin@internal".into(),
        password: hvbak_types::Secret::new("secret"),
        connect_to: None,
    };
    let wished = hvbak_run::ManagerBackupOptions { engine: Ok(access), ..options(&["all"]) };
    let report = hvbak_run::manager_backup(&stage.context(), &wished).await.unwrap();
    let manifest = &report.point.manifest;
    let said = manifest.engine.as_ref().unwrap();
    assert_eq!(said.said, "not asked");
    assert!(said.why.as_ref().unwrap().contains("engine"), "{said:?}");
    assert!(!manifest.warnings.iter().any(|w| w.contains("disagrees")), "{manifest:?}");
    let text = fs::read_to_string(report.point.path.join("manifest.json")).unwrap();
    assert!(!text.contains("secret"), "{text}");
}

const PUBLIC: &str = "age1zj8w38z6sf4r6qa6xpm38vclmjs0jud83m9eev69xvtwrn0wnguq0usvu0";

/// What a failed run leaves: its log here, nothing there.
#[track_caller]
fn check_traces(stage: &Stage) {
    assert_eq!(stage.left(), Vec::<String>::new(), "left on the manager");
    let stored: Vec<_> = fs::read_dir(stage.stored())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(stored.len() == 1 && stored[0].starts_with(".failed-"), "{stored:?}");
    let kept = stage.stored().join(&stored[0]);
    assert!(kept.join("engine-backup.log").exists() && !kept.join("engine.backup").exists());
    let journal = stage.repository.path().join("journal");
    assert_eq!(fs::read_dir(journal).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_04_a_failed_run_leaves_no_archive_whole_or_partial() {
    for (transcript, partial, expected) in [
        ("b_badpw", &b""[..], "Failed notifying engine"),
        ("b_full_target", b"\x1f\x8b half an archive", "No space left on device"),
        ("b_full_tmp", b"", "Low free space"),
        ("b_baddwh", b"", "ovirt_engine_history backup failed"),
    ] {
        let stage = Stage::new("4.5.7");
        stage.play(transcript);
        stage.put("partial", partial);
        let error = stage.backup(&["all"]).await.unwrap_err();
        assert!(matches!(error, RunError::ManagerRun { .. }), "{transcript}: {error:?}");
        assert!(text(&error).contains(expected), "{transcript}: {}", text(&error));
        check_traces(&stage);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_01_done_with_a_bad_archive_is_a_failure() {
    let whole = fs::read(fixture("4.5.7-all.backup")).unwrap();
    for (archive, expected) in [
        (Vec::new(), "cut off"),
        (whole[..whole.len() / 2].to_vec(), "cut off"),
        (fs::read(fixture("4.5.7-db.backup")).unwrap(), "announced and is not in it"),
    ] {
        let stage = Stage::new("4.5.7");
        stage.play("b_ok_all");
        stage.put("archive", &archive);
        let error = stage.backup(&["all"]).await.unwrap_err();
        assert!(matches!(error, RunError::ManagerArchive { .. }), "{error:?}");
        assert!(text(&error).contains(expected), "{}", text(&error));
        assert_eq!(error.exit_code(), 15);
        check_traces(&stage);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_03_a_component_that_is_not_set_up_is_reported() {
    let stage = Stage::new("4.5.7");
    stage.play("b_cinderlibdb");
    stage.archive("4.5.7-cinderlibdb-not-configured.backup");
    let error = stage.backup(&["cinderlibdb"]).await.unwrap_err();
    assert!(text(&error).contains("not set up"), "{}", text(&error));
    check_traces(&stage);

    let stage = Stage::new("4.5.7");
    stage.play("b_files");
    stage.archive("4.5.7-files.backup");
    let report = stage.backup(&["files", "keycloakdb"]).await.unwrap();
    assert_eq!(report.point.manifest.absent, ["keycloakdb"]);
    assert_eq!(report.point.manifest.scopes, ["files"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_14_a_run_that_a_signal_ends_is_a_failure() {
    for signal in ["PIPE", "TERM", "KILL"] {
        let stage = Stage::new("4.5.7");
        stage.play("b_ok_all");
        stage.archive("4.5.7-all.backup");
        stage.put("kill", signal.as_bytes());
        let error = stage.backup(&["all"]).await.unwrap_err();
        assert!(text(&error).contains("signal"), "{}", text(&error));
        check_traces(&stage);
    }
}

pub async fn until(what: impl Fn() -> bool) {
    for _ in 0..600 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it does not come to pass");
}

/// A run that waits behind "Backing up:" until `go`.
pub fn waiting() -> Stage {
    let stage = Stage::new("4.5.7");
    stage.play("b_ok_all");
    stage.archive("4.5.7-all.backup");
    stage.put("wait", b"");
    stage
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_14_a_connection_that_is_cut_does_not_end_the_run() {
    let stage = waiting();
    let context = stage.context();
    let job =
        tokio::spawn(async move { hvbak_run::manager_backup(&context, &options(&["all"])).await });
    until(|| stage.sshd.root().join("calls").exists()).await;
    for _ in 0..3 {
        stage.sshd.signal_sessions(Signal::SIGKILL);
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    stage.put("go", b"");
    let report = job.await.unwrap().unwrap();
    assert_eq!(report.point.manifest.scopes.len(), 5);
    assert_eq!(stage.left(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_02_a_second_run_is_refused_while_one_is_at_work() {
    let stage = waiting();
    let context = stage.context();
    let job =
        tokio::spawn(async move { hvbak_run::manager_backup(&context, &options(&["all"])).await });
    until(|| stage.sshd.root().join("calls").exists()).await;
    // The same repository is locked here; another hvbak's is stopped by the manager's lock.
    let error = stage.backup(&["all"]).await.unwrap_err();
    assert_eq!(error.exit_code(), 11, "{}", text(&error));
    let other = tempfile::tempdir().unwrap();
    hvbak_repo::Repository::init(other.path()).unwrap();
    let context = stage.context_for(other.path());
    let error = hvbak_run::manager_backup(&context, &options(&["all"])).await.unwrap_err();
    assert!(matches!(error, RunError::ManagerBusy { .. }), "{}", text(&error));
    stage.put("go", b"");
    job.await.unwrap().unwrap();
    let calls = fs::read_to_string(stage.sshd.root().join("calls")).unwrap();
    assert_eq!(calls.matches("--mode=backup").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_hvbak_died_is_picked_up_by_the_next() {
    let stage = waiting();
    let context = stage.context();
    let job =
        tokio::spawn(async move { hvbak_run::manager_backup(&context, &options(&["all"])).await });
    until(|| stage.sshd.root().join("calls").exists()).await;
    job.abort();
    assert!(job.await.unwrap_err().is_cancelled());
    // Another second, another point.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    stage.put("go", b"");
    let report = stage.backup(&["all"]).await.unwrap();
    assert_eq!(report.picked_up.len(), 1);
    assert_ne!(report.picked_up[0].path, report.point.path);
    assert!(report.picked_up[0].compare().unwrap().is_empty());
    assert_eq!(stage.left(), Vec::<String>::new());
    assert_eq!(journals(&stage), 0, "the dead job's journal is settled");
}

fn journals(stage: &Stage) -> usize {
    fs::read_dir(stage.repository.path().join("journal")).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_stored_before_its_hvbak_died_is_swept_by_the_next() {
    let stage = waiting();
    stage.put("go", b"");
    let first = stage.backup(&["all"]).await.unwrap();
    // As if it had died between publishing and sweeping.
    let run = stage.work().join(first.point.manifest.point.as_str());
    fs::create_dir(&run).unwrap();
    let repository = Repository::open(stage.repository.path()).unwrap();
    fs::write(run.join("owner"), repository.id().to_string()).unwrap();
    fs::write(run.join("engine.backup"), "secrets").unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let second = stage.backup(&["all"]).await.unwrap();
    assert!(second.picked_up.is_empty());
    assert_eq!(stage.left(), Vec::<String>::new());
    assert!(first.point.compare().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_backup_stops_the_run_and_sweeps() {
    let stage = waiting();
    let context = stage.context();
    let cancel = context.cancel.clone();
    let job =
        tokio::spawn(async move { hvbak_run::manager_backup(&context, &options(&["all"])).await });
    until(|| stage.sshd.root().join("calls").exists()).await;
    cancel.cancel();
    assert!(matches!(job.await.unwrap().unwrap_err(), RunError::Cancelled));
    assert_eq!(stage.left(), Vec::<String>::new());
    assert!(!stage.stored().exists());
    assert_eq!(journals(&stage), 0);
}

/// What lies in the repository for the manager, points or not.
fn stored(stage: &Stage) -> Vec<String> {
    let entries = fs::read_dir(stage.stored()).into_iter().flatten();
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

/// A backup in the midst of its archive's way here: it is large, and has begun to arrive.
async fn fetching(
    stage: &Stage,
    options: hvbak_run::ManagerBackupOptions,
) -> (CancellationToken, JoinHandle<Result<hvbak_run::ManagerBackupReport, RunError>>) {
    stage.play("b_ok_all");
    let mut archive = fs::read(fixture("4.5.7-all.backup")).unwrap();
    archive.resize(archive.len() + (64 << 20), 0);
    stage.put("archive", &archive);
    let context = stage.context();
    let cancel = context.cancel.clone();
    let job = tokio::spawn(async move { hvbak_run::manager_backup(&context, &options).await });
    let arrives = |dir: &str| {
        let dir = stage.stored().join(dir);
        ["engine.backup", "engine.backup.age"].iter().any(|name| dir.join(name).exists())
    };
    while !stored(stage).iter().any(|dir| dir.starts_with(".partial-") && arrives(dir)) {
        assert!(!job.is_finished(), "it was too fast");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (cancel, job)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_cancelled_while_its_archive_arrives_leaves_nothing_on_either_side() {
    for recipients in [&[][..], &[PUBLIC]] {
        let recipients = hvbak_repo::Recipients::parse(recipients).unwrap();
        let stage = Stage::new("4.5.7");
        let wished = hvbak_run::ManagerBackupOptions { recipients, ..options(&["all"]) };
        let (cancel, job) = fetching(&stage, wished).await;
        cancel.cancel();
        assert!(matches!(job.await.unwrap().unwrap_err(), RunError::Cancelled));
        assert_eq!(stage.left(), Vec::<String>::new(), "the archive lies there in plain");
        assert_eq!(stored(&stage), Vec::<String>::new());
        assert_eq!(journals(&stage), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_cancelled_and_could_not_be_swept_is_told_and_stays_in_the_journal() {
    let stage = Stage::new("4.5.7");
    let (cancel, job) = fetching(&stage, options(&["all"])).await;
    // Its directory cannot be removed: a stand-in for whatever keeps hvbak from it.
    let run = stage.work().join(&stage.left()[0]);
    let real = stage.work().join("lock");
    fs::remove_file(run.join("rc")).unwrap();
    let held = fs::File::open(&real).unwrap();
    held.lock().unwrap();
    cancel.cancel();
    assert!(matches!(job.await.unwrap().unwrap_err(), RunError::Cancelled));
    assert_eq!((stage.left().len(), journals(&stage)), (1, 1));
    assert_eq!(stored(&stage), Vec::<String>::new());
    let told = stage.ears.0.lock().unwrap().join("\n");
    assert!(told.contains("in plain") && told.contains("hvbak cleanup"), "{told}");
    // The next run takes it home, and only then is it settled.
    held.unlock().unwrap();
    fs::write(run.join("rc"), "0\n").unwrap();
    fs::copy(fixture("4.5.7-all.backup"), run.join("engine.backup")).unwrap();
    stage.archive("4.5.7-all.backup");
    let report = stage.backup(&["all"]).await.unwrap();
    assert_eq!(report.picked_up.len(), 1);
    assert_eq!((stage.left().len(), journals(&stage)), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_run_stays_when_its_picking_up_is_cancelled() {
    let stage = waiting();
    let context = stage.context();
    let job =
        tokio::spawn(async move { hvbak_run::manager_backup(&context, &options(&["all"])).await });
    until(|| stage.sshd.root().join("calls").exists()).await;
    job.abort();
    assert!(job.await.unwrap_err().is_cancelled());
    let earlier = stage.left();
    let context = stage.context();
    let cancel = context.cancel.clone();
    let job =
        tokio::spawn(async move { hvbak_run::manager_backup(&context, &options(&["all"])).await });
    until(|| stage.ears.0.lock().unwrap().join("\n").contains("picking up the run")).await;
    cancel.cancel();
    assert!(matches!(job.await.unwrap().unwrap_err(), RunError::Cancelled));
    assert_eq!((stage.left(), journals(&stage)), (earlier, 1));
    let told = stage.ears.0.lock().unwrap().join("\n");
    assert!(told.contains("earlier hvbak stays") && told.contains("hvbak cleanup"), "{told}");
    // Another second, another point.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    stage.put("go", b"");
    let report = stage.backup(&["all"]).await.unwrap();
    assert_eq!(report.picked_up.len(), 1);
    assert_eq!((stage.left().len(), journals(&stage)), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_run_whose_log_cannot_be_kept_stays_on_the_manager() {
    let stage = waiting();
    stage.play("b_badpw");
    let context = stage.context();
    let job =
        tokio::spawn(async move { hvbak_run::manager_backup(&context, &options(&["all"])).await });
    until(|| stage.sshd.root().join("calls").exists()).await;
    // A file where the log should go: a stand-in for a repository that takes nothing.
    let run = stage.left().remove(0);
    let in_the_way = stage.stored().join(format!(".failed-{run}"));
    fs::create_dir_all(stage.stored()).unwrap();
    fs::write(&in_the_way, "").unwrap();
    stage.put("go", b"");
    let error = job.await.unwrap().unwrap_err();
    assert!(matches!(error, RunError::ManagerRun { kept: None, .. }), "{}", text(&error));
    assert!(stage.work().join(&run).join("stderr").exists());
    assert_eq!(journals(&stage), 1);
    let told = stage.ears.0.lock().unwrap().join("\n");
    assert!(told.contains("the failed run's log stays") && told.contains(&run), "{told}");
    // The next run keeps it, and only then it goes.
    fs::remove_file(&in_the_way).unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    stage.backup(&["all"]).await.unwrap_err();
    assert!(in_the_way.is_dir());
    assert_eq!((stage.left().len(), journals(&stage)), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_hvbak_left_half_made_here_goes_with_the_next_run() {
    let stage = Stage::new("4.5.7");
    stage.play("b_ok_all");
    stage.archive("4.5.7-all.backup");
    let partial = stage.stored().join(".partial-20260101T000000Z");
    fs::create_dir_all(&partial).unwrap();
    fs::write(partial.join("engine.backup"), "half of it").unwrap();
    // Of a restore that never began, its archive lies on the manager in plain.
    let run = stage.work().join("20260101T000001Z");
    fs::create_dir_all(run.join("tmp")).unwrap();
    let owner = Repository::open(stage.repository.path()).unwrap().id().to_string();
    let files = [("owner", owner.as_str()), ("kind", "restore"), ("engine.backup", "plain")];
    for (name, text) in files.into_iter().chain([("prepared", "")]) {
        fs::write(run.join(name), text).unwrap();
    }
    let report = stage.backup(&["all"]).await.unwrap();
    assert_eq!(stored(&stage), [report.point.manifest.point.to_string()]);
    assert_eq!(stage.left(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_engine_backup_is_told() {
    let stage = Stage::new("4.5.7");
    fs::remove_file(stage.sshd.root().join("usr/bin/engine-backup")).unwrap();
    let error = stage.backup(&["all"]).await.unwrap_err();
    assert!(text(&error).contains("no engine-backup is installed"), "{}", text(&error));
    assert!(!stage.work().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_that_the_version_lacks_is_not_sent() {
    let stage = Stage::new("4.4.10.7");
    let error = stage.backup(&["keycloakdb"]).await.unwrap_err();
    assert!(text(&error).contains("4.4.10.7 has no scope keycloakdb"), "{}", text(&error));
    assert!(!stage.sshd.root().join("calls").exists());
}
