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

#[test]
fn a_host_is_enrolled_without_an_engine_by_the_fingerprint_that_its_console_shows() {
    let lab = two_hosts();
    lab.hvbak(&["init"]).exits(0);
    let host = &lab.up["hosts"][0];
    let (root, user) = (host["root"].as_str().unwrap(), host["user"].as_str().unwrap());
    let url = lab.up["engine_url"].as_str().unwrap().to_owned();
    lab.configure(|text| {
        let text = text.replace(&url, "https://127.0.0.1:1/ovirt-engine/api");
        let port = &host["port"];
        text + &format!(
            "\n[hosts.hv9]\naddress = \"127.0.0.1\"\nport = {port}\nuser = \"{user}\"\n"
        )
    });
    let key = lab.path("bootstrap_key");
    let first = ["--bootstrap-key", key.to_str().unwrap(), "--bootstrap-user", user];
    let enrol = |more: &[&'static str]| {
        lab.hvbak(&[&["enroll", "hv9", "--without-engine"][..], &first, more].concat())
    };
    lab.hvbak(&[&["enroll", "hv9"][..], &first].concat()).exits(14);
    // Nobody has said whose key it is, or it is another's.
    enrol(&[]).exits(13).says("SHA256:").says("--fingerprint");
    enrol(&["--fingerprint", "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"]).exits(13);
    enrol(&["--fingerprint", "no key"]).exits(1).says("neither an OpenSSH public key");
    enrol(&["hv8", "--fingerprint", "SHA256:AAAA"]).exits(2).says("one host");
    lab.typed(&[&["enroll", "hv9", "--without-engine"][..], &first].concat(), &["no"]).exits(2);
    assert_eq!(ours(&lab, 0), 0, "it was shown a key of ours");
    let public = format!("{root}/etc/ssh/ssh_host_ed25519_key.pub");
    let shown = hvbak_tests::run_tool("ssh-keygen", &["-lf", &public]);
    let shown = shown.split_whitespace().nth(1).unwrap().to_owned();
    let with = ["enroll", "hv9", "--without-engine", "--fingerprint", &shown];
    lab.hvbak(&[&with[..], &first].concat()).exits(0).says("login proven");
    assert_eq!((ours(&lab, 0), ours(&lab, 1)), (1, 0));
    // From now on its key is known, also by its address, and nothing else is taken for it.
    lab.hvbak(&["enroll", "hv9", "--without-engine"]).exits(0).says("enrolled already");
    let other = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let run = lab.hvbak(&["enroll", "hv9", "--without-engine", "--fingerprint", other]);
    run.exits(13);
    lab.hvbak(&["enroll", "hv9", "--without-engine"]).exits(0).says("enrolled already");
    // It was installed anew: what is remembered of it is no longer so, and its console says what is.
    let remembered = lab.path("id_hvbak.known_hosts");
    let known = fs::read_to_string(&remembered).unwrap();
    let second = lab.up["hosts"][1]["root"].as_str().unwrap();
    let foreign = fs::read_to_string(format!("{second}/etc/ssh/ssh_host_ed25519_key.pub")).unwrap();
    let name = known.split_whitespace().next().unwrap();
    fs::write(&remembered, format!("{name} {foreign}")).unwrap();
    lab.hvbak(&["enroll", "hv9", "--without-engine"]).exits(13).says("--fingerprint");
    lab.hvbak(&[&with[..], &first].concat()).exits(0).says("enrolled already");
    assert_eq!(fs::read_to_string(&remembered).unwrap(), known);
    // What the configuration says is not overruled by a word on the command line.
    let own = fs::read_to_string(&public).unwrap().trim().to_owned();
    lab.configure(|text| text + &format!("host_key = \"{own}\"\n"));
    let run = lab.hvbak(&["enroll", "hv9", "--without-engine", "--fingerprint", other]);
    run.exits(13).says("another fingerprint was given");
    lab.hvbak(&["hosted-engine", "status", "--host", "hv9"]).never_says("cannot log in");
    lab.hvbak(&["enroll", "hv9", "--without-engine", "--revoke"]).exits(0);
    assert_eq!(ours(&lab, 0), 0);
}

#[test]
fn a_person_at_a_terminal_compares_the_key_of_a_host_that_no_engine_knows() {
    let lab = two_hosts();
    lab.hvbak(&["init"]).exits(0);
    let host = &lab.up["hosts"][1];
    let (port, user) = (&host["port"], host["user"].as_str().unwrap());
    lab.configure(|text| {
        text + &format!(
            "\n[hosts.hv9]\naddress = \"127.0.0.1\"\nport = {port}\nuser = \"{user}\"\n"
        )
    });
    let key = lab.path("bootstrap_key");
    let first = ["--bootstrap-key", key.to_str().unwrap(), "--bootstrap-user", user];
    let args = [&["enroll", "hv9", "--without-engine"][..], &first].concat();
    // A word trusts nothing: it does not say which key was compared.
    lab.typed(&args, &["yes"]).exits(2).says("shows these keys");
    assert_eq!((ours(&lab, 0), ours(&lab, 1)), (0, 0));
    lab.typed(&args, &["1"]).exits(0).says("shows these keys").says("login proven");
    assert_eq!((ours(&lab, 0), ours(&lab, 1)), (0, 1));
    let known = fs::read_to_string(lab.path("id_hvbak.known_hosts")).unwrap();
    assert_eq!(known.lines().count(), 1, "{known}");
    lab.hvbak(&["enroll", "hv9", "--without-engine"]).exits(0).says("enrolled already");
}
