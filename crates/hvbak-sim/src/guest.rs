//! Acting as the guest of a VM: reads and writes through QEMU's own block layer, over NBD
//! while the VM runs, on its top volume while it is down.

use std::{
    fs,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{control, guests::Guests, storage::run};

/// A disk as the guest sees it.
#[derive(Debug)]
pub struct Guest {
    dir: PathBuf,
    vm: String,
    disk: String,
    image: String,
    format: String,
    pub size: u64,
    lun: Option<OnLun>,
}

/// A disk on LVs, reached through the host that manages them, or that runs its VM.
#[derive(Debug)]
struct OnLun {
    guests: Guests,
    host: String,
    /// The VM runs: its export, which only that host reaches.
    live: bool,
    /// Id and device of the domain, as `lab-sd` wants them.
    domain: String,
    /// Newest first, by commas.
    volumes: String,
}

impl OnLun {
    fn from_json(value: &Value) -> Option<Self> {
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        Some(Self {
            guests: Guests::from_json(&value["guests"])?,
            host: text("host")?,
            live: value["live"] == true,
            domain: text("domain")?,
            volumes: text("volumes")?,
        })
    }
}

impl Guest {
    /// Finds the disk through the running lab.
    pub fn find(dir: &Path, vm: &str, disk: &str) -> Result<Self> {
        let found = control::call(dir, &json!({ "op": "locate", "vm": vm, "disk": disk }))?;
        let text = |key: &str| found[key].as_str().unwrap_or("").to_owned();
        Ok(Self {
            dir: dir.to_owned(),
            vm: vm.to_owned(),
            disk: disk.to_owned(),
            image: text("image"),
            format: text("format"),
            size: found["size"].as_u64().unwrap_or(0),
            lun: OnLun::from_json(&found["lun"]),
        })
    }

    /// Runs `qemu-io` commands one after the other.
    pub fn io(&self, commands: &[String]) -> Result<String> {
        if let Some(lun) = &self.lun {
            let words: Vec<_> = commands.iter().map(|c| format!("-c '{c}'")).collect();
            let (domain, volumes, words) = (&lun.domain, &lun.volumes, words.join(" "));
            let command = if lun.live {
                format!("qemu-io -f raw --discard=unmap {words} '{}'", self.image)
            } else {
                format!("lab-sd io {domain} {} {volumes} {words}", self.format)
            };
            let out = lun.guests.run(&lun.host, &command)?;
            ensure!(!out.contains("failed"), "{out}");
            return Ok(out);
        }
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

    /// The engine's part of a write to a thin LV: there is room when the guest needs it.
    fn make_room(&self, length: u64) -> Result<()> {
        let live = self.lun.as_ref().is_some_and(|lun| lun.live);
        let order = json!({ "op": "room", "vm": self.vm, "disk": self.disk, "length": length });
        if live { control::call(&self.dir, &order).map(drop) } else { Ok(()) }
    }

    /// Writes a byte pattern.
    pub fn write(&self, offset: u64, length: u64, pattern: u8) -> Result<()> {
        self.make_room(length)?;
        self.io(&[format!("write -P {pattern} {offset} {length}"), "flush".into()]).map(drop)
    }

    /// Writes the content of a file (its size, rounded up to 512 with zeros).
    pub fn write_file(&self, offset: u64, file: &Path) -> Result<()> {
        let length = fs::metadata(file)?.len().next_multiple_of(512);
        let padded = Scratch::new();
        fs::copy(file, &padded.0)?;
        fs::OpenOptions::new().write(true).open(&padded.0)?.set_len(length)?;
        self.make_room(length)?;
        if let Some(lun) = &self.lun {
            lun.guests.put(&lun.host, &padded.0, "/tmp/input")?;
            let write = format!("write -s /tmp/input {offset} {length}");
            return self.io(&[write, "flush".into()]).map(drop);
        }
        let write = format!("write -s {} {offset} {length}", padded.0.display());
        self.io(&[write, "flush".into()]).map(drop)
    }

    /// Writes bytes that do not compress; the same for the same seed and length.
    pub fn write_random(&self, offset: u64, length: u64, seed: u64) -> Result<()> {
        ensure!(
            offset.is_multiple_of(512) && length.is_multiple_of(512) && length > 0,
            "whole sectors of 512 bytes only"
        );
        let file = Scratch::new();
        let mut out = BufWriter::new(fs::File::create(&file.0)?);
        let mut state = seed;
        for _ in 0..length / 8 {
            out.write_all(&splitmix(&mut state).to_le_bytes())?;
        }
        out.flush()?;
        self.write_file(offset, &file.0)
    }

    /// SHA-256 of what the guest sees now, in hex.
    pub fn digest(&self) -> Result<String> {
        let file = Scratch::new();
        self.save(&file.0)?;
        let out = String::from_utf8(run(Command::new("sha256sum").arg(&file.0))?)?;
        Ok(out.split_whitespace().next().unwrap_or_default().to_owned())
    }

    /// Explicit zeros, or a discard.
    pub fn zero(&self, offset: u64, length: u64, discard: bool) -> Result<()> {
        let word = if discard { "discard" } else { "write -z" };
        self.io(&[format!("{word} {offset} {length}"), "flush".into()]).map(drop)
    }

    /// Copies what the guest sees now into a raw file.
    pub fn save(&self, output: &Path) -> Result<()> {
        if let Some(lun) = &self.lun {
            let command = if lun.live {
                let convert = format!("qemu-img convert -f raw -O raw '{}'", self.image);
                format!("{convert} /tmp/flat && cat /tmp/flat; rm -f /tmp/flat")
            } else {
                format!("lab-sd read {} {} {}", lun.domain, self.format, lun.volumes)
            };
            return Ok(fs::write(output, lun.guests.bytes(&lun.host, &command)?)?);
        }
        run(Command::new("qemu-img")
            .args(["convert", "-U", "-f", &self.format, "-O", "raw", &self.image])
            .arg(output))
        .map(drop)
    }

    /// Whether what the guest sees equals an image.
    pub fn compare(&self, other: &Path, format: &str) -> Result<()> {
        if self.lun.is_some() {
            let file = Scratch::new();
            self.save(&file.0)?;
            let mut compare = Command::new("qemu-img");
            compare.args(["compare", "-f", "raw", "-F", format]);
            return run(compare.arg(&file.0).arg(other)).map(drop);
        }
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

/// A file that goes with its owner.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("hvbak-lab-{}", uuid::Uuid::new_v4())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): enough to defeat a compressor.
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
