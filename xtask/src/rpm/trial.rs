//! The packages tried: built fast, judged by rpmlint, installed by dnf from a repository into a
//! root of its own, upgraded, removed, and looked at after each.
//!
//! The root is made from local packages alone: Enterprise Linux is not here, so a stand-in
//! package gives what its glibc, systemd and shadow-utils would (busybox as the shell, useradd
//! and systemctl as a few lines that note how they were called). What the kernel and the two
//! programs do is real; what EL's own scripts would do besides is not seen.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::{rpmbuild, source, stand_in, tools, walk};
use crate::build::{run, target_dir};

const PROGRAMS: &[&str] =
    &["rpmbuild", "rpmlint", "createrepo_c", "dnf", "busybox", "chroot", "cpio", "openssl"];

/// What is tried.
#[derive(Debug, Default, clap::Args)]
pub struct TrialArgs {
    /// The packages that were built last
    #[arg(long)]
    built: bool,
}

/// Builds and tries; a machine that cannot says so, and fails where skips are failures.
pub fn run_all(args: &TrialArgs, no_skip: bool) -> Result<()> {
    let missing: Vec<&str> =
        PROGRAMS.iter().copied().filter(|p| !crate::needs::present(p)).collect();
    let root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n");
    if !missing.is_empty() || !root {
        let why = if root { format!("without {}", missing.join(", ")) } else { "not root".into() };
        println!("SKIP: packages are not tried: {why}");
        ensure!(!no_skip, "a skip is a failure here");
        return Ok(());
    }
    let top = target_dir().join("rpm");
    let packages = if args.built {
        super::packages(&top)?
    } else {
        let spec = source::make(&top)?;
        // After it: all crates are here now.
        deny()?;
        let packages = rpmbuild(&top, &spec, true)?;
        lint(&packages, &spec)?;
        packages
    };
    walk::run(&packages, &stand_in::build(&top.join("machine"), None)?, no_skip)?;
    let trial = Trial::new(&top)?;
    trial.installed(&packages)?;
    trial.upgraded(&top)?;
    trial.removed()?;
    trial.worker_alone()?;
    println!("packages: built, walked through, installed, upgraded, removed");
    Ok(())
}

/// Licences, banned crates and sources; known vulnerabilities where their list can be had.
fn deny() -> Result<()> {
    let deny = tools()?.join("cargo-deny");
    run(Command::new(&deny).args(["--offline", "check", "licenses", "bans", "sources"]))?;
    let said = Command::new(&deny).args(["check", "advisories"]).output()?;
    let words = String::from_utf8_lossy(&said.stderr);
    if words.contains("failed to fetch advisory database") {
        // No network reaches it: nothing of ours can change that, so it is told and no failure.
        println!("NOT CHECKED: advisories, because their database cannot be fetched from here");
        return Ok(());
    }
    ensure!(said.status.success(), "cargo deny check advisories:\n{words}");
    Ok(())
}

fn lint(packages: &[PathBuf], spec: &Path) -> Result<()> {
    let mut lint = Command::new("rpmlint");
    lint.args(["--config", "packaging/rpmlint.toml"]).args(packages).arg(spec);
    let said = lint.output().context("start rpmlint")?;
    let text = String::from_utf8_lossy(&said.stdout);
    ensure!(said.status.success() && !text.contains(" W: "), "rpmlint complains:\n{text}");
    Ok(())
}

fn busybox() -> Result<&'static Path> {
    let places = ["/usr/bin/busybox", "/bin/busybox"].map(Path::new);
    places.into_iter().find(|path| path.exists()).context("no busybox")
}

struct Trial {
    root: PathBuf,
    repository: PathBuf,
}

impl Trial {
    /// An empty root and a repository with the stand-in.
    fn new(top: &Path) -> Result<Self> {
        let trial = Self { root: top.join("root"), repository: top.join("repository") };
        for folder in [&trial.root, &trial.repository] {
            if folder.exists() {
                fs::remove_dir_all(folder)?;
            }
            fs::create_dir_all(folder)?;
        }
        // Scriptlets throw words away; a device would need more rights than a file.
        fs::create_dir_all(trial.root.join("dev"))?;
        fs::write(trial.root.join("dev/null"), "")?;
        stand_in::build(&top.join("stand-in"), Some(busybox()?))?;
        trial.offer(&top.join("stand-in/RPMS/x86_64"))?;
        Ok(trial)
    }

    /// Adds the packages of a folder to the repository.
    fn offer(&self, folder: &Path) -> Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            fs::copy(&path, self.repository.join(path.file_name().unwrap_or_default()))?;
        }
        run(Command::new("createrepo_c").arg("--quiet").arg(&self.repository))
    }

    fn dnf(&self, words: &[&str]) -> Result<String> {
        let mut dnf = Command::new("dnf");
        dnf.arg("-y").arg(format!("--installroot={}", self.root.display()));
        dnf.args(["--releasever=8", "--disablerepo=*", "--nogpgcheck", "--noplugins"]);
        dnf.args(["--setopt=install_weak_deps=False", "--setopt=metadata_expire=0"]);
        dnf.arg(format!(
            "--repofrompath=trial,file://{}",
            fs::canonicalize(&self.repository)?.display()
        ));
        let said = dnf.args(["--enablerepo=trial"]).args(words).output().context("start dnf")?;
        let text = String::from_utf8_lossy(&said.stdout).into_owned()
            + &String::from_utf8_lossy(&said.stderr);
        ensure!(said.status.success(), "dnf {words:?}: {}\n{text}", said.status);
        for bad in ["scriptlet failed", "warning: user", "warning: group"] {
            ensure!(!text.contains(bad), "dnf {words:?} says `{bad}`:\n{text}");
        }
        Ok(text)
    }

    fn chroot(&self, words: &[&str]) -> Result<String> {
        let said = Command::new("chroot")
            .arg(&self.root)
            .args(words)
            .env("LD_LIBRARY_PATH", "/lib64")
            .output()?;
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        let bad = String::from_utf8_lossy(&said.stderr);
        ensure!(said.status.success(), "{words:?} in the root: {}\n{text}{bad}", said.status);
        Ok(text)
    }

    fn mode(&self, path: &str) -> Result<(u32, u32, u32)> {
        let facts = fs::symlink_metadata(self.root.join(path)).with_context(|| path.to_owned())?;
        Ok((facts.permissions().mode() & 0o7777, facts.uid(), facts.gid()))
    }

    fn installed(&self, packages: &[PathBuf]) -> Result<()> {
        self.offer(packages[0].parent().context("no folder")?)?;
        self.dnf(&["install", "hvbak"])?;
        let (mode, user, group) = self.mode("var/lib/hvbak")?;
        ensure!(mode == 0o700 && user != 0 && group != 0, "var/lib/hvbak: {mode:o} {user}:{group}");
        for (path, expected) in [
            ("etc/hvbak", (0o700, user, group)),
            ("etc/sysconfig/hvbak", (0o644, 0, 0)),
            ("usr/bin/hvbak", (0o755, 0, 0)),
            ("usr/libexec/hvbak/hvbak-worker", (0o755, 0, 0)),
            ("usr/lib/systemd/system/hvbak@.timer", (0o644, 0, 0)),
            ("usr/lib/systemd/system/hvbak-verify.service", (0o644, 0, 0)),
            ("usr/lib/sysusers.d/hvbak.conf", (0o644, 0, 0)),
            ("usr/lib/tmpfiles.d/hvbak.conf", (0o644, 0, 0)),
            ("usr/share/doc/hvbak/hvbak.example.toml", (0o644, 0, 0)),
            ("usr/share/licenses/hvbak/sbom.cdx.json", (0o644, 0, 0)),
            ("usr/share/licenses/hvbak/THIRD-PARTY-LICENSES.txt", (0o644, 0, 0)),
            ("usr/share/doc/hvbak/ERRORS.md", (0o644, 0, 0)),
            ("usr/share/man/man1/hvbak.1.gz", (0o644, 0, 0)),
            ("usr/share/man/man7/hvbak-errors.7.gz", (0o644, 0, 0)),
            ("usr/share/bash-completion/completions/hvbak", (0o644, 0, 0)),
        ] {
            let found = self.mode(path)?;
            ensure!(found == expected, "{path}: {found:?} instead of {expected:?}");
        }
        let pages = fs::read_dir(self.root.join("usr/share/man/man1"))?.count();
        ensure!(pages > 20, "{pages} manual pages");
        ensure!(
            !self.root.join("etc/hvbak/hvbak.toml").exists(),
            "init would find a configuration"
        );
        self.verified("")?;
        let calls = fs::read_to_string(self.root.join("calls"))?;
        ensure!(
            calls.contains("groupadd -r hvbak") && calls.contains("useradd -r -g hvbak"),
            "{calls}"
        );
        ensure!(!calls.contains("enable"), "something was enabled: {calls}");
        // The libraries are this machine's, newer than EL8's; that older ones are enough is what
        // the requirements say, which the stand-in met.
        self.libraries()?;
        let version = self.chroot(&["/usr/bin/hvbak", "--version"])?;
        ensure!(version.trim() == concat!("hvbak ", env!("CARGO_PKG_VERSION")), "{version}");
        Ok(())
    }

    /// What `rpm -V` finds changed.
    fn verified(&self, expected: &str) -> Result<()> {
        let database = ["root/.rpmdb", "var/lib/rpm", "usr/lib/sysimage/rpm"]
            .into_iter()
            .find(|path| self.root.join(path).is_dir())
            .context("the root has no package database")?;
        let said = Command::new("rpm")
            .args(["--force-debian", "--root"])
            .arg(fs::canonicalize(&self.root)?)
            .args(["--dbpath", &format!("/{database}"), "-V", "--nodeps", "hvbak", "hvbak-worker"])
            .output()
            .context("start rpm")?;
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        let changed: Vec<&str> = text.lines().filter_map(|l| l.split_whitespace().last()).collect();
        ensure!(changed.join(" ") == expected, "rpm -V:\n{text}");
        Ok(())
    }

    fn libraries(&self) -> Result<()> {
        fs::create_dir_all(self.root.join("lib64"))?;
        for name in stand_in::LIBRARIES {
            let from = ["/lib64", "/lib/x86_64-linux-gnu", "/usr/lib64"]
                .iter()
                .map(|dir| Path::new(dir).join(name))
                .find(|path| path.exists());
            let from = from.with_context(|| format!("this machine has no {name}"))?;
            fs::copy(from, self.root.join("lib64").join(name))?;
        }
        Ok(())
    }

    /// A newer package over an edited configuration.
    fn upgraded(&self, top: &Path) -> Result<()> {
        let edited = "HVBAK_LOG=debug\n";
        fs::write(self.root.join("etc/sysconfig/hvbak"), edited)?;
        fs::write(self.root.join("etc/hvbak/hvbak.toml"), "# mine\n")?;
        fs::write(self.root.join("var/lib/hvbak/points"), "kept\n")?;
        self.verified("/etc/sysconfig/hvbak")?;
        fs::write(self.root.join("calls"), "")?;
        let newer = self.newer(top)?;
        self.offer(&newer)?;
        self.dnf(&["upgrade", "hvbak"])?;
        let listed = self.dnf(&["list", "--installed", "hvbak*"])?;
        ensure!(listed.matches("0.1.0-2").count() == 2, "{listed}");
        ensure!(
            fs::read_to_string(self.root.join("etc/sysconfig/hvbak"))? == edited,
            "the edit is gone"
        );
        ensure!(self.root.join("etc/sysconfig/hvbak.rpmnew").exists(), "no .rpmnew");
        ensure!(fs::read_to_string(self.root.join("etc/hvbak/hvbak.toml"))? == "# mine\n");
        let calls = fs::read_to_string(self.root.join("calls"))?;
        for never in ["restart", "stop", "disable", "useradd"] {
            ensure!(!calls.contains(never), "an upgrade calls `{never}`: {calls}");
        }
        self.mode("var/lib/hvbak").map(drop)
    }

    /// The same packages with the next release and another default, made of what was installed:
    /// the programs need no second build.
    fn newer(&self, top: &Path) -> Result<PathBuf> {
        let out = top.join("newer");
        fs::create_dir_all(&out)?;
        let text = fs::read_to_string("packaging/hvbak.spec")?;
        let (head, rest) = text.split_once("%prep\n").context("the spec has no %prep")?;
        let (_, rest) = rest.split_once("%pre\n").context("the spec has no %pre")?;
        let built = fs::canonicalize(&self.root)?;
        let install = format!(
            "%install\ncd {root}\nfor path in usr/bin/hvbak usr/libexec/hvbak usr/share/man/man1 \
             usr/share/man/man7 \
             usr/share/bash-completion usr/share/zsh usr/share/fish usr/lib/systemd/system \
             usr/lib/sysusers.d usr/lib/tmpfiles.d usr/share/doc/hvbak usr/share/licenses; do\n\
             mkdir -p %{{buildroot}}/${{path%/*}}\ncp -a $path %{{buildroot}}/${{path%/*}}\ndone\n\
             mkdir -p %{{buildroot}}/etc/hvbak %{{buildroot}}/etc/sysconfig %{{buildroot}}/var/lib/hvbak\n\
             echo '# a new default' > %{{buildroot}}/etc/sysconfig/hvbak\n\n",
            root = built.display()
        );
        let head = head.replace("Release:        1\n", "Release:        2\n");
        let spec = out.join("hvbak.spec");
        fs::write(&spec, format!("{head}{install}%pre\n{rest}"))?;
        run(Command::new("rpmbuild")
            .args(["-bb", "--quiet", "--nodeps", "--define", &format!("_topdir {}", out.display())])
            .arg(&spec))?;
        Ok(out.join("RPMS/x86_64"))
    }

    /// Programs and units go; configuration, key and points stay, and it is said where.
    fn removed(&self) -> Result<()> {
        fs::write(self.root.join("calls"), "")?;
        let wants = self.root.join("etc/systemd/system/timers.target.wants");
        fs::create_dir_all(&wants)?;
        std::os::unix::fs::symlink("nowhere", wants.join("hvbak@nightly.timer"))?;
        let said = self.dnf(&["remove", "--noautoremove", "hvbak", "hvbak-worker"])?;
        for words in ["/etc/hvbak stays", "/var/lib/hvbak stays", "user hvbak stays", "--revoke"] {
            ensure!(said.contains(words), "`{words}` is not said:\n{said}");
        }
        let calls = fs::read_to_string(self.root.join("calls"))?;
        ensure!(calls.contains("disable --now hvbak@nightly.timer hvbak-manager.timer"), "{calls}");
        fs::remove_dir_all(self.root.join("etc/systemd"))?;
        let found = Command::new("find")
            .arg(&self.root)
            .args(["-name", "*hvbak*", "-printf", "%P\n"])
            .output()?;
        let text = String::from_utf8_lossy(&found.stdout).into_owned();
        let mut left: Vec<&str> = text
            .lines()
            // Of dnf: what it downloaded and did.
            .filter(|path| !path.starts_with("var/cache") && !path.starts_with("var/lib/dnf"))
            .collect();
        left.sort_unstable();
        // Of a configuration that was edited rpm keeps a copy; of the one it brought, both.
        let known = [
            "etc/hvbak",
            "etc/hvbak/hvbak.toml",
            "etc/sysconfig/hvbak.rpmnew",
            "etc/sysconfig/hvbak.rpmsave",
            "var/lib/hvbak",
        ];
        ensure!(left == known, "left behind: {left:?}");
        ensure!(fs::read_to_string(self.root.join("var/lib/hvbak/points"))? == "kept\n");
        Ok(())
    }

    /// A hypervisor: the worker's package alone, in a root that has nothing else at all.
    fn worker_alone(&self) -> Result<()> {
        let empty = self.root.with_file_name("empty");
        if empty.exists() {
            fs::remove_dir_all(&empty)?;
        }
        fs::create_dir_all(&empty)?;
        let package = fs::read_dir(&self.repository)?
            .flatten()
            .map(|e| e.path())
            .find(|p| p.to_string_lossy().contains("hvbak-worker-0.1.0-1"))
            .context("the worker's package")?;
        let needs = Command::new("rpm").args(["-qpR"]).arg(&package).output()?;
        let needs = String::from_utf8_lossy(&needs.stdout).into_owned();
        let foreign: Vec<&str> = needs.lines().filter(|l| !l.starts_with("rpmlib(")).collect();
        ensure!(foreign.is_empty(), "the worker needs {foreign:?}");
        let archive = Command::new("rpm2cpio").arg(&package).output()?;
        fs::write(empty.join("archive"), archive.stdout)?;
        run(Command::new("sh").arg("-c").arg("cpio -idm --quiet < archive").current_dir(&empty))?;
        // No input: the worker greets and ends.
        let said = Command::new("chroot")
            .arg(&empty)
            .arg("/usr/libexec/hvbak/hvbak-worker")
            .stdin(std::process::Stdio::null())
            .output()?;
        let text = String::from_utf8_lossy(&said.stderr);
        ensure!(!said.stdout.is_empty(), "the worker says nothing in an empty root: {text}");
        Ok(())
    }
}
