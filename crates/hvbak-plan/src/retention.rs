//! Which points of a VM are kept: by number, and one for each hour, day, week, month, year.
//!
//! Each rule goes from the newest point back and keeps the newest of each period until it
//! has as many periods as it asks for; a point stays when any rule keeps it. Periods without
//! a point count for nothing, so a machine that was off for a month loses nothing.
//!
//! Invariants: the newest whole point and pinned ones stay whatever the rules say. A damaged
//! point fills no rule's place, so it is never the reason why a whole one goes; and it goes
//! itself only by a person's hand.

use std::collections::{BTreeMap, BTreeSet};

use hvbak_types::PointId;
use jiff::{Timestamp, Zoned, tz::TimeZone};
use serde::Serialize;

/// How many points are kept; `None` is a rule that is not given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeepRules {
    /// The newest so many.
    pub last: Option<u32>,
    pub hourly: Option<u32>,
    pub daily: Option<u32>,
    /// Weeks begin on Monday (ISO 8601).
    pub weekly: Option<u32>,
    pub monthly: Option<u32>,
    pub yearly: Option<u32>,
}

impl KeepRules {
    /// Whether any rule keeps anything. Without one everything but the newest point would
    /// go, which nobody means.
    pub fn is_empty(&self) -> bool {
        self.all().iter().all(|(_, count, _)| count.unwrap_or(0) == 0)
    }

    fn all(&self) -> [(&'static str, Option<u32>, Period); 6] {
        [
            ("last", self.last, Period::Each),
            ("hourly", self.hourly, Period::Hour),
            ("daily", self.daily, Period::Day),
            ("weekly", self.weekly, Period::Week),
            ("monthly", self.monthly, Period::Month),
            ("yearly", self.yearly, Period::Year),
        ]
    }
}

#[derive(Debug, Clone, Copy)]
enum Period {
    Each,
    Hour,
    Day,
    Week,
    Month,
    Year,
}

impl Period {
    /// What is equal for two points of one period. `number` tells all points apart. The hour
    /// carries its offset from UTC, so that the hour which the end of summer time repeats is
    /// two.
    fn key(self, time: &Zoned, number: usize) -> (i64, i64, i64) {
        let date = (i64::from(time.year()), i64::from(time.day_of_year()));
        match self {
            Self::Each => (number as i64, 0, 0),
            Self::Hour => {
                let offset = i64::from(time.offset().seconds());
                (date.0, date.1, i64::from(time.hour()) * 1_000_000 + offset)
            }
            Self::Day => (date.0, date.1, 0),
            Self::Week => {
                let week = time.date().iso_week_date();
                (i64::from(week.year()), i64::from(week.week()), 0)
            }
            Self::Month => (date.0, i64::from(time.month()), 0),
            Self::Year => (date.0, 0, 0),
        }
    }
}

/// What the rules must know of a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeepFacts {
    pub point: PointId,
    /// When the backup began.
    pub time: Timestamp,
    /// Why it must stay whatever the rules say, e.g. the next delta stands on it.
    pub pinned: Option<String>,
    /// What is wrong with it. Such a point stays and fills no place.
    pub damage: Option<String>,
    /// What it holds: disks, or parts of a manager.
    pub holds: BTreeSet<String>,
    /// What belongs to its source and is not in it.
    pub lacks: BTreeSet<String>,
}

/// What becomes of a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub point: PointId,
    /// Why it stays; empty when it expires.
    pub keep: Vec<String>,
}

impl Verdict {
    /// Whether the point goes.
    pub fn expires(&self) -> bool {
        self.keep.is_empty()
    }
}

/// Judges the points of one VM, oldest first; the answer has the same order.
pub fn judge_points(points: &[KeepFacts], rules: &KeepRules, zone: &TimeZone) -> Vec<Verdict> {
    let mut verdicts: Vec<_> = points
        .iter()
        .map(|p| {
            let pinned = p.pinned.iter().cloned();
            let damaged = p.damage.iter().map(|why| format!("damaged: {why}"));
            Verdict { point: p.point.clone(), keep: pinned.chain(damaged).collect() }
        })
        .collect();
    let whole: Vec<_> = (0..points.len()).rev().filter(|i| points[*i].damage.is_none()).collect();
    if let Some(newest) = whole.first() {
        verdicts[*newest].keep.push("newest".into());
        // What the newest one left out has its last copy further back.
        for item in &points[*newest].lacks {
            if let Some(last) = whole.iter().find(|i| points[**i].holds.contains(item)) {
                verdicts[*last].keep.push(format!("the newest that holds {item}"));
            }
        }
    }
    for (name, count, period) in rules.all() {
        let mut seen = BTreeSet::new();
        for i in &whole {
            if seen.len() as u64 >= u64::from(count.unwrap_or(0)) {
                break;
            }
            let time = points[*i].time.to_zoned(zone.clone());
            if seen.insert(period.key(&time, *i)) {
                verdicts[*i].keep.push(name.into());
            }
        }
    }
    verdicts
}

/// Judges the points of one VM that several policies may have asked for, or nobody's. `asked`
/// says whose each point is, `all` counts for points of no policy and of policies without rules of
/// their own; `policies` are those of the configuration, and without them `all` counts for every
/// point. A point stays when the rules of any policy of the VM keep it, and when nothing says how
/// long those of its own are kept.
pub fn judge_by_policy(
    points: &[KeepFacts],
    asked: &BTreeMap<PointId, Option<String>>,
    all: &KeepRules,
    policies: Option<&BTreeMap<String, Option<KeepRules>>>,
    zone: &TimeZone,
) -> Vec<Verdict> {
    let rules = |policy: &Option<String>| {
        let known = match (policies, policy) {
            (None, _) | (_, None) => Some(all),
            // One that is no longer in the configuration has no rules that could be known.
            (Some(policies), Some(name)) => {
                policies.get(name).map(|own| own.as_ref().unwrap_or(all))
            }
        };
        known.filter(|rules| !rules.is_empty())
    };
    let whose: BTreeSet<_> = asked.values().collect();
    let judged: Vec<_> = whose
        .into_iter()
        .filter_map(rules)
        .map(|rules| judge_points(points, rules, zone))
        .collect();
    let mut verdicts = Vec::new();
    for (at, fact) in points.iter().enumerate() {
        let mut keep: Vec<String> = Vec::new();
        for why in judged.iter().filter_map(|of_one| of_one.get(at)).flat_map(|v| &v.keep) {
            if !keep.contains(why) {
                keep.push(why.clone());
            }
        }
        match asked.get(&fact.point) {
            Some(policy) if rules(policy).is_some() => {}
            Some(Some(name)) => keep.push(format!("no rule for policy {name}")),
            _ => keep.push("no rule".into()),
        }
        verdicts.push(Verdict { point: fact.point.clone(), keep });
    }
    verdicts
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
