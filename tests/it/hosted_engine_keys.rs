//! Walks with archives that are encrypted, or another manager's: what they need is asked for
//! while everything still runs.

use std::{fs, os::unix::fs::PermissionsExt};

use crate::walk_site::{ANSWERS, ARCHIVE, FRESH, MANAGER, OLD, Site, WAITING, fixtures};

const PUBLIC: &str = "age1zj8w38z6sf4r6qa6xpm38vclmjs0jud83m9eev69xvtwrn0wnguq0usvu0";

/// A private key that only its owner reads, as hvbak wants it.
fn key(site: &Site, fixture: &str) -> String {
    let path = site.lab.path(fixture);
    fs::copy(fixtures().join(fixture), &path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_string_lossy().into_owned()
}

/// Its archives are encrypted; the right key and a wrong one.
fn sealed() -> (Site, String, String) {
    let site = Site::new();
    site.lab.configure(|text| format!("{text}recipients = [\"{PUBLIC}\"]\n"));
    let keys = ["test-identity.txt", "test-identity-of-others.txt"].map(|name| key(&site, name));
    let [mine, foreign] = keys;
    (site, mine, foreign)
}

fn plain() -> Vec<u8> {
    fs::read(fixtures().join("4.5.7-all.backup")).unwrap()
}

#[test]
fn the_key_of_an_archive_that_is_still_to_be_made_is_asked_for_before_anything_stops() {
    let (site, mine, foreign) = sealed();
    site.walk("move", &["--yes"]).exits(2).says(PUBLIC).says("--identity FILE");
    let run = site.walk("move", &["--yes", "--identity", &foreign]).exits(2);
    run.says("the given key opens nothing");
    assert_eq!(site.calls(OLD, "") + site.calls(MANAGER, "") + site.calls(FRESH, ""), 0);
    let with = ["--yes", "--identity", &mine];
    let run = site.waits_at("spm", "move", &with);
    run.says(&format!("--run --wait 0 --identity {mine} --yes --confirm spm"));
    let sure = [&with[..], &["--confirm", "spm", "--confirm", "stop-engine"]].concat();
    site.waits_at("shutdown", "move", &sure);
    assert!(fs::read(site.roots[FRESH].join(ARCHIVE)).unwrap() == plain());
    // Behind the copy nothing needs it any more.
    site.waits_at("deploy", "move", &["--yes", "--confirm", "shutdown"]);
}

#[test]
fn the_key_of_a_stored_archive_is_asked_for_before_a_broken_engine_is_touched() {
    let (site, mine, foreign) = sealed();
    site.lab.hvbak(&["manager-backup"]).exits(0).says("encrypted to age1zj8w38");
    let before = site.calls(MANAGER, "");
    site.walk("overwrite", &["--yes"]).exits(2).says("is encrypted to").says("--identity FILE");
    let run = site.walk("overwrite", &["--yes", "--identity", &foreign]).exits(2);
    run.says("not encrypted to");
    assert_eq!((site.calls(OLD, ""), site.calls(MANAGER, "")), (0, before));
    site.waits_at("restore", "overwrite", &["--yes", "--identity", &mine]);
}

#[test]
fn an_encrypted_archive_of_another_manager_is_walked_with_by_its_own_name() {
    let (site, mine, _) = sealed();
    site.lab.hvbak(&["manager-backup"]).exits(0);
    site.lab.configure(|text| {
        text.replace("https://engine.example.test/", "https://other.example.test/")
    });
    site.set(OLD, "down", true);
    site.set(OLD, "maintained", true);
    let with = ["--yes", "--identity", &mine];
    site.waits_at("dead", "recover", &with);
    let run = site.walk("recover", &[&with[..], &["--confirm", "dead"]].concat()).exits(1);
    run.says("is of manager engine.example.test, and the engine here is other.example.test");
    assert!(!site.lies(ARCHIVE));
    let with = [&with[..], &["--other-name"]].concat();
    let run = site.walk("recover", &with).exits(WAITING).says("waiting at step `deploy`");
    let go_on = format!("--run --wait 0 --identity {mine} --other-name --yes --confirm deploy");
    run.says(&go_on);
    assert!(fs::read(site.roots[FRESH].join(ARCHIVE)).unwrap() == plain());
    // The engine that comes back is called as the archive calls it.
    let answers = fs::read_to_string(site.roots[FRESH].join(ANSWERS)).unwrap();
    assert!(answers.contains("OVEHOSTED_NETWORK/fqdn=str:engine.example.test\n"), "{answers}");
    site.deploy();
    site.waits_at("redeploy", "recover", &with);
    // From its beginning it is that name which must lead somewhere from the fresh host.
    site.set(FRESH, "deployed", false);
    let anew = [&with[..], &["--restart", "--confirm", "restart"]].concat();
    let before = site.calls(FRESH, "getent ahosts engine.example.test");
    site.waits_at("dead", "recover", &anew);
    assert_eq!(site.calls(FRESH, "getent ahosts engine.example.test"), before + 1);
}
