//! The only place that speaks to `hvbak-qcow2`: images of the repository on files.

use std::path::Path;

use hvbak_types::CLUSTER_SIZE;

use crate::error::{Error, Result};

/// Whatever an image operation failed with.
pub type ImageError = Box<dyn std::error::Error + Send + Sync>;

/// An image being written.
#[derive(Debug)]
pub struct ImageWriter {}

impl ImageWriter {
    /// Makes a new file; `backing` is its backing file's name.
    pub fn create(path: &Path, _virtual_size: u64, _backing: Option<&str>) -> Result<Self> {
        Err(Error::Image { path: path.to_owned(), cause: "images cannot be written yet".into() })
    }

    pub fn put_compressed(&mut self, _cluster: u64, _payload: &[u8]) -> Result<()> {
        Ok(())
    }

    pub fn put_data(&mut self, _cluster: u64, _data: &[u8]) -> Result<()> {
        Ok(())
    }

    pub fn put_zero(&mut self, _cluster: u64, _count: u64) -> Result<()> {
        Ok(())
    }

    /// Completes the file, waits for it, and returns its length.
    pub fn finish(self) -> Result<u64> {
        Ok(0)
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

/// An image being read. May be used by several threads.
#[derive(Debug)]
pub struct ImageReader {}

impl ImageReader {
    pub fn open(path: &Path) -> Result<Self> {
        Err(Error::Image { path: path.to_owned(), cause: "images cannot be read yet".into() })
    }

    pub fn virtual_size(&self) -> u64 {
        0
    }

    pub fn length(&self) -> u64 {
        0
    }

    pub fn backing_name(&self) -> Option<&str> {
        None
    }

    /// Problems of structure, as sentences.
    pub fn check(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Calls `each` for every stored cluster in guest order.
    pub fn each_stored(&self, _each: impl FnMut(u64, Stored) -> Result<()>) -> Result<()> {
        Ok(())
    }

    /// Reads what is stored of a cluster into `out`: the frame, or the 64 KiB.
    pub fn read_stored(&self, _cluster: u64, _out: &mut Vec<u8>) -> Result<Stored> {
        Ok(Stored::Absent)
    }
}

/// Inflates the frame of a cluster into `out`, which then holds exactly 64 KiB.
///
/// # Errors
/// The frame is damaged or holds another length.
pub fn inflate(frame: &[u8], out: &mut Vec<u8>) -> std::io::Result<()> {
    out.resize(CLUSTER_SIZE as usize, 0);
    let n = zstd::bulk::decompress_to_buffer(frame, out.as_mut_slice())?;
    if n as u64 != CLUSTER_SIZE {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    Ok(())
}
