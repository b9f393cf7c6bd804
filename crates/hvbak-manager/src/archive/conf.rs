//! What the configuration in `files` says of the databases and of the manager's name.
//!
//! A restore puts these files in place and then connects by them, so whoever wants to know
//! beforehand whether the databases answer must read them first. Files are read in their
//! names' order, as the engine does; nothing of them is run. Passwords are [`Secret`]s and
//! leave this room only towards a connection.

use std::{
    collections::BTreeMap,
    io::{self, Read},
};

use hvbak_types::Secret;

use crate::scope::Scope;

/// Configuration files that are looked into.
const FILES_MAX: usize = 200;
/// Bytes of one of them.
const FILE_MAX: u64 = 64 << 10;

/// How a database is reached.
#[derive(Debug, Clone)]
pub struct Connection {
    pub host: String,
    pub port: u16,
    pub user: String,
    pub database: String,
    pub password: Secret,
    /// TLS is asked for.
    pub secured: bool,
}

impl Connection {
    /// On the manager itself.
    pub fn is_local(&self) -> bool {
        matches!(self.host.as_str(), "localhost" | "localhost.localdomain" | "127.0.0.1" | "::1")
    }
}

/// The configuration in an archive.
#[derive(Debug, Clone, Default)]
pub struct Conf {
    /// `ENGINE_FQDN`.
    pub fqdn: Option<String>,
    /// Databases with a complete connection.
    pub databases: BTreeMap<Scope, Connection>,
}

/// Collects files until all are known.
#[derive(Debug, Default)]
pub struct Collector {
    files: BTreeMap<String, Vec<(String, Secret)>>,
}

/// What one file says, in the same way.
pub fn read_conf(text: &str) -> Conf {
    let lines = text.lines().filter_map(assignment).collect();
    Collector { files: BTreeMap::from([(String::new(), lines)]) }.finish()
}

/// Whether a file of `files` says something of databases.
pub fn is_wanted(name: &[u8]) -> bool {
    let dirs =
        ["etc/ovirt-engine/engine.conf.d/", "etc/ovirt-engine-dwh/ovirt-engine-dwhd.conf.d/"];
    let inner = dirs.iter().find_map(|dir| name.strip_prefix(dir.as_bytes()));
    inner.is_some_and(|rest| rest.ends_with(b".conf") && !rest.contains(&b'/'))
}

impl Collector {
    /// Reads one file; what is longer than any configuration is not looked at.
    pub fn add(&mut self, name: &[u8], reader: impl Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        reader.take(FILE_MAX).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        if self.files.len() < FILES_MAX {
            let lines = text.lines().filter_map(assignment).collect();
            self.files.insert(String::from_utf8_lossy(name).into_owned(), lines);
        }
        Ok(())
    }

    /// The settings that hold after all files were read. The engine's own directory comes
    /// after the Data Warehouse's in the names' order, and so wins.
    pub fn finish(self) -> Conf {
        let all: BTreeMap<String, Secret> = self.files.into_values().flatten().collect();
        let get = |name: String| all.get(&name).map(|s| s.expose().to_owned());
        let mut conf = Conf { fqdn: get("ENGINE_FQDN".into()), ..Conf::default() };
        for scope in Scope::ALL {
            let Some(prefix) = scope.conf_prefix() else { continue };
            let field = |end: &str| get(format!("{prefix}_DB_{end}")).filter(|v| !v.is_empty());
            let (Some(user), Some(password)) = (field("USER"), field("PASSWORD")) else { continue };
            conf.databases.insert(
                scope,
                Connection {
                    host: field("HOST").unwrap_or_else(|| "localhost".into()),
                    port: field("PORT").and_then(|p| p.parse().ok()).unwrap_or(5432),
                    user,
                    database: field("DATABASE").unwrap_or_else(|| scope.usual_database().into()),
                    password: Secret::new(password),
                    secured: field("SECURED").is_some_and(|v| v.eq_ignore_ascii_case("true")),
                },
            );
        }
        conf
    }
}

/// `NAME=value` or `NAME="value"`, as otopi writes them: in quotes a backslash takes the
/// meaning from `"`, `\`, `$` and a backtick.
fn assignment(line: &str) -> Option<(String, Secret)> {
    let (name, value) = line.trim().split_once('=')?;
    let wanted = name == "ENGINE_FQDN" || name.contains("_DB_");
    if !wanted || !name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_') {
        return None;
    }
    let Some(inner) = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')) else {
        return Some((name.to_owned(), Secret::new(value)));
    };
    let mut text = String::new();
    let mut chars = inner.chars().peekable();
    while let Some(c) = chars.next() {
        match chars.peek() {
            Some(next @ ('"' | '\\' | '$' | '`')) if c == '\\' => {
                text.push(*next);
                chars.next();
            }
            _ => text.push(c),
        }
    }
    Some((name.to_owned(), Secret::new(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(files: &[(&str, &str)]) -> Conf {
        let mut collector = Collector::default();
        for (name, text) in files {
            assert!(is_wanted(name.as_bytes()), "{name}");
            collector.add(name.as_bytes(), text.as_bytes()).unwrap();
        }
        collector.finish()
    }

    #[test]
    fn connections_are_read_as_the_engine_reads_them() {
        let conf = conf(&[
            (
                "etc/ovirt-engine/engine.conf.d/99-local.conf",
                "ENGINE_DB_PORT=\"5433\"\nENGINE_FQDN=engine.example.test\n",
            ),
            (
                "etc/ovirt-engine/engine.conf.d/10-setup-database.conf",
                "ENGINE_DB_HOST=\"db.example.test\"\nENGINE_DB_PORT=\"5432\"\nENGINE_DB_USER=\"engine\"\n\
                 ENGINE_DB_PASSWORD=\"a\\\"b\\\\c\\$d\"\nENGINE_DB_SECURED=\"True\"\nENGINE_DB_URL=\"jdbc:${X}\"\n",
            ),
            ("etc/ovirt-engine/engine.conf.d/x.conf", "DWH_DB_USER=\"no password\"\nrm -rf /\n"),
        ]);
        let db = &conf.databases[&Scope::Db];
        assert_eq!((db.port, db.database.as_str(), db.secured), (5433, "engine", true));
        assert_eq!(db.password.expose(), "a\"b\\c$d");
        assert!(!db.is_local());
        assert_eq!(conf.databases.len(), 1);
        assert_eq!(conf.fqdn.as_deref(), Some("engine.example.test"));
        assert!(!format!("{conf:?}").contains("a\\\"b"), "a password must not be printed");
    }

    #[test]
    fn other_files_are_not_looked_at() {
        for name in ["etc/passwd", "etc/ovirt-engine/engine.conf.d/x.conf.20261121", "x/y.conf"] {
            assert!(!is_wanted(name.as_bytes()), "{name}");
        }
    }
}
