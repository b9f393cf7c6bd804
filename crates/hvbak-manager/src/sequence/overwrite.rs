//! A broken engine in a sound VM: cleaned up and restored where it is.
//!
//! Its maintenance ends once; one that somebody sets later is told and stays.

use super::{
    Act, Hand, Lost, Place, Sequence, Sign, Site, Step,
    steps::{again, maintained, person, shut_down},
    words::quoted,
};

pub(super) fn steps(site: &Site) -> Vec<Step> {
    let title = site.archive.as_ref().map_or("", |archive| &archive.title);
    let host = site.host_name.as_deref().unwrap_or_default();
    let restore = format!(
        "hvbak manager-restore {} --engine-cleanup --restore-permissions --engine-setup --hosted-engine-host {}",
        quoted(title),
        quoted(host)
    );
    let restored = person(
        "restore",
        format!("what is broken on {} is removed and the archive restored over it", site.fqdn),
        Place::BackupHost,
        &[&restore],
    );
    let restored =
        Step { once: true, ..restored.by(Hand::HvbakWhenSure, Act::Overwrite, Sign::Restored) };
    vec![
        maintained("release"),
        restored,
        shut_down("the VM goes down once, so that the agent starts it as its own"),
        person(
            "release",
            "the maintenance ends; the agent starts the VM within ten minutes",
            Place::OldHost,
            &["hosted-engine --set-maintenance --mode=none"],
        )
        .by(Hand::Hvbak, Act::LeaveMaintenance, Sign::Released)
        // A maintenance that is set again is somebody's, for a reason hvbak does not know.
        .held("again", Lost::Told),
        person(
            "healthy",
            "the engine answers",
            Place::OldHost,
            &["hosted-engine --vm-status", "hosted-engine --check-liveliness"],
        )
        .by(Hand::Look, Act::Watch, Sign::Healthy),
        again(Sequence::Overwrite),
    ]
}
