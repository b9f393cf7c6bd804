//! `hvbak manager-restore`.

use std::{collections::BTreeMap, path::Path};

use hvbak_manager::{
    Request, Scope,
    restore::{Credentials, Provision, Weight, Wishes},
};
use hvbak_run::{
    ManagerContext, ManagerRestoreOptions, ManagerRestorePlan, ManagerRestored, SetupWish,
    manager_restore, manager_restore_pick_up, manager_restore_plan,
};
use serde_json::json;

use super::{Face, Outcome, identities};
use crate::{
    cli::ManagerRestoreArgs,
    config::{read_secret, read_secret_text},
    exit::{CliError, DONE, FAILED, PARTLY},
};

pub async fn run(face: &Face, args: ManagerRestoreArgs) -> Outcome {
    let Some(point) = args.point.clone() else {
        return pick_up(face, &args).await;
    };
    let options = options(&args, point)?;
    let context = context(face, &args)?;
    if args.dry_run {
        return Ok(show(face, &manager_restore_plan(&context, &options).await?));
    }
    let done = manager_restore(&context, &options).await?;
    Ok(tell(face, &done))
}

fn context(face: &Face, args: &ManagerRestoreArgs) -> Result<ManagerContext, CliError> {
    Ok(ManagerContext { identities: identities(&args.key)?, ..face.manager_context()? })
}

async fn pick_up(face: &Face, args: &ManagerRestoreArgs) -> Outcome {
    let picked = manager_restore_pick_up(&context(face, args)?).await?;
    for program in &picked.tools {
        face.printer.data(&format!("{program} of an earlier restore ended well"));
    }
    match &picked.restored {
        Some(done) => Ok(tell(face, done)),
        None => {
            if picked.tools.is_empty() {
                face.printer.say("no restore of this repository is left on the manager");
            }
            Ok((DONE, json!({ "picked_up": picked.tools })))
        }
    }
}

fn show(face: &Face, plan: &ManagerRestorePlan) -> (u8, serde_json::Value) {
    face.printer.record("manager-restore-plan", plan);
    face.printer.data(&format!("{} would be restored onto {}", plan.point, plan.manager));
    for command in &plan.commands {
        face.printer.data(&format!("  # {}\n  {}", command.what, command.line));
    }
    for finding in &plan.findings {
        let word = if finding.weight == Weight::Stops { "STOPS" } else { "note" };
        let remedy = finding.remedy.as_ref().map_or_else(String::new, |r| format!("; {r}"));
        face.printer.data(&format!("{word}: {}: {}{remedy}", finding.check, finding.text));
    }
    let code = if plan.is_clear() { DONE } else { FAILED };
    (code, json!({ "dry_run": true, "clear": plan.is_clear() }))
}

fn tell(face: &Face, done: &ManagerRestored) -> (u8, serde_json::Value) {
    face.printer.record("manager-restored", done);
    let point = done.point.as_deref().unwrap_or("an earlier point");
    let parts: Vec<_> = done.said.content.iter().map(|s| s.name()).collect();
    let earlier = if done.picked_up { ", begun by an earlier hvbak" } else { "" };
    let what = if parts.is_empty() {
        // Its engine-setup alone was left.
        format!("{point}: restored and judged before, onto {}", done.manager)
    } else {
        format!("{point}: {} restored onto {}{earlier}", parts.join(", "), done.manager)
    };
    face.printer.data(&what);
    if let Some(vms) = done.vms {
        let as_stored = if done.expected_vms == Some(vms) { ", as in the archive" } else { "" };
        face.printer
            .data(&format!("  {vms} VMs and templates in the engine's database{as_stored}"));
    }
    if let Some(kept) = &done.kept {
        face.printer.say(&format!("log and output are in {}", kept.display()));
    }
    let mut code = if done.is_proven() { DONE } else { PARTLY };
    match &done.setup {
        Some(setup) if setup.is_healthy() => {
            face.printer.data("  engine-setup ended well and the engine answers");
        }
        Some(setup) => {
            let why = setup.failed.as_deref();
            let why = why.unwrap_or("engine-setup ended well and the engine does not answer yet");
            face.printer.data(&format!("  NOT SET UP: {why}"));
            code = PARTLY;
        }
        None => face.printer.say("next: run engine-setup on the manager"),
    }
    (
        code,
        json!({ "manager": done.manager, "point": done.point, "scopes": parts, "vms": done.vms }),
    )
}

fn options(args: &ManagerRestoreArgs, point: String) -> Result<ManagerRestoreOptions, CliError> {
    let request = Request::parse(&args.scope).map_err(|e| CliError::usage(e.to_string()))?;
    let provision = match args.provision.as_slice() {
        _ if args.provision_all_databases => Provision::All,
        [] => Provision::None,
        some => {
            Provision::Parts(some.iter().map(|text| scope(text)).collect::<Result<Vec<_>, _>>()?)
        }
    };
    let permissions = match (args.restore_permissions, args.no_restore_permissions) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    };
    let mut credentials = Vec::new();
    for text in &args.credentials {
        credentials.push(one_place(args, text)?);
    }
    let mut passwords = BTreeMap::new();
    for text in &args.password_file {
        let (name, path) = text.split_once('=').ok_or_else(|| {
            CliError::usage(format!("`--password-file {text}` is not SCOPE=FILE"))
        })?;
        passwords.insert(scope(name)?, read_secret("password file", Path::new(path))?);
    }
    for place in &credentials {
        if !passwords.contains_key(&place.scope) {
            return Err(CliError::usage(format!(
                "`--password-file {}=FILE` is missing",
                place.scope
            )));
        }
    }
    if let Some(scope) = passwords.keys().find(|s| !credentials.iter().any(|c| c.scope == **s)) {
        return Err(CliError::usage(format!("`--credentials {scope}=…` is missing")));
    }
    for name in args.tls.iter().chain(&args.tls_validated) {
        if !credentials.iter().any(|c| c.scope.name() == name) {
            return Err(CliError::usage(format!("TLS for {name} needs `--credentials {name}=…`")));
        }
    }
    let answers = match &args.answer_file {
        None => None,
        Some(path) => Some(read_secret_text("answer file", path)?),
    };
    Ok(ManagerRestoreOptions {
        point,
        wishes: Wishes {
            request,
            permissions,
            provision,
            credentials,
            keep_temporary_data: args.keep_temporary_data,
            he_remove_storage_vm: args.he_remove_storage_vm,
            he_remove_hosts: args.he_remove_hosts,
            cleanup: args.engine_cleanup,
            other_name: args.other_name,
        },
        passwords,
        hosted_engine_host: args.hosted_engine_host.clone(),
        setup: args.engine_setup.then_some(SetupWish { answers }),
    })
}

fn scope(text: &str) -> Result<Scope, CliError> {
    text.parse().map_err(|e: hvbak_manager::ScopeError| CliError::usage(e.to_string()))
}

/// `SCOPE=USER@HOST[:PORT]/DATABASE`.
fn one_place(args: &ManagerRestoreArgs, text: &str) -> Result<Credentials, CliError> {
    let wrong = || {
        CliError::usage(format!("`--credentials {text}` is not SCOPE=USER@HOST[:PORT]/DATABASE"))
    };
    let (name, rest) = text.split_once('=').ok_or_else(wrong)?;
    let (user, rest) = rest.split_once('@').ok_or_else(wrong)?;
    let (place, database) = rest.split_once('/').ok_or_else(wrong)?;
    let (host, port) = match place.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (host, port.parse().map_err(|_| wrong())?)
        }
        _ => (place, 5432),
    };
    let has = |list: &[String]| list.iter().any(|s| s == name);
    let validated = has(&args.tls_validated);
    Ok(Credentials {
        scope: scope(name)?,
        host: host.trim_matches(['[', ']']).to_owned(),
        port,
        user: user.to_owned(),
        database: database.to_owned(),
        secured: validated || has(&args.tls),
        validated,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(words: &[&str]) -> Result<ManagerRestoreOptions, CliError> {
        let cli = Cli::try_parse_from([&["hvbak", "manager-restore", "e@latest"], words].concat());
        let Command::ManagerRestore(args) = cli.unwrap().command else { panic!("another command") };
        let point = args.point.clone().unwrap();
        options(&args, point)
    }

    #[test]
    fn a_database_elsewhere_is_read_and_its_password_is_a_file_that_is_closed_to_others() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pw");
        std::fs::write(&file, "secret\nmore\n").unwrap();
        let set = |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode));
        set(0o600).unwrap();
        let password = format!("db={}", file.display());
        let words = |place| {
            vec!["--credentials", place, "--password-file", &password, "--tls-validated", "db"]
        };
        for (place, host, port) in [
            ("db=engine@db.example.com/engine2", "db.example.com", 5432),
            ("db=engine@db.example.com:5433/engine2", "db.example.com", 5433),
            ("db=engine@[2001:db8::1]:5433/engine2", "2001:db8::1", 5433),
            ("db=engine@[2001:db8::1]/engine2", "2001:db8::1", 5432),
        ] {
            let options = parse(&words(place)).unwrap();
            let place = &options.wishes.credentials[0];
            assert_eq!((place.host.as_str(), place.port), (host, port));
            assert_eq!((place.user.as_str(), place.database.as_str()), ("engine", "engine2"));
            assert!(place.secured && place.validated);
            assert_eq!(options.passwords[&Scope::Db].expose(), "secret");
            assert!(!format!("{options:?}").contains("secret"));
        }
        for bad in ["db=engine@db", "db=db/engine", "x=u@h/d", "u@h/d", "db=u@h:x/d"] {
            assert!(parse(&words(bad)).is_err(), "{bad}");
        }
        set(0o644).unwrap();
        assert!(parse(&words("db=engine@db/engine")).is_err(), "others can read it");
        set(0o600).unwrap();
        assert!(parse(&["--credentials", "db=u@h/d"]).is_err(), "no password");
        assert!(parse(&["--password-file", &password]).is_err(), "no place");
        assert!(parse(&["--tls", "db"]).is_err(), "no place");
    }
}
