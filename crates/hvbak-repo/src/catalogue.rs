//! What is stored: VMs and their points, read from the manifests each time.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use hvbak_types::{DiskId, PointId, VmId};

use crate::{
    disk_reader::DiskReader,
    error::{At, Error, Result},
    layout::{MANIFEST, MERGED},
    lock::{PointsLock, lock_points},
    manifest::{FORMAT, Manifest, order_key},
    repository::Repository,
};

/// Longest manifest that is read: a VM has a few disks, not a million.
const MANIFEST_MAX: u64 = 16 << 20;
/// Larger than any answer of an engine that is stored.
const DOCUMENT_MAX: u64 = 64 << 20;

/// How often a directory in which names change is read at most.
const LOOKS_MAX: u32 = 10;

/// A published point.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Its directory.
    pub path: PathBuf,
    pub manifest: Manifest,
}

impl Point {
    /// The point's name.
    pub fn id(&self) -> &PointId {
        &self.manifest.point
    }

    /// The VM whose point it is.
    pub fn vm(&self) -> VmId {
        self.manifest.vm.id
    }

    /// `NAME@POINT`, for people, and for [`Repository::find`].
    pub fn title(&self) -> String {
        let config = if self.manifest.configuration_only { crate::select::CONFIG } else { "" };
        format!("{config}{}@{}", self.manifest.vm.name, self.manifest.point)
    }

    /// The files of a disk are the ones that the manifest names: an exchanged or older
    /// pair would be consistent in itself. The digests are hashed (0.05 % of the data);
    /// the data is compared with them when it is read.
    fn prove_files(&self, disk: DiskId) -> Result<()> {
        let Some(entry) = self.manifest.disk(disk) else { return Ok(()) };
        let path = self.path.join(&entry.record.digests);
        let file = fs::File::open(&path).reading(&path)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file).reading(&path)?;
        if hasher.finalize().as_bytes() != &entry.record.digest.0 {
            return Err(Error::Damaged {
                path,
                why: "it is not the file that the manifest names".into(),
            });
        }
        let path = self.path.join(&entry.record.file);
        let (found, wanted) =
            (fs::metadata(&path).reading(&path)?.len(), entry.record.stored_bytes);
        if found != wanted {
            return Err(Error::Damaged {
                path,
                why: format!("it has {found} bytes, not {wanted}"),
            });
        }
        Ok(())
    }

    /// A stored document, checked against its length and SHA-256; `None` when the
    /// manifest lists none of this name.
    pub fn document(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(entry) = self.manifest.documents.iter().find(|d| d.name == name) else {
            return Ok(None);
        };
        let path = self.path.join(&entry.name);
        let length = fs::metadata(&path).reading(&path)?.len();
        if length != entry.size || length > DOCUMENT_MAX {
            return Err(Error::Damaged { path, why: format!("it has {length} bytes") });
        }
        let bytes = fs::read(&path).reading(&path)?;
        if crate::sums::of_bytes(&bytes) != entry.sha256 {
            return Err(Error::Damaged { path, why: "its SHA-256 is another".into() });
        }
        Ok(Some(bytes))
    }
}

/// A directory that should be a point and cannot be read as one.
#[derive(Debug)]
pub struct DamagedPoint {
    pub vm: VmId,
    pub point: PointId,
    pub path: PathBuf,
    pub error: Error,
}

/// Points, oldest first, and what lies among them damaged.
#[derive(Debug, Default)]
pub struct Listing {
    pub points: Vec<Point>,
    pub damaged: Vec<DamagedPoint>,
}

impl Listing {
    /// The newest point whose snapshot was kept on the VM: what the next delta stands on. One
    /// that a wrong clock has dated later than `now` cannot carry a point of now.
    pub fn base(&self, now: jiff::Timestamp) -> Option<&Point> {
        let kept = |p: &&Point| {
            p.manifest.started <= now && p.manifest.snapshot.as_ref().is_some_and(|s| s.kept)
        };
        self.points.iter().rev().find(kept)
    }
}

/// A VM that has points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmEntry {
    pub id: VmId,
    /// As of the newest readable point.
    pub name: String,
    pub points: usize,
    pub latest: PointId,
}

impl Repository {
    /// The VMs that have at least one readable point, by name.
    pub fn vms(&self) -> Result<Vec<VmEntry>> {
        let mut vms = Vec::new();
        for id in self.vm_ids()? {
            let listing = self.points(id)?;
            if let Some(last) = listing.points.last() {
                let (name, latest) = (last.manifest.vm.name.clone(), last.id().clone());
                vms.push(VmEntry { id, name, points: listing.points.len(), latest });
            }
        }
        vms.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        Ok(vms)
    }

    /// The points of a VM, oldest first. An unknown VM has none.
    pub fn points(&self, vm: VmId) -> Result<Listing> {
        let mut listing = Listing::default();
        for point in self.point_ids(vm)? {
            match self.point(vm, &point) {
                Ok(found) => listing.points.push(found),
                // Removed since the names were read.
                Err(Error::NoPoint { .. }) if !self.layout.point(vm, &point).exists() => {}
                Err(error) => {
                    let path = self.layout.point(vm, &point);
                    listing.damaged.push(DamagedPoint { vm, point, path, error });
                }
            }
        }
        Ok(listing)
    }

    /// All points of all VMs, by VM and then oldest first.
    pub fn all_points(&self) -> Result<Listing> {
        let mut all = Listing::default();
        for vm in self.vm_ids()? {
            let mut listing = self.points(vm)?;
            all.points.append(&mut listing.points);
            all.damaged.append(&mut listing.damaged);
        }
        Ok(all)
    }

    /// One point by its ids.
    ///
    /// # Errors
    /// [`Error::NoPoint`], or what is wrong with its manifest.
    pub fn point(&self, vm: VmId, point: &PointId) -> Result<Point> {
        let target = self.layout.point(vm, point);
        if !target.is_dir() {
            // A prune is between its two renames, or died there; or it has just done the second.
            let waits = self.layout.hidden(MERGED, vm, point);
            match self.point_in(waits, vm, point) {
                Err(Error::NoPoint { .. }) => {}
                Err(_) if target.is_dir() => {}
                found => return found,
            }
        }
        self.point_in(target, vm, point)
    }

    /// A point that lies in this directory.
    pub(crate) fn point_in(&self, path: PathBuf, vm: VmId, point: &PointId) -> Result<Point> {
        let missing = || Error::NoPoint { vm: vm.to_string(), when: point.to_string() };
        if !path.is_dir() {
            return Err(missing());
        }
        let file = path.join(MANIFEST);
        let length = match fs::metadata(&file) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Damaged { path: file, why: "it is missing".into() });
            }
            other => other.reading(&file)?.len(),
        };
        if length > MANIFEST_MAX {
            return Err(Error::Inconsistent { path: file, why: "it is too long".into() });
        }
        let text = fs::read(&file).reading(&file)?;
        let parse = |cause| Error::Parse { path: file.clone(), cause };
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(parse)?;
        let known = u64::from(FORMAT);
        if let Some(found) = value.get("format").and_then(serde_json::Value::as_u64)
            && found > known
        {
            return Err(Error::NewerFormat { path: file, found, known });
        }
        let manifest: Manifest = serde_json::from_value(value).map_err(parse)?;
        if let Some(why) = manifest.contradiction(vm, point) {
            return Err(Error::Inconsistent { path: file, why });
        }
        Ok(Point { path, manifest })
    }

    /// The points that a disk of `point` is made of, base first, `point` last.
    ///
    /// # Errors
    /// [`Error::NoDisk`]; [`Error::BrokenChain`] names the parent that fails.
    pub fn disk_chain(&self, point: &Point, disk: DiskId) -> Result<Vec<Point>> {
        let mut chain = vec![point.clone()];
        loop {
            let top = &chain[chain.len() - 1];
            let entry = top
                .manifest
                .disk(disk)
                .ok_or_else(|| Error::NoDisk { point: top.id().clone(), disk: disk.to_string() })?;
            // Parents are strictly older (checked on reading), so this ends.
            let Some(parent) = entry.record.parent.clone() else { break };
            let broken = |why: String| Error::BrokenChain {
                point: top.id().clone(),
                parent: parent.clone(),
                why,
            };
            let found = self.point(point.vm(), &parent).map_err(|e| broken(e.to_string()))?;
            if found.manifest.disk(disk).is_none() {
                return Err(broken(format!("it does not hold disk {disk}")));
            }
            chain.push(found);
        }
        chain.reverse();
        Ok(chain)
    }

    /// Opens a disk as it was at `point`, merged over its chain. While the reader lives, no
    /// point is removed or rewritten.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::NoDisk`], damage of the chain.
    pub fn disk_reader(&self, point: &Point, disk: DiskId) -> Result<DiskReader> {
        let lock = lock_points(&self.layout, point.vm(), false)?;
        // What the point stands on may have changed since its manifest was read.
        let chain = self.disk_chain(&self.point(point.vm(), point.id())?, disk)?;
        for layer in &chain {
            layer.prove_files(disk)?;
        }
        DiskReader::open(chain, disk, Some(lock))
    }

    /// While the lock lives, no point of the VM is removed or rewritten: for work over several
    /// disks that must all come from the same point.
    ///
    /// # Errors
    /// [`Error::Locked`] in the moments in which one is.
    pub fn hold_points(&self, vm: VmId) -> Result<PointsLock> {
        lock_points(&self.layout, vm, false)
    }

    /// Bytes of all files of this point alone, as they lie on disk.
    pub fn point_size(&self, point: &Point) -> Result<u64> {
        let mut sum = 0u64;
        for entry in fs::read_dir(&point.path).reading(&point.path)? {
            let meta = entry.and_then(|e| e.metadata()).reading(&point.path)?;
            sum = sum.saturating_add(meta.len());
        }
        Ok(sum)
    }

    /// The names of a VM's points, oldest first, whether readable or not.
    ///
    /// A directory that is read while names in it change may show neither the old nor the new
    /// name, so it is read until it says the same twice.
    pub(crate) fn point_ids(&self, vm: VmId) -> Result<Vec<PointId>> {
        let dir = self.layout.vm(vm);
        let mut names = point_names(&dir)?;
        for _ in 0..LOOKS_MAX {
            let again = point_names(&dir)?;
            if again == names {
                break;
            }
            names = again;
        }
        let mut names: Vec<_> = names.into_iter().collect();
        names.sort_by(|a, b| order_key(a).cmp(&order_key(b)));
        Ok(names)
    }

    pub(crate) fn vm_ids(&self) -> Result<Vec<VmId>> {
        let dir = self.layout.vms();
        let mut ids = Vec::new();
        let entries = match fs::read_dir(&dir) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(ids),
            other => other.reading(&dir)?,
        };
        for entry in entries {
            let name = entry.reading(&dir)?.file_name();
            ids.extend(name.to_str().and_then(|n| n.parse::<VmId>().ok()));
        }
        ids.sort();
        Ok(ids)
    }
}

/// The points of a VM's directory as one look at it shows them; none where there is none.
fn point_names(dir: &Path) -> Result<BTreeSet<PointId>> {
    let mut names = BTreeSet::new();
    let entries = match fs::read_dir(dir) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(names),
        other => other.reading(dir)?,
    };
    for entry in entries {
        let name = entry.reading(dir)?.file_name();
        // Half-made points begin with a dot and are no point ids.
        names.extend(name.to_str().and_then(|n| n.strip_prefix(MERGED).unwrap_or(n).parse().ok()));
    }
    Ok(names)
}

#[cfg(test)]
#[path = "catalogue_tests.rs"]
mod tests;
