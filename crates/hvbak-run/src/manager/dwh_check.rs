//! Looks into the Data Warehouse's databases around a move: whether both hold the same, and
//! whether the service works on the one that it should. Changes nothing.

use std::time::Duration;

use bytes::Bytes;
use hvbak_manager::dwh::{self, Compared, Mark, Other};

use super::{
    link::{Link, READ_WHOLE},
    restore_part::Session,
};
use crate::error::{self, Result, RunError};

/// What the script that watches may take beyond its patience.
const MARGIN: Duration = Duration::from_secs(30);

/// How long a comparison may take whose outcome decides nothing, and how long one question.
const BRIEFLY: Duration = Duration::from_secs(10 * 60);
const ONCE: Duration = Duration::from_secs(90);

/// Compares the database that the manager's configuration names with another.
pub async fn compare(session: &mut Session<'_>, other: &Other) -> Result<Compared> {
    session.context.phase("counting every row of both databases");
    ask(session, other, &[], READ_WHOLE).await
}

/// As [`compare`], for somebody who loses what differs: a comparison that cannot be made is told
/// and is no error, as long as the other database can be asked whether it is there. Both are asked
/// for their schema alone then, so that nobody takes an older one for the new one's.
pub async fn compare_if_possible(session: &mut Session<'_>, other: &Other) -> Result<Compared> {
    session.context.phase("counting every row of both databases, for ten minutes at most");
    let compared = match ask(session, other, &[], BRIEFLY).await {
        Err(RunError::Cancelled) => return Err(RunError::Cancelled),
        other => other.unwrap_or_else(|cause| Compared::unmade(crate::chain(&cause))),
    };
    if !compared.is_there_silent() {
        return Ok(compared);
    }
    let Compared { there_why, there_schema, .. } = ask(session, other, &["there"], ONCE).await?;
    let here_schema = match compared.here_schema {
        // A new database that is gone is told, and no error.
        None => match ask(session, other, &["here"], ONCE).await {
            Err(RunError::Cancelled) => return Err(RunError::Cancelled),
            here => here.ok().and_then(|here| here.here_schema),
        },
        known => known,
    };
    Ok(Compared { there_why, there_schema, here_schema, ..compared })
}

async fn ask(
    session: &mut Session<'_>,
    other: &Other,
    args: &[&str],
    limit: Duration,
) -> Result<Compared> {
    let doing = "compare the databases of the Data Warehouse";
    let input = Bytes::from(other.lines().unwrap_or_default());
    let output = session.link().feed_within(dwh::COMPARE, args, &input, limit, doing).await?;
    let manager = &session.context.manager.address;
    Ok(Compared::parse(&output.check(doing).map_err(error::ssh(manager, doing))?.text()))
}

/// Where the service of this machine would work, before its start; `None`: that database
/// does not answer.
pub async fn mark(link: &mut Link) -> Result<Option<Mark>> {
    let doing = "look at the database that the service would work on";
    let output = link.script(dwh::WORKS, &["mark"], doing).await?;
    Ok(Mark::parse(&output.check(doing).map_err(error::ssh(&link.name, doing))?.text()))
}

/// Waits until the service was seen in the database; else the reason why it was not.
pub async fn silence(
    link: &mut Link,
    mark: Option<&Mark>,
    patience: Duration,
) -> Result<Option<String>> {
    let Some(mark) = mark else { return Ok(Some("the database does not answer".into())) };
    let doing = "see the service work on its database";
    let seconds = patience.as_secs().to_string();
    let args = ["watch", mark.clock.as_str(), mark.written.as_str(), &seconds];
    let output =
        link.feed_within(dwh::WORKS, &args, &Bytes::new(), patience + MARGIN, doing).await?;
    Ok(dwh::silence(&output.check(doing).map_err(error::ssh(&link.name, doing))?.text()))
}
