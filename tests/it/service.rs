//! What a service of hvbak's is to systemd: its units, its messages, its lines in the journal,
//! and that the filter of system calls lets it work.
//!
//! No systemd runs here: units are judged by `systemd-analyze` offline, and the two sockets that
//! a service talks to are this test's own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::Command,
};

use hvbak_tests::{Lab, Run, Started, is_root, skip};

fn units() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/systemd")
}

fn present(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        skip(&format!("{program} is not installed"));
    }
    there
}

/// All unit files as they lie below a root, templates as instances, and what they start.
fn root_of_units() -> (tempfile::TempDir, Vec<String>) {
    let root = tempfile::tempdir().unwrap();
    let place = root.path().join("etc/systemd/system");
    fs::create_dir_all(&place).unwrap();
    let mut names = Vec::new();
    for entry in fs::read_dir(units()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !name.ends_with(".service") && !name.ends_with(".timer") {
            continue;
        }
        fs::copy(&path, place.join(&name)).unwrap();
        names.push(name.replace("@.", "@nightly."));
    }
    for program in ["usr/bin/hvbak", "etc/hvbak/on-failure"] {
        let path = root.path().join(program);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::copy("/bin/true", path).unwrap();
    }
    (root, names)
}

#[test]
fn units_are_valid_and_give_away_little() {
    if !present("systemd-analyze") {
        return;
    }
    let (root, names) = root_of_units();
    assert_eq!(names.len(), 11, "{names:?}");
    for name in names {
        let at = format!("--root={}", root.path().display());
        let run =
            Started::new(Command::new("systemd-analyze").args(["verify", "--man=no", &at, &name]))
                .wait();
        // Targets of the system are not below this root.
        let said = run.stderr.lines().filter(|l| l.contains("hvbak") && !l.contains("not found"));
        assert_eq!(said.count(), 0, "{run}");
        if !name.ends_with(".service") {
            continue;
        }
        let analyze = ["security", "--offline=true", "--threshold=30", "--no-pager", &at, &name];
        let run = Started::new(Command::new("systemd-analyze").args(analyze)).wait().exits(0);
        assert!(run.stdout.contains("Overall exposure level"), "{run}");
    }
}

#[test]
fn all_services_are_hardened_alike() {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(units()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "service") {
            let text = fs::read_to_string(&path).unwrap();
            let (_, hardening) = text.split_once("# Hardening\n").expect("a part on hardening");
            found.entry(hardening.to_owned()).or_insert_with(Vec::new).push(path);
        }
    }
    assert_eq!(found.len(), 1, "{:?}", found.values().collect::<Vec<_>>());
}

/// Names of system calls that the services' filter passes.
fn allowed() -> BTreeSet<String> {
    let set = |group: &str| -> BTreeSet<String> {
        let mut open = vec![group.to_owned()];
        let mut calls = BTreeSet::new();
        while let Some(group) = open.pop() {
            let said =
                Started::new(Command::new("systemd-analyze").args(["syscall-filter", &group]));
            for word in said.wait().exits(0).stdout.lines().skip(1).map(str::trim) {
                match word.strip_prefix('@') {
                    Some(_) => open.push(word.to_owned()),
                    None if word.starts_with('#') || word.is_empty() => {}
                    None => drop(calls.insert(word.to_owned())),
                }
            }
        }
        calls
    };
    let text = fs::read_to_string(units().join("hvbak-prune.service")).unwrap();
    let mut calls = BTreeSet::new();
    for line in text.lines().filter_map(|l| l.strip_prefix("SystemCallFilter=")) {
        for group in line.trim_start_matches('~').split(' ') {
            match line.starts_with('~') {
                false => calls.extend(set(group)),
                true => calls = &calls - &set(group),
            }
        }
    }
    assert!(calls.contains("read") && !calls.contains("chown") && !calls.contains("mount"));
    calls
}

#[test]
fn a_nights_work_asks_for_no_system_call_that_the_filter_refuses() {
    if !present("systemd-analyze") || !present("strace") {
        return;
    }
    let allowed = allowed();
    let lab = Lab::standard();
    for (at, args) in [
        &["backup", "--all"][..],
        &["backup", "--vm", "web1"],
        &["verify", "--all"],
        &["prune", "--keep-last", "1"],
        &["report"],
    ]
    .iter()
    .enumerate()
    {
        let log = lab.scratch(&format!("strace{at}"));
        let hvbak = lab.command(args);
        let mut strace = Command::new("strace");
        strace.arg("-f").arg("-qq").arg("-o").arg(&log).arg("--").arg(hvbak.get_program());
        strace.args(hvbak.get_args());
        for (name, value) in hvbak.get_envs() {
            match value {
                Some(value) => strace.env(name, value),
                None => strace.env_remove(name),
            };
        }
        Started::new(&mut strace).wait().exits(0);
        let text = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
        let calls: BTreeSet<String> = text
            .lines()
            .filter_map(|l| l.split_once(' ')?.1.trim_start().split_once('('))
            .map(|(name, _)| name.to_owned())
            .filter(|name| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
            .collect();
        assert!(calls.len() > 20, "{calls:?}");
        // execve is strace's start of the program, as systemd's is.
        let refused: Vec<_> = calls.difference(&allowed).filter(|c| *c != "execve").collect();
        assert!(refused.is_empty(), "{args:?}: {refused:?}");
    }
    lab.assert_clean();
}

/// The last datagram; an empty one is how a client tries whether somebody listens.
const END: &[u8] = b"END";

/// A datagram socket that is read as systemd reads its own: all the time, or senders would wait.
struct Listener(std::thread::JoinHandle<Vec<String>>, UnixDatagram);

impl Listener {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        let end = UnixDatagram::unbound().unwrap();
        end.connect(path).unwrap();
        let read = move || {
            let mut all = Vec::new();
            let mut buffer = vec![0; 256 << 10];
            while let Ok(count) = socket.recv(&mut buffer) {
                if &buffer[..count] == END {
                    break;
                }
                all.push(String::from_utf8_lossy(&buffer[..count]).into_owned());
            }
            all
        };
        Self(std::thread::spawn(read), end)
    }

    /// What came until now; the socket's file can then be bound again.
    fn heard(self, path: &Path) -> Vec<String> {
        self.1.send(END).unwrap();
        fs::remove_file(path).unwrap();
        self.0.join().unwrap()
    }
}

#[test]
fn systemd_is_told_when_it_is_ready_and_what_it_is_at() {
    let lab = Lab::standard();
    let path = lab.scratch("notify");
    let told = |args: &[&str], code| {
        let listener = Listener::at(&path);
        Started::new(lab.command(args).env("NOTIFY_SOCKET", &path)).wait().exits(code);
        listener.heard(&path)
    };
    let said = told(&["backup", "--vm", "web1"], 0);
    assert_eq!(said.first().map(String::as_str), Some("READY=1\n"), "{said:?}");
    for status in ["STATUS=web1: started\n", "STATUS=web1: done\n"] {
        assert!(said.iter().any(|m| m == status), "{status} is not in {said:?}");
    }
    // One message each: nothing that a peer said became a line of its own.
    assert!(said.iter().all(|m| m.lines().count() == 1), "{said:?}");
    // Ready comes before what can fail, or systemd would call a good end a broken promise.
    let said = told(&["backup", "--vm", "nobody"], 2);
    assert_eq!(
        said.first().map(String::as_str),
        Some(
            "READY=1
"
        ),
        "{said:?}"
    );
    lab.assert_clean();
}

/// Runs hvbak where `/run/systemd/journal/socket` is a socket of ours and stderr is said to be
/// the journal.
fn in_the_journal(lab: &Lab, dir: &Path, args: &[&str]) -> Run {
    let hvbak = lab.command(args);
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-c"]);
    unshare.arg(
        "set -e; mount -t tmpfs none /run; mkdir -p /run/systemd/journal; \
         mount --bind \"$1\" /run/systemd/journal; shift; \
         JOURNAL_STREAM=$(stat -Lc %d:%i /dev/stderr); export JOURNAL_STREAM; exec \"$@\"",
    );
    unshare.arg("sh").arg(dir).arg(hvbak.get_program()).args(hvbak.get_args());
    for (name, value) in hvbak.get_envs() {
        if let Some(value) = value {
            unshare.env(name, value);
        }
    }
    Started::new(&mut unshare).wait()
}

#[test]
fn lines_in_the_journal_say_which_vm_and_point_they_are_about() {
    if !is_root() {
        return skip("not root, so no /run of its own");
    }
    let lab = Lab::standard();
    let dir = lab.scratch("journal");
    fs::create_dir(&dir).unwrap();
    let path = dir.join("socket");
    let listener = Listener::at(&path);
    let run = in_the_journal(&lab, &dir, &["backup", "--vm", "web1"]).exits(0);
    assert_eq!(run.stderr, "", "told twice: {run}");
    let texts = listener.heard(&path);
    let done =
        texts.iter().find(|t| t.contains("web1: done")).unwrap_or_else(|| panic!("{texts:?}"));
    for field in ["HVBAK_JOB", "HVBAK_VM\n", "HVBAK_VM_ID", "HVBAK_POINT", "SYSLOG_IDENTIFIER"] {
        assert!(done.contains(field), "{field} is not in {done:?}");
    }
    assert!(
        texts.iter().any(|t| t.contains("HVBAK_DISK\n") && t.contains("web1_Disk1")),
        "{texts:?}"
    );
    // An error has the priority of one (3) and no fields of another line.
    let listener = Listener::at(&path);
    in_the_journal(&lab, &dir, &["backup", "--vm", "nobody"]).exits(2);
    let texts = listener.heard(&path);
    let error = texts.iter().find(|t| t.contains("error: ")).expect("an error in the journal");
    assert!(error.contains("PRIORITY\n") || error.contains("PRIORITY=3"), "{error:?}");
    assert!(!error.contains("HVBAK_VM"), "{error:?}");
    lab.assert_clean();
}

#[test]
fn each_point_has_one_share_and_damage_is_found_in_it() {
    let lab = Lab::standard();
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    let counts: Vec<u64> = (1..=3)
        .map(|at| {
            let run = lab.json(&["verify", "--all", "--share", &format!("{at}/3")]).exits(0);
            run.result()["points"].as_u64().unwrap()
        })
        .collect();
    assert_eq!(counts.iter().sum::<u64>(), 1, "{counts:?}");
    lab.json(&["verify", "--all", "--share", "1"]).exits(0);
    lab.hvbak(&["verify", "--all", "--share", "4/3"]).exits(2).says("no share 4");
    lab.hvbak(&["verify", "web1", "--share", "3"]).exits(2).says("cannot be used with");
}
