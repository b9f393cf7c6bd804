//! Which layer decides which cluster: the runs of all layers merged, newest first asked.
//!
//! Memory is a run per layer, whatever the disk's size.

use std::{iter::Peekable, ops::Range};

use hvbak_types::{CLUSTER_SIZE, Extent, ExtentKind};

use crate::{
    digests::{Digests, Kind, Run, Runs},
    error::Result,
};

/// Neighbouring clusters that one layer decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredRun {
    /// First guest cluster.
    pub cluster: u64,
    /// Number of clusters, not 0.
    pub count: u64,
    /// Whether they hold data; zeros that hide older data else.
    pub data: bool,
    /// Number of the layer, base 0.
    pub(crate) layer: usize,
    /// For data: index of the first cluster's digest in that layer.
    pub(crate) digest: u64,
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

/// Iterates over what is stored, merged.
#[derive(Debug)]
pub struct StoredRuns {
    /// Base first; the run that is at hand.
    layers: Vec<(Runs, Option<Run>)>,
    at: u64,
    end: u64,
}

impl StoredRuns {
    /// Merges layers, base first, up to cluster `end`.
    pub(crate) fn new<'a>(layers: impl Iterator<Item = &'a Digests>, end: u64) -> Self {
        Self { layers: layers.map(|digests| (digests.runs(), None)).collect(), at: 0, end }
    }

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
    pub(crate) fn new(runs: StoredRuns, size: u64) -> Self {
        Self { runs: runs.peekable(), at: 0, size, pending: None }
    }

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
