//! hvbak in a lab with one VM of one preallocated raw disk, and how its work is timed.
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
    pub fn up(bin: &Path, worker: &Path, dir: &Path, image: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let seed = dir.join("seed.json");
        let disk = json!({ "alias": DISK, "format": "raw-preallocated", "image": image });
        let described = json!({ "vms": [{ "name": VM, "disks": [disk], "nics": 1 }] });
        fs::write(&seed, described.to_string())?;
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
        // Each round is to meet the same raw file again.
        let config = dir.join("hvbak.toml");
        let text = fs::read_to_string(&config).context("the lab's configuration")?;
        fs::write(&config, text + "\n[backup]\nkeep_snapshot = false\n")?;
        lab.hvbak(&["init"])?;
        let key = lab.text("/bootstrap_key");
        lab.hvbak(&["enroll", "--all", "--bootstrap-key", &key])?;
        Ok(lab)
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

    /// Where the host is.
    pub fn address(&self) -> String {
        self.text("/hosts/0/address")
    }

    /// The file of the VM's disk.
    pub fn volume(&self) -> Result<PathBuf> {
        self.locate(VM)
    }

    fn locate(&self, vm: &str) -> Result<PathBuf> {
        let mut command = self.tool();
        command.args(["locate", "--vm", vm, "--disk", DISK, "--dir"]).arg(&self.dir);
        let out = command.output().context("start hvbak-lab")?;
        ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let found: Value = serde_json::from_slice(&out.stdout)?;
        ensure!(found["format"] == "raw", "the disk is no raw file any more: {found}");
        Ok(found["image"].as_str().context("no image")?.into())
    }

    /// Empties the repository of points.
    pub fn forget_points(&self) -> Result<()> {
        let vms = self.dir.join("repository/vms");
        for entry in fs::read_dir(&vms).into_iter().flatten() {
            fs::remove_dir_all(entry?.path())?;
        }
        Ok(())
    }

    /// A full backup.
    pub fn backup(&self) -> Result<Sample> {
        let (usage, lines) = self.hvbak(&["backup", "--vm", VM, "--level", "full"])?;
        let story = Story::new(&lines, usage.wall);
        // What the engine does to its snapshot, between what is ours.
        let engine = story.between("taking a snapshot", "connecting to")
            + story.between("deleting the snapshot", "publishing the point");
        let done = story.event("vm-done").context("no vm-done was told")?;
        Ok(Sample {
            stored: done.1["stored_bytes"].as_u64(),
            ..story.sample(usage, engine, "connecting to")?
        })
    }

    /// A restore as a new VM, every byte read back; gives the new disk's file too.
    pub fn restore(&self, name: &str) -> Result<(Sample, PathBuf)> {
        let point = format!("{VM}@latest");
        let (usage, lines) = self.hvbak(&["restore", &point, "--name", name])?;
        let story = Story::new(&lines, usage.wall);
        let engine = story.between("making disk", "filling disk")
            + story.phase("making VM").map_or(0.0, |from| usage.wall - from);
        let sample = story.sample(usage, engine, "filling disk")?;
        Ok((sample, self.locate(name)?))
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

    fn sample(&self, usage: Usage, engine: f64, connecting: &str) -> Result<Sample> {
        let disk = self.event("disk-done").context("no disk-done was told")?;
        let started = self.event("disk-started").context("no disk-started was told")?.0;
        Ok(Sample {
            name: "hvbak".into(),
            usage,
            engine,
            transfer: disk.1["seconds"].as_f64(),
            connect: self.phase(connecting).map(|from| started - from),
            wire: disk.1["payload_bytes"].as_u64(),
            stored: None,
        })
    }
}
