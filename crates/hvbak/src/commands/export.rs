//! `hvbak export`: images and documents without an engine.

use std::{
    fs::{DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use hvbak_repo::{ExportFormat, ExportOptions, Point};
use hvbak_types::DiskId;
use indicatif::HumanBytes;
use serde_json::json;

use super::{Face, Outcome, repo_error};
use crate::{
    cli::{ExportArgs, ImageFormatArg},
    exit::{CliError, DONE},
};

pub async fn run(face: &Face, args: ExportArgs) -> Outcome {
    let repository = Arc::new(hvbak_run::open_repository(&face.config()?.repository.path)?);
    let point = repository.find(&args.point).map_err(repo_error("find the point"))?;
    let (format, extension) = match args.format {
        ImageFormatArg::Qcow2 => (ExportFormat::Qcow2, "qcow2"),
        ImageFormatArg::Raw => (ExportFormat::Raw, "raw"),
    };
    let mut files = Vec::new();
    for (disk, alias, output) in outputs(&point, &args, extension)? {
        face.printer.say(&format!("exporting {alias} to {}", output.display()));
        let options = ExportOptions { overwrite: args.force, ..ExportOptions::new(format) };
        let (repository, point, path) = (repository.clone(), point.clone(), output.clone());
        let cancel = face.cancel.clone();
        let summary = hvbak_run::blocking("export the disk", move || {
            repository.export(&point, disk, &options, &path, &|_, _| !cancel.is_cancelled())
        })
        .await?;
        let file = json!({ "disk": disk, "alias": alias, "path": output, "format": extension, "virtual_size": summary.virtual_size, "bytes": summary.bytes });
        face.printer.record("exported", &file);
        face.printer.data(&format!("{} ({})", output.display(), HumanBytes(summary.virtual_size)));
        files.push(file);
    }
    // Of one disk nobody wants the rest.
    if args.disk.is_none() && args.output.is_dir() {
        // Points of several VMs may be taken into one directory, and their documents have one name.
        let manifest = &point.manifest;
        let folder = args.output.join(plain(&format!("{}-{}", manifest.vm.name, manifest.point)));
        make(&folder)?;
        for entry in &point.manifest.documents {
            let Some(bytes) =
                point.document(&entry.name).map_err(repo_error("read the configuration"))?
            else {
                continue;
            };
            let path = folder.join(plain(&entry.name));
            write(&path, &bytes, args.force)?;
            face.printer.data(&path.display().to_string());
            let file = json!({ "document": entry.name, "path": path, "bytes": bytes.len() });
            face.printer.record("exported-document", &file);
            files.push(file);
        }
    }
    Ok((DONE, json!({ "files": files })))
}

/// Makes a directory for the owner alone; one that is there is used.
fn make(folder: &Path) -> Result<(), CliError> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        made => made.map_err(|cause| {
            let text = format!("cannot make directory {}", folder.display());
            CliError::Io { text, cause }
        }),
    }
}

/// Writes a document, which holds addresses and may hold secrets of guests (cloud-init).
fn write(path: &Path, bytes: &[u8], over: bool) -> Result<(), CliError> {
    let fail = |cause| CliError::Io { text: format!("cannot write {}", path.display()), cause };
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    if over {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let mut file = options.open(path).map_err(|cause| match cause.kind() {
        io::ErrorKind::AlreadyExists => CliError::Usage {
            text: format!("{} exists", path.display()),
            hint: Some("choose another path or add `--force`".into()),
        },
        _ => fail(cause),
    })?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(fail)
}

/// A name from outside as one of a file here.
fn plain(name: &str) -> String {
    let safe = |c: char| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    name.chars().map(safe).collect()
}

/// Disk, alias and file of everything that is exported.
fn outputs(
    point: &Point,
    args: &ExportArgs,
    extension: &str,
) -> Result<Vec<(DiskId, String, PathBuf)>, CliError> {
    let disks = &point.manifest.disks;
    if let Some(text) = &args.disk {
        let disk = point.manifest.find_disk(text).ok_or_else(|| CliError::Usage {
            text: format!("the point holds no disk `{text}`"),
            hint: Some("see its disks with `hvbak show`".into()),
        })?;
        return Ok(vec![(
            disk.record.id,
            disk.alias.clone(),
            in_dir(args, &disk.alias, disk.record.id, extension, false),
        )]);
    }
    if disks.len() > 1 && !args.output.is_dir() {
        return Err(CliError::Usage {
            text: format!(
                "{} is no directory, and the point holds {} disks",
                args.output.display(),
                disks.len()
            ),
            hint: Some("make the directory, or choose a disk with `--disk`".into()),
        });
    }
    Ok(disks
        .iter()
        .map(|d| {
            let twin = disks.iter().filter(|o| o.alias == d.alias).count() > 1;
            (d.record.id, d.alias.clone(), in_dir(args, &d.alias, d.record.id, extension, twin))
        })
        .collect())
}

/// The output itself, or a file in it when it is a directory. An alias comes from outside:
/// what could leave the directory is replaced; two disks of one alias go by their ids.
fn in_dir(args: &ExportArgs, alias: &str, id: DiskId, extension: &str, twin: bool) -> PathBuf {
    if !args.output.is_dir() {
        return args.output.clone();
    }
    let mut name = plain(alias);
    if twin || name.trim_matches('.').is_empty() {
        name = id.to_string();
    }
    args.output.join(format!("{name}.{extension}"))
}
