//! What is run on the manager around engine-backup: constant POSIX shell texts, and what
//! their answers mean.
//!
//! A run has a directory of its own below a directory of hvbak's, and holds a `flock` from
//! before its start until its last child ended, so that two runs never overlap and a dead
//! run is told from a slow one. It is detached: no terminal, no pipe that a broken
//! connection could close. Values reach the texts as positional parameters only.

use std::collections::BTreeMap;

use crate::{
    transcript::Ended,
    version::{Version, VersionError},
};

/// Looks around. `$1` work directory, `$2` program. `HVBAK_HOST_ROOT` is the root in labs.
pub const LOOK: &str = r#"R=${HVBAK_HOST_ROOT:-}
umask 077
echo "root=$R"
echo "uid=$(id -u)"
echo "name=$(hostname -f 2>/dev/null || hostname)"
conf=$R/usr/share/ovirt-engine/services/ovirt-engine/ovirt-engine.conf
echo "version=$(sed -n 's/^PACKAGE_VERSION=//p' "$conf" 2>/dev/null | tail -n 1 | tr -d "\"'")"
[ -x "$R$2" ] && echo program=yes
for tool in flock setsid sha256sum tar; do
  command -v "$tool" >/dev/null 2>&1 || echo "missing=$tool"
done
at=$R$1
while [ ! -d "$at" ]; do at=$(dirname "$at"); done
echo "free_kib=$(df -Pk "$at" | awk 'NR == 2 { print $4 }')"
files=0
for dir in etc/ovirt-engine etc/ovirt-engine-dwh etc/pki/ovirt-engine etc/grafana var/lib/ovirt-engine var/lib/grafana var/lib/openvswitch; do
  [ -d "$R/$dir" ] || continue
  kib=$(du -skx "$R/$dir" 2>/dev/null | cut -f 1)
  files=$((files + ${kib:-0}))
done
echo "files_kib=$files"
size() {
  [ -r "$1" ] || return 0
  command -v psql >/dev/null 2>&1 || { echo "unknown=$2"; return 0; }
  bytes=$( . "$1"
    eval "h=\$$2_DB_HOST p=\$$2_DB_PORT u=\$$2_DB_USER d=\$$2_DB_DATABASE PGPASSWORD=\$$2_DB_PASSWORD"
    export PGPASSWORD
    PGCONNECT_TIMEOUT=10 psql -w -U "$u" -h "$h" -p "$p" -Atc 'select pg_database_size(current_database())' "$d" </dev/null 2>/dev/null)
  case $bytes in ''|*[!0-9]*) echo "unknown=$2";; *) echo "database=$2:$bytes";; esac
}
size "$R/etc/ovirt-engine/engine.conf.d/10-setup-database.conf" ENGINE
size "$R/etc/ovirt-engine/engine.conf.d/10-setup-dwh-database.conf" DWH
size "$R/etc/ovirt-engine/engine.conf.d/10-setup-cinderlib-database.conf" CINDERLIB
size "$R/etc/ovirt-engine/engine.conf.d/10-setup-keycloak-database.conf" KEYCLOAK
base=$R$1
[ -d "$base" ] && for dir in "$base"/*/; do
  [ -f "$dir/owner" ] && echo "run=$(basename "$dir"):$(head -c 100 "$dir/owner" | tr -cd 'A-Za-z0-9-')"
done
exit 0
"#;

/// Starts a run and returns at once. `$1` work directory, `$2` name, `$3` owner, then the
/// program and its arguments. Exit 75: another run holds the lock.
pub const START: &str = r#"umask 077
base=$1 name=$2 owner=$3
shift 3
mkdir -p "$base" && chmod 700 "$base" || exit 73
exec 9>>"$base/lock" || exit 73
flock -n 9 || exit 75
mkdir "$base/$name" && mkdir "$base/$name/tmp" || exit 76
printf '%s\n' "$owner" >"$base/$name/owner"
printf '%s\n' "$@" >"$base/$name/command"
setsid sh -c 'dir=$0
echo $$ >"$dir/pid"
"$@" </dev/null >"$dir/stdout" 2>"$dir/stderr"
echo $? >"$dir/rc.new"
sync "$dir/rc.new" 2>/dev/null || sync
mv "$dir/rc.new" "$dir/rc"' "$base/$name" "$@" </dev/null >/dev/null 2>&1 &
echo started
"#;

/// How far a run is. `$1` work directory, `$2` name.
pub const POLL: &str = r#"dir=$1/$2
[ -d "$dir" ] || { echo state=absent; exit 0; }
if [ ! -f "$dir/rc" ] && ( exec 9>>"$1/lock"; flock -n -s 9 ); then
  # The lock is free: it ended just now, or died.
  [ -f "$dir/rc" ] || { echo state=vanished; ended=yes; }
fi
if [ -f "$dir/rc" ]; then
  echo state=ended
  echo "rc=$(tr -cd 0-9 <"$dir/rc")"
elif [ -z "${ended:-}" ]; then
  echo state=running
fi
bytes() { [ -f "$dir/$1" ] && echo "$1=$(wc -c <"$dir/$1" | tr -d ' ')"; }
bytes engine.backup
bytes engine-backup.log
echo "tmp_kib=$(du -sk "$dir/tmp" 2>/dev/null | cut -f 1)"
echo "line=$(tail -n 1 "$dir/stdout" 2>/dev/null)"
exit 0
"#;

/// The sum of a file of a run. `$1` work directory, `$2` name, `$3` file.
pub const SUM: &str = r#"exec sha256sum <"$1/$2/$3""#;

/// A file of a run on standard output.
pub const SEND: &str = r#"exec cat <"$1/$2/$3""#;

/// Ends a run that is still at work. `$1` work directory, `$2` name.
pub const STOP: &str = r#"dir=$1/$2
[ -d "$dir" ] || exit 0
[ -f "$dir/rc" ] && exit 0
exec 9>>"$1/lock"
flock -n -s 9 && exit 0
# It may have begun this moment and not have said who it is.
for try in 1 2 3 4 5; do [ -s "$dir/pid" ] && break; sleep 1; done
pid=$(tr -cd 0-9 <"$dir/pid" 2>/dev/null)
[ -n "$pid" ] || exit 76
kill -s TERM -- "-$pid" 2>/dev/null
flock -w 20 -s 9 && exit 0
kill -s KILL -- "-$pid" 2>/dev/null
flock -w 10 -s 9
"#;

/// Removes what a run left: archive, log, temporary folder. `$1` work directory, `$2` name.
/// Exit 75: the run is still at work.
pub const SWEEP: &str = r#"case $2 in ''|*[!A-Za-z0-9-]*) exit 64;; esac
dir=$1/$2
[ -d "$dir" ] || exit 0
if [ ! -f "$dir/rc" ]; then
  exec 9>>"$1/lock"
  flock -n -s 9 || exit 75
fi
rm -rf -- "$dir"
"#;

/// Exit code of [`START`] and [`SWEEP`] while a run is at work.
pub const BUSY: u32 = 75;

/// An answer that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    #[error("no engine-backup is installed there ({program} and its version)")]
    NotAManager { program: String },
    #[error(transparent)]
    Version(#[from] VersionError),
    #[error("the answer of the manager lacks `{what}`")]
    Lacks { what: &'static str },
}

/// What [`LOOK`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// Prefix of all paths (labs).
    pub root: String,
    pub is_root: bool,
    /// What the machine calls itself.
    pub name: String,
    pub version: Version,
    pub missing_tools: Vec<String>,
    /// Bytes free where the run would work.
    pub free: u64,
    /// Bytes of the directories that `files` takes.
    pub files: u64,
    /// Bytes on disk by database.
    pub databases: BTreeMap<String, u64>,
    /// Databases whose size could not be asked.
    pub unknown: Vec<String>,
    /// Directories of earlier runs and who started them.
    pub runs: Vec<(String, String)>,
}

impl Look {
    /// Reads the answer.
    pub fn parse(text: &str, program: &str) -> Result<Self, AnswerError> {
        let fields = Fields::new(text);
        let version = fields.first("version").unwrap_or_default();
        if fields.first("program").is_none() || version.is_empty() {
            return Err(AnswerError::NotAManager { program: program.into() });
        }
        let kib = |what| {
            let number = fields.first(what).and_then(|v| v.parse::<u64>().ok());
            number.map(|n| n.saturating_mul(1024)).ok_or(AnswerError::Lacks { what })
        };
        let pairs = |what| {
            fields.all(what).filter_map(|v| v.split_once(':')).map(|(a, b)| (a.to_owned(), b))
        };
        Ok(Self {
            root: fields.first("root").unwrap_or_default().to_owned(),
            is_root: fields.first("uid") == Some("0"),
            name: fields.first("name").unwrap_or_default().to_owned(),
            version: version.parse()?,
            missing_tools: fields.all("missing").map(ToOwned::to_owned).collect(),
            free: kib("free_kib")?,
            files: kib("files_kib")?,
            databases: pairs("database").filter_map(|(n, b)| Some((n, b.parse().ok()?))).collect(),
            unknown: fields.all("unknown").map(ToOwned::to_owned).collect(),
            runs: pairs("run").map(|(name, owner)| (name, owner.to_owned())).collect(),
        })
    }

    /// Bytes that a backup may need where it works: every dump as large as its database,
    /// `files`, and the archive beside them (engine-backup.md §11).
    pub fn needed(&self) -> u64 {
        let dumps = self.databases.values().fold(0_u64, |sum, b| sum.saturating_add(*b));
        // 10,000 KiB is where the program itself begins to complain.
        dumps.saturating_add(self.files).saturating_mul(2).saturating_add(10_000 << 10)
    }
}

/// Where a run is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// There is no such run.
    Absent,
    Running,
    Ended(Ended),
}

/// What [`POLL`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Poll {
    pub state: State,
    /// Bytes of the archive, the log, and the temporary folder so far.
    pub archive: u64,
    pub log: u64,
    pub temporary: u64,
    /// Its last line.
    pub line: String,
}

impl Poll {
    /// Reads the answer.
    pub fn parse(text: &str) -> Result<Self, AnswerError> {
        let fields = Fields::new(text);
        let number = |what| fields.first(what).and_then(|v| v.parse().ok()).unwrap_or(0_u64);
        let state = match fields.first("state") {
            Some("absent") => State::Absent,
            Some("running") => State::Running,
            Some("vanished") => State::Ended(Ended::Vanished),
            Some("ended") => {
                let code = fields.first("rc").and_then(|v| v.parse().ok());
                State::Ended(code.map_or(Ended::Vanished, Ended::Code))
            }
            _ => return Err(AnswerError::Lacks { what: "state" }),
        };
        Ok(Self {
            state,
            archive: number("engine.backup"),
            log: number("engine-backup.log"),
            temporary: number("tmp_kib").saturating_mul(1024),
            line: fields.first("line").unwrap_or_default().chars().take(200).collect(),
        })
    }
}

/// `key=value` lines.
struct Fields<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Fields<'a> {
    fn new(text: &'a str) -> Self {
        Self(text.lines().filter_map(|line| line.split_once('=')).collect())
    }

    fn first(&self, key: &str) -> Option<&'a str> {
        self.0.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)
    }

    fn all(&self, key: &'static str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| *k == key).map(|(_, v)| *v)
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Output};

    use super::*;

    fn sh(text: &str, args: &[&str]) -> Output {
        Command::new("/bin/sh").args(["-c", text, "hvbak"]).args(args).output().unwrap()
    }

    fn poll(base: &str, name: &str) -> Poll {
        Poll::parse(&String::from_utf8(sh(POLL, &[base, name]).stdout).unwrap()).unwrap()
    }

    fn base(name: &str) -> String {
        let dir = std::env::temp_dir().join(format!("hvbak-remote-{name}-{}", std::process::id()));
        dir.to_str().unwrap().to_owned()
    }

    fn wait(base: &str, name: &str) -> Poll {
        for _ in 0..200 {
            let poll = poll(base, name);
            if poll.state != State::Running {
                return poll;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("it does not end");
    }

    #[test]
    fn rule_02_two_runs_never_overlap() {
        let base = base("two");
        let sleep = ["/bin/sh", "-c", "sleep 30"];
        let start = |name: &str| sh(START, &[&[&base, name, "me"], &sleep[..]].concat()).status;
        assert_eq!(start("a").code(), Some(0));
        assert_eq!(start("b").code(), Some(75));
        assert_eq!(poll(&base, "a").state, State::Running);
        assert_eq!(sh(SWEEP, &[&base, "a"]).status.code(), Some(75));
        assert_eq!(sh(STOP, &[&base, "a"]).status.code(), Some(0));
        // Killed with its shell: nobody was left to write the code.
        assert_eq!(poll(&base, "a").state, State::Ended(Ended::Vanished));
        assert_eq!(sh(SWEEP, &[&base, "a"]).status.code(), Some(0));
        assert_eq!(poll(&base, "a").state, State::Absent);
        assert_eq!(start("b").code(), Some(0));
        sh(STOP, &[&base, "b"]);
        std::fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn rule_14_a_run_is_detached_and_its_code_and_output_lie_in_files() {
        use std::os::unix::fs::PermissionsExt;
        let base = base("detached");
        let body = "tty >&2; echo Done.; exit 3";
        assert!(sh(START, &[&base, "a", "me", "/bin/sh", "-c", body]).status.success());
        let poll = wait(&base, "a");
        assert_eq!((poll.state, poll.line.as_str()), (State::Ended(Ended::Code(3)), "Done."));
        let dir = std::path::Path::new(&base).join("a");
        assert_eq!(std::fs::read_to_string(dir.join("stderr")).unwrap(), "not a tty\n");
        // Rule 16: nobody else may read what a run leaves.
        for path in [dir.clone(), dir.join("stdout"), dir.join("tmp")] {
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o077, 0, "{path:?}");
        }
        std::fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn only_plain_names_are_swept() {
        for bad in ["", "..", "a/b", "*", "a b"] {
            assert_eq!(sh(SWEEP, &["/nonexistent", bad]).status.code(), Some(64), "{bad}");
        }
    }

    #[test]
    fn rule_18_the_need_is_the_sum_of_all_dumps_and_files_and_the_archive_beside_them() {
        let text = "uid=0\nversion=4.5.7\nprogram=yes\nfree_kib=1000\nfiles_kib=2048\ndatabase=ENGINE:30000000\ndatabase=DWH:200000000\n";
        let look = Look::parse(text, "/usr/bin/engine-backup").unwrap();
        assert_eq!(look.needed(), 2 * (230_000_000 + (2 << 20)) + (10_000 << 10));
        assert!(look.free < look.needed());
    }

    #[test]
    fn an_answer_is_read() {
        let text = "root=\nuid=0\nname=engine.example.test\nversion=4.5.7\nprogram=yes\nfree_kib=1000\nfiles_kib=20\ndatabase=ENGINE:4096\nunknown=DWH\nrun=20261121T021454Z:me\n";
        let look = Look::parse(text, "/usr/bin/engine-backup").unwrap();
        assert_eq!((look.free, look.files, look.databases["ENGINE"]), (1_024_000, 20_480, 4096));
        assert_eq!(look.runs, [("20261121T021454Z".to_owned(), "me".to_owned())]);
        let none = "root=\nuid=0\nname=x\nversion=\nfree_kib=1\nfiles_kib=1\n";
        assert!(matches!(
            Look::parse(none, "/usr/bin/engine-backup"),
            Err(AnswerError::NotAManager { .. })
        ));
    }
}
