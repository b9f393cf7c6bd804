//! The manager on a machine of its own: lost, of another version, its Data Warehouse moved.

use crate::{
    Facts, ManagerPointFacts,
    text::{commands, quoted, steps, words},
};

/// The newest stored backup that holds everything, else the newest.
pub fn newest(facts: &Facts) -> Option<&ManagerPointFacts> {
    let whole =
        |p: &&ManagerPointFacts| ["files", "db"].iter().all(|s| p.scopes.iter().any(|x| x == s));
    facts.manager_points.iter().find(whole).or(facts.manager_points.first())
}

/// Copying the archive to a machine, and proving that it arrived.
pub fn copy_archive(facts: &Facts, to: &str) -> String {
    let Some(point) = newest(facts) else {
        return "\n**There is no stored backup of the manager.** What is left: the manager's own \
                nightly dumps, if somebody made them, and the databases' files.\n\n"
            .into();
    };
    let title = quoted(&format!("{}@{}", point.manager, point.id));
    let archive = quoted(&point.archive);
    let mut lines = identity(point);
    if lines.is_empty() {
        lines.push(format!("hvbak manager-verify {title}"));
        lines.push(format!("scp -p {archive} root@{to}:/root/engine.backup"));
    } else {
        lines.push(format!("hvbak manager-verify {title} --identity \"$IDENTITY\""));
        lines.push(format!(
            "age --decrypt --identity \"$IDENTITY\" {archive} | ssh root@{to} 'umask 077; cat >/root/engine.backup'"
        ));
    }
    if let Some(sum) = &point.sha256 {
        lines.push(format!("ssh root@{to} 'echo {sum}  /root/engine.backup | sha256sum --check'"));
    }
    commands(&lines)
}

/// A line that names the private key, which is in no repository; none when none is needed.
pub fn identity(point: &ManagerPointFacts) -> Vec<String> {
    if point.recipients.is_empty() {
        return Vec::new();
    }
    let keys = point.recipients.join(", ");
    let keys: String = keys.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    vec![format!("IDENTITY=/path/to/private.key   # of one of: {keys}")]
}

/// What to say of a private key that is needed.
fn needs_key(facts: &Facts) -> &'static str {
    match newest(facts) {
        Some(point) if !point.recipients.is_empty() => {
            "**The archive is encrypted: fetch the private key of one of its recipients first. It is \
             not on the backup host; without it the archive is lost.** Nothing of the archive is \
             written to the backup host's disk by these commands.\n\n"
        }
        _ => "",
    }
}

/// The restore by hvbak: first what it would do.
fn with_hvbak(facts: &Facts) -> String {
    let Some(point) = newest(facts) else { return "\nThere is no stored backup.\n\n".into() };
    let mut lines = identity(point);
    let key = if lines.is_empty() { "" } else { " --identity \"$IDENTITY\"" };
    let restore = format!(
        "hvbak manager-restore {} --provision-all-databases --engine-setup{key}",
        quoted(&format!("{}@{}", point.manager, point.id))
    );
    lines.extend([format!("{restore} --dry-run"), restore]);
    commands(&lines)
}

pub fn lost(facts: &Facts) -> String {
    let fqdn = quoted(&facts.engine.fqdn);
    let hosted = match &facts.engine.hosted_engine_vm {
        None => String::new(),
        Some(_) => "**This site's engine is self-hosted: take the page \
                    [The self-hosted engine is lost](hosted-engine-lost.md).**\n\n"
            .into(),
    };
    let version = newest(facts).map_or("the old version".into(), |p| words(&p.version));
    format!(
        "{hosted}VMs go on running without the manager; nobody can start, stop or move them by the \
         portal. There is no hurry that justifies a mistake here.\n\n## First\n{}\
         ## A new machine\n\nThe same name (**{}**, forward and reverse DNS), the packages of \
         version {version} or newer in the same line, `engine-setup` **not** run. `en_US.UTF-8` \
         must be installed; `/var/tmp` or another directory needs room for the archive unpacked \
         twice.\n\n## Restore\n\n{}From the backup host, which looks at everything before it overwrites anything \
         (`[manager]` in its configuration names the new machine; `hvbak enroll --manager` first):\n{}Or by \
         hand:\n{}{}`engine-backup` ends with code 0 although parts are missing. Read the log for \
         `ERROR` and `FATAL`; `must be owner of extension uuid-ossp` is in every good one. If a \
         step fails, do not repeat it over a half-restored database: `engine-cleanup` first.\n\n\
         ## Is it good?\n{}{}",
        steps(&[
            "The old manager is really off: two of them fight over hosts and storage.",
            "Nobody has started VMs by hand on hypervisors; write down who runs where (`virsh -r list`).",
            "VMs marked highly available will be started by the restored manager: make sure that none still runs on a host that the manager cannot reach, or it runs twice and its disks are destroyed.",
        ]),
        words(&facts.engine.fqdn),
        needs_key(facts),
        with_hvbak(facts),
        copy_archive(facts, &fqdn),
        commands(&[
            "# on the new machine".into(),
            "engine-backup --mode=verify --file=/root/engine.backup --log=/root/verify.log".into(),
            "engine-backup --mode=restore --file=/root/engine.backup --log=/root/restore.log --provision-all-databases --restore-permissions".into(),
            "engine-setup --accept-defaults --offline".into(),
            format!("curl --insecure https://{fqdn}/ovirt-engine/services/health"),
        ]),
        steps(&[
            "The health page says `DB Up!Welcome to Health Status!`.",
            "Hosts come up by themselves within minutes; one that stays non-responsive: put it into maintenance and activate it.",
            "Storage domains are active, VMs have the state that they really have.",
            "Objects that were made after the backup are unknown to the restored manager: import VMs from the data domains.",
            "`hvbak doctor` on the backup host, then `hvbak manager-backup`.",
            "`shred -u /root/engine.backup`: it holds the CA's key and every password.",
        ]),
        "A manager on the same machine whose database is broken: `engine-cleanup` first, then the \
         same without the provisioning option (roles and empty databases stay).\n",
    )
}

pub fn version(facts: &Facts) -> String {
    let stored = newest(facts).map_or("unknown".into(), |p| words(&p.version));
    format!(
        "`engine-backup` refuses with `Backup was created by version 'B' and can not be restored \
         using the installed version I`. The newest stored backup is of version **{stored}**, the \
         manager was **{}**.\n\n\
         | Installed | Takes backups of |\n| --- | --- |\n\
         | 4.2, 4.3 | the same 4.2 or 4.3 |\n| 4.4.0 to 4.4.6 | 4.4, 4.3 |\n\
         | 4.4.7 to 4.4.10 | 4.4 up to the installed, 4.3 from 4.3.10 |\n\
         | 4.5 | 4.5 up to the installed, any 4.4, 4.3 from 4.3.10 |\n\n\
         A larger version on the new machine within its row is right, a smaller one never is. From \
         4.2 there is no way past 4.3: restore onto 4.2, update in place to 4.3, back up again.\n{}",
        words(&facts.engine.version),
        steps(&[
            "Install the newest packages of the backup's own line, not of the next.",
            "From 4.3 to 4.4 the machine changes from EL7 to EL8: a new machine with the same name, 4.3.10 or newer backed up.",
            "EL8 to EL9 before 4.5.7: key files (`*.p12`) of old encryption cannot be read; update to 4.5.7, and give `/etc/pki/ovirt-engine/keys/*.p12` back to `ovirt` if the engine cannot read them.",
        ])
    )
}

pub fn data_warehouse(facts: &Facts) -> String {
    let fqdn = quoted(&facts.engine.fqdn);
    let to = "--to db.example.com --password-file /root/dwh.pw";
    format!(
        "To a machine of its own, the database first and the service at once after it. Exactly one \
         `ovirt-engine-dwhd` may run for an engine.\n\n## With hvbak, from the backup host\n\n\
         The new PostgreSQL has the role and an empty database of its own, the new machine the \
         package `ovirt-engine-dwh-setup` and **no** `engine-setup` yet. Each command looks first \
         and names what is missing; one that died goes on when it is given again.\n{}{}## The way \
         back\n{}{}## By hand, without hvbak\n\n### On the manager\n{}### On the new \
         machine\n\nOnly tools and database; **no** `engine-setup` yet. A restore of the manager's files also puts \
         the manager's PKI there: guard the machine as the manager.\n{}### The service\n{}{}",
        commands(&[
            "# the database: what would be done, then do it".into(),
            format!("hvbak dwh move-database {to} --dry-run"),
            format!("hvbak dwh move-database {to}"),
            "# then the service; the manager's PostgreSQL must let the new machine in".into(),
            format!("hvbak dwh move-service --to dwh.example.com --engine-db-host {fqdn} --dry-run"),
            format!("hvbak dwh move-service --to dwh.example.com --engine-db-host {fqdn}"),
            "# on the manager, when nothing speaks against it (self-hosted: global maintenance)".into(),
            "systemctl restart ovirt-engine".into(),
            "# on the new machine; Grafana's own machine, too".into(),
            "engine-setup".into(),
        ]),
        steps(&[
            "The notes of `--dry-run` were read: rights of roles that the new server lacks, TLS, space there.",
            "hvbak has said that the service was seen in the new database.",
            "The old database stays until nothing misses it; then drop it by hand.",
            "The new database is backed up where it is: `engine-backup` on the manager leaves it out now.",
        ]),
        commands(&[
            "hvbak dwh move-service --revert".into(),
            "hvbak dwh move-service --revert --machine-is-lost   # only when it is gone for good".into(),
            "hvbak dwh move-database --revert --dry-run          # what was collected since".into(),
            "hvbak dwh move-database --revert --lose-rows        # leaves that behind".into(),
        ]),
        steps(&[
            "The service first, the database after it.",
            "A lost machine that comes back: `systemctl disable --now ovirt-engine-dwhd` there before it has a network.",
        ]),
        commands(&[
            "systemctl disable --now ovirt-engine-dwhd".into(),
            "engine-backup --mode=backup --scope=files --scope=dwhdb --file=/root/dwh.backup --log=/root/dwh.log".into(),
            "cp -a /etc/ovirt-engine-dwh /root/ovirt-engine-dwh.before   # the way back".into(),
        ]),
        commands(&[
            "dnf install ovirt-engine-tools-backup postgresql-server".into(),
            "postgresql-setup --initdb && systemctl enable --now postgresql".into(),
            format!("scp root@{fqdn}:/root/dwh.backup /root/"),
            "engine-backup --mode=restore --scope=files --scope=dwhdb --file=/root/dwh.backup --log=/root/restore.log --provision-dwh-db --restore-permissions".into(),
        ]),
        commands(&[
            "# new machine; the manager's PostgreSQL must be reachable on port 5432".into(),
            "dnf install ovirt-engine-dwh-setup && engine-setup".into(),
            "# then on the manager".into(),
            "engine-setup".into(),
        ]),
        steps(&[
            "`dwh_history_timekeeping` of the engine's database names the new machine in `dwhHostname`.",
            "The manager's `ovirt-engine-dwhd` stays disabled.",
            "From now on back the new machine up as well: `engine-backup --scope=all` there holds what is set up there.",
            "Way back: stop the new service, put `/root/ovirt-engine-dwh.before` back, enable the old one, `engine-setup`.",
        ])
    )
}
