//! The long sequences: each step's place, hand, command and sign, what names can do in them,
//! what the hosts' recorded answers say of a sign, and the way of a walk.

use hvbak_manager::{
    hosted_engine::{Verdict, VmStatus},
    sequence::{
        Act, Archive, Hand, Lost, Place, Seen, Sequence, SequenceError, Sign, Site, State, Step,
        answers, back_to, from, held, next,
    },
};

use crate::support::fixture;

const ALL: [Sequence; 5] = [
    Sequence::Move,
    Sequence::Recover,
    Sequence::Overwrite,
    Sequence::ToHosted,
    Sequence::ToStandalone,
];

fn site() -> Site {
    let archive = Archive {
        title: "engine.example.com@20261121T021454Z".into(),
        path: "/backup/it's here/engine.backup".into(),
        sha256: "ab".repeat(32),
        recipients: Vec::new(),
        version: "4.5.7".into(),
    };
    Site {
        host: Some("hv1".into()),
        host_name: Some("hv1".into()),
        to: Some("hv9".into()),
        fqdn: "engine.example.com".into(),
        archive: Some(archive),
    }
}

fn steps(sequence: Sequence) -> Vec<Step> {
    sequence.steps(&site()).unwrap()
}

/// Name, place, hand, act, sign, and what must stand in the commands.
type Row = (&'static str, Place, Hand, Option<Act>, Sign, &'static str);

fn rows(sequence: Sequence) -> Vec<Row> {
    use {Act::*, Hand::*, Place::*};
    let fit = ("fresh-host", FreshHost, Look, Some(CheckFreshHost), Sign::Fit, "--check-deployed");
    let spm = ("spm", Portal, Person, None, Sign::None, "Select as SPM");
    let maintenance = (
        "maintenance",
        OldHost,
        Hvbak,
        Some(EnterMaintenance),
        Sign::Maintained,
        "hosted-engine --set-maintenance --mode=global",
    );
    let stop = (
        "stop-engine",
        Manager,
        HvbakWhenSure,
        Some(StopEngine),
        Sign::EngineStopped,
        "systemctl disable --now ovirt-engine",
    );
    let backup =
        ("backup", BackupHost, Hvbak, Some(BackUp), Sign::FreshArchive, "hvbak manager-backup");
    let copy = ("copy", FreshHost, Hvbak, Some(Copy), Sign::Copied, "sha256sum --check");
    let shutdown = (
        "shutdown",
        OldHost,
        HvbakWhenSure,
        Some(ShutDown),
        Sign::VmDown,
        "hosted-engine --vm-shutdown",
    );
    let deploy = [
        (
            "answers",
            FreshHost,
            Hvbak,
            Some(Answer),
            Sign::Answered,
            "OVEHOSTED_NETWORK/fqdn=str:engine.example.com",
        ),
        (
            "deploy",
            FreshHost,
            Person,
            None,
            Sign::Healthy,
            "\nhosted-engine --deploy --restore-from-file=/root/hvbak-engine.backup --config-append=/root/hvbak-he-answers.conf\n",
        ),
        ("release", FreshHost, Hvbak, Some(LeaveMaintenance), Sign::Released, "--mode=none"),
        ("redeploy", Portal, Person, None, Sign::None, "Hosted Engine: Deploy"),
    ];
    let old = ("old-domain", Portal, Person, None, Sign::None, "Destroy instead of Remove");
    let shred =
        ("shred", FreshHost, Hvbak, Some(Sweep), Sign::Swept, "shred -u /root/hvbak-engine.backup");
    let again = ("again", BackupHost, Person, None, Sign::None, "hvbak manager-backup");
    let dead = ("dead", OldHost, PersonWhenSure, None, Sign::NotSeenUp, "virsh -r list");
    let off = ("old-machine", Manager, PersonWhenSure, None, Sign::None, "systemctl poweroff");
    let restore =
        ("restore", BackupHost, HvbakWhenSure, Some(Overwrite), Sign::Restored, "--engine-cleanup");
    let leave = ("release", OldHost, Hvbak, Some(LeaveMaintenance), Sign::Released, "--mode=none");
    let healthy = ("healthy", OldHost, Look, Some(Watch), Sign::Healthy, "--check-liveliness");
    match sequence {
        Sequence::Move => [
            &[fit, spm, maintenance, stop, backup, copy, shutdown][..],
            &deploy,
            &[old, shred, again],
        ]
        .concat(),
        Sequence::Recover => [&[fit, dead, copy][..], &deploy, &[old, shred, again]].concat(),
        Sequence::Overwrite => vec![maintenance, restore, shutdown, leave, healthy, again],
        Sequence::ToHosted => {
            [&[fit, stop, backup, copy, off][..], &deploy, &[shred, again]].concat()
        }
        Sequence::ToStandalone => vec![
            spm,
            ("evacuate", Portal, PersonWhenSure, None, Sign::None, "Migrate"),
            maintenance,
            stop,
            backup,
            shutdown,
            ("machine", FreshMachine, Person, None, Sign::None, "enroll --manager --fingerprint"),
            (
                "restore",
                BackupHost,
                HvbakWhenSure,
                Some(Restore),
                Sign::Restored,
                "--provision-all-databases --he-remove-storage-vm --he-remove-hosts --engine-setup",
            ),
            (
                "undeploy",
                OldHost,
                Person,
                None,
                Sign::None,
                "disable --now ovirt-ha-agent ovirt-ha-broker",
            ),
            ("hosts", Portal, Person, None, Sign::None, "Undeploy"),
            ("old-domain", OldHost, Person, None, Sign::None, "only when all else is good"),
            again,
        ],
    }
}

#[test]
fn each_step_has_its_place_hand_command_and_sign() {
    for sequence in ALL {
        let (steps, rows) = (steps(sequence), rows(sequence));
        let names: Vec<_> = steps.iter().map(|step| step.name).collect();
        assert_eq!(names, rows.iter().map(|row| row.0).collect::<Vec<_>>(), "{sequence:?}");
        for (step, row) in steps.iter().zip(rows) {
            let is = (step.name, step.place, step.hand, step.act, step.sign);
            assert_eq!(is, (row.0, row.1, row.2, row.3, row.4), "{sequence:?}");
            let text = step.commands.join("\n");
            assert!(text.contains(row.5), "{sequence:?} {}: {text}", row.0);
            assert_eq!(step.act.is_none(), step.hand.is_person(), "{}", row.0);
            // What hvbak does must be seen to be done.
            assert!(step.act.is_none() || step.sign.words().is_some(), "{}", row.0);
            assert_eq!(step.once, ["deploy", "restore"].contains(&row.0), "{}", row.0);
        }
    }
}

#[test]
fn what_must_go_on_holding_ends_with_a_later_step() {
    for sequence in ALL {
        let steps = steps(sequence);
        for (at, step) in steps.iter().enumerate() {
            assert_eq!(steps.iter().position(|other| other.name == step.name), Some(at));
            if let Some(holds) = step.holds {
                let end = steps.iter().position(|other| other.name == holds.until);
                assert!(end.is_some_and(|end| end > at), "{sequence:?} {}", step.name);
            }
        }
        // The old engine must not come back while there are two.
        let held: Vec<_> = steps.iter().filter(|s| s.holds.is_some()).map(|s| s.name).collect();
        let must = match sequence {
            Sequence::Recover => "dead",
            Sequence::ToHosted => "stop-engine",
            _ => "maintenance",
        };
        assert!(held.contains(&must), "{sequence:?}: {held:?}");
    }
}

#[test]
fn nothing_stops_before_the_fresh_host_was_looked_at_and_has_the_archive() {
    for sequence in [Sequence::Move, Sequence::ToHosted] {
        let steps = steps(sequence);
        let at = |name: &str| steps.iter().position(|step| step.name == name).unwrap();
        assert!(at("fresh-host") < at("stop-engine"));
        let gone = if sequence == Sequence::Move { "shutdown" } else { "old-machine" };
        assert!(at("copy") < at(gone), "{sequence:?}");
    }
}

#[test]
fn a_deployment_that_pauses_and_what_is_known_to_fail_is_told_with_its_remedy() {
    let steps = steps(Sequence::Recover);
    let deploy = steps.iter().find(|step| step.name == "deploy").unwrap();
    let text = deploy.commands.join("\n");
    for known in [
        "/tmp/ansible.*_he_setup_lock",
        "restore-backup-*.log",
        "older than the archive",
        "non-operational",
        "exactly the old names",
        "--tmpdir=/var/tmp",
        "renamed",
        "ovirt-hosted-engine-cleanup",
    ] {
        assert!(text.contains(known), "{known}");
    }
    // The connection may break, and the shell outlives its program.
    assert!(deploy.commands[0].starts_with("tmux new -A -s hvbak "), "{text}");
    // Everything but the call itself is words.
    assert!(deploy.commands[2..].iter().all(|line| line.starts_with('#')), "{text}");
}

#[test]
fn a_maintenance_that_came_after_its_own_end_is_told_and_no_more() {
    for sequence in ALL {
        for step in steps(sequence).iter().filter(|step| step.act == Some(Act::LeaveMaintenance)) {
            let lost = step.holds.map(|holds| holds.lost);
            assert!(matches!(lost, None | Some(Lost::Told)), "{sequence:?}: {lost:?}");
        }
    }
}

#[test]
fn what_is_missing_is_said() {
    let none = Site { archive: None, ..site() };
    for sequence in ALL {
        let without = sequence.steps(&none).err();
        let wanted = (!sequence.makes_archive()).then_some(SequenceError::NoArchive);
        assert_eq!(without, wanted, "{sequence:?}");
        let alone = Site { to: None, ..site() };
        let wanted = sequence.has_fresh_host().then_some(SequenceError::NoFreshHost);
        assert_eq!(sequence.steps(&alone).err(), wanted, "{sequence:?}");
        let nobody = Site { host: None, ..site() };
        let wanted = (sequence != Sequence::ToHosted).then_some(SequenceError::NoHost);
        assert_eq!(sequence.steps(&nobody).err(), wanted, "{sequence:?}");
    }
    let same = Site { to: Some("hv1".into()), ..site() };
    assert_eq!(Sequence::Recover.steps(&same).unwrap_err(), SequenceError::SameHost);
}

#[test]
fn hostile_names_cannot_leave_their_words() {
    let mut hostile = site();
    hostile.to = Some("hv9; reboot".into());
    hostile.host = Some("hv1' $(id)".into());
    hostile.host_name = Some("hv1' $(id)".into());
    hostile.fqdn = "e\nx=1 $(id)".into();
    if let Some(archive) = &mut hostile.archive {
        archive.title = "t'; id #".into();
    }
    for sequence in ALL {
        for step in sequence.steps(&hostile).unwrap().iter().filter(|s| s.name != "answers") {
            for line in step.commands.iter().filter(|line| !line.starts_with('#')) {
                // A shell makes words of the line, runs nothing of it, and finds it whole.
                let line = line.split("   #").next().unwrap();
                let script = format!("set -f; printf '%s\\0' {line}");
                let out = std::process::Command::new("/bin/sh").args(["-c", &script]).output();
                let out = out.unwrap();
                assert!(out.status.success(), "{line}: {out:?}");
                let words = String::from_utf8(out.stdout).unwrap();
                assert!(!words.contains("uid="), "{line}: {words}");
                for name in ["reboot", "id)", "id #"] {
                    let alone =
                        words.split('\0').any(|word| word.trim_end_matches(['\'', ';']) == name);
                    assert!(!alone, "{line}: {words}");
                }
            }
        }
    }
    let text = answers("e\nx=1 $(id)");
    assert!(text.contains("fqdn=str:ex1id\n"), "{text}");
    let all = Sequence::Recover.steps(&site()).unwrap();
    let copy = all.iter().find(|step| step.name == "copy").unwrap();
    let scp = r"scp -p '/backup/it'\''s here/engine.backup' root@hv9:/root/hvbak-engine.backup";
    assert_eq!(copy.commands[1], scp);
    let mut sealed = site();
    if let Some(archive) = &mut sealed.archive {
        archive.recipients = vec!["age1abc\nreboot".into(), "ssh-ed25519 AAAA".into()];
    }
    let all = Sequence::Recover.steps(&sealed).unwrap();
    let copy = &all.iter().find(|step| step.name == "copy").unwrap().commands;
    assert!(copy[0].ends_with("# of one of: age1abc reboot, ssh-ed25519 AAAA"), "{copy:?}");
    assert!(copy[1].ends_with("--identity \"$IDENTITY\""), "{copy:?}");
    assert!(copy[2].starts_with("age --decrypt") && copy[2].contains("| ssh root@hv9 'umask 077"));
}

#[test]
fn answers_that_are_copied_as_they_are_shown_are_those_that_hvbak_writes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("answers");
    for fqdn in ["engine.example.com", "e\nx=1 $(id)'"] {
        let all = Sequence::Recover.steps(&Site { fqdn: fqdn.into(), ..site() }).unwrap();
        let step = all.iter().find(|step| step.name == "answers").unwrap();
        // Indented, as they are printed.
        let shown: String = step.commands.iter().map(|line| format!("     {line}\n")).collect();
        let shown = shown.replace("/root/hvbak-he-answers.conf", path.to_str().unwrap());
        let out = std::process::Command::new("/bin/sh").args(["-c", &shown]).output().unwrap();
        assert!(out.status.success(), "{shown}: {out:?}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), answers(fqdn));
        let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }
}

fn status(name: &str) -> VmStatus {
    let text = std::fs::read_to_string(fixture("vm-status").join(name)).unwrap();
    VmStatus::parse(&text, "").unwrap()
}

#[test]
fn the_hosts_recorded_answers_are_judged_and_silent_hosts_are_not_believed() {
    let signs = [Sign::Maintained, Sign::Released, Sign::VmDown, Sign::NotSeenUp, Sign::Healthy];
    let judged = |status: &VmStatus| -> String {
        let letter = |sign: &Sign| match sign.judge(status) {
            Seen::Yes => 'y',
            Seen::No(_) => 'n',
            Seen::Unknown(_) => '?',
        };
        signs.iter().map(letter).collect()
    };
    for (name, wanted) in [
        ("normal.json", "nynny"),
        ("global.json", "ynnny"),
        ("booting.json", "nynnn"),
        ("liveliness.json", "nynnn"),
        ("stale.json", "nynny"),
    ] {
        assert_eq!(judged(&status(name)), wanted, "{name}");
    }
    let mut down = status("global.json");
    down.hosts[0].engine_status.vm = "down".into();
    assert_eq!(judged(&down), "ynyyn");
    // A host that could not ask does not know; an agent without maintenance starts it later.
    down.hosts[1].engine_status.vm = "unknown".into();
    assert_eq!((judged(&down).as_str(), down.verdict()), ("yn???", Verdict::Unknown));
    down.hosts[1].engine_status.vm = "down_unexpected".into();
    assert_eq!((judged(&down).as_str(), down.verdict()), ("ynyyn", Verdict::Down));
    down.global_maintenance = false;
    assert_eq!(judged(&down), "nyynn");
    down.hosts.iter_mut().for_each(|host| host.stopped = true);
    assert_eq!(judged(&down), "nyyyn");
    down.global_maintenance = true;
    down.hosts[1].engine_status.vm = "down".into();
    // One that fell silent may run it, whatever it last said.
    down.hosts[1].live_data = false;
    assert_eq!(judged(&down), "yn??n");
    let Seen::Unknown(why) = Sign::VmDown.judge(&down) else { panic!() };
    assert!(why.contains("host2.example.test (last said at its second 183452: vm down)"), "{why}");
    down.hosts[0].live_data = false;
    assert_eq!(judged(&down), "?????");
    let empty = VmStatus { global_maintenance: true, hosts: Vec::new() };
    assert_eq!(judged(&empty), "?????");
}

#[test]
fn a_walk_goes_on_where_it_was_and_never_back_over_what_was_begun_once() {
    let steps = steps(Sequence::Move);
    let at = |name: &str| steps.iter().position(|step| step.name == name).unwrap();
    let mut states = vec![State::Open; steps.len()];
    assert_eq!(next(&states), Some(0));
    states[..at("copy")].fill(State::Done);
    assert_eq!(next(&states), Some(at("copy")));
    let names = |states: &[State]| {
        held(&steps, states).into_iter().map(|at| steps[at].name).collect::<Vec<_>>()
    };
    assert_eq!(names(&states), ["maintenance", "stop-engine"]);
    states[at("copy")] = State::Done;
    states[at("shutdown")] = State::Begun;
    // In a VM that goes down nobody can be asked.
    assert_eq!(names(&states), ["maintenance", "copy"]);
    assert_eq!(steps[at("stop-engine")].holds.unwrap().lost, Lost::Back);
    let mut back = states.clone();
    back_to(&steps, &mut back, at("stop-engine")).unwrap();
    assert_eq!(next(&back), Some(at("stop-engine")));
    assert!(back[at("stop-engine")..].iter().all(|state| *state == State::Open));
    let mut on = states.clone();
    from(&steps, &mut on, at("deploy")).unwrap();
    assert_eq!((next(&on), on[at("shutdown")]), (Some(at("deploy")), State::Passed));
    assert_eq!(names(&on), ["maintenance", "copy", "shutdown", "answers"]);
    // By being shown nothing is begun: what it needs is looked at still, and there is a way back.
    on[at("deploy")] = State::Shown;
    assert_eq!(next(&on), Some(at("deploy")));
    assert_eq!(names(&on), ["maintenance", "copy", "shutdown", "answers"]);
    from(&steps, &mut on.clone(), at("copy")).unwrap();
    on[at("deploy")] = State::Begun;
    assert_eq!(names(&on), ["maintenance", "shutdown"]);
    let before = on.clone();
    assert_eq!(back_to(&steps, &mut on, at("copy")).unwrap_err().step, "deploy");
    assert_eq!(from(&steps, &mut on, at("copy")).unwrap_err().step, "deploy");
    assert_eq!(on, before, "nothing was changed");
    from(&steps, &mut on, at("deploy")).unwrap();
    assert_eq!(on[at("deploy")], State::Begun);
    // Hosts that are redeployed one after the other belong to the new engine.
    states.fill(State::Done);
    states[at("redeploy")..].fill(State::Open);
    assert_eq!(names(&states), ["maintenance", "shutdown"]);
    states[at("redeploy")] = State::Begun;
    assert!(names(&states).is_empty());
    states.fill(State::Done);
    assert_eq!(next(&states), None);
}
