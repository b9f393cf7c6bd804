//! Names in the repository. The only place where a path is put together.
//!
//! Every variable part is an id that cannot hold a slash or a dot, or a document name
//! that was checked, so no stored text can lead out of the repository.

use std::path::PathBuf;

use hvbak_types::{DiskId, JobId, PointId, VmId};

use crate::manager::ManagerName;

pub const REPOSITORY: &str = "hvbak-repository.json";
pub const MANIFEST: &str = "manifest.json";
pub const SUMS: &str = "SHA256SUMS";
pub const VMS: &str = "vms";
/// Points that hold a configuration alone, apart from the others: nothing that counts, judges or
/// stands on points looks here.
pub const CONFIGURATIONS: &str = "configurations";
pub const LOCKS: &str = "locks";
pub const JOURNAL: &str = "journal";
pub const RUNS: &str = "runs";
pub const PARTIAL: &str = ".partial-";
/// A point being merged with what expires below it; removed when its writer died.
pub const MERGING: &str = ".merging-";
/// The same, whole, on its way to the place of the point; it is the point where there is none.
pub const MERGED: &str = ".merged-";
/// A point that expired or was replaced, on its way out.
pub const EXPIRED: &str = ".expired-";

/// Paths below one repository root.
#[derive(Debug, Clone)]
pub struct Layout {
    pub root: PathBuf,
    /// Where points of VMs lie below it: [`VMS`] or [`CONFIGURATIONS`].
    pub tree: &'static str,
}

impl Layout {
    pub fn repository(&self) -> PathBuf {
        self.root.join(REPOSITORY)
    }

    pub fn vms(&self) -> PathBuf {
        self.root.join(self.tree)
    }

    pub fn vm(&self, vm: VmId) -> PathBuf {
        self.vms().join(vm.to_string())
    }

    pub fn point(&self, vm: VmId, point: &PointId) -> PathBuf {
        self.vm(vm).join(point.as_str())
    }

    pub fn partial(&self, vm: VmId, point: &PointId) -> PathBuf {
        self.vm(vm).join(format!("{PARTIAL}{point}"))
    }

    /// A hidden directory of a point, by one of the prefixes above.
    pub fn hidden(&self, prefix: &str, vm: VmId, point: &PointId) -> PathBuf {
        self.vm(vm).join(format!("{prefix}{point}"))
    }

    pub fn locks(&self) -> PathBuf {
        self.root.join(LOCKS)
    }

    pub fn repository_lock(&self) -> PathBuf {
        self.locks().join("repository.lock")
    }

    pub fn vm_lock(&self, vm: VmId) -> PathBuf {
        self.locks().join(format!("vm-{vm}.lock"))
    }

    pub fn points_lock(&self, vm: VmId) -> PathBuf {
        self.locks().join(format!("points-{vm}.lock"))
    }

    pub fn archives_lock(&self, manager: &ManagerName) -> PathBuf {
        self.locks().join(format!("archives-{manager}.lock"))
    }

    /// Records of runs that have ended.
    pub fn runs(&self) -> PathBuf {
        self.root.join(RUNS)
    }

    pub fn journals(&self) -> PathBuf {
        self.root.join(JOURNAL)
    }

    pub fn journal(&self, job: JobId) -> PathBuf {
        self.journals().join(format!("{job}.jsonl"))
    }
}

/// `<disk-id>.qcow2`.
pub fn image_name(disk: DiskId) -> String {
    format!("{disk}.qcow2")
}

/// `<disk-id>.digests`.
pub fn digests_name(disk: DiskId) -> String {
    format!("{disk}.digests")
}

/// In a half-made point: what a run needs to go on with it.
pub const RESUME: &str = ".resume.json";

/// In a half-made point: what of a disk is on stable storage.
pub fn progress_name(disk: DiskId) -> String {
    format!(".{disk}.progress")
}

/// In a half-made point: that a disk is whole.
pub fn done_name(disk: DiskId) -> String {
    format!(".{disk}.done")
}

/// The disk of which such a name says that it is whole.
pub fn done_disk(name: &str) -> Option<DiskId> {
    name.strip_prefix('.')?.strip_suffix(".done")?.parse().ok()
}

/// The backing file name that a delta stores: relative, so that a repository can be moved
/// and read with stock tools.
pub fn backing_name(parent: &PointId, disk: DiskId) -> String {
    format!("../{parent}/{}", image_name(disk))
}

/// Whether a document may have this name: plain file names that no other file of a point
/// has, and nothing a shell or `sha256sum` would treat specially.
pub fn is_document_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    !name.is_empty()
        && name.len() <= 100
        && name.chars().all(plain)
        && !name.starts_with(['.', '-'])
        && name != MANIFEST
        && name != SUMS
        && ![".qcow2", ".digests", ".partial", ".tmp"].iter().any(|end| name.ends_with(end))
}

/// The last part of a path as text.
#[cfg(test)]
pub fn file_name(path: &std::path::Path) -> String {
    path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_cannot_leave_the_point_or_hide_its_files() {
        for good in ["vm.ovf", "vm.xml", "nics.xml", "tags_1.json"] {
            assert!(is_document_name(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "/etc/passwd",
            ".hidden",
            "-x",
            "manifest.json",
            "SHA256SUMS",
            "x.qcow2",
            "x.digests",
            "a b",
            "a\nb",
            "é",
        ] {
            assert!(!is_document_name(bad), "{bad}");
        }
    }
}
