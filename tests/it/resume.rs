//! Transfers that are cut in the middle: the next run goes on where they stopped, sends only
//! what is missing, and makes the point that the first one began, whatever the guest has
//! written since. What cannot be gone on with is discarded, and the backup starts anew.

use std::{
    fs,
    path::{Path, PathBuf},
};

use hvbak_tests::{
    Lab, Peers, Run, Started, Story, small,
    story::{Then, level},
    wait_for,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const WEB1: [&str; 2] = ["web1_Disk1", "web1_data"];
pub(crate) const LIMITED: &str = "rate_limit_mib = 4";
pub(crate) const BACKUP: [&str; 4] = ["--json", "backup", "--vm", "web1"];

/// A story whose transfers take ten seconds, of which every other is noted.
fn slow_story() -> Story {
    let story = Story::default();
    story.lab.write_noise("web1", "web1_Disk1", 8 << 20, 44 << 20);
    story.lab.configure(|text| format!("{text}\n[transfer]\n{LIMITED}\n"));
    story
}

pub(crate) fn set_speed(lab: &Lab, slow: bool) {
    let (from, to) = if slow { ("# fast", LIMITED) } else { (LIMITED, "# fast") };
    lab.configure(|text| text.replace(from, to));
}

/// Files of half-made points whose name ends so.
fn partial_files(lab: &Lab, end: &str) -> Vec<PathBuf> {
    let list = |dir: &Path| -> Vec<PathBuf> {
        fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect()
    };
    let points = list(&lab.path("repository/vms")).into_iter().flat_map(|vm| list(&vm));
    let hidden = points.filter(|p| p.to_string_lossy().contains("/.partial-"));
    hidden.flat_map(|p| list(&p)).filter(|f| f.to_string_lossy().ends_with(end)).collect()
}

/// Bytes of the logs of disks that are being written; 56 for a cluster.
fn logged(lab: &Lab) -> u64 {
    let logs = partial_files(lab, ".progress");
    logs.iter().filter_map(|f| fs::metadata(f).ok()).map(|m| m.len()).sum()
}

/// The moment in which something of the disk that is read now is on stable storage.
pub(crate) fn midway(lab: &Lab) -> bool {
    logged(lab) > 5000
}

/// Bytes that were sent for disks, and bytes of disks that were there already.
pub(crate) fn sent(run: &Run) -> (u64, u64) {
    let sum = |kind: &str, key: &str| -> u64 {
        run.of(kind).iter().filter_map(|event| event[key].as_u64()).sum()
    };
    (sum("disk-done", "payload_bytes"), sum("disk-started", "resumed_bytes"))
}

/// The processes on the hosts of a lab that run hvbak's worker.
fn workers(lab: &Lab) -> Vec<i32> {
    let hosts = lab.path("hosts");
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let runs = |entry: &fs::DirEntry| {
        fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe.starts_with(&hosts))
    };
    processes.filter(runs).filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// The sshd process that serves a worker.
fn sshd_of(worker: i32) -> Option<i32> {
    let mut pid = worker;
    for _ in 0..8 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let of = |key: &str| status.lines().find_map(|l| l.strip_prefix(key)).map(str::trim);
        if of("Name:")?.starts_with("sshd") {
            return Some(pid);
        }
        pid = of("PPid:")?.parse().ok()?;
    }
    None
}

fn kill_all(pids: &[i32]) {
    assert!(!pids.is_empty(), "nothing to kill");
    for pid in pids {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
}

/// How a transfer comes to its end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Blow {
    Worker,
    Sshd,
    Hvbak,
}

/// Starts a backup and strikes in the middle of its transfer.
#[track_caller]
pub(crate) fn strike(lab: &Lab, blow: Blow) -> Run {
    strike_when(lab, blow, midway)
}

#[track_caller]
fn strike_when(lab: &Lab, blow: Blow, reached: impl Fn(&Lab) -> bool) -> Run {
    let started = lab.start_until(&BACKUP, reached);
    let found = workers(lab);
    match blow {
        Blow::Worker => kill_all(&found),
        Blow::Sshd => kill_all(&found.iter().filter_map(|w| sshd_of(*w)).collect::<Vec<_>>()),
        Blow::Hvbak => started.signal(Signal::SIGKILL),
    }
    let run = started.wait();
    if blow == Blow::Hvbak {
        assert_eq!(run.code, 128 + 9, "{run}");
        // Its workers leave when they are not heard any more.
        wait_for("the workers' end", || workers(lab).is_empty());
        return run;
    }
    let run = run.exits(1);
    run.says("web1").says("is kept").says("hvbak cleanup")
}

/// The next backup, which must go on and whose point is what `disks` were.
#[track_caller]
pub(crate) fn goes_on(story: &mut Story, disks: Vec<(&'static str, PathBuf)>) -> (Run, Value) {
    let snapshots = story.lab.own_snapshots("web1");
    let run = story.run("auto").exits(0);
    let point = run.result()["done"][0]["point"].as_str().expect("a point").to_owned();
    story.then.push(Then { point: point.clone(), disks });
    let (_, there) = sent(&run);
    assert!(there > 0, "nothing was there: {run}");
    let kept = story.lab.own_snapshots("web1");
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert!(snapshots.contains(&kept[0]), "another snapshot was made: {kept:?}, {snapshots:?}");
    assert!(kept[0].ends_with(&point), "{kept:?}, {point}");
    let manifest = story.manifest(&point);
    assert!(manifest["warnings"].to_string().contains("was cut and went on"), "{manifest:#}");
    (run, manifest)
}

/// The next backup, which must begin from the beginning and say why.
#[track_caller]
pub(crate) fn starts_anew(story: &mut Story, why: &str) -> Value {
    let manifest = story.backup("auto");
    assert!(manifest["warnings"].to_string().contains(why), "{why}: {manifest:#}");
    assert!(!manifest["warnings"].to_string().contains("went on"), "{manifest:#}");
    manifest
}

/// The guest writes what must not get into the point.
pub(crate) fn write_after(lab: &Lab) {
    lab.write_noise("web1", "web1_Disk1", 20 << 20, 1 << 20);
    lab.write("web1", "web1_data", 40 << 20, 1 << 20, 0x77);
}

#[test]
fn a_transfer_cut_by_a_killed_worker_or_sshd_goes_on_and_sends_only_the_rest() {
    for blow in [Blow::Worker, Blow::Sshd] {
        let mut story = slow_story();
        let disks = story.remember(&WEB1);
        strike(&story.lab, blow);
        let snapshots = story.lab.own_snapshots("web1");
        assert_eq!(snapshots.len(), 1, "{snapshots:?}");
        set_speed(&story.lab, false);
        write_after(&story.lab);
        let dry = story.lab.hvbak(&["backup", "--vm", "web1", "--dry-run"]).exits(0);
        dry.says("continues the transfer of").says("are there");
        let (run, manifest) = goes_on(&mut story, disks);
        assert_eq!(manifest["level"], "full");
        let (rest, there) = sent(&run);
        let whole = sent(&story.run("full").exits(0)).0;
        assert!(rest < whole * 3 / 4 && there > 0, "{blow:?}: {rest} of {whole}, {there}");
        eprintln!("{blow:?}: {rest} of {whole} bytes were sent, {there} were there");
        story.lab.hvbak(&["cleanup"]).exits(0);
        story.end();
    }
}

#[test]
fn a_killed_coordinator_is_followed_by_one_that_goes_on_twice() {
    let mut story = slow_story();
    let disks = story.remember(&WEB1);
    strike(&story.lab, Blow::Hvbak);
    let first = logged(&story.lab);
    eprintln!("noted by the first run: {first} bytes");
    write_after(&story.lab);
    // Cut again in the middle of what was missing.
    strike_when(&story.lab, Blow::Hvbak, |lab| logged(lab) > first + 2000);
    set_speed(&story.lab, false);
    let (run, _) = goes_on(&mut story, disks);
    let (rest, _) = sent(&run);
    let whole = sent(&story.run("full").exits(0)).0;
    assert!(rest < whole * 3 / 4, "{rest} of {whole}");
    // The dead runs' workers.
    story.lab.hvbak(&["cleanup"]).exits(0);
    story.end();
}

#[test]
fn an_incremental_that_was_cut_goes_on_between_its_two_snapshots() {
    let mut story = slow_story();
    set_speed(&story.lab, false);
    let full = story.backup("auto");
    set_speed(&story.lab, true);
    story.lab.write_noise("web1", "web1_Disk1", 9 << 20, 43 << 20);
    // Zeros over what the full holds.
    story.lab.write("web1", "web1_Disk1", 22 << 20, 1 << 20, 0);
    story.lab.write_noise("web1", "web1_data", 20 << 20, 1 << 20);
    let disks = story.remember(&WEB1);
    strike(&story.lab, Blow::Sshd);
    assert_eq!(story.lab.own_snapshots("web1").len(), 2);
    write_after(&story.lab);
    set_speed(&story.lab, false);
    let (run, manifest) = goes_on(&mut story, disks);
    assert_eq!(level(&manifest, "web1_Disk1").0, "incremental");
    assert_eq!(manifest["parent"], full["point"]);
    let (rest, there) = sent(&run);
    assert!(rest < 36 << 20 && there > 4 << 20, "{rest} {there}");
    // And the next one stands on it.
    let next = story.backup("auto");
    assert_eq!(level(&next, "web1_Disk1").0, "incremental");
    story.lab.hvbak(&["cleanup"]).exits(0);
    story.end();
    story.restore_last();
}

#[test]
fn a_disk_that_was_whole_is_not_sent_again() {
    let mut story = slow_story();
    story.lab.write_noise("web1", "web1_data", 8 << 20, 24 << 20);
    let disks = story.remember(&WEB1);
    strike_when(&story.lab, Blow::Worker, |lab| {
        !partial_files(lab, ".done").is_empty() && midway(lab)
    });
    write_after(&story.lab);
    set_speed(&story.lab, false);
    let (run, _) = goes_on(&mut story, disks);
    let done = run.of("disk-done");
    let payload = |alias: &str| {
        done.iter().find(|d| d["alias"] == alias).and_then(|d| d["payload_bytes"].as_u64())
    };
    let whole = story.lab.disk(WEB1[0]);
    assert!(done.iter().any(|d| d["payload_bytes"] == 0), "{done:?} {whole}");
    assert!(WEB1.iter().all(|alias| payload(alias).is_some()), "{done:?}");
    story.lab.hvbak(&["cleanup"]).exits(0);
    story.end();
}

#[test]
fn what_was_tampered_with_in_a_half_made_image_is_read_again() {
    let mut story = slow_story();
    let disks = story.remember(&WEB1);
    strike(&story.lab, Blow::Worker);
    let log = partial_files(&story.lab, ".progress").remove(0);
    let name = log.file_name().expect("a name").to_string_lossy().replace(".progress", ".qcow2");
    let image = log.with_file_name(name.trim_start_matches('.'));
    let mut bytes = fs::read(&image).expect("the image");
    // Noise in the second quarter, and the end cut off.
    let quarter = bytes.len() / 4;
    bytes[quarter..quarter + 150_000].fill(0x3c);
    bytes.truncate(quarter * 3);
    fs::write(&image, bytes).expect("the image");
    set_speed(&story.lab, false);
    let (run, _) = goes_on(&mut story, disks);
    run.says("are damaged and are read again");
    story.lab.hvbak(&["cleanup"]).exits(0);
    story.end();
}

#[test]
fn without_its_snapshot_or_with_another_chain_the_backup_starts_anew() {
    // The snapshot of the half-made point is deleted by hand.
    let mut story = slow_story();
    strike(&story.lab, Blow::Hvbak);
    let own = story.lab.own_snapshots("web1");
    story.lab.delete_snapshot("web1", &own[0]);
    set_speed(&story.lab, false);
    starts_anew(&mut story, "somebody deleted it");
    story.lab.hvbak(&["cleanup"]).exits(0);
    story.end();
    // A layer below it is merged.
    let mut story = slow_story();
    for theirs in ["one", "two"] {
        story.lab.foreign_snapshot("web1", theirs);
        story.lab.write_noise("web1", "web1_Disk1", 30 << 20, 3 << 20);
    }
    strike(&story.lab, Blow::Worker);
    story.lab.delete_snapshot("web1", "one");
    set_speed(&story.lab, false);
    starts_anew(&mut story, "changed");
    story.lab.hvbak(&["cleanup"]).exits(0);
    story.end();
}

#[test]
fn a_failed_deletion_of_its_snapshot_makes_the_backup_start_anew() {
    let mut story = slow_story();
    strike(&story.lab, Blow::Worker);
    write_after(&story.lab);
    let own = story.lab.own_snapshots("web1");
    story.lab.delete_snapshot_in_vain("web1", &own[0]);
    set_speed(&story.lab, false);
    let manifest = starts_anew(&mut story, "touched by somebody");
    assert_ne!(story.lab.own_snapshots("web1"), own, "{manifest:#}");
    story.lab.hvbak(&["cleanup"]).exits(0);
    story.end();
}

#[test]
fn a_full_that_is_asked_for_is_a_new_one() {
    let mut story = slow_story();
    strike(&story.lab, Blow::Worker);
    set_speed(&story.lab, false);
    let dry = ["backup", "--vm", "web1", "--level", "full", "--dry-run"];
    story.lab.hvbak(&dry).exits(0).says("a full is asked for");
    write_after(&story.lab);
    let manifest = story.backup("full");
    assert!(manifest["warnings"].to_string().contains("a full is asked for"), "{manifest:#}");
    story.lab.hvbak(&["cleanup"]).exits(0);
    story.end();
}

#[test]
fn cleanup_after_a_cut_leaves_nothing_and_after_a_continuation_takes_nothing() {
    let mut story = slow_story();
    for blow in [Blow::Worker, Blow::Hvbak] {
        strike(&story.lab, blow);
        story.lab.hvbak(&["cleanup"]).exits(0);
        story.lab.assert_clean();
    }
    let disks = story.remember(&WEB1);
    strike(&story.lab, Blow::Hvbak);
    // While the second run is at work, somebody cleans up.
    let first = logged(&story.lab);
    let second = story.lab.start_until(&BACKUP, |lab| logged(lab) > first + 2000);
    story.lab.hvbak(&["cleanup"]);
    let run = second.wait().exits(0);
    assert!(sent(&run).1 > 0, "{run}");
    let point = run.result()["done"][0]["point"].as_str().expect("a point").to_owned();
    story.then.push(Then { point, disks });
    story.lab.hvbak(&["cleanup"]).exits(0);
    assert_eq!(story.lab.own_snapshots("web1").len(), 1);
    set_speed(&story.lab, false);
    let next = story.backup("auto");
    assert_eq!(level(&next, "web1_Disk1").0, "incremental");
    story.end();
}

#[test]
fn an_interrupted_continuation_leaves_nothing() {
    let story = slow_story();
    strike(&story.lab, Blow::Hvbak);
    let first = logged(&story.lab);
    let second: Started = story.lab.start_until(&BACKUP, |lab| logged(lab) > first + 1000);
    second.signal(Signal::SIGINT);
    second.wait().exits(130);
    story.lab.hvbak(&["cleanup"]).exits(0);
    story.lab.assert_clean();
}

#[test]
fn a_cable_pulled_twice_is_survived_by_the_third_run() {
    let Some(peers) = Peers::new(&[]) else { return };
    peers.up("hv", 21);
    let lab = Lab::bare(&small(), &["--hosts", "1", "--domains", "nfs"]);
    lab.configure(|text| {
        let limits = "[ssh]\nkeepalive_seconds = 2\nconnect_timeout_seconds = 3";
        format!("{}\n[transfer]\n{LIMITED}\n", text.replace("[ssh]", limits))
    });
    peers.stand_in("hv", &lab);
    let mut story = Story::of(lab);
    story.lab.write_noise("web1", "web1_Disk1", 8 << 20, 44 << 20);
    let disks = story.remember(&WEB1);
    let mut before = 5000;
    for _ in 0..2 {
        let run = story.lab.start_until(&BACKUP, |lab| logged(lab) > before);
        peers.run(&["link", "hv", "down"]);
        run.wait().exits(1).says("is kept");
        // As long as the host is away, nothing changes.
        story.lab.hvbak(&BACKUP).exits(1);
        assert_eq!(story.lab.own_snapshots("web1").len(), 1);
        peers.run(&["link", "hv", "up"]);
        before = logged(&story.lab) + 1500;
        write_after(&story.lab);
    }
    set_speed(&story.lab, false);
    let (run, _) = goes_on(&mut story, disks);
    let (rest, _) = sent(&run);
    let whole = sent(&story.run("full").exits(0)).0;
    assert!(rest < whole * 3 / 4, "{rest} of {whole}");
    story.lab.hvbak(&["cleanup"]).exits(0);
    wait_for("the worker's end", || peers.left_on("hv").is_empty());
    story.end();
}
