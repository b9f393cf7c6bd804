//! Both databases side by side: what is run on the manager to compare the one that its
//! configuration names with another, and what the answer means. Reads and nothing else.
//!
//! Every row of every table is counted, and every sequence is asked where it stands: rows
//! that were deleted and made in the same number show there.

use hvbak_types::Secret;
use serde::Serialize;

use crate::remote::Fields;

/// `counted COMMAND`: a line per table and sequence of the database in which `COMMAND SQL`
/// runs, ending in its number. Names are quoted here and ordered by `sort`, because servers
/// differ in what they quote and how they sort (before PostgreSQL 12 by the database's locale).
macro_rules! counted {
    () => {
        r#"counted() {
  names=$("$1" "select c.relkind::text || ' ' || chr(34) || replace(n.nspname::text, chr(34), repeat(chr(34), 2)) || chr(34) || '.' || chr(34) || replace(c.relname::text, chr(34), repeat(chr(34), 2)) || chr(34) from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relkind in ('r', 'S') and left(n.nspname::text, 3) <> 'pg_' and n.nspname <> 'information_schema'") || return 1
  printf '%s\n' "$names" | LC_ALL=C sort | while read -r kind name; do
    case $kind in
      r) n=$("$1" "select count(*) from $name") && echo "table $name $n" || exit 1;;
      S) n=$("$1" "select last_value from $name") && echo "sequence $name $n" || exit 1;;
    esac
  done
}
"#
    };
}
pub(super) use counted;

/// Compares the database that the manager's configuration names (`here`) with another one
/// (`there`), whose host, port, user, name, `sslmode` and password come on standard input,
/// a line each. May be repeated. With `$1` that side is asked whether it answers and for its
/// schema, and no more. A schema is `none` where there is no table of it, and empty when the
/// question failed.
pub const COMPARE: &str = concat!(
    r#"R=${HVBAK_HOST_ROOT:-}
umask 077
LC_ALL=C; export LC_ALL
[ -n "$R" ] && PATH=$R/usr/bin:$R/usr/sbin:$PATH
for d in "$R"/opt/rh/rh-postgresql*/root/usr; do
  [ -x "$d/bin/psql" ] && { PATH=$d/bin:$PATH; LD_LIBRARY_PATH=$d/lib64; export LD_LIBRARY_PATH; }
done
IFS= read -r host; IFS= read -r port; IFS= read -r user; IFS= read -r db; IFS= read -r mode; IFS= read -r password
for conf in "$R"/etc/ovirt-engine-dwh/ovirt-engine-dwhd.conf.d/*.conf; do [ -r "$conf" ] && . "$conf"; done
heremode=prefer
case ${DWH_DB_SECURED:-} in [Tt]rue|1) heremode=require;; esac
export PGCONNECT_TIMEOUT=20 PGAPPNAME=hvbak
here() { PGPASSWORD=$DWH_DB_PASSWORD PGSSLMODE=$heremode psql -X -w -At -v ON_ERROR_STOP=1 -h "$DWH_DB_HOST" -p "${DWH_DB_PORT:-5432}" -U "$DWH_DB_USER" -d "$DWH_DB_DATABASE" -c "$1" </dev/null; }
there() { PGPASSWORD=$password PGSSLMODE=$mode psql -X -w -At -v ON_ERROR_STOP=1 -h "$host" -p "$port" -U "$user" -d "$db" -c "$1" </dev/null; }
"#,
    counted!(),
    r#"schema() {
  if version=$("$1" 'select version from schema_version where current' 2>/dev/null); then
    printf '%s\n' "$version" | head -n 1
  elif [ "$("$1" "select count(*) from pg_class where relname = 'schema_version'" 2>/dev/null)" = 0 ]; then
    echo none
  fi
}
for side in ${1:-here there}; do
  if why=$("$side" 'select 1' 2>&1 >/dev/null); then
    echo "$side.schema=$(schema "$side")"
  else
    echo "$side.why=$(printf %s "$why" | tr '\n' ' ' | head -c 300)"
    deaf=yes
  fi
done
[ -z "${deaf:-}${1:-}" ] || { echo Done.; exit 0; }
h=$(counted here) || { echo "here.why=its rows cannot be counted"; echo Done.; exit 0; }
t=$(counted there) || { echo "there.why=its rows cannot be counted"; echo Done.; exit 0; }
{ printf '%s\n' "$h" | sed 's/^/h /'; printf '%s\n' "$t" | sed 's/^/t /'; } | awk '
  NF < 4 { next }
  { side = $1; n = $NF; name = $0; sub(/^[ht] /, "", name); sub(/ [^ ]*$/, "", name)
    all[name] = 1; if (side == "h") { h[name] = n } else { t[name] = n }
    if ($2 == "table" && side == "h") { tables++; rows += n } }
  END { for (name in all) if (h[name] != t[name]) { print "differs=" h[name] "/" t[name] "/" name; bad = 1 }
    if (!bad && tables) printf "same=%d tables, %.0f rows\n", tables, rows }' | LC_ALL=C sort
echo Done.
"#
);

/// The other database of a comparison.
#[derive(Debug, Clone)]
pub struct Other {
    pub host: String,
    pub port: u16,
    pub user: String,
    pub database: String,
    /// libpq's.
    pub sslmode: &'static str,
    pub password: Secret,
}

impl Other {
    /// The lines for [`COMPARE`]'s standard input; `None`: a value holds a line break.
    pub fn lines(&self) -> Option<String> {
        let port = self.port.to_string();
        let values = [
            self.host.as_str(),
            &port,
            &self.user,
            &self.database,
            self.sslmode,
            self.password.expose(),
        ];
        let plain = values.iter().all(|value| !value.contains(['\n', '\r', '\0']));
        plain.then(|| values.iter().flat_map(|value| [*value, "\n"]).collect())
    }
}

/// A table or sequence that is not the same in both databases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// `table "public"."x"`.
    pub name: String,
    /// Rows of the table, or the sequence's number; `None`: there is none of the name.
    pub here: Option<u64>,
    pub there: Option<u64>,
}

/// What a comparison found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Compared {
    /// Why a side tells nothing.
    pub here_why: Option<String>,
    pub there_why: Option<String>,
    /// Versions of the Data Warehouse's schema, `none` where it has none; `None`: not known.
    pub here_schema: Option<String>,
    pub there_schema: Option<String>,
    pub differs: Vec<Difference>,
    /// Tables and rows that both have; `None`: they differ, or nobody knows.
    pub same: Option<String>,
}

impl Compared {
    /// Reads the answer of [`COMPARE`]; one that was cut off knows nothing.
    pub fn parse(text: &str) -> Self {
        if !text.trim_end().ends_with("Done.") {
            return Self::unmade("the comparison broke off".into());
        }
        let fields = Fields::new(text);
        let filled =
            |key: &str| fields.first(key).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let difference = |line: &str| {
            let mut parts = line.splitn(3, '/');
            let (here, there) = (parts.next()?.parse().ok(), parts.next()?.parse().ok());
            let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
            Some(Difference { name: parts.next()?.chars().map(plain).collect(), here, there })
        };
        Self {
            here_why: filled("here.why"),
            there_why: filled("there.why"),
            here_schema: filled("here.schema"),
            there_schema: filled("there.schema"),
            differs: fields.all("differs").filter_map(difference).collect(),
            same: filled("same"),
        }
    }

    /// A comparison that could not be made, and why.
    pub fn unmade(why: String) -> Self {
        Self { here_why: Some(why.clone()), there_why: Some(why), ..Self::default() }
    }

    /// Whether the other database is not known to answer: one whose rows cannot be counted does.
    pub fn is_there_silent(&self) -> bool {
        self.there_why.is_some() && self.there_schema.is_none()
    }

    /// Whether both hold the same.
    pub fn is_same(&self) -> bool {
        self.same.is_some() && self.differs.is_empty()
    }

    /// What is not the same, in words; `here` and `there` name the sides.
    pub fn told(&self, here: &str, there: &str) -> String {
        const SHOWN: usize = 5;
        let number = |n: Option<u64>| n.map_or_else(|| "not there".to_owned(), |n| n.to_string());
        // Sequences follow their tables.
        let tables = self.differs.iter().filter(|d| d.name.starts_with("table "));
        let rest = self.differs.iter().filter(|d| !d.name.starts_with("table "));
        let lines: Vec<_> = tables
            .chain(rest)
            .take(SHOWN)
            .map(|d| format!("{}: {here} {}, {there} {}", d.name, number(d.here), number(d.there)))
            .collect();
        let more = self.differs.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        if !lines.is_empty() {
            return format!("{}{more}", lines.join("; "));
        }
        let why = |side: &str, why: &Option<String>| why.as_ref().map(|w| format!("{side}: {w}"));
        let whys: Vec<_> = [why(here, &self.here_why), why(there, &self.there_why)]
            .into_iter()
            .flatten()
            .collect();
        if whys.is_empty() { "neither holds a table".to_owned() } else { whys.join("; ") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_answer_without_a_difference_is_the_same() {
        let good = "here.schema=04\nthere.schema=04\nsame=3 tables, 7 rows\nDone.\n";
        let same = Compared::parse(good);
        assert!(same.is_same() && same.here_schema == same.there_schema);
        assert_eq!(same.same.as_deref(), Some("3 tables, 7 rows"));
        for bad in ["", "same=3 tables, 7 rows\n", "Done.\n", "here.why=down\nDone.\n"] {
            let bad = Compared::parse(bad);
            assert!(!bad.is_same() && !bad.told("old", "new").is_empty(), "{bad:?}");
        }
        let found = Compared::parse(
            "differs=5/5/sequence \"public\".\"s\"\ndiffers=9/7/table \"public\".\"a=b/c\"\ndiffers=1//table \"x\".\"y\"\nDone.\n",
        );
        assert!(!found.is_same());
        assert_eq!(
            found.told("old", "new"),
            "table \"public\".\"a=b/c\": old 9, new 7; table \"x\".\"y\": old 1, new not there; sequence \"public\".\"s\": old 5, new 5"
        );
    }
}
