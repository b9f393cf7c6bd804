//! The demo: the main job end to end, on a lab of its own, with the commands shown.
//!
//! Real are QEMU's block layer, OpenSSH, qcow2 and every byte; simulated is the engine.
//! The lab is taken down whatever happens.

mod manager;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{build, needs};

/// How to show it.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Install missing programs
    #[arg(long)]
    install: bool,
    /// Leave the lab running to play with
    #[arg(long)]
    keep: bool,
}

struct Stage {
    dir: PathBuf,
    bin: PathBuf,
    worker: PathBuf,
    keep: bool,
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        let _ = Command::new(self.bin.join("hvbak-lab"))
            .args(["down", "--dir"])
            .arg(&self.dir)
            .stderr(Stdio::null())
            .status();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Stage {
    fn lab(&self, words: &[&str]) -> Result<String> {
        self.call("hvbak-lab", words, &["--dir", &self.dir.to_string_lossy()])
    }

    fn hvbak(&self, words: &[&str]) -> Result<String> {
        self.call("hvbak", words, &["--config", &self.dir.join("hvbak.toml").to_string_lossy()])
    }

    /// Runs a program and shows its command without the paths that repeat.
    fn call(&self, program: &str, words: &[&str], hidden: &[&str]) -> Result<String> {
        let shown = words.join(" ").replace(&*self.dir.to_string_lossy(), "LAB");
        println!("\n$ {program} {shown}");
        let output = Command::new(self.bin.join(program))
            .args(words)
            .args(hidden)
            .env("HVBAK_WORKER", &self.worker)
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("start {program}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "`{program} {shown}` failed: {}\n{text}", output.status);
        Ok(text)
    }

    fn show(&self, words: &[&str]) -> Result<()> {
        print!("{}", self.hvbak(words)?);
        Ok(())
    }
}

/// Plays the demo.
pub fn run(args: &DemoArgs) -> Result<()> {
    needs::check(&[needs::DEMO], args.install)?;
    println!("building hvbak, the lab and the worker (some minutes the first time)");
    let worker = build::worker()?;
    let bin = build::programs()?;
    let started = Instant::now();
    // Socket paths end at 107 characters, so the lab wants a short directory.
    let dir = tempfile::Builder::new().prefix("hvbak-demo-").tempdir_in("/tmp")?.keep();
    let mut stage = Stage { dir, bin, worker, keep: false };
    play(&stage).inspect_err(|_| {
        eprintln!(
            "\nthe demo failed; the lab's log was:\n{}",
            fs::read_to_string(stage.dir.join("lab.log")).unwrap_or_default()
        );
    })?;
    stage.keep = args.keep;
    let dir = stage.dir.display().to_string();
    println!(
        "\nThe demo took {:.0} s. Everything was compared and is equal.",
        started.elapsed().as_secs_f64()
    );
    if args.keep {
        println!("The lab runs on. Look around with:");
        println!("  {}/hvbak --config {dir}/hvbak.toml list vms", stage.bin.display());
        println!("  find {dir}/repository");
        println!("and take it down with:\n  {}/hvbak-lab down --dir {dir}", stage.bin.display());
    } else {
        println!("Run it with --keep to look around in the lab and the repository.");
    }
    println!(
        "Read next: README.md (a real site), crates/hvbak-repo/FORMAT.md (restore without hvbak), crates/README.md (how it is built)."
    );
    Ok(())
}

fn play(stage: &Stage) -> Result<()> {
    println!(
        "\n== A lab: a simulated engine, two real SSH hosts, real qcow2 storage, a running VM"
    );
    let line = stage.lab(&["up", "--detach"])?;
    let up: Value = serde_json::from_str(&line).context("the lab's answer")?;
    println!(
        "engine {}, {} hosts",
        up["engine_url"].as_str().unwrap_or("?"),
        up["hosts"].as_array().map_or(0, Vec::len)
    );

    println!("\n== The guest of VM web1 has data: a file, patterns, and a hole where it discarded");
    let file = stage.dir.join("guest.data");
    fs::write(&file, guest_file()?)?;
    let write = |disk: &str, rest: &[&str]| {
        let mut words = vec!["guest-write", "--vm", "web1", "--disk", disk];
        words.extend(rest);
        stage.lab(&words).map(drop)
    };
    write("web1_Disk1", &["--offset", "104857600", "--file", &file.to_string_lossy()])?;
    write("web1_Disk1", &["--offset", "1048576", "--length", "10485760", "--pattern", "171"])?;
    write("web1_data", &["--offset", "4096", "--length", "33554432", "--pattern", "7"])?;
    stage.lab(&[
        "guest-discard",
        "--vm",
        "web1",
        "--disk",
        "web1_data",
        "--offset",
        "8388608",
        "--length",
        "4194304",
    ])?;
    println!("\n== hvbak meets the site");
    stage.show(&["init"])?;
    let key = up["bootstrap_key"].as_str().unwrap_or_default().to_owned();
    stage.show(&["enroll", "--all", "--bootstrap-key", &key])?;
    stage.show(&["doctor"])?;
    stage.show(&["list", "vms"])?;

    println!("\n== Backup: freeze, snapshot, thaw, read over SSH, compare, publish");
    stage.show(&["backup", "--vm", "web1", "--dry-run"])?;
    stage.show(&["backup", "--vm", "web1"])?;

    println!("\n== The guest goes on; the next backup reads only what changed");
    write("web1_Disk1", &["--offset", "5242880", "--length", "300000", "--pattern", "51"])?;
    write("web1_data", &["--offset", "1048576", "--length", "65536", "--pattern", "0"])?;
    let mut references = Vec::new();
    for disk in ["web1_Disk1", "web1_data"] {
        let reference = stage.dir.join(format!("{disk}.reference"));
        stage.lab(&[
            "guest-read",
            "--vm",
            "web1",
            "--disk",
            disk,
            "--output",
            &reference.to_string_lossy(),
        ])?;
        references.push((disk, reference));
    }
    stage.show(&["backup", "--vm", "web1"])?;
    stage.show(&["points"])?;
    stage.show(&["verify", "--all"])?;

    println!("\n== Disaster: the guest overwrites its boot disk");
    write("web1_Disk1", &["--offset", "0", "--length", "209715200", "--pattern", "255"])?;
    println!("(the comparison that follows must fail)");
    let damaged = compare(stage, "web1", "web1_Disk1", &references[0].1);
    ensure!(damaged.is_err(), "the damage did no damage, so the demo proves nothing");

    println!("\n== Restore as a new VM, and compare each disk with what the guest had");
    stage.show(&["restore", "web1@latest", "--name", "web1-restored", "--power-on"])?;
    for (disk, reference) in &references {
        compare(stage, "web1-restored", disk, reference)?;
        println!("{disk}: identical");
    }

    println!("\n== The same without an engine and without hvbak: qemu-img on the stored files");
    let out = stage.dir.join("out");
    fs::create_dir_all(&out)?;
    stage.show(&[
        "export",
        "web1@latest",
        "--format",
        "raw",
        "--output",
        &out.to_string_lossy(),
    ])?;
    for (disk, reference) in &references {
        let exported = out.join(format!("{disk}.raw"));
        build::run(
            Command::new("qemu-img")
                .args(["compare", "-q", "-f", "raw", "-F", "raw"])
                .arg(&exported)
                .arg(reference),
        )?;
    }
    for stored in stored(&stage.dir.join("repository"))? {
        build::run(Command::new("qemu-img").args(["check", "-q"]).arg(&stored))?;
    }
    println!("exports identical, stored files pass qemu-img check");

    println!("\n== Retention: the older point is merged into the newer one");
    stage.show(&["prune", "--keep-last", "1"])?;
    stage.show(&["verify", "--all"])?;

    manager::play(stage, &up["hosts"][0])?;

    println!("\n== Nothing is left behind but the snapshot that the next backup stands on");
    stage.show(&["cleanup"])?;
    let state: Value = serde_json::from_str(&stage.lab(&["state"])?)?;
    let left = state["vms"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|vm| vm["snapshots"].as_array().cloned().unwrap_or_default());
    let own = left.filter(|s| s["kind"] != "active").count();
    ensure!(own == 1, "{own} snapshots are there: {state}");
    Ok(())
}

fn compare(stage: &Stage, vm: &str, disk: &str, reference: &Path) -> Result<()> {
    stage
        .lab(&["guest-read", "--vm", vm, "--disk", disk, "--compare", &reference.to_string_lossy()])
        .map(drop)
}

/// Something that compresses like a file system: this program's own sources and binary.
fn guest_file() -> Result<Vec<u8>> {
    let mut bytes = fs::read(std::env::current_exe()?)?;
    bytes.truncate(24 << 20);
    Ok(bytes)
}

fn stored(repository: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut dirs) = (Vec::new(), vec![repository.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "qcow2") {
                found.push(path);
            }
        }
    }
    Ok(found)
}
