//! The scripts that ask databases, and the scan of a restore's log, against a real
//! PostgreSQL and the real archives' dumps.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use hvbak_manager::{
    Scope,
    archive::{Connection, each_dump},
    restore::{DATABASES, DbFacts, LogScan, Probe, VMS, parse_databases, parse_vms},
};
use hvbak_types::Secret;

pub use crate::server::Postgres;
use crate::{server::NOBODY, sshd::current_user, stage::fixture};

impl Postgres {
    /// `None`: there is no server on this machine.
    pub fn start() -> Option<Self> {
        Self::start_or(|why| {
            assert!(std::env::var_os("HVBAK_NO_SKIP").is_none(), "SKIPPED: {why}");
            eprintln!("SKIPPED: {why}");
        })
    }

    /// TLS with a certificate that nobody knows.
    pub fn tls(&self) {
        let made = rcgen::generate_simple_self_signed(vec!["db.example.test".into()]).unwrap();
        let files = [("tls.crt", made.cert.pem()), ("tls.key", made.signing_key.serialize_pem())];
        for (name, pem) in files {
            let path = self.dir.path().join(name);
            fs::write(&path, pem).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            if current_user() == "root" {
                std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
            let what = if name.ends_with("key") { "ssl_key_file" } else { "ssl_cert_file" };
            self.sql("postgres", &format!("alter system set {what} = '{}'", path.display()));
        }
        self.sql("postgres", "alter system set ssl = on");
        self.sql("postgres", "select pg_reload_conf()");
        let on =
            || self.psql("postgres", "select ssl from pg_stat_ssl where pid = pg_backend_pid()");
        for _ in 0..100 {
            if on().stdout == b"t\n" {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("no TLS");
    }

    fn connection(&self, password: &str) -> Connection {
        Connection {
            host: "127.0.0.1".into(),
            port: self.port,
            user: "engine".into(),
            database: "engine".into(),
            password: Secret::new(password),
            secured: false,
        }
    }

    /// The script's answer, as it comes from the manager.
    fn ask(&self, script: &str, at: Option<Connection>, root: &Path) -> String {
        let probe = Probe { scope: Scope::Db, at };
        let mut child = Command::new("/bin/sh")
            .args(["-c", script])
            .env("HVBAK_HOST_ROOT", root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(probe.lines().unwrap().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn facts(&self, password: &str) -> DbFacts {
        let text = self.ask(DATABASES, Some(self.connection(password)), self.dir.path());
        let found: BTreeMap<_, _> = parse_databases(&text);
        found.get(&Scope::Db).unwrap_or_else(|| panic!("{text}")).clone()
    }
}

fn engine_dump() -> Vec<u8> {
    let mut bytes = Vec::new();
    each_dump(fs::File::open(fixture("4.5.7-all.backup")).unwrap(), |scope, dump| {
        if scope == Scope::Db {
            std::io::Read::read_to_end(dump, &mut bytes)?;
        }
        Ok(())
    })
    .unwrap();
    bytes
}

#[test]
fn databases_are_seen_as_they_are() {
    let Some(postgres) = Postgres::start() else { return };
    postgres.sql("postgres", "create role engine login password 'it''s \"$x`'");
    postgres.sql("postgres", "create database engine owner engine");
    let secret = "it's \"$x`";
    let empty = postgres.facts(secret);
    assert_eq!((empty.reachable, empty.empty, empty.hosted), (true, Some(true), 0), "{empty:?}");
    assert_eq!(empty.lc_messages.as_deref(), Some("C"));
    assert!(empty.server.is_some_and(|v| v >= 13), "{empty:?}");
    // An extension is not content.
    postgres.sql("engine", "create extension pg_trgm");
    assert_eq!(postgres.facts(secret).empty, Some(true));
    let wrong = postgres.facts("wrong");
    assert!(!wrong.reachable && wrong.why.unwrap().contains("password authentication failed"));
    // What its owner cannot dump is not called empty.
    postgres.sql("engine", "create table foreign_one (n int)");
    assert_eq!(postgres.facts(secret).empty, None);
    postgres.sql(
        "engine",
        "drop table foreign_one; create function f() returns int language sql as 'select 1'",
    );
    assert_eq!(postgres.facts(secret).empty, Some(false));
    postgres.sql(
        "engine",
        "drop function f; create table vm_static (origin int); grant select on vm_static to engine",
    );
    postgres.sql("engine", "insert into vm_static values (0), (6)");
    assert_eq!(postgres.facts(secret).hosted, 1);
}

#[test]
fn a_restored_dump_has_the_rows_that_the_archive_has() {
    let Some(postgres) = Postgres::start() else { return };
    postgres.sql("postgres", "create role engine login password 'pw'");
    postgres.sql("postgres", "create database engine owner engine");
    let dump = postgres.dir.path().join("engine.dump");
    fs::write(&dump, engine_dump()).unwrap();
    let mut restore = postgres.client("pg_restore", "engine");
    let done = restore.arg("--no-privileges").arg(&dump).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let root = postgres.dir.path();
    let text = postgres.ask(VMS, Some(postgres.connection("pw")), root);
    assert_eq!(parse_vms(&text), Some(4), "{text}");
    assert_eq!(postgres.facts("pw").empty, Some(false));
    // By the machine's own configuration.
    let unset = parse_databases(&postgres.ask(DATABASES, None, root));
    assert!(unset[&Scope::Db].is_unset);
    assert_eq!(parse_vms(&postgres.ask(VMS, None, root)), None);
    let conf = root.join("etc/ovirt-engine/engine.conf.d");
    fs::create_dir_all(&conf).unwrap();
    let text = format!(
        "ENGINE_DB_HOST=\"127.0.0.1\"\nENGINE_DB_PORT=\"{}\"\nENGINE_DB_USER=\"engine\"\nENGINE_DB_PASSWORD=\"pw\"\nENGINE_DB_DATABASE=\"engine\"\n",
        postgres.port
    );
    fs::write(conf.join("10-setup-database.conf"), text).unwrap();
    assert_eq!(parse_vms(&postgres.ask(VMS, None, root)), Some(4));
}

#[test]
fn rule_06_what_pg_restore_says_of_a_broken_dump_is_found_in_the_log() {
    let Some(postgres) = Postgres::start() else { return };
    postgres.sql("postgres", "create database engine");
    let whole = engine_dump();
    let dump = postgres.dir.path().join("engine.dump");
    let restore = |bytes: &[u8]| {
        fs::write(&dump, bytes).unwrap();
        let mut restore = postgres.client("pg_restore", "engine");
        restore.args(["--no-owner", "--no-privileges", "-j", "2"]).arg(&dump).output().unwrap()
    };
    for bytes in [&b"junk, not a dump at all"[..], &whole[..whole.len() - 1300], &whole[..200]] {
        let said = restore(bytes);
        assert!(!said.status.success());
        let log = LogScan::read(said.stderr.as_slice()).unwrap();
        assert!(log.count > 0, "{}", String::from_utf8_lossy(&said.stderr));
    }
    // The error of every good restore: its extension belongs to another role.
    postgres.sql("postgres", "create role engine login password 'pw'");
    postgres.sql("postgres", "create database again owner engine");
    postgres.sql("again", "create extension \"uuid-ossp\"");
    let mut comment = postgres.client("psql", "again");
    comment.env("PGPASSWORD", "pw").args([
        "-U",
        "engine",
        "-c",
        "comment on extension \"uuid-ossp\" is 'x'",
    ]);
    let said = String::from_utf8(comment.output().unwrap().stderr).unwrap();
    let line = format!("pg_restore: error: could not execute query: {said}");
    let log = LogScan::read(line.as_bytes()).unwrap();
    assert_eq!((log.count, log.harmless), (0, 1), "{line}");
}
