//! A block domain on the guests' LUN: what vdsm does on the pool's manager, done by
//! `lab-sd` in the first guest.
//!
//! The books are kept here and written through to the LV `metadata`; sizes of LVs follow
//! vdsm (`blockVolume.py`): whole extents, a tenth more than asked, a chunk without asking.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result, ensure};
use uuid::Uuid;

use crate::{guests::Guests, storage::NewVolume};

const EXTENT: u64 = 128 << 20;
/// `irs:volume_utilization_chunk_mb` of vdsm 4.2–4.4.
const CHUNK: u64 = 1 << 30;
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

    /// Merges `child` into `parent`, whose LV vdsm makes large enough before.
    pub fn merge(&self, child: Uuid, parent: Uuid, above: Option<Uuid>) -> Result<()> {
        let capacity: u64 = self.meta(child, "CAP")?.parse()?;
        let raw = self.meta(parent, "FORMAT")? == "RAW";
        let lv_size = if raw {
            capacity.next_multiple_of(EXTENT)
        } else {
            (capacity + capacity / 10).next_multiple_of(EXTENT)
        };
        let above_name = above.map_or_else(|| "-".to_owned(), |a| a.to_string());
        self.sd("merge", &format!("{child} {parent} {above_name} {lv_size}"))?;
        if let Some(found) = self.volumes().get_mut(&parent) {
            found.lv_size = found.lv_size.max(lv_size);
        }
        self.set_meta(parent, "CAP", &capacity.to_string())?;
        match above {
            Some(above) => self.set_meta(above, "PUUID", &parent.to_string())?,
            None => self.set_meta(parent, "VOLTYPE", "LEAF")?,
        }
        let generation = (self.meta(parent, "GEN")?.parse::<u32>()? + 1) % 1000;
        self.set_meta(parent, "GEN", &generation.to_string())?;
        self.delete(&[child])
    }

    /// Bytes that a volume takes.
    pub fn allocated(&self, volume: Uuid) -> u64 {
        self.volumes().get(&volume).map_or(0, |v| v.lv_size)
    }

    /// What the guest of a VM that is down needs, to be written and read by another process.
    pub fn access(&self, chain: &[Uuid]) -> serde_json::Value {
        let volumes: Vec<_> = chain.iter().map(Uuid::to_string).collect();
        serde_json::json!({
            "guests": self.guests.to_json(),
            "host": self.manager,
            "domain": format!("{} {}", self.id, self.wwid),
            "volumes": volumes.join(","),
        })
    }
}
