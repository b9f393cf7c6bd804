//! Storage domains in a temporary directory, volumes by qemu-img.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use hvbak_types::{DataCenterId, DiskId, DomainId, VolumeId};
use hvbak_wire::{Format, LayerAddress, Place, VolumeAddress};

pub struct Tree {
    pub dir: tempfile::TempDir,
    pub data_center: DataCenterId,
    pub domain: DomainId,
    mount: PathBuf,
}

#[derive(Clone, Copy)]
pub struct Volume {
    pub image: DiskId,
    pub volume: VolumeId,
    pub format: Format,
    pub size: u64,
}

impl Tree {
    /// An NFS-style domain with its pool link.
    pub fn nfs() -> Self {
        Self::new("srv:_exp_my__data", true)
    }

    pub fn new(mount: &str, pool_link: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("hvbak-worker-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let (data_center, domain) = (DataCenterId::random(), DomainId::random());
        let center = dir.path().join("rhev/data-center");
        let mount = center.join("mnt").join(mount).join(domain.to_string());
        fs::create_dir_all(mount.join("dom_md")).unwrap();
        fs::write(mount.join("dom_md/metadata"), "").unwrap();
        if pool_link {
            let pool = center.join(data_center.to_string());
            fs::create_dir_all(&pool).unwrap();
            symlink(&mount, pool.join(domain.to_string())).unwrap();
        }
        Self { dir, data_center, domain, mount }
    }

    pub fn at(&self, v: &Volume) -> VolumeAddress {
        let (data_center, domain) = (self.data_center, self.domain);
        VolumeAddress { data_center, domain, image: v.image, volume: v.volume }
    }

    pub fn layer(&self, v: &Volume) -> LayerAddress {
        let capacity = (v.format == Format::Raw).then_some(v.size);
        LayerAddress {
            place: Place::Volume(self.at(v)),
            format: v.format,
            capacity,
            identity: None,
        }
    }

    pub fn path(&self, v: &Volume) -> PathBuf {
        self.mount.join("images").join(v.image.to_string()).join(v.volume.to_string())
    }

    pub fn meta_path(&self, v: &Volume) -> PathBuf {
        PathBuf::from(format!("{}.meta", self.path(v).display()))
    }

    /// An empty volume of a new disk.
    pub fn disk(&self, format: Format, size: u64) -> Volume {
        self.volume(DiskId::random(), format, size, None)
    }

    /// An overlay in the same disk.
    pub fn overlay(&self, parent: &Volume, size: u64) -> Volume {
        let v = self.volume(parent.image, Format::Cow, size, Some(parent));
        self.edit_meta(parent, "VOLTYPE=LEAF", "VOLTYPE=INTERNAL");
        v
    }

    pub fn volume(
        &self,
        image: DiskId,
        format: Format,
        size: u64,
        parent: Option<&Volume>,
    ) -> Volume {
        let v = Volume { image, volume: VolumeId::random(), format, size };
        let path = self.path(&v);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let name = path.to_str().unwrap();
        let bytes = size.to_string();
        match (format, parent) {
            (Format::Raw, _) => qemu_img(&["create", "-q", "-f", "raw", name, &bytes]),
            (Format::Cow, None) => {
                qemu_img(&["create", "-q", "-f", "qcow2", "-o", "compat=1.1", name, &bytes])
            }
            (Format::Cow, Some(parent)) => {
                let (backing, kind) = (parent.volume.to_string(), kind(parent.format));
                qemu_img(&[
                    "create",
                    "-q",
                    "-u",
                    "-f",
                    "qcow2",
                    "-o",
                    "compat=1.1",
                    "-F",
                    kind,
                    "-b",
                    &backing,
                    name,
                    &bytes,
                ]);
            }
        }
        self.write_meta(&v, parent.map_or(VolumeId::nil(), |p| p.volume));
        if fs::metadata(&path).unwrap().uid() == 0 {
            // As vdsm owns it; the worker becomes that user when it is started as root.
            chown(&path, Some(36), Some(36)).unwrap();
        }
        v
    }

    pub fn write_meta(&self, v: &Volume, parent: VolumeId) {
        let text = format!(
            "CAP={}\nCTIME=1795000000\nDESCRIPTION={{\"DiskAlias\":\"d\"}}\nDISKTYPE=DATA\nDOMAIN={}\n\
             FORMAT={}\nGEN=0\nIMAGE={}\nLEGALITY=LEGAL\nPUUID={parent}\nTYPE=SPARSE\nVOLTYPE=LEAF\nEOF\n",
            v.size,
            self.domain,
            if v.format == Format::Raw { "RAW" } else { "COW" },
            v.image,
        );
        fs::write(self.meta_path(v), text).unwrap();
    }

    pub fn edit_meta(&self, v: &Volume, from: &str, to: &str) {
        let path = self.meta_path(v);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(path, text.replace(from, to)).unwrap();
    }

    /// The content that the guest sees through a volume, by qemu-img.
    pub fn guest(&self, v: &Volume) -> Vec<u8> {
        let out = self.dir.path().join("guest.raw");
        let (path, out_name) = (self.path(v), out.to_str().unwrap().to_owned());
        qemu_img(&[
            "convert",
            "-q",
            "-U",
            "-f",
            kind(v.format),
            "-O",
            "raw",
            path.to_str().unwrap(),
            &out_name,
        ]);
        fs::read(out).unwrap()
    }

    /// Runs qemu-io commands on a volume (its backing chain is opened by qemu itself).
    pub fn io(&self, v: &Volume, commands: &[&str]) {
        qemu_io(&self.path(v), kind(v.format), commands);
    }
}

pub fn kind(format: Format) -> &'static str {
    match format {
        Format::Raw => "raw",
        Format::Cow => "qcow2",
    }
}

pub fn qemu_img(arguments: &[&str]) {
    let out = Command::new("qemu-img").args(arguments).output().expect("qemu-img is installed");
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "qemu-img {arguments:?}: {text}");
}

pub fn qemu_io(path: &Path, format: &str, commands: &[&str]) {
    let mut command = Command::new("qemu-io");
    command.args(["-f", format]);
    for c in commands {
        command.args(["-c", c]);
    }
    let out = command.arg(path).output().expect("qemu-io is installed");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(
        out.status.success() && out.stderr.is_empty() && !text.contains("failed"),
        "qemu-io {commands:?}: {text} {}",
        String::from_utf8_lossy(&out.stderr)
    );
}
