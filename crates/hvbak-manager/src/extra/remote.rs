//! What is run on the manager for the list of extra files: constant POSIX shell texts, and
//! what their answers mean. Paths reach them on standard input only.

use serde::Serialize;

use super::{ExtraError, ExtraPaths, FILE};
use crate::remote::Fields;

/// Reads the list. Other files that engine-backup sources are named.
pub const READ: &str = r#"R=${HVBAK_HOST_ROOT:-}
f=$R/etc/ovirt-engine-backup/engine-backup-config.d/50-hvbak-paths.sh
if [ -L "$f" ] || { [ -e "$f" ] && [ ! -f "$f" ]; }; then
  echo state=odd
elif [ -f "$f" ]; then
  echo state=there
  head -c 262144 "$f" | sed 's/^/text=/'
else
  echo state=absent
fi
for dir in "$R"/etc/ovirt-engine-backup/engine-backup-*.d; do
  [ -d "$dir" ] && find "$dir" -name '*.sh' 2>/dev/null | while IFS= read -r other; do
    [ "$other" = "$f" ] || printf 'other=%s\n' "${other#"$R"}"
  done
done
exit 0
"#;

/// What paths are on the manager: a path a line on standard input, a word a line back.
pub const KINDS: &str = r#"R=${HVBAK_HOST_ROOT:-}
while IFS= read -r path; do
  at=$R$path
  if [ -L "$at" ]; then echo kind=link
  elif [ -d "$at" ]; then echo kind=directory
  elif [ -f "$at" ]; then echo kind=file
  elif [ -e "$at" ]; then echo kind=other
  else echo kind=missing
  fi
done
"#;

/// Replaces the list by standard input: `$1` the SHA-256 it has now, `$2` the one it gets,
/// `absent` for none. Owner, mode and SELinux context of a list that is there stay. May be
/// repeated. Exit 65: something else arrived; 75: another is at it; 76: it is no plain file;
/// 77: it is neither what it should be nor what it becomes.
pub const WRITE: &str = r#"R=${HVBAK_HOST_ROOT:-}
umask 022
dir=$R/etc/ovirt-engine-backup/engine-backup-config.d
f=$dir/50-hvbak-paths.sh new=$dir/50-hvbak-paths.sh.new
mkdir -p "$dir" || exit 73
exec 9<"$dir" || exit 73
flock -w 20 9 || exit 75
if [ -L "$f" ] || { [ -e "$f" ] && [ ! -f "$f" ]; }; then exit 76; fi
now=absent
if [ -f "$f" ]; then now=$(sha256sum <"$f" | cut -c 1-64); fi
[ "$now" = "$2" ] && exit 0
[ "$now" = "$1" ] || exit 77
if [ "$2" = absent ]; then
  rm -f "$f" || exit 73
else
  rm -f "$new"
  if [ -f "$f" ]; then cp -a "$f" "$new" || exit 73; fi
  cat >"$new" || { rm -f "$new"; exit 73; }
  if [ "$(sha256sum <"$new" | cut -c 1-64)" != "$2" ]; then rm -f "$new"; exit 65; fi
  sync "$new" 2>/dev/null || sync
  if [ ! -f "$f" ] && command -v restorecon >/dev/null 2>&1; then restorecon "$new" 2>/dev/null; fi
  mv -f "$new" "$f" || exit 73
fi
sync "$dir" 2>/dev/null || sync
"#;

/// The list as it lies on the manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListFile {
    /// `None`: there is none.
    pub text: Option<String>,
    pub paths: ExtraPaths,
    /// Files of others that engine-backup sources; they may add paths, too.
    pub others: Vec<String>,
}

impl ListFile {
    /// Reads the answer of [`READ`].
    ///
    /// # Errors
    /// [`ExtraError::Foreign`] when the file is not hvbak's.
    pub fn parse(answer: &str) -> Result<Self, ExtraError> {
        let fields = Fields::new(answer);
        let mut others: Vec<_> = fields.all("other").map(ToOwned::to_owned).collect();
        others.sort();
        match fields.first("state") {
            Some("absent") => Ok(Self { text: None, paths: ExtraPaths::default(), others }),
            Some("there") => {
                let text: String = fields.all("text").flat_map(|line| [line, "\n"]).collect();
                Ok(Self { paths: ExtraPaths::parse(&text)?, text: Some(text), others })
            }
            _ => Err(ExtraError::Foreign { why: "it is no plain file" }),
        }
    }
}

/// A path of the list on the manager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Seen {
    pub path: String,
    /// `file`, `directory`, `link` (its target is not backed up), `other`, `missing`.
    pub kind: String,
}

/// Joins paths with the answer of [`KINDS`]; what was not answered is `missing`.
pub fn parse_kinds<'a>(paths: impl Iterator<Item = &'a str>, answer: &str) -> Vec<Seen> {
    let fields = Fields::new(answer);
    let kinds = fields.all("kind").chain(std::iter::repeat("missing"));
    paths.zip(kinds).map(|(path, kind)| Seen { path: path.into(), kind: kind.into() }).collect()
}

impl ExtraError {
    /// What an exit code of [`WRITE`] means.
    pub fn of_write(code: u32, said: &str) -> Self {
        match code {
            76 => Self::Foreign { why: "it is no plain file" },
            75 | 77 => Self::Changed,
            _ => Self::Write { code, said: said.chars().take(300).collect() },
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Foreign { .. } => Some(format!(
                "put its lines into a file of your own beside it, remove {FILE}, and add the paths again"
            )),
            Self::Changed => Some("give the command again".into()),
            Self::Path { .. } | Self::Write { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Write as _,
        os::unix::fs::{MetadataExt, PermissionsExt, symlink},
        path::{Path, PathBuf},
        process::{Command, Stdio},
    };

    use sha2::{Digest, Sha256};

    use super::*;

    fn sh(root: &Path, script: &str, args: &[&str], input: &str) -> (i32, String) {
        let mut child = Command::new("/bin/sh")
            .args(["-c", script, "hvbak"])
            .args(args)
            .env("HVBAK_HOST_ROOT", root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It may not want it.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let done = child.wait_with_output().unwrap();
        (done.status.code().unwrap(), String::from_utf8(done.stdout).unwrap())
    }

    fn sum(text: &str) -> String {
        Sha256::digest(text).iter().map(|b| format!("{b:02x}")).collect()
    }

    fn file(root: &Path) -> PathBuf {
        root.join(&FILE[1..])
    }

    fn text_of(paths: &[&str]) -> String {
        let mut list = ExtraPaths::default();
        for path in paths {
            list.add((*path).to_owned());
        }
        list.text().unwrap()
    }

    fn write(root: &Path, from: &str, to: &str, input: &str) -> i32 {
        sh(root, WRITE, &[from, to], input).0
    }

    fn read(root: &Path) -> Result<ListFile, ExtraError> {
        ListFile::parse(&sh(root, READ, &[], "").1)
    }

    #[test]
    fn a_list_is_written_read_replaced_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert_eq!(read(root).unwrap().text, None);
        let (one, two) = (text_of(&["/etc/hosts"]), text_of(&["/etc/hosts", "/srv/a b"]));
        for _ in 0..2 {
            assert_eq!(write(root, "absent", &sum(&one), &one), 0);
            assert_eq!(read(root).unwrap().text.as_deref(), Some(one.as_str()));
        }
        assert_eq!(fs::metadata(file(root)).unwrap().mode() & 0o777, 0o644);
        // What an administrator made of its mode stays.
        fs::set_permissions(file(root), fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(write(root, &sum(&one), &sum(&two), &two), 0);
        assert_eq!(fs::metadata(file(root)).unwrap().mode() & 0o777, 0o600);
        assert_eq!(
            read(root).unwrap().paths.iter().collect::<Vec<_>>(),
            ["/etc/hosts", "/srv/a b"]
        );
        let other = file(root).with_file_name("90-mine.sh");
        fs::write(&other, "BACKUP_PATHS=x\n").unwrap();
        assert_eq!(
            read(root).unwrap().others,
            ["/etc/ovirt-engine-backup/engine-backup-config.d/90-mine.sh"]
        );
        for _ in 0..2 {
            assert_eq!(write(root, &sum(&two), "absent", ""), 0);
            assert!(!file(root).exists() && other.exists());
        }
    }

    #[test]
    fn what_was_cut_or_changed_meanwhile_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let (one, two) = (text_of(&["/etc/hosts"]), text_of(&["/srv"]));
        // The connection broke in the middle.
        assert_eq!(write(root, "absent", &sum(&one), &one[..20]), 65);
        assert_eq!(fs::read_dir(file(root).parent().unwrap()).unwrap().count(), 0);
        assert_eq!(write(root, "absent", &sum(&one), &one), 0);
        assert_eq!(write(root, "absent", &sum(&two), &two), 77);
        assert_eq!(read(root).unwrap().text.as_deref(), Some(one.as_str()));
        fs::remove_file(file(root)).unwrap();
        symlink("/etc/passwd", file(root)).unwrap();
        assert_eq!(write(root, &sum(&one), "absent", ""), 76);
        assert!(matches!(read(root), Err(ExtraError::Foreign { .. })));
    }

    #[test]
    fn kinds_are_told_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("etc/a b")).unwrap();
        fs::write(root.join("etc/hosts"), "x").unwrap();
        symlink("hosts", root.join("etc/link")).unwrap();
        let paths = ["/etc/a b", "/etc/none", "/etc/hosts", "/etc/link"];
        let input: String = paths.iter().flat_map(|p| [*p, "\n"]).collect();
        let answer = sh(root, KINDS, &[], &input).1;
        let kinds: Vec<_> =
            parse_kinds(paths.into_iter(), &answer).into_iter().map(|s| s.kind).collect();
        assert_eq!(kinds, ["directory", "missing", "file", "link"]);
        assert_eq!(parse_kinds(["/x"].into_iter(), "")[0].kind, "missing");
    }
}
