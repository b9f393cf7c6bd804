//! `hvbak manager-paths`.

use hvbak_run::{ManagerPathsOptions, manager_paths};
use serde_json::json;

use super::{Face, Outcome};
use crate::{
    cli::{ManagerPathsArgs, ManagerPathsCommand},
    exit::DONE,
};

pub async fn run(face: &Face, args: ManagerPathsArgs) -> Outcome {
    let options = match args.command {
        ManagerPathsCommand::List => ManagerPathsOptions::default(),
        ManagerPathsCommand::Add { paths, dry_run } => {
            ManagerPathsOptions { add: paths, remove: Vec::new(), dry_run }
        }
        ManagerPathsCommand::Remove { paths, dry_run } => {
            ManagerPathsOptions { add: Vec::new(), remove: paths, dry_run }
        }
    };
    let done = manager_paths(&face.manager_context()?, &options).await?;
    face.printer.record("manager-paths", &done);
    for seen in &done.paths {
        let sign = if done.added.contains(&seen.path) { "+ " } else { "  " };
        face.printer.data(&format!("{sign}{}  ({})", seen.path, seen.kind));
    }
    for path in &done.removed {
        face.printer.data(&format!("- {path}"));
    }
    if done.paths.is_empty() {
        face.printer.say("no extra files");
    }
    for other in &done.others {
        face.printer.say(&format!("note: engine-backup reads {other}, too, which is not hvbak's"));
    }
    for note in &done.notes {
        face.printer.say(&format!("note: {note}"));
    }
    let changed = !(done.added.is_empty() && done.removed.is_empty());
    if options.dry_run {
        match &done.text {
            _ if !changed => face.printer.say("nothing would change"),
            None => face.printer.say(&format!("{} would be removed", done.file)),
            Some(text) => face.printer.say(&format!("{} would be\n{text}", done.file)),
        }
    }
    let paths: Vec<_> = done.paths.iter().map(|seen| &seen.path).collect();
    Ok((DONE, json!({ "paths": paths, "changed": changed, "dry_run": options.dry_run })))
}
