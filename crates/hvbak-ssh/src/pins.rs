//! Our own record of host keys, for hosts the engine knows nothing about.
//!
//! One line per key: `[host]:port algorithm base64`, several keys per host allowed.
//! Invariant: a host with any line is pinned to its lines, whatever their algorithms, so
//! another algorithm never makes it "unknown" again. Lines we do not understand are kept
//! and trust nobody; a file that cannot be read is an error, not an empty record.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Result},
    hostkey::{HostKey, HostTrust, Pin},
};

/// The pin file, read.
#[derive(Debug, Clone)]
pub struct PinStore {
    path: PathBuf,
    lines: Vec<String>,
}

impl PinStore {
    /// Reads the file; a missing one is an empty record.
    ///
    /// # Errors
    /// [`Error::PinFile`] for every other failure.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(cause) => return Err(Error::PinFile { path, cause }),
        };
        Ok(Self { path, lines: text.lines().map(str::to_owned).collect() })
    }

    /// The recorded keys of a host.
    pub fn keys(&self, host: &str, port: u16) -> Vec<HostKey> {
        let name = name(host, port);
        self.lines
            .iter()
            .filter_map(|line| line.trim().split_once([' ', '\t']))
            .filter(|(recorded, _)| *recorded == name)
            .filter_map(|(_, key)| match key.parse() {
                Ok(key) => Some(key),
                Err(error) => {
                    tracing::warn!(file = %self.path.display(), host, %error, "bad line");
                    None
                }
            })
            .collect()
    }

    /// [`HostTrust::Pinned`] to the recorded keys. A host whose lines are all damaged is
    /// pinned to nothing: it is refused, not learned anew. `None`: never recorded.
    pub fn trust(&self, host: &str, port: u16) -> Option<HostTrust> {
        let name = name(host, port);
        let known = self.lines.iter().any(|l| l.split_whitespace().next() == Some(name.as_str()));
        known.then(|| HostTrust::Pinned(self.keys(host, port).into_iter().map(Pin::Key).collect()))
    }

    /// Records a key and writes the file (temporary file, fsync, rename). Adding what is
    /// there already changes nothing.
    ///
    /// # Errors
    /// [`Error::PinFile`].
    pub fn add(&mut self, host: &str, port: u16, key: &HostKey) -> Result<()> {
        if self.keys(host, port).contains(key) {
            return Ok(());
        }
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(Error::BadValue { what: "host name", text: host.into() });
        }
        self.lines.push(format!("{} {}", name(host, port), key.line));
        self.write()
    }

    /// Forgets a host; says how many lines went.
    ///
    /// # Errors
    /// [`Error::PinFile`].
    pub fn remove(&mut self, host: &str, port: u16) -> Result<usize> {
        let name = name(host, port);
        let before = self.lines.len();
        self.lines.retain(|line| line.split_whitespace().next() != Some(name.as_str()));
        let gone = before - self.lines.len();
        if gone > 0 {
            self.write()?;
        }
        Ok(gone)
    }

    fn write(&self) -> Result<()> {
        let text: String = self.lines.iter().map(|line| format!("{line}\n")).collect();
        replace(&self.path, text.as_bytes())
            .map_err(|cause| Error::PinFile { path: self.path.clone(), cause })
    }
}

fn name(host: &str, port: u16) -> String {
    format!("[{host}]:{port}")
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temp = path.as_os_str().to_owned();
    temp.push(format!(".{}.tmp", std::process::id()));
    let write = || {
        let mut file = fs::File::create(&temp)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temp, path)?;
        fs::File::open(dir)?.sync_all()
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&temp);
    })
}
