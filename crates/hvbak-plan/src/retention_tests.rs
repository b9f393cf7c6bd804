//! Tables: points in, the ones that stay out.

use super::*;

fn facts(times: &[&str]) -> Vec<KeepFacts> {
    times
        .iter()
        .map(|text| {
            let time: Timestamp = text.parse().unwrap();
            KeepFacts {
                point: PointId::at(time),
                time,
                pinned: None,
                damage: None,
                holds: BTreeSet::new(),
                lacks: BTreeSet::new(),
            }
        })
        .collect()
}

fn rules(text: &str) -> KeepRules {
    let mut rules = KeepRules::default();
    for rule in text.split_whitespace() {
        let (name, count) = rule.split_once('=').unwrap();
        let slot = match name {
            "last" => &mut rules.last,
            "hourly" => &mut rules.hourly,
            "daily" => &mut rules.daily,
            "weekly" => &mut rules.weekly,
            "monthly" => &mut rules.monthly,
            "yearly" => &mut rules.yearly,
            other => panic!("{other}"),
        };
        *slot = Some(count.parse().unwrap());
    }
    rules
}

/// Numbers of the points that stay.
fn kept(points: &[KeepFacts], text: &str, zone: &TimeZone) -> Vec<usize> {
    let verdicts = judge_points(points, &rules(text), zone);
    (0..points.len()).filter(|i| !verdicts[*i].expires()).collect()
}

#[test]
fn what_the_newest_left_out_is_kept_where_it_is_newest() {
    let mut points = facts(&[
        "2026-11-01T00:00:00Z",
        "2026-11-02T00:00:00Z",
        "2026-11-03T00:00:00Z",
        "2026-11-04T00:00:00Z",
    ]);
    for (point, holds) in points.iter_mut().zip(["a b", "a b", "a", "a"]) {
        point.holds = holds.split(' ').map(str::to_owned).collect();
        let all = ["a", "b"].into_iter().map(str::to_owned);
        point.lacks = all.filter(|item| !point.holds.contains(item)).collect();
    }
    assert_eq!(kept(&points, "last=1", &TimeZone::UTC), [1, 3]);
    points[1].damage = Some("bits".into());
    assert_eq!(kept(&points, "last=1", &TimeZone::UTC), [0, 1, 3]);
}

#[test]
fn the_newest_of_each_period_stays() {
    let points = facts(&[
        "2024-12-30T10:00:00Z", // 0: ISO week 1 of 2025
        "2025-01-02T10:00:00Z", // 1: the same week, another year
        "2026-01-31T23:00:00Z", // 2
        "2026-02-01T01:00:00Z", // 3: Sunday
        "2026-02-02T01:10:00Z", // 4: Monday
        "2026-02-02T01:50:00Z", // 5
        "2026-02-02T02:10:00Z", // 6
    ]);
    for (text, expected) in [
        ("last=1", vec![6]),
        ("last=3", vec![4, 5, 6]),
        ("last=100", vec![0, 1, 2, 3, 4, 5, 6]),
        ("hourly=2", vec![5, 6]),
        ("hourly=3", vec![3, 5, 6]),
        ("daily=2", vec![3, 6]),
        ("daily=3", vec![2, 3, 6]),
        ("weekly=2", vec![3, 6]),
        ("weekly=3", vec![1, 3, 6]),
        ("monthly=3", vec![1, 2, 6]),
        ("yearly=2", vec![1, 6]),
        ("yearly=3", vec![0, 1, 6]),
        ("last=2 daily=2 yearly=3", vec![0, 1, 3, 5, 6]),
        // A rule of 0 keeps nothing, the newest stays all the same.
        ("daily=0", vec![6]),
    ] {
        assert_eq!(kept(&points, text, &TimeZone::UTC), expected, "{text}");
    }
}

#[test]
fn days_are_those_of_the_zone() {
    let points = facts(&["2026-03-01T20:00:00Z", "2026-03-01T23:30:00Z", "2026-03-02T10:00:00Z"]);
    assert_eq!(kept(&points, "daily=2", &TimeZone::UTC), [1, 2]);
    // One hour east the second lies in the day of the third.
    let east = TimeZone::fixed(jiff::tz::offset(1));
    assert_eq!(kept(&points, "daily=2", &east), [0, 2]);
}

#[test]
fn pinned_and_newest_points_stay_and_damaged_ones_fill_no_place() {
    let mut points = facts(&[
        "2026-03-01T08:00:00Z",
        "2026-03-01T20:00:00Z",
        "2026-03-02T08:00:00Z",
        "2026-03-02T20:00:00Z",
    ]);
    points[0].pinned = Some("asked for".into());
    points[3].damage = Some("cut off".into());
    let verdicts = judge_points(&points, &rules("daily=1"), &TimeZone::UTC);
    let keep: Vec<_> = verdicts.iter().map(|v| v.keep.join(", ")).collect();
    assert_eq!(keep, ["asked for", "", "newest, daily", "damaged: cut off"]);
    // With nothing whole nothing goes.
    points.iter_mut().for_each(|p| p.damage = Some("cut off".into()));
    assert_eq!(kept(&points, "last=1", &TimeZone::UTC), [0, 1, 2, 3]);
    assert!(judge_points(&[], &rules("last=1"), &TimeZone::UTC).is_empty());
}

#[test]
fn what_was_judged_once_is_judged_the_same_again() {
    let times: Vec<String> = (1..=28)
        .flat_map(|day| [2, 14].map(|hour| format!("2026-02-{day:02}T{hour:02}:00:00Z")))
        .collect();
    let points = facts(&times.iter().map(String::as_str).collect::<Vec<_>>());
    let text = "last=3 daily=7 weekly=4 monthly=2";
    let stay = kept(&points, text, &TimeZone::UTC);
    let rest: Vec<_> = stay.iter().map(|i| points[*i].clone()).collect();
    assert_eq!(kept(&rest, text, &TimeZone::UTC).len(), rest.len());
}

#[test]
fn rules_that_keep_nothing_are_no_rules() {
    assert!(KeepRules::default().is_empty() && rules("last=0 daily=0").is_empty());
    assert!(!rules("yearly=1").is_empty());
}

#[test]
fn a_vm_of_several_policies_keeps_what_any_of_them_keeps() {
    let points = facts(&[
        "2026-11-01T00:00:00Z",
        "2026-11-02T00:00:00Z",
        "2026-11-03T00:00:00Z",
        "2026-11-04T00:00:00Z",
    ]);
    let kept = |whose: &[&str], configured: Option<&[(&str, &str)]>, all: &str| -> Vec<usize> {
        let asked = points.iter().zip(whose);
        let asked = asked.map(|(point, name)| {
            (point.point.clone(), (!name.is_empty()).then(|| (*name).to_owned()))
        });
        let own = |text: &str| Some(rules(text)).filter(|rules| !rules.is_empty());
        let policies = configured
            .map(|list| list.iter().map(|(name, text)| ((*name).to_owned(), own(text))).collect());
        let verdicts = judge_by_policy(
            &points,
            &asked.collect(),
            &rules(all),
            policies.as_ref(),
            &TimeZone::UTC,
        );
        (0..points.len()).filter(|i| !verdicts[*i].expires()).collect()
    };
    let two: &[(&str, &str)] = &[("nightly", "last=3"), ("hourly", "last=1")];
    // The newest point's policy does not decide for the others.
    assert_eq!(kept(&["nightly", "nightly", "nightly", "hourly"], Some(two), ""), [1, 2, 3]);
    assert_eq!(kept(&["hourly"; 4], Some(two), ""), [3]);
    // Nobody's points follow the rules for all, and stay where there are none.
    assert_eq!(kept(&["", "hourly", "hourly", ""], Some(two), "last=2"), [2, 3]);
    assert_eq!(kept(&["", "hourly", "hourly", ""], Some(two), ""), [0, 3]);
    // So do those of a policy without rules of its own; of one that is gone all stay.
    let bare: &[(&str, &str)] = &[("nightly", "")];
    assert_eq!(kept(&["nightly"; 4], Some(bare), "last=2"), [2, 3]);
    assert_eq!(kept(&["gone", "nightly", "nightly", "nightly"], Some(bare), "last=1"), [0, 3]);
    // What is typed counts for every point.
    assert_eq!(kept(&["gone", "hourly", "", "nightly"], None, "last=1"), [3]);
}
