//! `hvbak manager-points`.

use comfy_table::{Table, presets::NOTHING};
use indicatif::HumanBytes;
use serde_json::json;

use super::{Face, Outcome, repo_error};
use crate::exit::{DAMAGE, DONE, chain};

pub fn run(face: &Face) -> Outcome {
    let repository = hvbak_run::open_repository(&face.config()?.repository.path)?;
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["POINT", "VERSION", "SCOPES", "NOT SET UP", "STORED", "ENCRYPTED TO"]);
    let (mut count, mut damaged) = (0, 0);
    for name in repository.manager_names().map_err(repo_error("list the managers"))? {
        let listing = repository.manager_points(&name).map_err(repo_error("list the points"))?;
        for point in listing.points {
            let m = &point.manifest;
            face.printer.record("manager-point", m);
            table.add_row([
                point.title(),
                m.version.clone(),
                m.scopes.join(","),
                m.absent.join(","),
                HumanBytes(m.archive().map_or(0, |f| f.size)).to_string(),
                encrypted(m.recipients()),
            ]);
            count += 1;
        }
        for (path, error) in listing.damaged {
            let text = chain(&error);
            face.printer.record("damaged-point", &json!({ "path": path, "error": text }));
            face.printer.say(&format!("error: {} is damaged: {text}", path.display()));
            damaged += 1;
        }
    }
    if count > 0 {
        face.printer.data(&table.to_string());
    }
    face.printer.say(&format!("{count} points"));
    let code = if damaged == 0 { DONE } else { DAMAGE };
    Ok((code, json!({ "count": count, "damaged": damaged })))
}

/// Public keys, short enough for a table; all of them are in `--json`.
fn encrypted(recipients: &[String]) -> String {
    let short = |key: &String| match key.char_indices().nth(24) {
        Some((end, _)) => format!("{}…", &key[..end]),
        None => key.clone(),
    };
    match recipients {
        [] => "-".into(),
        [one] => short(one),
        [first, more @ ..] => format!("{} and {} more", short(first), more.len()),
    }
}
