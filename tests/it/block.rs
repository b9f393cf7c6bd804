//! Block domains, end to end: two hypervisors with real LVM on one LUN, VMs that are down.

use hvbak_tests::{Lab, is_root, skip};
use serde_json::json;

/// A lab of guests; `None`, told loudly, where none can be run.
fn lab() -> Option<Lab> {
    let have = ["/usr/bin/linux.uml", "/usr/bin/socat", "/usr/sbin/lvm", "/usr/bin/busybox"];
    if !is_root() || have.iter().any(|program| !std::path::Path::new(program).exists()) {
        skip("block domains need root, user-mode-linux, socat, lvm2 and busybox-static");
        return None;
    }
    // Whole extents: a raw volume of a block domain is as large as its LV.
    let seed = json!({ "vms": [{ "name": "db1", "nics": 1, "disks": [
        { "alias": "db1_Disk1", "size": 128 << 20, "format": "raw-preallocated" },
        { "alias": "db1_data", "size": 192 << 20, "format": "cow" },
    ]}]});
    let lab = Lab::bare(&seed, &["--hosts", "2", "--domains", "block"]);
    lab.enrol();
    Some(lab)
}

#[test]
fn disks_on_lvs_come_back_byte_for_byte() {
    let Some(lab) = lab() else { return };
    lab.write("db1", "db1_Disk1", 1 << 20, 5 << 20, 0xab);
    lab.write_noise("db1", "db1_Disk1", (127 << 20) + 512, 1 << 19);
    lab.write_noise("db1", "db1_data", 66_048, 4 << 20);
    lab.hvbak(&["backup", "--vm", "db1"]).exits(0);
    // An increment: the snapshot that the first left is the lower half of the chain.
    lab.write("db1", "db1_data", 100 << 20, 3 << 20, 7);
    lab.write("db1", "db1_Disk1", 2 << 20, 1 << 20, 0);
    lab.hvbak(&["backup", "--vm", "db1", "--level", "incremental"]).exits(0);
    let (one, two) = (lab.save("db1", "db1_Disk1"), lab.save("db1", "db1_data"));
    lab.write("db1", "db1_Disk1", 0, 1 << 20, 0xff);
    lab.hvbak(&["verify", "--all"]).exits(0);
    lab.hvbak(&["restore", "db1", "--name", "back"]).exits(0);
    lab.same("back", "db1_Disk1", &one);
    lab.same("back", "db1_data", &two);
    for host in ["hv1", "hv2"] {
        assert_eq!(lab.active_volumes(host), "", "LVs are left active on {host}");
    }
    lab.assert_clean_but(&["back"]);
}
