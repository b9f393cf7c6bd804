//! What speaks against a restore, from facts alone (engine-backup.md §7.2).
//!
//! engine-backup replaces the configuration first and finds out afterwards. So every reason
//! that it would find, and some that it never looks for, is a [`Finding`] here, before
//! anything is changed. What cannot be known stops nothing, and is told.

use std::collections::BTreeMap;

use hvbak_types::Secret;
use serde::Serialize;

use super::{DbFacts, MachineFacts, Probe, Provision, Wishes, facts::is_el9_before_reencryption};
use crate::{
    archive::{Connection, Format, Part, Report},
    remote::Look,
    scope::{Request, Scope},
};

/// Where engine-backup itself begins to complain of little space.
const SPARE: u64 = 10_000 << 10;

/// Whether a finding stops the restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    /// It would fail, or do harm.
    Stops,
    /// Good to know.
    Tells,
}

/// Something that speaks against a restore, or must be known before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub weight: Weight,
    /// A short name that stays: `engine-running`, `database-not-empty`.
    pub check: &'static str,
    pub text: String,
    /// What can be done about it.
    pub remedy: Option<String>,
}

/// When the question is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// `engine-cleanup` is still to run: it stops the engine and empties its databases.
    BeforeCleanup,
    BeforeRestore,
}

/// All that is known.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    pub stage: Stage,
    /// The archive lies on the manager.
    pub sent: bool,
    pub wishes: &'a Wishes,
    pub archive: &'a Report,
    /// The manager whose point it is, as the repository calls it.
    pub of: &'a str,
    /// Bytes of the archive, which is sent to the manager.
    pub archive_size: u64,
    /// Bytes on disk of the databases that were backed up, by [`Scope::conf_prefix`]; those that
    /// are not known are guessed from their dumps.
    pub sizes: &'a BTreeMap<String, u64>,
    pub look: &'a Look,
    pub machine: &'a MachineFacts,
    pub databases: &'a BTreeMap<Scope, DbFacts>,
    /// Those that a machine which is set up has now ([`own`]).
    pub own: &'a BTreeMap<Scope, DbFacts>,
    /// As a host of the self-hosted engine says, when one was named.
    pub global_maintenance: Option<bool>,
}

/// The databases to ask for before a restore, and how each is reached: by the given
/// credentials, by the configuration that the restore puts in place, or by the machine's.
pub fn connections(
    wishes: &Wishes,
    archive: &Report,
    passwords: &BTreeMap<Scope, Secret>,
) -> Vec<Probe> {
    let parts = wishes.parts(&archive.scopes());
    let files = parts.contains(&Scope::Files);
    let databases = parts.iter().copied().filter(|scope| scope.conf_prefix().is_some());
    databases
        .map(|scope| {
            let given = wishes.credentials.iter().find(|c| c.scope == scope);
            let at = match (given, passwords.get(&scope)) {
                (Some(given), Some(password)) => Some(Connection {
                    host: given.host.clone(),
                    port: given.port,
                    user: given.user.clone(),
                    database: given.database.clone(),
                    password: password.clone(),
                    secured: given.secured,
                }),
                _ if files => archive.conf.databases.get(&scope).cloned(),
                _ => None,
            };
            Probe { scope, at }
        })
        .collect()
}

/// The databases that the machine's own configuration names, whatever is to be restored.
pub fn own() -> Vec<Probe> {
    let databases = Scope::ALL.into_iter().filter(|scope| scope.conf_prefix().is_some());
    databases.map(|scope| Probe { scope, at: None }).collect()
}

/// Everything that speaks against it, in the order of the program's own steps.
pub fn preflight(case: &Case<'_>) -> Vec<Finding> {
    let mut found = Findings(Vec::new());
    found.machine(case);
    found.name(case);
    found.archive(case);
    found.services(case);
    found.permissions(case);
    for scope in case.wishes.parts(&case.archive.scopes()) {
        if scope.conf_prefix().is_some() {
            found.database(case, scope);
        }
    }
    found.provisioning(case);
    found.space(case);
    found.hosted_engine(case);
    found.afterwards(case);
    found.0
}

/// Bytes on disk that the databases will take which are restored on the manager itself.
fn local_databases(case: &Case<'_>) -> Vec<u64> {
    let size = |part: &Part| {
        let prefix = part.scope.conf_prefix()?;
        let facts = case.databases.get(&part.scope);
        let local = facts.is_some_and(|f| f.is_local) || case.wishes.provision.covers(part.scope);
        let known = case.sizes.get(prefix).copied();
        // A dump of pg_dump's own format is 0.4 of its database (engine-backup.md §11); indexes
        // are not in SQL text.
        let guess = match part.format {
            Some(Format::Custom) => part.unpacked.saturating_mul(5) / 2,
            _ => part.unpacked.saturating_mul(3) / 2,
        };
        local.then(|| known.unwrap_or(guess))
    };
    let wished = case.wishes.parts(&case.archive.scopes());
    case.archive.parts.iter().filter(|p| wished.contains(&p.scope)).filter_map(size).collect()
}

struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, weight: Weight, check: &'static str, text: String, remedy: Option<String>) {
        self.0.push(Finding { weight, check, text, remedy });
    }

    fn stop(&mut self, check: &'static str, text: impl Into<String>, remedy: impl Into<String>) {
        self.add(Weight::Stops, check, text.into(), Some(remedy.into()));
    }

    fn tell(&mut self, check: &'static str, text: impl Into<String>, remedy: Option<&str>) {
        self.add(Weight::Tells, check, text.into(), remedy.map(ToOwned::to_owned));
    }

    fn machine(&mut self, case: &Case<'_>) {
        if !case.look.is_root {
            self.stop(
                "root",
                "engine-backup must run as root",
                "set `manager.user` to root, or give that user a sudo rule without a password",
            );
        }
        if !case.look.missing_tools.is_empty() {
            let tools = case.look.missing_tools.join(", ");
            self.stop("tools", format!("the manager has no {tools}"), "install them");
        }
    }

    /// An archive of another manager replaces one that is in use only when that is said.
    fn name(&mut self, case: &Case<'_>) {
        let theirs = case.archive.conf.fqdn.as_deref().unwrap_or(case.of);
        // Its configuration knows the name that it was set up with; its host name may be short.
        let ours = case.machine.fqdn.as_deref().unwrap_or(&case.look.name);
        // After engine-cleanup nothing of it is left to be saved, or to be compared with.
        let in_use =
            case.stage == Stage::BeforeCleanup || (case.machine.is_set_up && !case.wishes.cleanup);
        if in_use && !case.wishes.other_name && !theirs.eq_ignore_ascii_case(ours) {
            self.stop(
                "other-name",
                format!("the backup is of {theirs} and this machine was set up as {ours}"),
                "see that `[manager]` names the right machine; `--other-name` restores it here all the same",
            );
            return;
        }
        let files = case.wishes.parts(&case.archive.scopes()).contains(&Scope::Files);
        if let (true, Some(fqdn)) = (files, &case.archive.conf.fqdn)
            && !fqdn.eq_ignore_ascii_case(&case.look.name)
        {
            self.tell(
                "name",
                format!("the backup is of {fqdn} and this machine calls itself {}", case.look.name),
                Some("give it the old name before, or run ovirt-engine-rename after engine-setup"),
            );
        }
    }

    fn archive(&mut self, case: &Case<'_>) {
        for finding in &case.archive.findings {
            let member = finding.member.as_deref().map_or_else(String::new, |m| format!("{m}: "));
            self.stop(
                "archive",
                format!("the archive is damaged: {member}{}", finding.text),
                "restore another point",
            );
        }
        match &case.archive.version {
            None => self.stop(
                "version",
                "the archive does not say which version made it",
                "restore another point",
            ),
            Some(made_by) => {
                if let Err(why) = case.look.version.accepts(made_by) {
                    self.stop(
                        "version",
                        why,
                        format!("install engine-backup {} on the manager", made_by.restored_by()),
                    );
                } else if !case.look.version.at_least(&[4, 3])
                    && case.archive.sums == Some("sha256sum")
                {
                    self.stop(
                        "version",
                        "engine-backup 4.2 cannot read archives with sha256sum",
                        "restore it with 4.3",
                    );
                }
            }
        }
        let held = case.archive.scopes();
        if held.is_empty() && case.archive.is_whole() {
            self.stop(
                "scope",
                "the archive holds nothing that can be restored",
                "restore another point",
            );
        }
        if let Request::Parts(parts) = &case.wishes.request {
            // The program would do nothing, and call that a success.
            for scope in parts.iter().filter(|s| !held.contains(s)) {
                let there: Vec<_> = held.iter().map(|s| s.name()).collect();
                self.stop(
                    "scope",
                    format!("the archive does not hold {scope} ({})", scope.title()),
                    format!("it holds {}", there.join(", ")),
                );
            }
        }
        let needed = case.wishes.credentials.iter().map(|c| c.scope);
        for scope in needed.filter(|s| !case.wishes.parts(&held).contains(s)) {
            self.stop(
                "scope",
                format!("credentials are given for {scope}, which will not be restored"),
                format!("add `--scope={scope}` or leave the credentials out"),
            );
        }
    }

    fn services(&mut self, case: &Case<'_>) {
        let set_up = case.machine.is_set_up;
        if case.stage == Stage::BeforeCleanup {
            if !case.machine.has("engine-cleanup") {
                self.stop(
                    "cleanup",
                    "there is no engine-cleanup on the manager",
                    "leave `--engine-cleanup` out on a fresh machine",
                );
            } else if !set_up {
                self.stop("cleanup", "engine-setup was never run here, so engine-cleanup has nothing to clean and fails", "leave `--engine-cleanup` out on a fresh machine");
            }
            self.lost_by_cleanup(case);
            return;
        }
        let mut active = case.machine.active.clone();
        if case.machine.engine_running && !active.iter().any(|u| u == "ovirt-engine") {
            active.insert(0, "ovirt-engine".into());
        }
        if !active.is_empty() {
            let names = active.join(" ");
            self.stop(
                "engine-running",
                format!("at work on the manager: {names}"),
                format!("systemctl stop {names}"),
            );
        }
        if set_up && case.wishes.parts(&case.archive.scopes()).contains(&Scope::Files) {
            self.tell(
                "set-up",
                "engine-setup was run here: files that are newer than the backup stay, and a left-over engine.conf.d/*.conf stays active",
                Some("`--engine-cleanup` removes them first"),
            );
        }
    }

    /// What engine-cleanup empties must come back with the restore.
    fn lost_by_cleanup(&mut self, case: &Case<'_>) {
        let parts = case.wishes.parts(&case.archive.scopes());
        let is_there = |scope: &Scope| {
            case.own.get(scope).is_some_and(|facts| facts.reachable && facts.empty != Some(true))
        };
        let lost: Vec<_> = Scope::ALL
            .into_iter()
            .filter(|s| matches!(s, Scope::Files | Scope::Db) || is_there(s))
            .filter(|s| !parts.contains(s))
            .map(Scope::title)
            .collect();
        if !lost.is_empty() {
            self.stop(
                "cleanup",
                format!(
                    "engine-cleanup takes away what would not be restored: {}",
                    lost.join(", ")
                ),
                "restore everything, of a point that holds it; or save it and run engine-cleanup by hand",
            );
        }
    }

    fn permissions(&mut self, case: &Case<'_>) {
        if case.wishes.provision != Provision::None || case.wishes.permissions.is_some() {
            return;
        }
        // The program looks at what `config` says of all dumps, not at what is restored.
        if case.archive.has_custom {
            let hint = if case.wishes.credentials.is_empty() {
                "`--restore-permissions` where the same roles are there; `--no-restore-permissions` where they are not"
            } else {
                "`--no-restore-permissions` with other credentials"
            };
            self.stop(
                "permissions",
                "whether permissions are restored must be said for this archive",
                hint,
            );
        }
    }

    fn database(&mut self, case: &Case<'_>, scope: Scope) {
        let title = scope.title();
        let provisioned = case.wishes.provision.covers(scope);
        let Some(facts) = case.databases.get(&scope) else {
            if !provisioned {
                self.stop(
                    "database-unknown",
                    format!("the {title} could not be asked for"),
                    "install psql and pg_dump on the manager",
                );
            }
            return;
        };
        if !facts.reachable {
            if !provisioned {
                let why = match (&facts.why, facts.is_unset) {
                    (_, true) => "nothing says where it is".to_owned(),
                    (Some(why), _) => why.clone(),
                    (None, false) => "no reason is given".to_owned(),
                };
                self.stop(
                    "database-unreachable",
                    format!("the {title} does not answer: {why}"),
                    "make role and database, or let `--provision-all-databases` do it, or name others with `--credentials`",
                );
            }
            return;
        }
        if case.stage != Stage::BeforeCleanup {
            match facts.empty {
                Some(true) => {}
                Some(false) => self.stop(
                    "database-not-empty",
                    format!("the {title} is not empty"),
                    "empty it: `--engine-cleanup` runs engine-cleanup first, which dumps it and then empties it",
                ),
                None => self.stop(
                    "database-unknown",
                    format!("whether the {title} is empty cannot be seen: pg_dump fails on it"),
                    "run `pg_dump -s` of it on the manager by hand and look",
                ),
            }
        }
        match facts.lc_messages.as_deref() {
            // The program takes this spelling and no other.
            None | Some("en_US.UTF-8") => {}
            Some(other) => self.stop(
                "locale",
                format!("the server of the {title} has lc_messages = {other}"),
                "set lc_messages = 'en_US.UTF-8' in postgresql.conf and restart PostgreSQL",
            ),
        }
        if let (Some(server), Some(client)) = (facts.server, case.machine.client)
            && client < server
        {
            self.stop(
                "client-version",
                format!(
                    "PostgreSQL {server} serves the {title}, and the manager's client is {client}"
                ),
                format!("install the client of PostgreSQL {server} or newer on the manager"),
            );
        }
    }

    fn provisioning(&mut self, case: &Case<'_>) {
        if case.wishes.provision == Provision::None {
            return;
        }
        let machine = case.machine;
        if !machine.like.iter().any(|id| matches!(id.as_str(), "rhel" | "fedora")) {
            self.stop("provisioning-system", format!("databases can be provisioned on Enterprise Linux and Fedora only, and this is {}", machine.os), "make roles and databases by hand and restore with `--restore-permissions`");
        }
        if !machine.has("server") {
            self.stop(
                "provisioning-server",
                "there is no PostgreSQL server on the manager",
                "install postgresql-server",
            );
        }
        if !machine.locale {
            self.stop(
                "locale",
                "the locale en_US.UTF-8 is not installed on the manager",
                "install glibc-langpack-en",
            );
        }
        if machine.lc_lines > 1 {
            self.stop(
                "locale",
                "postgresql.conf sets lc_messages more than once, on which provisioning fails",
                "keep one such line",
            );
        }
        for scope in case.wishes.parts(&case.archive.scopes()) {
            if scope.conf_prefix().is_none() || !case.wishes.provision.covers(scope) {
                continue;
            }
            let Some(at) = case.archive.conf.databases.get(&scope) else { continue };
            let title = scope.title();
            if !at.is_local() {
                self.stop("provisioning-remote", format!("the {title} is on {}: only databases of the manager itself can be provisioned", at.host), "provision the others one by one, and make this one by hand");
            } else if at.secured {
                self.stop(
                    "provisioning-secured",
                    format!("the {title} is reached with TLS, with which it cannot be provisioned"),
                    "make it by hand",
                );
            }
            // Reached and empty, it is used as it is.
            let usable = case.databases.get(&scope).is_some_and(|facts| facts.reachable);
            if !usable && machine.local.contains(&at.database) {
                self.stop(
                    "provisioning-exists",
                    format!("the database `{}` exists on the manager and the backup's password does not open it", at.database),
                    "provisioning would leave a second one beside it: drop it, or give its role the password of the backup",
                );
            }
        }
    }

    fn space(&mut self, case: &Case<'_>) {
        let files = case.archive.parts.iter().find(|p| p.scope == Scope::Files);
        let unpacked = files.map_or(0, |p| p.unpacked);
        // What was sent is no longer among the free bytes.
        let archive = if case.sent { 0 } else { case.archive_size };
        let sum = |parts: &[u64]| parts.iter().fold(0_u64, |sum, n| sum.saturating_add(*n));
        let needed = sum(&[archive, case.archive.unpacked, unpacked, SPARE]);
        let remedy = "make room, or set `manager.work_dir` to a larger file system";
        let (mib, whole) = (|bytes: u64| bytes.div_ceil(1 << 20), |bytes: u64| bytes >> 20);
        if case.look.free < needed {
            self.stop(
                "space",
                format!(
                    "{} MiB are free where the restore works and it needs {}",
                    whole(case.look.free),
                    mib(needed)
                ),
                remedy,
            );
        }
        // Before engine-cleanup the old databases still take the room of the new ones.
        let (Some(free), true) = (case.machine.data_free, case.stage != Stage::BeforeCleanup)
        else {
            return;
        };
        let databases = sum(&local_databases(case));
        let both = if case.machine.data_here { needed } else { 0 };
        if databases > 0 && free < databases.saturating_add(both) {
            let beside = if both > 0 {
                format!(" beside the {} of the restore itself", mib(both))
            } else {
                String::new()
            };
            // After engine-cleanup nothing can be taken back: it is told, and PostgreSQL decides.
            let weight = if case.wishes.cleanup { Weight::Tells } else { Weight::Stops };
            self.add(
                weight,
                "space-databases",
                format!(
                    "{} MiB are free where PostgreSQL keeps its databases, and the restored ones need about {}{beside}",
                    whole(free),
                    mib(databases)
                ),
                Some("make room there, extend the file system, or restore fewer scopes".into()),
            );
        }
    }

    fn hosted_engine(&mut self, case: &Case<'_>) {
        // Its own database tells, also when another or none is to be restored.
        let both = [case.databases, case.own];
        let hosted = both.iter().any(|d| d.get(&Scope::Db).is_some_and(|facts| facts.hosted > 0));
        let remedy = "hvbak hosted-engine maintenance --host HOST --mode global, then name that HOST with `--hosted-engine-host`";
        match case.global_maintenance {
            Some(true) => {}
            Some(false) => self.stop(
                "global-maintenance",
                "the self-hosted engine is not in global maintenance",
                remedy,
            ),
            None if hosted => self.stop(
                "global-maintenance",
                "this is a self-hosted engine, and nothing shows that it is in global maintenance",
                remedy,
            ),
            None => self.tell(
                "global-maintenance",
                "if this is a self-hosted engine, it must be in global maintenance now",
                Some("name one of its hosts with `--hosted-engine-host` and it is asked"),
            ),
        }
    }

    fn afterwards(&mut self, case: &Case<'_>) {
        let parts = case.wishes.parts(&case.archive.scopes());
        let files = parts.contains(&Scope::Files);
        if let (true, Some(os)) = (files, &case.archive.os_version)
            && *os != case.machine.os
        {
            self.tell("system", format!("the backup was made on {os} and this is {}: Apache's configuration is not restored", case.machine.os), Some("engine-setup asks for it again"));
            if is_el9_before_reencryption(&case.machine.os, &case.look.version)
                && !os.ends_with('9')
            {
                self.tell(
                    "certificates",
                    "key stores of EL8 cannot be read by EL9's OpenSSL before engine 4.5.7",
                    Some("update the engine's packages to 4.5.7 or newer first"),
                );
            }
        }
        if parts.contains(&Scope::Db) && !case.wishes.keep_temporary_data {
            self.tell("ha-vms", "highly available VMs without a lease are set to Down: one that still runs somewhere would be started twice", Some("see that none runs before the engine starts, or use `--keep-temporary-data`"));
        }
        if case.wishes.he_remove_storage_vm {
            self.tell("hosted-engine", "`--he-remove-storage-vm` fails halfway when the backup holds no VM of a self-hosted engine", None);
        }
    }
}
