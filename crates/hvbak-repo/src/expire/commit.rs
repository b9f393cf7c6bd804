//! Puts a merged point into its place, and finishes what a run that died has begun.
//!
//! Where the file system can (ext4, XFS, Btrfs, tmpfs), the two names are swapped in one step.
//! Else (NFS, GlusterFS) the old directory steps aside and the new one takes its name. Between
//! these two renames the point has no directory of its own: [`Repository::point`] reads it
//! under the name that waits, and whoever locks the VM next gives it its own.
//!
//! Invariants: a directory `.merged-` is whole, and where there is none of the point's name
//! it is the point. Which of two directories is the newer: its manifest has more `merged`
//! points.

use std::{fs, path::Path};

use hvbak_types::{PointId, VmId};

use crate::{
    durable,
    error::{At, Error, Result},
    layout::{EXPIRED, MERGED, MERGING},
    lock::{VmLock, lock_points},
    repository::Repository,
};

impl Repository {
    /// Gives the merged successor the name of its point. The points' lock is held exclusively;
    /// what steps aside is removed by [`Self::sweep_aside`], when readers may go on.
    pub(super) fn commit_merged(&self, vm: VmId, point: &PointId) -> Result<()> {
        let [staged, aside] = [MERGED, EXPIRED].map(|p| self.layout.hidden(p, vm, point));
        let target = self.layout.point(vm, point);
        if !target.is_dir() {
            durable::rename_new(&staged, &target)?;
        } else {
            // What an earlier run put aside and could not remove.
            durable::remove_tree(&aside)?;
            if durable::exchange(&staged, &target)? {
                durable::rename_new(&staged, &aside)?;
            } else {
                durable::rename_new(&target, &aside)?;
                durable::rename_new(&staged, &target)?;
            }
        }
        Ok(())
    }

    /// Removes what a merged point has replaced.
    pub(super) fn sweep_aside(&self, vm: VmId, point: &PointId) -> Result<()> {
        durable::remove_tree(&self.layout.hidden(EXPIRED, vm, point)).map(|_| ())
    }

    /// Gives points that lost their name to a run that died, between two renames, the one that
    /// waits. The VM's lock is held. While somebody reads the points it is left for later:
    /// they are found as they are.
    pub(crate) fn place_merged(&self, vm: VmId) -> Result<()> {
        for (prefix, point) in self.expiry_leftovers(vm)? {
            if prefix != MERGED || self.layout.point(vm, &point).is_dir() {
                continue;
            }
            match lock_points(&self.layout, vm, true) {
                Ok(points) => {
                    self.commit_merged(vm, &point)?;
                    drop(points);
                    self.sweep_aside(vm, &point)?;
                }
                Err(Error::Locked { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }

    /// Finishes or removes what an expiry that died has left for this VM; the names of the
    /// points that it was about. To be called before a new one is planned.
    ///
    /// # Errors
    /// [`Error::Locked`] while somebody reads the VM's points.
    pub fn finish_expiry(&self, lock: &VmLock) -> Result<Vec<PointId>> {
        let vm = lock.vm();
        let mut touched = Vec::new();
        // `.merged-` comes first: with an `.expired-` beside it, it is the point.
        for (prefix, point) in self.expiry_leftovers(vm)? {
            let hidden = self.layout.hidden(prefix, vm, &point);
            if prefix == MERGED && self.is_newer(vm, &point, &hidden)? {
                let points = lock_points(&self.layout, vm, true)?;
                self.commit_merged(vm, &point)?;
                drop(points);
                self.sweep_aside(vm, &point)?;
            } else if prefix == MERGED {
                let aside = self.layout.hidden(EXPIRED, vm, &point);
                durable::remove_tree(&aside)?;
                durable::rename_new(&hidden, &aside)?;
                durable::remove_tree(&aside)?;
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
            for prefix in [MERGED, MERGING, EXPIRED] {
                let point = name.to_str().and_then(|n| n.strip_prefix(prefix)?.parse().ok());
                found.extend(point.map(|point| (prefix, point)));
            }
        }
        found.sort_by(|a, b| (a.0 != MERGED, a).cmp(&(b.0 != MERGED, b)));
        Ok(found)
    }

    /// Whether the hidden directory is the successor, not the predecessor that a swap left.
    fn is_newer(&self, vm: VmId, point: &PointId, hidden: &Path) -> Result<bool> {
        let target = self.layout.point(vm, point);
        if !target.is_dir() {
            return Ok(true);
        }
        let staged = match self.point_in(hidden.to_owned(), vm, point) {
            Err(cause) if cause.is_damage() => return Ok(false),
            other => other?,
        };
        let current = self.point_in(target, vm, point)?;
        Ok(staged.manifest.merged.len() > current.manifest.merged.len())
    }
}
