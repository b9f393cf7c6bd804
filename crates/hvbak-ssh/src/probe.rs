//! What a host is, asked in one command that needs nothing but a POSIX shell.
//!
//! Every answer is the host's word: values are bounded, and go back to the host only as
//! quoted parameters.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::{
    error::{Error, Result},
    quote::script,
    transport::Session,
};

/// Where the worker package puts the worker (below the host's root directory).
pub const WORKER_PATH: &str = "/usr/libexec/hvbak/hvbak-worker";

/// What `sudo -n` permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SudoRight {
    /// Nothing, or no sudo, or not needed (root).
    #[default]
    None,
    /// The installed worker alone.
    Worker,
    /// Any command.
    All,
}

/// The answers of a host.
#[derive(Debug, Clone, Default)]
pub struct HostInfo {
    /// Numeric user id of the login.
    pub uid: u32,
    /// Login name.
    pub user: String,
    /// `$HVBAK_HOST_ROOT`: empty on real hosts, a directory tree in the lab.
    pub host_root: String,
    /// `uname -m`.
    pub arch: String,
    /// `uname -r`.
    pub kernel: String,
    /// `ID VERSION_ID` of os-release (`rhel 9.4`, `ol 8.10`).
    pub os: String,
    /// Our address as the host sees it, for `from=` in authorized_keys.
    pub client_address: Option<String>,
    /// Rights through sudo.
    pub sudo: SudoRight,
    /// Whether the kernel runs in FIPS mode.
    pub fips: bool,
    /// Seconds since 1970 on the host's clock.
    pub clock: i64,
    /// First line of `hvbak-worker --version` when it is installed.
    pub installed_worker: Option<String>,
    /// Which of the tools we ever use are there.
    pub tools: BTreeSet<String>,
}

impl HostInfo {
    /// Whether commands run as root, directly or through an unrestricted sudo.
    pub fn is_root(&self) -> bool {
        self.uid == 0 || self.sudo == SudoRight::All
    }

    /// The path of the installed worker on this host.
    pub fn worker_path(&self) -> String {
        format!("{}{WORKER_PATH}", self.host_root)
    }

    /// A command line that runs the constant `body` with `args`, as root when sudo allows
    /// it. In the lab (`host_root` set) sudo is never used: it would drop the variable.
    pub fn privileged(&self, body: &str, args: &[&str]) -> String {
        let line = script(body, args);
        if self.uses_sudo() {
            // `exec ` in front of sudo keeps the process tree flat.
            return line.replacen("exec ", "exec sudo -n ", 1);
        }
        line
    }

    pub(crate) fn uses_sudo(&self) -> bool {
        self.uid != 0 && self.host_root.is_empty() && self.sudo == SudoRight::All
    }
}

const BODY: &str = r#"
PATH=$PATH:/usr/sbin:/sbin
root=${HVBAK_HOST_ROOT:-}
uid=$(id -u)
echo "uid $uid"
echo "user $(id -un)"
echo "root $root"
echo "arch $(uname -m)"
echo "kernel $(uname -r)"
if [ -r /etc/os-release ]; then (. /etc/os-release; echo "os ${ID:-} ${VERSION_ID:-}"); fi
echo "client ${SSH_CONNECTION%% *}"
echo "clock $(date +%s)"
if [ -r /proc/sys/crypto/fips_enabled ]; then echo "fips $(cat /proc/sys/crypto/fips_enabled)"; fi
if [ -x "$root$1" ]; then echo "worker $("$root$1" --version 2>/dev/null | head -n 1)"; fi
shift
for tool in "$@"; do if command -v "$tool" >/dev/null 2>&1; then echo "tool $tool"; fi; done
if [ "$uid" != 0 ] && [ -z "$root" ] && command -v sudo >/dev/null 2>&1; then
  if sudo -n true >/dev/null 2>&1; then echo "sudo all"
  elif sudo -n -l /usr/libexec/hvbak/hvbak-worker >/dev/null 2>&1; then echo "sudo worker"
  fi
fi
echo end
"#;

const TOOLS: [&str; 11] = [
    "sha256sum",
    "sudo",
    "visudo",
    "restorecon",
    "runuser",
    "qemu-img",
    "lvm",
    "vdsm-client",
    "blkdiscard",
    "ionice",
    "python3",
];

/// Asks a host what it is.
///
/// # Errors
/// [`Error::Answer`] when the answer is not ours (a login shell that prints or refuses),
/// and connection failures.
pub async fn probe(session: &dyn Session) -> Result<HostInfo> {
    let mut args = vec![WORKER_PATH];
    args.extend(TOOLS);
    let output = session.exec(&script(BODY, &args), Bytes::new()).await?.check("look around")?;
    parse(&output.text()).ok_or_else(|| Error::Answer {
        host: session.host().to_owned(),
        action: "look around",
        answer: crate::output::one_line(&output.text()),
    })
}

/// Lines before and between ours (a chatty shell profile) are passed over; without the
/// final line the answer is incomplete and worth nothing.
fn parse(text: &str) -> Option<HostInfo> {
    let mut info = HostInfo::default();
    let mut uid = None;
    let mut complete = false;
    for line in text.lines().take(200) {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        let value: String = value.trim().chars().take(1024).collect();
        match key {
            "uid" => uid = value.parse().ok(),
            "user" => info.user = value,
            "root" => info.host_root = value.trim_end_matches('/').to_owned(),
            "arch" => info.arch = value,
            "kernel" => info.kernel = value,
            "os" => info.os = value,
            "client" => info.client_address = Some(value).filter(|v| !v.is_empty()),
            "clock" => info.clock = value.parse().ok()?,
            "fips" => info.fips = value == "1",
            "worker" => info.installed_worker = Some(value),
            "tool" => {
                info.tools.insert(value);
            }
            "sudo" if value == "all" => info.sudo = SudoRight::All,
            "sudo" if value == "worker" => info.sudo = SudoRight::Worker,
            "end" => complete = true,
            _ => {}
        }
    }
    // A relative root would send every path somewhere else.
    let sane = info.host_root.is_empty() || info.host_root.starts_with('/');
    info.uid = uid?;
    (complete && sane).then_some(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_with_a_chatty_profile_around() {
        let info = parse(
            "Welcome!\nuid 1000\nuser hv\nroot \narch x86_64\nclient 10.0.0.9\nclock 1790000000\n\
             fips 1\nworker hvbak-worker 0.1.0 protocol 1\ntool sudo\nsudo all\nend",
        )
        .unwrap();
        assert_eq!((info.uid, info.fips, info.sudo), (1000, true, SudoRight::All));
        assert_eq!(info.client_address.as_deref(), Some("10.0.0.9"));
        assert!(info.is_root() && info.privileged("id", &[]).starts_with("exec sudo -n /bin/sh"));
        for bad in ["", "uid 0\nroot /x", "uid x\nend", "uid 0\nroot rel\nend"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn no_sudo_in_the_lab() {
        let info = HostInfo {
            uid: 1,
            host_root: "/x".into(),
            sudo: SudoRight::All,
            ..HostInfo::default()
        };
        assert!(info.privileged("id", &[]).starts_with("exec /bin/sh"));
    }
}
