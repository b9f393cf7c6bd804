//! A restore of the manager as data: what is wished, what the machine is like, what speaks
//! against it, the commands, and what came of it.
//!
//! engine-backup overwrites the configuration before it looks at any database
//! (engine-backup.md §1, rule 5), so everything that can be known is asked before it is
//! started. Nothing here runs or connects.

mod command;
mod facts;
mod judge;
mod preflight;

use serde::Serialize;

pub use command::{cleanup, passfile, restore, setup};
pub use facts::{
    DATABASES, DbFacts, FACTS, HEALTH, MachineFacts, Probe, RECEIVE, VMS, parse_databases,
    parse_health, parse_vms,
};
pub use judge::{LogScan, RestoreFailed, RestoreSaid, Rows, judge_restore};
pub use preflight::{Case, Finding, Stage, Weight, connections, own, preflight};

use crate::scope::{Request, Scope};

/// Which databases and roles the restore makes itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Provision {
    /// They are there and empty.
    #[default]
    None,
    /// `--provision-all-databases`.
    All,
    /// Only these.
    Parts(Vec<Scope>),
}

impl Provision {
    /// Whether it makes this one.
    pub fn covers(&self, scope: Scope) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Parts(parts) => parts.contains(&scope),
        }
    }
}

/// Another place or role for a database than the backup knows. Its password lies in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Credentials {
    pub scope: Scope,
    pub host: String,
    pub port: u16,
    pub user: String,
    pub database: String,
    /// TLS, and whether the server's certificate is checked.
    pub secured: bool,
    pub validated: bool,
}

/// What is wished for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Wishes {
    pub request: Request,
    /// `--restore-permissions` or `--no-restore-permissions`.
    pub permissions: Option<bool>,
    pub provision: Provision,
    pub credentials: Vec<Credentials>,
    /// `--keep-temporary-data`.
    pub keep_temporary_data: bool,
    /// `--he-remove-storage-vm` and `--he-remove-hosts`: out of a self-hosted engine.
    pub he_remove_storage_vm: bool,
    pub he_remove_hosts: bool,
    /// `engine-cleanup` comes first.
    pub cleanup: bool,
    /// The backup may be of a manager with another name than the one that is set up here.
    pub other_name: bool,
}

impl Wishes {
    /// Everything of the archive into databases that are there.
    pub fn of(request: Request) -> Self {
        Self {
            request,
            permissions: None,
            provision: Provision::None,
            credentials: Vec::new(),
            keep_temporary_data: false,
            he_remove_storage_vm: false,
            he_remove_hosts: false,
            cleanup: false,
            other_name: false,
        }
    }

    /// What an earlier run was asked for, as far as its judgement needs it.
    pub fn of_command(command: &[String]) -> Self {
        let values: Vec<_> = command.iter().filter_map(|a| a.strip_prefix("--scope=")).collect();
        let has = |option: &str| command.iter().any(|a| a == option);
        let changed = |scope: &Scope| {
            command::prefix(*scope)
                .is_some_and(|prefix| has(&format!("--change-{prefix}db-credentials")))
        };
        let credentials = Scope::ALL.into_iter().filter(changed).map(|scope| Credentials {
            scope,
            host: String::new(),
            port: 0,
            user: String::new(),
            database: String::new(),
            secured: false,
            validated: false,
        });
        Self {
            credentials: credentials.collect(),
            he_remove_storage_vm: has("--he-remove-storage-vm"),
            he_remove_hosts: has("--he-remove-hosts"),
            ..Self::of(Request::parse(&values).unwrap_or(Request::All))
        }
    }

    /// The parts that will be restored from an archive that holds these.
    pub fn parts(&self, held: &[Scope]) -> Vec<Scope> {
        match &self.request {
            Request::All => held.to_vec(),
            Request::Parts(parts) => parts.iter().copied().filter(|p| held.contains(p)).collect(),
        }
    }
}
