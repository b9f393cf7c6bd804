//! Which points are merged into which, and which expired ones must stay: from manifests
//! alone.
//!
//! A point on which several others stand (a full with differentials) stays until one is
//! left: merging it into each would store its content several times.

use std::collections::{BTreeMap, BTreeSet};

use hvbak_types::{DiskId, PointId, VmId};
use serde::Serialize;

use crate::{
    catalogue::{Listing, Point},
    error::Result,
    manifest::{is_older, order_key},
    repository::Repository,
};

/// A disk that is merged over what expires below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskMerge {
    pub disk: DiskId,
    /// The expired points whose clusters it takes, base first.
    pub over: Vec<PointId>,
    /// What it stands on afterwards; `None` makes it a full.
    pub parent: Option<PointId>,
}

/// A point that is written anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MergeStep {
    pub point: PointId,
    pub disks: Vec<DiskMerge>,
    /// At most so many bytes are written.
    pub bytes: u64,
    /// So many fewer where the file system can clone: the largest layer of each disk.
    pub clonable: u64,
    /// At most so many clusters of 64 KiB.
    pub clusters: u64,
}

/// An expired point that is not removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stay {
    pub point: PointId,
    pub why: String,
}

/// What will be done with the expired points of a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ExpiryPlan {
    /// Oldest first.
    pub merges: Vec<MergeStep>,
    /// Oldest first.
    pub removes: Vec<PointId>,
    pub stays: Vec<Stay>,
}

impl Repository {
    /// Plans how `expired` points of a VM go. Into `damaged` ones nothing is merged, so what
    /// they stand on stays.
    ///
    /// # Errors
    /// That the VM's directory cannot be read.
    pub fn plan_expiry(
        &self,
        vm: VmId,
        expired: &[PointId],
        damaged: &[PointId],
    ) -> Result<ExpiryPlan> {
        Ok(plan(&self.points(vm)?, expired, damaged))
    }
}

struct Chains<'a> {
    points: BTreeMap<&'a PointId, &'a Point>,
    expired: BTreeSet<&'a PointId>,
}

/// What lies below a disk, as far as it expires.
struct Below {
    /// Newest first.
    over: Vec<PointId>,
    parent: Option<PointId>,
    broken: Option<String>,
}

impl Chains<'_> {
    fn below(&self, point: &Point, disk: DiskId) -> Below {
        let mut below = Below { over: Vec::new(), parent: None, broken: None };
        let Some(mut entry) = point.manifest.disk(disk) else { return below };
        while let Some(parent) = &entry.record.parent {
            let found = self.points.get(parent).and_then(|p| p.manifest.disk(disk));
            let Some(lower) = found else {
                below.broken = Some(format!(
                    "point {} stands on it, and its chain is broken at {parent}",
                    point.id()
                ));
                break;
            };
            if lower.record.virtual_size > entry.record.virtual_size {
                below.broken = Some(format!(
                    "point {} stands on it, in which disk {disk} is smaller",
                    point.id()
                ));
            }
            if !self.expired.contains(parent) {
                below.parent = Some(parent.clone());
                break;
            }
            below.over.push(parent.clone());
            entry = lower;
        }
        below
    }
}

fn plan(listing: &Listing, expired: &[PointId], damaged: &[PointId]) -> ExpiryPlan {
    let mut stays = Vec::new();
    let points: BTreeMap<_, _> = listing.points.iter().map(|p| (p.id(), p)).collect();
    let mut chains = Chains { points, expired: BTreeSet::new() };
    for id in expired.iter().filter(|id| chains.points.contains_key(id)) {
        // What an unreadable point stands on is not known.
        match listing.damaged.iter().find(|bad| is_older(id, &bad.point)) {
            None => _ = chains.expired.insert(id),
            Some(bad) => {
                let why = format!("point {} cannot be read and may stand on it", bad.point);
                stays.push(Stay { point: id.clone(), why });
            }
        }
    }
    // Each round takes the newest one that must stay; those below it are seen anew then.
    while let Some(stay) = hindered(&chains, listing, damaged) {
        chains.expired.remove(&stay.point);
        stays.push(stay);
    }
    let mut plan = ExpiryPlan { stays, ..ExpiryPlan::default() };
    for point in listing.points.iter().filter(|p| !chains.expired.contains(p.id())) {
        let mut step = MergeStep {
            point: point.id().clone(),
            disks: Vec::new(),
            bytes: 0,
            clonable: 0,
            clusters: 0,
        };
        for disk in &point.manifest.disks {
            let id = disk.record.id;
            let mut below = chains.below(point, id);
            if below.over.is_empty() {
                continue;
            }
            below.over.reverse();
            let mut largest = 0;
            for source in below.over.iter().chain([point.id()]) {
                let found = chains.points.get(source).and_then(|p| p.manifest.disk(id));
                if let Some(found) = found {
                    step.bytes = step.bytes.saturating_add(found.record.stored_bytes);
                    step.clusters += found.record.data_clusters;
                    largest = largest.max(found.record.stored_bytes);
                }
            }
            step.clonable = step.clonable.saturating_add(largest);
            step.disks.push(DiskMerge { disk: id, over: below.over, parent: below.parent });
        }
        if !step.disks.is_empty() {
            plan.merges.push(step);
        }
    }
    plan.removes = chains.expired.iter().map(|id| (*id).clone()).collect();
    plan.removes.sort_by(|a, b| order_key(a).cmp(&order_key(b)));
    plan.stays.sort_by(|a, b| order_key(&a.point).cmp(&order_key(&b.point)));
    plan
}

/// The newest expired point that cannot go, and why.
fn hindered(chains: &Chains<'_>, listing: &Listing, damaged: &[PointId]) -> Option<Stay> {
    let mut users = BTreeMap::<(PointId, DiskId), u64>::new();
    let mut stays = Vec::<Stay>::new();
    for point in listing.points.iter().filter(|p| !chains.expired.contains(p.id())) {
        for disk in &point.manifest.disks {
            let below = chains.below(point, disk.record.id);
            let why = below.broken.or_else(|| {
                let bad = damaged.contains(point.id());
                bad.then(|| format!("point {}, which is damaged, stands on it", point.id()))
            });
            for over in below.over {
                if let Some(why) = &why {
                    stays.push(Stay { point: over.clone(), why: why.clone() });
                }
                *users.entry((over, disk.record.id)).or_default() += 1;
            }
        }
    }
    stays.extend(
        users
            .into_iter()
            .filter(|(_, n)| *n > 1)
            .map(|((point, _), n)| Stay { point, why: format!("{n} points stand on it") }),
    );
    stays.into_iter().max_by(|a, b| order_key(&a.point).cmp(&order_key(&b.point)))
}
