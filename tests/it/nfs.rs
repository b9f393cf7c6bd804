//! A domain on a real NFS export that squashes root, mounted by a guest with a kernel of its
//! own: only user 36 may touch the files, so the worker must be it.

use std::os::unix::fs::{PermissionsExt, chown};

use hvbak_tests::{Lab, Peers, Story, small, story::level};

/// The engine's storage is the server's folder; the host `hv` sees it over NFS alone.
pub fn site() -> Option<(Peers, Lab)> {
    let peers = Peers::new(&["ganesha.nfsd", "linux.uml", "busybox", "socat", "lvm", "udevadm"])?;
    peers.up("srv", 31);
    peers.run(&["nfs", "srv", "/exports/vm_data"]);
    let option = format!("nfs1={}/srv", peers.tree("srv").display());
    let lab = Lab::bare(&small(), &["--hosts", "1", "--domains", "nfs", "--mount", &option]);
    peers.guest("hv", 22);
    let domain = &lab.up["storage_domains"][0];
    let of = |key: &str| domain[key].as_str().unwrap().to_owned();
    let (id, pool, at) = (of("id"), of("data_center"), "nfs.lab:_exports_vm__data");
    // As vdsm mounts it; without mount.nfs in the guest the address is given by hand.
    peers.in_guest(
        "hv",
        &format!(
            "set -e; cd /rhev/data-center; mkdir -p mnt/{at} {pool}; modprobe nfs; \
             mount -i -t nfs -o vers=4.2,addr=10.77.0.31,soft,nosharecache,timeo=100,retrans=3 \
             10.77.0.31:/exports/vm_data mnt/{at}; ln -s ../mnt/{at}/{id} {pool}/{id}"
        ),
    );
    peers.enrol_guest("hv", &lab);
    Some((peers, lab))
}

#[test]
fn an_export_that_squashes_root_is_read_and_written_as_user_36() {
    let Some((peers, lab)) = site() else { return };
    // The judge: root itself is refused there.
    let look = "cd /rhev/data-center/mnt/nfs*/*/images && \
                head -c 1 $(ls -d */*-* | grep -v -e meta -e lease | head -n 1) 2>&1; true";
    let said = peers.in_guest("hv", look);
    assert!(said.contains("Permission denied"), "{said}");
    let mut story = Story::of(lab);
    story.backup("auto");
    story.lab.write("web1", "web1_Disk1", 3 << 20, 70_000, 0x54);
    let second = story.backup("auto");
    assert_eq!(level(&second, "web1_Disk1").0, "incremental");
    story.end();
    story.restore_last();
    let left = peers.in_guest("hv", "pgrep -a hvbak; ls /run | grep hvbak; true");
    assert_eq!(left.trim(), "", "left on the host");
}

#[test]
fn an_export_that_refuses_user_36_as_well_is_told_with_the_remedy() {
    let Some((_peers, lab)) = site() else { return };
    let bottom = lab.volumes("db1", "db1_Disk1").pop().unwrap();
    chown(&bottom, Some(0), Some(0)).unwrap();
    std::fs::set_permissions(&bottom, std::fs::Permissions::from_mode(0o600)).unwrap();
    let run = lab.hvbak(&["backup", "--vm", "db1"]).exits(1);
    run.says("db1").says("hv1").says("uid 36").says("ownership");
    lab.assert_clean();
    chown(&bottom, Some(36), Some(36)).unwrap();
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
}
