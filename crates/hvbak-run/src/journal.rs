//! The outside effects that a job must undo if it dies.
//!
//! Invariant: an intent is on disk before the effect is asked for, with enough in it to
//! find the effect by name or id; "done" and "undone" follow. Undo is idempotent and
//! tolerates "already gone", so replaying a journal twice is harmless. A journal is data:
//! it holds no command, and whoever replays it touches only what bears our own mark.

use hvbak_repo::StepView;
use hvbak_types::{DiskId, HostId, PointId, SnapshotId, VmId};
use serde::{Deserialize, Serialize};

use crate::restore::Replacing;

/// An effect outside of the job. What the engine names only afterwards is found by what
/// was chosen before: a snapshot by its description, a disk by its chosen id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// Guest file systems are frozen.
    Freeze { vm: VmId },
    /// A snapshot of ours exists.
    Snapshot { vm: VmId, vm_name: String, description: String },
    /// A snapshot of ours that no point needs any more is being deleted.
    Retire { vm: VmId, vm_name: String, description: String },
    /// A pushed worker lies on a host.
    Worker { host: HostId, host_name: String, tag: String },
    /// A half-made point lies in the repository.
    Partial { vm: VmId, point: PointId },
    /// A directory of a run of engine-backup lies on the manager, below `base`.
    ManagerRun { manager: String, base: String, point: PointId },
    /// A directory of a restore of the manager, or of a move of its Data Warehouse, lies on
    /// it, below `base`; `kind` is what runs there.
    ManagerRestore { manager: String, base: String, run: PointId, kind: String },
    /// A disk made by a restore.
    Disk { id: DiskId, alias: String },
    /// A VM made by a restore, with an id that we chose.
    Vm { id: VmId, name: String },
    /// A VM made by a restore, whose id the engine chooses: found by its name and description.
    NamedVm { name: String, description: String },
    /// A template made by a restore, found in the same way.
    Template { name: String, description: String },
    /// A VM takes the place of another: begun is all but the deletion of the old one, which is
    /// asked for once this is done. Not undone like others: see `restore/replace.rs`.
    Replace { replacing: Box<Replacing> },
}

impl Step {
    /// The effect for people.
    pub fn describe(&self) -> String {
        match self {
            Self::Freeze { vm } => format!("frozen file systems of VM {vm}"),
            Self::Snapshot { vm_name, description, .. }
            | Self::Retire { vm_name, description, .. } => {
                format!("snapshot `{description}` of VM {vm_name}")
            }
            Self::Worker { host_name, .. } => format!("worker on host {host_name}"),
            Self::Partial { vm, point } => format!("half-made point {point} of VM {vm}"),
            Self::ManagerRun { manager, point, .. } => {
                format!("run {point} of engine-backup on {manager}")
            }
            Self::ManagerRestore { manager, run, kind, .. } => {
                format!("{kind} {run} on manager {manager}")
            }
            Self::Disk { id, alias } => format!("disk `{alias}` ({id})"),
            Self::Vm { id, name } => format!("VM `{name}` ({id})"),
            Self::NamedVm { name, .. } => format!("VM `{name}`"),
            Self::Template { name, .. } => format!("template `{name}`"),
            Self::Replace { replacing: it } => format!(
                "replacement of VM `{}` ({}) by `{}` ({})",
                it.old.name, it.old.vm, it.temporary, it.new
            ),
        }
    }
}

/// A step as it lies in a journal, for people.
pub fn describe(step: &StepView) -> String {
    match serde_json::from_value::<Step>(step.step.clone()) {
        Ok(step) => step.describe(),
        Err(_) => step.step.to_string(),
    }
}

/// What is known of an effect once it exists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmId>,
    /// It stays on purpose, for the run that goes on with a half-made point.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kept: bool,
}

/// Whether the effect of an open step stays on purpose.
pub fn is_kept(step: &StepView) -> bool {
    serde_json::from_value::<Outcome>(step.result.clone()).is_ok_and(|outcome| outcome.kept)
}
