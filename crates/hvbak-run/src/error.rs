//! What a job can fail with, the exit code it deserves, and the remedy.

use hvbak_engine::EngineError;
use hvbak_repo::Error as RepoError;
use hvbak_types::{DiskId, IdError};
use hvbak_wire::Code;

/// A failed operation of a job. Causes are not repeated in the text.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum RunError {
    #[error("cannot {doing}")]
    Engine {
        doing: String,
        #[source]
        cause: EngineError,
    },
    #[error("cannot {doing} on host {host}")]
    Ssh {
        host: String,
        doing: &'static str,
        #[source]
        cause: hvbak_ssh::Error,
    },
    #[error("worker on host {host} cannot {doing}: {message}")]
    Worker { host: String, doing: String, code: hvbak_wire::Code, message: String },
    #[error("worker on host {host} does not speak as expected: {text}")]
    Protocol { host: String, text: String },
    #[error("worker on host {host} ended: {text}")]
    WorkerGone { host: String, text: String },
    #[error("cannot {doing}")]
    Repository {
        doing: String,
        #[source]
        cause: RepoError,
    },
    #[error("no worker binary to push: none is installed beside hvbak")]
    NoWorkerBinary,
    #[error("host {host} is not known to the engine")]
    UnknownHost { host: String },
    #[error("engine recorded no host key for {host} and the configuration has none")]
    NoHostKey { host: String },
    #[error("host {host} has the recorded key {shown}, and another fingerprint was given")]
    HostKeyNotGiven { host: String, shown: String },
    #[error("snapshot `{description}` {what}")]
    Snapshot { description: String, what: String },
    #[error("freezing the guest of {vm} failed and is required")]
    Freeze {
        vm: String,
        #[source]
        cause: EngineError,
    },
    #[error("disk {alias}: {what}")]
    Chain { alias: String, what: String },
    #[error("disk {alias} changed while it was read: {what}")]
    Changed { alias: String, what: String },
    #[error("disk {alias} was restored wrongly: {what}")]
    Compare { alias: String, what: String },
    #[error("{what} does not bear the mark of this repository and is left alone")]
    Foreign { what: String },
    #[error("it cannot be backed up now: {why}")]
    NotNow { why: String },
    #[error("the point does not hold disk {disk}")]
    NoSuchDisk { disk: DiskId },
    #[error("stored document {name} cannot be used: {why}")]
    Document { name: String, why: String },
    #[error("the stored configuration of the VM holds an unusable id")]
    BadId(#[from] IdError),
    #[error("cannot {doing}")]
    Local {
        doing: String,
        #[source]
        cause: std::io::Error,
    },
    #[error("a task of this program failed: {text}")]
    Task { text: String },
    #[error("manager {manager} cannot be worked with: {why}")]
    ManagerUnfit { manager: String, why: String },
    #[error("manager {manager} gives an answer that makes no sense")]
    ManagerAnswer {
        manager: String,
        #[source]
        cause: hvbak_manager::remote::AnswerError,
    },
    #[error("a run of engine-backup is at work on manager {manager} already")]
    ManagerBusy { manager: String },
    #[error("this cannot be asked of engine-backup")]
    ManagerCommand {
        #[source]
        cause: hvbak_manager::command::CommandError,
    },
    #[error("backup of manager {manager} failed{}", kept_text(kept))]
    ManagerRun {
        manager: String,
        #[source]
        cause: hvbak_manager::transcript::RunFailed,
        kept: Option<std::path::PathBuf>,
    },
    #[error("the archive that manager {manager} made is no good: {why}{}", kept_text(kept))]
    ManagerArchive { manager: String, why: String, kept: Option<std::path::PathBuf> },
    #[error("{}manager {manager} cannot be restored now: {}", changed_text(*cleaned), stops_text(.findings))]
    ManagerPreflight {
        manager: String,
        findings: Vec<hvbak_manager::restore::Finding>,
        /// engine-cleanup was run before.
        cleaned: bool,
    },
    #[error("restore of manager {manager} failed{}", kept_text(kept))]
    ManagerRestore {
        manager: String,
        #[source]
        cause: hvbak_manager::restore::RestoreFailed,
        kept: Option<std::path::PathBuf>,
        /// It was judged late, and the engine is at work on what it restored.
        in_use: bool,
    },
    #[error(
        "what an earlier hvbak has begun on manager {manager} was picked up and ended: {earlier}; nothing was done of {wished}"
    )]
    ManagerOtherRestore { manager: String, earlier: String, wished: String },
    #[error("{program} failed on manager {manager}: {why}{}", kept_text(kept))]
    ManagerTool {
        manager: String,
        program: &'static str,
        why: String,
        kept: Option<std::path::PathBuf>,
    },
    #[error(
        "a restore, or a move of the Data Warehouse, was started on manager {manager} and nobody has seen what came of it: `hvbak manager-restore --pick-up`, or the same `hvbak dwh` command, waits for it and judges it"
    )]
    ManagerUnjudged { manager: String },
    #[error("password for {scope} cannot be used: {why}")]
    ManagerPassword { scope: hvbak_manager::Scope, why: &'static str },
    #[error("the extra files of manager {manager} stay as they are")]
    ManagerPaths {
        manager: String,
        #[source]
        cause: hvbak_manager::extra::ExtraError,
    },
    #[error("the configuration of the Data Warehouse on manager {manager} cannot be changed")]
    DwhEdit {
        manager: String,
        #[source]
        cause: hvbak_manager::dwh::EditError,
    },
    #[error("{}the Data Warehouse of manager {manager} cannot be moved now: {}", begun_text(*begun), stops_text(.findings))]
    DwhPreflight {
        manager: String,
        findings: Vec<hvbak_manager::restore::Finding>,
        /// An earlier hvbak has begun it, and stopped the service.
        begun: bool,
    },
    #[error("the copy of the Data Warehouse of manager {manager} failed{}", kept_text(kept))]
    DwhCopy {
        manager: String,
        #[source]
        cause: hvbak_manager::dwh::CopyFailed,
        kept: Option<std::path::PathBuf>,
        /// The service works on the old database again.
        taken_back: bool,
        /// How the new database is made.
        again: String,
    },
    #[error(
        "the databases of the Data Warehouse of manager {manager} differ since the copy, and no file was changed: {what}"
    )]
    DwhDiffer {
        manager: String,
        what: String,
        /// How the new database is made.
        again: String,
    },
    #[error(
        "the databases of the Data Warehouse of manager {manager} cannot be compared, and no file was changed: {what}"
    )]
    DwhUncompared { manager: String, what: String },
    #[error(
        "the service of the Data Warehouse on manager {manager} is started again and again while its file is to change"
    )]
    DwhAtWork { manager: String },
    #[error(
        "the files of the Data Warehouse on manager {manager} are changed, and still its service would work on {at}"
    )]
    DwhElsewhere { manager: String, at: String },
    #[error(
        "the service of the Data Warehouse of manager {manager} was started and is not seen to work on {at}: {why}"
    )]
    DwhSilent {
        manager: String,
        at: String,
        why: String,
        /// The command that puts the move back.
        way_back: Option<&'static str>,
    },
    #[error("the Data Warehouse's machine {name} of manager {manager} is not lost: {why}")]
    DwhNotLost { manager: String, name: String, why: String },
    #[error("the move of the Data Warehouse of manager {manager} was not put back: {}", stops_text(.findings))]
    DwhBack { manager: String, findings: Vec<hvbak_manager::restore::Finding> },
    #[error("{path} on manager {manager} {why}")]
    DwhFile { manager: String, path: String, why: String },
    #[error("another move of the Data Warehouse of manager {manager} is not ended: {what}")]
    DwhOther { manager: String, what: String },
    #[error("there is no move of the Data Warehouse of manager {manager} that could be put back")]
    DwhNone { manager: String },
    #[error("host {host} tells nothing of the self-hosted engine")]
    HostedEngine {
        host: String,
        #[source]
        cause: hvbak_manager::hosted_engine::VmStatusError,
    },
    #[error("host {host} took the maintenance `{mode}` and does not show it")]
    HostedEngineUnchanged { host: String, mode: &'static str },
    #[error("the configuration has no section [manager], which step `{step}` needs")]
    WalkNoManager { step: &'static str },
    #[error("{cause}")]
    WalkSite { cause: hvbak_manager::sequence::SequenceError },
    #[error("a sequence `{sequence}` is open for this manager, with {what}")]
    WalkOther { sequence: String, what: String },
    #[error("this sequence has no step `{step}`")]
    WalkNoStep { step: String, names: String },
    #[error("the sequence cannot go back")]
    WalkBack {
        #[source]
        cause: hvbak_manager::sequence::Irrevocable,
    },
    #[error("step `{step}` is not seen to be done: {why}")]
    WalkUnseen { step: &'static str, sign: &'static str, why: String },
    /// Nobody who is heard knows.
    #[error("nobody can tell whether step `{step}` is done: {why}")]
    WalkUnknown { step: &'static str, why: String },
    #[error("step `{step}` was not shown yet: the sequence is open at `{open}`")]
    WalkNotReached { step: &'static str, open: &'static str },
    #[error("whether step `{step}` is done hvbak sees itself, or asks for it")]
    WalkNoWitness { step: &'static str },
    #[error("the sequence goes by way of host {host}, and that one answers")]
    WalkHostThere { host: String },
    #[error("host {host} cannot be asked instead: {why}")]
    WalkHostSilent { host: String, why: String },
    #[error("the archive that this walk makes will be encrypted, and {} to {}", key_text(*.wrong), .recipients.join(", "))]
    WalkNeedsKey { recipients: Vec<String>, wrong: bool },
    #[error("host {host} cannot be given a file: {}", refused_text(*.code))]
    WalkRefused { host: String, code: u32 },
    #[error("host {host} cannot take the engine: {}", stops_text(.findings))]
    FreshHost { host: String, findings: Vec<hvbak_manager::restore::Finding> },
    #[error("{file} of manager {manager} never arrived as it is there")]
    ManagerTransfer { manager: String, file: String },
    #[error("the half-made point cannot be gone on with: {what}")]
    Stale { what: String },
    /// The transfer was cut, and what there is of the point was kept.
    #[error("{cause}")]
    Cut {
        point: hvbak_types::PointId,
        #[source]
        cause: Box<RunError>,
    },
    #[error("no drill can be held here: {why}")]
    DrillUnfit { why: String },
    #[error("command {program} ({moment}) failed {place}: {why}")]
    Hook {
        moment: crate::hook::HookMoment,
        program: String,
        place: String,
        why: String,
        hint: Option<String>,
    },
    #[error("the configuration does not say how the guest of {vm} is reached")]
    UnknownGuest { vm: String },
    #[error("{tool} failed: {text}")]
    Tool { tool: String, text: String },
    #[error("{why}; nothing of it was deleted")]
    CannotReplace { why: String, remedy: String },
    /// The old VM is gone.
    #[error(
        "VM `{name}` is deleted, and its successor {new}, made as `{temporary}`, is complete but not in its place: {cause}"
    )]
    ReplaceHalted {
        name: String,
        temporary: String,
        new: hvbak_types::VmId,
        #[source]
        cause: Box<RunError>,
    },
    #[error("VM `{name}` ({vm}) is there, and its disk {lost} is not: its deletion was begun")]
    ReplaceUnclear { name: String, vm: hvbak_types::VmId, lost: String },
    #[error("cancelled")]
    Cancelled,
}

pub type Result<T, E = RunError> = std::result::Result<T, E>;

impl RunError {
    /// The process's exit code for it (part of the CLI's contract).
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Engine { cause, .. } | Self::Freeze { cause, .. } => match cause {
                EngineError::LoginRefused { .. } => 12,
                EngineError::Unreachable { .. } | EngineError::Tls { .. } => 14,
                EngineError::Config { .. } => 2,
                _ => 1,
            },
            Self::Ssh { cause, .. } => match cause {
                _ if cause.is_host_key() => 13,
                _ if cause.is_login() => 12,
                _ => 1,
            },
            Self::NoHostKey { .. } | Self::HostKeyNotGiven { .. } => 13,
            Self::Repository { cause, .. } => match cause {
                RepoError::NoRepository { .. } => 10,
                RepoError::Locked { .. } => 11,
                RepoError::Selector { .. }
                | RepoError::NoVm { .. }
                | RepoError::AmbiguousVm { .. }
                | RepoError::NoPoint { .. }
                | RepoError::NoDisk { .. }
                | RepoError::Recipient { .. }
                | RepoError::Identity { .. }
                | RepoError::NeedsIdentity { .. }
                | RepoError::WrongIdentity { .. } => 2,
                RepoError::Cancelled => 130,
                _ if cause.is_damage() => 15,
                _ => 1,
            },
            Self::Compare { .. } | Self::ManagerArchive { .. } => 15,
            Self::ManagerRestore { cause, .. } => match cause {
                hvbak_manager::restore::RestoreFailed::Run(_) => 1,
                _ => 15,
            },
            Self::ManagerPassword { .. }
            | Self::DwhEdit { cause: hvbak_manager::dwh::EditError::Value { .. }, .. } => 2,
            Self::ManagerPaths { cause: hvbak_manager::extra::ExtraError::Path { .. }, .. } => 2,
            Self::ManagerBusy { .. } => 11,
            Self::ManagerCommand { .. }
            | Self::DrillUnfit { .. }
            | Self::WalkNoManager { .. }
            | Self::WalkSite { .. }
            | Self::WalkOther { .. }
            | Self::WalkNeedsKey { .. }
            | Self::WalkNotReached { .. }
            | Self::WalkNoWitness { .. }
            | Self::WalkHostThere { .. }
            | Self::WalkNoStep { .. }
            | Self::WalkBack { .. } => 2,
            Self::Cut { cause, .. } | Self::ReplaceHalted { cause, .. } => cause.exit_code(),
            Self::Cancelled => 130,
            _ => 1,
        }
    }

    /// Whether the way to the host or the worker on it was lost, and nothing else is wrong.
    pub fn is_cut(&self) -> bool {
        match self {
            Self::Ssh { cause, .. } => {
                cause.retryable() || matches!(cause, hvbak_ssh::Error::CommandGone { .. })
            }
            Self::WorkerGone { .. } | Self::Cut { .. } => true,
            _ => false,
        }
    }

    /// The id under which the engine logged the request that failed.
    pub fn correlation(&self) -> Option<&str> {
        match self {
            Self::Engine { cause, .. } | Self::Freeze { cause, .. } => cause.correlation(),
            Self::Cut { cause, .. } | Self::ReplaceHalted { cause, .. } => cause.correlation(),
            _ => None,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Engine { cause, .. } => return cause.hint(),
            Self::Cut { point, cause } => {
                let kept = format!(
                    "half-made point {point} is kept: the next backup of this VM continues, `hvbak cleanup` discards"
                );
                return Some(match cause.hint() {
                    Some(hint) => format!("{kept}; {hint}"),
                    None => kept,
                });
            }
            Self::CannotReplace { remedy, .. } => return Some(remedy.clone()),
            Self::ReplaceHalted { cause, .. } => {
                let on = "delete nothing: `hvbak cleanup`, or the same restore again, ends it";
                return Some(match cause.hint() {
                    Some(hint) => format!("{on}; {hint}"),
                    None => on.to_owned(),
                });
            }
            Self::ReplaceUnclear { .. } => {
                "delete that VM in the engine, then `hvbak cleanup` puts its successor in its place"
            }
            Self::ManagerRun { cause, .. } => cause.hint(),
            Self::ManagerRestore { in_use: true, .. } => {
                "the engine is at work on what was restored: read the kept log, and change nothing before"
            }
            Self::ManagerRestore { cause, .. } => cause.hint(),
            Self::ManagerOtherRestore { .. } => {
                "see what is on the manager now; give the command again if it is still wished"
            }
            Self::WalkNoManager { .. } => "add `[manager]` with `host = \"engine.example.com\"`",
            Self::WalkOther { .. } => {
                "give the same options to go on with it, or `--restart` to begin anew"
            }
            Self::WalkUnknown { step, .. } => {
                return Some(format!(
                    "another host of the self-hosted engine may know: `--host OTHER`; or look for yourself, \
                     and answer for what you saw: `--witness {step}`"
                ));
            }
            Self::WalkNotReached { .. } => {
                "answer what was shown; the same command without that answer goes on there"
            }
            Self::WalkNoWitness { .. } => "leave `--witness` away",
            Self::WalkHostThere { .. } => "go on with it",
            Self::WalkHostSilent { .. } => "name one that answers: `hvbak hosted-engine status`",
            Self::WalkNeedsKey { .. } => {
                "a later step opens it: give the private key of one of them, `--identity FILE`"
            }
            Self::WalkNoStep { names, .. } => return Some(format!("its steps: {names}")),
            Self::WalkBack { .. } => {
                "go on where it is; `--restart` begins anew, when you know what that step left"
            }
            Self::WalkUnseen { sign, .. } => {
                return Some(if sign.is_empty() {
                    "the same command goes on there".to_owned()
                } else {
                    format!("it is done when {sign}; the same command goes on there")
                });
            }
            Self::WalkRefused { code: 64, .. } => "look at what lies there, and remove it",
            Self::WalkRefused { .. } => "free space there",
            Self::DwhCopy {
                taken_back: true,
                cause: hvbak_manager::dwh::CopyFailed::Said { filled: false, .. },
                ..
            } => {
                "the service works on the old database again, and the new one is as it was; begin again when the cause is gone"
            }
            Self::DwhCopy { taken_back: true, again, .. } | Self::DwhDiffer { again, .. } => {
                return Some(format!(
                    "the service works on the old database again, and the new one holds a copy: drop it there, make it anew ({again}), and begin again"
                ));
            }
            Self::DwhNotLost { .. } => {
                "two services must not work for one engine: `--revert` without `--machine-is-lost` when it answers; else see that it is off for good, and wait five minutes"
            }
            Self::DwhUncompared { .. } | Self::DwhAtWork { .. } => {
                "the service is stopped: the same command again goes on, `hvbak dwh move-database --revert` puts back"
            }
            Self::DwhElsewhere { .. } => {
                "the service is stopped: find the file in /etc/ovirt-engine-dwh/ovirt-engine-dwhd.conf.d that names it and take it away; the same command again goes on, `--revert` puts back"
            }
            Self::DwhSilent { way_back, .. } => {
                let look = "read /var/log/ovirt-engine-dwh/ovirt-engine-dwhd.log on its machine";
                return Some(match way_back {
                    Some(command) => format!("{look}; `{command}` goes back"),
                    None => look.to_owned(),
                });
            }
            Self::DwhCopy { .. } => {
                "the service is stopped: the same command again goes on, `hvbak dwh move-database --revert` puts back"
            }
            Self::DwhOther { .. } => {
                "end it by its own command, or put it back with `--revert` of it"
            }
            Self::DwhFile { .. } => {
                "the originals are in the repository, in the newest manager/FQDN/.dwh-*"
            }
            Self::ManagerPreflight { findings, .. }
            | Self::FreshHost { findings, .. }
            | Self::DwhPreflight { findings, .. }
            | Self::DwhBack { findings, .. } => {
                let remedies: Vec<_> =
                    findings.iter().filter_map(|f| f.remedy.as_deref()).collect();
                return (!remedies.is_empty()).then(|| remedies.join("; "));
            }
            Self::ManagerTool { .. } => {
                "its own log is in /var/log/ovirt-engine/setup on the manager"
            }
            Self::ManagerPaths { cause, .. } => return cause.hint(),
            Self::HostedEngine { cause, .. } => cause.hint(),
            Self::Hook { hint, .. } => return hint.clone(),
            Self::UnknownGuest { vm } => {
                return Some(format!("add `[guests.\"{vm}\"]` with `address` and `host_key`"));
            }
            Self::HostedEngineUnchanged { .. } => {
                "look at ovirt-ha-agent and the shared storage of the self-hosted engine"
            }
            Self::ManagerBusy { .. } => {
                "wait for it to end; the next `hvbak manager-backup`, or `hvbak manager-restore --pick-up`, takes home what it made"
            }
            Self::Freeze { .. } => "start qemu-guest-agent in the guest, or use `--quiesce auto`",
            Self::Ssh { cause, .. } => return cause.hint(),
            Self::Repository { cause, .. } => return cause.hint(),
            Self::DrillUnfit { .. } => "set `scratch` and `user` of [drill] in the configuration",
            Self::NoWorkerBinary => {
                "install the hvbak-worker package, or set worker.path in the configuration"
            }
            Self::HostKeyNotGiven { .. } => {
                "compare with `ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub` on its console"
            }
            Self::NoHostKey { .. } => {
                "set hosts.NAME.host_key in the configuration, or enrol with `--accept-new-host-keys`"
            }
            Self::UnknownHost { .. } => "see the engine's hosts with `hvbak list hosts`",
            Self::Changed { .. } => {
                "somebody merged, moved or wrote the volumes meanwhile; run the backup again"
            }
            Self::Chain { .. } => {
                "a merge may be at work or have failed; look at the VM's snapshots and events in the engine"
            }
            Self::Foreign { .. } => {
                "if it is yours to remove, do it in the engine and delete the journal file in the repository"
            }
            Self::Snapshot { .. } => "look at the VM's events in the engine",
            Self::Worker { code, .. } => match code {
                Code::Permission => "the storage refuses uid 36; check the export's ownership",
                Code::Io => "the storage fails on that host: `journalctl -k` there names it",
                Code::Changed => "somebody moved or merged it meanwhile; run it again",
                Code::Metadata | Code::BackingName => {
                    "the volume's metadata or header is damaged: `vdsm-tool dump-volume-chains` on the host shows both"
                }
                Code::NoSpace => {
                    "free space on the storage domain, or restore to another with `--storage-domain`"
                }
                Code::Merging => {
                    "a snapshot is being merged or a merge has failed; look at the VM's events in the engine"
                }
                Code::Image => {
                    "the volume is damaged; look at it with `qemu-img check` on the host"
                }
                Code::NotFound => {
                    "the host does not see the volume; is its storage domain active there?"
                }
                Code::Guard => {
                    "the target is not the empty disk that was made for this restore; nothing was written"
                }
                _ => return None,
            },
            Self::Protocol { .. } => {
                "install the hvbak-worker of this version on the host, or let hvbak push its own"
            }
            Self::ManagerArchive { .. } => {
                "it was not stored; see the kept log, and back up again when the cause is gone"
            }
            Self::WorkerGone { .. } => {
                "look at the host: its log, memory and whether fapolicyd refused the program (install the hvbak-worker package there)"
            }
            Self::Compare { .. } => {
                "the storage returned other bytes than were written; do not trust it; run `hvbak verify` on the point"
            }
            _ => return None,
        };
        Some(text.to_owned())
    }
}

fn kept_text(kept: &Option<std::path::PathBuf>) -> String {
    kept.as_ref().map_or_else(String::new, |path| format!(" (log kept in {})", path.display()))
}

/// What is wrong with the key for an archive that is still to be made.
fn key_text(wrong: bool) -> &'static str {
    if wrong {
        "the given key opens nothing that is encrypted"
    } else {
        "no key was given that opens what is encrypted"
    }
}

fn refused_text(code: u32) -> &'static str {
    if code == 64 { "a link or a directory has its name" } else { "it could not be written" }
}

fn begun_text(begun: bool) -> &'static str {
    if begun {
        "a move was begun, the service may be stopped, and `--revert` puts it back: "
    } else {
        "nothing was changed: "
    }
}

fn changed_text(cleaned: bool) -> &'static str {
    if cleaned {
        "engine-cleanup was run, and nothing else was changed; "
    } else {
        "nothing was changed; "
    }
}

fn stops_text(findings: &[hvbak_manager::restore::Finding]) -> String {
    findings.iter().map(|f| f.text.as_str()).collect::<Vec<_>>().join("; ")
}

/// Names the operation that an engine call belongs to.
pub(crate) fn engine(doing: impl Into<String>) -> impl FnOnce(EngineError) -> RunError {
    let doing = doing.into();
    move |cause| match cause {
        EngineError::Cancelled { .. } => RunError::Cancelled,
        cause => RunError::Engine { doing, cause },
    }
}

/// Names the operation that a repository call belongs to.
pub(crate) fn repository(doing: impl Into<String>) -> impl FnOnce(RepoError) -> RunError {
    let doing = doing.into();
    move |cause| RunError::Repository { doing, cause }
}

/// Names the host and operation that an SSH call belongs to.
pub(crate) fn ssh(
    host: &str,
    doing: &'static str,
) -> impl FnOnce(hvbak_ssh::Error) -> RunError + use<> {
    let host = host.to_owned();
    move |cause| RunError::Ssh { host, doing, cause }
}
