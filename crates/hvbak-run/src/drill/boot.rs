//! Boots a machine, watches it for a while, and says exactly what was seen.
//!
//! Three witnesses: the serial console, the text on the screen (read from the card's
//! memory), and whether the picture on the screen changes. The last one is told and proves
//! nothing: firmware draws, too.

use std::{
    fs::OpenOptions,
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use hvbak_repo::RunOutcome;
use nix::fcntl::OFlag;
use serde_json::json;
use tokio::{io::AsyncReadExt, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    child::{Start, last_line},
    console::{Console, Place, Stage},
    machine::{MONITOR, Machine},
    qmp::Monitor,
    scratch::{self, local},
};
use crate::error::{Result, RunError};

/// A text screen of PCs: 25 rows of 80 characters with a colour each.
const TEXT_AT: u64 = 0xb_8000;
const TEXT_LENGTH: u64 = 4000;
const LOOK: Duration = Duration::from_secs(1);
/// A picture of 4096 by 2160 dots.
const PICTURE_MAX: u64 = 32 << 20;
/// Bytes of the serial console that `--keep` keeps.
const LOG_MAX: usize = 8 << 20;

/// What it wrote is in temporary files.
const FULL: &str = "the guest had nearly filled the scratch directory's file system";

/// How the watching ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// A login prompt came.
    Prompt,
    TimeUp,
    /// It had filled the scratch place.
    Full,
    /// QEMU ended, with its code and last words.
    Ended {
        code: Option<i32>,
        words: String,
    },
}

/// What was seen of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub stage: Stage,
    pub place: Place,
    pub end: End,
    /// How often the picture was another one.
    pub pictures: usize,
    /// Whether the processor ran it, or it was emulated; `None`: nobody knows.
    pub kvm: Option<bool>,
}

impl Seen {
    /// QEMU failed before anything was recognised.
    pub fn is_broken_start(&self) -> bool {
        let failed = matches!(&self.end, End::Ended { code, .. } if *code != Some(0));
        failed && self.stage == Stage::Unknown
    }
}

/// What that means.
pub fn verdict(seen: &Seen, limit: Duration) -> (RunOutcome, String) {
    let seconds = limit.as_secs();
    let place = seen.place.words();
    let by = match seen.kvm {
        Some(true) => ", run by KVM",
        Some(false) => ", emulated",
        None => "",
    };
    match (&seen.stage, &seen.end) {
        (Stage::Login, _) => (RunOutcome::Done, format!("login prompt seen {place}{by}")),
        (Stage::Panic, _) => {
            (RunOutcome::Failed, format!("kernel started and panicked, seen {place}{by}"))
        }
        (Stage::NothingToBoot, _) => {
            (RunOutcome::Failed, format!("the firmware found nothing to boot, seen {place}"))
        }
        (Stage::Kernel, End::Full) => {
            (RunOutcome::Failed, format!("kernel started, seen {place}; then ended: {FULL}{by}"))
        }
        (Stage::Unknown, End::Full) => {
            (RunOutcome::Failed, format!("ended before anything was recognised: {FULL}{by}"))
        }
        (Stage::Kernel, End::Ended { code: Some(0), .. }) => (
            RunOutcome::Done,
            format!("kernel started, seen {place}; then it switched off or rebooted{by}"),
        ),
        (Stage::Kernel, End::Ended { words, .. }) => {
            (RunOutcome::Failed, format!("kernel started, then QEMU failed: {words}"))
        }
        (Stage::Kernel, _) => (
            RunOutcome::Done,
            format!("kernel started, seen {place}; no login prompt within {seconds} s{by}"),
        ),
        (Stage::Unknown, End::Ended { code: Some(0), .. }) => (
            RunOutcome::Failed,
            "it switched off or rebooted before anything was recognised".into(),
        ),
        (Stage::Unknown, End::Ended { words, .. }) => {
            (RunOutcome::Done, not_booted(&format!("QEMU failed: {words}")))
        }
        (Stage::Unknown, _) => (
            RunOutcome::Done,
            format!(
                "booted to something, nothing recognised within {seconds} s; the screen changed {} times{by}",
                seen.pictures
            ),
        ),
    }
}

/// The words for images that are proven and were not started.
pub fn not_booted(why: &str) -> String {
    format!("checked image, not booted: {why}")
}

/// Boots in a directory that holds the images. `log` lies in a directory of this process's
/// own.
pub async fn boot(
    qemu: &Path,
    machine: &Machine,
    start: &Start<'_>,
    limit: Duration,
    log: Option<PathBuf>,
    cancel: &CancellationToken,
) -> Result<Seen> {
    let mut running = start.start(qemu, &machine.arguments())?;
    let mut console = Console::default();
    let mut eyes = Eyes::new(start.dir);
    let (mut serial, mut words) = (vec![0; 16 << 10], vec![0; 4 << 10]);
    let (mut said, mut kept) = (Vec::new(), Vec::new());
    let (mut heard, mut talks, mut fresh) = (true, true, false);
    let until = Instant::now() + limit;
    let mut next = Instant::now() + LOOK;
    let mut filled = pin!(scratch::filled(start.dir, start.reserve));
    let end = loop {
        tokio::select! {
            read = running.stdout.read(&mut serial), if heard => match read {
                Ok(count @ 1..) => {
                    fresh = true;
                    console.serial(&serial[..count]);
                    let room = LOG_MAX.saturating_sub(kept.len()).min(count);
                    if log.is_some() {
                        kept.extend_from_slice(&serial[..room]);
                    }
                }
                _ => heard = false,
            },
            read = running.stderr.read(&mut words), if talks => match read {
                Ok(count @ 1..) if said.len() < words.len() => said.extend_from_slice(&words[..count]),
                Ok(1..) => {}
                _ => talks = false,
            },
            () = tokio::time::sleep_until(next.min(until)) => {
                if !std::mem::take(&mut fresh) {
                    console.rest();
                }
                tokio::select! {
                    () = eyes.look(&mut console) => {}
                    () = &mut filled => break Some(End::Full),
                }
                next = Instant::now() + LOOK;
            }
            () = &mut filled => break Some(End::Full),
            () = cancel.cancelled() => {
                running.end().await;
                return Err(RunError::Cancelled);
            }
        }
        if console.seen().0 == Stage::Login {
            break Some(End::Prompt);
        }
        if !heard && !talks {
            break None;
        }
        if Instant::now() >= until {
            break Some(End::TimeUp);
        }
    };
    let code = running.end().await;
    let said = last_line(&String::from_utf8_lossy(&said));
    let end = end.unwrap_or(End::Ended { code, words: said });
    if let Some(path) = log {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let file = options.custom_flags(OFlag::O_NOFOLLOW.bits()).open(&path);
        file.and_then(|mut file| file.write_all(&kept))
            .map_err(local(format!("write {}", path.display())))?;
    }
    let (stage, place) = console.seen();
    Ok(Seen { stage, place, end, pictures: eyes.pictures, kvm: eyes.kvm })
}

/// Looks at the screen through the monitor.
struct Eyes<'a> {
    dir: &'a Path,
    monitor: Option<Monitor>,
    last: Vec<u8>,
    pictures: usize,
    kvm: Option<bool>,
}

impl<'a> Eyes<'a> {
    fn new(dir: &'a Path) -> Self {
        Self { dir, monitor: None, last: Vec::new(), pictures: 0, kvm: None }
    }

    /// A look that fails has seen nothing.
    async fn look(&mut self, console: &mut Console) {
        if self.monitor.is_none() {
            self.monitor = Monitor::connect(&self.dir.join(MONITOR)).await;
        }
        let Some(monitor) = &mut self.monitor else { return };
        if self.kvm.is_none() {
            let answer = monitor.call("query-kvm", json!({})).await;
            self.kvm = answer.and_then(|a| a.get("enabled").and_then(|v| v.as_bool()));
        }
        let text = json!({ "val": TEXT_AT, "size": TEXT_LENGTH, "filename": "screen.text" });
        if monitor.call("pmemsave", text).await.is_some()
            && let Some(memory) = small(&self.dir.join("screen.text"), TEXT_LENGTH)
        {
            console.screen(&memory);
        }
        let picture = json!({ "filename": "screen.ppm" });
        if monitor.call("screendump", picture).await.is_some()
            && let Some(picture) = small(&self.dir.join("screen.ppm"), PICTURE_MAX)
            && picture != self.last
        {
            self.pictures += 1;
            self.last = picture;
        }
    }
}

/// A regular file that is no larger: the directory is QEMU's.
fn small(path: &Path, limit: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    scratch::open_foreign(path).ok()?.take(limit + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 <= limit).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_is_said_and_nothing_more() {
        let ended = |code| End::Ended { code: Some(code), words: "could not".into() };
        for (stage, end, outcome, text) in [
            (Stage::Login, End::Prompt, RunOutcome::Done, "login prompt seen on the screen"),
            (Stage::Kernel, End::TimeUp, RunOutcome::Done, "kernel started"),
            (Stage::Kernel, ended(0), RunOutcome::Done, "switched off or rebooted"),
            (Stage::Kernel, ended(1), RunOutcome::Failed, "QEMU failed: could not"),
            (Stage::Panic, End::TimeUp, RunOutcome::Failed, "panicked"),
            (Stage::NothingToBoot, End::TimeUp, RunOutcome::Failed, "nothing to boot"),
            (Stage::Unknown, End::TimeUp, RunOutcome::Done, "booted to something, nothing"),
            (Stage::Unknown, ended(0), RunOutcome::Failed, "before anything was recognised"),
            (Stage::Unknown, ended(1), RunOutcome::Done, "checked image, not booted: QEMU"),
            (Stage::Kernel, End::Full, RunOutcome::Failed, "nearly filled"),
            (Stage::Unknown, End::Full, RunOutcome::Failed, "ended before anything"),
            (Stage::Login, End::Full, RunOutcome::Done, "login prompt seen"),
        ] {
            let place = Place::Screen;
            let seen = Seen { stage, place, end, pictures: 3, kvm: Some(false) };
            let (said, words) = verdict(&seen, Duration::from_secs(9));
            assert!(said == outcome && words.contains(text), "{seen:?}: {words}");
        }
    }
}
