//! One frame: `length u32 · kind u8 · header length u24 · header · bulk · crc32 u32`.
//!
//! All numbers are little-endian. `length` counts what follows it. The CRC covers all
//! bytes of the frame in front of it: SSH already authenticates the stream, so it only
//! has to catch our own faults (a lost place, a reused buffer), and CRC-32 with
//! carry-less multiplication costs a tenth of a cryptographic digest.

use serde::{Serialize, de::DeserializeOwned};

use crate::{CLUSTER_BYTES, Clusters, MAX_CLUSTERS, WireError};

/// Most bytes of a header. A chain of 64 layers with long paths needs about 100 KiB.
pub const MAX_HEADER: usize = 256 * 1024;
/// Most bytes of bulk: 64 clusters, none of them compressed.
pub const MAX_BULK: usize = MAX_CLUSTERS * CLUSTER_BYTES;
/// Bytes in front of the header.
pub(crate) const PREFIX: usize = 8;
/// Bytes of the checksum.
pub(crate) const SUM: usize = 4;
/// Bytes of a frame that are neither header nor bulk.
pub const OVERHEAD: usize = PREFIX + SUM;
/// Most bytes of a whole frame.
pub const MAX_FRAME: usize = OVERHEAD + MAX_HEADER + MAX_BULK;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Worker: versions and features; once, right after the magic.
    Hello = 1,
    /// Coordinator: the chosen version or a refusal; once.
    Choice = 2,
    /// Coordinator: one request.
    Request = 3,
    /// Worker: the one answer that ends a request.
    Answer = 4,
    /// Worker: the request failed; the session goes on.
    Failed = 5,
    /// Both: clusters of a read or write stream; the header is binary.
    Clusters = 6,
}

impl Kind {
    /// Reads the kind byte.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Choice,
            3 => Self::Request,
            4 => Self::Answer,
            5 => Self::Failed,
            6 => Self::Clusters,
            _ => return None,
        })
    }
}

/// A received frame whose lengths and checksum are proven. It owns its bytes; header and
/// bulk are borrowed from them, never copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    kind: Kind,
    header: usize,
    buf: Vec<u8>,
}

/// Lengths out of a frame's first eight bytes, compared with their caps.
#[derive(Debug)]
pub(crate) struct Prefix {
    pub kind: Kind,
    pub header: usize,
    /// Whole frame, prefix and checksum included.
    pub total: usize,
}

impl Prefix {
    pub(crate) fn parse(raw: [u8; PREFIX]) -> Result<Self, WireError> {
        let length = u64::from(u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]));
        let header = u64::from(u32::from_le_bytes([raw[5], raw[6], raw[7], 0]));
        let kind = Kind::from_byte(raw[4]).ok_or(WireError::Kind { kind: raw[4] })?;
        let bad = |what, length, cap| Err(WireError::Length { kind: raw[4], what, length, cap });
        if header > MAX_HEADER as u64 {
            return bad("a header", header, MAX_HEADER as u64);
        }
        // Behind the length field: kind and header length (4), header, bulk, checksum (4).
        let fixed = (PREFIX - 4 + SUM) as u64 + header;
        let max_bulk = if matches!(kind, Kind::Clusters) { MAX_BULK as u64 } else { 0 };
        if length < fixed || length > fixed + max_bulk {
            return bad("a length", length, fixed + max_bulk);
        }
        // At most MAX_FRAME, so the casts cannot cut.
        Ok(Self { kind, header: header as usize, total: length as usize + 4 })
    }
}

impl Frame {
    /// Takes a whole frame, prefix to checksum, that has the length its prefix says.
    pub(crate) fn from_whole(prefix: &Prefix, buf: Vec<u8>) -> Result<Self, WireError> {
        debug_assert_eq!(buf.len(), prefix.total);
        let (body, sum) = buf.split_at(buf.len() - SUM);
        if crc32fast::hash(body).to_le_bytes() != sum {
            return Err(WireError::Checksum { kind: prefix.kind as u8 });
        }
        Ok(Self { kind: prefix.kind, header: prefix.header, buf })
    }

    /// What the frame carries.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Header bytes.
    pub fn header(&self) -> &[u8] {
        &self.buf[PREFIX..PREFIX + self.header]
    }

    /// Bulk bytes; empty for all kinds but `Clusters`.
    pub fn bulk(&self) -> &[u8] {
        &self.buf[PREFIX + self.header..self.buf.len() - SUM]
    }

    /// Bytes on the wire.
    pub fn wire_len(&self) -> usize {
        self.buf.len()
    }

    /// Gives the buffer back for reuse ([`crate::Decoder::recycle`]).
    pub fn into_buffer(self) -> Vec<u8> {
        self.buf
    }

    /// Reads the JSON header of a frame that must have the given kind.
    ///
    /// # Errors
    /// Another kind, or a header that is not this message.
    pub fn json<T: DeserializeOwned>(
        &self,
        kind: Kind,
        expected: &'static str,
    ) -> Result<T, WireError> {
        if self.kind != kind {
            return Err(WireError::Unexpected { expected, got: self.kind });
        }
        serde_json::from_slice(self.header()).map_err(|source| WireError::Header { kind, source })
    }

    /// Reads the table of a `Clusters` frame and compares it with the bulk.
    ///
    /// # Errors
    /// Another kind, or a table that breaks a rule.
    pub fn clusters(&self) -> Result<Clusters<'_>, WireError> {
        if self.kind != Kind::Clusters {
            return Err(WireError::Unexpected { expected: "clusters", got: self.kind });
        }
        Clusters::parse(self.header(), self.bulk())
    }
}

/// An encoded frame in one piece, ready to be written.
#[derive(Debug, Clone)]
pub struct Sealed {
    buf: Vec<u8>,
    start: usize,
}

impl Sealed {
    pub(crate) fn new(buf: Vec<u8>, start: usize) -> Self {
        Self { buf, start }
    }

    /// Encodes a message with a JSON header and no bulk.
    ///
    /// # Errors
    /// A header beyond [`MAX_HEADER`].
    pub(crate) fn json<T: Serialize>(kind: Kind, message: &T) -> Result<Self, WireError> {
        let mut buf = vec![0; PREFIX];
        serde_json::to_writer(&mut buf, message)
            .map_err(|source| WireError::Header { kind, source })?;
        let header = buf.len() - PREFIX;
        if header > MAX_HEADER {
            let (length, cap) = (header as u64, MAX_HEADER as u64);
            return Err(WireError::Length { kind: kind as u8, what: "a header", length, cap });
        }
        write_prefix(&mut buf, kind, header);
        let sum = crc32fast::hash(&buf);
        buf.extend_from_slice(&sum.to_le_bytes());
        Ok(Self::new(buf, 0))
    }

    /// The frame.
    pub fn as_bytes(&self) -> &[u8] {
        &self.buf[self.start..]
    }

    /// The table of a `Clusters` frame, as the receiver will see it.
    ///
    /// # Errors
    /// A frame of another kind.
    pub fn clusters(&self) -> Result<Clusters<'_>, WireError> {
        let frame = self.as_bytes();
        let Some(prefix) = frame.first_chunk::<PREFIX>() else {
            return Err(WireError::Truncated { within: "a frame" });
        };
        let prefix = Prefix::parse(*prefix)?;
        if prefix.kind != Kind::Clusters {
            return Err(WireError::Unexpected { expected: "clusters", got: prefix.kind });
        }
        let (header, bulk) = frame[PREFIX..frame.len() - SUM].split_at(prefix.header);
        Clusters::parse(header, bulk)
    }

    /// The buffer and the offset of the frame in it, for owners of shared buffers.
    pub fn into_parts(self) -> (Vec<u8>, usize) {
        (self.buf, self.start)
    }
}

/// Fills the prefix in front of `frame`, which holds everything but the checksum.
pub(crate) fn write_prefix(frame: &mut [u8], kind: Kind, header: usize) {
    // Caps were compared before, so both numbers fit.
    let length = (frame.len() - 4 + SUM) as u32;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    frame[4] = kind as u8;
    frame[5..8].copy_from_slice(&(header as u32).to_le_bytes()[..3]);
}
