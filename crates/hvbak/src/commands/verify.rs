//! `hvbak verify`.

use std::sync::Arc;

use hvbak_repo::{Point, Repository, VerifyOptions};
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
    let mut damaged = 0;
    let mut points = Vec::new();
    if args.all {
        let listing = repository.all_points().map_err(repo_error("list the points"))?;
        points = listing.points;
        for bad in &listing.damaged {
            damaged += 1;
            let finding = repository.damage_of(bad);
            tell(face, &finding);
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
    for point in points {
        let title = point.title();
        // A prune may be at work beside this; what it removed is no damage.
        let (vm, id) = (point.vm(), point.id().clone());
        let gone = || args.all && repository.point(vm, &id).is_err_and(|e| e.is_no_point());
        let report = verify_one(face, &repository, point, !args.all).await?;
        if !report.is_clean() && gone() {
            face.printer.say(&format!("note: {title} was removed meanwhile"));
            continue;
        }
        clusters += report.clusters;
        if report.is_clean() {
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
    let code = if damaged == 0 { DONE } else { DAMAGE };
    Ok((code, json!({ "points": count, "damaged": damaged, "clusters": clusters })))
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
