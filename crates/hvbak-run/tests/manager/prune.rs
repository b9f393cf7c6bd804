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
