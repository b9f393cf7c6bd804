//! The prune job: points judged by `hvbak-plan`, expired by `hvbak-repo`, VM after VM.
//!
//! It needs no engine. Invariants: the base of the next delta stays whatever the rules say;
//! one VM's failure does not stop the others; a VM is held from the judgement to the last
//! removal, so nobody adds a point in between.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hvbak_plan::{KeepFacts, KeepRules, Verdict, judge_by_policy};
use hvbak_repo::{ExpiryPlan, ExpirySummary, Level, Listing, Repository, VerifyOptions, VmEntry};
use hvbak_types::{JobId, PointId, VmId};
use jiff::{Timestamp, tz::TimeZone};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{
    backup::{VmFailed, vm_failed},
    error::{Result, RunError},
    event::{Event, Events},
    job::blocking,
};

/// How often a person is told how far a merge is.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// What is kept, and where room must stay.
#[derive(Debug, Clone)]
pub struct PruneWishes {
    /// For points that no policy asked for, or one without rules; empty: they stay.
    pub rules: KeepRules,
    /// The policies of the configuration, with their own rules where they have some. `None`: the
    /// rules above count for every point.
    pub policies: Option<BTreeMap<String, Option<KeepRules>>>,
    /// Whose hours and days are meant.
    pub zone: TimeZone,
    /// Bytes that stay free while points are rewritten.
    pub reserve: u64,
    /// Only judge and plan.
    pub dry_run: bool,
}

/// How a prune ended.
#[derive(Debug, Default, Serialize)]
pub struct PruneReport {
    /// VMs looked at.
    pub vms: usize,
    /// Points that are gone (or would be).
    pub removed: usize,
    /// Points that took over what they stood on (or would).
    pub merged: usize,
    pub freed_bytes: u64,
    pub written_bytes: u64,
    pub failed: Vec<VmFailed>,
    pub dry_run: bool,
}

impl PruneReport {
    fn add(&mut self, summary: &ExpirySummary) {
        self.removed += summary.removed.len();
        self.merged += summary.merged.len();
        self.freed_bytes += summary.freed_bytes;
        self.written_bytes += summary.written_bytes;
    }
}

struct Prune {
    repository: Arc<Repository>,
    wishes: PruneWishes,
    events: Events,
    cancel: CancellationToken,
    job: JobId,
}

/// Prunes VMs, one after the other.
///
/// # Errors
/// Cancellation; what else happens to a VM is in the report.
pub async fn prune(
    repository: &Arc<Repository>,
    vms: &[VmEntry],
    wishes: PruneWishes,
    events: &Events,
    cancel: &CancellationToken,
) -> Result<PruneReport> {
    let dry_run = wishes.dry_run;
    let prune = Arc::new(Prune {
        repository: repository.clone(),
        wishes,
        events: events.clone(),
        cancel: cancel.clone(),
        job: JobId::random(),
    });
    let mut report = PruneReport { vms: vms.len(), dry_run, ..PruneReport::default() };
    for vm in vms {
        if cancel.is_cancelled() {
            return Err(RunError::Cancelled);
        }
        match prune.vm(vm).await {
            Ok(summary) => report.add(&summary),
            Err(_) if cancel.is_cancelled() => return Err(RunError::Cancelled),
            Err(cause) => report.failed.push(vm_failed(events, vm.id, &vm.name, &cause)),
        }
    }
    Ok(report)
}

impl Prune {
    async fn vm(self: &Arc<Self>, vm: &VmEntry) -> Result<ExpirySummary> {
        let (this, id) = (self.clone(), vm.id);
        let (lock, verdicts, plan) = blocking("plan the prune", move || {
            let lock = match this.wishes.dry_run {
                true => None,
                false => Some(this.repository.lock_vm(id, this.job)?),
            };
            if let Some(lock) = &lock {
                this.repository.finish_expiry(lock)?;
            }
            let (verdicts, plan) = this.plan(id)?;
            Ok((lock, verdicts, plan))
        })
        .await?;
        self.tell(vm, &verdicts, &plan);
        let Some(lock) = lock else {
            let merged = plan.merges.into_iter().map(|step| step.point).collect();
            return Ok(ExpirySummary { merged, removed: plan.removes, ..Default::default() });
        };
        if plan.removes.is_empty() {
            return Ok(ExpirySummary::default());
        }
        let (this, entry) = (self.clone(), vm.clone());
        let summary = blocking("prune", move || {
            let told = Mutex::new(Instant::now());
            this.repository.expire(&lock, &plan, this.wishes.reserve, &|done, total| {
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                if told.elapsed() >= TELL_EVERY {
                    *told = Instant::now();
                    let (vm, name) = (entry.id, entry.name.clone());
                    this.events.event(&Event::MergeProgress { vm, name, done, total });
                }
                !this.cancel.is_cancelled()
            })
        })
        .await?;
        let name = vm.name.clone();
        self.events.event(&Event::Pruned { vm: vm.id, name, summary: summary.clone() });
        Ok(summary)
    }

    fn plan(&self, vm: VmId) -> hvbak_repo::Result<(Vec<Verdict>, ExpiryPlan)> {
        let facts = facts(&self.repository, vm, Timestamp::now())?;
        let asked = self.repository.points(vm)?.points.into_iter();
        let asked = asked.map(|point| (point.manifest.point, point.manifest.policy)).collect();
        let PruneWishes { rules, policies, zone, .. } = &self.wishes;
        let verdicts = judge_by_policy(&facts, &asked, rules, policies.as_ref(), zone);
        let damaged: Vec<_> =
            facts.into_iter().filter(|f| f.damage.is_some()).map(|f| f.point).collect();
        let expired: Vec<_> =
            verdicts.iter().filter(|v| v.expires()).map(|v| v.point.clone()).collect();
        let plan = self.repository.plan_expiry(vm, &expired, &damaged)?;
        Ok((verdicts, plan))
    }

    fn tell(&self, vm: &VmEntry, verdicts: &[Verdict], plan: &ExpiryPlan) {
        for verdict in verdicts {
            let stay = plan.stays.iter().find(|s| s.point == verdict.point);
            let merge = plan.merges.iter().find(|m| m.point == verdict.point);
            let mut why = verdict.keep.clone();
            why.extend(stay.map(|s| format!("expired, but {}", s.why)));
            self.events.event(&Event::Verdict {
                vm: vm.id,
                name: vm.name.clone(),
                point: verdict.point.clone(),
                action: if plan.removes.contains(&verdict.point) { "remove" } else { "keep" },
                why,
                merged_over: merge.map(|m| m.disks.clone()),
            });
        }
    }
}

/// What the rules must know. Points are looked through without reading their clusters: a
/// point that is visibly damaged, or stands on one that is, must not stand for a whole one.
fn facts(repository: &Repository, vm: VmId, now: Timestamp) -> hvbak_repo::Result<Vec<KeepFacts>> {
    let listing = repository.points(vm)?;
    let base = pinned(&listing, now);
    let options = VerifyOptions { parents: false, data: false, ..VerifyOptions::default() };
    let mut damaged = BTreeSet::new();
    let mut facts = Vec::new();
    // Parents come first: they are older.
    for point in &listing.points {
        let report = repository.verify(point, &options, &|_| true)?;
        let found = report.findings.first().map(|f| format!("{}: {}", f.file.display(), f.text));
        let m = &point.manifest;
        let parents = || m.disks.iter().filter_map(|d| d.record.parent.as_ref());
        let below = parents().find(|parent| damaged.contains(*parent));
        let found = found.or_else(|| below.map(|p| format!("it stands on the damaged {p}")));
        if found.is_some() {
            damaged.insert(point.id().clone());
        }
        let future = (m.started > now).then(|| "it is dated in the future".to_owned());
        facts.push(KeepFacts {
            point: point.id().clone(),
            time: m.started,
            pinned: (base == Some(point.id()))
                .then(|| "its snapshot is kept for the next delta".to_owned()),
            damage: found.or(future),
            holds: m.disks.iter().map(|d| d.record.id.to_string()).collect(),
            lacks: m.skipped.iter().map(|d| d.id.to_string()).collect(),
        });
    }
    Ok(facts)
}

/// The base of the next delta, unless a full that came later shows that there is none any
/// more: its site keeps no snapshots now.
fn pinned(listing: &Listing, now: Timestamp) -> Option<&PointId> {
    let base = listing.base(now)?;
    let later = listing.points.iter().filter(|p| p.id() > base.id());
    let ended = later
        .filter(|p| p.manifest.started <= now)
        .any(|p| p.manifest.level == Level::Full && !p.manifest.disks.is_empty());
    (!ended).then(|| base.id())
}
