//! Writing one stored disk onto a hypervisor and proving that it arrived.
//!
//! Invariants: only a disk that this job made, that bears its mark, and that passes the
//! worker's guards is written; it counts as restored only when the storage gives back
//! clusters with the stored digests and nothing else.

use std::{ops::Range, sync::Arc, time::Instant};

use hvbak_engine::NewDisk;
use hvbak_plan::{RestoreDisk, RestoreFormat};
use hvbak_repo::{Content, DiskReader};
use hvbak_types::{CLUSTER_SIZE, DataCenterId, DiskId};
use hvbak_wire::{
    Answer, Body, Cluster, ClustersBuilder, Format, Guards, LayerAddress, Op, Place, ReadOptions,
    Sealed, Slice, Tally, VolumeAddress, Zeros,
};
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    access::Access,
    error::{self, Result, RunError},
    event::Event,
    job::{Job, Open},
    journal::Step,
    pump::Meter,
    session::{Read, Session},
};

/// A disk that is about to be made: its id is chosen and in the journal.
pub struct Begun {
    pub id: DiskId,
    pub step: Open,
}

impl Begun {
    /// Chooses the id and writes it down.
    pub async fn new(job: &Job, disk: &RestoreDisk) -> Result<Self> {
        job.context.check_cancel()?;
        let id = DiskId::random();
        let step = job.intent(Step::Disk { id, alias: disk.alias.clone() }).await?;
        Ok(Self { id, step })
    }

    /// Makes the disk in the engine; tells its volume and its size. On failure the step
    /// stays open for the undo.
    pub async fn make(
        &self,
        job: &Job,
        disk: &RestoreDisk,
        data_center: DataCenterId,
        mark: &str,
        image_size: Option<u64>,
    ) -> Result<(VolumeAddress, u64)> {
        make(job, self, disk, data_center, mark, image_size).await
    }
}

async fn make(
    job: &Job,
    begun: &Begun,
    disk: &RestoreDisk,
    data_center: DataCenterId,
    mark: &str,
    image_size: Option<u64>,
) -> Result<(VolumeAddress, u64)> {
    let context = &job.context;
    let doing = || error::engine(format!("make disk {}", disk.alias));
    let (format, sparse) = (disk.format.format(), disk.format.sparse());
    let new = NewDisk {
        id: begun.id,
        description: Some(mark.to_owned()),
        wipe_after_delete: disk.wipe_after_delete.then_some(true),
        initial_size: image_size.map(|needed| initial_size(needed, disk.virtual_size)),
        ..NewDisk::new(&disk.alias, disk.virtual_size, format, sparse, disk.domain)
    };
    context.engine.create_disk(&new).await.map_err(doing())?;
    job.done(&begun.step, Default::default()).await?;
    let limit = context.settings.timeouts.disk;
    let made = context.engine.wait_disk_ok(new.id, limit, &context.cancel).await.map_err(doing())?;
    let wrong = |what: &str| RunError::Chain { alias: disk.alias.clone(), what: what.to_owned() };
    if made.description.as_deref() != Some(mark) {
        return Err(wrong("the disk that was made does not bear our mark"));
    }
    let volume = made.image_id.ok_or_else(|| wrong("the engine names no volume of it"))?;
    let size = made.provisioned_size.unwrap_or(disk.virtual_size);
    if size < disk.virtual_size {
        return Err(wrong("the engine made it smaller than asked"));
    }
    let at = VolumeAddress { data_center, domain: disk.domain, image: new.id, volume };
    Ok((at, size))
}

/// Bytes to ask a block domain for: nobody extends an LV that no running VM uses. vdsm makes
/// the LV a tenth larger than asked, and refuses to be asked for more than a tenth above the
/// disk's size (vdsm `storage/blockVolume.py`, `calculate_volume_alloc_size`).
const fn initial_size(image: u64, virtual_size: u64) -> u64 {
    let most = virtual_size.saturating_add(virtual_size / 10);
    if image < most { image } else { most }
}

/// Fills a new disk and compares what the storage gives back.
pub async fn fill(
    job: &Job,
    access: &Access,
    disk: &RestoreDisk,
    reader: DiskReader,
    at: VolumeAddress,
    size: u64,
) -> Result<()> {
    let context = &job.context;
    let reader = Arc::new(reader);
    let format = if disk.format == RestoreFormat::Cow { Format::Cow } else { Format::Raw };
    // One worker builds a qcow2; several can fill a raw file.
    let streams = if format == Format::Cow { 1 } else { context.settings.transfer.streams };
    let slices = {
        let reader = reader.clone();
        crate::job::blocking("read the stored disk", move || slices(&reader, streams)).await?
    };
    let mut sessions = access.sessions(slices.len()).await?;
    let mut targets = Vec::new();
    for (number, (session, slice)) in sessions.iter_mut().zip(&slices).enumerate() {
        let doing = "open the new volume";
        let offset = slice.start * CLUSTER_SIZE;
        let end = if number + 1 == slices.len() { size } else { slice.end * CLUSTER_SIZE };
        let op = Op::Target {
            at,
            format,
            virtual_size: size,
            slice: (slices.len() > 1).then_some(Slice { offset, length: end - offset }),
            reads: if disk.block { Zeros::Unknown } else { Zeros::Zero },
            // The second worker finds the file open: by the first one.
            guards: Guards { not_open: number == 0, ..Guards::default() },
            check_digests: true,
        };
        let id = session.request(op).await?;
        let frame = session.frame().await?;
        match session.answer(&frame, id, doing)? {
            Answer::Target(_) => targets.push(id),
            _ => return Err(session.unexpected(doing)),
        }
    }
    context.events.event(&Event::DiskStarted {
        disk: disk.source,
        alias: disk.alias.clone(),
        virtual_size: size,
        expected_bytes: disk.data_bytes,
        host: access.name.clone(),
        level: None,
        reason: None,
        resumed_bytes: None,
    });
    let started = Instant::now();
    let meter = Arc::new(Meter::new(disk.source, size, context.events.clone()));
    let mut tasks = JoinSet::new();
    for ((session, target), slice) in sessions.into_iter().zip(targets).zip(slices) {
        let (reader, meter, alias) = (reader.clone(), meter.clone(), disk.alias.clone());
        tasks.spawn(async move {
            write_slice(session, target, slice, reader, format, at, size, &meter, &alias).await
        });
    }
    loop {
        let joined = tokio::select! {
            joined = tasks.join_next() => joined,
            // Dropping the tasks closes the workers' stdin; the disk is deleted by the undo.
            () = context.cancel.cancelled() => return Err(RunError::Cancelled),
        };
        match joined {
            None => break,
            Some(Ok(Ok(session))) => {
                let _ = session.bye().await;
            }
            Some(Ok(Err(cause))) => return Err(cause),
            Some(Err(cause)) => return Err(RunError::Task { text: cause.to_string() }),
        }
    }
    let (data_bytes, payload_bytes, _) = meter.sums();
    context.events.event(&Event::DiskDone {
        disk: disk.source,
        alias: disk.alias.clone(),
        data_bytes,
        payload_bytes,
        seconds: started.elapsed().as_secs_f64(),
    });
    Ok(())
}

/// Cuts the disk into ranges of clusters with about equal amounts of stored data.
fn slices(reader: &DiskReader, count: usize) -> hvbak_repo::Result<Vec<Range<u64>>> {
    let all = reader.clusters();
    let data = reader.data_clusters()?;
    let share = data.div_ceil(count.max(1) as u64).max(1);
    let (mut out, mut start, mut seen) = (Vec::new(), 0, 0);
    for run in reader.stored() {
        let run = run?;
        if !run.data {
            continue;
        }
        let mut at = run.cluster;
        let end = run.cluster + run.count;
        while seen + (end - at) >= share && out.len() + 1 < count {
            let cut = at + (share - seen);
            out.push(start..cut);
            (start, at, seen) = (cut, cut, 0);
        }
        seen += end - at;
    }
    if start < all || out.is_empty() {
        out.push(start..all);
    }
    Ok(out)
}

#[expect(clippy::too_many_arguments, reason = "one caller; a struct would only rename them")]
async fn write_slice(
    mut session: Session,
    target: u32,
    slice: Range<u64>,
    reader: Arc<DiskReader>,
    format: Format,
    at: VolumeAddress,
    size: u64,
    meter: &Meter,
    alias: &str,
) -> Result<Session> {
    let (queue, mut inbox) = mpsc::channel(2);
    let range = slice.clone();
    let feeding = tokio::task::spawn_blocking(move || feed(&reader, range, target, &queue));
    let mut reached = slice.start;
    while let Some(Feed { sealed, end, clusters, payload }) = inbox.recv().await {
        session.put(sealed).await?;
        meter.add((end - reached) * CLUSTER_SIZE, clusters * CLUSTER_SIZE, payload);
        reached = end;
    }
    let sent = feeding
        .await
        .map_err(|e| RunError::Task { text: e.to_string() })?
        .map_err(error::repository("read the stored disk"))?;
    let doing = "complete the new volume";
    let finish = Op::Finish { target, clusters: sent.totals().clusters };
    let Answer::Written(written) = session.ask(finish, doing).await? else {
        return Err(session.unexpected(doing));
    };
    let wrong = |what: &str| RunError::Compare { alias: alias.to_owned(), what: what.to_owned() };
    if written.digest != sent.digest() {
        return Err(wrong("the worker did not get what was sent"));
    }
    let doing = "open the written volume";
    let layer = LayerAddress {
        place: Place::Volume(at),
        format,
        capacity: (format == Format::Raw).then_some(size),
        identity: None,
    };
    let opened = session.ask(Op::Open { layers: vec![layer], top: None }, doing).await?;
    if !matches!(opened, Answer::Opened(_)) {
        return Err(session.unexpected(doing));
    }
    let offset = slice.start * CLUSTER_SIZE;
    // The last slice ends with the disk, which may be larger than what was stored.
    let end = if slice.end >= sent_end(size) { size } else { slice.end * CLUSTER_SIZE };
    let options = ReadOptions { digest_only: true, uncached: true, ..ReadOptions::default() };
    let mut reading = session.read(offset, end - offset, options).await?;
    let read = loop {
        match session.next(&mut reading).await? {
            Read::Clusters(frame) => session.recycle(frame.into_buffer()),
            Read::End(end) => break end,
        }
    };
    if read.totals.clusters != sent.totals().clusters || read.digest != sent.digest() {
        return Err(wrong(&format!(
            "bytes {offset} to {end} read back {} clusters that are not the {} that were written",
            read.totals.clusters,
            sent.totals().clusters
        )));
    }
    session.ask(Op::Close, "close the written volume").await?;
    meter.add((slice.end.saturating_sub(reached)) * CLUSTER_SIZE, 0, 0);
    Ok(session)
}

/// Clusters of a disk of this size, the last one short or not.
fn sent_end(size: u64) -> u64 {
    size.div_ceil(CLUSTER_SIZE)
}

struct Feed {
    sealed: Sealed,
    /// First cluster behind the frame.
    end: u64,
    clusters: u64,
    payload: u64,
}

/// Reads the stored clusters of a range into frames; gives the sums of what it read.
fn feed(
    reader: &DiskReader,
    range: Range<u64>,
    target: u32,
    queue: &mpsc::Sender<Feed>,
) -> hvbak_repo::Result<Tally> {
    let mut tally = Tally::new(range.start, range.end, true);
    let mut builder = ClustersBuilder::default();
    let mut buffer = Vec::new();
    let mut end = range.start;
    // Breaking a rule of the wire is a fault of this program, told as unusable data.
    let fault = |e: hvbak_wire::WireError| hvbak_repo::Error::Damaged {
        path: std::path::PathBuf::new(),
        why: crate::chain(&e),
    };
    for run in reader.stored() {
        let run = run?;
        let last = (run.cluster + run.count).min(range.end);
        if !run.data {
            continue;
        }
        for index in run.cluster.max(range.start)..last {
            let (body, digest) = match reader.read_in(&run, index, &mut buffer)? {
                Content::Compressed { digest } => (Body::Zstd(&buffer), digest),
                Content::Plain { digest } => (Body::Plain(&buffer), digest),
                Content::Zero => continue,
            };
            let cluster: Cluster<'_> = Cluster { index, digest, body };
            tally.add_one(&cluster).map_err(fault)?;
            builder.push(&cluster).map_err(fault)?;
            end = index + 1;
            if builder.is_full() {
                let full = std::mem::take(&mut builder);
                if !send(full, target, end, queue).map_err(fault)? {
                    return Ok(tally);
                }
            }
        }
    }
    if !builder.is_empty() {
        send(builder, target, end, queue).map_err(fault)?;
    }
    Ok(tally)
}

/// Says whether somebody still listens.
fn send(
    builder: ClustersBuilder,
    target: u32,
    end: u64,
    queue: &mpsc::Sender<Feed>,
) -> std::result::Result<bool, hvbak_wire::WireError> {
    let (clusters, payload) = (builder.len() as u64, builder.payload_len() as u64);
    let sealed = builder.seal(target)?;
    Ok(queue.blocking_send(Feed { sealed, end, clusters, payload }).is_ok())
}
