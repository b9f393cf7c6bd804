//! One VM's rehearsal: verify, export, boot.
//!
//! Every byte is compared with its digest twice before a machine sees it, and the machine
//! sees copies.

use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hvbak_repo::{
    ExportFormat, ExportOptions, ManifestDisk, Point, Repository, RunOutcome, VerifyOptions,
};
use hvbak_types::CLUSTER_SIZE;
use tokio_util::sync::CancellationToken;

use super::{
    DrillContext,
    boot::{self, not_booted},
    child::{self, Owner, Start},
    machine::{Disk, Firmware, Machine},
    scratch::{self, Scratch, local},
};
use crate::{
    documents,
    error::{Result, RunError},
    event::Event,
    job::blocking,
};

/// Room for tables of images and for what a guest writes while it boots.
const ROOM: u64 = 512 << 20;
/// Programs that boot it: the upstream name, and Enterprise Linux's.
const QEMU: [&str; 2] = ["qemu-system-x86_64", "qemu-kvm"];
/// UEFI code and empty variables, where distributions have them.
const UEFI: [(&str, &str); 4] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
];
const VARIABLES: &str = "uefi-variables.fd";

/// How a part of a drill ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rehearsed {
    pub outcome: RunOutcome,
    /// Exactly what was seen, or why it failed.
    pub text: String,
    /// What is stored is not what was stored.
    pub damaged: bool,
}

impl Rehearsed {
    pub fn new(outcome: RunOutcome, text: impl Into<String>) -> Self {
        Self { outcome, text: text.into(), damaged: false }
    }

    pub fn damage(text: impl Into<String>) -> Self {
        Self { damaged: true, ..Self::new(RunOutcome::Failed, text) }
    }
}

/// Where QEMU is, if it is.
pub fn qemu() -> Option<PathBuf> {
    QEMU.iter().find_map(|name| child::find(name, &[PathBuf::from("/usr/libexec")]))
}

/// Whether the processor's virtualisation can be used, and by which group.
pub fn kvm() -> (bool, Option<u32>) {
    use std::os::unix::fs::MetadataExt;
    let device = Path::new("/dev/kvm");
    let group = device.metadata().ok().map(|meta| meta.gid());
    let open = std::fs::OpenOptions::new().read(true).write(true).open(device);
    (open.is_ok(), group)
}

/// An upper bound for the bytes of a point's exported disks.
pub fn needed(repository: &Repository, point: &Point) -> u64 {
    let mut sum = ROOM;
    for disk in &point.manifest.disks {
        let chain = repository.disk_chain(point, disk.record.id).unwrap_or_default();
        let layers = chain.iter().filter_map(|layer| layer.manifest.disk(disk.record.id));
        // No layer knows what another hides.
        let clusters: u64 = layers.map(|layer| layer.record.data_clusters).sum();
        sum += clusters.saturating_mul(CLUSTER_SIZE).min(disk.record.virtual_size);
    }
    sum
}

/// Rehearses a point. Its own failures are in the answer; an error is that the drill as a
/// whole was cancelled.
pub async fn rehearse(drill: &DrillContext, scratch: &Scratch, point: &Point) -> Result<Rehearsed> {
    match attempt(drill, scratch, point).await {
        Err(RunError::Cancelled) => Err(RunError::Cancelled),
        Err(_) if drill.cancel.is_cancelled() => Err(RunError::Cancelled),
        Err(error) => Ok(Rehearsed {
            damaged: error.exit_code() == 15,
            ..Rehearsed::new(RunOutcome::Failed, crate::chain(&error))
        }),
        done => done,
    }
}

async fn attempt(drill: &DrillContext, scratch: &Scratch, point: &Point) -> Result<Rehearsed> {
    let vm = Some(point.vm());
    drill.phase(vm, format!("verifying {}", point.title()));
    let (repository, cancel, at) = (drill.repository.clone(), drill.cancel.clone(), point.clone());
    let report = blocking("verify the point", move || {
        repository.verify(&at, &VerifyOptions::default(), &|_| !cancel.is_cancelled())
    })
    .await?;
    if let Some(finding) = report.findings.first() {
        let text = format!("damaged: {}: {}", finding.file.display(), finding.text);
        return Ok(Rehearsed::damage(text));
    }
    let (repository, at) = (drill.repository.clone(), point.clone());
    let needed = blocking("read the catalogue", move || Ok(self::needed(&repository, &at))).await?;
    if let Some(why) = scratch.lacks(needed)? {
        return Ok(Rehearsed::new(RunOutcome::Failed, why));
    }
    let owner = Owner::find(&drill.settings.user)?;
    let dir = scratch.fresh(&point.vm().to_string())?;
    let seen = export_and_boot(drill, &owner, &dir, point).await;
    scratch.remove(&dir)?;
    seen
}

async fn export_and_boot(
    drill: &DrillContext,
    owner: &Owner,
    dir: &Path,
    point: &Point,
) -> Result<Rehearsed> {
    let mut disks = Vec::new();
    for (number, disk) in point.manifest.disks.iter().enumerate() {
        let file = format!("disk{number}.qcow2");
        export(drill, point, disk, &dir.join(&file)).await?;
        owner.give(&dir.join(&file))?;
        if disk.active {
            let (interface, bootable) = (disk.interface.clone(), disk.bootable);
            disks.push(Disk { file, interface, bootable });
        }
    }
    let seen = |why: &str| Ok(Rehearsed::new(RunOutcome::Done, not_booted(why)));
    if !drill.wishes.boot {
        return seen("it was not asked for");
    }
    if let Some(why) = child::unfit() {
        return seen(why);
    }
    let Some(qemu) = qemu() else { return seen("no qemu-system-x86_64 on this machine") };
    if disks.is_empty() {
        return seen("the point holds no disk that was plugged in");
    }
    let (q35, firmware) = match firmware(point, owner, dir)? {
        Some(found) => found,
        None => return seen("it boots by UEFI, and no firmware (OVMF) is on this machine"),
    };
    let (kvm, group) = self::kvm();
    let memory_mib = drill.settings.memory_mib;
    let machine = Machine { firmware, q35, kvm, memory_mib, disks };
    // Only now: until here nobody else could lay a link in it.
    owner.give(dir)?;
    drill.phase(Some(point.vm()), format!("booting {}", point.title()));
    let log = drill.wishes.keep.then(|| dir.with_extension("serial.log"));
    let (group, reserve) = (group.filter(|_| kvm), scratch::RESERVE);
    let start = Start { owner, dir, group, signal: "KILL", reserve };
    let limit = drill.wishes.limit;
    let boot = async |machine: &Machine| {
        boot::boot(&qemu, machine, &start, limit, log.clone(), &drill.cancel).await
    };
    let mut seen = boot(&machine).await?;
    if kvm && seen.is_broken_start() {
        // The device can be opened and what is behind it does not work, as in many machines
        // that are virtual themselves.
        drill.phase(Some(point.vm()), "KVM does not work here; booting emulated");
        seen = boot(&Machine { kvm: false, ..machine }).await?;
    }
    let (outcome, text) = boot::verdict(&seen, limit);
    Ok(Rehearsed::new(outcome, text))
}

/// Chipset and firmware by the stored OVF; the older ones where it does not tell. `None`:
/// it wants UEFI and there is none here.
fn firmware(point: &Point, owner: &Owner, dir: &Path) -> Result<Option<(bool, Firmware)>> {
    let document = point.document(documents::OVF).map_err(crate::error::repository("read the OVF"));
    // One that cannot be read tells nothing; the rehearsal goes on without it.
    let text = document.ok().flatten().and_then(|bytes| String::from_utf8(bytes).ok());
    let bios = text.and_then(|text| hvbak_engine::ovf::read(&text).ok()).and_then(|ovf| ovf.bios);
    Ok(match bios {
        Some(2 | 3) => {
            let here = |(code, variables): &&(&str, &str)| {
                Path::new(code).is_file() && Path::new(variables).is_file()
            };
            let Some((code, variables)) = UEFI.iter().find(here) else { return Ok(None) };
            let copy = dir.join(VARIABLES);
            std::fs::copy(variables, &copy)
                .map_err(local(format!("copy the UEFI variables to {}", copy.display())))?;
            owner.give(&copy)?;
            Some((true, Firmware::Uefi { code: code.into(), variables: VARIABLES.into() }))
        }
        Some(1) => Some((true, Firmware::Bios)),
        _ => Some((false, Firmware::Bios)),
    })
}

async fn export(
    drill: &DrillContext,
    point: &Point,
    disk: &ManifestDisk,
    path: &Path,
) -> Result<()> {
    let (id, alias, began) = (disk.record.id, disk.alias.clone(), Instant::now());
    let virtual_size = disk.record.virtual_size;
    drill.events.event(&Event::DiskStarted {
        disk: id,
        alias: alias.clone(),
        virtual_size,
        expected_bytes: disk.record.data_clusters.saturating_mul(CLUSTER_SIZE),
        host: "this machine".into(),
        level: None,
        reason: None,
        resumed_bytes: None,
    });
    let (repository, point, path) = (drill.repository.clone(), point.clone(), path.to_owned());
    let progress = Progress::new(drill, id);
    let summary = blocking("export the disk", move || {
        let options = ExportOptions::new(ExportFormat::Qcow2);
        repository.export(&point, id, &options, &path, &|done, total| progress.step(done, total))
    })
    .await?;
    drill.events.event(&Event::DiskDone {
        disk: id,
        alias,
        data_bytes: summary.data_clusters * CLUSTER_SIZE,
        payload_bytes: summary.bytes,
        seconds: began.elapsed().as_secs_f64(),
    });
    Ok(())
}

/// Tells of an export once a second, from any thread.
struct Progress {
    events: crate::event::Events,
    cancel: CancellationToken,
    disk: hvbak_types::DiskId,
    next: Mutex<Instant>,
    most: AtomicU64,
}

impl Progress {
    fn new(drill: &DrillContext, disk: hvbak_types::DiskId) -> Self {
        let (events, cancel) = (drill.events.clone(), drill.cancel.clone());
        let next = Mutex::new(Instant::now());
        Self { events, cancel, disk, next, most: AtomicU64::new(0) }
    }

    fn step(&self, done: u64, total: u64) -> bool {
        let done = self.most.fetch_max(done, Ordering::Relaxed).max(done);
        if let Ok(mut next) = self.next.try_lock()
            && Instant::now() >= *next
        {
            *next = Instant::now() + Duration::from_secs(1);
            let (data_bytes, payload_bytes) = (done, 0);
            let disk = self.disk;
            self.events.event(&Event::DiskProgress {
                disk,
                done,
                total,
                data_bytes,
                payload_bytes,
            });
        }
        !self.cancel.is_cancelled()
    }
}
