//! Samples to a table, JSON lines, and a verdict on each goal.
//!
//! A goal that was not measured is told as not measured, never as hit.

use std::collections::BTreeMap;

use serde_json::json;

use super::measure::Usage;

pub const CAT: &str = "ssh cat > file";
pub const CAT_LAYER: &str = "ssh cat of the layer > file";
pub const IMAGEIO: &str = "ovirt-imageio, TLS, qcow2, 4 workers";
pub const IMAGEIO_IN: &str = "ovirt-imageio upload, TLS";
pub const CAT_NULL: &str = "ssh cat > /dev/null";
pub const TRANSPORT: &str = "hvbak's SSH alone, 2 streams > /dev/null";
pub const LOWER: &str = "ssh cat, only the data (lower bound)";
pub const QEMU: &str = "qemu-img, NBD over ssh -L, qcow2";
pub const QEMU_ZSTD: &str = "qemu-img, NBD over ssh -L, qcow2 -c zstd";
pub const NBDCOPY: &str = "nbdcopy, NBD over ssh -L, raw";
pub const PUT: &str = "ssh 'cat > file' of the raw image";
pub const QEMU_IN: &str = "qemu-img to NBD over ssh -L";
pub const COPY_IN: &str = "nbdcopy to NBD over ssh -L";
pub const HVBAK: &str = "hvbak";
const MIB: f64 = 1_048_576.0;

/// A contest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    Backup,
    Restore,
    Chain,
    Layer,
    Dense,
    Small,
    Large,
    Streams,
    Plan,
}

impl Work {
    const ALL: [Self; 9] = [
        Self::Backup,
        Self::Restore,
        Self::Chain,
        Self::Layer,
        Self::Dense,
        Self::Small,
        Self::Large,
        Self::Streams,
        Self::Plan,
    ];

    const fn title(self) -> &'static str {
        match self {
            Self::Backup => "full backup of (a), published, digested, compressed",
            Self::Restore => "restore of (a) to a preallocated raw volume, read back",
            Self::Chain => "full backup of chain (b), a qcow2 base and its overlays",
            Self::Layer => "incremental of (b), the newest layer",
            Self::Dense => "full backup of a dense disk of half the size",
            Self::Small => "incremental of a small disk",
            Self::Large => "the same delta on a disk 25 times as large, 1 % of it",
            Self::Streams => "full backup of (a) through 16 streams",
            Self::Plan => "plan for 1000 VMs with 3000 disks",
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Restore => "restore",
            Self::Chain => "chain",
            Self::Layer => "layer",
            Self::Dense => "dense",
            Self::Small => "delta-small",
            Self::Large => "delta-large",
            Self::Streams => "streams",
            Self::Plan => "plan",
        }
    }
}

/// The design allows 0.24 of a disk of 4 GiB whose data `zstd -1` makes 930 MB of; how well
/// the data here can be compressed depends on what is installed.
const PACKED: f64 = 0.24 * 4_294_967_296.0 / 930e6;

/// One run of one contestant. Times in seconds, sizes in bytes.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    pub name: String,
    pub usage: Usage,
    /// Part of the wall time in which the engine worked.
    pub engine: f64,
    /// From the first request for data to the last byte in place.
    pub transfer: Option<f64>,
    /// From nothing to an open disk: login, worker pushed, chain walked, sessions.
    pub connect: Option<f64>,
    /// Payload that travelled.
    pub wire: Option<u64>,
    /// Length of what was made.
    pub stored: Option<u64>,
}

impl Sample {
    fn net(&self) -> f64 {
        self.usage.wall - self.engine
    }
}

/// All samples.
pub struct Report {
    json: bool,
    size: u64,
    /// Bytes of disk (a) that are not zero.
    pub data_bytes: u64,
    /// What `zstd -1` makes of them.
    pub data_zstd: u64,
    /// Length of the layer that the incremental of (b) reads.
    pub layer_bytes: u64,
    /// Bytes written before each of the two incrementals of disks of different size.
    pub delta_bytes: u64,
    /// Requests for the plan of 1000 VMs.
    pub plan_requests: Option<usize>,
    missing: Vec<&'static str>,
    /// Contestants in the order they first came, each with its runs.
    rows: BTreeMap<Work, Vec<(String, Vec<Sample>)>>,
}

impl Report {
    pub fn new(json: bool, size: u64) -> Self {
        Self {
            json,
            size,
            data_bytes: 0,
            data_zstd: 0,
            layer_bytes: 0,
            delta_bytes: 0,
            plan_requests: None,
            missing: Vec::new(),
            rows: BTreeMap::new(),
        }
    }

    /// A peer that could not be measured.
    pub fn missing(&mut self, name: &'static str) {
        self.missing.push(name);
    }

    /// Takes a sample.
    pub fn add(&mut self, work: Work, sample: Sample) {
        eprintln!("  {:44} {:7.2} s", sample.name, sample.net());
        if self.json {
            println!("{}", line("sample", work, &sample));
        }
        let rows = self.rows.entry(work).or_default();
        match rows.iter_mut().find(|row| row.0 == sample.name) {
            Some(row) => row.1.push(sample),
            None => rows.push((sample.name.clone(), vec![sample])),
        }
    }

    fn runs(&self, work: Work, name: &str) -> &[Sample] {
        let rows = self.rows.get(&work).map(Vec::as_slice).unwrap_or_default();
        rows.iter().find(|row| row.0 == name).map_or(&[], |row| &row.1)
    }

    fn median(&self, work: Work, of: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        median(self.runs(work, HVBAK).iter().filter_map(of))
    }

    /// Median of hvbak's time over a peer's, round by round.
    fn ratio(&self, work: Work, peer: &str, time: impl Fn(&Sample) -> f64) -> Option<f64> {
        let pairs = self.runs(work, HVBAK).iter().zip(self.runs(work, peer));
        median(pairs.map(|(ours, theirs)| time(ours) / theirs.usage.wall))
    }

    /// Prints everything.
    pub fn finish(&self) {
        let mut text = String::new();
        if self.data_zstd > 0 {
            let [disk, data, packed] =
                [self.size, self.data_bytes, self.data_zstd].map(|bytes| bytes >> 20);
            text = format!("disk (a): {disk} MiB, {data} MiB of data, {packed} MiB by zstd -1\n");
        }
        for work in Work::ALL {
            text.push_str(&self.table(work));
        }
        for name in &self.missing {
            text.push_str(&format!("\npeer {name}: not installed"));
        }
        text.push_str(&format!("\n\n{:62} {:>9} {:>9}\n", "goal", "measured", "limit"));
        for goal in self.goals() {
            text.push_str(&goal.line());
            if self.json {
                println!("{}", goal.json());
            }
        }
        if self.json {
            eprintln!("{text}");
        } else {
            println!("{text}");
        }
    }

    fn table(&self, work: Work) -> String {
        let Some(rows) = self.rows.get(&work) else { return String::new() };
        let runs = rows.first().map_or(0, |row| row.1.len());
        let mut text = format!(
            "\n{}; medians of {runs}\n{:44} {:>7} {:>7} {:>7} {:>8} {:>8} {:>7} {:>7} {:>8} {:>8}\n",
            work.title(),
            "",
            "s",
            "x",
            "engine",
            "cpu cli",
            "cpu srv",
            "wire",
            "stored",
            "rss cli",
            "rss srv",
        );
        for (name, samples) in rows {
            let mid = |of: &dyn Fn(&Sample) -> Option<f64>| median(samples.iter().filter_map(of));
            let show = |value: Option<f64>, digits: usize| {
                value.map_or("-".into(), |value| format!("{value:.digits$}"))
            };
            let mib = |value: Option<f64>| show(value.map(|v| v / MIB), 0);
            text.push_str(&format!(
                "{:44} {:>7} {:>7} {:>7} {:>8} {:>8} {:>7} {:>7} {:>8} {:>8}\n",
                name,
                show(mid(&|s| Some(s.net())), 2),
                show(self.ratio(work, name, Sample::net).filter(|_| name != HVBAK), 2),
                show(mid(&|s| (s.engine > 0.0).then_some(s.engine)), 2),
                show(mid(&|s| Some(s.usage.client_cpu)), 2),
                show(mid(&|s| Some(s.usage.server_cpu)), 2),
                mib(mid(&|s| s.wire.map(|v| v as f64))),
                mib(mid(&|s| s.stored.map(|v| v as f64))),
                mib(mid(&|s| Some(s.usage.client_peak as f64))),
                mib(mid(&|s| Some(s.usage.server_peak as f64))),
            ));
        }
        let transfer = self.median(work, |s| s.transfer).unwrap_or(0.0);
        let connect = self.median(work, |s| s.connect).unwrap_or(0.0);
        text.push_str(&format!(
            "  of hvbak: {transfer:.2} s transfer, {connect:.2} s to connect and open; {}\n",
            "`s` is without the engine's part, `x` is hvbak's `s` over the row's; MiB and seconds"
        ));
        text
    }

    /// Time of hvbak's SSH over that of OpenSSH's, nothing kept, round by round.
    fn transport(&self) -> Option<f64> {
        let pairs = self.runs(Work::Dense, TRANSPORT).iter().zip(self.runs(Work::Dense, CAT_NULL));
        median(pairs.map(|(ours, theirs)| ours.usage.wall / theirs.usage.wall))
    }

    /// Time of the large disk's incremental over that of the small one's, round by round.
    fn flat(&self) -> Option<f64> {
        let pairs = self.runs(Work::Large, HVBAK).iter().zip(self.runs(Work::Small, HVBAK));
        median(pairs.map(|(large, small)| large.net() / small.net()))
    }

    fn goals(&self) -> Vec<Goal> {
        use Work::{Backup, Chain, Large, Layer, Plan, Restore, Streams};
        let goal = |what: &'static str, value: Option<f64>, limit: f64| Goal { what, value, limit };
        let net = |work, peer| self.ratio(work, peer, Sample::net);
        let packed = |bytes: fn(&Sample) -> Option<u64>| {
            let ratio = |s: &Sample| Some(bytes(s)? as f64 / self.data_zstd as f64);
            self.median(Backup, ratio).filter(|_| self.data_zstd > 0)
        };
        let mib = |of: fn(&Usage) -> u64, work| {
            self.median(work, |s| Some(of(&s.usage) as f64)).map(|v| v / MIB)
        };
        vec![
            goal("backup / ssh cat", net(Backup, CAT), 0.40),
            goal("backup / ovirt-imageio", net(Backup, IMAGEIO), 0.45),
            goal("backup, compressed / qemu-img, uncompressed", net(Backup, QEMU), 0.80),
            goal("backup / qemu-img, zstd", net(Backup, QEMU_ZSTD), 0.45),
            goal("wire / zstd -1 of the data", packed(|s| s.wire), PACKED),
            goal("stored / zstd -1 of the data", packed(|s| s.stored), PACKED),
            goal("full of (b) / qemu-img, uncompressed", net(Chain, QEMU), 0.80),
            goal("incremental of (b) / ssh cat of the layer", net(Layer, CAT_LAYER), 1.0),
            goal("incremental of (b) / ovirt-imageio", net(Layer, IMAGEIO), 0.30),
            goal(
                "incremental of (b), wire / layer",
                self.median(Layer, |s| Some(s.wire? as f64 / self.layer_bytes as f64)),
                0.75,
            ),
            goal("dense, hvbak's SSH / ssh cat, both > /dev/null", self.transport(), 0.60),
            goal("restore, read back / ovirt-imageio", net(Restore, IMAGEIO_IN), 1.4),
            goal("restore, read back / ssh 'cat > file'", net(Restore, PUT), 0.45),
            goal("restore, read back / nbdcopy over ssh", net(Restore, COPY_IN), 1.1),
            goal(
                "coordinator's peak, backup, 2 streams, MiB",
                mib(|u| u.client_peak, Backup),
                80.0,
            ),
            goal("coordinator's peak, restore, MiB", mib(|u| u.client_peak, Restore), 80.0),
            goal("a worker's peak, backup, MiB", mib(|u| u.server_peak, Backup), 64.0),
            goal("a worker's peak, restore, MiB", mib(|u| u.server_peak, Restore), 64.0),
            goal("incremental, large disk / small disk, same delta", self.flat(), 1.3),
            goal(
                "incremental of the large disk, wire / written",
                self.median(Large, |s| Some(s.wire? as f64 / self.delta_bytes as f64)),
                1.05,
            ),
            goal(
                "incremental of the large disk, stored / wire",
                self.median(Large, |s| Some(s.stored? as f64 / s.wire? as f64)),
                1.05,
            ),
            goal("coordinator's peak, 16 streams, MiB", mib(|u| u.client_peak, Streams), 192.0),
            goal("a worker's peak, 16 streams, MiB", mib(|u| u.server_peak, Streams), 64.0),
            goal("plan for 1000 VMs, s", self.median(Plan, |s| Some(s.usage.wall)), 5.0),
            goal(
                "requests for it, per 100 VMs",
                self.plan_requests.map(|count| count as f64 / 10.0),
                20.0,
            ),
            goal("connect to open disk, worker pushed, s", self.median(Backup, |s| s.connect), 0.5),
        ]
    }
}

struct Goal {
    what: &'static str,
    value: Option<f64>,
    limit: f64,
}

impl Goal {
    fn verdict(&self) -> &'static str {
        match self.value {
            None => "not measured",
            Some(value) if value <= self.limit => "hit",
            Some(_) => "MISSED",
        }
    }

    fn line(&self) -> String {
        let value = self.value.map_or("-".into(), |value| format!("{value:.3}"));
        format!("{:62} {value:>9} {:>9.2}  {}\n", self.what, self.limit, self.verdict())
    }

    fn json(&self) -> serde_json::Value {
        json!({ "type": "goal", "goal": self.what, "measured": self.value, "limit": self.limit, "verdict": self.verdict() })
    }
}

fn line(kind: &str, work: Work, sample: &Sample) -> serde_json::Value {
    let usage = &sample.usage;
    json!({
        "type": kind, "work": work.word(), "name": sample.name,
        "wall_seconds": usage.wall, "engine_seconds": sample.engine,
        "transfer_seconds": sample.transfer, "connect_seconds": sample.connect,
        "client_cpu_seconds": usage.client_cpu, "server_cpu_seconds": usage.server_cpu,
        "client_peak_bytes": usage.client_peak, "server_peak_bytes": usage.server_peak,
        "wire_bytes": sample.wire, "stored_bytes": sample.stored,
    })
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(name: &str, wall: f64, engine: f64) -> Sample {
        let usage = Usage { wall, ..Usage::default() };
        Sample { name: name.into(), usage, engine, ..Sample::default() }
    }

    #[test]
    fn ratios_are_taken_within_a_round_and_without_the_engine() {
        let mut report = Report::new(false, 1 << 30);
        for (ours, theirs) in [(3.0, 4.0), (5.0, 16.0), (2.0, 2.0)] {
            report.add(Work::Backup, sample(HVBAK, ours, 1.0));
            report.add(Work::Backup, sample(CAT, theirs, 0.0));
        }
        assert_eq!(report.ratio(Work::Backup, CAT, Sample::net), Some(0.5));
        let goals = report.goals();
        assert_eq!(goals[0].verdict(), "MISSED");
        assert_eq!(goals[2].verdict(), "not measured");
    }
}
