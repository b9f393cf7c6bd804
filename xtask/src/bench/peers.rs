//! The peers: what an administrator would otherwise move a disk with.
//!
//! Exports are up and tunnels connected before the clock starts, which favours the peers.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::{
    imageio::Imageio,
    lab::Lab,
    measure,
    report::{
        CAT, CAT_LAYER, CAT_NULL, COPY_IN, IMAGEIO, IMAGEIO_IN, LOWER, NBDCOPY, PUT, QEMU, QEMU_IN,
        QEMU_ZSTD, Sample,
    },
};

use crate::build;

/// A peer's command, ready to run.
struct Peer {
    command: Command,
    /// Bytes that travel, where it is known from what the tool does.
    wire: Option<u64>,
    servers: Vec<u32>,
    /// An export that is up while the command runs.
    _target: Option<Export>,
}

/// The peers of a lab.
pub struct Peers<'a> {
    lab: &'a Lab,
    dir: PathBuf,
    imageio: Option<&'a Imageio>,
    /// The files that hold the disk, the newest layer first.
    volumes: Vec<PathBuf>,
    /// Bytes that the guest sees.
    size: u64,
    source: Export,
    /// Only what is not zero, and how much that is.
    data: Option<(PathBuf, u64)>,
    /// The disk with holes for zeros: what peers keep best and send fastest.
    sparse: PathBuf,
    nbdcopy: bool,
}

impl<'a> Peers<'a> {
    /// Exports a disk of the lab's, or one layer of it.
    pub fn new(
        lab: &'a Lab,
        dir: &Path,
        imageio: Option<&'a Imageio>,
        volumes: Vec<PathBuf>,
        size: u64,
    ) -> Result<Self> {
        let newest = volumes.first().context("no volumes")?;
        let source = Export::start(lab, dir, "source", &image_of(newest, volumes.len())?, true)?;
        let nbdcopy = there(Command::new("nbdcopy").arg("--version"));
        let (dir, sparse) = (dir.to_owned(), volumes[0].clone());
        Ok(Self { lab, dir, imageio, volumes, size, source, data: None, sparse, nbdcopy })
    }

    /// `file` holds only what is not zero of the disk.
    pub fn with_data(mut self, file: &Path, bytes: u64) -> Self {
        self.data = Some((file.to_owned(), bytes));
        self
    }

    /// Makes the file that restores are measured with.
    pub fn with_sparse(mut self) -> Result<Self> {
        let sparse = self.dir.join("sparse");
        let mut copy = Command::new("cp");
        build::run(copy.arg("--sparse=always").arg(&self.volumes[0]).arg(&sparse))?;
        self.sparse = sparse;
        Ok(self)
    }

    /// Peers that are not on this machine.
    pub fn missing(&self) -> Vec<&'static str> {
        let all = [
            (self.imageio.is_some(), "ovirt-imageio (`--install-imageio`)"),
            (self.nbdcopy, "nbdcopy"),
        ];
        all.into_iter().filter(|(there, _)| !there).map(|(_, name)| name).collect()
    }

    /// Ways to fetch the disk.
    pub fn backups(&self) -> Vec<&'static str> {
        let more = [(self.nbdcopy, NBDCOPY), (self.imageio.is_some(), IMAGEIO)];
        let more = more.into_iter().filter(|(there, _)| *there).map(|(_, name)| name);
        [CAT, LOWER, QEMU, QEMU_ZSTD].into_iter().chain(more).collect()
    }

    /// Ways to put the disk onto a host, from a raw file.
    pub fn restores(&self) -> Vec<&'static str> {
        let more = [(self.nbdcopy, COPY_IN), (self.imageio.is_some(), IMAGEIO_IN)];
        let more = more.into_iter().filter(|(there, _)| *there).map(|(_, name)| name);
        [PUT, QEMU_IN].into_iter().chain(more).collect()
    }

    /// Lets a peer do its work once. What it makes is removed.
    pub fn run(&self, name: &'static str) -> Result<Sample> {
        let output = self.dir.join("output");
        let result = self.prepare(name, &output).and_then(|mut peer| {
            let (usage, _) = measure::run(&mut peer.command, &peer.servers, false)?;
            let stored = fs::metadata(&output).map(|meta| meta.len()).ok();
            Ok(Sample { name: name.into(), usage, wire: peer.wire, stored, ..Sample::default() })
        });
        let _ = fs::remove_file(&output);
        result.with_context(|| format!("peer `{name}`"))
    }

    fn prepare(&self, name: &'static str, output: &Path) -> Result<Peer> {
        let mut servers = self.lab.servers();
        servers.push(self.source.daemon.0.id());
        let mut ssh = self.lab.ssh();
        ssh.arg(self.lab.address()).stdin(Stdio::null());
        let data = || self.data.as_ref().context("no file of the data alone");
        let files: u64 = self.volumes.iter().flat_map(fs::metadata).map(|m| m.len()).sum();
        let mut target = None;
        let (command, wire) = match name {
            CAT | CAT_LAYER | CAT_NULL => {
                ssh.arg("cat").args(&self.volumes);
                ssh.stdout(match name {
                    CAT_NULL => Stdio::null(),
                    _ => File::create(output)?.into(),
                });
                (ssh, Some(files))
            }
            LOWER => {
                let (file, bytes) = data()?;
                ssh.arg("cat").arg(file).stdout(File::create(output)?);
                (ssh, Some(*bytes))
            }
            QEMU | QEMU_ZSTD => {
                let mut command = Command::new("qemu-img");
                command.args(["convert", "-W", "-m", "8", "-f", "raw", "-O", "qcow2"]);
                if name == QEMU_ZSTD {
                    command.args(["-c", "-o", "compression_type=zstd"]);
                }
                command.arg(self.source.url_old()).arg(output);
                (command, self.data.as_ref().map(|_| self.size))
            }
            NBDCOPY => {
                File::create(output)?.set_len(self.size)?;
                let mut command = Command::new("nbdcopy");
                command.arg(self.source.url()).arg(output);
                (command, Some(self.size))
            }
            IMAGEIO => {
                let imageio = self.imageio.context("ovirt-imageio is not installed")?;
                servers.push(imageio.pid());
                (imageio.download(&self.source.far, self.size, output)?, None)
            }
            PUT => {
                ssh.arg("cat >").arg(output).stdin(File::open(&self.volumes[0])?);
                (ssh, Some(files))
            }
            QEMU_IN | COPY_IN | IMAGEIO_IN => {
                File::create(output)?.set_len(self.size)?;
                let made = Export::start(self.lab, &self.dir, "target", &raw(output), false)?;
                servers.push(made.daemon.0.id());
                let command = match name {
                    QEMU_IN => {
                        let mut command = Command::new("qemu-img");
                        command.args(["convert", "-n", "--target-is-zero", "-W", "-m", "8"]);
                        command.args(["-f", "raw", "-O", "raw"]);
                        command.arg(&self.sparse).arg(made.url_old());
                        command
                    }
                    COPY_IN => {
                        let mut command = Command::new("nbdcopy");
                        command.arg("--destination-is-zero").arg(&self.sparse).arg(made.url());
                        command
                    }
                    _ => {
                        let imageio = self.imageio.context("ovirt-imageio is not installed")?;
                        servers.push(imageio.pid());
                        imageio.upload(&self.sparse, &made.far, self.size)?
                    }
                };
                target = Some(made);
                (command, self.data.as_ref().map(|d| d.1))
            }
            other => bail!("no such peer: {other}"),
        };
        Ok(Peer { command, wire, servers, _target: target })
    }
}

/// How QEMU is told to open a raw file.
fn raw(file: &Path) -> String {
    json!({ "driver": "raw", "file": { "driver": "file", "filename": file } }).to_string()
}

/// How QEMU is told to open the newest of `layers` layers: a single qcow2 layer without
/// what lies below it.
fn image_of(newest: &Path, layers: usize) -> Result<String> {
    let mut magic = [0; 4];
    let found = File::open(newest)?.read(&mut magic)?;
    if found < 4 || &magic != b"QFI\xfb" {
        return Ok(raw(newest));
    }
    let mut image = json!({ "driver": "qcow2", "file": { "driver": "file", "filename": newest } });
    if layers == 1 {
        image["backing"] = serde_json::Value::Null;
    }
    Ok(image.to_string())
}

/// Whether a command can be run.
pub fn there(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

/// A child that is killed and reaped at the end.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An image offered by `qemu-nbd` on the host, and the tunnel to it.
struct Export {
    /// On the host.
    far: PathBuf,
    /// The tunnel's end here.
    near: PathBuf,
    _tunnel: Killed,
    daemon: Killed,
}

impl Export {
    fn start(lab: &Lab, dir: &Path, name: &str, image: &str, read_only: bool) -> Result<Self> {
        let (far, near) = (dir.join(format!("{name}.nbd")), dir.join(format!("{name}.ssh")));
        for old in [&far, &near] {
            if old.exists() {
                fs::remove_file(old)?;
            }
        }
        let mut daemon = Command::new("qemu-nbd");
        // Depth of allocation is told too, so that a layer's holes are known as such.
        daemon.args(["-t", "-A", "-e", "16", "--cache=writeback", "--aio=threads", "-k"]);
        daemon.arg(&far).args(read_only.then_some("-r"));
        daemon.arg(format!("json:{image}")).stdin(Stdio::null());
        let daemon = Killed(daemon.spawn().context("start qemu-nbd")?);
        wait_socket(&far)?;
        let mut tunnel = lab.ssh();
        let forward = format!("{}:{}", near.display(), far.display());
        tunnel.args(["-N", "-L", &forward]).arg(lab.address());
        let tunnel = Killed(tunnel.stdin(Stdio::null()).spawn().context("start ssh")?);
        wait_socket(&near)?;
        Ok(Self { far, near, _tunnel: tunnel, daemon })
    }

    /// As QEMU writes it.
    fn url_old(&self) -> String {
        format!("nbd:unix:{}", self.near.display())
    }

    fn url(&self) -> String {
        format!("nbd+unix:///?socket={}", self.near.display())
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
