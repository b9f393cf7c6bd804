//! Points that expire: merged into those that stand on them, then removed.
//!
//! A chain F ← E ← C whose E expires becomes F ← C: C is written anew under a hidden name
//! from the clusters of both as they are stored (`merge`), takes the place of the old C
//! (`commit`), and only then E goes. Who expires is the caller's decision.
//!
//! Invariant: at every moment every listed point reads as it did, with all it stands on
//! listed too. What a run that died has left are hidden directories whose names say what
//! to do with them, so [`Repository::finish_expiry`] needs no journal.

mod clone;
mod commit;
mod merge;
mod plan;

use hvbak_types::{PointId, VmId};
use serde::Serialize;

pub use plan::{DiskMerge, ExpiryPlan, MergeStep, Stay};

use crate::{
    catalogue::Point,
    durable,
    error::{Error, Result},
    layout::{EXPIRED, MANIFEST, MERGING},
    lock::{VmLock, lock_points},
    repository::Repository,
    verify::VerifyOptions,
};

/// What [`Repository::expire`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ExpirySummary {
    /// Points that were written anew.
    pub merged: Vec<PointId>,
    pub removed: Vec<PointId>,
    /// Bytes of images written.
    pub written_bytes: u64,
    /// Bytes of images removed, of expired points and of those that were replaced, without
    /// what merged images go on sharing.
    pub freed_bytes: u64,
}

impl Repository {
    /// Carries out a plan of [`Repository::plan_expiry`], made under the same lock and after
    /// [`Repository::finish_expiry`]. Refuses before anything changes when less than
    /// `reserve` bytes would stay free while the largest point is rewritten. `progress` gets
    /// clusters written and expected, and returns false to cancel.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Damaged`], [`Error::Cancelled`], [`Error::Locked`] while
    /// somebody reads the VM's points. What was done before is whole and stays; another call
    /// does the rest.
    pub fn expire(
        &self,
        lock: &VmLock,
        plan: &ExpiryPlan,
        reserve: u64,
        progress: &(dyn Fn(u64, u64) -> bool + Sync),
    ) -> Result<ExpirySummary> {
        let vm = lock.vm();
        let mut summary = ExpirySummary::default();
        let total = plan.merges.iter().map(|step| step.clusters).sum();
        let clones = match plan.merges.first() {
            Some(step) => self.can_clone(vm, &step.point)?,
            None => false,
        };
        let needs =
            |step: &MergeStep| step.bytes.saturating_sub(if clones { step.clonable } else { 0 });
        let (mut done, mut cloned) = (0, 0);
        let mut removes = plan.removes.clone();
        // What nothing stands on goes first, and after each merge what it has freed: a full
        // repository must be able to become emptier.
        self.remove_free(vm, &mut removes, &mut summary)?;
        for step in &plan.merges {
            self.check_sources(lock, step)?;
            if needs(step) > 0 {
                self.ensure_space(needs(step), reserve)?;
            }
            let old = self.point(vm, &step.point)?.manifest.stored_bytes();
            let mut count = |clusters| {
                done += clusters;
                progress(done, total)
            };
            let bytes = self.write_merged(vm, step, &mut count)?;
            summary.written_bytes += bytes.written;
            cloned += bytes.cloned;
            {
                let _points = lock_points(&self.layout, vm, true)?;
                self.commit_merged(vm, &step.point)?;
            }
            self.sweep_aside(vm, &step.point)?;
            summary.freed_bytes += old;
            summary.merged.push(step.point.clone());
            self.remove_free(vm, &mut removes, &mut summary)?;
            if !progress(done, total) {
                return Err(Error::Cancelled);
            }
        }
        summary.freed_bytes = summary.freed_bytes.saturating_sub(cloned);
        Ok(summary)
    }

    /// Removes those of `removes` that no point stands on, newest first, so that no listed
    /// point ever stands on one that is gone. The others stay in the list.
    fn remove_free(
        &self,
        vm: VmId,
        removes: &mut Vec<PointId>,
        summary: &mut ExpirySummary,
    ) -> Result<()> {
        let mut points = self.points(vm)?.points;
        for i in (0..removes.len()).rev() {
            let point = removes[i].clone();
            let stands = |p: &Point| {
                p.manifest.disks.iter().any(|d| d.record.parent.as_ref() == Some(&point))
            };
            if points.iter().any(stands) {
                continue;
            }
            let bytes = self.point(vm, &point)?.manifest.stored_bytes();
            let hidden = self.layout.hidden(EXPIRED, vm, &point);
            {
                let _points = lock_points(&self.layout, vm, true)?;
                durable::rename_new(&self.layout.point(vm, &point), &hidden)?;
            }
            durable::remove_tree(&hidden)?;
            points.retain(|p| *p.id() != point);
            removes.remove(i);
            summary.freed_bytes += bytes;
            summary.removed.push(point);
        }
        Ok(())
    }

    /// Whether files can share blocks there; tried with a small one, in a directory of the kind
    /// that [`Repository::finish_expiry`] removes.
    fn can_clone(&self, vm: VmId, point: &PointId) -> Result<bool> {
        let dir = self.layout.hidden(MERGING, vm, point);
        durable::create_dir(&dir)?;
        let from = self.layout.point(vm, point).join(MANIFEST);
        let clone = durable::clone_file(&from, &dir.join(MANIFEST));
        durable::remove_tree(&dir)?;
        Ok(clone?.is_some())
    }

    /// What is copied must be what was stored: a damaged digests file would otherwise be the
    /// measure for its copy. Clusters are not hashed here; their digests go with them.
    fn check_sources(&self, lock: &VmLock, step: &MergeStep) -> Result<()> {
        let mut sources: Vec<_> = step.disks.iter().flat_map(|d| &d.over).collect();
        sources.push(&step.point);
        sources.sort();
        sources.dedup();
        for id in sources {
            self.prove_structure(&self.point(lock.vm(), id)?)?;
        }
        Ok(())
    }

    /// All of a point but the content of its clusters is as it should be.
    fn prove_structure(&self, point: &Point) -> Result<()> {
        let options = VerifyOptions { parents: false, data: false, ..VerifyOptions::default() };
        let report = self.verify(point, &options, &|_| true)?;
        match report.findings.first() {
            None => Ok(()),
            Some(finding) => {
                let path = self.path().join(&finding.file);
                Err(Error::Damaged { path, why: finding.text.clone() })
            }
        }
    }
}

#[cfg(test)]
mod tests;
