//! The place where a drill works. It goes when the drill ends; what a drill that was killed
//! has left goes with the next one.
//!
//! A directory is another drill's at work as long as its file `lock` is locked: a dead
//! process holds no lock. Kept ones have another name and are nobody's to remove.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use hvbak_types::JobId;
use nix::fcntl::OFlag;

use crate::error::{Result, RunError};

const PREFIX: &str = "hvbak-drill-";
const KEPT: &str = "hvbak-kept-";
const LOCK: &str = "lock";
/// A directory without a lock is one that is being made, or was left in that moment.
const YOUNG: Duration = Duration::from_secs(3600);
/// A socket in a VM's directory has a path of 107 bytes at most, and its name below this one
/// takes 67: `/hvbak-drill-12345678/UUID/qmp.sock`.
const BASE_MAX: usize = 40;
/// Foreign programs end when less is free; bytes.
pub const RESERVE: u64 = 128 << 20;
/// How often that is looked at.
const WATCH: Duration = Duration::from_millis(250);

/// A directory of this drill's.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _lock: File,
    keep: bool,
}

pub fn local(doing: String) -> impl FnOnce(std::io::Error) -> RunError {
    move |cause| RunError::Local { doing, cause }
}

/// Bytes free for this user below a directory.
pub fn free(base: &Path) -> Result<u64> {
    let stat = nix::sys::statvfs::statvfs(base).map_err(|errno| RunError::Local {
        doing: format!("see how much is free in {}", base.display()),
        cause: errno.into(),
    })?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// Comes back when less than `reserve` bytes are free below a directory, or nobody knows.
pub async fn filled(dir: &Path, reserve: u64) {
    while free(dir).is_ok_and(|free| free >= reserve) {
        tokio::time::sleep(WATCH).await;
    }
}

/// Opens a regular file of a directory that is a foreign program's: through no link, and
/// without waiting for anybody.
pub fn open_foreign(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other(format!("{} is no regular file", path.display())))
    }
}

impl Scratch {
    /// Makes one below `base`, and removes those that dead drills have left there.
    pub fn make(base: &Path, job: JobId, keep: bool) -> Result<Self> {
        if base.as_os_str().len() > BASE_MAX || !base.is_absolute() {
            let why = format!(
                "scratch directory {} must be absolute and have at most {BASE_MAX} letters: sockets lie in it",
                base.display()
            );
            return Err(RunError::DrillUnfit { why });
        }
        sweep(base);
        let short: String = job.to_string().chars().take(8).collect();
        let path = base.join(format!("{}{short}", if keep { KEPT } else { PREFIX }));
        let doing = || format!("make scratch directory {}", path.display());
        DirBuilder::new().mode(0o700).create(&path).map_err(local(doing()))?;
        // The unprivileged user of the drill passes through and sees no names.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o711)).map_err(local(doing()))?;
        let lock = File::create_new(path.join(LOCK)).map_err(local(doing()))?;
        // Nobody else has it: the file was made a moment ago.
        let _ = lock.try_lock();
        Ok(Self { path, _lock: lock, keep })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// In words, when fewer than `needed` bytes are free.
    pub fn lacks(&self, needed: u64) -> Result<Option<String>> {
        let free = free(&self.path)?;
        Ok((needed > free).then(|| {
            let (path, needed, free) = (self.path.display(), needed >> 20, free >> 20);
            format!("not enough room in {path}: {needed} MiB are needed, {free} are free")
        }))
    }

    /// A directory in it for this process alone, to be filled before it is given away; an
    /// earlier one of the name goes.
    pub fn fresh(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        if path.exists() {
            fs::remove_dir_all(&path).map_err(local(format!("remove {}", path.display())))?;
        }
        let doing = || format!("make scratch directory {}", path.display());
        DirBuilder::new().mode(0o700).create(&path).map_err(local(doing()))?;
        Ok(path)
    }

    /// Removes a directory of it, unless all is kept.
    pub fn remove(&self, path: &Path) -> Result<()> {
        if self.keep {
            return Ok(());
        }
        fs::remove_dir_all(path).map_err(local(format!("remove {}", path.display())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.keep {
            let _ = fs::remove_file(self.path.join(LOCK));
        } else if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a scratch directory stays");
        }
    }
}

/// Removes what dead drills of this user have left. What cannot be looked at stays.
fn sweep(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let path = entry.path();
        // Not through links that somebody else has laid.
        let Ok(meta) = path.symlink_metadata() else { continue };
        if !ours || !meta.is_dir() || meta.uid() != nix::unistd::geteuid().as_raw() {
            continue;
        }
        let dead = match File::open(path.join(LOCK)) {
            Ok(lock) => lock.try_lock().is_ok(),
            Err(_) => meta.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age > YOUNG)),
        };
        if dead {
            tracing::info!(path = %path.display(), "a dead drill left this");
            let _ = fs::remove_dir_all(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_pipes_of_a_foreign_program_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "x").unwrap();
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(open_foreign(&at("file")).is_ok());
        for name in ["link", "pipe", "."] {
            assert!(open_foreign(&at(name)).is_err(), "{name}");
        }
    }

    #[tokio::test]
    async fn a_place_that_fills_is_noticed() {
        filled(Path::new("/"), u64::MAX).await;
        let long = Duration::from_millis(600);
        assert!(tokio::time::timeout(long, filled(Path::new("/"), 0)).await.is_err());
    }

    #[test]
    fn a_socket_of_a_vm_has_room_below_the_longest_base() {
        let uuid = hvbak_types::VmId::random().to_string();
        let below = format!("/{PREFIX}12345678/{uuid}/{}", crate::drill::machine::MONITOR);
        assert!(BASE_MAX + below.len() <= 107 && PREFIX.len() >= KEPT.len());
    }

    #[test]
    fn it_goes_and_takes_what_dead_drills_left() {
        let base = tempfile::tempdir_in("/tmp").unwrap();
        let base = base.path();
        let here = |name: &str| base.join(name).exists();
        fs::create_dir(base.join("hvbak-drill-dead")).unwrap();
        fs::write(base.join("hvbak-drill-dead/lock"), "").unwrap();
        // One that is being made, one of somebody else's, and a link.
        fs::create_dir(base.join("hvbak-drill-young")).unwrap();
        fs::create_dir(base.join("data")).unwrap();
        std::os::unix::fs::symlink(base.join("data"), base.join("hvbak-drill-link")).unwrap();
        let one = Scratch::make(base, JobId::random(), false).unwrap();
        let kept = Scratch::make(base, JobId::random(), true).unwrap();
        assert!(one.path().exists() && !here("hvbak-drill-dead"));
        assert!(here("hvbak-drill-young") && here("data") && here("hvbak-drill-link"));
        let (one_path, kept_path) = (one.path().to_owned(), kept.path().to_owned());
        drop((one, kept));
        drop(Scratch::make(base, JobId::random(), false).unwrap());
        assert!(!one_path.exists() && kept_path.exists());
        assert!(Scratch::make(Path::new("relative"), JobId::random(), false).is_err());
        assert!(Scratch::make(&base.join("x".repeat(80)), JobId::random(), false).is_err());
    }
}
