//! Moves of the Data Warehouse with the whole program: between databases of a real PostgreSQL,
//! by the stock tools, over real OpenSSH to two machines of the lab. systemctl and the service
//! are stand-ins: the service is a session in the database that its configuration names.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Instant,
};

use hvbak_tests::{Lab, Postgres, Run, skip, small};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const DIR: &str = "etc/ovirt-engine-dwh/ovirt-engine-dwhd.conf.d";
const DWHD: &str = "10-setup-database.conf";
const ENGINE: &str = "etc/ovirt-engine/engine.conf.d/10-setup-dwh-database.conf";
const SETUP: &str = "etc/ovirt-engine-setup.conf.d/20-setup-ovirt-post.conf";
const UNIT: &str = "play/units/ovirt-engine-dwhd";
const OLD: &str = "old-Pw+1";
const NEW: &str = "new-Pw+2";
const ROWS: u32 = 30_000;

/// The manager and a machine for its service.
struct Site {
    lab: Lab,
    postgres: Postgres,
    manager: PathBuf,
    other: PathBuf,
    before: Vec<(PathBuf, Vec<u8>)>,
}

impl Drop for Site {
    fn drop(&mut self) {
        for root in [&self.manager, &self.other] {
            let pid = fs::read_to_string(root.join(format!("{UNIT}.pid")));
            if let Some(pid) = pid.ok().and_then(|text| text.trim().parse().ok()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
        }
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/engine-backup")
}

fn put(path: &Path, text: &str, mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// What engine-setup writes of a database.
fn section(prefix: &str, port: u16, user: &str, database: &str) -> String {
    format!(
        "{prefix}_DB_HOST=\"localhost\"\n{prefix}_DB_PORT=\"{port}\"\n{prefix}_DB_USER=\"{user}\"\n{prefix}_DB_PASSWORD=\"{OLD}\"\n{prefix}_DB_DATABASE=\"{database}\"\n{prefix}_DB_SECURED=\"False\"\n{prefix}_DB_SECURED_VALIDATION=\"False\"\n{prefix}_DB_URL=\"jdbc:postgresql://localhost:{port}/{database}?sslfactory=org.postgresql.ssl.NonValidatingFactory\"\n"
    )
}

impl Site {
    fn new() -> Option<Self> {
        let postgres = Postgres::start_or(skip)?;
        for (role, password) in [("engine", OLD), ("dwh_old", OLD), ("dwh_new", NEW)] {
            postgres.sql("postgres", &format!("create role {role} login password '{password}'"));
        }
        for (database, owner) in [("engine", "engine"), ("history", "dwh_old"), ("new", "dwh_new")]
        {
            postgres.database(database, owner);
        }
        postgres.sql(
            "engine",
            "create table dwh_history_timekeeping (var_name text, var_value text, var_datetime timestamptz);
             insert into dwh_history_timekeeping values ('dwhUuid', 'u-1'), ('dwhHostname', 'e'), ('DwhCurrentlyRunning', '1');
             alter table dwh_history_timekeeping owner to engine;
             create function UpdateDwhHistoryTimekeeping(n varchar, v varchar, d timestamptz) returns void language sql as 'update dwh_history_timekeeping set var_value = v, var_datetime = d where var_name = n'",
        );
        postgres.sql(
            "history",
            &format!(
                "set role dwh_old; create table samples (history_id serial primary key, what text);
                 insert into samples (what) select md5(g::text) from generate_series(1, {ROWS}) g"
            ),
        );
        let lab = Lab::bare(&small(), &["--hosts", "2", "--domains", "nfs"]);
        lab.enrol();
        let mut more = String::new();
        let mut roots = Vec::new();
        for (at, section) in ["manager", "hosts.dwh1"].into_iter().enumerate() {
            let host = &lab.up["hosts"][at];
            let root = PathBuf::from(host["root"].as_str().unwrap());
            let key = fs::read_to_string(root.join("etc/ssh/ssh_host_ed25519_key.pub")).unwrap();
            let named = match at {
                0 => "host = \"127.0.0.1\"\nname = \"engine.example.test\"",
                _ => "address = \"localhost\"",
            };
            more.push_str(&format!(
                "\n[{section}]\n{named}\nport = {}\nuser = {}\nhost_key = \"{}\"\n",
                host["port"],
                host["user"],
                key.trim()
            ));
            furnish(&root, &postgres.bin.join("psql"));
            roots.push(root);
        }
        lab.configure(|text| text + &more);
        let other = roots.pop().unwrap();
        let manager = roots.pop().unwrap();
        let dwh = section("DWH", postgres.port, "dwh_old", "history");
        let both = section("ENGINE", postgres.port, "engine", "engine") + &dwh;
        put(&manager.join(DIR).join(DWHD), &both, 0o640);
        put(&manager.join(DIR).join("10-setup-uuid.conf"), "DWH_UUID=u-1\n", 0o644);
        put(&manager.join(ENGINE), &dwh, 0o640);
        let on = "OVESETUP_ENGINE_CORE/enable=bool:True\nOVESETUP_DWH_CORE/enable=bool:True\n";
        put(&manager.join(SETUP), on, 0o644);
        put(&manager.join(format!("{UNIT}.active")), "", 0o644);
        put(&manager.join(format!("{UNIT}.enabled")), "", 0o644);
        put(&manager.join("usr/bin/engine-backup"), "#!/bin/sh\nexit 1\n", 0o755);
        let conf = "usr/share/ovirt-engine/services/ovirt-engine/ovirt-engine.conf";
        put(&manager.join(conf), "PACKAGE_VERSION=4.5.7\n", 0o644);
        put(&other.join("etc/hostname"), "dwh.example.test\n", 0o644);
        put(&lab.path("pw"), NEW, 0o600);
        let mut site = Self { lab, postgres, manager, other, before: Vec::new() };
        site.before = site.files();
        Some(site)
    }

    /// Every file that a move could change.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut all = vec![ENGINE.into(), SETUP.into()];
        let names = fs::read_dir(self.manager.join(DIR)).unwrap();
        all.extend(names.map(|entry| Path::new(DIR).join(entry.unwrap().file_name())));
        all.sort();
        let read = |path: PathBuf| (path.clone(), fs::read(self.manager.join(path)).unwrap());
        all.into_iter().map(read).collect()
    }

    fn is_active(&self) -> (bool, bool) {
        let active = |root: &Path| root.join(format!("{UNIT}.active")).exists();
        (active(&self.manager), active(&self.other))
    }

    fn rows(&self, database: &str) -> u32 {
        self.postgres.sql(database, "select count(*) from samples").parse().unwrap()
    }

    fn collect(&self, database: &str) {
        self.postgres.sql(database, "insert into samples (what) values ('since')");
    }

    /// How far the newest move of the database is.
    fn state(&self) -> String {
        let dir = self.lab.path("repository/manager/engine.example.test");
        let names = fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
        let record = names.map(|path| path.join("record.json")).filter(|path| path.exists()).max();
        let text = record.and_then(|path| fs::read(path).ok()).unwrap_or_default();
        let record: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        record["state"].as_str().unwrap_or_default().to_owned()
    }

    fn arguments(&self, database: &str) -> Vec<String> {
        let to = format!("127.0.0.2:{}", self.postgres.port);
        let password = self.lab.path("pw").to_string_lossy().into_owned();
        let words = ["dwh", "move-database", "--to", &to, "--user", "dwh_new", "--database"];
        let mut words: Vec<_> = words.map(ToOwned::to_owned).to_vec();
        words.extend([database.to_owned(), "--password-file".into(), password]);
        words
    }

    fn run(&self, words: &[String], more: &[&str]) -> Run {
        let words: Vec<_> = words.iter().map(String::as_str).chain(more.iter().copied()).collect();
        self.lab.hvbak(&words)
    }

    #[track_caller]
    fn check_as_before(&self) {
        assert!(self.files() == self.before, "files of the manager");
        assert!(!self.other.join(DIR).exists() || is_empty(&self.other.join(DIR)));
        assert_eq!(self.is_active(), (true, false));
        let work = self.manager.join("var/lib/hvbak-manager");
        let left = fs::read_dir(work).into_iter().flatten().map(|e| e.unwrap().file_name());
        let left: Vec<_> = left.filter(|name| name != "lock").collect();
        assert!(left.is_empty(), "left on the manager: {left:?}");
    }
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

/// systemctl, the service's package, and the service.
fn furnish(root: &Path, psql: &Path) {
    put(
        &root.join("usr/share/ovirt-engine-dwh/services/ovirt-engine-dwhd/ovirt-engine-dwhd.conf"),
        "",
        0o644,
    );
    let systemctl = fs::read_to_string(fixtures().join("stand-in-systemctl.sh")).unwrap();
    put(&root.join("usr/bin/systemctl"), &systemctl, 0o755);
    let text = format!(
        "#!/bin/sh\nLC_ALL=C\nfor conf in {root}/{DIR}/*.conf; do . \"$conf\"; done\npipe={root}/{UNIT}.pipe\nrm -f \"$pipe\"\nmkfifo \"$pipe\"\nPGPASSWORD=$DWH_DB_PASSWORD exec timeout 300 {psql} -X -w -h \"$DWH_DB_HOST\" -p \"$DWH_DB_PORT\" -U \"$DWH_DB_USER\" -d \"$DWH_DB_DATABASE\" <>\"$pipe\"\n",
        root = root.display(),
        psql = psql.display()
    );
    put(&root.join(format!("{UNIT}.work")), &text, 0o755);
}

const BACK: [&str; 3] = ["dwh", "move-database", "--revert"];
const SERVICE: [&str; 6] = ["dwh", "move-service", "--to", "dwh1", "--engine-db-host", "127.0.0.2"];
const SERVICE_BACK: [&str; 3] = ["dwh", "move-service", "--revert"];

#[test]
fn the_data_warehouse_goes_there_and_back() {
    let Some(site) = Site::new() else { return };
    let (lab, to) = (&site.lab, site.arguments("new"));
    let plan = site.run(&to, &["--dry-run"]).exits(0);
    let plan = plan.says("+DWH_DB_DATABASE=\"new\"").says("pg_dump, pg_restore");
    plan.never_says(OLD).never_says(NEW);
    site.check_as_before();
    let moved = site.run(&to, &[]).exits(0).says("1 tables, 30000 rows, the same on both sides");
    moved.says("works on the new database, where it was seen").never_says(NEW);
    assert_eq!((site.rows("new"), site.is_active()), (ROWS, (true, false)));
    lab.hvbak(&SERVICE[..4]).exits(1).says("--engine-db-host");
    lab.hvbak(&[&SERVICE[..], &["--dry-run"]].concat()).exits(0).says("would be made");
    lab.hvbak(&SERVICE).exits(0).says("is on dwh.example.test");
    assert_eq!(site.is_active(), (false, true));
    let conf = fs::read_to_string(site.other.join(DIR).join(DWHD)).unwrap();
    assert!(conf.contains("ENGINE_DB_HOST=\"127.0.0.2\"") && conf.contains("\"new\""), "{conf}");
    // What it collects there is in the new database alone.
    site.collect("new");
    lab.hvbak(&BACK).exits(1).says("`hvbak dwh move-service --revert` first");
    let lost = [&SERVICE_BACK[..], &["--machine-is-lost"]].concat();
    lab.hvbak(&lost).exits(1).says("is not lost: it answers");
    lab.hvbak(&SERVICE_BACK).exits(0).says("works on engine.example.test as before");
    let look = lab.json(&[&BACK[..], &["--dry-run"]].concat()).exits(1);
    assert_eq!(look.result()["clear"], false, "{look}");
    lab.hvbak(&BACK).exits(1).says("new 30001, old 30000").says("--lose-rows");
    assert!(site.files() != site.before && site.is_active() == (true, false));
    lab.hvbak(&[&BACK[..], &["--lose-rows"]].concat()).exits(0).says("new 30001, old 30000");
    site.check_as_before();
    assert_eq!((site.rows("new"), site.rows("history")), (ROWS + 1, ROWS));
    lab.hvbak(&BACK).exits(1).says("there is no move");
    lab.assert_clean();
}

#[test]
fn a_move_of_the_data_warehouse_that_is_killed_anywhere_loses_no_row() {
    let Some(site) = Site::new() else { return };
    let lab = &site.lab;
    site.postgres.database("first", "dwh_new");
    let began = Instant::now();
    site.run(&site.arguments("first"), &[]).exits(0);
    let whole = began.elapsed();
    lab.hvbak(&BACK).exits(0);
    const MOMENTS: u32 = 5;
    for n in 1..=MOMENTS {
        let database = format!("moment{n}");
        site.postgres.database(&database, "dwh_new");
        let words = site.arguments(&database);
        let started = lab.start(&words.iter().map(String::as_str).collect::<Vec<_>>());
        std::thread::sleep(whole * n / (MOMENTS + 1));
        started.signal(Signal::SIGKILL);
        started.wait();
        // Every other time the machine is rebooted meanwhile: the service collects where its
        // configuration leads.
        let conf = fs::read_to_string(site.manager.join(DIR).join(DWHD)).unwrap();
        let on_new = conf.contains(&format!("\"{database}\""));
        let rebooted = n % 2 == 0;
        if rebooted {
            put(&site.manager.join(format!("{UNIT}.active")), "", 0o644);
            site.collect(if on_new { &database } else { "history" });
        }
        let again = site.run(&words, &[]);
        match again.code {
            0 => assert_eq!(
                site.rows(&database),
                site.rows("history") + u32::from(rebooted && on_new),
                "moment {n}"
            ),
            _ if rebooted && !on_new => {
                again.says("samples\"").says("differ").says("works on the old database again");
                site.check_as_before();
            }
            // It had ended.
            _ if on_new => drop(again.says("the new database is the old one")),
            _ => panic!("moment {n}: {again}"),
        }
        let back = lab.hvbak(&[&BACK[..], &["--lose-rows"]].concat());
        assert!(back.code == 0 || back.stderr.contains("there is no move"), "{back}");
        site.check_as_before();
        lab.hvbak(&["cleanup"]).exits(0);
    }
    // Killed when both databases were the same and no file was changed yet; a reboot, a row.
    site.postgres.database("last", "dwh_new");
    let cp = site.manager.join("usr/bin/cp");
    put(&cp, "#!/bin/sh\nsleep 2\nexit 1\n", 0o755);
    let words = site.arguments("last");
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let started = lab.start_until(&words, |_| site.state() == "editing");
    started.signal(Signal::SIGKILL);
    started.wait();
    fs::remove_file(&cp).unwrap();
    put(&site.manager.join(format!("{UNIT}.active")), "", 0o644);
    site.collect("history");
    let again = lab.hvbak(&words).exits(1).says("differ since the copy, and no file was changed");
    again.says("samples\": old 3000").says("create database \"last\"");
    site.check_as_before();
    lab.hvbak(&["cleanup"]).exits(0);
    assert!(site.rows("history") >= ROWS);
    lab.assert_clean();
}
