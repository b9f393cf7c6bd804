//! Puts a merged point into its place, and finishes what a run that died has begun.
//!
//! The replacement is one step: the file system swaps two names (ext4, XFS, Btrfs, tmpfs).
//! One that cannot (NFS) is refused before anything is written: a point whose files were
//! replaced one by one would for moments be no whole point.
//!
//! Which of two directories is the newer: its manifest has more `merged` points.

use std::{fs, path::Path};

use hvbak_types::{PointId, VmId};

use crate::{
    durable,
    error::{At, Error, Result},
    layout::{EXPIRED, MANIFEST, MERGED, MERGING},
    lock::{VmLock, lock_points},
    repository::Repository,
};

impl Repository {
    /// Replaces a point by its merged successor. The points' lock is held exclusively.
    pub(super) fn commit_merged(&self, vm: VmId, point: &PointId) -> Result<()> {
        let staged = self.layout.hidden(MERGED, vm, point);
        let target = self.layout.point(vm, point);
        if !durable::exchange(&staged, &target)? {
            return Err(Error::NoExchange { path: self.layout.vm(vm) });
        }
        durable::remove_tree(&staged).map(|_| ())
    }

    /// Fails where names cannot be swapped; tried with two empty directories of the kind
    /// that [`Repository::finish_expiry`] removes.
    pub(super) fn check_exchange(&self, vm: VmId, point: &PointId) -> Result<()> {
        let [a, b] = [MERGING, EXPIRED].map(|prefix| self.layout.hidden(prefix, vm, point));
        for dir in [&a, &b] {
            durable::create_dir(dir)?;
        }
        let swapped = durable::exchange(&a, &b);
        for dir in [&a, &b] {
            durable::remove_tree(dir)?;
        }
        if swapped? { Ok(()) } else { Err(Error::NoExchange { path: self.layout.vm(vm) }) }
    }

    /// Finishes or removes what an expiry that died has left for this VM; the names of the
    /// points that it was about. To be called before a new one is planned.
    ///
    /// # Errors
    /// [`Error::Locked`] while somebody reads the VM's points.
    pub fn finish_expiry(&self, lock: &VmLock) -> Result<Vec<PointId>> {
        let vm = lock.vm();
        let mut touched = Vec::new();
        for (prefix, point) in self.expiry_leftovers(vm)? {
            let hidden = self.layout.hidden(prefix, vm, &point);
            if prefix == MERGED && self.is_newer(vm, &point, &hidden)? {
                let _points = lock_points(&self.layout, vm, true)?;
                self.commit_merged(vm, &point)?;
            } else {
                durable::remove_tree(&hidden)?;
            }
            touched.push(point);
        }
        Ok(touched)
    }

    /// The points that an expiry which died (or is at work) has hidden directories of.
    pub fn unfinished_expiry(&self, vm: VmId) -> Result<Vec<PointId>> {
        Ok(self.expiry_leftovers(vm)?.into_iter().map(|(_, point)| point).collect())
    }

    fn expiry_leftovers(&self, vm: VmId) -> Result<Vec<(&'static str, PointId)>> {
        let dir = self.layout.vm(vm);
        let mut found = Vec::new();
        if !dir.is_dir() {
            return Ok(found);
        }
        for entry in fs::read_dir(&dir).reading(&dir)? {
            let name = entry.reading(&dir)?.file_name();
            for prefix in [MERGING, MERGED, EXPIRED] {
                let point = name.to_str().and_then(|n| n.strip_prefix(prefix)?.parse().ok());
                found.extend(point.map(|point| (prefix, point)));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Whether the hidden directory is the successor, not the predecessor that a swap left.
    fn is_newer(&self, vm: VmId, point: &PointId, hidden: &Path) -> Result<bool> {
        if !hidden.join(MANIFEST).exists() {
            // It was being removed.
            return Ok(false);
        }
        let staged = self.point_in(hidden.to_owned(), vm, point)?;
        let current = match self.point(vm, point) {
            Err(Error::NoPoint { .. }) => return Ok(false),
            other => other?,
        };
        Ok(staged.manifest.merged.len() > current.manifest.merged.len())
    }
}
