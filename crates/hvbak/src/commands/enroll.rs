//! `hvbak enroll`.

use hvbak_run::{Bootstrap, EnrollMode, EnrollOptions, KeyKind};
use hvbak_types::{Host, HostStatus};
use serde_json::json;

use super::{Face, Outcome};
use crate::{
    cli::{EnrollArgs, KeyType},
    config::read_secret,
    exit::{CliError, DONE, FAILED, PARTLY},
};

pub async fn run(face: &Face, args: EnrollArgs) -> Outcome {
    if args.hosts.is_empty() && !args.all && !args.manager {
        return Err(CliError::usage("name hosts, `--all`, or `--manager`"));
    }
    if args.rotate && !args.all {
        return Err(CliError::Usage {
            text: "`--rotate` needs `--all`: hosts left out would keep a key that is gone".into(),
            hint: None,
        });
    }
    let bootstrap = match (&args.bootstrap_password_file, &args.bootstrap_key, args.bootstrap_agent)
    {
        (Some(path), _, _) => Bootstrap::Password(read_secret("password file", path)?),
        (_, Some(path), _) => Bootstrap::Key(path.clone()),
        (_, _, true) => Bootstrap::Agent,
        _ => Bootstrap::Own,
    };
    let options = EnrollOptions {
        mode: match (args.revoke, args.rotate) {
            (true, _) => EnrollMode::Revoke,
            (_, true) => EnrollMode::Rotate,
            _ => EnrollMode::Install,
        },
        bootstrap,
        bootstrap_user: args.bootstrap_user.clone(),
        key_kind: match args.key_type {
            KeyType::Ecdsa => KeyKind::EcdsaP256,
            KeyType::Ed25519 => KeyKind::Ed25519,
            KeyType::Rsa => KeyKind::Rsa3072,
        },
        from: args
            .from
            .iter()
            .flat_map(|list| list.split(','))
            .map(|part| part.trim().to_owned())
            .filter(|part| !part.is_empty())
            .collect(),
        accept_new_host_keys: args.accept_new_host_keys,
    };
    let context = face.context().await?;
    let result = async {
        let inventory;
        let (own_context, manager);
        let (context, hosts) = if args.manager {
            let section = face.manager_context()?.manager;
            (own_context, manager) = hvbak_run::manager_as_host(&context, &section);
            (&own_context, vec![&manager])
        } else {
            inventory = hvbak_run::inventory(&context).await?;
            (&context, choose(&inventory.hosts, &args)?)
        };
        if args.dry_run {
            for host in &hosts {
                face.printer.data(&format!("{} ({}:{})", host.name, host.address, host.ssh.port.unwrap_or(22)));
            }
            return Ok((DONE, json!({ "dry_run": true, "hosts": hosts.iter().map(|h| &h.name).collect::<Vec<_>>() })));
        }
        let outcomes = hvbak_run::enroll(context, &hosts, &options).await?;
        let failed: Vec<_> = outcomes.iter().filter(|o| o.error.is_some()).collect();
        for hint in failed.iter().filter_map(|o| o.hint.as_ref()) {
            face.printer.say(&format!("hint: {hint}"));
        }
        let code = match (failed.len(), outcomes.len()) {
            (0, _) => DONE,
            (f, n) if f < n => PARTLY,
            _ => failed.first().map_or(FAILED, |o| o.exit),
        };
        Ok((code, json!({ "hosts": outcomes })))
    }
    .await;
    context.engine.logout().await;
    result
}

fn choose<'a>(all: &'a [Host], args: &EnrollArgs) -> Result<Vec<&'a Host>, CliError> {
    if args.all {
        // A host that is off cannot be enrolled; that is told, not hidden.
        let off = [HostStatus::Down, HostStatus::Reboot, HostStatus::InstallFailed];
        return Ok(all.iter().filter(|h| !off.contains(&h.status)).collect());
    }
    args.hosts
        .iter()
        .map(|name| {
            all.iter().find(|h| h.name == *name || h.id.to_string() == *name).ok_or_else(|| {
                CliError::Usage {
                    text: format!("the engine has no host `{name}`"),
                    hint: Some("see `hvbak list hosts`".into()),
                }
            })
        })
        .collect()
}
