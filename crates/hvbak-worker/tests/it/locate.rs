//! Finding volumes and walking chains.

use hvbak_types::{DiskId, VolumeId};
use hvbak_wire::{Answer, ChainIs, Code, Failed, Format, MountKind, Op, VolumeAddress};

use crate::support::{MIB, Tree, Volume, Worker, qemu_img};

fn chain(tree: &Tree, v: &Volume) -> Result<ChainIs, Failed> {
    match Worker::start(tree.dir.path()).ask(Op::Chain { at: tree.at(v) })? {
        Answer::Chain(chain) => Ok(chain),
        other => panic!("{other:?}"),
    }
}

#[test]
fn domains_are_found_by_link_and_by_mount() {
    for (mount, pool_link, kind) in [
        ("srv:_exp_my__data", true, MountKind::Nfs),
        ("srv:_exp_my__data", false, MountKind::Nfs),
        ("glusterSD/gl1:_vol", true, MountKind::Gluster),
        ("glusterSD/gl1:_vol", false, MountKind::Gluster),
        ("_data_images", true, MountKind::Local),
        ("_data_images", false, MountKind::Local),
    ] {
        let tree = Tree::new(mount, pool_link);
        let v = tree.disk(Format::Raw, MIB);
        let mut worker = Worker::start(tree.dir.path());
        let Ok(Answer::Located(l)) = worker.ask(Op::Locate { at: tree.at(&v) }) else { panic!() };
        assert_eq!((l.mount, l.pool_link), (kind, pool_link), "{mount}");
        assert_eq!(
            std::fs::canonicalize(l.path).unwrap(),
            std::fs::canonicalize(tree.path(&v)).unwrap()
        );
        assert_eq!((l.file_size, l.allocated < MIB), (MIB, true));
    }
}

#[test]
fn what_is_not_there_is_named() {
    let tree = Tree::nfs();
    let v = tree.disk(Format::Raw, MIB);
    let at = tree.at(&v);
    let mut worker = Worker::start(tree.dir.path());
    for (at, noun, value) in [
        (
            VolumeAddress { domain: "00000000-0000-4000-8000-00000000dead".parse().unwrap(), ..at },
            "domain",
            "00000000-0000-4000-8000-00000000dead".to_owned(),
        ),
        (VolumeAddress { image: DiskId::random(), ..at }, "volume", v.volume.to_string()),
    ] {
        let failed = worker.ask(Op::Locate { at }).unwrap_err();
        assert_eq!((failed.code, failed.nouns[noun].clone()), (Code::NotFound, value));
    }
    let other = VolumeId::random();
    let failed = worker.ask(Op::Chain { at: VolumeAddress { volume: other, ..at } }).unwrap_err();
    assert_eq!(failed.code, Code::NotFound);
}

#[test]
fn chains_are_walked_newest_first() {
    let tree = Tree::nfs();
    let v0 = tree.disk(Format::Raw, 2 * MIB);
    let v1 = tree.overlay(&v0, 2 * MIB);
    let v2 = tree.overlay(&v1, 3 * MIB);
    let found = chain(&tree, &v2).unwrap();
    let volumes: Vec<_> = found.layers.iter().map(|l| l.volume).collect();
    assert_eq!(volumes, [v2.volume, v1.volume, v0.volume]);
    let [top, middle, base] = &found.layers[..] else { panic!() };
    assert_eq!((top.voltype.as_str(), middle.voltype.as_str()), ("LEAF", "INTERNAL"));
    assert_eq!((top.capacity, top.header_size, top.parent), (3 * MIB, 3 * MIB, Some(v1.volume)));
    assert_eq!((base.format, base.parent, base.backing_name.as_deref()), (Format::Raw, None, None));
    assert_eq!(middle.backing_name, Some(v0.volume.to_string()));
    assert_eq!(top.ctime, Some(1_795_000_000));
    assert_eq!(chain(&tree, &v1).unwrap().layers.len(), 2, "from a snapshot's volume");
}

#[test]
fn old_backing_names_lead_to_the_same_directory() {
    let tree = Tree::nfs();
    let v0 = tree.disk(Format::Cow, MIB);
    let v1 = tree.overlay(&v0, MIB);
    let (path, name) = (tree.path(&v1), format!("../{}/{}", v0.image, v0.volume));
    let rebase = |name: &str| {
        qemu_img(&["rebase", "-u", "-F", "qcow2", "-b", name, path.to_str().unwrap()]);
    };
    rebase(&name);
    assert_eq!(chain(&tree, &v1).unwrap().layers[0].backing_name, Some(name));
    for hostile in ["/etc/passwd", "../../x", "json:{}", "nbd://h/x", "../../../../etc/shadow"] {
        rebase(hostile);
        let failed = chain(&tree, &v1).unwrap_err();
        assert_eq!(failed.code, Code::BackingName, "{hostile}: {failed}");
    }
}

#[test]
fn disagreement_and_illegal_volumes_stop_the_walk() {
    let tree = Tree::nfs();
    let v0 = tree.disk(Format::Cow, MIB);
    let v1 = tree.overlay(&v0, MIB);
    let text = std::fs::read_to_string(tree.meta_path(&v1)).unwrap();
    let puuid = format!("PUUID={}", v0.volume);
    let domain = format!("DOMAIN={}", tree.domain);
    let image = format!("IMAGE={}", v1.image);
    for (from, to, code) in [
        (puuid.as_str(), "PUUID=00000000-0000-0000-0000-000000000000", Code::Merging),
        (puuid.as_str(), "PUUID=00000000-0000-4000-8000-000000000bad", Code::Merging),
        ("LEGALITY=LEGAL", "LEGALITY=ILLEGAL", Code::Merging),
        ("LEGALITY=LEGAL", "LEGALITY=FAKE", Code::Merging),
        ("FORMAT=COW", "FORMAT=RAW", Code::BadChain),
        ("FORMAT=COW", "FORMAT=VMDK", Code::Metadata),
        (domain.as_str(), "DOMAIN=00000000-0000-4000-8000-000000000bad", Code::Metadata),
        (image.as_str(), "IMAGE=00000000-0000-4000-8000-000000000bad", Code::Metadata),
        ("EOF", "", Code::Metadata),
    ] {
        tree.edit_meta(&v1, from, to);
        let failed = chain(&tree, &v1).unwrap_err();
        assert_eq!(failed.code, code, "{to}: {failed}");
        std::fs::write(tree.meta_path(&v1), &text).unwrap();
    }
    chain(&tree, &v1).unwrap();
    // ILLEGAL further down counts as well.
    tree.edit_meta(&v0, "LEGALITY=LEGAL", "LEGALITY=ILLEGAL");
    assert_eq!(chain(&tree, &v1).unwrap_err().code, Code::Merging);
    // A raw disk whose guest wrote a qcow2 header is raw.
    let raw = tree.disk(Format::Raw, MIB);
    std::fs::copy(tree.path(&v1), tree.path(&raw)).unwrap();
    // The file of a raw disk is as long as the disk, whatever is in it.
    assert_eq!(chain(&tree, &raw).unwrap_err().code, Code::Metadata);
    let file = std::fs::OpenOptions::new().write(true).open(tree.path(&raw)).unwrap();
    for (length, good) in [(MIB - 512, false), (MIB, true), (MIB + 4095, true), (2 * MIB, false)] {
        file.set_len(length).unwrap();
        let walked = chain(&tree, &raw).map(|c| c.layers.len()).map_err(|failed| failed.code);
        assert_eq!(walked, if good { Ok(1) } else { Err(Code::Metadata) }, "{length}");
    }
    // Raw by its metadata alone: the layer above knows better.
    tree.edit_meta(&v0, "LEGALITY=ILLEGAL", "LEGALITY=LEGAL");
    tree.edit_meta(&v0, "FORMAT=COW", "FORMAT=RAW");
    assert_eq!(chain(&tree, &v1).unwrap_err().code, Code::Metadata);
    tree.edit_meta(&v0, "FORMAT=RAW", "FORMAT=COW");
    // A loop.
    let nil = VolumeId::nil();
    tree.edit_meta(&v0, &format!("PUUID={nil}"), &format!("PUUID={}", v1.volume));
    let (path, name) = (tree.path(&v0), v1.volume.to_string());
    qemu_img(&["rebase", "-u", "-F", "qcow2", "-b", &name, path.to_str().unwrap()]);
    assert_eq!(chain(&tree, &v1).unwrap_err().code, Code::BadChain);
    // Not an image at all.
    let junk = tree.disk(Format::Cow, MIB);
    std::fs::write(tree.path(&junk), "junk".repeat(50_000)).unwrap();
    assert_eq!(chain(&tree, &junk).unwrap_err().code, Code::Image);
}

#[test]
fn very_deep_chains_are_refused() {
    let tree = Tree::nfs();
    let mut v = tree.disk(Format::Cow, MIB);
    for _ in 0..63 {
        v = tree.overlay(&v, MIB);
    }
    assert_eq!(chain(&tree, &v).unwrap().layers.len(), 64);
    v = tree.overlay(&v, MIB);
    assert_eq!(chain(&tree, &v).unwrap_err().code, Code::BadChain);
}

/// Effective user of a process.
fn user_of(worker: &Worker) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.child.id())).unwrap();
    let line = status.lines().find(|l| l.starts_with("Uid:")).unwrap();
    let ids: Vec<u32> = line.split_whitespace().skip(1).map(|n| n.parse().unwrap()).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "real, effective, saved, fs: {line}");
    ids[0]
}

#[test]
fn root_becomes_vdsm_before_it_looks() {
    let tree = Tree::nfs();
    let v = tree.disk(Format::Raw, MIB);
    let mut worker = Worker::start(tree.dir.path());
    if worker.hello.uid != 0 {
        eprintln!("SKIPPED root_becomes_vdsm_before_it_looks: not run as root");
        return;
    }
    worker.ask(Op::Locate { at: tree.at(&v) }).unwrap();
    assert_eq!(user_of(&worker), 36);
    // The other user's files are closed to it now.
    let path = tree.path(&v);
    std::os::unix::fs::chown(&path, Some(0), Some(0)).unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&path, private).unwrap();
    let failed = worker.ask(Op::Open { layers: vec![tree.layer(&v)], top: None }).unwrap_err();
    assert_eq!(failed.code, Code::Permission);
    // A lab in a directory that user 36 cannot enter.
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(tree.dir.path(), private).unwrap();
    let mut worker = Worker::start(tree.dir.path());
    worker.ask(Op::Locate { at: tree.at(&v) }).unwrap();
    assert_eq!(user_of(&worker), 0);
}
