//! Block domains in guests with real LVM: chains made by qemu-img on LVs, compared with what
//! qemu-img in the guest reads from them.

use hvbak_types::{DataCenterId, DiskId, DomainId, VolumeId};
use hvbak_wire::{
    Answer, ChainIs, Code, Failed, Format, Layer, LayerAddress, Op, Place, ReadOptions,
    VolumeAddress, Zeros,
};

use crate::support::{Guest, Lab, MIB, Worker, target};

/// Size of a chain's disk: small, because a guest reads 90 MB/s.
const SIZE: u64 = 192 << 20;

/// A domain, made on one guest and connected on others.
struct Domain {
    wwid: String,
    data_center: DataCenterId,
    id: DomainId,
}

impl Domain {
    fn make(lab: &Lab, guest: &Guest<'_>, version: u32) -> Self {
        let (data_center, id) = (DataCenterId::random(), DomainId::random());
        let domain = Self { wwid: lab.wwid(), data_center, id };
        guest.run(&format!("VERSION={version} lab-sd create {id} {}", domain.wwid));
        domain
    }

    fn sd(&self, guest: &Guest<'_>, verb: &str, rest: &str) -> String {
        guest.run(&format!("lab-sd {verb} {} {} {rest}", self.id, self.wwid))
    }

    fn connect(&self, guest: &Guest<'_>) {
        self.sd(guest, "connect", &self.data_center.to_string());
    }

    /// A disk with a chain of volumes, oldest first.
    fn chain(&self, guest: &Guest<'_>, layers: usize, settings: &str) -> (DiskId, Vec<VolumeId>) {
        let image = DiskId::random();
        let volumes: Vec<_> = (0..layers).map(|_| VolumeId::random()).collect();
        let names: Vec<_> = volumes.iter().map(ToString::to_string).collect();
        let (id, wwid) = (self.id, &self.wwid);
        guest.run(&format!(
            "CAP=192M LV_MB=256 WRITE_MB=24 {settings} lab-sd chain {id} {wwid} {image} {}",
            names.join(" ")
        ));
        (image, volumes)
    }

    fn at(&self, image: DiskId, volume: VolumeId) -> VolumeAddress {
        VolumeAddress { data_center: self.data_center, domain: self.id, image, volume }
    }

    fn seqno(&self, guest: &Guest<'_>) -> String {
        self.sd(guest, "lvm", &format!("vgs --noheadings -o vg_seqno {}", self.id))
    }

    /// Volumes that are active on the guest.
    fn active(&self, guest: &Guest<'_>) -> String {
        guest.run(&format!("ls /dev/{} | grep -E '^[0-9a-f]{{8}}-' || true", self.id))
    }

    /// SHA-256 of what the guest's own qemu-img reads through the chain.
    fn judge(&self, guest: &Guest<'_>, volumes: &[VolumeId], format: &str) -> String {
        let names: Vec<_> = volumes.iter().map(|v| format!("{}/{v}", self.id)).collect();
        let leaf = names.last().unwrap();
        self.sd(guest, "lvm", &format!("lvchange -ay {}", names.join(" ")));
        let sum = guest.run(&format!(
            "echo 3 >/proc/sys/vm/drop_caches; qemu-img convert -f {format} -O raw /dev/{leaf} /tmp/flat && sha256sum </tmp/flat; rm -f /tmp/flat"
        ));
        self.sd(guest, "lvm", &format!("lvchange -an {}", names.join(" ")));
        sum.split(' ').next().unwrap().to_owned()
    }
}

fn names(volumes: &[VolumeId]) -> String {
    volumes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn walk(worker: &mut Worker, at: VolumeAddress) -> Result<ChainIs, Failed> {
    worker.ask(Op::Chain { at }).map(|answer| {
        let Answer::Chain(chain) = answer else { panic!("{answer:?}") };
        chain
    })
}

fn open(worker: &mut Worker, at: VolumeAddress, layers: &[Layer]) -> Result<Answer, Failed> {
    let address = |layer: &Layer| LayerAddress {
        place: Place::Volume(VolumeAddress { volume: layer.volume, ..at }),
        format: layer.format,
        capacity: (layer.format == Format::Raw).then_some(layer.capacity),
        identity: Some(layer.identity),
    };
    worker.ask(Op::Open { layers: layers.iter().map(address).collect(), top: None })
}

fn sha256_of_read(worker: &mut Worker, size: u64) -> String {
    let (back, _) = worker.read(0, size, ReadOptions::default()).unwrap();
    sha256(&back.over(Vec::new(), size))
}

fn sha256(data: &[u8]) -> String {
    use std::{io::Write, process::Stdio};
    let mut child = std::process::Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(data).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

/// Reads a whole disk and compares it with the guest's qemu-img; nothing may stay behind.
fn read_and_compare(guest: &Guest<'_>, domain: &Domain, base: &str) {
    read_what_another_made(guest, guest, domain, base);
}

/// The same for a chain that `manager` makes, judges and looks after.
fn read_what_another_made(guest: &Guest<'_>, manager: &Guest<'_>, domain: &Domain, base: &str) {
    let (image, volumes) = domain.chain(manager, 3, &format!("BASE={base}"));
    let expected = domain.judge(manager, &volumes, "qcow2");
    let before = domain.seqno(manager);
    let at = domain.at(image, volumes[2]);
    let mut worker = guest.worker();
    let chain = walk(&mut worker, at).unwrap();
    let walked: Vec<_> = chain.layers.iter().rev().map(|l| l.volume).collect();
    assert_eq!(walked, volumes);
    assert_eq!(chain.layers[2].format == Format::Raw, base == "raw");
    assert!(chain.layers.iter().all(|l| l.lv.is_some() && l.capacity == SIZE));
    assert_eq!(domain.active(guest).lines().count(), 3, "the chain is active");
    let Ok(Answer::Opened(opened)) = open(&mut worker, at, &chain.layers) else { panic!() };
    assert_eq!((opened.virtual_size, opened.direct), (SIZE, true));
    assert_eq!(sha256_of_read(&mut worker, SIZE), expected);
    assert_eq!(walk(&mut worker, at).unwrap(), chain, "the walk after the transfer");
    assert!(matches!(worker.ask(Op::Close), Ok(Answer::Done)));
    assert_eq!(domain.active(guest), "", "nothing stays active");
    assert!(worker.end().success());
    assert_eq!(domain.seqno(manager), before, "the group's metadata was not written");
}

/// A host whose filter hides the domain, as 4.4 makes it; a domain of version 5.
#[test]
fn a_chain_behind_a_filter_is_read() {
    let Some(lab) = Lab::new() else { return };
    let guest = lab.guest("hv1", 11, "filter");
    let domain = Domain::make(&lab, &guest, 5);
    domain.connect(&guest);
    read_and_compare(&guest, &domain, "qcow2");
    read_and_compare(&guest, &domain, "raw");
}

/// A host with a devices file, as 4.5 makes it; a domain of version 4.
#[test]
fn a_chain_outside_of_the_devices_file_is_read() {
    let Some(lab) = Lab::new() else { return };
    let guest = lab.guest("hv1", 11, "devices");
    let domain = Domain::make(&lab, &guest, 4);
    domain.connect(&guest);
    read_and_compare(&guest, &domain, "qcow2");
}

/// A stand-in for the LVM 2.02 of 4.2 and 4.3 hosts, which no Debian has: the real one, which
/// says that it is old and knows no word that is younger.
const OLD_LVM: &str = r#"mv /usr/sbin/lvm /usr/sbin/lvm.real
cat >/usr/sbin/lvm <<'L'
#!/bin/bash
case "$*" in
version) echo '  LVM version:     2.02.187(2)-RHEL7 (2020-03-24)'; exit ;;
*use_devicesfile* | *--devices* | *hints* | *scan_lvs* | *use_lvmpolld*) echo 'not known to 2.02' >&2; exit 3 ;;
*use_lvmetad=0*locking_type=4*) echo "$1" >>/run/lvm.log ;;
*) echo 'may repair the metadata that the manager writes' >&2; exit 5 ;;
esac
exec -a lvm /usr/sbin/lvm.real "$@"
L
chmod 755 /usr/sbin/lvm"#;

/// A host as 4.3 leaves it: no selection of devices, and LVM in its old words, which must
/// keep it from repairing what it meets half-written (bz1553133).
#[test]
fn a_chain_is_read_with_the_words_of_the_old_lvm() {
    let Some(lab) = Lab::new() else { return };
    let guest = lab.guest("hv1", 11, "open");
    let manager = lab.guest("hv2", 12, "filter");
    let domain = Domain::make(&lab, &manager, 4);
    domain.connect(&guest);
    domain.connect(&manager);
    guest.run(OLD_LVM);
    read_what_another_made(&guest, &manager, &domain, "raw");
    let said = guest.run("sort -u /run/lvm.log");
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["lvchange", "lvs", "pvs"]);
}

/// A host without any selection, as 4.3 leaves it; LVs in all states.
#[test]
fn only_what_is_ours_is_deactivated() {
    let Some(lab) = Lab::new() else { return };
    let guest = lab.guest("hv1", 11, "open");
    let domain = Domain::make(&lab, &guest, 5);
    domain.connect(&guest);
    let (image, volumes) = domain.chain(&guest, 3, "");
    let expected = domain.judge(&guest, &volumes, "qcow2");
    let at = domain.at(image, volumes[2]);
    let id = domain.id;

    // Active by somebody else before: stays. Prepared by vdsm meanwhile: stays.
    domain.sd(&guest, "lvm", &format!("lvchange -ay {id}/{}", volumes[0]));
    let mut worker = guest.worker();
    let chain = walk(&mut worker, at).unwrap();
    let link = format!("/run/vdsm/storage/{id}/{image}");
    let prepared = volumes[1];
    guest.run(&format!("mkdir -p {link} && ln -s /dev/{id}/{prepared} {link}/{prepared}"));
    worker.ask(Op::Close).unwrap();
    let mut left = [volumes[0].to_string(), volumes[1].to_string()];
    left.sort();
    assert_eq!(domain.active(&guest), left.join("\n"));
    guest.run("rm -r /run/vdsm/storage/*");

    // Prepared by vdsm, and given back while we had it open: nobody else would deactivate it.
    domain.sd(&guest, "prepare", &format!("{image} {}", names(&volumes)));
    let mut second = guest.worker();
    open(&mut second, at, &chain.layers).unwrap();
    open(&mut worker, at, &chain.layers).unwrap();
    worker.ask(Op::Close).unwrap();
    assert_eq!(domain.active(&guest).lines().count(), 3, "still vdsm's");
    open(&mut worker, at, &chain.layers).unwrap();
    domain.sd(&guest, "teardown", &image.to_string());
    assert_eq!(domain.active(&guest).lines().count(), 3, "open, so LVM refused");
    worker.ask(Op::Close).unwrap();
    assert_eq!(domain.active(&guest).lines().count(), 3, "in use by the second worker");
    second.ask(Op::Close).unwrap();
    assert_eq!(domain.active(&guest), "");
    assert!(second.end().success());

    // Deactivated underneath, as a restart of vdsm does: opened again all the same.
    domain.sd(&guest, "lvm", &format!("lvchange -ay {id}/{}", volumes[0]));
    let all: Vec<_> = volumes.iter().map(|v| format!("{id}/{v}")).collect();
    domain.sd(&guest, "lvm", &format!("lvchange -an {}", all.join(" ")));
    assert!(matches!(open(&mut worker, at, &chain.layers), Ok(Answer::Opened(_))));
    assert_eq!(sha256_of_read(&mut worker, SIZE), expected);

    // A second worker on the same disk: whoever is last deactivates.
    let mut second = guest.worker();
    open(&mut second, at, &chain.layers).unwrap();
    worker.ask(Op::Close).unwrap();
    assert_eq!(domain.active(&guest).lines().count(), 3, "in use by the second worker");
    assert_eq!(sha256_of_read(&mut second, SIZE), expected);
    assert!(second.end().success());
    assert_eq!(domain.active(&guest), "");

    // A worker that is killed leaves its LVs to the next one.
    walk(&mut worker, at).unwrap();
    guest.run("kill -KILL $(pidof hvbak-worker)");
    drop(worker);
    assert_eq!(domain.active(&guest).lines().count(), 3);
    let mut next = guest.worker();
    next.ask(Op::Locate { at }).unwrap();
    assert_eq!(domain.active(&guest), "");

    // What vdsm is making, deleting or merging is refused.
    let leaf = format!("{id}/{}", volumes[2]);
    let refused = |next: &mut Worker| walk(next, at).unwrap_err();
    domain.sd(&guest, "lvm", &format!("lvchange --addtag OVIRT_VOL_INITIALIZING {leaf}"));
    assert_eq!(refused(&mut next).code, Code::Merging);
    let image_tag = format!("--deltag IU_{image} --addtag IU__remove_me_{image}");
    domain.sd(&guest, "lvm", &format!("lvchange --deltag OVIRT_VOL_INITIALIZING {leaf}"));
    domain.sd(&guest, "lvm", &format!("lvchange {image_tag} {leaf}"));
    assert_eq!(refused(&mut next).code, Code::Merging);
    let image_tag = format!("--addtag IU_{image} --deltag IU__remove_me_{image}");
    domain.sd(&guest, "lvm", &format!("lvchange {image_tag} {leaf}"));
    domain.sd(&guest, "meta", &format!("{} LEGALITY=ILLEGAL", volumes[0]));
    assert_eq!(refused(&mut next).code, Code::Merging);
    domain.sd(&guest, "meta", &format!("{} LEGALITY=LEGAL", volumes[0]));
    // The tag of a parent may be old; metadata and header decide.
    domain.sd(
        &guest,
        "lvm",
        &format!("lvchange --deltag PU_{} --addtag PU_{} {leaf}", volumes[1], volumes[0]),
    );
    assert_eq!(walk(&mut next, at).unwrap(), chain);
    domain.sd(&guest, "meta", &format!("{} PUUID={}", volumes[2], volumes[0]));
    assert_eq!(refused(&mut next).code, Code::Merging);
    assert!(next.end().success());
    assert_eq!(domain.active(&guest), "");
}

/// The pool's manager removes an LV under our descriptor, and its extents go to another.
#[test]
fn a_volume_that_another_host_removes_is_noticed() {
    let Some(lab) = Lab::new() else { return };
    let guest = lab.guest("hv1", 11, "filter");
    let manager = lab.guest("hv2", 12, "devices");
    let domain = Domain::make(&lab, &manager, 5);
    let (image, volumes) = domain.chain(&manager, 2, "");
    domain.connect(&guest);
    let at = domain.at(image, volumes[1]);
    let mut worker = guest.worker();
    let chain = walk(&mut worker, at).unwrap();
    open(&mut worker, at, &chain.layers).unwrap();

    let base = volumes[0];
    domain.sd(&manager, "remove", &base.to_string());
    let read = worker.read(0, MIB, ReadOptions::default());
    assert!(read.is_ok(), "the descriptor still reads: nothing but the second walk can tell");
    let failed = walk(&mut worker, at).unwrap_err();
    assert_eq!(failed.code, Code::NotFound, "{failed}");

    // Made anew under the same name, on the same extents.
    domain.sd(&manager, "volume", &format!("{image} {base} - qcow2 {SIZE} {}", 256 * MIB));
    let failed = walk(&mut worker, at).unwrap_err();
    assert_eq!(failed.code, Code::Changed, "{failed}");
    let mut other = guest.worker();
    let failed = open(&mut other, at, &chain.layers).unwrap_err();
    assert_eq!(failed.code, Code::Changed, "{failed}");
}

/// The pool's manager extends an LV that is active here in its old size.
#[test]
fn a_volume_that_another_host_extends_is_looked_at_anew_unless_somebody_uses_it() {
    let Some(lab) = Lab::new() else { return };
    let guest = lab.guest("hv1", 11, "filter");
    let manager = lab.guest("hv2", 12, "devices");
    let domain = Domain::make(&lab, &manager, 5);
    let (image, volumes) = domain.chain(&manager, 2, "");
    let expected = domain.judge(&manager, &volumes, "qcow2");
    domain.connect(&guest);
    let (at, id, base) = (domain.at(image, volumes[1]), domain.id, volumes[0]);
    domain.sd(&guest, "lvm", &format!("lvchange -ay {id}/{base}"));
    let size = |guest: &Guest<'_>| guest.run(&format!("blockdev --getsize64 /dev/{id}/{base}"));
    let old = (256 * MIB).to_string();
    assert_eq!(size(&guest), old);
    domain.sd(&manager, "extend", &format!("{base} {}", 512 * MIB));
    assert_eq!(size(&guest), old, "nobody has told this host");

    // A VM has it open, or vdsm has prepared it for one: vdsm looks at it anew, not we.
    let mut worker = guest.worker();
    guest.run(&format!("sleep 600 </dev/{id}/{base} >/dev/null 2>&1 & echo $! >/run/user.pid"));
    let failed = walk(&mut worker, at).unwrap_err();
    assert!(failed.message.contains("another host has extended it"), "{failed}");
    guest.run("kill $(cat /run/user.pid)");
    let link = format!("/run/vdsm/storage/{id}/{image}");
    guest.run(&format!("mkdir -p {link} && ln -s /dev/{id}/{base} {link}/{base}"));
    let failed = walk(&mut worker, at).unwrap_err();
    assert!(failed.message.contains("another host has extended it"), "{failed}");
    assert_eq!(size(&guest), old);
    guest.run("rm -r /run/vdsm/storage/*");

    // Left behind by nobody in particular.
    let before = domain.seqno(&manager);
    let chain = walk(&mut worker, at).unwrap();
    assert_eq!(size(&guest), (512 * MIB).to_string());
    open(&mut worker, at, &chain.layers).unwrap();
    assert_eq!(sha256_of_read(&mut worker, SIZE), expected);
    assert!(worker.end().success());
    assert_eq!(domain.seqno(&manager), before, "the group's metadata was not written");
}

/// New volumes of a restore, on extents where an older disk has left its bytes.
#[test]
fn new_volumes_are_written() {
    let Some(lab) = Lab::new() else { return };
    let guest = lab.guest("hv1", 11, "filter");
    let domain = Domain::make(&lab, &guest, 5);
    domain.connect(&guest);
    let size = 100 * MIB;
    let clusters: Vec<(u64, Vec<u8>)> =
        [0, 1, 700, 1599].map(|n: u64| (n, vec![(n % 251 + 1) as u8; 65_536])).to_vec();
    let mut content = vec![0; size as usize];
    for (index, data) in &clusters {
        let start = *index as usize * 65_536;
        content[start..start + 65_536].copy_from_slice(data);
    }
    let mut worker = guest.worker();
    for (format, name, lv) in [(Format::Raw, "raw", 128 * MIB), (Format::Cow, "qcow2", 128 * MIB)] {
        // The older disk.
        let old = VolumeId::random();
        domain.sd(&guest, "volume", &format!("{} {old} - raw {lv} {lv}", DiskId::random()));
        domain.sd(&guest, "lvm", &format!("lvchange -ay {}/{old}", domain.id));
        let path = format!("/dev/{}/{old}", domain.id);
        guest.run(&format!("tr '\\0' U </dev/zero | dd of={path} bs=1M count=128 iflag=fullblock oflag=direct status=none"));
        domain.sd(&guest, "lvm", &format!("lvchange -an {}/{old}", domain.id));
        domain.sd(&guest, "remove", &old.to_string());

        let (image, volume) = (DiskId::random(), VolumeId::random());
        domain.sd(&guest, "volume", &format!("{image} {volume} - {name} {size} {lv}"));
        let before = domain.seqno(&guest);
        let at = domain.at(image, volume);
        // Another disk's id, a volume that a VM has prepared: refused, nothing written.
        let wrong = VolumeAddress { image: DiskId::random(), ..at };
        let failed = worker.ask(target(wrong, format, size, Zeros::Zero)).unwrap_err();
        assert_eq!(failed.code, Code::Guard, "{failed}");
        let link = format!("/run/vdsm/storage/{}/{image}", domain.id);
        guest.run(&format!("mkdir -p {link} && ln -s /dev/x {link}/{volume}"));
        let failed = worker.ask(target(at, format, size, Zeros::Zero)).unwrap_err();
        assert_eq!(failed.code, Code::Guard, "{failed}");
        guest.run("rm -r /run/vdsm/storage/*");

        let id = worker.request(target(at, format, size, Zeros::Zero));
        let answer = worker.frame().reply().unwrap();
        assert!(matches!(answer, Ok((_, Answer::Target(_)))), "{answer:?}");
        worker.write(id, &clusters, true);
        let finish = Op::Finish { target: id, clusters: clusters.len() as u64 };
        let Ok(Answer::Written(written)) = worker.ask(finish) else { panic!() };
        assert_eq!(written.file_size, lv);
        worker.ask(Op::Close).unwrap();
        assert_eq!(domain.active(&guest), "");
        assert_eq!(domain.seqno(&guest), before);
        if format == Format::Cow {
            domain.sd(&guest, "lvm", &format!("lvchange -ay {}/{volume}", domain.id));
            guest.run(&format!("qemu-img check -f qcow2 /dev/{}/{volume}", domain.id));
            assert_eq!(domain.judge(&guest, &[volume], name), sha256(&content));
        } else {
            // The tail of the LV as well.
            let mut whole = content.clone();
            whole.resize(lv as usize, 0);
            assert_eq!(domain.judge(&guest, &[volume], name), sha256(&whole));
        }
        // Not empty any more.
        let failed = worker.ask(target(at, format, size, Zeros::Zero)).unwrap_err();
        assert_eq!(failed.code, Code::Guard, "{failed}");
        worker.ask(Op::Close).unwrap();
    }
    assert!(worker.end().success());
}
