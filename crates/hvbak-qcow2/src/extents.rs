//! The map of a chain as lazy iterators: constant memory on any disk.

use hvbak_types::{CLUSTER_SIZE, Extent, ExtentKind};

use crate::{ReadAt, Result, chain::Walker, table::Mapping};

/// Extents of a range in guest order, without gaps, neighbours of one kind merged.
pub struct Extents<'a, R> {
    walker: Walker<'a, R>,
    pos: u64,
    end: u64,
    /// Found while looking for the end of the extent before.
    next: Option<(ExtentKind, u64)>,
}

impl<'a, R: ReadAt> Extents<'a, R> {
    pub(crate) fn new(walker: Walker<'a, R>, pos: u64, end: u64) -> Self {
        Self { walker, pos, end, next: None }
    }

    fn step(&mut self, at: u64) -> Result<(ExtentKind, u64)> {
        let piece = self.walker.at(at, self.end - at)?;
        let kind = match piece.mapping {
            Mapping::Absent => ExtentKind::Absent,
            Mapping::Zero => ExtentKind::Zero,
            Mapping::Data(_) | Mapping::Compressed(..) => ExtentKind::Data,
        };
        Ok((kind, at + piece.length))
    }

    fn extent(&mut self) -> Result<Extent> {
        let offset = self.pos;
        let (kind, mut to) = match self.next.take() {
            Some(found) => found,
            None => self.step(offset)?,
        };
        while to < self.end {
            let (other, end) = self.step(to)?;
            if other != kind {
                self.next = Some((other, end));
                break;
            }
            to = end;
        }
        self.pos = to;
        Ok(Extent { offset, length: to - offset, kind })
    }
}

impl<R: ReadAt> Iterator for Extents<'_, R> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.pos >= self.end {
            return None;
        }
        let item = self.extent();
        if item.is_err() {
            self.pos = self.end;
        }
        Some(item)
    }
}

/// Neighbouring 64 KiB guest clusters of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterRun {
    /// Number of the first cluster.
    pub cluster: u64,
    /// How many, never 0.
    pub count: u64,
    /// What is there.
    pub kind: ExtentKind,
}

/// A map in whole 64 KiB clusters, in guest order, without gaps, merged.
pub struct ClusterRuns<'a, R> {
    extents: Extents<'a, R>,
    /// Rest of the extent under work.
    rest: Option<Extent>,
    /// The run that may still grow.
    open: Option<ClusterRun>,
}

impl<'a, R: ReadAt> ClusterRuns<'a, R> {
    pub(crate) fn new(extents: Extents<'a, R>) -> Self {
        Self { extents, rest: None, open: None }
    }

    fn pull(&mut self) -> Result<Option<Extent>> {
        match self.rest.take() {
            Some(rest) => Ok(Some(rest)),
            None => self.extents.next().transpose(),
        }
    }

    /// The next run: whole clusters inside one extent, or one cluster of several extents.
    fn run(&mut self) -> Result<Option<ClusterRun>> {
        let Some(extent) = self.pull()? else { return Ok(None) };
        let cluster = extent.offset / CLUSTER_SIZE;
        let last = extent.end() == self.extents.end;
        let whole =
            if last { extent.end().div_ceil(CLUSTER_SIZE) } else { extent.end() / CLUSTER_SIZE };
        if whole > cluster {
            let end = whole * CLUSTER_SIZE;
            if end < extent.end() {
                self.rest = Some(Extent { offset: end, length: extent.end() - end, ..extent });
            }
            return Ok(Some(ClusterRun { cluster, count: whole - cluster, kind: extent.kind }));
        }
        let end = (cluster + 1) * CLUSTER_SIZE;
        let (mut kind, mut at) = (extent.kind, extent.end());
        while at < end {
            let Some(part) = self.pull()? else { break };
            if part.kind != kind {
                kind = ExtentKind::Data;
            }
            at = part.end();
            if at > end {
                self.rest = Some(Extent { offset: end, length: at - end, ..part });
            }
        }
        Ok(Some(ClusterRun { cluster, count: 1, kind }))
    }
}

impl<R: ReadAt> Iterator for ClusterRuns<'_, R> {
    type Item = Result<ClusterRun>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match (self.run(), &mut self.open) {
                (Err(error), open) => {
                    *open = None;
                    self.rest = None;
                    return Some(Err(error));
                }
                (Ok(None), open) => return open.take().map(Ok),
                (Ok(Some(run)), Some(open)) if open.kind == run.kind => open.count += run.count,
                (Ok(Some(run)), open) => {
                    if let Some(done) = open.replace(run) {
                        return Some(Ok(done));
                    }
                }
            }
        }
    }
}
