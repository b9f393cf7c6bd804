//! A running VM's disks: one `qemu-storage-daemon`, driven over QMP; on this machine, or in
//! the guest with real LVM that is the VM's host.
//!
//! Live snapshots, locks and live merges are QEMU's own; the guest is whoever writes to
//! the NBD exports. Each layer of a chain is an explicit node named `n-<first 24 hex digits
//! of its volume id>`.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
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
pub struct Running {
    child: Child,
    /// QMP, over the daemon's own stdin and stdout: so it can run in a guest behind SSH.
    qmp: ChildStdin,
    reader: BufReader<ChildStdout>,
    dir: PathBuf,
    host: String,
    /// What is attached, for the LVs to be given back.
    disks: Vec<GuestDisk>,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// QEMU limits node names to 31 characters.
fn node(volume: Uuid) -> String {
    format!("n-{}", &volume.simple().to_string()[..24])
}

/// The node below it: the file or device.
fn file(volume: Uuid) -> String {
    format!("f-{}", &volume.simple().to_string()[..24])
}

/// Where the daemon exports: in the VM's folder, or in the guest that is its host.
fn socket(dir: &Path, lun: bool) -> PathBuf {
    if lun {
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        return format!("/run/lab-{name}.sock").into();
    }
    dir.join("nbd.sock")
}

fn arguments(socket: &Path) -> [String; 6] {
    let nbd = format!("addr.type=unix,addr.path={},max-connections=0", socket.display());
    ["--chardev", "stdio,id=c", "--monitor", "chardev=c", "--nbd-server", &nbd].map(str::to_owned)
}

/// The export of a disk follows its top node through snapshots.
fn export_id(disk: Uuid) -> String {
    format!("e-{}", &disk.simple().to_string()[..24])
}

impl Running {
    /// Starts the daemon in `dir`, or in the guest that is the host if its disks are on LVs
    /// there, and opens the disks.
    pub fn start(dir: &Path, host: &str, disks: &[GuestDisk]) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let log = fs::File::create(dir.join("qsd.log"))?;
        let lun = disks.iter().find_map(|d| d.domain.lun.as_ref());
        let mut command = match lun {
            // Its name in the arguments is what the daemon is found by.
            Some(lun) => {
                let args = arguments(&socket(dir, true)).join(" ");
                let line = format!("LAB_VM={} exec qemu-storage-daemon {args}", dir.display());
                lun.guests.command(host, &line)
            }
            None => {
                let mut command = Command::new("qemu-storage-daemon");
                command.args(arguments(&socket(dir, false)));
                command
            }
        };
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = pipes.spawn().context("start qemu-storage-daemon")?;
        fs::write(dir.join("qsd.pid"), child.id().to_string())?;
        let qmp = child.stdin.take().context("stdin of the daemon")?;
        let reader = BufReader::new(child.stdout.take().context("stdout of the daemon")?);
        let (dir, host) = (dir.to_owned(), host.to_owned());
        let mut running = Self { child, qmp, reader, dir, host, disks: Vec::new() };
        running.line()?; // greeting
        running.call("qmp_capabilities", json!({}))?;
        for disk in disks {
            running.attach(disk)?;
        }
        Ok(running)
    }

    /// The name of the host on which it runs.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Where a disk can be reached by NBD.
    pub fn nbd_uri(dir: &Path, disk: Uuid, lun: bool) -> String {
        format!("nbd+unix:///{disk}?socket={}", socket(dir, lun).display())
    }

    /// The end of what was ever written to a volume since it was opened, in bytes.
    pub fn highest(&mut self, volume: Uuid) -> Result<u64> {
        let all = self.call("query-blockstats", json!({ "query-nodes": true }))?;
        let found = all.as_array().and_then(|l| l.iter().find(|n| n["node-name"] == file(volume)));
        let found = found.with_context(|| format!("volume {volume} is not open"))?;
        Ok(found["stats"]["wr_highest_offset"].as_u64().unwrap_or(0))
    }

    /// Opens a disk's chain and exports it.
    pub fn attach(&mut self, disk: &GuestDisk) -> Result<()> {
        let chain = disk.domain.chain(disk.disk, disk.top)?;
        if let Some(lun) = &disk.domain.lun {
            lun.prepare(&self.host, disk.disk, &chain)?;
        }
        self.disks.push(disk.clone());
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
        self.disks.retain(|d| d.disk != disk.disk);
        disk.domain.lun.as_ref().map_or(Ok(()), |lun| lun.teardown(&self.host, disk.disk))
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
            "file": { "driver": "file", "node-name": file(volume), "filename": path, "discard": "unmap", "auto-read-only": true, "read-only": read_only },
        });
        if disk.domain.lun.is_some() {
            args["file"]["driver"] = "host_device".into();
            // As vdsm's VMs: what is written can be read by another host.
            args["file"]["cache"] = json!({ "direct": true });
            args["cache"] = json!({ "direct": true });
        }
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
            if let Some(lun) = &disk.domain.lun {
                lun.prepare(&self.host, disk.disk, &[*new])?;
            }
            self.open(disk, *new, false, None, false)?;
            actions.push(json!({ "type": "blockdev-snapshot", "data": { "node": node(disk.top), "overlay": node(*new) } }));
        }
        self.call("transaction", json!({ "actions": actions })).map(drop)
    }

    /// A live merge of `child` into `parent`; `top` is the disk's active volume.
    pub fn merge(
        &mut self,
        disk: &GuestDisk,
        child: Uuid,
        parent: Uuid,
        breaks: bool,
    ) -> Result<()> {
        let active = disk.top == child;
        let job = format!("merge-{}", &child.simple().to_string()[..16]);
        let mut args = json!({ "job-id": job, "device": node(disk.top), "top-node": node(child), "base-node": node(parent), "auto-dismiss": false });
        if !active {
            // The bare volume name, as vdsm has it since 4.18.
            args["backing-file"] = parent.to_string().into();
        }
        self.call("block-commit", args)?;
        let deadline = Instant::now() + Duration::from_secs(600);
        let (mut completed, mut broken) = (false, false);
        loop {
            let jobs = self.call("query-jobs", json!({}))?;
            let found =
                jobs.as_array().and_then(|all| all.iter().find(|j| j["id"] == job.as_str()));
            let Some(found) = found else { break };
            match found["status"].as_str().unwrap_or("") {
                // The parent has all of the child, and the child stays the active one.
                "ready" if breaks => {
                    self.call("block-job-cancel", json!({ "device": job, "force": true }))?;
                    broken = true;
                    std::thread::sleep(Duration::from_millis(20));
                }
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
                    ensure!(!broken, "fault");
                    break;
                }
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
            ensure!(Instant::now() < deadline, "live merge does not end");
        }
        ensure!(!active || completed, "the active merge never became ready");
        self.call("blockdev-del", json!({ "node-name": node(child) }))?;
        if active { Ok(()) } else { self.freeze(disk, child, parent) }
    }

    /// As libvirt does with the base of a merge: read-only again, so that QEMU writes what it
    /// still keeps of the image's tables. Others could not read what was merged otherwise.
    fn freeze(&mut self, disk: &GuestDisk, child: Uuid, parent: Uuid) -> Result<()> {
        if disk.domain.is_raw(disk.disk, parent)? {
            return Ok(());
        }
        let mut below =
            disk.domain.chain(disk.disk, child)?.into_iter().skip_while(|v| *v != parent);
        let backing = below.nth(1).map_or(Value::Null, |volume| node(volume).into());
        let mut options = json!({
            "driver": "qcow2",
            "node-name": node(parent),
            "read-only": true,
            "discard": "unmap",
            "file": file(parent),
            "backing": backing,
        });
        if disk.domain.lun.is_some() {
            options["cache"] = json!({ "direct": true });
        }
        self.call("blockdev-reopen", json!({ "options": [options] })).map(drop)
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
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        for gone in ["qsd.pid", "nbd.sock"] {
            let _ = fs::remove_file(self.dir.join(gone));
        }
        for disk in &self.disks {
            if let Some(lun) = &disk.domain.lun {
                let _ = lun.teardown(&self.host, disk.disk);
            }
        }
    }
}
