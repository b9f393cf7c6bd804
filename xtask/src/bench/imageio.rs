//! oVirt's own way to move a disk: the imageio daemon on the host, its Python client here.
//!
//! Both are the published package; the daemon serves what `qemu-nbd` exports, as vdsm has
//! it do, over TLS with a certificate made for the occasion. It is up, and the ticket is
//! issued, before the clock starts.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::peers::{Killed, there};
use crate::build;

const PACKAGE: &str = "ovirt-imageio==2.5.1";

/// Makes the Python environment with the package, when it is not there.
pub fn install() -> Result<()> {
    if python().is_some() {
        return Ok(());
    }
    let venv = build::target_dir().join("imageio-venv");
    build::run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    build::run(Command::new(venv.join("bin/python")).args(["-m", "pip", "install", "-q", PACKAGE]))
}

/// A Python that has the package.
fn python() -> Option<PathBuf> {
    let made = build::target_dir().join("imageio-venv/bin/python3");
    [made, PathBuf::from("/usr/bin/python3")]
        .into_iter()
        .find(|python| there(Command::new(python).args(["-c", "import ovirt_imageio.client"])))
}

/// The daemon.
pub struct Imageio {
    dir: PathBuf,
    python: PathBuf,
    port: u16,
    daemon: Killed,
}

impl Imageio {
    /// Starts the daemon below `dir`; `None` when the package is not installed.
    pub fn start(dir: &Path) -> Result<Option<Self>> {
        let Some(python) = python() else { return Ok(None) };
        let dir = dir.join("imageio");
        fs::create_dir_all(dir.join("conf.d"))?;
        let mut certify = Command::new("openssl");
        certify.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]);
        certify.args(["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]);
        certify.arg("-keyout").arg(dir.join("key.pem")).arg("-out").arg(dir.join("cert.pem"));
        let made = certify.stderr(Stdio::null()).status().context("start openssl")?;
        ensure!(made.success(), "openssl made no certificate: {made}");
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        fs::write(dir.join("conf.d/bench.conf"), configuration(&dir, port))?;
        let log = fs::File::create(dir.join("log"))?;
        let mut command = Command::new(python.with_file_name("ovirt-imageio"));
        command.arg("-c").arg(&dir).stdout(log.try_clone()?).stderr(log).stdin(Stdio::null());
        let child: Child = command.spawn().context("start ovirt-imageio")?;
        let daemon = Killed(child);
        let deadline = Instant::now() + Duration::from_secs(15);
        while !dir.join("control").exists() {
            ensure!(Instant::now() < deadline, "ovirt-imageio did not come up; see its log");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Some(Self { dir, python, port, daemon }))
    }

    /// The daemon's process.
    pub fn pid(&self) -> u32 {
        self.daemon.0.id()
    }

    /// The command that fetches what is exported on `socket` into a qcow2 file.
    pub fn download(&self, socket: &Path, size: u64, output: &Path) -> Result<Command> {
        let url = self.ticket(socket, size, "read")?;
        let program = "import sys; from ovirt_imageio import client; \
             client.download(sys.argv[1], sys.argv[2], sys.argv[3], fmt='qcow2', max_workers=4)";
        Ok(self.client(program, [url.as_ref(), output.as_os_str()]))
    }

    /// The command that sends a raw file to what is exported on `socket`.
    pub fn upload(&self, file: &Path, socket: &Path, size: u64) -> Result<Command> {
        let url = self.ticket(socket, size, "write")?;
        let program = "import sys; from ovirt_imageio import client; \
             client.upload(sys.argv[2], sys.argv[1], sys.argv[3], disk_is_zero=True)";
        Ok(self.client(program, [url.as_ref(), file.as_os_str()]))
    }

    fn client(&self, program: &str, words: [&std::ffi::OsStr; 2]) -> Command {
        let mut command = Command::new(&self.python);
        command.args(["-c", program]).args(words).arg(self.dir.join("cert.pem"));
        command
    }

    fn ticket(&self, socket: &Path, size: u64, op: &str) -> Result<std::ffi::OsString> {
        let id = format!("hvbak-bench-{op}-{}", fs::read_dir(&self.dir)?.count());
        let ticket = json!({
            "uuid": id, "size": size, "url": format!("nbd:unix:{}", socket.display()),
            "timeout": 3600, "inactivity_timeout": 3600, "ops": [op], "sparse": true,
        });
        let file = self.dir.join(format!("{id}.json"));
        fs::write(&file, ticket.to_string())?;
        let mut control = Command::new(self.python.with_file_name("ovirt-imageioctl"));
        control.args(["add-ticket", "-c"]).arg(&self.dir).arg(&file);
        build::run(&mut control)?;
        Ok(format!("https://127.0.0.1:{}/images/{id}", self.port).into())
    }
}

fn configuration(dir: &Path, port: u16) -> String {
    let dir = dir.display();
    format!(
        "[daemon]\ndrop_privileges = false\nsystemd_enable = false\nrun_dir = {dir}\n\
         [tls]\nkey_file = {dir}/key.pem\ncert_file = {dir}/cert.pem\nca_file = {dir}/cert.pem\n\
         [remote]\nhost = 127.0.0.1\nport = {port}\n\
         [local]\nenable = false\n\
         [control]\ntransport = unix\nsocket = {dir}/control\n\
         [loggers]\nkeys = root\n[handlers]\nkeys = stderr\n\
         [logger_root]\nlevel = WARNING\nhandlers = stderr\npropagate = 0\n"
    )
}
