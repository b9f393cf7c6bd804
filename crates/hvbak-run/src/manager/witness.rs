//! The engine asked of a backup that its manager has just made.
//!
//! The manager may be the patient: an engine that does not answer within [`PATIENCE`] is noted
//! and changes nothing.

use std::time::Duration;

use hvbak_manager::{
    Scope,
    witness::{self, Event, Witness},
};
use hvbak_types::Secret;

use crate::error::{self, Result};

const PATIENCE: Duration = Duration::from_secs(30);
/// Newest events that are looked through; a run writes two for each scope.
const EVENTS: u32 = 1000;

/// How the engine is reached.
#[derive(Debug, Clone)]
pub struct EngineAccess {
    pub url: String,
    /// PEM; without it the system's roots are trusted.
    pub ca: Option<Vec<u8>>,
    pub username: String,
    pub password: Secret,
    pub connect_to: Option<String>,
}

/// Asks of the run that wrote `log`.
pub async fn ask(
    access: std::result::Result<&EngineAccess, &String>,
    log: &str,
    held: &[Scope],
) -> Witness {
    let access = match access {
        Ok(access) => access,
        Err(why) => return Witness::Silent(why.clone()),
    };
    match tokio::time::timeout(PATIENCE, asked(access, log, held)).await {
        Ok(Ok(witness)) => witness,
        Ok(Err(cause)) => Witness::Silent(crate::chain(&cause)),
        Err(_) => Witness::Silent(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

async fn asked(access: &EngineAccess, log: &str, held: &[Scope]) -> Result<Witness> {
    let EngineAccess { url, ca, username, password, connect_to } = access.clone();
    let engine = crate::login(&url, ca, &username, password, connect_to.as_deref()).await?;
    let doing = "ask the engine of the backup";
    let events = engine.events(None, None, Some(EVENTS)).await;
    let names: Vec<_> = held.iter().filter_map(|scope| witness::date_of(*scope)).collect();
    let dates = engine.backup_dates(&names).await;
    engine.logout().await;
    let events: Vec<_> = events
        .map_err(error::engine(doing))?
        .into_iter()
        .map(|event| Event {
            code: event.code.unwrap_or(0),
            text: event.description,
            time: event.time.map(|time| time.as_second()),
        })
        .collect();
    let dates: Vec<_> = dates
        .map_err(error::engine(doing))?
        .into_iter()
        .map(|(name, date)| (name, date.as_second()))
        .collect();
    let reaches_back = events.len() < EVENTS as usize;
    Ok(witness::judge(log, held, &events, reaches_back, &dates))
}
