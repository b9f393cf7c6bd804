//! `manager-restore`: nothing is overwritten while something stops it, nothing that the
//! program hides is believed, and nothing of ours stays on the manager.

use std::{collections::BTreeMap, fs, io::Write, time::Duration};

use hvbak_manager::{
    Request, Scope,
    restore::{Credentials, Provision, RestoreFailed, Wishes},
};
use hvbak_run::{
    ManagerRestoreOptions, ManagerRestored, RunError, SetupWish, manager_restore,
    manager_restore_pick_up, manager_restore_plan,
};
use hvbak_types::Secret;
use nix::sys::signal::Signal;

use crate::stage::{Stage, fixture, text};

pub fn options(scopes: &[&str]) -> ManagerRestoreOptions {
    let mut wishes = Wishes::of(Request::parse(scopes).unwrap());
    wishes.permissions = Some(true);
    ManagerRestoreOptions {
        point: "engine.example.test".into(),
        wishes,
        passwords: BTreeMap::new(),
        hosted_engine_host: None,
        setup: None,
    }
}

impl Stage {
    async fn restore(&self, options: &ManagerRestoreOptions) -> Result<ManagerRestored, RunError> {
        manager_restore(&self.context(), options).await
    }

    /// Nothing of ours is there, and no journal is open.
    #[track_caller]
    pub fn check_swept(&self) {
        assert_eq!(self.left(), Vec::<String>::new(), "left on the manager");
        assert_eq!(self.journals(), 0, "open journals");
    }

    /// The machine is as it was.
    #[track_caller]
    fn check_untouched(&self) {
        assert_eq!(self.calls(), "");
        assert_eq!(self.on_manager("overwritten"), None);
        self.check_swept();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_restore_is_judged_kept_and_swept() {
    let stage = Stage::restorable("4.5.7").await;
    stage.machine("vms", "4");
    let done = stage.restore(&options(&["all"])).await.unwrap();
    assert_eq!(done.said.content.len(), 5);
    assert_eq!((done.vms, done.expected_vms), (Some(4), Some(4)));
    let calls = stage.calls();
    assert!(calls.starts_with("--mode=restore\n--scope=all\n--file=/"), "{calls}");
    assert!(calls.contains("--restore-permissions\n"), "{calls}");
    // What root's shell read is what was stored.
    let restored = stage.on_manager("restored").unwrap();
    let sum = std::process::Command::new("sha256sum").arg(fixture("4.5.7-all.backup")).output();
    assert_eq!(restored[..64], String::from_utf8(sum.unwrap().stdout).unwrap()[..64]);
    stage.check_swept();
    let kept = stage.kept();
    assert_eq!(done.kept.as_deref(), Some(kept[0].as_path()));
    for name in ["engine-backup.log", "stdout.txt", "command.txt", "outcome.json"] {
        assert!(kept[0].join(name).exists(), "{name}");
    }
    let outcome = fs::read_to_string(kept[0].join("outcome.json")).unwrap();
    assert!(
        outcome.contains("\"vms\": 4") && outcome.contains("engine.example.test@"),
        "{outcome}"
    );
    // The databases were asked with the passwords of the configuration in the archive.
    let queries = stage.on_manager("queries").unwrap();
    for word in ["dummy-engine-pw", "dummy-dwh-pw", "dummy-kc-pw"] {
        assert!(queries.lines().any(|l| l.contains("select 1") && l.ends_with(word)), "{queries}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_05_nothing_is_overwritten_while_anything_stops_the_restore() {
    type Prepare = fn(&Stage, &mut ManagerRestoreOptions);
    let cases: [(&str, Prepare, &str); 16] = [
        (
            "4.5.7",
            |s, _| s.machine("active", "ovirt-engine\n"),
            "at work on the manager: ovirt-engine",
        ),
        ("4.5.7", |s, _| s.machine("nonempty", ""), "engine database is not empty"),
        ("4.5.7", |s, _| s.machine("down", ""), "engine database does not answer: psql: error"),
        ("4.5.7", |s, _| s.machine("lc", "de_DE.UTF-8\n"), "lc_messages = de_DE.UTF-8"),
        ("4.5.7", |s, _| s.machine("server", "160001\n"), "the manager's client is 15"),
        ("4.5.7", |_, o| o.wishes.permissions = None, "permissions"),
        ("4.5.6", |_, _| {}, "the archive is newer"),
        ("4.5.7", |s, _| s.machine("hosted", "1\n"), "global maintenance"),
        (
            "4.5.7",
            |_, o| o.wishes.request = Request::Parts(vec![Scope::CinderlibDb]),
            "does not hold cinderlibdb",
        ),
        ("4.5.7", |_, o| o.wishes.cleanup = true, "engine-setup was never run here"),
        (
            "4.5.7",
            |s, o| {
                s.in_use();
                s.set_up_as("other.example.test");
                o.wishes.cleanup = true;
            },
            "the backup is of engine.example.test and this machine was set up as other.example.test",
        ),
        (
            "4.5.7",
            |s, o| {
                s.in_use();
                o.wishes.cleanup = true;
                o.wishes.request = Request::Parts(vec![Scope::Db]);
            },
            "engine-cleanup takes away what would not be restored",
        ),
        (
            "4.5.7",
            |s, o| {
                // Its own DWH answers and holds something.
                s.in_use();
                s.configured();
                o.wishes.cleanup = true;
                o.wishes.request = Request::Parts(vec![Scope::Files, Scope::Db]);
            },
            "would not be restored: Data Warehouse database",
        ),
        (
            "4.5.7",
            |s, o| {
                s.in_use();
                s.configured();
                s.machine("hosted", "1\n");
                o.wishes.request = Request::Parts(vec![Scope::Files]);
            },
            "global maintenance",
        ),
        (
            "4.5.7",
            |s, o| {
                o.wishes.provision = Provision::All;
                s.machine("locale", "C\n");
            },
            "en_US.UTF-8 is not installed",
        ),
        (
            "4.5.7",
            |s, o| {
                o.wishes.provision = Provision::All;
                s.machine("down", "");
                s.machine("local", "engine\n");
            },
            "the database `engine` exists",
        ),
    ];
    for (version, prepare, expected) in cases {
        let stage = Stage::restorable("4.5.7").await;
        let mut options = options(&["all"]);
        prepare(&stage, &mut options);
        if version != "4.5.7" {
            let conf = "usr/share/ovirt-engine/services/ovirt-engine/ovirt-engine.conf";
            fs::write(stage.sshd.root().join(conf), format!("PACKAGE_VERSION={version}\n"))
                .unwrap();
        }
        let plan = manager_restore_plan(&stage.context(), &options).await.unwrap();
        assert!(!plan.is_clear(), "{expected}");
        let error = stage.restore(&options).await.unwrap_err();
        assert!(matches!(error, RunError::ManagerPreflight { cleaned: false, .. }), "{error:?}");
        assert!(text(&error).contains(expected), "{expected}: {}", text(&error));
        assert!(text(&error).starts_with("nothing was changed"), "{}", text(&error));
        stage.check_untouched();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_06_done_is_not_believed_when_log_or_rows_say_otherwise() {
    type Prepare = fn(&Stage);
    let cases: [(Prepare, &str); 6] = [
        (
            |s| {
                s.put("log", b"2026-11-21 02:49:00 1: OUTPUT: Done.\npg_restore: error: could not read from input file: end of file\n")
            },
            "could not read from input file",
        ),
        (
            |s| {
                s.put(
                    "log",
                    b"pg_restore: [archiver] input file does not appear to be a valid archive\n",
                )
            },
            "does not appear to be a valid archive",
        ),
        (
            |s| s.put("log", b"pg_restore: error: a worker process died unexpectedly\n"),
            "a worker process died",
        ),
        (|s| s.put("no-log", b""), "has left no log"),
        (|s| s.machine("vms", "0\n"), "no VM and no template"),
        (|s| s.machine("vms", "3\n"), "holds 3 VMs and templates instead of 4"),
    ];
    for (prepare, expected) in cases {
        let stage = Stage::restorable("4.5.7").await;
        prepare(&stage);
        let error = stage.restore(&options(&["all"])).await.unwrap_err();
        assert!(text(&error).contains(expected), "{expected}: {}", text(&error));
        assert_eq!(error.exit_code(), 15);
        assert!(error.hint().unwrap().contains("do not run engine-setup"));
        stage.check_swept();
        let outcome = fs::read_to_string(stage.kept()[0].join("outcome.json")).unwrap();
        assert!(outcome.contains("\"failed\": \"engine-backup says it worked"), "{outcome}");
    }
    // In the log of every good restore.
    let stage = Stage::restorable("4.5.7").await;
    stage.put("log", b"pg_restore: error: could not execute query: ERROR:  must be owner of extension uuid-ossp\n");
    stage.restore(&options(&["all"])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_05_what_begins_while_the_archive_is_sent_stops_the_restore() {
    let stage = Stage::restorable("4.5.7").await;
    stage.machine("active-when-sent", "");
    let error = stage.restore(&options(&["all"])).await.unwrap_err();
    assert!(matches!(error, RunError::ManagerPreflight { .. }), "{error:?}");
    assert!(text(&error).contains("at work on the manager: ovirt-engine"), "{}", text(&error));
    stage.check_untouched();
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_07_a_scope_that_was_not_restored_is_a_failure() {
    // It says Done. and You should now run engine-setup., and did nothing.
    let stage = Stage::restorable("4.5.7").await;
    stage.play("r_scope_missing");
    stage.configured();
    let error = stage.restore(&options(&["dwhdb"])).await.unwrap_err();
    let RunError::ManagerRestore { cause: RestoreFailed::Missing { scopes }, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(scopes, &[Scope::DwhDb]);
    stage.check_swept();
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_09_an_archive_that_is_not_what_was_stored_goes_nowhere() {
    let stage = Stage::restorable("4.5.7").await;
    let repository = hvbak_repo::Repository::open(stage.repository.path()).unwrap();
    let archive = repository.find_manager_point("engine.example.test").unwrap().archive_path();
    let mut bytes = fs::read(&archive).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&archive, bytes).unwrap();
    let error = stage.restore(&options(&["all"])).await.unwrap_err();
    assert_eq!(error.exit_code(), 15, "{}", text(&error));
    assert!(text(&error).contains("not what was stored"), "{}", text(&error));
    stage.check_untouched();
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_the_program_are_told_with_their_cause_and_swept() {
    for (transcript, expected, hint) in [
        ("r_prov_exist", "and temporary ones created", "NAME_DATE"),
        ("r_nonempty", "Database 'engine' is not empty", "engine-cleanup"),
        ("r_tmpfull", "Low free space", "make room"),
        ("r_he", "Failed cleaning hosted-engine", "log"),
    ] {
        let stage = Stage::restorable("4.5.7").await;
        stage.play(transcript);
        let error = stage.restore(&options(&["all"])).await.unwrap_err();
        assert!(text(&error).contains(expected), "{}", text(&error));
        assert!(error.hint().unwrap().contains(hint), "{:?}", error.hint());
        assert_eq!(error.exit_code(), 1);
        assert_eq!(stage.kept().len(), 1);
        stage.check_swept();
    }
}

fn elsewhere() -> ManagerRestoreOptions {
    let mut options = options(&["db"]);
    options.wishes.permissions = Some(false);
    options.wishes.credentials = vec![Credentials {
        scope: Scope::Db,
        host: "localhost".into(),
        port: 5432,
        user: "engine".into(),
        database: "engine2".into(),
        secured: false,
        validated: false,
    }];
    options.passwords.insert(Scope::Db, Secret::new("another secret"));
    options
}

#[tokio::test(flavor = "multi_thread")]
async fn other_credentials_fail_falsely_and_that_is_known() {
    let stage = Stage::restorable("4.5.7").await;
    stage.play("r_chg");
    let done = stage.restore(&elsewhere()).await.unwrap();
    assert!(done.said.by_hand.unwrap().contains("10-setup-cinderlib-database.conf"));
    assert_eq!(done.vms, Some(4));
    stage.check_swept();
    // Without other credentials the same words are a failure, as is any other cause.
    let stage = Stage::restorable("4.5.7").await;
    stage.play("r_chg");
    stage.configured();
    let error = stage.restore(&options(&["db"])).await.unwrap_err();
    assert!(stage.on_manager("queries").unwrap().contains("machine's own"));
    assert!(matches!(error, RunError::ManagerRestore { .. }), "{error:?}");
    let stage = Stage::restorable("4.5.7").await;
    stage.play("r_chg");
    stage.put("stderr", b"FATAL: Errors while restoring database engine2\n");
    assert!(stage.restore(&elsewhere()).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_17_passwords_go_by_files_and_never_by_environment_or_argument() {
    let stage = Stage::restorable("4.5.7").await;
    stage.play("r_chg");
    stage.restore(&elsewhere()).await.unwrap();
    // Rule 16: nobody else may read it. Its name is all that the command holds.
    let uid = nix::unistd::Uid::current();
    assert_eq!(stage.on_manager("passfiles").unwrap(), format!("600 {uid} another secret\n"));
    let calls = stage.calls();
    assert!(calls.contains("--db-passfile=/") && !calls.contains("another secret"), "{calls}");
    assert!(!calls.contains("--db-password"), "{calls}");
    let environment = stage.on_manager("environment").unwrap();
    assert!(!environment.contains("another secret"), "{environment}");
    for name in ["OVIRT_", "PGPASSWORD", "_DATABASE_PASSWORD"] {
        assert!(!environment.contains(name), "{name}");
    }
    let told = stage.ears.0.lock().unwrap().join("\n");
    assert!(!told.contains("another secret"));
    for file in fs::read_dir(&stage.kept()[0]).unwrap() {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(14).any(|w| w == b"another secret"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn engine_cleanup_runs_first_only_when_told_and_is_looked_after() {
    let stage = Stage::restorable("4.5.7").await;
    stage.in_use();
    let mut wishes = options(&["all"]);
    wishes.wishes.cleanup = true;
    wishes.setup =
        Some(SetupWish { answers: Some(Secret::new("[environment:default]\nA/b=str:c\n")) });
    let done = stage.restore(&wishes).await.unwrap();
    assert!(done.setup.unwrap().is_healthy());
    let calls = stage.calls();
    let order = [
        "engine-cleanup\n--otopi-environment=OVESETUP_CORE/remove=bool:True OVESETUP_CORE/engineStop=bool:True\n--mode=restore\n",
        "engine-setup\n--accept-defaults\n--offline\n--config-append=/",
    ];
    assert!(order.iter().all(|o| calls.contains(o)), "{calls}");
    let answers = stage.on_manager("passfiles").unwrap();
    assert_eq!(answers, "600\n[environment:default]\nA/b=str:c\n");
    assert_eq!(stage.kept().len(), 3, "each part has its log");
    stage.check_swept();
    // What is to be known is told before it runs, and once.
    let told = stage.ears.0.lock().unwrap().join("\n");
    let at = |text: &str| told.find(text).unwrap_or_else(|| panic!("no {text} in {told}"));
    assert!(at("highly available VMs") < at("engine-cleanup begins"), "{told}");
    assert_eq!(told.matches("highly available VMs").count(), 1, "{told}");

    // engine-setup fails: that is told, and the restore before it is not lost.
    let stage = Stage::restorable("4.5.7").await;
    stage.in_use();
    stage.machine("setup-rc", "1");
    let done = stage.restore(&wishes).await.unwrap();
    assert_eq!((done.said.content.len(), done.vms), (5, Some(4)));
    let setup = done.setup.unwrap();
    assert!(!setup.is_healthy() && setup.failed.unwrap().contains("engine-setup: it failed"));
    stage.check_swept();

    // It fails: nothing is restored.
    let stage = Stage::restorable("4.5.7").await;
    stage.in_use();
    stage.machine("cleanup-rc", "1");
    wishes.setup = None;
    let error = stage.restore(&wishes).await.unwrap_err();
    assert!(text(&error).contains("engine-cleanup: it failed"), "{}", text(&error));
    assert!(!stage.calls().contains("--mode=restore"));
    stage.check_swept();

    // It leaves something: nothing is restored, and that it ran is told.
    let stage = Stage::restorable("4.5.7").await;
    stage.in_use();
    stage.machine("dirty", "");
    let error = stage.restore(&wishes).await.unwrap_err();
    assert!(matches!(error, RunError::ManagerPreflight { cleaned: true, .. }), "{error:?}");
    assert!(text(&error).starts_with("engine-cleanup was run"), "{}", text(&error));
    assert_eq!(stage.on_manager("overwritten"), None);
    stage.check_swept();
}

impl Stage {
    /// The next look at the manager waits until the answer is dropped.
    pub async fn hold_the_look(&self) -> Held {
        let conf =
            self.sshd.root().join("usr/share/ovirt-engine/services/ovirt-engine/ovirt-engine.conf");
        let text = fs::read(&conf).unwrap();
        fs::remove_file(&conf).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&conf).status().unwrap().success());
        let of = conf.clone();
        // Opened as soon as somebody reads it.
        let open = move || fs::OpenOptions::new().write(true).open(of).unwrap();
        let pipe = tokio::task::spawn_blocking(open).await.unwrap();
        Held { pipe, conf, text }
    }
}

/// A look that waits for the version.
pub struct Held {
    pipe: fs::File,
    conf: std::path::PathBuf,
    text: Vec<u8>,
}

impl Drop for Held {
    fn drop(&mut self) {
        fs::remove_file(&self.conf).unwrap();
        fs::write(&self.conf, &self.text).unwrap();
        self.pipe.write_all(&self.text).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_cannot_be_sent_is_found_before_engine_cleanup_takes_everything_away() {
    let stage = Stage::restorable("4.5.7").await;
    stage.in_use();
    let repository = hvbak_repo::Repository::open(stage.repository.path()).unwrap();
    let archive = repository.find_manager_point("engine.example.test").unwrap().archive_path();
    let mut wishes = options(&["all"]);
    wishes.wishes.cleanup = true;
    let plan = manager_restore_plan(&stage.context(), &wishes).await.unwrap();
    let at = |text: &str| plan.commands.iter().position(|c| c.line.contains(text)).unwrap();
    assert!(at("cat >") < at("engine-cleanup") && at("engine-cleanup") < at("--mode=restore"));
    let (context, same) = (stage.context(), wishes.clone());
    let job = tokio::spawn(async move { manager_restore(&context, &same).await });
    // Its disk fails between the comparison and the sending.
    let held = stage.hold_the_look().await;
    let whole = fs::read(&archive).unwrap();
    fs::write(&archive, &whole[..whole.len() / 2]).unwrap();
    drop(held);
    let error = job.await.unwrap().unwrap_err();
    assert!(matches!(error, RunError::ManagerTransfer { .. }), "{error:?}");
    stage.check_untouched();

    // It can be sent: what stops engine-cleanup is looked for after the sending, too.
    fs::write(&archive, &whole).unwrap();
    stage.machine("unset-when-sent", "");
    let error = stage.restore(&wishes).await.unwrap_err();
    assert!(matches!(error, RunError::ManagerPreflight { cleaned: false, .. }), "{error:?}");
    stage.check_untouched();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_and_cannot_be_swept_is_told_and_stays_in_the_journal() {
    let stage = Stage::restorable("4.5.7").await;
    let repository = hvbak_repo::Repository::open(stage.repository.path()).unwrap();
    let archive = repository.find_manager_point("engine.example.test").unwrap().archive_path();
    let context = stage.context();
    let job = tokio::spawn(async move { manager_restore(&context, &options(&["all"])).await });
    // It cannot be sent, however often that is tried.
    let held = stage.hold_the_look().await;
    let whole = fs::read(&archive).unwrap();
    fs::write(&archive, &whole[..whole.len() / 2]).unwrap();
    drop(held);
    let run = || stage.left().first().map(|run| stage.work().join(run));
    until(|| run().is_some_and(|run| run.join("prepared").exists())).await;
    // A run that looks at work is not swept: a stand-in for whatever keeps hvbak from it.
    let run = run().unwrap();
    fs::create_dir(run.join("started")).unwrap();
    let lock = fs::File::create(stage.work().join("lock")).unwrap();
    lock.lock().unwrap();
    let error = job.await.unwrap().unwrap_err();
    assert!(matches!(error, RunError::ManagerTransfer { .. }), "{error:?}");
    assert_eq!((stage.left().len(), stage.journals()), (1, 1));
    let told = stage.ears.0.lock().unwrap().join("\n");
    let dir = format!("/var/lib/hvbak-manager/{} stays", run.file_name().unwrap().display());
    assert!(told.contains(&dir) && told.contains("hvbak cleanup"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_that_is_restored_is_not_pruned_away_under_it() {
    let stage = Stage::restorable("4.5.7").await;
    let repository = stage.context().repository;
    let first = repository.find_manager_point("engine.example.test").unwrap().manifest.point;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    stage.play("b_ok_all");
    stage.archive("4.5.7-all.backup");
    stage.backup(&["all"]).await.unwrap();
    fs::remove_file(stage.sshd.root().join("play/archive")).unwrap();
    stage.play("r_ok_perm");
    let mut wished = options(&["all"]);
    wished.point = format!("engine.example.test@{first}");
    let context = stage.context();
    let job = tokio::spawn(async move { manager_restore(&context, &wished).await });
    let held = stage.hold_the_look().await;
    let prune = || {
        let repository = stage.context().repository;
        let rules = hvbak_plan::KeepRules { last: Some(1), ..Default::default() };
        let (name, zone) = ("engine.example.test".parse().unwrap(), jiff::tz::TimeZone::UTC);
        async move { hvbak_run::manager_prune(&repository, name, rules, zone, false).await }
    };
    let error = prune().await.unwrap_err();
    assert_eq!(error.exit_code(), 11, "{}", text(&error));
    drop(held);
    let done = job.await.unwrap().unwrap();
    assert!(done.point.unwrap().ends_with(first.as_str()));
    // Afterwards it goes.
    assert_eq!(prune().await.unwrap().removed.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_machine_is_provisioned() {
    let stage = Stage::restorable("4.5.7").await;
    stage.play("r_kc_prov");
    stage.machine("down", "");
    let mut options = options(&["all"]);
    options.wishes.permissions = None;
    options.wishes.provision = Provision::All;
    let plan = manager_restore_plan(&stage.context(), &options).await.unwrap();
    assert!(plan.is_clear(), "{:?}", plan.findings);
    let lines: Vec<_> = plan.commands.iter().map(|c| c.line.as_str()).collect();
    assert!(lines.iter().any(|l| l.contains("--provision-all-databases")), "{lines:?}");
    stage.check_untouched();
    let error = stage.restore(&options).await;
    // The database does not answer afterwards either: that is told, not hidden.
    let done = error.unwrap();
    assert!(
        done.warnings.iter().any(|w| w.contains("could not be counted")),
        "{:?}",
        done.warnings
    );
    assert!(!done.is_proven(), "nobody has counted the rows");
    assert!(stage.calls().contains("--provision-all-databases\n"));
    assert!(!stage.calls().contains("permissions"));
}

async fn until(what: impl Fn() -> bool) {
    for _ in 0..600 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it does not come to pass");
}

/// A restore that waits behind "Restoring:" until `go`.
pub async fn waiting() -> Stage {
    let stage = Stage::restorable("4.5.7").await;
    stage.put("wait", b"");
    stage
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_14_a_connection_that_is_cut_does_not_end_the_restore() {
    let stage = waiting().await;
    let context = stage.context();
    let job = tokio::spawn(async move { manager_restore(&context, &options(&["all"])).await });
    until(|| stage.calls().contains("--mode=restore")).await;
    for _ in 0..3 {
        stage.sshd.signal_sessions(Signal::SIGKILL);
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    stage.put("go", b"");
    let done = job.await.unwrap().unwrap();
    assert_eq!(done.said.content.len(), 5);
    stage.check_swept();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_whose_hvbak_died_is_picked_up_and_not_done_twice() {
    for explicitly in [true, false] {
        let stage = waiting().await;
        let context = stage.context();
        let job = tokio::spawn(async move { manager_restore(&context, &options(&["all"])).await });
        until(|| stage.calls().contains("--mode=restore")).await;
        job.abort();
        assert!(job.await.unwrap_err().is_cancelled());
        assert_eq!(stage.journals(), 1);
        // A backup must not take the restore for one of its own, nor disturb it.
        let error = stage.backup(&["all"]).await.unwrap_err();
        assert_eq!(error.exit_code(), 11, "{}", text(&error));
        stage.put("go", b"");
        let done = if explicitly {
            manager_restore_pick_up(&stage.context()).await.unwrap().restored.unwrap()
        } else {
            stage.restore(&options(&["all"])).await.unwrap()
        };
        assert!(done.picked_up);
        assert!(done.point.unwrap().starts_with("engine.example.test@"));
        assert_eq!((done.vms, done.expected_vms), (Some(4), Some(4)));
        assert_eq!(stage.calls().matches("--mode=restore").count(), 1);
        assert_eq!(stage.left(), Vec::<String>::new());
        assert!(manager_restore_pick_up(&stage.context()).await.unwrap().restored.is_none());
    }
}

/// A restore whose hvbak has died, and which has ended meanwhile.
async fn died(options: ManagerRestoreOptions, prepare: fn(&Stage)) -> Stage {
    let stage = waiting().await;
    prepare(&stage);
    let context = stage.context();
    let job = tokio::spawn(async move { manager_restore(&context, &options).await });
    until(|| stage.calls().contains("--mode=restore")).await;
    job.abort();
    assert!(job.await.unwrap_err().is_cancelled());
    stage.put("go", b"");
    stage
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_command_again_ends_what_was_begun_and_another_one_is_not_taken_for_it() {
    // The same one, with the engine-setup that it did not come to.
    let mut wished = options(&["all"]);
    wished.setup = Some(SetupWish { answers: None });
    let stage = died(wished.clone(), |_| {}).await;
    let done = stage.restore(&wished).await.unwrap();
    assert!(done.picked_up && done.setup.unwrap().is_healthy());
    assert_eq!(stage.calls().matches("--mode=restore").count(), 1);
    assert_eq!(stage.calls().matches("engine-setup\n").count(), 1);
    assert_eq!(stage.left(), Vec::<String>::new());

    // Another point was begun, or less of the same: that is told as what it is.
    let wished = options(&["all"]);
    let less: fn(&Stage) = |stage| {
        stage.play("r_keep");
        stage.configured();
    };
    for (begun, prepare) in [("all", (|_| {}) as fn(&Stage)), ("db", less)] {
        let stage = died(options(&[begun]), prepare).await;
        if begun == "all" {
            let of = stage.work().join(&stage.left()[0]).join("of");
            fs::write(of, "engine.example.test@20200101T000000Z\n").unwrap();
        }
        let error = stage.restore(&wished).await.unwrap_err();
        assert!(matches!(error, RunError::ManagerOtherRestore { .. }), "{error:?}");
        let said = text(&error);
        assert!(said.contains("nothing was done of engine.example.test@"), "{said}");
        assert_eq!(stage.calls().matches("--mode=restore").count(), 1);
        assert_eq!(stage.left(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_setup_that_lost_its_hvbak_is_awaited_and_nothing_is_done_again() {
    let stage = Stage::restorable("4.5.7").await;
    stage.in_use();
    stage.machine("setup-wait", "");
    let mut wished = options(&["all"]);
    wished.wishes.cleanup = true;
    wished.setup = Some(SetupWish { answers: None });
    let (context, same) = (stage.context(), wished.clone());
    let job = tokio::spawn(async move { manager_restore(&context, &same).await });
    until(|| stage.calls().contains("engine-setup\n")).await;
    job.abort();
    assert!(job.await.unwrap_err().is_cancelled());
    // It is set up and holds what was restored; a second engine-cleanup would take it away.
    stage.in_use();
    fs::remove_file(stage.sshd.root().join("play/machine/setup-wait")).unwrap();
    let done = stage.restore(&wished).await.unwrap();
    assert!(done.picked_up && done.said.content.is_empty());
    assert!(done.setup.unwrap().is_healthy());
    for program in ["--mode=restore\n", "engine-cleanup\n", "engine-setup\n"] {
        assert_eq!(stage.calls().matches(program).count(), 1, "{program}");
    }
    assert_eq!(stage.left(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_restore_that_is_judged_late_is_good_whatever_the_engine_did_since() {
    let stage = died(options(&["all"]), |_| {}).await;
    stage.machine("active", "ovirt-engine\n");
    stage.machine("vms", "9\n");
    let done = manager_restore_pick_up(&stage.context()).await.unwrap().restored.unwrap();
    assert!(done.is_proven());
    assert!(done.warnings.iter().any(|w| w.contains("holds 9 VMs")), "{:?}", done.warnings);
    // A bad one is bad; that its databases are emptied is not advised.
    let bad: fn(&Stage) = |stage| {
        stage.put("log", b"pg_restore: error: could not read from input file: end of file\n");
    };
    let stage = died(options(&["all"]), bad).await;
    stage.machine("active", "ovirt-engine\n");
    let error = manager_restore_pick_up(&stage.context()).await.unwrap_err();
    assert!(text(&error).contains("could not read"), "{}", text(&error));
    let hint = error.hint().unwrap();
    assert!(hint.contains("change nothing") && !hint.contains("empty"), "{hint}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_restore_goes_on_and_a_bad_end_of_it_is_told_later() {
    let stage = waiting().await;
    stage.put("log", b"pg_restore: error: could not read from input file: end of file\n");
    let context = stage.context();
    let cancel = context.cancel.clone();
    let job = tokio::spawn(async move { manager_restore(&context, &options(&["all"])).await });
    until(|| stage.calls().contains("--mode=restore")).await;
    cancel.cancel();
    assert!(matches!(job.await.unwrap().unwrap_err(), RunError::Cancelled));
    assert_eq!(stage.left().len(), 1, "it is at work");
    let told = stage.ears.0.lock().unwrap().join("\n");
    assert!(told.contains("--pick-up"), "{told}");
    stage.put("go", b"");
    let error = manager_restore_pick_up(&stage.context()).await.unwrap_err();
    assert!(text(&error).contains("could not read from input file"), "{}", text(&error));
    stage.check_swept();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_vanishes_has_failed_and_its_secrets_go_all_the_same() {
    let stage = waiting().await;
    stage.play("r_chg");
    let context = stage.context();
    let job = tokio::spawn(async move { manager_restore(&context, &elsewhere()).await });
    until(|| stage.calls().contains("--mode=restore")).await;
    // As when the machine restarts: nobody is left to write a code or to remove anything.
    let run = stage.work().join(&stage.left()[0]);
    assert!(run.join("secret.db").exists());
    let group: i32 = fs::read_to_string(run.join("pid")).unwrap().trim().parse().unwrap();
    nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group), Signal::SIGKILL).unwrap();
    let error = job.await.unwrap().unwrap_err();
    assert!(text(&error).contains("vanished"), "{}", text(&error));
    assert_eq!(stage.kept().len(), 1);
    stage.check_swept();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_was_prepared_and_never_started_is_swept_by_the_next() {
    let stage = Stage::restorable("4.5.7").await;
    let repository = hvbak_repo::Repository::open(stage.repository.path()).unwrap();
    let run = stage.work().join("20261121T021454Z");
    fs::create_dir_all(run.join("tmp")).unwrap();
    fs::write(run.join("owner"), repository.id().to_string()).unwrap();
    fs::write(run.join("kind"), "restore\n").unwrap();
    fs::write(run.join("secret.db"), "secret").unwrap();
    fs::write(run.join("prepared"), "").unwrap();
    stage.restore(&options(&["all"])).await.unwrap();
    stage.check_swept();
}
