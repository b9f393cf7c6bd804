//! The long sequences around a self-hosted engine, as data: what is done where, by whom, with
//! which command, and by what it is seen to be done.
//!
//! Pure: nothing is done here. Sources: the published behaviour of `hosted-engine` and
//! `engine-backup` (oVirt 4.3 to 4.5). Invariants: a step says by which sign it is seen to be
//! done; names cannot leave their words; no secret is in a command; a step that would harm
//! when it is done twice is marked `once`.

mod deploy;
mod moving;
mod overwrite;
mod recover;
mod sign;
mod standalone;
mod steps;
mod walk;
mod words;

use serde::{Deserialize, Serialize};

pub use sign::{Seen, Sign};
pub use walk::{Irrevocable, State, back_to, from, held, next};
pub use words::answers;

/// Where archives are put on hosts.
pub const REMOTE_ARCHIVE: &str = "/root/hvbak-engine.backup";
/// Answers for the deployment, without passwords: it asks for these.
pub const ANSWERS: &str = "/root/hvbak-he-answers.conf";

/// Which sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sequence {
    /// A sound engine, to new storage by way of a fresh host.
    Move,
    /// A lost engine, onto a fresh host and new storage.
    Recover,
    /// A broken engine in a sound VM.
    Overwrite,
    /// A manager with a machine of its own becomes a self-hosted engine.
    ToHosted,
    /// A self-hosted engine gets a machine of its own.
    ToStandalone,
}

/// What is known of the site.
#[derive(Debug, Clone)]
pub struct Site {
    /// A host of the self-hosted engine that is there now: its address, and how hvbak's
    /// configuration calls it.
    pub host: Option<String>,
    pub host_name: Option<String>,
    /// The fresh host, where there is to be one.
    pub to: Option<String>,
    /// The engine's name.
    pub fqdn: String,
    pub archive: Option<Archive>,
}

/// The archive that is restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archive {
    /// `FQDN@POINT`.
    pub title: String,
    /// Its file on the backup host.
    pub path: String,
    /// Of the archive as engine-backup made it.
    pub sha256: String,
    /// The public keys that its file is encrypted to; none: it is not.
    #[serde(default)]
    pub recipients: Vec<String>,
    pub version: String,
}

/// Where a step is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    BackupHost,
    /// A host of the self-hosted engine as it is now.
    OldHost,
    FreshHost,
    /// The manager's own machine, a VM or not.
    Manager,
    /// The fresh machine that becomes the manager.
    FreshMachine,
    Portal,
}

/// Who does a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hand {
    /// hvbak looks and changes nothing.
    Look,
    /// hvbak does it, and it can be done again.
    Hvbak,
    /// hvbak does it, and users of the site notice.
    HvbakWhenSure,
    Person,
    /// A person does it, and nothing that hvbak sees proves it.
    PersonWhenSure,
}

/// What hvbak does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Act {
    /// Nothing: the sign is looked at.
    Watch,
    CheckFreshHost,
    EnterMaintenance,
    LeaveMaintenance,
    StopEngine,
    BackUp,
    Copy,
    ShutDown,
    Answer,
    /// `manager-restore` over what is broken.
    Overwrite,
    /// `manager-restore` onto a fresh machine, out of the self-hosted engine.
    Restore,
    /// The copies on the fresh host go.
    Sweep,
}

/// A sign that must go on holding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Holds {
    /// The step that ends it: from its beginning on the sign need not be there any more.
    pub until: &'static str,
    pub lost: Lost,
}

/// What is done when it was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lost {
    /// This step is done again, and no other.
    Again,
    /// This step and all after it.
    Back,
    /// Nothing: it is told, since somebody else may have wanted that.
    Told,
}

/// One step.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    pub name: &'static str,
    pub title: String,
    pub place: Place,
    pub hand: Hand,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub act: Option<Act>,
    /// What is typed there; lines with `#` are words.
    pub commands: Vec<String>,
    pub sign: Sign,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holds: Option<Holds>,
    /// To do it twice destroys something.
    pub once: bool,
}

/// Why there is no sequence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SequenceError {
    #[error("there is no stored archive of the manager with its files and its database")]
    NoArchive,
    #[error("this sequence needs a fresh host")]
    NoFreshHost,
    #[error("this sequence needs a host of the self-hosted engine")]
    NoHost,
    #[error("the fresh host is the one that the engine runs on now")]
    SameHost,
}

impl Place {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::BackupHost => "on the backup host",
            Self::OldHost => "on a host of the self-hosted engine",
            Self::FreshHost => "on the fresh host",
            Self::Manager => "on the manager's machine",
            Self::FreshMachine => "on the fresh machine",
            Self::Portal => "in the portal",
        }
    }
}

impl Hand {
    /// Whether a person does it.
    pub fn is_person(self) -> bool {
        matches!(self, Self::Person | Self::PersonWhenSure)
    }

    /// Whether Enter is not enough.
    pub fn asks_twice(self) -> bool {
        matches!(self, Self::HvbakWhenSure | Self::PersonWhenSure)
    }
}

impl Sequence {
    /// As on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Move => "move",
            Self::Recover => "recover",
            Self::Overwrite => "overwrite",
            Self::ToHosted => "to-hosted",
            Self::ToStandalone => "to-standalone",
        }
    }

    /// Whether it restores the archive that one of its steps makes.
    pub fn makes_archive(self) -> bool {
        matches!(self, Self::Move | Self::ToHosted | Self::ToStandalone)
    }

    /// Whether there is a fresh host in it.
    pub fn has_fresh_host(self) -> bool {
        matches!(self, Self::Move | Self::Recover | Self::ToHosted)
    }

    /// Its steps, in order. Their names do not depend on the site.
    ///
    /// # Errors
    /// What is missing for it.
    pub fn steps(self, site: &Site) -> Result<Vec<Step>, SequenceError> {
        if self != Self::ToHosted && site.host.is_none() {
            return Err(SequenceError::NoHost);
        }
        if self.has_fresh_host() {
            match &site.to {
                None => return Err(SequenceError::NoFreshHost),
                Some(to) if site.host.as_ref() == Some(to) => return Err(SequenceError::SameHost),
                Some(_) => {}
            }
        }
        if !self.makes_archive() && site.archive.is_none() {
            return Err(SequenceError::NoArchive);
        }
        Ok(match self {
            Self::Move => moving::steps(site),
            Self::Recover => recover::steps(site),
            Self::Overwrite => overwrite::steps(site),
            Self::ToHosted => standalone::to_hosted(site),
            Self::ToStandalone => standalone::to_standalone(site),
        })
    }
}
