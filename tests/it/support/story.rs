//! Points of `web1`, each remembered with what the guest had, and what must be true of all
//! of them at the end: exported, restored, and by qemu-img's own reading of the chain, they
//! are that.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Lab, Run, run_tool};

const WEB1: [&str; 2] = ["web1_Disk1", "web1_data"];

/// What the guest had on each disk when a point was taken.
pub struct Then {
    pub point: String,
    pub disks: Vec<(&'static str, PathBuf)>,
}

/// A lab in which points are taken and remembered.
pub struct Story {
    pub lab: Lab,
    pub then: Vec<Then>,
    /// More options of `hvbak backup`.
    pub options: Vec<&'static str>,
}

impl Default for Story {
    fn default() -> Self {
        Self::of(Lab::standard())
    }
}

impl Story {
    /// Over a lab of the test's, which has `web1` with its two disks.
    pub fn of(lab: Lab) -> Self {
        lab.fill_web1();
        Self { lab, then: Vec::new(), options: Vec::new() }
    }

    /// Backs `web1` up; gives its manifest.
    #[track_caller]
    pub fn backup(&mut self, level: &str) -> Value {
        self.backup_disks(level, &WEB1)
    }

    /// The same while it has these disks.
    #[track_caller]
    pub fn backup_disks(&mut self, level: &str, disks: &[&'static str]) -> Value {
        self.backup_exits(level, disks, 0)
    }

    /// The same, with the exit code of a run that made the point but not all else.
    #[track_caller]
    pub fn backup_exits(&mut self, level: &str, disks: &[&'static str], code: i32) -> Value {
        let disks = self.remember(disks);
        let run = self.run(level).exits(code);
        let point = run.result()["done"][0]["point"].as_str().expect("a point").to_owned();
        let manifest = self.manifest(&point);
        self.then.push(Then { point, disks });
        manifest
    }

    /// What the guest has now, for a point that the test makes itself.
    pub fn remember(&self, disks: &[&'static str]) -> Vec<(&'static str, PathBuf)> {
        let number = self.then.len();
        let keep = |disk: &&'static str| {
            let saved = self.lab.save("web1", disk);
            let kept = self.lab.path(&format!("then-{number}-{disk}.raw"));
            std::fs::rename(saved, &kept).expect("the reference");
            (*disk, kept)
        };
        disks.iter().map(keep).collect()
    }

    /// A backup that is looked at by the test.
    pub fn run(&self, level: &str) -> Run {
        let args = ["backup", "--vm", "web1", "--level", level];
        self.lab.json(&[&args[..], &self.options].concat())
    }

    /// A backup that must fail, say all of `words`, and leave the snapshots of before and no
    /// point behind.
    #[track_caller]
    pub fn refused(&self, words: &[&str]) {
        self.refused_at("auto", words);
    }

    /// The same at a level.
    #[track_caller]
    pub fn refused_at(&self, level: &str, words: &[&str]) {
        let (snapshots, points) = (self.lab.own_snapshots("web1"), self.lab.points().len());
        let run = self.run(level).exits(1);
        let run = words.iter().fold(run, |run, word| run.says(word));
        assert_eq!(self.lab.own_snapshots("web1"), snapshots, "of the failed run: {run}");
        assert_eq!(self.lab.points().len(), points, "{run}");
    }

    /// What the repository says of a point.
    pub fn manifest(&self, point: &str) -> Value {
        let file = self.folder(point).join("manifest.json");
        serde_json::from_slice(&std::fs::read(file).expect("a manifest")).expect("JSON")
    }

    fn folder(&self, point: &str) -> PathBuf {
        self.lab.path("repository/vms").join(self.lab.vm_id("web1")).join(point)
    }

    /// A disk of a point's manifest.
    #[track_caller]
    pub fn disk(&self, point: &str, alias: &str) -> Value {
        let manifest = self.manifest(point);
        let mut disks = manifest["disks"].as_array().into_iter().flatten();
        disks.find(|d| d["alias"] == alias).expect("the disk").clone()
    }

    /// The id of a disk of the first point.
    #[track_caller]
    pub fn disk_id(&self, alias: &str) -> String {
        self.disk(&self.then[0].point, alias)["id"].as_str().expect("an id").to_owned()
    }

    /// Every point is what the guest had, and nothing else is left of all the backups.
    #[track_caller]
    pub fn end(&self) {
        self.verify();
        self.lab.assert_clean();
    }

    /// Every point is what the guest had, by qemu-img's own reading of the chain.
    #[track_caller]
    pub fn verify(&self) {
        self.lab.hvbak(&["verify", "--all"]).exits(0);
        for then in &self.then {
            let out = self.lab.scratch(&format!("export-{}", then.point));
            std::fs::create_dir_all(&out).expect("a folder");
            let point = format!("web1@{}", then.point);
            let to = out.to_str().unwrap_or("");
            self.lab.hvbak(&["export", &point, "--format", "raw", "--output", to]).exits(0);
            for (disk, reference) in &then.disks {
                let exported = out.join(format!("{disk}.raw"));
                same("raw", &exported, reference);
                let id = self.disk(&then.point, disk)["id"].as_str().unwrap_or("").to_owned();
                let stored = self.folder(&then.point).join(format!("{id}.qcow2"));
                same("qcow2", &stored, reference);
                run_tool("qemu-img", &["check", stored.to_str().unwrap_or("")]);
            }
        }
        assert!(self.lab.own_snapshots("web1").len() <= 1);
    }

    /// And back into the engine, from the end of the chain: `back` has what the guest had.
    #[track_caller]
    pub fn restore_last(&self) {
        let last = self.then.last().expect("a point");
        let point = format!("web1@{}", last.point);
        self.lab.hvbak(&["restore", &point, "--name", "back"]).exits(0);
        for (disk, reference) in &last.disks {
            self.lab.same("back", disk, reference);
        }
        self.lab.assert_clean_but(&["back"]);
    }
}

/// Two images have the same content.
#[track_caller]
pub fn same(format: &str, image: &Path, reference: &Path) {
    let (image, reference) = (image.to_str().unwrap_or(""), reference.to_str().unwrap_or(""));
    run_tool("qemu-img", &["compare", "-f", format, "-F", "raw", image, reference]);
}

/// Level of a disk, and why.
#[track_caller]
pub fn level<'a>(manifest: &'a Value, alias: &str) -> (&'a str, &'a str) {
    let mut disks = manifest["disks"].as_array().into_iter().flatten();
    let disk = disks.find(|d| d["alias"] == alias).expect("the disk");
    (disk["level"].as_str().expect("a level"), disk["reason"].as_str().expect("a reason"))
}

/// Clusters with data of all disks of a point.
pub fn stored(manifest: &Value) -> u64 {
    let disks = manifest["disks"].as_array().into_iter().flatten();
    disks.filter_map(|d| d["data_clusters"].as_u64()).sum()
}
