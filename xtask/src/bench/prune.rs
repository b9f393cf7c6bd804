//! Prune of a 30-point chain, on an XFS that can share blocks and on one that cannot.
//!
//! The chain is made and pruned by `hvbak-repo`'s example `prune_chain`: chores import no room.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::build;

/// `mib` of data in the oldest point. Takes the example from `built`, or builds it as it would
/// be released.
pub fn run(base: &Path, built: Option<&Path>, mib: u64, json: bool) -> Result<()> {
    let example = match built {
        Some(built) => built.join("examples/prune_chain"),
        None => {
            eprintln!("building the example that prunes");
            let args = ["build", "--quiet", "--release", "--package", "hvbak-repo", "--example"];
            build::run(build::cargo().args(args).arg("prune_chain"))?;
            build::target_dir().join("release/examples/prune_chain")
        }
    };
    eprintln!("a full of {mib} MiB and 29 deltas of a hundredth of it; XFS on a loop device");
    for (name, reflink) in [("shared blocks", true), ("copied", false)] {
        let Some(disk) = Disk::new(base, reflink, mib)? else {
            eprintln!("prune was not measured: a loop device needs root, XFS its mkfs.xfs");
            return Ok(());
        };
        let mut command = Command::new(&example);
        let out = command.arg(&disk.mount).arg(mib.to_string()).output();
        let out = out.with_context(|| format!("start {}", example.display()))?;
        let said = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success(), "prune_chain: {said}");
        for line in String::from_utf8_lossy(&out.stdout).lines() {
            let mut line: Value = serde_json::from_str(line).context("prune_chain's line")?;
            line["file_system"] = name.into();
            if json {
                println!("{line}");
            }
            let of = |key: &str| line[key].as_f64().unwrap_or_default();
            let mib = |key: &str| of(key) / 1_048_576.0;
            eprintln!(
                "  {name:14} {:20} {:7.2} s  {:8.1} MiB written for {:6.1} MiB of deltas, {:.2} x",
                line["prune"].as_str().unwrap_or("-"),
                of("seconds"),
                mib("written_bytes"),
                mib("delta_bytes"),
                of("written_bytes") / of("delta_bytes").max(1.0)
            );
        }
    }
    Ok(())
}

/// A mounted file system; gone when dropped.
struct Disk {
    mount: PathBuf,
    image: PathBuf,
}

impl Disk {
    fn new(base: &Path, reflink: bool, mib: u64) -> Result<Option<Self>> {
        let (mount, image) = (base.join("xfs"), base.join("xfs.img"));
        std::fs::create_dir_all(&mount)?;
        // The chain, its copy, and what XFS itself wants.
        std::fs::File::create(&image)?.set_len((mib * 3 + 1024) << 20)?;
        let option = format!("reflink={}", u8::from(reflink));
        let made = Command::new("mkfs.xfs").args(["-q", "-m", &option]).arg(&image).status();
        if !made.is_ok_and(|status| status.success()) {
            return Ok(None);
        }
        let mounted = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount).status();
        Ok(mounted.is_ok_and(|status| status.success()).then_some(Self { mount, image }))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let gone = Command::new("umount").arg(&self.mount).status();
        if !gone.is_ok_and(|status| status.success()) {
            eprintln!("{} is still mounted", self.mount.display());
        }
        if let Err(error) = std::fs::remove_file(&self.image) {
            eprintln!("{}: {error}", self.image.display());
        }
    }
}
