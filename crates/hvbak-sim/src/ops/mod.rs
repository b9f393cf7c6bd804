//! Long work of the engine: snapshots, merges, disks, power. Each function checks and
//! locks at once, then works in a thread and settles the state.

mod disk;
mod extend;
mod merge;
mod move_disk;
mod power;
mod preview;
mod snapshot;
mod template;

pub use disk::{create_disk, delete_disk, plug};
pub use extend::extend;
pub use merge::{delete_disk_snapshot, delete_snapshot};
pub use move_disk::move_disk;
pub use power::{start, stop, suspend};
pub use preview::{commit, preview, undo};
pub use snapshot::create_snapshot;
pub use template::{create_template, delete_template};

use crate::{fault::Refusal, model::Vm};

/// Texts and codes as the engine uses them (engine-api §3, §15).
fn conflict(text: impl Into<String>) -> Refusal {
    Refusal::conflict(text)
}

/// Statuses in which a VM's disks are open.
pub fn is_running(status: &str) -> bool {
    matches!(status, "up" | "paused" | "powering_up" | "powering_down" | "reboot_in_progress")
}

/// Whether a VM's snapshots may be changed now; `action` is `create` or `remove`.
///
/// A suspended VM is refused: what an engine does with it is not known for sure, and a
/// client must not count on it.
fn snapshots_free(v: &Vm, action: &str) -> Result<(), Refusal> {
    if v.snapshots.iter().any(|x| x.status == "locked") {
        return Err(conflict(format!(
            "Cannot {action} Snapshot. The VM is performing an operation on a Snapshot. Please wait for the operation to finish, and try again."
        )));
    }
    if v.snapshots.iter().any(|x| x.status == "in_preview") {
        return Err(conflict(format!("Cannot {action} Snapshot. VM is previewing a Snapshot.")));
    }
    if v.status == "image_locked" {
        return Err(conflict(format!(
            "Cannot {action} Snapshot. VM is locked. Please try again in a few minutes."
        )));
    }
    if !is_running(&v.status) && v.status != "down" {
        return Err(conflict(format!(
            "Cannot {action} Snapshot because the VM is in {} status.",
            shown(&v.status)
        )));
    }
    Ok(())
}

/// A status as messages spell it: `not_responding` is `Not Responding`.
fn shown(status: &str) -> String {
    let word = |w: &str| {
        let mut chars = w.chars();
        chars.next().map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
    };
    status.split('_').map(word).collect::<Vec<_>>().join(" ")
}
