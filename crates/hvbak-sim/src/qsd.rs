//! A running VM's disks: one `qemu-storage-daemon`, driven over QMP.
//!
//! Live snapshots, locks and live merges are QEMU's own; the guest is whoever writes to
//! the NBD exports. Each layer of a chain is an explicit node named `n-<first 24 hex digits
//! of its volume id>`.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::storage::Domain;

/// A disk that a VM has: where it is and which volume is on top.
#[derive(Debug, Clone)]
pub struct GuestDisk {
    pub disk: Uuid,
    pub domain: Domain,
    pub top: Uuid,
}

/// A running VM.
#[derive(Debug)]
pub struct Running {
    child: Child,
    qmp: UnixStream,
    reader: BufReader<UnixStream>,
    dir: PathBuf,
}

/// QEMU limits node names to 31 characters.
fn node(volume: Uuid) -> String {
    format!("n-{}", &volume.simple().to_string()[..24])
}

/// The export of a disk follows its top node through snapshots.
fn export_id(disk: Uuid) -> String {
    format!("e-{}", &disk.simple().to_string()[..24])
}

impl Running {
    /// Starts the daemon in `dir` and opens the disks.
    pub fn start(dir: &Path, disks: &[GuestDisk]) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let socket = dir.join("qmp.sock");
        let _ = fs::remove_file(&socket);
        let log = fs::File::create(dir.join("qsd.log"))?;
        let mut child = Command::new("qemu-storage-daemon")
            .args([
                "--chardev",
                &format!("socket,id=c,path={},server=on,wait=off", socket.display()),
            ])
            .args(["--monitor", "chardev=c"])
            .arg("--pidfile")
            .arg(dir.join("qsd.pid"))
            .args([
                "--nbd-server",
                &format!(
                    "addr.type=unix,addr.path={},max-connections=0",
                    dir.join("nbd.sock").display()
                ),
            ])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start qemu-storage-daemon")?;
        let deadline = Instant::now() + Duration::from_secs(10);
        let qmp = loop {
            if let Ok(stream) = UnixStream::connect(&socket) {
                break stream;
            }
            if let Some(status) = child.try_wait()? {
                bail!(
                    "qemu-storage-daemon ended: {status}: {}",
                    fs::read_to_string(dir.join("qsd.log"))?
                );
            }
            ensure!(Instant::now() < deadline, "qemu-storage-daemon does not answer");
            std::thread::sleep(Duration::from_millis(10));
        };
        qmp.set_read_timeout(Some(Duration::from_secs(120)))?;
        let reader = BufReader::new(qmp.try_clone()?);
        let mut running = Self { child, qmp, reader, dir: dir.to_owned() };
        running.line()?; // greeting
        running.call("qmp_capabilities", json!({}))?;
        for disk in disks {
            running.attach(disk)?;
        }
        Ok(running)
    }

    /// Where a disk can be reached by NBD.
    pub fn nbd_uri(dir: &Path, disk: Uuid) -> String {
        format!("nbd+unix:///{disk}?socket={}", dir.join("nbd.sock").display())
    }

    /// Opens a disk's chain and exports it.
    pub fn attach(&mut self, disk: &GuestDisk) -> Result<()> {
        let chain = disk.domain.chain(disk.disk, disk.top)?;
        let mut backing: Option<String> = None;
        for (depth, volume) in chain.iter().enumerate().rev() {
            let raw = disk.domain.is_raw(disk.disk, *volume)?;
            // A layer below is not written until a merge commits into it, which needs a
            // node that may become writable; a template's volume never is.
            let shared = disk.domain.meta(disk.disk, *volume, "VOLTYPE")? == "SHARED";
            let backing_node = backing.as_deref().map(Value::from);
            self.open(disk, *volume, raw, backing_node, depth > 0 && shared)?;
            backing = Some(node(*volume));
        }
        self.export(disk)
    }

    fn export(&mut self, disk: &GuestDisk) -> Result<()> {
        self.call(
            "block-export-add",
            json!({ "type": "nbd", "id": export_id(disk.disk), "name": disk.disk.to_string(), "node-name": node(disk.top), "writable": true }),
        )
        .map(drop)
    }

    fn unexport(&mut self, disk: &GuestDisk) -> Result<()> {
        let export = json!({ "id": export_id(disk.disk), "mode": "hard" });
        self.call("block-export-del", export)?;
        // The export goes in the background; until then its node is busy.
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let exports = self.call("query-block-exports", json!({}))?;
            let there = |e: &Value| e["id"] == export_id(disk.disk).as_str();
            if !exports.as_array().is_some_and(|all| all.iter().any(there)) {
                break;
            }
            ensure!(Instant::now() < deadline, "the export of {} does not end", disk.disk);
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Takes a disk away from the guest and closes its chain.
    pub fn detach(&mut self, disk: &GuestDisk) -> Result<()> {
        self.unexport(disk)?;
        for volume in disk.domain.chain(disk.disk, disk.top)? {
            self.call("blockdev-del", json!({ "node-name": node(volume) }))?;
        }
        Ok(())
    }

    fn open(
        &mut self,
        disk: &GuestDisk,
        volume: Uuid,
        raw: bool,
        backing: Option<Value>,
        read_only: bool,
    ) -> Result<()> {
        let path = disk.domain.volume_path(disk.disk, volume);
        let mut args = json!({
            "driver": if raw { "raw" } else { "qcow2" },
            "node-name": node(volume),
            "read-only": read_only,
            "auto-read-only": true,
            "discard": "unmap",
            "file": { "driver": "file", "filename": path, "discard": "unmap", "auto-read-only": true, "read-only": read_only },
        });
        if !raw {
            args["backing"] = backing.unwrap_or(Value::Null);
        }
        self.call("blockdev-add", args).map(drop)
    }

    /// Makes the top volume larger. An export allows that only while it is away.
    pub fn resize(&mut self, disk: &GuestDisk, size: u64) -> Result<()> {
        self.unexport(disk)?;
        let done = self.call("block_resize", json!({ "node-name": node(disk.top), "size": size }));
        self.export(disk)?;
        done.map(drop)
    }

    /// A live snapshot: `new` is an overlay of the present top, made already.
    pub fn snapshot(&mut self, disks: &[(GuestDisk, Uuid)]) -> Result<()> {
        let mut actions = Vec::new();
        for (disk, new) in disks {
            self.open(disk, *new, false, None, false)?;
            actions.push(json!({ "type": "blockdev-snapshot", "data": { "node": node(disk.top), "overlay": node(*new) } }));
        }
        self.call("transaction", json!({ "actions": actions })).map(drop)
    }

    /// A live merge of `child` into `parent`; `top` is the disk's active volume.
    pub fn merge(&mut self, disk: &GuestDisk, child: Uuid, parent: Uuid) -> Result<()> {
        let active = disk.top == child;
        let job = format!("merge-{}", &child.simple().to_string()[..16]);
        let mut args = json!({ "job-id": job, "device": node(disk.top), "top-node": node(child), "base-node": node(parent), "auto-dismiss": false });
        if !active {
            // The bare volume name, as vdsm has it since 4.18.
            args["backing-file"] = parent.to_string().into();
        }
        self.call("block-commit", args)?;
        let deadline = Instant::now() + Duration::from_secs(600);
        let mut completed = false;
        loop {
            let jobs = self.call("query-jobs", json!({}))?;
            let found =
                jobs.as_array().and_then(|all| all.iter().find(|j| j["id"] == job.as_str()));
            let Some(found) = found else { break };
            match found["status"].as_str().unwrap_or("") {
                "ready" if !completed => {
                    self.call("job-complete", json!({ "id": job }))?;
                    completed = true;
                }
                "concluded" => {
                    let error = found["error"].as_str().map(str::to_owned);
                    self.call("job-dismiss", json!({ "id": job }))?;
                    if let Some(error) = error {
                        bail!("live merge failed: {error}");
                    }
                    break;
                }
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
            ensure!(Instant::now() < deadline, "live merge does not end");
        }
        ensure!(!active || completed, "the active merge never became ready");
        self.call("blockdev-del", json!({ "node-name": node(child) })).map(drop)
    }

    fn call(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        self.qmp.write_all(format!("{line}\n").as_bytes())?;
        loop {
            let answer = self.line()?;
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = answer.get("error") {
                bail!("{command}: {}", error["desc"].as_str().unwrap_or("?"));
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut text = String::new();
        ensure!(
            self.reader.read_line(&mut text)? > 0,
            "qemu-storage-daemon hung up: {}",
            fs::read_to_string(self.dir.join("qsd.log")).unwrap_or_default()
        );
        Ok(serde_json::from_str(&text)?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // As power off: the guest's caches are its own; the daemon flushes and closes.
        let _ = self.call("quit", json!({}));
        let sockets = ["qmp.sock", "nbd.sock"].map(|name| self.dir.join(name));
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        for socket in sockets {
            let _ = fs::remove_file(socket);
        }
    }
}
