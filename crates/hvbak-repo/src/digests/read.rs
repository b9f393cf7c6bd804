//! Reads a `.digests` file without holding it: one pass at opening checks all runs and
//! keeps every 128th as an index.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use hvbak_types::{CLUSTER_SIZE, Digest};

use super::{BLAKE3, DIGEST, HEADER, Kind, MAGIC, RUN, Run, VERSION};
use crate::error::{At, Error, Result};

/// Runs per entry of the index, and per read.
const STRIDE: u64 = 128;

/// An open digests file. May be used by several threads.
#[derive(Debug, Clone)]
pub struct Digests(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: File,
    path: PathBuf,
    virtual_size: u64,
    runs: u64,
    data: u64,
    zero: u64,
    /// Start of every 128th run.
    index: Vec<u64>,
}

impl Digests {
    /// Opens a file and checks its structure.
    ///
    /// # Errors
    /// [`Error::Damaged`] says what is wrong with it.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).reading(path)?;
        let length = file.metadata().reading(path)?.len();
        let bad = |why: String| Error::Damaged { path: path.to_owned(), why };
        let mut header = [0; HEADER as usize];
        match file.read_exact_at(&mut header, 0) {
            Err(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(bad("it is cut off".into()));
            }
            other => other.reading(path)?,
        }
        let u32_at = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| header[at + i]));
        let u64_at = |at: usize| u64_le(&header[at..]);
        if header[..8] != MAGIC {
            return Err(bad("it is no digests file".into()));
        }
        if (u32_at(8), u32_at(48)) != (VERSION, BLAKE3) || u64::from(u32_at(12)) != CLUSTER_SIZE {
            return Err(bad("it has a version, cluster size or algorithm unknown here".into()));
        }
        let (virtual_size, runs, data, zero) = (u64_at(16), u64_at(24), u64_at(32), u64_at(40));
        let clusters = virtual_size.div_ceil(CLUSTER_SIZE);
        let expected = data
            .checked_mul(DIGEST)
            .and_then(|d| runs.checked_mul(RUN)?.checked_add(d)?.checked_add(HEADER));
        match expected {
            Some(expected) if expected == length => {}
            Some(expected) if expected > length => {
                return Err(bad(format!("it is cut off: {length} of {expected} bytes")));
            }
            _ => return Err(bad("its length contradicts its header".into())),
        }
        let mut inner = Inner {
            file,
            path: path.to_owned(),
            virtual_size,
            runs,
            data,
            zero,
            index: Vec::new(),
        };
        inner.index = inner.check_runs(clusters)?;
        Ok(Self(Arc::new(inner)))
    }

    /// Bytes that the guest sees.
    pub fn virtual_size(&self) -> u64 {
        self.0.virtual_size
    }

    /// Number of data clusters.
    #[cfg(test)]
    pub fn data(&self) -> u64 {
        self.0.data
    }

    /// Number of zero clusters.
    #[cfg(test)]
    pub fn zero(&self) -> u64 {
        self.0.zero
    }

    /// All runs in guest order.
    pub fn runs(&self) -> Runs {
        Runs { digests: self.clone(), next: 0, window: Vec::new().into_iter() }
    }

    /// The run that holds a cluster.
    pub fn find(&self, cluster: u64) -> Result<Option<Run>> {
        let inner = &*self.0;
        let slot = inner.index.partition_point(|start| *start <= cluster);
        let Some(slot) = slot.checked_sub(1) else { return Ok(None) };
        let runs = inner.read_runs(slot as u64 * STRIDE)?;
        let at = runs.partition_point(|run| run.start <= cluster);
        Ok(at.checked_sub(1).map(|i| runs[i]).filter(|run| cluster < run.end()))
    }

    /// The digest with this index.
    pub fn digest(&self, index: u64) -> Result<Digest> {
        let mut digest = [0; DIGEST as usize];
        self.0.read_digests(index, &mut digest)?;
        Ok(Digest(digest))
    }
}

impl Inner {
    fn read_digests(&self, index: u64, out: &mut [u8]) -> Result<()> {
        let at = HEADER + RUN * self.runs + DIGEST * index;
        self.file.read_exact_at(out, at).reading(&self.path)
    }

    /// Up to [`STRIDE`] runs from number `first` on.
    fn read_runs(&self, first: u64) -> Result<Vec<Run>> {
        let count = STRIDE.min(self.runs.saturating_sub(first));
        let mut bytes = vec![0; (count * RUN) as usize];
        self.file.read_exact_at(&mut bytes, HEADER + RUN * first).reading(&self.path)?;
        let parse = |b: &[u8]| {
            let kind = match u32::from_le_bytes([b[20], b[21], b[22], b[23]]) {
                1 => Kind::Data,
                2 => Kind::Zero,
                _ => return None,
            };
            let count = u32::from_le_bytes([b[16], b[17], b[18], b[19]]);
            Some(Run { start: u64_le(b), count: count.into(), kind, digest: u64_le(&b[8..]) })
        };
        let runs: Option<Vec<_>> = bytes.chunks_exact(RUN as usize).map(parse).collect();
        runs.ok_or_else(|| self.bad("a run has an unknown kind"))
    }

    fn check_runs(&self, clusters: u64) -> Result<Vec<u64>> {
        let (mut end, mut data, mut zero) = (0u64, 0u64, 0u64);
        let mut index = Vec::new();
        for first in (0..self.runs).step_by(STRIDE as usize) {
            for (i, run) in self.read_runs(first)?.iter().enumerate() {
                if i == 0 {
                    index.push(run.start);
                }
                let run_end = run.start.checked_add(run.count).filter(|end| *end <= clusters);
                let digest_fits = match run.kind {
                    Kind::Data => run.digest == data,
                    Kind::Zero => run.digest == 0,
                };
                match run_end {
                    Some(e) if run.start >= end && run.count > 0 && digest_fits => end = e,
                    _ => return Err(self.bad("its runs are out of order or outside of the disk")),
                }
                match run.kind {
                    Kind::Data => data += run.count,
                    Kind::Zero => zero += run.count,
                }
            }
        }
        if (data, zero) != (self.data, self.zero) {
            return Err(self.bad("its runs contradict its header"));
        }
        Ok(index)
    }

    fn bad(&self, why: &str) -> Error {
        Error::Damaged { path: self.path.clone(), why: why.to_owned() }
    }
}

/// Iterates over runs.
#[derive(Debug)]
pub struct Runs {
    digests: Digests,
    next: u64,
    window: std::vec::IntoIter<Run>,
}

impl Iterator for Runs {
    type Item = Result<Run>;

    fn next(&mut self) -> Option<Result<Run>> {
        if let Some(run) = self.window.next() {
            return Some(Ok(run));
        }
        if self.next >= self.digests.0.runs {
            return None;
        }
        match self.digests.0.read_runs(self.next) {
            Ok(runs) => {
                self.next += runs.len() as u64;
                self.window = runs.into_iter();
                self.window.next().map(Ok)
            }
            Err(error) => {
                self.next = u64::MAX;
                Some(Err(error))
            }
        }
    }
}

fn u64_le(bytes: &[u8]) -> u64 {
    u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| bytes[i]))
}
