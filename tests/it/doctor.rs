//! `hvbak doctor`: what stands between a login that works and a backup, each with its remedy.

use std::fs;

use hvbak_tests::Lab;

#[test]
fn it_says_what_each_hosts_worker_sees_and_leaves_nothing() {
    let lab = Lab::standard();
    let run = lab.hvbak(&["doctor"]).exits(0);
    run.says("worker on hv1: starts; sees nfs1")
        .says("account: may do all")
        .never_says("policies:")
        .never_says("manager");
    lab.assert_clean();
}

#[test]
fn a_domain_that_a_host_does_not_see_is_named_with_the_host() {
    let lab = Lab::standard();
    let tree = lab.path("hosts/hv1/rhev");
    fs::rename(&tree, lab.path("hosts/hv1/away")).unwrap();
    fs::create_dir(&tree).unwrap();
    let run = lab.json(&["doctor"]).exits(1);
    let failed: Vec<_> = run
        .of("check")
        .into_iter()
        .filter(|check| check["health"] == "failed")
        .map(|check| {
            assert!(check["remedy"].as_str().is_some_and(|r| r.contains("domain")), "{check}");
            check["what"].as_str().unwrap_or_default().to_owned()
        })
        .collect();
    assert!(failed.contains(&"domain nfs1 on hv1".to_owned()), "{run}");
    assert!(failed.iter().all(|what| what.ends_with("on hv1")), "{run}");
    lab.assert_clean();
}

#[test]
fn a_worker_that_the_host_does_not_run_is_found_before_the_night() {
    let lab = Lab::standard();
    let broken = lab.path("broken-worker");
    fs::write(&broken, "#!/bin/sh\nexit 126\n").unwrap();
    let mut doctor = lab.command(&["doctor"]);
    let said = doctor.env("HVBAK_WORKER", &broken).output().unwrap();
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert_eq!(said.status.code(), Some(1), "{text}");
    assert!(text.contains("FAILED  worker on hv1") && text.contains("fapolicyd"), "{text}");
    lab.assert_clean();
}

#[test]
fn a_lack_of_permits_a_tag_that_is_gone_and_a_manager_that_is_silent_are_told() {
    let lab = Lab::standard();
    lab.configure(|text| {
        format!(
            "{text}\n[policy.nightly]\nmatch = [\"web*\"]\ntags = [\"gone\"]\n\n[manager]\nhost = \"127.0.0.1\"\nport = 1\n"
        )
    });
    lab.fault(&["permits", "login", "manipulate_vm_snapshots"]);
    let run = lab.hvbak(&["doctor"]).exits(1);
    let run = run.says("warning account: lacks").says("create_vm").says("hvbak role print");
    let run = run.never_says("lacks login").says("warning policy nightly: there is no tag `gone`");
    let run = run.says("in none that stores disks: db1").says("hvbak policy test");
    run.says("FAILED  manager 127.0.0.1: cannot log in").says("remedy");
    lab.assert_clean();
}
