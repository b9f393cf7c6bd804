//! What engine-backup tells the simulated engine.
//!
//! The real program calls a stored procedure of the engine's database,
//! `LogEngineBackupEvent(scope, now, status, message, fqdn, log)`, once for each scope that was
//! asked for (engine-backup.md §9). A simulated engine has no database: whoever stands in for
//! the program on one of the lab's hosts appends a line to [`TABLE`] below that host's root, with
//! tabs between `now` (seconds since 1970), `status` (0 started, 1 finished, -1 failed), `scope`,
//! `log` and, of a failure, the message. It is read whenever somebody asks. A line that is none is
//! passed over, as one that is not yet whole.

use std::{fs, path::PathBuf};

use jiff::Timestamp;

use crate::{model::State, xml::X};

/// Where the stand-in writes.
pub const TABLE: &str = "var/lib/simulated-engine/engine_backup_log";
/// Alerts of missing backups, and the event of a failed one: gone with the next good one.
const OVER: [i64; 3] = [9022, 9023, 9026];
/// Scopes as they are named there, and the elements of `engine_backup` that date them.
const DATES: [(&str, &str); 6] = [
    ("files", "last_engine_backup"),
    ("db", "last_db_backup"),
    ("dwhdb", "last_dwh_backup"),
    ("cinderlib", "last_cinder_backup"),
    ("keycloak", "last_keycloak_backup"),
    ("grafanadb", "last_grafana_backup"),
];

/// What was read of the tables so far.
#[derive(Debug, Default)]
pub struct Backups {
    /// Bytes by host.
    read: Vec<(PathBuf, usize)>,
    /// When a scope's last backup finished, by its element.
    dates: Vec<(&'static str, Timestamp)>,
}

/// Takes in what was written since.
pub fn take_in(s: &mut State) {
    let roots: Vec<_> = s.hosts.iter().map(|host| host.root.clone()).collect();
    for root in roots {
        let Ok(text) = fs::read_to_string(root.join(TABLE)) else { continue };
        let at = s.backups.read.iter().position(|(of, _)| *of == root).unwrap_or_else(|| {
            s.backups.read.push((root, 0));
            s.backups.read.len() - 1
        });
        let from = s.backups.read[at].1;
        let Some(new) = text.get(from..) else { continue };
        let whole = new.rfind('\n').map_or("", |end| &new[..=end]);
        s.backups.read[at].1 += whole.len();
        whole.lines().for_each(|line| one(s, line));
    }
}

fn one(s: &mut State, line: &str) {
    let mut fields = line.split('\t');
    let (Some(now), Some(status), Some(scope), Some(log)) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return;
    };
    let Some(now) = now.parse().ok().and_then(|now| Timestamp::from_second(now).ok()) else {
        return;
    };
    let message = fields.next().unwrap_or("Backup Failed");
    let (code, severity, what) = match status {
        "0" => (9024, "normal", "Backup Started"),
        "1" => (9025, "normal", "Backup Finished"),
        _ => (9026, "error", message),
    };
    if status == "1" {
        s.events.retain(|event| !OVER.contains(&event.code));
        if let Some((_, element)) = DATES.iter().find(|(name, _)| *name == scope) {
            s.backups.dates.retain(|(known, _)| known != element);
            s.backups.dates.push((element, now));
        }
    }
    s.event(code, severity, format!("engine-backup: {what}, scope={scope}, log={log}"), "", None);
    if let Some(event) = s.events.last_mut() {
        event.time = now;
    }
}

/// `engine_backup` of the API's root (4.5.7 and newer); nothing before the first good backup.
pub fn dates(s: &State) -> Option<X> {
    let dates = &s.backups.dates;
    let add = |x: X, (name, at): &(&'static str, Timestamp)| x.t(name, crate::xml::time(*at));
    (!dates.is_empty()).then(|| dates.iter().fold(X::default(), add))
}
