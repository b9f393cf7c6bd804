//! What is asked on the manager around a restore: constant POSIX shell texts, and what
//! their answers mean.
//!
//! Nothing of them changes the machine but [`RECEIVE`], which writes one file into a run's
//! directory. Passwords come on standard input and go to libpq through the environment of
//! the one process that connects.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    archive::Connection,
    remote::{AnswerError, Fields},
    scope::Scope,
    version::Version,
};

/// Looks at the machine that is to be restored. `$1` work directory.
pub const FACTS: &str = r#"R=${HVBAK_HOST_ROOT:-}
[ -n "$R" ] && PATH=$R/usr/bin:$R/usr/sbin:$PATH
for d in "$R"/opt/rh/rh-postgresql*/root/usr; do
  [ -x "$d/bin/psql" ] && { PATH=$d/bin:$PATH; LD_LIBRARY_PATH=$d/lib64; export LD_LIBRARY_PATH; }
done
up=$R/var/lib/ovirt-engine/engine.up
if [ -r "$up" ]; then
  pid=$(head -c 32 "$up" | tr -cd 0-9)
  [ -n "$pid" ] && ps -p "$pid" -o args= 2>/dev/null | grep -q 'ovirt-engine\.py' && echo engine=running
fi
for unit in ovirt-engine ovirt-engine-dwhd grafana-server ovirt-engine-notifier ovirt-websocket-proxy; do
  systemctl is-active --quiet "$unit" 2>/dev/null && echo "active=$unit"
done
cat "$R"/etc/ovirt-engine-setup.conf "$R"/etc/ovirt-engine-setup.conf.d/*.conf 2>/dev/null |
  grep -q '^OVESETUP_ENGINE_CORE/enable=bool:True' && echo setup=yes
fqdn=$(cat "$R"/etc/ovirt-engine/engine.conf.d/*.conf 2>/dev/null | sed -n 's/^ENGINE_FQDN=//p' | tail -n 1 | tr -d "\"'")
[ -n "$fqdn" ] && echo "fqdn=$fqdn"
( ID= ID_LIKE= VERSION_ID=; . "$R/etc/os-release" 2>/dev/null
  echo "os=$ID${VERSION_ID%%.*}"; echo "like=$ID $ID_LIKE" )
for tool in psql pg_dump engine-cleanup engine-setup; do
  command -v "$tool" >/dev/null 2>&1 && echo "tool=$tool"
done
echo "client=$(pg_dump --version 2>/dev/null | sed -n 's/.* \([0-9][0-9]*\).*/\1/p' | head -n 1)"
{ command -v postgresql-setup || command -v initdb; } >/dev/null 2>&1 && echo tool=server
locale -a 2>/dev/null | grep -qix 'en_US\.utf-\{0,1\}8' && echo locale=yes
echo "lc_lines=$(grep -c '^[[:space:]]*lc_messages' "$R/var/lib/pgsql/data/postgresql.conf" 2>/dev/null)"
if command -v runuser >/dev/null 2>&1 && command -v psql >/dev/null 2>&1; then
  ask() { runuser -u postgres -- psql -X -w -At -d postgres -c "$1" </dev/null 2>/dev/null; }
  ask "select 'local='||datname from pg_database where not datistemplate"
  data=$(ask 'show data_directory')
fi
# Where PostgreSQL keeps its databases, or will: the nearest directory that is there.
case ${data:-} in /*) ;; *) data=/var/lib/pgsql/data;; esac
near() { at=$1; while [ ! -d "$at" ]; do at=$(dirname "$at"); done; df -Pk "$at"; }
echo "data_free_kib=$(near "$R$data" | awk 'NR == 2 { print $4 }')"
[ "$(near "$R$data" | awk 'NR == 2 { print $6 }')" = "$(near "$R$1" | awk 'NR == 2 { print $6 }')" ] && echo data_here=yes
exit 0
"#;

/// The beginning of the scripts that connect: reads `NAME HOST PORT USER DATABASE SECURED
/// PASSWORD`, a line each, from standard input. Without a host the machine's own
/// configuration says where and as whom.
macro_rules! each_database {
    ($body:literal) => {
        concat!(
            r#"R=${HVBAK_HOST_ROOT:-}
umask 077
[ -n "$R" ] && PATH=$R/usr/bin:$R/usr/sbin:$PATH
for d in "$R"/opt/rh/rh-postgresql*/root/usr; do
  [ -x "$d/bin/psql" ] && { PATH=$d/bin:$PATH; LD_LIBRARY_PATH=$d/lib64; export LD_LIBRARY_PATH; }
done
export PGPASSWORD= PGCONNECT_TIMEOUT=10 PGSSLMODE=prefer PGAPPNAME=hvbak
while IFS= read -r name && IFS= read -r host && IFS= read -r port && IFS= read -r user &&
  IFS= read -r db && IFS= read -r secured && IFS= read -r PGPASSWORD; do
(
  case $name in *[!A-Z]*|'') exit 0;; esac
  if [ -z "$host" ]; then
    for conf in "$R"/etc/ovirt-engine-dwh/ovirt-engine-dwhd.conf.d/*.conf "$R"/etc/ovirt-engine/engine.conf.d/*.conf; do
      [ -r "$conf" ] && . "$conf"
    done
    eval "host=\${${name}_DB_HOST:-} port=\${${name}_DB_PORT:-5432} user=\${${name}_DB_USER:-} db=\${${name}_DB_DATABASE:-} PGPASSWORD=\${${name}_DB_PASSWORD:-} secured=\${${name}_DB_SECURED:-}"
    [ -n "$host" ] && [ -n "$user" ] || { echo "$name.unset=yes"; exit 0; }
  fi
  case $host in localhost|127.*|::1) local=yes;; *) local=no;; esac
  case $secured in [Tt]rue|1) PGSSLMODE=require;; esac
  ask() { psql -X -w -At -h "$host" -p "$port" -U "$user" -d "$db" -c "$1" </dev/null; }
"#,
            $body,
            "\n)\ndone\nexit 0\n"
        )
    };
}

/// Whether databases answer, and are ready for a restore. A database is empty by the
/// program's own rule: a dump of its schema creates nothing but extensions and languages.
pub const DATABASES: &str = each_database!(
    r#"  echo "$name.local=$local"
  why=$(ask 'select 1' 2>&1 >/dev/null) || { echo "$name.why=$(printf %s "$why" | tr '\n' ' ' | head -c 300)"; exit 0; }
  echo "$name.reachable=yes"
  echo "$name.lc=$(ask 'show lc_messages' 2>/dev/null)"
  echo "$name.server=$(ask 'show server_version_num' 2>/dev/null)"
  echo "$name.empty=$( { pg_dump -w -s -h "$host" -p "$port" -U "$user" "$db" </dev/null 2>/dev/null || echo FAILED; } |
    awk 'tolower($0) ~ /^create / && tolower($0) !~ /^create (or replace )?((procedural|trusted) )*(extension|language)/ { n++ }
      /^FAILED$/ { f = 1 } END { print f ? "unknown" : n ? "no" : "yes" }')"
  [ "$name" = ENGINE ] && echo "$name.hosted=$(ask 'select count(*) from vm_static where origin in (5, 6)' 2>/dev/null)""#
);

/// The rows of `vm_static` in the engine's database.
pub const VMS: &str = each_database!(
    r#"  [ "$name" = ENGINE ] && echo "vms=$(ask 'select count(*) from vm_static' 2>/dev/null)""#
);

/// Takes a file for a run: `$1` work directory, `$2` name, `$3` file, `$4` its SHA-256.
/// Exit 65: what arrived is something else.
pub const RECEIVE: &str = r#"umask 077
to=$1/$2/$3
cat >"$to.new" || exit 74
[ "$(sha256sum <"$to.new" | cut -c 1-64)" = "$4" ] || { rm -f "$to.new"; exit 65; }
mv "$to.new" "$to"
"#;

/// What the engine's health page says, within a minute. No arguments.
pub const HEALTH: &str = r#"[ -n "${HVBAK_HOST_ROOT:-}" ] && PATH=$HVBAK_HOST_ROOT/usr/bin:$PATH
for try in 1 2 3 4 5 6; do
  said=$(curl -sk --max-time 5 https://localhost/ovirt-engine/services/health </dev/null 2>/dev/null)
  case $said in 'DB Up!'*) break;; esac
  sleep 5
done
printf 'health=%s\n' "$(printf %s "$said" | head -c 100 | tr -d '\n')"
"#;

/// What [`FACTS`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct MachineFacts {
    /// By the file and process that engine-backup looks at itself.
    pub engine_running: bool,
    /// Units at work.
    pub active: Vec<String>,
    /// engine-setup was run here and not undone by engine-cleanup.
    pub is_set_up: bool,
    /// The engine's name in its configuration here.
    pub fqdn: Option<String>,
    /// As in the archive's `os_version`: `centos9`.
    pub os: String,
    /// `ID` and `ID_LIKE`.
    pub like: Vec<String>,
    /// Programs that are there; `server`: a PostgreSQL server.
    pub tools: Vec<String>,
    /// Major version of `pg_dump`.
    pub client: Option<u32>,
    /// `en_US.UTF-8` is installed.
    pub locale: bool,
    /// Lines that set `lc_messages` in postgresql.conf.
    pub lc_lines: u32,
    /// Databases of the PostgreSQL here, as its own user sees them; empty when it cannot
    /// be asked.
    pub local: Vec<String>,
    /// Bytes free where PostgreSQL keeps its databases, or will.
    pub data_free: Option<u64>,
    /// That is the file system which the restore works on.
    pub data_here: bool,
}

impl MachineFacts {
    /// Reads the answer.
    pub fn parse(text: &str) -> Result<Self, AnswerError> {
        let fields = Fields::new(text);
        let all = |key| fields.all(key).map(ToOwned::to_owned).collect();
        let number = |key| fields.first(key).and_then(|v| v.parse().ok());
        Ok(Self {
            engine_running: fields.first("engine").is_some(),
            active: all("active"),
            is_set_up: fields.first("setup").is_some(),
            fqdn: fields.first("fqdn").map(|v| v.trim().to_owned()).filter(|v| !v.is_empty()),
            os: fields.first("os").ok_or(AnswerError::Lacks { what: "os" })?.to_owned(),
            like: fields
                .first("like")
                .unwrap_or_default()
                .split_whitespace()
                .map(ToOwned::to_owned)
                .collect(),
            tools: all("tool"),
            client: number("client"),
            locale: fields.first("locale").is_some(),
            lc_lines: number("lc_lines").unwrap_or(0),
            local: all("local"),
            data_free: fields
                .first("data_free_kib")
                .and_then(|v| v.parse::<u64>().ok())
                .map(|kib| kib.saturating_mul(1024)),
            data_here: fields.first("data_here").is_some(),
        })
    }

    /// Whether the engine is at work.
    pub fn engine_at_work(&self) -> bool {
        self.engine_running || self.active.iter().any(|u| u == "ovirt-engine")
    }

    /// Whether a program is there.
    pub fn has(&self, tool: &str) -> bool {
        self.tools.iter().any(|t| t == tool)
    }
}

/// What [`DATABASES`] found of one database.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct DbFacts {
    pub reachable: bool,
    /// What libpq says when it is not.
    pub why: Option<String>,
    /// The machine's configuration says nothing of it.
    pub is_unset: bool,
    /// `None`: pg_dump could not tell.
    pub empty: Option<bool>,
    pub lc_messages: Option<String>,
    /// Major version.
    pub server: Option<u32>,
    /// VMs of a self-hosted engine in it.
    pub hosted: u64,
    /// It is on this machine.
    pub is_local: bool,
}

/// Reads the answer of [`DATABASES`].
pub fn parse_databases(text: &str) -> BTreeMap<Scope, DbFacts> {
    let mut found = BTreeMap::new();
    for (key, value) in Fields::new(text).iter() {
        let Some((name, what)) = key.split_once('.') else { continue };
        let Some(scope) = Scope::ALL.into_iter().find(|s| s.conf_prefix() == Some(name)) else {
            continue;
        };
        let facts: &mut DbFacts = found.entry(scope).or_default();
        match what {
            "reachable" => facts.reachable = true,
            "why" => facts.why = Some(value.trim().to_owned()),
            "unset" => facts.is_unset = true,
            "empty" => facts.empty = ["no", "yes"].iter().position(|w| *w == value).map(|n| n == 1),
            "lc" => facts.lc_messages = Some(value.to_owned()).filter(|v| !v.is_empty()),
            "server" => facts.server = value.parse().ok().map(major),
            "local" => facts.is_local = value == "yes",
            "hosted" => facts.hosted = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    found
}

/// 150005 is 15, 90624 is 9.
fn major(number: u32) -> u32 {
    number / 10_000
}

/// The rows that [`VMS`] counted.
pub fn parse_vms(text: &str) -> Option<u64> {
    Fields::new(text).first("vms").and_then(|v| v.parse().ok())
}

/// What the health page says.
pub fn parse_health(text: &str) -> String {
    Fields::new(text).first("health").unwrap_or_default().to_owned()
}

/// A database to ask for: where the archive or the user says, or (`None`) where the
/// machine's own configuration says.
#[derive(Debug, Clone)]
pub struct Probe {
    pub scope: Scope,
    pub at: Option<Connection>,
}

impl Probe {
    /// The lines for standard input; `None`: a value holds a line break.
    pub fn lines(&self) -> Option<String> {
        let name = self.scope.conf_prefix()?;
        let Some(at) = &self.at else { return Some(format!("{name}\n\n\n\n\n\n\n")) };
        let port = at.port.to_string();
        let secured = if at.secured { "1" } else { "0" };
        let values = [name, &at.host, &port, &at.user, &at.database, secured, at.password.expose()];
        let plain = values.iter().all(|v| !v.contains(['\n', '\r', '\0'])) && !at.host.is_empty();
        plain.then(|| values.iter().flat_map(|v| [*v, "\n"]).collect())
    }
}

/// Whether this machine's OpenSSL cannot read key stores of EL8, and the engine's packages
/// do not mend that yet (4.5.7).
pub fn is_el9_before_reencryption(os: &str, version: &Version) -> bool {
    os.ends_with('9') && version.series() == (4, 5) && !version.at_least(&[4, 5, 7])
}
