//! A block domain on the guests' LUN: what vdsm does on the pool's manager, done by
//! `lab-sd` in the first guest.
//!
//! The books are kept here and written through to the LV `metadata`; sizes of LVs follow
//! vdsm (`blockVolume.py`): whole extents, a tenth more than asked, a chunk without asking.
//! The host on which a VM runs activates its LVs and looks at them anew when they have grown;
//! only the manager writes the group's metadata.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result, ensure};
use uuid::Uuid;

use crate::{guests::Guests, storage::NewVolume};

const EXTENT: u64 = 128 << 20;
/// `irs:volume_utilization_chunk_mb`: 1024 in vdsm 4.2–4.4. Here less, so that small disks
/// outgrow it.
const CHUNK: u64 = EXTENT;
const BLANK: &str = crate::storage::BLANK;

/// The domain's group.
#[derive(Debug)]
pub struct Lun {
    pub guests: Guests,
    pub wwid: String,
    id: Uuid,
    manager: String,
    volumes: Mutex<BTreeMap<Uuid, Volume>>,
}

#[derive(Debug, Clone)]
struct Volume {
    image: Uuid,
    lv_size: u64,
    fields: BTreeMap<String, String>,
}

impl Lun {
    /// Makes the group, and connects it on all hosts as vdsm does.
    pub fn create(guests: &Guests, hosts: &[String], id: Uuid, data_center: Uuid) -> Result<Self> {
        let manager = hosts.first().context("a block domain needs a host")?.clone();
        let wwid = guests.wwid()?;
        guests.run(&manager, &format!("lab-sd create {id} {wwid}"))?;
        for host in hosts {
            guests.run(host, &format!("lab-sd connect {id} {wwid} {data_center}"))?;
        }
        Ok(Self { guests: guests.clone(), wwid, id, manager, volumes: Mutex::default() })
    }

    fn volumes(&self) -> MutexGuard<'_, BTreeMap<Uuid, Volume>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sd(&self, verb: &str, rest: &str) -> Result<String> {
        let command = format!("lab-sd {verb} {} {} {rest}", self.id, self.wwid);
        self.guests.run(&self.manager, &command)
    }

    /// Makes a volume. `initial` is the engine's `initial_size`.
    pub fn create_volume(&self, new: &NewVolume, initial: Option<u64>) -> Result<()> {
        ensure!(new.cow || new.preallocated, "a block domain holds no sparse raw volume");
        ensure!(new.cow || new.parent.is_none(), "a raw volume has no parent");
        let most = (new.capacity + new.capacity / 10).next_multiple_of(EXTENT);
        let lv_size = match initial {
            _ if !new.cow => new.capacity.next_multiple_of(EXTENT),
            None => CHUNK.min(new.capacity).next_multiple_of(EXTENT).max(EXTENT),
            Some(initial) => {
                ensure!(initial <= most, "initial size {initial} is above {most}");
                (initial + initial / 10).next_multiple_of(EXTENT).clamp(EXTENT, most)
            }
        };
        // A raw volume is as large as its LV.
        let capacity = if new.cow { new.capacity } else { lv_size };
        let parent = new.parent.map_or_else(|| "-".to_owned(), |p| p.to_string());
        let format = if new.cow { "qcow2" } else { "raw" };
        let (image, volume) = (new.image, new.volume);
        self.sd("volume", &format!("{image} {volume} {parent} {format} {capacity} {lv_size}"))?;
        let fields = [
            ("CAP", capacity.to_string()),
            ("FORMAT", if new.cow { "COW" } else { "RAW" }.into()),
            ("TYPE", if new.cow { "SPARSE" } else { "PREALLOCATED" }.into()),
            ("PUUID", new.parent.map_or_else(|| BLANK.to_owned(), |p| p.to_string())),
            ("VOLTYPE", "LEAF".into()),
            ("GEN", "0".into()),
        ];
        let fields = fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        self.volumes().insert(volume, Volume { image, lv_size, fields });
        if let Some(parent) = new.parent
            && self.meta(parent, "VOLTYPE")? == "LEAF"
        {
            self.set_meta(parent, "VOLTYPE", "INTERNAL")?;
        }
        Ok(())
    }

    /// One value of a volume's metadata.
    pub fn meta(&self, volume: Uuid, key: &str) -> Result<String> {
        let volumes = self.volumes();
        let found = volumes.get(&volume).with_context(|| format!("no volume {volume}"))?;
        found.fields.get(key).cloned().with_context(|| format!("{key} of {volume}"))
    }

    /// Writes one value, here and on the LUN.
    pub fn set_meta(&self, volume: Uuid, key: &str, value: &str) -> Result<()> {
        self.sd("meta", &format!("{volume} {key}={value}"))?;
        if let Some(found) = self.volumes().get_mut(&volume) {
            found.fields.insert(key.to_owned(), value.to_owned());
        }
        Ok(())
    }

    /// Removes volumes.
    pub fn delete(&self, volumes: &[Uuid]) -> Result<()> {
        let names: Vec<_> = volumes.iter().map(Uuid::to_string).collect();
        self.sd("remove", &names.join(" "))?;
        self.volumes().retain(|id, _| !volumes.contains(id));
        Ok(())
    }

    /// Removes all volumes of an image.
    pub fn delete_image(&self, image: Uuid) -> Result<()> {
        let own: Vec<_> =
            self.volumes().iter().filter(|(_, v)| v.image == image).map(|(id, _)| *id).collect();
        if own.is_empty() { Ok(()) } else { self.delete(&own) }
    }

    /// How large vdsm makes the LV of `parent` before `child` is merged into it.
    fn room(&self, child: Uuid, parent: Uuid) -> Result<u64> {
        let capacity: u64 = self.meta(child, "CAP")?.parse()?;
        let raw = self.meta(parent, "FORMAT")? == "RAW";
        let most = if raw { capacity } else { capacity + capacity / 10 };
        Ok(most.next_multiple_of(EXTENT).max(self.allocated(parent)))
    }

    /// Merges `child` into `parent` while no VM runs.
    pub fn merge(&self, child: Uuid, parent: Uuid, above: Option<Uuid>) -> Result<()> {
        let lv_size = self.room(child, parent)?;
        let above_name = above.map_or_else(|| "-".to_owned(), |a| a.to_string());
        self.sd("merge", &format!("{child} {parent} {above_name} {lv_size}"))?;
        self.grown(parent, lv_size);
        let generation = (self.meta(parent, "GEN")?.parse::<u32>()? + 1) % 1000;
        self.set_meta(parent, "GEN", &generation.to_string())?;
        self.after_merge(child, parent, above)
    }

    /// The books after a merge: the layer above stands on the parent, the child is gone.
    fn after_merge(&self, child: Uuid, parent: Uuid, above: Option<Uuid>) -> Result<()> {
        let capacity = self.meta(child, "CAP")?;
        self.set_meta(parent, "CAP", &capacity)?;
        match above {
            Some(above) => self.set_meta(above, "PUUID", &parent.to_string())?,
            None => self.set_meta(parent, "VOLTYPE", "LEAF")?,
        }
        self.delete(&[child])
    }

    /// Makes room for a live merge of `child` into `parent` by a VM on `host`.
    pub fn before_live_merge(&self, host: &str, child: Uuid, parent: Uuid) -> Result<()> {
        let lv_size = self.room(child, parent)?;
        self.extend(host, parent, lv_size)
    }

    /// The child of a live merge on `host` goes. The tag of a parent is the manager's to
    /// write, so until now it was an old one.
    pub fn after_live_merge(
        &self,
        host: &str,
        child: Uuid,
        parent: Uuid,
        above: Option<Uuid>,
    ) -> Result<()> {
        let image = self.image(child)?;
        self.on(host, "teardown", &format!("{image} {child}"))?;
        if let Some(above) = above {
            let retag = format!("--deltag PU_{child} --addtag PU_{parent} {}/{above}", self.id);
            self.sd("lvm", &format!("lvchange -qq --autobackup n {retag}"))?;
        }
        self.after_merge(child, parent, above)
    }

    fn image(&self, volume: Uuid) -> Result<Uuid> {
        let volumes = self.volumes();
        volumes.get(&volume).map(|v| v.image).with_context(|| format!("no volume {volume}"))
    }

    fn on(&self, host: &str, verb: &str, rest: &str) -> Result<String> {
        self.guests.run(host, &format!("lab-sd {verb} {} {} {rest}", self.id, self.wwid))
    }

    /// Activates volumes on the host of a VM, as vdsm prepares them.
    pub fn prepare(&self, host: &str, image: Uuid, volumes: &[Uuid]) -> Result<()> {
        let names: Vec<_> = volumes.iter().map(Uuid::to_string).collect();
        self.on(host, "prepare", &format!("{image} {}", names.join(" "))).map(drop)
    }

    /// Deactivates all that the host of a VM has prepared of a disk.
    pub fn teardown(&self, host: &str, image: Uuid) -> Result<()> {
        self.on(host, "teardown", &image.to_string()).map(drop)
    }

    /// Makes the LV that a VM writes on `host` larger when less than half a chunk would be
    /// left above `end`: vdsm's watermark, looked at before the guest writes and not while.
    pub fn make_room(&self, host: &str, volume: Uuid, end: u64) -> Result<()> {
        let wanted = (end + CHUNK / 2).next_multiple_of(EXTENT);
        if self.meta(volume, "FORMAT")? == "COW" && wanted > self.allocated(volume) {
            self.extend(host, volume, wanted)?;
        }
        Ok(())
    }

    /// The manager makes an LV larger, and `host`, which has it active, is told.
    fn extend(&self, host: &str, volume: Uuid, lv_size: u64) -> Result<()> {
        if lv_size <= self.allocated(volume) {
            return Ok(());
        }
        self.sd("extend", &format!("{volume} {lv_size}"))?;
        self.on(host, "lvm", &format!("lvchange --refresh {}/{volume}", self.id))?;
        self.grown(volume, lv_size);
        Ok(())
    }

    fn grown(&self, volume: Uuid, lv_size: u64) {
        if let Some(found) = self.volumes().get_mut(&volume) {
            found.lv_size = found.lv_size.max(lv_size);
        }
    }

    /// Where a volume is on every host.
    pub fn path(&self, volume: Uuid) -> std::path::PathBuf {
        format!("/dev/{}/{volume}", self.id).into()
    }

    /// Bytes that a volume takes.
    pub fn allocated(&self, volume: Uuid) -> u64 {
        self.volumes().get(&volume).map_or(0, |v| v.lv_size)
    }

    /// What is needed to write and read a disk as its guest, in another process. `live`: the
    /// host on which its VM runs.
    pub fn access(&self, chain: &[Uuid], live: Option<&str>) -> serde_json::Value {
        let volumes: Vec<_> = chain.iter().map(Uuid::to_string).collect();
        serde_json::json!({
            "guests": self.guests.to_json(),
            "host": live.unwrap_or(&self.manager),
            "live": live.is_some(),
            "domain": format!("{} {}", self.id, self.wwid),
            "volumes": volumes.join(","),
        })
    }
}
