//! Writes one disk of a point: clusters in any order, as the streams deliver them.
//!
//! The image takes compressed clusters as they came off the wire; nothing is inflated or
//! compressed here. The digest is the worker's, made at the source: it is stored, not
//! believed — `verify` and restore compare content against it. `paranoid` compares at once.

use std::path::{Path, PathBuf};

use hvbak_types::{CLUSTER_SIZE, Digest, DiskId, PointId};
use serde_json::Value;

use crate::{
    digests::Spool,
    durable,
    error::{Error, Result},
    image::{ImageWriter, Inflater},
    layout::{backing_name, digests_name, image_name, progress_name},
    manifest::DiskRecord,
    progress::{Head, Progress},
    stage::{Finished, Shared},
};

/// How a disk is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskOptions {
    /// Bytes that the guest sees; need not be a multiple of a cluster.
    pub virtual_size: u64,
    /// The point that this one is a delta to; `None` for a full.
    pub parent: Option<PointId>,
    /// Inflate and hash every cluster when it is put, for sources that are not trusted to
    /// hash. Costs about 1 s of a core per GiB.
    pub paranoid: bool,
    /// What to note of the content's source for a run that goes on when this one dies;
    /// `None`: nobody will.
    pub source: Option<Value>,
}

impl DiskOptions {
    /// A disk that stands alone.
    pub fn full(virtual_size: u64) -> Self {
        Self { virtual_size, parent: None, paranoid: false, source: None }
    }

    /// The name of the backing file that the image gets.
    pub(crate) fn backing(&self, id: DiskId) -> Option<String> {
        self.parent.as_ref().map(|parent| backing_name(parent, id))
    }

    /// A delta to the same disk in `parent`.
    pub fn delta(virtual_size: u64, parent: PointId) -> Self {
        Self { virtual_size, parent: Some(parent), paranoid: false, source: None }
    }

    /// A later run may go on with it when this one dies.
    pub fn resumable(self, source: Value) -> Self {
        Self { source: Some(source), ..self }
    }
}

/// The content of a cluster as it is stored.
#[derive(Debug, Clone, Copy)]
pub enum Payload<'a> {
    /// One zstd frame of the 64 KiB, shorter than they are.
    Compressed(&'a [u8]),
    /// The 64 KiB.
    Plain(&'a [u8]),
}

/// A disk being written.
///
/// Dropping it leaves the disk unfinished, so that the point cannot be published;
/// [`DiskWriter::abandon`] makes room for another try, [`DiskWriter::suspend`] makes sure
/// that another run can go on.
#[derive(Debug)]
pub struct DiskWriter {
    pub(crate) id: DiskId,
    pub(crate) options: DiskOptions,
    pub(crate) clusters: u64,
    pub(crate) path: PathBuf,
    pub(crate) image: ImageWriter,
    pub(crate) spool: Spool,
    /// `None` when nobody will go on.
    pub(crate) progress: Option<Progress>,
    shared: Shared,
    inflater: Inflater,
    scratch: Vec<u8>,
}

impl DiskWriter {
    pub(crate) fn create(
        dir: &Path,
        id: DiskId,
        options: DiskOptions,
        shared: Shared,
    ) -> Result<Self> {
        let path = dir.join(image_name(id));
        let backing = options.backing(id);
        let image = ImageWriter::create(&path, options.virtual_size, backing.as_deref())?;
        let spool = Spool::new(dir.join(digests_name(id)));
        let progress = match &options.source {
            None => None,
            Some(source) => {
                let head = Head {
                    virtual_size: options.virtual_size,
                    parent: options.parent.clone(),
                    source: source.clone(),
                };
                let log = dir.join(progress_name(id));
                Some(Progress::create(&log, &head, image.storage().clone(), &path)?)
            }
        };
        Ok(Self { progress, ..Self::with(image, spool, path, id, options, shared) })
    }

    /// Goes on with an image and digests that hold the same clusters; without a log.
    pub(crate) fn with(
        image: ImageWriter,
        spool: Spool,
        path: PathBuf,
        id: DiskId,
        options: DiskOptions,
        shared: Shared,
    ) -> Self {
        Self {
            id,
            clusters: options.virtual_size.div_ceil(CLUSTER_SIZE),
            options,
            image,
            spool,
            path,
            progress: None,
            shared,
            inflater: Inflater::default(),
            scratch: Vec::new(),
        }
    }

    /// Which disk this is.
    pub fn disk(&self) -> DiskId {
        self.id
    }

    /// Stores one cluster. `digest` is the BLAKE3-256 of its 64 KiB.
    ///
    /// # Errors
    /// A cluster outside of the disk or put before, a payload of the wrong length, a wrong
    /// digest (paranoid only), [`Error::NoSpace`]. The disk must then be abandoned.
    pub fn put(&mut self, cluster: u64, payload: Payload<'_>, digest: &Digest) -> Result<()> {
        self.check(cluster, 1)?;
        if self.spool.contains(cluster) {
            return Err(Error::ClusterTwice { path: self.path.clone(), cluster });
        }
        let (bytes, fits) = match payload {
            Payload::Compressed(b) => (b, !b.is_empty() && (b.len() as u64) < CLUSTER_SIZE),
            Payload::Plain(b) => (b, b.len() as u64 == CLUSTER_SIZE),
        };
        if !fits {
            let (path, length) = (self.path.clone(), bytes.len());
            return Err(Error::PayloadLength { path, cluster, length });
        }
        if self.options.paranoid {
            self.compare(cluster, payload, digest)?;
        }
        let offset = match payload {
            Payload::Compressed(bytes) => self.image.put_compressed(cluster, bytes)?,
            Payload::Plain(bytes) => self.image.put_data(cluster, bytes)?,
        };
        if let Some(progress) = &mut self.progress {
            // At most 65536.
            progress.data(cluster, offset, bytes.len() as u32, digest);
        }
        self.spool.put(cluster, digest)
    }

    /// Stores `count` clusters of zeros that hide what the parent holds. Without a parent
    /// nothing is stored, since what is not stored reads as zeros.
    pub fn put_zero(&mut self, cluster: u64, count: u64) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        self.check(cluster, count)?;
        if let Some(cluster) = self.spool.known_in(cluster, count) {
            return Err(Error::ClusterTwice { path: self.path.clone(), cluster });
        }
        if self.options.parent.is_none() {
            return Ok(());
        }
        self.image.put_zero(cluster, count)?;
        self.spool.put_zero(cluster, count);
        if let Some(progress) = &mut self.progress {
            progress.zero(cluster, count);
        }
        Ok(())
    }

    /// Says that everything was put that there is in a range: a run that goes on will not
    /// ask for it again. Every cluster that was put must be in a range that is told later.
    ///
    /// # Errors
    /// What an earlier sync failed with; the disk must then be abandoned.
    pub fn told(&mut self, cluster: u64, count: u64) -> Result<()> {
        self.check(cluster, count)?;
        let Some(progress) = &mut self.progress else { return Ok(()) };
        progress.told(cluster, count);
        if progress.is_due() {
            self.image.flush_payloads()?;
            progress.commit()?;
        }
        Ok(())
    }

    /// Stops here: waits until what was told is on stable storage, for the run that goes on.
    pub fn suspend(mut self) -> Result<()> {
        let Some(mut progress) = self.progress.take() else { return Ok(()) };
        self.image.flush_payloads()?;
        progress.commit()?;
        progress.end()
    }

    /// Completes the image and the digests and waits until both are on stable storage.
    pub fn finish(mut self) -> Result<DiskRecord> {
        let progress = self.progress.take();
        if let Some(mut progress) = progress {
            progress.end()?;
        }
        let stored_bytes = self.image.finish()?;
        let written = self.spool.finish(self.options.virtual_size)?;
        let record = DiskRecord {
            id: self.id,
            file: image_name(self.id),
            digests: digests_name(self.id),
            virtual_size: self.options.virtual_size,
            parent: self.options.parent,
            data_clusters: written.data,
            zero_clusters: written.zero,
            stored_bytes,
            digest: written.blake3,
        };
        let finished = Finished { record: record.clone(), sha256: written.sha256 };
        if let Some(source) = self.options.source {
            crate::resume::note_done(&self.path, &finished, source)?;
        }
        self.shared.finished(self.id, finished);
        Ok(record)
    }

    /// Removes what was written; the disk may be begun again.
    pub fn abandon(self) -> Result<()> {
        let Self { image, spool, shared, path, id, progress, .. } = self;
        let log = progress.as_ref().map(|log| log.path().to_owned());
        drop((image, progress));
        for file in [path.as_path(), spool.path()].into_iter().chain(log.as_deref()) {
            durable::remove_file(file)?;
        }
        shared.abandoned(id);
        Ok(())
    }

    fn check(&self, cluster: u64, count: u64) -> Result<()> {
        if cluster.checked_add(count).is_none_or(|end| end > self.clusters) {
            return Err(Error::ClusterOutside { path: self.path.clone(), cluster });
        }
        Ok(())
    }

    fn compare(&mut self, cluster: u64, payload: Payload<'_>, digest: &Digest) -> Result<()> {
        let path = &self.path;
        let content = match payload {
            Payload::Plain(bytes) => bytes,
            Payload::Compressed(bytes) => {
                self.inflater
                    .inflate(bytes, &mut self.scratch)
                    .map_err(|_| Error::WrongDigest { path: path.clone(), cluster })?;
                self.scratch.as_slice()
            }
        };
        if blake3::hash(content).as_bytes() != &digest.0 {
            return Err(Error::WrongDigest { path: path.clone(), cluster });
        }
        Ok(())
    }
}
