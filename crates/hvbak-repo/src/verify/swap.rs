//! Whose file is it? Asked only of a file that is not what the manifest says, to tell one
//! that changed places from one that is damaged.
//!
//! Candidates are the other disks and documents of the same VM, in this and other points:
//! what a copy or a restore of the repository mixes up.

use hvbak_types::Digest;

use crate::{
    catalogue::Point,
    digests::{Digests, Kind},
    error::Result,
    image::{ImageReader, Inflater, Stored},
    manifest::DiskRecord,
    repository::Repository,
};

/// Clusters that must agree before an image is said to be another's.
const SAMPLES: usize = 8;

/// Another disk's digests file, by its BLAKE3.
pub fn digests(
    repository: &Repository,
    point: &Point,
    record: &DiskRecord,
    found: Digest,
) -> Option<String> {
    others(repository, point, record)
        .find(|(_, other)| other.digest == found)
        .map(|(owner, other)| owner_text(&owner, point, &other.digests))
}

/// Another disk's image, by length and the digests of some clusters.
pub fn image(
    repository: &Repository,
    point: &Point,
    record: &DiskRecord,
    image: &ImageReader,
) -> Option<String> {
    let samples = samples(image).ok()?;
    if samples.is_empty() {
        return None;
    }
    let fits = |at: &Point, record: &DiskRecord| {
        let digests = Digests::open(&at.path.join(&record.digests)).ok()?;
        let agree = |(cluster, found): &(u64, Digest)| -> Option<bool> {
            let run = digests.find(*cluster).ok()??;
            let digest = digests.digest(run.digest + cluster - run.start).ok()?;
            Some(digest == *found)
        };
        samples.iter().all(|s| agree(s) == Some(true)).then_some(())
    };
    // The disk's own image with a few bad clusters is damaged, not swapped.
    if image.length() == record.stored_bytes && fits(point, record).is_some() {
        return None;
    }
    others(repository, point, record)
        .filter(|(_, other)| other.stored_bytes == image.length())
        .find(|(owner, other)| fits(owner, other).is_some())
        .map(|(owner, other)| owner_text(&owner, point, &other.file))
}

/// Another document, by its SHA-256.
pub fn document(
    repository: &Repository,
    point: &Point,
    name: &str,
    found: Digest,
) -> Option<String> {
    points(repository, point).find_map(|owner| {
        let same = owner.id() == point.id();
        let entry = owner
            .manifest
            .documents
            .iter()
            .find(|d| d.sha256 == found && !(same && d.name == name))?;
        Some(owner_text(&owner, point, &entry.name))
    })
}

/// All points of the VM, `point` first.
fn points(repository: &Repository, point: &Point) -> impl Iterator<Item = Point> {
    let listing = repository.points(point.vm()).unwrap_or_default();
    let id = point.id().clone();
    std::iter::once(point.clone()).chain(listing.points.into_iter().filter(move |p| *p.id() != id))
}

fn others(
    repository: &Repository,
    point: &Point,
    record: &DiskRecord,
) -> impl Iterator<Item = (Point, DiskRecord)> {
    let (id, own) = (record.id, point.id().clone());
    points(repository, point).flat_map(move |owner| {
        let own = own == *owner.id();
        let disks = owner.manifest.disks.clone().into_iter().map(|d| d.record);
        let disks = disks.filter(move |r| !(own && r.id == id));
        disks.map(move |record| (owner.clone(), record)).collect::<Vec<_>>()
    })
}

fn owner_text(owner: &Point, point: &Point, file: &str) -> String {
    if owner.id() == point.id() {
        format!("it holds what belongs into {file}")
    } else {
        format!("it holds what belongs into {file} of point {}", owner.id())
    }
}

/// The first data clusters of an image that can be read, hashed.
fn samples(image: &ImageReader) -> Result<Vec<(u64, Digest)>> {
    let mut clusters = Vec::new();
    for run in image.runs()? {
        let run = run?;
        if run.kind == Kind::Data {
            clusters.extend((run.start..run.end()).take(SAMPLES - clusters.len()));
        }
        if clusters.len() == SAMPLES {
            break;
        }
    }
    let (mut stored, mut plain, mut inflater) = (Vec::new(), Vec::new(), Inflater::default());
    let mut samples = Vec::new();
    for cluster in clusters {
        let bytes = match image.read_stored(cluster, &mut stored)? {
            Stored::Plain => &stored,
            Stored::Compressed if inflater.inflate(&stored, &mut plain).is_ok() => &plain,
            _ => continue,
        };
        samples.push((cluster, Digest(blake3::hash(bytes).into())));
    }
    Ok(samples)
}
