//! Restores as data: every pre-flight, every recorded restore of the real programs, and
//! the scripts that ask, in a real shell.

use std::{
    collections::BTreeMap,
    io::Write,
    process::{Command, Stdio},
};

use hvbak_manager::{
    Request, Scope,
    archive::Report,
    remote::Look,
    restore::{
        Case, Credentials, DbFacts, Finding, LogScan, MachineFacts, Probe, Provision, RECEIVE,
        RestoreFailed, Rows, Stage, Weight, Wishes, connections, judge_restore, own, preflight,
    },
    transcript::{Ended, Transcript},
};
use hvbak_types::Secret;

use crate::{
    support::{bytes, report, with},
    transcripts::{run, runs},
};

/// A fresh Enterprise Linux 9 with engine-backup 4.5.7 and empty databases.
struct World {
    stage: Stage,
    sent: bool,
    wishes: Wishes,
    archive: Report,
    look: Look,
    machine: MachineFacts,
    databases: BTreeMap<Scope, DbFacts>,
    own: BTreeMap<Scope, DbFacts>,
    global_maintenance: Option<bool>,
    sizes: BTreeMap<String, u64>,
}

impl World {
    fn good() -> Self {
        let archive = report(&bytes("4.5.7-all.backup"));
        let mut wishes = Wishes::of(Request::All);
        wishes.permissions = Some(true);
        let look = "root=\nuid=0\nname=engine.example.test\nversion=4.5.7\nprogram=yes\nfree_kib=1000000\nfiles_kib=20\n";
        let facts = "os=centos9\nlike=centos rhel fedora\ntool=psql\ntool=pg_dump\ntool=server\ntool=engine-cleanup\nclient=15\nlocale=yes\nlc_lines=1\n";
        let empty = DbFacts {
            reachable: true,
            empty: Some(true),
            lc_messages: Some("en_US.UTF-8".into()),
            server: Some(15),
            ..DbFacts::default()
        };
        let databases = [Scope::Db, Scope::DwhDb, Scope::KeycloakDb];
        Self {
            stage: Stage::BeforeRestore,
            sent: false,
            wishes,
            archive,
            look: Look::parse(look, "/usr/bin/engine-backup").unwrap(),
            machine: MachineFacts::parse(facts).unwrap(),
            databases: databases.into_iter().map(|s| (s, empty.clone())).collect(),
            own: BTreeMap::new(),
            global_maintenance: None,
            sizes: BTreeMap::new(),
        }
    }

    fn findings(&self) -> Vec<Finding> {
        preflight(&Case {
            stage: self.stage,
            sent: self.sent,
            wishes: &self.wishes,
            archive: &self.archive,
            of: "engine.example.test",
            archive_size: 20_000,
            sizes: &self.sizes,
            look: &self.look,
            machine: &self.machine,
            databases: &self.databases,
            own: &self.own,
            global_maintenance: self.global_maintenance,
        })
    }

    fn db(&mut self) -> &mut DbFacts {
        self.databases.get_mut(&Scope::Db).unwrap()
    }
}

#[track_caller]
fn checks(findings: &[Finding], weight: Weight) -> Vec<&'static str> {
    findings.iter().filter(|f| f.weight == weight).map(|f| f.check).collect()
}

#[test]
fn rule_05_every_reason_the_program_finds_too_late_is_found_before() {
    let none: [&str; 0] = [];
    assert_eq!(checks(&World::good().findings(), Weight::Stops), none);
    type Change = fn(&mut World);
    let table: [(&str, Change); 41] = [
        ("root", |w| w.look.is_root = false),
        ("tools", |w| w.look.missing_tools = vec!["setsid".into()]),
        ("archive", |w| {
            w.archive = report(&with(&bytes("4.5.7-all.backup"), "db/dwh_backup.db", Some(b"junk")))
        }),
        ("version", |w| w.look.version = "4.5.6".parse().unwrap()),
        ("version", |w| w.look.version = "4.2.8.9".parse().unwrap()),
        ("version", |w| w.archive.version = None),
        ("version", |w| {
            // The program of 4.2 takes only its own, and of these only md5sum.
            w.look.version = "4.2.8.9".parse().unwrap();
            w.archive.version = Some("4.2.8.9".parse().unwrap());
        }),
        ("scope", |w| w.wishes.request = Request::parse(&["cinderlibdb"]).unwrap()),
        ("scope", |w| w.archive = report(&bytes("4.5.7-cinderlibdb-not-configured.backup"))),
        ("scope", |w| {
            w.wishes.request = Request::parse(&["files"]).unwrap();
            w.wishes.credentials = vec![credentials()];
        }),
        ("engine-running", |w| w.machine.engine_running = true),
        ("engine-running", |w| w.machine.active = vec!["ovirt-engine-dwhd".into()]),
        ("permissions", |w| w.wishes.permissions = None),
        ("database-unreachable", |w| {
            *w.db() = DbFacts { why: Some("FATAL: no".into()), ..DbFacts::default() };
        }),
        ("database-unreachable", |w| *w.db() = DbFacts { is_unset: true, ..DbFacts::default() }),
        ("database-not-empty", |w| w.db().empty = Some(false)),
        ("database-unknown", |w| w.db().empty = None),
        ("database-unknown", |w| drop(w.databases.remove(&Scope::DwhDb))),
        ("locale", |w| w.db().lc_messages = Some("C".into())),
        ("locale", |w| w.db().lc_messages = Some("en_US.utf8".into())),
        ("client-version", |w| w.db().server = Some(16)),
        ("provisioning-system", |w| provision(w, |m| m.like = vec!["debian".into()])),
        ("provisioning-server", |w| provision(w, |m| m.tools.retain(|t| t != "server"))),
        ("locale", |w| provision(w, |m| m.locale = false)),
        ("locale", |w| provision(w, |m| m.lc_lines = 2)),
        ("provisioning-exists", |w| {
            provision(w, |m| m.local = vec!["engine".into()]);
            *w.db() = DbFacts { why: Some("password".into()), ..DbFacts::default() };
        }),
        ("provisioning-remote", |w| {
            provision(w, |_| {});
            w.archive.conf.databases.get_mut(&Scope::DwhDb).unwrap().host =
                "dwh.example.test".into();
        }),
        ("provisioning-secured", |w| {
            provision(w, |_| {});
            w.archive.conf.databases.get_mut(&Scope::Db).unwrap().secured = true;
        }),
        ("space", |w| w.look.free = 1 << 20),
        ("global-maintenance", |w| w.global_maintenance = Some(false)),
        ("global-maintenance", |w| w.db().hosted = 1),
        ("cleanup", |w| w.stage = Stage::BeforeCleanup),
        // What engine-cleanup empties and the restore does not put back.
        ("cleanup", |w| part_in_use(w, &["db", "dwhdb"])),
        ("cleanup", |w| part_in_use(w, &["files", "dwhdb"])),
        ("cleanup", |w| {
            in_use(w);
            w.archive = report(&bytes("4.5.7-files.backup"));
        }),
        ("cleanup", |w| {
            part_in_use(w, &["files", "db"]);
            w.own.insert(Scope::DwhDb, held());
        }),
        ("cleanup", |w| {
            part_in_use(w, &["files", "db"]);
            w.own.insert(Scope::DwhDb, DbFacts { empty: None, ..held() });
        }),
        // Another manager's archive.
        ("other-name", |w| {
            in_use(w);
            w.machine.fqdn = Some("other.example.test".into());
        }),
        ("other-name", |w| {
            in_use(w);
            w.look.name = "other.example.test".into();
        }),
        ("other-name", |w| {
            w.machine.is_set_up = true;
            w.look.name = "other.example.test".into();
        }),
        // Its own database says so, and is not among the parts.
        ("global-maintenance", |w| {
            w.machine.is_set_up = true;
            w.wishes.request = Request::parse(&["files"]).unwrap();
            w.own.insert(Scope::Db, DbFacts { hosted: 1, ..held() });
        }),
    ];
    for (expected, change) in table {
        let mut world = World::good();
        change(&mut world);
        let findings = world.findings();
        let stops = checks(&findings, Weight::Stops);
        assert!(stops.contains(&expected), "{expected}: {findings:?}");
        // Each says one thing, and what can be done about it.
        assert!(findings.iter().filter(|f| f.weight == Weight::Stops).all(|f| f.remedy.is_some()));
        assert!(stops.iter().all(|s| *s == expected), "{expected}: {findings:?}");
    }
}

/// A manager that is in use, before engine-cleanup.
fn in_use(world: &mut World) {
    (world.stage, world.wishes.cleanup) = (Stage::BeforeCleanup, true);
    world.machine.is_set_up = true;
}

fn part_in_use(world: &mut World, scopes: &[&str]) {
    in_use(world);
    world.wishes.request = Request::parse(scopes).unwrap();
}

/// A database that answers and holds something.
fn held() -> DbFacts {
    DbFacts { reachable: true, empty: Some(false), ..DbFacts::default() }
}

#[test]
fn another_managers_archive_is_taken_when_that_is_said_or_the_machine_is_fresh() {
    type Change = fn(&mut World);
    let table: [(Change, &[&str]); 7] = [
        // The configuration knows better than a host name, which may be short.
        (
            |w| {
                in_use(w);
                w.look.name = "engine".into();
                w.machine.fqdn = Some("Engine.example.test".into());
            },
            &["name"],
        ),
        (
            |w| {
                in_use(w);
                w.look.name = "other.example.test".into();
                w.wishes.other_name = true;
            },
            &["name"],
        ),
        (|w| w.look.name = "other.example.test".into(), &["name"]),
        // Judged before engine-cleanup, which took the name away.
        (
            |w| {
                in_use(w);
                w.stage = Stage::BeforeRestore;
                w.look.name = "engine".into();
            },
            &["name"],
        ),
        (in_use, &[]),
        (|w| part_in_use(w, &["files", "db"]), &[]),
        (
            |w| {
                part_in_use(w, &["files", "db"]);
                w.own.insert(Scope::Db, held());
                w.own.insert(Scope::DwhDb, DbFacts { empty: Some(true), ..held() });
                w.own.insert(Scope::KeycloakDb, DbFacts { is_unset: true, ..DbFacts::default() });
            },
            &[],
        ),
    ];
    for (number, (change, names)) in table.into_iter().enumerate() {
        let mut world = World::good();
        change(&mut world);
        let findings = world.findings();
        let none: [&str; 0] = [];
        assert_eq!(checks(&findings, Weight::Stops), none, "{number}: {findings:?}");
        let mut tells = checks(&findings, Weight::Tells);
        // Told at the first stage, too.
        assert!(tells.contains(&"ha-vms"), "{number}: {findings:?}");
        tells.retain(|c| *c == "name");
        assert_eq!(tells, names, "{number}");
    }
    // An archive without configuration: the point says whose it is.
    let mut world = World::good();
    world.machine.is_set_up = true;
    world.machine.fqdn = Some("other.example.test".into());
    world.archive = report(&bytes("4.5.7-db.backup"));
    assert!(checks(&world.findings(), Weight::Stops).contains(&"other-name"));
    let scopes: Vec<_> = own().iter().map(|p| p.scope).collect();
    assert!(scopes.contains(&Scope::Db) && scopes.contains(&Scope::DwhDb), "{scopes:?}");
    assert!(own().iter().all(|p| p.at.is_none()));
}

fn provision(world: &mut World, change: impl Fn(&mut MachineFacts)) {
    world.wishes.permissions = None;
    world.wishes.provision = Provision::All;
    change(&mut world.machine);
}

fn credentials() -> Credentials {
    Credentials {
        scope: Scope::Db,
        host: "db.example.test".into(),
        port: 5433,
        user: "engine".into(),
        database: "engine2".into(),
        secured: true,
        validated: false,
    }
}

#[test]
fn what_stops_nothing_is_told_all_the_same() {
    type Change = fn(&mut World);
    let table: [(&str, Change); 6] = [
        ("global-maintenance", |_| {}),
        ("ha-vms", |_| {}),
        ("set-up", |w| w.machine.is_set_up = true),
        ("name", |w| w.look.name = "other.example.test".into()),
        ("system", |w| w.machine.os = "centos8".into()),
        ("hosted-engine", |w| w.wishes.he_remove_storage_vm = true),
    ];
    for (expected, change) in table {
        let mut world = World::good();
        change(&mut world);
        let findings = world.findings();
        assert!(checks(&findings, Weight::Tells).contains(&expected), "{expected}: {findings:?}");
        assert!(checks(&findings, Weight::Stops).is_empty(), "{findings:?}");
    }
    let mut el9 = World::good();
    el9.look.version = "4.5.6".parse().unwrap();
    el9.archive.version = Some("4.5.5".parse().unwrap());
    el9.archive.os_version = Some("centos8".into());
    assert!(checks(&el9.findings(), Weight::Tells).contains(&"certificates"));
    // Cleanup stops the engine and empties the databases itself.
    let mut before = World::good();
    (before.stage, before.machine.is_set_up) = (Stage::BeforeCleanup, true);
    before.machine.engine_running = true;
    before.db().empty = Some(false);
    assert!(checks(&before.findings(), Weight::Stops).is_empty(), "{:?}", before.findings());
    // Provisioning uses what is there and empty, and makes what is not.
    let mut fresh = World::good();
    provision(&mut fresh, |_| {});
    *fresh.db() = DbFacts { why: Some("refused".into()), ..DbFacts::default() };
    assert!(checks(&fresh.findings(), Weight::Stops).is_empty(), "{:?}", fresh.findings());
    // Plain dumps ask for no permissions when no other dump is in pg_dump's format.
    let mut plain = World::good();
    (plain.wishes.permissions, plain.archive.has_custom) = (None, false);
    assert!(checks(&plain.findings(), Weight::Stops).is_empty());
}

#[test]
fn databases_are_asked_where_the_restore_will_find_them() {
    let world = World::good();
    let of = |wishes: &Wishes, passwords: &BTreeMap<Scope, Secret>| {
        connections(wishes, &world.archive, passwords)
    };
    let none = BTreeMap::new();
    let all = of(&world.wishes, &none);
    let hosts: Vec<_> = all.iter().map(|p| (p.scope, p.at.is_some())).collect();
    assert_eq!(hosts, [(Scope::Db, true), (Scope::DwhDb, true), (Scope::KeycloakDb, true)]);
    let lines = all[0].lines().unwrap();
    assert_eq!(lines, "ENGINE\nlocalhost\n5432\nengine\nengine\n0\ndummy-engine-pw\n");
    // Without the files the machine's own configuration counts.
    let mut db = Wishes::of(Request::parse(&["db"]).unwrap());
    assert!(of(&db, &none)[0].at.is_none());
    assert_eq!(of(&db, &none)[0].lines().unwrap(), "ENGINE\n\n\n\n\n\n\n");
    db.credentials = vec![credentials()];
    let passwords = [(Scope::Db, Secret::new("x"))].into();
    let lines = of(&db, &passwords)[0].lines().unwrap();
    assert_eq!(lines, "ENGINE\ndb.example.test\n5433\nengine\nengine2\n1\nx\n");
    let broken = [(Scope::Db, Secret::new("x\nDWH"))].into();
    assert!(of(&db, &broken)[0].lines().is_none(), "a line break would be another answer");
}

fn rows(found: Option<u64>) -> Rows {
    Rows { expected: Some(4), found, in_use: false }
}

fn judge(
    name: &str,
    wishes: &Wishes,
    held: &[Scope],
    log: &str,
    vms: Option<u64>,
) -> Result<Vec<Scope>, RestoreFailed> {
    let run = run(name);
    let log = LogScan::read(log.as_bytes()).unwrap();
    judge_restore(wishes, held, &run.transcript(), Some(&log), rows(vms)).map(|s| s.content)
}

/// The log of every good restore holds this one.
const GOOD: &str = "2026-11-21 02:49:00 1: OUTPUT: Done.\npg_restore: error: could not execute query: ERROR:  must be owner of extension uuid-ossp\npg_restore: [archiver (db)] Error while PROCESSING TOC:\npg_restore: [archiver (db)] Error from TOC entry 3; 3079 1 EXTENSION plpgsql\npg_restore: [archiver (db)] could not execute query: ERROR:  must be owner of extension plpgsql\n";

#[test]
fn every_recorded_restore_is_judged_as_it_really_ended() {
    let all = [Scope::Files, Scope::Db];
    for run in runs("r_") {
        let wishes =
            Wishes::of_command(&run.command.split(' ').map(ToOwned::to_owned).collect::<Vec<_>>());
        let log = LogScan::read(GOOD.as_bytes()).unwrap();
        assert_eq!((log.count, log.harmless), (0, 2));
        let vms = if run.stdout.contains("- Engine database") { Some(4) } else { None };
        let judged = judge_restore(&wishes, &all, &run.transcript(), Some(&log), rows(vms));
        let expected = match run.name.as_str() {
            // Done. with nothing done.
            "r_scope_missing" => false,
            // Everything done, with a failure.
            "r_chg" => true,
            _ => run.rc == 0,
        };
        assert_eq!(judged.is_ok(), expected, "{}: {judged:?}", run.name);
    }
}

#[test]
fn rule_06_errors_that_the_code_hides_are_found_in_log_and_rows() {
    let all = Wishes::of(Request::All);
    let held = [Scope::Files, Scope::Db, Scope::DwhDb, Scope::KeycloakDb, Scope::GrafanaDb];
    assert!(judge("r_ok_perm", &all, &held, GOOD, Some(4)).is_ok());
    for line in [
        "pg_restore: error: could not read from input file: end of file",
        "pg_restore: error: input file does not appear to be a valid archive (too short?)",
        "pg_restore: [custom archiver] could not read from input file: end of file",
        "pg_restore: [archiver (db)] could not execute query: ERROR:  relation \"x\" does not exist",
        "pg_restore: error: a worker process died unexpectedly",
        "a worker process died unexpectedly",
    ] {
        let log = format!("{GOOD}{line}\n");
        let judged = judge("r_ok_perm", &all, &held, &log, Some(4));
        assert!(
            matches!(judged, Err(RestoreFailed::Hidden { count: 1, .. })),
            "{line}: {judged:?}"
        );
        // At the end of a log without a line break, too, and in one endless line.
        let log = format!("{GOOD}{line}{}", "x".repeat(1 << 20));
        assert!(judge("r_ok_perm", &all, &held, &log, Some(4)).is_err(), "{line}");
    }
    let found = |vms| judge("r_ok_perm", &all, &held, GOOD, Some(vms));
    assert!(matches!(found(0), Err(RestoreFailed::NoVms)));
    assert!(matches!(found(3), Err(RestoreFailed::Vms { found: 3, expected: 4 })));
    // Without the hosted engine's own VM there are fewer.
    let mut less = all.clone();
    less.he_remove_storage_vm = true;
    assert!(judge("r_ok_perm", &less, &held, GOOD, Some(3)).is_ok());
    assert!(judge("r_ok_perm", &less, &held, GOOD, Some(0)).is_err());
    let run = run("r_ok_perm");
    let none = judge_restore(&all, &held, &run.transcript(), None, rows(Some(4)));
    assert!(matches!(none, Err(RestoreFailed::NoLog)));
    // Judged late, with the engine at work: the rows change, and that is told; what the log
    // holds is a failure all the same.
    let bad = format!("{GOOD}pg_restore: error: x\n");
    for (found, changed) in [(Some(0), true), (Some(7), true), (Some(4), false), (None, false)] {
        let late = Rows { in_use: true, ..rows(found) };
        let judge = |log: &str| {
            let log = LogScan::read(log.as_bytes()).unwrap();
            judge_restore(&all, &held, &run.transcript(), Some(&log), late)
        };
        assert!(judge(GOOD).is_ok(), "{found:?}");
        assert!(matches!(judge(&bad), Err(RestoreFailed::Hidden { .. })));
        assert_eq!(late.changed().is_some(), changed, "{found:?}");
        assert_eq!(rows(found).changed(), None);
    }
}

#[test]
fn rule_07_a_scope_that_the_archive_lacks_is_no_success() {
    let wishes = Wishes::of(Request::parse(&["dwhdb"]).unwrap());
    // The program: rc 0, `You should now run engine-setup.`, `Done.`
    assert_eq!(run("r_scope_missing").rc, 0);
    for held in [&[Scope::Db][..], &[Scope::Db, Scope::DwhDb]] {
        let judged = judge("r_scope_missing", &wishes, held, GOOD, None);
        assert!(matches!(judged, Err(RestoreFailed::Missing { .. })), "{judged:?}");
    }
    // A part of the archive that is not announced was not restored.
    let all = Wishes::of(Request::All);
    let judged = judge("r_all2", &all, &[Scope::Db, Scope::KeycloakDb], GOOD, Some(4));
    assert_eq!(judged.unwrap_err(), RestoreFailed::Missing { scopes: vec![Scope::KeycloakDb] });
}

#[test]
fn the_failure_that_is_none_is_known_by_all_its_marks() {
    let chg = run("r_chg");
    let mut wishes = Wishes::of(Request::parse(&["db"]).unwrap());
    wishes.credentials = vec![credentials()];
    let log = LogScan::read(GOOD.as_bytes()).unwrap();
    let judge = |stdout: &str, stderr: &str, code| {
        let run = Transcript { ended: Ended::Code(code), stdout, stderr };
        judge_restore(&wishes, &[Scope::Db], &run, Some(&log), rows(Some(4)))
    };
    assert!(judge(&chg.stdout, &chg.stderr, 1).unwrap().by_hand.is_some());
    assert!(judge(&chg.stdout, &chg.stderr, 2).is_err());
    let cut = chg.stdout.lines().take(20).collect::<Vec<_>>().join("\n");
    assert!(judge(&cut, &chg.stderr, 1).is_err(), "the files were not rewritten");
    for stderr in [
        "FATAL: Can not find /etc/ovirt-engine/engine.conf.d/10-setup-database.conf",
        "FATAL: Errors while restoring database engine2",
        "",
        "FATAL: Can not find /etc/ovirt-engine/engine.conf.d/10-setup-cinderlib-database.conf\nFATAL: more",
    ] {
        assert!(judge(&chg.stdout, stderr, 1).is_err(), "{stderr}");
    }
    let hidden = LogScan::read(&b"pg_restore: error: x"[..]).unwrap();
    let run = Transcript { ended: Ended::Code(1), stdout: &chg.stdout, stderr: &chg.stderr };
    assert!(judge_restore(&wishes, &[Scope::Db], &run, Some(&hidden), rows(Some(4))).is_err());
}

#[test]
fn rows_and_connections_are_read_from_real_archives() {
    for (name, vms, databases) in [
        ("4.5.7-all.backup", Some(4), 3),
        ("4.5.7-all-small-size.backup", Some(4), 3),
        ("4.4.10.7-all.backup", Some(4), 2),
        ("4.2.8.9-all.backup", Some(4), 2),
        ("4.5.7-db.backup", Some(4), 0),
        ("4.5.7-files.backup", None, 3),
    ] {
        let report = report(&bytes(name));
        assert_eq!(report.vms, vms, "{name}");
        assert!(report.conf.databases.len() >= databases, "{name}: {:?}", report.conf);
        let json = serde_json::to_string(&report).unwrap();
        assert!(!json.contains("dummy-"), "{name}: a password in {json}");
    }
    let conf = report(&bytes("4.5.7-all.backup")).conf;
    assert_eq!(conf.fqdn.as_deref(), Some("engine.example.test"));
    assert_eq!(conf.databases[&Scope::KeycloakDb].password.expose(), "dummy-kc-pw");
}

#[test]
fn rule_09_a_file_that_arrives_as_something_else_is_not_kept() {
    use std::os::unix::fs::PermissionsExt;
    let dir = std::env::temp_dir().join(format!("hvbak-receive-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("run")).unwrap();
    let base = dir.to_str().unwrap();
    let sum = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let receive = |bytes: &[u8]| {
        let mut child = Command::new("/bin/sh")
            .args(["-c", RECEIVE, "hvbak", base, "run", "engine.backup", sum])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        child.wait().unwrap().code()
    };
    let names = || std::fs::read_dir(dir.join("run")).unwrap().count();
    assert_eq!(receive(b"hellO"), Some(65));
    assert_eq!(names(), 0);
    assert_eq!(receive(b"hello"), Some(0));
    assert_eq!(names(), 1);
    let mode = dir.join("run/engine.backup").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_probe_of_what_no_database_is_asks_nothing() {
    assert!(Probe { scope: Scope::Files, at: None }.lines().is_none());
}

#[test]
fn the_databases_need_room_where_postgresql_keeps_them() {
    let mib = 1_u64 << 20;
    let stops = |w: &World| checks(&w.findings(), Weight::Stops);
    let none: [&str; 0] = [];
    let mut world = World::good();
    world.sizes = [("ENGINE".to_owned(), 400 * mib), ("DWH".to_owned(), 600 * mib)].into();
    world.machine.data_free = Some(900 * mib);
    assert_eq!(stops(&world), none, "they are elsewhere");
    for scope in [Scope::Db, Scope::DwhDb] {
        world.databases.get_mut(&scope).unwrap().is_local = true;
    }
    assert_eq!(stops(&world), ["space-databases"]);
    let text = world.findings().into_iter().find(|f| f.check == "space-databases").unwrap().text;
    assert!(text.contains("900 MiB are free") && text.contains("about 1000"), "{text}");
    // Only what is restored.
    world.wishes.request = Request::parse(&["files", "db"]).unwrap();
    assert_eq!(stops(&world), none);
    world.wishes.request = Request::All;
    world.machine.data_free = Some(1000 * mib);
    assert_eq!(stops(&world), none);
    // One file system for both.
    world.machine.data_here = true;
    assert_eq!(stops(&world), ["space-databases"]);
    world.machine.data_free = Some(1020 * mib);
    assert_eq!(stops(&world), none);
    // engine-cleanup makes the room.
    world.machine.data_free = Some(mib);
    (world.stage, world.machine.is_set_up) = (Stage::BeforeCleanup, true);
    assert_eq!(stops(&world), none);
    // After it nothing can be taken back: it is told, and stops nothing any more.
    (world.stage, world.machine.is_set_up) = (Stage::BeforeRestore, false);
    world.wishes.cleanup = true;
    assert_eq!(stops(&world), none);
    assert!(checks(&world.findings(), Weight::Tells).contains(&"space-databases"));
    // A backup of an earlier hvbak says no sizes: guessed from the dumps, and what will be made
    // on this machine counts.
    let mut world = World::good();
    world.machine.data_free = Some(1000);
    world.wishes.provision = Provision::All;
    world.databases.clear();
    assert!(stops(&world).contains(&"space-databases"), "{:?}", stops(&world));
    // Before the start the archive has taken its room already.
    let mut world = World::good();
    world.look.free = world.archive.unpacked + (10_000 << 10) + 19_000;
    let files = world.archive.parts.iter().find(|p| p.scope == Scope::Files).unwrap();
    world.look.free += files.unpacked;
    assert_eq!(stops(&world), ["space"]);
    world.sent = true;
    assert_eq!(stops(&world), none);
    (world.stage, world.machine.is_set_up) = (Stage::BeforeCleanup, true);
    assert_eq!(stops(&world), none);
    (world.stage, world.machine.is_set_up) = (Stage::BeforeRestore, false);
    world.db().empty = Some(false);
    assert_eq!(stops(&world), ["database-not-empty"]);
}
