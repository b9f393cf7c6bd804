//! A sound engine moves: to new storage, by way of a fresh host.
//!
//! The fresh host is looked at first, and the archive lies on it before the old VM goes down:
//! until then everything can be undone.

use super::{
    Lost, Sequence, Site, Step,
    deploy::{deployed, fit, sent, tidied},
    steps::{maintained, shut_down, spm, stopped},
};

pub(super) fn steps(site: &Site) -> Vec<Step> {
    let fresh = site.to.as_deref().unwrap_or_default();
    let mut steps = vec![fit(site, fresh), spm(), maintained("redeploy")];
    steps.extend(stopped(site, "shutdown"));
    steps.push(sent(site, fresh));
    steps.push(shut_down("the old VM goes down").held("redeploy", Lost::Again));
    steps.extend(deployed(site, fresh));
    steps.extend(tidied(Sequence::Move, fresh));
    steps
}
