//! Metadata, headers and the engine contradict each other: the backup stops and says what
//! and where, and nothing is stored that might be wrong.

use std::path::{Path, PathBuf};

use hvbak_tests::{
    Story,
    story::{level, stored},
};

const NOBODY: &str = "11111111-2222-4333-8444-555555555555";

/// Metadata of a volume, put back when dropped.
struct Tampered {
    file: PathBuf,
    good: String,
}

impl Tampered {
    /// Changes one value.
    #[track_caller]
    fn new(volume: &Path, key: &str, value: &str) -> Self {
        let file = PathBuf::from(format!("{}.meta", volume.display()));
        let good = std::fs::read_to_string(&file).unwrap();
        let line = good.lines().find(|l| l.starts_with(&format!("{key}="))).unwrap();
        std::fs::write(&file, good.replace(line, &format!("{key}={value}"))).unwrap();
        Self { file, good }
    }
}

impl Drop for Tampered {
    fn drop(&mut self) {
        std::fs::write(&self.file, &self.good).unwrap();
    }
}

fn name(volume: &Path) -> String {
    volume.file_name().unwrap().to_string_lossy().into_owned()
}

/// A point, and a foreign snapshot since: the next chain is `[.., theirs, base]` on a qcow2
/// and on a raw base.
fn story() -> Story {
    let mut story = Story::default();
    story.backup("auto");
    story.lab.write("web1", "web1_data", 7 << 20, 65_536, 0xe1);
    story.lab.write("web1", "web1_Disk1", 50 << 20, 65_536, 0xe2);
    story.lab.foreign_snapshot("web1", "theirs");
    story.lab.write("web1", "web1_data", 9 << 20, 65_536, 0xe3);
    story
}

/// Both levels are refused: a full reads all of the chain, a delta its upper part.
#[track_caller]
fn contradicted(story: &Story, volume: &Path, key: &str, value: &str, words: &[&str]) {
    let name = name(volume);
    let all = [&["web1", &name], words].concat();
    for wish in ["auto", "full"] {
        // Each time anew: the merge of the failed run's snapshot writes metadata as well.
        let _tampered = Tampered::new(volume, key, value);
        story.refused_at(wish, &all);
    }
}

/// Afterwards a delta is what it would have been.
fn end(mut story: Story) {
    let next = story.backup("auto");
    assert_eq!(level(&next, "web1_data").0, "incremental");
    assert_eq!(level(&next, "web1_Disk1").0, "incremental");
    assert_eq!(stored(&next), 3);
    story.end();
    story.restore_last();
}

#[test]
fn a_parent_that_header_and_metadata_tell_differently_stops_the_backup() {
    let story = story();
    let volumes = story.lab.volumes("web1", "web1_data");
    let (middle, base) = (&volumes[1], &volumes[2]);
    let nil = "00000000-0000-0000-0000-000000000000";
    contradicted(&story, middle, "PUUID", nil, &[&name(base), "none"]);
    contradicted(&story, middle, "PUUID", NOBODY, &[&name(base), NOBODY]);
    contradicted(&story, middle, "IMAGE", NOBODY, &["IMAGE", NOBODY]);
    contradicted(&story, middle, "DOMAIN", NOBODY, &["DOMAIN", NOBODY]);
    // The other way round: the header is wrong.
    let good = std::fs::read(middle).unwrap();
    let at = u64::from_be_bytes(good[8..16].try_into().unwrap()) as usize;
    assert_eq!(&good[at..at + 36], name(base).as_bytes(), "the backing name");
    let mut bad = good.clone();
    bad[at..at + 36].copy_from_slice(NOBODY.as_bytes());
    overwrite(middle, &bad[..65_536]);
    story.refused(&["web1", NOBODY, &name(base)]);
    overwrite(middle, &good[..65_536]);
    end(story);
}

/// In place, as QEMU has the file open.
fn overwrite(file: &Path, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    file.write_all_at(bytes, 0).unwrap();
}

#[test]
fn a_format_that_header_and_metadata_tell_differently_stops_the_backup() {
    let story = story();
    let qcow2 = story.lab.volumes("web1", "web1_data");
    let raw = story.lab.volumes("web1", "web1_Disk1");
    contradicted(&story, &qcow2[2], "FORMAT", "RAW", &["qcow2", "raw"]);
    contradicted(&story, &qcow2[1], "FORMAT", "RAW", &["raw"]);
    contradicted(&story, &raw[2], "FORMAT", "COW", &["qcow2", "raw"]);
    // The newest volume has none above it that is read: the engine is asked.
    contradicted(&story, &qcow2[0], "FORMAT", "RAW", &["raw"]);
    end(story);
}

#[test]
fn a_size_that_file_and_metadata_tell_differently_stops_the_backup() {
    let story = story();
    let qcow2 = story.lab.volumes("web1", "web1_data");
    let raw = story.lab.volumes("web1", "web1_Disk1");
    for cap in [32u64 << 20, 80 << 20] {
        let cap = cap.to_string();
        contradicted(&story, &qcow2[0], "CAP", &cap, &[&cap, &(48 << 20).to_string()]);
        contradicted(&story, &raw[2], "CAP", &cap, &[&cap, &(64 << 20).to_string()]);
    }
    end(story);
}

/// vdsm leaves an old CAP in inner volumes (a merge grew them); nobody reads by it.
#[test]
fn an_inner_qcow2_volume_with_an_old_size_in_its_metadata_is_read_by_its_header() {
    let mut story = story();
    let volumes = story.lab.volumes("web1", "web1_data");
    let _tampered = Tampered::new(&volumes[1], "CAP", &(32u64 << 20).to_string());
    let next = story.backup("auto");
    assert_eq!(level(&next, "web1_data").0, "incremental");
    story.backup("full");
    story.end();
}
