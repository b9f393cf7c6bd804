//! The manager through the whole program: backup, verification, restore, and a restore
//! whose hvbak is killed at any moment. One of the lab's SSH hosts is the manager's machine;
//! engine-backup and the programs around it are stand-ins that replay recorded runs.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use hvbak_tests::{Lab, Started, run_tool, skip};
use nix::sys::signal::Signal;
use serde_json::Value;

const TOOLS: [&str; 9] = [
    "curl",
    "engine-cleanup",
    "engine-setup",
    "locale",
    "pg_dump",
    "postgresql-setup",
    "psql",
    "runuser",
    "systemctl",
];
const MOMENTS: u32 = 10;

/// A lab with a manager's machine in it.
struct Site {
    lab: Lab,
    root: PathBuf,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/engine-backup")
}

impl Site {
    fn new() -> Self {
        let lab = Lab::standard();
        let host = lab.up["hosts"][0].clone();
        let root = PathBuf::from(host["root"].as_str().unwrap());
        let services = root.join("usr/share/ovirt-engine/services/ovirt-engine");
        let (bin, play) = (root.join("usr/bin"), root.join("play"));
        let engine = root.join("var/lib/simulated-engine");
        for dir in [&services, &bin, &play.join("machine"), &root.join("etc"), &engine] {
            fs::create_dir_all(dir).unwrap();
        }
        fs::write(services.join("ovirt-engine.conf"), "PACKAGE_VERSION=4.5.7\n").unwrap();
        let release = "ID=centos\nID_LIKE=\"rhel fedora\"\nVERSION_ID=9\n";
        fs::write(root.join("etc/os-release"), release).unwrap();
        fs::copy(fixtures().join("stand-in.sh"), bin.join("engine-backup")).unwrap();
        for name in TOOLS {
            fs::copy(fixtures().join("stand-in-tools.sh"), bin.join(name)).unwrap();
        }
        fs::copy(fixtures().join("4.5.7-all.backup"), play.join("archive")).unwrap();
        let key = fs::read_to_string(root.join("etc/ssh/ssh_host_ed25519_key.pub")).unwrap();
        let (port, user) = (&host["port"], host["user"].as_str().unwrap());
        lab.configure(|text| {
            format!(
                "{text}\n[manager]\nhost = \"127.0.0.1\"\nport = {port}\nuser = \"{user}\"\nname = \"engine.example.test\"\nhost_key = \"{}\"\n",
                key.trim()
            )
        });
        let site = Self { lab, root };
        site.play("b_ok_all");
        site.lab.hvbak(&["manager-backup"]).exits(0);
        fs::remove_file(site.root.join("play/archive")).unwrap();
        site.play("r_ok_perm");
        site
    }

    /// What the stand-in says next.
    fn play(&self, name: &str) {
        let text = fs::read_to_string(fixtures().join("transcripts.jsonl")).unwrap();
        let runs = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let run = runs.into_iter().find(|run| run["name"] == name).unwrap();
        let play = self.root.join("play");
        fs::write(play.join("stdout"), run["stdout"].as_str().unwrap()).unwrap();
        fs::write(play.join("stderr"), run["stderr"].as_str().unwrap()).unwrap();
        fs::write(play.join("rc"), run["rc"].to_string()).unwrap();
    }

    /// How often the stand-in was asked to restore.
    fn restores(&self) -> usize {
        let calls = fs::read_to_string(self.root.join("calls")).unwrap_or_default();
        calls.matches("--mode=restore").count()
    }

    #[track_caller]
    fn assert_swept(&self) {
        let work = fs::read_dir(self.root.join("var/lib/hvbak-manager")).unwrap();
        let left: Vec<_> = work.map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["lock"], "left on the manager");
    }
}

const RESTORE: [&str; 3] = ["manager-restore", "engine.example.test", "--restore-permissions"];

#[test]
fn a_managers_backup_goes_there_and_back() {
    let site = Site::new();
    let lab = &site.lab;
    lab.hvbak(&["manager-verify", "engine.example.test"]).exits(0).says("read by pg_restore");
    let plan = lab.json(&[&RESTORE[..], &["--dry-run"]].concat()).exits(0);
    assert_eq!(plan.result()["clear"], true, "{plan}");
    assert_eq!(site.restores(), 0);
    let done = lab.json(&[&RESTORE[..], &["--engine-setup"]].concat()).exits(0);
    assert_eq!((done.result()["vms"].as_u64(), site.restores()), (Some(4), 1), "{done}");
    done.never_says("dummy-");
    lab.hvbak(&RESTORE).exits(0).says("4 VMs and templates").says("next: run engine-setup");
    site.assert_swept();
    fs::write(site.root.join("play/machine/nonempty"), "").unwrap();
    lab.hvbak(&RESTORE).exits(1).says("nothing was changed").says("is not empty");
    lab.json(&[&RESTORE[..], &["--dry-run"]].concat()).exits(1).says("database-not-empty");
    lab.hvbak(&["manager-restore", "other.example.test"]).exits(2).says("other.example.test");
    lab.hvbak(&["manager-restore", "--pick-up"]).exits(0).says("no restore");
    assert_eq!(site.restores(), 2);
    lab.assert_clean();
}

#[test]
fn the_engine_is_a_second_witness_of_a_backup() {
    let site = Site::new();
    let lab = &site.lab;
    fs::copy(fixtures().join("4.5.7-all.backup"), site.root.join("play/archive")).unwrap();
    site.play("b_ok_all");
    let newest = || {
        let points = fs::read_dir(lab.path("repository/manager/engine.example.test")).unwrap();
        let points = points.map(|e| e.unwrap().path().join("manifest.json"));
        let newest = points.filter(|manifest| manifest.exists()).max().unwrap();
        serde_json::from_slice::<Value>(&fs::read(newest).unwrap()).unwrap()
    };
    let said = lab.hvbak(&["manager-backup"]).exits(0);
    said.never_says("disagrees");
    assert_eq!(newest()["engine"]["said"], "agrees", "{}", newest());
    let codes = |code: i64| {
        let state = lab.state();
        state["events"].as_array().unwrap().iter().filter(|e| e["code"] == code).count()
    };
    // Site::new has made one, too; each was told of seven scopes.
    assert_eq!((codes(9024), codes(9025), codes(9026)), (14, 14, 0));
    // A run that fails is told as one, and the alert goes with the next good one.
    site.play("b_badpw");
    fs::remove_file(site.root.join("play/archive")).unwrap();
    lab.hvbak(&["manager-backup"]).exits(1);
    // A backup of which the engine says that it failed, with an archive that is whole.
    fs::copy(fixtures().join("4.5.7-all.backup"), site.root.join("play/archive")).unwrap();
    site.play("b_ok_all");
    let program = site.root.join("usr/bin/engine-backup");
    let real = fs::read_to_string(&program).unwrap();
    fs::write(&program, real.replace("&& tell 1 ||", "&& tell -1 ||")).unwrap();
    lab.hvbak(&["manager-backup"]).exits(0).says("engine disagrees").says("its log says");
    assert_eq!(newest()["engine"]["said"], "disagrees");
    assert!(codes(9026) > 0);
    fs::write(&program, real).unwrap();
    lab.hvbak(&["manager-backup"]).exits(0).never_says("disagrees");
    assert_eq!((newest()["engine"]["said"].as_str(), codes(9026)), (Some("agrees"), 0));
    lab.assert_clean();
}

#[test]
fn extra_files_of_the_manager_are_managed_by_a_command() {
    let site = Site::new();
    let lab = &site.lab;
    let add = ["manager-paths", "add", "/etc/os-release", "/etc/none"];
    lab.hvbak(&[&add[..], &["--dry-run"]].concat()).exits(0).says("would be");
    lab.hvbak(&["manager-paths", "list"]).exits(0).says("no extra files");
    lab.hvbak(&add).exits(0).says("+ /etc/os-release  (file)").says("does not exist");
    assert_eq!(lab.json(&add).exits(0).result()["changed"], false);
    lab.hvbak(&["manager-paths", "add", "/etc/$(id)"]).exits(2).says("cannot be an extra file");
    lab.hvbak(&["manager-paths", "remove", "/etc/none"]).exits(0).says("- /etc/none");
    let list = lab.json(&["manager-paths", "list"]).exits(0);
    assert_eq!(list.result()["paths"], serde_json::json!(["/etc/os-release"]));
    lab.assert_clean();
}

#[test]
fn a_restore_that_is_killed_at_any_moment_is_done_once_and_leaves_nothing() {
    let site = Site::new();
    fs::write(site.root.join("play/pause"), "1").unwrap();
    let began = Instant::now();
    site.lab.hvbak(&RESTORE).exits(0);
    let whole = began.elapsed();
    for n in 1..=MOMENTS {
        let before = site.restores();
        let started = site.lab.start(&RESTORE);
        std::thread::sleep(whole * n / (MOMENTS + 1));
        started.signal(Signal::SIGKILL);
        started.wait();
        // The same command again: it goes on where that one was, or begins.
        site.lab.hvbak(&RESTORE).exits(0).says("4 VMs and templates");
        let count = site.restores() - before;
        assert!((1..=2).contains(&count), "moment {n}: {count} restores");
        site.assert_swept();
        site.lab.hvbak(&["cleanup"]).exits(0);
        site.lab.assert_clean();
    }
}

#[test]
fn a_backup_that_is_killed_at_any_moment_leaves_nothing_behind_the_next_run_or_a_cleanup() {
    let site = Site::new();
    let lab = &site.lab;
    lab.configure(|text| format!("{text}recipients = [\"{PUBLIC}\"]\n"));
    fs::copy(fixtures().join("4.5.7-all.backup"), site.root.join("play/archive")).unwrap();
    site.play("b_ok_all");
    let stored = lab.path("repository/manager/engine.example.test");
    let partials = || {
        let names = fs::read_dir(&stored).unwrap().map(|e| e.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with(".partial-")).count()
    };
    let began = Instant::now();
    lab.hvbak(&["manager-backup"]).exits(0);
    let whole = began.elapsed();
    for n in 1..=MOMENTS {
        let started = lab.start(&["manager-backup"]);
        std::thread::sleep(whole * n / (MOMENTS + 1));
        started.signal(Signal::SIGKILL);
        started.wait();
        if n % 2 == 0 {
            lab.hvbak(&["manager-backup"]).exits(0);
        } else {
            // One that is at work is nobody's to sweep, and then it is gone with the next.
            hvbak_tests::wait_for("the end", || {
                let left = fs::read_dir(site.root.join("var/lib/hvbak-manager")).unwrap();
                left.into_iter().all(|e| {
                    let run = e.unwrap().path();
                    !run.is_dir() || run.join("rc").exists()
                })
            });
            lab.hvbak(&["cleanup"]).exits(0);
        }
        site.assert_swept();
        assert_eq!(partials(), 0, "moment {n}");
        lab.hvbak(&["cleanup"]).exits(0).says("nothing is left behind");
        lab.assert_clean();
    }
    // Also one that no journal knows.
    let partial = stored.join(".partial-20260101T000000Z");
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join("engine.backup"), "half of it").unwrap();
    lab.hvbak(&["cleanup", "--dry-run"]).exits(0).says("would remove").says("half-made");
    assert_eq!(partials(), 1);
    lab.hvbak(&["cleanup"]).exits(0).says("half-made");
    assert_eq!(partials(), 0);
}

#[test]
fn cleanup_leaves_a_restore_alone_that_nobody_has_judged() {
    let site = Site::new();
    fs::write(site.root.join("play/wait"), "").unwrap();
    let started = site.lab.start_until(&RESTORE, |_| site.restores() == 1);
    started.signal(Signal::SIGKILL);
    started.wait();
    for at_work in [true, false] {
        if !at_work {
            fs::write(site.root.join("play/go"), "").unwrap();
            hvbak_tests::wait_for("the end", || find(&site.root, "rc"));
        }
        site.lab.hvbak(&["cleanup"]).exits(3).says("nobody has seen").says("--pick-up");
        assert!(find(&site.root, "engine-backup.log"), "its log is gone");
    }
    site.lab.hvbak(&["manager-restore", "--pick-up"]).exits(0).says("begun by an earlier hvbak");
    site.assert_swept();
    site.lab.hvbak(&["cleanup"]).exits(0);
    site.lab.assert_clean();
}

/// Whether a run on the manager has such a file.
fn find(root: &Path, name: &str) -> bool {
    let runs = fs::read_dir(root.join("var/lib/hvbak-manager")).unwrap();
    runs.into_iter().any(|run| run.unwrap().path().join(name).exists())
}

const PUBLIC: &str = "age1zj8w38z6sf4r6qa6xpm38vclmjs0jud83m9eev69xvtwrn0wnguq0usvu0";

/// Private keys are closed to others, or they are refused.
fn key(lab: &Lab, fixture: &str) -> String {
    let path = lab.path(fixture);
    fs::copy(fixtures().join(fixture), &path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_string_lossy().into_owned()
}

fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
    let found = found.is_ok_and(|found| found.status.success());
    if !found {
        skip(&format!("{program} is not installed"));
    }
    found
}

/// Looks again and again what lies in a directory, until it is ended.
struct Watch {
    over: Arc<AtomicBool>,
    seen: JoinHandle<BTreeSet<PathBuf>>,
}

impl Watch {
    fn begin(dir: &Path) -> Self {
        let (over, dir) = (Arc::new(AtomicBool::new(false)), dir.to_owned());
        let until = over.clone();
        let seen = std::thread::spawn(move || {
            let mut seen = BTreeSet::new();
            while !until.load(Ordering::Relaxed) {
                seen.extend(fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()));
                std::thread::sleep(Duration::from_millis(2));
            }
            seen
        });
        Self { over, seen }
    }

    fn end(self) -> Vec<PathBuf> {
        self.over.store(true, Ordering::Relaxed);
        self.seen.join().unwrap().into_iter().collect()
    }
}

#[test]
fn an_encrypted_archive_goes_there_and_back_and_opens_with_stock_age() {
    let site = Site::new();
    let lab = &site.lab;
    // Whatever is temporary would lie here.
    let tmp = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(tmp.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let hvbak = |words: &[&str]| Started::new(lab.command(words).env("TMPDIR", tmp.path())).wait();
    let json = |words: &[&str]| hvbak(&[&["--json"], words].concat());
    let watch = Watch::begin(tmp.path());
    let (mine, foreign) = (key(lab, "test-identity.txt"), key(lab, "test-identity-of-others.txt"));
    fs::remove_dir_all(lab.path("repository/manager")).unwrap();
    let list = lab.path("recipients");
    lab.configure(|text| format!("{text}recipients_file = \"recipients\"\n"));
    fs::copy(fixtures().join("4.5.7-all.backup"), site.root.join("play/archive")).unwrap();
    site.play("b_ok_all");
    // Nothing is begun when it is not clear whom it is for.
    let before = fs::read_to_string(site.root.join("calls")).unwrap();
    for (text, said) in [("# nobody\n", "names none"), ("age1x\n", "`age1x`")] {
        fs::write(&list, text).unwrap();
        hvbak(&["manager-backup"]).exits(2).says(said);
    }
    fs::copy(&mine, &list).unwrap();
    let refused = hvbak(&["manager-backup"]).exits(2).says("only public keys");
    refused.never_says("AP8F69D");
    assert_eq!(fs::read_to_string(site.root.join("calls")).unwrap(), before);
    fs::write(&list, format!("{PUBLIC}\n")).unwrap();
    // The simulated engine hears nothing of this run, and the archive is good all the same.
    fs::remove_dir_all(site.root.join("var/lib/simulated-engine")).unwrap();
    hvbak(&["manager-backup"])
        .exits(0)
        .says("encrypted to age1zj8w38")
        .says("engine disagrees")
        .says("no event of this run");
    fs::remove_file(site.root.join("play/archive")).unwrap();
    hvbak(&["manager-points"]).exits(0).says("ENCRYPTED TO").says("age1zj8w38");

    let name = "engine.example.test";
    let closed = hvbak(&["manager-verify", name]).exits(3);
    closed.says("stored bytes are as recorded").says("NOT CHECKED").never_says("whole,");
    hvbak(&["manager-verify", name, "--identity", &mine])
        .exits(0)
        .says("whole (decrypted)")
        .says("read by pg_restore");
    hvbak(&["manager-verify", name, "--identity", &foreign]).exits(2).says("not encrypted to");

    let point = fs::read_dir(lab.path("repository/manager").join(name)).unwrap();
    let point = point.map(|e| e.unwrap().path()).find(|p| p.join("manifest.json").exists());
    let file = point.unwrap().join("engine.backup.age");
    let shown = file.to_str().unwrap();
    hvbak(&["manager-verify", shown]).exits(2).says("is encrypted").says("--identity");
    hvbak(&["manager-verify", shown, "--identity", &mine]).exits(0).says("(decrypted)");
    // As FORMAT.md says, without hvbak.
    if has("age") {
        let plain = lab.path("engine.backup");
        run_tool("age", &["-d", "-i", &mine, "-o", plain.to_str().unwrap(), shown]);
        assert!(
            fs::read(&plain).unwrap() == fs::read(fixtures().join("4.5.7-all.backup")).unwrap()
        );
        let members = run_tool("tar", &["-tf", plain.to_str().unwrap()]);
        assert!(members.contains("./sha256sum"), "{members}");
        fs::remove_file(plain).unwrap();
    }

    site.play("r_ok_perm");
    let before = fs::read_to_string(site.root.join("calls")).unwrap();
    hvbak(&RESTORE).exits(2).says("is encrypted to age1zj8w38");
    hvbak(&[&RESTORE[..], &["--identity", &foreign]].concat()).exits(2);
    assert_eq!(fs::read_to_string(site.root.join("calls")).unwrap(), before);
    let with = [&RESTORE[..], &["--identity", &mine]].concat();
    hvbak(&[&with[..], &["--dry-run"]].concat()).exits(0).says("decrypted on its way");
    hvbak(&with).exits(0).says("4 VMs and templates in the engine's database, as in the archive");

    assert_eq!(watch.end(), Vec::<PathBuf>::new(), "seen where temporary files lie");
    let drill = json(&["drill", "--manager"]).exits(3);
    assert!(drill.stdout.contains("NOT opened and not restored"), "{drill}");
    assert_eq!(drill.of("drilled")[0]["outcome"], "skipped", "{drill}");
    hvbak(&["report"]).says("skipped").says("no identity was given");
    let book = lab.path("book-without-a-key");
    hvbak(&["runbook", "--output", book.to_str().unwrap()]).exits(0);
    let overview = fs::read_to_string(book.join("overview.md")).unwrap();
    assert!(overview.contains("**NOT rehearsed: compared stored bytes"), "{overview}");
    json(&["drill", "--manager", "--identity", &foreign]).says("not encrypted to");
    if has("initdb") && hvbak_tests::is_root() {
        let drill = json(&["drill", "--manager", "--identity", &mine]).exits(0);
        assert!(drill.stdout.contains("rows in vm_static"), "{drill}");
    }
    let pages = lab.path("pages");
    hvbak(&["runbook", "--output", pages.to_str().unwrap()]).exits(0);
    let lost = fs::read_to_string(pages.join("manager-lost.md")).unwrap();
    assert!(lost.contains("age --decrypt") && lost.contains(PUBLIC), "{lost}");

    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(&file, bytes).unwrap();
    for more in [&[][..], &["--identity", &mine]] {
        hvbak(&[&["manager-verify", name][..], more].concat())
            .exits(15)
            .says("not what was stored");
    }
    hvbak(&["manager-verify", shown, "--identity", &mine]).exits(15).says("changed or cut off");
    // A drill's dumps were there; they are not any more.
    assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 0, "left in {:?}", tmp.path());
    site.assert_swept();
    lab.assert_clean();
}
