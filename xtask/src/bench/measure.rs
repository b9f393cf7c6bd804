//! Time, processor time of both sides, and memory of a command, out of /proc.
//!
//! The client is everything this program started; the server everything below the hosts'
//! SSH daemons and the exports named beside them. Processor time of ended processes is in
//! their parents' sums, so a difference of whole trees misses nothing.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

/// What a command cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Seconds.
    pub wall: f64,
    pub client_cpu: f64,
    pub server_cpu: f64,
    /// Most bytes resident of the command, and of any one process of the server.
    pub client_peak: u64,
    pub server_peak: u64,
}

/// A line of output and when it came, in seconds since the start.
pub type Line = (f64, String);

/// Runs a command that must succeed. Its stdout is given back by lines when `lines`, else
/// it stays as it was set.
pub fn run(command: &mut Command, servers: &[u32], lines: bool) -> Result<(Usage, Vec<Line>)> {
    if lines {
        command.stdout(Stdio::piped());
    }
    let mine = std::process::id();
    let client = || tree(mine, servers).saturating_sub(own(mine));
    let server = || servers.iter().map(|pid| tree(*pid, &[])).sum::<u64>();
    let (client_before, server_before) = (client(), server());
    let started = Instant::now();
    let mut child =
        command.spawn().with_context(|| format!("start {:?}", command.get_program()))?;
    let pid = child.id();
    let done = AtomicBool::new(false);
    let (client_peak, server_peak) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut heard = Vec::new();
    let (status, wall) = std::thread::scope(|scope| {
        scope.spawn(|| {
            // The kernel keeps the peaks, so a look now and then misses only what ends early;
            // looking is work too, and both processors are wanted.
            while !done.load(Ordering::Relaxed) {
                client_peak.fetch_max(peak(pid), Ordering::Relaxed);
                for below in servers.iter().flat_map(|pid| descendants(*pid)) {
                    server_peak.fetch_max(peak(below), Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let read = child.stdout.take().map_or(Ok(()), |out| {
            for line in BufReader::new(out).lines() {
                heard.push((started.elapsed().as_secs_f64(), line?));
            }
            Ok::<_, std::io::Error>(())
        });
        let status = child.wait();
        let wall = started.elapsed().as_secs_f64();
        done.store(true, Ordering::Relaxed);
        read.and(status).map(|status| (status, wall))
    })?;
    if !status.success() {
        let said = heard.iter().rev().take(3).rev().map(|l| l.1.as_str()).collect::<Vec<_>>();
        bail!("{command:?} failed: {status}\n{}", said.join("\n"));
    }
    // Daemons reap what belonged to the command a moment later.
    std::thread::sleep(Duration::from_millis(150));
    let per_second = ticks_per_second()?;
    let seconds = |after: u64, before: u64| after.saturating_sub(before) as f64 / per_second;
    let usage = Usage {
        wall,
        client_cpu: seconds(client(), client_before),
        server_cpu: seconds(server(), server_before),
        client_peak: client_peak.into_inner(),
        server_peak: server_peak.into_inner(),
    };
    Ok((usage, heard))
}

/// Clock ticks of a process, all below it, and all of theirs that have ended.
fn tree(pid: u32, skip: &[u32]) -> u64 {
    let below = children(pid).into_iter().filter(|c| !skip.contains(c)).map(|c| tree(c, skip));
    let below: u64 = below.sum();
    let own: u64 = (11..15).map(|field| stat(pid, field)).sum();
    own + below
}

/// Clock ticks of a process itself.
fn own(pid: u32) -> u64 {
    stat(pid, 11) + stat(pid, 12)
}

/// A number of /proc/PID/stat, counted behind the name: 11 utime, 12 stime, 13 and 14 the
/// same of children that were waited for.
fn stat(pid: u32, field: usize) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = text.rsplit_once(") ").map_or("", |r| r.1);
    rest.split(' ').nth(field).and_then(|f| f.parse().ok()).unwrap_or(0)
}

fn children(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(text.split_whitespace().filter_map(|c| c.parse::<u32>().ok()));
    }
    found
}

fn descendants(pid: u32) -> Vec<u32> {
    let mut found = children(pid);
    let mut at = 0;
    while let Some(next) = found.get(at) {
        let more = children(*next);
        found.extend(more);
        at += 1;
    }
    found
}

fn peak(pid: u32) -> u64 {
    kib(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default(), "VmHWM:")
}

/// A line `NAME  12345 kB` of a /proc file, in bytes.
fn kib(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib << 10)
}

fn ticks_per_second() -> Result<f64> {
    let out = Command::new("getconf").arg("CLK_TCK").output().context("start getconf")?;
    String::from_utf8_lossy(&out.stdout).trim().parse().context("CLK_TCK")
}

/// Bytes of memory that can be had.
pub fn free_memory() -> u64 {
    kib(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemAvailable:")
}

/// Bytes free on the file system of a directory.
pub fn free_space(dir: &Path) -> Result<u64> {
    let out = Command::new("df").args(["--output=avail", "-B1"]).arg(dir).output()?;
    ensure!(out.status.success(), "df {} failed", dir.display());
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    text.lines().last().unwrap_or("").trim().parse().context("the answer of df")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_and_memory_of_a_command_are_seen() {
        let mut command = Command::new("sh");
        command.args(["-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done"]);
        let (usage, lines) = run(&mut command, &[], true).unwrap();
        assert_eq!(lines.last().map(|l| l.1.as_str()), Some("done"));
        assert!(usage.client_cpu > 0.0 && usage.client_peak > 100_000, "{usage:?}");
    }

    #[test]
    fn a_command_that_fails_is_an_error() {
        assert!(run(Command::new("sh").args(["-c", "exit 3"]), &[], true).is_err());
    }
}
