//! What a walk puts on the fresh host, looks at there and removes again.
//!
//! Invariant: the archive that arrives is hashed there twice, while it is taken and as it lies;
//! only then does it count.

use std::time::Duration;

use bytes::Bytes;
use hvbak_manager::{
    hosted_engine::{
        fresh::{FRESH, FreshFacts},
        remote::{self, Deployment},
    },
    sequence::{ANSWERS, Archive, REMOTE_ARCHIVE, answers},
};
use hvbak_ssh::ExitStatus;
use sha2::{Digest as _, Sha256};

use super::{
    super::link::{Link, READ_WHOLE, is_broken},
    WalkContext,
};
use crate::{
    error::{self, Result, RunError},
    job::blocking,
};

/// Attempts to send the archive whole.
const ATTEMPTS: u32 = 3;

/// The host's name, which the sequence cannot do without.
pub fn fresh(to: Option<&str>) -> Result<&str> {
    let cause = hvbak_manager::sequence::SequenceError::NoFreshHost;
    to.ok_or(RunError::WalkSite { cause })
}

/// Looks at the fresh host.
pub async fn facts(context: &WalkContext, host: &str, engine: &str) -> Result<FreshFacts> {
    Ok(FreshFacts::parse(&ask(context, host, FRESH, &[engine], "look at the fresh host").await?))
}

/// How far a deployment is.
pub async fn deployment(context: &WalkContext, to: Option<&str>) -> Result<Deployment> {
    let doing = "look at the deployment";
    Ok(Deployment::parse(&ask(context, fresh(to)?, remote::DEPLOYMENT, &[], doing).await?))
}

/// Why the archive does not lie there as it should; `None`: it does.
pub async fn differs(
    context: &WalkContext,
    host: &str,
    archive: &Archive,
) -> Result<Option<String>> {
    let text = ask(context, host, remote::LIES, &[REMOTE_ARCHIVE], "hash the archive").await?;
    Ok(differing(&text, &archive.sha256))
}

fn differing(text: &str, sum: &str) -> Option<String> {
    let value = |key: &str| {
        let found = text.lines().filter_map(|line| line.split_once('=')).find(|(k, _)| *k == key);
        found.map(|(_, value)| value.trim())
    };
    match (value("sum"), value("mode")) {
        (None, _) => Some(format!("there is no {REMOTE_ARCHIVE}")),
        (Some(there), _) if there != sum => Some(format!(
            "the SHA-256 of {REMOTE_ARCHIVE} there is {}, and it was stored with {sum}",
            there.chars().take(64).collect::<String>()
        )),
        (_, Some("600" | "400")) => None,
        (_, mode) => Some(format!(
            "others may read {REMOTE_ARCHIVE} there (mode {})",
            mode.unwrap_or_default().chars().take(8).collect::<String>()
        )),
    }
}

/// Sends the archive, opened when it is encrypted; nothing is sent that is not what was stored.
pub async fn copy(context: &WalkContext, host: &str, archive: &Archive) -> Result<()> {
    let (repository, title) = (context.repository.clone(), archive.title.clone());
    let keys = context.identities.clone();
    let point = blocking("compare the archive with its recorded sum", move || {
        let point = repository.find_manager_point(&title)?;
        let mut wrong = point.compare()?;
        if wrong.is_empty() {
            wrong.extend(point.compare_plain(keys.as_ref())?);
        }
        if wrong.is_empty() {
            return Ok(point);
        }
        Err(hvbak_repo::Error::Damaged { path: point.path, why: wrong.join("; ") })
    })
    .await?;
    let doing = "send the archive";
    context.phase(format!("sending the archive to {host}"));
    let link = Link::to_host(&context.settings, host, &context.cancel).await?;
    let args = [REMOTE_ARCHIVE, archive.sha256.as_str()];
    for attempt in 1_u32.. {
        let (point, keys) = (point.clone(), context.identities.clone());
        let source =
            blocking("open the archive", move || point.open_archive(keys.as_ref())).await?;
        match link.pour(remote::RECEIVE, &args, source).await? {
            Ok(ExitStatus::Code(0)) => break,
            // A link or a directory has its name, or the disk is full: the same again.
            Ok(ExitStatus::Code(code @ (64 | 74))) => {
                return Err(RunError::WalkRefused { host: host.to_owned(), code });
            }
            Ok(_) if attempt >= ATTEMPTS => break,
            Err(cause) if attempt >= ATTEMPTS || !is_broken(&cause) => {
                return Err(error::ssh(host, doing)(cause));
            }
            _ => tokio::time::sleep(Duration::from_secs(u64::from(attempt))).await,
        }
    }
    link.close().await;
    Ok(())
}

/// The line by which answers are those for an engine.
fn line(engine: &str) -> String {
    let text = answers(engine);
    let line = text.lines().find(|line| line.starts_with("OVEHOSTED_NETWORK/fqdn="));
    line.unwrap_or_default().to_owned()
}

/// Whether the answers for this engine lie there; what a person filled in stays.
pub async fn has_answers(context: &WalkContext, host: &str, engine: &str) -> Result<bool> {
    let doing = "look for the answers";
    let found = ask(context, host, remote::HAS_LINE, &[ANSWERS, &line(engine)], doing).await?;
    Ok(found.trim() == "there=yes")
}

/// Writes the answers. Those for this engine that lie there already are closed to others, and
/// otherwise stay as somebody has filled them in.
pub async fn answer(context: &WalkContext, host: &str, engine: &str) -> Result<()> {
    let doing = "write the answers";
    let text = Bytes::from(answers(engine));
    let sum: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
    let kept = ask(context, host, remote::PROTECT, &[ANSWERS, &line(engine)], doing).await?;
    if kept.trim() == "kept=yes" {
        return Ok(());
    }
    let mut link = Link::to_host(&context.settings, host, &context.cancel).await?;
    let output = link.feed(remote::RECEIVE, &[ANSWERS, &sum], &text, doing).await;
    link.close().await;
    let output = output?;
    if let ExitStatus::Code(code @ (64 | 74)) = output.status {
        return Err(RunError::WalkRefused { host: host.to_owned(), code });
    }
    output.check(doing).map(drop).map_err(error::ssh(host, doing))
}

/// Whether neither the archive nor the answers lie there.
pub async fn is_swept(context: &WalkContext, host: &str) -> Result<bool> {
    for name in [REMOTE_ARCHIVE, ANSWERS] {
        let found = ask(context, host, remote::LIES, &[name], "look for what was copied").await?;
        if !found.trim().is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Removes both.
pub async fn sweep(context: &WalkContext, host: &str) -> Result<()> {
    let names = [REMOTE_ARCHIVE, ANSWERS];
    ask(context, host, remote::SWEEP, &names, "remove what was copied").await.map(drop)
}

async fn ask(
    context: &WalkContext,
    host: &str,
    script: &str,
    args: &[&str],
    doing: &'static str,
) -> Result<String> {
    let mut link = Link::to_host(&context.settings, host, &context.cancel).await?;
    let output = if script == remote::LIES {
        // It hashes what may be large.
        link.feed_within(script, args, &Bytes::new(), READ_WHOLE, doing).await
    } else {
        link.script(script, args, doing).await
    };
    link.close().await;
    let output = output?.check(doing).map_err(error::ssh(host, doing))?;
    Ok(output.text())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_counts_with_its_sum_and_for_root_alone() {
        let sum = "ab".repeat(32);
        let told = |text: &str| differing(text, &sum);
        assert_eq!(told(&format!("mode=600\nsum={sum}\n")), None);
        assert_eq!(told(&format!("mode=400\nsum={sum}\n")), None);
        assert!(told(&format!("mode=644\nsum={sum}\n")).unwrap().contains("mode 644"));
        assert!(told(&format!("sum={sum}\n")).unwrap().contains("others may read"));
        assert!(told("mode=600\nsum=00\n").unwrap().contains("is 00, and it was stored with"));
        assert!(told("").unwrap().contains("there is no"));
        assert!(told("mode=600\n").unwrap().contains("there is no"));
    }
}
