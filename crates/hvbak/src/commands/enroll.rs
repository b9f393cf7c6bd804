//! `hvbak enroll`.

use std::io::IsTerminal;

use hvbak_run::{Bootstrap, EnrollContext, EnrollMode, EnrollOptions, KeyKind};
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
    if args.fingerprint.is_some() && !args.manager && args.hosts.len() != 1 {
        return Err(CliError::usage("`--fingerprint` is of one host's key: name one host"));
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
        host_keys: args.fingerprint.iter().cloned().collect(),
    };
    if args.without_engine || args.manager {
        return without_engine(face, &args, options).await;
    }
    let context = face.context().await?;
    let result = async {
        let inventory = hvbak_run::inventory(&context).await?;
        let hosts = choose(&inventory.hosts, &args)?;
        enroll(face, &args, &EnrollContext::from(&context), &hosts, &options).await
    }
    .await;
    context.engine.logout().await;
    result
}

/// A machine that the engine is not asked about.
async fn without_engine(face: &Face, args: &EnrollArgs, mut options: EnrollOptions) -> Outcome {
    let context = face.enroll_context()?;
    let (context, host) = if args.manager {
        let section = face.manager_context()?.manager;
        hvbak_run::manager_as_host(&context, &section)
    } else {
        let [name] = args.hosts.as_slice() else {
            return Err(CliError::usage("`--without-engine` takes one host"));
        };
        (context, hvbak_run::host_by_address(name))
    };
    let known = options.accept_new_host_keys || !options.host_keys.is_empty();
    if !known && !args.dry_run && !face.printer.json && std::io::stdin().is_terminal() {
        options.host_keys = ask(face, &context, &host).await?;
    }
    enroll(face, args, &context, &[&host], &options).await
}

/// Shows somebody what a host offers; gives the one key that was compared. The others may come
/// from somebody between: he can pass one of the host's keys on, and answer with his own later.
async fn ask(face: &Face, context: &EnrollContext, host: &Host) -> Result<Vec<String>, CliError> {
    let keys = hvbak_run::unknown_host_keys(context, host).await?;
    if keys.is_empty() {
        return Ok(keys);
    }
    face.printer.say(&format!("{} shows these keys:", host.name));
    for (number, key) in (1..).zip(&keys) {
        face.printer.say(&format!("  {number}  {key}"));
    }
    face.printer.ask(
        "   type the fingerprint that its console shows, or the number of that very one; \
         anything else: stop.",
    );
    let read = || {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    };
    let answer = tokio::task::spawn_blocking(read).await.ok().and_then(Result::ok);
    match answer.and_then(|line| compared(&keys, &line).map(str::to_owned)) {
        Some(key) => Ok(vec![key]),
        None => Err(CliError::usage("nobody has said which of the host's keys is right")),
    }
}

/// The key that an answer means: by its number, or by its fingerprint alone or in a line as
/// `ssh-keygen -l` prints it.
fn compared<'a>(keys: &'a [String], answer: &str) -> Option<&'a str> {
    let answer = answer.trim();
    if let Ok(number) = answer.parse::<usize>() {
        return keys.get(number.checked_sub(1)?).map(String::as_str);
    }
    let print = |text: &str| {
        let word = text.split_whitespace().find(|word| word.starts_with("SHA256:"));
        word.map(|word| word.trim_end_matches('=').to_owned())
    };
    let wanted = print(answer)?;
    keys.iter().find(|key| print(key).as_ref() == Some(&wanted)).map(String::as_str)
}

async fn enroll(
    face: &Face,
    args: &EnrollArgs,
    context: &EnrollContext,
    hosts: &[&Host],
    options: &EnrollOptions,
) -> Outcome {
    if args.dry_run {
        for host in hosts {
            let port = host.ssh.port.unwrap_or(22);
            face.printer.data(&format!("{} ({}:{port})", host.name, host.address));
        }
        let names: Vec<_> = hosts.iter().map(|host| &host.name).collect();
        return Ok((DONE, json!({ "dry_run": true, "hosts": names })));
    }
    let outcomes = hvbak_run::enroll(context, hosts, options).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_is_trusted_and_it_is_the_one_that_was_compared() {
        let keys = ["ssh-ed25519 SHA256:aaa", "ssh-rsa SHA256:bbb"].map(str::to_owned);
        for second in ["2\n", "SHA256:bbb\n", " 3072 SHA256:bbb root@hv9 (RSA)\n", "SHA256:bbb="] {
            assert_eq!(compared(&keys, second), Some("ssh-rsa SHA256:bbb"), "{second:?}");
        }
        for nothing in ["yes\n", "", "0", "3", "-1", "SHA256:bb", "SHA256:", "ssh-rsa", "1 2"] {
            assert_eq!(compared(&keys, nothing), None, "{nothing:?}");
        }
    }
}
