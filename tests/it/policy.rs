//! Policies of the configuration: whom they mean, the cycle of levels, windows, commands.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use hvbak_tests::{Lab, Run};

fn policies(lab: &Lab, text: &str) {
    lab.configure(|config| {
        let own = config.split("\n[policy.").next().unwrap_or_default().to_owned();
        format!("{own}\n{text}")
    });
}

/// A program that notes what it is told.
fn noting(lab: &Lab) -> (PathBuf, PathBuf) {
    let (program, notes) = (lab.path("note.sh"), lab.path("notes"));
    let text = format!(
        "#!/bin/sh\necho \"$HVBAK_MOMENT $HVBAK_POLICY $HVBAK_VM $HVBAK_OUTCOME $*\" >> {}\n[ \"$1\" != bad ] || {{ echo no such thing >&2; exit 3; }}\n[ \"$1\" != slow ] || sleep 600\n",
        notes.display()
    );
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    (program, notes)
}

fn manifest(lab: &Lab) -> serde_json::Value {
    let text = fs::read(lab.point("web1").join("manifest.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn nightly(lab: &Lab) -> Run {
    lab.json(&["backup", "--policy", "nightly"])
}

#[test]
fn it_is_told_who_is_in_and_why_and_who_is_in_none() {
    let lab = Lab::standard();
    lab.hvbak(&["policy", "test"]).exits(2).says("[policy.nightly]");
    policies(&lab, "[policy.nightly]\ntags = [\"gold\"]\nregex = [\"db[0-9]\"]\n");
    lab.hvbak(&["policy", "test"]).exits(3).says("in no policy: thin1");
    // Who is selected and left out again was not forgotten.
    policies(
        &lab,
        "[policy.nightly]\ntags = [\"gold\"]\nregex = [\"(db|thin)[0-9]\"]\nexclude_vms = [\"thin*\"]\n\
         [policy.weekly]\nvms = [\"db1\"]\nlevel = \"full\"\nwindows = [\"Sat 10:00-12:00\"]\n",
    );
    let shown = lab.hvbak(&["policy", "test"]).exits(0).never_says("in no policy");
    for line in ["expression `(db|thin)[0-9]`", "tag `gold`", "not nightly", "`thin*` is excluded"]
    {
        assert!(shown.stdout.contains(line), "{line}: {shown}");
    }
    let run = lab.json(&["policy", "test", "weekly"]).exits(0);
    assert_eq!(run.result()["policies"]["nightly"], 2, "{run}");
    assert_eq!(run.of("vm").len(), 1, "{run}");
    let list = lab.hvbak(&["policy", "list"]).exits(0);
    assert!(list.stdout.contains("Sat 10:00-12:00"), "{list}");
    lab.hvbak(&["backup", "--policy", "nigtly"]).exits(2).says("nightly, weekly");
    lab.hvbak(&["backup", "--policy", "nightly", "--vm", "web1"]).exits(2);
    // A mistake is told whatever command reads the file.
    policies(&lab, "[policy.nightly]\nall = true\nwindows = [\"22-6\"]\n");
    lab.hvbak(&["report"]).exits(2).says("`22-6` is no window");
}

#[test]
fn a_cycle_makes_every_third_point_a_full_and_prune_keeps_by_the_policy() {
    let lab = Lab::standard();
    policies(
        &lab,
        "[policy.nightly]\nmatch = [\"web*\"]\nfull_every = 3\nexclude_disks = [\"*_data\"]\nretention = { last = 2 }\n",
    );
    let mut levels = Vec::new();
    for round in 0..4 {
        lab.write("web1", "web1_Disk1", round << 20, 70_000, 0x51);
        nightly(&lab).exits(0);
        let made = manifest(&lab);
        assert_eq!(made["policy"], "nightly");
        assert_eq!(made["skipped"][0]["alias"], "web1_data", "{made:#}");
        let disk = &made["disks"][0];
        levels.push((made["level"].clone(), disk["reason"].to_string().contains("cycle")));
    }
    let level = |text: &str, due| (serde_json::Value::from(text), due);
    assert_eq!(
        levels,
        [
            level("full", false),
            level("incremental", false),
            level("incremental", false),
            level("full", true)
        ]
    );
    lab.hvbak(&["verify", "--all"]).exits(0);
    assert_eq!(lab.own_snapshots("web1").len(), 1);
    // `db1` was not asked for by a policy, and there is no [retention]: all of it stays.
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    let run = lab.json(&["prune"]).exits(0);
    assert_eq!(run.result()["removed"], 2, "{run}");
    assert_eq!(lab.points().len(), 4);
    lab.hvbak(&["verify", "--all"]).exits(0);
    // Whoever backs the VM up once more does not change for how long the others are kept.
    let kept = |lab: &Lab| lab.points().len();
    policies(
        &lab,
        "[policy.hourly]\nvms = [\"web1\"]\nretention = { last = 1 }\n[policy.nightly]\nmatch = [\"web*\"]\nretention = { last = 3 }\n",
    );
    lab.hvbak(&["backup", "--policy", "hourly"]).exits(0);
    lab.json(&["prune"]).exits(0);
    assert_eq!(kept(&lab), 5, "two of nightly, one of hourly, two of db1");
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    lab.json(&["prune"]).exits(0);
    assert_eq!(kept(&lab), 5, "the oldest of nightly went, what nobody has rules for stays");
    // A policy that is gone takes nothing with it; what is typed counts for all.
    policies(&lab, "[policy.hourly]\nvms = [\"web1\"]\nretention = { last = 1 }\n");
    let run = lab.json(&["prune"]).exits(0);
    assert_eq!(run.result()["removed"], 1, "the one of hourly: {run}");
    lab.hvbak(&["verify", "--all"]).exits(0);
    lab.json(&["prune", "--keep-last", "1"]).exits(0);
    assert_eq!(kept(&lab), 2);
}

#[test]
fn closed_windows_begin_nothing_and_a_vm_that_is_gone_keeps_nobody_waiting() {
    let lab = Lab::standard();
    // An hour that is far from now.
    let now = jiff_hour();
    let hours = format!("{:02}:00-{:02}:30", (now + 6) % 24, (now + 6) % 24);
    let text = |windows: &str| {
        format!(
            "[policy.nightly]\nvms = [\"db1\", \"gone\"]\ntime_zone = \"UTC\"\nwindows = [\"{windows}\"]\n"
        )
    };
    policies(&lab, &text(&hours));
    let run = nightly(&lab).exits(3);
    assert_eq!(run.result()["closed"], true, "{run}");
    assert!(lab.points().is_empty());
    let run = lab.json(&["backup", "--policy", "nightly", "--ignore-windows"]).exits(3);
    assert_eq!(run.result()["done"].as_array().unwrap().len(), 1, "{run}");
    assert_eq!(run.result()["missing"][0], "there is no vm `gone`", "{run}");
    policies(&lab, &text("00:00-24:00"));
    nightly(&lab).exits(3);
    assert_eq!(lab.points().len(), 2);
}

/// The hour of the day in UTC.
fn jiff_hour() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    now.as_secs() / 3600 % 24
}

#[test]
fn commands_run_around_the_backup_here_and_in_the_guest() {
    let lab = Lab::standard();
    let (program, notes) = noting(&lab);
    let host = &lab.up["hosts"][0];
    let root = PathBuf::from(host["root"].as_str().unwrap());
    let key = fs::read_to_string(root.join("etc/ssh/ssh_host_ed25519_key.pub")).unwrap();
    let command = |when: &str, word: &str, more: &str| {
        format!("{{ when = \"{when}\", run = [\"{}\", \"{word}\"]{more} }}", program.display())
    };
    let policy = |commands: &[String]| {
        format!(
            "[policy.nightly]\nvms = [\"web1\"]\ncommands = [{}]\n[guests.web1]\naddress = \"127.0.0.1\"\nport = {}\nuser = \"{}\"\nhost_key = \"{}\"\n",
            commands.join(", "),
            host["port"],
            host["user"].as_str().unwrap(),
            key.trim()
        )
    };
    let in_guest = "{ when = \"before-snapshot\", in_guest = true, run = [\"sh\", \"-c\", \"echo \\\"$HVBAK_VM $1\\\" > /tmp/told\", \"x\", \"it's\"] }";
    let all = ["before", "before-snapshot", "after-snapshot", "after-vm", "after"];
    let mut commands: Vec<_> = all.iter().map(|when| command(when, "good", "")).collect();
    commands.push(in_guest.into());
    policies(&lab, &policy(&commands));
    nightly(&lab).exits(0);
    let told = fs::read_to_string(&notes).unwrap();
    let told: Vec<_> = told.lines().map(str::trim).collect();
    assert_eq!(
        told,
        [
            "before nightly   good",
            "before-snapshot nightly web1  good",
            "after-snapshot nightly web1 done good",
            "after-vm nightly web1 done good",
            "after nightly   good"
        ]
    );
    let guest = root.join("tmp/told");
    let guest = if guest.exists() { guest } else { PathBuf::from("/tmp/told") };
    assert_eq!(fs::read_to_string(&guest).unwrap().trim(), "web1 it's");
    fs::remove_file(guest).unwrap();

    // One that fails ends the VM before its snapshot; its counterpart runs all the same.
    fs::remove_file(&notes).unwrap();
    let bad = [command("before-snapshot", "bad", ""), command("after-snapshot", "good", "")];
    policies(&lab, &policy(&bad));
    nightly(&lab).exits(1).says("no such thing");
    let told = fs::read_to_string(&notes).unwrap();
    assert!(told.contains("after-snapshot nightly web1 failed good"), "{told}");
    assert_eq!(lab.points().len(), 1);

    // Not required, too slow, or too late to end anything: told, and code 3.
    let weak = [
        command("before-snapshot", "slow", ", required = false, timeout_seconds = 1"),
        command("after-vm", "bad", ""),
    ];
    policies(&lab, &policy(&weak));
    let run = nightly(&lab).exits(3).says("did not end within 1 s").says("no such thing");
    assert_eq!(run.result()["commands_failed"], 2, "{run}");
    assert_eq!(lab.points().len(), 2);

    // Nothing is begun after a failed command before the run, or without the guest's key.
    policies(&lab, &policy(&[command("before", "bad", "")]));
    nightly(&lab).exits(1).says("command");
    let report = lab.hvbak(&["report"]).exits(0);
    assert!(report.stdout.contains("stopped  web1: command"), "{report}");
    let unknown = policy(&[in_guest.to_owned()]).replace("[guests.web1]", "[guests.other]");
    policies(&lab, &unknown);
    nightly(&lab).exits(1).says("guests");
    let stranger = fs::read_to_string(lab.path("id_hvbak.pub")).unwrap();
    policies(&lab, &policy(&[in_guest.to_owned()]).replace(key.trim(), stranger.trim()));
    nightly(&lab).exits(1).says("host key");
    assert_eq!(lab.points().len(), 2);
    lab.assert_clean();
}
