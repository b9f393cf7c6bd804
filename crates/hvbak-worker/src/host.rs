//! This host as the worker sees it: root of the tree, user, manners, cost.
//!
//! The only room of the worker that changes the process itself.

use std::{
    io,
    path::{Path, PathBuf},
};

use hvbak_wire::{Stats, Tune};
use nix::{
    sys::{
        resource::{UsageWho, getrusage},
        time::TimeVal,
    },
    unistd::{AccessFlags, Gid, Uid, access, geteuid, setgroups, setresgid, setresuid},
};

use crate::error::{Error, Result};

/// vdsm:kvm on every oVirt host.
const VDSM: u32 = 36;

/// A host whose tree may begin elsewhere (`HVBAK_HOST_ROOT`, test labs only).
pub struct Host {
    root: PathBuf,
    settled: bool,
}

impl Host {
    /// Reads the environment.
    pub fn from_env() -> Self {
        let root = std::env::var_os("HVBAK_HOST_ROOT").map(PathBuf::from).unwrap_or_default();
        Self { root, settled: false }
    }

    /// The root; empty on real hosts.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// An absolute path of a real host, below the root.
    pub fn path(&self, absolute: &str) -> PathBuf {
        if self.root.as_os_str().is_empty() {
            PathBuf::from(absolute)
        } else {
            self.root.join(absolute.trim_start_matches('/'))
        }
    }

    /// Becomes 36:36 for good when started as root, because NFS exports squash root.
    /// In a lab whose tree user 36 cannot enter, it stays who it is.
    ///
    /// # Errors
    /// The kernel refused a change of user although we are root.
    pub fn become_vdsm(&mut self) -> Result<()> {
        if self.settled {
            return Ok(());
        }
        self.settled = true;
        if !geteuid().is_root() {
            return Ok(());
        }
        let fail = |e: nix::Error| Error::BecomeVdsm { source: io::Error::from(e) };
        let (user, group, root) = (Uid::from_raw(VDSM), Gid::from_raw(VDSM), Uid::from_raw(0));
        setgroups(&[]).map_err(fail)?;
        setresgid(group, group, group).map_err(fail)?;
        if !self.root.as_os_str().is_empty() {
            // `access` asks for the real user, so the real one is changed for the question.
            setresuid(user, user, root).map_err(fail)?;
            let tree = self.path("/rhev/data-center");
            if access(&tree, AccessFlags::X_OK | AccessFlags::R_OK).is_err() {
                eprintln!("hvbak-worker: user 36 cannot enter {}, staying root", tree.display());
                setresuid(root, root, root).map_err(fail)?;
                let group = Gid::from_raw(0);
                return setresgid(group, group, group).map_err(fail);
            }
            // Only root may set all three; come back for it.
            setresuid(root, root, root).map_err(fail)?;
        }
        setresuid(user, user, user).map_err(fail)
    }
}

/// Applies niceness and I/O priority to this thread; threads started later inherit them.
/// Best effort: a host that refuses is not a reason to fail a backup.
pub fn apply_manners(tune: &Tune) {
    if let Some(nice) = tune.nice {
        // SAFETY: setpriority takes three integers and touches no memory of ours.
        let rc =
            unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, i32::from(nice.min(19))) };
        if rc != 0 {
            eprintln!("hvbak-worker: cannot set niceness: {}", io::Error::last_os_error());
        }
    }
    if tune.low_io {
        const WHO_PROCESS: nix::libc::c_int = 1;
        const BEST_EFFORT_LOWEST: nix::libc::c_int = (2 << 13) | 7;
        // SAFETY: ioprio_set takes three integers and touches no memory of ours.
        let rc = unsafe {
            nix::libc::syscall(nix::libc::SYS_ioprio_set, WHO_PROCESS, 0, BEST_EFFORT_LOWEST)
        };
        if rc != 0 {
            eprintln!("hvbak-worker: cannot set I/O priority: {}", io::Error::last_os_error());
        }
    }
}

/// Cores this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What the process cost so far.
pub fn stats() -> Stats {
    let ms = |t: TimeVal| {
        let us = i128::from(t.tv_sec()) * 1_000_000 + i128::from(t.tv_usec());
        u64::try_from(us / 1000).unwrap_or(0)
    };
    getrusage(UsageWho::RUSAGE_SELF).map_or_else(
        |_| Stats::default(),
        |usage| Stats {
            user_ms: ms(usage.user_time()),
            system_ms: ms(usage.system_time()),
            // Linux counts in KiB.
            peak_rss: u64::try_from(usage.max_rss()).unwrap_or(0).saturating_mul(1024),
        },
    )
}
