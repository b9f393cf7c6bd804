//! Breaking files on purpose.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// Flips one bit.
pub fn flip(path: &Path, offset: u64) {
    let file = open(path);
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("the byte");
    byte[0] ^= 0x10;
    file.write_all_at(&byte, offset).expect("the byte");
}

/// Cuts the last bytes off.
pub fn cut(path: &Path, bytes: u64) {
    let file = open(path);
    let length = file.metadata().expect("its size").len();
    file.set_len(length.saturating_sub(bytes)).expect("cut");
}

/// Overwrites some bytes.
pub fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    open(path).write_all_at(bytes, offset).expect("the bytes");
}

/// Exchanges two files.
pub fn swap(one: &Path, other: &Path) {
    let aside = one.with_extension("aside");
    fs::rename(one, &aside).expect("rename");
    fs::rename(other, one).expect("rename");
    fs::rename(&aside, other).expect("rename");
}

/// The files of a folder with an ending, sorted.
pub fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("the folder").flatten().map(|e| e.path());
    let mut found: Vec<_> =
        entries.filter(|p| p.extension().is_some_and(|e| e == ending)).collect();
    found.sort();
    found
}

fn open(path: &Path) -> File {
    // Points are stored read-only.
    let mut mode = fs::metadata(path).expect("its mode").permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o600);
    fs::set_permissions(path, mode).expect("its mode");
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
