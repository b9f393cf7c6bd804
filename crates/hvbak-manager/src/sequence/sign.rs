//! By what a step is seen to be done, and what the hosts' answer says of it.
//!
//! Invariant: nothing is believed of a host without live data; where only such a host could
//! know, the answer is "unknown", never "yes".

use serde::Serialize;

use crate::hosted_engine::{HaHost, Verdict, VmStatus};

/// By what a step is seen to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sign {
    /// By nothing that a program could tell.
    None,
    /// Nothing speaks against the fresh host.
    Fit,
    /// The hosts show global maintenance.
    Maintained,
    /// They no longer show it.
    Released,
    /// The engine's service neither runs nor is enabled.
    EngineStopped,
    /// No host runs the VM, and all of them are heard.
    VmDown,
    /// No host that is heard runs the VM.
    NotSeenUp,
    /// A host runs it, and the engine answers.
    Healthy,
    /// The archive lies there, byte for byte, for root alone.
    Copied,
    /// The answer file lies there.
    Answered,
    /// Neither of both lies there.
    Swept,
    /// The repository has the archive that was just made.
    FreshArchive,
    /// The restore was judged, and the engine answers.
    Restored,
}

/// What is seen of a sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Yes,
    No(String),
    /// Nobody who is heard can tell.
    Unknown(String),
}

impl Sign {
    /// For people; nothing when only a person can tell.
    pub fn words(self) -> Option<&'static str> {
        Some(match self {
            Self::None => return None,
            Self::Fit => "nothing speaks against the fresh host",
            Self::Maintained => "`hvbak hosted-engine status` says GLOBAL MAINTENANCE",
            Self::Released => "`hvbak hosted-engine status` does not say GLOBAL MAINTENANCE",
            Self::EngineStopped => "`systemctl is-active ovirt-engine` says inactive",
            Self::VmDown => {
                "`hvbak hosted-engine status` says that no host runs the VM, and hears every host"
            }
            Self::NotSeenUp => "no host that answers says that the VM is up",
            Self::Healthy => "`hvbak hosted-engine status` says that the engine answers",
            Self::Copied => "sha256sum says OK",
            Self::Answered => "the file is there",
            Self::Swept => "both files are gone",
            Self::FreshArchive => "`hvbak manager-points` shows it",
            Self::Restored => "the restore was judged and the engine answers",
        })
    }

    /// Whether the hosts of the self-hosted engine are asked for it.
    pub fn is_of_hosts(self) -> bool {
        matches!(
            self,
            Self::Maintained | Self::Released | Self::VmDown | Self::NotSeenUp | Self::Healthy
        )
    }

    /// What the hosts' answer says. Signs that are not theirs are unknown to them.
    pub fn judge(self, status: &VmStatus) -> Seen {
        let silent: Vec<_> = status.hosts.iter().filter(|host| !host.live_data).collect();
        let heard = status.hosts.len() > silent.len();
        let unheard = || {
            let names: Vec<_> = silent.iter().map(|host| last_words(host)).collect();
            format!("without live data: {}", names.join("; "))
        };
        let live = || status.hosts.iter().filter(|host| host.live_data);
        let up = live().find(|host| host.engine_status.vm == "up");
        let unsure = live().find(|host| !host.engine_status.is_down());
        // Its agent starts the VM when it likes.
        let starts = live().find(|host| !host.stopped && !status.global_maintenance);
        match self {
            Self::Maintained | Self::Released if !heard => Seen::Unknown(unheard()),
            Self::Maintained if status.global_maintenance => Seen::Yes,
            Self::Maintained => Seen::No("the hosts do not show global maintenance".into()),
            Self::Released if !status.global_maintenance => Seen::Yes,
            Self::Released => Seen::No("the hosts still show global maintenance".into()),
            Self::VmDown | Self::NotSeenUp => match (up, unsure, starts) {
                (Some(host), ..) => Seen::No(format!("{} runs the engine's VM", host.hostname)),
                (None, Some(host), _) => {
                    let (host, vm) = (&host.hostname, &host.engine_status.vm);
                    Seen::Unknown(format!("{host} says of the engine's VM: {vm}"))
                }
                (None, None, Some(host)) if self == Self::NotSeenUp => Seen::No(format!(
                    "the agent of {} may start the engine's VM: set global maintenance, or stop ovirt-ha-agent there",
                    host.hostname
                )),
                _ if silent.is_empty() && heard => Seen::Yes,
                _ => Seen::Unknown(unheard()),
            },
            Self::Healthy => match status.verdict() {
                Verdict::Healthy { .. } => Seen::Yes,
                Verdict::NotAnswering { host, detail, reason } => Seen::No(format!(
                    "the engine's VM runs on {host} and does not answer: {detail}, {reason}"
                )),
                Verdict::Down => Seen::No("no host runs the engine's VM".into()),
                Verdict::Unknown => Seen::Unknown(unheard()),
            },
            _ => Seen::Unknown("the hosts cannot tell".into()),
        }
    }
}

/// What a host said before it fell silent. Its clock counts seconds since it started.
fn last_words(host: &HaHost) -> String {
    let at = host.host_ts.map_or_else(String::new, |ts| format!(" at its second {ts}"));
    format!("{} (last said{at}: vm {})", host.hostname, host.engine_status.vm)
}
