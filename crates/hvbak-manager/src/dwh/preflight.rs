//! What speaks against a move of the database, from facts alone.
//!
//! Everything that would fail half-way, or would leave the engine with a Data Warehouse that
//! its own tools refuse, is a [`Finding`] before the service is stopped.

use super::{DwhFacts, State, Target, UNIT};
use crate::{
    remote::Look,
    restore::{Finding, Weight},
};

/// Everything that speaks against it or should be known. `open`: how far an earlier hvbak has
/// come with this very move; it has stopped the service.
pub fn preflight(
    look: &Look,
    facts: &DwhFacts,
    target: &Target,
    open: Option<State>,
) -> Vec<Finding> {
    let mut found = Findings(Vec::new());
    found.later(facts);
    // Once the rows were compared only the files are left.
    if open.is_some_and(|state| state >= State::Copied) {
        return found.0;
    }
    found.machine(look, facts);
    found.instance(facts);
    if open.is_none() {
        found.service(facts);
    }
    found.source(look, facts);
    // What is in it can only be the whole of a copy whose end nobody saw.
    found.target(facts, target, open == Some(State::Copying));
    found.grants(facts, target);
    found.afterwards(facts, target);
    found.0
}

struct Findings(Vec<Finding>);

impl Findings {
    fn stop(&mut self, check: &'static str, text: impl Into<String>, remedy: impl Into<String>) {
        let (text, remedy) = (text.into(), Some(remedy.into()));
        self.0.push(Finding { weight: Weight::Stops, check, text, remedy });
    }

    fn tell(&mut self, check: &'static str, text: impl Into<String>, remedy: Option<&str>) {
        let remedy = remedy.map(ToOwned::to_owned);
        self.0.push(Finding { weight: Weight::Tells, check, text: text.into(), remedy });
    }

    fn later(&mut self, facts: &DwhFacts) {
        for file in &facts.later {
            let names: Vec<_> = file.names.iter().filter(|n| n.starts_with("DWH_")).collect();
            if names.is_empty() {
                continue;
            }
            let names: Vec<_> = names.iter().map(|n| n.as_str()).collect();
            self.stop(
                "later-file",
                format!(
                    "{} sets {} and is read last: what a move writes before it would not count",
                    file.path,
                    names.join(", ")
                ),
                "take these lines out of it, into the file of engine-setup if they are right",
            );
        }
    }

    fn grants(&mut self, facts: &DwhFacts, target: &Target) {
        let from = &facts.dwhd;
        for (role, count) in &facts.source.grants {
            if role.is_empty() || facts.target.roles.contains(role) {
                continue;
            }
            self.tell(
                "grants",
                format!("{count} rights of role \"{role}\" are not copied: the new server has no such role"),
                Some(&format!(
                    "create role \"{role}\" login password '…' there first; or, later, on the manager: pg_dump -s -h {} -p {} -U {} {} | grep -E '^(GRANT|ALTER DEFAULT PRIVILEGES).* TO \"?{role}\"?;' | psql -h {} -p {} -U {} {}",
                    from.host, from.port, from.user, from.database,
                    target.host, target.port, target.user, target.database,
                )),
            );
        }
    }

    fn machine(&mut self, look: &Look, facts: &DwhFacts) {
        if !look.is_root {
            self.stop(
                "root",
                "the login on the manager is not root",
                "set `manager.user`, or let it use sudo",
            );
        }
        let missing: Vec<_> = look.missing_tools.iter().chain(&facts.missing_tools).collect();
        if !missing.is_empty() {
            let names: Vec<_> = missing.iter().map(|t| t.as_str()).collect();
            self.stop(
                "tools",
                format!("the manager has no {}", names.join(", ")),
                "install them; psql, pg_dump and pg_restore come with postgresql",
            );
        }
    }

    fn instance(&mut self, facts: &DwhFacts) {
        if facts.dwhd.is_unset() {
            self.stop(
                "not-set-up",
                "no Data Warehouse is set up on the manager: its service names no database",
                "when the service is on another machine, its database is moved from there",
            );
            return;
        }
        let same = |a: &str, b: &str| a == b || (facts.engine.is_local() && facts.dwhd.is_local());
        if facts.engine.is_unset() {
            self.stop(
                "engine-conf",
                "the engine's configuration names no Data Warehouse database",
                "run engine-setup on the manager first",
            );
        } else if !same(&facts.engine.host, &facts.dwhd.host)
            || (&facts.engine.port, &facts.engine.database)
                != (&facts.dwhd.port, &facts.dwhd.database)
        {
            self.stop(
                "two-databases",
                format!(
                    "the engine reads {}/{} and the service writes {}/{}",
                    facts.engine.host, facts.engine.database, facts.dwhd.host, facts.dwhd.database
                ),
                "find out which is right and run engine-setup on the manager",
            );
        }
        match (&facts.uuid, &facts.registered_uuid) {
            (Some(here), Some(there)) if here == there => {}
            (_, None) if facts.is_running.is_none() => self.stop(
                "engine-database",
                "the engine's database does not say which Data Warehouse works for it",
                "see that it answers to the credentials of 10-setup-database.conf",
            ),
            (_, None) => self.stop(
                "instance",
                "no Data Warehouse is registered with this engine",
                "run engine-setup on the manager",
            ),
            (_, Some(_)) => self.stop(
                "instance",
                format!(
                    "another Data Warehouse works for this engine, on {}",
                    facts.registered_host.as_deref().unwrap_or("an unknown host")
                ),
                "one engine has one; stop and disable the one that should not be there",
            ),
        }
    }

    fn service(&mut self, facts: &DwhFacts) {
        if !facts.is_active(UNIT) {
            self.tell("service", "the service is not at work, and stays so after the move", None);
        }
        if facts.is_running == Some(true) && !facts.is_active(UNIT) {
            self.stop(
                "instance",
                format!(
                    "the engine's database says that a Data Warehouse is at work, and it is not here (last known host: {})",
                    facts.registered_host.as_deref().unwrap_or("none")
                ),
                "stop it where it is; start and stop ovirt-engine-dwhd here once when it has died",
            );
        }
    }

    fn source(&mut self, look: &Look, facts: &DwhFacts) {
        let source = &facts.source;
        if !source.reachable {
            let why = source.why.as_deref().unwrap_or("no answer");
            self.stop(
                "source",
                format!("the old database does not answer: {why}"),
                "start its PostgreSQL",
            );
            return;
        }
        match source.size {
            None => self.tell(
                "space",
                "the size of the old database cannot be asked; space is a guess",
                None,
            ),
            // A dump is smaller than its database.
            Some(size) if look.free < size.saturating_add(64 << 20) => self.stop(
                "space",
                format!(
                    "{} MiB are free where the dump lies and it may need {}",
                    look.free >> 20,
                    size.div_ceil(1 << 20)
                ),
                "make room, or set `manager.work_dir` to a larger file system",
            ),
            Some(size) => self.tell(
                "target-space",
                format!(
                    "the new server needs {} MiB, which cannot be seen from here",
                    size.div_ceil(1 << 20)
                ),
                None,
            ),
        }
        if let (Some(client), Some(server)) = (facts.client, source.server)
            && client < server
        {
            self.stop(
                "client-version",
                format!("PostgreSQL {server} serves the old database, and the manager's client is {client}"),
                format!("install the client of PostgreSQL {server} or newer on the manager"),
            );
        }
    }

    fn target(&mut self, facts: &DwhFacts, target: &Target, begun: bool) {
        let there = &facts.target;
        if !there.common.reachable {
            let why = there.common.why.as_deref().unwrap_or("no answer");
            self.stop(
                "target",
                format!("the new database {target} does not answer: {why}"),
                format!(
                    "on {}: create role \"{}\" login password '…'; {}; and let the manager in (listen_addresses, pg_hba.conf, port {})",
                    target.host, target.user, target.made_by(), target.port
                ),
            );
            return;
        }
        if there.id.is_some() && there.id == facts.source.id {
            self.stop(
                "same-database",
                "the new database is the old one",
                "name another host or database",
            );
            return;
        }
        match there.common.empty {
            Some(true) => {}
            Some(false) if begun => {}
            Some(false) => self.stop(
                "target-not-empty",
                format!("the new database {target} is not empty"),
                "name an empty one; nothing is ever dropped",
            ),
            None => self.stop(
                "target-not-empty",
                format!(
                    "whether the new database {target} is empty cannot be seen: pg_dump fails on it"
                ),
                "run `pg_dump -s` of it on the manager by hand and look",
            ),
        }
        if there.encoding.as_deref() != Some("UTF8") {
            self.stop(
                "encoding",
                format!(
                    "the new database has the encoding {}",
                    there.encoding.as_deref().unwrap_or("unknown")
                ),
                "create it with encoding 'UTF8' and template template0",
            );
        }
        match there.common.lc_messages.as_deref() {
            Some("en_US.UTF-8") => {}
            // English all the same, but not the spelling that engine-backup takes.
            Some(lc @ ("C" | "POSIX" | "C.UTF-8" | "C.utf8" | "en_US.utf8")) => self.tell(
                "locale",
                format!("the new server has lc_messages = {lc}: engine-backup restores into none but en_US.UTF-8"),
                Some("set lc_messages = 'en_US.UTF-8' in its postgresql.conf"),
            ),
            other => self.stop(
                "locale",
                format!("the new server has lc_messages = {}", other.unwrap_or("unknown")),
                "set lc_messages = 'en_US.UTF-8' in its postgresql.conf and restart it",
            ),
        }
        if !there.may_create {
            self.stop(
                "target-rights",
                format!("{} may make no tables in the new database", target.user),
                format!("make it the owner of {}", target.database),
            );
        }
        // Schemas of the Data Warehouse before 4.x used it; it is made only where it was.
        if facts.source.has_uuid && !there.uuid_made {
            if !there.has_uuid {
                self.stop(
                    "extension",
                    "the old database uses the extension uuid-ossp, which the new server does not have",
                    "install postgresql-contrib there",
                );
            } else if there.common.server.is_some_and(|version| version < 13) {
                self.stop(
                    "extension",
                    "the old database uses the extension uuid-ossp, which only a superuser makes before PostgreSQL 13",
                    format!("create extension \"uuid-ossp\" in {} there", target.database),
                );
            }
        }
        if let (Some(old), Some(new)) = (facts.source.server, there.common.server)
            && new < old
        {
            self.stop(
                "server-version",
                format!("the new server is PostgreSQL {new}, older than the old one's {old}"),
                format!("use PostgreSQL {old} or newer"),
            );
        }
        if let (Some(client), Some(server)) = (facts.client, there.common.server)
            && client < server
        {
            self.stop(
                "client-version",
                format!("PostgreSQL {server} serves the new database, and the manager's client is {client}: engine-backup could not dump it"),
                format!("install the client of PostgreSQL {server} or newer on the manager"),
            );
        }
    }

    fn afterwards(&mut self, facts: &DwhFacts, target: &Target) {
        if facts.is_active("grafana-server") {
            self.tell(
                "grafana",
                "Grafana reads the old database until engine-setup was run on the manager",
                None,
            );
        }
        self.tell(
            "engine-restart",
            "the engine reads the old database for its dashboards until it is restarted",
            Some("systemctl restart ovirt-engine, when nothing speaks against it (self-hosted: global maintenance)"),
        );
        if target.secured && !target.validated {
            self.tell(
                "tls",
                "the new server's certificate is not checked",
                Some("--tls-validated"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "state=ovirt-engine:active:enabled\nstate=ovirt-engine-dwhd:active:enabled\nstate=grafana-server:inactive:disabled\nclient=15\nengine.place=5432:u:history:localhost\ndwhd.place=5432:u:history:127.0.0.1\nkeeper.place=5432:engine:engine:localhost\nuuid=u-1\nrow=dwhUuid=u-1\nrow=dwhHostname=e\nrow=DwhCurrentlyRunning=1\nold.reachable=yes\nold.server=150005\nold.size=1048576\nold.id=5432/1@x\nold.uuid=1\nold.grants=2:grafana\nold.grants=1:\nnew.reachable=yes\nnew.lc=en_US.UTF-8\nnew.server=150005\nnew.encoding=UTF8\nnew.create=t\nnew.uuid=1\nnew.empty=yes\nnew.id=5432/2@y\n";

    fn checks(
        answer: &str,
        free_kib: u64,
        open: Option<State>,
        weight: Weight,
    ) -> Vec<&'static str> {
        let look = format!(
            "root=\nuid=0\nname=e\nversion=4.5.7\nprogram=yes\nfree_kib={free_kib}\nfiles_kib=1\n"
        );
        let look = Look::parse(&look, "/usr/bin/engine-backup").unwrap();
        let target = Target {
            host: "db".into(),
            port: 5432,
            user: "u".into(),
            database: "d".into(),
            secured: true,
            validated: true,
        };
        let found = preflight(&look, &DwhFacts::parse(answer), &target, open);
        found.iter().filter(|f| f.weight == weight).map(|f| f.check).collect()
    }

    #[test]
    fn every_reason_stops_the_move_and_a_good_place_does_not() {
        assert_eq!(checks(GOOD, 1 << 20, None, Weight::Stops), Vec::<&str>::new());
        for (from, to, check) in [
            ("new.lc=en_US.UTF-8", "new.lc=de_DE.UTF-8", "locale"),
            ("new.lc=en_US.UTF-8", "new.lc=", "locale"),
            ("new.encoding=UTF8", "new.encoding=SQL_ASCII", "encoding"),
            ("new.empty=yes", "new.empty=no", "target-not-empty"),
            ("new.empty=yes", "new.empty=unknown", "target-not-empty"),
            ("new.reachable=yes", "new.why=no route", "target"),
            ("new.create=t", "new.create=f", "target-rights"),
            ("new.uuid=1", "new.uuid=0", "extension"),
            ("client=15", "later=/etc/x/99-a.conf:DWH_DB_HOST \nclient=15", "later-file"),
            ("new.server=150005", "new.server=140005", "server-version"),
            ("new.server=150005", "new.server=160001", "client-version"),
            ("new.id=5432/2@y", "new.id=5432/1@x", "same-database"),
            ("old.reachable=yes", "old.why=down", "source"),
            ("client=15", "client=13", "client-version"),
            ("client=15", "client=15\nmissing=pg_dump", "tools"),
            ("row=dwhUuid=u-1", "row=dwhUuid=u-2", "instance"),
            ("row=dwhUuid=u-1", "row=dwhUuid=", "instance"),
            ("\nuuid=u-1", "\nuuid=", "instance"),
            ("ovirt-engine-dwhd:active", "ovirt-engine-dwhd:inactive", "instance"),
            (
                "engine.place=5432:u:history:localhost",
                "engine.place=5432:u:history:db",
                "two-databases",
            ),
            ("engine.place=5432:u:history:localhost", "engine.place=5432:::", "engine-conf"),
            ("dwhd.place=5432:u:history:127.0.0.1", "dwhd.place=5432:::", "not-set-up"),
        ] {
            let answer = GOOD.replace(from, to);
            assert_ne!(answer, GOOD);
            let found = checks(&answer, 1 << 20, None, Weight::Stops);
            assert!(!found.is_empty() && found.iter().all(|f| *f == check), "{to}: {found:?}");
        }
        // Nobody needs the extension where it was not used, or is there.
        for fine in [GOOD.replace("old.uuid=1", "old.uuid=0"), format!("new.made=1\n{GOOD}")] {
            let fine = fine.replace("new.uuid=1", "new.uuid=0");
            assert!(checks(&fine, 1 << 20, None, Weight::Stops).is_empty(), "{fine}");
        }
        let of_old = GOOD.replace("150005", "120005");
        assert_eq!(checks(&of_old, 1 << 20, None, Weight::Stops), ["extension"]);
        let made = format!("new.made=1\n{of_old}");
        assert!(checks(&made, 1 << 20, None, Weight::Stops).is_empty());
        // Roles that the new server lacks are told, one by one.
        let told = |answer: &str| {
            let found = checks(answer, 1 << 20, None, Weight::Tells);
            found.into_iter().filter(|c| *c == "grants").count()
        };
        assert_eq!(told(GOOD), 1);
        assert_eq!(told(&format!("new.role=grafana\n{GOOD}")), 0);
        assert_eq!(checks(GOOD, 1 << 10, None, Weight::Stops), ["space"]);
        let no_engine = GOOD.replace("row=", "x=");
        assert_eq!(checks(&no_engine, 1 << 20, None, Weight::Stops), ["engine-database"]);
        let c = GOOD.replace("new.lc=en_US.UTF-8", "new.lc=C");
        assert!(checks(&c, 1 << 20, None, Weight::Tells).contains(&"locale"));
    }

    #[test]
    fn a_move_that_was_begun_meets_what_it_made() {
        let stopped = GOOD.replace("ovirt-engine-dwhd:active", "ovirt-engine-dwhd:inactive");
        assert!(checks(&stopped, 1 << 20, Some(State::Begun), Weight::Stops).is_empty());
        let full = stopped.replace("new.empty=yes", "new.empty=no");
        assert!(checks(&full, 1 << 20, Some(State::Copying), Weight::Stops).is_empty());
        let found = checks(&full, 1 << 20, Some(State::Begun), Weight::Stops);
        assert_eq!(found, ["target-not-empty"]);
        // Only the files are left; one that wins over them still stops it.
        assert!(checks("", 0, Some(State::Copied), Weight::Stops).is_empty());
        let later = "later=/x/99-a.conf:DWH_DB_URL \nlater=/x/98-a.conf:ENGINE_DB_HOST \n";
        assert_eq!(checks(later, 0, Some(State::Editing), Weight::Stops), ["later-file"]);
    }
}
