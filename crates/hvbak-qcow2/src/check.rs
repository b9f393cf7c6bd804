//! Structure check of one image (stub being filled).

use crate::{Header, ReadAt, Result};

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
    /// Clusters that are counted as used and that nothing uses: harmless.
    pub leaks: u64,
    /// First byte behind the last cluster in use.
    pub image_end_offset: u64,
    /// Guest clusters stored as they are.
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
}

/// Walks all tables of the image and compares references with refcounts.
///
/// # Errors
/// Those of [`Header::read`], IO, [`crate::Error::CheckTooLarge`]. Damage in tables is in the
/// report, not an error.
pub fn check<R: ReadAt + ?Sized>(src: &R) -> Result<CheckReport> {
    Header::read(src)?;
    Ok(CheckReport::default())
}
