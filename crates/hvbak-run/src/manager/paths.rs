//! `manager-paths`: the extra files of engine-backup, in one file of hvbak's on the manager.
//!
//! Invariants: only that file is written, whole or not at all, and only if it is what it was
//! when it was read; nothing is written when nothing would change.

use bytes::Bytes;
use hvbak_manager::extra::{self, ExtraError, ListFile, Seen};
use hvbak_ssh::ExitStatus;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::{ManagerContext, link::Link};
use crate::error::{self, Result, RunError};

/// What is to be done with the list.
#[derive(Debug, Clone, Default)]
pub struct ManagerPathsOptions {
    pub add: Vec<String>,
    pub remove: Vec<String>,
    /// Nothing is written.
    pub dry_run: bool,
}

/// The list as it is now, or would be.
#[derive(Debug, Clone, Serialize)]
pub struct ManagerPaths {
    pub manager: String,
    /// The file on the manager.
    pub file: &'static str,
    pub paths: Vec<Seen>,
    pub added: Vec<String>,
    pub removed: Vec<String>,
    /// Files of others that engine-backup sources; they may add paths, too.
    pub others: Vec<String>,
    /// Worth knowing: what is not there, what is backed up anyway.
    pub notes: Vec<String>,
    /// The file's new text; `None`: it stays, or goes.
    #[serde(skip)]
    pub text: Option<String>,
}

/// Reads the list and changes it as asked.
///
/// # Errors
/// [`RunError::ManagerPaths`] before anything is written, when a path or the file on the
/// manager is not acceptable.
pub async fn manager_paths(
    context: &ManagerContext,
    options: &ManagerPathsOptions,
) -> Result<ManagerPaths> {
    let failed = failed(&context.manager.address);
    let clean = |paths: &[String]| -> Result<Vec<String>> {
        let check = |path: &String| extra::check_path(path, &context.manager.work_dir);
        paths.iter().map(check).collect::<Result<_, _>>().map_err(&failed)
    };
    let add = clean(&options.add)?;
    // What was once accepted must go, whatever is thought of it now.
    let remove: Vec<_> =
        options.remove.iter().map(|p| p.trim_end_matches('/').to_owned()).collect();
    let mut link = Link::open(&context.settings, &context.manager, &context.cancel).await?;
    let result = with_link(context, &mut link, add, remove, options.dry_run).await;
    link.close().await;
    result
}

fn failed(manager: &str) -> impl Fn(ExtraError) -> RunError {
    let manager = manager.to_owned();
    move |cause| RunError::ManagerPaths { manager: manager.clone(), cause }
}

async fn with_link(
    context: &ManagerContext,
    link: &mut Link,
    add: Vec<String>,
    remove: Vec<String>,
    dry_run: bool,
) -> Result<ManagerPaths> {
    let failed = failed(&context.manager.address);
    // Fails where there is no engine-backup at all.
    link.look(&context.manager).await?;
    let doing = "read the list of extra files";
    let answer = link.script(extra::READ, &[], doing).await?;
    let answer = answer.check(doing).map_err(error::ssh(&link.name, doing))?;
    let ListFile { text: before, mut paths, others } =
        ListFile::parse(&answer.text()).map_err(&failed)?;
    let kinds = kinds(link, &add).await?;
    if let Some(odd) = kinds.iter().find(|seen| seen.kind == "other") {
        let why = "it is a device, a pipe or a socket, and no archive with it counts as whole";
        return Err(failed(ExtraError::Path { path: odd.path.clone(), why }));
    }
    let mut notes: Vec<_> = add
        .iter()
        .filter(|path| extra::is_standard(path))
        .map(|path| format!("{path} is backed up anyway"))
        .collect();
    let added = add.into_iter().filter(|path| paths.add(path.clone())).collect();
    let removed: Vec<_> = remove.iter().filter(|path| paths.remove(path)).cloned().collect();
    for path in remove.iter().filter(|path| !removed.contains(path)) {
        notes.push(format!("{path} was not in the list"));
    }
    let text = paths.text();
    if text != before && !dry_run {
        write(context, link, before.as_deref(), text.as_deref()).await?;
    }
    let all: Vec<_> = paths.iter().map(ToOwned::to_owned).collect();
    let paths = self::kinds(link, &all).await?;
    for seen in &paths {
        match seen.kind.as_str() {
            "missing" => notes.push(format!(
                "{} does not exist on the manager; engine-backup passes over it without a word",
                seen.path
            )),
            "link" => notes.push(format!(
                "{} is a symbolic link; it is backed up, and not what it leads to",
                seen.path
            )),
            _ => {}
        }
    }
    let manager = context.manager.name.clone().unwrap_or_else(|| context.manager.address.clone());
    Ok(ManagerPaths { manager, file: extra::FILE, paths, added, removed, others, notes, text })
}

async fn kinds(link: &mut Link, paths: &[String]) -> Result<Vec<Seen>> {
    let input: String = paths.iter().flat_map(|path| [path.as_str(), "\n"]).collect();
    let doing = "look for the extra files";
    let answer = link.feed(extra::KINDS, &[], &Bytes::from(input), doing).await?;
    let answer = answer.check(doing).map_err(error::ssh(&link.name, doing))?;
    Ok(extra::parse_kinds(paths.iter().map(String::as_str), &answer.text()))
}

async fn write(
    context: &ManagerContext,
    link: &mut Link,
    before: Option<&str>,
    after: Option<&str>,
) -> Result<()> {
    let doing = "write the list of extra files";
    let args = [sum(before), sum(after)];
    let input = Bytes::from(after.unwrap_or_default().to_owned());
    let done = link.feed(extra::WRITE, &[&args[0], &args[1]], &input, doing).await?;
    match done.status {
        ExitStatus::Code(0) => Ok(()),
        ExitStatus::Code(code) => {
            let cause = ExtraError::of_write(code, done.stderr.trim());
            Err(failed(&context.manager.address)(cause))
        }
        _ => done.check(doing).map(drop).map_err(error::ssh(&link.name, doing)),
    }
}

/// SHA-256 of the file's text.
fn sum(text: Option<&str>) -> String {
    let hex = |text| Sha256::digest(text).iter().map(|b| format!("{b:02x}")).collect();
    text.map_or_else(|| "absent".to_owned(), hex)
}
