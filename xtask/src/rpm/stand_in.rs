//! The package that stands for what Enterprise Linux gives, where there is none.
//!
//! It claims to provide EL8's glibc, systemd and shadow-utils and no newer symbol, so that dnf
//! refuses packages that need more. In an empty root it brings busybox as the shell, and useradd
//! and systemctl as a few lines that note how they were called; on a whole machine it is empty.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::build::run;

/// The newest symbols that EL8's glibc has; the stand-in offers these and no newer ones.
const GLIBC: &[&str] = &[
    "2.2.5", "2.3", "2.3.2", "2.3.3", "2.3.4", "2.4", "2.5", "2.6", "2.7", "2.8", "2.9", "2.10",
    "2.11", "2.12", "2.13", "2.14", "2.15", "2.16", "2.17", "2.18", "2.22", "2.23", "2.24", "2.25",
    "2.26", "2.27", "2.28",
];
pub const LIBRARIES: &[&str] = &[
    "libc.so.6",
    "libm.so.6",
    "libpthread.so.0",
    "libdl.so.2",
    "ld-linux-x86-64.so.2",
    "librt.so.1",
];

/// Builds it below `dir`, for an empty root with the shell that it brings; gives its file.
pub fn build(dir: &Path, busybox: Option<&Path>) -> Result<PathBuf> {
    fs::create_dir_all(dir)?;
    if let Some(busybox) = busybox {
        fs::copy(busybox, dir.join("busybox")).context("copy busybox")?;
    }
    let spec = dir.join("el-stand-in.spec");
    fs::write(&spec, text(dir, busybox.is_some()))?;
    run(Command::new("rpmbuild")
        .args(["-bb", "--quiet", "--define", &format!("_topdir {}", dir.display())])
        .arg(&spec))?;
    Ok(dir.join("RPMS/x86_64/el-stand-in-1-1.x86_64.rpm"))
}

fn text(sources: &Path, programs: bool) -> String {
    let mut provides: Vec<String> = ["shadow-utils", "systemd", "/bin/sh", "rtld(GNU_HASH)"]
        .iter()
        .map(ToString::to_string)
        .collect();
    for library in LIBRARIES {
        provides.push(format!("{library}()(64bit)"));
        provides.extend(GLIBC.iter().map(|version| format!("{library}(GLIBC_{version})(64bit)")));
    }
    let provides = provides.join("\nProvides: ");
    let install = if programs { shell(sources) } else { "%files\n".into() };
    format!(
        "Name: el-stand-in\nVersion: 1\nRelease: 1\nSummary: stands for what EL gives\n\
         License: none\nAutoReqProv: no\nProvides: {provides}\n%description\nx\n{install}"
    )
}

/// What an empty root needs for scriptlets.
fn shell(sources: &Path) -> String {
    let note = "#!/bin/sh\\necho \"${0##*/} $*\" >> /calls\\n";
    let (add_group, add_user) = (
        format!("{note}echo hvbak:x:990: >> /etc/group\\n"),
        format!("{note}echo hvbak:x:990:990::/var/lib/hvbak:/sbin/nologin >> /etc/passwd\\n"),
    );
    let get = "#!/bin/sh\\ngrep -q \"^$2:\" /etc/$1 2>/dev/null\\n";
    format!(
        "%install\n\
         mkdir -p %{{buildroot}}/bin %{{buildroot}}/etc %{{buildroot}}/usr/sbin\n\
         cp {sources}/busybox %{{buildroot}}/bin/busybox\n\
         for name in sh grep cat; do ln -s busybox %{{buildroot}}/bin/$name; done\n\
         printf '{get}' > %{{buildroot}}/bin/getent\nprintf '{add_group}' > %{{buildroot}}/usr/sbin/groupadd\n\
         printf '{add_user}' > %{{buildroot}}/usr/sbin/useradd\nprintf '{note}' > %{{buildroot}}/bin/systemctl\n\
         chmod 755 %{{buildroot}}/bin/* %{{buildroot}}/usr/sbin/*\n\
         echo root:x:0:0::/root:/bin/sh > %{{buildroot}}/etc/passwd\necho root:x:0: > %{{buildroot}}/etc/group\n\
         %files\n/bin/*\n/usr/sbin/*\n%config /etc/*\n",
        sources = sources.display(),
    )
}
