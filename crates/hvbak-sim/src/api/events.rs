//! `/events` and `/tags`.

use uuid::Uuid;

use super::{Reply, Request, done, parse, root, uuid};
use crate::{
    engine_backup,
    fault::Refusal,
    model::{Event, Lab, Named},
    render, search,
    xml::{X, id_of, text},
};

const FIELDS: [&str; 9] = [
    "message",
    "type",
    "severity",
    "time",
    "event_vm",
    "event_vm_id",
    "correlation_id",
    "origin",
    "custom_event_id",
];

pub(super) fn list(lab: &Lab, q: &Request) -> Reply {
    let mut s = lab.state();
    engine_backup::take_in(&mut s);
    let from = search::number(q, "from").unwrap_or(0) as u64;
    let newest_first = s.events.iter().rev().filter(|e| e.id > from).collect();
    let list = search::select(q, newest_first, &FIELDS, |e: &&Event, field| match field {
        "message" => vec![e.description.clone()],
        "type" => vec![e.code.to_string()],
        "severity" => vec![e.severity.clone()],
        "event_vm_id" => e.vm.iter().map(Uuid::to_string).collect(),
        "event_vm" => e.vm.and_then(|v| Some(s.vm(v)?.name.clone())).into_iter().collect(),
        "correlation_id" => vec![e.correlation.clone()],
        "origin" => vec![e.origin.clone()],
        "time" => vec![crate::xml::time(e.time)],
        _ => e.custom_id.iter().map(i64::to_string).collect(),
    })?;
    Ok((200, X::list("events", list.into_iter().map(render::event))))
}

pub(super) fn post(lab: &Lab, body: &str) -> Reply {
    let doc = parse(body)?;
    let x = root(&doc, &["event"])?;
    let need = |name: &str| {
        text(x, name).ok_or_else(|| {
            Refusal::bad("Incomplete parameters", format!("Event [{name}] required for add"))
        })
    };
    let (description, severity, origin) =
        (need("description")?, need("severity")?, need("origin")?);
    // 32 bits in the engine: milliseconds since 1970 do not fit.
    let custom: i32 =
        need("custom_id")?.parse().map_err(|_| Refusal::bad("Invalid value", "custom_id"))?;
    let custom = i64::from(custom);
    let code = match severity.as_str() {
        "normal" => 9801,
        "warning" => 9802,
        "error" => 9803,
        "alert" => 9804,
        other => {
            let text = format!("{other} is not a member of LogSeverity");
            return Err(Refusal::bad("Invalid value", text));
        }
    };
    let mut s = lab.state();
    if origin == "oVirt"
        || s.events.iter().any(|e| e.origin == origin && e.custom_id == Some(custom))
    {
        return Err(Refusal::bad("Operation Failed", "External event is invalid or exists"));
    }
    s.event(code, &severity, description, "", id_of(x, "vm"));
    let Some(event) = s.events.last_mut() else { return Err(Refusal::NotFound) };
    event.origin = origin;
    event.custom_id = Some(custom);
    Ok((201, render::event(event)))
}

pub(super) fn tags(lab: &Lab, q: &Request, parts: &[&str], body: &str) -> Reply {
    let mut s = lab.state();
    match (q.method.as_str(), parts) {
        ("GET", ["tags"]) => Ok((200, X::list("tags", s.tags.iter().map(render::tag)))),
        ("GET", ["tags", id]) => {
            let id = uuid(id)?;
            let tag = s.tags.iter().find(|t| t.id == id).ok_or(Refusal::NotFound)?;
            Ok((200, render::tag(tag)))
        }
        ("POST", ["tags"]) => {
            let doc = parse(body)?;
            let name = text(root(&doc, &["tag"])?, "name").ok_or_else(|| {
                Refusal::bad("Incomplete parameters", "Tag [name] required for add")
            })?;
            if s.tags.iter().any(|t| t.name == name) {
                return Err(Refusal::conflict("Cannot add Tag. The name is already in use."));
            }
            let tag = Named { id: Uuid::new_v4(), name, of: Uuid::nil() };
            let shown = render::tag(&tag);
            s.tags.push(tag);
            Ok((201, shown))
        }
        ("DELETE", ["tags", id]) => {
            let id = uuid(id)?;
            let at = s.tags.iter().position(|t| t.id == id).ok_or(Refusal::NotFound)?;
            s.tags.remove(at);
            s.vms.iter_mut().for_each(|v| v.tags.retain(|t| *t != id));
            done()
        }
        _ => Err(Refusal::NotFound),
    }
}
