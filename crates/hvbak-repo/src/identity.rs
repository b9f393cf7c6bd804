//! Who holds a lock or writes a journal: text for people. Never used to decide whether a
//! lock is held; `flock` decides that.

use std::fmt;

use hvbak_types::JobId;
use serde::{Deserialize, Serialize};

/// A process that holds something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Name of the machine.
    pub host: String,
    /// The kernel's id of this boot: tells a process from one of an earlier boot.
    pub boot_id: String,
    pub pid: u32,
    pub job: JobId,
    pub since: jiff::Timestamp,
}

impl Holder {
    /// This process.
    pub fn me(job: JobId) -> Self {
        let host = nix::unistd::gethostname()
            .map_or_else(|_| "unknown".to_owned(), |name| name.to_string_lossy().into_owned());
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_or_else(|_| String::new(), |text| text.trim().to_owned());
        let since = jiff::Timestamp::now();
        Self { host, boot_id, pid: std::process::id(), job, since }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The text comes from a file: control characters do not reach a terminal.
        let host: String = self.host.chars().filter(|c| !c.is_control()).take(255).collect();
        write!(f, "process {} on {host} (job {}) since {:.0}", self.pid, self.job, self.since)
    }
}
