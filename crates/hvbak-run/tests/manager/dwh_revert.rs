//! `dwh move-database --revert` when rows would be lost, or nobody can tell: between databases
//! of a real PostgreSQL; systemctl is a stand-in.

use std::fs;

use hvbak_run::{DwhRevertOptions, DwhReverted, RunError, dwh_move_database, dwh_revert_database};

use crate::{
    dwh::{BACK, DWHD, LOOK, Site, stand_in},
    stage::text,
};

const LOSE: DwhRevertOptions = DwhRevertOptions { lose_rows: true, ..BACK };

/// The service was left stopped for want of the schema, and that was told; then somebody
/// starts it by hand.
#[track_caller]
fn check_stopped_for_its_schema(site: &Site, back: &DwhReverted, expected: &str) {
    assert!(!back.is_active && !site.is_active(), "{back:?}");
    let checks: Vec<_> = back.findings.iter().map(|f| f.check).collect();
    assert_eq!(checks, ["rows", "schema"], "{back:?}");
    assert!(back.findings[1].text.contains(expected), "{back:?}");
    let told = site.stage.ears.0.lock().unwrap().join("\n");
    let last = told.rsplit("the service is stopped: ").next().unwrap();
    assert!(last != told && last.contains("engine-setup"), "{told}");
    assert_eq!(last.contains("systemctl start"), expected.contains("not known"), "{told}");
    let active = "play/units/ovirt-engine-dwhd.active";
    fs::write(site.stage.sshd.root().join(active), "").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn going_back_loses_rows_only_when_that_is_said() {
    let Some(site) = Site::new() else { return };
    let versions = "create table schema_version (version text, current boolean);
        insert into schema_version values ('04050000', true); alter table schema_version owner to dwh_old";
    site.postgres.sql("history", versions);
    dwh_move_database(&site.context(), &site.to("new")).await.unwrap();
    let moved = site.stage.on_manager(DWHD).unwrap();
    let refused = async |options: &DwhRevertOptions, expected: &str| {
        let error = dwh_revert_database(&site.context(), options).await.unwrap_err();
        assert!(matches!(error, RunError::DwhBack { .. }), "{error:?}");
        assert!(text(&error).contains(expected), "{expected}: {}", text(&error));
        assert_eq!(site.stage.on_manager(DWHD).unwrap(), moved);
        assert!(site.is_active());
    };
    site.collect("new", 2);
    refused(&BACK, "table \"public\".\"big\": new 20002, old 20000").await;
    let dry = dwh_revert_database(&site.context(), &LOOK).await.unwrap();
    assert!(!dry.is_clear() && dry.findings[0].check == "rows", "{dry:?}");
    // The old database is gone: no flag makes it a place to go back to.
    site.postgres.sql("postgres", "alter database history rename to dropped");
    refused(&BACK, "the old database").await;
    refused(&LOSE, "the old database").await;
    site.postgres.sql("postgres", "alter database dropped rename to history");
    let back = dwh_revert_database(&site.context(), &LOSE).await.unwrap();
    assert!(back.is_active && back.findings.len() == 1, "{back:?}");
    site.check_as_before();
    // Rows that come while it is stopped: the comparison is made again, and the service is
    // where it was.
    site.postgres.database("late", "dwh_new");
    dwh_move_database(&site.context(), &site.to("late")).await.unwrap();
    let moved = site.stage.on_manager(DWHD).unwrap();
    let real = site.postgres.bin.display();
    let late = format!(
        "if [ $1 = stop ] && [ ! -f $HVBAK_HOST_ROOT/play/once ]; then : >$HVBAK_HOST_ROOT/play/once; PGPASSWORD=super {real}/psql -XAtq -U postgres -h 127.0.0.1 -p {} -d late -c 'insert into big values (1, null)' </dev/null; fi\nexec $HVBAK_HOST_ROOT/usr/bin/systemctl.real \"$@\"",
        site.postgres.port
    );
    let bin = site.stage.sshd.root().join("usr/bin");
    fs::rename(bin.join("systemctl"), bin.join("systemctl.real")).unwrap();
    stand_in(&site, "systemctl", &late);
    let error = dwh_revert_database(&site.context(), &BACK).await.unwrap_err();
    assert!(text(&error).contains("new 20001, old 20000"), "{}", text(&error));
    assert!(site.is_active() && site.stage.on_manager(DWHD).unwrap() == moved);
    // engine-setup has upgraded the new one: the service is not let loose on the old schema.
    site.postgres.sql("late", "update schema_version set version = '04050100'");
    let error = dwh_revert_database(&site.context(), &BACK).await.unwrap_err();
    assert!(text(&error).contains("is 04050100 and"), "{}", text(&error));
    let back = dwh_revert_database(&site.context(), &LOSE).await.unwrap();
    assert!(!back.is_active && !site.is_active(), "{back:?}");
    fs::write(site.stage.sshd.root().join("play/units/ovirt-engine-dwhd.active"), "").unwrap();
    site.check_as_before();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_that_cannot_be_made_keeps_nobody_from_going_back_who_loses_the_rows() {
    let Some(site) = Site::new() else { return };
    let bin = site.stage.sshd.root().join("usr/bin");
    for database in ["killed", "dropped"] {
        site.postgres.database(database, "dwh_new");
        dwh_move_database(&site.context(), &site.to(database)).await.unwrap();
        if database == "killed" {
            stand_in(&site, "awk", "kill -s KILL $PPID");
        } else {
            site.postgres.sql("postgres", "alter database dropped allow_connections false");
        }
        dwh_revert_database(&site.context(), &BACK).await.unwrap_err();
        let back = dwh_revert_database(&site.context(), &LOSE).await.unwrap();
        assert!(back.findings[0].text.contains("cannot be seen"), "{back:?}");
        let _ = fs::remove_file(bin.join("awk"));
        if database == "killed" {
            assert!(back.is_active && back.findings.len() == 1, "{back:?}");
        } else {
            // Nor is it known what engine-setup had made of its schema.
            check_stopped_for_its_schema(&site, &back, "is not known and that of the old");
        }
        site.check_as_before();
        // An old database that is gone is none to go back to all the same.
        if database == "killed" {
            site.postgres.database("again", "dwh_new");
            dwh_move_database(&site.context(), &site.to("again")).await.unwrap();
            stand_in(&site, "awk", "kill -s KILL $PPID");
            site.postgres.sql("postgres", "alter database history rename to gone");
            let error = dwh_revert_database(&site.context(), &LOSE).await.unwrap_err();
            assert!(matches!(error, RunError::DwhBack { .. }), "{error:?}");
            assert!(text(&error).contains("the old database"), "{}", text(&error));
            site.postgres.sql("postgres", "alter database gone rename to history");
            fs::remove_file(bin.join("awk")).unwrap();
            dwh_revert_database(&site.context(), &BACK).await.unwrap();
            site.check_as_before();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_that_breaks_off_does_not_hide_that_the_old_schema_is_older() {
    let Some(site) = Site::new() else { return };
    site.postgres.sql("history", "create table schema_version (version text, current boolean);
        insert into schema_version values ('04050000', true); alter table schema_version owner to dwh_old");
    for (database, expected) in [("upgraded", "is 04050100 and"), ("mute", "is not known and")] {
        site.postgres.database(database, "dwh_new");
        dwh_move_database(&site.context(), &site.to(database)).await.unwrap();
        site.postgres.sql(database, "update schema_version set version = '04050100'");
        stand_in(&site, "awk", "kill -s KILL $PPID");
        let real = site.postgres.bin.join("psql");
        let mute = "case $* in *'-d mute '*schema_version*) exit 2;; esac";
        stand_in(&site, "psql", &format!("{mute}; exec {} \"$@\"", real.display()));
        let back = dwh_revert_database(&site.context(), &LOSE).await.unwrap();
        for name in ["awk", "psql"] {
            fs::remove_file(site.stage.sshd.root().join("usr/bin").join(name)).unwrap();
        }
        check_stopped_for_its_schema(&site, &back, expected);
        site.check_as_before();
    }
}
