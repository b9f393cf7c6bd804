//! Real sshd processes for tests: on loopback, on a free port, in a directory of their own.
//!
//! Everything started here is killed on drop, sessions included; nothing outside the
//! temporary directory is touched, except that sshd run by root wants /run/sshd to exist.

use std::{
    fs,
    io::Read,
    net::{TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use hvbak_ssh::{HostTrust, Identity, Target};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How to start an sshd.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Host keys to make: `rsa`, `ecdsa`, `ed25519`.
    pub host_keys: Vec<&'static str>,
    /// Lines for sshd_config ahead of ours (the first value counts).
    pub config: String,
    /// Whether `HVBAK_HOST_ROOT` is set to the directory's `root`.
    pub host_root: bool,
    /// Shell text to run first, in a mount namespace that only this sshd is in (as root
    /// only): bind mounts over files of the machine. `$D` is the directory of everything.
    pub namespace: Option<String>,
    /// Files to write into that directory beforehand: name, content and mode.
    pub files: Vec<(&'static str, String, u32)>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            host_keys: vec!["ed25519"],
            config: String::new(),
            host_root: false,
            namespace: None,
            files: Vec::new(),
        }
    }
}

/// A running sshd with an authorised key.
pub struct Sshd {
    child: Child,
    dir: tempfile::TempDir,
    /// Its port on 127.0.0.1.
    pub port: u16,
}

impl Sshd {
    /// Starts one with an Ed25519 host key.
    pub fn start() -> Self {
        Self::with(Setup::default())
    }

    /// Starts one.
    pub fn with(setup: Setup) -> Self {
        let dir = tempfile::Builder::new().prefix("hvbak-sshd-").tempdir().unwrap();
        let at = dir.path().to_owned();
        keygen(&at.join("key"), "ed25519", "");
        let root = at.join("root");
        for sub in ["root/.ssh", "run", "etc/sudoers.d", "rhev"] {
            fs::create_dir_all(root.join(sub)).unwrap();
        }
        fs::set_permissions(root.join("root/.ssh"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::copy(at.join("key.pub"), root.join("root/.ssh/authorized_keys")).unwrap();
        for kind in &setup.host_keys {
            keygen(&at.join(format!("host_{kind}")), kind, "");
        }
        for (name, content, mode) in &setup.files {
            fs::write(at.join(name), content).unwrap();
            fs::set_permissions(at.join(name), fs::Permissions::from_mode(*mode)).unwrap();
        }
        if current_user() == "root" {
            let _ = fs::create_dir("/run/sshd");
        }
        // Another process may take the free port before sshd binds it: try again.
        for _ in 0..20 {
            let port = free_port();
            fs::write(at.join("config"), config(&at, port, &setup)).unwrap();
            let mut child = spawn(&at, &setup);
            if answers(&mut child, port) {
                return Self { child, dir, port };
            }
            kill_tree(&mut child);
        }
        panic!("sshd does not start: {}", fs::read_to_string(at.join("log")).unwrap_or_default());
    }

    /// The directory of everything.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// What the host thinks is its root in the lab.
    pub fn root(&self) -> PathBuf {
        self.path().join("root")
    }

    /// The authorized_keys file it reads.
    pub fn authorized_keys(&self) -> PathBuf {
        self.root().join("root/.ssh/authorized_keys")
    }

    /// The public host key line of a kind.
    pub fn host_key(&self, kind: &str) -> String {
        let path = self.path().join(format!("host_{kind}.pub"));
        fs::read_to_string(path).unwrap().trim().to_owned()
    }

    /// The fingerprint that ssh-keygen prints (`hash`: sha256 or md5).
    pub fn fingerprint(&self, kind: &str, hash: &str) -> String {
        let path = self.path().join(format!("host_{kind}.pub"));
        let out = Command::new("ssh-keygen").args(["-l", "-E", hash, "-f"]).arg(path).output();
        let text = String::from_utf8(out.unwrap().stdout).unwrap();
        text.split(' ').nth(1).unwrap().to_owned()
    }

    /// A target that trusts the first host key and has the authorised key.
    pub fn target(&self) -> Target {
        let mut target = Target::new("hv1", "127.0.0.1", current_user());
        target.port = self.port;
        let first = fs::read_dir(self.path())
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.to_string_lossy().ends_with(".pub"))
            .filter(|p| p.file_name().unwrap().to_string_lossy().starts_with("host_"))
            .map(|p| fs::read_to_string(p).unwrap())
            .collect::<Vec<_>>();
        target.trust = HostTrust::pinned(first.iter().map(String::as_str)).unwrap();
        target.identity = vec![Identity::key_file(self.path().join("key"))];
        target
    }

    /// Puts another public key into authorized_keys.
    pub fn authorize(&self, line: &str) {
        let old = fs::read_to_string(self.authorized_keys()).unwrap();
        fs::write(self.authorized_keys(), format!("{old}{}\n", line.trim())).unwrap();
    }

    /// Sends a signal to every session (not to the listener).
    pub fn signal_sessions(&self, signal: Signal) {
        for pid in descendants(self.child.id()) {
            let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
        }
    }

    /// What sshd logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        kill_tree(&mut self.child);
    }
}

/// A child that is killed and reaped on drop, with all below it.
pub struct Reaped(pub Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        kill_tree(&mut self.0);
    }
}

fn kill_tree(child: &mut Child) {
    for pid in descendants(child.id()) {
        let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// All processes below one that we started.
pub fn descendants(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(path).unwrap_or_default();
    let mut all = Vec::new();
    for child in children.split_whitespace().filter_map(|p| p.parse().ok()) {
        all.push(child);
        all.extend(descendants(child));
    }
    all
}

/// Makes a key pair with OpenSSH's own tool.
pub fn keygen(path: &Path, kind: &str, passphrase: &str) {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", kind, "-N", passphrase, "-C", "test", "-f"]).arg(path);
    if kind == "rsa" {
        command.args(["-b", "3072"]);
    }
    assert!(command.status().unwrap().success());
}

pub fn current_user() -> String {
    nix::unistd::User::from_uid(nix::unistd::Uid::current()).unwrap().unwrap().name
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn config(at: &Path, port: u16, setup: &Setup) -> String {
    let dir = at.display();
    let mut text = setup.config.clone();
    text.push('\n');
    for kind in &setup.host_keys {
        text.push_str(&format!("HostKey {dir}/host_{kind}\n"));
    }
    // Bash reads ~/.bashrc in sessions of sshd at shell level 1 alone; it may be slow.
    let root = if setup.host_root { format!(" HVBAK_HOST_ROOT={dir}/root") } else { String::new() };
    text.push_str(&format!("SetEnv SHLVL=1{root}\n"));
    text.push_str(&format!(
        "ListenAddress 127.0.0.1\nPort {port}\nAuthorizedKeysFile {dir}/root/root/.ssh/authorized_keys\n\
         StrictModes no\nUsePAM no\nUseDNS no\nPasswordAuthentication no\nPermitRootLogin yes\n\
         KbdInteractiveAuthentication no\nPidFile {dir}/pid\nMaxStartups 100\n"
    ));
    text
}

fn spawn(at: &Path, setup: &Setup) -> Child {
    let log = at.join("log");
    let sshd = format!("exec /usr/sbin/sshd -D -f {0}/config -E {0}/log", at.display());
    let mut command = match &setup.namespace {
        None => {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", &sshd]);
            command
        }
        Some(first) => {
            let script = format!("set -e; mount --make-rprivate /; {first}\n{sshd}");
            let mut command = Command::new("unshare");
            command.args(["-m", "/bin/sh", "-c", &script]).env("D", at);
            command
        }
    };
    let _ = fs::write(&log, "");
    // A process group of its own, so that Ctrl-C in a terminal does not race the drop.
    command.process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Whether sshd greets; false when it ended or did not come up.
fn answers(child: &mut Child, port: u16) -> bool {
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
            let mut greeting = [0; 4];
            if stream.read_exact(&mut greeting).is_ok() && greeting == *b"SSH-" {
                return true;
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}
