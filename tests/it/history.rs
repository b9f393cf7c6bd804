//! A random life of a VM through the whole program: its guest, its administrators and its
//! backups of every level take turns, and every point is what the guest had.
//!
//! The seed is printed; `HVBAK_HISTORY_SEED` lives a life again, `HVBAK_HISTORY_STEPS` makes
//! it longer.

use hvbak_tests::{Lab, Story, small, story::level, wait_for};
use serde_json::Value;

const DISKS: [&str; 2] = ["web1_Disk1", "web1_data"];
const STEPS: u64 = 36;

/// Xorshift: the same numbers for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }

    fn disk(&mut self) -> &'static str {
        DISKS[self.roll(2) as usize]
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn every_point_of_a_random_life_is_what_the_guest_had() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = number("HVBAK_HISTORY_SEED").unwrap_or_else(|| now.unwrap().as_nanos() as u64);
    println!("HVBAK_HISTORY_SEED={seed}");
    let lab = Lab::bare(&small(), &["--hosts", "1", "--domains", "nfs,gluster"]);
    lab.enrol();
    let mut life = Life { story: Story::of(lab), dice: Dice(seed | 1), foreign: 0 };
    life.backup();
    for step in 0..number("HVBAK_HISTORY_STEPS").unwrap_or(STEPS) {
        println!("step {step}: {}", life.step());
    }
    life.backup();
    life.story.end();
    life.story.restore_last();
}

struct Life {
    story: Story,
    dice: Dice,
    foreign: u32,
}

impl Life {
    /// Something happens; says what.
    fn step(&mut self) -> String {
        match self.dice.roll(20) {
            0..=6 => self.guest(),
            7..=8 => self.snapshot(),
            9..=10 => self.delete(),
            11 => self.extend(),
            12 => self.carry(),
            13 => self.go_back(),
            14 => self.power(),
            _ => self.backup(),
        }
    }

    fn state(&self, list: &str) -> Vec<Value> {
        self.story.lab.state()[list].as_array().unwrap().clone()
    }

    fn vm(&self) -> Value {
        self.state("vms").into_iter().find(|v| v["name"] == "web1").unwrap()
    }

    fn guest(&mut self) -> String {
        let (lab, disk) = (&self.story.lab, self.dice.disk());
        let size = lab.disk(disk)["size"].as_u64().unwrap();
        let at = self.dice.roll(size / 512 - 800) * 512;
        let length = (1 + self.dice.roll(700)) * 512;
        let (offset, bytes) = (at.to_string(), length.to_string());
        let range = ["--vm", "web1", "--disk", disk, "--offset", &offset, "--length", &bytes];
        let what = match self.dice.roll(4) {
            0 => "guest-zero",
            1 => "guest-discard",
            _ => {
                lab.write("web1", disk, at, length, self.dice.roll(256) as u8);
                return format!("write {disk} {at} {length}");
            }
        };
        lab.lab(what, &range);
        format!("{what} {disk} {at} {length}")
    }

    fn snapshots(&self) -> Vec<String> {
        let vm = self.vm();
        let all = vm["snapshots"].as_array().unwrap();
        let regular = all.iter().filter(|s| s["kind"] == "regular");
        regular.map(|s| s["description"].as_str().unwrap().to_owned()).collect()
    }

    fn snapshot(&mut self) -> String {
        if self.snapshots().len() < 5 {
            self.foreign += 1;
            self.story.lab.foreign_snapshot("web1", &format!("theirs {}", self.foreign));
        }
        format!("snapshots {:?}", self.snapshots())
    }

    fn any_snapshot(&mut self) -> Option<String> {
        let all = self.snapshots();
        let nth = self.dice.roll(all.len().max(1) as u64) as usize;
        all.get(nth).cloned()
    }

    /// Anybody's: ours as well.
    fn delete(&mut self) -> String {
        let Some(gone) = self.any_snapshot() else { return "no snapshot".into() };
        self.story.lab.delete_snapshot("web1", &gone);
        format!("deleted {gone}")
    }

    fn extend(&mut self) -> String {
        let (lab, disk) = (&self.story.lab, self.dice.disk());
        let found = lab.disk(disk);
        let size = found["size"].as_u64().unwrap() + (1 + self.dice.roll(300)) * 4096;
        let path = format!("/disks/{}", found["id"].as_str().unwrap());
        lab.api("PUT", &path, &format!("<disk><provisioned_size>{size}</provisioned_size></disk>"));
        format!("{disk} has {size}")
    }

    /// To the other domain.
    fn carry(&mut self) -> String {
        let (lab, disk) = (&self.story.lab, self.dice.disk());
        let found = lab.disk(disk);
        let domains = self.state("storage_domains");
        let to = domains.iter().find(|d| d["id"] != found["domain"]).unwrap();
        let body = format!("<action><storage_domain id={}/></action>", to["id"]);
        lab.api("POST", &format!("/disks/{}/move", found["id"].as_str().unwrap()), &body);
        wait_for("the move", || {
            let now = lab.disk(disk);
            now["domain"] == to["id"] && now["status"] == "ok"
        });
        format!("{disk} on {}", to["name"])
    }

    fn go_back(&mut self) -> String {
        let Some(back) = self.any_snapshot() else { return "no snapshot".into() };
        let lab = &self.story.lab;
        let was = self.vm()["status"].clone();
        if was == "up" {
            lab.act("web1", "stop", "");
            lab.await_status("web1", "down");
        }
        let id = lab.snapshot("web1", &back)["id"].as_str().unwrap().to_owned();
        lab.act("web1", "previewsnapshot", &format!("<snapshot id=\"{id}\"/>"));
        lab.act("web1", "commitsnapshot", "");
        if was == "up" {
            lab.act("web1", "start", "");
            lab.await_status("web1", "up");
        }
        format!("back to {back}")
    }

    fn power(&mut self) -> String {
        let up = self.vm()["status"] == "up";
        let (action, wanted) = if up { ("stop", "down") } else { ("start", "up") };
        self.story.lab.act("web1", action, "");
        self.story.lab.await_status("web1", wanted);
        wanted.into()
    }

    /// The snapshot that the engine still has of the newest point that kept one tells which
    /// level it must be.
    fn backup(&mut self) -> String {
        let wish = ["auto", "auto", "incremental", "differential", "full"];
        let wish = wish[self.dice.roll(wish.len() as u64) as usize];
        let kept = self.story.lab.own_snapshots("web1");
        let base = kept.last().and_then(|text| text.rsplit(':').next());
        let base = base.map(|point| self.story.manifest(point));
        let full = base.as_ref().is_some_and(|m| m["level"] == "full");
        let expected = match wish {
            "full" => "full",
            _ if base.is_none() => "full",
            "differential" if full => "differential",
            "differential" => "full",
            _ => "incremental",
        };
        let manifest = self.story.backup(wish);
        for disk in DISKS {
            let (found, why) = level(&manifest, disk);
            assert_eq!(found, expected, "{wish} of {disk} on {kept:?}: {why}");
        }
        format!("{wish}: {expected}")
    }
}
