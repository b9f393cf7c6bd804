//! Guests of `scripts/lab/hvlab.sh`: hypervisors with real LVM, spoken to over real ssh.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

use super::Worker;

/// A lab of guests on one LUN; gone when dropped.
pub struct Lab {
    dir: tempfile::TempDir,
    namespace: String,
}

impl Lab {
    /// An empty LUN of 12 GiB, no guest yet. `None`, told loudly, where no guest can be run;
    /// under `HVBAK_NO_SKIP` that fails the test.
    pub fn new() -> Option<Self> {
        let have = ["/usr/bin/linux.uml", "/usr/bin/socat", "/usr/sbin/lvm", "/usr/bin/busybox"];
        let missing: Vec<_> = have.iter().filter(|p| !Path::new(p).exists()).collect();
        if !missing.is_empty() || !nix::unistd::geteuid().is_root() {
            let why = format!("no guest can be run here: root and {missing:?} are needed");
            assert!(std::env::var_os("HVBAK_NO_SKIP").is_none(), "{why}");
            eprintln!("SKIP: {why}");
            if let Some(log) = std::env::var_os("HVBAK_SKIP_LOG") {
                use std::io::Write;
                let file = std::fs::OpenOptions::new().append(true).create(true).open(log);
                let _ = file.and_then(|mut f| writeln!(f, "worker on LVM: {why}"));
            }
            return None;
        }
        let dir = tempfile::Builder::new().prefix("hvbak-lab-").tempdir().unwrap();
        let lun = std::fs::File::create(dir.path().join("lun0")).unwrap();
        lun.set_len(12 << 30).unwrap();
        Some(Self { dir, namespace: format!("hvb{}", std::process::id()) })
    }

    fn script(&self) -> Command {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut command = Command::new(root.join("scripts/lab/hvlab.sh"));
        command
            .env("HVLAB_NS", &self.namespace)
            .env("HVLAB_RUN", self.dir.path().join("run"))
            .stdin(Stdio::null());
        command
    }

    /// Starts a guest whose own LVM is configured as `lvm` says, with the worker on it.
    pub fn guest(&self, name: &str, address: u8, lvm: &str) -> Guest<'_> {
        let lun = self.dir.path().join("lun0");
        let address = address.to_string();
        let mut up = self.script();
        up.args(["up", name, "-a", &address, "-c", lvm, "-l"]).arg(&lun);
        assert!(up.stdout(Stdio::inherit()).status().unwrap().success(), "{name} does not start");
        let guest = Guest { lab: self, name: name.to_owned() };
        let binary = std::fs::File::open(env!("CARGO_BIN_EXE_hvbak-worker")).unwrap();
        let put = "cat >/run/hvbak-worker && chmod 755 /run/hvbak-worker";
        let status = guest.command(put).stdin(binary).status().unwrap();
        assert!(status.success());
        guest
    }

    /// Name that multipath would give to the LUN.
    pub fn wwid(&self) -> String {
        let output = self.script().arg("wwid").arg(self.dir.path().join("lun0")).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.script().args(["down", "all"]).status();
    }
}

/// A running guest.
pub struct Guest<'a> {
    lab: &'a Lab,
    name: String,
}

impl Guest<'_> {
    /// A command of the guest, not started yet.
    pub fn command(&self, command: &str) -> Command {
        let mut ssh = self.lab.script();
        ssh.args(["ssh", &self.name, command]);
        ssh
    }

    /// Runs a command that may fail.
    pub fn attempt(&self, command: &str) -> Output {
        self.command(command).output().unwrap()
    }

    /// Runs a command; gives its output.
    pub fn run(&self, command: &str) -> String {
        let output = self.attempt(command);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {error}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Starts the worker over ssh.
    pub fn worker(&self) -> Worker {
        Worker::over(&mut self.command("exec /run/hvbak-worker"))
    }
}
