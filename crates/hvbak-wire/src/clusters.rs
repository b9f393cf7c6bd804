//! The hot frame: up to 64 clusters with a compact binary table.
//!
//! Header: `stream u32 · count u32`, then per entry `index u64 · kind u32 · length u32 ·
//! digest [u8; 32]`. Bulk: the payloads in the order of the entries. Entries ascend and
//! never overlap, so a receiver can append without sorting.

use hvbak_types::Digest;

use crate::{
    Kind, MAX_BULK, Sealed, WireError,
    frame::{PREFIX, SUM, write_prefix},
};

/// Bytes of one cluster.
pub const CLUSTER_BYTES: usize = hvbak_types::CLUSTER_SIZE as usize;
/// Most entries of a frame.
pub const MAX_CLUSTERS: usize = 64;
/// Longest compressed payload. QEMU counts a compressed cluster in 512-byte sectors, so
/// one that saves less than a sector is not worth the inflating; it travels plain.
pub const MAX_COMPRESSED: usize = CLUSTER_BYTES - 512;

const FIXED: usize = 8;
const ENTRY: usize = 48;
/// Room kept in front of the payload for prefix and table, so that a frame is built
/// without moving the payload.
const ROOM: usize = PREFIX + FIXED + MAX_CLUSTERS * ENTRY;
/// 2^46 clusters of 64 KiB are 2^62 bytes: keeps `index * 65536` inside an i64.
const INDEX_LIMIT: u64 = 1 << 46;

/// What an entry says of its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body<'a> {
    /// The 64 KiB as they are.
    Plain(&'a [u8]),
    /// One raw zstd frame that inflates to exactly 64 KiB.
    Zstd(&'a [u8]),
    /// `count` clusters from here on read as zero and hide older layers.
    Zero {
        /// Length of the run in clusters, at least 1.
        count: u32,
    },
    /// No payload: only the digest was asked for.
    Digest,
}

/// One entry of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cluster<'a> {
    /// Guest offset / 64 KiB.
    pub index: u64,
    /// BLAKE3-256 of the 64 KiB guest content; all zero bytes for a zero run.
    pub digest: Digest,
    /// Payload.
    pub body: Body<'a>,
}

impl Cluster<'_> {
    /// The first cluster behind the entry.
    pub const fn end(&self) -> u64 {
        match self.body {
            Body::Zero { count } => self.index + count as u64,
            _ => self.index + 1,
        }
    }
}

const PLAIN: u32 = 0;
const ZSTD: u32 = 1;
const ZERO: u32 = 2;
const DIGEST: u32 = 3;

/// A table that was compared with its bulk.
#[derive(Debug, Clone, Copy)]
pub struct Clusters<'a> {
    stream: u32,
    table: &'a [u8],
    bulk: &'a [u8],
}

impl<'a> Clusters<'a> {
    pub(crate) fn parse(header: &'a [u8], bulk: &'a [u8]) -> Result<Self, WireError> {
        let bad = |what| Err(WireError::Table { what });
        let Some((fixed, table)) = header.split_first_chunk::<FIXED>() else {
            return bad("header is shorter than its fixed part");
        };
        let count = word(fixed, 4) as usize;
        if count == 0 || count > MAX_CLUSTERS || table.len() != count * ENTRY {
            return bad("number of entries");
        }
        let (mut next, mut used) = (0u64, 0usize);
        for raw in table.chunks_exact(ENTRY) {
            let entry = Raw::read(raw);
            if entry.index < next {
                return bad("entries do not ascend");
            }
            let (clusters, bytes) = match entry.kind {
                PLAIN if entry.length as usize == CLUSTER_BYTES => (1, CLUSTER_BYTES),
                ZSTD if (1..=MAX_COMPRESSED).contains(&(entry.length as usize)) => {
                    (1, entry.length as usize)
                }
                ZERO if entry.length > 0 && raw[16..].iter().all(|b| *b == 0) => {
                    (u64::from(entry.length), 0)
                }
                DIGEST if entry.length == 0 => (1, 0),
                PLAIN | ZSTD | ZERO | DIGEST => return bad("length or digest of an entry"),
                _ => return bad("kind of an entry"),
            };
            next = entry.index.saturating_add(clusters);
            if next > INDEX_LIMIT {
                return bad("index beyond the largest disk");
            }
            used += bytes; // at most 64 × 64 KiB
        }
        if used != bulk.len() {
            return bad("payload lengths do not add up to the bulk");
        }
        Ok(Self { stream: word(fixed, 0), table, bulk })
    }

    /// Id of the request (`Read` or `Target`) that the clusters belong to.
    pub const fn stream(&self) -> u32 {
        self.stream
    }

    /// Entries in guest order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Cluster<'a>> + 'a {
        let mut rest = self.bulk;
        self.table.chunks_exact(ENTRY).map(move |raw| {
            let entry = Raw::read(raw);
            let mut take = || {
                // `parse` proved that the lengths add up.
                let (payload, behind) = rest.split_at(entry.length as usize);
                rest = behind;
                payload
            };
            let body = match entry.kind {
                PLAIN => Body::Plain(take()),
                ZSTD => Body::Zstd(take()),
                ZERO => Body::Zero { count: entry.length },
                _ => Body::Digest,
            };
            let mut digest = [0; 32];
            digest.copy_from_slice(&raw[16..]);
            Cluster { index: entry.index, digest: Digest(digest), body }
        })
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.table.len() / ENTRY
    }

    /// Never true for a frame that was parsed.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }
}

struct Raw {
    index: u64,
    kind: u32,
    length: u32,
}

impl Raw {
    /// `raw` is one entry long (chunks_exact).
    fn read(raw: &[u8]) -> Self {
        let index = u64::from(word(raw, 0)) | u64::from(word(raw, 4)) << 32;
        Self { index, kind: word(raw, 8), length: word(raw, 12) }
    }
}

fn word(raw: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]])
}

/// Builds one `Clusters` frame. Payloads go straight behind the room for the table, so
/// that sealing moves nothing.
#[derive(Debug)]
pub struct ClustersBuilder {
    buf: Vec<u8>,
    table: Vec<u8>,
    next: u64,
}

impl Default for ClustersBuilder {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl ClustersBuilder {
    /// Starts a frame in a buffer whose content is thrown away and whose capacity is kept.
    pub fn new(mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        buffer.resize(ROOM, 0);
        Self { buf: buffer, table: Vec::with_capacity(16 * ENTRY), next: 0 }
    }

    /// Number of entries so far.
    pub fn len(&self) -> usize {
        self.table.len() / ENTRY
    }

    /// Whether nothing was put yet.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Whether no further entry fits.
    pub fn is_full(&self) -> bool {
        self.len() == MAX_CLUSTERS
    }

    /// Bytes of payload so far.
    pub fn payload_len(&self) -> usize {
        self.buf.len() - ROOM
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// A full frame, an index that does not ascend, or a payload of a wrong length.
    pub fn push(&mut self, cluster: &Cluster<'_>) -> Result<(), WireError> {
        match cluster.body {
            Body::Plain(data) => {
                if data.len() != CLUSTER_BYTES {
                    return Err(WireError::Table { what: "plain payload is not 64 KiB" });
                }
                self.entry(cluster, PLAIN, CLUSTER_BYTES as u32)?;
                self.buf.extend_from_slice(data);
            }
            Body::Zstd(data) => {
                if data.is_empty() || data.len() > MAX_COMPRESSED {
                    return Err(WireError::Table { what: "length of a compressed payload" });
                }
                self.entry(cluster, ZSTD, data.len() as u32)?;
                self.buf.extend_from_slice(data);
            }
            Body::Zero { count: 0 } => return Err(WireError::Table { what: "empty zero run" }),
            Body::Zero { count } => {
                let zero = Cluster { digest: Digest([0; 32]), ..*cluster };
                self.entry(&zero, ZERO, count)?;
            }
            Body::Digest => self.entry(cluster, DIGEST, 0)?,
        }
        Ok(())
    }

    fn entry(&mut self, cluster: &Cluster<'_>, kind: u32, length: u32) -> Result<(), WireError> {
        let end = if kind == ZERO {
            cluster.index.saturating_add(u64::from(length))
        } else {
            cluster.index.saturating_add(1)
        };
        let what = if self.is_full() {
            "too many entries"
        } else if cluster.index < self.next {
            "entries do not ascend"
        } else if end > INDEX_LIMIT {
            "index beyond the largest disk"
        } else {
            self.table.extend_from_slice(&cluster.index.to_le_bytes());
            self.table.extend_from_slice(&kind.to_le_bytes());
            self.table.extend_from_slice(&length.to_le_bytes());
            self.table.extend_from_slice(&cluster.digest.0);
            self.next = end;
            return Ok(());
        };
        Err(WireError::Table { what })
    }

    /// Finishes the frame for a stream (id of its `Read` or `Target` request).
    ///
    /// # Errors
    /// A frame without entries.
    pub fn seal(mut self, stream: u32) -> Result<Sealed, WireError> {
        if self.is_empty() {
            return Err(WireError::Table { what: "number of entries" });
        }
        debug_assert!(self.payload_len() <= MAX_BULK);
        let header = FIXED + self.table.len();
        let start = ROOM - header - PREFIX;
        let at = start + PREFIX;
        let count = (self.table.len() / ENTRY) as u32;
        self.buf[at..at + 4].copy_from_slice(&stream.to_le_bytes());
        self.buf[at + 4..at + FIXED].copy_from_slice(&count.to_le_bytes());
        self.buf[at + FIXED..ROOM].copy_from_slice(&self.table);
        write_prefix(&mut self.buf[start..], Kind::Clusters, header);
        let sum = crc32fast::hash(&self.buf[start..]);
        self.buf.reserve_exact(SUM);
        self.buf.extend_from_slice(&sum.to_le_bytes());
        Ok(Sealed::new(self.buf, start))
    }
}
