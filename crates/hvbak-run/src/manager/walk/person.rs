//! What persons do in a walk and say of it.
//!
//! Invariants: a step that was never reached is not answered for; a person's word passes a step
//! only where hvbak sees nothing against it; a step that is done once is begun when somebody
//! says so or it is seen, and not by being shown.

use hvbak_manager::sequence::{Hand, Seen, Sign, State, Step, next};

use super::{Answer, Ask, Own, WalkEnd, Walker, files, unknown, unseen};
use crate::error::{Result, RunError};

impl Walker<'_> {
    /// Refuses answers to steps that this call cannot come to: they were not looked at yet.
    pub(super) fn ensure_reached(&self) -> Result<()> {
        let (options, states) = (self.options, self.record.states());
        let mut given = Vec::new();
        let confirmed = options.confirmed.iter().map(|name| (name, false));
        for (name, is_word) in confirmed.chain(options.witnessed.iter().map(|name| (name, true))) {
            if name == "restart" && options.restart && !is_word {
                continue;
            }
            let Some(at) = self.steps.iter().position(|step| step.name == name) else {
                let names = self.steps.iter().map(|step| step.name).collect::<Vec<_>>().join(", ");
                return Err(RunError::WalkNoStep { step: name.clone(), names });
            };
            if is_word && !self.steps[at].sign.is_of_hosts() {
                return Err(RunError::WalkNoWitness { step: self.steps[at].name });
            }
            given.push(at);
        }
        let Some(open) = next(states) else { return Ok(()) };
        // Where this call waits at the latest.
        let mut stop = open;
        while let (Some(step), Some(state)) = (self.steps.get(stop), states.get(stop)) {
            let is_answered = options.confirmed.contains(step.name);
            let passes = state.is_over()
                || match step.hand {
                    Hand::Look => true,
                    Hand::Hvbak => options.yes || is_answered,
                    Hand::HvbakWhenSure => is_answered,
                    // What it wants must have been read.
                    Hand::Person | Hand::PersonWhenSure => is_answered && *state != State::Open,
                };
            if !passes {
                break;
            }
            stop += 1;
        }
        let unread = |at: &usize| {
            *at == stop && self.steps[*at].hand.is_person() && states[*at] == State::Open
        };
        match given.into_iter().find(|at| *at > stop || unread(at)) {
            None => Ok(()),
            Some(at) => Err(RunError::WalkNotReached {
                step: self.steps[at].name,
                open: self.steps[open].name,
            }),
        }
    }

    /// Whether a deployment that was shown was begun meanwhile, and whether anything is there of
    /// one that was begun.
    pub(super) async fn look_at_deployment(&mut self) -> Result<()> {
        self.is_idle = false;
        let Some(at) = self.steps.iter().position(|step| step.name == "deploy") else {
            return Ok(());
        };
        let state = self.record.states()[at];
        if !matches!(state, State::Shown | State::Begun) {
            return Ok(());
        }
        match files::deployment(self.context, self.options.to.as_deref()).await {
            Ok(found) if found.is_there() => self.record.set(at, State::Begun)?,
            Ok(_) => self.is_idle = true,
            Err(RunError::Cancelled) => return Err(RunError::Cancelled),
            // Who asks the host next tells why it does not answer.
            Err(_) => {}
        }
        Ok(())
    }

    /// The states, a deployment that left nothing taken for one that was not begun.
    pub(super) fn looked_through(&self) -> Vec<State> {
        let mut states = self.record.states().to_vec();
        for (step, state) in self.steps.iter().zip(&mut states) {
            if self.is_idle && step.name == "deploy" && *state == State::Begun {
                *state = State::Open;
            }
        }
        states
    }

    /// A person's step.
    pub(super) async fn persons(
        &mut self,
        at: usize,
        step: &Step,
        state: State,
    ) -> Result<Option<WalkEnd>> {
        let mut ask = if step.hand.asks_twice() { Ask::DoneSurely } else { Ask::Done };
        // Who answers beforehand has seen it in an earlier walk.
        let was_shown = state != State::Open;
        let answered = was_shown && self.options.confirmed.contains(step.name);
        let is_begun = state == State::Begun || !step.once;
        self.record.set(at, if is_begun { State::Begun } else { State::Shown })?;
        let mut told = None;
        if step.sign != Sign::None && (was_shown || step.sign == Sign::NotSeenUp) {
            match self.looked(step).await? {
                Seen::Yes if !step.hand.asks_twice() => return Ok(None),
                Seen::Yes => {}
                Seen::Unknown(why) if self.options.witnessed.contains(step.name) => {
                    self.take_word(at, &why);
                    return Ok(None);
                }
                Seen::Unknown(why) => {
                    ask = if ask == Ask::Done { Ask::Witness } else { ask };
                    told = Some(self.told(step, why).await);
                }
                Seen::No(why) => told = Some(self.told(step, why).await),
            }
        }
        loop {
            let waiting = || {
                let step = step.name.to_owned();
                Ok(Some(WalkEnd::Waiting { step, ask, told: told.clone() }))
            };
            let mut is_word = ask == Ask::DoneSurely;
            if !answered {
                let answer = tokio::select! {
                    answer = self.companion.ask(Some(step), ask, told.as_deref()) => answer,
                    () = self.context.cancel.cancelled() => return Err(RunError::Cancelled),
                };
                match answer {
                    Answer::Yes => is_word |= ask == Ask::Witness,
                    Answer::Again => {}
                    Answer::Started => {
                        self.record.set(at, State::Begun)?;
                        continue;
                    }
                    Answer::Stop | Answer::Nobody => return waiting(),
                }
            }
            if step.sign == Sign::None {
                return Ok(None);
            }
            // What somebody calls done was begun.
            self.record.set(at, State::Begun)?;
            let (why, is_unknown) = match self.looked(step).await? {
                Seen::Yes => return Ok(None),
                Seen::Unknown(why) if is_word => {
                    self.take_word(at, &why);
                    return Ok(None);
                }
                Seen::Unknown(why) => (why, true),
                Seen::No(why) => (why, false),
            };
            let why = self.told(step, why).await;
            if answered {
                return Err(if is_unknown { unknown(step, why) } else { unseen(step, why) });
            }
            if ask != Ask::DoneSurely {
                ask = if is_unknown { Ask::Witness } else { Ask::Done };
            }
            told = Some(why);
        }
    }

    /// What is seen of a step that is not done, in words.
    async fn told(&self, step: &Step, why: String) -> String {
        if step.name != "deploy" {
            return why;
        }
        match files::deployment(self.context, self.options.to.as_deref()).await {
            Ok(found) => format!("{why}; {}", found.words()),
            Err(cause) => format!("{why}; {}", crate::chain(&cause)),
        }
    }

    /// Whether somebody has answered for a step, now or earlier.
    pub(super) fn is_witnessed(&self, at: usize) -> bool {
        self.record.is_witnessed(at) || self.options.witnessed.contains(self.steps[at].name)
    }

    /// Takes a person's word for a step.
    pub(super) fn take_word(&mut self, at: usize, why: &str) -> Own {
        let name = self.steps[at].name;
        self.context.warn(format!("step `{name}`: {why}; a person's word is taken for it"));
        self.record.witness(at);
        Own::Done { already: false }
    }

    /// What becomes of a step of hvbak's that failed: where nobody who is heard can tell whether
    /// it is done, a person may.
    pub(super) async fn word_for(
        &mut self,
        at: usize,
        step: &Step,
        cause: RunError,
    ) -> Result<Own> {
        if !step.sign.is_of_hosts() || matches!(cause, RunError::Cancelled) {
            return Err(cause);
        }
        loop {
            let why = match self.looked(step).await {
                Ok(Seen::Unknown(why)) => why,
                Ok(Seen::Yes | Seen::No(_)) | Err(_) => return Err(cause),
            };
            if self.options.witnessed.contains(step.name) {
                return Ok(self.take_word(at, &why));
            }
            let answer = tokio::select! {
                answer = self.companion.ask(Some(step), Ask::Witness, Some(&why)) => answer,
                () = self.context.cancel.cancelled() => return Err(RunError::Cancelled),
            };
            match answer {
                Answer::Yes => return Ok(self.take_word(at, &why)),
                Answer::Again => {}
                Answer::Started | Answer::Stop | Answer::Nobody => return Err(unknown(step, why)),
            }
        }
    }
}
