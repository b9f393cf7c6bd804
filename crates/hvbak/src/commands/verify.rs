//! `hvbak verify`.

use std::sync::Arc;

use hvbak_repo::{Point, Repository, RunOutcome, RunVm, VerifyOptions};
use hvbak_types::{PointId, VmId};
use jiff::Timestamp;
use serde_json::json;

use super::{Face, Outcome, repo_error};
use crate::{
    cli::VerifyArgs,
    exit::{CliError, DAMAGE, DONE, chain},
};

pub async fn run(face: &Face, args: VerifyArgs) -> Outcome {
    if args.points.is_empty() && !args.all {
        return Err(CliError::usage("name points, or `--all`"));
    }
    let repository = Arc::new(hvbak_run::open_repository(&face.config()?.repository.path)?);
    let started = Timestamp::now();
    let mut damaged = 0;
    let (mut points, mut seen) = (Vec::new(), Vec::new());
    if args.all {
        let listing = repository.all_points().map_err(repo_error("list the points"))?;
        points = listing.points;
        let configurations = repository.configurations().all_points();
        let configurations = configurations.map_err(repo_error("list the configurations"))?;
        points.extend(configurations.points);
        for bad in &configurations.damaged {
            damaged += 1;
            tell(face, &repository.damage_of(bad));
        }
        if let Some(share) = args.share {
            let whole = points.len();
            points.retain(|p| share.has(&format!("{}@{}", p.vm(), p.id()), started));
            face.printer.say(&format!("{} of {whole} points are in this share", points.len()));
        }
        for bad in &listing.damaged {
            damaged += 1;
            let finding = repository.damage_of(bad);
            tell(face, &finding);
            let name = bad.vm.to_string();
            note(&mut seen, (bad.vm, &name), &bad.point, Some(finding.text));
        }
    }
    for selector in &args.points {
        match repository.find(selector) {
            Ok(point) => points.push(point),
            Err(cause) if cause.is_damage() => {
                damaged += 1;
                let text = chain(&cause);
                face.printer.record("finding", &json!({ "selector": selector, "text": text }));
                face.printer.data(&format!("{selector}: DAMAGED: {text}"));
            }
            Err(cause) => return Err(repo_error("find the point")(cause).into()),
        }
    }
    let (mut clusters, count) = (0, points.len());
    for (at, point) in points.into_iter().enumerate() {
        let title = point.title();
        face.printer.service.status(&format!("{title}, {} of {count}", at + 1));
        // A prune may be at work beside this; what it removed is no damage.
        let (vm, name, id) = (point.vm(), point.manifest.vm.name.clone(), point.id().clone());
        let home = repository.home_of(&point);
        let counts = !point.manifest.configuration_only;
        let gone = || args.all && home.point(vm, &id).is_err_and(|e| e.is_no_point());
        let parents = chain_of(&repository, &point);
        let report = verify_one(face, &repository, point, !args.all).await?;
        if !report.is_clean() && gone() {
            face.printer.say(&format!("note: {title} was removed meanwhile"));
            continue;
        }
        clusters += report.clusters;
        let damage = report.findings.first().map(|f| f.text.clone());
        if damage.is_none() && !args.all {
            // What it stands on was read as well.
            for parent in parents {
                note(&mut seen, (vm, &name), &parent, None);
            }
        }
        // What holds no disk proves nothing of a VM.
        if counts {
            note(&mut seen, (vm, &name), &id, damage);
        }
        if report.is_clean() && !counts {
            face.printer.data(&format!("{title}: whole; configuration only, no disk"));
        } else if report.is_clean() {
            face.printer.data(&format!("{title}: whole, {} clusters compared", report.clusters));
        } else {
            damaged += 1;
            report.findings.iter().for_each(|f| tell(face, f));
        }
        for note in &report.notes {
            face.printer.say(&format!("note: {title}: {note}"));
        }
        face.printer.record(
            "verified",
            &json!({ "point": title, "clean": report.is_clean(), "clusters": report.clusters, "bytes": report.bytes, "findings": report.findings, "notes": report.notes }),
        );
    }
    if let Err(cause) = hvbak_run::note_verify(&repository, started, seen).await {
        face.printer.say(&format!("note: `hvbak report` will not know this: {}", chain(&cause)));
    }
    let code = if damaged == 0 { DONE } else { DAMAGE };
    Ok((code, json!({ "points": count, "damaged": damaged, "clusters": clusters })))
}

/// What is known of a VM: its newest point that was looked at, and the first damage.
fn note(seen: &mut Vec<RunVm>, (id, name): (VmId, &str), point: &PointId, damage: Option<String>) {
    let at = seen.iter().position(|vm| vm.id == id).unwrap_or_else(|| {
        seen.push(RunVm::new(id, name, RunOutcome::Done));
        seen.len() - 1
    });
    let Some(vm) = seen.get_mut(at) else { return };
    vm.point = vm.point.take().max(Some(point.clone()));
    let list = if damage.is_none() { &mut vm.whole } else { &mut vm.damaged };
    if !list.contains(point) {
        list.push(point.clone());
    }
    if vm.reason.is_none() && damage.is_some() {
        (vm.outcome, vm.reason) = (RunOutcome::Failed, damage);
    }
}

/// The points that a point stands on, as far as they can be read.
fn chain_of(repository: &Repository, point: &Point) -> Vec<PointId> {
    let mut found: Vec<PointId> = Vec::new();
    for disk in &point.manifest.disks {
        let chain = repository.disk_chain(point, disk.record.id).unwrap_or_default();
        found.extend(chain.iter().map(|one| one.id().clone()));
    }
    found.sort();
    found.dedup();
    found.retain(|id| id != point.id());
    found
}

fn tell(face: &Face, finding: &hvbak_repo::Finding) {
    face.printer.record("finding", finding);
    face.printer.data(&format!("{}: DAMAGED: {}", finding.file.display(), finding.text));
}

async fn verify_one(
    face: &Face,
    repository: &Arc<Repository>,
    point: Point,
    parents: bool,
) -> Result<hvbak_repo::VerifyReport, CliError> {
    let (repository, cancel) = (repository.clone(), face.cancel.clone());
    // With `--all` the parents have their own turn.
    let options = VerifyOptions { parents, ..VerifyOptions::default() };
    Ok(hvbak_run::blocking("verify the point", move || {
        repository.verify(&point, &options, &|_| !cancel.is_cancelled())
    })
    .await?)
}
