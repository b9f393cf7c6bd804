//! The self-hosted engine, asked and told through one of its hosts. Works while the engine
//! is down: nothing is asked of it.

use std::time::Duration;

use hvbak_manager::hosted_engine::{Maintenance, VmStatus};
use hvbak_ssh::Connection;

use crate::{
    error::{self, Result, RunError},
    hosts,
    settings::Settings,
};

// `HVBAK_HOST_ROOT` is the host's root in labs. Other users than root go through sudo.
const STATUS: &str = r#"sudo=; [ "$(id -u)" = 0 ] || sudo="sudo -n"
exec $sudo "${HVBAK_HOST_ROOT:-}/usr/sbin/hosted-engine" --vm-status --json"#;
const SET: &str = r#"sudo=; [ "$(id -u)" = 0 ] || sudo="sudo -n"
exec $sudo "${HVBAK_HOST_ROOT:-}/usr/sbin/hosted-engine" --set-maintenance --mode="$1""#;
const SHUT_DOWN: &str = r#"sudo=; [ "$(id -u)" = 0 ] || sudo="sudo -n"
exec $sudo "${HVBAK_HOST_ROOT:-}/usr/sbin/hosted-engine" --vm-shutdown"#;
/// How long the shared metadata may take to show a change.
const SETTLE: Duration = Duration::from_secs(90);

/// What the hosts say of the engine's VM.
pub async fn hosted_engine_status(settings: &Settings, host: &str) -> Result<VmStatus> {
    let connection = login(settings, host).await?;
    let status = ask(&connection, host).await;
    connection.close().await;
    status
}

/// Sets the maintenance and waits until the hosts show it.
pub async fn hosted_engine_maintenance(
    settings: &Settings,
    host: &str,
    mode: Maintenance,
) -> Result<VmStatus> {
    let connection = login(settings, host).await?;
    let result = set(&connection, host, mode).await;
    connection.close().await;
    result
}

/// Asks the engine's VM to go down. Whether it does is seen by the status alone.
pub(super) async fn shut_down(settings: &Settings, host: &str) -> Result<()> {
    let doing = "shut down the engine's VM";
    let connection = login(settings, host).await?;
    let result = connection
        .exec(&hvbak_ssh::script(SHUT_DOWN, &[]))
        .await
        .and_then(|output| output.check(doing))
        .map_err(error::ssh(host, doing));
    connection.close().await;
    result.map(drop)
}

async fn set(connection: &Connection, host: &str, mode: Maintenance) -> Result<VmStatus> {
    let doing = "set the maintenance of the self-hosted engine";
    connection
        .exec(&hvbak_ssh::script(SET, &[mode.word()]))
        .await
        .and_then(|output| output.check(doing))
        .map_err(error::ssh(host, doing))?;
    // The program says nothing and returns at once: only the status is a proof.
    let until = tokio::time::Instant::now() + SETTLE;
    loop {
        let status = ask(connection, host).await?;
        let shown = match mode {
            Maintenance::Global => status.global_maintenance,
            Maintenance::Local => true,
            Maintenance::None => !status.global_maintenance,
        };
        if shown {
            return Ok(status);
        }
        if tokio::time::Instant::now() >= until {
            return Err(RunError::HostedEngineUnchanged {
                host: host.to_owned(),
                mode: mode.word(),
            });
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
}

async fn ask(connection: &Connection, host: &str) -> Result<VmStatus> {
    let doing = "ask for the self-hosted engine";
    let output =
        connection.exec(&hvbak_ssh::script(STATUS, &[])).await.map_err(error::ssh(host, doing))?;
    VmStatus::parse(&output.text(), &output.stderr)
        .map_err(|cause| RunError::HostedEngine { host: host.to_owned(), cause })
}

/// A host by its name in the configuration, or by its address. The engine, which would
/// know its key, may be down: the key is the configured one or the one accepted earlier.
async fn login(settings: &Settings, name: &str) -> Result<Connection> {
    let host = hosts::unlisted(name);
    let target = hosts::target(settings, &host)?;
    Connection::connect(&target).await.map_err(error::ssh(name, "log in"))
}
