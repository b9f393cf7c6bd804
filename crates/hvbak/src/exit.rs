//! Exit codes and how an error is told. The one place where an error becomes a number.
//!
//! The table is part of the CLI's contract; an unknown error is a failure (1).

use std::error::Error;

use crate::config::ConfigError;
use hvbak_plan::{RestoreError, SelectError};
use hvbak_run::RunError;

pub const DONE: u8 = 0;
pub const FAILED: u8 = 1;
pub const USAGE: u8 = 2;
pub const PARTLY: u8 = 3;
pub const DAMAGE: u8 = 15;
/// It is a person's turn.
pub const WAITING: u8 = 16;

/// Whatever a command can fail with.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Select(#[from] SelectError),
    #[error(transparent)]
    Restore(#[from] RestoreError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("{text}")]
    Usage { text: String, hint: Option<String> },
    #[error("{text}")]
    Io {
        text: String,
        #[source]
        cause: std::io::Error,
    },
}

impl CliError {
    /// A usage error without a hint.
    pub fn usage(text: impl Into<String>) -> Self {
        Self::Usage { text: text.into(), hint: None }
    }

    /// The process's exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Restore(
                RestoreError::NoSpace { .. }
                | RestoreError::Domain { .. }
                | RestoreError::NoHost { .. },
            ) => FAILED,
            Self::Config(_) | Self::Select(_) | Self::Restore(_) | Self::Usage { .. } => USAGE,
            Self::Run(error) => error.exit_code(),
            Self::Io { .. } => FAILED,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Config(e) => e.hint(),
            Self::Select(e) => e.hint(),
            Self::Restore(e) => e.hint(),
            Self::Run(e) => e.hint(),
            Self::Usage { hint, .. } => hint.clone(),
            Self::Io { .. } => None,
        }
    }
}

/// The error and its causes on one line, each part once.
pub fn chain(error: &dyn Error) -> String {
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
