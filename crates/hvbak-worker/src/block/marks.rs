//! Which LVs workers of this program made active, or kept from being deactivated by vdsm: one
//! empty file each below `/run/hvbak`.
//!
//! Several workers share a disk, and one that is killed cannot clean up. Marks outlive a
//! worker but not a reboot, as the activation does. Invariants: a mark is there before its
//! LV is activated; marks and activation change only under the lock.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
};

use hvbak_types::DomainId;
use nix::fcntl::{Flock, FlockArg};

use crate::{
    error::{Error, Result},
    host::Host,
};

/// The marks of one domain.
pub struct Marks {
    directory: PathBuf,
    lock: PathBuf,
    links: PathBuf,
}

/// Held while LVs are activated or deactivated.
pub struct Lock(#[expect(dead_code, reason = "held until it is dropped")] Flock<File>);

impl Marks {
    /// Makes the directories.
    ///
    /// # Errors
    /// `/run` cannot be written.
    pub fn of(host: &Host, domain: DomainId) -> Result<Self> {
        let directory = host.path(&format!("/run/hvbak/lv/{domain}"));
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(Error::file("make", &directory))?;
        let links = host.path(&format!("/run/vdsm/storage/{domain}"));
        Ok(Self { directory, lock: host.path("/run/hvbak/lv/lock"), links })
    }

    /// Waits for other workers.
    ///
    /// # Errors
    /// The lock cannot be made.
    pub fn lock(&self) -> Result<Lock> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.lock)
            .map_err(Error::file("open", &self.lock))?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map(Lock)
            .map_err(|(_, e)| Error::file("lock", &self.lock)(io::Error::from(e)))
    }

    /// Notes that an LV is about to be activated by us.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn set(&self, name: &str) -> Result<()> {
        let path = self.directory.join(name);
        File::create(&path).map(drop).map_err(Error::file("make", path))
    }

    /// Forgets it. A mark that stays only makes a later worker look again.
    pub fn clear(&self, name: &str) {
        let _ = fs::remove_file(self.directory.join(name));
    }

    /// LVs with a mark.
    pub fn all(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().into_string().ok()).collect()
    }

    /// Whether vdsm has prepared the volume on this host: a VM or a transfer may open it at
    /// any time, and vdsm deactivates it when that is over.
    pub fn is_prepared(&self, name: &str) -> bool {
        let images = fs::read_dir(&self.links).into_iter().flatten().flatten();
        images.map(|image| image.path().join(name)).any(|link| link.is_symlink())
    }
}
