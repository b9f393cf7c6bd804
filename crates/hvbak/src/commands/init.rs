//! `hvbak init`: from nothing to a configuration that works.
//!
//! Invariant: nothing that exists is overwritten, and no configuration is written for a
//! login that failed.

use std::{
    fs::OpenOptions,
    io::{IsTerminal, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use hvbak_types::Secret;
use serde_json::json;

use super::{Face, Outcome, repo_error};
use crate::{
    cli::InitArgs,
    config::read_secret,
    exit::{CliError, DONE},
};

pub async fn run(face: &Face, args: InitArgs) -> Outcome {
    let path = std::path::absolute(&face.config_path).map_err(|cause| CliError::Io {
        text: format!("cannot use {}", face.config_path.display()),
        cause,
    })?;
    let url = match (&args.engine, path.exists()) {
        (None, true) => return complete(face).await,
        (Some(_), true) => {
            return Err(CliError::Usage {
                text: format!("{} exists", path.display()),
                hint: Some(
                    "leave `--engine` out to use it, or name another with `--config`".into(),
                ),
            });
        }
        (None, false) => {
            return Err(CliError::usage("`--engine` is needed for a new configuration"));
        }
        (Some(url), false) => url.clone(),
    };
    let dir = path.parent().unwrap_or(Path::new("/")).to_owned();
    let (ca, ca_text) = ca(face, &args, &url).await?;
    let password = password(&args)?;
    let engine =
        hvbak_run::login(&url, Some(ca.clone()), &args.username, password.clone(), None).await?;
    let version = engine.version();
    engine.logout().await;
    face.printer.say(&format!("logged in to {} {}", version.product, version.full));
    make_dir(&dir)?;
    let repository = open_or_create(&args.repository)?;
    let ca_file = match &args.ca_file {
        Some(path) => absolute(path),
        None => {
            let file = dir.join("ca.pem");
            write_new(&file, 0o644, &ca)?;
            file
        }
    };
    let password_file = match &args.password_file {
        Some(path) => absolute(path),
        None => {
            let file = dir.join("engine.password");
            write_new(&file, 0o600, format!("{}\n", password.expose()).as_bytes())?;
            file
        }
    };
    let text = format!(
        "# hvbak configuration; written by `hvbak init`.\n[engine]\nurl = {}\nca_file = {}{ca_text}\nusername = {}\npassword_file = {}\n\n[repository]\npath = {}\n\n[ssh]\nkey_file = {}\n",
        quote(&url),
        quote(&ca_file.to_string_lossy()),
        quote(&args.username),
        quote(&password_file.to_string_lossy()),
        quote(&repository.path().to_string_lossy()),
        quote(&dir.join("id_hvbak").to_string_lossy()),
    );
    write_new(&path, 0o640, text.as_bytes())?;
    face.printer.data(&format!("configuration {}", path.display()));
    face.printer.data(&format!(
        "repository    {} ({})",
        repository.path().display(),
        repository.id()
    ));
    face.printer
        .say("next: `hvbak enroll --all --bootstrap-password-file FILE`, then `hvbak doctor`");
    Ok((
        DONE,
        json!({ "config": path, "repository": repository.path(), "engine_version": version.full }),
    ))
}

/// With a configuration that is there: checks its login and creates its repository.
async fn complete(face: &Face) -> Outcome {
    let config = face.config()?;
    let engine = face.engine(&config).await?;
    let version = engine.version();
    engine.logout().await;
    face.printer.say(&format!("logged in to {} {}", version.product, version.full));
    let repository = open_or_create(&config.repository.path)?;
    let place = repository.path().display().to_string();
    face.printer.data(&format!("repository    {place} ({})", repository.id()));
    Ok((DONE, json!({ "repository": place, "engine_version": version.full })))
}

/// Opens the repository, or makes it where nothing is. One that cannot be read, or is
/// newer, is an error and never made over.
fn open_or_create(path: &Path) -> Result<hvbak_repo::Repository, CliError> {
    match hvbak_repo::Repository::open(path) {
        Ok(repository) => Ok(repository),
        Err(hvbak_repo::Error::NoRepository { .. }) => {
            Ok(hvbak_repo::Repository::init(path).map_err(repo_error("create the repository"))?)
        }
        Err(cause) => Err(repo_error("open the repository")(cause).into()),
    }
}

/// The engine's CA: given, or fetched and compared with what the user says of it.
async fn ca(face: &Face, args: &InitArgs, url: &str) -> Result<(Vec<u8>, String), CliError> {
    if let Some(path) = &args.ca_file {
        let pem = std::fs::read(path).map_err(|cause| CliError::Io {
            text: format!("cannot read CA file {}", path.display()),
            cause,
        })?;
        return Ok((pem, String::new()));
    }
    let found = hvbak_run::fetch_ca(url).await?;
    let shown = found.fingerprints.first().cloned().unwrap_or_default();
    let plain = |text: &str| text.replace([':', ' '], "").to_ascii_uppercase();
    let compare = "compare it on the manager: openssl x509 -noout -fingerprint -sha256 -in /etc/pki/ovirt-engine/ca.pem";
    match &args.ca_fingerprint {
        Some(wanted) if found.fingerprints.iter().any(|f| plain(f) == plain(wanted)) => {}
        Some(wanted) => {
            return Err(CliError::Usage {
                text: format!("the engine's CA has fingerprint {shown}, not {wanted}"),
                hint: Some("somebody may stand between this machine and the engine".into()),
            });
        }
        None if args.accept_ca => {
            face.printer.say(&format!("CA fingerprint {shown} accepted unseen; {compare}"));
        }
        None => {
            return Err(CliError::Usage {
                text: format!("the engine's CA has SHA-256 fingerprint {shown}"),
                hint: Some(format!("{compare}; then repeat with `--ca-fingerprint`")),
            });
        }
    }
    Ok((found.pem, format!(" # SHA-256 {shown}")))
}

fn password(args: &InitArgs) -> Result<Secret, CliError> {
    if let Some(path) = &args.password_file {
        return Ok(read_secret("password file", path)?);
    }
    if !std::io::stdin().is_terminal() {
        return Err(CliError::usage("no `--password-file`, and no terminal to ask on"));
    }
    let text = rpassword::prompt_password(format!("Password of {}: ", args.username))
        .map_err(|cause| CliError::Io { text: "cannot ask for the password".into(), cause })?;
    Ok(Secret::new(text))
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn make_dir(dir: &Path) -> Result<(), CliError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(dir)
        .map_err(|cause| CliError::Io { text: format!("cannot make {}", dir.display()), cause })
}

fn write_new(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), CliError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write()
        .map_err(|cause| CliError::Io { text: format!("cannot write {}", path.display()), cause })
}

/// A TOML basic string.
fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
