//! A lab of its own for a test, as a user starts it; it ends with the test.
#![allow(dead_code, reason = "each test program uses a part")]

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

pub const LAB: &str = env!("CARGO_BIN_EXE_hvbak-lab");
pub const MIB: u64 = 1 << 20;

/// Runs a program to its end; it must succeed.
pub fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// Waits for something that takes a moment.
pub fn wait(what: &str, mut reached: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !reached() {
        assert!(Instant::now() < end, "{what} does not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `qemu-img info` of a volume.
pub fn info(path: &Path) -> Value {
    let out = run(Command::new("qemu-img").args(["info", "-U", "--output", "json"]).arg(path));
    serde_json::from_str(&out).unwrap()
}

/// Whether qemu-img finds two images equal: format and path of each.
pub fn assert_same(one: (&str, &Path), two: (&str, &Path)) {
    let mut compare = Command::new("qemu-img");
    compare.args(["compare", "-U", "-f", one.0, "-F", two.0]).arg(one.1).arg(two.1);
    run(&mut compare);
}

/// A running lab.
pub struct Lab {
    pub about: Value,
    pub dir: TempDir,
    token: String,
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = Command::new(LAB).arg("down").arg("--dir").arg(self.dir.path()).output();
    }
}

impl Lab {
    /// Starts a lab with a seed and more arguments of `up`.
    pub fn up(seed: Option<Value>, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut up = Command::new(LAB);
        up.args(["up", "--detach", "--delay-ms", "20", "--dir"]).arg(dir.path()).args(more);
        if let Some(seed) = seed {
            let file = dir.path().join("seed.json");
            std::fs::write(&file, seed.to_string()).unwrap();
            up.arg("--seed").arg(file);
        }
        let mut lab = Self { about: Value::Null, dir, token: String::new() };
        lab.about = serde_json::from_str(&run(&mut up)).unwrap();
        lab.token = lab.log_in();
        lab
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    fn curl(&self) -> Command {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--cacert"]).arg(self.path("ca.pem"));
        curl
    }

    fn log_in(&self) -> String {
        let url = self.about["engine_url"].as_str().unwrap();
        let password = std::fs::read_to_string(self.path("engine.password")).unwrap();
        let mut curl = self.curl();
        curl.args(["-H", "Accept: application/json", "-d", "grant_type=password"]);
        curl.args(["-d", "scope=ovirt-app-api", "-d", "username=admin@internal", "-d"]);
        curl.arg(format!("password={}", password.trim()));
        curl.arg(url.replace("/api", "/sso/oauth/token"));
        let answer: Value = serde_json::from_str(&run(&mut curl)).unwrap();
        answer["access_token"].as_str().unwrap().to_owned()
    }

    /// One request of the API: status and body.
    pub fn api(&self, method: &str, path: &str, body: Option<&str>) -> (u16, String) {
        let mut curl = self.curl();
        curl.args(["-X", method, "-w", "\n%{http_code}", "-H"]);
        curl.arg(format!("Authorization: Bearer {}", self.token));
        if let Some(body) = body {
            curl.args(["-H", "Content-Type: application/xml", "-d", body]);
        }
        let out = run(curl.arg(format!("{}{path}", self.about["engine_url"].as_str().unwrap())));
        let (body, status) = out.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), body.to_owned())
    }

    /// What the lab holds.
    pub fn state(&self) -> Value {
        let out = run(Command::new(LAB).args(["state", "--dir"]).arg(self.dir.path()));
        serde_json::from_str(&out).unwrap()
    }

    /// The VM of that name.
    pub fn vm(&self, name: &str) -> Value {
        let state = self.state();
        let vms = state["vms"].as_array().unwrap();
        vms.iter().find(|v| v["name"] == name).unwrap_or_else(|| panic!("no VM {name}")).clone()
    }

    /// Path and volumes of a disk.
    pub fn locate(&self, vm: &str, disk: &str) -> Value {
        serde_json::from_str(&self.guest("locate", vm, disk, &[])).unwrap()
    }

    pub fn guest(&self, verb: &str, vm: &str, disk: &str, more: &[&str]) -> String {
        let mut command = Command::new(LAB);
        command.args([verb, "--vm", vm, "--disk", disk, "--dir"]).arg(self.dir.path());
        run(command.args(more))
    }

    /// Makes a snapshot and waits for it; gives its id.
    pub fn snapshot(&self, vm: &str, description: &str) -> String {
        let id = self.vm(vm)["id"].as_str().unwrap().to_owned();
        let body = format!(
            "<snapshot><description>{description}</description><persist_memorystate>false</persist_memorystate></snapshot>"
        );
        let (status, answer) = self.api("POST", &format!("/vms/{id}/snapshots"), Some(&body));
        assert_eq!(status, 202, "{answer}");
        let doc = roxmltree::Document::parse(&answer).unwrap();
        let made = doc.root_element().attribute("id").unwrap().to_owned();
        wait(description, || self.snapshot_of(vm, &made).is_some_and(|x| x["status"] == "ok"));
        made
    }

    pub fn snapshot_of(&self, vm: &str, id: &str) -> Option<Value> {
        let vm = self.vm(vm);
        vm["snapshots"].as_array().unwrap().iter().find(|x| x["id"] == id).cloned()
    }

    /// Deletes a snapshot and waits until it is gone.
    pub fn delete_snapshot(&self, vm: &str, id: &str) {
        let owner = self.vm(vm)["id"].as_str().unwrap().to_owned();
        let path = format!("/vms/{owner}/snapshots/{id}");
        let (status, answer) = self.api("DELETE", &path, None);
        assert_eq!(status, 200, "{answer}");
        wait("the deletion", || match self.snapshot_of(vm, id) {
            None => true,
            Some(x) => {
                assert_eq!(x["status"], "locked", "the merge failed");
                false
            }
        });
    }

    /// The volume that a snapshot owns of a disk.
    pub fn owned(&self, vm: &str, snapshot: &str, disk: &str) -> String {
        let x = self.snapshot_of(vm, snapshot).unwrap();
        let pairs = x["disks"].as_array().unwrap();
        pairs.iter().find(|p| p[0] == disk).unwrap()[1].as_str().unwrap().to_owned()
    }
}

/// One VM with one disk.
pub fn one_vm(running: bool, format: &str, size: u64, domain: &str) -> Value {
    json!({ "vms": [{ "name": "vm", "running": running, "disks": [
        { "alias": "disk", "size": size, "format": format, "domain": domain }
    ]}]})
}

/// A child process that dies with the test.
pub struct Kept(pub Child);

impl Kept {
    pub fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// The first line it prints.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Processes that have a text in their command line.
pub fn processes_with(text: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter(|e| e.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
        .filter_map(|e| std::fs::read(e.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(text))
        .collect()
}
