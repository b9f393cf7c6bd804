//! Does a worker start on a host, and does it see the storage of the host's data center?
//!
//! What most often stands between a login that works and a backup: a program that the host's
//! policy refuses, sudo, an export that squashes user 36, a domain that is not connected. Only
//! the places of a few volumes are asked for: nothing is opened, activated or read.

use std::time::Duration;

use hvbak_types::{
    ContentType, Disk, DiskStatus, DomainKind, DomainStatus, Host, Inventory, StorageDomain,
};
use hvbak_wire::{Answer, Op, VolumeAddress};

use super::{Check, Health};
use crate::{access::Access, error::RunError, job::Job, session::Session};

/// Disks that are looked for on a domain before it counts as not seen: one may be deleted
/// meanwhile.
const SAMPLES: usize = 3;

/// For all domains of a kind; a volume is found in milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// One finding per thing that is wrong, or one that says what is seen.
pub(super) async fn look(job: &Job, inventory: &Inventory, host: &Host) -> Vec<Check> {
    let what = format!("worker on {}", host.name);
    let bad = |cause: &RunError| {
        let remedy = cause.hint().unwrap_or_else(|| "`hvbak enroll`".into());
        Check::bad(what.clone(), Health::Failed, crate::chain(cause), remedy)
    };
    let access = match Access::open(job, host).await {
        Ok(access) => access,
        Err(cause) => return vec![bad(&cause)],
    };
    let mut seen = Seen::default();
    let domains = domains(inventory, host);
    for block in [false, true] {
        let of_kind: Vec<_> = domains.iter().filter(|d| d.storage.is_block() == block).collect();
        // A worker keeps to one kind; one without any domain still shows that it starts.
        if of_kind.is_empty() && (block || !domains.is_empty()) {
            continue;
        }
        // A mount whose server is gone holds whoever looks at it for ever.
        let cancelled = job.context.cancel.cancelled();
        let looked = tokio::time::timeout(PATIENCE, async {
            let mut session = one(&access, block).await?;
            for domain in of_kind {
                find(&mut session, inventory, host, domain, &mut seen).await?;
            }
            session.bye().await
        });
        let looked = tokio::select! {
            looked = looked => looked,
            () = cancelled => break,
        };
        match looked {
            Ok(Ok(())) => {}
            Ok(Err(cause)) => seen.wrong.push(bad(&cause)),
            Err(_) => seen.wrong.push(Check::bad(
                what.clone(),
                Health::Failed,
                format!(
                    "it did not find volumes within {} s; seen were: {}",
                    PATIENCE.as_secs(),
                    if seen.found.is_empty() { "none".into() } else { seen.found.join(", ") }
                ),
                "look for mounts of storage domains that hang there: `df` on that host",
            )),
        }
    }
    if let Err(cause) = access.close(job).await {
        seen.wrong.push(bad(&cause));
    }
    if seen.wrong.is_empty() {
        let mut text = "starts".to_owned();
        if !seen.found.is_empty() {
            text += &format!("; sees {}", seen.found.join(", "));
        }
        if !seen.empty.is_empty() {
            text += &format!("; nothing to look for on {}", seen.empty.join(", "));
        }
        return vec![Check::ok(what, text)];
    }
    seen.wrong
}

#[derive(Default)]
struct Seen {
    found: Vec<String>,
    /// Domains without a disk.
    empty: Vec<String>,
    wrong: Vec<Check>,
}

async fn one(access: &Access, block: bool) -> Result<Session, RunError> {
    let mut sessions = access.sessions(1).await?;
    let Some(mut session) = sessions.pop() else {
        return Err(RunError::Task { text: "no session was begun".into() });
    };
    session.block = Some(block);
    if block && !session.features.iter().any(|feature| feature == "lvm") {
        return Err(RunError::Protocol {
            host: access.name.clone(),
            text: "the installed worker is too old for block domains".into(),
        });
    }
    Ok(session)
}

/// Active data domains that backups on this host would read.
fn domains<'a>(inventory: &'a Inventory, host: &Host) -> Vec<&'a StorageDomain> {
    let center = inventory
        .clusters
        .iter()
        .find(|cluster| Some(cluster.id) == host.cluster)
        .and_then(|cluster| cluster.data_center);
    inventory
        .storage_domains
        .iter()
        .filter(|d| center.is_some_and(|center| d.data_centers.contains(&center)))
        .filter(|d| d.kind == DomainKind::Data && d.status == Some(DomainStatus::Active))
        .filter(|d| d.storage.is_file() || d.storage.is_block())
        .collect()
}

/// Disks whose place can be asked for.
fn samples<'a>(
    inventory: &'a Inventory,
    domain: &'a StorageDomain,
) -> impl Iterator<Item = &'a Disk> {
    let is_image = |disk: &&Disk| {
        disk.storage_type.as_deref().is_none_or(|kind| kind == "image")
            && matches!(disk.content_type, None | Some(ContentType::Data))
            && matches!(disk.status, None | Some(DiskStatus::Ok))
            && disk.image_id.is_some()
    };
    inventory
        .disks
        .iter()
        .filter(|disk| disk.storage_domains.contains(&domain.id))
        .filter(is_image)
        .take(SAMPLES)
}

/// Looks for volumes of a domain. What the worker answers is a finding, and no error.
async fn find(
    session: &mut Session,
    inventory: &Inventory,
    host: &Host,
    domain: &StorageDomain,
    seen: &mut Seen,
) -> Result<(), RunError> {
    let cluster = inventory.clusters.iter().find(|cluster| Some(cluster.id) == host.cluster);
    let Some(data_center) = cluster.and_then(|cluster| cluster.data_center) else {
        return Ok(());
    };
    let mut last = None;
    for disk in samples(inventory, domain) {
        let Some(volume) = disk.image_id else { continue };
        let at = VolumeAddress { data_center, domain: domain.id, image: disk.id, volume };
        let doing = format!("find a volume of disk {}", disk.alias);
        match session.ask(Op::Locate { at }, &doing).await {
            Ok(Answer::Located(_)) => {
                seen.found.push(domain.name.clone());
                return Ok(());
            }
            Ok(_) => return Err(session.unexpected(&doing)),
            Err(cause @ RunError::Worker { .. }) => last = Some(cause),
            Err(cause) => return Err(cause),
        }
    }
    match last {
        None => seen.empty.push(domain.name.clone()),
        Some(cause) => seen.wrong.push(Check::bad(
            format!("domain {} on {}", domain.name, host.name),
            Health::Failed,
            crate::chain(&cause),
            cause.hint().unwrap_or_else(|| "activate the host anew in the engine".into()),
        )),
    }
    Ok(())
}
