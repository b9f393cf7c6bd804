//! The sudo right of a login that is not root: one drop-in file, checked before it counts.
//!
//! A broken file in sudoers.d locks everybody out of sudo, so `visudo` judges it under a
//! name that sudo ignores (it contains a dot), and only then it gets its name.

use bytes::Bytes;

use super::authorized::{Change, checked_user, odd, run};
use crate::{
    error::Result,
    probe::{HostInfo, WORKER_PATH},
    transport::Session,
};

/// How much root the login gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SudoScope {
    /// The installed worker alone (`worker = "installed"`). The narrow choice.
    InstalledWorker,
    /// Any command without a password, which pushing needs: who may run a pushed program
    /// as root is root, and the file says so openly.
    All,
}

/// Prints `unchanged`, `installed` or `replaced`; the text on stdin.
const INSTALL: &str = r#"
set -eu
umask 077
PATH=$PATH:/usr/sbin:/sbin
dir=${HVBAK_HOST_ROOT:-}/etc/sudoers.d
file=$dir/hvbak
if ! command -v visudo >/dev/null 2>&1; then echo "sudo is not installed" >&2; exit 69; fi
if [ -L "$file" ]; then echo "$file is a symbolic link" >&2; exit 73; fi
tmp=$(mktemp "$dir/hvbak.XXXXXXXX")
trap 'rm -f -- "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
cat >"$tmp"
chmod 0440 "$tmp"
visudo -cqf "$tmp" >&2
if [ -e "$file" ] && cmp -s -- "$tmp" "$file"; then echo unchanged; exit 0; fi
if [ -e "$file" ]; then did=replaced; else did=installed; fi
dd if=/dev/null of="$tmp" conv=notrunc,fsync 2>/dev/null
mv -f -- "$tmp" "$file"
if command -v restorecon >/dev/null 2>&1; then restorecon "$file" >/dev/null 2>&1 || :; fi
echo "$did"
"#;

const REMOVE: &str = r#"
file=${HVBAK_HOST_ROOT:-}/etc/sudoers.d/hvbak
if [ -e "$file" ] || [ -L "$file" ]; then rm -f -- "$file" && echo removed; else echo absent; fi
"#;

/// The text of the drop-in.
fn drop_in(user: &str, scope: SudoScope) -> Result<String> {
    let user = checked_user(user)?;
    let what = match scope {
        SudoScope::InstalledWorker => WORKER_PATH,
        SudoScope::All => "ALL",
    };
    Ok(format!(
        "# Written by hvbak enroll; removed by hvbak enroll --revoke.\n\
         Defaults:{user} !requiretty\n\
         {user} ALL=(root) NOPASSWD: {what}\n"
    ))
}

/// Writes `/etc/sudoers.d/hvbak` for `user`; the session must be root or have sudo.
///
/// # Errors
/// [`crate::Error::Command`] when sudo is missing, `visudo` objects or rights lack.
pub async fn install_sudoers(
    session: &dyn Session,
    info: &HostInfo,
    user: &str,
    scope: SudoScope,
) -> Result<Change> {
    let text = drop_in(user, scope)?;
    let command = info.privileged(INSTALL, &[]);
    let answer = run(session, &command, text, "write the sudo rule").await?;
    match answer.as_str() {
        "unchanged" => Ok(Change::Unchanged),
        "installed" => Ok(Change::Installed),
        "replaced" => Ok(Change::Replaced),
        _ => Err(odd(session, "write the sudo rule", &answer)),
    }
}

/// Removes the drop-in; says whether there was one.
///
/// # Errors
/// [`crate::Error::Command`] when rights lack.
pub async fn remove_sudoers(session: &dyn Session, info: &HostInfo) -> Result<bool> {
    let answer =
        run(session, &info.privileged(REMOVE, &[]), Bytes::new(), "remove the sudo rule").await?;
    match answer.as_str() {
        "removed" => Ok(true),
        "absent" => Ok(false),
        _ => Err(odd(session, "remove the sudo rule", &answer)),
    }
}
