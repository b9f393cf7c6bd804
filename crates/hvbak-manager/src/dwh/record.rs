//! How far a move is, and what it changed: kept in the repository before anything happens,
//! so that whoever comes next goes on or puts back. Holds no password.

use serde::{Deserialize, Serialize};

use super::Target;

/// How far a move is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The service is stopped, or is about to be.
    Begun,
    /// The copy was begun: what is in the target can be ours.
    Copying,
    /// Both databases were compared.
    Copied,
    /// The files are changed, or about to be.
    Editing,
    Done,
    /// The originals are being put back.
    Reverting,
    Reverted,
}

impl State {
    /// Somebody has to go on, or to put back.
    pub fn is_open(self) -> bool {
        !matches!(self, Self::Done | Self::Reverted)
    }
}

/// A file of the manager that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    pub path: String,
    /// SHA-256 before and after.
    pub before: String,
    pub after: String,
    /// The name of its original beside this record.
    pub kept: String,
}

/// One move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub format: u32,
    pub state: State,
    pub target: Target,
    /// Where the database was.
    pub from: String,
    /// The service was at work, and is to be again.
    pub was_active: bool,
    pub edits: Vec<Edit>,
    /// Tables and rows, once both databases were compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compared: Option<String>,
}
