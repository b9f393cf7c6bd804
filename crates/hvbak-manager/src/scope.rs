//! Scopes: what can be asked of engine-backup, what it prints for each, and which member
//! of the archive proves it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::version::Version;

/// One part of a manager. `all` is not a part: see [`Request`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Configuration, PKI and data directories.
    Files,
    /// The engine's database.
    Db,
    /// The Data Warehouse's database.
    DwhDb,
    /// cinderlib's database (4.3.10 to 4.5.7).
    CinderlibDb,
    /// Its successor (4.5.8).
    ManagedblockDb,
    /// Keycloak's database (4.5.1).
    KeycloakDb,
    /// Grafana's SQLite file (4.4.3).
    GrafanaDb,
    /// Reports' database (up to 4.3).
    ReportsDb,
}

/// A scope that engine-backup does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no scope; there are: all {}", names())]
pub struct ScopeError {
    text: String,
}

fn names() -> String {
    Scope::ALL.map(|s| s.name()).join(" ")
}

impl Scope {
    /// Every scope, in the program's order.
    pub const ALL: [Self; 8] = [
        Self::Files,
        Self::Db,
        Self::DwhDb,
        Self::CinderlibDb,
        Self::ManagedblockDb,
        Self::KeycloakDb,
        Self::GrafanaDb,
        Self::ReportsDb,
    ];

    /// As in `--scope=`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Db => "db",
            Self::DwhDb => "dwhdb",
            Self::CinderlibDb => "cinderlibdb",
            Self::ManagedblockDb => "managedblockdb",
            Self::KeycloakDb => "keycloakdb",
            Self::GrafanaDb => "grafanadb",
            Self::ReportsDb => "reportsdb",
        }
    }

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Files => "configuration files and PKI",
            Self::Db => "engine database",
            Self::DwhDb => "Data Warehouse database",
            Self::CinderlibDb => "cinderlib database",
            Self::ManagedblockDb => "managed block storage database",
            Self::KeycloakDb => "Keycloak database",
            Self::GrafanaDb => "Grafana database",
            Self::ReportsDb => "Reports database",
        }
    }

    /// The archive's member without its leading `./`.
    pub fn member(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Db => "db/engine_backup.db",
            Self::DwhDb => "db/dwh_backup.db",
            Self::CinderlibDb => "db/cinderlib_backup.db",
            Self::ManagedblockDb => "db/managedblock_backup.db",
            Self::KeycloakDb => "db/keycloak_backup.db",
            Self::GrafanaDb => "db/grafana.db",
            Self::ReportsDb => "db/reports_backup.db",
        }
    }

    /// The scope that a member of the archive belongs to.
    pub fn of_member(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.member() == name)
    }

    /// The beginning of the names in the member `config`; `None` when it has no dump.
    pub fn config_prefix(self) -> Option<&'static str> {
        Some(match self {
            Self::Db => "",
            Self::DwhDb => "DWH_",
            Self::CinderlibDb => "CINDERLIB_",
            Self::ManagedblockDb => "MANAGEDBLOCK_",
            Self::KeycloakDb => "KEYCLOAK_",
            Self::ReportsDb => "REPORTS_",
            Self::Files | Self::GrafanaDb => return None,
        })
    }

    /// The beginning of the names in the engine's configuration: `ENGINE_DB_HOST`.
    pub fn conf_prefix(self) -> Option<&'static str> {
        Some(match self {
            Self::Db => "ENGINE",
            Self::DwhDb => "DWH",
            Self::CinderlibDb => "CINDERLIB",
            Self::ManagedblockDb => "MANAGEDBLOCK",
            Self::KeycloakDb => "KEYCLOAK",
            Self::ReportsDb => "REPORTS",
            Self::Files | Self::GrafanaDb => return None,
        })
    }

    /// The database's name unless the configuration has another.
    pub fn usual_database(self) -> &'static str {
        match self {
            Self::Db => "engine",
            Self::DwhDb => "ovirt_engine_history",
            Self::CinderlibDb => "ovirt_cinderlib",
            Self::ManagedblockDb => "ovirt_managedblock",
            Self::KeycloakDb => "ovirt_engine_keycloak",
            Self::ReportsDb => "ovirt_engine_reports",
            Self::Files | Self::GrafanaDb => "",
        }
    }

    /// Whether this version restores the scope: what a later one renamed it still reads.
    pub fn restored_in(self, version: &Version) -> bool {
        self.in_version(version) || (self == Self::CinderlibDb && version.at_least(&[4, 5, 8]))
    }

    /// The scope of a content line of backup or restore (`- Files`, `- DWH database 'x'`).
    pub fn of_content_line(line: &str) -> Option<Self> {
        let text = line.strip_prefix("- ")?;
        if text == "Files" {
            return Some(Self::Files);
        }
        let kind = text.split(" database '").next()?;
        if !text.ends_with('\'') || kind.len() == text.len() {
            return None;
        }
        Some(match kind.to_ascii_lowercase().as_str() {
            "engine" => Self::Db,
            "dwh" => Self::DwhDb,
            "cinderlib" => Self::CinderlibDb,
            "managedblock" | "managed block" => Self::ManagedblockDb,
            "keycloak" => Self::KeycloakDb,
            "grafana" => Self::GrafanaDb,
            "reports" => Self::ReportsDb,
            _ => return None,
        })
    }

    /// Whether this version backs the scope up when asked (engine-backup.md §3).
    pub fn in_version(self, version: &Version) -> bool {
        match self {
            Self::Files | Self::Db | Self::DwhDb => true,
            Self::CinderlibDb => version.at_least(&[4, 3, 10]) && !version.at_least(&[4, 5, 8]),
            Self::ManagedblockDb => version.at_least(&[4, 5, 8]),
            Self::KeycloakDb => version.at_least(&[4, 5, 1]),
            Self::GrafanaDb => version.at_least(&[4, 4, 3]),
            Self::ReportsDb => !version.at_least(&[4, 4]),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        Self::ALL
            .into_iter()
            .find(|s| s.name() == text)
            .ok_or_else(|| ScopeError { text: text.chars().take(40).collect() })
    }
}

/// What a run was asked for: everything that is set up, or named parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// `--scope=all`.
    All,
    /// These parts, sorted, each once.
    Parts(Vec<Scope>),
}

impl Request {
    /// From the values of `--scope`; nothing, or `all` among them, means all.
    pub fn parse<T: AsRef<str>>(scopes: &[T]) -> Result<Self, ScopeError> {
        let mut parts = Vec::new();
        let mut all = scopes.is_empty();
        for scope in scopes {
            match scope.as_ref() {
                "all" => all = true,
                text => parts.push(text.parse()?),
            }
        }
        parts.sort();
        parts.dedup();
        Ok(if all { Self::All } else { Self::Parts(parts) })
    }

    /// The values for `--scope=`.
    pub fn names(&self) -> Vec<&'static str> {
        match self {
            Self::All => vec!["all"],
            Self::Parts(parts) => parts.iter().map(|s| s.name()).collect(),
        }
    }

    /// The parts that must be in the result whatever the manager is made of.
    pub fn required(&self) -> Vec<Scope> {
        match self {
            Self::All => vec![Scope::Files, Scope::Db],
            Self::Parts(parts) => parts.clone(),
        }
    }
}
