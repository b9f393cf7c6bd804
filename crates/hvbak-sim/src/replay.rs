//! Serves a recorded set of an engine's answers over HTTPS, as they were.
//!
//! The set's `MANIFEST.tsv` maps requests to files; what is in no recording is an empty
//! 404, as the engine gives. Login is the lab's: the recordings hold none.

use std::{collections::HashMap, fs, path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};

use crate::{
    api::{Answer, Request, decode_pairs},
    server::Handler,
};

struct Recorded {
    query: HashMap<String, String>,
    body: String,
}

/// Reads a set; `dir` is a folder that the manifest has rows for. Without a manifest given
/// it is looked for in the folder and above it.
///
/// # Errors
/// No manifest, no rows for this set in it, or a file of a row that is missing.
pub fn handler(dir: &Path, manifest: Option<&Path>) -> Result<Handler> {
    let set = dir.file_name().and_then(|n| n.to_str()).context("name of the set")?.to_owned();
    let manifest = manifest.map(Path::to_owned).or_else(|| {
        [dir.join("MANIFEST.tsv"), dir.join("../MANIFEST.tsv")].into_iter().find(|p| p.exists())
    });
    let text = fs::read_to_string(manifest.context("no MANIFEST.tsv beside the set")?)?;
    let mut answers: HashMap<String, Vec<Recorded>> = HashMap::new();
    for line in text.lines() {
        let columns: Vec<&str> = line.split('\t').collect();
        let [file, status, method, path, ..] = columns.as_slice() else { continue };
        if *method != "GET" || *status != "200" || !file.starts_with(&format!("{set}/")) {
            continue;
        }
        let name = file.rsplit('/').next().unwrap_or(file);
        let body = fs::read_to_string(dir.join(name)).with_context(|| format!("read {name}"))?;
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let recorded = Recorded { query: decode_pairs(query), body };
        answers.entry(path.trim_end_matches('/').to_owned()).or_default().push(recorded);
    }
    ensure!(!answers.is_empty(), "the manifest has no rows for {set}");
    Ok(Arc::new(move |request: &Request| Some(answer(&answers, request))))
}

fn answer(answers: &HashMap<String, Vec<Recorded>>, request: &Request) -> Answer {
    let json = |body: &str| Answer {
        status: 200,
        content_type: "application/json",
        body: body.into(),
        correlation: None,
    };
    match request.path.as_str() {
        "/ovirt-engine/sso/oauth/token" => {
            return json(
                "{\"access_token\":\"recorded\",\"scope\":\"ovirt-app-api\",\"exp\":\"9223372036854775807\",\"token_type\":\"bearer\"}",
            );
        }
        "/ovirt-engine/services/sso-logout" => return json("{}"),
        _ => {}
    }
    let found = answers
        .get(request.path.trim_end_matches('/'))
        .and_then(|list| list.iter().find(|r| r.query == request.query).or_else(|| list.first()));
    match found {
        Some(recorded) => Answer {
            status: 200,
            content_type: "application/xml",
            body: recorded.body.clone(),
            correlation: None,
        },
        None => Answer {
            status: 404,
            content_type: "application/xml",
            body: String::new(),
            correlation: None,
        },
    }
}
