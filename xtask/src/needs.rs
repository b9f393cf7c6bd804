//! Programs that the lab and the tests call, and the packages they come in.

use std::{path::Path, process::Command};

use anyhow::{Result, bail};

use crate::build::run;

/// A program, Debian's packages, Enterprise Linux's packages.
type Need = (&'static str, &'static str, &'static str);

/// What the demo needs.
pub const DEMO: &[Need] = &[
    ("qemu-img", "qemu-utils", "qemu-img"),
    ("qemu-io", "qemu-utils", "qemu-img"),
    ("qemu-nbd", "qemu-utils", "qemu-img"),
    ("qemu-storage-daemon", "qemu-utils qemu-system-common", "qemu-kvm-core"),
    ("sshd", "openssh-server", "openssh-server"),
    ("ssh-keygen", "openssh-client", "openssh"),
    ("cc", "gcc libc6-dev", "gcc glibc-static"),
];

/// What the tests need beyond it.
pub const TEST: &[Need] = &[
    ("ssh", "openssh-client", "openssh-clients"),
    ("ssh-agent", "openssh-client", "openssh"),
    ("c++", "g++", "gcc-c++"),
    ("curl", "curl", "curl"),
    ("python3", "python3 python3-venv", "python3"),
    ("curl-config", "libcurl4-openssl-dev libssl-dev", "libcurl-devel openssl-devel"),
    ("xml2-config", "libxml2-dev", "libxml2-devel"),
    ("git", "git", "git"),
    ("ip", "iproute2", "iproute"),
    ("systemd-analyze", "systemd", "systemd"),
    ("strace", "strace", "strace"),
    ("mandoc", "mandoc", "mandoc"),
    ("groff", "groff-base", "groff-base"),
    ("pg_restore", "postgresql-client", "postgresql"),
];

/// The other side of encrypted archives and of the report's metrics; not in Enterprise Linux.
const READERS: &[Need] = &[("age", "age", ""), ("promtool", "prometheus", "")];

/// What the guests with real LVM need (`scripts/lab/hvlab.sh`); Debian only, because the
/// image is made of its packages and its user-mode kernel.
const GUESTS: &[Need] = &[
    ("linux.uml", "user-mode-linux", ""),
    ("lvm", "lvm2", ""),
    ("udevadm", "udev", ""),
    ("depmod", "kmod", ""),
    ("mkfs.ext4", "e2fsprogs", ""),
    ("busybox", "busybox-static", ""),
    ("ps", "procps", ""),
    ("socat", "socat", ""),
];

/// What rehearsals boot (`hvbak drill`); Debian only, as the others.
const DRILLS: &[Need] = &[("qemu-system-x86_64", "qemu-system-x86", "")];

/// What hosts and storage servers in namespaces need (`scripts/lab/peers.sh`), a file
/// system with sectors of 4 KiB, and a PostgreSQL server; Debian only, as its servers are what was tried.
const PEERS: &[Need] = &[
    ("nsenter", "util-linux", ""),
    ("glusterd", "glusterfs-server glusterfs-client", ""),
    ("ganesha.nfsd", "nfs-ganesha nfs-ganesha-vfs", ""),
    ("mkfs.xfs", "xfsprogs", ""),
    ("pg_ctlcluster", "postgresql", ""),
];

pub fn present(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|dir| Path::new(dir).join(program).exists())
}

/// What builds, judges and installs packages; Debian only, as trying them was.
const PACKAGES: &[Need] = &[
    ("rpmbuild", "rpm rpm2cpio", ""),
    ("cpio", "cpio", ""),
    ("rpmlint", "rpmlint", ""),
    ("createrepo_c", "createrepo-c", ""),
    ("dnf", "dnf", ""),
    ("objdump", "binutils", ""),
];

/// Installs what guests, servers, rehearsals, packages and the readers of
/// what hvbak writes need where they can be had; without them their tests are skipped, loudly.
pub fn guests(install: bool) -> Result<()> {
    if install && present("apt-get") {
        check(&[GUESTS, PEERS, DRILLS, PACKAGES, READERS], true)
    } else {
        Ok(())
    }
}

/// Checks the programs; says what to install, and installs it only when asked to.
pub fn check(needs: &[&[Need]], install: bool) -> Result<()> {
    let missing: Vec<&Need> =
        needs.iter().flat_map(|list| list.iter()).filter(|(p, ..)| !present(p)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut debian: Vec<&str> = missing.iter().flat_map(|n| n.1.split(' ')).collect();
    let mut el: Vec<&str> = missing.iter().flat_map(|n| n.2.split(' ')).collect();
    for list in [&mut debian, &mut el] {
        list.sort_unstable();
        list.dedup();
    }
    let names: Vec<&str> = missing.iter().map(|n| n.0).collect();
    if !install {
        eprintln!("missing programs: {}", names.join(", "));
        eprintln!("  Debian, Ubuntu:   apt-get install {}", debian.join(" "));
        eprintln!("  Enterprise Linux: dnf install {}", el.join(" "));
        eprintln!("or repeat with --install");
        std::process::exit(2);
    }
    if present("apt-get") {
        run(Command::new("apt-get").args(["update", "-qq"]))?;
        run(Command::new("apt-get")
            .args(["install", "-y", "-qq", "--no-install-recommends", "--no-remove"])
            .args(&debian))?;
    } else if present("dnf") {
        run(Command::new("dnf").args(["-y", "install"]).args(&el))?;
    } else {
        bail!("neither apt-get nor dnf is on this machine");
    }
    let still: Vec<&str> = names.into_iter().filter(|p| !present(p)).collect();
    if !still.is_empty() {
        bail!("still missing after the installation: {}", still.join(", "));
    }
    Ok(())
}
