//! One disk in vdsm's layout with a life: writes of the guest, snapshots, merges, extends,
//! and the guest's bytes as plain memory beside it.
//!
//! Never asks the worker anything: the oracle is the memory, and QEMU where a result is
//! QEMU's choice (what a discard leaves).
//! Invariant: `volumes` is the chain, base first; `snapshots[i]` owns `volumes[i]`, and
//! the last volume is the one that the guest writes.

use std::{fs, os::unix::fs::chown, path::PathBuf, process::Command};

use hvbak_types::{DiskId, VolumeId};
use hvbak_wire::Format;
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{
    history_steps::{Base, Io, Layer, Shape, What},
    support::{CLUSTER, Tree, Volume, kind, qemu_img},
};

const SECTOR: u64 = 512;
/// Longest write of the guest.
const LONGEST: u64 = 300 * 1024;

/// Who made a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// A backup; which.
    Own(usize),
    Foreign,
}

pub struct Disk {
    pub tree: Tree,
    pub image: DiskId,
    pub volumes: Vec<Volume>,
    pub snapshots: Vec<Owner>,
    /// The guest's bytes.
    pub guest: Vec<u8>,
}

impl Disk {
    pub fn new(base: Base, sectors: u32) -> Self {
        let (tree, image) = (Tree::nfs(), DiskId::random());
        let guest = vec![0; (u64::from(sectors) * SECTOR) as usize];
        let mut disk = Self { tree, image, volumes: Vec::new(), snapshots: Vec::new(), guest };
        match base {
            Base::Raw => disk.add(Format::Raw, ""),
            Base::Cow(layer) => disk.add(Format::Cow, &layer.options()),
            Base::Packed { layer, zstd } => disk.packed(layer, zstd),
        }
        disk
    }

    pub fn active(&self) -> &Volume {
        &self.volumes[self.volumes.len() - 1]
    }

    pub fn size(&self) -> u64 {
        self.guest.len() as u64
    }

    /// The place of the newest snapshot of a backup.
    pub fn own(&self, point: usize) -> Option<usize> {
        self.snapshots.iter().position(|owner| *owner == Owner::Own(point))
    }

    /// Freezes the written volume and begins a new one.
    pub fn snapshot(&mut self, owner: Owner, layer: Layer) {
        self.add(Format::Cow, &layer.options());
        self.snapshots.push(owner);
    }

    /// Deletes a snapshot as vdsm does: the next newer volume is committed into its own,
    /// which the next newer snapshot (or the guest) gets.
    pub fn delete(&mut self, nth: usize) {
        let (base, top) = (self.volumes[nth], self.volumes[nth + 1]);
        qemu_img(&["commit", "-q", "-d", "-t", "unsafe", "-f", "qcow2", &self.name(&top)]);
        if let Some(child) = self.volumes.get(nth + 2) {
            let (backing, format) = (base.volume.to_string(), kind(base.format));
            let child = self.name(child);
            let to = ["-F", format, "-b", &backing, &child];
            qemu_img(&[&["rebase", "-q", "-t", "unsafe", "-u", "-f", "qcow2"][..], &to].concat());
        }
        fs::remove_file(self.tree.path(&top)).unwrap();
        fs::remove_file(self.tree.meta_path(&top)).unwrap();
        self.volumes[nth].size = top.size;
        self.volumes.remove(nth + 1);
        self.snapshots.remove(nth);
        self.label();
    }

    /// Previews a snapshot and commits to it: a new volume over the snapshot's, the branch
    /// that was active goes with its snapshots.
    pub fn commit(&mut self, nth: usize) {
        let seen = self.seen(&self.volumes[nth]);
        for gone in self.volumes.split_off(nth + 1) {
            fs::remove_file(self.tree.path(&gone)).unwrap();
            fs::remove_file(self.tree.meta_path(&gone)).unwrap();
        }
        self.snapshots.truncate(nth + 1);
        // It may have grown since; the guest sees the older size again.
        self.guest = seen;
        self.add(Format::Cow, &Layer::VDSM.options());
    }

    pub fn extend(&mut self, sectors: u32) {
        let size = self.size() + u64::from(sectors) * SECTOR;
        let active = *self.active();
        let (name, bytes) = (self.name(&active), size.to_string());
        qemu_img(&["resize", "-q", "-f", kind(active.format), &name, &bytes]);
        self.guest.resize(size as usize, 0);
        if let Some(active) = self.volumes.last_mut() {
            active.size = size;
        }
        self.label();
    }

    /// Lets the guest work. What a discard leaves is QEMU's choice, byte by byte either
    /// the old content or zero; what was chosen becomes the guest's.
    pub fn io(&mut self, all: &[Io]) {
        let mut commands = Vec::new();
        let mut discarded = Vec::new();
        for io in all {
            let (at, length) = self.place(io);
            let range = at as usize..(at + length) as usize;
            let command = match io.what {
                What::Write(seed) if seed % 2 == 0 => {
                    self.guest[range].fill(seed);
                    format!("write -q -P {seed} {at} {length}")
                }
                What::Write(seed) => {
                    let (path, noise) = self.noise(seed);
                    self.guest[range].copy_from_slice(&noise[..length as usize]);
                    format!("write -q -s {} {at} {length}", path.display())
                }
                What::Zero { unmap } => {
                    self.guest[range].fill(0);
                    format!("write -q -z {} {at} {length}", if unmap { "-u" } else { "" })
                }
                What::Discard => {
                    discarded.push((at, length));
                    format!("discard -q {at} {length}")
                }
            };
            commands.push(command);
            if io.what == What::Discard {
                self.run(&std::mem::take(&mut commands));
                self.adopt(&discarded.split_off(0));
            }
        }
        if !commands.is_empty() {
            self.run(&commands);
        }
    }

    /// The guest's bytes as QEMU reads them through a volume.
    pub fn seen(&self, volume: &Volume) -> Vec<u8> {
        let out = self.tree.dir.path().join("seen.raw");
        let (name, to) = (self.name(volume), out.to_str().unwrap());
        let format = kind(volume.format);
        qemu_img(&["convert", "-q", "-t", "unsafe", "-f", format, "-O", "raw", &name, to]);
        fs::read(out).unwrap()
    }

    fn adopt(&mut self, discarded: &[(u64, u64)]) {
        let now = self.seen(self.active());
        assert_eq!(now.len(), self.guest.len());
        for (at, (new, old)) in now.iter().zip(&self.guest).enumerate() {
            let at = at as u64;
            let free =
                discarded.iter().any(|(start, length)| (*start..start + length).contains(&at));
            assert!(new == old || (free && *new == 0), "QEMU changed byte {at} by itself");
        }
        self.guest = now;
    }

    fn place(&self, io: &Io) -> (u64, u64) {
        let end = (self.size() / SECTOR) as i64;
        let at = i64::from(io.at).rem_euclid(end) as u64 * SECTOR;
        let length = (u64::from(io.sectors) * SECTOR).clamp(SECTOR, LONGEST);
        (at, length.min(self.size() - at))
    }

    fn noise(&self, seed: u8) -> (PathBuf, Vec<u8>) {
        let path = self.tree.dir.path().join(format!("noise-{seed}"));
        let mut noise = vec![0; LONGEST as usize];
        StdRng::seed_from_u64(seed.into()).fill(noise.as_mut_slice());
        if !path.exists() {
            fs::write(&path, &noise).unwrap();
        }
        (path, noise)
    }

    fn run(&self, commands: &[String]) {
        let active = self.active();
        let mut qemu = Command::new("qemu-io");
        qemu.args(["-t", "unsafe", "-d", "unmap", "-f", kind(active.format)]);
        for command in commands {
            qemu.args(["-c", command]);
        }
        let out = qemu.arg(self.tree.path(active)).output().expect("qemu-io is installed");
        let text = String::from_utf8_lossy(&out.stdout);
        let errors = String::from_utf8_lossy(&out.stderr);
        assert!(
            out.status.success() && out.stderr.is_empty() && text.trim().is_empty(),
            "qemu-io {commands:?}: {text} {errors}"
        );
    }

    /// Filled by halves, the second half sparse.
    fn packed(&mut self, layer: Layer, zstd: bool) {
        let size = self.guest.len();
        for (nth, part) in self.guest[..size / 2].chunks_mut(50_000).enumerate() {
            match nth % 3 {
                0 => part.fill(nth as u8 | 1),
                1 => {
                    let some = part.len().min(20_000);
                    StdRng::seed_from_u64(nth as u64).fill(&mut part[..some]);
                }
                _ => {}
            }
        }
        self.add(Format::Cow, &layer.options());
        let (raw, base) = (self.tree.dir.path().join("packed.raw"), self.name(&self.volumes[0]));
        fs::write(&raw, &self.guest).unwrap();
        let method = match (zstd, layer.shape()) {
            (_, Shape::V2) => "",
            (true, _) => ",compression_type=zstd",
            (false, _) => ",compression_type=zlib",
        };
        let options = format!("{}{method}", layer.options());
        let raw = raw.to_str().unwrap();
        let (from, to) = (["-f", "raw", "-O", "qcow2"], ["-o", &options, raw, &base]);
        qemu_img(&[&["convert", "-q", "-t", "unsafe", "-c"][..], &from, &to].concat());
        self.own_file(&self.volumes[0]);
    }

    fn add(&mut self, format: Format, options: &str) {
        let size = self.size();
        let volume = Volume { image: self.image, volume: VolumeId::random(), format, size };
        let (name, bytes) = (self.name(&volume), size.to_string());
        fs::create_dir_all(self.tree.path(&volume).parent().unwrap()).unwrap();
        let backing = self.volumes.last().map(|v| (v.volume.to_string(), kind(v.format)));
        let mut arguments = vec!["create", "-q", "-u", "-f", kind(format)];
        if !options.is_empty() {
            arguments.extend(["-o", options]);
        }
        if let Some((backing, format)) = &backing {
            arguments.extend(["-F", format, "-b", backing]);
        }
        arguments.extend([name.as_str(), &bytes]);
        qemu_img(&arguments);
        self.own_file(&volume);
        self.volumes.push(volume);
        self.label();
    }

    /// As vdsm owns it.
    fn own_file(&self, volume: &Volume) {
        if nix::unistd::geteuid().is_root() {
            chown(self.tree.path(volume), Some(36), Some(36)).unwrap();
        }
    }

    /// Writes the metadata of all volumes.
    fn label(&self) {
        let mut parent = VolumeId::nil();
        for volume in &self.volumes {
            self.tree.write_meta(volume, parent);
            if volume.volume != self.active().volume {
                self.tree.edit_meta(volume, "VOLTYPE=LEAF", "VOLTYPE=INTERNAL");
            }
            parent = volume.volume;
        }
    }

    fn name(&self, volume: &Volume) -> String {
        self.tree.path(volume).to_str().unwrap().to_owned()
    }
}

/// Panics with the first difference of two disks.
pub fn assert_same(what: &str, found: &[u8], expected: &[u8]) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    if let Some(at) = found.iter().zip(expected).position(|(a, b)| a != b) {
        let (f, e) = (found[at], expected[at]);
        panic!("{what}: byte {at} (cluster {}) is {f}, not {e}", at as u64 / CLUSTER);
    }
}
