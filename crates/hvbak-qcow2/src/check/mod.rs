//! Structure check of one image: every table entry, and references against refcounts.
//!
//! Content is not read (digests do that). Damage in tables goes into the report, so one
//! check names all of it. Memory is bounded: counts are compared in windows of 8 Mi host
//! clusters (32 MiB of counters), the tables being walked once per window.

mod refcounts;
mod walk;

use std::ops::Range;

use self::{refcounts::Refcounts, walk::Walk};
use crate::{Error, Header, ReadAt, Result};

/// Host clusters compared at once: 512 GiB of a vdsm image.
const WINDOW: u64 = 8 << 20;
/// Host clusters a check walks at most: 32 TiB of a vdsm image.
const MAX_CLUSTERS: u64 = 64 * WINDOW;
/// Problems listed; more are only counted.
const LISTED: usize = 1000;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Byte of the image file it concerns.
    pub offset: u64,
    /// What is wrong, in words.
    pub text: String,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CheckReport {
    /// The first 1000 errors: data is lost, or writing to the image would lose some.
    pub problems: Vec<Problem>,
    /// Number of errors, also those not listed.
    pub errors: u64,
    /// Host clusters with a higher refcount than references: space lost, nothing else.
    pub leaks: u64,
    /// First byte behind the last cluster in use, as `qemu-img check` counts it.
    pub image_end_offset: u64,
    /// Guest clusters stored as they are (for extended L2 entries: with any data).
    pub data_clusters: u64,
    /// Guest clusters stored compressed.
    pub compressed_clusters: u64,
    /// Guest clusters that read as zero by their entry.
    pub zero_clusters: u64,
    /// Why refcounts were not compared, if they were not.
    pub limited: Option<&'static str>,
}

impl CheckReport {
    /// Whether nothing is wrong (leaks are not).
    pub fn is_clean(&self) -> bool {
        self.errors == 0
    }

    fn problem(&mut self, offset: u64, text: impl Into<String>) {
        self.errors += 1;
        if self.problems.len() < LISTED {
            self.problems.push(Problem { offset, text: text.into() });
        }
    }
}

/// Walks all tables of the image and compares references with refcounts.
///
/// Images with internal snapshots, persistent bitmaps or lazy refcounts are walked without
/// the comparison; [`CheckReport::limited`] says so.
///
/// # Errors
/// Those of [`Header::read`], [`Error::Truncated`] for the L1 table, IO,
/// [`Error::CheckTooLarge`]. Damage in tables is in the report, not an error.
pub fn check<R: ReadAt + ?Sized>(src: &R) -> Result<CheckReport> {
    let header = Header::read(src)?;
    let size = src.size().map_err(|source| Error::Read {
        what: "the size of the image",
        offset: 0,
        source,
    })?;
    let mut report = CheckReport { limited: limit(&header), ..CheckReport::default() };
    if header.corrupt() {
        report.problem(72, "QEMU marked the image as corrupt");
    }
    let refcounts = Refcounts::open(src, &header, size, &mut report)?;
    let walk = Walk::open(src, &header, size, &mut report)?;
    let clusters = size.div_ceil(header.cluster_size());
    let mut window = 0..WINDOW.min(clusters);
    let mut first = true;
    while !window.is_empty() {
        if window.end > MAX_CLUSTERS {
            return Err(Error::CheckTooLarge { clusters });
        }
        let mut counts = Counts::new(window.clone(), refcounts.load(window.clone())?);
        counts.comparing = report.limited.is_none();
        refcounts.mark(&mut counts, &mut report);
        let highest = walk.run(&mut counts, &mut report, first)?;
        counts.compare(header.cluster_size(), &mut report);
        // Nothing can be used behind the last reference and the last refcount block.
        let last = clusters.min(highest.max(refcounts.covered()) + 1);
        window = window.end..(window.end + WINDOW).min(last);
        first = false;
    }
    Ok(report)
}

fn limit(header: &Header) -> Option<&'static str> {
    if header.internal_snapshots > 0 {
        Some("the image has internal snapshots")
    } else if header.has_bitmaps {
        Some("the image has persistent bitmaps")
    } else if header.dirty() {
        Some("the image was not closed cleanly (lazy refcounts)")
    } else {
        None
    }
}

/// What refers to a host cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// A table or a plain data cluster: nothing else may.
    Whole,
    /// A compressed cluster: others of the kind may.
    Part,
}

/// References and stored refcounts of the host clusters in a window.
struct Counts {
    window: Range<u64>,
    stored: Vec<u16>,
    /// References found; bit 15 says that one of them is [`By::Whole`].
    found: Vec<u16>,
    comparing: bool,
}

impl Counts {
    const WHOLE: u16 = 1 << 15;
    const MOST: u16 = Self::WHOLE - 1;

    fn new(window: Range<u64>, stored: Vec<u16>) -> Self {
        let found = vec![0; stored.len()];
        Self { window, stored, found, comparing: true }
    }

    fn index(&self, cluster: u64) -> Option<usize> {
        self.window.contains(&cluster).then(|| (cluster - self.window.start) as usize)
    }

    /// The stored refcount, none outside the window.
    fn stored(&self, cluster: u64) -> Option<u16> {
        self.index(cluster).map(|index| self.stored[index])
    }

    fn mark(&mut self, cluster: u64, by: By, bytes: u64, report: &mut CheckReport) {
        let Some(index) = self.index(cluster) else { return };
        let found = &mut self.found[index];
        let count = *found & Self::MOST;
        let shared = *found & Self::WHOLE != 0 || (by == By::Whole && count > 0);
        // With internal snapshots sharing is what they are made of.
        if shared && self.comparing {
            report.problem(cluster * bytes, "a cluster is used twice");
        }
        let whole = if by == By::Whole { Self::WHOLE } else { *found & Self::WHOLE };
        *found = (count + 1).min(Self::MOST) | whole;
    }

    fn compare(&self, bytes: u64, report: &mut CheckReport) {
        for (index, (&stored, &found)) in self.stored.iter().zip(&self.found).enumerate() {
            let (stored, found) = (stored.min(Self::MOST), found & Self::MOST);
            let offset = (self.window.start + index as u64) * bytes;
            if stored > 0 || found > 0 {
                report.image_end_offset = report.image_end_offset.max(offset + bytes);
            }
            if !self.comparing || stored == found {
                continue;
            }
            if stored < found {
                let text = format!("the refcount is {stored}, but {found} references exist");
                report.problem(offset, text);
            } else {
                report.leaks += 1;
            }
        }
    }
}
