//! Our line in authorized_keys: put in, taken out, everything else left as it was.
//!
//! The file is also the engine's way in: it is never shortened by anything but our own
//! lines, and replaced by fsync and rename only. A symbolic link in its place is refused.

use bytes::Bytes;

use crate::{
    error::{Error, Result},
    hostkey::HostKey,
    output::{neutralise, one_line},
    probe::HostInfo,
    quote::script,
    transport::Session,
};

/// What to let in, from where, under which name.
#[derive(Debug, Clone)]
pub struct Grant {
    /// Public key line (`algorithm base64 …`); its own comment is not used.
    pub key: String,
    /// Addresses, networks (`10.0.0.0/8`) or name patterns from which the key works;
    /// empty means from anywhere.
    pub from: Vec<String>,
    /// The comment of the line, by which it is found again: `hvbak:<repository id>`.
    pub tag: String,
}

/// What an idempotent step found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was there already.
    Unchanged,
    /// It was not there.
    Installed,
    /// It was there in another form (other options).
    Replaced,
}

/// Which lines to remove.
#[derive(Debug, Clone)]
pub enum Revoke {
    /// Lines with this public key.
    Key(String),
    /// Lines whose comment is this tag.
    Tag(String),
}

impl Grant {
    /// The line for authorized_keys. `restrict` (OpenSSH 7.2) takes away forwarding,
    /// agent, X11, pty and `~/.ssh/rc`, also those that do not exist yet.
    ///
    /// # Errors
    /// [`Error::BadPin`] and [`Error::BadValue`] for anything that could end the line,
    /// the option or the comment early.
    pub fn line(&self) -> Result<String> {
        let key: HostKey = self.key.parse()?;
        let from = self.source_option()?;
        Ok(format!("restrict{from} {} {}", key.line, checked_tag(&self.tag)?))
    }

    fn source_option(&self) -> Result<String> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b".:/*?!-_%".contains(&b);
        for part in &self.from {
            if part.is_empty() || !part.bytes().all(plain) {
                let text = part.chars().take(80).collect();
                return Err(Error::BadValue { what: "address for from=", text });
            }
        }
        if self.from.is_empty() {
            return Ok(String::new());
        }
        Ok(format!(",from=\"{}\"", self.from.join(",")))
    }
}

fn checked_tag(tag: &str) -> Result<&str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:@".contains(&b);
    if tag.is_empty() || tag.len() > 128 || !tag.bytes().all(plain) {
        return Err(Error::BadValue { what: "key tag", text: tag.chars().take(80).collect() });
    }
    Ok(tag)
}

/// `$1` install|revoke, `$2` key data to match, `$3` tag to match; the line on stdin.
/// Prints `unchanged`, `installed`, `replaced` or `removed N`.
const EDIT: &str = r#"
set -eu
umask 077
PATH=$PATH:/usr/sbin:/sbin
mode=$1
BLOB=$2 TAG=$3
export BLOB TAG
IFS= read -r line || [ "$mode" = revoke ]
if [ -n "${HVBAK_HOST_ROOT:-}" ]; then home=$HVBAK_HOST_ROOT/root; mkdir -p -- "$home"
else home=${HOME:?}; fi
dir=$home/.ssh
file=$dir/authorized_keys
for path in "$dir" "$file"; do
  if [ -L "$path" ]; then echo "$path is a symbolic link" >&2; exit 73; fi
done
if [ ! -e "$file" ] && [ "$mode" = revoke ]; then echo "removed 0"; exit 0; fi
[ -d "$dir" ] || mkdir -m 700 -- "$dir"
ours='
  function mine(  i) {
    if ($0 ~ /^[ \t]*#/) return 0
    if (ENVIRON["TAG"] != "" && $NF == ENVIRON["TAG"]) return 1
    if (ENVIRON["BLOB"] != "") for (i = 1; i <= NF; i++) if ($i == ENVIRON["BLOB"]) return 1
    return 0
  }'
tmp=$(mktemp "$dir/.hvbak.XXXXXXXX")
trap 'rm -f -- "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
hits=0
if [ -e "$file" ]; then
  cp -p -- "$file" "$tmp"
  hits=$(awk "$ours"' mine() { n++ } END { print n + 0 }' "$file")
  if [ "$mode" = install ] && [ "$hits" = 1 ] && grep -qxF -e "$line" -- "$file"; then
    echo unchanged
    exit 0
  fi
  if [ "$mode" = revoke ] && [ "$hits" = 0 ]; then echo "removed 0"; exit 0; fi
  awk "$ours"' !mine()' "$file" >"$tmp"
fi
if [ "$mode" = install ]; then printf '%s\n' "$line" >>"$tmp"; fi
# An fsync with stock tools: without it XFS may show an empty file after a power cut.
dd if=/dev/null of="$tmp" conv=notrunc,fsync 2>/dev/null
mv -f -- "$tmp" "$file"
if command -v restorecon >/dev/null 2>&1; then restorecon "$dir" "$file" >/dev/null 2>&1 || :; fi
if [ "$mode" = revoke ]; then echo "removed $hits"
elif [ "$hits" = 0 ]; then echo installed
else echo replaced; fi
"#;

/// Runs `$2` as user `$1` with the home directory of that user. Only root may. What lies
/// in a home directory belongs to its user, so root itself must not write there.
const AS_USER: &str = r#"
set -eu
PATH=$PATH:/usr/sbin:/sbin
user=$1 body=$2
shift 2
HOME=$(getent passwd "$user" | cut -d: -f6)
if [ -z "$HOME" ]; then echo "no user $user" >&2; exit 67; fi
export HOME
exec runuser -u "$user" -- /bin/sh -c "$body" hvbak "$@"
"#;

/// Puts the line into the authorized_keys of `user` (default: of the login itself).
/// Repeating it changes nothing; a line with the same key and other options is replaced.
///
/// # Errors
/// [`Error::BadValue`], [`Error::Command`], connection failures.
pub async fn install(
    session: &dyn Session,
    info: &HostInfo,
    user: Option<&str>,
    grant: &Grant,
) -> Result<Change> {
    let line = grant.line()?;
    let blob = blob_of(&grant.key)?;
    let command = command(info, user, &["install", &blob, ""])?;
    let answer = run(session, &command, format!("{line}\n"), "install the key").await?;
    match answer.as_str() {
        "unchanged" => Ok(Change::Unchanged),
        "installed" => Ok(Change::Installed),
        "replaced" => Ok(Change::Replaced),
        _ => Err(odd(session, "install the key", &answer)),
    }
}

/// Removes our lines; says how many went. None is no error.
///
/// # Errors
/// [`Error::BadValue`], [`Error::Command`], connection failures.
pub async fn revoke(
    session: &dyn Session,
    info: &HostInfo,
    user: Option<&str>,
    what: &Revoke,
) -> Result<u64> {
    let (blob, tag) = match what {
        Revoke::Key(line) => (blob_of(line)?, ""),
        Revoke::Tag(tag) => (String::new(), checked_tag(tag)?),
    };
    let command = command(info, user, &["revoke", &blob, tag])?;
    let answer = run(session, &command, String::new(), "revoke the key").await?;
    let count = answer.strip_prefix("removed ").and_then(|n| n.parse().ok());
    count.ok_or_else(|| odd(session, "revoke the key", &answer))
}

fn command(info: &HostInfo, user: Option<&str>, args: &[&str]) -> Result<String> {
    match user {
        Some(user) if user != info.user && info.host_root.is_empty() => {
            let mut all = vec![checked_user(user)?, EDIT];
            all.extend(args);
            Ok(info.privileged(AS_USER, &all))
        }
        _ => Ok(script(EDIT, args)),
    }
}

pub(super) fn checked_user(user: &str) -> Result<&str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let starts_well = user.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !starts_well || user.len() > 64 || !user.bytes().all(plain) {
        return Err(Error::BadValue { what: "user name", text: user.chars().take(80).collect() });
    }
    Ok(user)
}

fn blob_of(line: &str) -> Result<String> {
    let key: HostKey = line.parse()?;
    Ok(key.line.rsplit(' ').next().unwrap_or_default().to_owned())
}

pub(super) async fn run(
    session: &dyn Session,
    command: &str,
    stdin: impl Into<Bytes>,
    action: &'static str,
) -> Result<String> {
    let output = session.exec(command, stdin.into()).await?.check(action)?;
    // A chatty shell profile may print first; the last line is ours.
    Ok(neutralise(&output.stdout).trim_end().lines().last().unwrap_or_default().to_owned())
}

pub(super) fn odd(session: &dyn Session, action: &'static str, answer: &str) -> Error {
    Error::Answer { host: session.host().to_owned(), action, answer: one_line(answer) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 \
        AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ someone@there";

    fn grant(from: &[&str], tag: &str) -> Grant {
        Grant {
            key: KEY.into(),
            from: from.iter().map(ToString::to_string).collect(),
            tag: tag.into(),
        }
    }

    #[test]
    fn the_line_is_restricted_and_ours() {
        let line = grant(&["10.0.0.1", "fd00::/8"], "hvbak:1").line().unwrap();
        assert!(line.starts_with("restrict,from=\"10.0.0.1,fd00::/8\" ssh-ed25519 AAAA"));
        assert!(line.ends_with(" hvbak:1") && !line.contains("someone"));
        assert!(grant(&[], "hvbak:1").line().unwrap().starts_with("restrict ssh-ed25519"));
    }

    #[test]
    fn nothing_can_break_out_of_the_line() {
        for from in ["", "a b", "1.1.1.1\"", "x\ny", "a,b", "\\"] {
            assert!(grant(&[from], "hvbak:1").line().is_err(), "{from}");
        }
        for tag in ["", "a b", "x\ny", "'"] {
            assert!(grant(&[], tag).line().is_err(), "{tag}");
        }
        for user in ["", "-x", "a b", "a;b", "$(id)"] {
            assert!(checked_user(user).is_err(), "{user}");
        }
    }
}
