//! The report as a file for Prometheus: node_exporter's textfile collector reads it.
//!
//! Names are part of the contract (README). Moments, not ages: an age would be as old as the
//! file. Invariant: what is not known has no sample, rather than a 0.

use hvbak_repo::RunOutcome;
use hvbak_run::{ManagerReport, Report, VmReport};
use jiff::Timestamp;
use prometheus::{GaugeVec, Opts, Registry, TextEncoder};

/// What is known of one thing: a name's ending, what it means, its value.
type Sample = (&'static str, &'static str, Option<f64>);

/// The text.
///
/// # Errors
/// Only of the library, for names that are not Prometheus's; none of ours is.
pub fn text(report: &Report, now: Timestamp) -> prometheus::Result<String> {
    let registry = Registry::new();
    let version = [env!("CARGO_PKG_VERSION")];
    let built = ("build_info", "Version of hvbak.", Some(1.0));
    add(&registry, "hvbak", &["version"], &[(&version, vec![built])])?;
    add(&registry, "hvbak", &[], &[(&[], whole(report, now))])?;
    let ids: Vec<_> = report.vms.iter().map(|vm| vm.vm.to_string()).collect();
    let labels: Vec<_> =
        report.vms.iter().zip(&ids).map(|(vm, id)| [vm.name.as_str(), id.as_str()]).collect();
    let vms: Vec<(&[&str], _)> =
        labels.iter().zip(&report.vms).map(|(l, vm)| (l.as_slice(), of_vm(vm))).collect();
    add(&registry, "hvbak_vm", &["vm", "id"], &vms)?;
    let names: Vec<_> = report.managers.iter().map(|one| one.manager.to_string()).collect();
    let labels: Vec<_> = names.iter().map(|name| [name.as_str()]).collect();
    let managers: Vec<(&[&str], _)> = labels
        .iter()
        .zip(&report.managers)
        .map(|(l, one)| (l.as_slice(), of_manager(one)))
        .collect();
    add(&registry, "hvbak_manager", &["manager"], &managers)?;
    TextEncoder::new().encode_to_string(&registry.gather())
}

/// Registers the samples of several things, one gauge for each name.
fn add(
    registry: &Registry,
    prefix: &str,
    labels: &[&str],
    things: &[(&[&str], Vec<Sample>)],
) -> prometheus::Result<()> {
    let Some((_, first)) = things.first() else { return Ok(()) };
    for (at, (ending, help, _)) in first.iter().enumerate() {
        let gauge = GaugeVec::new(Opts::new(format!("{prefix}_{ending}"), *help), labels)?;
        for (values, samples) in things {
            if let Some((_, _, Some(value))) = samples.get(at) {
                gauge.with_label_values(values).set(*value);
            }
        }
        registry.register(Box::new(gauge))?;
    }
    Ok(())
}

fn whole(report: &Report, now: Timestamp) -> Vec<Sample> {
    let run = report.run.as_ref();
    let unassigned = report.unassigned.as_ref().map(|(_, vms)| count(vms.len()));
    let took = run.map(|run| run.finished.duration_since(run.started).as_secs_f64());
    let failed = run.map(|run| count(run.count(RunOutcome::Failed)));
    vec![
        ("report_timestamp_seconds", "When this was read.", moment(Some(now))),
        ("run_timestamp_seconds", "End of the last backup.", moment(run.map(|r| r.finished))),
        ("run_duration_seconds", "How long the last backup took.", took),
        ("run_failed_vms", "VMs that failed in the last backup.", failed),
        ("unassigned_vms", "VMs in no policy, as of the last run of one.", unassigned),
        ("dead_jobs", "Runs that died and left something.", Some(count(report.dead.len()))),
        (
            "damaged_records",
            "Run records that cannot be read.",
            Some(count(report.damaged_records)),
        ),
    ]
}

fn of_vm(vm: &VmReport) -> Vec<Sample> {
    let newest = vm.newest.as_ref();
    let run = vm.last_run.as_ref();
    let done = run.filter(|run| run.outcome == RunOutcome::Done);
    let ended = |last: &hvbak_run::LastRun| match last.outcome {
        RunOutcome::Done => Some(1.0),
        RunOutcome::Failed | RunOutcome::Stopped => Some(0.0),
        RunOutcome::Skipped => None,
    };
    let (verify, drill) = (vm.last_verify.as_ref(), vm.last_drill.as_ref());
    vec![
        ("points", "Points that can be read.", Some(count(vm.points))),
        ("damaged_points", "Points that cannot be read.", Some(count(vm.damaged))),
        (
            "found_damaged_points",
            "Points in which the newest look has found damage.",
            Some(count(vm.found_damaged.len())),
        ),
        (
            "newest_point_warnings",
            "What the newest point's manifest warns of, such as disks that are not in it.",
            newest.map(|newest| count(newest.warnings.len())),
        ),
        (
            "newest_point_timestamp_seconds",
            "When the newest point was made.",
            moment(newest.map(|newest| newest.started)),
        ),
        (
            "verified_point_timestamp_seconds",
            "When the newest point was made that was found whole.",
            moment(vm.verified.as_ref().map(|verified| verified.started)),
        ),
        ("target_age_seconds", "How old the newest point may be.", seconds(vm.target_seconds)),
        (
            "verified_target_age_seconds",
            "How old the newest verified point may be.",
            seconds(vm.verified_target_seconds),
        ),
        ("too_old", "Whether the newest point is older than that.", Some(yes(vm.too_old))),
        (
            "verified_too_old",
            "Whether the newest verified point is older than that.",
            Some(yes(vm.verified_too_old)),
        ),
        (
            "chain_points",
            "Points that the newest one is made of.",
            newest.map(|newest| count(newest.chain)),
        ),
        ("virtual_bytes", "Size of the VM's disks.", newest.map(|n| bytes(n.virtual_size))),
        ("stored_bytes", "Bytes of the images of all points.", Some(bytes(vm.stored_bytes))),
        (
            "last_run_timestamp_seconds",
            "End of the last backup that knows the VM.",
            moment(run.map(|run| run.finished)),
        ),
        ("last_run_success", "Whether it made a point.", run.and_then(ended)),
        ("last_run_duration_seconds", "How long the VM took.", done.map(|run| run.seconds)),
        ("last_run_stored_bytes", "Bytes it stored.", done.map(|run| bytes(run.stored_bytes))),
        (
            "last_verify_timestamp_seconds",
            "When a point was last compared with its digests.",
            moment(verify.map(|last| last.finished)),
        ),
        ("last_verify_success", "Whether nothing was damaged.", verify.and_then(ended)),
        (
            "last_drill_timestamp_seconds",
            "When a restore was last rehearsed.",
            moment(drill.map(|last| last.finished)),
        ),
        ("last_drill_success", "Whether it went well.", drill.and_then(ended)),
    ]
}

fn of_manager(manager: &ManagerReport) -> Vec<Sample> {
    let newest = manager.newest.as_ref();
    vec![
        ("points", "Archives that can be read.", Some(count(manager.points))),
        ("damaged_points", "Archives that cannot be read.", Some(count(manager.damaged))),
        (
            "newest_point_timestamp_seconds",
            "When the newest archive was made.",
            moment(newest.map(|newest| newest.started)),
        ),
        ("stored_bytes", "Bytes of the newest archive.", newest.map(|n| bytes(n.stored_bytes))),
        ("target_age_seconds", "How old it may be.", seconds(manager.target_seconds)),
        ("too_old", "Whether it is older.", Some(yes(manager.too_old))),
    ]
}

fn moment(at: Option<Timestamp>) -> Option<f64> {
    at.map(|at| f64::from(u32::try_from(at.as_second()).unwrap_or(0)))
}

fn seconds(age: Option<i64>) -> Option<f64> {
    age.map(|age| bytes(u64::try_from(age).unwrap_or(0)))
}

fn yes(value: bool) -> f64 {
    f64::from(u8::from(value))
}

fn count(value: usize) -> f64 {
    bytes(u64::try_from(value).unwrap_or(u64::MAX))
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus knows floats only")]
fn bytes(value: u64) -> f64 {
    value as f64
}
