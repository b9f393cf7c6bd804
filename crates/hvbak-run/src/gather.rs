//! Asking the engine and the repository for what commands and plans need.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    path::Path,
    sync::Arc,
};

use hvbak_engine::{CaSource, Engine, EngineConfig, Parts};
use hvbak_plan::VmFacts;
use hvbak_repo::{NewestOf, Point, Repository};
use hvbak_types::{Inventory, Secret, Snapshot, VmId};

use crate::{
    base,
    error::{self, Result, RunError},
    job::{Context, blocking},
    resume,
};

/// Opens the repository.
pub fn open_repository(path: &Path) -> Result<Repository> {
    Repository::open(path).map_err(error::repository("open the repository"))
}

/// Logs in to the engine. `connect_to` is `ADDRESS[:PORT]`.
pub async fn login(
    url: &str,
    ca: Option<Vec<u8>>,
    username: &str,
    password: Secret,
    connect_to: Option<&str>,
) -> Result<Engine> {
    let ca = ca.map_or(CaSource::System, CaSource::Pem);
    let mut config = EngineConfig::new(url, ca, username, password);
    config.connect_to = connect_to.map(resolve).transpose()?;
    Engine::connect(config).await.map_err(error::engine("log in to the engine"))
}

/// Fetches the engine's CA over unverified TLS; worth nothing until its fingerprint was
/// compared.
pub async fn fetch_ca(url: &str) -> Result<hvbak_engine::DownloadedCa> {
    hvbak_engine::download_ca(url, None).await.map_err(error::engine("fetch the engine's CA"))
}

fn resolve(text: &str) -> Result<SocketAddr> {
    let local = |cause| RunError::Local { doing: format!("resolve {text}"), cause };
    let found = text
        .parse::<SocketAddr>()
        .map(|a| vec![a])
        .or_else(|_| text.to_socket_addrs().map(Iterator::collect))
        .or_else(|_: std::io::Error| (text, 443).to_socket_addrs().map(Iterator::collect))
        .map_err(local)?;
    found.first().copied().ok_or_else(|| local(std::io::Error::other("no address")))
}

/// Everything the engine lists.
pub async fn list_inventory(engine: &Engine) -> Result<Inventory> {
    engine.inventory().await.map_err(error::engine("read the engine's inventory"))
}

/// The inventory for a job; stops when the job is cancelled.
pub async fn inventory(context: &Context) -> Result<Inventory> {
    tokio::select! {
        inventory = list_inventory(&context.engine) => inventory,
        // Reading requests can be dropped at any moment.
        () = context.cancel.cancelled() => Err(RunError::Cancelled),
    }
}

/// The inventory as a restore wants it: also with the MAC addresses that are taken.
pub async fn inventory_for_restore(context: &Context) -> Result<Inventory> {
    let mut inventory = inventory(context).await?;
    let engine = &context.engine;
    tokio::select! {
        added = engine.add_macs(&mut inventory) => added.map_err(error::engine("list the NICs"))?,
        () = context.cancel.cancelled() => return Err(RunError::Cancelled),
    }
    Ok(inventory)
}

/// A VM's snapshots.
pub async fn list_snapshots(engine: &Engine, vm: VmId) -> Result<Vec<Snapshot>> {
    engine.snapshots(vm).await.map_err(error::engine("list the snapshots"))
}

/// What a backup plan wants to know of the selected VMs.
pub async fn vm_facts(context: &Context, wanted: &[VmId]) -> Result<Vec<VmFacts>> {
    let parts = Parts { attachments: true, snapshots: true, ..Parts::default() };
    let asking = context.engine.vms_with(wanted, parts);
    let found = tokio::select! {
        found = asking => found.map_err(error::engine("read the selected VMs"))?,
        // Reading requests can be dropped at any moment.
        () = context.cancel.cancelled() => return Err(RunError::Cancelled),
    };
    let mut facts = Vec::new();
    for w in found {
        // A site that keeps no snapshots wants the last one that was kept gone, too.
        let (base, deltas) = base::find(context, w.vm.id).await?;
        let base = base.filter(|_| context.settings.keep_snapshot);
        let left = resume::find(context, w.vm.id).await?;
        let (vm, attachments, snapshots) = (w.vm, w.attachments, w.snapshots);
        facts.push(VmFacts { vm, attachments, snapshots, base, deltas, left });
    }
    Ok(facts)
}

/// The VMs whose newest point began longer ago than `age`, or that have none.
pub async fn older_than(
    context: &Context,
    vms: &[VmId],
    age: jiff::SignedDuration,
) -> Result<Vec<VmId>> {
    let (repository, vms) = (context.repository.clone(), vms.to_vec());
    let limit = jiff::Timestamp::now().saturating_sub(age).unwrap_or(jiff::Timestamp::MIN);
    blocking("look for points", move || {
        let mut old = Vec::new();
        for vm in vms {
            let listing = repository.points(vm)?;
            if listing.points.last().is_none_or(|p| p.manifest.started < limit) {
                old.push(vm);
            }
        }
        Ok(old)
    })
    .await
}

/// The point that a selector names.
pub async fn find_point(repository: &Arc<Repository>, selector: &str) -> Result<Point> {
    let (repository, selector) = (repository.clone(), selector.to_owned());
    blocking("find the point", move || repository.find(&selector)).await
}

/// Each VM's newest point up to the end of a day (in UTC), or of all.
///
/// # Errors
/// That the repository cannot be read.
pub async fn newest_points(
    repository: &Arc<Repository>,
    until: Option<jiff::civil::Date>,
) -> Result<Vec<NewestOf>> {
    let repository = repository.clone();
    blocking("find the newest points", move || repository.newest_points(until)).await
}
