//! What speaks against putting a move of the database back, from a comparison alone.
//!
//! The service has written to the new database since: going back loses those rows for the
//! engine, and an old database that is gone or of an older schema is no place to go back to.

use super::Compared;
use crate::restore::{Finding, Weight};

/// What lets rows be lost.
const FLAG: &str = "--lose-rows";

/// What helps when a schema is not known.
const BY_HAND: &str = "run engine-setup, or, when it has not run since the move, start the service by hand: systemctl start ovirt-engine-dwhd";

/// What is found by a comparison of the new database, `here`, with the old one, `there`.
/// `from` and `to` name the old and the new one; with `lose_rows` the loss is told and no more.
pub fn revert_preflight(
    compared: &Compared,
    from: &str,
    to: &str,
    lose_rows: bool,
) -> Vec<Finding> {
    let mut found = Vec::new();
    let loss = if lose_rows { Weight::Tells } else { Weight::Stops };
    let mut add = |weight, check, text: String, remedy: String| {
        found.push(Finding { weight, check, text, remedy: Some(remedy) });
    };
    if let Some(why) = compared.there_why.as_ref().filter(|_| compared.is_there_silent()) {
        add(
            Weight::Stops,
            "old-database",
            format!("the old database {from} does not answer: {why}"),
            "start its PostgreSQL; when it was dropped there is no way back to it".into(),
        );
    }
    if let Some(why) = &compared.here_why {
        add(
            loss,
            "rows",
            format!("what {to} has collected since the move cannot be seen: {why}"),
            format!("{FLAG}, when it is gone for good"),
        );
    } else if let Some(why) = compared.there_why.as_ref().filter(|_| !compared.is_there_silent()) {
        add(
            loss,
            "rows",
            format!("what {to} has collected since the move is not known: {from}: {why}"),
            format!("{FLAG} leaves it behind; the new database stays as it is"),
        );
    }
    let version = |v: &Option<String>| v.clone().unwrap_or_else(|| "not known".into());
    let schemas = format!(
        "the schema of {to} is {} and that of the old database {from} is {}",
        version(&compared.here_schema),
        version(&compared.there_schema)
    );
    match setup(compared) {
        Setup::Done => {}
        Setup::Needed => add(
            loss,
            "schema",
            format!(
                "{schemas}: this manager's service does not work on the old one until engine-setup has upgraded it"
            ),
            format!("{FLAG} puts the files back and leaves the service stopped; then engine-setup"),
        ),
        // One that is silent is no place to go back to, whatever its schema.
        Setup::Unknown if compared.is_there_silent() => {}
        Setup::Unknown => add(
            loss,
            "schema",
            format!("{schemas}: whether this manager's service works on the old one is not known"),
            format!("{FLAG} puts the files back and leaves the service stopped; then {BY_HAND}"),
        ),
    }
    if !compared.differs.is_empty() {
        add(
            loss,
            "rows",
            format!(
                "{to} is not what {from} is, and what was collected since the move is in it alone: {}",
                compared.told("new", "old")
            ),
            format!("{FLAG} leaves it behind; the new database stays as it is"),
        );
    }
    found
}

/// What the old database needs before the service may work on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setup {
    /// Nothing: it has the schema that the new one was brought to.
    Done,
    /// engine-setup, which upgrades its schema.
    Needed,
    /// Nobody could tell both schemas: the service is not started on a guess.
    Unknown,
}

impl Setup {
    /// What is to be done about a service that was left stopped; `None`: it is started.
    pub fn remedy(self) -> Option<String> {
        match self {
            Self::Done => None,
            Self::Needed => {
                Some("run engine-setup, which upgrades the old database's schema".into())
            }
            Self::Unknown => Some(format!(
                "whether the old database has the schema that it works on is not known: {BY_HAND}"
            )),
        }
    }
}

/// Judges by both schemas: what broke off later may have told them before.
pub fn setup(compared: &Compared) -> Setup {
    match (&compared.here_schema, &compared.there_schema) {
        (Some(here), Some(there)) if here == there => Setup::Done,
        (Some(_), Some(_)) => Setup::Needed,
        _ => Setup::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_stops_until_it_is_wished_and_an_old_database_that_is_gone_always_does() {
        let checks = |answer: &str, lose| {
            let compared = Compared::parse(&format!("{answer}Done.\n"));
            let found = revert_preflight(&compared, "OLD", "NEW", lose);
            found.into_iter().map(|f| (f.check, f.weight == Weight::Stops)).collect::<Vec<_>>()
        };
        let good = "here.schema=1\nthere.schema=1\nsame=1 tables, 1 rows\n";
        let rows = good.replace("same=1 tables, 1 rows", "differs=9/7/table x");
        let newer = good.replacen("here.schema=1", "here.schema=2", 1);
        let old_gone = "here.schema=1\nthere.why=down\n";
        let new_gone = "there.schema=1\nhere.why=down\n";
        assert_eq!(checks(good, false), []);
        for (answer, expected) in [
            (&*rows, &["rows"][..]),
            (&newer, &["schema"]),
            // What engine-setup has made of it since is gone with it.
            (new_gone, &["rows", "schema"]),
            ("here.schema=1\nthere.schema=\nsame=1 tables, 1 rows\n", &["schema"]),
            ("here.schema=\nthere.schema=\nsame=1 tables, 1 rows\n", &["schema"]),
        ] {
            for lose in [false, true] {
                let expected: Vec<_> = expected.iter().map(|check| (*check, !lose)).collect();
                assert_eq!(checks(answer, lose), expected);
            }
        }
        for lose in [false, true] {
            assert_eq!(checks(old_gone, lose), [("old-database", true)]);
        }
        // Rows that cannot be counted do not hide that the database answers, nor its schema.
        for (side, schema) in [("here", 1), ("there", 1), ("here", 2), ("there", 2)] {
            let answer = format!("here.schema={schema}\nthere.schema=1\n{side}.why=no rows\n");
            let stops = |stops| {
                let mut found = vec![("rows", stops), ("schema", stops)];
                found.truncate(schema);
                found
            };
            assert_eq!(checks(&answer, false), stops(true));
            assert_eq!(checks(&answer, true), stops(false));
        }
    }
}
