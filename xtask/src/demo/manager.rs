//! The manager's part of the demo: its backup, the verification, a restore, the runbook.
//!
//! One of the lab's SSH hosts is the manager's machine. engine-backup and the programs
//! around it are stand-ins that replay recorded runs of the real 4.5.7; SSH, the repository,
//! the archive and every word of the output are real.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Stage;

const TOOLS: [&str; 9] = [
    "curl",
    "engine-cleanup",
    "engine-setup",
    "locale",
    "pg_dump",
    "postgresql-setup",
    "psql",
    "runuser",
    "systemctl",
];

/// Plays it on `host`, as the lab described it.
pub fn play(stage: &Stage, host: &Value) -> Result<()> {
    println!(
        "\n== The manager itself. engine-backup is a STAND-IN here: it replays recorded runs of the\n   real 4.5.7 on one of the SSH hosts; archive and output are the real program's"
    );
    let text = |key: &str| host[key].as_str().unwrap_or_default().to_owned();
    let root = PathBuf::from(text("root"));
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/engine-backup");
    install(&root, &fixtures)?;
    let key = fs::read_to_string(root.join("etc/ssh/ssh_host_ed25519_key.pub"))?;
    let config = stage.dir.join("hvbak.toml");
    let mut toml = fs::read_to_string(&config)?;
    toml.push_str(&format!(
        "\n[manager]\nhost = \"127.0.0.1\"\nport = {}\nuser = \"{}\"\nname = \"engine.example.test\"\nhost_key = \"{}\"\n",
        host["port"],
        text("user"),
        key.trim()
    ));
    fs::write(&config, toml)?;
    replay(&root, &fixtures, "b_ok_all")?;
    stage.show(&["manager-backup"])?;
    ensure!(agrees(&stage.dir)?, "the simulated engine is no witness of the backup");
    stage.show(&["manager-verify", "engine.example.test"])?;

    println!(
        "\n(a restore onto a fresh machine: first what it would run and what speaks against it)"
    );
    replay(&root, &fixtures, "r_kc_prov")?;
    let restore = ["manager-restore", "engine.example.test", "--provision-all-databases"];
    stage.show(&[&restore[..], &["--engine-setup", "--dry-run"]].concat())?;
    stage.show(&[&restore[..], &["--engine-setup"]].concat())?;
    let left = fs::read_dir(root.join("var/lib/hvbak-manager"))?.count();
    ensure!(left == 1, "more than the lock is left on the manager");

    let pages = stage.dir.join("runbook");
    stage.show(&["runbook", "--output", &pages.to_string_lossy()])?;
    let lost = fs::read_to_string(pages.join("manager-lost.md"))?;
    ensure!(lost.contains("engine.example.test@"), "the runbook does not know the backup");
    Ok(())
}

/// Whether the engine has agreed with every stored backup of the manager.
fn agrees(dir: &Path) -> Result<bool> {
    let mut all = true;
    for point in fs::read_dir(dir.join("repository/manager/engine.example.test"))? {
        let manifest = fs::read(point?.path().join("manifest.json"))?;
        all &= serde_json::from_slice::<Value>(&manifest)?["engine"]["said"] == "agrees";
    }
    Ok(all)
}

/// A machine with engine-backup 4.5.7.
fn install(root: &Path, fixtures: &Path) -> Result<()> {
    let services = root.join("usr/share/ovirt-engine/services/ovirt-engine");
    let (bin, play) = (root.join("usr/bin"), root.join("play"));
    // Here the stand-in tells the simulated engine of its runs.
    let engine = root.join("var/lib/simulated-engine");
    for dir in [&services, &bin, &play.join("machine"), &root.join("etc"), &engine] {
        fs::create_dir_all(dir)?;
    }
    fs::write(services.join("ovirt-engine.conf"), "PACKAGE_VERSION=4.5.7\n")?;
    let release = "ID=centos\nID_LIKE=\"rhel fedora\"\nVERSION_ID=9\n";
    fs::write(root.join("etc/os-release"), release)?;
    fs::copy(fixtures.join("stand-in.sh"), bin.join("engine-backup"))?;
    for name in TOOLS {
        fs::copy(fixtures.join("stand-in-tools.sh"), bin.join(name))?;
    }
    fs::copy(fixtures.join("4.5.7-all.backup"), play.join("archive"))?;
    fs::copy(fixtures.join("4.5.7-all.log"), play.join("log"))?;
    Ok(())
}

/// What the stand-in says next.
fn replay(root: &Path, fixtures: &Path, name: &str) -> Result<()> {
    let runs = fs::read_to_string(fixtures.join("transcripts.jsonl"))?;
    let run = runs
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|run| run["name"] == name)
        .with_context(|| format!("no run {name} is recorded"))?;
    let play = root.join("play");
    for name in ["stdout", "stderr"] {
        fs::write(play.join(name), run[name].as_str().unwrap_or_default())?;
    }
    Ok(fs::write(play.join("rc"), run["rc"].to_string())?)
}
