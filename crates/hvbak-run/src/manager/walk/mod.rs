//! A walk through one of the long sequences around a self-hosted engine: what hvbak can do it
//! does, what only a person can do it waits for, and each step is seen to be done before the
//! next one comes.
//!
//! Invariants: a step is in the repository's record before it is begun, and done there after
//! its sign was seen; a step that would harm when done twice is never begun twice; what must
//! go on holding is looked at again whenever a walk goes on; a person's word counts where nobody
//! who is heard can tell, and against nothing that is seen. Who is asked and how is the
//! caller's ([`Companion`]).

mod acts;
mod archive;
mod files;
mod look;
mod person;
mod record;

use std::{
    collections::BTreeSet,
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use hvbak_manager::sequence::{
    Hand, Lost, Seen, Sequence, Sign, Site, State, Step, back_to, from, held, next,
};
use hvbak_repo::{Identities, ManagerName, Recipients, Repository};
use hvbak_types::JobId;
use tokio_util::sync::CancellationToken;

use super::{EngineAccess, ManagerContext, ManagerSettings};
use crate::{
    error::{Result, RunError},
    event::{Event, Events},
    settings::Settings,
};
use record::Record;

/// The parts that a walk is given.
#[derive(Clone)]
pub struct WalkContext {
    pub repository: Arc<Repository>,
    pub settings: Arc<Settings>,
    /// Steps on the manager's machine need it.
    pub manager: Option<ManagerSettings>,
    /// Whom the archives that it makes are encrypted to, and what opens those that it takes.
    pub recipients: Recipients,
    pub identities: Option<Identities>,
    /// The second witness of its backups, or why there is none.
    pub engine: std::result::Result<EngineAccess, String>,
    pub events: Events,
    pub cancel: CancellationToken,
    pub job: JobId,
    /// The engine's name in the repository.
    pub name: ManagerName,
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct WalkOptions {
    pub sequence: Sequence,
    /// Names in the configuration, or addresses.
    pub host: Option<String>,
    pub to: Option<String>,
    /// `FQDN@POINT`; of a sequence that makes its own, only where that step is passed.
    pub archive: Option<String>,
    /// The one that is taken when none is named and no walk has chosen one yet.
    pub newest: Option<String>,
    /// Go on at this step.
    pub from: Option<String>,
    /// Forget how far an earlier walk came.
    pub restart: bool,
    /// Harmless steps are not asked for.
    pub yes: bool,
    /// Steps that are answered beforehand.
    pub confirmed: BTreeSet<String>,
    /// Steps that somebody has seen to be done where those who could tell are silent.
    pub witnessed: BTreeSet<String>,
    /// How long a sign is waited for after hvbak did something.
    pub patience: Duration,
    /// The archive may be one of a manager with another name.
    pub other_name: bool,
}

/// How long what was seen is believed while the walk goes on.
const STILL_HOLDS: Duration = Duration::from_secs(20);

/// What a person is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// hvbak will do it.
    Do,
    /// Users of the site will notice.
    DoSurely,
    /// The person has done it.
    Done,
    /// The same, and nobody else can tell.
    DoneSurely,
    /// Whoever could tell whether it is done is silent: the person has seen it.
    Witness,
    /// An earlier walk was begun, and something of it cannot be taken back.
    Restart,
}

/// What a person says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Yes,
    /// It was begun, and takes its time.
    Started,
    /// hvbak shall look again.
    Again,
    /// Not now.
    Stop,
    /// There is nobody.
    Nobody,
}

/// Where the walk is.
#[derive(Debug, Clone, Copy)]
pub struct Position<'a> {
    /// From 1.
    pub number: usize,
    pub of: usize,
    pub step: &'a Step,
    pub state: State,
}

/// Somebody who is told and asked.
pub trait Companion: Send + Sync {
    /// A step comes.
    fn comes(&self, at: Position<'_>);
    /// A step is over: done now, or seen to be done already.
    fn over(&self, at: Position<'_>, already: bool);
    /// Asks; `told` is what was seen of it so far.
    fn ask<'a>(
        &'a self,
        step: Option<&'a Step>,
        ask: Ask,
        told: Option<&'a str>,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send + 'a>>;
}

/// How a walk ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalkEnd {
    Done,
    /// It is somebody's turn.
    Waiting {
        /// `restart`: the question before the first step.
        step: String,
        ask: Ask,
        told: Option<String>,
    },
}

/// Walks on from where an earlier walk was, or begins.
///
/// # Errors
/// [`RunError::WalkOther`] when another walk is open; [`RunError::WalkUnseen`] when a sign is
/// not seen; what the steps themselves fail with. The next walk goes on there.
pub async fn walk(
    context: &WalkContext,
    options: &WalkOptions,
    companion: &dyn Companion,
) -> Result<WalkEnd> {
    let mut record = Record::open(context)?;
    if options.restart
        && let Some(waiting) = restart(context, options, companion, &mut record).await?
    {
        return Ok(waiting);
    }
    record.begin(context, options).await?;
    let looked = Instant::now();
    let (steps, is_idle) = (Vec::new(), false);
    let mut walker = Walker { context, options, companion, record, steps, looked, is_idle };
    walker.refresh()?;
    if let Some(name) = &options.from {
        walker.go_to(name).await?;
    }
    walker.ensure_reached()?;
    walker.ensure_key().await?;
    walker.learn_engine().await?;
    walker.look_back().await?;
    while let Some(at) = next(walker.record.states()) {
        if context.cancel.is_cancelled() {
            return Err(RunError::Cancelled);
        }
        if walker.is_moved(at).await? {
            continue;
        }
        if let Some(waiting) = walker.step(at).await? {
            return Ok(waiting);
        }
    }
    walker.record.end()?;
    Ok(WalkEnd::Done)
}

/// Forgets an earlier walk, and removes what it has put on a host.
async fn restart(
    context: &WalkContext,
    options: &WalkOptions,
    companion: &dyn Companion,
    record: &mut Record,
) -> Result<Option<WalkEnd>> {
    if record.may_have_begun(&["deploy", "restore"]) && !options.confirmed.contains("restart") {
        let told =
            "what it has deployed or restored is not taken back, and would be done once more";
        let answer = companion.ask(None, Ask::Restart, Some(told)).await;
        if answer != Answer::Yes {
            let told = Some(told.to_owned());
            return Ok(Some(WalkEnd::Waiting { step: "restart".into(), ask: Ask::Restart, told }));
        }
    }
    if let Some(host) = record.host_with_copies()
        && let Err(cause) = files::sweep(context, &host).await
    {
        let text = format!(
            "the archive that the earlier walk copied may still lie on {host} ({}): shred -u {}",
            crate::chain(&cause),
            hvbak_manager::sequence::REMOTE_ARCHIVE
        );
        context.warn(text);
    }
    record.end()?;
    Ok(None)
}

struct Walker<'a> {
    context: &'a WalkContext,
    options: &'a WalkOptions,
    companion: &'a dyn Companion,
    record: Record,
    steps: Vec<Step>,
    /// When it was last seen that what must hold does.
    looked: Instant,
    /// A deployment was begun, and nothing of it is there: it may be begun again.
    is_idle: bool,
}

impl WalkContext {
    fn phase(&self, text: impl Into<String>) {
        self.events.event(&Event::Phase { vm: None, text: text.into() });
    }

    fn warn(&self, text: impl Into<String>) {
        self.events.event(&Event::Warning { vm: None, text: text.into() });
    }

    /// For jobs on the manager.
    fn manager(&self, step: &'static str) -> Result<ManagerContext> {
        let manager = self.manager.clone().ok_or(RunError::WalkNoManager { step })?;
        Ok(ManagerContext {
            repository: self.repository.clone(),
            settings: self.settings.clone(),
            manager,
            identities: self.identities.clone(),
            events: self.events.clone(),
            cancel: self.cancel.clone(),
            job: self.job,
        })
    }
}

impl Walker<'_> {
    /// Puts the steps together from what is known now.
    fn refresh(&mut self) -> Result<()> {
        let address = |name: &String| {
            let known = self.context.settings.hosts.get(name).and_then(|host| host.address.clone());
            known.unwrap_or_else(|| name.clone())
        };
        let site = Site {
            host: self.options.host.as_ref().map(address),
            host_name: self.options.host.clone(),
            to: self.options.to.as_ref().map(address),
            fqdn: self.engine().to_string(),
            archive: self.record.archive(&self.context.repository)?,
        };
        let steps = self.options.sequence.steps(&site);
        self.steps = steps.map_err(|cause| RunError::WalkSite { cause })?;
        self.record.fits(&self.steps)
    }

    /// `--from`.
    async fn go_to(&mut self, name: &str) -> Result<()> {
        let Some(at) = self.steps.iter().position(|step| step.name == name) else {
            let names = self.steps.iter().map(|step| step.name).collect::<Vec<_>>().join(", ");
            return Err(RunError::WalkNoStep { step: name.to_owned(), names });
        };
        self.look_at_deployment().await?;
        let mut states = self.looked_through();
        from(&self.steps, &mut states, at).map_err(|cause| RunError::WalkBack { cause })?;
        self.record.set_all(states)
    }

    /// What was done and must still be so. What was lost is done again.
    async fn look_back(&mut self) -> Result<()> {
        self.look_at_deployment().await?;
        let mut back = None;
        let mut states = self.record.states().to_vec();
        for at in held(&self.steps, &self.looked_through()) {
            let step = &self.steps[at];
            let seen = match self.looked(step).await {
                // Whose machine is silent because what ends the hold has happened already, by
                // somebody's hand or with the host it ran on.
                Err(cause) if look::is_silence(&cause) && self.is_past(step).await => continue,
                other => other?,
            };
            let why = match seen {
                Seen::Yes => continue,
                // Who is lost cannot be asked; a person has answered for that.
                Seen::Unknown(_) if step.holds.is_some_and(|holds| holds.lost == Lost::Told) => {
                    continue;
                }
                Seen::Unknown(why) if step.sign == Sign::NotSeenUp || self.is_witnessed(at) => {
                    self.context.warn(format!("step `{}`: {why}", step.name));
                    self.record.witness(at);
                    continue;
                }
                Seen::Unknown(why) => return Err(unknown(step, why)),
                Seen::No(why) => why,
            };
            self.context.warn(format!("step `{}` no longer holds: {why}", step.name));
            match step.holds.map(|holds| holds.lost) {
                Some(Lost::Told) => continue,
                Some(Lost::Back) => back = back.or(Some(at)),
                Some(Lost::Again) | None => {}
            }
            states[at] = State::Open;
        }
        if let Some(at) = back {
            back_to(&self.steps, &mut states, at).map_err(|cause| RunError::WalkBack { cause })?;
        }
        self.looked = Instant::now();
        self.record.set_all(states)
    }

    /// Whether the step until which this one must hold is seen to be done.
    async fn is_past(&self, step: &Step) -> bool {
        let until = step.holds.and_then(|h| self.steps.iter().find(|one| one.name == h.until));
        match until {
            Some(until) => matches!(self.looked(until).await, Ok(Seen::Yes)),
            None => false,
        }
    }

    /// Whether another step than this one comes next, because something no longer holds: a
    /// person may have thought for hours.
    async fn is_moved(&mut self, at: usize) -> Result<bool> {
        if self.looked.elapsed() > STILL_HOLDS {
            self.look_back().await?;
        }
        Ok(next(self.record.states()) != Some(at))
    }

    /// One step to its end, or to where somebody must do something.
    async fn step(&mut self, at: usize) -> Result<Option<WalkEnd>> {
        let step = self.steps[at].clone();
        let state = self.record.states()[at];
        self.companion.comes(self.position(at, &step, state));
        let already = if step.hand.is_person() {
            if let Some(waiting) = self.persons(at, &step, state).await? {
                return Ok(Some(waiting));
            }
            false
        } else {
            match self.own(at, &step, state).await? {
                Own::Waiting(end) => return Ok(Some(end)),
                Own::Moved => return Ok(None),
                Own::Done { already } => already,
            }
        };
        self.record.set(at, State::Done)?;
        self.companion.over(self.position(at, &step, State::Done), already);
        Ok(None)
    }

    fn position<'s>(&self, at: usize, step: &'s Step, state: State) -> Position<'s> {
        Position { number: at + 1, of: self.steps.len(), step, state }
    }

    /// A step of hvbak's.
    async fn own(&mut self, at: usize, step: &Step, state: State) -> Result<Own> {
        if look::is_seen_beforehand(step.sign) {
            if self.options.witnessed.contains(step.name)
                && let Seen::Unknown(why) = self.looked(step).await?
            {
                return Ok(self.take_word(at, &why));
            }
            if self.seen(step).await? == Seen::Yes {
                return Ok(Own::Done { already: true });
            }
        }
        let ask = match step.hand {
            Hand::HvbakWhenSure => Some(Ask::DoSurely),
            Hand::Hvbak if !self.options.yes => Some(Ask::Do),
            _ => None,
        };
        if let Some(ask) = ask
            && !self.options.confirmed.contains(step.name)
        {
            let answer = tokio::select! {
                answer = self.companion.ask(Some(step), ask, None) => answer,
                () = self.context.cancel.cancelled() => return Err(RunError::Cancelled),
            };
            if answer != Answer::Yes {
                let step = step.name.to_owned();
                return Ok(Own::Waiting(WalkEnd::Waiting { step, ask, told: None }));
            }
            if self.is_moved(at).await? {
                return Ok(Own::Moved);
            }
        }
        let begun = self.record.at(at).filter(|_| state == State::Begun);
        self.record.set(at, State::Begun)?;
        match self.act(step, begun).await {
            Ok(()) => Ok(Own::Done { already: false }),
            Err(cause) => self.word_for(at, step, cause).await,
        }
    }
}

enum Own {
    Done {
        already: bool,
    },
    Waiting(WalkEnd),
    /// Another step comes before it now.
    Moved,
}

fn unknown(step: &Step, why: String) -> RunError {
    RunError::WalkUnknown { step: step.name, why }
}

fn unseen(step: &Step, why: String) -> RunError {
    RunError::WalkUnseen { step: step.name, sign: step.sign.words().unwrap_or_default(), why }
}
