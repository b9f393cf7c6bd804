//! Mount points of file domains below `/rhev/data-center`.
//!
//! vdsm: `mount.py` `getLocalPath`/`fileUtils.transformPath`: `_` becomes `__`, `/`
//! becomes `_`; Gluster lives one level deeper; a local domain is a symlink.

use hvbak_types::{DataCenterId, DiskId, DomainId, VolumeId};

/// A file domain's connection, as the engine tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mount<'a> {
    /// NFS: `server:/path`, IPv6 servers in brackets.
    Nfs {
        /// `server:/path`.
        spec: &'a str,
    },
    /// POSIX file system: whatever is given to `mount`.
    Posix {
        /// `server:/path` or a device.
        spec: &'a str,
    },
    /// Gluster: `server:/volume` or `server:volume`.
    Gluster {
        /// `server:/volume`.
        spec: &'a str,
    },
    /// A directory of the host.
    Local {
        /// Absolute path.
        path: &'a str,
    },
}

/// How a domain is mounted, told from the name of its directory below `mnt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MountShape {
    /// `server:_path`: NFS or POSIX.
    Remote,
    /// Below `glusterSD`.
    Gluster,
    /// `_path`: a link to a local directory.
    Local,
    /// Below `blockSD`: links made by vdsm.
    Block,
    /// None of these.
    Other,
}

/// Drops duplicate and trailing slashes, as vdsm's `normpath` does; a `server:` part is
/// kept as it is.
pub fn normalise_spec(spec: &str) -> String {
    let (server, path) = split_server(spec);
    let mut out = server.to_owned();
    let mut slash = false;
    for c in path.chars() {
        if !(c == '/' && slash) {
            out.push(c);
        }
        slash = c == '/';
    }
    let floor = server.len() + 1;
    while out.len() > floor && out.ends_with('/') {
        out.pop();
    }
    out
}

/// `server:` (brackets of IPv6 included) and the rest.
fn split_server(spec: &str) -> (&str, &str) {
    let from = match spec.strip_prefix('[').and_then(|s| s.find("]:")) {
        Some(end) => Some(end + 3),
        None if spec.starts_with('/') => None,
        None => spec.find(':').map(|at| at + 1),
    };
    spec.split_at(from.unwrap_or(0))
}

fn escape(text: &str) -> String {
    text.replace('_', "__").replace('/', "_")
}

/// The directory of a mount, relative to `/rhev/data-center/mnt`.
pub fn mount_directory(mount: &Mount<'_>) -> String {
    match mount {
        Mount::Nfs { spec } | Mount::Posix { spec } => escape(&normalise_spec(spec)),
        Mount::Gluster { spec } => {
            let (server, path) = split_server(spec);
            let path = path.trim_start_matches('/');
            format!("glusterSD/{}", escape(&normalise_spec(&format!("{server}/{path}"))))
        }
        Mount::Local { path } => local_directory(path),
    }
}

/// The link of a local domain, relative to `/rhev/data-center/mnt`.
pub fn local_directory(path: &str) -> String {
    escape(&normalise_spec(path))
}

/// Tells the kind of mount from a domain's path relative to `/rhev/data-center/mnt`.
pub fn mount_shape(relative: &str) -> MountShape {
    let mut parts = relative.split('/').filter(|p| !p.is_empty());
    match parts.next() {
        Some("glusterSD") => MountShape::Gluster,
        Some("blockSD") => MountShape::Block,
        Some(first) if first.starts_with('_') => MountShape::Local,
        Some(first) if first.contains(':') => MountShape::Remote,
        _ => MountShape::Other,
    }
}

/// The link to a domain that exists while the host is connected to the data center.
pub fn pool_link(data_center: DataCenterId, domain: DomainId) -> String {
    format!("/rhev/data-center/{data_center}/{domain}")
}

/// A volume's data file, relative to the domain's directory.
pub fn volume_path(image: DiskId, volume: VolumeId) -> String {
    format!("images/{image}/{volume}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_named_as_vdsm_names_them() {
        for (mount, expected) in [
            (Mount::Nfs { spec: "srv:/exp/my_data" }, "srv:_exp_my__data"),
            (Mount::Nfs { spec: "srv:/exp//my_data///" }, "srv:_exp_my__data"),
            (Mount::Nfs { spec: "[fd00::1]:/exp/a" }, "[fd00::1]:_exp_a"),
            (Mount::Nfs { spec: "srv:/" }, "srv:_"),
            (Mount::Nfs { spec: "my_srv:/a_b" }, "my__srv:_a__b"),
            (Mount::Posix { spec: "/dev/sdb1" }, "_dev_sdb1"),
            (Mount::Gluster { spec: "gl1:/vol_one" }, "glusterSD/gl1:_vol__one"),
            (Mount::Gluster { spec: "gl1:vol_one" }, "glusterSD/gl1:_vol__one"),
            (Mount::Gluster { spec: "gl1:/vol/dir" }, "glusterSD/gl1:_vol_dir"),
            (Mount::Local { path: "/data/images/" }, "_data_images"),
            (Mount::Local { path: "/data/my_images" }, "_data_my__images"),
        ] {
            assert_eq!(mount_directory(&mount), expected, "{mount:?}");
        }
    }

    #[test]
    fn shapes_are_told_from_names() {
        for (relative, expected) in [
            ("srv:_exp_my__data/sd", MountShape::Remote),
            ("[fd00::1]:_exp/sd", MountShape::Remote),
            ("glusterSD/gl1:_vol/sd", MountShape::Gluster),
            ("blockSD/sd", MountShape::Block),
            ("_data_images/sd", MountShape::Local),
            ("/_data_images/sd", MountShape::Local),
            ("odd", MountShape::Other),
            ("", MountShape::Other),
        ] {
            assert_eq!(mount_shape(relative), expected, "{relative}");
        }
    }
}
