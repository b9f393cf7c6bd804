//! Jobs on the manager: engine-backup over SSH, as steps that survive a broken connection.
//!
//! What is run there and what its output means is data of `hvbak-manager`; this is the
//! hand that does it. Needs no engine: the manager may be the patient.

mod backup;
mod dumps;
mod dwh;
mod dwh_check;
mod dwh_files;
mod dwh_revert;
mod dwh_service;
mod dwh_service_revert;
mod fetch;
mod hosted_engine;
mod link;
mod look;
mod paths;
mod pick_up;
mod prune;
mod restore;
mod restore_part;
mod restore_source;
mod restored;
mod run;
mod walk;
mod witness;

use std::{path::PathBuf, sync::Arc};

use hvbak_repo::{Identities, Repository};
use hvbak_types::{Host, JobId};
use tokio_util::sync::CancellationToken;

use crate::{
    enroll::EnrollContext,
    event::{Event, Events},
    hosts,
    settings::{HostOverride, Settings},
};

pub use backup::{ManagerBackupOptions, ManagerBackupReport, manager_backup};
pub use dumps::{DumpVerdict, check_dumps};
pub use dwh::{DwhDatabaseOptions, DwhMoved, DwhPlan, dwh_database_plan, dwh_move_database};
pub use dwh_revert::{DwhRevertOptions, DwhReverted, dwh_revert_database};
pub use dwh_service::{
    DwhServiceMoved, DwhServiceOptions, DwhServicePlan, dwh_move_service, dwh_service_plan,
};
pub use dwh_service_revert::{DwhServiceRevertOptions, dwh_revert_service};
pub use hosted_engine::{hosted_engine_maintenance, hosted_engine_status};
pub(crate) use link::Link;
pub use paths::{ManagerPaths, ManagerPathsOptions, manager_paths};
pub use prune::{ManagerPrune, manager_prune};
pub use restore::{
    ManagerRestoreOptions, ManagerRestorePlan, PlannedCommand, SetupWish, manager_restore,
    manager_restore_pick_up, manager_restore_plan,
};
pub use restored::{ManagerRestored, PickedUp, SetupDone};
pub(crate) use run::undo;
pub use walk::{Answer, Ask, Companion, Position, WalkContext, WalkEnd, WalkOptions, walk};
pub use witness::EngineAccess;

/// Where the manager is and how hvbak works there.
#[derive(Debug, Clone)]
pub struct ManagerSettings {
    pub address: String,
    pub port: u16,
    /// Other users than root need a sudo rule without a password.
    pub user: String,
    /// OpenSSH line or `SHA256:…`; without it the key recorded at enrolment counts.
    pub host_key: Option<String>,
    /// Its name in the repository; without it what the machine calls itself.
    pub name: Option<String>,
    /// hvbak's directory there: archive, dumps and log lie in it while a backup runs.
    pub work_dir: String,
    /// The program.
    pub program: String,
}

/// The parts a manager job is given.
#[derive(Clone)]
pub struct ManagerContext {
    pub repository: Arc<Repository>,
    pub settings: Arc<Settings>,
    pub manager: ManagerSettings,
    /// Private keys that open encrypted archives.
    pub identities: Option<Identities>,
    pub events: Events,
    pub cancel: CancellationToken,
    pub job: JobId,
}

impl ManagerContext {
    pub(crate) fn phase(&self, text: impl Into<String>) {
        self.events.event(&Event::Phase { vm: None, text: text.into() });
    }

    pub(crate) fn warn(&self, text: impl Into<String>) {
        self.events.event(&Event::Warning { vm: None, text: text.into() });
    }
}

/// What [`crate::enroll`] takes to enrol the manager as it enrols hypervisors. The engine
/// has no record of the manager's key: without a configured one it needs consent.
pub fn manager_as_host(
    context: &EnrollContext,
    manager: &ManagerSettings,
) -> (EnrollContext, Host) {
    let host = hosts::unlisted(&manager.address);
    let mut settings = Settings::clone(&context.settings);
    let known = HostOverride {
        address: Some(manager.address.clone()),
        port: Some(manager.port),
        user: Some(manager.user.clone()),
        host_key: manager.host_key.clone(),
    };
    settings.hosts.insert(host.name.clone(), known);
    // engine-backup needs all of root's rights, not the worker's.
    settings.worker.push = true;
    (EnrollContext { settings: Arc::new(settings), ..context.clone() }, host)
}

/// A failed run's log and output were kept there.
pub type Kept = Option<PathBuf>;
