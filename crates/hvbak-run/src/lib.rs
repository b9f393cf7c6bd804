//! Jobs: backup, restore, prune, enrolment and cleanup, as journaled steps over the other rooms.
//!
//! This room decides nothing that a plan decides, prints nothing and parses no arguments.
//! Invariant: an effect outside of this process is in the journal before it happens, and
//! is undone by the job or by [`cleanup`] after a crash.

mod access;
mod backup;
mod backup_config;
mod backup_template;
mod backup_vm;
mod base;
mod cleanup;
mod doctor;
mod documents;
mod drill;
mod enroll;
mod error;
mod event;
mod gather;
mod hook;
mod hosts;
mod job;
mod journal;
mod manager;
pub mod notify;
mod prune;
mod pump;
mod read_disk;
mod report;
mod restore;
mod resume;
mod runbook;
mod session;
mod settings;
mod snapshot;
mod write_disk;

pub use backup::{BackupReport, VmDone, VmFailed, Wishes, backup, single_exit};
pub use backup_config::{ConfigurationDone, ConfigurationsReport, backup_configurations};
pub use backup_template::template_facts;
pub use base::own_prefix;
pub use cleanup::{CleanupReport, cleanup, end_replacement};
pub use doctor::{Check, Health, Wishes as DoctorWishes, doctor};
pub use drill::{
    DrillContext, DrillPlan, DrillReport, DrillSettings, DrillWishes, drill, drill_plan,
};
pub use enroll::{
    Bootstrap, EnrollContext, EnrollMode, EnrollOptions, EnrollOutcome, enroll, host_by_address,
    unknown_host_keys,
};
pub use error::{Result, RunError};
pub use event::{Event, Events, Silent, Sink};
pub use gather::{
    fetch_ca, find_point, inventory, inventory_for_restore, list_inventory, list_snapshots, login,
    newest_points, older_than, open_repository, vm_facts,
};
pub use hook::{Hook, HookMoment, Hooks};
pub use hvbak_ssh::enroll::KeyKind;
pub use job::{Context, blocking};
pub use manager::{
    Answer, Ask, Companion, DumpVerdict, DwhDatabaseOptions, DwhMoved, DwhPlan, DwhRevertOptions,
    DwhReverted, DwhServiceMoved, DwhServiceOptions, DwhServicePlan, DwhServiceRevertOptions,
    EngineAccess, ManagerBackupOptions, ManagerBackupReport, ManagerContext, ManagerPaths,
    ManagerPathsOptions, ManagerPrune, ManagerRestoreOptions, ManagerRestorePlan, ManagerRestored,
    ManagerSettings, PickedUp, PlannedCommand, Position, SetupDone, SetupWish, WalkContext,
    WalkEnd, WalkOptions, check_dumps, dwh_database_plan, dwh_move_database, dwh_move_service,
    dwh_revert_database, dwh_revert_service, dwh_service_plan, hosted_engine_maintenance,
    hosted_engine_status, manager_as_host, manager_backup, manager_paths, manager_prune,
    manager_restore, manager_restore_pick_up, manager_restore_plan, walk,
};
pub use prune::{PruneReport, PruneWishes, prune};
pub use report::{
    LastRun, ManagerDrill, ManagerReport, NewestArchive, NewestPoint, Report, Target, Targets,
    Verified, VmReport, note_verify, report,
};
pub use restore::{Replacing, Restored, RestoredDisk, old_vm, point_facts, restore};
pub use runbook::{RunbookWishes, runbook_facts};
pub use settings::{
    GuestSettings, HostOverride, Settings, SshSettings, Timeouts, TransferSettings, WorkerSettings,
};

/// An error and its causes on one line, each part once.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}
