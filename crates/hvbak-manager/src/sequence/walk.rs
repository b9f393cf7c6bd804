//! Where a walk through a sequence is, and where it goes on.
//!
//! Pure. Invariant: nothing here opens a step again that must be done once and was begun.

use serde::{Deserialize, Serialize};

use super::Step;

/// How far a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Open,
    /// A step that is done once was shown to a person; nobody has said or seen that it was begun.
    Shown,
    /// Any other step was shown to a person; a step that is done once was seen or said to be
    /// begun; or hvbak began it.
    Begun,
    Done,
    /// Somebody said that it needs not be done here.
    Passed,
}

/// There is no way back over a step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("step `{step}` was begun, and to do it twice would do harm")]
pub struct Irrevocable {
    pub step: &'static str,
}

impl State {
    /// Whether the walk is beyond it.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Passed)
    }

    /// Whether nothing of it can have been done yet.
    pub fn is_untouched(self) -> bool {
        matches!(self, Self::Open | Self::Shown)
    }
}

/// The step that comes next.
pub fn next(states: &[State]) -> Option<usize> {
    states.iter().position(|state| !state.is_over())
}

/// Steps that are over and whose sign must still be there: the step that ends it was not begun.
pub fn held(steps: &[Step], states: &[State]) -> Vec<usize> {
    let is_open = |name: &str| {
        let at = steps.iter().position(|step| step.name == name);
        at.is_some_and(|at| states.get(at).is_some_and(|state| state.is_untouched()))
    };
    let holds = |at: &usize| {
        states[*at].is_over() && steps[*at].holds.is_some_and(|holds| is_open(holds.until))
    };
    (0..steps.len().min(states.len())).filter(holds).collect()
}

/// Opens a step and all after it.
///
/// # Errors
/// One of them must not be done twice; nothing was changed.
pub fn back_to(steps: &[Step], states: &mut [State], at: usize) -> Result<(), Irrevocable> {
    let begun = |at: usize| steps[at].once && !states[at].is_untouched();
    if let Some(at) = (at..steps.len().min(states.len())).find(|&at| begun(at)) {
        return Err(Irrevocable { step: steps[at].name });
    }
    for state in states.iter_mut().skip(at) {
        *state = State::Open;
    }
    Ok(())
}

/// Goes on at a step: what comes before it and was not done is passed, what comes after it is
/// open.
///
/// # Errors
/// As [`back_to`].
pub fn from(steps: &[Step], states: &mut [State], at: usize) -> Result<(), Irrevocable> {
    // The step itself may be the one that was begun: it is gone on with, not repeated.
    if states.get(at) != Some(&State::Begun) {
        back_to(steps, states, at)?;
    }
    for state in states.iter_mut().take(at).filter(|state| !state.is_over()) {
        *state = State::Passed;
    }
    Ok(())
}
