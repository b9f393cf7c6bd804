//! A domain on a file system with sectors of 4 KiB: direct I/O there must be aligned to them.

use std::process::Command;

use hvbak_tests::{Lab, Mount, Story, is_root, peers::open_to_all, run_tool, skip, small};

/// An XFS on a loop device with sectors of 4 KiB, or why there is none.
fn lab() -> Result<Lab, String> {
    if !is_root() {
        return Err("a loop device needs root".into());
    }
    let dir = tempfile::Builder::new().prefix("hvbak-it-").tempdir_in("/tmp").unwrap();
    let file = dir.path().join("lun");
    std::fs::File::create(&file).unwrap().set_len(16 << 30).unwrap();
    let mut losetup = Command::new("losetup");
    losetup.args(["--find", "--show", "--sector-size", "4096"]).arg(&file);
    let made = losetup.output().map_err(|e| format!("losetup: {e}"))?;
    if !made.status.success() {
        return Err(format!("no loop device: {}", String::from_utf8_lossy(&made.stderr).trim()));
    }
    let device = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let mkfs = Command::new("mkfs.xfs").args(["-q", "-s", "size=4096", &device]).status();
    let mount = mkfs.as_ref().is_ok_and(std::process::ExitStatus::success);
    let mount = mount.then(|| Mount::new(&[&device], &dir.path().join("domain")));
    // The kernel lets it go when it is not mounted any more.
    run_tool("losetup", &["--detach", &device]);
    let mount = mount.ok_or_else(|| format!("mkfs.xfs: {mkfs:?}"))?;
    let option = format!("nfs1={}", mount.dir().display());
    let options = ["--hosts", "1", "--domains", "nfs", "--mount", &option];
    let lab = Lab::mounted(dir, &small(), &options, vec![mount]);
    open_to_all(&lab);
    lab.enrol();
    Ok(lab)
}

#[test]
fn sectors_of_4_kib_are_read_and_written() {
    let lab = match lab() {
        Ok(lab) => lab,
        Err(why) => return skip(&why),
    };
    let mut story = Story::of(lab);
    story.backup("auto");
    story.lab.write("web1", "web1_Disk1", (64 << 20) - 4096, 4096, 0x53);
    story.backup("incremental");
    story.end();
    story.restore_last();
}
