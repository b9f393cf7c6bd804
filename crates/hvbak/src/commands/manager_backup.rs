//! `hvbak manager-backup`.

use clap::ValueEnum;
use hvbak_manager::{Request, Scope, archive::Compression, command::Format};
use hvbak_run::ManagerBackupOptions;
use indicatif::HumanBytes;
use serde_json::json;

use super::{Face, Outcome};
use crate::{
    cli::{CompressorArg, ManagerBackupArgs},
    exit::{CliError, DONE, PARTLY},
};

pub async fn run(face: &Face, args: ManagerBackupArgs) -> Outcome {
    let request = Request::parse(&args.scope).map_err(|e| CliError::usage(e.to_string()))?;
    let format = Format {
        small: args.small_size,
        archive: args.archive_compressor.map(compression),
        files: args.files_compressor.map(compression),
        databases: args
            .db_compressor
            .iter()
            .map(|text| one_compressor(text))
            .collect::<Result<_, _>>()?,
        plain: args.plain_dump.iter().map(|text| scope(text)).collect::<Result<_, _>>()?,
    };
    let context = face.manager_context()?;
    let recipients = face.recipients()?;
    let engine = face.engine_access();
    let options = ManagerBackupOptions { request, format, recipients, engine };
    let report = hvbak_run::manager_backup(&context, &options).await?;
    let manifest = &report.point.manifest;
    for earlier in &report.picked_up {
        face.printer.data(&format!("{}: taken home from an earlier run", earlier.title()));
        face.printer.record("picked-up", &earlier.manifest);
    }
    face.printer.record("manager-point", manifest);
    let size = manifest.archive().map_or(0, |f| f.size);
    face.printer.data(&format!(
        "{}: {} of engine-backup {}, {}",
        report.point.title(),
        manifest.scopes.join(", "),
        manifest.version,
        HumanBytes(size),
    ));
    let extra = &report.archive.extra;
    if !extra.is_empty() {
        face.printer.data(&format!("  extra files: {}", super::some_of(extra)));
    }
    if let Some(encrypted) = &manifest.encrypted {
        face.printer.data(&format!("  encrypted to {}", encrypted.recipients.join(", ")));
    }
    if let Some(engine) = &manifest.engine {
        let why = engine.why.as_ref().map_or_else(String::new, |why| format!(": {why}"));
        face.printer.say(&format!("the engine as second witness: {}{why}", engine.said));
    }
    let code = if manifest.absent.is_empty() { DONE } else { PARTLY };
    let scopes = &manifest.scopes;
    Ok((
        code,
        json!({ "point": report.point.title(), "path": report.point.path, "scopes": scopes, "absent": manifest.absent, "extra": extra, "bytes": size, "encrypted": manifest.encrypted.is_some() }),
    ))
}

fn scope(text: &str) -> Result<Scope, CliError> {
    text.parse().map_err(|e: hvbak_manager::ScopeError| CliError::usage(e.to_string()))
}

/// `SCOPE=KIND`.
fn one_compressor(text: &str) -> Result<(Scope, Compression), CliError> {
    let wrong = || CliError::usage(format!("`--db-compressor {text}` is not SCOPE=KIND"));
    let (name, kind) = text.split_once('=').ok_or_else(wrong)?;
    let kind = CompressorArg::from_str(kind, true).map_err(|_| wrong())?;
    Ok((scope(name)?, compression(kind)))
}

fn compression(arg: CompressorArg) -> Compression {
    match arg {
        CompressorArg::Gzip => Compression::Gzip,
        CompressorArg::Bzip2 => Compression::Bzip2,
        CompressorArg::Xz => Compression::Xz,
        CompressorArg::None => Compression::None,
    }
}
