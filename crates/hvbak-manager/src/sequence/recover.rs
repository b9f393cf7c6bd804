//! A lost engine comes back on a fresh host and new storage.
//!
//! What is lost cannot be asked; that nothing of it comes back is for a person to say.

use super::{
    Hand, Lost, Place, Sequence, Sign, Site, Step,
    deploy::{deployed, fit, sent, tidied},
    steps::person,
};

pub(super) fn steps(site: &Site) -> Vec<Step> {
    let fresh = site.to.as_deref().unwrap_or_default();
    let dead = person(
        "dead",
        "the old engine's VM runs nowhere and nobody will start it: two engines destroy the site",
        Place::OldHost,
        &[
            "hosted-engine --vm-status   # believe hosts with live data only",
            "hosted-engine --set-maintenance --mode=global   # where a host still answers",
            "systemctl disable --now ovirt-ha-agent ovirt-ha-broker   # where the storage is gone for good",
            "virsh -r list   # on every hosted-engine host",
        ],
    );
    let dead = Step { hand: Hand::PersonWhenSure, sign: Sign::NotSeenUp, ..dead };
    let mut steps = vec![fit(site, fresh), dead.held("redeploy", Lost::Again), sent(site, fresh)];
    steps.extend(deployed(site, fresh));
    steps.extend(tidied(Sequence::Recover, fresh));
    steps
}
