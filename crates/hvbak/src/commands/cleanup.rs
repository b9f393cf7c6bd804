//! `hvbak cleanup`.

use serde_json::json;

use super::{Face, Outcome};
use crate::{
    cli::CleanupArgs,
    exit::{DONE, PARTLY},
};

pub async fn run(face: &Face, args: CleanupArgs) -> Outcome {
    let context = face.context().await?;
    let result = hvbak_run::cleanup(&context, args.dry_run).await;
    context.engine.logout().await;
    let report = result?;
    if report.undone == 0 && report.failed.is_empty() && report.running == 0 {
        face.printer.data("nothing is left behind");
    }
    for text in &report.failed {
        face.printer.say(&format!("error: {text}"));
    }
    if report.running > 0 {
        face.printer.say(&format!("{} jobs are at work and were left alone", report.running));
    }
    let code = if report.failed.is_empty() { DONE } else { PARTLY };
    Ok((
        code,
        json!({ "undone": report.undone, "failed": report.failed, "running": report.running, "dry_run": args.dry_run }),
    ))
}
