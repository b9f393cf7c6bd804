//! One block domain in use by this worker: scanned, its volumes' metadata read, LVs made
//! active and held open, and given back (hypervisor.md §11.4–11.6).
//!
//! vdsm deactivates what is active, unopened and not prepared, at any time. So an LV is
//! opened as soon as it is active, under the lock of the marks, and stays open until the
//! session is done with the disk. Invariants: the device behind a held descriptor bears
//! LVM's id of the very LV; only LVs with a mark of ours that nobody has open and vdsm has
//! not prepared are deactivated. A mark means that nobody else will do it.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use hvbak_types::{DomainId, VolumeId};
use hvbak_vdsm::{Lv, META_SIZE, VolumeGroup, VolumeMeta, meta_slot_offset};
use hvbak_wire::{FileIdentity, Guards, VolumeAddress};
use nix::libc;

use super::{lv_identity, lvm::Lvm, marks::Marks};
use crate::{
    buffer::{ALIGN, Aligned},
    error::{Error, Result},
    host::Host,
    target::length,
};

/// LV with the metadata of all volumes.
const METADATA: &str = "metadata";
/// udev makes the link after LVM has answered.
const NODE_WAIT: Duration = Duration::from_secs(5);
/// vdsm may deactivate between our activation and our open.
const ACTIVATIONS: u32 = 3;

/// A domain and what is held of it.
pub struct BlockDomain {
    domain: DomainId,
    lvm: Lvm,
    marks: Marks,
    dev: PathBuf,
    sys: PathBuf,
    held: BTreeMap<String, Held>,
}

/// A volume that is about to be written.
pub struct LvTarget {
    pub path: PathBuf,
    pub meta: VolumeMeta,
    pub identity: FileIdentity,
    /// Bytes of the LV.
    pub size: u64,
}

struct Held {
    file: File,
    dm_uuid: String,
    /// vdsm had prepared it on this host.
    prepared: bool,
}

impl BlockDomain {
    /// Finds the domain, and gives back what a worker that was killed left active.
    ///
    /// # Errors
    /// The domain is not on this host, or LVM fails.
    pub fn find(host: &Host, domain: DomainId) -> Result<Self> {
        let mut found = Self {
            domain,
            lvm: Lvm::find(host, domain)?,
            marks: Marks::of(host, domain)?,
            dev: host.path(&format!("/dev/{domain}")),
            sys: host.path("/sys/dev/block"),
            held: BTreeMap::new(),
        };
        found.release();
        Ok(found)
    }

    /// Reads the group anew.
    ///
    /// # Errors
    /// LVM fails.
    pub fn scan(&self) -> Result<VolumeGroup> {
        self.lvm.scan()
    }

    /// Device node of an LV, when it is active.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dev.join(name)
    }

    /// A volume's LV that can be used.
    ///
    /// # Errors
    /// It is not there, being made, or being deleted.
    pub fn usable<'a>(&self, group: &'a VolumeGroup, volume: VolumeId) -> Result<&'a Lv> {
        let Some(lv) = group.volume(volume) else {
            let image = format!("any disk of domain {}", self.domain);
            return Err(Error::NoVolume { volume: volume.to_string(), image });
        };
        if lv.tags.removed {
            return Err(Error::Illegal { volume, legality: "being deleted" });
        }
        if lv.tags.initializing {
            return Err(Error::Illegal { volume, legality: "being made" });
        }
        Ok(lv)
    }

    /// Reads a volume's slot of the LV `metadata`, past the page cache: other hosts write it.
    ///
    /// # Errors
    /// The tags name no slot, the slot cannot be read, or holds no metadata.
    pub fn meta(&mut self, group: &VolumeGroup, volume: VolumeId) -> Result<VolumeMeta> {
        let lv = self.usable(group, volume)?;
        let version = group
            .version
            .ok_or_else(|| Error::lvm("use", self.domain, "its group has no tag MDT_VERSION"))?;
        let offset = lv
            .tags
            .slot
            .and_then(|slot| meta_slot_offset(version, slot))
            .ok_or(Error::BadChain { volume, what: "its LV has no usable tag MD_" })?;
        self.hold(group, &[METADATA])?;
        let Some(metadata) = self.held.get(METADATA) else {
            return Err(Error::Changed { path: self.path(METADATA) });
        };
        // A slot never crosses a block of 4096 bytes.
        let start = offset - offset % ALIGN as u64;
        let at = (offset - start) as usize;
        let mut block = Aligned::new(ALIGN);
        metadata
            .file
            .read_exact_at(block.as_mut(), start)
            .map_err(Error::file("read", self.path(METADATA)))?;
        VolumeMeta::parse(&block.as_mut()[at..at + META_SIZE])
            .map_err(|source| Error::Meta { volume, source })
    }

    /// Makes LVs active and keeps them open.
    ///
    /// # Errors
    /// LVM refuses, or the device is not what the group says.
    pub fn hold(&mut self, group: &VolumeGroup, names: &[&str]) -> Result<()> {
        let mut missing = Vec::new();
        for name in names {
            let lv = self.lv(group, name)?;
            match self.held.get(*name) {
                Some(held) if held.dm_uuid == group.dm_uuid(lv) => {}
                Some(_) => return Err(Error::Changed { path: self.path(name) }),
                None => missing.push(*name),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let lock = self.marks.lock()?;
        let mut round = 0;
        while !missing.is_empty() {
            let mut absent = Vec::new();
            for name in missing {
                match self.open(name) {
                    Ok(file) => self.take(group, name, file)?,
                    Err(e) if is_absent(&e) => absent.push(name),
                    Err(e) => return Err(Error::file("open", self.path(name))(e)),
                }
            }
            missing = absent;
            if missing.is_empty() {
                break;
            }
            if round == ACTIVATIONS {
                let source = io::ErrorKind::NotFound.into();
                return Err(Error::file("open the activated", self.path(missing[0]))(source));
            }
            round += 1;
            for name in &missing {
                self.marks.set(name)?;
            }
            self.lvm.activate(&missing)?;
            self.wait_for_nodes(&missing);
        }
        drop(lock);
        Ok(())
    }

    /// Devices of volumes, active and held, and which LVs they are.
    ///
    /// # Errors
    /// As [`BlockDomain::hold`] and [`BlockDomain::usable`].
    pub fn hold_volumes(&mut self, volumes: &[VolumeId]) -> Result<Vec<(PathBuf, FileIdentity)>> {
        let group = self.scan()?;
        let names: Vec<_> = volumes.iter().map(ToString::to_string).collect();
        self.hold(&group, &names.iter().map(String::as_str).collect::<Vec<_>>())?;
        let place = |(volume, name): (&VolumeId, &String)| {
            Ok((self.path(name), lv_identity(self.usable(&group, *volume)?)))
        };
        volumes.iter().zip(&names).map(place).collect()
    }

    /// A volume to be written: its device, metadata, and which LV it is, after what only LVM
    /// can tell was checked.
    ///
    /// # Errors
    /// [`Error::Guard`]; as [`BlockDomain::hold`].
    pub fn target(&mut self, at: &VolumeAddress, guards: &Guards) -> Result<LvTarget> {
        let group = self.scan()?;
        let lv = self.usable(&group, at.volume)?;
        let say = |why: String| Err(Error::Guard { volume: at.volume, why });
        match lv.tags.image {
            Some(image) if image == at.image => {}
            Some(image) => return say(format!("its tags name disk {image}")),
            None => return say("its tags name no disk".into()),
        }
        if let (true, Some(parent)) = (guards.no_parent, lv.tags.parent) {
            return say(format!("its tags name a parent, {parent}"));
        }
        let name = at.volume.to_string();
        if guards.not_open && lv.open {
            return say("a program on this host has it open".into());
        }
        if guards.not_open && self.marks.is_prepared(&name) {
            return say("vdsm has prepared it on this host, for a VM or a transfer".into());
        }
        let meta = self.meta(&group, at.volume)?;
        self.hold(&group, &[&name])?;
        Ok(LvTarget { path: self.path(&name), meta, identity: lv_identity(lv), size: lv.size })
    }

    fn lv<'a>(&self, group: &'a VolumeGroup, name: &str) -> Result<&'a Lv> {
        group.lvs.get(name).ok_or_else(|| Error::NoVolume {
            volume: name.to_owned(),
            image: format!("any disk of domain {}", self.domain),
        })
    }

    fn open(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(self.path(name))
    }

    fn wait_for_nodes(&self, names: &[&str]) {
        let start = Instant::now();
        while start.elapsed() < NODE_WAIT && names.iter().any(|n| !self.path(n).exists()) {
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Keeps an open device after it was proven to be the LV, in its present size.
    fn take(&mut self, group: &VolumeGroup, name: &str, file: File) -> Result<()> {
        let lv = self.lv(group, name)?;
        let path = self.path(name);
        let rdev = file.metadata().map_err(Error::file("look at", &path))?.rdev();
        let (major, minor) = (nix::sys::stat::major(rdev), nix::sys::stat::minor(rdev));
        let uuid = self.sys.join(format!("{major}:{minor}/dm/uuid"));
        let found = fs::read_to_string(&uuid).map_err(Error::file("read", &uuid))?;
        let dm_uuid = group.dm_uuid(lv);
        if found.trim() != dm_uuid {
            return Err(Error::Changed { path });
        }
        if length(&file).map_err(Error::file("measure", &path))? < lv.size {
            // Another host has extended it since it was activated here. An LV that a VM of
            // this host uses is vdsm's to refresh.
            if lv.open || self.marks.is_prepared(name) {
                return Err(Error::Outdated { path });
            }
            self.lvm.refresh(name)?;
            if length(&file).map_err(Error::file("measure", &path))? < lv.size {
                return Err(Error::Outdated { path });
            }
        }
        let prepared = self.marks.is_prepared(name);
        self.held.insert(name.to_owned(), Held { file, dm_uuid, prepared });
        Ok(())
    }

    /// Closes what is held and deactivates what is ours and unused. What fails here is
    /// tried again by the next worker on this domain.
    ///
    /// What vdsm gave back meanwhile (its VM stopped or went to another host) it could not
    /// deactivate while we had it open, and does not try again: that is ours now.
    pub fn release(&mut self) {
        for (name, _) in self.held.iter().filter(|(_, held)| held.prepared) {
            if !self.marks.is_prepared(name)
                && let Err(error) = self.marks.set(name)
            {
                eprintln!("hvbak-worker: {}", error.to_failed(0).message);
            }
        }
        self.held.clear();
        if self.marks.all().is_empty() {
            return;
        }
        if let Err(error) = self.try_release() {
            eprintln!("hvbak-worker: {}", error.to_failed(0).message);
        }
    }

    fn try_release(&self) -> Result<()> {
        let _lock = self.marks.lock()?;
        let group = self.lvm.scan()?;
        let mut ours = Vec::new();
        for name in self.marks.all() {
            match group.lvs.get(&name) {
                // Prepared since: now it is vdsm's.
                Some(_) if self.marks.is_prepared(&name) => self.marks.clear(&name),
                // By another worker, or by a VM that is about to be prepared.
                Some(lv) if lv.open => {}
                Some(_) => ours.push(name),
                None => {
                    let path = self.path(&name);
                    eprintln!("hvbak-worker: {} was removed by another host", path.display());
                    self.marks.clear(&name);
                }
            }
        }
        if ours.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = ours.iter().map(String::as_str).collect();
        let outcome = self.lvm.deactivate(&names);
        for name in names.into_iter().filter(|name| !self.path(name).exists()) {
            self.marks.clear(name);
        }
        outcome
    }
}

impl Drop for BlockDomain {
    fn drop(&mut self) {
        self.release();
    }
}

/// The node of an LV that is not active: gone, or left behind without a device.
fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENODEV))
}
