//! Rehearsals: images that a real QEMU boots, archives of real managers in a real PostgreSQL.
//!
//! The guests are boot sectors of a few bytes, written here: what they print is all there is.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use hvbak_tests::{Lab, Run, Small, run_tool, skip, wait_for};
use nix::sys::signal::Signal;
use serde_json::json;

/// Prints a text over the first serial line and halts.
const SERIAL: &[u8] = &[
    0x31, 0xc0, 0x8e, 0xd8, 0xbe, 0x15, 0x7c, 0xba, 0xf8, 0x03, 0xac, 0x84, 0xc0, 0x74, 0x03, 0xee,
    0xeb, 0xf8, 0xf4, 0xeb, 0xfd,
];
/// Prints it on the screen, through the BIOS.
const SCREEN: &[u8] = &[
    0x31, 0xc0, 0x8e, 0xd8, 0x31, 0xdb, 0xbe, 0x17, 0x7c, 0xb4, 0x0e, 0xac, 0x84, 0xc0, 0x74, 0x04,
    0xcd, 0x10, 0xeb, 0xf7, 0xf4, 0xeb, 0xfd,
];

/// A boot sector: code, the text behind it, and the mark that BIOSes look for.
fn sector(code: &[u8], text: &str) -> Vec<u8> {
    let mut sector = [code, text.as_bytes()].concat();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector
}

/// Makes a disk of a VM begin with these bytes.
fn begin_with(lab: &Lab, vm: &str, disk: &str, bytes: &[u8]) {
    let file = lab.scratch("sector");
    fs::write(&file, bytes).unwrap();
    let args = ["--vm", vm, "--disk", disk, "--offset", "0", "--file", file.to_str().unwrap()];
    lab.lab("guest-write", &args);
}

fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
    let found = found.is_ok_and(|found| found.status.success());
    if !found {
        skip(&format!("{program} is not installed"));
    } else if !hvbak_tests::is_root() {
        skip("no other user can be taken without root");
        return false;
    }
    found
}

/// A lab and a scratch directory that everybody may pass through.
fn lab() -> (Lab, PathBuf) {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::standard();
    let scratch = lab.scratch("drill");
    fs::create_dir(&scratch).unwrap();
    for dir in [scratch.parent().unwrap(), &scratch] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o711)).unwrap();
    }
    let text = format!("\n[drill]\nscratch = \"{}\"\nmemory_mib = 128\n", scratch.display());
    lab.configure(|old| old + &text);
    (lab, scratch)
}

#[track_caller]
fn seen(run: &Run) -> String {
    let drilled = run.of("drilled");
    drilled.iter().map(|one| one["text"].as_str().unwrap()).collect::<Vec<_>>().join("\n")
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

/// Process ids of QEMU and PostgreSQL that work below a directory.
fn at_work(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let at = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        if at.starts_with(dir) {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found
}

#[test]
fn a_drill_boots_the_newest_point_and_says_what_it_saw() {
    if !has("qemu-system-x86_64") {
        return;
    }
    let (lab, scratch) = lab();
    begin_with(&lab, "db1", "db1_Disk1", &sector(SERIAL, "\r\ndb1 login: "));
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    let plan = lab.json(&["drill", "--dry-run"]).exits(0);
    assert_eq!(plan.of("plan")[0]["points"].as_array().unwrap().len(), 1, "{plan}");
    assert!(is_empty(&scratch));
    let run = lab.json(&["drill", "--vm", "db1", "--time-limit", "60s"]).exits(0);
    assert!(seen(&run).starts_with("login prompt seen on the serial console"), "{run}");
    assert!(is_empty(&scratch) && at_work(&scratch).is_empty());
    // It is known afterwards.
    let run = lab.json(&["report"]).exits(0);
    let drill = &run.of("vm")[0]["last_drill"];
    assert_eq!(drill["outcome"], "done", "{run}");
    assert_eq!(drill["point"], run.of("vm")[0]["newest"]["point"], "{run}");
    lab.hvbak(&["report"]).exits(0).says("DRILLED").says("login prompt seen");
    let pages = lab.scratch("pages");
    lab.hvbak(&["runbook", "--output", pages.to_str().unwrap()]).exits(0);
    let page = fs::read_to_string(pages.join("overview.md")).unwrap();
    assert!(page.contains("login prompt seen") && page.contains("| never |"), "{page}");
    lab.assert_clean();
}

#[test]
fn only_what_was_seen_is_said() {
    if !has("qemu-system-x86_64") {
        return;
    }
    let (lab, scratch) = lab();
    let panic = "Linux version 6\r\nKernel panic - not syncing: VFS\r\n";
    for (code, text, limit, exit, wanted) in [
        (SCREEN, "db1 login: ", "60s", 0, "login prompt seen on the screen"),
        (
            SERIAL,
            "Linux version 6.1\r\n",
            "8s",
            0,
            "kernel started, seen on the serial console; no",
        ),
        (SERIAL, panic, "8s", 1, "kernel started and panicked"),
        (SERIAL, "Last login: never\r\n", "8s", 0, "booted to something, nothing recognised"),
    ] {
        begin_with(&lab, "db1", "db1_Disk1", &sector(code, text));
        lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
        let run = lab.json(&["drill", "--vm", "db1", "--time-limit", limit]).exits(exit);
        assert!(seen(&run).starts_with(wanted), "{wanted}: {run}");
    }
    begin_with(&lab, "db1", "db1_Disk1", &[0; 512]);
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    let run = lab.json(&["drill", "--vm", "db1", "--time-limit", "15s"]).exits(1);
    assert!(seen(&run).contains("found nothing to boot"), "{run}");
    // Without QEMU an image is checked, and that is said.
    let mut command = lab.command(&["--json", "drill", "--vm", "db1"]);
    let empty = lab.scratch("empty");
    fs::create_dir(&empty).unwrap();
    let output = command.env("PATH", &empty).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("not booted: no qemu-system"), "{text}");
    let kept = lab.json(&["drill", "--vm", "db1", "--no-boot", "--keep"]).exits(0);
    let place = PathBuf::from(kept.result()["kept"].as_str().unwrap());
    let image = place.join(lab.vm_id("db1")).join("disk0.qcow2");
    run_tool("qemu-img", &["check", image.to_str().unwrap()]);
    fs::remove_dir_all(place).unwrap();
    assert!(is_empty(&scratch));
}

#[test]
fn damage_ends_a_rehearsal_and_the_others_go_on() {
    let (lab, scratch) = lab();
    lab.fill_web1();
    lab.hvbak(&["backup", "--vm", "web1", "--vm", "db1"]).exits(0);
    // Each night another one.
    let mut nights: Vec<String> = Vec::new();
    for _ in 0..2 {
        let run = lab.json(&["drill", "--count", "1", "--no-boot"]).exits(0);
        let what = run.of("drilled")[0]["what"].as_str().unwrap().to_owned();
        nights.push(what.split('@').next().unwrap().to_owned());
        assert!(seen(&run).contains("not booted: it was not asked for"), "{run}");
    }
    assert_eq!(nights, ["db1", "web1"]);
    let point = lab.point("web1");
    let image = fs::read_dir(&point).unwrap().flatten().map(|e| e.path());
    let image = image.filter(|p| p.extension().is_some_and(|e| e == "qcow2"));
    let image = image.max_by_key(|p| p.metadata().unwrap().len()).unwrap();
    let mut bytes = fs::read(&image).unwrap();
    let at = bytes.len() - 100_000;
    bytes[at] ^= 1;
    fs::write(&image, bytes).unwrap();
    let run = lab.json(&["drill", "--no-boot"]).exits(15);
    assert!(seen(&run).contains("damaged: "), "{run}");
    assert_eq!((&run.result()["failed"], &run.result()["vms"]), (&json!(1), &json!(2)), "{run}");
    assert!(is_empty(&scratch));
}

#[test]
fn a_full_scratch_place_and_a_wrong_one_are_said_before_anything_is_written() {
    let (lab, _) = lab();
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    let Some(small) = Small::mount(&lab.scratch("small"), 4) else {
        return skip("a tmpfs cannot be mounted");
    };
    let place = small.path().to_str().unwrap();
    let run = lab.json(&["drill", "--vm", "db1", "--no-boot", "--scratch", place]).exits(1);
    assert!(seen(&run).contains("not enough room"), "{run}");
    assert!(is_empty(small.path()));
    let nowhere = lab.scratch("nowhere");
    lab.hvbak(&["drill", "--vm", "db1", "--scratch", nowhere.to_str().unwrap()]).exits(1);
    lab.hvbak(&["drill", "--vm", "nobody"]).exits(2);
    lab.configure(|text| text.replace("[drill]\n", "[drill]\nuser = \"root\"\n"));
    let run = lab.json(&["drill", "--vm", "db1"]);
    if hvbak_tests::is_root() {
        assert!(seen(&run).contains("drills run foreign systems"), "{run}");
    }
}

#[test]
fn a_drill_that_is_stopped_or_killed_leaves_no_machine_and_no_image() {
    if !has("qemu-system-x86_64") {
        return;
    }
    let (lab, scratch) = lab();
    begin_with(&lab, "db1", "db1_Disk1", &sector(SERIAL, "quiet"));
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    let booting = |scratch: &Path| {
        at_work(scratch).iter().any(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.starts_with("qemu-system")
        })
    };
    let run = lab.start_until(&["drill", "--vm", "db1"], |_| booting(&scratch));
    run.signal(Signal::SIGINT);
    run.wait().exits(130);
    assert!(is_empty(&scratch) && at_work(&scratch).is_empty());
    let report = lab.json(&["report"]).exits(0);
    assert_eq!(report.of("vm")[0]["last_drill"]["outcome"], "stopped", "{report}");
    let run = lab.start_until(&["drill", "--vm", "db1"], |_| booting(&scratch));
    run.signal(Signal::SIGKILL);
    run.wait();
    wait_for("the machine's end", || at_work(&scratch).is_empty());
    assert!(!is_empty(&scratch));
    lab.hvbak(&["drill", "--vm", "db1", "--no-boot"]).exits(0);
    assert!(is_empty(&scratch));
}

/// Puts a recorded archive into the repository, as FORMAT.md says.
fn store(lab: &Lab, archive: &str) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/engine-backup");
    store_file(lab, &fixtures.join(archive));
}

fn store_file(lab: &Lab, archive: &Path) {
    let manager = lab.path("repository/manager/engine.example.test");
    let _ = fs::remove_dir_all(&manager);
    let point = manager.join("20991121T021454Z");
    fs::create_dir_all(&point).unwrap();
    let file = point.join("engine.backup");
    fs::copy(archive, &file).unwrap();
    let sum = run_tool("sha256sum", &[file.to_str().unwrap()]);
    let manifest = json!({
        "format": 1, "manager": "engine.example.test", "point": "20991121T021454Z",
        "started": "2099-11-21T02:14:54Z", "finished": "2099-11-21T02:15:54Z", "hvbak": "0",
        "version": "4.5.7", "requested": ["all"], "scopes": ["files", "db"], "command": [],
        "seconds": 1.0, "files": [{
            "name": "engine.backup", "size": file.metadata().unwrap().len(),
            "sha256": sum.split(' ').next().unwrap(),
        }],
    });
    fs::write(point.join("manifest.json"), manifest.to_string()).unwrap();
}

#[test]
fn real_archives_are_restored_into_a_real_postgresql_and_counted() {
    if !has("initdb") {
        return;
    }
    let (lab, scratch) = lab();
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    for (archive, wanted) in [
        ("4.5.7-all.backup", &["engine database ", "Keycloak database ", "rows in vm_static"][..]),
        ("4.5.7-all-small-size.backup", &["rows in vm_static", "Data Warehouse database "]),
        ("4.4.10.7-all.backup", &["rows in vm_static", "0 of 1 VMs that had points"]),
        ("4.2.8.9-all.backup", &["rows in vm_static"]),
        ("4.5.7-files-dwhdb.backup", &["Data Warehouse database "]),
        ("4.5.7-files.backup", &["not restored into a database: it holds no database dump"]),
    ] {
        store(&lab, archive);
        let run = lab.json(&["drill", "--manager"]).exits(0);
        let seen = seen(&run);
        for word in wanted {
            assert!(seen.contains(word), "{archive}: {word}: {seen}");
        }
        assert!(is_empty(&scratch) && at_work(&scratch).is_empty());
    }
    let report = lab.json(&["report"]).exits(0);
    let drill = &report.of("manager-drill")[0];
    assert_eq!(
        (&drill["manager"], &drill["outcome"]),
        (&json!("engine.example.test"), &json!("done"))
    );
    // Another archive than the one that was recorded.
    store(&lab, "4.5.7-all.backup");
    let file = lab.path("repository/manager/engine.example.test/20991121T021454Z/engine.backup");
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(&file, bytes).unwrap();
    let run = lab.json(&["drill", "--manager"]).exits(15);
    assert!(seen(&run).contains("not what was stored"), "{run}");
    let shown = lab.hvbak(&["report"]).exits(0);
    assert!(shown.stdout.contains("failed: damaged"), "{shown}");
}

/// The engine's recorded dump as SQL with lines of somebody else's in it, in an archive whose
/// sums hold.
fn store_hostile(lab: &Lab, lines: &str) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/engine-backup");
    let dir = lab.scratch("hostile");
    fs::create_dir_all(&dir).unwrap();
    let script = format!(
        "set -e; cd {dir}; rm -rf ./*; tar xf {archive}; sed -i 's/^DB_DUMP_FORMAT=custom/DB_DUMP_FORMAT=plain/' config
         restore=$(ls /usr/lib/postgresql/*/bin/pg_restore /usr/pgsql-*/bin/pg_restore /usr/bin/pg_restore 2>/dev/null | head -n 1)
         \"$restore\" -f sql db/engine_backup.db
         {{ sed '/^-- PostgreSQL database dump complete/,$d' sql; printf '%s\\n' {lines} '-- PostgreSQL database dump complete' '--'; }} > db/engine_backup.db
         rm sql; sha256sum config os_version version db/engine_backup.db > sha256sum; tar czf ../hostile.backup .",
        dir = dir.display(),
        archive = fixtures.join("4.5.7-db.backup").display(),
    );
    run_tool("bash", &["-c", &script]);
    store_file(lab, &dir.with_file_name("hostile.backup"));
}

#[test]
fn a_hostile_dump_gets_no_rights_and_starts_no_program() {
    if !has("initdb") {
        return;
    }
    let (lab, scratch) = lab();
    let mark = scratch.join("../hvbak-hostile-mark");
    let touch = |how: &str| how.replace("MARK", mark.to_str().unwrap());
    for (line, outcome, says) in [
        ("\"COPY public.vm_static FROM PROGRAM 'touch MARK';\"", "failed", "program"),
        ("'alter role restorer superuser;'", "failed", "must be superuser"),
        ("'\\! touch MARK'", "done", "could give psql a command to run"),
    ] {
        store_hostile(&lab, &touch(line));
        let run = lab.json(&["drill", "--manager"]);
        assert_eq!(run.of("drilled")[0]["outcome"], outcome, "{run}");
        assert!(seen(&run).contains(says), "{says}: {run}");
        assert!(!mark.exists(), "{line} was run");
        assert!(is_empty(&scratch) && at_work(&scratch).is_empty());
    }
}

#[test]
fn a_killed_drill_of_a_manager_leaves_no_server() {
    if !has("initdb") {
        return;
    }
    let (lab, scratch) = lab();
    store(&lab, "4.5.7-all.backup");
    let serving = |scratch: &Path| {
        let dirs = fs::read_dir(scratch).unwrap().flatten();
        dirs.map(|dir| dir.path().join("manager/.s.PGSQL.5432")).any(|socket| socket.exists())
    };
    let run = lab.start_until(&["drill", "--manager"], |_| serving(&scratch));
    run.signal(Signal::SIGKILL);
    run.wait();
    wait_for("the server's end", || {
        std::thread::sleep(Duration::from_millis(100));
        at_work(&scratch).is_empty()
    });
}
