//! `hvbak points` and `hvbak show`.

use comfy_table::{Table, presets::NOTHING};
use hvbak_repo::{Manifest, Repository};
use indicatif::HumanBytes;
use serde_json::json;

use super::{Face, Outcome, repo_error};
use crate::{
    cli::{PointsArgs, ShowArgs},
    exit::{CliError, DAMAGE, DONE},
};

fn open(face: &Face) -> Result<Repository, CliError> {
    Ok(hvbak_run::open_repository(&face.config()?.repository.path)?)
}

pub fn list(face: &Face, args: PointsArgs) -> Outcome {
    let mut repository = open(face)?;
    if args.config_only {
        repository = repository.configurations();
    }
    let listing = match &args.vm {
        None => repository.all_points(),
        Some(vm) => repository.find_vm(vm).and_then(|id| repository.points(id)),
    }
    .map_err(repo_error("list the points"))?;
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["POINT", "LEVEL", "CONSISTENCY", "DISKS", "STORED"]);
    for point in &listing.points {
        let m = &point.manifest;
        face.printer.record("point", &summary(m));
        table.add_row([
            point.title(),
            word(&m.level),
            word(&m.consistency),
            m.disks.len().to_string(),
            HumanBytes(m.stored_bytes()).to_string(),
        ]);
    }
    if !listing.points.is_empty() {
        face.printer.data(&table.to_string());
    }
    for damaged in &listing.damaged {
        let text = crate::exit::chain(&damaged.error);
        face.printer.record(
            "damaged-point",
            &json!({ "vm": damaged.vm, "point": damaged.point, "error": text }),
        );
        face.printer.say(&format!("error: {}/{} is damaged: {text}", damaged.vm, damaged.point));
    }
    face.printer.say(&format!("{} points", listing.points.len()));
    let code = if listing.damaged.is_empty() { DONE } else { DAMAGE };
    Ok((code, json!({ "count": listing.points.len(), "damaged": listing.damaged.len() })))
}

/// The word that the manifest uses.
pub fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        _ => "?".into(),
    }
}

fn summary(m: &Manifest) -> serde_json::Value {
    json!({
        "vm": m.vm.id, "name": m.vm.name, "point": m.point, "level": m.level,
        "parent": m.parent, "consistency": m.consistency, "disks": m.disks.len(),
        "skipped": m.skipped.len(), "configuration_only": m.configuration_only, "stored_bytes": m.stored_bytes(), "finished": m.finished,
    })
}

pub fn show(face: &Face, args: ShowArgs) -> Outcome {
    let repository = open(face)?;
    let point = repository.find(&args.point).map_err(repo_error("find the point"))?;
    let m = &point.manifest;
    face.printer.record("manifest", m);
    let mut text = format!(
        "point        {}\nvm           {} ({})\ncluster      {}\nlevel        {}, {}-consistent\nread         {} to {}\nby           hvbak {}, engine {}\nin           {}\n",
        m.point,
        m.vm.name,
        m.vm.id,
        m.vm.cluster.as_deref().unwrap_or("-"),
        word(&m.level),
        word(&m.consistency),
        m.started,
        m.finished,
        m.hvbak,
        m.engine_version.as_deref().unwrap_or("-"),
        point.path.display(),
    );
    if m.configuration_only {
        text.push_str("holds        the configuration only: no disk can be restored from it\n");
    }
    for d in &m.disks {
        text.push_str(&format!(
            "disk         {} ({})\n             {}: {}\n             {} seen by the guest, {} stored, {}, on {}, {}\n",
            d.alias,
            d.record.id,
            word(&d.level),
            d.reason,
            HumanBytes(d.record.virtual_size),
            HumanBytes(d.record.stored_bytes),
            d.interface.as_deref().unwrap_or("-"),
            d.domain_name.as_deref().unwrap_or("-"),
            if d.bootable { "bootable" } else { "not bootable" },
        ));
    }
    if let Ok(facts) = hvbak_run::point_facts(&repository, &point) {
        for nic in &facts.nics {
            let of = nic.profile.as_ref().map(|(profile, network)| format!("{network}/{profile}"));
            text.push_str(&format!(
                "nic          {}, {}, {}\n",
                nic.name,
                nic.mac.as_deref().unwrap_or("-"),
                of.as_deref().unwrap_or("no network"),
            ));
        }
    }
    for d in &m.skipped {
        text.push_str(&format!("left out     {}: {}\n", d.alias, d.reason));
    }
    for d in &m.documents {
        text.push_str(&format!("document     {} ({} bytes)\n", d.name, d.size));
    }
    for w in &m.warnings {
        text.push_str(&format!("warning      {w}\n"));
    }
    face.printer.data(&text);
    Ok((DONE, json!({ "path": point.path })))
}
