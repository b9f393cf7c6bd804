//! The storage is laid out as vdsm lays it out: names, metadata, links, modes; qemu-img
//! agrees with what the metadata say.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use common::{Lab, MIB, info};
use serde_json::{Value, json};

/// Keys of V5 metadata, in the order they are written.
const KEYS: &str =
    "CAP CTIME DESCRIPTION DISKTYPE DOMAIN FORMAT GEN IMAGE LEGALITY PUUID SEQ TYPE VOLTYPE EOF";
const BLANK: &str = "00000000-0000-0000-0000-000000000000";

fn meta(volume: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(volume.with_extension("meta")).unwrap();
    let keys: Vec<&str> = text.lines().map(|l| l.split('=').next().unwrap()).collect();
    assert_eq!(keys.join(" "), KEYS, "{}", volume.display());
    let pairs = text.lines().filter_map(|l| l.split_once('='));
    pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// Everything in an image's directory, checked; the volumes with their metadata.
fn image(dir: &Path, leases: bool) -> BTreeMap<String, BTreeMap<String, String>> {
    let names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let mut out = BTreeMap::new();
    for name in names.iter().filter(|n| !n.contains('.')) {
        let path = dir.join(name);
        let found = meta(&path);
        let told = info(&path);
        assert_eq!(told["format"], if found["FORMAT"] == "RAW" { "raw" } else { "qcow2" });
        assert_eq!(told["virtual-size"].to_string(), found["CAP"]);
        let backing = told["backing-filename"].as_str();
        // Bare names: a host finds the parent in the same directory.
        assert_eq!(backing.unwrap_or(BLANK), found["PUUID"]);
        if let Some(parent) = backing {
            let raw = meta(&dir.join(parent))["FORMAT"] == "RAW";
            assert_eq!(told["backing-filename-format"], if raw { "raw" } else { "qcow2" });
            assert_eq!(told["format-specific"]["data"]["compat"], "1.1");
        }
        assert_eq!(names.contains(&format!("{name}.lease")), leases);
        for suffix in if leases { &["", ".meta", ".lease"][..] } else { &["", ".meta"] } {
            let m = fs::metadata(dir.join(format!("{name}{suffix}"))).unwrap();
            assert_eq!(m.permissions().mode() & 0o7777, 0o660, "{name}{suffix}");
            if nix::unistd::geteuid().is_root() {
                assert_eq!((m.uid(), m.gid()), (36, 36), "{name}{suffix}");
            }
        }
        out.insert(name.clone(), found);
    }
    assert_eq!(names.len(), out.len() * if leases { 3 } else { 2 }, "{names:?}");
    out
}

fn folder(lab: &Lab, vm: &str, disk: &str) -> PathBuf {
    let located = lab.locate(vm, disk);
    Path::new(located["paths"][0].as_str().unwrap()).parent().unwrap().to_owned()
}

fn domain<'a>(lab: &'a Lab, name: &str) -> &'a Value {
    lab.about["storage_domains"].as_array().unwrap().iter().find(|d| d["name"] == name).unwrap()
}

#[test]
fn hosts_reach_the_domains_as_vdsm_mounts_them() {
    let lab = Lab::up(Some(json!({})), &["--hosts", "2", "--domains", "nfs,gluster,localfs"]);
    for (name, host, mount) in [
        ("nfs1", "hv1", "nfs.lab:_exports_vm__data"),
        ("nfs1", "hv2", "nfs.lab:_exports_vm__data"),
        ("gluster1", "hv2", "glusterSD/gluster.lab:_data__vol"),
        ("local1", "hvlocal", "_data_images"),
    ] {
        let d = domain(&lab, name);
        let (id, pool) = (d["id"].as_str().unwrap(), d["data_center"].as_str().unwrap());
        let root = Path::new(d["path"].as_str().unwrap()).canonicalize().unwrap();
        let centers = lab.path("hosts").join(host).join("rhev/data-center");
        for way in [centers.join("mnt").join(mount).join(id), centers.join(pool).join(id)] {
            assert_eq!(way.canonicalize().unwrap(), root, "{}", way.display());
        }
        for file in ["metadata", "ids", "leases", "inbox", "outbox", "xleases"] {
            let m = fs::metadata(root.join("dom_md").join(file)).unwrap();
            assert_eq!(m.permissions().mode() & 0o7777, 0o660, "{file}");
        }
        let metadata = fs::read_to_string(root.join("dom_md/metadata")).unwrap();
        assert!(metadata.contains("VERSION=5") && metadata.contains(&format!("SDUUID={id}")));
        assert!(root.join("images").is_dir());
    }
    // A local domain is seen by its own host alone.
    assert!(!lab.path("hosts/hv1/rhev/data-center/mnt/_data_images").exists());
    assert!(!lab.path("hosts/hvlocal/rhev/data-center/mnt/glusterSD").exists());
    // The master domain of a pool has a second link.
    let d = domain(&lab, "nfs1");
    let pool = lab.path("hosts/hv1/rhev/data-center").join(d["data_center"].as_str().unwrap());
    let master = pool.join("mastersd").canonicalize().unwrap();
    assert_eq!(master, Path::new(d["path"].as_str().unwrap()).canonicalize().unwrap());
}

#[test]
fn volumes_have_files_and_metadata_of_their_kind() {
    let disk = |alias: &str, format: &str, domain: &str| json!({ "alias": alias, "size": 16 * MIB, "format": format, "domain": domain });
    let seed = json!({ "vms": [
        { "name": "vm", "disks": [
            disk("sparse", "raw-sparse", "nfs1"),
            disk("full", "raw-preallocated", "gluster1"),
            disk("cow", "cow", "nfs1"),
        ]},
        { "name": "local", "disks": [disk("here", "raw-sparse", "local1")] },
    ]});
    let lab = Lab::up(Some(seed), &["--hosts", "2", "--domains", "nfs,gluster,localfs"]);
    for (vm, alias, format, kind) in [
        ("vm", "sparse", "RAW", "SPARSE"),
        ("vm", "full", "RAW", "PREALLOCATED"),
        ("vm", "cow", "COW", "SPARSE"),
        ("local", "here", "RAW", "SPARSE"),
    ] {
        let dir = folder(&lab, vm, alias);
        let volumes = image(&dir, vm != "local");
        assert_eq!(volumes.len(), 1);
        let (volume, m) = volumes.first_key_value().unwrap();
        let shown = [&m["FORMAT"], &m["TYPE"], &m["VOLTYPE"], &m["LEGALITY"], &m["DISKTYPE"]];
        assert_eq!(shown, [format, kind, "LEAF", "LEGAL", "DATA"], "{alias}");
        assert_eq!(m["IMAGE"], dir.file_name().unwrap().to_string_lossy());
        assert_eq!(m["PUUID"], BLANK);
        assert!(m["DESCRIPTION"].contains(&format!("\"DiskAlias\":\"{alias}\"")));
        let blocks = fs::metadata(dir.join(volume)).unwrap().blocks() * 512;
        assert_eq!(blocks >= 16 * MIB, alias == "full", "{alias} takes {blocks}");
    }
}

#[test]
fn snapshots_and_merges_keep_the_books() {
    let lab = Lab::up(Some(common::one_vm(false, "raw-sparse", 16 * MIB, "nfs1")), &[]);
    let dir = folder(&lab, "vm", "disk");
    let base = lab.locate("vm", "disk")["volume"].as_str().unwrap().to_owned();
    let first = lab.snapshot("vm", "first");
    let middle = lab.locate("vm", "disk")["volume"].as_str().unwrap().to_owned();
    let second = lab.snapshot("vm", "second");
    let top = lab.locate("vm", "disk")["volume"].as_str().unwrap().to_owned();
    let books = |volumes: &BTreeMap<String, BTreeMap<String, String>>| -> Vec<[String; 5]> {
        [&base, &middle, &top]
            .into_iter()
            .filter_map(|v| volumes.get(v))
            .map(|m| ["VOLTYPE", "PUUID", "SEQ", "GEN", "FORMAT"].map(|k| m[k].clone()))
            .collect()
    };
    let row = |voltype: &str, parent: &str, seq: &str, generation: &str, format: &str| {
        [voltype, parent, seq, generation, format].map(str::to_owned)
    };
    assert_eq!(
        books(&image(&dir, true)),
        [
            row("INTERNAL", BLANK, "1", "0", "RAW"),
            row("INTERNAL", &base, "2", "0", "COW"),
            row("LEAF", &middle, "3", "0", "COW"),
        ]
    );
    lab.delete_snapshot("vm", &first);
    // The middle was committed into the base, and the second snapshot has the base now.
    assert_eq!(
        books(&image(&dir, true)),
        [row("INTERNAL", BLANK, "1", "1", "RAW"), row("LEAF", &base, "3", "0", "COW")]
    );
    let disk = lab.vm("vm")["disks"][0].as_str().unwrap().to_owned();
    assert_eq!(lab.owned("vm", &second, &disk), base);
    lab.delete_snapshot("vm", &second);
    assert_eq!(books(&image(&dir, true)), [row("LEAF", BLANK, "1", "2", "RAW")]);
}

#[test]
fn a_thin_vm_hard_links_its_template() {
    let seed = json!({
        "templates": [{ "name": "base", "disks": [{ "alias": "base_Disk1", "size": 16 * MIB, "format": "cow" }] }],
        "vms": [{ "name": "thin", "template": "base" }],
    });
    let lab = Lab::up(Some(seed), &[]);
    let dir = folder(&lab, "thin", "thin_Disk1");
    let chain = lab.locate("thin", "thin_Disk1")["chain"].clone();
    let (top, base) = (chain[0].as_str().unwrap(), chain[1].as_str().unwrap());
    let volumes = image(&dir, true);
    assert_eq!(volumes.len(), 2);
    assert_eq!(volumes[top]["PUUID"], base);
    assert_eq!(volumes[base]["VOLTYPE"], "SHARED");
    // The template's metadata name the template's image, not this directory.
    let template = dir.parent().unwrap().join(&volumes[base]["IMAGE"]);
    assert_ne!(template, dir);
    for suffix in ["", ".meta", ".lease"] {
        let name = format!("{base}{suffix}");
        let one = fs::metadata(dir.join(&name)).unwrap();
        let two = fs::metadata(template.join(&name)).unwrap();
        assert_eq!((one.ino(), one.nlink()), (two.ino(), 2), "{name}");
    }
    // Snapshots above it leave the shared volume alone.
    let first = lab.snapshot("thin", "first");
    assert_eq!(image(&dir, true)[base]["VOLTYPE"], "SHARED");
    lab.delete_snapshot("thin", &first);
    assert_eq!(image(&dir, true).len(), 2);
    assert_eq!(fs::metadata(dir.join(base)).unwrap().nlink(), 2);
}
