//! Getting a worker that speaks our protocol onto a host, and away again.
//!
//! The installed worker wins where it fits (fapolicyd trusts packaged files alone).
//! Otherwise the binary is pushed into a 0700 directory below `/run`: tmpfs, never /tmp
//! (noexec on hardened hosts, and everybody's). It is written under another name, its
//! SHA-256 is taken *on the host*, and only then it gets the name that may be run.
//! The directory is named by a tag the caller chooses, so that its removal can be written
//! to the journal before anything is sent.

use std::{path::PathBuf, str::FromStr};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::{
    error::{Error, Result},
    output::{Output, one_line},
    probe::{HostInfo, SudoRight},
    quote::{script, sh_quote},
    transport::Session,
};

/// Which worker to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WorkerMode {
    /// The installed one when it fits, else push.
    #[default]
    Auto,
    /// Only the installed one.
    Installed,
    /// Always push.
    Push,
}

impl FromStr for WorkerMode {
    type Err = Error;
    /// Reads `auto`, `installed` or `push`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "installed" => Ok(Self::Installed),
            "push" => Ok(Self::Push),
            _ => {
                Err(Error::BadValue { what: "worker mode", text: text.chars().take(80).collect() })
            }
        }
    }
}

/// Where a worker may come from.
#[derive(Debug, Clone)]
pub struct WorkerSource {
    /// Which one to use.
    pub mode: WorkerMode,
    /// The local static binary, for pushing.
    pub binary: Option<PathBuf>,
    /// Names the directory `/run/hvbak-<tag>`: lower-case letters, digits and `-`, at
    /// most 64; the job id is a good one.
    pub tag: String,
    /// The protocol version that `--version` must name (`protocol 1`).
    pub protocol: u32,
}

/// A worker ready to be started.
#[derive(Debug, Clone)]
pub struct WorkerCommand {
    /// The command line; arguments may be appended after a space, quoted.
    pub command: String,
    /// Path of the program on the host.
    pub path: String,
    /// Command that removes what was pushed; `None` for an installed worker.
    pub remove: Option<String>,
    /// What it says about its version.
    pub version: String,
}

/// A binary larger than this is no worker of ours.
const MAX_BINARY: u64 = 64 << 20;

const PUSH: &str = r#"
set -eu
umask 077
dir=$1 name=$2 want=$3
[ -d "${dir%/*}" ] || mkdir -p "${dir%/*}"
if ! mkdir -m 700 "$dir" 2>/dev/null; then
  if [ -L "$dir" ] || [ ! -d "$dir" ] || [ "$(stat -c '%u %a' "$dir")" != "$(id -u) 700" ]; then
    echo "$dir cannot be made, or is not ours" >&2
    exit 73
  fi
fi
tmp=$dir/.upload.$$
trap 'rm -f -- "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
cat >"$tmp"
sum=$(sha256sum <"$tmp")
sum=${sum%% *}
if [ "$sum" != "$want" ]; then
  rm -f -- "$tmp"
  rmdir -- "$dir" 2>/dev/null || :
  echo "damaged $sum"
  exit 65
fi
chmod 700 "$tmp"
mv -f -- "$tmp" "$dir/$name"
echo "stored"
"$dir/$name" --version
"#;

const REMOVE: &str = r#"
dir=$1
case $dir in */run/hvbak-?*) ;; *) exit 64 ;; esac
rm -rf -- "$dir"
"#;

/// Finds or pushes a worker that speaks `source.protocol`.
///
/// # Errors
/// [`Error::NoWorker`], [`Error::WorkerRefused`], [`Error::UploadDamaged`],
/// [`Error::LocalWorker`], [`Error::BadValue`] for the tag, and connection failures.
pub async fn ensure_worker(
    session: &dyn Session,
    info: &HostInfo,
    source: &WorkerSource,
) -> Result<WorkerCommand> {
    let no_worker = |found: String| Error::NoWorker {
        host: session.host().to_owned(),
        found,
        needed: source.protocol.to_string(),
    };
    if source.mode != WorkerMode::Push {
        match &info.installed_worker {
            Some(version) if speaks(version, source.protocol) => {
                return Ok(installed(info, version));
            }
            found if source.mode == WorkerMode::Installed => {
                return Err(no_worker(match found {
                    Some(version) => format!("installed is `{version}`"),
                    None => format!("{} is not installed", info.worker_path()),
                }));
            }
            _ => {}
        }
    }
    let Some(binary) = &source.binary else {
        return Err(no_worker("none installed that fits, and none to push".into()));
    };
    let local = |cause| Error::LocalWorker { path: binary.clone(), cause };
    let size = tokio::fs::metadata(binary).await.map_err(local)?.len();
    if size > MAX_BINARY {
        return Err(local(std::io::Error::other("larger than 64 MiB")));
    }
    let bytes = Bytes::from(tokio::fs::read(binary).await.map_err(local)?);
    if let Some(arch) = elf_machine(&bytes)
        && !info.arch.is_empty()
        && arch != info.arch
    {
        return Err(no_worker(format!("host is {}, the local worker is for {arch}", info.arch)));
    }
    push(session, info, source, bytes).await
}

/// Removes a pushed worker; nothing to do for an installed one.
///
/// # Errors
/// [`Error::Command`] and connection failures.
pub async fn remove_worker(session: &dyn Session, worker: &WorkerCommand) -> Result<()> {
    if let Some(remove) = &worker.remove {
        session.exec(remove, Bytes::new()).await?.check("remove the worker")?;
    }
    Ok(())
}

/// The directory that a push with this tag uses on this host.
///
/// # Errors
/// [`Error::BadValue`] for a tag that is not a plain name.
pub fn push_dir(info: &HostInfo, tag: &str) -> Result<String> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if tag.is_empty() || tag.len() > 64 || !tag.bytes().all(plain) {
        return Err(Error::BadValue { what: "worker tag", text: tag.chars().take(80).collect() });
    }
    Ok(format!("{}/run/hvbak-{tag}", info.host_root))
}

/// The command that removes what a push with this tag left, for the journal. Running it
/// when nothing is there is no error.
///
/// # Errors
/// [`Error::BadValue`] for a tag that is not a plain name.
pub fn remove_command(info: &HostInfo, tag: &str) -> Result<String> {
    Ok(info.privileged(REMOVE, &[&push_dir(info, tag)?]))
}

fn installed(info: &HostInfo, version: &str) -> WorkerCommand {
    let path = info.worker_path();
    let sudo = info.uid != 0 && info.host_root.is_empty() && info.sudo != SudoRight::None;
    let prefix = if sudo { "exec sudo -n " } else { "exec " };
    WorkerCommand {
        command: format!("{prefix}{}", sh_quote(&path)),
        path,
        remove: None,
        version: version.to_owned(),
    }
}

async fn push(
    session: &dyn Session,
    info: &HostInfo,
    source: &WorkerSource,
    bytes: Bytes,
) -> Result<WorkerCommand> {
    let dir = push_dir(info, &source.tag)?;
    let remove = remove_command(info, &source.tag)?;
    let name = format!(
        "hvbak-worker-{}-{}",
        env!("CARGO_PKG_VERSION"),
        &blake3::hash(&bytes).to_hex()[..16]
    );
    let want: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    let command = info.privileged(PUSH, &[&dir, &name, &want]);
    let output = session.exec(&command, bytes).await?;
    match judge(session.host(), &output, &want, source.protocol) {
        Ok(version) => {
            let path = format!("{dir}/{name}");
            let prefix = if info.uses_sudo() { "exec sudo -n " } else { "exec " };
            Ok(WorkerCommand {
                command: format!("{prefix}{}", sh_quote(&path)),
                path,
                remove: Some(remove),
                version,
            })
        }
        Err(error) => {
            // Nothing unusable stays behind; the first error is the one to tell.
            let _ = session.exec(&remove, Bytes::new()).await;
            Err(error)
        }
    }
}

/// Reads the answer of the push script: `damaged SUM`, or `stored` and the version line.
fn judge(host: &str, output: &Output, want: &str, protocol: u32) -> Result<String> {
    let host = host.to_owned();
    let text = output.text();
    let mut lines = text.lines().skip_while(|l| *l != "stored" && !l.starts_with("damaged "));
    match lines.next() {
        Some("stored") => {}
        Some(damaged) => {
            let found = damaged.trim_start_matches("damaged ").chars().take(64).collect();
            return Err(Error::UploadDamaged { host, expected: want.to_owned(), found });
        }
        None => {
            return Err(Error::Command {
                host,
                action: "store the worker",
                status: output.status.clone(),
                stderr: one_line(&output.stderr),
            });
        }
    }
    if !output.status.success() {
        let stderr = one_line(&output.stderr);
        return Err(Error::WorkerRefused { host, status: output.status.clone(), stderr });
    }
    let version = one_line(lines.next().unwrap_or_default());
    if speaks(&version, protocol) {
        return Ok(version);
    }
    Err(Error::NoWorker {
        host,
        found: format!("the pushed one is `{version}`"),
        needed: protocol.to_string(),
    })
}

/// Whether a version line (`hvbak-worker 0.1.0 protocol 1`, several numbers allowed) names
/// the protocol.
fn speaks(version: &str, protocol: u32) -> bool {
    let separator = |c: char| !c.is_ascii_alphanumeric() && c != '.';
    version
        .split(separator)
        .filter(|word| !word.is_empty())
        .skip_while(|word| !word.starts_with("protocol"))
        .skip(1)
        .map_while(|word| word.parse::<u32>().ok())
        .any(|spoken| spoken == protocol)
}

/// The machine of an ELF file as `uname -m` calls it; `None` for anything else.
fn elf_machine(bytes: &[u8]) -> Option<&'static str> {
    let little_endian_elf = bytes.get(..4)? == b"\x7fELF" && *bytes.get(5)? == 1;
    match (little_endian_elf, bytes.get(18..20)?) {
        (true, [62, 0]) => Some("x86_64"),
        (true, [183, 0]) => Some("aarch64"),
        (true, [21, 0]) => Some("ppc64le"),
        _ => None,
    }
}

/// A command line that starts `worker` with arguments.
pub fn worker_line(worker: &WorkerCommand, args: &[&str]) -> String {
    args.iter().fold(worker.command.clone(), |line, arg| format!("{line} {}", sh_quote(arg)))
}

/// A command that lists leftover push directories of any run (names only), for cleanup to
/// compare with its journal.
pub fn list_command(info: &HostInfo) -> String {
    script(
        r#"for d in "$1"/run/hvbak-*; do if [ -d "$d" ]; then echo "${d##*/}"; fi; done"#,
        &[&info.host_root],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_lines() {
        for (line, good) in [
            ("hvbak-worker 0.1.0 protocol 1", true),
            ("hvbak-worker 0.1.0 (protocol 1)", true),
            ("hvbak-worker 1.0.0 protocols 3,2,1 build x", true),
            ("hvbak-worker 0.1.0 protocol 11", false),
            ("hvbak-worker 1", false),
            ("", false),
        ] {
            assert_eq!(speaks(line, 1), good, "{line}");
        }
    }

    #[test]
    fn tags_are_plain_names() {
        let info = HostInfo::default();
        assert_eq!(push_dir(&info, "a-1").unwrap(), "/run/hvbak-a-1");
        for bad in ["", "..", "a/b", "A", "a b", &"x".repeat(65)] {
            assert!(push_dir(&info, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_machine_of_a_program() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(elf_machine(&own), Some(std::env::consts::ARCH));
        assert_eq!(elf_machine(b"#!/bin/sh\n"), None);
    }
}
