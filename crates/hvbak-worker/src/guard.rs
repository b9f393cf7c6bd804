//! What must hold before a volume is written: writing to a wrong one destroys a live VM
//! (hypervisor.md §14.7). Everything is looked at again on the open file, never by name.

use std::{
    fs::File,
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt},
};

use hvbak_qcow2::{Header, Layer};
use hvbak_types::{ExtentKind, VolumeId};
use hvbak_vdsm::{Legality, VolumeFormat, VolumeMeta, VolumeRole};
use hvbak_wire::{Format, Guards, VolumeAddress};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
    unistd::{Whence, lseek},
};

use crate::{
    error::{Error, Result},
    target::length,
    zero::is_zero,
};

/// QEMU's byte-range locks: permissions in use from 100, permissions not shared from 200
/// (`block/file-posix.c`).
const QEMU_USED: i64 = 100;
const QEMU_UNSHARED: i64 = 200;
/// consistent read, write, write unchanged, resize.
const QEMU_PERMISSIONS: i64 = 4;
const BLOCK: usize = 4096;
/// Blocks looked at inside a raw target, ends included.
const SAMPLES: u64 = 33;
/// Most bytes of known data that are looked at.
const DATA_BUDGET: u64 = 16 << 20;

fn refuse(volume: VolumeId, why: impl Into<String>) -> Error {
    Error::Guard { volume, why: why.into() }
}

/// Compares metadata with what the coordinator believes the volume to be.
///
/// # Errors
/// [`Error::Guard`].
pub fn check_meta(
    at: &VolumeAddress,
    meta: &VolumeMeta,
    format: Format,
    virtual_size: u64,
    guards: &Guards,
    lv_size: Option<u64>,
) -> Result<()> {
    let say = |why: String| Err(refuse(at.volume, why));
    let expected = match format {
        Format::Raw => VolumeFormat::Raw,
        Format::Cow => VolumeFormat::Cow,
    };
    if meta.image != at.image {
        return say(format!("it belongs to disk {}", meta.image));
    }
    if meta.domain != at.domain {
        return say(format!("its metadata names domain {}", meta.domain));
    }
    if meta.role != VolumeRole::Leaf {
        return say(format!("it is {}, not LEAF", meta.role.as_str()));
    }
    if meta.legality != Legality::Legal {
        return say(format!("it is {}", meta.legality.as_str()));
    }
    if meta.format != expected {
        return say(format!("its format is {:?}, not {expected:?}", meta.format));
    }
    if !meta.holds_vm_data() {
        return say(format!("its disk type is {}", meta.disk_type.as_deref().unwrap_or("")));
    }
    if let (true, Some(parent)) = (guards.no_parent, meta.parent) {
        return say(format!("it has a parent, {parent}"));
    }
    // vdsm rounds sizes up to 4 KiB since 4.3; nothing else may make a disk larger.
    let rounded = virtual_size.checked_next_multiple_of(BLOCK as u64).unwrap_or(u64::MAX);
    // A raw LV: vdsm raises the size to the LV's.
    let whole_lv = format == Format::Raw && lv_size == Some(meta.capacity);
    if meta.capacity != virtual_size
        && meta.capacity != rounded
        && !(whole_lv && virtual_size <= meta.capacity)
    {
        return say(format!("its size is {} bytes, not {virtual_size}", meta.capacity));
    }
    Ok(())
}

/// Compares the open file with what a volume of vdsm is.
///
/// # Errors
/// [`Error::Guard`], or the file cannot be looked at.
pub fn check_file(at: &VolumeAddress, file: &File, guards: &Guards) -> Result<()> {
    let meta = file.metadata().map_err(Error::file("look at", at.volume.to_string()))?;
    let say = |why: String| Err(refuse(at.volume, why));
    if !meta.is_file() {
        return say("it is no regular file".into());
    }
    if meta.nlink() != 1 {
        return say(format!("it has {} hard links, as a template's base has", meta.nlink()));
    }
    let own = nix::unistd::geteuid().as_raw();
    if meta.uid() != 36 && meta.uid() != own {
        return say(format!("it belongs to user {}", meta.uid()));
    }
    if guards.not_open && is_locked(file) {
        return say("a program on this host has it open (QEMU's image lock)".into());
    }
    Ok(())
}

/// Compares the open device with what a volume of a block domain is. That it is the LV was
/// proven when it was activated, and it is held since.
///
/// # Errors
/// [`Error::Guard`], or the device cannot be looked at.
pub fn check_device(at: &VolumeAddress, file: &File, guards: &Guards) -> Result<()> {
    let meta = file.metadata().map_err(Error::file("look at", at.volume.to_string()))?;
    if !meta.file_type().is_block_device() {
        return Err(refuse(at.volume, "it is no block device"));
    }
    if guards.not_open && is_locked(file) {
        let why = "a program on this host has it open (QEMU's image lock)";
        return Err(refuse(at.volume, why));
    }
    Ok(())
}

/// A raw volume of the right length that holds nothing yet.
///
/// # Errors
/// [`Error::Guard`], or it cannot be read.
pub fn check_raw(
    at: &VolumeAddress,
    file: &File,
    virtual_size: u64,
    guards: &Guards,
) -> Result<()> {
    let fail = || Error::file("read", at.volume.to_string());
    if file.metadata().map_err(fail())?.file_type().is_block_device() {
        return check_raw_device(at, file, virtual_size, guards);
    }
    let size = file.metadata().map_err(fail())?.len();
    let rounded = virtual_size.checked_next_multiple_of(BLOCK as u64).unwrap_or(u64::MAX);
    if size != virtual_size && size != rounded {
        return Err(refuse(at.volume, format!("the file has {size} bytes, not {virtual_size}")));
    }
    if !guards.must_be_empty {
        return Ok(());
    }
    // The first block decides (partition table, file system); the others only cost a few
    // reads and catch a disk whose start happens to be empty.
    let blocks = size / BLOCK as u64;
    for i in 0..SAMPLES {
        let offset = blocks.saturating_sub(1) * i / (SAMPLES - 1) * BLOCK as u64;
        zero_at(at, file, offset, (size - offset).min(BLOCK as u64))?;
    }
    // Where the file system knows holes, an empty disk is one hole; a little data may be
    // what vdsm wrote as zeros, so it is read, as far as the budget goes.
    let (mut from, mut budget) = (0, DATA_BUDGET);
    while let Some((start, end)) = data_after(file, from, size) {
        let take = (end - start).min(budget);
        zero_at(at, file, start, take)?;
        budget -= take;
        if budget == 0 {
            break;
        }
        from = end;
    }
    Ok(())
}

/// A raw LV: whole extents, of which LVM wiped nothing but the first block when it was made.
fn check_raw_device(
    at: &VolumeAddress,
    file: &File,
    virtual_size: u64,
    guards: &Guards,
) -> Result<()> {
    let size = length(file).map_err(Error::file("measure", at.volume.to_string()))?;
    if size < virtual_size {
        return Err(refuse(at.volume, format!("the LV has {size} bytes, not {virtual_size}")));
    }
    if guards.must_be_empty { zero_at(at, file, 0, BLOCK as u64) } else { Ok(()) }
}

/// The next data as the file system knows it; the answer may be wrong on Gluster, where it
/// costs a look at fewer or more bytes, nothing else.
fn data_after(file: &File, from: u64, size: u64) -> Option<(u64, u64)> {
    let seek = |at: u64, whence| {
        lseek(file, at as libc::off_t, whence).ok().and_then(|at| u64::try_from(at).ok())
    };
    let start = seek(from, Whence::SeekData).filter(|start| (from..size).contains(start))?;
    let end = seek(start, Whence::SeekHole).unwrap_or(size).min(size);
    (end > start).then_some((start, end))
}

/// Refuses unless a range is all zero.
fn zero_at(at: &VolumeAddress, file: &File, offset: u64, length: u64) -> Result<()> {
    let mut buffer = [0; 64 * 1024];
    let mut done = 0;
    while done < length {
        let take = usize::try_from(length - done).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact_at(&mut buffer[..take], offset + done)
            .map_err(Error::file("read", at.volume.to_string()))?;
        if !is_zero(&buffer[..take]) {
            let byte = offset + done;
            return Err(refuse(at.volume, format!("it is not empty: data near byte {byte}")));
        }
        done += take as u64;
    }
    Ok(())
}

/// A qcow2 volume that is valid and holds nothing yet. Returns its header.
///
/// # Errors
/// [`Error::Guard`], or it is no image.
pub fn check_cow(
    at: &VolumeAddress,
    file: &File,
    virtual_size: u64,
    guards: &Guards,
) -> Result<Header> {
    let image = |source| Error::Image { path: at.volume.to_string().into(), source };
    let say = |why: String| Err(refuse(at.volume, why));
    let header = Header::read(file).map_err(image)?;
    let rounded = virtual_size.checked_next_multiple_of(BLOCK as u64).unwrap_or(u64::MAX);
    if header.virtual_size != virtual_size && header.virtual_size != rounded {
        return say(format!("its header says {} bytes, not {virtual_size}", header.virtual_size));
    }
    if let (true, Some(name)) = (guards.no_parent, &header.backing_name) {
        return say(format!("its header names a parent, {name}"));
    }
    if header.internal_snapshots > 0 || header.has_bitmaps {
        return say("its header has snapshots or bitmaps".into());
    }
    if guards.must_be_empty {
        let layer = Layer::open_qcow2(file).map_err(image)?;
        let chain = hvbak_qcow2::Chain::new(vec![layer]).map_err(image)?;
        for extent in chain.extents(0, header.virtual_size).map_err(image)? {
            let extent = extent.map_err(image)?;
            if extent.kind == ExtentKind::Data {
                return say(format!("it is not empty: data at byte {}", extent.offset));
            }
        }
    }
    Ok(header)
}

fn range(kind: libc::c_int, start: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: QEMU_PERMISSIONS,
        // OFD locks want 0 here.
        l_pid: 0,
    }
}

/// Whether a QEMU program holds the image. A file system without locks says no.
fn is_locked(file: &File) -> bool {
    [QEMU_USED, QEMU_UNSHARED].into_iter().any(|start| {
        let mut probe = range(libc::F_WRLCK, start);
        match fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe)) {
            Ok(_) => i32::from(probe.l_type) != libc::F_UNLCK,
            Err(_) => false,
        }
    })
}

/// Claims the image as a QEMU writer that shares nothing would, until the file is closed:
/// a VM that is started meanwhile fails to open its disk instead of writing into ours.
///
/// # Errors
/// [`Error::Guard`] when somebody else came first.
pub fn claim(at: &VolumeAddress, file: &File) -> Result<()> {
    for start in [QEMU_USED, QEMU_UNSHARED] {
        let lock = range(libc::F_RDLCK, start);
        // Other failures: kernels and file systems without such locks. The other guards
        // must do there.
        if let Err(Errno::EAGAIN | Errno::EACCES) = fcntl(file, FcntlArg::F_OFD_SETLK(&lock)) {
            return Err(refuse(at.volume, "a program on this host has just opened it"));
        }
    }
    Ok(())
}
