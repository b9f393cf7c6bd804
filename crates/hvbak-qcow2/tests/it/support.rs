//! QEMU's tools as oracles, and images made by them.

use std::{fs::File, path::Path, process::Command};

use hvbak_qcow2::{Chain, Layer};
use hvbak_types::{Extent, ExtentKind};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Whether QEMU's tools are here. Skips loudly; `HVBAK_TEST_STRICT=1` turns that into a failure.
pub fn qemu() -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok()
        && Command::new("qemu-io").arg("--version").output().is_ok();
    if !found {
        assert!(
            std::env::var_os("HVBAK_TEST_STRICT").is_none(),
            "qemu-img and qemu-io are missing"
        );
        eprintln!("SKIPPED: qemu-img and qemu-io are not installed");
    }
    found
}

/// Runs a tool that must succeed; gives its stdout.
pub fn run(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let talk = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program} {args:?}: {} {text} {talk}", out.status);
    text
}

pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What the guest sees, by `qemu-img convert`.
pub fn content(image: &Path) -> Vec<u8> {
    let raw = image.with_extension("raw-oracle");
    run("qemu-img", &["convert", "-O", "raw", path(image), path(&raw)]);
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(raw).unwrap();
    bytes
}

/// The map by `qemu-img map`; `alone` hides the backing file.
pub fn map(image: &Path, alone: bool) -> Vec<Extent> {
    let backing = if alone { r#","backing":null"# } else { "" };
    let node = format!(
        r#"json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{}"}}{backing}}}"#,
        image.display()
    );
    let text = run("qemu-img", &["map", "--output=json", &node]);
    let mut extents: Vec<Extent> = Vec::new();
    for line in text.lines() {
        let number = |key: &str| -> u64 {
            let rest = line.split(&format!("\"{key}\": ")).nth(1).unwrap();
            rest.split([',', '}']).next().unwrap().trim().parse().unwrap()
        };
        let flag = |key: &str| line.contains(&format!("\"{key}\": true"));
        if !line.contains("\"start\"") {
            continue;
        }
        let kind = match (flag("present"), flag("data")) {
            (false, _) => ExtentKind::Absent,
            (true, false) => ExtentKind::Zero,
            (true, true) => ExtentKind::Data,
        };
        let (offset, length) = (number("start"), number("length"));
        match extents.last_mut() {
            Some(last) if last.kind == kind => last.length += length,
            _ => extents.push(Extent { offset, length, kind }),
        }
    }
    extents
}

pub fn layer(image: &Path) -> Layer<File> {
    Layer::open_qcow2(File::open(image).unwrap()).unwrap()
}

pub fn chain(images: &[&Path]) -> Chain<File> {
    Chain::new(images.iter().map(|image| layer(image)).collect()).unwrap()
}

pub fn extents(chain: &Chain<File>, top: usize) -> Vec<Extent> {
    let all = chain.extents_of_top(top, 0, chain.virtual_size()).unwrap();
    all.collect::<Result<_, _>>().unwrap()
}

/// The whole disk through the chain, in reads of uneven size.
pub fn read_all(chain: &Chain<File>, step: usize) -> Vec<u8> {
    let mut bytes = vec![0xa5; usize::try_from(chain.virtual_size()).unwrap()];
    for (nth, part) in bytes.chunks_mut(step).enumerate() {
        chain.read(part, (nth * step) as u64).unwrap();
    }
    bytes
}

/// Writes, zeroes, discards and, where `packed` gives the unit, compresses at random.
pub fn scribble(image: &Path, size: u64, seed: u64, packed: Option<u64>) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut commands: Vec<String> = Vec::new();
    for nth in 0..60 {
        // Packed clusters last, so that not all of them are overwritten.
        let choice = if nth < 40 { random.random_range(0..8) } else { 4 };
        let unit = 512u64 << random.random_range(0..10);
        let unit = unit.min(size);
        let offset = random.random_range(0..size / unit) * unit;
        let length = (random.random_range(1..32) * unit).min(size - offset).min(1 << 20);
        let pattern = random.random_range(1..256);
        commands.push(match (choice, packed) {
            (0, _) => format!("write -z {offset} {length}"),
            (1, _) => format!("write -z -u {offset} {length}"),
            (2, _) => format!("discard {offset} {length}"),
            (3..6, Some(unit)) if unit <= size => {
                let offset = random.random_range(0..size / unit) * unit;
                format!("write -c -P {pattern} {offset} {}", unit.min(size - offset))
            }
            _ => format!("write -P {pattern} {offset} {length}"),
        });
    }
    let mut args = vec!["-d", "unmap", "-f", "qcow2"];
    for command in &commands {
        args.extend(["-c", command]);
    }
    // A compressed write onto a cluster that exists is refused by some versions: that one
    // command then fails and nothing is lost, so the exit code is not looked at.
    args.push(path(image));
    let out = Command::new("qemu-io").args(&args).output().unwrap();
    assert!(!out.stdout.is_empty(), "qemu-io said nothing");
}
