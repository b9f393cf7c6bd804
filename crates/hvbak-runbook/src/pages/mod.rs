//! The pages, each a function of the facts.
//!
//! Order of a page: what it is for, what to check first, the steps with exact commands, how
//! to see that it is good again, what cannot be brought back. Sources: hvbak's own manual,
//! and for the manager the published behaviour of engine-backup and hosted-engine.

mod hosted_engine;
mod manager;
mod overview;
mod site;
mod vm;

use crate::Facts;

type Write = fn(&Facts) -> String;

/// Slug, title, text.
pub const ALL: [(&str, &str, Write); 10] = [
    ("overview", "Start here", overview::overview),
    ("manager-lost", "The manager is lost", manager::lost),
    ("hosted-engine-lost", "The self-hosted engine is lost", hosted_engine::lost),
    ("vm-lost", "One VM is lost", vm::one),
    ("domain-lost", "A storage domain is lost", vm::domain),
    ("hypervisor-lost", "A hypervisor is lost", vm::hypervisor),
    ("backup-host-lost", "The backup host is lost", site::backup_host),
    ("site-lost", "The whole site is lost", site::whole),
    ("data-warehouse", "Move the Data Warehouse", manager::data_warehouse),
    ("manager-too-old", "The new manager has another version", manager::version),
];
