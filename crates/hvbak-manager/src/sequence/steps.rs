//! Steps that several sequences share, and how a step is put together.

use super::{
    ANSWERS, Act, Archive, Hand, Holds, Lost, Place, REMOTE_ARCHIVE, Sequence, Sign, Site, Step,
    words::quoted,
};

/// Gives hvbak's key to a manager's machine that is new.
pub(super) const MANAGER_ENROLLED: &str =
    "hvbak enroll --manager --fingerprint SHA256:… --bootstrap-password-file FILE";

/// A step of a person's, seen by nothing.
pub(super) fn person(
    name: &'static str,
    title: impl Into<String>,
    place: Place,
    commands: &[&str],
) -> Step {
    let commands = commands.iter().map(|line| (*line).to_owned()).collect();
    let (hand, sign, title) = (Hand::Person, Sign::None, title.into());
    Step { name, title, place, hand, act: None, commands, sign, holds: None, once: false }
}

impl Step {
    /// hvbak does it.
    pub(super) fn by(self, hand: Hand, act: Act, sign: Sign) -> Self {
        Self { hand, act: Some(act), sign, ..self }
    }

    /// Its sign must be there until that step begins.
    pub(super) fn held(self, until: &'static str, lost: Lost) -> Self {
        Self { holds: Some(Holds { until, lost }), ..self }
    }
}

pub(super) fn maintained(until: &'static str) -> Step {
    person(
        "maintenance",
        "global maintenance: no host starts or stops the engine's VM meanwhile",
        Place::OldHost,
        &["hosted-engine --set-maintenance --mode=global", "hosted-engine --vm-status"],
    )
    .by(Hand::Hvbak, Act::EnterMaintenance, Sign::Maintained)
    // Agents that are let loose start the old VM beside the new one.
    .held(until, Lost::Again)
}

pub(super) fn spm() -> Step {
    person(
        "spm",
        "the SPM role lies with a host that is no hosted-engine host",
        Place::Portal,
        &["# Compute > Hosts > a regular host > Management > Select as SPM"],
    )
}

/// The engine comes to rest, and its last state is backed up.
pub(super) fn stopped(site: &Site, until: &'static str) -> [Step; 2] {
    let title = format!(
        "the engine on {} stops and stays stopped: what came later would be lost",
        site.fqdn
    );
    [
        person(
            "stop-engine",
            title,
            Place::Manager,
            &[
                "systemctl disable --now ovirt-engine",
                "# to undo: systemctl enable --now ovirt-engine",
            ],
        )
        .by(Hand::HvbakWhenSure, Act::StopEngine, Sign::EngineStopped)
        // An engine that ran again has more to say than its archive.
        .held(until, Lost::Back),
        person(
            "backup",
            "the manager is backed up in this state",
            Place::BackupHost,
            &["hvbak manager-backup"],
        )
        .by(Hand::Hvbak, Act::BackUp, Sign::FreshArchive),
    ]
}

pub(super) fn shut_down(title: &str) -> Step {
    person(
        "shutdown",
        title,
        Place::OldHost,
        &["hosted-engine --vm-shutdown", "hosted-engine --vm-status   # until vm is no longer up"],
    )
    .by(Hand::HvbakWhenSure, Act::ShutDown, Sign::VmDown)
}

pub(super) fn copied(to: &str, archive: Option<&Archive>) -> Step {
    let mut commands = Vec::new();
    let mut title = format!("the new archive lies on {to}");
    if let Some(archive) = archive {
        let (root, path) = (format!("root@{to}"), quoted(&archive.path));
        let point = quoted(&archive.title);
        if archive.recipients.is_empty() {
            commands.push(format!("hvbak manager-verify {point}"));
            commands.push(format!("scp -p {path} {}", quoted(&format!("{root}:{REMOTE_ARCHIVE}"))));
        } else {
            let keys = archive.recipients.join(", ");
            let keys: String = keys.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            commands.push(format!("IDENTITY=/path/to/private.key   # of one of: {keys}"));
            commands.push(format!("hvbak manager-verify {point} --identity \"$IDENTITY\""));
            commands.push(format!(
                "age --decrypt --identity \"$IDENTITY\" {path} | ssh {} 'umask 077; cat >{REMOTE_ARCHIVE}'",
                quoted(&root)
            ));
        }
        commands.push(format!(
            "ssh {} 'echo {}  {REMOTE_ARCHIVE} | sha256sum --check'",
            quoted(&root),
            archive.sha256
        ));
        title = format!("{} of version {} lies on {to}", archive.title, archive.version);
    } else {
        commands.push("# the archive of the step `backup`, once it is there".into());
    }
    Step { commands, ..person("copy", title, Place::FreshHost, &[]) }
        .by(Hand::Hvbak, Act::Copy, Sign::Copied)
        .held("deploy", Lost::Again)
}

/// What was put on the fresh host goes.
pub(super) fn swept(fresh: &str) -> Step {
    let shred = format!("shred -u {REMOTE_ARCHIVE}   # it holds the CA's key and every password");
    let remove = format!("rm -f {ANSWERS}");
    let title = format!("the archive and the answers on {fresh} go");
    person("shred", title, Place::FreshHost, &[&shred, &remove]).by(
        Hand::Hvbak,
        Act::Sweep,
        Sign::Swept,
    )
}

pub(super) fn again(sequence: Sequence) -> Step {
    let key = "# where [manager] has a `host_key`, it is the old one: replace it by what the new machine's console shows";
    let all = [key, MANAGER_ENROLLED, "hvbak doctor", "hvbak manager-backup"];
    let (title, commands) = match sequence {
        // The machine stayed what it was.
        Sequence::Overwrite => ("everything is backed up again", &all[2..]),
        _ => {
            ("the engine's machine has a new host key, and everything is backed up again", &all[..])
        }
    };
    person("again", title, Place::BackupHost, commands)
}
