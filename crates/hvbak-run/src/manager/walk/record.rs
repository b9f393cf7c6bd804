//! Where a walk is, in the repository: read, compared with what is asked for, written before
//! anything is done.
//!
//! Invariant: what another walk has begun is not taken for this one's.

use std::sync::Arc;

use hvbak_manager::sequence::{Archive, State, Step};
use hvbak_repo::{ManagerName, Repository, WalkLock, WalkRecord};
use jiff::Timestamp;

use super::{WalkContext, WalkOptions, look};
use crate::error::{self, Result, RunError};

/// The open walk of a manager, or none.
pub struct Record {
    repository: Arc<Repository>,
    lock: WalkLock,
    /// Why it cannot be read: only a new beginning helps.
    damaged: Option<hvbak_repo::Error>,
    record: Option<WalkRecord>,
    states: Vec<State>,
}

fn state_of(word: &str) -> Option<State> {
    serde_json::from_value(word.into()).ok()
}

fn word_of(state: State) -> String {
    let word = serde_json::to_value(state).ok();
    word.and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}

impl Record {
    /// Holds the walk of a manager and reads it.
    pub fn open(context: &WalkContext) -> Result<Self> {
        let repository = context.repository.clone();
        let lock = repository.lock_walk(&context.name, context.job);
        let lock = lock.map_err(error::repository("walk"))?;
        let (record, damaged) = match repository.walk(&context.name) {
            Ok(record) => (record, None),
            Err(cause) => (None, Some(cause)),
        };
        Ok(Self { repository, lock, damaged, record, states: Vec::new() })
    }

    /// Compares an open walk with what is asked for, or begins one. The steps come later.
    pub async fn begin(&mut self, context: &WalkContext, options: &WalkOptions) -> Result<()> {
        if let Some(cause) = self.damaged.take() {
            return Err(error::repository("read how far the walk is")(cause));
        }
        let Some(record) = &mut self.record else {
            self.begin_new(options);
            return Ok(());
        };
        let sequence = options.sequence.word();
        if let (Some(first), Some(other)) = (&record.host, &options.host)
            && first != other
            && record.sequence == sequence
        {
            let why = match look::speaks(context, first).await? {
                Ok(()) => return Err(RunError::WalkHostThere { host: first.clone() }),
                Err(why) => why,
            };
            if let Err(why) = look::speaks(context, other).await? {
                return Err(RunError::WalkHostSilent { host: other.clone(), why });
            }
            context.warn(format!("host {first} is gone ({why}): {other} is asked instead"));
            record.gone_hosts.push(first.clone());
            record.host = Some(other.clone());
        }
        let other = |what: &str, theirs: &Option<String>| RunError::WalkOther {
            sequence: record.sequence.clone(),
            what: format!("{what} {}", theirs.as_deref().unwrap_or("none")),
        };
        if record.sequence != sequence {
            return Err(other("sequence", &Some(record.sequence.clone())));
        }
        for (what, theirs, ours) in
            [("--host", &record.host, &options.host), ("--to", &record.to, &options.to)]
        {
            if theirs != ours {
                return Err(other(what, theirs));
            }
        }
        if options.archive.is_some() && record.archive != options.archive {
            if !options.sequence.makes_archive() || record.archive.is_some() {
                return Err(other("--archive", &record.archive));
            }
            if let Some(record) = &mut self.record {
                record.archive.clone_from(&options.archive);
                record.engine = None;
            }
        }
        Ok(())
    }

    fn begin_new(&mut self, options: &WalkOptions) {
        let mut record = WalkRecord::begin(options.sequence.word(), []);
        record.host.clone_from(&options.host);
        record.to.clone_from(&options.to);
        let newest = options.newest.clone().filter(|_| !options.sequence.makes_archive());
        record.archive = options.archive.clone().or(newest);
        self.record = Some(record);
    }

    /// Takes the steps' names; they must be those that the record knows.
    pub fn fits(&mut self, steps: &[Step]) -> Result<()> {
        let Some(record) = &mut self.record else { return Ok(()) };
        if record.steps.is_empty() {
            let names = steps.iter().map(|step| step.name.to_owned());
            record.steps = WalkRecord::begin(&record.sequence, names).steps;
        }
        let same = record.steps.len() == steps.len()
            && record.steps.iter().zip(steps).all(|(ours, step)| ours.name == step.name);
        let states: Option<Vec<_>> = record.steps.iter().map(|one| state_of(&one.state)).collect();
        match states.filter(|_| same) {
            Some(states) => self.states = states,
            None => {
                return Err(RunError::WalkOther {
                    sequence: record.sequence.clone(),
                    what: format!("steps of hvbak {}", record.hvbak),
                });
            }
        }
        self.write()
    }

    pub fn states(&self) -> &[State] {
        &self.states
    }

    /// When a step came to its state.
    pub fn at(&self, at: usize) -> Option<Timestamp> {
        self.record.as_ref().and_then(|record| record.steps.get(at)?.at)
    }

    /// Notes a step's state.
    pub fn set(&mut self, at: usize, state: State) -> Result<()> {
        let mut states = self.states.clone();
        states[at] = state;
        self.set_all(states)
    }

    /// Notes all of them.
    pub fn set_all(&mut self, states: Vec<State>) -> Result<()> {
        if let Some(record) = &mut self.record {
            for ((step, old), new) in record.steps.iter_mut().zip(&self.states).zip(&states) {
                if old != new {
                    step.witnessed &= new.is_over();
                    step.state = word_of(*new);
                    step.at = Some(Timestamp::now());
                }
            }
        }
        self.states = states;
        self.write()
    }

    /// Notes with the step's next state that a person has answered for it.
    pub fn witness(&mut self, at: usize) {
        if let Some(step) = self.record.as_mut().and_then(|record| record.steps.get_mut(at)) {
            step.witnessed = true;
        }
    }

    pub fn is_witnessed(&self, at: usize) -> bool {
        let step = self.record.as_ref().and_then(|record| record.steps.get(at));
        step.is_some_and(|step| step.witnessed)
    }

    /// Notes the archive that a step has made.
    pub fn set_archive(&mut self, title: String) -> Result<()> {
        if let Some(record) = &mut self.record {
            (record.archive, record.engine) = (Some(title), None);
        }
        self.write()
    }

    /// Notes the engine's name within the archive.
    pub fn set_engine(&mut self, name: &ManagerName) -> Result<()> {
        if let Some(record) = &mut self.record {
            record.engine = Some(name.to_string());
        }
        self.write()
    }

    /// The engine's name within the archive, where it was asked for.
    pub fn engine(&self) -> Option<ManagerName> {
        self.record.as_ref()?.engine.as_ref()?.parse().ok()
    }

    /// The archive, compared with nothing yet.
    pub fn archive(&self, repository: &Repository) -> Result<Option<Archive>> {
        let Some(title) = self.record.as_ref().and_then(|record| record.archive.as_ref()) else {
            return Ok(None);
        };
        let point = repository.find_manager_point(title);
        let point = point.map_err(error::repository("find the archive"))?;
        let whole = |scope: &str| point.manifest.scopes.iter().any(|one| one == scope);
        Ok(point.manifest.plain().filter(|_| whole("files") && whole("db")).map(|plain| Archive {
            title: point.title(),
            path: point.archive_path().display().to_string(),
            sha256: plain.sha256.to_string(),
            recipients: point.manifest.recipients().to_vec(),
            version: point.manifest.version.clone(),
        }))
    }

    /// Whether one of these was begun, by an earlier walk.
    pub fn has_begun(&self, names: &[&str]) -> bool {
        let steps = self.record.iter().flat_map(|record| &record.steps);
        let mut begun = steps.filter(|step| !["open", "shown"].contains(&step.state.as_str()));
        begun.any(|step| names.contains(&step.name.as_str()))
    }

    /// The same, and also when the record cannot be read.
    pub fn may_have_begun(&self, names: &[&str]) -> bool {
        self.damaged.is_some() || self.has_begun(names)
    }

    /// The host that an earlier walk has left copies on.
    pub fn host_with_copies(&self) -> Option<String> {
        let swept = self.record.iter().flat_map(|record| &record.steps);
        let swept = swept.filter(|step| step.name == "shred").any(|step| step.state == "done");
        if swept || !self.has_begun(&["copy", "answers"]) {
            return None;
        }
        self.record.as_ref().and_then(|record| record.to.clone())
    }

    /// Puts the record away.
    pub fn end(&mut self) -> Result<()> {
        self.repository.end_walk(&self.lock).map_err(error::repository("end the walk"))?;
        (self.record, self.damaged) = (None, None);
        self.states.clear();
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        let Some(record) = &mut self.record else { return Ok(()) };
        env!("CARGO_PKG_VERSION").clone_into(&mut record.hvbak);
        let noted = self.repository.note_walk(&self.lock, record);
        noted.map_err(error::repository("note how far the walk is"))
    }
}
