//! What a job tells while it works: for progress bars, logs and `--json`.
//!
//! Events are facts that have happened. They hold no secret; the face decides what to
//! show of them.

use std::sync::Arc;

use hvbak_types::{DiskId, HostId, JobId, PointId, VmId};
use serde::Serialize;

/// One fact of a job's life.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Event {
    JobStarted {
        job: JobId,
        kind: &'static str,
        /// Of all disks that are to be read or written, as guests count.
        #[serde(skip_serializing_if = "Option::is_none")]
        total_bytes: Option<u64>,
    },
    VmStarted {
        vm: VmId,
        name: String,
        expected_bytes: u64,
    },
    /// A step of a VM's backup or restore began.
    Phase {
        vm: Option<VmId>,
        text: String,
    },
    DiskStarted {
        disk: DiskId,
        alias: String,
        virtual_size: u64,
        expected_bytes: u64,
        host: String,
        /// How much of it is read, and why that much; `None` when it is written.
        #[serde(skip_serializing_if = "Option::is_none")]
        level: Option<hvbak_repo::Level>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// Bytes of guest data that an earlier run has stored; they are not read again.
        #[serde(skip_serializing_if = "Option::is_none")]
        resumed_bytes: Option<u64>,
    },
    /// How far a disk is; `done` and `total` in guest bytes.
    DiskProgress {
        disk: DiskId,
        done: u64,
        total: u64,
        data_bytes: u64,
        payload_bytes: u64,
    },
    DiskDone {
        disk: DiskId,
        alias: String,
        data_bytes: u64,
        payload_bytes: u64,
        seconds: f64,
    },
    Warning {
        vm: Option<VmId>,
        text: String,
    },
    VmSkipped {
        vm: VmId,
        name: String,
        reason: String,
    },
    VmDone {
        vm: VmId,
        name: String,
        point: Option<PointId>,
        stored_bytes: u64,
        seconds: f64,
    },
    VmFailed {
        vm: VmId,
        name: String,
        error: String,
        hint: Option<String>,
        /// Of the engine's request that failed; the engine's log has it, too.
        #[serde(skip_serializing_if = "Option::is_none")]
        correlation: Option<String>,
    },
    /// What becomes of a point, and why.
    Verdict {
        vm: VmId,
        name: String,
        point: PointId,
        action: &'static str,
        why: Vec<String>,
        /// Per disk the expired points whose content it takes over.
        merged_over: Option<Vec<hvbak_repo::DiskMerge>>,
    },
    /// How far the points of a VM are rewritten; in clusters of 64 KiB.
    MergeProgress {
        vm: VmId,
        name: String,
        done: u64,
        total: u64,
    },
    /// A VM's expired points are gone.
    Pruned {
        vm: VmId,
        name: String,
        summary: hvbak_repo::ExpirySummary,
    },
    /// A VM's point or a manager's archive was rehearsed.
    Drilled {
        /// `None`: a manager.
        vm: Option<VmId>,
        /// `NAME@POINT`.
        what: String,
        outcome: hvbak_repo::RunOutcome,
        /// What was seen, or why it failed.
        text: String,
        seconds: f64,
    },
    HostDone {
        host: HostId,
        name: String,
        text: String,
    },
    /// Something left behind was undone (or would be).
    Undone {
        text: String,
    },
}

/// Who listens.
pub trait Sink: Send + Sync {
    fn event(&self, event: &Event);
}

/// A listener shared by all tasks of a job.
pub type Events = Arc<dyn Sink>;

/// Listens to nothing.
pub struct Silent;

impl Sink for Silent {
    fn event(&self, _: &Event) {}
}
