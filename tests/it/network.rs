//! A cable that is pulled while disks are read or written: the host is in a network of its
//! own, and neither side is told.
//!
//! hvbak must notice by itself, say which host it was, publish nothing half, and undo the rest
//! when the host is there again.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use hvbak_tests::{Lab, Peers, Run, Started, small, wait_for};

/// One host behind a cable.
struct Site {
    lab: Lab,
    peers: Peers,
}

const LIMITED: &str = "rate_limit_mib = 2";
const KEEPALIVE: u64 = 2;
/// What the configuration promises: four keepalives; and the time that is spent on trying to
/// reach the host once more, on the engine, and on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(KEEPALIVE * 4 + 22);

impl Site {
    fn new() -> Option<Self> {
        let peers = Peers::new(&[])?;
        peers.up("hv", 21);
        let lab = Lab::bare(&small(), &["--hosts", "1", "--domains", "nfs"]);
        let limits = format!("[ssh]\nkeepalive_seconds = {KEEPALIVE}\nconnect_timeout_seconds = 3");
        lab.configure(|text| {
            let text = text.replace("[ssh]", &limits);
            format!("{text}\n[transfer]\n# \n")
        });
        peers.stand_in("hv", &lab);
        lab.fill_web1();
        Some(Self { lab, peers })
    }

    /// Pulls the cable and waits for the end of the command.
    #[track_caller]
    fn cut(&self, run: Started) -> Run {
        self.peers.run(&["link", "hv", "down"]);
        let began = Instant::now();
        let run = run.wait();
        assert!(began.elapsed() < LIMIT, "{:?}: {run}", began.elapsed());
        eprintln!("noticed and ended after {:?}: {run}", began.elapsed());
        run
    }

    /// Plugs the cable in; `hvbak cleanup` leaves nothing anywhere.
    #[track_caller]
    fn mend(&self, restored: &[&str]) {
        self.peers.run(&["link", "hv", "up"]);
        self.lab.hvbak(&["cleanup"]).exits(0);
        self.lab.assert_clean_but(restored);
        wait_for("the worker's end", || self.peers.left_on("hv").is_empty());
    }

    /// Makes transfers slow enough to be cut in two.
    fn slow(&self, slow: bool) {
        let (from, to) = if slow { ("# ", LIMITED) } else { (LIMITED, "# ") };
        self.lab.configure(|text| text.replace(from, to));
    }
}

/// Bytes that the files of a folder take.
fn space(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let of = |e: fs::DirEntry| match e.metadata() {
        Ok(m) if m.is_dir() => space(&e.path()),
        Ok(m) => m.blocks() * 512,
        Err(_) => 0,
    };
    entries.map(of).sum()
}

#[test]
fn a_cable_pulled_while_disks_are_read_ends_the_backup_and_loses_nothing() {
    let Some(site) = Site::new() else { return };
    let lab = &site.lab;
    let reference = lab.save("web1", "web1_Disk1");
    site.slow(true);
    let began = space(&lab.path("repository"));
    let midway = |lab: &Lab| space(&lab.path("repository")) > began + (2 << 20);
    let run = lab.start_until(&["backup", "--vm", "web1"], midway);
    let run = site.cut(run).exits(1);
    run.says("hv1").says("web1").says("keepalive");
    lab.hvbak(&["show", "web1"]).says("no");
    site.mend(&[]);
    site.slow(false);
    // The guest has what it had, and the next backup is as good as the first would have been.
    lab.same("web1", "web1_Disk1", &reference);
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    lab.hvbak(&["verify", "--all"]).exits(0);
}

#[test]
fn a_cable_pulled_while_disks_are_written_ends_the_restore_and_loses_nothing() {
    let Some(site) = Site::new() else { return };
    let lab = &site.lab;
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    site.slow(true);
    let began = space(&lab.path("storage"));
    let midway = |lab: &Lab| space(&lab.path("storage")) > began + (2 << 20);
    let run = lab.start_until(&["restore", "web1", "--name", "copy"], midway);
    let run = site.cut(run).exits(1);
    run.says("hv1");
    site.mend(&[]);
    site.slow(false);
    lab.hvbak(&["verify", "--all"]).exits(0);
    lab.hvbak(&["restore", "web1", "--name", "copy"]).exits(0);
    lab.same("copy", "web1_Disk1", &lab.save("web1", "web1_Disk1"));
    lab.assert_clean_but(&["copy"]);
}
