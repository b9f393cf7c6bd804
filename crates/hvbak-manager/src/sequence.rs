//! The long sequences around a self-hosted engine, as data: what is done where, with which
//! command, and by what it is seen to be done.
//!
//! Pure, and only words: nothing is done here. Sources: the published behaviour of
//! `hosted-engine` and `engine-backup` (oVirt 4.3 to 4.5). Invariants: a step says by which
//! sign it is seen to be done; names cannot leave their words; no secret is in a command.

use serde::Serialize;

/// Where archives are put on hosts and in the engine's VM.
pub const REMOTE_ARCHIVE: &str = "/root/hvbak-engine.backup";
/// Answers for the deployment, without passwords: it asks for these.
pub const ANSWERS: &str = "/root/hvbak-he-answers.conf";

/// Which sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sequence {
    /// A sound engine, to new storage by way of a fresh host.
    Move,
    /// A lost engine, onto a fresh host and new storage.
    Recover,
    /// A broken engine in a sound VM.
    Overwrite,
}

/// What is known of the site.
#[derive(Debug, Clone)]
pub struct Site {
    /// A host of the self-hosted engine that is there now.
    pub host: String,
    /// The fresh host; not for overwriting.
    pub to: Option<String>,
    /// The engine's name.
    pub fqdn: String,
    pub archive: Option<Archive>,
}

/// The archive that is restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Archive {
    /// `FQDN@POINT`.
    pub title: String,
    /// Its file on the backup host.
    pub path: String,
    pub sha256: String,
    pub version: String,
}

/// Where a step is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    BackupHost,
    /// The host that runs the engine's VM now.
    OldHost,
    FreshHost,
    EngineVm,
    Portal,
}

/// By what a step is seen to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sign {
    /// By nothing that a program could tell.
    None,
    /// The hosts show global maintenance.
    Maintained,
    /// They no longer show it.
    Released,
    /// The VM runs and the engine does not answer, or the VM is down.
    Silent,
    /// No live host runs the VM.
    VmDown,
    /// A host runs it, and the engine answers.
    Healthy,
    /// The archive lies there, byte for byte.
    Copied,
    /// The repository has the archive that was just made.
    FreshArchive,
}

/// One step.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    pub name: &'static str,
    pub title: String,
    pub place: Place,
    /// What is typed there; lines with `#` are words.
    pub commands: Vec<String>,
    pub sign: Sign,
}

/// Why there is no sequence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SequenceError {
    #[error("there is no stored archive of the manager with its files and its database")]
    NoArchive,
    #[error("this sequence needs a fresh host")]
    NoFreshHost,
    #[error("the fresh host is the one that the engine runs on now")]
    SameHost,
}

impl Place {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::BackupHost => "on the backup host",
            Self::OldHost => "on the host of the engine's VM",
            Self::FreshHost => "on the fresh host",
            Self::EngineVm => "in the engine's VM",
            Self::Portal => "in the portal",
        }
    }
}

impl Sign {
    /// For people; nothing when only a person can tell.
    pub fn words(self) -> Option<&'static str> {
        Some(match self {
            Self::None => return None,
            Self::Maintained => "`hvbak hosted-engine status` says GLOBAL MAINTENANCE",
            Self::Released => "`hvbak hosted-engine status` no longer says GLOBAL MAINTENANCE",
            Self::Silent => "`hvbak hosted-engine status` says that the engine does not answer",
            Self::VmDown => "`hvbak hosted-engine status` says that no host runs the VM",
            Self::Healthy => "`hvbak hosted-engine status` says that the engine answers",
            Self::Copied => "sha256sum says OK",
            Self::FreshArchive => "`hvbak manager-points` shows it",
        })
    }
}

impl Sequence {
    /// Its steps, in order.
    ///
    /// # Errors
    /// What is missing for it.
    pub fn steps(self, site: &Site) -> Result<Vec<Step>, SequenceError> {
        let fresh = match (self, &site.to) {
            (Self::Overwrite, _) => site.host.as_str(),
            (_, None) => return Err(SequenceError::NoFreshHost),
            (_, Some(to)) if *to == site.host => return Err(SequenceError::SameHost),
            (_, Some(to)) => to.as_str(),
        };
        // A move makes its own archive; until then there is nothing to name.
        let archive = match (self, &site.archive) {
            (Self::Move, archive) => archive.as_ref(),
            (_, None) => return Err(SequenceError::NoArchive),
            (_, archive) => archive.as_ref(),
        };
        let mut steps = match self {
            Self::Move => quiet(site),
            Self::Recover => dead(),
            Self::Overwrite => vec![maintained()],
        };
        let place = if self == Self::Overwrite { Place::EngineVm } else { Place::FreshHost };
        steps.push(copied(
            place,
            if self == Self::Overwrite { &site.fqdn } else { fresh },
            archive,
        ));
        match self {
            Self::Overwrite => steps.extend(overwritten(site)),
            Self::Move | Self::Recover => steps.extend(deployed(site, fresh)),
        }
        steps.extend(tidied(self, fresh));
        Ok(steps)
    }
}

fn step(
    name: &'static str,
    title: impl Into<String>,
    place: Place,
    commands: &[&str],
    sign: Sign,
) -> Step {
    let commands = commands.iter().map(|line| (*line).to_owned()).collect();
    Step { name, title: title.into(), place, commands, sign }
}

fn maintained() -> Step {
    step(
        "maintenance",
        "global maintenance: no host starts or stops the engine's VM meanwhile",
        Place::OldHost,
        &["hosted-engine --set-maintenance --mode=global", "hosted-engine --vm-status"],
        Sign::Maintained,
    )
}

/// A sound engine comes to rest, and its last state is backed up.
fn quiet(site: &Site) -> Vec<Step> {
    vec![
        step(
            "spm",
            "the SPM role lies with a host that is no hosted-engine host",
            Place::Portal,
            &["# Compute > Hosts > a regular host > Management > Select as SPM"],
            Sign::None,
        ),
        maintained(),
        step(
            "stop-engine",
            format!(
                "the engine on {} stops and stays stopped: what came later would be lost",
                site.fqdn
            ),
            Place::EngineVm,
            &["systemctl disable --now ovirt-engine"],
            Sign::Silent,
        ),
        step(
            "backup",
            "the manager is backed up in this state",
            Place::BackupHost,
            &["hvbak manager-backup"],
            Sign::FreshArchive,
        ),
        step(
            "shutdown",
            "the old VM goes down",
            Place::OldHost,
            &[
                "hosted-engine --vm-shutdown",
                "hosted-engine --vm-status   # until vm is no longer up",
            ],
            Sign::VmDown,
        ),
    ]
}

/// A lost engine is lost for certain.
fn dead() -> Vec<Step> {
    vec![step(
        "dead",
        "the old engine's VM runs nowhere and nobody will start it: two engines destroy the site",
        Place::OldHost,
        &[
            "hosted-engine --vm-status   # believe hosts with live data only",
            "hosted-engine --set-maintenance --mode=global   # where a host still answers",
            "virsh -r list   # on every hosted-engine host",
        ],
        Sign::VmDown,
    )]
}

fn copied(place: Place, to: &str, archive: Option<&Archive>) -> Step {
    let mut commands = Vec::new();
    if let Some(archive) = archive {
        let path = quoted(&archive.path);
        commands.push(format!("hvbak manager-verify {}", quoted(&archive.title)));
        commands.push(format!("scp -p {path} {}", quoted(&format!("root@{to}:{REMOTE_ARCHIVE}"))));
        commands.push(format!(
            "ssh {} 'echo {}  {REMOTE_ARCHIVE} | sha256sum --check'",
            quoted(&format!("root@{to}")),
            archive.sha256
        ));
    } else {
        commands.push("# the archive of the step `backup`, once it is there".into());
    }
    let title = match archive {
        Some(archive) => format!("{} of version {} lies on {to}", archive.title, archive.version),
        None => format!("the new archive lies on {to}"),
    };
    Step { name: "copy", title, place, commands, sign: Sign::Copied }
}

/// Onto a fresh host.
fn deployed(site: &Site, fresh: &str) -> Vec<Step> {
    let answers = [
        format!("cat >{ANSWERS} <<'END'"),
        "[environment:default]".into(),
        format!("OVEHOSTED_NETWORK/fqdn=str:{}", plain(&site.fqdn)),
        "# uncomment and fill in what it shall not ask; passwords do not belong here".into(),
        "#OVEHOSTED_NETWORK/bridgeIf=str:eth0".into(),
        "#OVEHOSTED_NETWORK/gateway=str:192.0.2.1".into(),
        "#OVEHOSTED_STORAGE/domainType=str:nfs".into(),
        "#OVEHOSTED_STORAGE/storageDomainConnection=str:nas.example.com:/new-empty-export".into(),
        "# exactly the old names:".into(),
        "#OVEHOSTED_STORAGE/storageDatacenterName=str:Default".into(),
        "#OVEHOSTED_ENGINE/clusterName=str:Default".into(),
        "END".into(),
    ];
    let answers: Vec<_> = answers.iter().map(String::as_str).collect();
    let deploy = format!(
        "hosted-engine --deploy --restore-from-file={REMOTE_ARCHIVE} --config-append={ANSWERS}"
    );
    vec![
        step(
            "names",
            format!(
                "{fresh} is freshly installed under a name that the site does not use, and {} resolves forward and reverse",
                site.fqdn
            ),
            Place::FreshHost,
            &[
                "dnf install ovirt-hosted-engine-setup tmux",
                &format!("getent ahosts {}", quoted(&site.fqdn)),
            ],
            Sign::None,
        ),
        step("answers", "answers for the deployment", Place::FreshHost, &answers, Sign::None),
        step(
            "deploy",
            "the engine is deployed to new, empty storage: never the old hosted-engine domain",
            Place::FreshHost,
            &[
                &format!("tmux new-session {}", quoted(&deploy)),
                "# `Pause execution` after a failed restore names a lock file /tmp/ansible.*_he_setup_lock:",
                "#   log in to the local VM, read /var/log/ovirt-engine/setup/restore-backup-*.log,",
                "#   most often its packages are older than the archive: dnf update there,",
                "#   run the engine-backup command of the log again, then on this host delete the lock file",
                "# a host that becomes non-operational (a required network is missing) pauses it the same way",
            ],
            Sign::Healthy,
        ),
    ]
}

/// Within the VM.
fn overwritten(site: &Site) -> Vec<Step> {
    let restore = format!(
        "engine-backup --mode=restore --file={REMOTE_ARCHIVE} --log=/root/hvbak-restore.log --restore-permissions"
    );
    vec![
        step(
            "restore",
            format!("what is broken on {} is removed and the archive restored over it", site.fqdn),
            Place::EngineVm,
            &[
                "engine-cleanup --otopi-environment=\"OVESETUP_CORE/remove=bool:True OVESETUP_CORE/engineStop=bool:True\"",
                &restore,
                "grep -E 'pg_restore: (error|\\[)|a worker process died' /root/hvbak-restore.log   # must print nothing but `must be owner of extension`",
                "engine-setup --accept-defaults --offline",
            ],
            Sign::None,
        ),
        step(
            "shutdown",
            "the VM goes down once, so that the agent starts it as its own",
            Place::OldHost,
            &[
                "hosted-engine --vm-shutdown",
                "hosted-engine --vm-status   # until vm is no longer up",
            ],
            Sign::VmDown,
        ),
        step(
            "release",
            "the maintenance ends; the agent starts the VM within ten minutes",
            Place::OldHost,
            &["hosted-engine --set-maintenance --mode=none"],
            Sign::Released,
        ),
        step(
            "healthy",
            "the engine answers",
            Place::OldHost,
            &["hosted-engine --vm-status", "hosted-engine --check-liveliness"],
            Sign::Healthy,
        ),
    ]
}

fn tidied(sequence: Sequence, fresh: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    if sequence != Sequence::Overwrite {
        steps.push(step(
            "redeploy",
            "every other hosted-engine host is reinstalled with Deploy",
            Place::Portal,
            &[
                "# Compute > Hosts > HOST > Maintenance, then Installation > Reinstall,",
                "#   tab Hosted Engine: Deploy; one after the other",
                "# VMs marked highly available: none of them may still run somewhere unseen",
            ],
            Sign::None,
        ));
        steps.push(step(
            "old-domain",
            "the old hosted-engine domain, now called `…_old_…`, is removed",
            Place::Portal,
            &["# Storage > Domains > NAME_old_TIME > Maintenance, Detach, Remove; only when all else is good"],
            Sign::None,
        ));
    }
    let place = if sequence == Sequence::Overwrite { Place::EngineVm } else { Place::FreshHost };
    let shred = format!("shred -u {REMOTE_ARCHIVE}   # it holds the CA's key and every password");
    steps.push(step(
        "shred",
        if sequence == Sequence::Overwrite {
            "the copy of the archive goes".to_owned()
        } else {
            format!("the copy of the archive on {fresh} goes")
        },
        place,
        &[&shred],
        Sign::None,
    ));
    steps.push(step(
        "again",
        "the engine's VM has a new host key, and everything is backed up again",
        Place::BackupHost,
        &[
            "hvbak enroll --manager --accept-new-host-keys --bootstrap-password-file FILE",
            "hvbak doctor",
            "hvbak manager-backup",
        ],
        Sign::None,
    ));
    steps
}

/// A word for a POSIX shell.
fn quoted(text: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "@%+=:,./-_".contains(c);
    if !text.is_empty() && text.chars().all(safe) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A name within a line of answers: it cannot end the line.
fn plain(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_alphanumeric() || ".-_".contains(*c)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site() -> Site {
        let archive = Archive {
            title: "engine.example.com@20261121T021454Z".into(),
            path: "/backup/it's here/engine.backup".into(),
            sha256: "ab".repeat(32),
            version: "4.5.7".into(),
        };
        Site {
            host: "hv1".into(),
            to: Some("hv9".into()),
            fqdn: "engine.example.com".into(),
            archive: Some(archive),
        }
    }

    fn names(sequence: Sequence) -> Vec<&'static str> {
        sequence.steps(&site()).unwrap().iter().map(|step| step.name).collect()
    }

    #[test]
    fn the_order_of_each_sequence() {
        let after =
            ["copy", "names", "answers", "deploy", "redeploy", "old-domain", "shred", "again"];
        let before = ["spm", "maintenance", "stop-engine", "backup", "shutdown"];
        assert_eq!(names(Sequence::Move), [&before[..], &after].concat());
        assert_eq!(names(Sequence::Recover), [&["dead"][..], &after].concat());
        assert_eq!(
            names(Sequence::Overwrite),
            ["maintenance", "copy", "restore", "shutdown", "release", "healthy", "shred", "again"]
        );
    }

    #[test]
    fn what_is_missing_is_said() {
        let none = Site { archive: None, ..site() };
        assert!(Sequence::Move.steps(&none).is_ok());
        for sequence in [Sequence::Recover, Sequence::Overwrite] {
            assert_eq!(sequence.steps(&none).unwrap_err(), SequenceError::NoArchive);
        }
        let alone = Site { to: None, ..site() };
        assert_eq!(Sequence::Move.steps(&alone).unwrap_err(), SequenceError::NoFreshHost);
        assert!(Sequence::Overwrite.steps(&alone).is_ok());
        let same = Site { to: Some("hv1".into()), ..site() };
        assert_eq!(Sequence::Recover.steps(&same).unwrap_err(), SequenceError::SameHost);
    }

    #[test]
    fn commands_hold_the_facts_and_names_cannot_leave_their_words() {
        let all: String = Sequence::Recover
            .steps(&site())
            .unwrap()
            .iter()
            .flat_map(|step| step.commands.clone())
            .map(|line| line + "\n")
            .collect();
        for line in [
            r"scp -p '/backup/it'\''s here/engine.backup' root@hv9:/root/hvbak-engine.backup",
            "sha256sum --check",
            "--deploy --restore-from-file=/root/hvbak-engine.backup --config-append=",
            "OVEHOSTED_NETWORK/fqdn=str:engine.example.com\n",
        ] {
            assert!(all.contains(line), "{line}: {all}");
        }
        let hostile =
            Site { to: Some("hv9; reboot".into()), fqdn: "e\nx=1 $(id)".into(), ..site() };
        let steps = Sequence::Recover.steps(&hostile).unwrap();
        let all: Vec<_> = steps.iter().flat_map(|step| step.commands.clone()).collect();
        assert!(
            all.iter().any(|line| line.contains("'root@hv9; reboot:/root/hvbak-engine.backup'"))
        );
        assert!(all.contains(&"OVEHOSTED_NETWORK/fqdn=str:ex1id".to_owned()));
    }
}
