//! The header cluster of a new image, and what the format cannot hold.

use hvbak_types::CLUSTER_SIZE;

use super::{BackingFormat, WriterOptions};
use crate::{
    Compression, Error, Result,
    header::{COMPRESSION_TYPE, EXT_BACKING_FORMAT, EXT_FEATURE_NAMES, MAGIC, MAX_BACKING_NAME},
};

const LENGTH: u32 = 112;
/// Largest disk whose L1 table stays within QEMU's 32 MiB: 2 PiB.
const MAX_SIZE: u64 = (32 << 20) / 8 * (CLUSTER_SIZE / 8 * CLUSTER_SIZE);

pub(super) fn check(options: &WriterOptions) -> Result<()> {
    let fail = |reason: String| Err(Error::Options { reason });
    let size = options.virtual_size;
    if size > MAX_SIZE {
        return fail(format!("a disk of {size} bytes is over 2 PiB"));
    }
    // QEMU counts sectors and would show the guest less than was written.
    if !size.is_multiple_of(512) {
        return fail(format!("a disk of {size} bytes is not a multiple of 512"));
    }
    match &options.backing {
        Some(backing) if backing.name.is_empty() => fail("the backing file has no name".into()),
        Some(backing) if backing.name.len() > MAX_BACKING_NAME as usize => {
            fail(format!("the backing file name has {} bytes", backing.name.len()))
        }
        _ => Ok(()),
    }
}

/// The first cluster; `l1` and `refcounts` are host offset and size as the header counts it.
pub(super) fn build(options: &WriterOptions, l1: (u64, u32), refcounts: (u64, u32)) -> Vec<u8> {
    let zstd = options.compression == Some(Compression::Zstd);
    let mut out = vec![0; LENGTH as usize];
    let put = |out: &mut Vec<u8>, at: usize, bytes: &[u8]| {
        out[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(&mut out, 0, &MAGIC.to_be_bytes());
    put(&mut out, 4, &3u32.to_be_bytes());
    put(&mut out, 20, &16u32.to_be_bytes());
    put(&mut out, 24, &options.virtual_size.to_be_bytes());
    put(&mut out, 36, &l1.1.to_be_bytes());
    put(&mut out, 40, &l1.0.to_be_bytes());
    put(&mut out, 48, &refcounts.0.to_be_bytes());
    put(&mut out, 56, &refcounts.1.to_be_bytes());
    put(&mut out, 72, &(if zstd { COMPRESSION_TYPE } else { 0 }).to_be_bytes());
    // Refcounts are 2^4 bits wide.
    put(&mut out, 96, &4u32.to_be_bytes());
    put(&mut out, 100, &LENGTH.to_be_bytes());
    put(&mut out, 104, &[u8::from(zstd)]);
    if let Some(backing) = &options.backing {
        let format: &[u8] = match backing.format {
            BackingFormat::Qcow2 => b"qcow2",
            BackingFormat::Raw => b"raw",
        };
        extension(&mut out, EXT_BACKING_FORMAT, format);
    }
    // Lets a QEMU older than 5.1 name what it lacks.
    let mut name = [0; 48];
    name[1] = 3;
    name[2..18].copy_from_slice(b"compression type");
    extension(&mut out, EXT_FEATURE_NAMES, &name);
    out.extend([0; 8]);
    if let Some(backing) = &options.backing {
        let (at, length) = (out.len() as u64, backing.name.len());
        put(&mut out, 8, &at.to_be_bytes());
        put(&mut out, 16, &u32::try_from(length).unwrap_or(0).to_be_bytes());
        out.extend(backing.name.as_bytes());
    }
    out.resize(CLUSTER_SIZE as usize, 0);
    out
}

fn extension(out: &mut Vec<u8>, kind: u32, content: &[u8]) {
    out.extend(kind.to_be_bytes());
    out.extend(u32::try_from(content.len()).unwrap_or(0).to_be_bytes());
    out.extend(content);
    out.resize(out.len().next_multiple_of(8), 0);
}
