//! What is run on the manager for a move: constant POSIX shell texts, and how the copy of
//! the database is judged.

use super::{compare::counted, grants::grants};
use crate::{scrub, transcript::Ended};

/// A file as it is: `$1` its path. Exit 66: there is none; 76: it is no plain small file.
pub const CAT: &str = r#"f=${HVBAK_HOST_ROOT:-}$1
if [ -L "$f" ]; then exit 76; fi
[ -e "$f" ] || exit 66
[ -f "$f" ] && [ "$(wc -c <"$f")" -le 65536 ] || exit 76
exec cat "$f"
"#;

/// Replaces a file by standard input: `$1` path, `$2` its SHA-256 now, `$3` the one it gets.
/// Owner, mode and SELinux context stay. With `$4` `quiet` it is left alone while the service
/// is at work. May be repeated. Exit 65: something else arrived; 76: it is no plain file; 77:
/// it is neither what it should be nor what it becomes; 78: the service is at work.
pub const WRITE: &str = r#"R=${HVBAK_HOST_ROOT:-}
f=$R$1
umask 077
[ -n "$R" ] && PATH=$R/usr/bin:$R/usr/sbin:$PATH
# Readers take *.conf only.
new=$f.hvbak-new
if [ -L "$f" ] || [ ! -f "$f" ]; then exit 76; fi
now=$(sha256sum <"$f" | cut -c 1-64)
[ "$now" = "$3" ] && { rm -f "$new"; exit 0; }
[ "$now" = "$2" ] || exit 77
rm -f "$new"
cp -a "$f" "$new" || exit 73
cat >"$new" || { rm -f "$new"; exit 73; }
if [ "$(sha256sum <"$new" | cut -c 1-64)" != "$3" ]; then rm -f "$new"; exit 65; fi
sync "$new" 2>/dev/null || sync
if [ "$4" = quiet ]; then
  case $(systemctl is-active ovirt-engine-dwhd 2>/dev/null | head -n 1) in
    active|activating|reloading) rm -f "$new"; exit 78;;
  esac
fi
mv -f "$new" "$f" || exit 73
sync "$(dirname "$f")" 2>/dev/null || sync
"#;

/// `$1` `start` or `stop`: the service, until it is so, for two minutes; `enable` or
/// `disable`. May be repeated.
pub const SERVICE: &str = r#"R=${HVBAK_HOST_ROOT:-}
[ -n "$R" ] && PATH=$R/usr/bin:$R/usr/sbin:$PATH
systemctl "$1" ovirt-engine-dwhd </dev/null || exit 70
case $1 in enable|disable) exit 0;; esac
n=0
while [ "$n" -lt 120 ]; do
  case $1:$(systemctl is-active ovirt-engine-dwhd 2>/dev/null | head -n 1) in
    start:active|stop:inactive|stop:failed|stop:unknown) exit 0;;
  esac
  n=$((n + 1))
  sleep 1
done
echo "ovirt-engine-dwhd does not $1" >&2
exit 71
"#;

/// The name of [`COPY`] in the run's directory.
pub const COPY_FILE: &str = "dwh-copy.sh";
/// The name of the target's password there; it goes when the copy ends.
pub const PASSFILE: &str = "secret.new";

/// Copies the database by PostgreSQL's own programs: `$1` the run's directory, `$2` to `$6`
/// host, port, user, name and `sslmode` of the target, `$7` `copy`, or `compare` alone.
/// Everything is restored in one transaction: a copy that dies leaves the target empty.
/// Every row is counted on both sides ([`counted`]). Passwords lie in a file that goes with the run.
pub const COPY: &str = concat!(
    r#"umask 077
LC_ALL=C; export LC_ALL
dir=$1 host=$2 port=$3 user=$4 db=$5 mode=$6 what=$7
R=${HVBAK_HOST_ROOT:-}
[ -n "$R" ] && PATH=$R/usr/bin:$R/usr/sbin:$PATH
for d in "$R"/opt/rh/rh-postgresql*/root/usr; do
  [ -x "$d/bin/psql" ] && { PATH=$d/bin:$PATH; LD_LIBRARY_PATH=$d/lib64; export LD_LIBRARY_PATH; }
done
end() { rm -f "$dir"/secret.* "$dir/tmp/dwh.dump"; }
trap end EXIT
die() { echo "FAILED: $1: $(tail -n 3 "$dir/tmp/err" 2>/dev/null | tr '\n' ' ')"; exit 1; }
for conf in "$R"/etc/ovirt-engine-dwh/ovirt-engine-dwhd.conf.d/*.conf; do [ -r "$conf" ] && . "$conf"; done
escaped() { printf %s "$1" | sed 's/[\\:]/\\&/g'; }
line() { printf '%s:%s:%s:%s:%s\n' "$(escaped "$1")" "$2" "$(escaped "$4")" "$(escaped "$3")" "$(escaped "$5")"; }
oldport=${DWH_DB_PORT:-5432} oldmode=prefer
case ${DWH_DB_SECURED:-} in [Tt]rue|1) oldmode=require;; esac
{ line "$DWH_DB_HOST" "$oldport" "$DWH_DB_USER" "$DWH_DB_DATABASE" "$DWH_DB_PASSWORD"
  IFS= read -r password <"$dir/secret.new"
  line "$host" "$port" "$user" "$db" "$password"; } >"$dir/secret.pgpass"
unset password DWH_DB_PASSWORD ENGINE_DB_PASSWORD
export PGPASSFILE="$dir/secret.pgpass" PGCONNECT_TIMEOUT=20 PGAPPNAME=hvbak
old() { PGSSLMODE=$oldmode psql -X -w -At -v ON_ERROR_STOP=1 -h "$DWH_DB_HOST" -p "$oldport" -U "$DWH_DB_USER" -d "$DWH_DB_DATABASE" -c "$1" </dev/null 2>>"$dir/tmp/err"; }
new() { PGSSLMODE=$mode psql -X -w -At -v ON_ERROR_STOP=1 -h "$host" -p "$port" -U "$user" -d "$db" -c "$1" </dev/null 2>>"$dir/tmp/err"; }
"#,
    counted!(),
    grants!(),
    r#"if [ "$what" = copy ]; then
  echo "- dump"
  PGSSLMODE=$oldmode pg_dump -w -E UTF8 --disable-dollar-quoting --disable-triggers --format=custom \
    -h "$DWH_DB_HOST" -p "$oldport" -U "$DWH_DB_USER" -f "$dir/tmp/dwh.dump" "$DWH_DB_DATABASE" </dev/null 2>"$dir/tmp/err" || die pg_dump
  # What every database has of its own, and comments that only its superuser may make.
  pg_restore --list "$dir/tmp/dwh.dump" 2>"$dir/tmp/err" >"$dir/tmp/all" || die pg_restore
  grep -v -e ' COMMENT - EXTENSION ' -e ' SCHEMA - public ' -e ' COMMENT - SCHEMA public ' -e ' PROCEDURAL LANGUAGE ' "$dir/tmp/all" >"$dir/tmp/list"
  echo "- restore"
  PGSSLMODE=$mode pg_restore -w --single-transaction --exit-on-error --no-owner --no-privileges -L "$dir/tmp/list" \
    -h "$host" -p "$port" -U "$user" -d "$db" "$dir/tmp/dwh.dump" </dev/null 2>"$dir/tmp/err" || die pg_restore
  rm -f "$dir/tmp/dwh.dump"
fi
echo "- compare"
: >"$dir/tmp/err"
counted old >"$dir/tmp/old" || die "counting in the old database"
counted new >"$dir/tmp/new" || die "counting in the new database"
grep -q '^table ' "$dir/tmp/old" || die "the old database holds no table"
if ! cmp -s "$dir/tmp/old" "$dir/tmp/new"; then
  diff "$dir/tmp/old" "$dir/tmp/new" | grep '^[<>]' | head -n 6 >"$dir/tmp/err"
  tail -n 3 "$dir/tmp/err" >"$dir/tmp/err2"; mv "$dir/tmp/err2" "$dir/tmp/err"
  die "the databases differ"
fi
echo "- grants"
# What other roles may do, where the new server knows them. It does not undo a copy that is whole.
old "$(grants)" >"$dir/tmp/grants" && new 'select rolname from pg_roles' >"$dir/tmp/roles" &&
  awk -F '\t' 'NR == FNR { known[$0] = 1; next } $1 == "" || $1 in known { print $2 ";" }' "$dir/tmp/roles" "$dir/tmp/grants" >"$dir/tmp/sql" &&
  { [ ! -s "$dir/tmp/sql" ] || PGSSLMODE=$mode psql -X -w -q -1 -v ON_ERROR_STOP=1 -h "$host" -p "$port" -U "$user" -d "$db" -f "$dir/tmp/sql" </dev/null >/dev/null 2>>"$dir/tmp/err"; } &&
  echo "granted=$(wc -l <"$dir/tmp/sql" | tr -d ' ')" || echo "ungranted=$(tail -n 2 "$dir/tmp/err" | tr '\n' ' ')"
echo "same=$(awk '$1 == "table" { t++; n += $NF } END { printf "%d tables, %.0f rows", t, n }' "$dir/tmp/old")"
echo Done.
"#
);

/// A copy that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopySaid {
    /// Tables and rows that both databases have.
    pub same: String,
    /// Why other roles' rights were not copied.
    pub ungranted: Option<String>,
}

/// Why a copy does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CopyFailed {
    #[error("{why}")]
    Said {
        why: String,
        /// The copy was complete by then and lies in the new database.
        filled: bool,
    },
    #[error("it was killed, or the manager went down")]
    Vanished,
    #[error("it ended with code 0 and without a comparison")]
    Unproven,
}

/// Judges a copy by its end, its last line and its comparison.
///
/// # Errors
/// [`CopyFailed`] with what it said.
pub fn judge_copy(ended: &Ended, stdout: &str) -> Result<CopySaid, CopyFailed> {
    let said = |prefix| stdout.lines().rev().find_map(|line| line.strip_prefix(prefix));
    match ended {
        Ended::Vanished => Err(CopyFailed::Vanished),
        Ended::Code(0) => match said("same=") {
            Some(same) if stdout.trim_end().ends_with("\nDone.") => {
                let ungranted = said("ungranted=").map(|why| why.trim().to_owned());
                Ok(CopySaid { same: same.to_owned(), ungranted })
            }
            _ => Err(CopyFailed::Unproven),
        },
        Ended::Code(code) => {
            let why = said("FAILED: ").map(|why| scrub::text(why.trim_end()));
            let why = why.unwrap_or_else(|| format!("it ended with {code}"));
            // Said after the one transaction of the restore.
            let filled = stdout.lines().any(|line| line == "- compare");
            Err(CopyFailed::Said { why, filled })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_comparison_and_the_last_word_make_a_copy() {
        let good = "- dump\n- restore\n- compare\nsame=3 tables, 7 rows\nDone.\n";
        let same = judge_copy(&Ended::Code(0), good).unwrap().same;
        assert_eq!(same, "3 tables, 7 rows");
        for bad in ["", "Done.\n", "same=3 tables, 7 rows\n", "- dump\nDone.\n"] {
            assert_eq!(judge_copy(&Ended::Code(0), bad), Err(CopyFailed::Unproven), "{bad}");
        }
        assert_eq!(judge_copy(&Ended::Vanished, good), Err(CopyFailed::Vanished));
        let why = |stdout| judge_copy(&Ended::Code(1), stdout).unwrap_err().to_string();
        assert_eq!(why("- dump\nFAILED: pg_dump: no space \n"), "pg_dump: no space");
        assert_eq!(why(""), "it ended with 1");
        for (stdout, filled) in
            [("- dump\n- restore\nFAILED: x\n", false), ("- compare\nFAILED: x\n", true)]
        {
            let said = CopyFailed::Said { why: "x".into(), filled };
            assert_eq!(judge_copy(&Ended::Code(1), stdout), Err(said));
        }
    }
}
