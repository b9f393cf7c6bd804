//! The engine as a second witness of a backup: what its log of events and its dates say of a
//! run of engine-backup (engine-backup.md §9).
//!
//! Invariant: this never makes a good archive bad. A scope without content gets an event as
//! well (§5.3), so agreement proves nothing alone either: disagreement is worth a look.

use crate::scope::Scope;

/// Codes of the events that engine-backup writes.
pub const FINISHED: i64 = 9025;
pub const FAILED: i64 = 9026;
/// Seconds by which a date may be before the first event of its run: they are written apart.
const SLACK: i64 = 60;

/// What the engine says of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Witness {
    Agrees,
    /// Why.
    Disagrees(String),
    /// Why it could not be asked.
    Silent(String),
}

/// An event of the engine's log.
#[derive(Debug, Clone)]
pub struct Event {
    pub code: i64,
    pub text: String,
    /// By the engine's clock, seconds since 1970.
    pub time: Option<i64>,
}

/// The element of `engine_backup` in the API's root that dates a scope's last backup.
pub fn date_of(scope: Scope) -> Option<&'static str> {
    Some(match scope {
        Scope::Files => "last_engine_backup",
        Scope::Db => "last_db_backup",
        Scope::DwhDb => "last_dwh_backup",
        Scope::CinderlibDb => "last_cinder_backup",
        Scope::KeycloakDb => "last_keycloak_backup",
        Scope::GrafanaDb => "last_grafana_backup",
        Scope::ManagedblockDb | Scope::ReportsDb => return None,
    })
}

/// The scope's name in events.
fn event_name(scope: Scope) -> &'static str {
    match scope {
        Scope::CinderlibDb => "cinderlib",
        Scope::ManagedblockDb => "managedblock",
        Scope::KeycloakDb => "keycloak",
        other => other.name(),
    }
}

/// Judges the run that wrote `log` (a name that no other run has) and gave `held`. `dates`:
/// seconds since 1970 by [`date_of`]; engines before 4.5.7 have none. `reaches_back`: older
/// events than the run's would have been among `events`.
pub fn judge(
    log: &str,
    held: &[Scope],
    events: &[Event],
    reaches_back: bool,
    dates: &[(&str, i64)],
) -> Witness {
    let of_run =
        |event: &&Event| event.text.rsplit_once("log=").is_some_and(|(_, path)| path.trim() == log);
    let mine: Vec<_> = events.iter().filter(of_run).collect();
    if mine.is_empty() && !reaches_back {
        return Witness::Silent("its log of events does not reach back to this run".into());
    }
    if mine.is_empty() {
        return Witness::Disagrees("its log has no event of this run".into());
    }
    if let Some(failed) = mine.iter().find(|event| event.code == FAILED) {
        let text: String = failed.text.chars().filter(|c| !c.is_control()).take(300).collect();
        return Witness::Disagrees(format!("its log says `{text}`"));
    }
    let finished = |scope: &Scope| {
        let wanted = [format!("scope={},", event_name(*scope)), "scope=all,".to_owned()];
        mine.iter()
            .filter(|event| event.code == FINISHED)
            .any(|event| wanted.iter().any(|text| event.text.contains(text)))
    };
    let missing: Vec<_> = held.iter().filter(|s| !finished(s)).map(|s| s.name()).collect();
    if !missing.is_empty() {
        return Witness::Disagrees(format!("its log has no end of {}", missing.join(", ")));
    }
    let began = mine.iter().filter_map(|event| event.time).min();
    for scope in held {
        let date = dates.iter().find(|(name, _)| date_of(*scope) == Some(name));
        if let (Some((name, date)), Some(began)) = (date, began)
            && *date + SLACK < began
        {
            return Witness::Disagrees(format!(
                "its {name} is {} s older than this run",
                began - *date
            ));
        }
    }
    Witness::Agrees
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "/var/lib/hvbak-manager/20261121T021454Z/engine-backup.log";
    const HELD: [Scope; 3] = [Scope::Files, Scope::Db, Scope::KeycloakDb];

    fn event(code: i64, what: &str, log: &str) -> Event {
        Event { code, text: format!("engine-backup: {what}, log={log}"), time: Some(1000) }
    }

    fn good() -> Vec<Event> {
        ["files", "db", "keycloak"]
            .into_iter()
            .flat_map(|scope| {
                [
                    event(9024, &format!("Backup Started, scope={scope}"), LOG),
                    event(FINISHED, &format!("Backup Finished, scope={scope}"), LOG),
                ]
            })
            .collect()
    }

    #[test]
    fn every_held_scope_must_have_ended_in_the_engines_eyes() {
        assert_eq!(judge(LOG, &HELD, &good(), true, &[]), Witness::Agrees);
        let mut died = good();
        died.retain(|event| !event.text.contains("Finished, scope=db"));
        let Witness::Disagrees(why) = judge(LOG, &HELD, &died, true, &[]) else { panic!() };
        assert_eq!(why, "its log has no end of db");
        // `dwhdb` is not `db`.
        died.push(event(FINISHED, "Backup Finished, scope=dwhdb", LOG));
        assert!(matches!(judge(LOG, &HELD, &died, true, &[]), Witness::Disagrees(_)));
        let mut failed = good();
        failed.push(event(FAILED, "Failed \u{1b}writing, scope=db", LOG));
        let Witness::Disagrees(why) = judge(LOG, &HELD, &failed, true, &[]) else { panic!() };
        assert!(why.contains("Failed writing"), "{why}");
    }

    #[test]
    fn another_runs_events_say_nothing_of_this_one() {
        let other: Vec<_> = good()
            .into_iter()
            .map(|event| Event { text: event.text.replace("T0214", "T0215"), ..event })
            .collect();
        for events in [&[][..], &other] {
            assert!(matches!(judge(LOG, &HELD, events, true, &[]), Witness::Disagrees(_)));
            assert!(matches!(judge(LOG, &HELD, events, false, &[]), Witness::Silent(_)));
        }
    }

    #[test]
    fn a_date_from_before_the_run_disagrees() {
        let judge = |dates: &[(&str, i64)]| judge(LOG, &HELD, &good(), true, dates);
        assert_eq!(judge(&[("last_db_backup", 1001), ("last_dwh_backup", 5)]), Witness::Agrees);
        assert_eq!(judge(&[("last_db_backup", 950)]), Witness::Agrees);
        let Witness::Disagrees(why) = judge(&[("last_db_backup", 10)]) else { panic!() };
        assert_eq!(why, "its last_db_backup is 990 s older than this run");
    }
}
