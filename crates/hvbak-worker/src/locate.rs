//! Where a volume of a file domain is (hypervisor.md §3.1): the pool link first, then the
//! mount directories, two levels, no deeper.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use hvbak_vdsm::{MountShape, mount_shape, pool_link, volume_path};
use hvbak_wire::{FileIdentity, FsKind, Located, MountKind, VolumeAddress};

use crate::{
    block::{BlockDomain, lv_identity},
    error::{Error, Result},
    host::Host,
};

/// A storage domain's directory on this host.
#[derive(Debug, Clone)]
pub struct Domain {
    pub directory: PathBuf,
    pub mount: MountKind,
    pub pool_link: bool,
}

/// Finds the directory of a domain.
///
/// # Errors
/// [`Error::NoDomain`]; a directory that cannot be listed.
pub fn find_domain(host: &Host, at: &VolumeAddress) -> Result<Domain> {
    let link = host.path(&pool_link(at.data_center, at.domain));
    if let Some(directory) = enter(host, &link) {
        // The link's own text names the mount; behind it a local domain leaves the tree.
        let text = fs::read_link(&link).unwrap_or_else(|_| directory.clone());
        return Ok(Domain { mount: mount_kind(&text), directory, pool_link: true });
    }
    let mnt = host.path("/rhev/data-center/mnt");
    let mut mounts = list(&mnt)?;
    let gluster = mnt.join("glusterSD");
    if gluster.is_dir() {
        mounts.extend(list(&gluster)?);
    }
    for mount in mounts {
        let candidate = mount.join(at.domain.to_string());
        if candidate.join("dom_md/metadata").exists() {
            let mount = mount_kind(&candidate);
            return Ok(Domain { directory: candidate, mount, pool_link: false });
        }
    }
    Err(Error::NoDomain { domain: at.domain.to_string() })
}

/// A directory, perhaps behind a link that is absolute below a lab's root.
fn enter(host: &Host, link: &Path) -> Option<PathBuf> {
    if link.is_dir() {
        return Some(link.to_owned());
    }
    let target = fs::read_link(link).ok()?;
    let below = host.path(target.to_str().filter(|t| t.starts_with('/'))?);
    below.is_dir().then_some(below)
}

fn list(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::file("list", directory))?,
    };
    // An entry that vanishes meanwhile is no error.
    let mut all: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    all.retain(|p| !p.ends_with("glusterSD") && !p.ends_with("blockSD"));
    all.sort();
    Ok(all)
}

fn mount_kind(path: &Path) -> MountKind {
    let text = path.to_string_lossy();
    // Relative links of the pool directory read `../mnt/…`.
    let relative = text.split_once("/mnt/").map_or("", |(_, behind)| behind);
    match mount_shape(relative) {
        MountShape::Remote => MountKind::Nfs,
        MountShape::Gluster => MountKind::Gluster,
        MountShape::Local => MountKind::Local,
        MountShape::Block | MountShape::Other => MountKind::Other,
    }
}

/// Path of a volume's data file.
///
/// # Errors
/// [`Error::NoVolume`], or the directory cannot be entered.
pub fn find_volume(domain: &Domain, at: &VolumeAddress) -> Result<PathBuf> {
    let path = domain.directory.join(volume_path(at.image, at.volume));
    match fs::metadata(&path) {
        Ok(_) => Ok(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(Error::NoVolume { volume: at.volume.to_string(), image: at.image.to_string() })
        }
        Err(e) => Err(Error::file("look at", path)(e)),
    }
}

/// Answers `Locate`.
///
/// # Errors
/// As [`find_domain`] and [`find_volume`].
pub fn locate(host: &Host, at: &VolumeAddress) -> Result<Located> {
    let domain = find_domain(host, at)?;
    let path = find_volume(&domain, at)?;
    let meta = regular(&path)?;
    Ok(Located {
        fs: fs_kind(&path)?,
        mount: domain.mount,
        file_size: meta.len(),
        allocated: meta.blocks() * 512,
        identity: identity(&meta),
        pool_link: domain.pool_link,
        path: path.to_string_lossy().into_owned(),
    })
}

/// Answers `Locate` for a block domain; the LV need not be active.
///
/// # Errors
/// No such LV; what LVM fails with.
pub fn locate_block(domain: &BlockDomain, at: &VolumeAddress) -> Result<Located> {
    let group = domain.scan()?;
    let lv = domain.usable(&group, at.volume)?;
    Ok(Located {
        fs: FsKind::Other,
        mount: MountKind::Other,
        file_size: lv.size,
        allocated: lv.size,
        identity: lv_identity(lv),
        pool_link: false,
        path: domain.path(&at.volume.to_string()).to_string_lossy().into_owned(),
    })
}

/// Metadata of a regular file or block device.
///
/// # Errors
/// Not there, or something else.
pub fn regular(path: &Path) -> Result<fs::Metadata> {
    let meta = fs::metadata(path).map_err(Error::file("look at", path))?;
    if meta.is_file() || meta.file_type().is_block_device() {
        Ok(meta)
    } else {
        Err(Error::NotAFile { path: path.to_owned() })
    }
}

/// Which file it is.
pub fn identity(meta: &fs::Metadata) -> FileIdentity {
    let mtime_ns = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
    FileIdentity { device: meta.dev(), inode: meta.ino(), mtime_ns }
}

/// File system of a path.
///
/// # Errors
/// `statfs` failed.
pub fn fs_kind(path: &Path) -> Result<FsKind> {
    let fs = nix::sys::statfs::statfs(path)
        .map_err(|e| Error::file("ask for the file system of", path)(e.into()))?;
    // Numbers from linux/magic.h.
    Ok(match fs.filesystem_type().0 as u64 & 0xffff_ffff {
        0x6969 => FsKind::Nfs,
        0x6573_5546 => FsKind::Fuse,
        0xef53 => FsKind::Ext,
        0x5846_5342 => FsKind::Xfs,
        0x9123_683e => FsKind::Btrfs,
        0x0102_1994 => FsKind::Tmpfs,
        _ => FsKind::Other,
    })
}
