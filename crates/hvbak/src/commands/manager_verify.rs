//! `hvbak manager-verify`: what an archive of engine-backup holds and whether it is whole.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use hvbak_manager::{
    Scope,
    archive::{self, Finding, Report},
};
use hvbak_repo::{Error as RepoError, Identities};
use hvbak_run::{DumpVerdict, RunError};
use indicatif::HumanBytes;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Face, Outcome, identities, repo_error};
use crate::{
    cli::ManagerVerifyArgs,
    exit::{CliError, DAMAGE, DONE, PARTLY},
};

pub async fn run(face: &Face, args: ManagerVerifyArgs) -> Outcome {
    let identities = identities(&args.key)?;
    let (mut damaged, mut unopened, count) = (0, 0, args.archives.len());
    for named in args.archives {
        let archive = Stored::locate(face, &named, identities.clone())?;
        if archive.is_closed() {
            unopened += 1;
            tell_closed(face, &archive);
            continue;
        }
        let mut report = read(face, &archive).await?;
        let dumps = if report.is_whole() { second_judge(&archive).await? } else { Vec::new() };
        for (scope, verdict) in &dumps {
            if let DumpVerdict::Damaged(why) = verdict {
                let text = format!("pg_restore cannot read it: {why}");
                report.findings.push(Finding { member: Some(scope.member().into()), text });
            }
        }
        damaged += usize::from(!report.is_whole());
        tell(face, &archive, &report, &dumps);
    }
    let code = match (damaged, unopened) {
        (0, 0) => DONE,
        // Its bytes are as they came, and nobody knows whether they are an archive.
        (0, _) => PARTLY,
        _ => DAMAGE,
    };
    Ok((code, json!({ "archives": count, "damaged": damaged, "not_opened": unopened })))
}

/// An archive that is looked at.
#[derive(Clone)]
struct Stored {
    path: PathBuf,
    recipients: Vec<String>,
    sealed: bool,
    identities: Option<Identities>,
}

impl Stored {
    /// A file that is there is a file; anything else is a point of the repository, whose files
    /// are compared with its manifest first. What is encrypted is opened to its end once.
    fn locate(face: &Face, named: &Path, identities: Option<Identities>) -> Result<Self, CliError> {
        let selector = named.to_string_lossy();
        if named.exists() || selector.contains('/') {
            let failed = repo_error("read the archive");
            let sealed = hvbak_repo::is_sealed(named).map_err(failed)?;
            if sealed {
                let (path, recipients) = (named.to_owned(), Vec::new());
                let failed = repo_error("open the archive");
                match &identities {
                    None => {
                        return Err(failed(RepoError::NeedsIdentity { path, recipients }).into());
                    }
                    Some(keys) => hvbak_repo::sum_sealed(named, keys).map_err(failed)?,
                };
            }
            return Ok(Self { path: named.to_owned(), recipients: Vec::new(), sealed, identities });
        }
        let repository = hvbak_run::open_repository(&face.config()?.repository.path)?;
        let point =
            repository.find_manager_point(&selector).map_err(repo_error("find the point"))?;
        let mut wrong = point.compare().map_err(repo_error("read the point"))?;
        let sealed = point.manifest.encrypted.is_some();
        if wrong.is_empty() && identities.is_some() {
            let differs = point.compare_plain(identities.as_ref());
            wrong.extend(differs.map_err(repo_error("open the archive"))?);
        }
        if !wrong.is_empty() {
            let why = wrong.join("; ");
            let cause = RepoError::Damaged { path: point.path, why };
            return Err(repo_error("verify the point")(cause).into());
        }
        let recipients = point.manifest.recipients().to_vec();
        Ok(Self { path: point.archive_path(), recipients, sealed, identities })
    }

    fn is_closed(&self) -> bool {
        self.sealed && self.identities.is_none()
    }

    /// The archive as engine-backup made it.
    fn open(&self) -> Result<Box<dyn Read + Send>, CliError> {
        let shown = self.path.display();
        match &self.identities {
            Some(keys) if self.sealed => Ok(hvbak_repo::open_sealed(&self.path, keys)
                .map_err(repo_error("open the archive"))?),
            _ => match std::fs::File::open(&self.path) {
                Ok(file) => Ok(Box::new(file)),
                Err(cause) => {
                    Err(CliError::Io { text: format!("cannot read archive {shown}"), cause })
                }
            },
        }
    }
}

/// What could be said without a key, and loudly what could not.
fn tell_closed(face: &Face, archive: &Stored) {
    let (shown, keys) = (archive.path.display(), archive.recipients.join(", "));
    face.printer.record(
        "archive",
        &json!({ "archive": archive.path, "opened": false, "stored_bytes": "as recorded", "encrypted_to": archive.recipients }),
    );
    face.printer.data(&format!("{shown}: stored bytes are as recorded"));
    face.printer.say(&format!(
        "warning: {shown}: NOT OPENED: whether the archive, its sums and its dumps are whole was NOT CHECKED; it is encrypted to {keys} (--identity FILE)"
    ));
}

/// Reads one archive on a thread that may block; heeds cancellation.
async fn read(face: &Face, archive: &Stored) -> Result<Report, CliError> {
    let cancel = face.cancel.clone();
    let shown = archive.path.display().to_string();
    let inner = archive.open()?;
    let work = move || {
        archive::verify(Heeding { inner, cancel }).map_err(|archive::ReadError(cause)| cause)
    };
    let report = tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| RunError::Task { text: e.to_string() })?;
    if face.cancel.is_cancelled() {
        return Err(RunError::Cancelled.into());
    }
    report.map_err(|cause| CliError::Io { text: format!("cannot read archive {shown}"), cause })
}

/// PostgreSQL's own reader over the dumps, on a thread that may block.
async fn second_judge(archive: &Stored) -> Result<Vec<(Scope, DumpVerdict)>, CliError> {
    let source = archive.open()?;
    let checked = tokio::task::spawn_blocking(move || hvbak_run::check_dumps(source)).await;
    Ok(checked.map_err(|e| RunError::Task { text: e.to_string() })??)
}

/// A source that fails once the command was cancelled.
struct Heeding<R> {
    inner: R,
    cancel: CancellationToken,
}

impl<R: Read> Read for Heeding<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        self.inner.read(buffer)
    }
}

fn tell(face: &Face, archive: &Stored, report: &Report, dumps: &[(Scope, DumpVerdict)]) {
    let (path, shown) = (&archive.path, archive.path.display());
    let restored_by = report.version.as_ref().map(hvbak_manager::Version::restored_by);
    let mut record = json!({ "archive": path, "whole": report.is_whole(), "scopes": report.scopes(), "restored_by": restored_by, "dumps": dumps, "opened": true, "encrypted_to": archive.recipients });
    if let (Some(record), Ok(serde_json::Value::Object(more))) =
        (record.as_object_mut(), serde_json::to_value(report))
    {
        record.extend(more);
    }
    face.printer.record("archive", &record);
    for finding in &report.findings {
        let member = finding.member.as_deref().map_or_else(String::new, |m| format!("{m}: "));
        face.printer.data(&format!("{shown}: DAMAGED: {member}{}", finding.text));
    }
    if report.is_whole() {
        let version = report.version.as_ref().map_or_else(String::new, ToString::to_string);
        let sealed = if archive.sealed { " (decrypted)" } else { "" };
        let os = report.os_version.as_deref().unwrap_or("an unknown system");
        face.printer
            .data(&format!("{shown}: whole{sealed}, made by engine-backup {version} on {os}"));
    }
    for (scope, verdict) in dumps {
        if let DumpVerdict::NotChecked(why) = verdict {
            face.printer
                .say(&format!("warning: {shown}: {scope} NOT CHECKED by pg_restore: {why}"));
        }
    }
    for part in &report.parts {
        let format = part.format.map_or("tar", archive::Format::word);
        let items = match part.items {
            0 => String::new(),
            n if part.format.is_some() => {
                let read = dumps.contains(&(part.scope, DumpVerdict::Whole));
                let read = if read { ", read by pg_restore" } else { "" };
                format!(", {n} tables with data{read}")
            }
            n => format!(", {n} members"),
        };
        face.printer.data(&format!(
            "  {:<15} {}, {format}, {} unpacked{items}",
            part.scope.name(),
            part.scope.title(),
            HumanBytes(part.unpacked),
        ));
    }
    if !report.extra.is_empty() {
        face.printer.data(&format!("  extra files: {}", super::some_of(&report.extra)));
    }
    if let (Some(by), false) = (restored_by, report.parts.is_empty()) {
        face.printer.data(&format!("  can be restored by engine-backup {by}"));
    }
    for note in &report.notes {
        face.printer.say(&format!("note: {shown}: {note}"));
    }
}
