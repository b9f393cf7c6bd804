//! Acting as the guest of a VM: reads and writes through QEMU's own block layer, over NBD
//! while the VM runs, on its top volume while it is down.

use std::{path::Path, process::Command};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{control, storage::run};

/// A disk as the guest sees it.
#[derive(Debug)]
pub struct Guest {
    image: String,
    format: String,
    pub size: u64,
}

impl Guest {
    /// Finds the disk through the running lab.
    pub fn find(dir: &Path, vm: &str, disk: &str) -> Result<Self> {
        let found = control::call(dir, &json!({ "op": "locate", "vm": vm, "disk": disk }))?;
        let text = |key: &str| found[key].as_str().unwrap_or("").to_owned();
        Ok(Self {
            image: text("image"),
            format: text("format"),
            size: found["size"].as_u64().unwrap_or(0),
        })
    }

    /// Runs `qemu-io` commands one after the other.
    pub fn io(&self, commands: &[String]) -> Result<String> {
        let mut command = Command::new("qemu-io");
        command.args(["-f", &self.format, "--discard=unmap"]);
        for c in commands {
            command.args(["-c", c]);
        }
        let out = String::from_utf8(run(command.arg(&self.image))?)?;
        // qemu-io tells a failed write on stdout and exits with 0.
        ensure!(!out.contains("failed") && !out.contains("Pattern verification failed"), "{out}");
        Ok(out)
    }

    /// Writes a byte pattern.
    pub fn write(&self, offset: u64, length: u64, pattern: u8) -> Result<()> {
        self.io(&[format!("write -P {pattern} {offset} {length}"), "flush".into()]).map(drop)
    }

    /// Writes the content of a file (its size, rounded up to 512 with zeros).
    pub fn write_file(&self, offset: u64, file: &Path) -> Result<()> {
        let length = std::fs::metadata(file)?.len().next_multiple_of(512);
        let padded = tempfile_copy(file, length)?;
        let result =
            self.io(&[format!("write -s {} {offset} {length}", padded.display()), "flush".into()]);
        std::fs::remove_file(&padded)?;
        result.map(drop)
    }

    /// Explicit zeros, or a discard.
    pub fn zero(&self, offset: u64, length: u64, discard: bool) -> Result<()> {
        let word = if discard { "discard" } else { "write -z" };
        self.io(&[format!("{word} {offset} {length}"), "flush".into()]).map(drop)
    }

    /// Copies what the guest sees now into a raw file.
    pub fn save(&self, output: &Path) -> Result<()> {
        run(Command::new("qemu-img")
            .args(["convert", "-U", "-f", &self.format, "-O", "raw", &self.image])
            .arg(output))
        .map(drop)
    }

    /// Whether what the guest sees equals an image.
    pub fn compare(&self, other: &Path, format: &str) -> Result<()> {
        run(Command::new("qemu-img")
            .args(["compare", "-U", "-f", &self.format, "-F", format, &self.image])
            .arg(other))
        .map(drop)
    }

    /// The JSON that tests read.
    pub fn describe(&self) -> Value {
        json!({ "image": self.image, "format": self.format, "size": self.size })
    }
}

fn tempfile_copy(file: &Path, length: u64) -> Result<std::path::PathBuf> {
    let path = std::env::temp_dir().join(format!("hvbak-lab-{}", uuid::Uuid::new_v4()));
    std::fs::copy(file, &path)?;
    std::fs::OpenOptions::new().write(true).open(&path)?.set_len(length)?;
    Ok(path)
}
