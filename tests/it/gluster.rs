//! A domain on a real GlusterFS volume: replica 3, sharded, the options of oVirt's `virt`
//! group that concern direct I/O, mounted by FUSE where vdsm mounts it.

use hvbak_tests::{Lab, Mount, Peers, Story, peers::open_to_all, small, story::level};

/// A lab whose only domain is the volume.
fn lab(peers: &Peers) -> Lab {
    peers.up("gl", 31);
    peers.run(&["gluster", "gl", "data_vol", "3"]);
    let dir = tempfile::Builder::new().prefix("hvbak-it-").tempdir_in("/tmp").unwrap();
    let at = "lab/hosts/hv1/rhev/data-center/mnt/glusterSD/gluster.lab:_data__vol";
    let mount = Mount::new(&["-t", "glusterfs", "10.77.0.31:/data_vol"], &dir.path().join(at));
    let option = format!("gluster1={}", mount.dir().display());
    let options = ["--hosts", "1", "--domains", "gluster", "--mount", &option];
    let lab = Lab::mounted(dir, &small(), &options, vec![mount]);
    open_to_all(&lab);
    lab.enrol();
    lab
}

#[test]
fn points_and_deltas_over_a_sharded_volume_are_what_the_guest_had() {
    let Some(peers) = Peers::new(&["glusterd", "gluster", "mount.glusterfs"]) else { return };
    let mut story = Story::of(lab(&peers));
    // Shards of 4 MiB: the disks lie in many files of the bricks.
    let shards = peers.ssh("gl", "ls /srv/data_vol/3/.shard | wc -l");
    assert!(shards.trim().parse::<u32>().unwrap() > 2, "{shards}");
    story.backup("auto");
    story.lab.write("web1", "web1_Disk1", (4 << 20) - 4096, 70_000, 0x51);
    story.lab.write("web1", "web1_data", (48 << 20) - 512, 512, 0x52);
    let second = story.backup("auto");
    assert_eq!(level(&second, "web1_Disk1").0, "incremental");
    assert_eq!(level(&second, "web1_data").0, "incremental");
    story.end();
    story.restore_last();
}
