//! The peers: what an administrator would otherwise move a disk with.
//!
//! Exports are up and tunnels connected before the clock starts, which favours the peers.

use std::{
    fs::{self, File},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    lab::Lab,
    measure,
    report::{CAT, CAT_NULL, COPY_IN, LOWER, NBDCOPY, PUT, QEMU, QEMU_IN, QEMU_ZSTD, Sample},
};

/// A peer's command, ready to run.
struct Peer {
    command: Command,
    /// Bytes that travel, known from what the tool does.
    wire: u64,
    servers: Vec<u32>,
    /// An export that is up while the command runs.
    _target: Option<Export>,
}

/// The peers of a lab.
pub struct Peers<'a> {
    lab: &'a Lab,
    dir: PathBuf,
    volume: PathBuf,
    size: u64,
    source: Export,
    /// Only what is not zero, and how much that is.
    data: (PathBuf, u64),
    nbdcopy: bool,
}

impl<'a> Peers<'a> {
    /// Exports the lab's disk. `data` is a file of what is not zero in it.
    pub fn new(lab: &'a Lab, dir: &Path, data: (PathBuf, u64)) -> Result<Self> {
        let volume = lab.volume()?;
        let size = fs::metadata(&volume)?.len();
        let source = Export::start(lab, dir, "source", &volume, true)?;
        let nbdcopy = there(Command::new("nbdcopy").arg("--version"));
        Ok(Self { lab, dir: dir.to_owned(), volume, size, source, data, nbdcopy })
    }

    /// Peers that are not on this machine.
    pub fn missing(&self) -> Vec<&'static str> {
        let imageio = there(Command::new("python3").args(["-c", "import ovirt_imageio"]));
        let all = [(imageio, "ovirt-imageio"), (self.nbdcopy, "nbdcopy")];
        all.into_iter().filter(|(there, _)| !there).map(|(_, name)| name).collect()
    }

    /// Ways to fetch the disk.
    pub fn backups(&self) -> Vec<&'static str> {
        let more = self.nbdcopy.then_some(NBDCOPY);
        [CAT, LOWER, QEMU, QEMU_ZSTD].into_iter().chain(more).collect()
    }

    /// Ways to put the disk onto a host, from a raw file.
    pub fn restores(&self) -> Vec<&'static str> {
        [PUT, QEMU_IN].into_iter().chain(self.nbdcopy.then_some(COPY_IN)).collect()
    }

    /// Lets a peer do its work once. What it makes is removed.
    pub fn run(&self, name: &'static str) -> Result<Sample> {
        let output = self.dir.join("output");
        let result = self.prepare(name, &output).and_then(|mut peer| {
            let (usage, _) = measure::run(&mut peer.command, &peer.servers, false)?;
            let stored = fs::metadata(&output).map(|meta| meta.len()).ok();
            Ok(Sample {
                name: name.into(),
                usage,
                wire: Some(peer.wire),
                stored,
                ..Sample::default()
            })
        });
        let _ = fs::remove_file(&output);
        result.with_context(|| format!("peer `{name}`"))
    }

    fn prepare(&self, name: &'static str, output: &Path) -> Result<Peer> {
        let mut servers = self.lab.servers();
        let mut ssh = self.lab.ssh();
        ssh.arg(self.lab.address()).stdin(Stdio::null());
        let wire = match name {
            LOWER | QEMU_IN | COPY_IN => self.data.1,
            _ => self.size,
        };
        let mut peer = |command| {
            servers.push(self.source.daemon.0.id());
            Peer { command, wire, servers: std::mem::take(&mut servers), _target: None }
        };
        Ok(match name {
            CAT | CAT_NULL | LOWER => {
                let file = if name == LOWER { &self.data.0 } else { &self.volume };
                ssh.arg("cat").arg(file);
                ssh.stdout(match name {
                    CAT_NULL => Stdio::null(),
                    _ => File::create(output)?.into(),
                });
                peer(ssh)
            }
            QEMU | QEMU_ZSTD => {
                let mut command = Command::new("qemu-img");
                command.args(["convert", "-W", "-m", "8", "-f", "raw", "-O", "qcow2"]);
                if name == QEMU_ZSTD {
                    command.args(["-c", "-o", "compression_type=zstd"]);
                }
                command.arg(self.source.url_old()).arg(output);
                peer(command)
            }
            NBDCOPY => {
                File::create(output)?.set_len(self.size)?;
                let mut command = Command::new("nbdcopy");
                command.arg(self.source.url()).arg(output);
                peer(command)
            }
            PUT => {
                ssh.arg("cat >").arg(output).stdin(File::open(&self.volume)?);
                peer(ssh)
            }
            QEMU_IN | COPY_IN => {
                File::create(output)?.set_len(self.size)?;
                let target = Export::start(self.lab, &self.dir, "target", output, false)?;
                let command = if name == QEMU_IN {
                    let mut command = Command::new("qemu-img");
                    command.args(["convert", "-n", "--target-is-zero", "-W", "-m", "8"]);
                    command.args(["-f", "raw", "-O", "raw"]);
                    command.arg(&self.volume).arg(target.url_old());
                    command
                } else {
                    let mut command = Command::new("nbdcopy");
                    command.arg("--destination-is-zero").arg(&self.volume).arg(target.url());
                    command
                };
                let mut made = peer(command);
                made.servers.push(target.daemon.0.id());
                Peer { _target: Some(target), ..made }
            }
            other => bail!("no such peer: {other}"),
        })
    }
}

fn there(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

/// A child that is killed and reaped at the end.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A file offered by `qemu-nbd` on the host, and the tunnel to it.
struct Export {
    socket: PathBuf,
    _tunnel: Killed,
    daemon: Killed,
}

impl Export {
    fn start(lab: &Lab, dir: &Path, name: &str, file: &Path, read_only: bool) -> Result<Self> {
        let (far, near) = (dir.join(format!("{name}.nbd")), dir.join(format!("{name}.ssh")));
        for old in [&far, &near] {
            if old.exists() {
                fs::remove_file(old)?;
            }
        }
        let mut daemon = Command::new("qemu-nbd");
        daemon.args(["-t", "-e", "16", "-f", "raw", "--cache=writeback", "--aio=threads", "-k"]);
        daemon.arg(&far).args(read_only.then_some("-r")).arg(file).stdin(Stdio::null());
        let daemon = Killed(daemon.spawn().context("start qemu-nbd")?);
        wait_socket(&far)?;
        let mut tunnel = lab.ssh();
        let forward = format!("{}:{}", near.display(), far.display());
        tunnel.args(["-N", "-L", &forward]).arg(lab.address());
        let tunnel = Killed(tunnel.stdin(Stdio::null()).spawn().context("start ssh")?);
        wait_socket(&near)?;
        Ok(Self { socket: near, _tunnel: tunnel, daemon })
    }

    /// As QEMU writes it.
    fn url_old(&self) -> String {
        format!("nbd:unix:{}", self.socket.display())
    }

    fn url(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }
}

fn wait_socket(path: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !fs::metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        ensure!(Instant::now() < deadline, "{} did not come up", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
