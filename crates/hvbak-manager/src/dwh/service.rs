//! A move of the Data Warehouse's service to a machine of its own: what is asked there, what
//! speaks against it, the files it gets, and how far a move is.
//!
//! Service and engine know each other by the UUID in `10-setup-uuid.conf`, which moves with
//! the files: exactly one service per engine starts (ovirt-dwh, docs/Notes-about-single-dwhd).
//! The database comes first: a service away from the manager reaches it by the network.

use serde::{Deserialize, Serialize};

use super::{DwhFacts, Edit, EditError, State};
use crate::{
    remote::Fields,
    restore::{DbFacts, Finding, Weight},
};

/// What engine-setup knows of this machine: whether it sets the Data Warehouse up.
pub const SETUP_CONF: &str = "/etc/ovirt-engine-setup.conf.d/20-setup-ovirt-post.conf";
/// The service's configuration.
pub const CONF_DIR: &str = "/etc/ovirt-engine-dwh/ovirt-engine-dwhd.conf.d";
/// What the engine's database says of a service that is stopped (engine-backup puts it to 0 on
/// every restore for the same reason).
pub const STILL_RUNNING: &str = "the service is stopped, and the engine's database still counts it as running (DwhCurrentlyRunning): it has died, or another one works; engine-setup refuses until one was started and stopped cleanly";
/// Bytes of file names that are listed.
const NAME_MAX: usize = 100;

/// Whether a file of [`CONF_DIR`] is of the packages of its machine (the software collection
/// of PostgreSQL, EL7), and means nothing on another.
pub fn is_of_package(name: &str) -> bool {
    name.starts_with("10-scl-postgres")
}

/// Looks at a machine of the service: the manager, or the one that it moves to.
pub const MACHINE: &str = r#"R=${HVBAK_HOST_ROOT:-}
[ -n "$R" ] && PATH=$R/usr/bin:$R/usr/sbin:$PATH
echo "uid=$(id -u)"
echo "name=$(cat "$R/etc/hostname" 2>/dev/null || hostname -f 2>/dev/null || hostname)"
echo "clock=$(date +%s)"
[ -e "$R/usr/share/ovirt-engine-dwh/services/ovirt-engine-dwhd/ovirt-engine-dwhd.conf" ] && echo installed=yes
echo "package=$(rpm -q --qf '%{VERSION}' ovirt-engine-dwh 2>/dev/null)"
echo "active=$(systemctl is-active ovirt-engine-dwhd 2>/dev/null | head -n 1)"
for tool in psql sha256sum; do command -v "$tool" >/dev/null 2>&1 || echo "missing=$tool"; done
cat "$R"/etc/ovirt-engine-setup.conf "$R"/etc/ovirt-engine-setup.conf.d/*.conf 2>/dev/null |
  grep -q '^OVESETUP_ENGINE_CORE/enable=bool:True' && echo engine=yes
for f in "$R"/etc/ovirt-engine-dwh/ovirt-engine-dwhd.conf.d/*.conf; do
  [ -f "$f" ] && echo "conf=$(sha256sum <"$f" | cut -c 1-64):$(basename "$f")"
done
exit 0
"#;

/// Makes a file that is not there: `$1` path, `$2` its SHA-256; the content on standard
/// input. It is the service's own (0600). May be repeated. Exit 65: something else arrived;
/// 77: another is there.
pub const CREATE: &str = r#"f=${HVBAK_HOST_ROOT:-}$1
umask 077
new=$f.hvbak-new
if [ -e "$f" ] || [ -L "$f" ]; then
  [ -f "$f" ] && [ ! -L "$f" ] && [ "$(sha256sum <"$f" | cut -c 1-64)" = "$2" ] && exit 0
  exit 77
fi
mkdir -p "$(dirname "$f")" || exit 73
rm -f "$new"
cat >"$new" || { rm -f "$new"; exit 73; }
if [ "$(sha256sum <"$new" | cut -c 1-64)" != "$2" ]; then rm -f "$new"; exit 65; fi
if [ -z "${HVBAK_HOST_ROOT:-}" ] && id ovirt >/dev/null 2>&1; then chown ovirt:ovirt "$new" || exit 73; fi
if command -v restorecon >/dev/null 2>&1; then restorecon "$new" 2>/dev/null; fi
sync "$new" 2>/dev/null || sync
mv "$new" "$f" || exit 73
sync "$(dirname "$f")" 2>/dev/null || sync
"#;

/// Removes a file that is what it was made as: `$1` path, `$2` its SHA-256. May be repeated.
/// Exit 77: it is another.
pub const REMOVE: &str = r#"f=${HVBAK_HOST_ROOT:-}$1
rm -f "$f.hvbak-new"
if [ ! -e "$f" ] && [ ! -L "$f" ]; then exit 0; fi
[ -f "$f" ] && [ ! -L "$f" ] && [ "$(sha256sum <"$f" | cut -c 1-64)" = "$2" ] || exit 77
rm -f "$f"
"#;

/// Writes `dwhHostname` into the engine's database, as engine-setup does: `$1` a host name
/// or nothing. By the manager's configuration. May be repeated.
pub const HOSTNAME: &str = r#"R=${HVBAK_HOST_ROOT:-}
case $1 in *[!A-Za-z0-9._-]*) exit 64;; esac
[ -n "$R" ] && PATH=$R/usr/bin:$R/usr/sbin:$PATH
for d in "$R"/opt/rh/rh-postgresql*/root/usr; do
  [ -x "$d/bin/psql" ] && { PATH=$d/bin:$PATH; LD_LIBRARY_PATH=$d/lib64; export LD_LIBRARY_PATH; }
done
for conf in "$R"/etc/ovirt-engine-dwh/ovirt-engine-dwhd.conf.d/*.conf; do [ -r "$conf" ] && . "$conf"; done
export PGPASSWORD="$ENGINE_DB_PASSWORD" PGCONNECT_TIMEOUT=10 PGAPPNAME=hvbak PGSSLMODE=prefer
case ${ENGINE_DB_SECURED:-} in [Tt]rue|1) PGSSLMODE=require;; esac
exec psql -X -w -q -At -v ON_ERROR_STOP=1 -h "$ENGINE_DB_HOST" -p "${ENGINE_DB_PORT:-5432}" -U "$ENGINE_DB_USER" -d "$ENGINE_DB_DATABASE" \
  -c "select UpdateDwhHistoryTimekeeping('dwhHostname', nullif('$1', ''), NULL)" </dev/null >/dev/null
"#;

/// A machine of the service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Machine {
    pub is_root: bool,
    pub name: String,
    /// Seconds since 1970.
    pub clock: i64,
    /// The service's package is there.
    pub is_installed: bool,
    /// Its version; empty where the system does not say.
    pub package: String,
    pub is_active: bool,
    pub missing_tools: Vec<String>,
    /// An engine is set up there.
    pub has_engine: bool,
    /// Configuration files, as name and SHA-256.
    pub files: Vec<(String, String)>,
}

impl Machine {
    /// Reads the answer of [`MACHINE`].
    pub fn parse(text: &str) -> Self {
        let fields = Fields::new(text);
        let word = |key: &str| fields.first(key).unwrap_or_default().trim().to_owned();
        let file = |line: &str| {
            let (sum, name) = line.split_once(':')?;
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            let fits = name.len() <= NAME_MAX && name.chars().all(plain) && !name.starts_with('.');
            fits.then(|| (name.to_owned(), sum.to_owned()))
        };
        Self {
            is_root: word("uid") == "0",
            name: word("name"),
            clock: word("clock").parse().unwrap_or(0),
            is_installed: fields.first("installed").is_some(),
            package: word("package"),
            is_active: word("active") == "active",
            missing_tools: fields.all("missing").map(ToOwned::to_owned).collect(),
            has_engine: fields.first("engine").is_some(),
            files: fields.all("conf").filter_map(file).collect(),
        }
    }
}

/// A file that the new machine gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewFile {
    pub path: String,
    pub sum: String,
}

/// A move of the service; holds no password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRecord {
    pub format: u32,
    pub state: State,
    /// The new machine as it was named, and as it calls itself.
    pub host: String,
    pub name: String,
    /// How the new machine reaches the engine's database.
    pub engine_host: String,
    /// The manager's service was at work, and started with the machine.
    pub was_active: bool,
    pub was_enabled: bool,
    /// What `dwhHostname` was.
    pub was_registered: Option<String>,
    /// Of the manager.
    pub edits: Vec<Edit>,
    /// Of the new machine.
    pub files: Vec<NewFile>,
}

/// The service's database file for another machine: the engine's database by another name.
///
/// # Errors
/// [`EditError`] when the file names no engine database, or the name cannot stand in it.
pub fn reach_engine(path: &str, text: &str, host: &str) -> Result<String, EditError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-:_".contains(c);
    if host.is_empty() || host.starts_with('-') || !host.chars().all(plain) {
        let why = "it holds characters that no host name has";
        return Err(EditError::Value { what: "host", why });
    }
    let mut out = String::new();
    let (mut named, mut linked) = (false, false);
    for line in text.split_inclusive('\n') {
        if line.starts_with("ENGINE_DB_HOST=") {
            named = true;
            out.push_str(&format!("ENGINE_DB_HOST=\"{host}\"\n"));
        } else if let Some((start, rest)) = line
            .strip_prefix("ENGINE_DB_URL=\"jdbc:postgresql://")
            .and_then(|rest| {
                rest.split_at_checked(
                    rest.rfind("]:").map_or_else(|| rest.find(':').unwrap_or(0), |n| n + 1),
                )
            })
            .filter(|(start, _)| !start.is_empty())
        {
            linked = true;
            let host = match host.contains(':') {
                true => format!("[{host}]"),
                // A variable means the line above.
                false if start.starts_with('$') => start.to_owned(),
                false => host.to_owned(),
            };
            out.push_str(&format!("ENGINE_DB_URL=\"jdbc:postgresql://{host}{rest}"));
        } else {
            out.push_str(line);
        }
    }
    let lacks = |name| EditError::Lacks { path: path.to_owned(), name };
    match (named, linked) {
        (false, _) => Err(lacks("ENGINE_DB_HOST")),
        (_, false) => Err(lacks("ENGINE_DB_URL")),
        _ => Ok(out),
    }
}

/// The manager's own setup without the Data Warehouse; `None`: it has none of it.
pub fn without_dwh(text: &str) -> Option<String> {
    const ON: &str = "OVESETUP_DWH_CORE/enable=bool:True";
    let has = text.lines().any(|line| line == ON);
    let off = |line: &str| match line.strip_prefix(ON) {
        Some(end) if end.trim().is_empty() => format!("OVESETUP_DWH_CORE/enable=bool:False{end}"),
        _ => line.to_owned(),
    };
    has.then(|| text.split_inclusive('\n').map(off).collect())
}

/// All that is known before a move of the service.
#[derive(Debug, Clone, Copy)]
pub struct ServiceCase<'a> {
    pub facts: &'a DwhFacts,
    pub manager: &'a Machine,
    pub new: &'a Machine,
    /// How the new machine would reach the engine's database; `None`: nobody said.
    pub engine_host: Option<&'a str>,
    /// Both databases, as the new machine sees them.
    pub engine_database: Option<&'a DbFacts>,
    pub dwh_database: Option<&'a DbFacts>,
    /// An earlier hvbak has begun this very move.
    pub begun: bool,
}

/// Everything that speaks against it or should be known.
pub fn service_preflight(case: &ServiceCase<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut stop = |check, text: String, remedy: &str| {
        let remedy = Some(remedy.to_owned());
        found.push(Finding { weight: Weight::Stops, check, text, remedy });
    };
    let ServiceCase { facts, manager, new, .. } = *case;
    if !manager.is_root || !new.is_root {
        stop("root", "a login is not root".into(), "set `user`, or let it use sudo");
    }
    if facts.dwhd.is_unset() {
        stop(
            "not-set-up",
            "no Data Warehouse is set up on the manager".into(),
            "there is nothing to move",
        );
        return found;
    }
    if facts.dwhd.is_local() {
        stop(
            "database-first",
            "the Data Warehouse's database is on the manager still".into(),
            "hvbak dwh move-database --to HOST, then the service",
        );
    }
    for file in &facts.later {
        let reads = file.path.starts_with(CONF_DIR);
        if let Some(name) = file.names.iter().find(|n| reads && n.starts_with("ENGINE_")) {
            stop(
                "later-file",
                format!(
                    "{} sets {name} and is read last: the engine's database by another name would not count",
                    file.path
                ),
                "take these lines out of it, into 10-setup-database.conf if they are right",
            );
        }
    }
    match (&facts.uuid, &facts.registered_uuid) {
        (Some(here), Some(there)) if here == there => {}
        _ => stop(
            "instance",
            format!(
                "the manager's Data Warehouse is not the one that works for this engine (that is on {})",
                facts.registered_host.as_deref().unwrap_or("no known host")
            ),
            "one engine has one; run engine-setup where it should be",
        ),
    }
    if !new.is_installed {
        stop(
            "package",
            format!("{} has no ovirt-engine-dwh", new.name),
            "dnf install ovirt-engine-dwh-setup there; no engine-setup yet",
        );
    } else if manager.package != new.package {
        stop(
            "version",
            format!(
                "ovirt-engine-dwh is `{}` on the manager and `{}` on {}",
                manager.package, new.package, new.name
            ),
            "install the same version on both",
        );
    }
    if new.has_engine {
        stop("engine", format!("an engine is set up on {}", new.name), "name another machine");
    }
    if !new.missing_tools.is_empty() {
        stop(
            "tools",
            format!("{} has no {}", new.name, new.missing_tools.join(", ")),
            "install them",
        );
    }
    if !case.begun {
        if new.is_active {
            stop(
                "running",
                format!("a Data Warehouse is at work on {}", new.name),
                "one engine has one; stop and disable it",
            );
        }
        if facts.is_running == Some(true) && !manager.is_active {
            stop(
                "instance",
                format!(
                    "the engine's database says that a Data Warehouse is at work, and it is not on the manager (last known host: {})",
                    facts.registered_host.as_deref().unwrap_or("none")
                ),
                "stop it where it is; start and stop ovirt-engine-dwhd on the manager once when it has died",
            );
        }
        let names: Vec<_> = new.files.iter().map(|(name, _)| name.as_str()).collect();
        let names: Vec<_> = names.into_iter().filter(|name| !is_of_package(name)).collect();
        if !names.is_empty() {
            stop(
                "configured",
                format!("{} has {} in {CONF_DIR}", new.name, names.join(", ")),
                "move them away; nothing is overwritten",
            );
        }
    }
    match case.engine_host {
        None => stop(
            "engine-host",
            "the engine's database is on the manager, and no name was given by which it is reached from elsewhere".into(),
            "--engine-db-host MANAGER; open its PostgreSQL (listen_addresses, pg_hba.conf, port 5432) for the new machine",
        ),
        Some(host) => {
            for (what, facts) in [("engine's", case.engine_database), ("Data Warehouse's", case.dwh_database)] {
                let why = match facts {
                    Some(facts) if facts.reachable => continue,
                    Some(facts) => facts.why.as_deref().unwrap_or("no answer"),
                    None => "no answer",
                };
                let at = if what == "engine's" { format!(" on {host}") } else { String::new() };
                stop(
                    "reach",
                    format!("the {what} database{at} does not answer {}: {why}", new.name),
                    "let the new machine in (listen_addresses, pg_hba.conf, firewall)",
                );
            }
        }
    }
    if new.name.is_empty()
        || !new.name.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c))
    {
        stop("name", "the new machine does not know its own name".into(), "set its host name");
    }
    let mut tell = |check, text: String, remedy: Option<&str>| {
        let remedy = remedy.map(ToOwned::to_owned);
        found.push(Finding { weight: Weight::Tells, check, text, remedy });
    };
    let apart = manager.clock.abs_diff(new.clock);
    if apart > 60 {
        tell(
            "clock",
            format!("the clocks of both machines are {apart} s apart"),
            Some("set them by NTP: samples carry the time"),
        );
    }
    tell(
        "backup",
        "engine-backup on the manager no longer takes the Data Warehouse along".into(),
        Some("back its database up where it is"),
    );
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_is_reached_by_another_name_and_all_else_stays() {
        for (url, expected) in [
            ("localhost:5432/engine?x", "e.example.test:5432/engine?x"),
            ("[::1]:5432/engine?x", "e.example.test:5432/engine?x"),
            (
                "${ENGINE_DB_HOST}:${ENGINE_DB_PORT}/${ENGINE_DB_DATABASE}?x",
                "${ENGINE_DB_HOST}:${ENGINE_DB_PORT}/${ENGINE_DB_DATABASE}?x",
            ),
        ] {
            let text = format!(
                "ENGINE_DB_HOST=\"localhost\"\nENGINE_DB_URL=\"jdbc:postgresql://{url}\"\nDWH_DB_HOST=\"db\"\n"
            );
            let new = reach_engine("x", &text, "e.example.test").unwrap();
            assert_eq!(
                new,
                format!(
                    "ENGINE_DB_HOST=\"e.example.test\"\nENGINE_DB_URL=\"jdbc:postgresql://{expected}\"\nDWH_DB_HOST=\"db\"\n"
                )
            );
        }
        let text =
            "ENGINE_DB_HOST=\"localhost\"\nENGINE_DB_URL=\"jdbc:postgresql://localhost:5432/e\"\n";
        assert!(reach_engine("x", text, "2001:db8::1").unwrap().contains("//[2001:db8::1]:5432/e"));
        for bad in ["", "-x", "a b", "a\"b", "a$b"] {
            assert!(reach_engine("x", text, bad).is_err(), "{bad}");
        }
        assert!(reach_engine("x", "ENGINE_DB_HOST=\"x\"\n", "e").is_err());
        assert!(reach_engine("x", "DWH_DB_HOST=\"x\"\n", "e").is_err());
    }

    #[test]
    fn the_setup_is_told_once_and_in_one_line() {
        let text =
            "[environment:default]\nOVESETUP_DWH_CORE/enable=bool:True\nOVESETUP_X=bool:True\n";
        let off = without_dwh(text).unwrap();
        assert_eq!(off, text.replace("DWH_CORE/enable=bool:True", "DWH_CORE/enable=bool:False"));
        assert_eq!(without_dwh(&off), None);
        assert_eq!(without_dwh("OVESETUP_DWH_CORE/enable=bool:Truely\n"), None);
    }
}
