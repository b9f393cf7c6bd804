//! `/events` and `/tags`.

use uuid::Uuid;

use super::{Reply, Request, done, parse, root, uuid};
use crate::{
    fault::Refusal,
    model::{Lab, Named},
    render,
    xml::{X, id_of, text},
};

pub(super) fn list(lab: &Lab, q: &Request) -> Reply {
    let s = lab.state();
    let search = q.query.get("search").map_or("", String::as_str);
    let wanted = search.split_whitespace().find_map(|w| w.strip_prefix("correlation_id="));
    let vm = search.split_whitespace().find_map(|w| w.strip_prefix("event_vm_id="));
    let from = q.query.get("from").and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    let max = q.query.get("max").and_then(|m| m.parse::<usize>().ok()).unwrap_or(usize::MAX);
    let list = s.events.iter().rev().filter(|e| {
        e.id > from
            && wanted.is_none_or(|w| e.correlation == w)
            && vm.is_none_or(|v| e.vm.is_some_and(|id| id.to_string() == v))
    });
    Ok((200, X::list("events", list.take(max).map(render::event))))
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
    let custom: i64 =
        need("custom_id")?.parse().map_err(|_| Refusal::bad("Invalid value", "custom_id"))?;
    let mut s = lab.state();
    if origin == "oVirt"
        || s.events.iter().any(|e| e.origin == origin && e.custom_id == Some(custom))
    {
        return Err(Refusal::bad("Operation Failed", "External event is invalid or exists"));
    }
    s.event(9801, &severity, description, "", id_of(x, "vm"));
    let Some(event) = s.events.last_mut() else { return Err(Refusal::NotFound) };
    event.origin = origin;
    event.custom_id = Some(custom);
    Ok((201, render::event(event)))
}

pub(super) fn tags(lab: &Lab, q: &Request, parts: &[&str], body: &str) -> Reply {
    let mut s = lab.state();
    match (q.method.as_str(), parts) {
        ("GET", ["tags"]) => Ok((200, X::list("tags", s.tags.iter().map(render::tag)))),
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
            s.tags.retain(|t| t.id != id);
            done()
        }
        _ => Err(Refusal::NotFound),
    }
}
