//! `hvbak runbook`: the pages, written where people find them.

use std::{fs, path::Path};

use hvbak_run::RunbookWishes;
use serde_json::json;

use super::{Face, Outcome};
use crate::{
    cli::RunbookArgs,
    exit::{CliError, DONE},
};

pub async fn run(face: &Face, args: RunbookArgs) -> Outcome {
    let config = face.config()?;
    let context = face.context().await?;
    let wishes = RunbookWishes {
        engine_url: config.engine.url.clone(),
        contacts: config.runbook.contacts.clone(),
        priority_tag: config.runbook.priority_tag.clone(),
    };
    let facts = hvbak_run::runbook_facts(&context, wishes).await;
    context.engine.logout().await;
    let facts = facts?;
    let pages = hvbak_runbook::pages(&facts);
    fs::create_dir_all(&args.output).map_err(|cause| CliError::Io {
        text: format!("cannot make {}", args.output.display()),
        cause,
    })?;
    let mut files = Vec::new();
    for page in &pages {
        files.push((format!("{}.md", page.slug), page.markdown.clone()));
    }
    files.push(("runbook.html".into(), hvbak_runbook::html(&facts, &pages)));
    for (name, text) in &files {
        write(&args.output.join(name), text)?;
    }
    let unprotected = facts.vms.iter().filter(|vm| vm.newest.is_none()).count();
    let out = args.output.display();
    face.printer.say(&format!("{} pages in {out}; print {out}/runbook.html", pages.len()));
    if unprotected > 0 {
        face.printer.say(&format!("warning: {unprotected} VMs have no stored point"));
    }
    if facts.manager_points.is_empty() {
        face.printer.say("warning: there is no stored backup of the manager");
    }
    Ok((
        DONE,
        json!({
            "output": args.output, "files": files.iter().map(|f| &f.0).collect::<Vec<_>>(),
            "vms": facts.vms.len(), "vms_without_point": unprotected,
            "manager_points": facts.manager_points.len(),
        }),
    ))
}

/// A page is the old one or the new one, never half of it.
fn write(path: &Path, text: &str) -> Result<(), CliError> {
    let failed = |cause| CliError::Io { text: format!("cannot write {}", path.display()), cause };
    let half = path.with_extension("new");
    fs::write(&half, text).map_err(failed)?;
    fs::rename(&half, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use hvbak_runbook::{EngineFacts, Facts, pages};

    use crate::cli::Cli;

    /// Every `hvbak …` that the pages tell people to type is a command line of this program.
    #[test]
    fn commands_of_the_pages_are_commands() {
        let facts = Facts {
            read: jiff::Timestamp::now(),
            backup_host: String::new(),
            hvbak: String::new(),
            repository: "/backup".into(),
            repository_id: String::new(),
            contacts: Vec::new(),
            engine: EngineFacts {
                url: "https://e/ovirt-engine/api".into(),
                fqdn: "e".into(),
                version: String::new(),
                hosted_engine_vm: Some("HostedEngine".into()),
            },
            hosts: Vec::new(),
            domains: Vec::new(),
            networks: Vec::new(),
            mac_pools: Vec::new(),
            vms: Vec::new(),
            manager_points: Vec::new(),
            manager_drills: Vec::new(),
            speed: None,
        };
        let mut seen = 0;
        for page in pages(&facts) {
            let typed = page
                .markdown
                .split(['`', '\n'])
                .filter(|text| text.starts_with("hvbak ") && !text.contains("hvbak 0"));
            for line in typed {
                let line = line.split(" #").next().unwrap_or(line);
                let parsed = Cli::try_parse_from(line.split_whitespace());
                // `hvbak runbook` stands for the one with its directory.
                assert!(parsed.is_ok() || line == "hvbak runbook", "{}: {line}", page.slug);
                seen += 1;
            }
        }
        assert!(seen > 20, "{seen}");
    }
}
