//! A stored disk as the guest saw it, merged over the points it stands on.
//!
//! The digests files say which layer holds a cluster (the newest that knows it wins), the
//! images give the bytes, compressed as they are stored, so that a restore neither inflates
//! nor compresses. Where the two disagree the disk is damaged: an error, never zeros.

use std::path::{Path, PathBuf};

use hvbak_qcow2::Place;
use hvbak_types::{CLUSTER_SIZE, Digest, DiskId, PointId};

use crate::{
    catalogue::Point,
    digests::{Digests, Kind, Run},
    error::{Error, Result},
    image::{ImageReader, Inflater, Stored},
    lock::PointsLock,
    merge::{Extents, StoredRun, StoredRuns},
};

/// Bytes of image tables kept, however many points a disk stands on.
const CACHE_BYTES: u64 = 8 << 20;
/// Clusters under one table of a qcow2 image.
const L2_ENTRIES: u64 = 8192;

/// What a cluster of the merged disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Zeros; the buffer is empty.
    Zero,
    /// The buffer holds one zstd frame of the 64 KiB, whose BLAKE3-256 this is.
    Compressed { digest: Digest },
    /// The buffer holds the 64 KiB, whose BLAKE3-256 this is.
    Plain { digest: Digest },
}

/// What a thread keeps from cluster to cluster.
#[derive(Debug, Default)]
pub struct Buffers {
    /// The cluster as it is stored: the zstd frame, the 64 KiB, or nothing for zeros.
    pub stored: Vec<u8>,
    plain: Vec<u8>,
    inflater: Inflater,
}

impl Buffers {
    /// The 64 KiB as the guest saw them, after [`DiskReader::read_proven`] has answered
    /// with this content; `None` for zeros.
    pub fn guest(&self, content: Content) -> Option<&[u8]> {
        match content {
            Content::Zero => None,
            Content::Plain { .. } => Some(&self.stored),
            Content::Compressed { .. } => Some(&self.plain),
        }
    }
}

/// A disk of a point, open for reading by any number of threads.
#[derive(Debug)]
pub struct DiskReader {
    disk: DiskId,
    virtual_size: u64,
    /// Base first.
    layers: Vec<Layer>,
    _lock: Option<PointsLock>,
}

#[derive(Debug)]
struct Layer {
    point: PointId,
    path: PathBuf,
    image: ImageReader,
    digests: Digests,
}

impl DiskReader {
    /// Opens the same disk of all points of a chain, base first.
    pub(crate) fn open(chain: Vec<Point>, disk: DiskId, lock: Option<PointsLock>) -> Result<Self> {
        let mut layers = Vec::with_capacity(chain.len());
        let mut virtual_size = 0;
        for point in &chain {
            let Some(entry) = point.manifest.disk(disk) else {
                return Err(Error::NoDisk { point: point.id().clone(), disk: disk.to_string() });
            };
            let record = &entry.record;
            virtual_size = record.virtual_size;
            let path = point.path.join(&record.file);
            let image = ImageReader::open(&path)?;
            image.limit_cache(CACHE_BYTES / chain.len() as u64);
            let digests = Digests::open(&point.path.join(&record.digests))?;
            for (what, found) in
                [("image", image.virtual_size()), ("digests", digests.virtual_size())]
            {
                if found != virtual_size {
                    let why =
                        format!("the {what} is of a disk of {found} bytes, not {virtual_size}");
                    return Err(Error::Damaged { path, why });
                }
            }
            layers.push(Layer { point: point.id().clone(), path, image, digests });
        }
        Ok(Self { disk, virtual_size, layers, _lock: lock })
    }

    /// Which disk this is.
    pub fn disk(&self) -> DiskId {
        self.disk
    }

    /// Bytes that the guest sees.
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// Clusters that the guest sees; the last may be cut by the end of the disk.
    pub fn clusters(&self) -> u64 {
        self.virtual_size.div_ceil(CLUSTER_SIZE)
    }

    /// The points that are merged, base first.
    pub fn points(&self) -> impl Iterator<Item = &PointId> {
        self.layers.iter().map(|l| &l.point)
    }

    /// What is stored, newest layer first asked, in guest order. What is in no run reads
    /// as zeros.
    pub fn stored(&self) -> StoredRuns {
        StoredRuns::new(self.layers.iter().map(|l| &l.digests), self.clusters())
    }

    /// The whole disk as data and zero extents in guest order, neighbours joined.
    pub fn extents(&self) -> Extents {
        Extents::new(self.stored(), self.virtual_size)
    }

    /// Clusters of data that a restore moves, all layers merged.
    pub fn data_clusters(&self) -> Result<u64> {
        self.stored().try_fold(0, |sum, run| {
            let run = run?;
            Ok(if run.data { sum + run.count } else { sum })
        })
    }

    /// Bytes of the qcow2 image that a restore of this disk writes, to be known where a
    /// volume cannot grow.
    pub fn image_size(&self) -> Result<u64> {
        let (mut data, mut tables, mut last) = (0, 0, None);
        for run in self.stored() {
            let run = run?;
            if !run.data || run.count == 0 {
                continue;
            }
            data += run.count;
            let (first, end) =
                (run.cluster / L2_ENTRIES, (run.cluster + run.count - 1) / L2_ENTRIES);
            tables += end - first + 1 - u64::from(last == Some(first));
            last = Some(end);
        }
        Ok(hvbak_qcow2::image_size(self.virtual_size, data, tables))
    }

    /// Reads one cluster as it is stored into `buffer`.
    ///
    /// # Errors
    /// [`Error::ClusterOutside`]; damage.
    pub fn read_cluster(&self, cluster: u64, buffer: &mut Vec<u8>) -> Result<Content> {
        if cluster >= self.clusters() {
            let path = self.layers.last().map_or_else(PathBuf::new, |l| l.path.clone());
            return Err(Error::ClusterOutside { path, cluster });
        }
        buffer.clear();
        for (number, layer) in self.layers.iter().enumerate().rev() {
            match layer.digests.find(cluster)? {
                None => {}
                Some(Run { kind: Kind::Zero, .. }) => return Ok(Content::Zero),
                Some(run) => {
                    return self.read_from(
                        number,
                        cluster,
                        run.digest + cluster - run.start,
                        buffer,
                    );
                }
            }
        }
        Ok(Content::Zero)
    }

    /// Like [`DiskReader::read_cluster`] for a cluster of a run from
    /// [`DiskReader::stored`], without the search.
    pub fn read_in(&self, run: &StoredRun, cluster: u64, buffer: &mut Vec<u8>) -> Result<Content> {
        buffer.clear();
        if !run.data {
            return Ok(Content::Zero);
        }
        match cluster.checked_sub(run.cluster).filter(|skip| *skip < run.count) {
            Some(skip) => self.read_from(run.layer, cluster, run.digest + skip, buffer),
            None => self.read_cluster(cluster, buffer),
        }
    }

    /// Reads a cluster of a run as it is stored into `buffers.stored`, and compares its
    /// 64 KiB with the digest; [`Buffers::guest`] has them then.
    ///
    /// # Errors
    /// [`Error::Damaged`] names the image and the cluster.
    pub fn read_proven(
        &self,
        run: &StoredRun,
        cluster: u64,
        buffers: &mut Buffers,
    ) -> Result<Content> {
        let Buffers { stored, plain, inflater } = buffers;
        let content = self.read_in(run, cluster, stored)?;
        let damaged = |what: &str| Error::Damaged {
            path: self.layers[run.layer].path.clone(),
            why: format!("cluster {cluster} {what}"),
        };
        let (bytes, digest) = match content {
            Content::Zero => return Ok(content),
            Content::Plain { digest } => (stored, digest),
            Content::Compressed { digest } => {
                inflater.inflate(stored, plain).map_err(|_| damaged("cannot be inflated"))?;
                (plain, digest)
            }
        };
        if blake3::hash(bytes).as_bytes() != &digest.0 {
            return Err(damaged("does not have its digest"));
        }
        Ok(content)
    }

    /// The file of a layer, base 0.
    pub(crate) fn layer_path(&self, layer: usize) -> Option<&Path> {
        self.layers.get(layer).map(|layer| layer.path.as_path())
    }

    /// Where a layer stores a data cluster of one of its runs, and the cluster's digest.
    pub(crate) fn place_in(&self, run: &StoredRun, cluster: u64) -> Result<(Place, Digest)> {
        let layer = &self.layers[run.layer];
        let digest = layer.digests.digest(run.digest + cluster - run.cluster)?;
        match layer.image.place(cluster)? {
            Some(place) => Ok((place, digest)),
            None => Err(layer.lacks(cluster)),
        }
    }

    fn read_from(
        &self,
        layer: usize,
        cluster: u64,
        index: u64,
        buffer: &mut Vec<u8>,
    ) -> Result<Content> {
        let layer = &self.layers[layer];
        let digest = layer.digests.digest(index)?;
        match layer.image.read_stored(cluster, buffer)? {
            Stored::Compressed => Ok(Content::Compressed { digest }),
            Stored::Plain => Ok(Content::Plain { digest }),
            Stored::Absent | Stored::Zero => Err(layer.lacks(cluster)),
        }
    }
}

impl Layer {
    fn lacks(&self, cluster: u64) -> Error {
        let why = format!("it does not hold cluster {cluster}, which it should");
        Error::Damaged { path: self.path.clone(), why }
    }
}
