//! From what exists and what is wanted to what will be done: plans as values.
//!
//! This room is pure: no IO, no clock (time is a parameter), no logging. A plan is
//! printed by `--dry-run` and executed unchanged by `hvbak-run`.
//! Invariant: whatever is left out of a plan is in it by name, with its reason.

mod backup;
mod disk_rules;
mod explain;
mod host;
mod level;
mod policy;
mod restore;
mod resume;
mod retention;
mod schedule;
mod select;
mod template;
mod window;

pub use backup::{
    BackupInput, BackupPlan, DiskAction, DiskPlan, DiskSkip, Held, Quiesce, VmAction, VmFacts,
    VmPlan, VmSkip, plan_again, plan_backup,
};
pub use disk_rules::DiskRules;
pub use explain::{explain_backup, explain_restore};
pub use host::{HostChoice, choose_host};
pub use level::{Base, BaseDisk, LayerFacts, Level, WhyFull, Wish, disk_level, sub_chain};
pub use policy::{Assignment, Assignments, Why, assign_vms};
pub use restore::{
    DiskRule, KeptDisk, MacRule, NicFacts, NicRule, NicTarget, OldDisk, OldVm, PointDisk,
    PointFacts, Replace, RestoreDisk, RestoreError, RestoreFormat, RestoreKind, RestoreOptions,
    RestorePlan, SiteNames, plan_restore, replaced_vm,
};
pub use resume::{Left, RESUME_DAYS, Resume, WhyAnew, may_continue};
pub use retention::{KeepFacts, KeepRules, Verdict, judge_by_policy, judge_points};
pub use schedule::{Limits, Queue};
pub use select::{Picked, SelectError, Selection, pick_vms, select_vms};
pub use template::{
    PickedTemplates, StoredTemplate, TemplateFacts, pick_templates, plan_template, plan_templates,
};
pub use window::{Window, WindowError, window_closes, window_opens};
