//! Storage domains on a local directory, laid out as vdsm does it; those on a LUN are
//! handed on to `block`.
//!
//! Volumes are made by `qemu-img`, metadata are V5 `.meta` texts, names and links follow
//! vdsm (file domains). Differences: leases are empty files, host trees reach a domain by
//! relative symlinks instead of mounts, and without root everything belongs to the caller
//! instead of 36:36.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use uuid::Uuid;

use crate::block::Lun;

/// vdsm's "no parent".
pub const BLANK: &str = "00000000-0000-0000-0000-000000000000";

/// How hosts see a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Nfs,
    Gluster,
    Local,
    Block,
}

impl Kind {
    /// The engine's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Nfs => "nfs",
            Self::Gluster => "glusterfs",
            Self::Local => "localfs",
            Self::Block => "iscsi",
        }
    }
}

/// A domain.
#[derive(Debug, Clone)]
pub struct Domain {
    pub id: Uuid,
    pub name: String,
    pub kind: Kind,
    pub data_center: Uuid,
    /// Server part of the connection; empty for local.
    pub address: String,
    /// Path part of the connection.
    pub path: String,
    /// The directory that stands for the export.
    pub dir: PathBuf,
    /// What the engine is told to be free, in bytes; `None`: what the file system says.
    pub available: Option<u64>,
    /// A block domain's LUN; none for files.
    pub lun: Option<Arc<Lun>>,
}

/// A volume to be made.
#[derive(Debug, Clone)]
pub struct NewVolume {
    pub image: Uuid,
    pub volume: Uuid,
    pub parent: Option<Uuid>,
    pub cow: bool,
    pub preallocated: bool,
    pub capacity: u64,
    pub alias: String,
}

impl Domain {
    /// Makes the directories of a new domain.
    pub fn create(&self) -> Result<()> {
        let md = self.root().join("dom_md");
        fs::create_dir_all(&md)?;
        fs::create_dir_all(self.root().join("images"))?;
        for name in ["ids", "leases", "inbox", "outbox", "xleases"] {
            put(&md.join(name), b"")?;
        }
        let class = "CLASS=Data\nVERSION=5\nROLE=Regular\nBLOCK_SIZE=512\nALIGNMENT=1048576\n";
        let text = format!(
            "{class}DESCRIPTION={}\nPOOL_UUID={}\nSDUUID={}\nTYPE={}\n",
            self.name,
            self.data_center,
            self.id,
            self.kind.word().to_uppercase()
        );
        put(&md.join("metadata"), text.as_bytes())?;
        give(&self.root())?;
        give(&self.root().join("images"))
    }

    /// `<export>/<domain id>`.
    pub fn root(&self) -> PathBuf {
        self.dir.join(self.id.to_string())
    }

    fn image_dir(&self, image: Uuid) -> PathBuf {
        self.root().join("images").join(image.to_string())
    }

    /// Sanlock's volume leases are not on local file systems.
    fn has_leases(&self) -> bool {
        self.kind != Kind::Local
    }

    /// The files of a volume, by what follows its id.
    fn suffixes(&self) -> &'static [&'static str] {
        if self.has_leases() { &["", ".meta", ".lease"] } else { &["", ".meta"] }
    }

    /// The data file or device of a volume.
    pub fn volume_path(&self, image: Uuid, volume: Uuid) -> PathBuf {
        if let Some(lun) = &self.lun {
            return lun.path(volume);
        }
        self.image_dir(image).join(volume.to_string())
    }

    /// Puts the domain into a host's tree: the mount point and the pool link.
    pub fn link_into(&self, host_root: &Path) -> Result<()> {
        let mnt = host_root.join("rhev/data-center/mnt");
        let escape = |t: &str| t.replace('_', "__").replace('/', "_");
        let (parent, name) = match self.kind {
            Kind::Nfs => (mnt.clone(), format!("{}:{}", self.address, escape(&self.path))),
            Kind::Gluster => (
                mnt.join("glusterSD"),
                format!("{}:_{}", self.address, escape(self.path.trim_start_matches('/'))),
            ),
            Kind::Local | Kind::Block => (mnt.clone(), escape(&self.path)),
        };
        fs::create_dir_all(&parent)?;
        let mount = parent.join(&name);
        if !mount.exists() {
            symlink(&self.dir, &mount)?;
        }
        let pool = host_root.join("rhev/data-center").join(self.data_center.to_string());
        fs::create_dir_all(&pool)?;
        let below = mount.strip_prefix(host_root.join("rhev/data-center"))?.to_owned();
        let link = pool.join(self.id.to_string());
        if !link.exists() {
            symlink(Path::new("..").join(below).join(self.id.to_string()), link)?;
        }
        Ok(())
    }

    /// Makes a volume with its metadata; a parent must lie in the same image directory.
    pub fn create_volume(&self, new: &NewVolume) -> Result<()> {
        self.create_sized(new, None)
    }

    /// The same with the engine's `initial_size`, which only block domains heed.
    pub fn create_sized(&self, new: &NewVolume, initial: Option<u64>) -> Result<()> {
        if let Some(lun) = &self.lun {
            return lun.create_volume(new, initial);
        }
        let dir = self.image_dir(new.image);
        fs::create_dir_all(&dir)?;
        give(&dir)?;
        let path = dir.join(new.volume.to_string());
        ensure!(!path.exists(), "volume {} exists", new.volume);
        if new.cow {
            let mut args =
                vec!["create", "-q", "-f", "qcow2", "-o", "compat=1.1,cluster_size=65536"];
            let parent = new.parent.map(|p| p.to_string());
            let format = match new.parent {
                Some(parent) if self.meta(new.image, parent, "FORMAT")? == "RAW" => "raw",
                _ => "qcow2",
            };
            if let Some(parent) = &parent {
                args.extend(["-u", "-b", parent, "-F", format]);
            }
            let (file, size) = (new.volume.to_string(), new.capacity.to_string());
            args.extend([file.as_str(), size.as_str()]);
            run(Command::new("qemu-img").current_dir(&dir).args(args))?;
        } else {
            ensure!(new.parent.is_none(), "a raw volume has no parent");
            let file = fs::File::create_new(&path)?;
            file.set_len(new.capacity)?;
            if new.preallocated {
                nix::fcntl::fallocate(
                    &file,
                    nix::fcntl::FallocateFlags::empty(),
                    0,
                    i64::try_from(new.capacity)?,
                )?;
            }
        }
        give(&path)?;
        if self.has_leases() {
            put(&dir.join(format!("{}.lease", new.volume)), b"")?;
        }
        // The engine numbers the volumes of a chain from its base.
        let seq = match new.parent {
            Some(parent) => self.meta(new.image, parent, "SEQ")?.parse::<u32>()? + 1,
            None => 1,
        };
        let voltype = "LEAF";
        let text = format!(
            "CAP={}\nCTIME={}\nDESCRIPTION={{\"DiskAlias\":\"{}\",\"DiskDescription\":\"\"}}\nDISKTYPE=DATA\nDOMAIN={}\nFORMAT={}\nGEN=0\nIMAGE={}\nLEGALITY=LEGAL\nPUUID={}\nSEQ={seq}\nTYPE={}\nVOLTYPE={voltype}\nEOF\n",
            new.capacity,
            jiff::Timestamp::now().as_second(),
            new.alias,
            self.id,
            if new.cow { "COW" } else { "RAW" },
            new.image,
            new.parent.map_or_else(|| BLANK.to_owned(), |p| p.to_string()),
            if new.preallocated { "PREALLOCATED" } else { "SPARSE" },
        );
        put(&dir.join(format!("{}.meta", new.volume)), text.as_bytes())?;
        if let Some(parent) = new.parent
            && self.meta(new.image, parent, "VOLTYPE")? == "LEAF"
        {
            self.set_meta(new.image, parent, "VOLTYPE", "INTERNAL")?;
        }
        Ok(())
    }

    /// A template's volume in a VM's image directory, as vdsm does it: hard links.
    pub fn link_template(&self, template: Uuid, volume: Uuid, image: Uuid) -> Result<()> {
        if self.lun.is_some() {
            // An LV has one owner; the overlay finds it in the group.
            return Ok(());
        }
        let (from, to) = (self.image_dir(template), self.image_dir(image));
        fs::create_dir_all(&to)?;
        give(&to)?;
        for suffix in self.suffixes() {
            let name = format!("{volume}{suffix}");
            fs::hard_link(from.join(&name), to.join(&name))?;
        }
        Ok(())
    }

    /// One value of a volume's metadata.
    pub fn meta(&self, image: Uuid, volume: Uuid, key: &str) -> Result<String> {
        if let Some(lun) = &self.lun {
            return lun.meta(volume, key);
        }
        let path = self.image_dir(image).join(format!("{volume}.meta"));
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
        line.map(str::to_owned).with_context(|| format!("{key} in {}", path.display()))
    }

    /// Rewrites one value; by rename, as vdsm does it. A hard link would be cut, so a
    /// shared volume is never rewritten.
    pub fn set_meta(&self, image: Uuid, volume: Uuid, key: &str, value: &str) -> Result<()> {
        if let Some(lun) = &self.lun {
            return lun.set_meta(volume, key, value);
        }
        let path = self.image_dir(image).join(format!("{volume}.meta"));
        let text = fs::read_to_string(&path)?;
        if text.contains("VOLTYPE=SHARED") {
            return Ok(());
        }
        let mut out = String::new();
        for line in text.lines() {
            match line.split_once('=') {
                Some((k, _)) if k == key => out.push_str(&format!("{key}={value}\n")),
                _ => out.push_str(&format!("{line}\n")),
            }
        }
        let new = path.with_extension("meta.new");
        put(&new, out.as_bytes())?;
        Ok(fs::rename(new, path)?)
    }

    /// Removes a volume with its metadata.
    pub fn delete_volume(&self, image: Uuid, volume: Uuid) -> Result<()> {
        if let Some(lun) = &self.lun {
            return lun.delete(&[volume]);
        }
        let dir = self.image_dir(image);
        for suffix in self.suffixes() {
            fs::remove_file(dir.join(format!("{volume}{suffix}")))?;
        }
        Ok(())
    }

    /// Removes a whole image; vdsm renames it first.
    pub fn delete_image(&self, image: Uuid) -> Result<()> {
        if let Some(lun) = &self.lun {
            return lun.delete_image(image);
        }
        let dir = self.image_dir(image);
        if !dir.exists() {
            return Ok(());
        }
        let gone = self.root().join("images").join(format!("_remove_me_{image}"));
        fs::rename(&dir, &gone)?;
        Ok(fs::remove_dir_all(gone)?)
    }

    /// The chain of a volume by metadata, newest first.
    pub fn chain(&self, image: Uuid, volume: Uuid) -> Result<Vec<Uuid>> {
        let mut out = vec![volume];
        loop {
            let last = out[out.len() - 1];
            let parent = self.meta(image, last, "PUUID")?;
            if parent == BLANK {
                return Ok(out);
            }
            ensure!(out.len() < 100, "chain of {image} is a loop");
            out.push(parent.parse()?);
        }
    }

    /// Whether a volume is raw.
    pub fn is_raw(&self, image: Uuid, volume: Uuid) -> Result<bool> {
        Ok(self.meta(image, volume, "FORMAT")? == "RAW")
    }

    /// Whether a volume is thin.
    pub fn is_sparse(&self, image: Uuid, volume: Uuid) -> Result<bool> {
        Ok(self.meta(image, volume, "TYPE")? == "SPARSE")
    }

    /// Merges `child` into `parent` while no VM runs: the parent's file and id survive.
    pub fn cold_merge(
        &self,
        image: Uuid,
        child: Uuid,
        parent: Uuid,
        above: Option<Uuid>,
    ) -> Result<()> {
        if let Some(lun) = &self.lun {
            return lun.merge(child, parent, above);
        }
        let dir = self.image_dir(image);
        let raw = self.is_raw(image, parent)?;
        run(Command::new("qemu-img").current_dir(&dir).args([
            "commit",
            "-q",
            "-d",
            "-f",
            "qcow2",
            "-b",
            &parent.to_string(),
            &child.to_string(),
        ]))?;
        self.after_merge(image, child, parent, above)?;
        // A cold merge is a job of the storage hosts, and those count generations.
        let generation = (self.meta(image, parent, "GEN")?.parse::<u32>()? + 1) % 1000;
        self.set_meta(image, parent, "GEN", &generation.to_string())?;
        if let Some(above) = above {
            let format = if raw { "raw" } else { "qcow2" };
            run(Command::new("qemu-img").current_dir(&dir).args([
                "rebase",
                "-q",
                "-u",
                "-f",
                "qcow2",
                "-b",
                &parent.to_string(),
                "-F",
                format,
                &above.to_string(),
            ]))?;
        }
        Ok(())
    }

    /// The books after a merge: the layer above stands on the parent, the child is gone.
    pub fn after_merge(
        &self,
        image: Uuid,
        child: Uuid,
        parent: Uuid,
        above: Option<Uuid>,
    ) -> Result<()> {
        let capacity = self.meta(image, child, "CAP")?;
        self.set_meta(image, parent, "CAP", &capacity)?;
        match above {
            Some(above) => self.set_meta(image, above, "PUUID", &parent.to_string())?,
            None => self.set_meta(image, parent, "VOLTYPE", "LEAF")?,
        }
        self.delete_volume(image, child)
    }

    /// Makes the raw base of a chain (newest first) qcow2 or preallocated, under its own id.
    pub fn change_base(&self, image: Uuid, chain: &[Uuid], cow: bool) -> Result<()> {
        let [above @ .., base] = chain else { bail!("a chain has a volume") };
        ensure!(self.is_raw(image, *base)?, "only a raw base changes");
        let path = self.volume_path(image, *base);
        let made = path.with_extension("new");
        let format = if cow { "qcow2" } else { "raw" };
        let option = if cow { "compat=1.1" } else { "preallocation=falloc" };
        run(Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", format, "-o", option])
            .args([&path, &made]))?;
        give(&made)?;
        fs::rename(&made, &path)?;
        self.set_meta(image, *base, "FORMAT", if cow { "COW" } else { "RAW" })?;
        self.set_meta(image, *base, "TYPE", if cow { "SPARSE" } else { "PREALLOCATED" })?;
        let Some(child) = above.last() else { return Ok(()) };
        run(Command::new("qemu-img").current_dir(self.image_dir(image)).args([
            "rebase",
            "-q",
            "-u",
            "-f",
            "qcow2",
            "-b",
            &base.to_string(),
            "-F",
            format,
            &child.to_string(),
        ]))
        .map(drop)
    }

    /// Bytes that a volume takes.
    pub fn allocated(&self, image: Uuid, volume: Uuid) -> u64 {
        use std::os::unix::fs::MetadataExt;
        if let Some(lun) = &self.lun {
            return lun.allocated(volume);
        }
        fs::metadata(self.volume_path(image, volume)).map_or(0, |m| m.blocks() * 512)
    }
}

/// Runs a program; its stderr is the error.
pub fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("start {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("write {}", path.display()))?;
    give(path)
}

/// vdsm:kvm and its modes where we may.
fn give(path: &Path) -> Result<()> {
    let mode = if path.is_dir() { 0o755 } else { 0o660 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    if nix::unistd::geteuid().is_root() {
        chown(path, Some(36), Some(36))?;
    }
    Ok(())
}
