//! `hvbak list`.

use comfy_table::{Table, presets::NOTHING};
use hvbak_types::{Inventory, Vm};
use serde_json::{Value, json};

use super::{Face, Outcome};
use crate::{
    cli::{ListArgs, ListWhat},
    exit::{CliError, DONE},
};

pub async fn run(face: &Face, args: ListArgs) -> Outcome {
    let config = face.config()?;
    let engine = face.engine(&config).await?;
    let result = list(face, &args, &engine).await;
    engine.logout().await;
    result
}

async fn list(face: &Face, args: &ListArgs, engine: &hvbak_engine::Engine) -> Outcome {
    let inventory = hvbak_run::list_inventory(engine).await?;
    let rows = if args.what == ListWhat::Snapshots {
        snapshots(engine, &inventory, args).await?
    } else {
        rows(&inventory, args)?
    };
    let mut table = Table::new();
    table.load_style(NOTHING);
    if let Some(Value::Object(first)) = rows.first() {
        table.set_header(first.keys().map(|k| k.to_uppercase()));
    }
    for row in &rows {
        face.printer.record(kind(args.what), row);
        if let Value::Object(row) = row {
            table.add_row(row.values().map(cell));
        }
    }
    if !rows.is_empty() {
        face.printer.data(&table.to_string());
    }
    face.printer.say(&format!("{} {}", rows.len(), plural(args.what)));
    Ok((DONE, json!({ "count": rows.len() })))
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

fn kind(what: ListWhat) -> &'static str {
    match what {
        ListWhat::Vms => "vm",
        ListWhat::Hosts => "host",
        ListWhat::Domains => "domain",
        ListWhat::Disks => "disk",
        ListWhat::Templates => "template",
        ListWhat::Tags => "tag",
        ListWhat::Clusters => "cluster",
        ListWhat::Datacenters => "datacenter",
        ListWhat::Networks => "network",
        ListWhat::Snapshots => "snapshot",
    }
}

fn plural(what: ListWhat) -> String {
    format!("{}s", kind(what))
}

fn rows(inv: &Inventory, args: &ListArgs) -> Result<Vec<Value>, CliError> {
    let cluster = |id: Option<hvbak_types::ClusterId>| {
        inv.clusters.iter().find(|c| Some(c.id) == id).map(|c| c.name.clone())
    };
    let center = |id: Option<hvbak_types::DataCenterId>| {
        inv.data_centers.iter().find(|d| Some(d.id) == id).map(|d| d.name.clone())
    };
    let domain = |id: &hvbak_types::DomainId| {
        inv.storage_domains
            .iter()
            .find(|d| d.id == *id)
            .map_or_else(|| id.to_string(), |d| d.name.clone())
    };
    Ok(match args.what {
        ListWhat::Vms => inv
            .vms
            .iter()
            .map(|v| {
                let host = inv.hosts.iter().find(|h| Some(h.id) == v.host).map(|h| h.name.clone());
                json!({ "name": v.name, "id": v.id, "status": v.status.as_word(), "cluster": cluster(v.cluster), "host": host, "tags": v.tags })
            })
            .collect(),
        ListWhat::Hosts => inv
            .hosts
            .iter()
            .map(|h| json!({ "name": h.name, "id": h.id, "status": h.status.as_word(), "address": h.address, "cluster": cluster(h.cluster), "spm": h.spm, "host_key": h.ssh.fingerprint.clone().or_else(|| h.ssh.public_key.clone()) }))
            .collect(),
        ListWhat::Domains => inv
            .storage_domains
            .iter()
            .map(|d| {
                let centers: Vec<_> = d.data_centers.iter().filter_map(|id| center(Some(*id))).collect();
                json!({ "name": d.name, "id": d.id, "type": d.kind.as_word(), "storage": d.storage.as_word(), "status": d.status.as_ref().map(|s| s.as_word()), "available": d.available, "used": d.used, "datacenters": centers })
            })
            .collect(),
        ListWhat::Disks => disks(inv, args, &domain)?,
        ListWhat::Templates => inv
            .templates
            .iter()
            .map(|t| json!({ "name": t.name, "id": t.id, "status": t.status, "cluster": cluster(t.cluster), "version": t.version_number }))
            .collect(),
        ListWhat::Tags => inv.tags.iter().map(|t| json!({ "name": t.name, "id": t.id, "description": t.description })).collect(),
        ListWhat::Clusters => inv
            .clusters
            .iter()
            .map(|c| json!({ "name": c.name, "id": c.id, "datacenter": center(c.data_center), "version": c.version.map(|(a, b)| format!("{a}.{b}")), "cpu": c.cpu_type }))
            .collect(),
        ListWhat::Datacenters => inv
            .data_centers
            .iter()
            .map(|d| json!({ "name": d.name, "id": d.id, "status": d.status, "local": d.local, "version": d.version.map(|(a, b)| format!("{a}.{b}")) }))
            .collect(),
        ListWhat::Networks => inv.networks.iter().map(|n| json!({ "name": n.name, "id": n.id, "datacenter": center(n.data_center), "vlan": n.vlan })).collect(),
        ListWhat::Snapshots => Vec::new(),
    })
}

fn disks(
    inv: &Inventory,
    args: &ListArgs,
    domain: &dyn Fn(&hvbak_types::DomainId) -> String,
) -> Result<Vec<Value>, CliError> {
    if args.vm.is_some() {
        return Err(CliError::usage(
            "`--vm` goes with `list snapshots`; see a VM's disks with `hvbak backup --vm NAME --dry-run`",
        ));
    }
    Ok(inv
        .disks
        .iter()
        .map(|d| {
            let domains: Vec<_> = d.storage_domains.iter().map(domain).collect();
            json!({ "alias": d.alias, "id": d.id, "status": d.status.as_ref().map(|s| s.as_word()), "size": d.provisioned_size, "actual": d.actual_size, "format": d.format.as_ref().map(|f| f.as_word()), "content": d.content_type.as_ref().map(|c| c.as_word()), "domains": domains })
        })
        .collect())
}

async fn snapshots(
    engine: &hvbak_engine::Engine,
    inv: &Inventory,
    args: &ListArgs,
) -> Result<Vec<Value>, CliError> {
    let wanted =
        args.vm.as_ref().ok_or_else(|| CliError::usage("`list snapshots` needs `--vm`"))?;
    let matching: Vec<&Vm> =
        inv.vms.iter().filter(|v| v.name == *wanted || v.id.to_string() == *wanted).collect();
    let vm = match matching.as_slice() {
        [one] => one,
        [] => {
            return Err(
                hvbak_plan::SelectError::Unknown { what: "vm", text: wanted.clone() }.into()
            );
        }
        many => {
            let ids = many.iter().map(|v| v.id).collect();
            return Err(hvbak_plan::SelectError::Ambiguous { name: wanted.clone(), ids }.into());
        }
    };
    let snapshots = hvbak_run::list_snapshots(engine, vm.id).await?;
    Ok(snapshots
        .iter()
        .map(|s| json!({ "description": s.description, "id": s.id, "kind": s.kind.as_word(), "status": s.status.as_ref().map(|s| s.as_word()), "date": s.date.map(|d| d.to_string()), "memory": s.memory }))
        .collect())
}
