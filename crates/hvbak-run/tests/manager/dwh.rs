//! `dwh move-database` between databases of a real PostgreSQL, over a real sshd, with the
//! stock tools; systemctl is a stand-in.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use hvbak_manager::{
    Scope,
    archive::each_dump,
    dwh::{CopyFailed, Target},
};
use hvbak_run::{
    DwhDatabaseOptions, DwhRevertOptions, ManagerContext, RunError, dwh_database_plan,
    dwh_move_database, dwh_revert_database,
};
use hvbak_types::Secret;
use nix::sys::signal::Signal;

use crate::{
    postgres::Postgres,
    stage::{Stage, fixture, text},
};

pub const DWHD: &str = "etc/ovirt-engine-dwh/ovirt-engine-dwhd.conf.d/10-setup-database.conf";
const ENGINE: &str = "etc/ovirt-engine/engine.conf.d/10-setup-dwh-database.conf";
/// Every character that pgpass, shell or SQL could take for something else.
pub const OLD: &str = "a:b\\c'd\"e$f g";
pub const NEW: &str = "N3w-Pass+word%!";

/// How long a sign of the service is waited for; machines that test are busy.
pub const PATIENCE: Duration = Duration::from_secs(15);
pub const BACK: DwhRevertOptions =
    DwhRevertOptions { lose_rows: false, dry_run: false, patience: PATIENCE };
pub const LOOK: DwhRevertOptions = DwhRevertOptions { dry_run: true, ..BACK };

/// A stand-in for the service: a session in the database that its configuration names, by the
/// real program's order of files.
pub fn service(root: &Path, psql: &Path) {
    let units = root.join("play/units");
    fs::create_dir_all(&units).unwrap();
    let work = units.join("ovirt-engine-dwhd.work");
    let text = format!(
        "#!/bin/sh\nLC_ALL=C\nfor conf in {root}/etc/ovirt-engine-dwh/ovirt-engine-dwhd.conf.d/*.conf; do . \"$conf\"; done\nrm -f {units}/pipe\nmkfifo {units}/pipe\nPGPASSWORD=$DWH_DB_PASSWORD exec timeout 300 {psql} -X -w -h \"$DWH_DB_HOST\" -p \"$DWH_DB_PORT\" -U \"$DWH_DB_USER\" -d \"$DWH_DB_DATABASE\" <>{units}/pipe\n",
        root = root.display(),
        units = units.display(),
        psql = psql.display()
    );
    fs::write(&work, text).unwrap();
    fs::set_permissions(work, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Ends what [`service`] began.
pub fn end_service(root: &Path) {
    let pid = fs::read_to_string(root.join("play/units/ovirt-engine-dwhd.pid"));
    if let Some(pid) = pid.ok().and_then(|text| text.trim().parse().ok()) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM);
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        end_service(&self.stage.sshd.root());
    }
}

pub struct Site {
    pub stage: Stage,
    pub postgres: Postgres,
    pub before: [Vec<u8>; 2],
}

fn section(prefix: &str, port: u16, user: &str, database: &str) -> String {
    let password = OLD.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$");
    format!(
        "{prefix}_DB_HOST=\"localhost\"\n{prefix}_DB_PORT=\"{port}\"\n{prefix}_DB_USER=\"{user}\"\n{prefix}_DB_PASSWORD=\"{password}\"\n{prefix}_DB_DATABASE=\"{database}\"\n{prefix}_DB_SECURED=\"False\"\n{prefix}_DB_SECURED_VALIDATION=\"False\"\n{prefix}_DB_DRIVER=\"org.postgresql.Driver\"\n{prefix}_DB_URL=\"jdbc:postgresql://localhost:{port}/{database}?sslfactory=org.postgresql.ssl.NonValidatingFactory\"\n"
    )
}

fn dump(dir: &Path) -> PathBuf {
    let path = dir.join("dwh.dump");
    each_dump(fs::File::open(fixture("4.5.7-all.backup")).unwrap(), |scope, dump| {
        if scope == Scope::DwhDb {
            std::io::copy(dump, &mut fs::File::create(&path)?)?;
        }
        Ok(())
    })
    .unwrap();
    path
}

impl Site {
    /// A manager with a Data Warehouse that is at work, and an empty database for it.
    pub fn new() -> Option<Self> {
        let postgres = Postgres::start()?;
        let stage = Stage::new("4.5.7");
        let root = stage.sshd.root();
        let quoted = OLD.replace('\'', "''");
        for (role, password) in [("engine", &*quoted), ("dwh_old", &*quoted), ("dwh_new", NEW)] {
            postgres.sql("postgres", &format!("create role {role} login password '{password}'"));
        }
        for (database, owner) in [("engine", "engine"), ("history", "dwh_old"), ("new", "dwh_new")]
        {
            postgres.database(database, owner);
        }
        postgres.sql(
            "engine",
            "create table dwh_history_timekeeping (var_name text, var_value text);
             insert into dwh_history_timekeeping values ('dwhUuid', 'u-1'), ('dwhHostname', 'e'), ('DwhCurrentlyRunning', '1');
             grant select on dwh_history_timekeeping to engine",
        );
        let dump = dump(stage.sshd.path());
        let mut restore = postgres.client("pg_restore", "history");
        let done =
            restore.args(["--no-owner", "--no-privileges", "--role=dwh_old"]).arg(dump).output();
        assert!(done.as_ref().unwrap().status.success(), "{done:?}");
        postgres.sql("history", "create table big as select g, md5(g::text) from generate_series(1, 20000) g; alter table big owner to dwh_old");
        let dwh = section("DWH", postgres.port, "dwh_old", "history");
        let both = section("ENGINE", postgres.port, "engine", "engine") + &dwh + "# mine\n";
        for (file, text) in [(DWHD, &both), (ENGINE, &dwh)] {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        }
        fs::write(root.join(DWHD).with_file_name("10-setup-uuid.conf"), "DWH_UUID=u-1\n").unwrap();
        let systemctl = root.join("usr/bin/systemctl");
        fs::copy(fixture("stand-in-systemctl.sh"), &systemctl).unwrap();
        fs::set_permissions(systemctl, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir_all(root.join("play/units")).unwrap();
        service(&root, &postgres.bin.join("psql"));
        fs::write(root.join("play/units/ovirt-engine-dwhd.active"), "").unwrap();
        let before = [DWHD, ENGINE].map(|file| fs::read(root.join(file)).unwrap());
        Some(Self { stage, postgres, before })
    }

    pub fn to(&self, database: &str) -> DwhDatabaseOptions {
        DwhDatabaseOptions {
            target: Target {
                host: "127.0.0.2".into(),
                port: self.postgres.port,
                user: "dwh_new".into(),
                database: database.into(),
                secured: false,
                validated: false,
            },
            password: Secret::new(NEW),
            patience: PATIENCE,
        }
    }

    pub fn context(&self) -> ManagerContext {
        self.stage.context()
    }

    /// What the service collects.
    pub fn collect(&self, database: &str, rows: u32) {
        let sql = format!("insert into big select g, 'new' from generate_series(1, {rows}) g");
        self.postgres.sql(database, &sql);
    }

    pub fn is_active(&self) -> bool {
        self.stage.sshd.root().join("play/units/ovirt-engine-dwhd.active").exists()
    }

    fn calls(&self) -> String {
        self.stage.on_manager("systemctl-calls").unwrap_or_default()
    }

    fn count(&self, database: &str) -> String {
        let sql = "select count(*) from pg_tables where schemaname = 'public'";
        let done = self.postgres.psql(database, sql);
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    }

    /// Both files are as they were, byte for byte and in their mode; nothing else is there.
    #[track_caller]
    pub fn check_as_before(&self) {
        for (file, before) in [DWHD, ENGINE].iter().zip(&self.before) {
            let path = self.stage.sshd.root().join(file);
            assert!(fs::read(&path).unwrap() == *before, "{file}");
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        }
        let dir = self.stage.sshd.root().join(DWHD);
        assert_eq!(fs::read_dir(dir.parent().unwrap()).unwrap().count(), 2);
        assert!(self.is_active());
        self.check_swept();
    }

    /// Nothing of ours lies there. The journal of a job that died is for `hvbak cleanup`.
    #[track_caller]
    pub fn check_swept(&self) {
        assert_eq!(self.stage.left(), Vec::<String>::new(), "left on the manager");
    }
}

/// Looks at every process's arguments for the passwords, until it is dropped.
pub struct Watch(Arc<AtomicBool>, Option<std::thread::JoinHandle<Vec<String>>>);

impl Watch {
    pub fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let look = move || {
            let mut found = Vec::new();
            while !seen.load(Ordering::Relaxed) {
                for entry in fs::read_dir("/proc").unwrap().flatten() {
                    let argv = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                    let argv = String::from_utf8_lossy(&argv).into_owned();
                    if [OLD, NEW].iter().any(|secret| argv.contains(secret)) {
                        found.push(argv);
                    }
                }
            }
            found
        };
        Self(stop, Some(std::thread::spawn(look)))
    }

    #[track_caller]
    pub fn saw_nothing(mut self) {
        self.0.store(true, Ordering::Relaxed);
        assert_eq!(self.1.take().unwrap().join().unwrap(), Vec::<String>::new());
    }
}

pub fn all_text(dir: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text.push_str(&all_text(&path));
        } else if !path.to_string_lossy().contains("10-setup-") {
            text.push_str(&String::from_utf8_lossy(&fs::read(path).unwrap()));
        }
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_moves_and_comes_back_byte_for_byte() {
    let Some(site) = Site::new() else { return };
    let (context, options) = (site.stage.context(), site.to("new"));
    let watch = Watch::start();
    let plan = dwh_database_plan(&context, &options).await.unwrap();
    assert!(plan.is_clear(), "{:?}", plan.findings);
    assert!(plan.diffs[0].contains("+DWH_DB_DATABASE=\"new\""), "{:?}", plan.diffs);
    assert!(plan.diffs[0].contains("/new?sslfactory"), "{:?}", plan.diffs);
    let told = serde_json::to_string(&plan).unwrap();
    assert!(!told.contains(NEW) && !told.contains("a:b"), "{told}");
    assert_eq!((site.calls(), site.count("new")), (String::new(), "0".into()));
    site.check_as_before();

    let done = dwh_move_database(&context, &options).await.unwrap();
    watch.saw_nothing();
    assert!(done.is_active && !done.went_on && done.same.contains("tables,"), "{done:?}");
    assert_eq!(site.count("new"), site.count("history"));
    let stop = "stop ovirt-engine-dwhd\n";
    assert_eq!(site.calls(), format!("{stop}{stop}{stop}start ovirt-engine-dwhd new\n"));
    let root = site.stage.sshd.root();
    let dwhd = site.stage.on_manager(DWHD).unwrap();
    assert!(dwhd.contains(&format!("DWH_DB_PASSWORD=\"{NEW}\"")) && dwhd.ends_with("# mine\n"));
    assert!(dwhd.contains("ENGINE_DB_HOST=\"localhost\""), "{dwhd}");
    assert_eq!(fs::metadata(root.join(DWHD)).unwrap().permissions().mode() & 0o777, 0o640);
    site.check_swept();
    assert_eq!(site.stage.journals(), 0, "open journals");
    let stored = all_text(site.stage.repository.path());
    assert!(
        !stored.contains(NEW) && !stored.contains("a:b"),
        "a password in the repository's texts"
    );
    let told = site.stage.ears.0.lock().unwrap().join("\n");
    assert!(!told.contains(NEW) && !told.contains("a:b"), "{told}");

    let dry = dwh_revert_database(&context, &LOOK).await.unwrap();
    assert_eq!(dry.files.len(), 2);
    // What somebody changed since is not overwritten, and nothing else either.
    fs::write(root.join(DWHD), format!("{dwhd}# more\n")).unwrap();
    let error = dwh_revert_database(&context, &BACK).await.unwrap_err();
    assert!(text(&error).contains("changed by somebody else"), "{}", text(&error));
    assert!(site.stage.on_manager(ENGINE).unwrap().contains("127.0.0.2"));
    fs::write(root.join(DWHD), dwhd).unwrap();
    let back = dwh_revert_database(&context, &BACK).await.unwrap();
    assert!(back.files.len() == 2 && site.calls().ends_with("start ovirt-engine-dwhd history\n"));
    site.check_as_before();
    let error = dwh_revert_database(&context, &BACK).await.unwrap_err();
    assert!(matches!(error, RunError::DwhNone { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_changed_while_anything_stops_the_move() {
    let Some(site) = Site::new() else { return };
    site.postgres.sql("postgres", "create database latin owner dwh_new encoding 'LATIN1' template template0 lc_collate 'C' lc_ctype 'C'");
    site.postgres.database("used", "dwh_new");
    site.postgres.sql("used", "create table x (n int); alter table x owner to dwh_new");
    site.postgres.database("theirs", "dwh_old");
    site.postgres.sql("theirs", "revoke create on schema public from public");
    let mut wrong = site.to("new");
    wrong.password = Secret::new("wrong");
    let mut same = site.to("history");
    site.postgres.sql("postgres", "create role twin login superuser password 'twin'");
    same.target.user = "twin".into();
    same.password = Secret::new("twin");
    for (options, expected) in [
        (site.to("used"), "is not empty"),
        (site.to("latin"), "the encoding LATIN1"),
        (site.to("theirs"), "may make no tables"),
        (site.to("none"), "does not exist"),
        (wrong, "password authentication failed"),
        (same, "is the old one"),
    ] {
        let error = dwh_move_database(&site.stage.context(), &options).await.unwrap_err();
        assert!(matches!(error, RunError::DwhPreflight { .. }), "{error:?}");
        assert!(text(&error).contains(expected), "{expected}: {}", text(&error));
        assert_eq!(site.calls(), "", "{expected}");
        site.check_as_before();
    }
    site.postgres.sql(
        "engine",
        "update dwh_history_timekeeping set var_value = 'other' where var_name = 'dwhUuid'",
    );
    let error = dwh_move_database(&site.stage.context(), &site.to("new")).await.unwrap_err();
    assert!(text(&error).contains("another Data Warehouse works"), "{}", text(&error));
    let mut hostile = site.to("new");
    hostile.password = Secret::new("a\"; rm -rf /");
    let error = dwh_move_database(&site.stage.context(), &hostile).await.unwrap_err();
    assert!(error.exit_code() == 2 && !text(&error).contains("rm"), "{}", text(&error));
    site.check_as_before();
}

/// A program of the manager's own ahead of the real one.
pub fn stand_in(site: &Site, name: &str, body: &str) {
    let path = site.stage.sshd.root().join("usr/bin").join(name);
    fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_fails_leaves_the_service_on_the_old_database() {
    let Some(site) = Site::new() else { return };
    let real = site.postgres.bin.display();
    for (name, body, expected) in [
        (
            "pg_dump",
            "case $* in *--format*) echo 'pg_dump: error: no space' >&2; exit 1;; esac; exec REAL/pg_dump \"$@\"",
            "no space",
        ),
        // Rows that are lost without a word are found.
        (
            "pg_restore",
            "REAL/pg_restore \"$@\"; rc=$?; case $* in *--single*) PGPASSWORD=super REAL/psql -q -U postgres -h 127.0.0.1 -p PORT -d new -c 'delete from big where g = 7' >&2;; esac; exit $rc",
            "the databases differ",
        ),
    ] {
        let body = body
            .replace("REAL", &real.to_string())
            .replace("PORT", &site.postgres.port.to_string());
        stand_in(&site, name, &body);
        let error = dwh_move_database(&site.stage.context(), &site.to("new")).await.unwrap_err();
        let RunError::DwhCopy {
            cause: CopyFailed::Said { why, filled },
            taken_back: true,
            kept,
            ..
        } = &error
        else {
            panic!("{error:?}")
        };
        assert!(why.contains(expected) && kept.is_some(), "{why}");
        let hint = error.hint().unwrap();
        assert_eq!(hint.contains("is as it was"), !filled, "{hint}");
        assert_eq!(hint.contains("create database \"new\""), *filled, "{hint}");
        assert_eq!(*filled, site.count("new") != "0", "{why}");
        assert!(site.calls().ends_with("start ovirt-engine-dwhd history\n"), "{}", site.calls());
        site.check_as_before();
        fs::remove_file(site.stage.sshd.root().join("usr/bin").join(name)).unwrap();
    }
    // The half of it is told from the whole by the next one.
    let error = dwh_move_database(&site.stage.context(), &site.to("new")).await.unwrap_err();
    assert!(text(&error).contains("is not empty"), "{}", text(&error));
    // A service that does not start again: the move is not ended, and goes on.
    site.postgres.database("other", "dwh_new");
    let broken = site.stage.sshd.root().join("play/units/ovirt-engine-dwhd.broken");
    fs::write(&broken, "").unwrap();
    let error = dwh_move_database(&site.stage.context(), &site.to("other")).await.unwrap_err();
    assert!(text(&error).contains("start the Data Warehouse's service"), "{}", text(&error));
    fs::remove_file(broken).unwrap();
    // Somebody starts it by hand: it must be started again, with the new configuration.
    fs::write(site.stage.sshd.root().join("play/units/ovirt-engine-dwhd.active"), "").unwrap();
    let error = dwh_move_database(&site.stage.context(), &site.to("new")).await.unwrap_err();
    assert!(matches!(error, RunError::DwhOther { .. }), "{error:?}");
    let done = dwh_move_database(&site.stage.context(), &site.to("other")).await.unwrap();
    assert!(done.went_on && site.is_active());
    let last = "stop ovirt-engine-dwhd\nstart ovirt-engine-dwhd other\n";
    assert!(site.calls().ends_with(last), "{}", site.calls());
    site.check_swept();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_is_made_again() {
    let Some(site) = Site::new() else { return };
    stand_in(
        &site,
        "pg_dump",
        &format!(
            "case $* in *--format*) sleep 2;; esac; exec {}/pg_dump \"$@\"",
            site.postgres.bin.display()
        ),
    );
    let (context, options) = (site.stage.context(), site.to("new"));
    let moving = tokio::spawn(async move { dwh_move_database(&context, &options).await });
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        site.stage.sshd.signal_sessions(Signal::SIGKILL);
    }
    let done = moving.await.unwrap().unwrap();
    assert!(done.is_active && site.count("new") == site.count("history"));
    site.check_swept();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_dies_anywhere_goes_on_or_is_put_back() {
    let Some(site) = Site::new() else { return };
    site.postgres.database("first", "dwh_new");
    let begun = Instant::now();
    dwh_move_database(&site.stage.context(), &site.to("first")).await.unwrap();
    let whole = begun.elapsed();
    dwh_revert_database(&site.stage.context(), &BACK).await.unwrap();
    const MOMENTS: u32 = 6;
    for n in 1..=MOMENTS {
        let database = format!("moment{n}");
        site.postgres.database(&database, "dwh_new");
        let (context, options) = (site.stage.context(), site.to(&database));
        let moving = tokio::spawn(async move { dwh_move_database(&context, &options).await });
        tokio::time::sleep(whole * n / (MOMENTS + 1)).await;
        moving.abort();
        let _ = moving.await;
        if n % 2 == 0 {
            let done = dwh_move_database(&site.stage.context(), &site.to(&database)).await;
            done.unwrap_or_else(|e| panic!("moment {n}: {}", text(&e)));
            assert_eq!(site.count(&database), site.count("history"), "moment {n}");
            site.check_swept();
        }
        match dwh_revert_database(&site.stage.context(), &BACK).await {
            Ok(_) => {}
            // Nothing was begun.
            Err(RunError::DwhNone { .. }) if n % 2 == 1 => {}
            Err(error) => panic!("moment {n}: {}", text(&error)),
        }
        site.check_as_before();
    }
}

/// A move that died when both databases were the same and no file was changed.
async fn dies_before_the_files(site: &Site, database: &str) {
    stand_in(site, "cp", "exit 1");
    let error = dwh_move_database(&site.context(), &site.to(database)).await.unwrap_err();
    assert!(text(&error).contains("write the configuration"), "{}", text(&error));
    fs::remove_file(site.stage.sshd.root().join("usr/bin/cp")).unwrap();
    assert!(!site.is_active());
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_collected_while_a_move_is_unfinished_are_never_lost() {
    let Some(site) = Site::new() else { return };
    let active = site.stage.sshd.root().join("play/units/ovirt-engine-dwhd.active");
    // The manager is rebooted, and the service collects until somebody goes on.
    dies_before_the_files(&site, "new").await;
    fs::write(&active, "").unwrap();
    site.collect("history", 3);
    let error = dwh_move_database(&site.context(), &site.to("new")).await.unwrap_err();
    assert!(matches!(error, RunError::DwhDiffer { .. }), "{error:?}");
    let said = text(&error);
    assert!(said.contains("table \"public\".\"big\": old 20003, new 20000"), "{said}");
    assert!(error.hint().unwrap().contains("create database \"new\""));
    assert!(site.calls().ends_with("start ovirt-engine-dwhd history\n"), "{}", site.calls());
    site.check_as_before();
    // As many rows less as more: the sequence tells.
    site.postgres.sql("history", "create table s (n serial); alter table s owner to dwh_old; insert into s select from generate_series(1, 5)");
    site.postgres.database("second", "dwh_new");
    dies_before_the_files(&site, "second").await;
    site.postgres.sql("history", "insert into s default values; delete from s where n = 1");
    let error = dwh_move_database(&site.context(), &site.to("second")).await.unwrap_err();
    assert!(text(&error).contains("\"s_n_seq\": old 6, new 5"), "{}", text(&error));
    site.check_as_before();
    // A watchdog starts it after the copy, while a connection that broke is tried again; it is
    // the stop before the files that ends it.
    site.postgres.database("late", "dwh_new");
    let bin = site.stage.sshd.root().join("usr/bin");
    fs::rename(bin.join("systemctl"), bin.join("systemctl.real")).unwrap();
    let collects = format!(
        "if [ $1 = stop ]; then echo x >>$HVBAK_HOST_ROOT/play/stops; if [ $(wc -l <$HVBAK_HOST_ROOT/play/stops) = 2 ]; then PGPASSWORD=super {}/psql -XAtq -U postgres -h 127.0.0.1 -p {} -d history -c \"insert into big values (1, 'late')\" </dev/null; fi; fi\nexec $HVBAK_HOST_ROOT/usr/bin/systemctl.real \"$@\"",
        site.postgres.bin.display(),
        site.postgres.port
    );
    stand_in(&site, "systemctl", &collects);
    let error = dwh_move_database(&site.context(), &site.to("late")).await.unwrap_err();
    assert!(matches!(error, RunError::DwhDiffer { .. }), "{error:?}");
    fs::rename(bin.join("systemctl.real"), bin.join("systemctl")).unwrap();
    site.check_as_before();
    // It is started after the comparison, in the last moment before the file changes.
    for (database, rows) in [("third", 0), ("fourth", 2)] {
        site.postgres.database(database, "dwh_new");
        let more = format!(
            "PGPASSWORD=super {}/psql -XAtq -U postgres -h 127.0.0.1 -p {} -d history -c \"insert into big select g, 'late' from generate_series(1, {rows}) g\" </dev/null",
            site.postgres.bin.display(),
            site.postgres.port
        );
        let once = format!(
            "once=$HVBAK_HOST_ROOT/play/once\n[ -f \"$once\" ] || {{ : >\"$once\"; : >{}; {more}; }}\nexec /bin/cp \"$@\"",
            active.display()
        );
        stand_in(&site, "cp", &once);
        let done = dwh_move_database(&site.context(), &site.to(database)).await;
        for gone in ["usr/bin/cp", "play/once"] {
            fs::remove_file(site.stage.sshd.root().join(gone)).unwrap();
        }
        if rows == 0 {
            done.unwrap();
            assert_eq!(site.count(database), site.count("history"));
            dwh_revert_database(&site.context(), &BACK).await.unwrap();
        } else {
            let error = done.unwrap_err();
            assert!(matches!(error, RunError::DwhDiffer { .. }), "{error:?}");
        }
        site.check_as_before();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_not_seen_in_the_new_database_is_told_loudly() {
    let Some(site) = Site::new() else { return };
    let units = site.stage.sshd.root().join("play/units");
    let work = units.join("ovirt-engine-dwhd.work");
    let real = fs::read(&work).unwrap();
    // One that does not come, and one that comes and ends.
    for (text_of, expected) in [
        ("#!/bin/sh\nexec sleep 60\n", "no session of the service"),
        ("#!/bin/sh\nsleep 2\nrm -f DIR/ovirt-engine-dwhd.active\n", "ended after its start"),
    ] {
        fs::write(&work, text_of.replace("DIR", units.to_str().unwrap())).unwrap();
        let error = dwh_move_database(&site.context(), &site.to("new")).await.unwrap_err();
        assert!(matches!(error, RunError::DwhSilent { .. }), "{error:?}");
        assert!(text(&error).contains(expected), "{}", text(&error));
        assert!(error.hint().unwrap().contains("hvbak dwh move-database --revert"));
        // It is all there: it can be put back at once.
        fs::write(&work, &real).unwrap();
        dwh_revert_database(&site.context(), &BACK).await.unwrap();
        site.check_as_before();
        site.postgres.sql("postgres", "drop database new with (force)");
        site.postgres.database("new", "dwh_new");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_names_is_nobodys_locale() {
    let Some(site) = Site::new() else { return };
    // A server that sorts otherwise, as PostgreSQL 11 in another locale.
    let real = site.postgres.bin.join("psql");
    let body = format!(
        "case $* in *'-d new '*relkind*) {0} \"$@\" | LC_ALL=C sort -r;; *) exec {0} \"$@\";; esac",
        real.display()
    );
    stand_in(&site, "psql", &body);
    dwh_move_database(&site.context(), &site.to("new")).await.unwrap();
    dwh_revert_database(&site.context(), &BACK).await.unwrap();
    site.check_as_before();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_read_later_stops_the_move_before_the_service() {
    let Some(site) = Site::new() else { return };
    let dir = site.stage.sshd.root().join(DWHD);
    let dir = dir.parent().unwrap();
    // Only later ones win, and only those that readers take.
    for (name, wins) in
        [("05-local.conf", false), ("99-local.conf.bak", false), ("99-local.conf", true)]
    {
        let (path, context) = (dir.join(name), site.context());
        fs::write(&path, "# mine\n  DWH_DB_HOST=localhost\n").unwrap();
        let plan = dwh_database_plan(&context, &site.to("new")).await.unwrap();
        assert_eq!(plan.is_clear(), !wins, "{name}: {:?}", plan.findings);
        if wins {
            let error = dwh_move_database(&context, &site.to("new")).await.unwrap_err();
            let said = text(&error);
            assert!(said.contains("conf.d/99-local.conf sets DWH_DB_HOST "), "{said}");
            assert_eq!(site.calls(), "");
        }
        fs::remove_file(path).unwrap();
    }
    site.check_as_before();
    // One that comes while the move is at work: the service is not started on the wrong one.
    let late = dir.join("99-late.conf");
    let once = format!("echo 'DWH_DB_DATABASE=history' >{}\nexec /bin/cp \"$@\"", late.display());
    stand_in(&site, "cp", &once);
    let error = dwh_move_database(&site.context(), &site.to("new")).await.unwrap_err();
    fs::remove_file(site.stage.sshd.root().join("usr/bin/cp")).unwrap();
    assert!(matches!(error, RunError::DwhElsewhere { .. }), "{error:?}");
    assert!(!site.is_active() && !site.calls().contains("start"), "{}", site.calls());
    let error = dwh_move_database(&site.context(), &site.to("new")).await.unwrap_err();
    assert!(text(&error).contains("99-late.conf sets DWH_DB_DATABASE"), "{}", text(&error));
    fs::remove_file(late).unwrap();
    let done = dwh_move_database(&site.context(), &site.to("new")).await.unwrap();
    assert!(done.went_on && site.is_active());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_new_database_is_asked_as_the_copy_will_ask_it() {
    let Some(site) = Site::new() else { return };
    site.postgres.tls();
    let with = |validated| {
        let mut options = site.to("new");
        (options.target.secured, options.target.validated) = (true, validated);
        options
    };
    // A certificate that nobody vouches for is found before the service is stopped.
    let error = dwh_move_database(&site.context(), &with(true)).await.unwrap_err();
    assert!(matches!(error, RunError::DwhPreflight { .. }), "{error:?}");
    assert!(text(&error).contains("certificate"), "{}", text(&error));
    assert_eq!(site.calls(), "");
    site.check_as_before();
    dwh_move_database(&site.context(), &with(false)).await.unwrap();
    dwh_revert_database(&site.context(), &BACK).await.unwrap();
    site.check_as_before();
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_of_other_roles_move_along_or_are_told() {
    let Some(site) = Site::new() else { return };
    site.postgres.sql("postgres", "create role \"Graf ana\" login password 'pw'");
    site.postgres
        .sql("postgres", "create role reports; grant connect on database history to reports");
    site.postgres.sql(
        "history",
        "set role dwh_old;
         grant select on all tables in schema public to \"Graf ana\";
         grant select (md5) on big to reports;
         grant select on big to public;
         alter default privileges in schema public grant select on tables to \"Graf ana\"",
    );
    // A grant that fails does not undo the copy, and is told.
    let broken = format!(
        "case $* in *' -q -1 '*) echo 'no, not that' >&2; exit 3;; esac; exec {}/psql \"$@\"",
        site.postgres.bin.display()
    );
    stand_in(&site, "psql", &broken);
    site.postgres.database("without", "dwh_new");
    dwh_move_database(&site.context(), &site.to("without")).await.unwrap();
    let told = site.stage.ears.0.lock().unwrap().join("\n");
    assert!(told.contains("were not copied: no, not that"), "{told}");
    dwh_revert_database(&site.context(), &BACK).await.unwrap();
    fs::remove_file(site.stage.sshd.root().join("usr/bin/psql")).unwrap();

    dwh_move_database(&site.context(), &site.to("new")).await.unwrap();
    site.postgres.sql("new", "set role dwh_new; create table later (n int)");
    let may = |sql: &str| {
        let done = site.postgres.psql("new", &format!("select {sql}"));
        String::from_utf8(done.stdout).unwrap().trim() == "t"
    };
    for right in [
        "has_table_privilege('Graf ana', 'big', 'select')",
        "has_table_privilege('Graf ana', 'later', 'select')",
        "has_column_privilege('reports', 'big', 'md5', 'select')",
        "has_table_privilege('engine', 'big', 'select')",
        "not has_table_privilege('Graf ana', 'big', 'insert')",
        "datacl::text like '%reports=c%' from pg_database where datname = 'new'",
    ] {
        assert!(may(right), "{right}");
    }
}
