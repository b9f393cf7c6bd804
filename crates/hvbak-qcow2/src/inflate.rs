//! Compressed clusters: from the packed sectors to one guest cluster.
//!
//! An entry says only how many sectors a payload touches, so what is read ends in foreign
//! bytes; both formats carry their own end. Output is bounded by the cluster size: a bomb
//! is an error. Frames are decoded in one pass, so no window is allocated.

use flate2::{Decompress, FlushDecompress, Status};
use zstd::zstd_safe::{DCtx, find_frame_compressed_size, get_frame_content_size};

use crate::{Compression, Error, Result};

/// Decoders and buffers of one reading thread, reused between clusters.
pub(crate) struct Scratch {
    zstd: DCtx<'static>,
    zlib: Decompress,
    /// Packed sectors as read.
    pub packed: Vec<u8>,
    /// The cluster inflated last: pieces of one cluster are often asked one by one.
    cluster: Vec<u8>,
    held: Option<(usize, u64)>,
}

impl Scratch {
    pub fn new() -> Self {
        Self {
            zstd: DCtx::create(),
            zlib: Decompress::new(false),
            packed: Vec::new(),
            cluster: Vec::new(),
            held: None,
        }
    }

    /// The cluster of `layer` whose payload is at `offset`, if it was the last one.
    pub fn held(&self, layer: usize, offset: u64) -> Option<&[u8]> {
        (self.held == Some((layer, offset))).then_some(&self.cluster)
    }

    /// Inflates `self.packed` and holds the result.
    pub fn inflate_held(
        &mut self,
        method: Compression,
        size: usize,
        layer: usize,
        offset: u64,
    ) -> Result<&[u8]> {
        self.held = None;
        let mut cluster = std::mem::take(&mut self.cluster);
        cluster.resize(size, 0);
        let done = self.inflate(method, &mut cluster, offset);
        self.cluster = cluster;
        done?;
        self.held = Some((layer, offset));
        Ok(&self.cluster)
    }

    /// Inflates `self.packed` into `out`, which it must fill exactly.
    pub fn inflate(&mut self, method: Compression, out: &mut [u8], offset: u64) -> Result<()> {
        match method {
            Compression::Zlib => self.inflate_zlib(out),
            Compression::Zstd => self.inflate_zstd(out),
        }
        .map_err(|reason| Error::Inflate { offset, reason })
    }

    /// QEMU accepts a stream that ends exactly with the cluster, or one that still wants to
    /// say more when the cluster is full (`qcow2_zlib_decompress`).
    fn inflate_zlib(&mut self, out: &mut [u8]) -> std::result::Result<(), String> {
        self.zlib.reset(false);
        let status = self.zlib.decompress(&self.packed, out, FlushDecompress::Finish);
        match status {
            Ok(Status::StreamEnd | Status::Ok | Status::BufError)
                if self.zlib.total_out() == out.len() as u64 =>
            {
                Ok(())
            }
            Ok(_) => Err(format!("deflate gave {} of {} bytes", self.zlib.total_out(), out.len())),
            Err(cause) => Err(format!("deflate: {cause}")),
        }
    }

    /// QEMU allows a payload of several frames (`qcow2_zstd_decompress`).
    fn inflate_zstd(&mut self, out: &mut [u8]) -> std::result::Result<(), String> {
        let (mut from, mut to) = (0, 0);
        while to < out.len() {
            let rest = &self.packed[from..];
            let frame = frame_length(rest).ok_or("no whole zstd frame")?;
            let made = self
                .zstd
                .decompress(&mut out[to..], &rest[..frame])
                .map_err(|code| format!("zstd: {}", zstd::zstd_safe::get_error_name(code)))?;
            from += frame;
            to += made;
        }
        Ok(())
    }
}

/// Length of the zstd frame that `packed` begins with.
fn frame_length(packed: &[u8]) -> Option<usize> {
    match find_frame_compressed_size(packed) {
        Ok(length) if length > 0 && length <= packed.len() => Some(length),
        _ => None,
    }
}

/// Length of the frame if it alone holds exactly `size` bytes: then it can be passed on.
pub(crate) fn whole_frame(packed: &[u8], size: u64) -> Option<usize> {
    match get_frame_content_size(packed) {
        Ok(Some(content)) if content == size => frame_length(packed),
        _ => None,
    }
}

/// Whether `payload` is one frame and nothing else, of `size` bytes as far as it says.
pub(crate) fn is_frame(payload: &[u8], size: u64) -> bool {
    frame_length(payload) == Some(payload.len())
        && matches!(get_frame_content_size(payload), Ok(content) if content.is_none_or(|c| c == size))
}
