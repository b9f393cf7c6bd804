//! Walks a disk's chain from a volume to its base, believing nobody alone: header and
//! metadata must agree on every step (hypervisor.md §5.3, §7).
//!
//! Never opens what a header names: names are read as ids, and the file with that id in
//! the disk's own directory is looked at next.

use std::{
    collections::HashSet,
    fs,
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use hvbak_qcow2::Header;
use hvbak_types::VolumeId;
use hvbak_vdsm::{Legality, Lv, VolumeFormat, VolumeMeta, VolumeRole, backing_name};
use hvbak_wire::{ChainIs, Format, Layer, LvFacts, VolumeAddress};

use crate::{
    block::{BlockDomain, lv_identity},
    buffer::Aligned,
    error::{Error, Result},
    host::Host,
    locate::{find_domain, find_volume, identity, regular},
    volume::{Meter, Volume, allocated},
};

/// Deeper chains than any engine allows (it stops at about 30).
const MAX_LAYERS: usize = 64;
/// The largest sector that storage domains have.
const SECTOR: u64 = 4096;

/// Answers `Chain`.
///
/// # Errors
/// Anything that does not fit together; see [`Error`].
pub fn walk(host: &Host, at: &VolumeAddress, meter: &Arc<Meter>) -> Result<ChainIs> {
    let domain = find_domain(host, at)?;
    let mut layers: Vec<Layer> = Vec::new();
    let mut above = None;
    follow(at.volume, |volume| {
        let path = find_volume(&domain, &VolumeAddress { volume, ..*at })?;
        let meta = read_meta(&path, volume)?;
        check_meta(&meta, at, volume, layers.is_empty())?;
        check_format(&meta, volume, above.take())?;
        let (layer, below) = describe(path, volume, meta, None, meter)?;
        layers.push(layer);
        above = below;
        Ok(layers.last().and_then(|layer| layer.parent))
    })?;
    Ok(ChainIs { layers })
}

/// The same over LVs. The metadata name the chain, all of it is activated and opened at
/// once, and stays so; then the headers must agree. Tags only lead to the metadata: their
/// parent is stale after a merge on a host that does not manage the pool.
///
/// # Errors
/// As [`walk`], and what LVM fails with.
pub fn walk_block(
    domain: &mut BlockDomain,
    at: &VolumeAddress,
    meter: &Arc<Meter>,
) -> Result<ChainIs> {
    let group = domain.scan()?;
    let mut metas: Vec<(VolumeId, VolumeMeta)> = Vec::new();
    follow(at.volume, |volume| {
        let meta = domain.meta(&group, volume)?;
        check_meta(&meta, at, volume, metas.is_empty())?;
        let parent = meta.parent;
        metas.push((volume, meta));
        Ok(parent)
    })?;
    let names: Vec<_> = metas.iter().map(|(volume, _)| volume.to_string()).collect();
    domain.hold(&group, &names.iter().map(String::as_str).collect::<Vec<_>>())?;
    let mut layers = Vec::new();
    let mut above = None;
    for ((volume, meta), name) in metas.into_iter().zip(&names) {
        let lv = domain.usable(&group, volume)?;
        check_format(&meta, volume, above.take())?;
        let (layer, below) = describe(domain.path(name), volume, meta, Some(lv), meter)?;
        layers.push(layer);
        above = below;
    }
    Ok(ChainIs { layers })
}

/// Calls `step` for each volume, which gives the next one, down to the base.
fn follow(
    newest: VolumeId,
    mut step: impl FnMut(VolumeId) -> Result<Option<VolumeId>>,
) -> Result<()> {
    let mut seen = HashSet::new();
    let mut next = Some(newest);
    while let Some(volume) = next {
        let bad = |what| Err(Error::BadChain { volume, what });
        if !seen.insert(volume) {
            return bad("it comes twice");
        }
        if seen.len() > MAX_LAYERS {
            return bad("more than 64 layers");
        }
        next = step(volume)?;
    }
    Ok(())
}

/// Reads `<VOL>.meta` past the page cache where possible: NFS may show an old one else.
///
/// # Errors
/// Not readable, or no metadata.
pub fn read_meta(volume_path: &Path, volume: VolumeId) -> Result<VolumeMeta> {
    let path = PathBuf::from(format!("{}.meta", volume_path.display()));
    let mut block = Aligned::new(4096);
    let direct = fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_DIRECT)
        .open(&path)
        .and_then(|mut file| read_block(&mut file, block.as_mut()));
    let length = match direct {
        Ok(length) => length,
        // tmpfs of old kernels refuses O_DIRECT.
        Err(e) if e.raw_os_error() == Some(nix::libc::EINVAL) => fs::File::open(&path)
            .and_then(|mut file| read_block(&mut file, block.as_mut()))
            .map_err(Error::file("read", &path))?,
        Err(e) => return Err(Error::file("read", path)(e)),
    };
    VolumeMeta::parse(&block.as_mut()[..length]).map_err(|source| Error::Meta { volume, source })
}

fn read_block(file: &mut fs::File, block: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(block) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn check_meta(meta: &VolumeMeta, at: &VolumeAddress, volume: VolumeId, newest: bool) -> Result<()> {
    if meta.legality != Legality::Legal {
        return Err(Error::Illegal { volume, legality: meta.legality.as_str() });
    }
    let wrong =
        |key, found: String, expected: String| Err(Error::MetaIs { volume, key, found, expected });
    if meta.domain != at.domain {
        return wrong("DOMAIN", meta.domain.to_string(), at.domain.to_string());
    }
    // A template's base is hard-linked into the disk's directory and keeps its owner.
    let of_template = meta.role == VolumeRole::Shared && !newest;
    if meta.image != at.image && !of_template {
        return wrong("IMAGE", meta.image.to_string(), at.image.to_string());
    }
    if meta.format == VolumeFormat::Raw && meta.parent.is_some() {
        return Err(Error::BadChain { volume, what: "a raw volume has a parent" });
    }
    Ok(())
}

/// A qcow2 layer says which format the layer below it has, and QEMU believes it: if the
/// metadata said `RAW` of a qcow2 image, its tables would be read as the disk's content.
fn check_format(meta: &VolumeMeta, volume: VolumeId, above: Option<String>) -> Result<()> {
    let metadata = match meta.format {
        VolumeFormat::Raw => "raw",
        VolumeFormat::Cow => "qcow2",
    };
    match above {
        Some(header) if header != metadata => {
            Err(Error::FormatIs { volume, header, metadata: metadata.to_owned() })
        }
        // Old images do not say it.
        _ => Ok(()),
    }
}

/// A raw file is as long as its disk, give or take the rounding to sectors; an LV, being
/// whole extents, is not shorter. QEMU goes by the length, so CAP must not cut it.
fn check_length(volume: VolumeId, length: u64, capacity: u64, is_lv: bool) -> Result<()> {
    if length < capacity || (!is_lv && length - capacity >= SECTOR) {
        return Err(Error::LengthIs { volume, length, capacity });
    }
    Ok(())
}

/// The layer, and the format that its header gives the one below.
fn describe(
    path: PathBuf,
    volume: VolumeId,
    meta: VolumeMeta,
    lv: Option<&Lv>,
    meter: &Arc<Meter>,
) -> Result<(Layer, Option<String>)> {
    regular(&path)?;
    // By an open file: NFS revalidates attributes at open, and may show old ones else.
    let file = fs::File::open(&path)
        .and_then(|file| file.metadata())
        .map_err(Error::file("open", &path))?;
    let file_size = lv.map_or_else(|| file.len(), |lv| lv.size);
    let (header_size, backing, below) = match meta.format {
        VolumeFormat::Raw => {
            check_length(volume, file_size, meta.capacity, lv.is_some())?;
            (file_size, None, None)
        }
        VolumeFormat::Cow => {
            let source = Volume::open(&path, false, Arc::clone(meter))?;
            let header = Header::read(&source)
                .map_err(|source| Error::Image { path: path.clone(), source })?;
            (header.virtual_size, header.backing_name, header.backing_format)
        }
    };
    let named = backing
        .as_deref()
        .map(|name| backing_name(name).map_err(|source| Error::Backing { volume, source }))
        .transpose()?;
    if named.map(|n| n.volume) != meta.parent {
        let say = |id: Option<VolumeId>| id.map_or_else(|| "none".to_owned(), |v| v.to_string());
        return Err(Error::Disagree {
            volume,
            header: say(named.map(|n| n.volume)),
            metadata: say(meta.parent),
        });
    }
    let layer = Layer {
        volume,
        image: meta.image,
        format: match meta.format {
            VolumeFormat::Raw => Format::Raw,
            VolumeFormat::Cow => Format::Cow,
        },
        allocation: meta.allocation.as_str().to_owned(),
        voltype: meta.role.as_str().to_owned(),
        legality: meta.legality.as_str().to_owned(),
        capacity: meta.capacity,
        header_size,
        parent: meta.parent,
        backing_name: backing,
        file_size,
        allocated: lv.map_or_else(|| allocated(&file), |lv| lv.size),
        ctime: meta.ctime,
        generation: meta.generation,
        disk_type: meta.disk_type,
        links: file.nlink(),
        identity: lv.map_or_else(|| identity(&file), lv_identity),
        lv: lv.map(|lv| LvFacts { uuid: lv.uuid.clone(), extents: lv.extents.clone() }),
        path: path.to_string_lossy().into_owned(),
    };
    Ok((layer, below))
}
