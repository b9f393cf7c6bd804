//! Progress bars for a person: one for each disk at work, one for the whole run below them.
//!
//! Invariant: nothing is drawn unless [`Bars::live`]; what is drawn is told in lines, too, when it
//! is done.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
};

use hvbak_types::DiskId;
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

const DISK: &str =
    "  {prefix:20!} {bar:24} {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} eta {eta} {msg}";
const RUN: &str = "  {prefix:20!} {bar:24} {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} eta {eta} all in {elapsed}";
const MERGE: &str = "  {prefix:20!} {bar:24} {percent:>3} % merged eta {eta}";

/// All bars of a command.
pub struct Bars {
    /// Progress goes to a person.
    pub live: bool,
    screen: MultiProgress,
    at_work: Mutex<AtWork>,
}

#[derive(Default)]
struct AtWork {
    disks: HashMap<DiskId, ProgressBar>,
    /// How far each disk is that was begun, in bytes as its guest counts them.
    done: HashMap<DiskId, u64>,
    /// Of the VM that is pruned.
    merge: Option<ProgressBar>,
    /// Of all disks of the run.
    run: Option<ProgressBar>,
}

impl AtWork {
    fn show_run(&self) {
        if let Some(run) = &self.run {
            run.set_position(self.done.values().fold(0, |sum, done| sum.saturating_add(*done)));
        }
    }
}

fn styled(bar: ProgressBar, template: &str, prefix: &str) -> ProgressBar {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.with_prefix(prefix.to_owned())
}

impl Bars {
    pub fn new(live: bool) -> Self {
        Self { live, screen: MultiProgress::new(), at_work: Mutex::default() }
    }

    /// Writes something while no bar is in its way.
    pub fn aside(&self, write: impl FnOnce()) {
        if self.live { self.screen.suspend(write) } else { write() }
    }

    fn at_work(&self) -> Option<MutexGuard<'_, AtWork>> {
        self.live.then(|| self.at_work.lock().ok()).flatten()
    }

    /// A run over several disks began; of one disk its own bar says everything.
    pub fn run(&self, total: u64) {
        let Some(mut at) = self.at_work() else { return };
        if let Some(before) = at.run.take() {
            before.finish_and_clear();
        }
        at.done.clear();
        at.run = Some(styled(self.screen.add(ProgressBar::new(total)), RUN, "the whole run"));
    }

    pub fn disk(&self, disk: DiskId, alias: &str, size: u64) {
        let Some(mut at) = self.at_work() else { return };
        let bar = ProgressBar::new(size);
        let bar = match &at.run {
            Some(run) => self.screen.insert_before(run, bar),
            None => self.screen.add(bar),
        };
        at.disks.insert(disk, styled(bar, DISK, alias));
    }

    pub fn disk_at(&self, disk: DiskId, done: u64, sent: u64) {
        let Some(mut at) = self.at_work() else { return };
        if let Some(bar) = at.disks.get(&disk) {
            bar.set_position(done);
            bar.set_message(format!("{} sent", HumanBytes(sent)));
        }
        at.done.insert(disk, done);
        at.show_run();
    }

    pub fn disk_done(&self, disk: DiskId) {
        let Some(mut at) = self.at_work() else { return };
        let Some(bar) = at.disks.remove(&disk) else { return };
        let whole = bar.length().unwrap_or_default();
        bar.finish_and_clear();
        at.done.insert(disk, whole);
        at.show_run();
        // The last disk ends the bar; what comes after it takes moments.
        let ended = at.run.as_ref().is_some_and(|run| Some(run.position()) >= run.length());
        if ended && let Some(run) = at.run.take() {
            run.finish_and_clear();
        }
    }

    pub fn merge_at(&self, name: &str, done: u64, total: u64) {
        let Some(mut at) = self.at_work() else { return };
        let bar = at
            .merge
            .get_or_insert_with(|| styled(self.screen.add(ProgressBar::new(total)), MERGE, name));
        bar.set_position(done);
    }

    pub fn merged(&self) {
        if let Some(bar) = self.at_work().and_then(|mut at| at.merge.take()) {
            bar.finish_and_clear();
        }
    }

    /// The command ends, well or badly.
    pub fn end(&self) {
        let Some(mut at) = self.at_work() else { return };
        let AtWork { disks, merge, run, .. } = &mut *at;
        for bar in disks.drain().map(|(_, bar)| bar).chain(merge.take()).chain(run.take()) {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(bars: &Bars) -> Option<u64> {
        bars.at_work.lock().unwrap().run.as_ref().map(ProgressBar::position)
    }

    #[test]
    fn the_run_is_as_far_as_its_disks_and_ends_with_the_last() {
        let bars = Bars::new(true);
        let (a, b) = (DiskId::random(), DiskId::random());
        bars.run(300);
        bars.disk(a, "a", 100);
        bars.disk(b, "b", 200);
        bars.disk_at(a, 40, 1);
        bars.disk_at(b, 50, 1);
        assert_eq!(position(&bars), Some(90));
        // Zeros at the end are passed without a word of progress.
        bars.disk_done(a);
        assert_eq!(position(&bars), Some(150));
        // Told twice is done once.
        bars.disk_done(a);
        bars.disk_done(b);
        assert_eq!(position(&bars), None);
        bars.run(10);
        assert_eq!(position(&bars), Some(0));
        bars.end();
        assert_eq!(position(&bars), None);
        let silent = Bars::new(false);
        silent.run(10);
        assert_eq!(position(&silent), None);
    }
}
