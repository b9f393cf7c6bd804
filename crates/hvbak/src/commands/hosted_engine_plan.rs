//! `hvbak hosted-engine plan`: the long sequences, printed. Nothing is asked of any host.

use hvbak_manager::sequence::{Archive, Sequence, Site, Step};
use hvbak_repo::{ManagerPoint, Repository};
use serde_json::json;

use super::{Face, Outcome, repo_error};
use crate::{
    cli::{HostedEnginePlanArgs, SequenceArg},
    config::Config,
    exit::{CliError, DONE},
};

pub fn run(face: &Face, config: &Config, args: HostedEnginePlanArgs) -> Outcome {
    let repository = hvbak_run::open_repository(&config.repository.path)?;
    let fqdn = engine_name(&config.engine.url);
    let sequence = sequence(args.sequence);
    let point = match &args.archive {
        // Its own archive is made by one of its steps.
        None if sequence.makes_archive() => None,
        named => choose(&repository, &fqdn, named.as_deref())?,
    };
    if let Some(point) = &point {
        // What is printed is typed by somebody in a hurry: only sums that hold.
        let wrong = point.compare().map_err(repo_error("read the archive"))?;
        if !wrong.is_empty() {
            let (path, why) = (point.path.clone(), wrong.join("; "));
            let cause = hvbak_repo::Error::Damaged { path, why };
            return Err(repo_error("take the archive")(cause).into());
        }
    }
    let address = |name: String| {
        let known = config.hosts.get(&name).and_then(|host| host.address.clone());
        known.unwrap_or(name)
    };
    let archive = point.as_ref().and_then(facts);
    let host_name = args.host.clone();
    let site =
        Site { host_name, host: args.host.map(address), to: args.to.map(address), fqdn, archive };
    let steps = sequence.steps(&site).map_err(|cause| CliError::usage(cause.to_string()))?;
    for (number, step) in steps.iter().enumerate() {
        face.printer.record("step", step);
        show(face, number + 1, step);
    }
    if let Some(open) = open_walk(&repository, &site.fqdn) {
        face.printer.say(&open);
    }
    let archive = site.archive.as_ref().map(|archive| &archive.title);
    Ok((DONE, json!({ "sequence": sequence, "steps": steps.len(), "archive": archive })))
}

/// Where a walk is that nobody has ended.
fn open_walk(repository: &Repository, fqdn: &str) -> Option<String> {
    let record = repository.walk(&fqdn.parse().ok()?).ok()??;
    let step = record.steps.iter().find(|step| !matches!(step.state.as_str(), "done" | "passed"));
    let step = step.map_or("its end", |step| &step.name);
    Some(format!(
        "a walk through `{}` is open at `{step}`; `--run` goes on with it",
        record.sequence
    ))
}

/// For people.
pub fn show(face: &Face, number: usize, step: &Step) {
    let (name, title, place) = (step.name, &step.title, step.place.words());
    face.printer.data(&format!("{number}. {name}: {title} ({place})"));
    for line in &step.commands {
        face.printer.data(&format!("     {line}"));
    }
    if let Some(sign) = step.sign.words() {
        face.printer.data(&format!("   done when {sign}"));
    }
}

pub fn sequence(arg: SequenceArg) -> Sequence {
    match arg {
        SequenceArg::Move => Sequence::Move,
        SequenceArg::Recover => Sequence::Recover,
        SequenceArg::Overwrite => Sequence::Overwrite,
        SequenceArg::ToHosted => Sequence::ToHosted,
        SequenceArg::ToStandalone => Sequence::ToStandalone,
    }
}

/// The named archive, or the newest with files and database.
pub fn choose(
    repository: &Repository,
    fqdn: &str,
    named: Option<&str>,
) -> Result<Option<ManagerPoint>, CliError> {
    Ok(match named {
        Some(selector) => {
            Some(repository.find_manager_point(selector).map_err(repo_error("find the archive"))?)
        }
        None => newest(repository, fqdn).map_err(repo_error("list the archives"))?,
    })
}

pub fn engine_name(url: &str) -> String {
    let rest = url.split("://").nth(1).unwrap_or(url);
    rest.split(['/', ':']).next().unwrap_or(rest).to_owned()
}

/// What an engine can be made of again; nothing of an archive without files or database.
fn facts(point: &ManagerPoint) -> Option<Archive> {
    if !is_whole(point) {
        return None;
    }
    Some(Archive {
        title: point.title(),
        path: point.archive_path().display().to_string(),
        sha256: point.manifest.plain()?.sha256.to_string(),
        recipients: point.manifest.recipients().to_vec(),
        version: point.manifest.version.clone(),
    })
}

fn is_whole(point: &ManagerPoint) -> bool {
    ["files", "db"].iter().all(|scope| point.manifest.scopes.iter().any(|one| one == scope))
}

/// The newest archive with files and database: of the engine's name where there is one, since
/// a repository may hold those of several managers. A directory alone, such as that of a walk,
/// is none.
fn newest(repository: &Repository, fqdn: &str) -> hvbak_repo::Result<Option<ManagerPoint>> {
    let own = fqdn.to_ascii_lowercase();
    let (mut ours, mut any): (Option<ManagerPoint>, Option<ManagerPoint>) = (None, None);
    for name in repository.manager_names()? {
        let found = if name.to_string() == own { &mut ours } else { &mut any };
        for point in repository.manager_points(&name)?.points {
            let newer = found.as_ref().is_none_or(|f| f.manifest.started < point.manifest.started);
            if is_whole(&point) && newer {
                *found = Some(point);
            }
        }
    }
    Ok(ours.or(any))
}
