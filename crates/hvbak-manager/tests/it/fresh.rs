//! What is asked on hosts around a deployment, run by a real shell, and what speaks against a
//! fresh host.

use std::{fs, path::Path, process::Command};

use hvbak_manager::{
    hosted_engine::{
        fresh::{FRESH, FreshFacts},
        remote::{DEPLOYMENT, Deployment, HAS_LINE, LIES, RECEIVE, SWEEP, engine_at_rest},
    },
    restore::Weight,
};

fn good() -> FreshFacts {
    FreshFacts::parse(
        "uid=0\nname=hv9.example.test\ntool=hosted-engine\ntool=tmux\n\
         package=ovirt-hosted-engine-setup:2.7.1\npackage=ovirt-engine-appliance:4.5\n\
         home_kib=9000000\nlocal_kib=90000000\naddress=192.0.2.10\nreverse=Engine.example.test\n",
    )
}

fn checks(facts: &FreshFacts, archive: Option<u64>) -> Vec<(&'static str, bool)> {
    let findings = facts.findings("engine.example.test", archive);
    findings.iter().map(|f| (f.check, f.weight == Weight::Stops)).collect()
}

#[test]
fn each_thing_that_speaks_against_a_fresh_host_is_found_with_a_remedy() {
    assert!(checks(&good(), Some(1 << 30)).is_empty());
    type Change = fn(&mut FreshFacts);
    let cases: [(&str, bool, Change); 13] = [
        ("not-root", true, |f| f.is_root = false),
        ("no-program", true, |f| f.has_program = false),
        ("old-program", true, |f| f.packages[0].1 = "2.2.27".into()),
        ("deployed", true, |f| f.deployed = true),
        ("deploying", true, |f| f.deploying = true),
        ("deploying", true, |f| f.locks.push("/tmp/ansible.x_he_setup_lock".into())),
        ("no-space", true, |f| f.home = Some(1 << 30)),
        ("no-space-for-vm", true, |f| f.local = Some(9 << 30)),
        ("no-address", true, |f| f.addresses.clear()),
        ("no-reverse", false, |f| f.reverse = vec!["other.example.test".into()]),
        ("own-name", true, |f| f.own = true),
        ("no-tmux", false, |f| f.has_tmux = false),
        ("no-appliance", false, |f| f.packages.truncate(1)),
    ];
    for (check, stops, change) in cases {
        let mut facts = good();
        change(&mut facts);
        assert_eq!(checks(&facts, Some(1 << 30)), [(check, stops)], "{facts:?}");
        let findings = facts.findings("engine.example.test", Some(1 << 30));
        assert!(findings[0].remedy.is_some(), "{check}");
    }
    let named = FreshFacts { name: "ENGINE.example.test".into(), ..good() };
    assert_eq!(checks(&named, None), [("own-name", true)]);
    // What is not known stops nothing.
    let unknown = FreshFacts { home: None, local: None, ..good() };
    assert!(checks(&unknown, None).is_empty());
    let odd =
        FreshFacts { packages: vec![("ovirt-hosted-engine-setup".into(), "2.x".into())], ..good() };
    assert_eq!(checks(&odd, None), [("no-appliance", false)]);
}

fn sh(root: &Path, text: &str, args: &[&str], input: &str) -> (i32, String) {
    use std::{io::Write, process::Stdio};
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", text, "hvbak"]).args(args).env("HVBAK_HOST_ROOT", root);
    let mut child =
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let out = child.wait_with_output().unwrap();
    (out.status.code().unwrap(), String::from_utf8(out.stdout).unwrap())
}

/// Of `content\n`.
const SUM: &str = "434728a410a78f56fc1b5899c3593436e61ab0c731e9072d95e96db290205e53";

#[test]
fn a_file_is_taken_whole_for_root_alone_and_removed_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir(root.join("root")).unwrap();
    let name = "/root/a file'; touch x";
    let at = root.join(&name[1..]);
    assert_eq!(sh(root, LIES, &[name], "").1, "");
    assert_eq!(sh(root, RECEIVE, &[name, SUM], "otherwise\n").0, 65);
    assert_eq!(
        fs::read_dir(root.join("root")).unwrap().count(),
        0,
        "what arrived otherwise stayed"
    );
    assert_eq!(sh(root, RECEIVE, &[name, SUM], "content\n").0, 0);
    assert_eq!(sh(root, LIES, &[name], "").1, format!("mode=600\nsum={SUM}\n"));
    // A broken transfer leaves what was there.
    assert_eq!(sh(root, RECEIVE, &[name, SUM], "conte").0, 65);
    assert_eq!(fs::read_to_string(&at).unwrap(), "content\n");
    assert_eq!(sh(root, HAS_LINE, &[name, "content"], "").1, "there=yes\n");
    assert_eq!(sh(root, HAS_LINE, &[name, "conten."], "").1, "");
    fs::write(root.join("root/a file'; touch x.new"), "half").unwrap();
    assert_eq!(sh(root, SWEEP, &[name, "/root/none"], ""), (0, String::new()));
    assert_eq!(fs::read_dir(root.join("root")).unwrap().count(), 0);
    // Links are neither followed nor believed.
    let target = root.join("target");
    fs::write(&target, "content\n").unwrap();
    std::os::unix::fs::symlink(&target, &at).unwrap();
    assert_eq!(sh(root, RECEIVE, &[name, SUM], "content\n").0, 64);
    assert_eq!(sh(root, LIES, &[name], "").1, "");
    assert_eq!(sh(root, SWEEP, &[name], "").0, 0);
    assert!(target.exists() && fs::symlink_metadata(&at).is_err());
    fs::create_dir(&at).unwrap();
    assert_eq!(sh(root, RECEIVE, &[name, SUM], "content\n").0, 64);
}

#[test]
fn looking_at_a_host_does_not_find_itself() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir(root.join("tmp")).unwrap();
    // pgrep sees the shell that runs this text.
    let (code, text) = sh(root, DEPLOYMENT, &[], "");
    assert_eq!((code, Deployment::parse(&text)), (0, Deployment::default()), "{text}");
    fs::write(root.join("tmp/ansible.x_he_setup_lock"), "").unwrap();
    let found = Deployment::parse(&sh(root, DEPLOYMENT, &[], "").1);
    assert_eq!(found.locks, ["/tmp/ansible.x_he_setup_lock"]);
    assert!(found.words().contains("delete /tmp/ansible.x_he_setup_lock"), "{}", found.words());
    let (code, text) = sh(root, FRESH, &["localhost; touch x"], "");
    let facts = FreshFacts::parse(&text);
    assert_eq!(
        (code, facts.deploying, facts.deployed, facts.has_program),
        (0, false, false, false)
    );
    assert_eq!(facts.locks.len(), 1, "{text}");
    let (_, text) = sh(root, FRESH, &["localhost"], "");
    let facts = FreshFacts::parse(&text);
    assert!(
        !facts.addresses.is_empty() && facts.reverse.iter().any(|n| n == "localhost"),
        "{text}"
    );
    assert!(
        checks(&FreshFacts { locks: vec![], ..facts }, None).iter().all(|c| c.0 != "deploying")
    );
}

#[test]
fn an_engine_is_at_rest_when_it_neither_runs_nor_will() {
    assert!(engine_at_rest("active=inactive\nenabled=disabled\n").is_ok());
    assert!(engine_at_rest("active=failed\nenabled=masked\n").is_ok());
    for (text, why) in [
        ("active=active\nenabled=disabled\n", "runs"),
        ("active=inactive\nenabled=enabled\n", "would start"),
        ("active=activating\nenabled=disabled\n", "runs"),
        ("active=\nenabled=\n", "runs"),
        ("", "runs"),
    ] {
        assert!(engine_at_rest(text).unwrap_err().contains(why), "{text}");
    }
}
