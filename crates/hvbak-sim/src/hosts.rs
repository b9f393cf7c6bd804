//! Hypervisors: real OpenSSH daemons on loopback, each with a directory tree of its own.
//!
//! `SetEnv HVBAK_HOST_ROOT` tells whatever runs in a session which tree is its host's. The
//! daemon is the machine's own, so there is one user and one kernel behind all of them.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use uuid::Uuid;

use crate::storage::run;

/// A hypervisor.
#[derive(Debug, Clone)]
pub struct Host {
    pub id: Uuid,
    pub name: String,
    pub cluster: Uuid,
    pub port: u16,
    pub root: PathBuf,
    pub status: String,
    pub spm: bool,
    /// The key the engine recorded when the host was added.
    pub public_key: String,
    pub fingerprint: String,
}

impl Host {
    /// Makes the tree, keys and configuration of a host and starts its daemon.
    pub fn create(lab: &Path, name: &str, cluster: Uuid, authorized: &str) -> Result<Self> {
        let root = lab.join("hosts").join(name);
        for dir in ["run", "root/.ssh", "etc/ssh", "rhev/data-center/mnt", "usr/libexec/hvbak"] {
            fs::create_dir_all(root.join(dir))?;
        }
        fs::set_permissions(root.join("root/.ssh"), fs::Permissions::from_mode(0o700))?;
        let keys = root.join("root/.ssh/authorized_keys");
        fs::write(&keys, authorized)?;
        fs::set_permissions(&keys, fs::Permissions::from_mode(0o600))?;
        for kind in ["ed25519", "ecdsa", "rsa"] {
            make_key(&root, kind)?;
        }
        // The engine's SSH client has historically recorded the RSA key.
        let public = fs::read_to_string(root.join("etc/ssh/ssh_host_rsa_key.pub"))?;
        let public_key = public.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
        let shown = run(Command::new("ssh-keygen")
            .arg("-lf")
            .arg(root.join("etc/ssh/ssh_host_rsa_key.pub")))?;
        let shown = String::from_utf8(shown)?;
        let fingerprint = shown.split_whitespace().nth(1).context("fingerprint")?.to_owned();
        let mut host = Self {
            id: Uuid::new_v4(),
            name: name.to_owned(),
            cluster,
            port: 0,
            root,
            status: "up".into(),
            spm: false,
            public_key,
            fingerprint,
        };
        // The port is free when asked; another taker in between is tried again.
        for _ in 0..5 {
            host.port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            host.configure()?;
            if host.start().is_ok() {
                return Ok(host);
            }
        }
        host.start()?;
        Ok(host)
    }

    fn configure(&self) -> Result<()> {
        let root = self.root.display();
        let text = format!(
            "ListenAddress 127.0.0.1\nPort {}\nHostKey {root}/etc/ssh/ssh_host_ed25519_key\n\
             HostKey {root}/etc/ssh/ssh_host_ecdsa_key\nHostKey {root}/etc/ssh/ssh_host_rsa_key\n\
             AuthorizedKeysFile {root}/root/.ssh/authorized_keys\nPidFile {root}/run/sshd.pid\n\
             StrictModes no\nUsePAM no\nUseDNS no\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nPrintMotd no\n\
             MaxStartups 100\nLogLevel VERBOSE\nSubsystem sftp internal-sftp\n\
             SetEnv SHLVL=1 HVBAK_HOST_ROOT={root}\n",
            self.port
        );
        Ok(fs::write(self.root.join("etc/ssh/sshd_config"), text)?)
    }

    /// Starts the daemon and waits for its banner.
    pub fn start(&self) -> Result<()> {
        if nix::unistd::geteuid().is_root() {
            fs::create_dir_all("/run/sshd")?;
        }
        run(Command::new(sshd()?)
            .arg("-f")
            .arg(self.root.join("etc/ssh/sshd_config"))
            .arg("-E")
            .arg(self.root.join("etc/ssh/sshd.log")))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            ensure!(Instant::now() < deadline, "sshd of {} does not listen", self.name);
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Stops the daemon and every session of it.
    pub fn stop(&self) {
        crate::sweep::end(&self.root.join("run/sshd.pid"), &self.root);
    }

    /// Gives the host another key, as a reinstalled host has.
    pub fn change_key(&self) -> Result<()> {
        for kind in ["ed25519", "ecdsa", "rsa"] {
            for suffix in ["", ".pub"] {
                fs::remove_file(self.root.join(format!("etc/ssh/ssh_host_{kind}_key{suffix}")))?;
            }
            make_key(&self.root, kind)?;
        }
        self.stop();
        self.start()
    }
}

fn make_key(root: &Path, kind: &str) -> Result<()> {
    let file = root.join(format!("etc/ssh/ssh_host_{kind}_key"));
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", kind, "-N", "", "-C", "lab"]);
    if kind == "rsa" {
        command.args(["-b", "2048"]);
    }
    run(command.arg("-f").arg(file)).map(drop)
}

/// sshd re-executes itself, so it wants an absolute path.
fn sshd() -> Result<PathBuf> {
    ["/usr/sbin/sshd", "/usr/bin/sshd", "/sbin/sshd"]
        .map(PathBuf::from)
        .into_iter()
        .find(|p| p.exists())
        .context("no sshd on this machine")
}
