//! A small file system that can be filled: a tmpfs, for root only.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Mounted until dropped.
pub struct Small {
    path: PathBuf,
}

impl Small {
    /// Mounts one; nothing where that is not allowed.
    pub fn mount(path: &Path, mib: u32) -> Option<Self> {
        fs::create_dir_all(path).expect("the mount point");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mib}m,mode=0755"), "hvbak-it"]).arg(path);
        let mounted = super::is_root() && mount.output().is_ok_and(|o| o.status.success());
        mounted.then(|| Self { path: path.to_owned() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }

    /// Leaves no byte free.
    pub fn fill(&self) {
        use std::io::Write;
        let mut file = fs::File::create(self.filler()).expect("the filler");
        let chunk = [0x55; 4096];
        while file.write_all(&chunk).is_ok() {}
    }

    /// Leaves about so many bytes free.
    pub fn fill_but(&self, bytes: u64) {
        self.fill();
        let file = fs::OpenOptions::new().write(true).open(self.filler()).expect("the filler");
        let length = file.metadata().expect("the filler").len();
        file.set_len(length.saturating_sub(bytes)).expect("a shorter filler");
    }

    /// Takes the filler away.
    pub fn free(&self) {
        let _ = fs::remove_file(self.filler());
    }

    /// Whether a half-made point lies somewhere in it.
    pub fn has_partial(&self) -> bool {
        let mut folders = vec![self.path.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with(".partial") {
                    return true;
                }
                if entry.path().is_dir() {
                    folders.push(entry.path());
                }
            }
        }
        false
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: daemons of the lab may still have files open there.
        let _ = Command::new("umount").arg("-l").arg(&self.path).output();
    }
}
