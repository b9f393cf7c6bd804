//! Disks and points that are cut, killed, tampered with, and gone on with: the outcome is
//! that of a run that was never cut.

use std::{os::unix::process::ExitStatusExt, process::Command};

use hvbak_types::PointId;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{
    Point, Repository, Staging, VmLock,
    error::Error,
    testing::{Guest, Lab, disk_entry, put, qemu_check, qemu_compare},
};

const CLUSTER: usize = CLUSTER_SIZE as usize;
/// Clusters that a stream sends in one frame.
const FRAME: u64 = 4;

fn disk(n: u8) -> DiskId {
    format!("00000000-0000-4000-8000-0000000000{n:02x}").parse().unwrap()
}

/// What is sent of an open range by streams that take turns, frame by frame.
fn frames(open: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut streams = [Vec::new(), Vec::new(), Vec::new()];
    let pieces = open.iter().flat_map(|&(start, count)| {
        let end = start + count;
        (start..end).step_by(5 * FRAME as usize).map(move |at| (at, end.min(at + 5 * FRAME)))
    });
    for (n, (start, end)) in pieces.enumerate() {
        let cut = (start..end).step_by(FRAME as usize);
        streams[n % 3].extend(cut.map(|at| (at, FRAME.min(end - at))));
    }
    let turns = streams.iter().map(Vec::len).max().unwrap_or(0);
    (0..turns).flat_map(|i| streams.iter().filter_map(move |s| s.get(i))).copied().collect()
}

/// Puts a frame as it would come; gives the data clusters sent.
fn send(writer: &mut DiskWriter, now: &Guest, base: Option<&Guest>, frame: (u64, u64)) -> u64 {
    let mut sent = 0;
    for cluster in frame.0..frame.0 + frame.1 {
        let bytes = now.cluster(cluster as usize);
        let before = match base {
            Some(base) if (cluster as usize) < base.clusters() => base.cluster(cluster as usize),
            _ => vec![0; CLUSTER],
        };
        if bytes != before {
            put(writer, cluster, &bytes);
            sent += u64::from(bytes.iter().any(|b| *b != 0));
        }
    }
    writer.told(frame.0, frame.1).unwrap();
    sent
}

fn options(now: &Guest, base: Option<&Point>) -> DiskOptions {
    let options = match base {
        None => DiskOptions::full(now.size()),
        Some(point) => DiskOptions::delta(now.size(), point.id().clone()),
    };
    options.resumable(json!({ "layers": 1 }))
}

/// Goes on with what is there, or begins.
fn staging(repository: &Repository, lock: &VmLock, point: &PointId) -> Staging {
    match repository.resume(lock, point) {
        Ok(staging) => staging,
        Err(Error::Damaged { .. }) => {
            repository.sweep_partials(lock, None).unwrap();
            let staging = repository.stage(lock, point).unwrap();
            staging.put_document("vm.ovf", b"<ovf/>").unwrap();
            staging.make_resumable(json!({ "snapshot": 7 })).unwrap();
            staging
        }
        Err(other) => panic!("{other}"),
    }
}

/// The whole of a backup of two disks, going on where an earlier one stopped; gives the data
/// clusters that were sent.
fn backup(
    lab: &Lab,
    id: &PointId,
    disks: &[(DiskId, Guest)],
    base: Option<(&Point, &Guest)>,
) -> (Point, u64) {
    let lock = lab.lock();
    let staging = staging(&lab.repository, &lock, id);
    let mut manifest = lab.manifest(id);
    let mut sent = 0;
    for (disk, now) in disks {
        let record = match staging.finished_disk(*disk) {
            Some(record) => record,
            None => {
                let options = options(now, base.map(|b| b.0));
                let (mut writer, salvage) =
                    staging.continue_disk(*disk, options, &|| true).unwrap();
                for frame in frames(&salvage.open) {
                    sent += send(&mut writer, now, base.map(|b| b.1), frame);
                }
                writer.finish().unwrap()
            }
        };
        manifest.parent = manifest.parent.max(record.parent.clone());
        manifest.disks.push(disk_entry(record));
    }
    (staging.publish(manifest).unwrap(), sent)
}

/// Nothing but what a point is made of.
fn assert_stripped(point: &Point) {
    for entry in std::fs::read_dir(&point.path).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(!name.starts_with('.') && !name.ends_with(".tmp"), "{name}");
    }
}

fn check(lab: &Lab, point: &Point, disks: &[(DiskId, Guest)], qemu: bool) {
    assert_stripped(point);
    for (disk, guest) in disks {
        let out = lab.file("out.raw");
        let _ = std::fs::remove_file(&out);
        let options = crate::ExportOptions::new(crate::ExportFormat::Raw);
        lab.repository.export(point, *disk, &options, &out, &|_, _| true).unwrap();
        assert!(std::fs::read(&out).unwrap() == guest.0, "disk {disk} differs");
        if qemu {
            qemu_compare(lab, guest, "qcow2", &point.path.join(format!("{disk}.qcow2")));
        }
    }
    if qemu {
        qemu_check(point);
    }
}

/// What a power cut may leave: of the images only what was synced before the logs named it.
fn lose_power(lab: &Lab, id: &PointId, disks: &[(DiskId, Guest)]) {
    let dir = lab.repository.layout.partial(lab.vm, id);
    for (disk, _) in disks {
        let (image, log) = (dir.join(image_name(*disk)), dir.join(progress_name(*disk)));
        let (Ok(old), Some(mut replay)) = (std::fs::read(&image), Replay::open(&log).unwrap())
        else {
            continue;
        };
        let mut new = vec![0xaa; old.len() + 100_000];
        while let Some(records) = replay.next().unwrap() {
            for record in records {
                if let Record::Data { offset, length, .. } = record {
                    // Records of payloads that an earlier harm has cut off.
                    let range = offset as usize..offset as usize + length as usize;
                    if let Some(bytes) = old.get(range.clone()) {
                        new[range].copy_from_slice(bytes);
                    }
                }
            }
        }
        std::fs::write(&image, new).unwrap();
        let mut log = std::fs::OpenOptions::new().append(true).open(&log).unwrap();
        std::io::Write::write_all(&mut log, &[2, 0, 0, 0, 56, 0, 0, 0, 1, 2, 3]).unwrap();
    }
}

fn guests() -> Vec<(DiskId, Guest)> {
    let first = Guest::blank(90 * CLUSTER - 512).fill(1, (0..60).chain(80..90));
    vec![(disk(1), first), (disk(2), Guest::blank(30 * CLUSTER).fill(2, 5..25))]
}

fn point(text: &str) -> PointId {
    text.parse().unwrap()
}

const FIRST: &str = "20260101T000000Z";
const SECOND: &str = "20260102T000000Z";

/// The process that is stopped; does nothing when it is run as a test.
#[test]
fn back_up_until_stopped() {
    let Ok(root) = std::env::var("HVBAK_TEST_RESUME_ROOT") else { return };
    let mut lab = Lab::of(&root);
    lab.vm = std::env::var("HVBAK_TEST_RESUME_VM").unwrap().parse().unwrap();
    backup(&lab, &point(FIRST), &guests(), None);
}

#[test]
fn stopped_at_any_durable_step_the_next_run_makes_the_same_point() {
    let disks = guests();
    let whole = 90;
    let mut spared = 0;
    for step in 1.. {
        let lab = Lab::new();
        let out = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "salvage::tests::back_up_until_stopped", "--nocapture"])
            .env("HVBAK_TEST_RESUME_ROOT", lab.repository.path())
            .env("HVBAK_TEST_RESUME_VM", lab.vm.to_string())
            .env("TMPDIR", lab.dir.path())
            .env("HVBAK_TEST_CRASH", step.to_string())
            .output()
            .unwrap();
        if out.status.success() {
            assert!(step > 30, "{step} steps are too few to have been counted");
            break;
        }
        assert_eq!(out.status.signal(), Some(6), "{out:?}");
        let made = lab.repository.points(lab.vm).unwrap().points.pop();
        let made = match made {
            Some(made) => made,
            None => {
                lose_power(&lab, &point(FIRST), &disks);
                let (made, sent) = backup(&lab, &point(FIRST), &disks, None);
                spared = spared.max(whole - sent);
                made
            }
        };
        check(&lab, &made, &disks, step % 4 == 0);
    }
    // Stopped between its last byte and its publication.
    assert_eq!(spared, whole);
}

#[test]
fn what_was_tampered_with_is_read_again_and_nothing_else() {
    let disks = &guests()[..1];
    let (id, now) = (point(FIRST), &disks[0].1);
    let lab = Lab::new();
    {
        let lock = lab.lock();
        let staging = staging(&lab.repository, &lock, &id);
        let (mut writer, salvage) =
            staging.continue_disk(disk(1), options(now, None), &|| true).unwrap();
        for frame in &frames(&salvage.open)[..16] {
            send(&mut writer, now, None, *frame);
        }
        writer.suspend().unwrap();
    }
    assert_eq!(
        lab.repository.resumables(lab.vm).unwrap()[0].data_bytes,
        64 * CLUSTER_SIZE - 4 * CLUSTER_SIZE
    );
    // One packed and one plain cluster.
    let dir = lab.repository.layout.partial(lab.vm, &id);
    let image = dir.join(image_name(disk(1)));
    let mut bytes = std::fs::read(&image).unwrap();
    let mut replay = Replay::open(&dir.join(progress_name(disk(1)))).unwrap().unwrap();
    let mut hit = Vec::new();
    while let Some(records) = replay.next().unwrap() {
        for record in records {
            let Record::Data { cluster, offset, length, .. } = record else { continue };
            if [6, 7].contains(&cluster) {
                bytes[(offset + u64::from(length) / 2) as usize] ^= 1;
                hit.push(cluster);
            }
        }
    }
    assert_eq!(hit.len(), 2);
    std::fs::write(&image, bytes).unwrap();
    {
        let lock = lab.lock();
        let staging = lab.repository.resume(&lock, &id).unwrap();
        let (_, salvage) = staging.continue_disk(disk(1), options(now, None), &|| true).unwrap();
        assert_eq!(salvage.dropped, 2);
        assert!(salvage.open.contains(&(6, 2)), "{salvage:?}");
    }
    let (made, sent) = backup(&lab, &id, disks, None);
    assert_eq!(sent, 70 - 60 + 2);
    check(&lab, &made, disks, true);
}

#[test]
fn documents_and_finished_disks_that_changed_are_noticed() {
    let disks = guests();
    let (id, lab) = (point(FIRST), Lab::new());
    let lock = lab.lock();
    {
        let staging = staging(&lab.repository, &lock, &id);
        let (mut writer, salvage) =
            staging.continue_disk(disk(2), options(&disks[1].1, None), &|| true).unwrap();
        for frame in frames(&salvage.open) {
            send(&mut writer, &disks[1].1, None, frame);
        }
        writer.finish().unwrap();
    }
    let dir = lab.repository.layout.partial(lab.vm, &id);
    let source = Some(json!({ "layers": 1 }));
    let staging = lab.repository.resume(&lock, &id).unwrap();
    assert_eq!(staging.disk_source(disk(2)).unwrap(), source);
    assert_eq!(staging.finished_disk(disk(2)).unwrap().data_clusters, 20);
    let digests = dir.join(digests_name(disk(2)));
    let mut bytes = std::fs::read(&digests).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&digests, bytes).unwrap();
    let staging = lab.repository.resume(&lock, &id).unwrap();
    assert!(staging.finished_disk(disk(2)).is_none());
    assert_eq!(staging.disk_source(disk(2)).unwrap(), None);
    std::fs::write(dir.join("vm.ovf"), b"<another/>").unwrap();
    assert!(matches!(lab.repository.resume(&lock, &id), Err(Error::Damaged { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// A delta cut again and again, with and without time to say goodbye, the files cut off or
    /// overwritten in between, is the delta that was never cut.
    #[test]
    fn a_disk_cut_many_times_is_the_disk(
        seed in 0u64..1000,
        clusters in 20usize..120,
        changed in prop::collection::btree_set(0usize..120, 0..100),
        zeroed in prop::collection::btree_set(0usize..120, 0..40),
        cuts in prop::collection::vec((0usize..20, any::<bool>(), 0u8..5, any::<u16>()), 0..4),
    ) {
        let lab = Lab::new();
        let before = Guest::blank(clusters * CLUSTER).fill(seed, 0..clusters * 2 / 3);
        let base = lab.point(FIRST, &[(disk(1), None, &before)]);
        let within = |set: &std::collections::BTreeSet<usize>| {
            set.iter().copied().filter(|c| *c < clusters).collect::<Vec<_>>()
        };
        let now = before.clone().fill(seed + 1, within(&changed)).zero(within(&zeroed));
        let id = point(SECOND);
        for (count, polite, harm, place) in cuts {
            let lock = lab.lock();
            let staging = staging(&lab.repository, &lock, &id);
            let (mut writer, salvage) =
                staging.continue_disk(disk(1), options(&now, Some(&base)), &|| true).unwrap();
            for frame in frames(&salvage.open).iter().take(count) {
                send(&mut writer, &now, Some(&before), *frame);
            }
            if polite {
                writer.suspend().unwrap();
            } else {
                drop(writer);
                lose_power(&lab, &id, &[(disk(1), now.clone())]);
            }
            let dir = lab.repository.layout.partial(lab.vm, &id);
            let name = if harm % 2 == 0 { image_name(disk(1)) } else { progress_name(disk(1)) };
            let mut bytes = std::fs::read(dir.join(&name)).unwrap();
            let at = usize::from(place) * bytes.len() / 65_536;
            match harm {
                0 | 1 => bytes.truncate(at),
                2 | 3 if at < bytes.len() => bytes[at] ^= 0x10,
                _ => {}
            }
            std::fs::write(dir.join(&name), bytes).unwrap();
        }
        let disks = [(disk(1), now)];
        let (made, _) = backup(&lab, &id, &disks, Some((&base, &before)));
        check(&lab, &made, &disks, seed % 8 == 0);
        let report = lab.repository.verify(&made, &crate::VerifyOptions::default(), &|_| true).unwrap();
        prop_assert!(report.findings.is_empty(), "{:?}", report.findings);
    }
}

#[test]
fn ranges_join_and_part() {
    let mut ranges = Ranges::default();
    for (start, count) in [(10, 5), (20, 5), (15, 5), (3, 2), (0, 0), (4, 3)] {
        ranges.add(start, count);
    }
    assert_eq!(ranges.gaps(30), [(0, 3), (7, 3), (25, 5)]);
    assert_eq!(ranges.gaps(12), [(0, 3), (7, 3)]);
    ranges.remove(10);
    ranges.remove(24);
    ranges.remove(17);
    ranges.remove(100);
    assert_eq!(ranges.gaps(25), [(0, 3), (7, 4), (17, 1), (24, 1)]);
}
