//! A site for walks through the sequences of a self-hosted engine. Its hosts are the lab's,
//! behind real OpenSSH; hosted-engine and the programs around it are stand-ins that say what
//! the real formatter printed.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use hvbak_tests::{Lab, Run, small};
use serde_json::Value;

/// Exit code: it is a person's turn.
pub const WAITING: i32 = 16;
pub const ARCHIVE: &str = "root/hvbak-engine.backup";
pub const ANSWERS: &str = "root/hvbak-he-answers.conf";
const ON_HOSTS: [&str; 7] =
    ["hosted-engine", "systemctl", "rpm", "getent", "pgrep", "tmux", "sha256sum"];

const RESTORING: [&str; 8] = [
    "curl",
    "engine-cleanup",
    "engine-setup",
    "locale",
    "pg_dump",
    "postgresql-setup",
    "psql",
    "runuser",
];

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/engine-backup")
}

/// A lab with a host that has the engine (`old`), a fresh one and a manager's machine.
pub struct Site {
    pub lab: Lab,
    pub names: Vec<String>,
    pub roots: Vec<PathBuf>,
}

pub const OLD: usize = 0;
pub const FRESH: usize = 1;
pub const MANAGER: usize = 2;

impl Site {
    pub fn new() -> Self {
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
    pub fn furnish(&self, at: usize) {
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
        self.play("b_ok_all");
    }

    /// What the stand-in for engine-backup says next.
    pub fn play(&self, name: &str) {
        let play = self.roots[MANAGER].join("play");
        let text = fs::read_to_string(fixtures().join("transcripts.jsonl")).unwrap();
        let mut runs = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let run = runs.find(|run| run["name"] == name).unwrap();
        for (file, value) in [("stdout", &run["stdout"]), ("stderr", &run["stderr"])] {
            fs::write(play.join(file), value.as_str().unwrap()).unwrap();
        }
        fs::write(play.join("rc"), run["rc"].to_string()).unwrap();
    }

    /// The manager's machine takes a restore of everything.
    pub fn restorable(&self) {
        let root = &self.roots[MANAGER];
        for tool in RESTORING {
            fs::copy(fixtures().join("stand-in-tools.sh"), root.join("usr/bin").join(tool))
                .unwrap();
        }
        fs::create_dir_all(root.join("play/machine")).unwrap();
        fs::create_dir_all(root.join("etc")).unwrap();
        let release = "ID=centos\nID_LIKE=\"rhel fedora\"\nVERSION_ID=9\n";
        fs::write(root.join("etc/os-release"), release).unwrap();
        fs::remove_file(root.join("play/archive")).unwrap();
        self.play("r_ok_perm");
    }

    /// The same, with an engine that is set up and broken.
    pub fn broken(&self) {
        self.restorable();
        let root = &self.roots[MANAGER];
        let setup = root.join("etc/ovirt-engine-setup.conf.d");
        fs::create_dir_all(&setup).unwrap();
        let text = "OVESETUP_ENGINE_CORE/enable=bool:True\n";
        fs::write(setup.join("20-setup-ovirt-post.conf"), text).unwrap();
        let names = root.join("etc/ovirt-engine/engine.conf.d");
        fs::create_dir_all(&names).unwrap();
        let text = "ENGINE_FQDN=engine.example.test\n";
        fs::write(names.join("10-setup-protocols.conf"), text).unwrap();
        fs::write(root.join("play/machine/nonempty"), "").unwrap();
    }

    /// How often the manager's programs were called so.
    pub fn manager_calls(&self, text: &str) -> usize {
        let calls = fs::read_to_string(self.roots[MANAGER].join("calls")).unwrap_or_default();
        calls.lines().filter(|line| *line == text).count()
    }

    /// Changes the record as if hvbak had died before it noted a step's end.
    pub fn unnote(&self, step: &str) {
        let path = self.lab.path("repository/manager/engine.example.test/.walk.json");
        let mut record = self.record();
        for one in record["steps"].as_array_mut().unwrap() {
            if one["name"] == step {
                one["state"] = "begun".into();
                one["at"] = "2026-01-01T00:00:00Z".into();
            }
        }
        fs::write(path, record.to_string()).unwrap();
    }

    /// A file of a stand-in's state.
    pub fn set(&self, at: usize, name: &str, there: bool) {
        let path = self.roots[at].join("play/he").join(name);
        if there {
            fs::write(path, "").unwrap();
        } else {
            let _ = fs::remove_file(path);
        }
    }

    pub fn is(&self, at: usize, name: &str) -> bool {
        self.roots[at].join("play/he").join(name).exists()
    }

    pub fn args<'a>(&'a self, sequence: &'a str, more: &[&'a str]) -> Vec<&'a str> {
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
    pub fn walk(&self, sequence: &str, more: &[&str]) -> Run {
        self.lab.hvbak(&self.args(sequence, more))
    }

    /// The same, which must end at a step.
    #[track_caller]
    pub fn waits_at(&self, step: &str, sequence: &str, more: &[&str]) -> Run {
        self.walk(sequence, more).exits(WAITING).says(&format!("waiting at step `{step}`"))
    }

    /// On a terminal, with these lines typed.
    pub fn typed(&self, sequence: &str, more: &[&str], lines: &[&str]) -> Run {
        self.lab.typed(&self.args(sequence, more), lines)
    }

    /// What a person does to make a fresh host one that has the engine.
    pub fn deploy(&self) {
        self.set(FRESH, "deployed", true);
    }

    pub fn lies(&self, name: &str) -> bool {
        self.roots[FRESH].join(name).exists()
    }

    /// How often a program of a host was called so.
    pub fn calls(&self, at: usize, text: &str) -> usize {
        let calls = fs::read_to_string(self.roots[at].join("calls-he")).unwrap_or_default();
        calls.lines().filter(|line| line.contains(text)).count()
    }

    pub fn record(&self) -> Value {
        let path = self.lab.path("repository/manager/engine.example.test/.walk.json");
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    }

    pub fn state_of(&self, step: &str) -> String {
        let record = self.record();
        let steps = record["steps"].as_array().unwrap();
        let found = steps.iter().find(|one| one["name"] == step).unwrap();
        found["state"].as_str().unwrap().to_owned()
    }

    /// A move as far as the deployment.
    pub fn moved_to_deploy(&self) {
        self.waits_at("spm", "move", &["--yes"]);
        let sure =
            ["--yes", "--confirm", "spm", "--confirm", "stop-engine", "--confirm", "shutdown"];
        self.waits_at("deploy", "move", &sure);
    }
}
