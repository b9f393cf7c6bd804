//! From the engine's record of a host to an SSH target.
//!
//! Invariant: a host is trusted by its configured key, else by what the engine recorded;
//! when neither exists nothing is trusted without explicit consent.

use std::path::PathBuf;

use hvbak_ssh::{HostTrust, Identity, Pin, PinStore, SshOptions, Target};
use hvbak_types::{Host, HostId, HostSsh, HostStatus, Inventory};

use crate::{
    error::{self, Result, RunError},
    settings::{HostOverride, Settings},
};

/// The inventory's host of this id.
pub fn find_host(inventory: &Inventory, id: HostId) -> Result<&Host> {
    inventory
        .hosts
        .iter()
        .find(|h| h.id == id)
        .ok_or_else(|| RunError::UnknownHost { host: id.to_string() })
}

/// A machine that the engine has no record of, or cannot be asked about: the manager
/// itself, a hypervisor while the engine is down. Its key is the configured one or the one
/// accepted at enrolment.
pub fn unlisted(name: &str) -> Host {
    Host {
        id: HostId::random(),
        name: name.to_owned(),
        address: name.to_owned(),
        status: HostStatus::Up,
        cluster: None,
        ssh: HostSsh::default(),
        spm: false,
        host_type: None,
        os: None,
        vdsm_version: None,
        hardware_uuid: None,
        active_vms: None,
    }
}

/// The target for hvbak's own key.
pub fn target(settings: &Settings, host: &Host) -> Result<Target> {
    let mut identity = vec![Identity::KeyFile {
        path: settings.ssh.key_file.clone(),
        passphrase: settings.ssh.passphrase.clone(),
    }];
    if settings.ssh.agent {
        identity.push(Identity::Agent { socket: None });
    }
    let user = settings.hosts.get(&host.name).and_then(|o| o.user.clone());
    target_as(settings, host, user.unwrap_or_else(|| settings.ssh.user.clone()), identity)
}

/// The target for another user and other proofs (enrolment).
pub fn target_as(
    settings: &Settings,
    host: &Host,
    user: String,
    identity: Vec<Identity>,
) -> Result<Target> {
    let none = HostOverride::default();
    let site = settings.hosts.get(&host.name).unwrap_or(&none);
    let address = site.address.clone().unwrap_or_else(|| host.address.clone());
    let mut target = Target::new(&host.name, address, user);
    target.port = site.port.or(host.ssh.port).unwrap_or(22);
    target.trust = trust(settings, host, site, (&target.host, target.port))?;
    target.identity = identity;
    target.options = options(settings);
    target.jump = jump(settings)?.map(Box::new);
    Ok(target)
}

/// Patience with a host.
pub fn options(settings: &Settings) -> SshOptions {
    let keepalive = settings.ssh.keepalive;
    // An upload that is stuck is noticed as late as a silent download: three unanswered
    // keepalives and the silence before them.
    SshOptions {
        connect_timeout: settings.ssh.connect_timeout,
        keepalive,
        keepalive_max: 3,
        write_stall: keepalive * 4,
        ..SshOptions::default()
    }
}

/// Whether nobody but hvbak itself may have recorded a host's key: neither the configuration
/// nor the engine.
pub fn is_known_to_us_alone(settings: &Settings, host: &Host) -> bool {
    let configured = settings.hosts.get(&host.name).is_some_and(|site| site.host_key.is_some());
    !configured && host.ssh.public_key.is_none() && host.ssh.fingerprint.is_none()
}

/// Where keys are recorded that the user accepted although the engine knew none.
pub fn pin_file(settings: &Settings) -> PathBuf {
    settings.ssh.key_file.with_extension("known_hosts")
}

fn trust(
    settings: &Settings,
    host: &Host,
    site: &HostOverride,
    (address, port): (&str, u16),
) -> Result<HostTrust> {
    let trust = match &site.host_key {
        Some(line) => line.parse().map(|pin: Pin| HostTrust::Pinned(vec![pin])),
        None => {
            HostTrust::from_engine(host.ssh.public_key.as_deref(), host.ssh.fingerprint.as_deref())
        }
    };
    let recorded = || {
        let store = PinStore::open(pin_file(settings))?;
        Ok(store.trust(address, port).unwrap_or(HostTrust::Unknown))
    };
    trust
        .and_then(|trust| if matches!(trust, HostTrust::Unknown) { recorded() } else { Ok(trust) })
        .map_err(error::ssh(&host.name, "understand the recorded host key"))
}

/// The jump host: `[USER@]HOST[:PORT]`, pinned by its configured key.
pub fn jump(settings: &Settings) -> Result<Option<Target>> {
    let Some((text, key)) = &settings.ssh.jump else { return Ok(None) };
    let (user, rest) = text.split_once('@').unwrap_or((&settings.ssh.user, text));
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.starts_with('[') => {
            (host, port.parse().unwrap_or(22))
        }
        _ => (rest, 22),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut target = Target::new(host, host, user);
    target.port = port;
    target.identity = vec![Identity::KeyFile {
        path: settings.ssh.key_file.clone(),
        passphrase: settings.ssh.passphrase.clone(),
    }];
    if settings.ssh.agent {
        target.identity.push(Identity::Agent { socket: None });
    }
    if let Some(line) = key {
        let pin: Pin = line.parse().map_err(|cause| RunError::Ssh {
            host: host.to_owned(),
            doing: "understand the configured host key",
            cause,
        })?;
        target.trust = HostTrust::Pinned(vec![pin]);
    }
    target.options = options(settings);
    Ok(Some(target))
}
