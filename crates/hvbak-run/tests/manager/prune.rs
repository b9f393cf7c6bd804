//! Retention of manager points, on points that real runs of the stand-in have made.

use std::{fs, sync::Arc, time::Duration};

use hvbak_plan::KeepRules;
use hvbak_repo::Repository;
use hvbak_run::{ManagerPrune, manager_prune};
use jiff::tz::TimeZone;

use crate::stage::Stage;

async fn prune(stage: &Stage, last: u32, dry_run: bool) -> ManagerPrune {
    let repository = Arc::new(Repository::open(stage.repository.path()).unwrap());
    let name = "engine.example.test".parse().unwrap();
    let rules = KeepRules { last: Some(last), ..KeepRules::default() };
    manager_prune(&repository, name, rules, TimeZone::UTC, dry_run).await.unwrap()
}

fn points(stage: &Stage) -> Vec<String> {
    let entries = fs::read_dir(stage.stored()).unwrap();
    let mut names: Vec<_> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| !name.contains("lock"));
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn old_points_go_and_damaged_ones_neither_count_nor_go() {
    let stage = Stage::new("4.5.7");
    stage.play("b_ok_all");
    stage.archive("4.5.7-all.backup");
    for _ in 0..3 {
        stage.backup(&["all"]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    let before = points(&stage);
    assert_eq!(before.len(), 3, "{before:?}");
    let would = prune(&stage, 2, true).await;
    assert_eq!(would.removed.len(), 1);
    assert!(would.freed_bytes > 1000);
    assert_eq!(points(&stage), before);
    // Half a removal, and bit rot in the newest.
    fs::create_dir(stage.stored().join(".partial-20200101T000000Z")).unwrap();
    let newest = stage.stored().join(&before[2]).join("engine.backup");
    let mut bytes = fs::read(&newest).unwrap();
    bytes[100] ^= 1;
    fs::write(&newest, bytes).unwrap();
    let done = prune(&stage, 1, false).await;
    assert_eq!(done.removed.iter().map(ToString::to_string).collect::<Vec<_>>(), before[..1]);
    assert_eq!(points(&stage), before[1..]);
    // Nothing is left to do.
    assert!(prune(&stage, 1, false).await.removed.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_of_restores_and_failed_backups_go_but_the_newest_and_those_without_an_outcome() {
    let stage = Stage::new("4.5.7");
    let record = |name: &str, told: Option<&str>| {
        let dir = stage.stored().join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("engine-backup.log"), "log").unwrap();
        if let Some(told) = told {
            fs::write(dir.join(told), "{}").unwrap();
        }
    };
    record(".restore-20261101T000000Z", Some("outcome.json"));
    record(".restore-20261102T000000Z", None);
    record(".restore-20261103T000000Z", Some("outcome.json"));
    record(".restore-20261104T000000Z", Some("outcome.json"));
    record(".failed-20261101T000000Z", Some("failure.txt"));
    record(".failed-20261102T000000Z", Some("failure.txt"));
    record(".other-20261101T000000Z", None);
    let names = |done: &ManagerPrune| -> Vec<_> {
        let name = |r: &hvbak_repo::ManagerRecord| r.path.file_name().unwrap().to_owned();
        done.removed_logs.iter().map(name).collect()
    };
    let gone =
        [".restore-20261101T000000Z", ".restore-20261103T000000Z", ".failed-20261101T000000Z"];
    assert_eq!(names(&prune(&stage, 1, true).await), gone);
    assert_eq!(points(&stage).len(), 7);
    assert_eq!(names(&prune(&stage, 1, false).await), gone);
    assert_eq!(
        points(&stage),
        [
            ".failed-20261102T000000Z",
            ".other-20261101T000000Z",
            ".restore-20261102T000000Z",
            ".restore-20261104T000000Z",
        ]
    );
    assert!(prune(&stage, 1, false).await.removed_logs.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_old_walks_go_but_the_newest_ten() {
    let stage = Stage::new("4.5.7");
    fs::create_dir_all(stage.stored()).unwrap();
    let old = |month: u32| format!(".walked-2020{month:02}01T000000Z.json");
    for month in 1..=12 {
        fs::write(stage.stored().join(old(month)), "{}").unwrap();
    }
    fs::write(stage.stored().join(".walk.json.tmp"), "half a record").unwrap();
    let before = points(&stage);
    assert_eq!(prune(&stage, 1, true).await.removed_walks.len(), 2);
    assert_eq!(points(&stage), before, "a dry run removes nothing");
    assert_eq!(prune(&stage, 1, false).await.removed_walks.len(), 2);
    let left = points(&stage);
    assert_eq!(left.len(), before.len() - 2);
    assert!(
        !left.contains(&old(1)) && !left.contains(&old(2)) && left.contains(&old(3)),
        "{left:?}"
    );
    assert!(prune(&stage, 1, false).await.removed_walks.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_walk_is_about_stays_under_whatever_name_the_walk_is_filed() {
    let stage = Stage::new("4.5.7");
    stage.play("b_ok_all");
    stage.archive("4.5.7-all.backup");
    for _ in 0..3 {
        stage.backup(&["all"]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    let before = points(&stage);
    for time in ["20261101T000000Z", "20261102T000000Z"] {
        let dir = stage.stored().join(format!(".restore-{time}"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("outcome.json"), "{}").unwrap();
    }
    let other = stage.stored().parent().unwrap().join("new.example.test");
    fs::create_dir_all(&other).unwrap();
    let walk = |of: &str| {
        let mut walk = hvbak_repo::WalkRecord::begin("move", []);
        walk.archive = Some(format!("{of}@{}", before[0]));
        fs::write(other.join(".walk.json"), serde_json::to_string(&walk).unwrap()).unwrap();
    };
    walk("engine.example.test");
    let done = prune(&stage, 1, true).await;
    let removed: Vec<_> = done.removed.iter().map(ToString::to_string).collect();
    assert_eq!(removed, before[1..2]);
    assert!(done.removed_logs.is_empty());
    // One that is about another manager protects nothing here.
    walk("third.example.test");
    let done = prune(&stage, 1, true).await;
    assert_eq!((done.removed.len(), done.removed_logs.len()), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_walk_that_cannot_be_read_holds_what_it_may_be_about_and_fails_no_prune() {
    let stage = Stage::new("4.5.7");
    stage.play("b_ok_all");
    stage.archive("4.5.7-all.backup");
    for _ in 0..2 {
        stage.backup(&["all"]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    for time in ["20261101T000000Z", "20261102T000000Z"] {
        let dir = stage.stored().join(format!(".restore-{time}"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("outcome.json"), "{}").unwrap();
    }
    let other = stage.stored().parent().unwrap().join("new.example.test");
    fs::create_dir_all(&other).unwrap();
    let before = points(&stage);
    // Under its own name whatever it says; under another one when its bytes name it.
    for (dir, text, holds) in [
        (stage.stored(), "{", true),
        (stage.stored(), "", true),
        (other.clone(), "{\"archive\": \"engine.example.test@2026", true),
        (other.clone(), "{\"engine\": \"engine.example.test\", \"format\": 1}", true),
        (other.clone(), "{\"archive\": \"other-engine.example.test@2026", false),
        (other.clone(), "", false),
    ] {
        let record = dir.join(".walk.json");
        fs::write(&record, text).unwrap();
        let done = prune(&stage, 1, true).await;
        let gone = (done.removed.len(), done.removed_logs.len());
        assert_eq!(gone, if holds { (0, 0) } else { (1, 1) }, "{text}");
        assert_eq!(done.warnings.len(), if holds { 2 } else { 1 }, "{:?}", done.warnings);
        assert!(done.warnings[0].contains(".walk.json"), "{:?}", done.warnings);
        if holds {
            prune(&stage, 1, false).await;
            let now: Vec<_> = points(&stage).into_iter().filter(|p| p != ".walk.json").collect();
            assert_eq!(now, before);
        }
        fs::remove_file(record).unwrap();
    }
    assert!(prune(&stage, 1, true).await.warnings.is_empty());
}
