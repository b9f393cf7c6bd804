//! Into a self-hosted engine, and out of it.

use super::{
    Act, Hand, Lost, Place, Sequence, Sign, Site, Step,
    deploy::{deployed, fit, sent, tidied},
    steps::{MANAGER_ENROLLED, again, maintained, person, shut_down, spm, stopped},
    words::quoted,
};

/// A manager with a machine of its own becomes a self-hosted engine.
pub(super) fn to_hosted(site: &Site) -> Vec<Step> {
    let fresh = site.to.as_deref().unwrap_or_default();
    let off = person(
        "old-machine",
        format!(
            "the old machine of {} is off, starts no more, and its address is free: the engine's VM takes it",
            site.fqdn
        ),
        Place::Manager,
        &[
            "systemctl poweroff",
            "# then remove its power-on from the BMC or the hypervisor it ran on",
        ],
    );
    let mut steps = vec![fit(site, fresh)];
    steps.extend(stopped(site, "old-machine"));
    steps.push(sent(site, fresh));
    steps.push(Step { hand: Hand::PersonWhenSure, ..off });
    steps.extend(deployed(site, fresh));
    steps.extend(tidied(Sequence::ToHosted, fresh));
    steps
}

/// A self-hosted engine gets a machine of its own.
pub(super) fn to_standalone(site: &Site) -> Vec<Step> {
    let fqdn = &site.fqdn;
    let title = site.archive.as_ref().map_or("FQDN@POINT", |archive| &archive.title);
    let title = if title == "FQDN@POINT" { title.to_owned() } else { quoted(title) };
    let restore = format!(
        "hvbak manager-restore {title} --provision-all-databases --he-remove-storage-vm --he-remove-hosts --engine-setup"
    );
    let mut steps = vec![
        spm(),
        person(
            "evacuate",
            "no VM but the engine's runs on a hosted-engine host: the restored engine takes those for down, and would start them twice",
            Place::Portal,
            &[
                "# Compute > Hosts > HOST > Virtual Machines > Migrate, to hosts that never were hosted-engine hosts",
            ],
        ),
        maintained("undeploy"),
    ];
    steps[1].hand = Hand::PersonWhenSure;
    steps.extend(stopped(site, "shutdown"));
    steps.push(shut_down("the engine's VM goes down for good").held("undeploy", Lost::Again));
    let restored = person(
        "restore",
        format!(
            "the archive is restored on the fresh machine, without what made {fqdn} self-hosted"
        ),
        Place::BackupHost,
        &[&restore],
    );
    steps.extend([
        person(
            "machine",
            format!("a fresh machine is called {fqdn}, and the name leads to it from everywhere"),
            Place::FreshMachine,
            &[
                "dnf install ovirt-engine   # of the archive's version or a newer one of it; no engine-setup",
                "# DNS forward and reverse, or the old address",
                "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub   # at its console: its fingerprint",
                "# on the backup host, where [manager] has no `host_key` or this machine's:",
                MANAGER_ENROLLED,
            ],
        ),
        Step { once: true, ..restored.by(Hand::HvbakWhenSure, Act::Restore, Sign::Restored) },
        person(
            "undeploy",
            "no former hosted-engine host can start the old VM",
            Place::OldHost,
            &[
                "# on each of them, while global maintenance is still there:",
                "systemctl disable --now ovirt-ha-agent ovirt-ha-broker",
            ],
        ),
        person(
            "hosts",
            "the former hosted-engine hosts are added again: the restored engine does not know them",
            Place::Portal,
            &[
                "# Compute > Hosts > New, tab Hosted Engine: None; or reinstalled with Undeploy where they are listed",
                "# VMs marked highly available: none of them may still run somewhere unseen",
            ],
        ),
        person(
            "old-domain",
            "the old hosted-engine storage is emptied: the engine no longer knows it",
            Place::OldHost,
            &["# only when all else is good: delete the export's content, or give the LUN back"],
        ),
        again(Sequence::ToStandalone),
    ]);
    steps
}
