//! `hvbak enroll`: the key goes on once, works, and comes off again.

use std::{fs, path::PathBuf};

use hvbak_tests::{Lab, small};

fn two_hosts() -> Lab {
    Lab::bare(&small(), &["--hosts", "2", "--domains", "nfs"])
}

fn authorized(lab: &Lab, host: usize) -> String {
    let root = PathBuf::from(lab.up["hosts"][host]["root"].as_str().unwrap());
    fs::read_to_string(root.join("root/.ssh/authorized_keys")).unwrap()
}

fn ours(lab: &Lab, host: usize) -> usize {
    authorized(lab, host).lines().filter(|l| l.contains("hvbak")).count()
}

#[test]
fn all_hosts_get_one_restricted_key_however_often_it_is_asked_for() {
    let lab = two_hosts();
    lab.enrol();
    lab.enrol();
    for host in 0..2 {
        assert_eq!(ours(&lab, host), 1, "{}", authorized(&lab, host));
        let line = authorized(&lab, host).lines().find(|l| l.contains("hvbak")).unwrap().to_owned();
        assert!(line.contains("restrict"), "{line}");
        assert_eq!(authorized(&lab, host).lines().count(), 2, "the other key stays");
    }
    lab.hvbak(&["doctor"]).exits(0).says("hv1").says("hv2");
}

#[test]
fn one_named_host_is_enrolled_alone() {
    let lab = two_hosts();
    lab.hvbak(&["init"]).exits(0);
    let key = lab.path("bootstrap_key");
    lab.hvbak(&["enroll", "hv2", "--bootstrap-key", key.to_str().unwrap()]).exits(0);
    assert_eq!((ours(&lab, 0), ours(&lab, 1)), (0, 1));
}

#[test]
fn a_dry_run_installs_nothing() {
    let lab = two_hosts();
    lab.hvbak(&["init"]).exits(0);
    let key = lab.path("bootstrap_key");
    lab.hvbak(&["enroll", "--all", "--dry-run", "--bootstrap-key", key.to_str().unwrap()])
        .exits(0)
        .says("hv1");
    assert_eq!((ours(&lab, 0), ours(&lab, 1)), (0, 0));
}

#[test]
fn a_rotated_key_replaces_the_old_one() {
    let lab = two_hosts();
    lab.enrol();
    let (old, line) = (fs::read(lab.path("id_hvbak")).unwrap(), authorized(&lab, 0));
    lab.hvbak(&["enroll", "--all", "--rotate"]).exits(0);
    assert_ne!(fs::read(lab.path("id_hvbak")).unwrap(), old);
    assert_ne!(authorized(&lab, 0), line);
    assert_eq!((ours(&lab, 0), ours(&lab, 1)), (1, 1));
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
}

#[test]
fn a_revoked_key_opens_nothing() {
    let lab = two_hosts();
    lab.enrol();
    lab.hvbak(&["enroll", "--all", "--revoke"]).exits(0);
    assert_eq!((ours(&lab, 0), ours(&lab, 1)), (0, 0));
    let run = lab.hvbak(&["backup", "--vm", "db1"]);
    assert_ne!(run.code, 0, "{run}");
    run.says("hint");
    lab.assert_clean();
}

#[test]
fn the_private_key_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::standard();
    let mode = fs::metadata(lab.path("id_hvbak")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
}

#[test]
fn a_bootstrap_key_that_the_host_does_not_know_is_a_refused_login() {
    let lab = two_hosts();
    lab.hvbak(&["init"]).exits(0);
    let wrong = lab.scratch("wrong_key");
    hvbak_tests::run_tool(
        "ssh-keygen",
        &["-q", "-t", "ed25519", "-N", "", "-f", wrong.to_str().unwrap()],
    );
    lab.hvbak(&["enroll", "--all", "--bootstrap-key", wrong.to_str().unwrap()])
        .exits(12)
        .says("hv1");
}
