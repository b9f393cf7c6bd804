//! The images: the same bytes on every run of one machine.
//!
//! Data comes in extents of 64 KiB to 16 MiB, as files leave it on a disk: files of this
//! system in sorted order (they compress as a guest's system does), random bytes from a
//! seed (they do not), and zeros that are written, as on a preallocated volume in use.

use std::{
    fs::{self, File},
    io::{BufWriter, Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

const CLUSTER: u64 = 65_536;
const SEED: u64 = 0x6876_6261_6b20_2131;

/// How many bytes of what; the rest is zeros.
#[derive(Debug, Clone, Copy)]
pub struct Recipe {
    pub size: u64,
    /// From files of this system.
    pub files: u64,
    pub random: u64,
}

/// Writes the image, and beside it only its data when asked; gives the bytes of data.
pub fn write(recipe: Recipe, image: &Path, data: Option<&Path>) -> Result<u64> {
    let mut image = BufWriter::with_capacity(1 << 20, File::create(image)?);
    let mut only = data.map(File::create).transpose()?;
    let mut random = Random(SEED);
    let mut files = Files::new(Path::new("/usr"))?;
    let zeros = recipe.size - recipe.files - recipe.random;
    let mut left = [recipe.files, recipe.random, zeros];
    let mut buffer = Vec::new();
    let mut written = 0;
    while left.iter().sum::<u64>() > 0 {
        // Each kind as likely as there is left of it, so that they stay mixed to the end.
        let mut pick = random.next() % left.iter().sum::<u64>();
        let kind = left.iter().position(|l| {
            let here = pick < *l;
            pick = pick.saturating_sub(*l);
            here
        });
        let kind = kind.unwrap_or(2);
        let length = (CLUSTER << (random.next() % 9)).min(left[kind]);
        left[kind] -= length;
        buffer.clear();
        buffer.resize(usize::try_from(length)?, 0);
        match kind {
            0 => files.fill(&mut buffer)?,
            1 => random.fill(&mut buffer),
            _ => {}
        }
        image.write_all(&buffer)?;
        if kind < 2 {
            written += length;
            if let Some(only) = &mut only {
                only.write_all(&buffer)?;
            }
        }
    }
    image.flush()?;
    Ok(written)
}

/// Bytes that `zstd -1` makes of a file in one stream.
pub fn zstd_length(file: &Path) -> Result<u64> {
    struct Count(u64);
    impl Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len() as u64;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    zstd::stream::copy_encode(File::open(file)?, &mut count, 1)?;
    Ok(count.0)
}

/// Writes `bytes` of fresh data into clusters here and there of a qcow2 file that nobody has
/// open, through QEMU. Another `round` is other clusters.
pub fn dirty(image: &Path, size: u64, bytes: u64, round: u64, scratch: &Path) -> Result<()> {
    let parts = scratch.join("dirty");
    fs::create_dir_all(&parts)?;
    let data = scratch.join("dirty.data");
    write(
        Recipe { size: bytes, files: bytes / 10 * 6, random: bytes - bytes / 10 * 6 },
        &data,
        None,
    )?;
    let mut data = File::open(data)?;
    let mut random = Random(SEED ^ (round + 1));
    let mut taken = std::collections::BTreeSet::new();
    let mut script = String::new();
    let mut cluster = vec![0; usize::try_from(CLUSTER)?];
    for n in 0..bytes / CLUSTER {
        data.read_exact(&mut cluster)?;
        let part = parts.join(n.to_string());
        fs::write(&part, &cluster)?;
        let mut at = random.next() % (size / CLUSTER);
        while !taken.insert(at) {
            at = (at + 1) % (size / CLUSTER);
        }
        script += &format!("write -q -s {} {} {CLUSTER}\n", part.display(), at * CLUSTER);
    }
    let mut child = Command::new("qemu-io")
        .args(["-f", "qcow2"])
        .arg(image)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    child.stdin.take().context("no stdin")?.write_all(script.as_bytes())?;
    ensure!(child.wait()?.success(), "qemu-io did not write into {}", image.display());
    fs::remove_dir_all(parts)?;
    fs::remove_file(scratch.join("dirty.data"))?;
    Ok(())
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_mut(8) {
            word.copy_from_slice(&self.next().to_le_bytes()[..word.len()]);
        }
    }
}

/// The bytes of all files below a directory, one behind the other, for ever.
struct Files {
    paths: Vec<PathBuf>,
    next: usize,
    open: Option<File>,
}

impl Files {
    fn new(root: &Path) -> Result<Self> {
        let mut paths = Vec::new();
        for part in ["bin", "lib", "share"] {
            walk(&root.join(part), &mut paths);
        }
        ensure!(!paths.is_empty(), "no files below {}", root.display());
        Ok(Self { paths, next: 0, open: None })
    }

    fn fill(&mut self, mut buffer: &mut [u8]) -> Result<()> {
        while !buffer.is_empty() {
            let got = self.open.as_mut().map_or(Ok(0), |file| file.read(buffer))?;
            buffer = &mut buffer[got..];
            if got == 0 {
                self.open = File::open(&self.paths[self.next % self.paths.len()]).ok();
                self.next += 1;
            }
        }
        Ok(())
    }
}

fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&entry.path(), out),
            Ok(kind) if kind.is_file() && entry.metadata().is_ok_and(|m| m.len() >= 4096) => {
                out.push(entry.path());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_the_same_every_time_and_as_large_as_asked() {
        let dir = tempfile::tempdir().unwrap();
        let recipe = Recipe { size: 8 << 20, files: 1 << 20, random: 2 << 20 };
        let mut seen = Vec::new();
        for name in ["a", "b"] {
            let (image, data) = (dir.path().join(name), dir.path().join("data"));
            assert_eq!(write(recipe, &image, Some(&data)).unwrap(), 3 << 20);
            assert_eq!(fs::metadata(&data).unwrap().len(), 3 << 20);
            seen.push(fs::read(&image).unwrap());
        }
        assert_eq!(seen[0].len(), 8 << 20);
        assert!(seen[0] == seen[1]);
    }
}
