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
list=$R/etc/ovirt-engine-backup/engine-backup-config.d/50-hvbak-paths.sh
if [ -f "$list" ]; then
  own() { sed -n "s|^  '\(/[^']*\)' .\$|\1|p" "$list"; }
  own | sed 's/^/extra=/'
  kib=$(own | while IFS= read -r path; do du -sk "$R$path" 2>/dev/null; done | awk '{ n += $1 } END { print n + 0 }')
  files=$((files + ${kib:-0}))
fi
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
  [ -f "$dir/owner" ] && echo "run=$(basename "$dir"):$(head -c 100 "$dir/owner" | tr -cd 'A-Za-z0-9-'):$(head -c 20 "$dir/kind" 2>/dev/null | tr -cd a-z)"
done
exit 0
"#;

/// Makes the directory of a run that is given files before it starts. `$1` work directory,
/// `$2` name, `$3` owner, `$4` kind, `$5` what it is about. May be repeated. Exit 75:
/// another run is at work.
pub const PREPARE: &str = r#"umask 077
base=$1 dir=$1/$2
mkdir -p "$base" && chmod 700 "$base" || exit 73
[ -f "$dir/prepared" ] && exit 0
[ -d "$dir/started" ] && exit 76
exec 9>>"$base/lock" || exit 73
flock -n 9 || exit 75
mkdir -p "$dir/tmp" || exit 76
printf '%s\n' "$3" >"$dir/owner"
printf '%s\n' "$4" >"$dir/kind"
printf '%s\n' "$5" >"$dir/of"
: >"$dir/prepared"
"#;

/// Starts a run and returns at once. `$1` work directory, `$2` name, `$3` owner, `$4`
/// [`FRESH`] or [`PREPARED`], then the program and its arguments. A prepared run starts only
/// by taking the file `prepared` away, which [`SWEEP`] takes first: a start that was stalled
/// on its way finds that it comes too late. Files with secrets are gone as soon as it ends,
/// whoever is there to see it. Exit 75: another run holds the lock; 76: it was started before,
/// or swept.
pub const START: &str = r#"umask 077
base=$1 name=$2 owner=$3 how=$4
shift 4
mkdir -p "$base" && chmod 700 "$base" || exit 73
exec 9>>"$base/lock" || exit 73
flock -n 9 || exit 75
case $how in
  prepared) mv "$base/$name/prepared" "$base/$name/begun" || exit 76;;
  *) mkdir "$base/$name" && mkdir "$base/$name/tmp" || exit 76;;
esac
mkdir "$base/$name/started" || exit 76
printf '%s\n' "$owner" >"$base/$name/owner"
printf '%s\n' "$@" >"$base/$name/command"
setsid sh -c 'dir=$0
echo $$ >"$dir/pid"
"$@" </dev/null >"$dir/stdout" 2>"$dir/stderr"
echo $? >"$dir/rc.new"
rm -f "$dir"/secret.*
sync "$dir/rc.new" 2>/dev/null || sync
mv "$dir/rc.new" "$dir/rc"' "$base/$name" "$@" </dev/null >/dev/null 2>&1 &
echo started
"#;

/// A run that was given nothing, and one that [`PREPARE`] has made.
pub const FRESH: &str = "fresh";
pub const PREPARED: &str = "prepared";

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
[ -d "$dir/started" ] && echo started=yes
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
# A run that was prepared and never started waits for nobody, and cannot start any more.
mv "$dir/prepared" "$dir/swept" 2>/dev/null
if [ ! -f "$dir/rc" ] && { [ -d "$dir/started" ] || [ ! -f "$dir/swept" ]; }; then
  exec 9>>"$1/lock"
  flock -n -s 9 || exit 75
fi
rm -rf -- "$dir"
"#;

/// Exit code of [`PREPARE`], [`START`] and [`SWEEP`] while a run is at work.
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
    /// Extra files that are to be backed up, from hvbak's own list ([`crate::extra`]).
    pub extra: Vec<String>,
    /// Directories of earlier runs.
    pub runs: Vec<Seen>,
}

/// A run that lies on the manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub name: String,
    /// The repository whose hvbak began it.
    pub owner: String,
    pub kind: Kind,
}

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Backup,
    /// engine-cleanup, before a restore.
    Cleanup,
    Restore,
    /// engine-setup, after one.
    Setup,
    /// The Data Warehouse's database to another place.
    DwhCopy,
}

impl Kind {
    /// The word in the run's directory; a backup has none.
    pub fn word(self) -> &'static str {
        match self {
            Self::Backup => "",
            Self::Cleanup => "cleanup",
            Self::Restore => "restore",
            Self::Setup => "setup",
            Self::DwhCopy => "dwhcopy",
        }
    }

    /// The command whose next run takes such a part home.
    pub fn picked_up_by(self) -> &'static str {
        match self {
            Self::Backup => "hvbak manager-backup",
            Self::Cleanup | Self::Restore | Self::Setup => "hvbak manager-restore --pick-up",
            Self::DwhCopy => "hvbak dwh move-database",
        }
    }

    /// The program.
    pub fn program(self) -> &'static str {
        match self {
            Self::Backup | Self::Restore => "engine-backup",
            Self::Cleanup => "engine-cleanup",
            Self::Setup => "engine-setup",
            Self::DwhCopy => "copy of the Data Warehouse",
        }
    }

    /// `None`: of a later hvbak.
    fn of(word: &str) -> Option<Self> {
        let all = [Self::Backup, Self::Cleanup, Self::Restore, Self::Setup, Self::DwhCopy];
        all.into_iter().find(|kind| kind.word() == word)
    }
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
            extra: fields.all("extra").map(ToOwned::to_owned).collect(),
            runs: pairs("run")
                .filter_map(|(name, rest)| {
                    let (owner, kind) = rest.split_once(':').unwrap_or((rest, ""));
                    Some(Seen { name, owner: owner.to_owned(), kind: Kind::of(kind)? })
                })
                .collect(),
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
    /// It was started; one that is only prepared has vanished without it.
    pub started: bool,
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
            started: fields.first("started").is_some(),
            archive: number("engine.backup"),
            log: number("engine-backup.log"),
            temporary: number("tmp_kib").saturating_mul(1024),
            line: fields.first("line").unwrap_or_default().chars().take(200).collect(),
        })
    }
}

/// `key=value` lines.
pub(crate) struct Fields<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Fields<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self(text.lines().filter_map(|line| line.split_once('=')).collect())
    }

    pub(crate) fn first(&self, key: &str) -> Option<&'a str> {
        self.0.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.iter().copied()
    }

    pub(crate) fn all(&self, key: &'static str) -> impl Iterator<Item = &'a str> {
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
        let start =
            |name: &str| sh(START, &[&[&base, name, "me", FRESH], &sleep[..]].concat()).status;
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
        let base = base("detached");
        let body = "tty >&2; echo Done.; exit 3";
        assert!(sh(START, &[&base, "a", "me", FRESH, "/bin/sh", "-c", body]).status.success());
        let poll = wait(&base, "a");
        assert_eq!((poll.state, poll.line.as_str()), (State::Ended(Ended::Code(3)), "Done."));
        let dir = std::path::Path::new(&base).join("a");
        assert_eq!(std::fs::read_to_string(dir.join("stderr")).unwrap(), "not a tty\n");
        std::fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn rule_16_nobody_else_may_read_what_a_run_leaves() {
        use std::os::unix::fs::PermissionsExt;
        let base = base("modes");
        // As engine-backup 4.2 does: it opens its archive with the umask it is given.
        let body = format!("umask; echo secrets >{base}/a/engine.backup");
        let line =
            format!("umask 022; exec /bin/sh -c \"$0\" hvbak {base} a me fresh /bin/sh -c \"$1\"");
        let started = Command::new("/bin/sh").args(["-c", &line, START, &body]).status().unwrap();
        assert!(started.success());
        assert_eq!(wait(&base, "a").state, State::Ended(Ended::Code(0)));
        let dir = std::path::Path::new(&base).join("a");
        assert_eq!(std::fs::read_to_string(dir.join("stdout")).unwrap(), "0077\n");
        let names = ["", "stdout", "stderr", "tmp", "engine.backup", "command"];
        for path in names.map(|name| dir.join(name)) {
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o077, 0, "{path:?}");
        }
        std::fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn a_prepared_run_is_started_once_and_its_secrets_go_when_it_ends() {
        let base = base("prepared");
        let prepare = || sh(PREPARE, &[&base, "a", "me", "restore", "engine@latest"]).status;
        assert!(prepare().success() && prepare().success(), "it may be repeated");
        let look = |poll: Poll| (poll.state, poll.started);
        assert_eq!(look(poll(&base, "a")), (State::Ended(Ended::Vanished), false));
        let secret = std::path::Path::new(&base).join("a/secret.db");
        std::fs::write(&secret, "secret").unwrap();
        let body = format!("cat {}; exit 1", secret.display());
        let start =
            || sh(START, &[&base, "a", "me", PREPARED, "/bin/sh", "-c", &body]).status.code();
        assert_eq!(start(), Some(0));
        assert_eq!(look(wait(&base, "a")), (State::Ended(Ended::Code(1)), true));
        assert_eq!(std::fs::read_to_string(format!("{base}/a/stdout")).unwrap(), "secret");
        assert!(!secret.exists(), "whoever is there to see it");
        assert_eq!(start(), Some(76), "never twice");
        // One that was not started is swept although another run is at work.
        assert!(sh(PREPARE, &[&base, "b", "me", "restore", "x"]).status.success());
        assert!(
            sh(START, &[&base, "c", "me", FRESH, "/bin/sh", "-c", "sleep 30"]).status.success()
        );
        assert_eq!(sh(PREPARE, &[&base, "d", "me", "restore", "x"]).status.code(), Some(75));
        assert_eq!(sh(SWEEP, &[&base, "b"]).status.code(), Some(0));
        assert_eq!(sh(SWEEP, &[&base, "c"]).status.code(), Some(75));
        sh(STOP, &[&base, "c"]);
        std::fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn a_start_that_comes_after_the_sweep_starts_nothing() {
        let base = base("late");
        let began = format!("{base}/it-began");
        let start = |name: &str| {
            let body = format!("touch {began}; sleep 30");
            sh(START, &[&base, name, "me", PREPARED, "/bin/sh", "-c", &body]).status.code()
        };
        let there = |name: &str| std::path::Path::new(&base).join(name).exists();
        assert!(sh(PREPARE, &[&base, "a", "me", "cleanup", "x"]).status.success());
        assert_eq!(sh(SWEEP, &[&base, "a"]).status.code(), Some(0));
        assert_eq!(start("a"), Some(76));
        assert!(!there("a") && !there("it-began"), "and makes no directory again");
        // The sweep has taken the file and not yet the directory.
        assert!(sh(PREPARE, &[&base, "b", "me", "cleanup", "x"]).status.success());
        std::fs::rename(format!("{base}/b/prepared"), format!("{base}/b/swept")).unwrap();
        assert_eq!(start("b"), Some(76));
        assert_eq!(sh(SWEEP, &[&base, "b"]).status.code(), Some(0));
        // The start has taken it first: what is at work is not swept.
        assert!(sh(PREPARE, &[&base, "c", "me", "cleanup", "x"]).status.success());
        assert_eq!(start("c"), Some(0));
        assert_eq!(sh(SWEEP, &[&base, "c"]).status.code(), Some(75));
        assert_eq!(sh(PREPARE, &[&base, "c", "me", "cleanup", "x"]).status.code(), Some(76));
        assert!(poll(&base, "c").started);
        // Before it says that it has started, only the lock tells.
        std::fs::remove_dir(format!("{base}/c/started")).unwrap();
        assert_eq!(sh(SWEEP, &[&base, "c"]).status.code(), Some(75));
        sh(STOP, &[&base, "c"]);
        assert_eq!(sh(SWEEP, &[&base, "c"]).status.code(), Some(0));
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
    fn extra_files_count_for_the_space() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let look = || {
            let done = Command::new("/bin/sh")
                .args(["-c", LOOK, "hvbak", "/var/lib/hvbak-manager", "/bin/x"])
                .env("HVBAK_HOST_ROOT", root)
                .output();
            let text = String::from_utf8(done.unwrap().stdout).unwrap();
            let text = format!("version=4.5.7\nprogram=yes\n{text}");
            Look::parse(&text, "/bin/x").unwrap()
        };
        assert_eq!((look().files, look().extra), (0, vec![]));
        let mut list = crate::extra::ExtraPaths::default();
        for path in ["/etc/none", "/srv/a b"] {
            list.add(path.into());
        }
        let file = root.join(&crate::extra::FILE[1..]);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, list.text().unwrap()).unwrap();
        std::fs::create_dir_all(root.join("srv/a b")).unwrap();
        std::fs::write(root.join("srv/a b/big"), vec![1; 1 << 20]).unwrap();
        let look = look();
        assert_eq!(look.extra, ["/etc/ovirt-engine-backup", "/etc/none", "/srv/a b"]);
        assert!(look.files >= 1 << 20, "{}", look.files);
    }

    #[test]
    fn an_answer_is_read() {
        let text = "root=\nuid=0\nname=engine.example.test\nversion=4.5.7\nprogram=yes\nfree_kib=1000\nfiles_kib=20\ndatabase=ENGINE:4096\nunknown=DWH\nrun=20261121T021454Z:me\nrun=20261121T021455Z:me:restore\nrun=20261121T021456Z:me:later\n";
        let look = Look::parse(text, "/usr/bin/engine-backup").unwrap();
        assert_eq!((look.free, look.files, look.databases["ENGINE"]), (1_024_000, 20_480, 4096));
        let runs: Vec<_> = look.runs.iter().map(|r| (r.name.as_str(), r.kind)).collect();
        let expected = [("20261121T021454Z", Kind::Backup), ("20261121T021455Z", Kind::Restore)];
        assert_eq!(runs, expected);
        let none = "root=\nuid=0\nname=x\nversion=\nfree_kib=1\nfiles_kib=1\n";
        assert!(matches!(
            Look::parse(none, "/usr/bin/engine-backup"),
            Err(AnswerError::NotAManager { .. })
        ));
    }
}
