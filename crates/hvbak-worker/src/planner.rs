//! Cuts the map of a range into units of work in guest order.
//!
//! A unit has at most 1 MiB of data, so that it is one read where the disk is dense and a
//! handful where it is not; one unit becomes one frame.

use hvbak_qcow2::{ClusterRun, ClusterRuns, ReadAt};
use hvbak_types::ExtentKind;
use hvbak_wire::MAX_CLUSTERS;

/// Most data clusters of a unit: 1 MiB.
pub const UNIT_CLUSTERS: usize = 16;

/// Neighbouring clusters of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub first: u64,
    pub count: u32,
    /// To be read; else a zero run.
    pub data: bool,
}

/// One unit of work.
#[derive(Debug, PartialEq, Eq)]
pub struct Unit {
    pub number: u64,
    pub pieces: Vec<Piece>,
}

/// Hands out units.
pub struct Planner<'a, R> {
    runs: ClusterRuns<'a, R>,
    rest: Option<ClusterRun>,
    zeros: bool,
    number: u64,
}

impl<'a, R: ReadAt> Planner<'a, R> {
    /// For a map; with `zeros`, zero runs are part of the units.
    pub fn new(runs: ClusterRuns<'a, R>, zeros: bool) -> Self {
        Self { runs, rest: None, zeros, number: 0 }
    }

    /// Number that the next unit will have.
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// The next unit; `None` when the range is done.
    ///
    /// # Errors
    /// The map is damaged.
    pub fn next_unit(&mut self) -> hvbak_qcow2::Result<Option<Unit>> {
        let mut pieces = Vec::new();
        let mut data = 0;
        while data < UNIT_CLUSTERS && pieces.len() < MAX_CLUSTERS - UNIT_CLUSTERS {
            let Some(run) = self.rest.take().map_or_else(|| self.runs.next(), |r| Some(Ok(r)))
            else {
                break;
            };
            let run = run?;
            let room = match run.kind {
                ExtentKind::Data => (UNIT_CLUSTERS - data) as u64,
                ExtentKind::Zero if self.zeros => u64::from(u32::MAX),
                ExtentKind::Zero | ExtentKind::Absent => continue,
            };
            let count = run.count.min(room);
            if count < run.count {
                let cluster = run.cluster + count;
                self.rest = Some(ClusterRun { cluster, count: run.count - count, ..run });
            }
            let is_data = run.kind == ExtentKind::Data;
            if is_data {
                // At most UNIT_CLUSTERS.
                data += count as usize;
            }
            pieces.push(Piece { first: run.cluster, count: count as u32, data: is_data });
        }
        if pieces.is_empty() {
            return Ok(None);
        }
        let number = self.number;
        self.number += 1;
        Ok(Some(Unit { number, pieces }))
    }
}
