//! hvbak in a lab with one VM of one disk, and how its work is timed.
//!
//! The lab and its directory are gone when this is dropped.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    measure::{self, Line, Usage},
    report::Sample,
};

/// How the lab's disk is made, and what hvbak leaves on the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A preallocated raw file; no snapshot stays, so that each round meets the same file.
    Raw,
    /// A qcow2 file; the snapshot of the last point stays.
    Layers,
}

const VM: &str = "bench";
const DISK: &str = "bench_Disk1";

/// A running lab.
pub struct Lab {
    dir: PathBuf,
    bin: PathBuf,
    worker: PathBuf,
    up: Value,
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.tool().arg("down").arg("--dir").arg(&self.dir).status();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Lab {
    /// Starts a lab whose disk holds a copy of `image`, and enrols its host.
    pub fn up(bin: &Path, worker: &Path, dir: &Path, image: &Path, kind: Kind) -> Result<Self> {
        let format = if kind == Kind::Raw { "raw-preallocated" } else { "cow" };
        let disk = json!({ "alias": DISK, "format": format, "image": image });
        let keep = kind == Kind::Layers;
        let config = format!("[backup]\nkeep_snapshot = {keep}\n");
        Self::of(bin, worker, dir, &json!([{ "name": VM, "disks": [disk], "nics": 1 }]), &config)
    }

    /// Starts a lab whose disk is empty and qcow2.
    pub fn empty(bin: &Path, worker: &Path, dir: &Path, size: u64) -> Result<Self> {
        let disk = json!({ "alias": DISK, "format": "cow", "size": size });
        Self::of(bin, worker, dir, &json!([{ "name": VM, "disks": [disk] }]), "")
    }

    /// Starts a lab of these VMs, adds to hvbak's configuration, and enrols the host.
    pub fn of(bin: &Path, worker: &Path, dir: &Path, vms: &Value, config: &str) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let seed = dir.join("seed.json");
        fs::write(&seed, json!({ "vms": vms }).to_string())?;
        let mut lab = Self {
            dir: dir.to_owned(),
            bin: bin.to_owned(),
            worker: worker.to_owned(),
            up: Value::Null,
        };
        let mut up = lab.tool();
        up.args(["up", "--detach", "--hosts", "1", "--domains", "nfs", "--dir"]).arg(dir);
        let out = up.arg("--seed").arg(&seed).output().context("start hvbak-lab")?;
        let said = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success(), "the lab did not start: {said}");
        lab.up = serde_json::from_slice(&out.stdout).context("the lab's answer")?;
        lab.configure(config)?;
        lab.hvbak(&["init"])?;
        let key = lab.text("/bootstrap_key");
        lab.hvbak(&["enroll", "--all", "--bootstrap-key", &key])?;
        Ok(lab)
    }

    /// Adds to hvbak's configuration.
    pub fn configure(&self, more: &str) -> Result<()> {
        let file = self.dir.join("hvbak.toml");
        let text = fs::read_to_string(&file).context("the lab's configuration")?;
        Ok(fs::write(&file, format!("{text}\n{more}"))?)
    }

    fn tool(&self) -> Command {
        let mut command = Command::new(self.bin.join("hvbak-lab"));
        command.stderr(Stdio::piped());
        command
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.bin.join("hvbak"));
        command.arg("--json").arg("--config").arg(self.dir.join("hvbak.toml")).args(words);
        command.env("HVBAK_WORKER", &self.worker);
        command
    }

    fn hvbak(&self, words: &[&str]) -> Result<(Usage, Vec<Line>)> {
        measure::run(&mut self.command(words), &self.servers(), true)
    }

    fn text(&self, pointer: &str) -> String {
        self.up.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// Processes that stand for the hypervisor: its SSH daemon.
    pub fn servers(&self) -> Vec<u32> {
        let file = PathBuf::from(self.text("/hosts/0/root")).join("run/sshd.pid");
        let pid = fs::read_to_string(file).unwrap_or_default().trim().parse();
        pid.into_iter().collect()
    }

    /// `ssh` to the host, up to where the remote command is written.
    pub fn ssh(&self) -> Command {
        let mut command = Command::new("ssh");
        command.args(["-F", "none", "-c", "aes128-gcm@openssh.com"]);
        for option in [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "IdentitiesOnly=yes",
            "BatchMode=yes",
            "LogLevel=ERROR",
        ] {
            command.args(["-o", option]);
        }
        let port = self.up.pointer("/hosts/0/port").and_then(Value::as_u64).unwrap_or(0);
        command.args(["-p", &port.to_string(), "-i", &self.text("/hosts/0/key")]);
        command.args(["-l", &self.text("/hosts/0/user")]);
        command
    }

    /// hvbak's SSH alone: the disk through two connections, forgotten as it comes. `speed`
    /// is the example of that name of `hvbak-ssh`.
    pub fn transport(&self, speed: &Path, size: u64) -> Result<Sample> {
        let port = self.up.pointer("/hosts/0/port").and_then(Value::as_u64).unwrap_or(0);
        let mut command = Command::new(speed);
        command.arg(self.address()).arg(port.to_string()).arg(self.text("/hosts/0/user"));
        command.arg(self.text("/hosts/0/key")).args(["down", &(size >> 20).to_string(), "2"]);
        command.env("FILE", self.volume()?).stderr(Stdio::null());
        let (usage, _) = measure::run(&mut command, &self.servers(), true)?;
        let name = super::report::TRANSPORT.into();
        Ok(Sample { name, usage, wire: Some(size), ..Sample::default() })
    }

    /// Where the host is.
    pub fn address(&self) -> String {
        self.text("/hosts/0/address")
    }

    /// The file that the VM writes.
    pub fn volume(&self) -> Result<PathBuf> {
        Ok(self.locate(VM)?.0)
    }

    /// The newest layer of a disk, and its format.
    fn look(&self, vm: &str) -> Result<Value> {
        let mut command = self.tool();
        command.args(["locate", "--vm", vm, "--disk", DISK, "--dir"]).arg(&self.dir);
        let out = command.output().context("start hvbak-lab")?;
        ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Ok(serde_json::from_slice(&out.stdout)?)
    }

    fn locate(&self, vm: &str) -> Result<(PathBuf, String)> {
        let found = self.look(vm)?;
        let format = found["format"].as_str().context("no format")?;
        Ok((found["image"].as_str().context("no image")?.into(), format.to_owned()))
    }

    /// The layers of the disk, the newest first.
    pub fn layers(&self) -> Result<Vec<PathBuf>> {
        let found = self.look(VM)?;
        let paths = found["paths"].as_array().context("no paths")?;
        Ok(paths.iter().filter_map(Value::as_str).map(PathBuf::from).collect())
    }

    /// Another program takes a snapshot, so that there is a layer more.
    pub fn foreign_snapshot(&self) -> Result<()> {
        let engine = self.text("/engine_url");
        let password = fs::read_to_string(self.dir.join("engine.password"))?;
        let user = format!("user = {}:{}\n", self.text("/username"), password.trim());
        let config = self.dir.join("curl.conf");
        fs::write(&config, user)?;
        let ask = |words: &[&str]| -> Result<String> {
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--show-error", "--fail", "--basic", "--config"]);
            curl.arg(&config).arg("--cacert").arg(self.dir.join("ca.pem"));
            curl.args(["--header", "Accept: application/xml"]).args(words);
            let out = curl.output().context("start curl")?;
            ensure!(out.status.success(), "curl: {}", String::from_utf8_lossy(&out.stderr));
            Ok(String::from_utf8(out.stdout)?)
        };
        let state = self.tool().arg("state").arg("--dir").arg(&self.dir).output()?;
        let state: Value = serde_json::from_slice(&state.stdout).context("the lab's state")?;
        let id = state.pointer("/vms/0/id").and_then(Value::as_str).context("no VM")?;
        let snapshots = format!("{engine}/vms/{id}/snapshots");
        let body = "<snapshot><description>foreign</description></snapshot>";
        ask(&["--header", "Content-Type: application/xml", "--data", body, &snapshots])?;
        for _ in 0..100 {
            if !ask(&[&snapshots])?.contains("locked") {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        anyhow::bail!("the foreign snapshot stays locked")
    }

    /// Empties the repository of points.
    pub fn forget_points(&self) -> Result<()> {
        let vms = self.dir.join("repository/vms");
        for entry in fs::read_dir(&vms).into_iter().flatten() {
            fs::remove_dir_all(entry?.path())?;
        }
        Ok(())
    }

    /// A backup of this level.
    pub fn backup(&self, level: &str) -> Result<Sample> {
        let (usage, lines) = self.hvbak(&["backup", "--vm", VM, "--level", level])?;
        let story = Story::new(&lines, usage.wall);
        let started = story.event("disk-started").context("no disk-started was told")?;
        ensure!(started.1["level"] == level, "no {level} backup was made: {}", started.1);
        let done = story.event("vm-done").context("no vm-done was told")?;
        // What the engine does to its snapshots, between what is ours.
        let before = "deleting the snapshot of the point before";
        let merge = match story.phase(before) {
            Some(from) => done.0 - from,
            None => story.between("deleting the snapshot", "publishing the point"),
        };
        let snapshot = story.between("taking a snapshot", "opening the disks");
        Ok(Sample {
            stored: done.1["stored_bytes"].as_u64(),
            ..story.sample(usage, (snapshot, merge), "connecting to")?
        })
    }

    /// A plan for all VMs, nothing done.
    pub fn plan(&self) -> Result<Sample> {
        let (usage, lines) = self.hvbak(&["backup", "--all", "--dry-run"])?;
        let told = lines.iter().any(|line| line.1.contains("vm999"));
        ensure!(told, "the plan does not hold all VMs");
        Ok(Sample { name: super::report::HVBAK.into(), usage, ..Sample::default() })
    }

    /// Requests to the engine that such a plan takes.
    pub fn plan_requests(&self) -> Result<usize> {
        let mut command = self.command(&["backup", "--all", "--dry-run"]);
        let out = command.env("HVBAK_LOG", "hvbak_engine=debug").output()?;
        ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let said = String::from_utf8_lossy(&out.stderr);
        Ok(said.lines().filter(|line| line.contains("method=")).count())
    }

    /// A restore as a new VM, every byte read back; gives the new disk's file too.
    pub fn restore(&self, name: &str) -> Result<(Sample, PathBuf)> {
        let point = format!("{VM}@latest");
        let (usage, lines) = self.hvbak(&["restore", &point, "--name", name])?;
        let story = Story::new(&lines, usage.wall);
        let engine = story.between("making disk", "filling disk")
            + story.phase("making VM").map_or(0.0, |from| usage.wall - from);
        let sample = story.sample(usage, (0.0, engine), "filling disk")?;
        let (file, format) = self.locate(name)?;
        ensure!(format == "raw", "the restored disk is no raw file: {format}");
        Ok((sample, file))
    }
}

/// What a job told, and when.
struct Story {
    events: Vec<(f64, Value)>,
    wall: f64,
}

impl Story {
    fn new(lines: &[Line], wall: f64) -> Self {
        let parse = |line: &Line| Some((line.0, serde_json::from_str(&line.1).ok()?));
        Self { events: lines.iter().filter_map(parse).collect(), wall }
    }

    fn event(&self, kind: &str) -> Option<&(f64, Value)> {
        self.events.iter().find(|(_, event)| event["type"] == kind)
    }

    fn phase(&self, start: &str) -> Option<f64> {
        let begins = |v: &Value| v["text"].as_str().is_some_and(|text| text.starts_with(start));
        self.events.iter().find(|(_, v)| v["type"] == "phase" && begins(v)).map(|(at, _)| *at)
    }

    /// Seconds from one phase to another; to the end when that one never came.
    fn between(&self, from: &str, to: &str) -> f64 {
        let Some(from) = self.phase(from) else { return 0.0 };
        (self.phase(to).unwrap_or(self.wall) - from).max(0.0)
    }

    /// `engine`: its seconds between the connecting and the first byte, and elsewhere.
    fn sample(&self, usage: Usage, engine: (f64, f64), connecting: &str) -> Result<Sample> {
        let disk = self.event("disk-done").context("no disk-done was told")?;
        let started = self.event("disk-started").context("no disk-started was told")?.0;
        Ok(Sample {
            name: "hvbak".into(),
            usage,
            engine: engine.0 + engine.1,
            transfer: disk.1["seconds"].as_f64(),
            connect: self.phase(connecting).map(|from| started - from - engine.0),
            wire: disk.1["payload_bytes"].as_u64(),
            stored: None,
        })
    }
}
