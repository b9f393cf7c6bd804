//! The lab's own door: a unix socket in its directory, one JSON request and answer per
//! connection. Only `hvbak-lab` and tests use it; no engine has such a thing.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::Arc,
    thread,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    model::{HttpFault, Lab, State},
    ops,
    qsd::Running,
};

/// Listens for the rest of the process's life.
pub fn listen(lab: Arc<Lab>) -> Result<()> {
    let path = lab.dir.join("control.sock");
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).context("bind the control socket")?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let lab = lab.clone();
            thread::spawn(move || {
                let _ = serve(&lab, stream);
            });
        }
    });
    Ok(())
}

fn serve(lab: &Arc<Lab>, stream: UnixStream) -> Result<()> {
    let mut line = String::new();
    BufReader::new(stream.try_clone()?).read_line(&mut line)?;
    let request: Value = serde_json::from_str(&line)?;
    let stop = request["op"] == "down";
    let answer = match act(lab, &request) {
        Ok(value) => json!({ "ok": value }),
        Err(error) => json!({ "error": format!("{error:#}") }),
    };
    (&stream).write_all(format!("{answer}\n").as_bytes())?;
    if stop {
        std::process::exit(0);
    }
    Ok(())
}

/// Sends a request to a running lab.
pub fn call(dir: &Path, request: &Value) -> Result<Value> {
    let path = dir.join("control.sock");
    let stream =
        UnixStream::connect(&path).with_context(|| format!("no lab runs in {}", dir.display()))?;
    (&stream).write_all(format!("{request}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let answer: Value = serde_json::from_str(&line).context("the lab hung up")?;
    match answer.get("error") {
        Some(error) => bail!("{}", error.as_str().unwrap_or("?")),
        None => Ok(answer["ok"].clone()),
    }
}

fn act(lab: &Arc<Lab>, q: &Value) -> Result<Value> {
    let text = |key: &str| q[key].as_str().unwrap_or("").to_owned();
    match q["op"].as_str().unwrap_or("") {
        "down" => {
            shutdown(lab);
            Ok(Value::Null)
        }
        "room" => room(lab, &text("vm"), &text("disk"), q["length"].as_u64().unwrap_or(0)),
        "locate" => locate(lab, &text("vm"), &text("disk")),
        "http-fault" => {
            let fault: HttpFault = serde_json::from_value(q["fault"].clone())?;
            lab.state().http_faults.push(fault);
            Ok(Value::Null)
        }
        "fault" => {
            let times = q["times"].as_u64().unwrap_or(1) as u32;
            lab.state().faults.insert(text("name"), times);
            Ok(Value::Null)
        }
        "permits" => {
            lab.state().permits = Some(serde_json::from_value(q["names"].clone())?);
            Ok(Value::Null)
        }
        "clear" => {
            let mut s = lab.state();
            s.faults.clear();
            s.http_faults.clear();
            s.domains.iter_mut().for_each(|d| d.available = None);
            Ok(Value::Null)
        }
        "expire-tokens" => {
            lab.state().tokens.clear();
            Ok(Value::Null)
        }
        "host" => host(lab, &text("name"), &text("action"), &text("status")),
        "domain-available" => {
            let mut s = lab.state();
            let name = text("name");
            let domain = s.domains.iter_mut().find(|d| d.name == name).context("no such domain")?;
            domain.available = q["bytes"].as_u64();
            Ok(Value::Null)
        }
        "disk-status" => {
            let mut s = lab.state();
            let alias = text("disk");
            let disk = s.disks.iter_mut().find(|d| d.alias == alias).context("no such disk")?;
            disk.status = if text("status") == "illegal" { "illegal" } else { "ok" };
            Ok(Value::Null)
        }
        "delete-snapshot" => {
            let (vm, id) = {
                let s = lab.state();
                let v = find_vm(&s, &text("vm"))?;
                let x = v.snapshots.iter().find(|x| {
                    x.description.starts_with(&text("description")) && x.kind == "regular"
                });
                (v.id, x.context("no such snapshot")?.id)
            };
            ops::delete_snapshot(lab, vm, id, String::new())
                .map_err(|e| anyhow::anyhow!("{e:?}"))?;
            Ok(json!({ "id": id }))
        }
        "state" => Ok(state(&lab.state())),
        other => bail!("the lab knows no `{other}`"),
    }
}

/// Stops daemons and hosts.
pub fn shutdown(lab: &Arc<Lab>) {
    let (hosts, daemons): (Vec<_>, Vec<_>) = {
        let s = lab.state();
        (s.hosts.clone(), s.vms.iter().map(|v| v.running.clone()).collect())
    };
    let _ = std::fs::remove_file(lab.dir.join("control.sock"));
    hosts.iter().for_each(crate::hosts::Host::stop);
    for daemon in daemons {
        *daemon.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
    }
}

fn find_vm<'a>(s: &'a State, text: &str) -> Result<&'a crate::model::Vm> {
    s.vms
        .iter()
        .find(|v| v.name == text || v.id.to_string() == text)
        .with_context(|| format!("no VM `{text}`"))
}

/// Where a guest's disk can be read and written now.
fn locate(lab: &Arc<Lab>, vm: &str, disk: &str) -> Result<Value> {
    // A guest that is starting or stopping will be somewhere in a moment.
    let moving = |s: &State| {
        Ok::<_, anyhow::Error>(
            ["powering_up", "powering_down"].contains(&find_vm(s, vm)?.status.as_str()),
        )
    };
    for _ in 0..500 {
        if !moving(&lab.state())? {
            break;
        }
        thread::sleep(std::time::Duration::from_millis(20));
    }
    let s = lab.state();
    let v = find_vm(&s, vm)?;
    let d = v
        .attachments
        .iter()
        .filter_map(|a| s.disk(a.disk))
        .find(|d| d.alias == disk || d.id.to_string() == disk)
        .with_context(|| format!("VM {vm} has no disk `{disk}`"))?;
    let domain = s.domain(d.domain).context("domain")?;
    let chain = domain.chain(d.id, d.top)?;
    let paths: Vec<_> = chain.iter().map(|volume| domain.volume_path(d.id, *volume)).collect();
    let live = ops::is_running(&v.status);
    let host = s.hosts.iter().find(|h| live && Some(h.id) == v.host).map(|h| h.name.as_str());
    let image = if live {
        Running::nbd_uri(&lab.vm_dir(v.id), d.id, domain.lun.is_some())
    } else {
        paths[0].display().to_string()
    };
    Ok(json!({
        "vm": v.id, "disk": d.id, "volume": d.top, "size": d.size, "image": image, "live": live,
        "format": if live || !d.cow { "raw" } else { "qcow2" }, "chain": chain, "paths": paths,
        "frozen": v.frozen, "lun": domain.lun.as_ref().map(|lun| lun.access(&chain, host)),
    }))
}

/// Before a guest writes so many bytes: its LV is made larger where vdsm would do it.
fn room(lab: &Arc<Lab>, vm: &str, disk: &str, length: u64) -> Result<Value> {
    let (running, guest) = {
        let s = lab.state();
        let v = find_vm(&s, vm)?;
        let mut disks = v.attachments.iter().filter_map(|a| s.disk(a.disk));
        let found = disks.find(|d| d.alias == disk || d.id.to_string() == disk);
        let id = found.with_context(|| format!("VM {vm} has no disk `{disk}`"))?.id;
        (v.running.clone(), s.guest_disk(id).context("a disk without volumes")?)
    };
    let mut daemon = running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let (Some(daemon), Some(lun)) = (daemon.as_mut(), &guest.domain.lun) {
        let end = daemon.highest(guest.top)? + length;
        lun.make_room(daemon.host(), guest.top, end)?;
    }
    Ok(Value::Null)
}

fn host(lab: &Arc<Lab>, name: &str, action: &str, status: &str) -> Result<Value> {
    let host = {
        let mut s = lab.state();
        let host = s
            .hosts
            .iter_mut()
            .find(|h| h.name == name)
            .with_context(|| format!("no host `{name}`"))?;
        if action == "status" {
            host.status = status.to_owned();
            return Ok(Value::Null);
        }
        host.clone()
    };
    match action {
        "kill" => host.stop(),
        "start" => host.start()?,
        "change-key" => host.change_key()?,
        other => bail!("a host cannot `{other}`"),
    }
    Ok(Value::Null)
}

/// What tests compare: names and ids of everything that can be left behind.
fn state(s: &State) -> Value {
    let id = |u: Uuid| u.to_string();
    json!({
        "vms": s.vms.iter().map(|v| json!({
            "id": id(v.id), "name": v.name, "status": v.status, "frozen": v.frozen, "description": v.description,
            "snapshots": v.snapshots.iter().map(|x| json!({ "id": id(x.id), "description": x.description, "kind": x.kind, "status": x.status, "disks": x.disks })).collect::<Vec<_>>(),
            "disks": v.attachments.iter().map(|a| id(a.disk)).collect::<Vec<_>>(),
            "nics": v.nics.iter().map(|n| json!({ "name": n.name, "mac": n.mac, "linked": n.linked })).collect::<Vec<_>>(),
            "tags": v.tags,
        })).collect::<Vec<_>>(),
        "templates": s.templates.iter().map(|t| json!({ "id": id(t.id), "name": t.name, "status": t.status, "description": t.description, "cluster": id(t.cluster), "disks": t.attachments.iter().map(|a| id(a.disk)).collect::<Vec<_>>(), "nics": t.nics.iter().map(|n| json!({ "name": n.name })).collect::<Vec<_>>() })).collect::<Vec<_>>(),
        "storage_domains": s.domains.iter().map(|d| json!({ "id": id(d.id), "name": d.name })).collect::<Vec<_>>(),
        "disks": s.disks.iter().map(|d| json!({ "id": id(d.id), "alias": d.alias, "domain": id(d.domain), "status": d.status, "top": id(d.top), "cow": d.cow, "size": d.size, "description": d.description })).collect::<Vec<_>>(),
        "hosts": s.hosts.iter().map(|h| json!({ "name": h.name, "root": h.root })).collect::<Vec<_>>(),
        "events": s.events.iter().map(|e| json!({ "code": e.code, "text": e.description })).collect::<Vec<_>>(),
    })
}
