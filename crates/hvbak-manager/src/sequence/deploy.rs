//! A self-hosted engine made of an archive, on a fresh host: what is checked before, the call,
//! what to do when it stops on its way, and what is cleaned up afterwards.
//!
//! Sources: ovirt-hosted-engine-setup and the hosted_engine_setup role of
//! ovirt-ansible-collection; bugs 1991171, 1867911, 1822023 and issue 871 of ovirt-engine.

use super::{
    ANSWERS, Act, Hand, Lost, Place, Sign, Site, Step,
    steps::{again, copied, person, swept},
    words::{answers, deployment, quoted},
};

/// What is known to go wrong, and what helps. Shown with the step, and again when it is asked
/// for and the engine does not answer.
pub(super) const TROUBLES: [&str; 15] = [
    "# It asks for passwords and for the new, empty storage. If it stops on its way:",
    "# - `Pause execution` after a failed restore names a lock file /tmp/ansible.*_he_setup_lock. Log in",
    "#   to the local VM (its address is in the output), read /var/log/ovirt-engine/setup/restore-backup-*.log.",
    "#   Most often the appliance is older than the archive: `dnf update ovirt\\*setup\\* ovirt-engine\\*` there,",
    "#   run the engine-backup command of the log again, then delete the lock file on this host: it goes on.",
    "# - The host became non-operational (a required network is missing): the same kind of pause. Attach the",
    "#   networks in the portal of the local VM (https://HOST:6900/ovirt-engine), wait for Up, delete the lock file.",
    "# - Asked for data centre and cluster: exactly the old names, or there will be two of each.",
    "# - The appliance's /tmp is 2 GiB: a restore that finds no space needs `--tmpdir=/var/tmp` in that command.",
    "# - A host of the same name or hardware is deleted from the restored engine and its VMs are set Down: none",
    "#   may run on this host, and its name must be new.",
    "# - The storage is refused as not empty: never the old hosted-engine domain, never a directory with one.",
    "# - An old hosted-engine domain that was renamed breaks the restore: rename it back, back up, begin again.",
    "# - It ended with an error: /var/log/ovirt-hosted-engine-setup/*.log, then `ovirt-hosted-engine-cleanup`,",
    "#   empty the storage, and the call once more; archive and answers are still there.",
];

/// Looks at the fresh host before anything stops.
pub(super) fn fit(site: &Site, fresh: &str) -> Step {
    let title = format!(
        "{fresh} is freshly installed under a name that the site does not use, and {} resolves forward and reverse",
        site.fqdn
    );
    let fqdn = quoted(&site.fqdn);
    let enrol = format!(
        "hvbak enroll {} --without-engine --fingerprint SHA256:… --bootstrap-password-file FILE",
        quoted(fresh)
    );
    person(
        "fresh-host",
        title,
        Place::FreshHost,
        &[
            "dnf install ovirt-hosted-engine-setup ovirt-engine-appliance tmux",
            "hosted-engine --check-deployed   # must say no",
            &format!("getent ahosts {fqdn}"),
            "df -h /root /var/tmp   # the archive; 10 GiB for the local VM",
            "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub   # at its console: its fingerprint",
            "# hvbak's key, on the backup host; no engine is asked:",
            &enrol,
        ],
    )
    .by(Hand::Look, Act::CheckFreshHost, Sign::Fit)
}

/// The archive on its way to the fresh host.
pub(super) fn sent(site: &Site, fresh: &str) -> Step {
    copied(fresh, site.archive.as_ref())
}

/// From the answers to the engine that answers.
pub(super) fn deployed(site: &Site, fresh: &str) -> Vec<Step> {
    let text = answers(&site.fqdn);
    // Printed indented: a here-document would not end.
    let mut lines = vec![format!("install -m 600 /dev/null {ANSWERS}"), r"printf '%s\n' \".into()];
    lines.extend(text.lines().map(|line| format!(r"  {} \", quoted(line))));
    lines.push(format!("  >{ANSWERS}"));
    let mut call = vec![
        "tmux new -A -s hvbak   # its shell outlives the connection; the same call comes back to it"
            .into(),
        deployment(),
    ];
    call.extend(TROUBLES.map(str::to_owned));
    vec![
        Step {
            commands: lines,
            ..person("answers", "answers for the deployment", Place::FreshHost, &[])
        }
        .by(Hand::Hvbak, Act::Answer, Sign::Answered)
        .held("deploy", Lost::Again),
        Step {
            commands: call,
            sign: Sign::Healthy,
            once: true,
            ..person(
                "deploy",
                "the engine is deployed to new, empty storage: never the old hosted-engine domain",
                Place::FreshHost,
                &[],
            )
        },
        person(
            "release",
            format!("global maintenance is off on {fresh}: its agent looks after the engine's VM"),
            Place::FreshHost,
            &["hosted-engine --set-maintenance --mode=none"],
        )
        .by(Hand::Hvbak, Act::LeaveMaintenance, Sign::Released),
    ]
}

/// Out of what was before.
pub(super) fn tidied(sequence: super::Sequence, fresh: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let deploy = [
        "# Compute > Hosts > HOST > Management > Maintenance, then Installation > Reinstall,",
        "#   tab Hosted Engine: Deploy (Undeploy where it shall not run the engine); one after the other",
        "# its agent forgets the old storage with that; until then global maintenance must stay there",
        "# VMs marked highly available: none of them may still run somewhere unseen",
    ];
    if sequence == super::Sequence::ToHosted {
        steps.push(person(
            "redeploy",
            "a second host can run the engine's VM: reinstalled with Deploy",
            Place::Portal,
            &deploy[..2],
        ));
    } else {
        steps.push(person(
            "redeploy",
            "every other hosted-engine host is reinstalled, with Deploy or Undeploy",
            Place::Portal,
            &deploy,
        ));
        steps.push(person(
            "old-domain",
            "the old hosted-engine domain, now called `…_old_…`, is removed",
            Place::Portal,
            &[
                "# only when all else is good, and no host uses it any more:",
                "# Storage > Domains > NAME_old_TIME > Data Center > Maintenance, Detach; then Remove",
                "# where its storage is lost: Destroy instead of Remove",
            ],
        ));
    }
    steps.push(swept(fresh));
    steps.push(again(sequence));
    steps
}
