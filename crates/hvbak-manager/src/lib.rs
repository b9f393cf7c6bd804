//! engine-backup as data: its versions and scopes, its commands, what its output means,
//! and its archives read without it.
//!
//! This room knows no network, no file names of this machine and no engine; it reads from
//! any [`std::io::Read`] and answers with values. Invariant: an archive, a transcript and a
//! log are foreign: whatever is in them ends in an answer, never in a panic, and memory
//! does not follow the sizes that they claim.

pub mod archive;
pub mod command;
pub mod dwh;
pub mod extra;
pub mod hosted_engine;
pub mod remote;
pub mod restore;
mod scope;
pub mod scrub;
pub mod sequence;
pub mod transcript;
mod version;
pub mod witness;

pub use scope::{Request, Scope, ScopeError};
pub use version::{Version, VersionError};
