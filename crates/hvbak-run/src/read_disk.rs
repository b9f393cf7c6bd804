//! Reading one disk of a snapshot: walk the chain, open, transfer, walk again, compare.
//!
//! Invariant: the clusters are kept only when the chain after the transfer is the chain
//! from before it: same volumes, files, sizes, times and headers.

use std::sync::Arc;

use hvbak_plan::{Base, DiskAction, DiskPlan, LayerFacts, WhyFull, sub_chain};
use hvbak_repo::{DiskOptions, DiskRecord, DiskWriter, Level, ManifestDisk, Salvage, Staging};
use hvbak_types::{Attachment, CLUSTER_SIZE, DataCenterId, DiskFormat, DiskId, SnapshotDisk};
use hvbak_wire::{
    Answer, ChainIs, Code, Format, Layer, LayerAddress, Op, Place, ReadOptions, Tune, VolumeAddress,
};

use serde::{Deserialize, Serialize};

use crate::{
    access::Access,
    error::{Result, RunError},
    event::Event,
    job::{Job, blocking},
    pump::{Meter, Pieces, Rate, pull},
    session::Session,
};

/// Which disk is read, of which snapshot.
pub struct DiskSource<'a> {
    pub plan: &'a DiskPlan,
    /// The disks as they are frozen: of a snapshot, or of a template.
    pub frozen: &'a [SnapshotDisk],
    /// The base and its snapshot's volumes as they are now; `None`: no delta is wanted.
    pub base: Option<(&'a Base, &'a [SnapshotDisk])>,
    pub data_center: DataCenterId,
    pub rate: &'a Arc<Rate>,
}

impl DiskSource<'_> {
    fn frozen(&self, id: DiskId) -> Option<&SnapshotDisk> {
        self.frozen.iter().find(|disk| disk.disk_id == id)
    }
}

/// What of the chain is read.
struct Extent {
    level: Level,
    reason: String,
    /// Newest layers that decide; `None`: all.
    top: Option<u32>,
}

impl Extent {
    fn full(why: &str) -> Self {
        Self { level: Level::Full, reason: why.to_owned(), top: None }
    }
}

/// Reads the disk into the staging directory. `sessions` are those of an earlier disk;
/// they are given back for the next.
pub async fn read_disk(
    job: &Job,
    access: &Access,
    source: &DiskSource<'_>,
    attachments: &[Attachment],
    sessions: Option<Vec<Session>>,
    staging: &Staging,
) -> Result<(ManifestDisk, Vec<Session>)> {
    let context = &job.context;
    let plan = source.plan;
    let chain_error = |what: String| RunError::Chain { alias: plan.alias.clone(), what };
    let at = address(source).ok_or_else(|| chain_error("its storage domain is unknown".into()))?;
    let transfer = &context.settings.transfer;
    let cancelled = context.cancel.cancelled();
    tokio::pin!(cancelled);
    let prepare = async {
        let mut sessions = match sessions {
            Some(sessions) if sessions[0].block == Some(plan.block) => sessions,
            other => {
                for session in other.into_iter().flatten() {
                    session.bye().await?;
                }
                start(access, transfer.streams, plan.block).await?
            }
        };
        let chain = walk(&mut sessions[0], at).await?;
        prove_frozen(&chain, plan)?;
        let format = source.frozen(plan.id).and_then(|disk| disk.format.as_ref());
        let size = virtual_size(&chain, plan, format).map_err(&chain_error)?;
        let extent = decide(source, &chain, size);
        for session in &mut sessions {
            let doing = "open the volumes";
            let layers = chain.layers.iter().map(|layer| layer_address(layer, at)).collect();
            let open = Op::Open { layers, top: extent.top };
            let Answer::Opened(opened) = session.ask(open, doing).await? else {
                return Err(session.unexpected(doing));
            };
            if opened.virtual_size != size {
                return Err(chain_error(format!(
                    "the worker sees {} bytes and its metadata say {size}",
                    opened.virtual_size
                )));
            }
        }
        let doing = "map the disk";
        let pieces = (16 * sessions.len()).min(64) as u32;
        let map = sessions[0].ask(Op::Map { offset: 0, length: size, pieces }, doing).await?;
        let Answer::Map(map) = map else { return Err(sessions[0].unexpected(doing)) };
        // What no piece covers would be taken for zeros.
        if map.pieces.first() != Some(&0) || !map.pieces.is_sorted() {
            return Err(chain_error("the worker's map does not cover the disk".into()));
        }
        Ok((sessions, chain, size, extent, map))
    };
    let (sessions, chain, size, extent, map) = tokio::select! {
        prepared = prepare => prepared?,
        // Dropping sessions closes the workers' stdin: they leave.
        () = &mut cancelled => return Err(RunError::Cancelled),
    };
    let described = describe(plan, size, &chain, &extent, attachments);
    let read_from = SourceNote { chain: chain.clone(), top: extent.top, disk: described };
    let read_from = read_from.or_noted(staging).await?;
    let options = match (&extent.top, source.base) {
        (Some(_), Some((base, _))) => DiskOptions::delta(size, base.point.clone()),
        _ => DiskOptions::full(size),
    };
    let begun = begin(job, staging, plan, options, &read_from).await?;
    let resumed = begun.data_clusters() * CLUSTER_SIZE;
    context.events.event(&Event::DiskStarted {
        disk: plan.id,
        alias: plan.alias.clone(),
        virtual_size: size,
        expected_bytes: map.clusters.saturating_mul(CLUSTER_SIZE),
        host: access.name.clone(),
        level: Some(extent.level),
        reason: Some(extent.reason.clone()),
        resumed_bytes: Some(resumed).filter(|bytes| *bytes > 0),
    });
    let meter = Arc::new(Meter::new(plan.id, size, context.events.clone()));
    let read = ReadOptions {
        compression: u8::try_from(transfer.compression).ok().filter(|level| *level > 0),
        threads: u16::try_from(transfer.threads).ok().filter(|threads| *threads > 0),
        // Zeros hide what the base holds.
        zeros: extent.top.is_some(),
        ..ReadOptions::default()
    };
    let rate = source.rate.clone();
    let (mut sessions, record) = match begun {
        Begun::Whole(record) => (sessions, record),
        Begun::Open(writer, salvage) => {
            let pieces = Pieces::new(&map.pieces, size, &salvage.open);
            meter.skip(&salvage.open);
            pull(sessions, pieces, read, *writer, meter.clone(), rate, &context.cancel).await?
        }
    };
    let close = async {
        let after = walk(&mut sessions[0], at).await.map_err(|e| not_any_more(&plan.alias, e))?;
        compare(&plan.alias, &chain, &after)?;
        for session in &mut sessions {
            session.ask(Op::Close, "close the volumes").await?;
        }
        Ok::<_, RunError>(())
    };
    tokio::select! {
        closed = close => closed?,
        () = &mut cancelled => return Err(RunError::Cancelled),
    }
    let (data_bytes, payload_bytes, time) = meter.sums();
    context.events.event(&Event::DiskDone {
        disk: plan.id,
        alias: plan.alias.clone(),
        data_bytes,
        payload_bytes,
        seconds: time.as_secs_f64(),
    });
    Ok((ManifestDisk { record, ..read_from.disk }, sessions))
}

/// Where a disk's content comes from, as it is noted for a run that goes on with it.
#[derive(Debug, Serialize, Deserialize)]
struct SourceNote {
    chain: ChainIs,
    /// As in [`Extent`].
    top: Option<u32>,
    /// All but what is known at the end.
    disk: ManifestDisk,
}

impl SourceNote {
    /// What an earlier run has noted of the same source, if it began with the disk.
    ///
    /// # Errors
    /// [`RunError::Stale`]: it read something else.
    async fn or_noted(self, staging: &Staging) -> Result<Self> {
        let (staging, id) = (staging.clone(), self.disk.record.id);
        let noted = blocking("look for what is stored", move || staging.disk_source(id)).await?;
        let Some(noted) = noted else { return Ok(self) };
        let alias = self.disk.alias.clone();
        let stale = |what: String| RunError::Stale { what };
        let noted: Self = serde_json::from_value(noted)
            .map_err(|_| stale(format!("disk {alias} was begun by another version")))?;
        compare(&alias, &settled(&noted.chain), &settled(&self.chain))
            .map_err(|changed| stale(changed.to_string()))?;
        if (noted.top, noted.disk.level) != (self.top, self.disk.level) {
            return Err(stale(format!("disk {alias} is read at another level now")));
        }
        Ok(noted)
    }
}

/// The chain without what another host sees in another way: the number of a file system that
/// is mounted there anew.
fn settled(chain: &ChainIs) -> ChainIs {
    let mut chain = chain.clone();
    for layer in chain.layers.iter_mut().filter(|layer| layer.lv.is_none()) {
        layer.identity.device = 0;
    }
    chain
}

/// A stored disk before it is read.
enum Begun {
    /// An earlier run has read all of it.
    Whole(DiskRecord),
    /// To be written, and what of it is there.
    Open(Box<DiskWriter>, Salvage),
}

impl Begun {
    /// Data clusters that need not be read.
    fn data_clusters(&self) -> u64 {
        match self {
            Self::Whole(record) => record.data_clusters,
            Self::Open(_, salvage) => salvage.clusters,
        }
    }
}

/// Begins the stored disk, or goes on with what an earlier run has stored of it.
async fn begin(
    job: &Job,
    staging: &Staging,
    plan: &DiskPlan,
    options: DiskOptions,
    from: &SourceNote,
) -> Result<Begun> {
    let context = &job.context;
    if let Some(record) = staging.finished_disk(plan.id) {
        return Ok(Begun::Whole(record));
    }
    let source = serde_json::to_value(from).map_err(|e| RunError::Task { text: e.to_string() })?;
    let (staging, id, cancel) = (staging.clone(), plan.id, context.cancel.clone());
    let begun = blocking("begin the stored disk", move || {
        staging.continue_disk(id, options.resumable(source), &|| !cancel.is_cancelled())
    });
    let (writer, salvage) = match begun.await {
        Err(_) if context.cancel.is_cancelled() => return Err(RunError::Cancelled),
        other => other?,
    };
    if salvage.dropped > 0 {
        let (alias, n) = (&plan.alias, salvage.dropped);
        let text = format!("disk {alias}: {n} stored clusters are damaged and are read again");
        context.warn(None, text);
    }
    Ok(Begun::Open(Box::new(writer), salvage))
}

/// The plan's level, unless the chain on the storage says that it must be a full.
fn decide(source: &DiskSource<'_>, chain: &ChainIs, size: u64) -> Extent {
    let plan = source.plan;
    let DiskAction::Backup { level, reason } = &plan.action else { return Extent::full("") };
    if *level == hvbak_plan::Level::Full {
        return Extent::full(reason);
    }
    let Some((base, volumes)) = source.base else {
        return Extent::full(&WhyFull::NoBase.to_string());
    };
    let volume = volumes.iter().find(|d| d.disk_id == plan.id).map(|d| d.volume);
    let facts = |l: &Layer| LayerFacts { volume: l.volume, raw: l.format == Format::Raw };
    let layers: Vec<_> = chain.layers.iter().map(facts).collect();
    match sub_chain(base, plan.id, volume, &layers, size) {
        // At most 64.
        Ok(top) => Extent {
            level: match level {
                hvbak_plan::Level::Differential => Level::Differential,
                _ => Level::Incremental,
            },
            reason: reason.clone(),
            top: Some(top as u32),
        },
        Err(why) => Extent::full(&why.to_string()),
    }
}

async fn start(access: &Access, count: usize, block: bool) -> Result<Vec<Session>> {
    let mut sessions = access.sessions(count).await?;
    for session in &mut sessions {
        session.block = Some(block);
        if block && !session.features.iter().any(|feature| feature == "lvm") {
            return Err(RunError::Protocol {
                host: access.name.clone(),
                text: "the installed worker is too old for block domains".into(),
            });
        }
        let tune = Tune { nice: Some(10), low_io: true, rate: None };
        session.ask(Op::Tune(tune), "be modest").await?;
    }
    Ok(sessions)
}

fn address(source: &DiskSource<'_>) -> Option<VolumeAddress> {
    let disk = source.frozen(source.plan.id)?;
    Some(VolumeAddress {
        data_center: source.data_center,
        domain: disk.storage_domains.first().copied().or(source.plan.domain)?,
        image: disk.disk_id,
        volume: disk.volume,
    })
}

async fn walk(session: &mut Session, at: VolumeAddress) -> Result<ChainIs> {
    let doing = "walk the chain of volumes";
    match session.ask(Op::Chain { at }, doing).await? {
        Answer::Chain(chain) if !chain.layers.is_empty() => Ok(chain),
        _ => Err(session.unexpected(doing)),
    }
}

/// A chain that could be walked before the transfer and cannot be walked after it.
fn not_any_more(alias: &str, cause: RunError) -> RunError {
    match cause {
        RunError::Worker {
            code: Code::NotFound | Code::Merging | Code::Changed | Code::BadChain,
            message,
            ..
        } => RunError::Changed { alias: alias.to_owned(), what: message },
        other => other,
    }
}

/// The storage agrees with the engine that the volume is frozen: vdsm marks it INTERNAL
/// (or SHARED) when it makes the new leaf.
fn prove_frozen(chain: &ChainIs, plan: &DiskPlan) -> Result<()> {
    let top = &chain.layers[0];
    if top.voltype == "LEAF" {
        return Err(RunError::Chain {
            alias: plan.alias.clone(),
            what: format!("volume {} is still the one that is written", top.volume),
        });
    }
    Ok(())
}

/// `format` is the newest volume's, as the engine has it.
fn virtual_size(
    chain: &ChainIs,
    plan: &DiskPlan,
    format: Option<&DiskFormat>,
) -> std::result::Result<u64, String> {
    let top = &chain.layers[0];
    let size = top.header_size;
    match top.format {
        // A qcow2 image read as raw would give its tables as the disk's content.
        Format::Raw if format == Some(&DiskFormat::Cow) => {
            Err(format!("volume {} is raw by its metadata and qcow2 by the engine", top.volume))
        }
        // A raw file can be longer than its disk by rounding; CAP is what the guest sees.
        Format::Raw => Ok(top.capacity),
        Format::Cow if size != top.capacity => Err(format!(
            "volume {} has {size} bytes by its header and {} by its metadata (engine: {})",
            top.volume, top.capacity, plan.virtual_size
        )),
        Format::Cow => Ok(size),
    }
}

fn layer_address(layer: &Layer, at: VolumeAddress) -> LayerAddress {
    LayerAddress {
        place: match layer.lv {
            // Each worker makes sure for itself that the LV is active.
            Some(_) => Place::Volume(VolumeAddress { volume: layer.volume, ..at }),
            None => Place::Path(layer.path.clone()),
        },
        format: layer.format,
        capacity: (layer.format == Format::Raw).then_some(layer.capacity),
        identity: Some(layer.identity),
    }
}

/// Both walks tell the same story. CTIME and the like cannot change; the file's identity
/// holds its modification time, so a write to a frozen layer is seen.
fn compare(alias: &str, before: &ChainIs, after: &ChainIs) -> Result<()> {
    let changed = |what: String| Err(RunError::Changed { alias: alias.to_owned(), what });
    if before.layers.len() != after.layers.len() {
        return changed(format!(
            "its chain had {} volumes and has {}",
            before.layers.len(),
            after.layers.len()
        ));
    }
    for (old, new) in before.layers.iter().zip(&after.layers) {
        if old.volume != new.volume {
            return changed(format!("volume {} became {}", old.volume, new.volume));
        }
        // Hard links come and go with thin VMs of a template, and file systems settle the
        // allocation of a quiet file late.
        let (links, allocated) = (old.links, old.allocated);
        if *old != (Layer { links, allocated, ..new.clone() }) {
            return changed(format!("volume {} was written or replaced", old.volume));
        }
    }
    Ok(())
}

/// The disk as the manifest will have it, but for what was stored.
fn describe(
    plan: &DiskPlan,
    size: u64,
    chain: &ChainIs,
    extent: &Extent,
    attachments: &[Attachment],
) -> ManifestDisk {
    let attachment = attachments.iter().find(|a| a.disk_id == plan.id);
    // Thin on a template: a restored disk stands alone, as qcow2.
    let base = chain.layers.last().filter(|base| base.image == plan.id);
    let raw = base.is_some_and(|b| b.format == Format::Raw);
    let preallocated = base.is_some_and(|b| b.allocation == "PREALLOCATED");
    ManifestDisk {
        record: DiskRecord::unwritten(plan.id, size),
        alias: plan.alias.clone(),
        description: attachment
            .and_then(|a| a.disk.as_ref())
            .and_then(|d| d.description.clone())
            .filter(|text| !text.is_empty()),
        level: extent.level,
        reason: extent.reason.clone(),
        interface: attachment.and_then(|a| a.interface.as_ref()).map(ToString::to_string),
        bootable: attachment.and_then(|a| a.bootable).unwrap_or(false),
        active: attachment.and_then(|a| a.active).unwrap_or(true),
        read_only: attachment.and_then(|a| a.read_only).unwrap_or(false),
        pass_discard: attachment.and_then(|a| a.pass_discard).unwrap_or(false),
        wipe_after_delete: attachment
            .and_then(|a| a.disk.as_ref())
            .and_then(|d| d.wipe_after_delete)
            .unwrap_or(false),
        format: Some(if raw { "raw" } else { "cow" }.into()),
        sparse: Some(!(raw && preallocated)),
        domain: plan.domain,
        domain_name: plan.domain_name.clone(),
        volumes: {
            let read = extent.top.map_or(chain.layers.len(), |top| top as usize);
            chain.layers[..read].iter().rev().map(|l| l.volume).collect()
        },
    }
}
