//! The only place that speaks to `hvbak-qcow2`: images of the repository on files.

use std::{
    fmt,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use hvbak_qcow2::{
    Backing, BackingFormat, Chain, Compression, Fetched, Keeper, Layer, Place, Writer,
    WriterOptions,
};
use hvbak_types::{CLUSTER_SIZE, ExtentKind};

use crate::{
    digests::{Kind, Run},
    error::{At, Error, Result, write_error},
    storage::Storage,
};

/// Problems of structure that a report tells; the rest is counted.
const TOLD: usize = 8;

/// An image being written.
pub struct ImageWriter {
    writer: Writer<Arc<Storage>>,
    storage: Arc<Storage>,
    path: PathBuf,
}

impl ImageWriter {
    /// Makes a new file; `backing` is its backing file's name.
    pub fn create(path: &Path, virtual_size: u64, backing: Option<&str>) -> Result<Self> {
        let storage = Arc::new(Storage::create(path)?);
        let options = options(virtual_size, backing);
        let writer = Writer::create(storage.clone(), options).map_err(|e| failed(path, e))?;
        Ok(Self { writer, storage, path: path.to_owned() })
    }

    /// Writes what is still in memory of the payloads.
    pub fn flush_payloads(&mut self) -> Result<()> {
        self.writer.flush_payloads().map_err(|e| failed(&self.path, e))
    }

    /// The file, for whoever syncs it.
    pub fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }

    /// Stores a frame; gives its host offset.
    pub fn put_compressed(&mut self, cluster: u64, frame: &[u8]) -> Result<u64> {
        self.writer.put_compressed(cluster, frame).map_err(|e| failed(&self.path, e))
    }

    /// Stores 64 KiB; gives their host offset.
    pub fn put_data(&mut self, cluster: u64, data: &[u8]) -> Result<u64> {
        self.writer.put_data(cluster, data).map_err(|e| failed(&self.path, e))
    }

    pub fn put_zero(&mut self, cluster: u64, count: u64) -> Result<()> {
        self.writer.put_zero(cluster, count).map_err(|e| failed(&self.path, e))
    }

    /// Completes the file, waits for it, and returns its length.
    pub fn finish(self) -> Result<u64> {
        self.writer.finish().map_err(|e| failed(&self.path, e))?;
        self.storage.sync(&self.path)
    }
}

fn options(virtual_size: u64, backing: Option<&str>) -> WriterOptions {
    WriterOptions {
        virtual_size,
        backing: backing.map(|name| Backing {
            name: name.to_owned(),
            format: BackingFormat::Qcow2,
            // Not told, so that every zero cluster is stored where the digests say.
            virtual_size: None,
        }),
        compression: Some(Compression::Zstd),
    }
}

/// An image made over a clone of another, or over what a writer that died has left, before
/// anything is added to it.
pub struct ImageKeeper {
    keeper: Keeper<Arc<Storage>>,
    storage: Arc<Storage>,
    path: PathBuf,
}

impl ImageKeeper {
    /// Clones `from`; `None`, with nothing made, where the file system cannot.
    pub fn create(
        from: &Path,
        path: &Path,
        virtual_size: u64,
        backing: Option<&str>,
    ) -> Result<Option<Self>> {
        let Some(storage) = Storage::clone_of(from, path)? else { return Ok(None) };
        let storage = Arc::new(storage);
        let options = options(virtual_size, backing);
        let keeper = Keeper::create(storage.clone(), options).map_err(|e| failed(path, e))?;
        Ok(Some(Self { keeper, storage, path: path.to_owned() }))
    }

    /// Goes on with a file whose payloads, written by somebody else, lie below host byte
    /// `end`; what lies behind is cut off.
    pub fn reopen(path: &Path, virtual_size: u64, backing: Option<&str>, end: u64) -> Result<Self> {
        let end = end.next_multiple_of(CLUSTER_SIZE).max(CLUSTER_SIZE);
        let storage = Arc::new(Storage::reopen(path, end)?);
        let options = options(virtual_size, backing);
        let keeper = Keeper::create(storage.clone(), options).map_err(|e| failed(path, e))?;
        Ok(Self { keeper, storage, path: path.to_owned() })
    }

    /// A cluster stays where the file has it.
    pub fn keep(&mut self, cluster: u64, place: Place) -> Result<()> {
        self.keeper.keep(cluster, place).map_err(|e| failed(&self.path, e))
    }

    /// Gives back the storage of what is not kept and goes on to what is added. `None` when
    /// more than `garbage` bytes would stay, because they share a cluster with what is kept, or
    /// more than `empty` bytes of the file would be holes.
    pub fn begin(self, garbage: u64, empty: u64) -> Result<Option<ImageWriter>> {
        let begun = self.keeper.begin();
        let holes: u64 = begun.holes.iter().map(|hole| hole.end - hole.start).sum();
        if begun.garbage > garbage || holes > empty {
            return Ok(None);
        }
        for hole in &begun.holes {
            self.storage.punch(&self.path, hole)?;
        }
        let writer = begun.writer;
        Ok(Some(ImageWriter { writer, storage: self.storage, path: self.path }))
    }
}

/// An error of the image room; a full disk is told as one.
fn failed(path: &Path, error: hvbak_qcow2::Error) -> Error {
    use hvbak_qcow2::Error as E;
    match error {
        E::Write { source, .. } | E::Flush { source } => write_error(path, source),
        E::Read { source, .. } => Error::Read { path: path.to_owned(), cause: source },
        E::Duplicate { cluster } => Error::ClusterTwice { path: path.to_owned(), cluster },
        cause => Error::Image { path: path.to_owned(), cause },
    }
}

/// How an image stores a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    Absent,
    Zero,
    Plain,
    Compressed,
}

/// An image being read, alone: its backing file is not opened. May be used by several
/// threads.
pub struct ImageReader {
    chain: Chain<File>,
    path: PathBuf,
    length: u64,
    backing: Option<String>,
}

impl ImageReader {
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).reading(path)?;
        let length = file.metadata().reading(path)?.len();
        let layer = Layer::open_qcow2(file).map_err(|e| failed(path, e))?;
        let backing = layer.backing_name().map(str::to_owned);
        let chain = Chain::new(vec![layer]).map_err(|e| failed(path, e))?;
        Ok(Self { chain, path: path.to_owned(), length, backing })
    }

    /// Bounds the bytes of tables kept, for when many images are open.
    pub fn limit_cache(&self, bytes: u64) {
        self.chain.limit_cache(bytes);
    }

    pub fn virtual_size(&self) -> u64 {
        self.chain.virtual_size()
    }

    /// Length of the file when it was opened.
    pub fn length(&self) -> u64 {
        self.length
    }

    pub fn backing_name(&self) -> Option<&str> {
        self.backing.as_deref()
    }

    /// Problems of structure, as sentences.
    pub fn check(&self) -> Result<Vec<String>> {
        let file = File::open(&self.path).reading(&self.path)?;
        let report = hvbak_qcow2::check(&file).map_err(|e| failed(&self.path, e))?;
        let mut told: Vec<_> =
            report.problems.iter().take(TOLD).map(|problem| problem.text.clone()).collect();
        let more = report.errors.saturating_sub(told.len() as u64);
        if more > 0 {
            told.push(format!("and {more} more"));
        }
        Ok(told)
    }

    /// What the image holds, in guest order; `digest` of the runs means nothing.
    pub fn runs(&self) -> Result<impl Iterator<Item = Result<Run>>> {
        let runs = self
            .chain
            .cluster_runs(1, 0, self.chain.clusters())
            .map_err(|e| failed(&self.path, e))?;
        Ok(runs.filter_map(|run| match run {
            Err(error) => Some(Err(failed(&self.path, error))),
            Ok(run) => {
                let kind = match run.kind {
                    ExtentKind::Absent => return None,
                    ExtentKind::Zero => Kind::Zero,
                    ExtentKind::Data => Kind::Data,
                };
                Some(Ok(Run { start: run.cluster, count: run.count, kind, digest: 0 }))
            }
        }))
    }

    /// Where the image stores a cluster; `None` when it holds no data there.
    pub fn place(&self, cluster: u64) -> Result<Option<Place>> {
        match self.chain.layers() {
            [layer] => layer.place(cluster).map_err(|e| failed(&self.path, e)),
            _ => Ok(None),
        }
    }

    /// Reads what is stored of a cluster into `out`: the frame, or the 64 KiB.
    pub fn read_stored(&self, cluster: u64, out: &mut Vec<u8>) -> Result<Stored> {
        match self.chain.fetch_cluster(cluster, out).map_err(|e| failed(&self.path, e))? {
            Fetched::Absent => Ok(Stored::Absent),
            Fetched::Zero => Ok(Stored::Zero),
            Fetched::Plain => Ok(Stored::Plain),
            Fetched::Compressed => Ok(Stored::Compressed),
        }
    }
}

/// Inflates frames of clusters; keeps its tables from call to call.
#[derive(Default)]
pub struct Inflater(Option<zstd::bulk::Decompressor<'static>>);

impl Inflater {
    /// Inflates a frame into `out`, which then holds exactly 64 KiB.
    ///
    /// # Errors
    /// The frame is damaged or holds another length.
    pub fn inflate(&mut self, frame: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        out.resize(CLUSTER_SIZE as usize, 0);
        let decompressor = match &mut self.0 {
            Some(decompressor) => decompressor,
            none => none.insert(zstd::bulk::Decompressor::new()?),
        };
        let n = decompressor.decompress_to_buffer(frame, out.as_mut_slice())?;
        if n as u64 != CLUSTER_SIZE {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(())
    }
}

impl fmt::Debug for Inflater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflater").finish_non_exhaustive()
    }
}

impl fmt::Debug for ImageKeeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageKeeper").field("path", &self.path).finish_non_exhaustive()
    }
}

impl fmt::Debug for ImageWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageWriter").field("path", &self.path).finish_non_exhaustive()
    }
}

impl fmt::Debug for ImageReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageReader").field("path", &self.path).finish_non_exhaustive()
    }
}
