//! Events, jobs and storage connections.

use hvbak_types::VmId;

use super::{Entity, ParseError};
use crate::xml::Element;

/// An entry of the engine's audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Strictly growing.
    pub id: u64,
    /// `AuditLogType` number: 68 snapshot done, 170 live part failed, …
    pub code: Option<i64>,
    /// `normal`, `warning`, `error`, `alert`.
    pub severity: String,
    /// UTC.
    pub time: Option<jiff::Timestamp>,
    /// Its text.
    pub description: String,
    /// Of the request that caused it.
    pub correlation_id: Option<String>,
    /// `oVirt`, or the poster's name.
    pub origin: Option<String>,
    /// The poster's number.
    pub custom_id: Option<i64>,
    /// The VM it is about.
    pub vm: Option<VmId>,
}

impl Entity for Event {
    const ITEM: &'static str = "event";
    const LIST: &'static str = "events";
    fn read(e: &Element) -> Result<Self, ParseError> {
        Ok(Self {
            id: super::own_id(e, Self::ITEM)?,
            code: e.value("code"),
            severity: e.word("severity").unwrap_or_default().to_owned(),
            time: e.time("time"),
            description: e.string("description").unwrap_or_default(),
            correlation_id: e.string("correlation_id"),
            origin: e.string("origin"),
            custom_id: e.value("custom_id"),
            vm: e.id("vm"),
        })
    }
}

/// A job of the engine; it vanishes 10 minutes after success, an hour after failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its id as sent.
    pub id: String,
    /// Its text.
    pub description: String,
    /// `started`, `finished`, `failed`, `aborted`, `unknown`.
    pub status: String,
    /// UTC.
    pub start: Option<jiff::Timestamp>,
    /// UTC.
    pub end: Option<jiff::Timestamp>,
}

impl Entity for Job {
    const ITEM: &'static str = "job";
    const LIST: &'static str = "jobs";
    fn read(e: &Element) -> Result<Self, ParseError> {
        Ok(Self {
            id: super::own_id(e, Self::ITEM)?,
            description: e.string("description").unwrap_or_default(),
            status: e.word("status").unwrap_or_default().to_owned(),
            start: e.time("start_time"),
            end: e.time("end_time"),
        })
    }
}

/// How a domain is mounted; only here are all mount options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageConnection {
    /// Its id as sent.
    pub id: String,
    /// `nfs`, `iscsi`, …
    pub kind: Option<String>,
    /// Server.
    pub address: Option<String>,
    /// Export or directory.
    pub path: Option<String>,
    /// Options as given by the administrator.
    pub mount_options: Option<String>,
    /// For `posixfs`.
    pub vfs_type: Option<String>,
}

impl Entity for StorageConnection {
    const ITEM: &'static str = "storage_connection";
    const LIST: &'static str = "storage_connections";
    fn read(e: &Element) -> Result<Self, ParseError> {
        let text = |path: &str| e.word(path).map(str::to_owned);
        Ok(Self {
            id: super::own_id(e, Self::ITEM)?,
            kind: text("type"),
            address: text("address"),
            path: text("path"),
            mount_options: text("mount_options"),
            vfs_type: text("vfs_type"),
        })
    }
}
