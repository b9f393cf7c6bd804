//! What is asked on the manager before a move: one constant POSIX shell text, and what its
//! answer means. Changes nothing. The new password comes on standard input and reaches libpq
//! through the environment of the one process that connects.

use hvbak_types::Secret;
use serde::Serialize;

use super::{Target, grants::grants};
use crate::{remote::Fields, restore::DbFacts};

/// Looks at service, configuration, both databases and the target. Standard input: host,
/// port, user, name, `sslmode` and password of the target, a line each; empty lines: none. The
/// target is reached as the copy will reach it.
pub const FACTS: &str = concat!(
    r#"R=${HVBAK_HOST_ROOT:-}
umask 077
LC_ALL=C; export LC_ALL
[ -n "$R" ] && PATH=$R/usr/bin:$R/usr/sbin:$PATH
for d in "$R"/opt/rh/rh-postgresql*/root/usr; do
  [ -x "$d/bin/psql" ] && { PATH=$d/bin:$PATH; LD_LIBRARY_PATH=$d/lib64; export LD_LIBRARY_PATH; }
done
for unit in ovirt-engine ovirt-engine-dwhd grafana-server; do
  echo "state=$unit:$(systemctl is-active "$unit" 2>/dev/null | head -n 1):$(systemctl is-enabled "$unit" 2>/dev/null | head -n 1)"
done
for tool in psql pg_dump pg_restore; do
  command -v "$tool" >/dev/null 2>&1 || echo "missing=$tool"
done
echo "client=$(pg_dump --version 2>/dev/null | sed -n 's/.* \([0-9][0-9]*\).*/\1/p' | head -n 1)"
# What a later file sets wins; readers take *.conf in the order of bytes.
later() {
  past=
  for conf in "$R$1"/*.conf; do
    [ -r "$conf" ] || continue
    if [ "$conf" = "$R$1/$2" ]; then past=yes; continue; fi
    [ -n "$past" ] || continue
    names=$(sed -n -E 's/^[[:space:]]*(('"$3"')_DB_[A-Z_]+)=.*/\1/p' "$conf" | sort -u | tr '\n' ' ')
    [ -z "$names" ] || echo "later=$1/$(basename "$conf"):$names"
  done
}
later /etc/ovirt-engine-dwh/ovirt-engine-dwhd.conf.d 10-setup-database.conf 'DWH|ENGINE'
later /etc/ovirt-engine/engine.conf.d 10-setup-dwh-database.conf DWH
"#,
    grants!(),
    r#"IFS= read -r host; IFS= read -r port; IFS= read -r user; IFS= read -r db; IFS= read -r mode; IFS= read -r password
export PGPASSWORD= PGCONNECT_TIMEOUT=10 PGAPPNAME=hvbak PGSSLMODE=prefer
if [ -n "$host" ]; then (
  PGPASSWORD=$password PGSSLMODE=$mode
  ask() { psql -X -w -At -h "$host" -p "$port" -U "$user" -d "$db" -c "$1" </dev/null; }
  why=$(ask 'select 1' 2>&1 >/dev/null) || { echo "new.why=$(printf %s "$why" | tr '\n' ' ' | head -c 300)"; exit 0; }
  echo new.reachable=yes
  echo "new.lc=$(ask 'show lc_messages' 2>/dev/null)"
  echo "new.server=$(ask 'show server_version_num' 2>/dev/null)"
  echo "new.encoding=$(ask 'show server_encoding' 2>/dev/null)"
  echo "new.create=$(ask "select has_schema_privilege('public', 'create')" 2>/dev/null)"
  echo "new.uuid=$(ask "select count(*) from pg_available_extensions where name = 'uuid-ossp'" 2>/dev/null)"
  echo "new.made=$(ask "select count(*) from pg_extension where extname = 'uuid-ossp'" 2>/dev/null)"
  ask "select 'new.role=' || rolname from pg_roles" 2>/dev/null
  echo "new.id=$(ask "select inet_server_port() || '/' || (select oid from pg_database where datname = current_database()) || '@' || pg_postmaster_start_time()" 2>/dev/null)"
  echo "new.empty=$( { pg_dump -w -s -h "$host" -p "$port" -U "$user" "$db" </dev/null 2>/dev/null || echo FAILED; } |
    awk 'tolower($0) ~ /^create / && tolower($0) !~ /^create (or replace )?((procedural|trusted) )*(extension|language)/ { n++ }
      /^FAILED$/ { f = 1 } END { print f ? "unknown" : n ? "no" : "yes" }')"
); fi
place() {
  eval "h=\${${2}_DB_HOST:-} p=\${${2}_DB_PORT:-5432} u=\${${2}_DB_USER:-} d=\${${2}_DB_DATABASE:-} PGPASSWORD=\${${2}_DB_PASSWORD:-} s=\${${2}_DB_SECURED:-}"
  case $s in [Tt]rue|1) PGSSLMODE=require;; esac
  printf '%s.place=%s:%s:%s:%s\n' "$1" "$p" "$u" "$d" "$h"
  ask() { psql -X -w -At -h "$h" -p "$p" -U "$u" -d "$d" -c "$1" </dev/null; }
}
(
  for conf in "$R"/etc/ovirt-engine/engine.conf.d/*.conf; do [ -r "$conf" ] && . "$conf"; done
  place engine DWH
  [ -n "${ENGINE_FQDN:-}" ] && echo "fqdn=$ENGINE_FQDN"
)
(
  for conf in "$R"/etc/ovirt-engine-dwh/ovirt-engine-dwhd.conf.d/*.conf; do [ -r "$conf" ] && . "$conf"; done
  echo "uuid=${DWH_UUID:-}"
  echo "keep=${DWH_TABLES_KEEP_SAMPLES:-}/${DWH_TABLES_KEEP_HOURLY:-}/${DWH_TABLES_KEEP_DAILY:-}"
  ( place dwhd DWH
    why=$(ask 'select 1' 2>&1 >/dev/null) || { echo "old.why=$(printf %s "$why" | tr '\n' ' ' | head -c 300)"; exit 0; }
    echo old.reachable=yes
    echo "old.server=$(ask 'show server_version_num' 2>/dev/null)"
    echo "old.uuid=$(ask "select count(*) from pg_extension where extname = 'uuid-ossp'" 2>/dev/null)"
    ask "$(grants)" 2>/dev/null | cut -f 1 | sort | uniq -c | sed 's/^ *\([0-9]*\) /old.grants=\1:/'
    echo "old.size=$(ask 'select pg_database_size(current_database())' 2>/dev/null)"
    echo "old.id=$(ask "select inet_server_port() || '/' || (select oid from pg_database where datname = current_database()) || '@' || pg_postmaster_start_time()" 2>/dev/null)" )
  ( place keeper ENGINE
    ask "select 'row='||var_name||'='||coalesce(var_value, '') from dwh_history_timekeeping where var_name in ('dwhUuid', 'dwhHostname', 'DwhCurrentlyRunning')" 2>/dev/null )
)
exit 0
"#
);

/// The lines for [`FACTS`]' standard input; `None`: a value holds a line break.
pub fn target_lines(target: Option<(&Target, &Secret)>) -> Option<String> {
    let Some((target, password)) = target else { return Some("\n".repeat(6)) };
    target.with(password).lines()
}

/// A database as a configuration names it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Place {
    pub host: String,
    pub port: String,
    pub user: String,
    pub database: String,
}

impl Place {
    fn parse(text: &str) -> Self {
        let mut parts = text.splitn(4, ':').map(ToOwned::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        let (port, user, database) = (next(), next(), next());
        Self { port, user, database, host: next() }
    }

    /// On the manager itself.
    pub fn is_local(&self) -> bool {
        matches!(self.host.as_str(), "localhost" | "localhost.localdomain" | "127.0.0.1" | "::1")
    }

    /// Whether there is none.
    pub fn is_unset(&self) -> bool {
        self.host.is_empty() || self.user.is_empty()
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}:{}/{}", self.user, self.host, self.port, self.database)
    }
}

/// A file that wins over the one that a move changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Later {
    pub path: String,
    /// `DWH_DB_HOST` and the like.
    pub names: Vec<String>,
}

/// The database that is there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct SourceFacts {
    pub reachable: bool,
    /// What libpq says when it is not.
    pub why: Option<String>,
    /// Major version.
    pub server: Option<u32>,
    /// Bytes on disk.
    pub size: Option<u64>,
    /// What no two databases share while their server runs.
    pub id: Option<String>,
    /// It uses the extension uuid-ossp.
    pub has_uuid: bool,
    /// Other roles that were granted something in it, and how often; empty: PUBLIC.
    pub grants: Vec<(String, u64)>,
}

/// The database that is to be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct TargetFacts {
    #[serde(flatten)]
    pub common: DbFacts,
    pub encoding: Option<String>,
    /// Its role may make tables.
    pub may_create: bool,
    /// The extension uuid-ossp can be had, and is in the database.
    pub has_uuid: bool,
    pub uuid_made: bool,
    /// Every role of the server.
    #[serde(skip)]
    pub roles: Vec<String>,
    pub id: Option<String>,
}

/// What [`FACTS`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct DwhFacts {
    /// Units at work, and those that start with the machine.
    pub active: Vec<String>,
    pub enabled: Vec<String>,
    pub missing_tools: Vec<String>,
    /// Major version of `pg_dump`.
    pub client: Option<u32>,
    pub fqdn: Option<String>,
    /// Where the engine reads the Data Warehouse, and where the service writes it.
    pub engine: Place,
    pub dwhd: Place,
    /// The engine's own database, as the service reaches it.
    pub keeper: Place,
    /// Files that are read after the ones of engine-setup and set a database, too.
    pub later: Vec<Later>,
    pub uuid: Option<String>,
    /// How long samples, hours and days are kept; empty: defaults.
    pub keep: String,
    /// The instance that the engine's database names: at most one may work for an engine.
    pub registered_uuid: Option<String>,
    pub registered_host: Option<String>,
    /// The service counts itself as running.
    pub is_running: Option<bool>,
    pub source: SourceFacts,
    pub target: TargetFacts,
}

impl DwhFacts {
    /// Reads the answer.
    pub fn parse(text: &str) -> Self {
        let fields = Fields::new(text);
        let filled = |key: &str| fields.first(key).map(str::to_owned).filter(|v| !v.is_empty());
        let major =
            |key: &str| fields.first(key).and_then(|v| v.parse::<u32>().ok()).map(|n| n / 10_000);
        let place = |key: &str| fields.first(key).map(Place::parse).unwrap_or_default();
        let units: Vec<(&str, &str)> =
            fields.all("state").filter_map(|state| state.split_once(':')).collect();
        let with = |good: &dyn Fn(&str, &str) -> bool| {
            let of = |(unit, state): &(&str, &str)| {
                let (active, enabled) = state.split_once(':').unwrap_or((state, ""));
                good(active, enabled).then(|| (*unit).to_owned())
            };
            units.iter().filter_map(of).collect()
        };
        let row = |name: &str| {
            let value = fields.all("row").find_map(|row| row.strip_prefix(name)?.strip_prefix('='));
            value.map(ToOwned::to_owned).filter(|v| !v.is_empty())
        };
        Self {
            active: with(&|active, _| matches!(active, "active" | "activating" | "reloading")),
            enabled: with(&|_, enabled| enabled == "enabled"),
            missing_tools: fields.all("missing").map(ToOwned::to_owned).collect(),
            client: fields.first("client").and_then(|v| v.parse().ok()),
            fqdn: filled("fqdn"),
            engine: place("engine.place"),
            dwhd: place("dwhd.place"),
            keeper: place("keeper.place"),
            uuid: filled("uuid"),
            later: fields
                .all("later")
                .filter_map(|line| line.split_once(':'))
                .map(|(path, names)| Later {
                    path: path.to_owned(),
                    names: names.split_whitespace().map(ToOwned::to_owned).collect(),
                })
                .collect(),
            keep: fields.first("keep").unwrap_or_default().to_owned(),
            registered_uuid: row("dwhUuid"),
            registered_host: row("dwhHostname"),
            is_running: row("DwhCurrentlyRunning").map(|v| v == "1"),
            source: SourceFacts {
                reachable: fields.first("old.reachable").is_some(),
                why: filled("old.why"),
                server: major("old.server"),
                size: fields.first("old.size").and_then(|v| v.parse().ok()),
                id: filled("old.id"),
                has_uuid: fields.first("old.uuid") == Some("1"),
                grants: fields
                    .all("old.grants")
                    .filter_map(|line| line.split_once(':'))
                    .filter_map(|(n, role)| Some((role.to_owned(), n.parse().ok()?)))
                    .collect(),
            },
            target: TargetFacts {
                common: DbFacts {
                    reachable: fields.first("new.reachable").is_some(),
                    why: filled("new.why"),
                    empty: match fields.first("new.empty") {
                        Some("yes") => Some(true),
                        Some("no") => Some(false),
                        _ => None,
                    },
                    lc_messages: filled("new.lc"),
                    server: major("new.server"),
                    ..DbFacts::default()
                },
                encoding: filled("new.encoding"),
                may_create: fields.first("new.create") == Some("t"),
                has_uuid: fields.first("new.uuid") == Some("1"),
                uuid_made: fields.first("new.made") == Some("1"),
                roles: fields.all("new.role").map(ToOwned::to_owned).collect(),
                id: filled("new.id"),
            },
        }
    }

    /// Whether a unit is at work.
    pub fn is_active(&self, unit: &str) -> bool {
        self.active.iter().any(|u| u == unit)
    }
}
