//! Snapshots and merges while a guest writes: every byte it was told is written is there
//! afterwards, and what a snapshot held is the same before and after its neighbour goes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod common;

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{ChildStdin, Command},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use common::{Kept, Lab, MIB, assert_same, run, wait};

const SIZE: u64 = 64 * MIB;

/// One NBD connection that writes until it is told to stop, and a raw file that gets the
/// same writes.
struct Writer {
    stop: Arc<AtomicBool>,
    writes: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(uri: &str, shadow: &Path) -> Self {
        let (stop, writes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let file = std::fs::OpenOptions::new().write(true).open(shadow).unwrap();
        let mut command = Command::new("qemu-io");
        let io = Kept::start(command.args(["-f", "raw", "--discard=unmap", uri]));
        let (seen, count) = (stop.clone(), writes.clone());
        let thread = thread::spawn(move || write(io, &file, &seen, &count));
        Self { stop, writes, thread: Some(thread) }
    }

    /// Waits until some more writes were acknowledged.
    fn advance(&self) {
        let from = self.writes.load(Ordering::SeqCst);
        wait("the writer", || {
            let thread = self.thread.as_ref().unwrap();
            assert!(!thread.is_finished(), "the writer ended");
            self.writes.load(Ordering::SeqCst) > from + 20
        });
    }

    fn finish(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Sends a command and waits for its answer; `write` answers with two lines.
fn command(to: &mut ChildStdin, from: &mut impl BufRead, line: &str, good: &str) {
    writeln!(to, "{line}").unwrap();
    to.flush().unwrap();
    let mut answer = String::new();
    loop {
        assert!(from.read_line(&mut answer).unwrap() > 0, "qemu-io ended: {answer}");
        assert!(!answer.contains("failed"), "{line}: {answer}");
        if answer.contains(good) {
            return;
        }
    }
}

fn write(mut io: Kept, shadow: &std::fs::File, stop: &AtomicBool, count: &AtomicU64) {
    let mut to = io.0.stdin.take().unwrap();
    let mut from = BufReader::new(io.0.stdout.take().unwrap());
    let mut x: u64 = 1;
    while !stop.load(Ordering::SeqCst) {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Off the clusters' borders, so that layers must be put together.
        let length = (1 + (x >> 20) % 64) * 4096;
        let offset = (x >> 33) % ((SIZE - length) / 512) * 512;
        if x.is_multiple_of(16) {
            let line = format!("write -z {offset} {length}");
            command(&mut to, &mut from, &line, "ops");
            shadow.write_all_at(&vec![0; length as usize], offset).unwrap();
        } else {
            let pattern = (x >> 50) as u8 | 1;
            let line = format!("write -P {pattern} {offset} {length}");
            command(&mut to, &mut from, &line, "ops");
            shadow.write_all_at(&vec![pattern; length as usize], offset).unwrap();
        }
        count.fetch_add(1, Ordering::SeqCst);
    }
    writeln!(to, "flush\nquit").unwrap();
    drop(to);
    let mut rest = String::new();
    from.read_to_string(&mut rest).unwrap();
    assert!(io.0.wait().unwrap().success() && !rest.contains("failed"), "{rest}");
}

fn volume(lab: &Lab, id: &str) -> (String, PathBuf) {
    let located = lab.locate("vm", "disk");
    let dir = Path::new(located["paths"][0].as_str().unwrap()).parent().unwrap().to_owned();
    let path = dir.join(id);
    (common::info(&path)["format"].as_str().unwrap().to_owned(), path)
}

fn flatten(lab: &Lab, id: &str, name: &str) -> PathBuf {
    let (format, path) = volume(lab, id);
    let out = lab.path(name);
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-U", "-f", &format, "-O", "raw"]).arg(path).arg(&out);
    run(&mut convert);
    out
}

fn story(format: &str, domain: &str) {
    let lab = Lab::up(Some(common::one_vm(true, format, SIZE, domain)), &["--hosts", "1"]);
    let disk = lab.vm("vm")["disks"][0].as_str().unwrap().to_owned();
    let shadow = lab.path("shadow.raw");
    std::fs::File::create(&shadow).unwrap().set_len(SIZE).unwrap();
    let base = lab.locate("vm", "disk")["volume"].as_str().unwrap().to_owned();
    let writer = Writer::start(lab.locate("vm", "disk")["image"].as_str().unwrap(), &shadow);
    writer.advance();
    let first = lab.snapshot("vm", "first");
    writer.advance();
    let second = lab.snapshot("vm", "second");
    writer.advance();
    let third = lab.snapshot("vm", "third");
    writer.advance();

    let held: Vec<PathBuf> = [&first, &second, &third]
        .iter()
        .enumerate()
        .map(|(n, s)| flatten(&lab, &lab.owned("vm", s, &disk), &format!("held{n}.raw")))
        .collect();
    // The writer wrote between them, or what follows would prove nothing.
    for pair in held.windows(2) {
        let mut compare = Command::new("qemu-img");
        compare.args(["compare", "-q", "-f", "raw", "-F", "raw"]).args(pair);
        assert_eq!(compare.status().unwrap().code(), Some(1));
    }

    // From below: the second takes over the base volume, the third stays as it was.
    let (second_was, third_was) = (lab.owned("vm", &second, &disk), lab.owned("vm", &third, &disk));
    lab.delete_snapshot("vm", &first);
    assert_eq!(lab.owned("vm", &second, &disk), base);
    assert_eq!(lab.owned("vm", &third, &disk), third_was);
    assert!(!volume_path(&lab, &second_was).exists());
    for (snapshot, held) in [(&second, &held[1]), (&third, &held[2])] {
        let (format, path) = volume(&lab, &lab.owned("vm", snapshot, &disk));
        assert_same((&format, &path), ("raw", held));
    }
    writer.advance();

    // From above: the active layer is committed into the third's volume and goes.
    let top_was = lab.locate("vm", "disk")["volume"].as_str().unwrap().to_owned();
    lab.delete_snapshot("vm", &third);
    assert_eq!(lab.locate("vm", "disk")["volume"], third_was.as_str());
    assert!(!volume_path(&lab, &top_was).exists());
    let (raw_or_not, path) = volume(&lab, &base);
    assert_same((&raw_or_not, &path), ("raw", &held[1]));
    writer.advance();

    // The last one: one volume is left, the one that was there first.
    lab.delete_snapshot("vm", &second);
    writer.advance();
    writer.finish();
    let located = lab.locate("vm", "disk");
    assert_eq!(located["chain"], serde_json::json!([base]));
    lab.guest("guest-read", "vm", "disk", &["--compare", shadow.to_str().unwrap()]);
    // And so it is on the storage, when the VM is off.
    let id = lab.vm("vm")["id"].as_str().unwrap().to_owned();
    let (status, answer) = lab.api("POST", &format!("/vms/{id}/stop"), Some("<action/>"));
    assert_eq!(status, 200, "{answer}");
    wait("down", || lab.vm("vm")["status"] == "down");
    let (format, path) = volume(&lab, &base);
    assert_same((&format, &path), ("raw", &shadow));
    if format == "qcow2" {
        run(Command::new("qemu-img").args(["check", "-q"]).arg(&path));
    }
}

fn volume_path(lab: &Lab, id: &str) -> PathBuf {
    let located = lab.locate("vm", "disk");
    Path::new(located["paths"][0].as_str().unwrap()).with_file_name(id)
}

#[test]
fn a_raw_disk_under_a_writer() {
    story("raw-sparse", "nfs1");
}

#[test]
fn a_qcow2_disk_under_a_writer() {
    story("cow", "gluster1");
}
