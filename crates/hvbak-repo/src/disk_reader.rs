//! A stored disk as the guest saw it, merged over the points it stands on.
//!
//! The digests files say which layer holds a cluster (the newest that knows it wins), the
//! images give the bytes, compressed as they are stored, so that a restore neither inflates
//! nor compresses. Where the two disagree the disk is damaged: an error, never zeros.

use std::{iter::Peekable, ops::Range, path::PathBuf};

use hvbak_types::{CLUSTER_SIZE, Digest, DiskId, Extent, ExtentKind, PointId};

use crate::{
    catalogue::Point,
    digests::{Digests, Kind, Run, Runs},
    error::{Error, Result},
    image::{ImageReader, Inflater, Stored},
    lock::RepositoryLock,
};

/// Bytes of image tables kept, however many points a disk stands on.
const CACHE_BYTES: u64 = 8 << 20;

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

/// Neighbouring clusters that one layer decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredRun {
    /// First guest cluster.
    pub cluster: u64,
    /// Number of clusters, not 0.
    pub count: u64,
    /// Whether they hold data; zeros that hide older data else.
    pub data: bool,
    layer: usize,
    digest: u64,
}

impl StoredRun {
    /// The clusters of the run.
    pub fn clusters(&self) -> Range<u64> {
        self.cluster..self.cluster + self.count
    }

    /// The first `count` clusters, and the rest if there is one.
    pub(crate) fn split(self, count: u64) -> (Self, Option<Self>) {
        if self.count <= count {
            return (self, None);
        }
        let digest = self.digest + if self.data { count } else { 0 };
        let rest =
            Self { cluster: self.cluster + count, count: self.count - count, digest, ..self };
        (Self { count, ..self }, Some(rest))
    }
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
    _lock: Option<RepositoryLock>,
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
    pub(crate) fn open(
        chain: Vec<Point>,
        disk: DiskId,
        lock: Option<RepositoryLock>,
    ) -> Result<Self> {
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
        let layers = self.layers.iter().map(|l| (l.digests.runs(), None));
        StoredRuns { layers: layers.collect(), at: 0, end: self.clusters() }
    }

    /// The whole disk as data and zero extents in guest order, neighbours joined.
    pub fn extents(&self) -> Extents {
        Extents { runs: self.stored().peekable(), at: 0, size: self.virtual_size, pending: None }
    }

    /// Clusters of data that a restore moves, all layers merged.
    pub fn data_clusters(&self) -> Result<u64> {
        self.stored().try_fold(0, |sum, run| {
            let run = run?;
            Ok(if run.data { sum + run.count } else { sum })
        })
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
            Stored::Absent | Stored::Zero => Err(Error::Damaged {
                path: layer.path.clone(),
                why: format!("it does not hold cluster {cluster}, which it should"),
            }),
        }
    }
}

/// Iterates over what is stored, merged.
#[derive(Debug)]
pub struct StoredRuns {
    /// Base first; the run that is at hand.
    layers: Vec<(Runs, Option<Run>)>,
    at: u64,
    end: u64,
}

impl StoredRuns {
    /// Brings each layer's run at hand to one that ends behind `at`.
    fn advance(&mut self) -> Result<()> {
        for (runs, hand) in &mut self.layers {
            while hand.is_none_or(|run| run.end() <= self.at) {
                match runs.next() {
                    Some(run) => *hand = Some(run?),
                    None => {
                        *hand = None;
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Iterator for StoredRuns {
    type Item = Result<StoredRun>;

    fn next(&mut self) -> Option<Result<StoredRun>> {
        while self.at < self.end {
            if let Err(error) = self.advance() {
                self.at = self.end;
                return Some(Err(error));
            }
            // From the newest down: a run that begins later limits the older ones.
            let mut limit = self.end;
            for (layer, (_, hand)) in self.layers.iter().enumerate().rev() {
                let Some(run) = hand else { continue };
                if run.start > self.at {
                    limit = limit.min(run.start);
                    continue;
                }
                let (cluster, end) = (self.at, limit.min(run.end()));
                self.at = end;
                return Some(Ok(StoredRun {
                    cluster,
                    count: end - cluster,
                    data: run.kind == Kind::Data,
                    layer,
                    digest: run.digest + cluster - run.start,
                }));
            }
            self.at = limit;
        }
        None
    }
}

/// Iterates over the extents of the whole disk.
#[derive(Debug)]
pub struct Extents {
    runs: Peekable<StoredRuns>,
    at: u64,
    size: u64,
    /// A data range behind the gap that was told last.
    pending: Option<(u64, u64)>,
}

impl Extents {
    /// The next data range in bytes, neighbours joined.
    fn data(&mut self) -> Result<Option<(u64, u64)>> {
        if let Some(range) = self.pending.take() {
            return Ok(Some(range));
        }
        let mut range: Option<(u64, u64)> = None;
        loop {
            let joins = match (self.runs.peek(), &range) {
                (None, _) => false,
                (Some(Ok(run)), Some((_, end))) => run.data && run.cluster == *end,
                (Some(_), _) => true,
            };
            let run = match self.runs.next_if(|_| joins) {
                Some(run) => run?,
                None => break,
            };
            if run.data {
                let end = run.cluster + run.count;
                range = Some((range.map_or(run.cluster, |(start, _)| start), end));
            }
        }
        Ok(range.map(|(start, end)| (start * CLUSTER_SIZE, (end * CLUSTER_SIZE).min(self.size))))
    }
}

impl Iterator for Extents {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Result<Extent>> {
        if self.at >= self.size {
            return None;
        }
        let range = match self.data() {
            Ok(range) => range,
            Err(error) => {
                self.at = self.size;
                return Some(Err(error));
            }
        };
        let offset = self.at;
        let (end, kind) = match range {
            Some((start, end)) if start == offset => (end, ExtentKind::Data),
            Some((start, end)) => {
                self.pending = Some((start, end));
                (start, ExtentKind::Zero)
            }
            None => (self.size, ExtentKind::Zero),
        };
        self.at = end;
        Some(Ok(Extent { offset, length: end - offset, kind }))
    }
}
