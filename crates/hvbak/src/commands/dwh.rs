//! `hvbak dwh`: the Data Warehouse to another machine.

use std::time::Duration;

use hvbak_manager::{
    dwh::Target,
    restore::{Finding, Weight},
};
use hvbak_run::{
    DwhDatabaseOptions, DwhPlan, DwhRevertOptions, DwhServiceOptions, DwhServiceRevertOptions,
    dwh_database_plan, dwh_move_database, dwh_move_service, dwh_revert_database,
    dwh_revert_service, dwh_service_plan,
};
use serde_json::json;

use super::{Face, Outcome};
use crate::{
    cli::{DwhArgs, DwhCommand, DwhDatabaseArgs, DwhServiceArgs},
    config::read_secret,
    exit::{CliError, DONE, FAILED},
};

/// A service that was started is seen in its database by its first sample, after a minute.
const PATIENCE: Duration = Duration::from_secs(150);

pub async fn run(face: &Face, args: DwhArgs) -> Outcome {
    match args.command {
        DwhCommand::MoveDatabase(args) if args.revert => {
            let (lose_rows, dry_run) = (args.lose_rows, args.dry_run);
            revert(face, DwhRevertOptions { lose_rows, dry_run, patience: PATIENCE }).await
        }
        DwhCommand::MoveDatabase(args) => database(face, args).await,
        DwhCommand::MoveService(args) => service(face, args).await,
    }
}

async fn database(face: &Face, args: DwhDatabaseArgs) -> Outcome {
    let options = options(&args)?;
    let context = face.manager_context()?;
    let plan = dwh_database_plan(&context, &options).await?;
    show(face, &plan, args.dry_run);
    if args.dry_run {
        let code = if plan.is_clear() { DONE } else { FAILED };
        return Ok((code, json!({ "dry_run": true, "clear": plan.is_clear() })));
    }
    let done = dwh_move_database(&context, &options).await?;
    face.printer.record("dwh-moved", &done);
    let again = if done.went_on { ", begun by an earlier hvbak" } else { "" };
    face.printer.data(&format!("{} moved to {}{again}", done.from, done.to));
    face.printer.data(&format!("  {}, the same on both sides", done.same));
    let service = if done.is_active {
        "works on the new database, where it was seen"
    } else {
        "is not started"
    };
    face.printer.data(&format!("  ovirt-engine-dwhd {service}"));
    face.printer.say(&format!("the originals are in {}", done.kept.display()));
    face.printer.say("the old database stays as it is; drop it when nothing misses it");
    face.printer.say("next: systemctl restart ovirt-engine; engine-setup where Grafana is used");
    Ok((
        DONE,
        json!({ "manager": done.manager, "from": done.from, "to": done.to, "same": done.same }),
    ))
}

async fn revert(face: &Face, options: DwhRevertOptions) -> Outcome {
    let done = dwh_revert_database(&face.manager_context()?, &options).await?;
    let dry_run = options.dry_run;
    face.printer.record("dwh-reverted", &done);
    for file in &done.files {
        let word = if dry_run { "would be put back" } else { "put back" };
        face.printer.data(&format!("{file}  {word}"));
    }
    let service = if done.is_active { "works" } else { "is not started" };
    if dry_run {
        tell(face, &done.findings);
    } else {
        face.printer.data(&format!("{}: ovirt-engine-dwhd {service}", done.from));
        face.printer.say(&format!("{} stays as it is; nothing uses it any more", done.to));
        face.printer.say("next: systemctl restart ovirt-engine, if it was since the move");
    }
    let code = if done.is_clear() { DONE } else { FAILED };
    let files = &done.files;
    Ok((
        code,
        json!({ "manager": done.manager, "files": files, "dry_run": dry_run, "clear": done.is_clear() }),
    ))
}

fn show(face: &Face, plan: &DwhPlan, dry_run: bool) {
    face.printer.record("dwh-plan", plan);
    if plan.state.is_some() {
        face.printer.data(&format!("{}: a move that was begun goes on", plan.to));
    }
    for diff in &plan.diffs {
        face.printer.data(diff);
    }
    if !dry_run {
        return;
    }
    for command in &plan.commands {
        face.printer.data(&format!("  # {}\n  {}", command.what, command.line));
    }
    tell(face, &plan.findings);
}

fn tell(face: &Face, findings: &[Finding]) {
    for finding in findings {
        let word = if finding.weight == Weight::Stops { "STOPS" } else { "note" };
        let remedy = finding.remedy.as_ref().map_or_else(String::new, |r| format!("; {r}"));
        face.printer.data(&format!("{word}: {}: {}{remedy}", finding.check, finding.text));
    }
}

async fn service(face: &Face, args: DwhServiceArgs) -> Outcome {
    let context = face.manager_context()?;
    let Some(to) = args.to else {
        let options = DwhServiceRevertOptions {
            machine_is_lost: args.machine_is_lost,
            dry_run: args.dry_run,
            patience: PATIENCE,
        };
        let done = dwh_revert_service(&context, &options).await?;
        face.printer.record("dwh-service-reverted", &done);
        let word = if args.dry_run { "would work" } else { "works" };
        face.printer.data(&format!("ovirt-engine-dwhd {word} on {} as before", done.manager));
        let from = &done.to;
        if args.machine_is_lost {
            face.printer.data(&format!(
                "{from} was not asked. Should it come back, two services would work for one engine: before it has a network, `systemctl disable --now ovirt-engine-dwhd` there, and remove {}",
                done.left_there.join(", ")
            ));
        }
        return Ok((
            DONE,
            json!({ "manager": done.manager, "from": from, "dry_run": args.dry_run, "left_there": done.left_there }),
        ));
    };
    let options = DwhServiceOptions { to, engine_host: args.engine_db_host, patience: PATIENCE };
    let plan = dwh_service_plan(&context, &options).await?;
    face.printer.record("dwh-service-plan", &plan);
    for file in &plan.files {
        face.printer.data(&format!("{}:{file}  would be made", plan.to));
    }
    for diff in &plan.diffs {
        face.printer.data(diff);
    }
    if args.dry_run {
        tell(face, &plan.findings);
        let code = if plan.is_clear() { DONE } else { FAILED };
        return Ok((code, json!({ "dry_run": true, "clear": plan.is_clear() })));
    }
    let done = dwh_move_service(&context, &options).await?;
    face.printer.record("dwh-service-moved", &done);
    let again = if done.went_on { ", begun by an earlier hvbak" } else { "" };
    face.printer.data(&format!("ovirt-engine-dwhd of {} is on {}{again}", done.manager, done.to));
    face.printer.say(&format!("the originals are in {}", done.kept.display()));
    face.printer.say("the manager's service is stopped and disabled, and stays installed");
    let next = format!("next: engine-setup on {}, which takes the files for its own", done.to);
    face.printer.say(&next);
    Ok((DONE, json!({ "manager": done.manager, "to": done.to, "files": done.files })))
}

fn options(args: &DwhDatabaseArgs) -> Result<DwhDatabaseOptions, CliError> {
    let (Some(to), Some(file)) = (&args.to, &args.password_file) else {
        return Err(CliError::usage("`--to` and `--password-file` are missing".to_owned()));
    };
    let (host, port) = host_and_port(to)?;
    let target = Target {
        host,
        port,
        user: args.user.clone(),
        database: args.database.clone(),
        secured: args.tls || args.tls_validated,
        validated: args.tls_validated,
    };
    let password = read_secret("password file", file)?;
    Ok(DwhDatabaseOptions { target, password, patience: PATIENCE })
}

/// `HOST`, `HOST:PORT`, `[V6]`, `[V6]:PORT` or a bare IPv6 address.
fn host_and_port(text: &str) -> Result<(String, u16), CliError> {
    let wrong = || CliError::usage(format!("`--to {text}` is not HOST[:PORT]"));
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (host, port.parse().map_err(|_| wrong())?)
        }
        _ => (text, 5432),
    };
    let host = host.trim_matches(['[', ']']);
    if host.is_empty() { Err(wrong()) } else { Ok((host.to_owned(), port)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports_are_read() {
        for (text, host, port) in [
            ("db", "db", 5432),
            ("db.example.com:5433", "db.example.com", 5433),
            ("2001:db8::1", "2001:db8::1", 5432),
            ("[2001:db8::1]:5433", "2001:db8::1", 5433),
        ] {
            assert_eq!(host_and_port(text).unwrap(), (host.to_owned(), port));
        }
        for bad in ["", "db:", "db:x", ":5432", "db:70000"] {
            assert!(host_and_port(bad).is_err(), "{bad}");
        }
    }
}
