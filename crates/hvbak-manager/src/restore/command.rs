//! The command lines of a restore, of the cleanup before it and the setup after it.
//!
//! Passwords never stand in them: engine-backup is given the names of files that only root
//! can read (its environment is wiped by itself, and `--db-password=` shows in `ps`).

use super::{Provision, Wishes};
use crate::{
    command::{CommandError, Paths},
    scope::{Request, Scope},
    version::Version,
};

/// The name of the file with the password for a database, in the run's directory.
pub fn passfile(scope: Scope) -> String {
    format!("secret.{}", scope.name())
}

/// The prefix of a database's options: `--dwh-db-host`.
pub(super) fn prefix(scope: Scope) -> Option<&'static str> {
    Some(match scope {
        Scope::Db => "",
        Scope::DwhDb => "dwh-",
        Scope::CinderlibDb => "cinderlib-",
        Scope::ManagedblockDb => "managedblock-",
        Scope::KeycloakDb => "keycloak-",
        Scope::Files | Scope::GrafanaDb | Scope::ReportsDb => return None,
    })
}

/// The arguments of a restore in `dir`, the run's own directory.
///
/// # Errors
/// What the program of this version would refuse, or take and ignore.
pub fn restore(version: &Version, wishes: &Wishes, dir: &str) -> Result<Vec<String>, CommandError> {
    let mut args = vec!["--mode=restore".to_owned()];
    args.extend(scopes(version, &wishes.request)?);
    args.extend(Paths::in_dir(dir).options()?);
    let provisions = wishes.provision != Provision::None;
    if provisions && !wishes.credentials.is_empty() {
        return contradiction("other credentials and provisioning exclude each other");
    }
    if provisions && wishes.permissions == Some(false) {
        return contradiction("provisioning restores the permissions; it cannot leave them out");
    }
    match &wishes.provision {
        Provision::None => {}
        Provision::All => args.push("--provision-all-databases".into()),
        Provision::Parts(parts) => {
            for scope in parts {
                let prefix = database(version, *scope)?;
                args.push(format!("--provision-{prefix}db"));
            }
        }
    }
    match wishes.permissions {
        Some(true) if !provisions => args.push("--restore-permissions".into()),
        Some(false) => args.push("--no-restore-permissions".into()),
        _ => {}
    }
    let mut seen = Vec::new();
    for of in &wishes.credentials {
        let prefix = database(version, of.scope)?;
        if seen.contains(&of.scope) {
            return contradiction("a database is given credentials twice");
        }
        seen.push(of.scope);
        check_word("database host", &of.host, ".-:_")?;
        check_word("database user", &of.user, "._-")?;
        check_word("database name", &of.database, "._-")?;
        args.push(format!("--change-{prefix}db-credentials"));
        args.push(format!("--{prefix}db-host={}", of.host));
        args.push(format!("--{prefix}db-port={}", of.port));
        args.push(format!("--{prefix}db-user={}", of.user));
        args.push(format!("--{prefix}db-name={}", of.database));
        args.push(format!("--{prefix}db-passfile={dir}/{}", passfile(of.scope)));
        if of.secured {
            args.push(format!("--{prefix}db-secured"));
        }
        if of.validated {
            // The program's help calls it otherwise, and refuses that.
            args.push(format!("--{prefix}db-sec-validation"));
        }
    }
    for (wished, option) in [
        (wishes.keep_temporary_data, "--keep-temporary-data"),
        (wishes.he_remove_storage_vm, "--he-remove-storage-vm"),
        (wishes.he_remove_hosts, "--he-remove-hosts"),
    ] {
        args.extend(wished.then(|| option.to_owned()));
    }
    Ok(args)
}

fn scopes(version: &Version, request: &Request) -> Result<Vec<String>, CommandError> {
    if let Request::Parts(parts) = request
        && let Some(scope) = parts.iter().find(|s| !s.restored_in(version))
    {
        return Err(CommandError::NoScope { version: version.clone(), scope: *scope });
    }
    Ok(request.names().iter().map(|name| format!("--scope={name}")).collect())
}

fn database(version: &Version, scope: Scope) -> Result<&'static str, CommandError> {
    match prefix(scope) {
        Some(prefix) if scope.restored_in(version) => Ok(prefix),
        _ => Err(CommandError::NoDatabase { version: version.clone(), scope }),
    }
}

fn contradiction<T>(text: &'static str) -> Result<T, CommandError> {
    Err(CommandError::Contradiction { text })
}

/// A value that means the same to every shell and to libpq.
fn check_word(what: &'static str, value: &str, more: &str) -> Result<(), CommandError> {
    let no = |why| Err(CommandError::Value { what, value: value.chars().take(100).collect(), why });
    if value.is_empty() {
        return no("it is empty");
    }
    if value.starts_with('-') {
        return no("it begins with a dash");
    }
    if !value.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c)) {
        return no("it holds characters that the program does not quote");
    }
    Ok(())
}

/// `engine-cleanup` without questions. It empties the databases (and dumps them first),
/// removes the configuration, and stops the engine.
pub fn cleanup() -> Vec<String> {
    vec![
        "--otopi-environment=OVESETUP_CORE/remove=bool:True OVESETUP_CORE/engineStop=bool:True"
            .into(),
    ]
}

/// `engine-setup` without questions; `answers` is the path of an answer file there.
pub fn setup(answers: Option<&str>) -> Vec<String> {
    let mut args = vec!["--accept-defaults".to_owned(), "--offline".to_owned()];
    args.extend(answers.map(|path| format!("--config-append={path}")));
    args
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::Credentials;

    fn wishes(scopes: &[&str]) -> Wishes {
        Wishes::of(Request::parse(scopes).unwrap())
    }

    fn run(version: &str, wishes: &Wishes) -> Result<Vec<String>, CommandError> {
        restore(&version.parse().unwrap(), wishes, "/var/lib/hvbak-manager/20261121T021454Z")
    }

    fn other(scope: Scope) -> Credentials {
        Credentials {
            scope,
            host: "db.example.test".into(),
            port: 5432,
            user: "engine".into(),
            database: "engine2".into(),
            secured: true,
            validated: true,
        }
    }

    #[test]
    fn every_way_to_restore_is_a_command_of_name_equals_value() {
        let mut fresh = wishes(&["all"]);
        fresh.provision = Provision::All;
        let mut one = wishes(&["dwhdb", "files"]);
        one.provision = Provision::Parts(vec![Scope::DwhDb]);
        let mut there = wishes(&["all"]);
        there.permissions = Some(true);
        let mut elsewhere = wishes(&["db"]);
        elsewhere.permissions = Some(false);
        elsewhere.credentials = vec![other(Scope::Db)];
        for (wishes, expected) in [
            (&fresh, &["--scope=all", "--provision-all-databases"][..]),
            (&one, &["--scope=files", "--scope=dwhdb", "--provision-dwh-db"]),
            (&there, &["--scope=all", "--restore-permissions"]),
            (
                &elsewhere,
                &[
                    "--scope=db",
                    "--no-restore-permissions",
                    "--change-db-credentials",
                    "--db-host=db.example.test",
                    "--db-port=5432",
                    "--db-user=engine",
                    "--db-name=engine2",
                    "--db-passfile=/var/lib/hvbak-manager/20261121T021454Z/secret.db",
                    "--db-secured",
                    "--db-sec-validation",
                ],
            ),
        ] {
            let args = run("4.5.7", wishes).unwrap();
            assert_eq!(args[0], "--mode=restore");
            let dir = "/var/lib/hvbak-manager/20261121T021454Z";
            for path in ["--file=", "--log=", "--tmpdir="] {
                assert!(args.iter().any(|a| a.starts_with(&format!("{path}{dir}/"))), "{args:?}");
            }
            let paths = ["--file=", "--log=", "--tmpdir=", "--mode="];
            let rest: Vec<_> =
                args.iter().filter(|a| !paths.iter().any(|p| a.starts_with(p))).collect();
            assert_eq!(rest, expected);
            assert!(args.iter().all(|a| a.split_once('=').is_none_or(|(_, v)| !v.is_empty())));
        }
    }

    #[test]
    fn what_the_program_would_refuse_or_ignore_is_refused_here() {
        let mut both = wishes(&["db"]);
        both.provision = Provision::All;
        both.credentials = vec![other(Scope::Db)];
        let mut without = wishes(&["all"]);
        without.provision = Provision::All;
        without.permissions = Some(false);
        let mut twice = wishes(&["db"]);
        twice.credentials = vec![other(Scope::Db), other(Scope::Db)];
        let mut grafana = wishes(&["grafanadb"]);
        grafana.credentials = vec![other(Scope::GrafanaDb)];
        for wishes in [&both, &without, &twice, &grafana] {
            assert!(run("4.5.7", wishes).is_err(), "{wishes:?}");
        }
        let mut keycloak = wishes(&["all"]);
        keycloak.provision = Provision::Parts(vec![Scope::KeycloakDb]);
        assert!(run("4.4.10.7", &keycloak).is_err() && run("4.5.7", &keycloak).is_ok());
        // What 4.5.8 calls otherwise it still restores.
        assert!(run("4.5.8", &wishes_of("cinderlibdb")).is_ok());
        assert!(run("4.5.7", &wishes_of("managedblockdb")).is_err());
        for (field, bad) in [(0, "a b"), (0, "-x"), (1, "x';--"), (2, ""), (2, "a/b")] {
            let mut bad_one = other(Scope::Db);
            *[&mut bad_one.host, &mut bad_one.user, &mut bad_one.database][field] = bad.into();
            let mut wishes = wishes(&["db"]);
            wishes.credentials = vec![bad_one];
            assert!(run("4.5.7", &wishes).is_err(), "{bad}");
        }
    }

    fn wishes_of(scope: &str) -> Wishes {
        wishes(&[scope])
    }
}
