//! `hosted-engine` through a host, with a stand-in that prints what the real one printed.

use std::{fs, os::unix::fs::PermissionsExt};

use hvbak_manager::hosted_engine::{Maintenance, Verdict};
use hvbak_run::{RunError, hosted_engine_maintenance, hosted_engine_status};

use crate::stage::{Stage, fixture, text};

/// A stand-in for hosted-engine: `body` in a shell, `$R` is the host's root.
fn stand_in(body: &str) -> Stage {
    let stage = Stage::new("4.5.7");
    let sbin = stage.sshd.root().join("usr/sbin");
    fs::create_dir_all(&sbin).unwrap();
    let program = sbin.join("hosted-engine");
    fs::write(&program, format!("#!/bin/sh\nR=$HVBAK_HOST_ROOT\n{body}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["normal", "global"] {
        let name = format!("{name}.json");
        fs::copy(fixture("vm-status").join(&name), stage.sshd.root().join(&name)).unwrap();
    }
    stage
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_is_what_the_hosts_say() {
    let stage = stand_in("cat $R/normal.json");
    let status = hosted_engine_status(&stage.settings_with_host(), "hv1").await.unwrap();
    assert!(matches!(status.verdict(), Verdict::Healthy { .. }));

    let stage = stand_in("echo 'json.decoder.JSONDecodeError: Expecting value' >&2; exit 1");
    let error = hosted_engine_status(&stage.settings_with_host(), "hv1").await.unwrap_err();
    assert!(matches!(error, RunError::HostedEngine { .. }), "{}", text(&error));
    assert!(error.hint().unwrap().contains("ovirt-ha-broker"));
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_is_believed_when_the_hosts_show_it() {
    let stage = stand_in(
        "case $* in *--set-maintenance*) echo \"$*\" >$R/set;; *) [ -f $R/set ] && cat $R/global.json || cat $R/normal.json;; esac",
    );
    let settings = stage.settings_with_host();
    let status = hosted_engine_maintenance(&settings, "hv1", Maintenance::Global).await.unwrap();
    assert!(status.global_maintenance);
    let set = fs::read_to_string(stage.sshd.root().join("set")).unwrap();
    assert_eq!(set.trim(), "--set-maintenance --mode=global");

    let refusing =
        stand_in("echo 'Cannot connect to the HA daemon, please check the logs.' >&2; exit 1");
    let settings = refusing.settings_with_host();
    let error = hosted_engine_maintenance(&settings, "hv1", Maintenance::None).await.unwrap_err();
    assert!(text(&error).contains("HA daemon"), "{}", text(&error));
}
