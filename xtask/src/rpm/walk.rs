//! The README's "A real site in five minutes", walked word by word with the packages.
//!
//! A machine with a systemd of its own (`scripts/lab/machine.sh`) gets the packages from dnf; the
//! commands are taken from README.md as they stand there, so that words which are wrong fail here.
//! Real are the scriptlets, systemd, the units' sandboxes, timers and journal, sshd, QEMU's block
//! layer and every byte; simulated is the engine, and an empty package says that it gives what
//! Enterprise Linux would. What is said differently here than there is in [`Walk::said`].
//!
//! Invariant: machine and lab are gone when it ends, whatever happened.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::build;

const SECTION: &str = "## A real site in five minutes";
const MACHINE: &str = "scripts/lab/machine.sh";

/// The VM of the README; `test1` is there to be left out.
const SEED: &str = r#"{"tags": ["gold", "scratch"], "vms": [
    {"name": "web1", "running": true, "agent": true, "nics": 1, "tags": ["gold"], "disks": [
        {"alias": "web1_Disk1", "size": 268435456, "format": "raw-sparse"},
        {"alias": "web1_data", "size": 134217728, "format": "cow"}]},
    {"name": "test1", "nics": 1, "disks": [{"alias": "test1_Disk1", "size": 67108864}]}
]}"#;

/// Walks with the packages; where no such machine can be had, says so, and fails where skips are
/// failures.
pub fn run(packages: &[PathBuf], stand_in: &Path, no_skip: bool) -> Result<()> {
    let bin = build::programs()?;
    // Socket paths end at 107 characters, so the lab wants a short directory.
    let dir = tempfile::Builder::new().prefix("hvbak-walk-").tempdir_in("/tmp")?.keep();
    let walk = Walk { lab: dir.join("lab"), machine: dir.join("machine"), bin, dir };
    if let Err(why) = output(Command::new(MACHINE).arg("up").arg(&walk.machine)) {
        println!("SKIP: the README is not walked through with packages: no machine: {why:#}");
        ensure!(!no_skip, "a skip is a failure here");
        return Ok(());
    }
    walk.walk(packages, stand_in).inspect_err(|_| {
        let journal = walk.inside(&["journalctl", "--no-pager", "-n", "60"]).unwrap_or_default();
        eprintln!("the machine's journal ended with:\n{journal}");
    })
}

struct Walk {
    dir: PathBuf,
    lab: PathBuf,
    machine: PathBuf,
    bin: PathBuf,
}

impl Drop for Walk {
    fn drop(&mut self) {
        let _ = Command::new(MACHINE).arg("down").arg(&self.machine).status();
        let _ = self.lab_command("down").stderr(Stdio::null()).status();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Walk {
    fn walk(&self, packages: &[PathBuf], stand_in: &Path) -> Result<()> {
        let readme = fs::read_to_string("README.md")?;
        let words = Words::read(&readme)?;
        let seed = self.dir.join("seed.json");
        fs::write(&seed, SEED)?;
        let up = self.lab_command("up").arg("--detach").arg("--seed").arg(&seed).output()?;
        ensure!(up.status.success(), "no lab: {}", String::from_utf8_lossy(&up.stderr));
        let up: Value = serde_json::from_slice(&up.stdout).context("the lab's answer")?;
        self.install(packages, stand_in, &words)?;
        let login = Login::of(&up)?;
        self.secrets(&login)?;
        self.meet(&words, &login)?;
        for command in words.starting_with(&["hvbak enroll", "hvbak doctor"])? {
            self.said(command, &login)?;
        }
        self.guest_writes("7")?;
        for command in words.starting_with(&["hvbak backup", "hvbak verify"])? {
            let said = self.said(command, &login)?;
            ensure!(!said.contains("test1"), "`{command}` speaks of test1:\n{said}");
        }
        self.night(&words)?;
        self.credential(&login)?;
        self.morning(&words, &login)?;
        self.remove()
    }

    fn lab_command(&self, word: &str) -> Command {
        let mut lab = Command::new(self.bin.join("hvbak-lab"));
        lab.arg(word).arg("--dir").arg(&self.lab);
        lab
    }

    /// A command in the machine, as root; its output.
    fn inside(&self, words: &[&str]) -> Result<String> {
        output(Command::new(MACHINE).arg("in").arg(&self.machine).args(words))
            .with_context(|| words.join(" "))
    }

    /// The path of a machine's file, as this machine sees it.
    fn file(&self, path: &str) -> Result<PathBuf> {
        let pid = fs::read_to_string(self.machine.with_extension("pid"))?;
        Ok(PathBuf::from(format!("/proc/{}/root{path}", pid.trim())))
    }

    /// A command of the README, with what is different here: the lab's address and login, and a
    /// key where there is a password, which the lab's sshd does not take.
    fn said(&self, command: &str, login: &Login) -> Result<String> {
        let command =
            command.replace("https://engine.example.com/ovirt-engine/api", &login.url).replace(
                "--bootstrap-password-file /etc/hvbak/hv.pw",
                "--bootstrap-key /etc/hvbak/hv.key",
            );
        println!("$ {command}");
        // "runuser -u hvbak -- hvbak … for everything below"
        let command = match command.strip_prefix("hvbak ") {
            Some(rest) => format!("runuser -u hvbak -- hvbak {rest}"),
            None => command,
        };
        self.inside(&["sh", "-c", &command])
    }

    fn install(&self, packages: &[PathBuf], stand_in: &Path, words: &Words) -> Result<()> {
        for package in packages.iter().map(PathBuf::as_path).chain([stand_in]) {
            let name = package.file_name().and_then(|n| n.to_str()).context("no name")?;
            fs::copy(package, self.file(&format!("/root/{name}"))?)?;
        }
        let dnf = "dnf -y --disablerepo=* --nogpgcheck --noplugins --releasever=8 install";
        let stand_in = stand_in.file_name().and_then(|n| n.to_str()).context("no name")?;
        self.inside(&["sh", "-c", &format!("cd /root && {dnf} ./{stand_in}")])?;
        let command = words.starting_with(&["dnf install"])?[0];
        println!("$ {command}");
        let quiet = command.replace("dnf install", dnf);
        self.inside(&["sh", "-c", &format!("cd /root && {quiet}")])?;
        let timers =
            self.inside(&["systemctl", "list-timers", "--all", "--no-legend", "hvbak*"])?;
        ensure!(timers.is_empty(), "a package enables timers:\n{timers}");
        Ok(())
    }

    /// "files that it can read (0600 and its own) and a repository that is its"
    fn secrets(&self, login: &Login) -> Result<()> {
        for (from, to) in [(&login.password, "engine.pw"), (&login.key, "hv.key")] {
            let to = format!("/etc/hvbak/{to}");
            fs::copy(from, self.file(&to)?)?;
            self.inside(&["chmod", "0600", &to])?;
            self.inside(&["chown", "hvbak:hvbak", &to])?;
        }
        self.inside(&["install", "-d", "-m", "0700", "-o", "hvbak", "-g", "hvbak", "/backup/hvbak"])
            .map(drop)
    }

    /// "The first call shows the fingerprint […]; compare it […] and repeat with `--ca-fingerprint`"
    fn meet(&self, words: &Words, login: &Login) -> Result<()> {
        let command = words.starting_with(&["hvbak init"])?[0];
        let Err(shown) = self.said(command, login) else { bail!("init believed a CA unseen") };
        let shown = format!("{shown:#}");
        let fingerprint = shown
            .split_whitespace()
            .find(|word| word.matches(':').count() == 31)
            .with_context(|| format!("init shows no fingerprint:\n{shown}"))?;
        let of_ca = output(
            Command::new("openssl")
                .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
                .arg(&login.ca),
        )?;
        ensure!(of_ca.contains(fingerprint), "init shows {fingerprint}, the CA has {of_ca}");
        self.said(&format!("{command} --ca-fingerprint {fingerprint}"), login).map(drop)
    }

    fn guest_writes(&self, pattern: &str) -> Result<()> {
        for disk in ["web1_Disk1", "web1_data"] {
            let mut write = self.lab_command("guest-write");
            write.args(["--vm", "web1", "--disk", disk, "--offset", "1048576"]);
            output(write.args(["--length", "5000000", "--pattern", pattern]))?;
        }
        Ok(())
    }

    /// The timers, with a night that was missed: systemd makes up for it at once.
    fn night(&self, words: &Words) -> Result<()> {
        let config = self.file("/etc/hvbak/hvbak.toml")?;
        let text = fs::read_to_string(&config)?;
        fs::write(&config, format!("{text}\n{}", words.policy))?;
        self.guest_writes("9")?;
        let stamps = "/var/lib/systemd/timers";
        let stamp = format!("{stamps}/stamp-hvbak@nightly.timer");
        self.inside(&["mkdir", "-p", stamps])?;
        self.inside(&["touch", "-d", "2 days ago", &stamp])?;
        // A quarter of an hour is for sites, not for tests.
        self.drop_in("hvbak@nightly.timer", "[Timer]\nRandomizedDelaySec=0\n")?;
        let before = self.points()?;
        for command in words.starting_with(&["systemctl enable"])? {
            println!("$ {command}");
            self.inside(&["sh", "-c", command])?;
        }
        self.ended("hvbak@nightly.service", |result| result == "success")?;
        let new: Vec<Value> =
            self.points()?.into_iter().filter(|point| !before.contains(point)).collect();
        ensure!(new.len() == 1, "the timer made {} points: {new:?}", new.len());
        let level = &new[0]["level"];
        ensure!(level == "incremental", "the timer's point is {level}: {}", new[0]);
        for command in words.starting_with(&["systemctl list-timers"])? {
            for command in command.split(';') {
                println!("$ {}", command.trim());
                let said = self.inside(&["sh", "-c", command])?;
                ensure!(said.contains("hvbak"), "`{command}` shows nothing:\n{said}");
            }
        }
        for unit in ["hvbak-prune", "hvbak-verify", "hvbak-manager-prune"] {
            let unit = format!("{unit}.service");
            self.inside(&["systemctl", "start", &unit])?;
            self.ended(&unit, |result| result == "success")?;
        }
        // Nothing is said of a manager, so its backup fails: "What fails calls /etc/hvbak/on-failure".
        let hook = self.file("/etc/hvbak/on-failure")?;
        fs::write(&hook, "#!/bin/sh\necho \"$1\" >>/var/lib/hvbak/failed\n")?;
        self.inside(&["chmod", "0755", "/etc/hvbak/on-failure"])?;
        let _ = self.inside(&["systemctl", "start", "hvbak-manager.service"]);
        self.ended("hvbak-manager.service", |result| result != "success")?;
        let told = self.file("/var/lib/hvbak/failed")?;
        patiently("on-failure was not called", || {
            fs::read_to_string(&told).is_ok_and(|t| t.trim() == "hvbak-manager.service")
        })
    }

    /// The password as a credential of systemd, and no file that the user hvbak can read.
    fn credential(&self, login: &Login) -> Result<()> {
        fs::copy(&login.password, self.file("/root/engine.pw")?)?;
        self.inside(&["mv", "/etc/hvbak/engine.pw", "/root/away.pw"])?;
        let config = self.file("/etc/hvbak/hvbak.toml")?;
        let text = fs::read_to_string(&config)?;
        let changed = text.replace("\"/etc/hvbak/engine.pw\"", "\"credential:engine\"");
        ensure!(changed != text, "init wrote another password file:\n{text}");
        fs::write(&config, changed)?;
        self.drop_in("hvbak@.service", "[Service]\nLoadCredential=engine:/root/engine.pw\n")?;
        self.inside(&["systemctl", "start", "hvbak@nightly.service"])?;
        self.ended("hvbak@nightly.service", |result| result == "success")?;
        fs::write(&config, text)?;
        self.inside(&["mv", "/root/away.pw", "/etc/hvbak/engine.pw"]).map(drop)
    }

    fn morning(&self, words: &Words, login: &Login) -> Result<()> {
        for command in words.starting_with(&["hvbak restore"])? {
            self.said(command, login)?;
        }
        for disk in ["web1_Disk1", "web1_data"] {
            let image = self.dir.join(disk);
            let read = |vm: &str, rest: &str| {
                let mut read = self.lab_command("guest-read");
                read.args(["--vm", vm, "--disk", disk, rest]).arg(&image);
                output(&mut read)
            };
            read("web1", "--output")?;
            read("web1-try", "--compare")?;
        }
        println!("web1 and web1-try are the same");
        Ok(())
    }

    /// Programs and units go; state stays, and it is said where.
    fn remove(&self) -> Result<()> {
        let command = "dnf -y --noplugins --disablerepo=* remove --noautoremove hvbak hvbak-worker";
        println!("$ {command}");
        let said = self.inside(&["sh", "-c", command])?;
        for words in ["/etc/hvbak stays", "/var/lib/hvbak stays", "user hvbak stays", "--revoke"] {
            ensure!(said.contains(words), "`{words}` is not said:\n{said}");
        }
        let timers =
            self.inside(&["systemctl", "list-timers", "--all", "--no-legend", "hvbak*"])?;
        ensure!(timers.is_empty(), "timers go on without a program:\n{timers}");
        let left = self.inside(&[
            "find",
            "/etc",
            "/usr",
            "/var",
            "/run",
            "/backup",
            "-xdev",
            "-iname",
            "*hvbak*",
            "-not",
            "-path",
            "/var/cache/*",
            "-not",
            "-path",
            "/var/lib/dnf/*",
            "-not",
            "-path",
            "/backup/hvbak/*",
            "-not",
            "-path",
            "/var/log/*",
        ])?;
        let left: BTreeSet<&str> = left.lines().collect();
        let state: BTreeSet<&str> = [
            "/backup/hvbak",
            "/etc/hvbak",
            "/etc/hvbak/hvbak.toml",
            "/etc/hvbak/id_hvbak",
            "/etc/hvbak/id_hvbak.pub",
            "/var/lib/hvbak",
            // What was written by hand, and systemd's own notes of when timers ran.
            "/etc/systemd/system/hvbak@.service.d",
            "/etc/systemd/system/hvbak@nightly.timer.d",
        ]
        .into();
        let strange: Vec<&&str> = left
            .difference(&state)
            .filter(|path| !path.starts_with("/var/lib/systemd/timers/"))
            .collect();
        ensure!(strange.is_empty(), "left behind: {strange:?}");
        ensure!(left.contains("/backup/hvbak"), "the repository is gone: {left:?}");
        Ok(())
    }

    fn drop_in(&self, unit: &str, text: &str) -> Result<()> {
        let folder = format!("/etc/systemd/system/{unit}.d");
        self.inside(&["mkdir", "-p", &folder])?;
        fs::write(self.file(&format!("{folder}/walk.conf"))?, text)?;
        self.inside(&["systemctl", "daemon-reload"]).map(drop)
    }

    fn points(&self) -> Result<Vec<Value>> {
        let said = self.inside(&["runuser", "-u", "hvbak", "--", "hvbak", "--json", "points"])?;
        let lines = said.lines().map(|line| serde_json::from_str(line).context("points as JSON"));
        let lines: Vec<Value> = lines.collect::<Result<_>>()?;
        Ok(lines.into_iter().filter(|line| line["type"] == "point").collect())
    }

    /// Waits until a unit has run and ended, and judges its result.
    fn ended(&self, unit: &str, good: impl Fn(&str) -> bool) -> Result<()> {
        let show = |what: &str| {
            let property = format!("--property={what}");
            self.inside(&["systemctl", "show", "--value", &property, unit])
                .map(|text| text.trim().to_owned())
        };
        patiently(&format!("{unit} does not end"), || {
            let ran = show("ExecMainExitTimestampMonotonic").is_ok_and(|at| at != "0");
            let idle = show("ActiveState").is_ok_and(|s| s == "inactive" || s == "failed");
            ran && idle
        })?;
        let result = show("Result")?;
        ensure!(good(&result), "{unit} ended with `{result}`");
        Ok(())
    }
}

struct Login {
    url: String,
    ca: PathBuf,
    password: PathBuf,
    key: PathBuf,
}

impl Login {
    fn of(up: &Value) -> Result<Self> {
        let text = |key: &str| {
            up[key].as_str().map(str::to_owned).with_context(|| format!("the lab says no {key}"))
        };
        Ok(Self {
            url: text("engine_url")?,
            ca: text("ca_file")?.into(),
            password: text("password_file")?.into(),
            key: text("bootstrap_key")?.into(),
        })
    }
}

/// What a README says: the commands in a section's indented blocks, and its policy.
struct Words {
    commands: Vec<String>,
    policy: String,
}

impl Words {
    fn read(readme: &str) -> Result<Self> {
        let (_, rest) = readme.split_once(SECTION).context("the README has no such section")?;
        let section = rest.split("\n## ").next().unwrap_or_default();
        let mut commands: Vec<String> = Vec::new();
        let mut goes_on = false;
        for line in section.lines().filter(|line| line.starts_with("       ")) {
            let words = line.trim().trim_end_matches('\\').trim_end();
            match commands.last_mut().filter(|_| goes_on) {
                Some(command) => *command = format!("{command} {words}"),
                None => commands.push(words.to_owned()),
            }
            goes_on = line.ends_with('\\');
        }
        let blocks = section.split("```toml\n").skip(1);
        let policy = blocks
            .filter_map(|block| block.split("```").next())
            .find(|block| block.contains("[policy.nightly]"))
            .context("the README has no policy `nightly`")?;
        // The walk is by day, and its guest has no sshd.
        let policy: String = policy
            .lines()
            .filter(|line| !line.starts_with("windows") && !line.starts_with("commands"))
            .map(|line| format!("{line}\n"))
            .collect();
        Ok(Self { commands, policy })
    }

    /// Those that begin so, in the README's order; each beginning must be there.
    fn starting_with(&self, heads: &[&str]) -> Result<Vec<&str>> {
        for head in heads {
            ensure!(
                self.commands.iter().any(|c| c.starts_with(head)),
                "the README has no `{head}`"
            );
        }
        let wanted = |command: &&String| heads.iter().any(|head| command.starts_with(head));
        Ok(self.commands.iter().filter(wanted).map(String::as_str).collect())
    }
}

fn output(command: &mut Command) -> Result<String> {
    let said = command.output().with_context(|| format!("start {:?}", command.get_program()))?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let bad = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.success(), "{}\n{text}{bad}", said.status);
    Ok(text)
}

/// Two minutes, which a busy machine may need.
fn patiently(otherwise: &str, mut seen: impl FnMut() -> bool) -> Result<()> {
    let end = Instant::now() + Duration::from_mins(2);
    while !seen() {
        ensure!(Instant::now() < end, "{otherwise}");
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}
