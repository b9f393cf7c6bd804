//! Writes a point anew, with what it takes over from those that expire below it.
//!
//! Clusters are taken as they are stored, frame for frame, digests with them: nothing is
//! inflated or compressed. Where the file system can, the image begins as a clone of the
//! largest layer (`clone`) and only the other layers' clusters are written. Else the cost is
//! what the merged layers hold, once read and once written.

use std::{fs, path::Path};

use hvbak_types::{Digest, VmId};

use super::{
    clone,
    plan::{DiskMerge, MergeStep},
};
use crate::{
    catalogue::Point,
    disk_reader::{Content, DiskReader},
    disk_writer::{DiskOptions, DiskWriter, Payload},
    durable,
    error::{At, Error, Result},
    layout::{MANIFEST, MERGED, MERGING, SUMS},
    manifest::{DiskRecord, Level, Manifest},
    repository::Repository,
    stage::Shared,
    sums,
};

/// Bytes of the images of a merged point.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bytes {
    pub written: u64,
    /// Shared with layers that expire.
    pub cloned: u64,
}

impl Repository {
    /// Makes the new directory of a point and gives it the name that [`Repository::commit_merged`]
    /// looks for. `count` is told clusters as they are copied. Nothing is left when it fails.
    pub(super) fn write_merged(
        &self,
        vm: VmId,
        step: &MergeStep,
        count: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Bytes> {
        let dir = self.layout.hidden(MERGING, vm, &step.point);
        durable::create_dir(&dir)?;
        let written = self.fill(vm, step, &dir, count).and_then(|bytes| {
            // The sources had no such findings, and they are to be removed for this.
            self.prove_structure(&self.point_in(dir.clone(), vm, &step.point)?)?;
            durable::sync_dir(&dir)?;
            durable::rename_new(&dir, &self.layout.hidden(MERGED, vm, &step.point))?;
            Ok(bytes)
        });
        if written.is_err() {
            // A failure here only leaves what the next run removes.
            let _ = durable::remove_tree(&dir);
        }
        written
    }

    fn fill(
        &self,
        vm: VmId,
        step: &MergeStep,
        dir: &Path,
        count: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Bytes> {
        let old = self.point(vm, &step.point)?;
        let mut manifest = old.manifest.clone();
        let mut bytes = Bytes::default();
        let mut entries = listed_sums(&old)?;
        for entry in &mut manifest.disks {
            let Some(merge) = step.disks.iter().find(|d| d.disk == entry.record.id) else {
                for name in [&entry.record.file, &entry.record.digests] {
                    durable::link_or_copy(&old.path.join(name), &dir.join(name))?;
                }
                continue;
            };
            let (record, of_disk) = self.merge_disk(vm, &old, merge, dir, count)?;
            bytes.written += of_disk.written;
            bytes.cloned += of_disk.cloned;
            entries.retain(|(name, _)| *name != record.digests);
            let path = dir.join(&record.digests);
            let sha256 = fs::File::open(&path).and_then(sums::of_reader).reading(&path)?;
            entries.push((record.digests.clone(), sha256));
            entry.level = self.level_now(vm, &record, entry.level)?;
            entry.record = record;
        }
        for document in &old.manifest.documents {
            durable::link_or_copy(&old.path.join(&document.name), &dir.join(&document.name))?;
        }
        for over in step.disks.iter().flat_map(|d| &d.over) {
            if !manifest.merged.contains(over) {
                manifest.merged.push(over.clone());
            }
        }
        restate(&mut manifest);
        let path = dir.join(MANIFEST);
        if let Some(why) = manifest.contradiction(vm, &step.point) {
            return Err(Error::Inconsistent { path, why });
        }
        let mut text = serde_json::to_vec_pretty(&manifest)
            .map_err(|cause| Error::Encode { path: path.clone(), cause })?;
        text.push(b'\n');
        entries.push((MANIFEST.to_owned(), sums::of_bytes(&text)));
        durable::write_new(&dir.join(SUMS), sums::render(entries).as_bytes())?;
        durable::write_new(&path, &text)?;
        Ok(bytes)
    }

    fn merge_disk(
        &self,
        vm: VmId,
        top: &Point,
        merge: &DiskMerge,
        dir: &Path,
        count: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(DiskRecord, Bytes)> {
        let mut layers = Vec::new();
        for over in &merge.over {
            layers.push(self.point(vm, over)?);
        }
        layers.push(top.clone());
        let reader = DiskReader::open(layers, merge.disk, None)?;
        let options = DiskOptions {
            virtual_size: reader.virtual_size(),
            parent: merge.parent.clone(),
            paranoid: false,
            source: None,
        };
        let cloned = clone::over_a_layer(&reader, &options, dir, count)?;
        let (mut writer, kept, cloned) = match cloned {
            Some(clone) => (clone.writer, Some(clone.layer), clone.length),
            None => (DiskWriter::create(dir, merge.disk, options, Shared::default())?, None, 0),
        };
        let mut buffer = Vec::new();
        for run in reader.stored() {
            let run = run?;
            if run.data && Some(run.layer) == kept {
                continue;
            }
            if !run.data {
                writer.put_zero(run.cluster, run.count)?;
                continue;
            }
            for cluster in run.clusters() {
                match reader.read_in(&run, cluster, &mut buffer)? {
                    Content::Compressed { digest } => {
                        writer.put(cluster, Payload::Compressed(&buffer), &digest)?;
                    }
                    Content::Plain { digest } => {
                        writer.put(cluster, Payload::Plain(&buffer), &digest)?;
                    }
                    Content::Zero => writer.put_zero(cluster, 1)?,
                }
                if !count(1) {
                    return Err(Error::Cancelled);
                }
            }
        }
        let record = writer.finish()?;
        let written = record.stored_bytes.saturating_sub(cloned);
        Ok((record, Bytes { written, cloned }))
    }

    /// The level of a disk that stands on something else now.
    fn level_now(&self, vm: VmId, record: &DiskRecord, level: Level) -> Result<Level> {
        let Some(parent) = &record.parent else { return Ok(Level::Full) };
        let parent = self.point(vm, parent)?;
        let on_full = parent.manifest.disk(record.id).is_some_and(|d| d.record.parent.is_none());
        Ok(if on_full && level == Level::Differential { level } else { Level::Incremental })
    }
}

/// Brings level and parent of the point in line with its disks.
fn restate(manifest: &mut Manifest) {
    manifest.parent = manifest
        .disks
        .iter()
        .filter_map(|d| d.record.parent.clone())
        .max_by(|a, b| crate::manifest::order_key(a).cmp(&crate::manifest::order_key(b)));
    let mut deltas = manifest.disks.iter().filter(|d| d.record.parent.is_some()).peekable();
    manifest.level = if deltas.peek().is_none() {
        Level::Full
    } else if deltas.all(|d| d.level == Level::Differential) {
        Level::Differential
    } else {
        Level::Incremental
    };
}

/// The sums of a point as its list has them, without the manifest's. They are taken over,
/// not made anew: a file that is damaged stays told as damaged.
fn listed_sums(point: &Point) -> Result<Vec<(String, Digest)>> {
    let path = point.path.join(SUMS);
    let text = fs::read_to_string(&path).reading(&path)?;
    let mut entries = sums::parse(&text)
        .ok_or_else(|| Error::Damaged { path, why: "it is no list of sums".into() })?;
    entries.retain(|(name, _)| name != MANIFEST);
    Ok(entries)
}
