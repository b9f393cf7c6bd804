//! The source tarball: what git tracks, the crates of Cargo.lock, SBOM and licence texts.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::sbom;
use crate::build::{cargo, run};

/// Makes `SOURCES/hvbak-VERSION.tar.gz` and `SPECS/hvbak.spec` below a folder; gives the spec.
pub fn make(top: &Path) -> Result<PathBuf> {
    let version = env!("CARGO_PKG_VERSION");
    let name = format!("hvbak-{version}");
    for part in ["BUILD", "RPMS", "SRPMS", "stage"] {
        let folder = top.join(part);
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
    }
    for part in ["SOURCES", "SPECS", "stage"] {
        fs::create_dir_all(top.join(part))?;
    }
    let tree = top.join("stage").join(&name);
    tracked(&tree)?;
    vendor(&tree)?;
    let bill = sbom::write(&tree.join("packaging/generated"))?;
    let text = fs::read_to_string("packaging/hvbak.spec").context("packaging/hvbak.spec")?;
    ensure!(
        text.lines().any(|l| l.split_whitespace().eq(["Version:", version])),
        "packaging/hvbak.spec has another version than Cargo.toml, {version}"
    );
    bill.compare(&text)?;
    let spec = top.join("SPECS/hvbak.spec");
    fs::write(&spec, text)?;
    // The same files give the same bytes. Level 1: it is unpacked at once, or sent by something
    // that compresses.
    run(Command::new("tar")
        .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0"])
        .args(["--use-compress-program=gzip -1n", "-cf"])
        .arg(top.join("SOURCES").join(format!("{name}.tar.gz")))
        .arg("-C")
        .arg(top.join("stage"))
        .arg(&name))?;
    fs::remove_dir_all(top.join("stage"))?;
    Ok(spec)
}

/// Copies what git tracks, as it is in the work tree.
fn tracked(tree: &Path) -> Result<()> {
    let list = Command::new("git").args(["ls-files", "-z"]).output().context("start git")?;
    ensure!(list.status.success(), "git ls-files: {}", list.status);
    for path in String::from_utf8(list.stdout)?.split('\0').filter(|p| !p.is_empty()) {
        // Recorded engines are for tests alone, and by far the most of it.
        if path.starts_with("tests/fixtures/") || !Path::new(path).exists() {
            continue;
        }
        let to = tree.join(path);
        fs::create_dir_all(to.parent().unwrap_or(tree))?;
        fs::copy(path, &to).with_context(|| path.to_owned())?;
    }
    Ok(())
}

/// Puts the crates beside the sources and tells cargo to look nowhere else.
fn vendor(tree: &Path) -> Result<()> {
    run(cargo()
        .args(["vendor", "--quiet", "--locked", "--versioned-dirs", "vendor"])
        .stdout(std::process::Stdio::null())
        .current_dir(tree))?;
    let config = tree.join(".cargo/config.toml");
    let mut text = fs::read_to_string(&config).context(".cargo/config.toml")?;
    text.push_str(
        "\n[source.crates-io]\nreplace-with = \"vendored-sources\"\n\n\
         [source.vendored-sources]\ndirectory = \"vendor\"\n",
    );
    fs::write(&config, text)?;
    Ok(())
}
