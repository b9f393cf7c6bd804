//! Hosts and storage servers of `scripts/lab/peers.sh`, and what is mounted from them.
//!
//! Invariant: everything lies in network namespaces of the test's own; the thread of the test
//! enters one, so its children (lab, hvbak, mounts) live there too. Hosts, daemons and mounts
//! go when dropped, also after a panic.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::sched::{CloneFlags, setns};

use super::{Started, is_root, lab::Lab, skip};

/// A network of hosts; down when dropped.
pub struct Peers {
    namespace: String,
    run: PathBuf,
}

impl Peers {
    /// An empty network; the calling thread and all that it starts are in it from here on.
    /// `None`, told loudly, where the machine cannot have it.
    pub fn new(programs: &[&str]) -> Option<Self> {
        let there = |p: &&&str| {
            !["/usr/bin", "/usr/sbin", "/sbin"].iter().any(|d| Path::new(d).join(p).exists())
        };
        let all = [&["ip", "sshd", "nsenter", "unshare"], programs].concat();
        let missing: Vec<_> = all.iter().filter(there).collect();
        if !missing.is_empty() || !is_root() {
            skip(&format!("hosts with networks of their own need root and {missing:?}"));
            return None;
        }
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("hvp{}x{number}", std::process::id());
        let run = PathBuf::from(format!("/tmp/{namespace}"));
        Some(Self { namespace, run })
    }

    /// A command of a script of `scripts/lab`, about this network.
    fn script(&self, name: &str, args: &[&str]) -> Command {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut command = Command::new(root.join("scripts/lab").join(name));
        command.args(args).env("HVLAB_NS", &self.namespace).env("HVLAB_RUN", &self.run);
        command
    }

    /// Runs `peers.sh`, which must succeed; gives its output.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> String {
        Started::new(&mut self.script("peers.sh", args)).wait().exits(0).stdout
    }

    /// Starts a host at an address; the test's thread enters the network.
    #[track_caller]
    pub fn up(&self, name: &str, address: u8) {
        // Its daemons outlive the command, so they must not hold its output.
        let mut up = self.script("peers.sh", &["up", name, "-a", &address.to_string()]);
        assert!(up.status().expect("peers.sh").success(), "{name} does not start");
        self.enter();
    }

    fn enter(&self) {
        let file = fs::File::open(Path::new("/run/netns").join(&self.namespace));
        setns(file.expect("the namespace"), CloneFlags::CLONE_NEWNET).expect("enter it");
    }

    /// Runs a command on a host.
    #[track_caller]
    pub fn ssh(&self, name: &str, command: &str) -> String {
        self.run(&["ssh", name, command])
    }

    /// The host's folder on this machine.
    #[track_caller]
    pub fn tree(&self, name: &str) -> PathBuf {
        self.run(&["tree", name]).trim().into()
    }

    /// Lets a host stand for `hv1` of a lab: the lab's engine names it, its address, key and
    /// storage are the host's; hvbak's key is enrolled there.
    #[track_caller]
    pub fn stand_in(&self, name: &str, lab: &Lab) {
        open_to_all(lab);
        let tree = self.tree(name);
        let from = format!("{}/.", lab.path("hosts/hv1/rhev").display());
        let to = tree.join("rhev");
        super::run_tool("cp", &["-a", &from, to.to_str().unwrap_or("")]);
        self.name_host(&self.run(&["env", name]), lab);
    }

    /// Starts a guest of `hvlab.sh` in the same network: a kernel of its own.
    #[track_caller]
    pub fn guest(&self, name: &str, address: u8) {
        let mut up = self.script("hvlab.sh", &["up", name, "-a", &address.to_string()]);
        assert!(up.status().expect("hvlab.sh").success(), "{name} does not start");
    }

    /// Runs a command in a guest; gives its trimmed output.
    #[track_caller]
    pub fn in_guest(&self, name: &str, command: &str) -> String {
        let mut ssh = self.script("hvlab.sh", &["ssh", name, command]);
        Started::new(&mut ssh).wait().exits(0).stdout.trim().to_owned()
    }

    /// Lets a guest, whose storage is there already, stand for `hv1` of a lab.
    #[track_caller]
    pub fn enrol_guest(&self, name: &str, lab: &Lab) {
        let mut env = self.script("hvlab.sh", &["env", name]);
        let env = Started::new(&mut env).wait().exits(0).stdout;
        let key =
            self.in_guest(name, "ssh-keygen -y -f /etc/ssh/ssh_host_ed25519_key | cut -d' ' -f1,2");
        self.name_host(&format!("{env}\nHOSTKEY={key}"), lab);
    }

    /// Writes a host's `env` into the configuration of hvbak and enrols it.
    #[track_caller]
    fn name_host(&self, env: &str, lab: &Lab) {
        let of = |key: &str| {
            let found = env.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
            found.unwrap_or_else(|| panic!("no {key} in {env}")).to_owned()
        };
        let site = format!(
            "\n[hosts.hv1]\naddress = \"{}\"\nport = {}\nhost_key = \"{}\"\n",
            of("HOST"),
            of("PORT"),
            of("HOSTKEY")
        );
        lab.configure(|text| format!("{text}{site}"));
        lab.hvbak(&["init"]).exits(0);
        lab.hvbak(&["enroll", "--all", "--bootstrap-key", &of("KEY")]).exits(0);
    }

    /// What hvbak has left on a host: processes, files in /run.
    #[track_caller]
    pub fn left_on(&self, name: &str) -> String {
        let look = "pgrep -a hvbak; ls /run | grep hvbak; true";
        self.ssh(name, look).trim().to_owned()
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        let _ = self.script("hvlab.sh", &["down", "all"]).status();
        let _ = self.script("peers.sh", &["down", "all"]).status();
    }
}

/// User 36 may enter the lab's folder, as it may on a hypervisor.
pub fn open_to_all(lab: &Lab) {
    let dir = lab.scratch("");
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("its mode");
}

/// Something mounted; not any more when dropped.
#[derive(Debug)]
pub struct Mount {
    dir: PathBuf,
}

impl Mount {
    /// `mount ARGS… DIR`; the folder is made.
    #[track_caller]
    pub fn new(args: &[&str], dir: &Path) -> Self {
        fs::create_dir_all(dir).expect("the mount point");
        let mut mount = Command::new("mount");
        assert!(mount.args(args).arg(dir).status().expect("mount").success(), "{args:?}");
        Self { dir: dir.to_owned() }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Whoever still holds it has lost it; the folder is removed next.
        let _ = Command::new("umount").arg("--lazy").arg(&self.dir).status();
    }
}
