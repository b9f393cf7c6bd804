//! Points against a model in memory: after every expiry, and after one that was stopped at
//! any of its steps, every listed point reads as the guest was, and `qemu-img` agrees.

use std::{collections::BTreeMap, os::unix::process::ExitStatusExt, process::Command};

use hvbak_types::{DiskId, JobId, PointId, VmId};
use proptest::prelude::*;

use crate::{
    DiskReader, Error, ExportFormat, ExportOptions, Level, Point, Repository,
    durable::trace,
    testing::{Guest, Lab, qemu_check, qemu_compare},
};

const CLUSTER: usize = 1 << 16;

/// What each point must read as.
#[derive(Default)]
struct Model {
    points: BTreeMap<PointId, BTreeMap<DiskId, Guest>>,
}

/// A VM with its history.
struct History {
    lab: Lab,
    model: Model,
}

fn id(number: usize) -> PointId {
    format!("20261101T{:02}{:02}00Z", number / 60, number % 60).parse().unwrap()
}

/// A repository in memory where there is such a file system: processes die here, power does
/// not fail, and thousands of fsyncs need not wait for a disk.
fn lab() -> Lab {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let repository = Repository::init(dir.path().join("repo")).unwrap();
    Lab { dir, repository, vm: VmId::random(), job: JobId::random() }
}

fn bytes(reader: &DiskReader) -> Vec<u8> {
    let mut out = vec![0; reader.clusters() as usize * CLUSTER];
    let mut buffers = crate::Buffers::default();
    for run in reader.stored() {
        let run = run.unwrap();
        for cluster in run.clusters() {
            let content = reader.read_proven(&run, cluster, &mut buffers).unwrap();
            if let Some(plain) = buffers.guest(content) {
                out[cluster as usize * CLUSTER..][..CLUSTER].copy_from_slice(plain);
            }
        }
    }
    out.truncate(reader.virtual_size() as usize);
    out
}

impl History {
    fn new() -> Self {
        Self { lab: lab(), model: Model::default() }
    }

    /// Makes a point of disks with the point that each is a delta to.
    fn add(&mut self, number: usize, disks: &[(DiskId, Option<PointId>, Guest)]) {
        let parents: Vec<Option<Point>> = disks
            .iter()
            .map(|(_, p, _)| p.as_ref().map(|p| self.lab.repository.point(self.lab.vm, p).unwrap()))
            .collect();
        let entries: Vec<_> = disks
            .iter()
            .zip(&parents)
            .map(|((disk, _, now), parent)| {
                let base = parent.as_ref().map(|p| (p, &self.model.points[p.id()][disk]));
                (*disk, base, now)
            })
            .collect();
        self.lab.point(id(number).as_str(), &entries);
        let disks = disks.iter().map(|(disk, _, guest)| (*disk, guest.clone())).collect();
        self.model.points.insert(id(number), disks);
    }

    fn expire(&self, expired: &[PointId]) -> crate::Result<crate::ExpirySummary> {
        let lock = self.lab.lock();
        self.lab.repository.finish_expiry(&lock)?;
        let plan = self.lab.repository.plan_expiry(self.lab.vm, expired, &[])?;
        self.lab.repository.expire(&lock, &plan, 0, &|_, _| true)
    }

    /// All listed points read as the model says; `verify` and `qemu-img` find them whole.
    fn check(&self, strict: bool) -> Vec<Point> {
        self.check_with(strict, strict)
    }

    fn check_with(&self, verify: bool, qemu: bool) -> Vec<Point> {
        let listing = self.lab.repository.points(self.lab.vm).unwrap();
        assert!(listing.damaged.is_empty(), "{listing:?}");
        for point in &listing.points {
            for (disk, guest) in &self.model.points[point.id()] {
                let reader = self.lab.repository.disk_reader(point, *disk).unwrap();
                assert!(bytes(&reader) == guest.0, "{disk} of {}", point.id());
                if qemu {
                    let file = point.path.join(format!("{disk}.qcow2"));
                    qemu_compare(&self.lab, guest, "qcow2", &file);
                }
            }
            if verify {
                let report =
                    self.lab.repository.verify(point, &Default::default(), &|_| true).unwrap();
                assert!(report.is_clean() && report.notes.is_empty(), "{report:?}");
            }
            if qemu {
                qemu_check(point);
            }
        }
        listing.points
    }

    /// Five points: one disk in all of them, one that appears, is left out once and
    /// disappears, one that is read in full each time.
    fn usual() -> Self {
        let mut this = Self::new();
        this.fill();
        this
    }

    fn fill(&mut self) {
        let [a, b, c] = [DiskId::random(), DiskId::random(), DiskId::random()];
        let a0 = Guest::blank(9 * CLUSTER + 512).fill(1, [0, 1, 2, 5, 9]);
        let b0 = Guest::blank(4 * CLUSTER).fill(2, [0, 3]);
        let c0 = Guest::blank(2 * CLUSTER).fill(3, [1]);
        self.add(0, &[(a, None, a0.clone()), (b, None, b0.clone()), (c, None, c0.clone())]);
        let a1 = a0.fill(4, [2, 3]).zero([5]);
        let b1 = b0.zero([3]).fill(5, [1]);
        self.add(1, &[(a, Some(id(0)), a1.clone()), (b, Some(id(0)), b1.clone())]);
        let mut a2 = a1.fill(6, [5, 9]).zero([0]);
        a2.0.resize(14 * CLUSTER + 1024, 0);
        let a2 = a2.fill(7, [12, 14]);
        self.add(2, &[(a, Some(id(1)), a2.clone()), (c, None, c0.fill(8, [0]))]);
        let a3 = a2.fill(9, [1]).zero([12]);
        let b3 = b1.fill(10, [2]);
        self.add(3, &[(a, Some(id(2)), a3.clone()), (b, Some(id(1)), b3)]);
        self.add(4, &[(a, Some(id(3)), a3.fill(11, [4, 5]))]);
    }
}

fn ids(points: &[Point]) -> Vec<PointId> {
    points.iter().map(|p| p.id().clone()).collect()
}

#[test]
fn what_expires_is_merged_into_what_stands_on_it() {
    let history = History::usual();
    let before = history.check(true);
    let summary = history.expire(&[id(0), id(2)]).unwrap();
    // Each as soon as nothing stands on it any more.
    assert_eq!(summary.removed, [id(0), id(2)]);
    assert_eq!(summary.merged, [id(1), id(3)]);
    let after = history.check(true);
    assert_eq!(ids(&after), [id(1), id(3), id(4)]);
    let manifests: Vec<_> = after.iter().map(|p| &p.manifest).collect();
    assert_eq!((manifests[0].level, &manifests[0].parent), (Level::Full, &None));
    assert_eq!((manifests[1].level, &manifests[1].parent), (Level::Incremental, &Some(id(1))));
    assert_eq!(manifests[1].merged, [id(2)]);
    // Documents and circumstances are as they were.
    assert_eq!(manifests[0].documents, before[1].manifest.documents);
    assert_eq!(manifests[0].started, before[1].manifest.started);
    assert_eq!(after[2], before[4]);
    // All but the newest, several in a row.
    history.expire(&[id(1), id(3)]).unwrap();
    let after = history.check(true);
    assert_eq!(ids(&after), [id(4)]);
    assert_eq!(after[0].manifest.level, Level::Full);
    assert!(history.lab.repository.unfinished_expiry(history.lab.vm).unwrap().is_empty());
}

#[test]
fn a_full_with_several_differentials_stays_until_one_is_left() {
    let mut history = History::new();
    let disk = DiskId::random();
    let guest = Guest::blank(8 * CLUSTER).fill(1, 0..8);
    history.add(0, &[(disk, None, guest.clone())]);
    for number in 1..4 {
        let now = guest.clone().fill(number as u64 + 1, [number]);
        history.add(number, &[(disk, Some(id(0)), now)]);
    }
    let plan = history.lab.repository.plan_expiry(history.lab.vm, &[id(0), id(1)], &[]).unwrap();
    assert_eq!(plan.removes, [id(1)]);
    assert_eq!(plan.stays[0].why, "2 points stand on it");
    history.expire(&[id(0), id(1)]).unwrap();
    assert_eq!(ids(&history.check(true)), [id(0), id(2), id(3)]);
    history.expire(&[id(0), id(2)]).unwrap();
    assert_eq!(ids(&history.check(true)), [id(3)]);
}

#[test]
fn damage_lets_what_lies_below_stay() {
    let history = History::usual();
    let (repository, vm) = (&history.lab.repository, history.lab.vm);
    // Told by the caller.
    let plan = repository.plan_expiry(vm, &[id(0), id(1)], &[id(2)]).unwrap();
    assert_eq!(plan.removes, [id(0)], "{plan:?}");
    assert!(plan.stays.len() == 1 && plan.stays[0].point == id(1), "{plan:?}");
    // Found on the way: a digests file that is not what the manifest says.
    let disk = history.model.points[&id(4)].keys().next().unwrap();
    let file = repository.point(vm, &id(3)).unwrap().path.join(format!("{disk}.digests"));
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert!(matches!(history.expire(&[id(3)]), Err(Error::Damaged { .. })));
    // A manifest that cannot be read hides what it stands on.
    std::fs::write(repository.layout.point(vm, &id(3)).join("manifest.json"), "{").unwrap();
    let plan = repository.plan_expiry(vm, &[id(0), id(1), id(3)], &[]).unwrap();
    assert_eq!((plan.removes.len(), plan.stays.len()), (0, 2), "{plan:?}");
    assert!(plan.stays[0].why.contains("cannot be read"), "{plan:?}");
}

#[test]
fn readers_and_expiry_do_not_meet() {
    let history = History::usual();
    let (repository, vm) = (&history.lab.repository, history.lab.vm);
    let point = repository.point(vm, &id(4)).unwrap();
    let disk = point.manifest.disks[0].record.id;
    let reader = repository.disk_reader(&point, disk).unwrap();
    assert!(matches!(history.expire(&[id(3)]), Err(Error::Locked { .. })));
    assert!(bytes(&reader) == history.model.points[&id(4)][&disk].0);
    drop(reader);
    // The work that was done is not lost, and what was decided is carried out.
    let lock = history.lab.lock();
    assert_eq!(repository.finish_expiry(&lock).unwrap(), [id(4)]);
    drop(lock);
    history.check(true);
    history.expire(&[id(3)]).unwrap();
    assert_eq!(ids(&history.check(true)), [id(0), id(1), id(2), id(4)]);
}

/// Not a test of its own but the process that others stop; does nothing without them.
#[test]
fn expire_until_stopped() {
    let Ok(root) = std::env::var("HVBAK_TEST_EXPIRE_ROOT") else { return };
    let vm = std::env::var("HVBAK_TEST_EXPIRE_VM").unwrap().parse().unwrap();
    let lab = Lab { vm, ..Lab::of(&root) };
    let history = History { lab, model: Model::default() };
    if let Err(error) = history.expire(&[id(0), id(2)]) {
        eprintln!("{error}");
        assert!(matches!(error, Error::NoSpace { .. }), "{error:?}");
    }
}

fn child(history: &History) -> Command {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", "expire::tests::expire_until_stopped", "--nocapture"])
        .env("HVBAK_TEST_EXPIRE_ROOT", history.lab.repository.path())
        .env("HVBAK_TEST_EXPIRE_VM", history.lab.vm.to_string())
        .env("TMPDIR", history.lab.dir.path());
    child
}

/// Stops a prune before each of its steps; what could be read in between.
fn stopped_anywhere(setting: &str) -> Vec<Vec<PointId>> {
    let mut lab = lab();
    let mut seen = std::collections::BTreeSet::new();
    let mut nameless = 0;
    for step in 1.. {
        lab.vm = VmId::random();
        let mut history = History { lab, model: Model::default() };
        history.fill();
        let mut child = child(&history);
        if !setting.is_empty() {
            child.env(setting, "1");
        }
        let out = child.env("HVBAK_TEST_CRASH", step.to_string()).output().unwrap();
        let ended = out.status.success();
        assert!(ended || out.status.signal() == Some(6), "{out:?}");
        let found = history.check_with(true, false);
        seen.insert(ids(&found));
        let waits = |p: &Point| p.path != history.lab.repository.layout.point(p.vm(), p.id());
        let waiting = found.iter().any(waits);
        nameless += u32::from(waiting);
        // Whoever locks the VM next gives each point its name, so that stock tools find it.
        drop(history.lab.lock());
        // QEMU's word on every fourth step: it needs most of the time.
        let judged = step % 4 == 0 || waiting;
        let found = history.check_with(false, judged);
        assert!(!found.iter().any(waits), "stopped at {step}");
        // The next run ends what this one began; nothing is left over.
        history.expire(&[id(0), id(2)]).unwrap();
        let after = history.check_with(true, judged || ended);
        assert_eq!(ids(&after), [id(1), id(3), id(4)], "stopped at {step}");
        let dir = history.lab.repository.layout.vm(history.lab.vm);
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 3, "stopped at {step}");
        lab = history.lab;
        if ended {
            assert!(step > 30, "{step} steps are too few to have been counted");
            break;
        }
    }
    // Before the fsync and before the second rename of each of the two merges.
    assert_eq!(nameless, if setting == "HVBAK_TEST_NO_EXCHANGE" { 4 } else { 0 });
    seen.into_iter().collect()
}

#[test]
fn stopped_anywhere_every_point_is_whole() {
    // All five, without 2, without both.
    let seen = stopped_anywhere("");
    assert_eq!(seen.len(), 3, "{seen:?}");
}

#[test]
fn where_names_cannot_be_swapped_a_stopped_prune_hides_no_point() {
    let seen = stopped_anywhere("HVBAK_TEST_NO_EXCHANGE");
    assert_eq!(seen.len(), 3, "{seen:?}");
}

#[test]
fn a_prune_that_clones_is_stopped_anywhere() {
    let seen = stopped_anywhere("HVBAK_TEST_CLONES");
    assert_eq!(seen.len(), 3, "{seen:?}");
}

/// Blocks that the images of a VM take.
fn allocated(history: &History) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let points = history.lab.repository.points(history.lab.vm).unwrap().points;
    let images = points.iter().flat_map(|p| {
        p.manifest.disks.iter().map(|d| p.path.join(&d.record.file).metadata().unwrap().blocks())
    });
    images.sum::<u64>() * 512
}

#[test]
fn a_clone_writes_the_delta_and_gives_back_what_is_overwritten() {
    trace::set_clones(true);
    let mut history = History::new();
    let disk = DiskId::random();
    // Noise, so that clusters are plain: 128 of them, 8 MiB.
    let odd = |end: usize| (0..end).filter(|c| c % 2 == 1);
    let first = Guest::blank(256 * CLUSTER).fill(1, odd(256));
    let second = first.clone().fill(2, odd(60));
    let third = second.clone().fill(3, odd(200));
    history.add(0, &[(disk, None, first)]);
    history.add(1, &[(disk, Some(id(0)), second)]);
    history.add(2, &[(disk, Some(id(1)), third)]);
    let kib = |bytes: u64| bytes >> 10;
    let summary = history.expire(&[id(0)]).unwrap();
    // 30 clusters are written, and tables; as many are punched out of the clone.
    assert!((30 * 64..30 * 64 + 512).contains(&kib(summary.written_bytes)), "{summary:?}");
    let data = (128 + 100) * 64;
    let now = kib(allocated(&history));
    assert!((data..data + 1024).contains(&now), "{now} for {data}");
    assert_eq!(ids(&history.check(true)), [id(1), id(2)]);
    // 100 of 128 are overwritten: now the newer layer gives most, and 28 come from the older.
    let summary = history.expire(&[id(1)]).unwrap();
    assert!((28 * 64..28 * 64 + 512).contains(&kib(summary.written_bytes)), "{summary:?}");
    assert_eq!(ids(&history.check(true)), [id(2)]);
    trace::set_clones(false);
}

#[test]
fn clones_of_clones_do_not_grow_without_end() {
    trace::set_clones(true);
    let mut history = History::new();
    let disk = DiskId::random();
    // 4 MiB of plain clusters; 1.25 MiB of them change each time.
    let mut guest = Guest::blank(128 * CLUSTER).fill(1, (0..128).filter(|c| c % 2 == 1));
    history.add(0, &[(disk, None, guest.clone())]);
    let (mut longest, mut copies) = (0, 0);
    for n in 1..16 {
        let changed = (0..20).map(|i| ((n * 14 + 2 * i) % 128) | 1);
        guest = guest.fill(n as u64 + 1, changed);
        history.add(n, &[(disk, Some(id(n - 1)), guest.clone())]);
        let summary = history.expire(&[id(n - 1)]).unwrap();
        let length = history.check(n % 5 == 0)[0].manifest.disks[0].record.stored_bytes;
        longest = longest.max(length);
        copies += u32::from(summary.written_bytes > 3 << 20);
    }
    assert!(longest < 11 << 20, "{longest}");
    assert!((1..9).contains(&copies), "{copies} copies");
    trace::set_clones(false);
}

#[test]
fn a_clone_with_much_garbage_becomes_a_copy() {
    trace::set_clones(true);
    let mut history = History::new();
    let disk = DiskId::random();
    // Half noise: two packed clusters share 64 KiB, and of many pairs one is overwritten.
    let mut first = Guest::blank(256 * CLUSTER).fill(1, (0..256).map(|c| c | 1));
    (0..128).for_each(|c| {
        first.0.copy_within(
            (2 * c + 1) * CLUSTER..(2 * c + 1) * CLUSTER + CLUSTER / 2,
            2 * c * CLUSTER,
        )
    });
    (0..256).for_each(|c| first.0[c * CLUSTER + CLUSTER / 2..(c + 1) * CLUSTER].fill(0));
    let mut second = first.clone();
    (0..96).for_each(|c| second.0[2 * c * CLUSTER..2 * c * CLUSTER + 100].fill(7));
    history.add(0, &[(disk, None, first)]);
    history.add(1, &[(disk, Some(id(0)), second)]);
    let summary = history.expire(&[id(0)]).unwrap();
    assert!(summary.written_bytes > (256 * 32) << 10, "{summary:?}");
    assert_eq!(ids(&history.check(true)), [id(1)]);
    trace::set_clones(false);
}

#[test]
fn a_point_without_its_name_is_read_and_keeps_waiting_while_it_is() {
    let history = History::usual();
    let (repository, vm) = (&history.lab.repository, history.lab.vm);
    let target = repository.layout.point(vm, &id(3));
    let waits = repository.layout.hidden(crate::layout::MERGED, vm, &id(3));
    std::fs::rename(&target, &waits).unwrap();
    let listed = history.check_with(true, false);
    assert_eq!(ids(&listed), (0..5).map(id).collect::<Vec<_>>());
    assert_eq!(repository.find(&format!("{vm}@{}", id(3))).unwrap().path, waits);
    // What stands on it is read through it; a lock taken meanwhile leaves it where it is.
    let disk = listed[4].manifest.disks[0].record.id;
    let reader = repository.disk_reader(&listed[4], disk).unwrap();
    drop(history.lab.lock());
    assert!(waits.is_dir());
    assert!(bytes(&reader) == history.model.points[&id(4)][&disk].0);
    drop(reader);
    drop(history.lab.lock());
    assert!(target.is_dir() && !waits.exists());
    history.check(true);
}

#[test]
fn a_full_disk_changes_nothing() {
    let mut history = History::new();
    history.fill();
    let before = history.check(false);
    // Merged images are larger than this; the sums of all points are not.
    let out = Command::new("bash")
        .arg("-c")
        .arg("trap '' XFSZ; ulimit -f 400; exec \"$0\" --exact expire::tests::expire_until_stopped --nocapture")
        .arg(std::env::current_exe().unwrap())
        .env("HVBAK_TEST_EXPIRE_ROOT", history.lab.repository.path())
        .env("HVBAK_TEST_EXPIRE_VM", history.lab.vm.to_string())
        .env("TMPDIR", history.lab.dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && text.contains("no space left for"), "{out:?}");
    assert_eq!(history.check(true), before);
    assert!(history.lab.repository.unfinished_expiry(history.lab.vm).unwrap().is_empty());
    history.expire(&[id(0), id(2)]).unwrap();
    history.check(true);
}

/// One step of a random history.
#[derive(Debug, Clone)]
enum Step {
    /// A point; per disk what is done with it.
    Backup(Vec<Change>),
    /// Points expire by the bits of this.
    Expire(u32),
}

#[derive(Debug, Clone)]
struct Change {
    /// 0 leaves the disk out, 1 reads it in full, 2 stands on the oldest point that holds
    /// it, others on the newest.
    base: u8,
    filled: Vec<usize>,
    zeroed: Vec<usize>,
    /// Sectors that the disk grows by.
    grow: usize,
}

fn change() -> impl Strategy<Value = Change> {
    let clusters = || prop::collection::vec(0usize..12, 0..4);
    (0u8..8, clusters(), clusters(), prop_oneof![4 => Just(0usize), 1 => 1usize..400])
        .prop_map(|(base, filled, zeroed, grow)| Change { base, filled, zeroed, grow })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => prop::collection::vec(change(), 2).prop_map(Step::Backup),
        1 => any::<u32>().prop_map(Step::Expire),
    ]
}

fn live(steps: &[Step], clones: bool) {
    trace::set_clones(clones);
    let mut history = History::new();
    let disks = [DiskId::random(), DiskId::random()];
    let mut now = [
        Guest::blank(5 * CLUSTER + 1536).fill(1, [0, 1, 5]),
        Guest::blank(3 * CLUSTER).fill(2, [2]),
    ];
    for (number, step) in steps.iter().enumerate() {
        match step {
            Step::Backup(changes) => {
                let listed = history.lab.repository.points(history.lab.vm).unwrap().points;
                let mut made = Vec::new();
                for (i, change) in changes.iter().enumerate() {
                    now[i].0.resize(now[i].0.len() + change.grow * 512, 0);
                    let inside = |c: &&usize| **c < now[i].clusters();
                    let zeroed: Vec<_> = change.zeroed.iter().filter(inside).copied().collect();
                    let filled: Vec<_> = change.filled.iter().filter(inside).copied().collect();
                    now[i] = now[i].clone().zero(zeroed).fill(number as u64 + 10, filled);
                    let mut holders = listed.iter().filter(|p| p.manifest.disk(disks[i]).is_some());
                    let parent = match change.base {
                        0 => continue,
                        1 => None,
                        2 => holders.next(),
                        _ => holders.next_back(),
                    };
                    made.push((disks[i], parent.map(|p| p.id().clone()), now[i].clone()));
                }
                history.add(number, &made);
            }
            Step::Expire(bits) => {
                let listed = history.lab.repository.points(history.lab.vm).unwrap().points;
                let expired: Vec<_> = ids(&listed)
                    .into_iter()
                    .enumerate()
                    .filter(|(n, _)| bits >> n & 1 == 1)
                    .map(|(_, id)| id)
                    .collect();
                let summary = history.expire(&expired).unwrap();
                assert!(summary.removed.iter().all(|id| expired.contains(id)));
            }
        }
        history.check(matches!(step, Step::Expire(_)));
    }
    for point in history.check(true) {
        for (disk, guest) in &history.model.points[point.id()] {
            let output = history.lab.file("exported.raw");
            let options =
                ExportOptions { overwrite: true, ..ExportOptions::new(ExportFormat::Raw) };
            let exported =
                history.lab.repository.export(&point, *disk, &options, &output, &|_, _| true);
            exported.unwrap();
            assert!(std::fs::read(&output).unwrap() == guest.0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn any_history_reads_as_the_guest_was(
        steps in prop::collection::vec(step(), 2..12),
        clones in any::<bool>(),
    ) {
        live(&steps, clones);
    }
}
