//! What a run tells systemd: ready, stopping, a line of status; and its words in the journal
//! with fields, so that `journalctl HVBAK_VM=web1` is the story of one VM.
//!
//! Outside of a service all of it does nothing. Invariant: no word of a peer can become a
//! message of its own to systemd, and nothing here can fail a run.

use std::{
    cell::RefCell,
    collections::HashMap,
    fs::File,
    os::{fd::AsFd, unix::fs::MetadataExt},
    sync::Mutex,
    time::{Duration, Instant},
};

use hvbak_run::Event;
use hvbak_types::{DiskId, VmId};
use sd_notify::NotifyState;

/// Where tracing's filter lets words for people through, whatever the level of the rest.
pub const TALK: &str = "hvbak::talk";

/// Disks report many times a second; a person looks once.
const PAUSE: Duration = Duration::from_secs(1);

/// What a line is about; fields of the journal, `HVBAK_` before each.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct About {
    vm: Option<String>,
    vm_id: Option<String>,
    point: Option<String>,
    disk: Option<String>,
    correlation: Option<String>,
}

thread_local! {
    /// Of the event that this thread tells; events are told without a pause.
    static ABOUT: RefCell<About> = RefCell::default();
}

#[derive(Default)]
struct State {
    job: Option<String>,
    names: HashMap<VmId, String>,
    disks: HashMap<DiskId, String>,
    shown: Option<Instant>,
}

/// The way to the service manager and its journal.
pub struct Service {
    /// Words go to the journal, with fields, instead of stderr.
    journal: bool,
    notify: bool,
    state: Mutex<State>,
}

impl Service {
    pub fn new(journal: bool) -> Self {
        let notify = std::env::var_os("NOTIFY_SOCKET").is_some();
        Self { journal, notify, state: Mutex::default() }
    }

    pub fn ready(&self) {
        self.tell(&[NotifyState::Ready]);
    }

    pub fn stopping(&self) {
        self.tell(&[NotifyState::Stopping, NotifyState::Status("stopping and undoing")]);
    }

    /// What `systemctl status` shows.
    pub fn status(&self, text: &str) {
        if self.notify {
            // A newline would begin another message, such as MAINPID=.
            let text: String =
                text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
            self.tell(&[NotifyState::Status(text.trim())]);
        }
    }

    fn tell(&self, state: &[NotifyState]) {
        if self.notify
            && let Err(error) = sd_notify::notify(state)
        {
            tracing::debug!(%error, "systemd does not listen");
        }
    }

    /// Runs what tells an event; lines that it writes carry the event's fields.
    pub fn during(&self, event: &Event, tell: impl FnOnce()) {
        if !self.journal && !self.notify {
            return tell();
        }
        let about = self.note(event);
        ABOUT.replace(about);
        tell();
        ABOUT.take();
    }

    /// Writes a line into the journal; false where it belongs on stderr.
    pub fn line(&self, text: &str) -> bool {
        if !self.journal {
            return false;
        }
        let About { vm, vm_id, point, disk, correlation } = ABOUT.with_borrow(Clone::clone);
        let job = self.state.lock().ok().and_then(|state| state.job.clone());
        macro_rules! talk {
            ($level:expr) => {
                tracing::event!(
                    target: TALK, $level, job, vm, vm_id, point, disk, correlation, "{}", text.trim()
                )
            };
        }
        match text.split(':').next() {
            Some("error") => talk!(tracing::Level::ERROR),
            Some("warning") => talk!(tracing::Level::WARN),
            _ => talk!(tracing::Level::INFO),
        }
        true
    }

    /// Remembers names, shows what is done, gives the fields.
    fn note(&self, event: &Event) -> About {
        let mut about = About::default();
        let Ok(mut state) = self.state.lock() else { return about };
        let state = &mut *state;
        let mut at = |state: &State, vm: &VmId, name: Option<&String>| {
            about.vm_id = Some(vm.to_string());
            about.vm = name.or_else(|| state.names.get(vm)).cloned();
        };
        let mut status = None;
        let due = state.shown.is_none_or(|shown| shown.elapsed() >= PAUSE);
        let percent = |done: u64, total: u64| u128::from(done) * 100 / u128::from(total).max(1);
        match event {
            Event::JobStarted { job, kind, .. } => {
                state.job = Some(job.to_string());
                status = Some((*kind).to_owned());
            }
            Event::VmStarted { vm, name, .. } => {
                at(state, vm, Some(name));
                state.names.insert(*vm, name.clone());
                status = Some(format!("{name}: started"));
            }
            Event::Phase { vm: Some(vm), text } => {
                at(state, vm, None);
                let name = state.names.get(vm).map_or("", String::as_str);
                status = Some(format!("{name}: {text}"));
            }
            Event::Phase { vm: None, text } => status = Some(text.clone()),
            Event::Warning { vm: Some(vm), .. } => at(state, vm, None),
            Event::DiskStarted { disk, alias, .. } => {
                state.disks.insert(*disk, alias.clone());
                about.disk = Some(alias.clone());
            }
            Event::DiskProgress { disk, done, total, .. } if due => {
                let alias = state.disks.get(disk).map_or("disk", String::as_str);
                status = Some(format!("{alias}: {} %", percent(*done, *total)));
            }
            Event::DiskDone { alias, .. } => about.disk = Some(alias.clone()),
            Event::VmSkipped { vm, name, .. } | Event::Pruned { vm, name, .. } => {
                at(state, vm, Some(name));
            }
            Event::MergeProgress { vm, name, done, total } => {
                at(state, vm, Some(name));
                if due {
                    status = Some(format!("{name}: {} % merged", percent(*done, *total)));
                }
            }
            Event::VmDone { vm, name, point, .. } => {
                at(state, vm, Some(name));
                about.point = point.as_ref().map(ToString::to_string);
                status = Some(format!("{name}: done"));
            }
            Event::VmFailed { vm, name, correlation, .. } => {
                at(state, vm, Some(name));
                about.correlation.clone_from(correlation);
                status = Some(format!("{name}: failed"));
            }
            Event::Verdict { vm, name, point, .. } => {
                at(state, vm, Some(name));
                about.point = Some(point.to_string());
            }
            _ => {}
        }
        if let Some(text) = status {
            state.shown = Some(Instant::now());
            self.status(&text);
        }
        about
    }
}

/// Whether stderr is the journal: systemd tells the device and inode of the stream it made.
pub fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().map(File::from);
    let facts = stderr.and_then(|file| file.metadata());
    facts.is_ok_and(|m| stream == format!("{}:{}", m.dev(), m.ino()))
}
