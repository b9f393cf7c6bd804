//! The benchmark: hvbak beside its peers, the same bytes on the same machine, in turns.
//!
//! Every figure is a median over rounds and every ratio the median of ratios within a
//! round, so that a machine that is slow for a minute is slow for all. Peers are started
//! with everything connected; hvbak is timed twice: the whole command, and without the
//! engine's snapshot, merge and disk work, which no peer does.

mod image;
mod imageio;
mod lab;
mod layers;
mod measure;
mod peers;
mod prune;
mod report;
mod scale;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use self::{
    image::Recipe,
    imageio::Imageio,
    lab::{Kind, Lab},
    peers::Peers,
    report::{Report, Work},
};
use crate::build;

/// What can be measured alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Contest {
    /// Disk (a): full backup and restore
    Full,
    /// Chain (b): full backup and incremental
    Layers,
    /// A disk on which nothing can be saved
    Dense,
    /// A large disk, many streams, many VMs
    Scale,
    /// Prune of a chain of 30 points
    Prune,
}

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// JSON lines on stdout, the table on stderr
    #[arg(long)]
    json: bool,
    /// A disk of 512 MiB and one round
    #[arg(long)]
    quick: bool,
    /// Rounds of every contest
    #[arg(long)]
    rounds: Option<usize>,
    /// Directory of hvbak, hvbak-lab, hvbak-worker, examples/speed and examples/prune_chain that
    /// are built already
    #[arg(long)]
    built: Option<PathBuf>,
    /// Install ovirt-imageio below the target directory, so that it is measured too
    #[arg(long)]
    install_imageio: bool,
    /// Only these contests
    #[arg(long, value_delimiter = ',')]
    only: Vec<Contest>,
    /// Where the images go; else /dev/shm when there is room, else the target directory
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Measures and compares with the goals.
pub fn run(args: BenchArgs) -> Result<()> {
    crate::needs::check(&[crate::needs::DEMO], false)?;
    let (bin, worker) = match &args.built {
        Some(bin) => (bin.canonicalize()?, bin.canonicalize()?.join("hvbak-worker")),
        None => programs()?,
    };
    let size: u64 = if args.quick { 512 << 20 } else { 4 << 30 };
    let rounds = args.rounds.unwrap_or(if args.quick { 1 } else { 5 }).max(1);
    // Image and its copy in the lab, or copy, data, repository and one output.
    let room = scratch(args.dir.as_deref(), size * 3)?;
    let base = tempfile::Builder::new().prefix("hvbak-bench-").tempdir_in(&room)?;
    eprintln!("working in {}", base.path().display());
    if args.install_imageio {
        imageio::install()?;
    }
    let imageio = Imageio::start(base.path())?;
    let speed = bin.join("examples/speed");
    let bench = Bench { bin, worker, base: base.path().to_owned(), imageio, speed };
    let mut report = Report::new(args.json, size);
    let wanted = |contest| args.only.is_empty() || args.only.contains(&contest);
    let mut contests = || -> Result<()> {
        if wanted(Contest::Full) {
            mixed(&bench, size, rounds, &mut report)?;
        }
        if wanted(Contest::Layers) {
            layers::run(&bench, size, rounds, &mut report)?;
        }
        if wanted(Contest::Dense) {
            dense(&bench, size / 2, rounds, &mut report)?;
        }
        if wanted(Contest::Scale) {
            scale::run(&bench, size, rounds, &mut report)?;
        }
        if wanted(Contest::Prune) {
            prune::run(&bench.base, args.built.as_deref(), size >> 20, args.json)?;
        }
        Ok(())
    };
    let done = contests();
    // What was measured before a failure is told.
    report.finish();
    done
}

/// What every contest needs.
struct Bench {
    bin: PathBuf,
    worker: PathBuf,
    base: PathBuf,
    imageio: Option<Imageio>,
    /// The example `speed` of `hvbak-ssh`.
    speed: PathBuf,
}

impl Bench {
    /// A lab whose disk is made by the recipe; and, when asked, a file of its data alone.
    fn lab(&self, recipe: Recipe, kind: Kind, data: bool) -> Result<(Lab, Option<(PathBuf, u64)>)> {
        let (image, only) = (self.base.join("image"), self.base.join("data"));
        let bytes = image::write(recipe, &image, data.then_some(&only))?;
        let lab = Lab::up(&self.bin, &self.worker, &self.base.join("lab"), &image, kind)?;
        std::fs::remove_file(&image)?;
        Ok((lab, data.then_some((only, bytes))))
    }

    fn peers<'a>(&'a self, lab: &'a Lab, size: u64) -> Result<Peers<'a>> {
        Peers::new(lab, &self.base, self.imageio.as_ref(), vec![lab.volume()?], size)
    }
}

/// Builds what is measured, as it is released; gives the programs' directory and the worker.
fn programs() -> Result<(PathBuf, PathBuf)> {
    eprintln!("building hvbak, the lab and the worker as they are released");
    let worker = build::worker()?;
    let packages = ["--package", "hvbak", "--package", "hvbak-sim"];
    build::run(build::cargo().args(["build", "--quiet", "--release"]).args(packages))?;
    let speed = ["--package", "hvbak-ssh", "--example", "speed"];
    build::run(build::cargo().args(["build", "--quiet", "--release"]).args(speed))?;
    Ok((build::target_dir().join("release"), worker))
}

/// Disk (a): full backup and restore.
fn mixed(bench: &Bench, size: u64, rounds: usize, report: &mut Report) -> Result<()> {
    eprintln!("preparing disk (a): {} MiB, three eighths of it data", size >> 20);
    let recipe = Recipe { size, files: size / 40 * 9, random: size / 40 * 6 };
    let (lab, data) = bench.lab(recipe, Kind::Raw, true)?;
    let (data, data_bytes) = data.context("no data")?;
    report.data_bytes = data_bytes;
    report.data_zstd = image::zstd_length(&data)?;
    let peers = bench.peers(&lab, size)?.with_data(&data, data_bytes);
    for name in peers.missing() {
        report.missing(name);
    }
    for round in 0..rounds {
        eprintln!("full backup, round {} of {rounds}", round + 1);
        lab.forget_points()?;
        report.add(Work::Backup, lab.backup("full")?);
        for peer in peers.backups() {
            report.add(Work::Backup, peers.run(peer)?);
        }
    }
    let peers = peers.with_sparse()?;
    std::fs::remove_file(&data)?;
    for round in 0..rounds {
        eprintln!("restore, round {} of {rounds}", round + 1);
        let (sample, volume) = lab.restore(&format!("r{round}"))?;
        if round == 0 {
            let same = same_bytes(&volume, &lab.volume()?)?;
            ensure!(same, "the restored disk differs from its source");
        }
        // The lab keeps the VM; its bytes are not wanted any more.
        std::fs::File::create(&volume)?;
        report.add(Work::Restore, sample);
        for peer in peers.restores() {
            report.add(Work::Restore, peers.run(peer)?);
        }
    }
    Ok(())
}

/// A disk on which nothing can be saved: the price of the transport alone.
fn dense(bench: &Bench, size: u64, rounds: usize, report: &mut Report) -> Result<()> {
    eprintln!("preparing a dense disk: {} MiB of random bytes", size >> 20);
    let (lab, _) = bench.lab(Recipe { size, files: 0, random: size }, Kind::Raw, false)?;
    let peers = bench.peers(&lab, size)?;
    for round in 0..rounds {
        eprintln!("dense backup, round {} of {rounds}", round + 1);
        lab.forget_points()?;
        report.add(Work::Dense, lab.backup("full")?);
        report.add(Work::Dense, peers.run(report::CAT)?);
        report.add(Work::Dense, peers.run(report::CAT_NULL)?);
        report.add(Work::Dense, lab.transport(&bench.speed, size)?);
    }
    Ok(())
}

/// Where there is room for `need` bytes; memory first, since disks differ and vary more
/// than what is measured.
fn scratch(given: Option<&Path>, need: u64) -> Result<PathBuf> {
    if let Some(dir) = given {
        return Ok(dir.to_owned());
    }
    let shm = PathBuf::from("/dev/shm");
    let margin = 3 << 30;
    if measure::free_space(&shm).is_ok_and(|free| free > need + margin)
        && measure::free_memory() > need + margin
    {
        return Ok(shm);
    }
    let target = build::target_dir();
    let free = measure::free_space(&target)?;
    ensure!(free > need, "{} has {free} bytes free and {need} are needed", target.display());
    eprintln!("note: no room in memory, so the disk below {} is measured too", target.display());
    Ok(target)
}

fn same_bytes(a: &Path, b: &Path) -> Result<bool> {
    let status = std::process::Command::new("qemu-img")
        .args(["compare", "-q", "-f", "raw", "-F", "raw"])
        .args([a, b])
        .status()
        .context("start qemu-img")?;
    Ok(status.success())
}
