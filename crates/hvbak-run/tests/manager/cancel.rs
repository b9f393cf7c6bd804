//! Somebody cancels while the way to the manager is lost: nobody waits for it, and what was
//! started there is neither stopped nor repeated by a guess.

use std::time::{Duration, Instant};

use hvbak_run::{ManagerContext, RunError, manager_restore, manager_restore_pick_up};

use crate::{
    backup::until,
    relay::{Relay, Way},
    restore,
    stage::{Stage, options},
};

/// Far less than any limit of SSH's own, far more than a busy machine takes.
const SOON: Duration = Duration::from_secs(10);

fn through(stage: &Stage, relay: &Relay) -> ManagerContext {
    let mut context = stage.context();
    context.manager.port = relay.port;
    context
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_whose_way_is_lost_is_cancelled_soon_and_the_next_takes_it_home() {
    for (lost, before) in [(Way::Silent, 0), (Way::Cut, 0), (Way::Silent, 2500), (Way::Cut, 2500)] {
        let stage = crate::backup::waiting();
        let relay = Relay::to(stage.sshd.port).await;
        let context = through(&stage, &relay);
        let cancel = context.cancel.clone();
        let job =
            tokio::spawn(
                async move { hvbak_run::manager_backup(&context, &options(&["all"])).await },
            );
        until(|| stage.sshd.root().join("calls").exists()).await;
        relay.set(lost).await;
        tokio::time::sleep(Duration::from_millis(before)).await;
        assert!(!job.is_finished());
        let begun = Instant::now();
        cancel.cancel();
        let error = job.await.unwrap().unwrap_err();
        assert!(matches!(error, RunError::Cancelled), "{lost:?}: {error:?}");
        assert!(begun.elapsed() < SOON, "{lost:?}: {:?}", begun.elapsed());
        let told = stage.ears.0.lock().unwrap().join("\n");
        assert!(told.contains("stays on the manager") && told.contains("cleanup"), "{told}");
        assert_eq!((stage.left().len(), stage.journals()), (1, 1));
        stage.put("go", b"");
        assert_eq!(stage.backup(&["all"]).await.unwrap().picked_up.len(), 1);
        assert_eq!((stage.left().len(), stage.journals()), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_whose_way_is_lost_is_cancelled_soon_and_goes_on_to_be_judged_once() {
    // At any moment of its start, and while it is waited for.
    for (lost, at_start) in [(Way::Silent, true), (Way::Cut, true), (Way::Silent, false)] {
        let stage = restore::waiting().await;
        let relay = Relay::to(stage.sshd.port).await;
        let context = through(&stage, &relay);
        let cancel = context.cancel.clone();
        let job =
            tokio::spawn(
                async move { manager_restore(&context, &restore::options(&["all"])).await },
            );
        if at_start {
            let started =
                || stage.left().iter().any(|n| stage.work().join(n).join("started").exists());
            until(started).await;
        } else {
            until(|| stage.calls().contains("--mode=restore")).await;
        }
        relay.set(lost).await;
        let begun = Instant::now();
        cancel.cancel();
        let error = job.await.unwrap().unwrap_err();
        assert!(matches!(error, RunError::Cancelled), "{lost:?}: {error:?}");
        assert!(begun.elapsed() < SOON, "{lost:?}: {:?}", begun.elapsed());
        assert_eq!((stage.left().len(), stage.journals()), (1, 1), "{lost:?}");
        let told = stage.ears.0.lock().unwrap().join("\n");
        assert!(told.contains("--pick-up"), "{told}");
        stage.put("go", b"");
        manager_restore_pick_up(&stage.context()).await.unwrap();
        assert_eq!(stage.calls().matches("--mode=restore").count(), 1);
        stage.check_swept();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_hangs_ends_with_the_one_who_waits_for_it() {
    let stage = crate::backup::waiting();
    let relay = Relay::to(stage.sshd.port).await;
    relay.set(Way::Silent).await;
    let context = through(&stage, &relay);
    let cancel = context.cancel.clone();
    let job =
        tokio::spawn(async move { hvbak_run::manager_backup(&context, &options(&["all"])).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let begun = Instant::now();
    cancel.cancel();
    assert!(matches!(job.await.unwrap().unwrap_err(), RunError::Cancelled));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_script_is_left_to_its_end_while_the_manager_answers() {
    for lost in [false, true] {
        let stage = Stage::restorable("4.5.7").await;
        let relay = Relay::to(stage.sshd.port).await;
        let context = through(&stage, &relay);
        let cancel = context.cancel.clone();
        let job =
            tokio::spawn(
                async move { manager_restore(&context, &restore::options(&["all"])).await },
            );
        let held = stage.hold_the_look().await;
        if lost {
            relay.set(Way::Silent).await;
        }
        cancel.cancel();
        tokio::time::sleep(Duration::from_millis(4500)).await;
        assert_eq!(job.is_finished(), lost);
        drop(held);
        assert!(matches!(job.await.unwrap().unwrap_err(), RunError::Cancelled));
        assert_eq!((stage.left().len(), stage.journals()), (0, 0));
    }
}
