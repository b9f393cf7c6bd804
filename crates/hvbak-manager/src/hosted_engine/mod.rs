//! The self-hosted engine as its hosts tell of it: `hosted-engine --vm-status --json`.
//!
//! Facts: engine-status of a host without live data is an old value that the JSON form
//! still shows; a broker that is down makes the program print a Python traceback and no
//! JSON; a host that never joined says so in one sentence.

pub mod fresh;
pub mod remote;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The maintenance of `--set-maintenance`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Maintenance {
    /// Nobody starts or stops the engine's VM.
    Global,
    /// This host does not run it.
    Local,
    None,
}

impl Maintenance {
    /// As in `--mode=`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Global => "global",
            Self::Local => "local",
            Self::None => "none",
        }
    }
}

/// One host of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HaHost {
    pub host_id: u32,
    /// When it last said something, in seconds of its own clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ts: Option<i64>,
    pub hostname: String,
    /// 3400 at best; 0: it will not run the VM.
    pub score: i64,
    pub engine_status: EngineStatus,
    /// Local maintenance.
    pub maintenance: bool,
    #[serde(default)]
    pub stopped: bool,
    /// False: all that is said of it is old.
    #[serde(default)]
    pub live_data: bool,
}

impl EngineStatus {
    /// Whether the host says so. `unknown` (it could not ask) and words of another version are
    /// no such saying.
    pub fn is_down(&self) -> bool {
        matches!(self.vm.as_str(), "down" | "down_unexpected" | "down_missing")
    }
}

/// What a host says of the engine's VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineStatus {
    /// up, down, `down_unexpected`, `down_missing`, unknown.
    pub vm: String,
    /// good, bad, unknown.
    pub health: String,
    #[serde(default)]
    pub detail: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What all hosts say together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Verdict {
    /// A live host runs it and it answers.
    Healthy { host: String },
    /// It runs and does not answer: it boots, or is ill.
    NotAnswering { host: String, detail: String, reason: String },
    /// No live host runs it.
    Down,
    /// No host has live data.
    Unknown,
}

/// The answer of `--vm-status --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmStatus {
    pub global_maintenance: bool,
    pub hosts: Vec<HaHost>,
}

/// Why there is no status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VmStatusError {
    #[error("the HA broker does not answer on this host")]
    BrokerDown,
    #[error("the self-hosted engine was never deployed to this host")]
    NotDeployed,
    #[error("hosted-engine --vm-status answers with neither JSON nor a known error: {text}")]
    Unreadable { text: String },
}

impl VmStatusError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::BrokerDown => {
                "systemctl start ovirt-ha-broker ovirt-ha-agent; see /var/log/ovirt-hosted-engine-ha"
            }
            Self::NotDeployed => "name a host that runs the self-hosted engine",
            Self::Unreadable { .. } => "run `hosted-engine --vm-status` on the host by hand",
        }
    }
}

impl VmStatus {
    /// Reads what the program printed.
    pub fn parse(stdout: &str, stderr: &str) -> Result<Self, VmStatusError> {
        let told = |text: &str| stdout.contains(text) || stderr.contains(text);
        if told("You must run deploy first") {
            return Err(VmStatusError::NotDeployed);
        }
        let unreadable = || {
            let text = if stdout.trim().is_empty() { stderr } else { stdout };
            let text = text.trim().lines().next_back().unwrap_or_default();
            VmStatusError::Unreadable { text: text.chars().take(200).collect() }
        };
        let parsed: Result<BTreeMap<String, serde_json::Value>, _> =
            serde_json::from_str(stdout.trim());
        let Ok(object) = parsed else {
            let down = ["HA Broker", "HA daemon", "broker", "JSONDecodeError"];
            let down = down.iter().any(|text| told(text));
            return Err(if down { VmStatusError::BrokerDown } else { unreadable() });
        };
        let mut status = Self { global_maintenance: false, hosts: Vec::new() };
        for (key, value) in object {
            if key == "global_maintenance" {
                status.global_maintenance = value.as_bool().unwrap_or(false);
            } else {
                let host = serde_json::from_value(value).map_err(|_| unreadable())?;
                status.hosts.push(host);
            }
        }
        status.hosts.sort_by_key(|h: &HaHost| h.host_id);
        Ok(status)
    }

    /// The state of the engine's VM; hosts without live data are not heard.
    pub fn verdict(&self) -> Verdict {
        let live: Vec<_> = self.hosts.iter().filter(|h| h.live_data).collect();
        let Some(host) = live.iter().find(|h| h.engine_status.vm == "up") else {
            let down = !live.is_empty() && live.iter().all(|host| host.engine_status.is_down());
            return if down { Verdict::Down } else { Verdict::Unknown };
        };
        let name = host.hostname.clone();
        if host.engine_status.health == "good" {
            return Verdict::Healthy { host: name };
        }
        Verdict::NotAnswering {
            host: name,
            detail: host.engine_status.detail.clone(),
            reason: host.engine_status.reason.clone().unwrap_or_default(),
        }
    }
}
