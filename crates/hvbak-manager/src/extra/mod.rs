//! Files beyond engine-backup's own that every backup of the manager takes along.
//!
//! The program sources `/etc/ovirt-engine-backup/engine-backup-config.d/*.sh` as root before
//! it looks at `BACKUP_PATHS`, one path a line (4.1 to 4.5; engine-backup.md §10). hvbak
//! owns one such file, with a mark in its first line, and never changes another.
//! Invariant: a path gets into it only when shell, `read`, `sed` and `tar --files-from` all
//! take it as the plain name that it is.

mod list;
mod remote;

pub use list::{ExtraPaths, ROOTS, check_path, is_standard};
pub use remote::{KINDS, ListFile, READ, Seen, WRITE, parse_kinds};

/// The directory of such files.
pub const DIRECTORY: &str = "/etc/ovirt-engine-backup/engine-backup-config.d";
/// The file that hvbak owns there.
pub const FILE: &str = "/etc/ovirt-engine-backup/engine-backup-config.d/50-hvbak-paths.sh";

/// Why the extra files cannot be managed as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExtraError {
    #[error("`{path}` cannot be an extra file of engine-backup: {why}")]
    Path { path: String, why: &'static str },
    #[error("{FILE} was not written by hvbak: {why}")]
    Foreign { why: &'static str },
    #[error("{FILE} was changed by somebody else at this moment")]
    Changed,
    #[error("{FILE} cannot be written (exit code {code}): {said}")]
    Write { code: u32, said: String },
}
