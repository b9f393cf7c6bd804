//! Hypervisors with real LVM: guests of `scripts/lab/hvlab.sh`, on one LUN.
//!
//! A guest's kernel, LVM, udev and sshd are real; its LUN is a file of the lab. The guests
//! end with the lab, also when the lab's own process was killed: all that is needed to end
//! them lies in their folder.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{hosts::Host, storage::run};

/// The LUN's size: sparse, so it costs what is written.
const LUN: u64 = 24 << 30;

/// The guests of a lab, or what another process needs to know of them.
#[derive(Debug, Clone)]
pub struct Guests {
    dir: PathBuf,
    namespace: String,
}

impl Guests {
    /// Makes the LUN.
    pub fn create(lab: &Path) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "block domains need root, for their guests");
        let dir = lab.join("guests");
        fs::create_dir_all(&dir)?;
        let namespace = format!("hvl{}", &Uuid::new_v4().simple().to_string()[..8]);
        fs::write(dir.join("namespace"), &namespace)?;
        fs::File::create(dir.join("lun0"))?.set_len(LUN)?;
        Ok(Self { dir, namespace })
    }

    /// Those of the lab in `lab`, if it has any.
    pub fn of(lab: &Path) -> Option<Self> {
        let dir = lab.join("guests");
        let namespace = fs::read_to_string(dir.join("namespace")).ok()?;
        Some(Self { dir, namespace })
    }

    fn script(&self) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/lab/hvlab.sh");
        let mut command = Command::new(script);
        command.env("HVLAB_NS", &self.namespace).env("HVLAB_RUN", self.dir.join("run"));
        command.stdin(std::process::Stdio::null());
        command
    }

    /// Starts a guest as a hypervisor that lets `authorized` in.
    pub fn start(
        &self,
        lab: &Path,
        number: usize,
        cluster: Uuid,
        authorized: &str,
    ) -> Result<Host> {
        let name = format!("hv{number}");
        // The port is free when asked; nobody else in this lab takes ports meanwhile.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        // Hosts hide the LUNs from plain LVM in either way.
        let lvm = if number % 2 == 1 { "filter" } else { "devices" };
        let address = (10 + number).to_string();
        let log = fs::File::create(self.dir.join(format!("{name}.log")))?;
        let mut up = self.script();
        up.args(["up", &name, "-a", &address, "-c", lvm, "-p", &port.to_string(), "-l"])
            .arg(self.dir.join("lun0"))
            .stdout(log.try_clone()?)
            .stderr(log);
        ensure!(up.status()?.success(), "guest {name} does not start: see guests/{name}.log");
        let key = authorized.trim();
        self.run(&name, &format!("echo '{key}' >>/root/.ssh/authorized_keys"))?;
        let public = self.run(&name, "ssh-keygen -y -f /etc/ssh/ssh_host_ed25519_key")?;
        let shown = self.run(&name, "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key")?;
        // Its files are in the guest; here is an empty place that stands for them.
        let root = lab.join("hosts").join(&name);
        fs::create_dir_all(root.join("run"))?;
        Ok(Host {
            id: Uuid::new_v4(),
            name,
            cluster,
            port,
            root,
            status: "up".into(),
            spm: number == 1,
            public_key: public.split_whitespace().take(2).collect::<Vec<_>>().join(" "),
            fingerprint: shown.split_whitespace().nth(1).context("fingerprint")?.to_owned(),
        })
    }

    /// Runs a command in a guest; gives what it prints.
    pub fn run(&self, name: &str, command: &str) -> Result<String> {
        Ok(String::from_utf8(self.bytes(name, command)?)?)
    }

    /// The same as a command, to be started.
    pub fn command(&self, name: &str, command: &str) -> Command {
        let mut script = self.script();
        script.args(["ssh", name, command]);
        script
    }

    /// The same for output that is no text.
    pub fn bytes(&self, name: &str, command: &str) -> Result<Vec<u8>> {
        run(&mut self.command(name, command))
    }

    /// Sends a file into a guest.
    pub fn put(&self, name: &str, file: &Path, to: &str) -> Result<()> {
        let mut command = self.script();
        command.args(["ssh", name, &format!("cat >{to}")]).stdin(fs::File::open(file)?);
        run(&mut command).map(drop)
    }

    /// The multipath name of the LUN.
    pub fn wwid(&self) -> Result<String> {
        let out = run(self.script().arg("wwid").arg(self.dir.join("lun0")))?;
        Ok(String::from_utf8(out)?.trim().to_owned())
    }

    /// Ends all guests.
    pub fn end(&self) {
        let _ = self.script().args(["down", "all"]).status();
        let _ = fs::remove_file(self.dir.join("namespace"));
    }

    /// For another process of the lab.
    pub fn to_json(&self) -> Value {
        json!({ "dir": self.dir, "namespace": self.namespace })
    }

    /// Reads [`Self::to_json`].
    pub fn from_json(value: &Value) -> Option<Self> {
        let dir = value["dir"].as_str()?.into();
        Some(Self { dir, namespace: value["namespace"].as_str()?.to_owned() })
    }
}
