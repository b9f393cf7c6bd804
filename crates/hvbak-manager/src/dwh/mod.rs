//! A move of the Data Warehouse as data: which files change and how, what is asked before,
//! what speaks against it, what is run, and how far a move is.
//!
//! Nothing here runs or connects. Invariants: a configuration file is changed in the values
//! that move and nowhere else, so that what an administrator wrote in it stays; no text that
//! is shown holds a password.

mod back;
mod compare;
mod conf;
mod facts;
mod grants;
mod preflight;
mod record;
mod remote;
mod service;
mod works;

use hvbak_types::Secret;
use serde::{Deserialize, Serialize};

pub use back::{Setup, revert_preflight, setup};
pub use compare::{COMPARE, Compared, Difference, Other};
pub use conf::{EditError, check_target, diff, point_at};
pub use facts::{DwhFacts, FACTS, Later, Place, SourceFacts, TargetFacts, target_lines};
pub use preflight::preflight;
pub use record::{Edit, Record, State};
pub use remote::{
    CAT, COPY, COPY_FILE, CopyFailed, CopySaid, PASSFILE, SERVICE, WRITE, judge_copy,
};

pub use service::{
    CONF_DIR, CREATE, HOSTNAME, MACHINE, Machine, NewFile, REMOVE, SETUP_CONF, STILL_RUNNING,
    ServiceCase, ServiceRecord, is_of_package, reach_engine, service_preflight, without_dwh,
};
pub use works::{Mark, SESSIONS, WORKS, others_at_work, silence};

/// The service.
pub const UNIT: &str = "ovirt-engine-dwhd";
/// Where the engine reads how to reach the Data Warehouse's database.
pub const ENGINE_CONF: &str = "/etc/ovirt-engine/engine.conf.d/10-setup-dwh-database.conf";
/// Where the service reads how to reach both databases.
pub const DWHD_CONF: &str = "/etc/ovirt-engine-dwh/ovirt-engine-dwhd.conf.d/10-setup-database.conf";

/// The database that the Data Warehouse moves to. Its password lies in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub host: String,
    pub port: u16,
    pub user: String,
    pub database: String,
    /// TLS, and whether the server's certificate is checked.
    pub secured: bool,
    pub validated: bool,
}

impl Target {
    /// How libpq is told to reach it, here as in engine-setup. `verify-full` wants the CA in
    /// `~/.postgresql/root.crt` of the user who connects.
    pub fn sslmode(&self) -> &'static str {
        match (self.secured, self.validated) {
            (_, true) => "verify-full",
            (true, false) => "require",
            (false, false) => "prefer",
        }
    }

    /// How its database is made, by that server's superuser.
    pub fn made_by(&self) -> String {
        format!(
            "create database \"{}\" owner \"{}\" encoding 'UTF8' template template0 lc_collate 'en_US.UTF-8' lc_ctype 'en_US.UTF-8'",
            self.database, self.user
        )
    }

    /// As the other side of a comparison.
    pub fn with(&self, password: &Secret) -> Other {
        Other {
            host: self.host.clone(),
            port: self.port,
            user: self.user.clone(),
            database: self.database.clone(),
            sslmode: self.sslmode(),
            password: password.clone(),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}:{}/{}", self.user, self.host, self.port, self.database)
    }
}
