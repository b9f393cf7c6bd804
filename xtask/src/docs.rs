//! Manual pages and completions, as `hvbak` itself writes them. Packages install what this
//! leaves; no word of them is written by hand.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::build::{programs, run as must, target_dir};

/// Shells, and where each looks for a script below `/usr`.
const SHELLS: &[(&str, &str)] = &[
    ("bash", "share/bash-completion/completions/hvbak"),
    ("zsh", "share/zsh/site-functions/_hvbak"),
    ("fish", "share/fish/vendor_completions.d/hvbak.fish"),
];

/// Builds hvbak and writes into `target/docs`; gives that folder.
pub fn run() -> Result<PathBuf> {
    let out = target_dir().join("docs");
    // A page of a command that is gone must not stay.
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| out.display().to_string())?;
    }
    write(&programs()?.join("hvbak"), &out)?;
    Ok(out)
}

/// Lets a program write its pages and scripts into a folder that is laid out as `/usr` is.
fn write(hvbak: &Path, out: &Path) -> Result<()> {
    let commands = out.join("share/man/man1");
    must(Command::new(hvbak).arg("manual").arg(&commands))?;
    let errors = out.join("share/man/man7");
    fs::create_dir_all(&errors)?;
    fs::rename(commands.join("hvbak-errors.7"), errors.join("hvbak-errors.7"))?;
    for (shell, place) in SHELLS {
        let said = Command::new(hvbak).args(["completions", shell]).output();
        let said = said.with_context(|| format!("start {}", hvbak.display()))?;
        ensure!(said.status.success(), "hvbak completions {shell}: {}", said.status);
        let path = out.join(place);
        fs::create_dir_all(path.parent().unwrap_or(out))?;
        fs::write(&path, said.stdout).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
