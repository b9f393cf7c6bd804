//! Walks through the sequences of a self-hosted engine with the whole program. Its hosts are
//! the lab's, behind real OpenSSH; hosted-engine and the programs around it are stand-ins that
//! say what the real formatter printed. What a person does is done here by hand.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use hvbak_tests::{Lab, Run, Started, small};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Exit code: it is a person's turn.
const WAITING: i32 = 16;
const ARCHIVE: &str = "root/hvbak-engine.backup";
const ANSWERS: &str = "root/hvbak-he-answers.conf";
const ON_HOSTS: [&str; 7] =
    ["hosted-engine", "systemctl", "rpm", "getent", "pgrep", "tmux", "sha256sum"];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/engine-backup")
}

/// A lab with a host that has the engine (`old`), a fresh one and a manager's machine.
struct Site {
    lab: Lab,
    names: Vec<String>,
    roots: Vec<PathBuf>,
}

const OLD: usize = 0;
const FRESH: usize = 1;
const MANAGER: usize = 2;

impl Site {
    fn new() -> Self {
        let lab = Lab::bare(&small(), &["--hosts", "3", "--domains", "nfs"]);
        lab.enrol();
        let hosts = lab.up["hosts"].as_array().unwrap().clone();
        let text = |host: &Value, key: &str| host[key].as_str().unwrap().to_owned();
        let names: Vec<_> = hosts.iter().map(|host| text(host, "name")).collect();
        let roots: Vec<_> = hosts.iter().map(|host| PathBuf::from(text(host, "root"))).collect();
        let mut more = String::new();
        for (at, host) in hosts.iter().enumerate() {
            let key = fs::read_to_string(roots[at].join("etc/ssh/ssh_host_ed25519_key.pub"));
            let key = key.unwrap().trim().to_owned();
            let (port, user) = (&host["port"], text(host, "user"));
            let section = if at == MANAGER {
                "[manager]\nhost = \"127.0.0.1\"\nname = \"engine.example.test\"".to_owned()
            } else {
                // One address for two hosts would be one host.
                let address = if at == FRESH { "localhost" } else { "127.0.0.1" };
                format!("[hosts.{}]\naddress = \"{address}\"", names[at])
            };
            more.push_str(&format!(
                "\n{section}\nport = {port}\nuser = \"{user}\"\nhost_key = \"{key}\"\n"
            ));
        }
        let url = text(&lab.up, "engine_url");
        lab.configure(|text| {
            // No step asks the engine: it may be down, and its name is what counts.
            text.replace(&url, "https://engine.example.test/ovirt-engine/api") + &more
        });
        let site = Self { lab, names, roots };
        for at in [OLD, FRESH, MANAGER] {
            site.furnish(at);
        }
        site.set(OLD, "deployed", true);
        site
    }

    /// Stand-ins, and what they say.
    fn furnish(&self, at: usize) {
        let root = &self.roots[at];
        for dir in ["usr/bin", "usr/sbin", "play/he", "root", "var/tmp", "tmp"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        for name in ON_HOSTS {
            let dir = if name == "hosted-engine" { "usr/sbin" } else { "usr/bin" };
            let to = root.join(dir).join(name);
            fs::copy(fixtures().join("stand-in-hosts.sh"), &to).unwrap();
            fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
        }
        for name in ["normal.json", "global.json"] {
            fs::copy(fixtures().join("vm-status").join(name), root.join("play/he").join(name))
                .unwrap();
        }
        if at != MANAGER {
            return;
        }
        let services = root.join("usr/share/ovirt-engine/services/ovirt-engine");
        fs::create_dir_all(&services).unwrap();
        fs::write(services.join("ovirt-engine.conf"), "PACKAGE_VERSION=4.5.7\n").unwrap();
        let program = root.join("usr/bin/engine-backup");
        fs::copy(fixtures().join("stand-in.sh"), program).unwrap();
        fs::copy(fixtures().join("4.5.7-all.backup"), root.join("play/archive")).unwrap();
        let text = fs::read_to_string(fixtures().join("transcripts.jsonl")).unwrap();
        let mut runs = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let run = runs.find(|run| run["name"] == "b_ok_all").unwrap();
        for (file, value) in [("stdout", &run["stdout"]), ("stderr", &run["stderr"])] {
            fs::write(root.join("play").join(file), value.as_str().unwrap()).unwrap();
        }
        fs::write(root.join("play/rc"), run["rc"].to_string()).unwrap();
    }

    /// A file of a stand-in's state.
    fn set(&self, at: usize, name: &str, there: bool) {
        let path = self.roots[at].join("play/he").join(name);
        if there {
            fs::write(path, "").unwrap();
        } else {
            let _ = fs::remove_file(path);
        }
    }

    fn is(&self, at: usize, name: &str) -> bool {
        self.roots[at].join("play/he").join(name).exists()
    }

    fn args<'a>(&'a self, sequence: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let mut args = vec!["hosted-engine", "plan", sequence];
        if sequence != "to-hosted" {
            args.extend(["--host", &self.names[OLD]]);
        }
        if ["move", "recover", "to-hosted"].contains(&sequence) {
            args.extend(["--to", &self.names[FRESH]]);
        }
        args.extend(["--run", "--wait", "0"]);
        args.extend(more);
        args
    }

    /// Without a terminal.
    #[track_caller]
    fn walk(&self, sequence: &str, more: &[&str]) -> Run {
        self.lab.hvbak(&self.args(sequence, more))
    }

    /// The same, which must end at a step.
    #[track_caller]
    fn waits_at(&self, step: &str, sequence: &str, more: &[&str]) -> Run {
        self.walk(sequence, more).exits(WAITING).says(&format!("waiting at step `{step}`"))
    }

    /// On a terminal, with these lines typed.
    fn typed(&self, sequence: &str, more: &[&str], lines: &[&str]) -> Run {
        let file = self.lab.scratch("typed");
        fs::write(&file, lines.join("\n") + "\n").unwrap();
        let hvbak = self.lab.command(&self.args(sequence, more));
        let words: Vec<_> = std::iter::once(hvbak.get_program())
            .chain(hvbak.get_args())
            .map(|word| format!("'{}'", word.to_str().unwrap()))
            .collect();
        let line = r#"exec script --quiet --return --command "$1" /dev/null <"$2""#;
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", line, "sh", &words.join(" ")]).arg(&file);
        for (key, value) in hvbak.get_envs() {
            match value {
                Some(value) => shell.env(key, value),
                None => shell.env_remove(key),
            };
        }
        Started::new(&mut shell).wait()
    }

    /// What a person does to make a fresh host one that has the engine.
    fn deploy(&self) {
        self.set(FRESH, "deployed", true);
    }

    fn lies(&self, name: &str) -> bool {
        self.roots[FRESH].join(name).exists()
    }

    /// How often a program of a host was called so.
    fn calls(&self, at: usize, text: &str) -> usize {
        let calls = fs::read_to_string(self.roots[at].join("calls-he")).unwrap_or_default();
        calls.lines().filter(|line| line.contains(text)).count()
    }

    fn record(&self) -> Value {
        let path = self.lab.path("repository/manager/engine.example.test/.walk.json");
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    }

    fn state_of(&self, step: &str) -> String {
        let record = self.record();
        let steps = record["steps"].as_array().unwrap();
        let found = steps.iter().find(|one| one["name"] == step).unwrap();
        found["state"].as_str().unwrap().to_owned()
    }

    /// A move as far as the deployment.
    fn moved_to_deploy(&self) {
        self.waits_at("spm", "move", &["--yes"]);
        let sure =
            ["--yes", "--confirm", "spm", "--confirm", "stop-engine", "--confirm", "shutdown"];
        self.waits_at("deploy", "move", &sure);
    }
}

#[test]
fn a_move_is_walked_to_its_end_on_a_terminal() {
    let site = Site::new();
    let print = site.lab.hvbak(&["hosted-engine", "plan", "move", "--host", "a", "--to", "b"]);
    print.exits(0).says("4. stop-engine:");
    assert!(site.calls(OLD, "") + site.calls(FRESH, "") == 0, "a printed plan asks nobody");
    // spm, stop-engine (an empty line is not enough), shutdown, deploy that is not done.
    let lines = ["", "", "yes", "yes", "", "q"];
    let run = site.typed("move", &["--yes"], &lines).exits(WAITING);
    let run =
        run.says("seen so far").says("no deployment is at work").says("waiting at step `deploy`");
    drop(run);
    assert!(site.is(OLD, "maintained") && site.is(OLD, "down") && site.is(MANAGER, "off"));
    let there = fs::read(site.roots[FRESH].join(ARCHIVE)).unwrap();
    assert!(there == fs::read(fixtures().join("4.5.7-all.backup")).unwrap());
    for name in [ARCHIVE, ANSWERS] {
        let mode = fs::metadata(site.roots[FRESH].join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let answers = fs::read_to_string(site.roots[FRESH].join(ANSWERS)).unwrap();
    assert!(answers.contains("OVEHOSTED_NETWORK/fqdn=str:engine.example.test\n"), "{answers}");
    assert!(!answers.to_lowercase().contains("password="), "{answers}");
    site.deploy();
    // redeploy, old-domain, again.
    let run = site.typed("move", &["--yes"], &["", "", ""]).exits(0).says("all steps are done");
    assert!(!run.stdout.contains("stop-engine"), "what is done is not shown again: {run}");
    assert!(!site.lies(ARCHIVE) && !site.lies(ANSWERS));
    let kept = fs::read_dir(site.lab.path("repository/manager/engine.example.test")).unwrap();
    let kept: Vec<_> = kept.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(kept.iter().any(|name| name.starts_with(".walked-")), "{kept:?}");
    assert!(!kept.contains(&".walk.json".to_owned()), "{kept:?}");
    assert_eq!(site.calls(OLD, "--vm-shutdown"), 1);
    assert_eq!(site.calls(MANAGER, "disable --now"), 1);
    let journals = fs::read_dir(site.lab.path("repository/journal")).unwrap().count();
    assert_eq!(journals, 0, "steps are left open");
}

#[test]
fn without_a_terminal_it_stops_where_somebody_is_needed_and_says_how_to_go_on() {
    let site = Site::new();
    let run = site.waits_at("spm", "move", &[]);
    let go_on = format!(
        "hvbak hosted-engine plan move --host {} --to {} --run --confirm spm",
        site.names[OLD], site.names[FRESH]
    );
    run.says(&go_on);
    // Harmless or not: hvbak changes nothing that nobody allowed.
    site.waits_at("maintenance", "move", &["--confirm", "spm"]);
    assert!(!site.is(OLD, "maintained"));
    let run = site.lab.json(&site.args("move", &["--yes"])).exits(WAITING);
    let result = run.result();
    assert_eq!((&result["status"], &result["step"]), (&"waiting".into(), &"stop-engine".into()));
    assert!(result["go_on"].as_str().unwrap().ends_with("--yes --confirm stop-engine"), "{run}");
    let steps: Vec<_> = run.of("step").iter().map(|s| s["name"].to_string()).collect();
    assert_eq!(steps, ["\"maintenance\"", "\"stop-engine\""], "{run}");
    assert_eq!(run.of("step-done")[0]["already"], false, "{run}");
    assert!(site.is(OLD, "maintained") && !site.is(MANAGER, "off"));
    // A person's step that was never shown is not done because somebody says so beforehand.
    let all = ["--yes", "--confirm", "stop-engine", "--confirm", "shutdown", "--confirm", "deploy"];
    site.waits_at("deploy", "move", &all);
    // What was shown and is not seen is not believed.
    let run = site.walk("move", &["--yes", "--confirm", "deploy"]).exits(1);
    run.says("not seen to be done").says("never deployed").says("no deployment is at work");
    assert_eq!(site.state_of("deploy"), "begun");
    site.set(FRESH, "deploying", true);
    site.waits_at("deploy", "move", &["--yes"]).says("do not start another one");
    let lock = site.roots[FRESH].join("tmp/ansible.abc_he_setup_lock");
    fs::write(&lock, "").unwrap();
    let run = site.waits_at("deploy", "move", &["--yes"]);
    run.says("has paused").says("delete /tmp/ansible.abc_he_setup_lock");
    fs::remove_file(lock).unwrap();
    site.deploy();
    site.waits_at("redeploy", "move", &["--yes"]);
}

#[test]
fn a_walk_that_is_killed_goes_on_and_repeats_nothing() {
    let site = Site::new();
    site.waits_at("spm", "move", &["--yes"]);
    // While the manager is backed up.
    fs::write(site.roots[MANAGER].join("play/wait"), "").unwrap();
    let sure = ["--yes", "--confirm", "spm", "--confirm", "stop-engine"];
    let calls = || fs::read_to_string(site.roots[MANAGER].join("calls")).unwrap_or_default();
    let backups = || calls().matches("--mode=backup").count();
    let walk = site.lab.start_until(&site.args("move", &sure), |_| backups() == 1);
    site.walk("move", &sure).exits(11).says("locked");
    walk.signal(Signal::SIGKILL);
    walk.wait();
    assert_eq!(site.state_of("backup"), "begun");
    fs::write(site.roots[MANAGER].join("play/go"), "").unwrap();
    site.waits_at("shutdown", "move", &["--yes"]);
    assert_eq!((site.calls(MANAGER, "disable --now"), site.calls(OLD, "--mode=global")), (1, 1));
    // While the VM goes down: it does so without hvbak.
    site.set(OLD, "stays-up", true);
    let mut args = site.args("move", &["--yes", "--confirm", "shutdown", "--wait", "5"]);
    args.retain(|arg| *arg != "0");
    let at = args.iter().position(|arg| *arg == "--wait").unwrap();
    args.remove(at);
    let walk = site.lab.start_until(&args, |_| site.calls(OLD, "--vm-shutdown") == 1);
    walk.signal(Signal::SIGKILL);
    walk.wait();
    site.set(OLD, "down", true);
    site.waits_at("deploy", "move", &["--yes"]);
    assert_eq!(site.calls(OLD, "--vm-shutdown"), 1, "it was down already");
    // Within the deployment nobody goes back.
    let run = site.walk("move", &["--yes", "--from", "backup"]).exits(2);
    run.says("`deploy` was begun").says("--restart");
    site.waits_at("restart", "move", &["--yes", "--restart"]).says("--restart --confirm restart");
    assert_eq!(site.state_of("deploy"), "begun");
    assert!(site.lies(ARCHIVE));
    let run = site.waits_at("spm", "move", &["--yes", "--restart", "--confirm", "restart"]);
    drop(run);
    assert!(!site.lies(ARCHIVE), "what the walk before has copied goes");
}

#[test]
fn what_must_go_on_holding_is_looked_at_when_a_walk_goes_on() {
    let site = Site::new();
    site.waits_at("spm", "move", &["--yes"]);
    site.waits_at("shutdown", "move", &["--yes", "--confirm", "spm", "--confirm", "stop-engine"]);
    let archive = site.record()["archive"].clone();
    // Somebody ended the maintenance: it is set again, and nothing else is done again.
    site.set(OLD, "maintained", false);
    site.waits_at("shutdown", "move", &["--yes"]).says("`maintenance` no longer holds");
    assert!(site.is(OLD, "maintained") && site.record()["archive"] == archive);
    // Another archive lies there, or anybody can read it.
    let there = site.roots[FRESH].join(ARCHIVE);
    fs::write(&there, "something else").unwrap();
    site.waits_at("shutdown", "move", &["--yes"]).says("`copy` no longer holds");
    fs::set_permissions(&there, fs::Permissions::from_mode(0o644)).unwrap();
    site.waits_at("shutdown", "move", &["--yes"]).says("mode 644");
    assert!(fs::read(&there).unwrap() == fs::read(fixtures().join("4.5.7-all.backup")).unwrap());
    // The engine ran again: what it did since is in no archive.
    site.set(MANAGER, "off", false);
    let run = site.waits_at("stop-engine", "move", &["--yes"]);
    run.says("`stop-engine` no longer holds: ovirt-engine runs");
    assert_eq!((site.state_of("backup"), site.state_of("copy")), ("open".into(), "open".into()));
    std::thread::sleep(std::time::Duration::from_millis(1100));
    site.waits_at("shutdown", "move", &["--yes", "--confirm", "stop-engine"]);
    assert_ne!(site.record()["archive"], archive, "it was backed up anew");
    // Maintenance that cannot be seen is not believed to be there.
    fs::copy(
        fixtures().join("vm-status/broker-down.stderr.txt"),
        site.roots[OLD].join("play/he/broker-down"),
    )
    .unwrap();
    let run = site.walk("move", &["--yes", "--confirm", "shutdown"]).exits(1);
    run.says("HA broker does not answer").says("systemctl start ovirt-ha-broker");
    assert!(!site.is(OLD, "down"));
    site.set(OLD, "broker-down", false);
    site.waits_at("deploy", "move", &["--yes", "--confirm", "shutdown"]);
}

#[test]
fn a_host_that_is_not_heard_is_not_believed_to_be_without_the_vm() {
    let site = Site::new();
    site.waits_at("spm", "move", &["--yes"]);
    let sure = ["--yes", "--confirm", "spm", "--confirm", "stop-engine"];
    site.waits_at("shutdown", "move", &sure);
    let stale = fs::read_to_string(fixtures().join("vm-status/stale.json")).unwrap();
    let stale = stale.replace("\"global_maintenance\": false", "\"global_maintenance\": true");
    let over = site.roots[OLD].join("play/he/override");
    fs::write(&over, &stale).unwrap();
    let run = site.walk("move", &["--yes", "--confirm", "shutdown"]).exits(1);
    run.says("host1.example.test runs the engine's VM");
    let down = stale.replacen(
        "\"vm\": \"up\", \"health\": \"good\"",
        "\"vm\": \"down\", \"health\": \"bad\"",
        1,
    );
    assert_ne!(down, stale);
    fs::write(&over, &down).unwrap();
    let run = site.walk("move", &["--yes", "--confirm", "shutdown"]).exits(1);
    run.says("without live data: host2.example.test (last said at its second 1200: vm down)");
    assert_eq!(site.state_of("shutdown"), "begun");
    // Heard again.
    fs::write(&over, down.replace("\"live-data\": false", "\"live-data\": true")).unwrap();
    site.waits_at("deploy", "move", &["--yes"]);
}

#[test]
fn a_fresh_host_that_cannot_take_the_engine_stops_it_before_anything_stops() {
    let site = Site::new();
    for (name, said) in [
        ("deployed", "is deployed to it already"),
        ("no-dns", "cannot resolve engine.example.test"),
        ("deploying", "a deployment is at work"),
    ] {
        site.set(FRESH, name, true);
        site.walk("move", &["--yes"]).exits(1).says("cannot take the engine").says(said);
        site.set(FRESH, name, false);
    }
    let nobody = ["hosted-engine", "plan", "move", "--host", &site.names[OLD], "--to", "127.0.0.2"];
    site.lab.hvbak(&[&nobody[..], &["--run", "--restart"]].concat()).exits(1).says("127.0.0.2");
    assert_eq!(site.calls(OLD, ""), 0, "nothing was asked of the old one");
    site.waits_at("spm", "move", &["--yes", "--restart"]);
    // A walk is one thing: other hosts and other sequences are another walk.
    site.walk("to-standalone", &["--yes"]).exits(2).says("`move` is open");
    site.lab.hvbak(&[&nobody[..], &["--run"]].concat()).exits(2).says("with --to");
    site.walk("move", &["--from", "nowhere"]).exits(2).says("stop-engine, backup, copy");
}

#[test]
fn an_archive_that_arrives_otherwise_never_counts() {
    let site = Site::new();
    site.waits_at("spm", "move", &["--yes"]);
    let sure = ["--yes", "--confirm", "spm", "--confirm", "stop-engine"];
    site.set(FRESH, "lies", true);
    let run = site.walk("move", &sure).exits(1);
    run.says("step `copy` is not seen to be done");
    assert!(!site.lies(ARCHIVE), "what arrived otherwise was left there");
    assert!(!site.lies("root/hvbak-engine.backup.new"));
    site.set(FRESH, "lies", false);
    // A link of that name is not followed.
    let target = site.roots[FRESH].join("etc-shadow");
    fs::write(&target, "secret").unwrap();
    std::os::unix::fs::symlink(&target, site.roots[FRESH].join(ARCHIVE)).unwrap();
    site.walk("move", &sure).exits(1).says("a link or a directory has its name");
    assert_eq!(fs::read_to_string(&target).unwrap(), "secret");
    fs::remove_file(site.roots[FRESH].join(ARCHIVE)).unwrap();
    // The stored one is no longer what was stored.
    let title = site.record()["archive"].as_str().unwrap().to_owned();
    let point = title.split('@').next_back().unwrap().to_owned();
    let stored = site.lab.path("repository/manager/engine.example.test").join(point);
    let stored = stored.join("engine.backup");
    let good = fs::read(&stored).unwrap();
    hvbak_tests::damage::flip(&stored, 1000);
    site.walk("move", &sure).exits(15).says("not what was stored");
    assert!(!site.lies(ARCHIVE));
    fs::write(&stored, good).unwrap();
    site.waits_at("shutdown", "move", &sure);
}

#[test]
fn a_lost_engine_is_recovered_without_asking_who_is_lost() {
    let site = Site::new();
    site.walk("recover", &["--yes"]).exits(2).says("no stored archive");
    site.lab.hvbak(&["manager-backup"]).exits(0);
    fs::remove_file(site.roots[OLD].join("play/he/deployed")).unwrap();
    // The VM is seen up on a host that answers: it is not lost.
    site.set(OLD, "deployed", true);
    site.waits_at("dead", "recover", &["--yes"]).says("runs the engine's VM");
    let run = site.walk("recover", &["--yes", "--confirm", "dead"]).exits(1);
    run.says("runs the engine's VM");
    // Nobody answers any more.
    fs::copy(
        fixtures().join("vm-status/broker-down.stderr.txt"),
        site.roots[OLD].join("play/he/broker-down"),
    )
    .unwrap();
    let run = site.waits_at("dead", "recover", &["--yes"]);
    run.says("HA broker does not answer");
    let run = site.typed("recover", &["--yes"], &["", "yes", "q"]).exits(WAITING);
    run.says("waiting at step `deploy`");
    assert!(site.lies(ARCHIVE));
    site.deploy();
    site.waits_at("redeploy", "recover", &["--yes"]);
    // A newer archive that came meanwhile changes nothing.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    site.lab.hvbak(&["manager-backup"]).exits(0);
    let run = site.waits_at("old-domain", "recover", &["--yes", "--confirm", "redeploy"]);
    drop(run);
    let done = ["--yes", "--confirm", "old-domain"];
    site.waits_at("again", "recover", &done);
    site.walk("recover", &["--confirm", "again"]).exits(0).says("all steps are done");
    assert!(!site.lies(ARCHIVE));
}

#[test]
fn a_machine_of_its_own_becomes_a_self_hosted_engine() {
    let site = Site::new();
    site.waits_at("stop-engine", "to-hosted", &["--yes"]);
    let run = site.waits_at("old-machine", "to-hosted", &["--yes", "--confirm", "stop-engine"]);
    drop(run);
    // Its machine is off: nothing after this asks it.
    fs::remove_dir_all(site.roots[MANAGER].join("usr")).unwrap();
    site.waits_at("deploy", "to-hosted", &["--yes", "--confirm", "old-machine"]);
    site.deploy();
    site.waits_at("redeploy", "to-hosted", &["--yes"]);
    site.waits_at("again", "to-hosted", &["--yes", "--confirm", "redeploy"]);
    site.walk("to-hosted", &["--confirm", "again"]).exits(0);
    assert_eq!(site.calls(OLD, ""), 0, "there is no old host in it");
}

#[test]
fn steps_that_are_done_elsewhere_are_passed_and_what_they_left_is_looked_at() {
    let site = Site::new();
    site.moved_to_deploy();
    let title = site.record()["archive"].as_str().unwrap().to_owned();
    let again = ["--yes", "--restart", "--confirm", "restart", "--archive", &title];
    let run = site.walk("move", &[&again[..], &["--from", "answers"]].concat());
    // What passed steps should have left is not there: the copy is made, by name.
    run.exits(WAITING).says("`copy` no longer holds").says("waiting at step `deploy`");
    assert_eq!(site.state_of("spm"), "passed");
    assert!(site.lies(ARCHIVE));
    // Without the maintenance the walk does not stand where somebody says it stands.
    site.set(OLD, "maintained", false);
    site.set(OLD, "down", false);
    let run = site.waits_at("shutdown", "move", &["--yes"]);
    drop(run);
    assert!(site.is(OLD, "maintained"));
}
