//! The engine that runs as a VM of its own site.

use super::manager::copy_archive;
use crate::{
    Facts,
    text::{commands, quoted, steps, words},
};

pub fn lost(facts: &Facts) -> String {
    let Some(vm) = &facts.engine.hosted_engine_vm else {
        return "This site's engine is **not** self-hosted; take \
                [The manager is lost](manager-lost.md).\n"
            .into();
    };
    let host = facts.hosts.first().map_or("HOST".into(), |h| quoted(&h.address));
    format!(
        "The engine runs in VM **{}**. It is not in VM backups; it is rebuilt from the manager's \
         backup.\n\n## First: is it lost at all?\n\nOn a self-hosted-engine host:\n{}{}\
         ## Overwrite in place\n\nThe VM starts and its system is sound, only the engine is \
         broken:\n{}## A new one\n\nA **fresh** host, whose name the site does not use, the engine's own name {} in \
         DNS forward and reverse, and **new, empty** storage: never the old hosted-engine \
         domain. `hvbak hosted-engine plan recover --host OLD --to FRESH` prints all steps with the \
         archive that is the newest then; with `--run` it walks through them.\n{}{}## Afterwards\n{}",
        words(vm),
        commands(&[
            "hosted-engine --vm-status".into(),
            "hosted-engine --check-liveliness".into(),
            "hosted-engine --vm-start".into(),
        ]),
        steps(&[
            "Values under `unknown stale-data` are old: believe hosts with live data only.",
            "A traceback instead of the state: the broker is down; `systemctl restart ovirt-ha-broker ovirt-ha-agent`.",
            "Global maintenance on? Then nobody restarts the VM: `hosted-engine --set-maintenance --mode=none`.",
        ]),
        commands(&[
            "hosted-engine --set-maintenance --mode=global   # on a host; check with --vm-status".into(),
            "# in the VM".into(),
            "engine-cleanup --otopi-environment=\"OVESETUP_CORE/remove=bool:True OVESETUP_CORE/engineStop=bool:True\"".into(),
            "engine-backup --mode=restore --file=/root/engine.backup --log=/root/restore.log --restore-permissions".into(),
            "engine-setup --accept-defaults --offline".into(),
            "# on the host again".into(),
            "hosted-engine --vm-shutdown".into(),
            "hosted-engine --set-maintenance --mode=none   # the agent starts it, within 10 minutes".into(),
        ]),
        words(&facts.engine.fqdn),
        copy_archive(facts, &host),
        commands(&[
            "# on the fresh host".into(),
            "dnf install ovirt-hosted-engine-setup tmux".into(),
            "tmux new-session 'hosted-engine --deploy --restore-from-file=/root/engine.backup'".into(),
            "# names of data center and cluster: exactly the old ones".into(),
        ]),
        steps(&[
            "It pauses after a failed restore and names a lock file: mend in the local VM (most often: update its packages), repeat the restore command there, delete the lock.",
            "Reinstall every other hosted-engine host with Deploy.",
            "Remove the old engine VM's key from `known_hosts`.",
            "The old domain is now called `…_old_…`: detach and remove it by hand when all is good.",
            "VMs marked highly available may be started: none of them may still run elsewhere.",
            "`hvbak doctor`, then `hvbak manager-backup`.",
        ])
    )
}
