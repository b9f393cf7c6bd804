//! Collects digests of clusters that arrive in any order and writes them in guest order.
//!
//! Memory: 4 MiB of digests and 64 bytes per 8 MiB of touched guest data (8 MiB per dense
//! TiB). The rest waits in an unlinked file, which on most systems never leaves the page
//! cache.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use hvbak_types::{CLUSTER_SIZE, Digest};
use sha2::{Digest as _, Sha256};

use super::{BLAKE3, DIGEST, HEADER, Kind, MAGIC, Run, VERSION};
use crate::{
    durable,
    error::{At, Result},
};

/// Clusters of a block: as many as a u128 has bits, whose digests fill a 4 KiB page.
const BLOCK: u64 = 128;
const PAGE: usize = (BLOCK * DIGEST) as usize;
/// Pages kept in memory.
const RESIDENT: usize = 1024;

#[derive(Debug, Default)]
struct Block {
    data: u128,
    zero: u128,
    page: Option<Box<[u8; PAGE]>>,
    spilled: bool,
}

/// The digests of one image while it is written.
#[derive(Debug)]
pub struct Spool {
    path: PathBuf,
    blocks: BTreeMap<u64, Block>,
    resident: VecDeque<u64>,
    spill: Option<File>,
    data: u64,
    zero: u64,
}

/// What [`Spool::finish`] wrote.
#[derive(Debug, Clone, Copy)]
pub struct Written {
    pub blake3: Digest,
    pub sha256: Digest,
    pub data: u64,
    pub zero: u64,
}

impl Spool {
    /// A spool for the digests file `path`, which is made by [`Spool::finish`].
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            blocks: BTreeMap::new(),
            resident: VecDeque::new(),
            spill: None,
            data: 0,
            zero: 0,
        }
    }

    /// Whether the cluster is known already.
    pub fn contains(&self, cluster: u64) -> bool {
        let bit = 1u128 << (cluster % BLOCK);
        self.blocks.get(&(cluster / BLOCK)).is_some_and(|b| (b.data | b.zero) & bit != 0)
    }

    /// Notes a data cluster that is not known yet.
    pub fn put(&mut self, cluster: u64, digest: &Digest) -> Result<()> {
        let (number, slot) = (cluster / BLOCK, cluster % BLOCK);
        self.load(number)?;
        let block = self.blocks.entry(number).or_default();
        block.data |= 1 << slot;
        let at = (slot * DIGEST) as usize;
        let page = block.page.get_or_insert_with(|| Box::new([0; PAGE]));
        page[at..at + DIGEST as usize].copy_from_slice(&digest.0);
        self.data += 1;
        Ok(())
    }

    /// Notes zero clusters that are not known yet.
    pub fn put_zero(&mut self, cluster: u64, count: u64) {
        let end = cluster + count;
        let mut at = cluster;
        while at < end {
            let (number, slot) = (at / BLOCK, at % BLOCK);
            let n = (BLOCK - slot).min(end - at);
            let mask = if n == BLOCK { u128::MAX } else { ((1 << n) - 1) << slot };
            self.blocks.entry(number).or_default().zero |= mask;
            at += n;
        }
        self.zero += count;
    }

    /// The first cluster of the range that is known already.
    pub fn known_in(&self, cluster: u64, count: u64) -> Option<u64> {
        let end = cluster + count;
        let blocks = self.blocks.range(cluster / BLOCK..end.div_ceil(BLOCK));
        blocks
            .flat_map(|(number, b)| {
                let (number, known) = (*number, b.data | b.zero);
                (0..BLOCK).filter(move |i| known >> i & 1 == 1).map(move |i| number * BLOCK + i)
            })
            .find(|c| (cluster..end).contains(c))
    }

    /// Makes sure that the page of a block is in memory, at the cost of the oldest one.
    fn load(&mut self, number: u64) -> Result<()> {
        if self.blocks.get(&number).is_some_and(|b| b.page.is_some()) {
            return Ok(());
        }
        if self.resident.len() >= RESIDENT
            && let Some(oldest) = self.resident.pop_front()
        {
            self.evict(oldest)?;
        }
        let block = self.blocks.entry(number).or_default();
        let mut page = Box::new([0; PAGE]);
        if block.spilled
            && let Some(file) = &self.spill
        {
            file.read_exact_at(page.as_mut_slice(), number * PAGE as u64).reading(&self.path)?;
        }
        block.page = Some(page);
        self.resident.push_back(number);
        Ok(())
    }

    fn evict(&mut self, number: u64) -> Result<()> {
        let Some(block) = self.blocks.get_mut(&number) else { return Ok(()) };
        let Some(page) = block.page.take() else { return Ok(()) };
        let file = match &mut self.spill {
            Some(file) => file,
            none => {
                // Without a name it goes with the process, however that ends.
                let name = self.path.with_extension("digests.tmp");
                let file = durable::create_file(&name)?;
                fs::remove_file(&name).writing(&name)?;
                none.insert(file)
            }
        };
        block.spilled = true;
        file.write_all_at(page.as_slice(), number * PAGE as u64).writing(&self.path)
    }

    /// Calls `each` for every run in guest order.
    fn runs(&self, mut each: impl FnMut(Run) -> io::Result<()>) -> io::Result<()> {
        let mut open: Option<Run> = None;
        let mut digest = 0;
        for (number, block) in &self.blocks {
            let mut slot = 0;
            while slot < BLOCK {
                let is = |i: u64| {
                    if block.data >> i & 1 == 1 {
                        Some(Kind::Data)
                    } else if block.zero >> i & 1 == 1 {
                        Some(Kind::Zero)
                    } else {
                        None
                    }
                };
                let from = slot;
                let kind = is(from);
                while slot < BLOCK && is(slot) == kind {
                    slot += 1;
                }
                let Some(kind) = kind else { continue };
                let (start, count) = (number * BLOCK + from, slot - from);
                match &mut open {
                    Some(run)
                        if run.kind == kind
                            && run.end() == start
                            && run.count + count <= u64::from(u32::MAX) =>
                    {
                        run.count += count;
                    }
                    _ => {
                        if let Some(run) = open.take() {
                            each(run)?;
                        }
                        open = Some(Run { start, count, kind, digest });
                    }
                }
                if kind == Kind::Data {
                    digest += count;
                }
            }
        }
        open.map_or(Ok(()), each)
    }

    /// Writes the file and waits for it.
    pub fn finish(self, virtual_size: u64) -> Result<Written> {
        let file = durable::create_file(&self.path)?;
        let mut out = Hashing {
            out: BufWriter::with_capacity(1 << 18, &file),
            blake3: blake3::Hasher::new(),
            sha256: Sha256::new(),
        };
        self.write(&mut out, virtual_size).writing(&self.path)?;
        let (blake3, sha256) = out.done().writing(&self.path)?;
        durable::sync_file(&file, &self.path)?;
        Ok(Written { blake3, sha256, data: self.data, zero: self.zero })
    }

    fn write(&self, out: &mut impl Write, virtual_size: u64) -> io::Result<()> {
        let mut runs = 0u64;
        self.runs(|_| {
            runs += 1;
            Ok(())
        })?;
        let mut header = [0; HEADER as usize];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&(CLUSTER_SIZE as u32).to_le_bytes());
        for (i, value) in [virtual_size, runs, self.data, self.zero].iter().enumerate() {
            header[16 + 8 * i..24 + 8 * i].copy_from_slice(&value.to_le_bytes());
        }
        header[48..52].copy_from_slice(&BLAKE3.to_le_bytes());
        out.write_all(&header)?;
        self.runs(|run| {
            let mut bytes = [0; 24];
            let (digest, kind) = match run.kind {
                Kind::Data => (run.digest, 1u32),
                Kind::Zero => (0, 2),
            };
            bytes[..8].copy_from_slice(&run.start.to_le_bytes());
            bytes[8..16].copy_from_slice(&digest.to_le_bytes());
            bytes[16..20].copy_from_slice(&(run.count as u32).to_le_bytes());
            bytes[20..].copy_from_slice(&kind.to_le_bytes());
            out.write_all(&bytes)
        })?;
        let mut buffer = [0; PAGE];
        for (number, block) in &self.blocks {
            let page = match (&block.page, &self.spill) {
                _ if block.data == 0 => continue,
                (Some(page), _) => page.as_slice(),
                (None, Some(file)) => {
                    file.read_exact_at(&mut buffer, number * PAGE as u64)?;
                    buffer.as_slice()
                }
                (None, None) => continue,
            };
            if block.data == u128::MAX {
                out.write_all(page)?;
                continue;
            }
            for (i, digest) in page.chunks_exact(DIGEST as usize).enumerate() {
                if block.data >> i & 1 == 1 {
                    out.write_all(digest)?;
                }
            }
        }
        Ok(())
    }

    /// Where the file will be.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Hashes what passes.
struct Hashing<W: Write> {
    out: BufWriter<W>,
    blake3: blake3::Hasher,
    sha256: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.blake3.update(&bytes[..n]);
        self.sha256.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl<W: Write> Hashing<W> {
    fn done(mut self) -> io::Result<(Digest, Digest)> {
        self.out.flush()?;
        Ok((Digest(self.blake3.finalize().into()), Digest(self.sha256.finalize().into())))
    }
}
