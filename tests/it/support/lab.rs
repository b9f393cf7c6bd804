//! A lab of a test's own, and what it must look like afterwards.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    bin,
    peers::Mount,
    program::{Run, Started},
    wait_for, worker,
};

/// A running lab: engine, hosts, storage. Down and gone when dropped.
pub struct Lab {
    /// What `up` printed.
    pub up: Value,
    /// What was there at first.
    before: Value,
    /// Goes before the folder it is in.
    _mounts: Vec<Mount>,
    dir: TempDir,
}

/// An inventory that is quick to read: `web1` runs with a raw and a qcow2 disk, `db1` is
/// down, `thin1` stands on a template.
pub fn small() -> Value {
    json!({
        "tags": ["gold"],
        "templates": [{ "name": "base", "disks": [{ "alias": "base_Disk1", "size": 16 << 20, "format": "cow" }] }],
        "vms": [
            { "name": "web1", "running": true, "agent": true, "tags": ["gold"], "nics": 1, "disks": [
                { "alias": "web1_Disk1", "size": 64 << 20, "format": "raw-sparse" },
                { "alias": "web1_data", "size": 48 << 20, "format": "cow" },
            ]},
            { "name": "db1", "nics": 1, "disks": [
                { "alias": "db1_Disk1", "size": 24 << 20, "format": "raw-preallocated" },
            ]},
            { "name": "thin1", "template": "base" },
        ],
    })
}

impl Lab {
    /// One host, one NFS domain, [`small`]; hvbak is set up and enrolled.
    pub fn standard() -> Self {
        let lab = Self::bare(&small(), &["--hosts", "1", "--domains", "nfs"]);
        lab.enrol();
        lab
    }

    /// The same with an inventory of the test's.
    pub fn with(seed: &Value) -> Self {
        let lab = Self::bare(seed, &["--hosts", "1", "--domains", "nfs"]);
        lab.enrol();
        lab
    }

    /// A lab that hvbak has not met.
    pub fn bare(seed: &Value, options: &[&str]) -> Self {
        // Socket paths end at 107 bytes, so the folder must have a short name.
        let dir = tempfile::Builder::new().prefix("hvbak-it-").tempdir_in("/tmp");
        Self::at(dir.expect("a folder"), seed, options)
    }

    /// The same in a folder that the test has prepared; the lab's own is `lab` in it.
    pub fn at(dir: TempDir, seed: &Value, options: &[&str]) -> Self {
        Self::mounted(dir, seed, options, Vec::new())
    }

    /// The same with things mounted in that folder, which go before it.
    pub fn mounted(dir: TempDir, seed: &Value, options: &[&str], mounts: Vec<Mount>) -> Self {
        let file = dir.path().join("seed.json");
        fs::write(&file, seed.to_string()).expect("the seed");
        let mut command = Command::new(bin("hvbak-lab"));
        command.args(["up", "--detach", "--delay-ms", "20", "--dir"]).arg(dir.path().join("lab"));
        command.arg("--seed").arg(&file).args(options);
        let run = Started::new(&mut command).wait().exits(0);
        let up = serde_json::from_str(&run.stdout).unwrap_or_else(|e| panic!("{e}: {run}"));
        let mut lab = Self { up, before: Value::Null, _mounts: mounts, dir };
        lab.before = lab.state();
        lab
    }

    /// Repository, key, host.
    pub fn enrol(&self) {
        self.hvbak(&["init"]).exits(0);
        let key = self.path("bootstrap_key");
        self.hvbak(&["enroll", "--all", "--bootstrap-key", key.to_str().unwrap_or("")]).exits(0);
    }

    /// A file of the lab.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("lab").join(name)
    }

    /// A place for the test's own files.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The program as a command, ready to be changed.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(bin("hvbak"));
        command.arg("--config").arg(self.path("hvbak.toml")).args(args);
        command.env("HVBAK_WORKER", worker()).env_remove("HVBAK_CONFIG").env_remove("HVBAK_LOG");
        command
    }

    /// Runs hvbak to its end.
    pub fn hvbak(&self, args: &[&str]) -> Run {
        self.start(args).wait()
    }

    /// Runs hvbak with `--json`; checks that the last line is the result.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Run {
        let run = self.hvbak(&[&["--json"], args].concat());
        run.result();
        run
    }

    /// Starts hvbak.
    pub fn start(&self, args: &[&str]) -> Started {
        Started::new(&mut self.command(args))
    }

    /// Starts hvbak with a journal that is watched: returns when `reached` says so.
    pub fn start_until(&self, args: &[&str], reached: impl Fn(&Self) -> bool) -> Started {
        let mut started = self.start(args);
        wait_for("the moment", || reached(self) || started.ended());
        started
    }

    /// Runs hvbak on a terminal, where these lines are typed.
    #[track_caller]
    pub fn typed(&self, args: &[&str], lines: &[&str]) -> Run {
        let file = self.scratch("typed");
        fs::write(&file, lines.join("\n") + "\n").expect("what is typed");
        let hvbak = self.command(args);
        let words: Vec<_> = std::iter::once(hvbak.get_program())
            .chain(hvbak.get_args())
            .map(|word| format!("'{}'", word.to_str().expect("a word")))
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

    /// Runs `hvbak-lab COMMAND --dir LAB ARGS…`, which must succeed.
    #[track_caller]
    pub fn lab(&self, command: &str, args: &[&str]) -> String {
        let mut lab = Command::new(bin("hvbak-lab"));
        lab.arg(command).arg("--dir").arg(self.dir.path().join("lab")).args(args);
        Started::new(&mut lab).wait().exits(0).stdout
    }

    /// Orders a fault: `&["operation", "snapshot-fails"]`.
    #[track_caller]
    pub fn fault(&self, args: &[&str]) {
        self.lab("fault", args);
    }

    /// Asks the engine as another client would; gives the answer's text.
    #[track_caller]
    pub fn api(&self, method: &str, path: &str, body: &str) -> String {
        let password = fs::read_to_string(self.path("engine.password")).expect("the password");
        let form = format!(
            "grant_type=password&scope=ovirt-app-api&username={}&password={}",
            self.up["username"].as_str().unwrap_or("").replace('@', "%40"),
            password.trim()
        );
        let url = self.up["engine_url"].as_str().unwrap_or("");
        let sso = url.replace("/api", "/sso/oauth/token");
        let answer = self
            .curl(&["--header", "Accept: application/json", "--data-binary", "@-", &sso], &form);
        let token: Value = serde_json::from_str(&answer).expect("a token");
        let token =
            format!("Authorization: Bearer {}", token["access_token"].as_str().unwrap_or(""));
        let url = format!("{url}{path}");
        let mut args =
            vec!["--request", method, "--header", &token, "--header", "Accept: application/xml"];
        if !body.is_empty() {
            args.extend(["--header", "Content-Type: application/xml", "--data-binary", "@-"]);
        }
        args.push(&url);
        self.curl(&args, body)
    }

    #[track_caller]
    fn curl(&self, args: &[&str], input: &str) -> String {
        let file = self.scratch("curl.in");
        fs::write(&file, input).expect("curl's input");
        let args: Vec<_> = args
            .iter()
            .map(|a| if *a == "@-" { format!("@{}", file.display()) } else { (*a).to_owned() })
            .collect();
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail", "--cacert"])
            .arg(self.path("ca.pem"))
            .args(args);
        Started::new(&mut curl).wait().exits(0).stdout
    }

    /// The id of a VM.
    #[track_caller]
    pub fn vm_id(&self, name: &str) -> String {
        let state = self.state();
        let vm =
            state["vms"].as_array().and_then(|l| l.iter().find(|v| v["name"] == name).cloned());
        vm.unwrap_or_else(|| panic!("no VM {name}"))["id"].as_str().expect("an id").to_owned()
    }

    /// What the lab says of a disk.
    #[track_caller]
    pub fn disk(&self, alias: &str) -> Value {
        let state = self.state();
        let mut disks = state["disks"].as_array().into_iter().flatten();
        disks.find(|d| d["alias"] == alias).unwrap_or_else(|| panic!("no disk {alias}")).clone()
    }

    /// Makes a snapshot that is not hvbak's.
    pub fn foreign_snapshot(&self, vm: &str, description: &str) {
        let path = format!("/vms/{}/snapshots", self.vm_id(vm));
        let body = format!(
            "<snapshot><description>{description}</description><persist_memorystate>false</persist_memorystate></snapshot>"
        );
        self.api("POST", &path, &body);
        wait_for("the foreign snapshot", || {
            let state = self.state();
            let vms = state["vms"].as_array().cloned().unwrap_or_default();
            vms.iter()
                .flat_map(|v| v["snapshots"].as_array().cloned().unwrap_or_default())
                .any(|s| s["description"] == description && s["status"] == "ok")
        });
    }

    /// A snapshot of a VM by its description.
    pub fn find_snapshot(&self, vm: &str, description: &str) -> Option<Value> {
        let state = self.state();
        let vm = state["vms"].as_array()?.iter().find(|v| v["name"] == vm)?;
        vm["snapshots"].as_array()?.iter().find(|s| s["description"] == description).cloned()
    }

    /// The same for one that must be there.
    #[track_caller]
    pub fn snapshot(&self, vm: &str, description: &str) -> Value {
        let found = self.find_snapshot(vm, description);
        found.unwrap_or_else(|| panic!("no snapshot `{description}`"))
    }

    /// Deletes a snapshot as an administrator would, and waits for the merge.
    #[track_caller]
    pub fn delete_snapshot(&self, vm: &str, description: &str) {
        let id = self.snapshot(vm, description)["id"].as_str().expect("an id").to_owned();
        self.api("DELETE", &format!("/vms/{}/snapshots/{id}", self.vm_id(vm)), "");
        wait_for("the merge", || self.find_snapshot(vm, description).is_none());
    }

    /// Somebody deletes a running VM's snapshot, and the merge fails when the older volume
    /// has everything already: the snapshot is there again with more in it.
    #[track_caller]
    pub fn delete_snapshot_in_vain(&self, vm: &str, description: &str) {
        self.fault(&["operation", "merge-breaks"]);
        let id = self.snapshot(vm, description)["id"].as_str().expect("an id").to_owned();
        self.api("DELETE", &format!("/vms/{}/snapshots/{id}", self.vm_id(vm)), "");
        wait_for("the merge's end", || self.snapshot(vm, description)["status"] == "ok");
    }

    /// Asks the engine to do something with a VM.
    #[track_caller]
    pub fn act(&self, vm: &str, action: &str, body: &str) {
        let path = format!("/vms/{}/{action}", self.vm_id(vm));
        self.api("POST", &path, &format!("<action>{body}</action>"));
    }

    /// Waits for a VM's status.
    pub fn await_status(&self, vm: &str, wanted: &str) {
        wait_for("the VM's state", || {
            let state = self.state();
            let mut vms = state["vms"].as_array().into_iter().flatten();
            vms.any(|v| v["name"] == vm && v["status"] == wanted)
        });
    }

    /// What the lab holds.
    pub fn state(&self) -> Value {
        serde_json::from_str(&self.lab("state", &[])).expect("the lab's state")
    }

    /// Writes as the guest.
    pub fn write(&self, vm: &str, disk: &str, offset: u64, length: u64, pattern: u8) {
        let (offset, length) = (offset.to_string(), length.to_string());
        let args = ["--vm", vm, "--disk", disk, "--offset", &offset, "--length", &length];
        self.lab("guest-write", &[&args[..], &["--pattern", &pattern.to_string()]].concat());
    }

    /// Writes bytes that do not compress, made from a seed.
    pub fn write_noise(&self, vm: &str, disk: &str, offset: u64, length: usize) {
        let file = self.scratch("noise");
        fs::write(&file, noise(offset ^ length as u64, length)).expect("the noise");
        let args = ["--vm", vm, "--disk", disk, "--offset", &offset.to_string(), "--file"];
        self.lab("guest-write", &[&args[..], &[file.to_str().unwrap_or("")]].concat());
    }

    /// Saves what the guest sees now.
    pub fn save(&self, vm: &str, disk: &str) -> PathBuf {
        let file = self.scratch(&format!("{vm}-{disk}.raw"));
        let args = ["--vm", vm, "--disk", disk, "--output", file.to_str().unwrap_or("")];
        self.lab("guest-read", &args);
        file
    }

    /// Asserts, by `qemu-img compare`, that the guest sees an image's content.
    #[track_caller]
    pub fn same(&self, vm: &str, disk: &str, image: &Path) {
        let args = ["--vm", vm, "--disk", disk, "--compare", image.to_str().unwrap_or("")];
        self.lab("guest-read", &args);
    }

    /// Paths of a disk's volumes, the top one first.
    pub fn volumes(&self, vm: &str, disk: &str) -> Vec<PathBuf> {
        let text = self.lab("locate", &["--vm", vm, "--disk", disk]);
        let found: Value = serde_json::from_str(&text).expect("where the disk is");
        let paths = found["paths"].as_array().cloned().unwrap_or_default();
        paths.iter().filter_map(|p| p.as_str()).map(PathBuf::from).collect()
    }

    /// LVs of disks that are active on a host of a block domain.
    pub fn active_volumes(&self, host: &str) -> String {
        self.lab("active", &["--host", host])
    }

    /// Data on both disks of `web1`, each kind of it: patterns, noise, zeros, a discard.
    pub fn fill_web1(&self) {
        self.write("web1", "web1_Disk1", 1 << 20, 5 << 20, 0xab);
        self.write_noise("web1", "web1_Disk1", (20 << 20) + 512, 6 << 20);
        self.write("web1", "web1_Disk1", (64 << 20) - 1024, 1024, 0x11);
        self.write_noise("web1", "web1_data", 66_048, 4 << 20);
        self.write("web1", "web1_data", 40 << 20, 3 << 20, 7);
        let at =
            ["--vm", "web1", "--disk", "web1_data", "--offset", "1048576", "--length", "1048576"];
        self.lab("guest-discard", &at);
    }

    /// A file of `hvbak.toml` is changed by text.
    pub fn configure(&self, change: impl FnOnce(String) -> String) {
        let file = self.path("hvbak.toml");
        let text = fs::read_to_string(&file).expect("the configuration");
        fs::write(&file, change(text)).expect("the configuration");
    }

    /// The folder of the only stored point of a VM.
    #[track_caller]
    pub fn point(&self, vm: &str) -> PathBuf {
        let shown = self.json(&["show", vm]).exits(0);
        PathBuf::from(shown.result()["path"].as_str().expect("a path"))
    }

    /// Names of all VMs in the engine.
    pub fn vm_names(&self) -> Vec<String> {
        names(&self.state()["vms"], "name")
    }

    /// Ids of all points in the repository's tree, half-made ones included.
    pub fn points(&self) -> Vec<String> {
        let vms = self.path("repository").join("vms");
        let list = |dir: &Path| -> Vec<PathBuf> {
            fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect()
        };
        let points = list(&vms).into_iter().flat_map(|vm| list(&vm));
        points.map(|p| p.file_name().unwrap_or_default().to_string_lossy().into_owned()).collect()
    }

    /// Nothing of hvbak's is left in engine, hosts and repository.
    #[track_caller]
    pub fn assert_clean(&self) {
        self.assert_clean_but(&[]);
    }

    /// The same, with VMs that a restore was asked to make.
    #[track_caller]
    pub fn assert_clean_but(&self, restored: &[&str]) {
        let left = self.leftovers(restored);
        assert!(left.is_empty(), "left behind: {left:#?}");
    }

    /// Descriptions of hvbak's snapshots of a VM.
    pub fn own_snapshots(&self, vm: &str) -> Vec<String> {
        let state = self.state();
        let found = state["vms"].as_array().into_iter().flatten().find(|v| v["name"] == vm);
        own_snapshots(found.expect("no such VM"))
    }

    /// The description of the snapshot that the newest point of a VM has kept.
    fn newest_kept(&self, vm: &str) -> Option<String> {
        let folder = self.path("repository").join("vms").join(vm);
        let mut points: Vec<_> = fs::read_dir(folder).ok()?.flatten().map(|e| e.path()).collect();
        points.sort();
        points.iter().rev().find_map(|point| {
            let text = fs::read_to_string(point.join("manifest.json")).ok()?;
            let manifest: Value = serde_json::from_str(&text).ok()?;
            let snapshot = &manifest["snapshot"];
            let text = snapshot["description"].as_str()?;
            (snapshot["kept"] == true).then(|| text.to_owned())
        })
    }

    /// What is left behind, in words.
    pub fn leftovers(&self, restored: &[&str]) -> Vec<String> {
        let mut left = Vec::new();
        let (old, new) = (&self.before, self.state());
        let mut disks = names(&old["disks"], "id");
        for vm in new["vms"].as_array().into_iter().flatten() {
            let name = vm["name"].as_str().unwrap_or("");
            if restored.contains(&name) {
                disks.extend(
                    vm["disks"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(|d| d.as_str())
                        .map(str::to_owned),
                );
            } else if !names(&old["vms"], "name").iter().any(|n| n == name) {
                left.push(format!("VM {name}"));
            }
            if vm["frozen"] == true {
                left.push(format!("{name} is frozen"));
            }
            let mut own = own_snapshots(vm);
            // One stays: that of the newest point that says so.
            let wanted = self.newest_kept(vm["id"].as_str().unwrap_or(""));
            own.retain(|text| Some(text) != wanted.as_ref());
            left.extend(own.iter().map(|text| format!("snapshot `{text}` of {name}")));
        }
        for template in new["templates"].as_array().into_iter().flatten() {
            let name = template["name"].as_str().unwrap_or("");
            if restored.contains(&name) {
                let own = template["disks"].as_array().into_iter().flatten();
                disks.extend(own.filter_map(|d| d.as_str()).map(str::to_owned));
            } else if !names(&old["templates"], "name").iter().any(|n| n == name) {
                left.push(format!("template {name}"));
            }
        }
        let extra = names(&new["disks"], "id").into_iter().filter(|d| !disks.contains(d));
        left.extend(extra.map(|d| format!("disk {d}")));
        for host in self.up["hosts"].as_array().into_iter().flatten() {
            left.extend(on_host(Path::new(host["root"].as_str().unwrap_or("/nowhere"))));
        }
        left.extend(in_repository(&self.path("repository")));
        left
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let mut down = Command::new(bin("hvbak-lab"));
        down.args(["down", "--dir"]).arg(self.dir.path().join("lab"));
        let told = down.output().is_ok_and(|o| o.status.success());
        let pid = self.up["pid"].as_i64().unwrap_or(0);
        // The number may be another's by now.
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if !told && name.trim() == "hvbak-lab" {
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGTERM);
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("lab.log")).unwrap_or_default();
            let tail: Vec<_> = log.lines().rev().take(15).collect();
            eprintln!("the lab's log ended with:");
            tail.iter().rev().for_each(|l| eprintln!("  {l}"));
        }
    }
}

fn own_snapshots(vm: &Value) -> Vec<String> {
    let all = vm["snapshots"].as_array().into_iter().flatten();
    let texts = all.filter_map(|s| s["description"].as_str());
    texts.filter(|t| t.starts_with("hvbak:")).map(str::to_owned).collect()
}

/// Workers, by their program's path or their files.
fn on_host(root: &Path) -> Vec<String> {
    let mut left = Vec::new();
    for entry in fs::read_dir(root.join("run")).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.contains("hvbak") {
            left.push(format!("{} on the host", entry.path().display()));
        }
    }
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        // A deleted program still shows its path.
        let Ok(exe) = fs::read_link(process.path().join("exe")) else { continue };
        if exe.starts_with(root) {
            left.push(format!(
                "process {} of {}",
                process.file_name().to_string_lossy(),
                exe.display()
            ));
        }
    }
    left
}

fn in_repository(root: &Path) -> Vec<String> {
    let mut left = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if name.starts_with(".partial") || name.contains(".tmp") || folder.ends_with("journal")
            {
                left.push(path.display().to_string());
            } else if path.is_dir() {
                folders.push(path);
            }
        }
    }
    left
}

fn names(list: &Value, key: &str) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(|v| v[key].as_str()).map(str::to_owned).collect()
}

/// Bytes without a pattern, the same for the same seed (xorshift).
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes.extend_from_slice(&x.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A recorded engine, served over HTTPS.
pub struct Replay {
    _server: Started,
    dir: TempDir,
}

impl Replay {
    /// Serves a set of `tests/fixtures/engine-api`.
    pub fn of(set: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/engine-api");
        let mut command = Command::new(bin("hvbak-lab"));
        command.args(["replay", "--dir"]).arg(fixtures.join(set)).arg("--out").arg(dir.path());
        let server = Started::new(&mut command);
        let config = dir.path().join("hvbak.toml");
        wait_for("the replay's configuration", || config.is_file());
        Self { _server: server, dir }
    }

    /// Runs hvbak against it.
    pub fn hvbak(&self, args: &[&str]) -> Run {
        let mut command = Command::new(bin("hvbak"));
        command.arg("--config").arg(self.dir.path().join("hvbak.toml")).args(args);
        Started::new(&mut command).wait()
    }
}
