//! The REST API: requests to answers. Behaves as `engine-api` facts say, not as is
//! convenient for a client.

use std::{collections::HashMap, sync::Arc, thread, time::Duration};

use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    fault::Refusal,
    model::{Attachment, Disk, Lab, Named, Nic, Snapshot, State, Vm},
    ops, ovf, render,
    xml::{X, at, child, flag, id_of, text},
};

/// A request as the router sees it.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: HashMap<String, String>,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub content_type: &'static str,
    pub body: String,
    pub correlation: Option<String>,
}

impl Answer {
    fn xml(status: u16, body: impl Into<String>) -> Self {
        let body = body.into();
        Self { status, content_type: "application/xml;charset=UTF-8", body, correlation: None }
    }

    fn json(status: u16, body: String) -> Self {
        Self { status, content_type: "application/json", body, correlation: None }
    }
}

const XML_HEAD: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\" standalone=\"yes\"?>\n";
const LOGIN_HTML: &str = "<html><head><title>Error</title></head><body>Unauthorized</body></html>";

type Reply = Result<(u16, X), Refusal>;

/// Answers a request.
pub fn handle(lab: &Arc<Lab>, request: &Request) -> Answer {
    let path = request.path.trim_end_matches('/');
    match path {
        "/ovirt-engine/sso/oauth/token" => return token(lab, request),
        "/ovirt-engine/services/sso-logout" => {
            if let Some(token) = form(&request.body).get("token") {
                lab.state().tokens.remove(token);
            }
            return Answer::json(200, "{}".into());
        }
        "/ovirt-engine/services/pki-resource" => {
            return Answer {
                status: 200,
                content_type: "application/x-pem-file",
                body: lab.ca_pem.clone(),
                correlation: None,
            };
        }
        "/ovirt-engine/services/health" => {
            return Answer {
                status: 200,
                content_type: "text/plain",
                body: "DB Up!Welcome to Health Status!".into(),
                correlation: None,
            };
        }
        _ => {}
    }
    let Some(rest) = path.strip_prefix("/ovirt-engine/api") else {
        return Answer {
            status: 404,
            content_type: "text/html",
            body: "<html><body>Not Found</body></html>".into(),
            correlation: None,
        };
    };
    let rest = rest.strip_prefix("/v4").unwrap_or(rest);
    let bearer = request.headers.get("authorization").and_then(|a| a.strip_prefix("Bearer "));
    if !bearer.is_some_and(|t| lab.state().tokens.contains(t)) {
        return Answer {
            status: 401,
            content_type: "text/html",
            body: LOGIN_HTML.into(),
            correlation: None,
        };
    }
    let correlation: String = request
        .headers
        .get("correlation-id")
        .or_else(|| request.query.get("correlation_id"))
        .map(|c| {
            c.chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).take(36).collect()
        })
        .unwrap_or_else(|| Uuid::new_v4().to_string());
    let parts: Vec<&str> = rest.split('/').filter(|p| !p.is_empty()).collect();
    let is_action = request.method == "POST"
        && parts.len() == 3
        && !["snapshots", "diskattachments", "nics", "tags"].contains(&parts[2]);
    let reply = match std::str::from_utf8(&request.body) {
        Ok(body) => route(lab, request, &parts, body, &correlation),
        Err(_) => Err(Refusal::bad("Request syntactically incorrect.", "not UTF-8")),
    };
    let mut answer = match reply {
        Ok((status, x)) => Answer::xml(status, format!("{XML_HEAD}{}", x.0)),
        Err(refusal) => {
            let (status, body) = refusal.answer(is_action);
            let body = if body.is_empty() { body } else { format!("{XML_HEAD}{body}") };
            Answer::xml(status, body)
        }
    };
    answer.correlation = Some(correlation);
    answer
}

fn form(body: &[u8]) -> HashMap<String, String> {
    decode_pairs(&String::from_utf8_lossy(body))
}

/// `a=b&c=d` with percent escapes.
pub fn decode_pairs(text: &str) -> HashMap<String, String> {
    let unescape = |t: &str| {
        let bytes = t.as_bytes();
        let (mut out, mut i) = (Vec::new(), 0);
        while i < bytes.len() {
            let hex = bytes.get(i + 1..i + 3).and_then(|h| std::str::from_utf8(h).ok());
            match (bytes[i], hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
                (b'%', Some(byte)) => {
                    out.push(byte);
                    i += 3;
                    continue;
                }
                (b'+', _) => out.push(b' '),
                (byte, _) => out.push(byte),
            }
            i += 1;
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    text.split('&')
        .filter(|p| !p.is_empty())
        .map(|p| p.split_once('=').unwrap_or((p, "")))
        .map(|(k, v)| (unescape(k), unescape(v)))
        .collect()
}

fn token(lab: &Lab, request: &Request) -> Answer {
    if !request.headers.get("accept").is_some_and(|a| a.contains("application/json")) {
        return Answer::json(
            400,
            "{\"error\":\"invalid_request\",\"error_description\":\"Accept\"}".into(),
        );
    }
    let form = form(&request.body);
    let get = |key: &str| form.get(key).map_or("", String::as_str);
    if get("username") != lab.username || get("password") != lab.password {
        let text = format!(
            "Cannot authenticate user '{}': The user name or password is incorrect..",
            get("username")
        );
        return Answer::json(
            400,
            serde_json::json!({ "error_code": "access_denied", "error": text }).to_string(),
        );
    }
    let token = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
    lab.state().tokens.insert(token.clone());
    let body = serde_json::json!({ "access_token": token, "scope": "ovirt-app-api", "exp": "9223372036854775807", "token_type": "bearer" });
    Answer::json(200, body.to_string())
}

fn uuid(text: &str) -> Result<Uuid, Refusal> {
    text.parse().map_err(|_| Refusal::bad("Operation failed", "Invalid UUID"))
}

fn root<'a>(
    doc: &'a roxmltree::Document<'a>,
    names: &[&str],
) -> Result<roxmltree::Node<'a, 'a>, Refusal> {
    let root = doc.root_element();
    if names.contains(&root.tag_name().name()) {
        return Ok(root);
    }
    Err(Refusal::bad(
        "Request syntactically incorrect.",
        "For correct usage, see the API documentation",
    ))
}

fn parse(body: &str) -> Result<roxmltree::Document<'_>, Refusal> {
    roxmltree::Document::parse(body).map_err(|_| {
        Refusal::bad(
            "Request syntactically incorrect.",
            "For correct usage, see the API documentation",
        )
    })
}

fn done() -> Reply {
    let id = Uuid::new_v4();
    Ok((
        200,
        X::default().n(
            "action",
            "",
            X::default().n("job", &at("jobs", id), X::default()).t("status", "complete"),
        ),
    ))
}

fn route(lab: &Arc<Lab>, q: &Request, parts: &[&str], body: &str, correlation: &str) -> Reply {
    let method = q.method.as_str();
    let follow: Vec<&str> =
        q.query.get("follow").map_or_else(Vec::new, |f| f.split(',').map(str::trim).collect());
    let all_content = q.query.get("all_content").is_some_and(|v| v == "true")
        || q.headers.get("all-content").is_some_and(|v| v == "true");
    match (method, parts) {
        ("GET", []) => Ok((200, api_root(lab))),
        ("GET", ["vms", rest @ ..]) => vms_get(lab, q, rest, &follow, all_content),
        ("POST", ["vms"]) => vm_create(lab, body),
        (_, ["vms", id, rest @ ..]) => vm_change(lab, q, uuid(id)?, rest, body, correlation),
        (_, ["disks", rest @ ..]) => disks(lab, q, rest, body),
        ("GET", ["events"]) => events(lab, q),
        ("POST", ["events"]) => event_post(lab, body),
        (_, ["tags", ..]) => tags(lab, q, parts, body),
        ("GET", _) => inventory(lab, q, parts),
        _ => Err(Refusal::NotFound),
    }
}

fn api_root(lab: &Lab) -> X {
    let version = X::default()
        .t("major", 4)
        .t("minor", 5)
        .t("build", 5)
        .t("revision", 0)
        .t("full_version", "4.5.5-1.el8");
    let product = X::default()
        .t("instance_id", lab.instance)
        .t("name", "oVirt Engine")
        .t("vendor", "ovirt.org")
        .n("version", "", version);
    let inner =
        X::default().n("product_info", "", product).t("time", crate::xml::time(Timestamp::now()));
    X::default().n("api", "", inner)
}

/// Filters and cuts as `search=` and `max=` say: `name=`, `id=`, with `page N`.
fn select<T>(q: &Request, items: Vec<T>, name: impl Fn(&T) -> (String, String)) -> Vec<T> {
    let search = q.query.get("search").map_or("", String::as_str);
    let mut wanted: Option<(bool, String)> = None;
    let mut page = 1usize;
    let mut words = search.split_whitespace().peekable();
    let mut sorted = false;
    if let Some(at) = search.find("name=").or_else(|| search.find("id=")) {
        let by_name = search[at..].starts_with("name=");
        let value = search[at..].split_once('=').map_or("", |(_, v)| v);
        let value = match value.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next().unwrap_or("").to_owned(),
            None => value.split_whitespace().next().unwrap_or("").to_owned(),
        };
        wanted = Some((by_name, value.to_lowercase()));
    }
    while let Some(word) = words.next() {
        match word {
            "page" => page = words.peek().and_then(|p| p.parse().ok()).unwrap_or(1),
            "sortby" => sorted = true,
            _ => {}
        }
    }
    let mut items: Vec<T> = items
        .into_iter()
        .filter(|item| {
            let (n, id) = name(item);
            wanted.as_ref().is_none_or(|(by_name, value)| {
                if *by_name { n.to_lowercase() == *value } else { id == *value }
            })
        })
        .collect();
    if sorted {
        items.sort_by_key(|item| name(item).0);
    }
    match q.query.get("max").and_then(|m| m.parse::<usize>().ok()).filter(|m| *m > 0) {
        Some(max) => items.into_iter().skip((page.max(1) - 1) * max).take(max).collect(),
        None => items,
    }
}

fn inventory(lab: &Lab, q: &Request, parts: &[&str]) -> Reply {
    let s = lab.state();
    let ok = |x| Ok((200, x));
    match parts {
        ["datacenters"] => {
            ok(X::list("data_centers", s.data_centers.iter().map(render::data_center)))
        }
        ["datacenters", id] => {
            let id = uuid(id)?;
            ok(render::data_center(
                s.data_centers.iter().find(|d| d.id == id).ok_or(Refusal::NotFound)?,
            ))
        }
        ["datacenters", id, "storagedomains"] => {
            let id = uuid(id)?;
            ok(X::list(
                "storage_domains",
                s.domains.iter().filter(|d| d.data_center == id).map(|d| render::domain(d, true)),
            ))
        }
        ["clusters"] => ok(X::list("clusters", s.clusters.iter().map(render::cluster))),
        ["clusters", _, "affinitygroups"] => ok(X::list("affinity_groups", [])),
        ["clusters", id] => {
            let id = uuid(id)?;
            ok(render::cluster(s.clusters.iter().find(|c| c.id == id).ok_or(Refusal::NotFound)?))
        }
        ["hosts"] => ok(X::list(
            "hosts",
            select(q, s.hosts.iter().collect(), |h| (h.name.clone(), h.id.to_string()))
                .into_iter()
                .map(|h| render::host(&s, h)),
        )),
        ["hosts", id] => {
            let id = uuid(id)?;
            ok(render::host(&s, s.hosts.iter().find(|h| h.id == id).ok_or(Refusal::NotFound)?))
        }
        ["storagedomains"] => {
            ok(X::list("storage_domains", s.domains.iter().map(|d| render::domain(d, false))))
        }
        ["storagedomains", id] => {
            let id = uuid(id)?;
            ok(render::domain(s.domain(id).ok_or(Refusal::NotFound)?, false))
        }
        ["storagedomains", id, "disks"] => {
            let id = uuid(id)?;
            ok(X::list(
                "disks",
                s.disks.iter().filter(|d| d.domain == id).map(|d| render::disk(&s, d)),
            ))
        }
        ["storagedomains", id, "disksnapshots"] => {
            let id = uuid(id)?;
            ok(X::list("disk_snapshots", disk_snapshots(&s, id)))
        }
        ["storagedomains", id, "storageconnections"] => {
            let d = s.domain(uuid(id)?).ok_or(Refusal::NotFound)?;
            let inner =
                X::default().t("address", &d.address).t("path", &d.path).t("type", d.kind.word());
            ok(X::list(
                "storage_connections",
                [X::default().n(
                    "storage_connection",
                    &at("storageconnections", Uuid::new_v4()),
                    inner,
                )],
            ))
        }
        ["templates"] => ok(X::list("templates", s.templates.iter().map(template))),
        ["templates", id] => {
            let id = uuid(id)?;
            ok(template(s.templates.iter().find(|t| t.id == id).ok_or(Refusal::NotFound)?))
        }
        ["templates", id, "diskattachments"] => {
            let id = uuid(id)?;
            let t = s.templates.iter().find(|t| t.id == id).ok_or(Refusal::NotFound)?;
            ok(render::attachments(
                &s,
                &format!("templates/{id}"),
                &t.attachments,
                q.query.contains_key("follow"),
            ))
        }
        ["networks"] => ok(X::list(
            "networks",
            s.networks.iter().map(|n| {
                let inner = X::default().t("name", &n.name).t("mtu", 0).r(
                    "data_center",
                    "datacenters",
                    n.of,
                );
                X::default().n("network", &at("networks", n.id), inner)
            }),
        )),
        ["vnicprofiles"] => ok(X::list(
            "vnic_profiles",
            s.profiles.iter().map(|p| {
                let inner = X::default().t("name", &p.name).r("network", "networks", p.of);
                X::default().n("vnic_profile", &at("vnicprofiles", p.id), inner)
            }),
        )),
        ["jobs"] => ok(X::list("jobs", [])),
        ["affinitylabels"] => ok(X::list("affinity_labels", [])),
        ["permissions"] => ok(X::list("permissions", [])),
        ["roles"] => ok(X::list("roles", [])),
        _ => Err(Refusal::NotFound),
    }
}

fn template(t: &crate::model::Template) -> X {
    let inner = X::default()
        .t("name", &t.name)
        .t("description", "")
        .t("status", "ok")
        .n("version", "", X::default().t("version_name", "base version").t("version_number", 1))
        .r("cluster", "clusters", t.cluster);
    X::default().n("template", &at("templates", t.id), inner)
}

fn disk_snapshots(s: &State, domain: Uuid) -> Vec<X> {
    let mut out = Vec::new();
    for x in s.vms.iter().flat_map(|v| &v.snapshots) {
        for (disk, volume) in &x.disks {
            let Some(d) = s.disk(*disk).filter(|d| d.domain == domain) else { continue };
            let inner = X::default()
                .t("alias", &d.alias)
                .t("status", d.status)
                .t("provisioned_size", d.size)
                .id("snapshot", x.id)
                .id("disk", disk)
                .id("storage_domain", domain);
            out.push(X::default().n(
                "disk_snapshot",
                &at(&format!("storagedomains/{domain}/disksnapshots"), volume),
                inner,
            ));
        }
    }
    out
}

fn vms_get(lab: &Lab, q: &Request, parts: &[&str], follow: &[&str], all_content: bool) -> Reply {
    let s = lab.state();
    let ok = |x| Ok((200, x));
    let Some(first) = parts.first() else {
        let list = select(q, s.vms.iter().collect(), |v: &&Vm| (v.name.clone(), v.id.to_string()));
        return ok(X::list("vms", list.into_iter().map(|v| render::vm(&s, v, follow, None))));
    };
    let v = s.vm(uuid(first)?).ok_or(Refusal::NotFound)?;
    match &parts[1..] {
        [] => {
            let locked =
                v.attachments.iter().any(|a| s.disk(a.disk).is_some_and(|d| d.status == "locked"));
            let ovf =
                (all_content && !locked && v.status != "image_locked").then(|| ovf::write(&s, v));
            ok(render::vm(&s, v, follow, ovf))
        }
        ["diskattachments"] => ok(render::attachments(
            &s,
            &format!("vms/{}", v.id),
            &v.attachments,
            follow.contains(&"disk"),
        )),
        ["diskattachments", id] => {
            let id = uuid(id)?;
            let a = v.attachments.iter().find(|a| a.disk == id).ok_or(Refusal::NotFound)?;
            ok(render::attachment(&s, &format!("vms/{}", v.id), a, follow.contains(&"disk")))
        }
        ["nics"] => ok(X::list("nics", v.nics.iter().map(|n| render::nic(v.id, n)))),
        ["nics", id] => {
            let id = uuid(id)?;
            ok(render::nic(v.id, v.nics.iter().find(|n| n.id == id).ok_or(Refusal::NotFound)?))
        }
        ["tags"] => ok(render::tags(&s, &v.tags)),
        ["snapshots"] => ok(render::snapshots(v)),
        ["snapshots", id, rest @ ..] => {
            let id = uuid(id)?;
            let x = v.snapshots.iter().find(|x| x.id == id).ok_or(Refusal::NotFound)?;
            match rest {
                [] => ok(render::snapshot(v, x)),
                ["disks"] => ok(X::list(
                    "disks",
                    x.disks.iter().map(|(d, volume)| render::snapshot_disk(&s, id, *d, *volume)),
                )),
                ["nics"] => ok(X::list("nics", [])),
                _ => Err(Refusal::NotFound),
            }
        }
        ["reporteddevices"] => ok(X::list("reported_devices", [])),
        ["applications"] => ok(X::list("applications", [])),
        ["cdroms"] => ok(X::list("cdroms", [])),
        _ => Err(Refusal::NotFound),
    }
}

fn vm_create(lab: &Arc<Lab>, body: &str) -> Reply {
    let doc = parse(body)?;
    let vm = root(&doc, &["vm"])?;
    let config = child(vm, "initialization").and_then(|i| child(i, "configuration"));
    let data = config.and_then(|c| text(c, "data")).filter(|d| !d.is_empty());
    let from = match &data {
        Some(data) => Some(ovf::read(data).ok_or_else(|| {
            Refusal::bad("Operation Failed", "Cannot import VM. The OVF is malformed.")
        })?),
        None => None,
    };
    let regenerate =
        child(vm, "initialization").and_then(|i| flag(i, "regenerate_ids")).unwrap_or(false);
    let name = text(vm, "name")
        .or_else(|| from.as_ref().map(|f| f.name.clone()))
        .filter(|n| !n.is_empty());
    let name =
        name.ok_or_else(|| Refusal::bad("Incomplete parameters", "Vm [name] required for add"))?;
    let mut s = lab.state();
    let cluster = child(vm, "cluster").ok_or_else(|| {
        Refusal::bad("Incomplete parameters", "Vm [cluster.id|name] required for add")
    })?;
    let wanted = (id_of(vm, "cluster"), text(cluster, "name"));
    let found =
        s.clusters.iter().find(|c| Some(c.id) == wanted.0 || Some(&c.name) == wanted.1.as_ref());
    let cluster = found.ok_or(Refusal::NotFound)?.id;
    if s.vms.iter().any(|v| v.name == name) {
        return Err(Refusal::conflict(
            "Cannot add VM. The VM name is already in use, please choose a unique name and try again.",
        ));
    }
    let id = match &from {
        Some(f) if !regenerate => f.id.unwrap_or_else(Uuid::new_v4),
        _ => Uuid::new_v4(),
    };
    if s.vm(id).is_some() {
        return Err(Refusal::conflict(
            "Cannot import VM. VM with the same identifier already exists.",
        ));
    }
    let number = |path: &str| text(vm, path).and_then(|t| t.parse::<u64>().ok());
    let mut nics = from.as_ref().map_or_else(Vec::new, |f| f.nics.clone());
    for nic in &mut nics {
        if regenerate {
            nic.mac = s.new_mac();
        } else if s.mac_taken(&nic.mac) {
            return Err(Refusal::conflict("Cannot import VM. MAC address is already in use."));
        }
    }
    let mut attachments = Vec::new();
    for disk in from.iter().flat_map(|f| &f.disks) {
        if s.disk(*disk).is_some() && s.owners(*disk).is_empty() {
            attachments.push(Attachment {
                disk: *disk,
                interface: "virtio_scsi".into(),
                bootable: false,
                active: true,
                read_only: false,
                pass_discard: false,
            });
        }
    }
    let topology = ["sockets", "cores", "threads"]
        .map(|k| number(&format!("cpu/topology/{k}")).unwrap_or(1) as u32);
    let mut template = Uuid::nil();
    if from.is_none() {
        let wanted = (id_of(vm, "template"), text(vm, "template/name"));
        if wanted.0.is_none() && wanted.1.is_none() {
            return Err(Refusal::bad(
                "Incomplete parameters",
                "Vm [template.id|name] required for add",
            ));
        }
        let known = s
            .templates
            .iter()
            .find(|t| Some(t.id) == wanted.0 || Some(&t.name) == wanted.1.as_ref());
        template = known.ok_or(Refusal::NotFound)?.id;
    }
    let f = from.as_ref();
    let new = Vm {
        id,
        name,
        description: text(vm, "description")
            .or_else(|| f.map(|f| f.description.clone()))
            .unwrap_or_default(),
        comment: text(vm, "comment").unwrap_or_default(),
        status: "image_locked".into(),
        host: None,
        cluster,
        template,
        memory: number("memory").or_else(|| f.map(|f| f.memory)).unwrap_or(1 << 30),
        topology: f.map_or((topology[0], topology[1], topology[2]), |f| f.topology),
        os: text(vm, "os/type")
            .or_else(|| f.map(|f| f.os.clone()))
            .unwrap_or_else(|| "other".into()),
        bios: text(vm, "bios/type")
            .or_else(|| f.map(|f| f.bios.clone()))
            .unwrap_or_else(|| "q35_sea_bios".into()),
        agent: false,
        frozen: false,
        stateless: false,
        delete_protected: false,
        origin: "ovirt".into(),
        created: Timestamp::now(),
        tags: Vec::new(),
        nics,
        attachments,
        snapshots: vec![active()],
        running: Arc::default(),
    };
    let shown = render::vm(&s, &new, &[], None);
    s.vms.push(new);
    drop(s);
    let lab = lab.clone();
    thread::spawn(move || {
        thread::sleep(lab.delay);
        if let Some(v) = lab.state().vm_mut(id) {
            v.status = "down".into();
        }
    });
    Ok((201, shown))
}

/// The entry that every VM has.
pub fn active() -> Snapshot {
    Snapshot {
        id: Uuid::new_v4(),
        description: "Active VM".into(),
        kind: "active",
        status: "ok",
        date: Timestamp::now(),
        disks: Vec::new(),
    }
}

fn vm_change(
    lab: &Arc<Lab>,
    q: &Request,
    id: Uuid,
    parts: &[&str],
    body: &str,
    correlation: &str,
) -> Reply {
    if lab.state().vm(id).is_none() {
        return Err(Refusal::NotFound);
    }
    match (q.method.as_str(), parts) {
        ("PUT", []) => {
            let doc = parse(body)?;
            let vm = root(&doc, &["vm"])?;
            let mut s = lab.state();
            let v = s.vm_mut(id).ok_or(Refusal::NotFound)?;
            for (path, field) in [
                ("name", &mut v.name),
                ("description", &mut v.description),
                ("comment", &mut v.comment),
            ] {
                if let Some(value) = text(vm, path) {
                    *field = value;
                }
            }
            if let Some(value) = flag(vm, "delete_protected") {
                v.delete_protected = value;
            }
            let v = s.vm(id).ok_or(Refusal::NotFound)?;
            Ok((200, render::vm(&s, v, &[], None)))
        }
        ("DELETE", []) => {
            vm_delete(lab, id, q.query.get("detach_only").is_some_and(|v| v == "true"))
        }
        ("POST", ["start"]) => ops::start(lab, id).and_then(|()| done()),
        ("POST", ["stop" | "shutdown"]) => ops::stop(lab, id).and_then(|()| done()),
        ("POST", ["freezefilesystems"]) => {
            let mut s = lab.state();
            let fails = s.strikes("freeze-fails");
            let v = s.vm_mut(id).ok_or(Refusal::NotFound)?;
            if v.status != "up" {
                return Err(Refusal::conflict("Cannot freeze VM. VM is not running."));
            }
            if fails || !v.agent {
                return Err(Refusal::Fault(
                    400,
                    "Operation Failed",
                    "General command validation failure. Guest agent is not responding.".into(),
                ));
            }
            v.frozen = true;
            done()
        }
        ("POST", ["thawfilesystems"]) => {
            let mut s = lab.state();
            let v = s.vm_mut(id).ok_or(Refusal::NotFound)?;
            v.frozen = false;
            done()
        }
        ("POST", ["snapshots"]) => {
            let doc = parse(body)?;
            let x = root(&doc, &["snapshot"])?;
            let description = text(x, "description").filter(|d| !d.is_empty());
            let description = description.ok_or_else(|| {
                Refusal::bad("Incomplete parameters", "Snapshot [description] required for add")
            })?;
            if flag(x, "persist_memorystate").unwrap_or(true) {
                return Err(Refusal::conflict("Cannot create Snapshot. The lab keeps no memory."));
            }
            let disks = child(x, "disk_attachments").map(|list| {
                list.children()
                    .filter_map(|a| {
                        let disk = child(a, "disk")?;
                        Some((
                            disk.attribute("id")?.parse().ok()?,
                            text(disk, "image_id").and_then(|t| t.parse().ok()),
                        ))
                    })
                    .collect()
            });
            let made = ops::create_snapshot(lab, id, description, disks, correlation.to_owned())?;
            let s = lab.state();
            let v = s.vm(id).ok_or(Refusal::NotFound)?;
            let x = v.snapshots.iter().find(|x| x.id == made).ok_or(Refusal::NotFound)?;
            Ok((202, render::snapshot(v, x)))
        }
        ("DELETE", ["snapshots", x]) => {
            ops::delete_snapshot(lab, id, uuid(x)?, correlation.to_owned()).and_then(|()| done())
        }
        ("POST", ["diskattachments"]) => attach(lab, id, body),
        ("PUT", ["diskattachments", disk]) => {
            let disk = uuid(disk)?;
            let doc = parse(body)?;
            let a = root(&doc, &["disk_attachment"])?;
            let mut s = lab.state();
            if let Some(value) = child(a, "disk").and_then(|d| text(d, "description"))
                && let Some(d) = s.disk_mut(disk)
            {
                d.description = value;
            }
            let v = s.vm_mut(id).ok_or(Refusal::NotFound)?;
            let found =
                v.attachments.iter_mut().find(|a| a.disk == disk).ok_or(Refusal::NotFound)?;
            if let Some(value) = flag(a, "active") {
                found.active = value;
            }
            let found = found.clone();
            Ok((200, render::attachment(&s, &format!("vms/{id}"), &found, false)))
        }
        ("DELETE", ["diskattachments", disk]) => {
            let disk = uuid(disk)?;
            let mut s = lab.state();
            let v = s.vm_mut(id).ok_or(Refusal::NotFound)?;
            if v.snapshots.iter().any(|x| x.disks.iter().any(|(d, _)| *d == disk)) {
                return Err(Refusal::conflict(
                    "Cannot detach Virtual Disk. The disk has snapshots.",
                ));
            }
            v.attachments.retain(|a| a.disk != disk);
            done()
        }
        ("POST", ["nics"]) => nic(lab, id, body),
        ("PUT", ["nics", n]) => {
            let n = uuid(n)?;
            let doc = parse(body)?;
            let x = root(&doc, &["nic"])?;
            let mut s = lab.state();
            let v = s.vm_mut(id).ok_or(Refusal::NotFound)?;
            let found = v.nics.iter_mut().find(|f| f.id == n).ok_or(Refusal::NotFound)?;
            found.linked = flag(x, "linked").unwrap_or(found.linked);
            found.plugged = flag(x, "plugged").unwrap_or(found.plugged);
            Ok((200, render::nic(id, found)))
        }
        ("DELETE", ["nics", n]) => {
            let n = uuid(n)?;
            let mut s = lab.state();
            let v = s.vm_mut(id).ok_or(Refusal::NotFound)?;
            v.nics.retain(|x| x.id != n);
            done()
        }
        ("POST", ["tags"]) => {
            let doc = parse(body)?;
            let x = root(&doc, &["tag"])?;
            let (name, tag) =
                (text(x, "name"), x.attribute("id").and_then(|t| t.parse::<Uuid>().ok()));
            let mut s = lab.state();
            let known = s
                .tags
                .iter()
                .find(|t| Some(&t.name) == name.as_ref() || Some(t.id) == tag)
                .cloned();
            let known = known.ok_or(Refusal::NotFound)?;
            let v = s.vm_mut(id).ok_or(Refusal::NotFound)?;
            if !v.tags.contains(&known.id) {
                v.tags.push(known.id);
            }
            Ok((201, render::tag(&known)))
        }
        ("DELETE", ["tags", tag]) => {
            let tag = uuid(tag)?;
            let mut s = lab.state();
            let v = s.vm_mut(id).ok_or(Refusal::NotFound)?;
            v.tags.retain(|t| *t != tag);
            done()
        }
        _ => Err(Refusal::NotFound),
    }
}

fn vm_delete(lab: &Arc<Lab>, id: Uuid, detach_only: bool) -> Reply {
    let mut s = lab.state();
    let v = s.vm(id).ok_or(Refusal::NotFound)?.clone();
    if v.delete_protected {
        return Err(Refusal::conflict(
            "Cannot remove VM. Delete protection is enabled. In order to delete, disable Delete protection first.",
        ));
    }
    if v.status != "down" {
        return Err(Refusal::conflict("Cannot remove VM. VM is running."));
    }
    if detach_only && v.snapshots.len() > 1 {
        return Err(Refusal::conflict("Cannot remove VM. The VM disks have snapshots."));
    }
    s.vms.retain(|x| x.id != id);
    drop(s);
    if !detach_only {
        for a in &v.attachments {
            let _ = ops::delete_disk(lab, a.disk);
        }
    }
    done()
}

fn attach(lab: &Arc<Lab>, id: Uuid, body: &str) -> Reply {
    let doc = parse(body)?;
    let a = root(&doc, &["disk_attachment"])?;
    let interface = text(a, "interface").ok_or_else(|| {
        Refusal::bad("Incomplete parameters", "DiskAttachment [interface] required for add")
    })?;
    if !["virtio", "virtio_scsi", "ide", "sata", "spapr_vscsi"].contains(&interface.as_str()) {
        return Err(Refusal::bad(
            "Invalid value",
            format!("{interface} is not a member of DiskInterface"),
        ));
    }
    let inline = child(a, "disk").ok_or_else(|| {
        Refusal::bad("Incomplete parameters", "DiskAttachment [disk] required for add")
    })?;
    let existing: Option<Uuid> = inline.attribute("id").and_then(|t| t.parse().ok());
    let disk = match existing {
        Some(disk) => disk,
        None => {
            let new = read_disk(&lab.state(), inline)?;
            let disk = new.id;
            ops::create_disk(lab, new)?;
            disk
        }
    };
    let mut s = lab.state();
    let d = s.disk(disk).ok_or(Refusal::NotFound)?.clone();
    if existing.is_some() && d.status != "ok" {
        return Err(Refusal::conflict(format!(
            "Cannot attach Virtual Disk: The following disks are locked: {}. Please try again in a few minutes.",
            d.alias
        )));
    }
    let owners = s.owners(disk);
    if owners.contains(&id) || (!owners.is_empty() && !d.shareable) {
        return Err(Refusal::conflict(
            "Cannot attach Virtual Disk. The disk is already attached to a VM.",
        ));
    }
    let guest = s.guest_disk(disk);
    let v = s.vm_mut(id).ok_or(Refusal::NotFound)?;
    if v.status == "image_locked" {
        return Err(Refusal::conflict(
            "Cannot attach Virtual Disk. VM is locked. Please try again in a few minutes.",
        ));
    }
    let bootable = flag(a, "bootable").unwrap_or(false);
    if bootable && v.attachments.iter().any(|x| x.bootable) {
        return Err(Refusal::conflict(
            "Cannot attach Virtual Disk. The VM already has a bootable disk.",
        ));
    }
    let new = Attachment {
        disk,
        interface,
        bootable,
        active: flag(a, "active").unwrap_or(false),
        read_only: flag(a, "read_only").unwrap_or(false),
        pass_discard: flag(a, "pass_discard").unwrap_or(false),
    };
    v.attachments.push(new.clone());
    let running = v.running.clone();
    let shown = render::attachment(&s, &format!("vms/{id}"), &new, false);
    drop(s);
    if new.active && existing.is_some() {
        let mut daemon = running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let (Some(daemon), Some(guest)) = (daemon.as_mut(), guest)
            && let Err(error) = daemon.attach(&guest)
        {
            return Err(Refusal::conflict(format!("Failed to hot-plug disk: {error:#}")));
        }
    }
    Ok((201, shown))
}

fn nic(lab: &Lab, id: Uuid, body: &str) -> Reply {
    let doc = parse(body)?;
    let x = root(&doc, &["nic"])?;
    let name = text(x, "name")
        .ok_or_else(|| Refusal::bad("Incomplete parameters", "Nic [name] required for add"))?;
    let mut s = lab.state();
    let mac = match child(x, "mac").and_then(|m| text(m, "address")) {
        Some(mac) if s.mac_taken(&mac) => {
            return Err(Refusal::conflict(format!(
                "Cannot add Network Interface. The MAC address {mac} is already in use."
            )));
        }
        Some(mac) => mac,
        None => s.new_mac(),
    };
    let profile = id_of(x, "vnic_profile");
    if profile.is_some_and(|p| !s.profiles.iter().any(|k| k.id == p)) {
        return Err(Refusal::NotFound);
    }
    let v = s.vm_mut(id).ok_or(Refusal::NotFound)?;
    if v.nics.iter().any(|n| n.name == name) {
        return Err(Refusal::conflict("Cannot add Network Interface. The name is already in use."));
    }
    let new = Nic {
        id: Uuid::new_v4(),
        name,
        interface: text(x, "interface").unwrap_or_else(|| "virtio".into()),
        mac,
        linked: flag(x, "linked").unwrap_or(true),
        plugged: flag(x, "plugged").unwrap_or(true),
        profile,
    };
    v.nics.push(new.clone());
    Ok((201, render::nic(id, &new)))
}

fn read_disk(s: &State, x: roxmltree::Node<'_, '_>) -> Result<Disk, Refusal> {
    let size = text(x, "provisioned_size").and_then(|t| t.parse::<u64>().ok());
    let size = size.ok_or_else(|| {
        Refusal::bad("Incomplete parameters", "Disk [provisionedSize] required for add")
    })?;
    let format = text(x, "format")
        .ok_or_else(|| Refusal::bad("Incomplete parameters", "Disk [format] required for add"))?;
    let cow = format == "cow";
    let domain = child(x, "storage_domains").and_then(|l| child(l, "storage_domain"));
    let domain = domain.ok_or_else(|| {
        Refusal::bad("Incomplete parameters", "Disk [storageDomains] required for add")
    })?;
    let wanted =
        (domain.attribute("id").and_then(|t| t.parse::<Uuid>().ok()), text(domain, "name"));
    let found =
        s.domains.iter().find(|d| Some(d.id) == wanted.0 || Some(&d.name) == wanted.1.as_ref());
    let domain = found.ok_or(Refusal::NotFound)?.id;
    let parse_id = |t: Option<String>| t.and_then(|t| t.parse().ok());
    Ok(Disk {
        id: x.attribute("id").and_then(|t| t.parse().ok()).unwrap_or_else(Uuid::new_v4),
        alias: text(x, "alias").or_else(|| text(x, "name")).unwrap_or_default(),
        description: text(x, "description").unwrap_or_default(),
        size: size.next_multiple_of(4096),
        cow,
        sparse: flag(x, "sparse").unwrap_or(cow),
        domain,
        status: "ok",
        top: parse_id(text(x, "image_id")).unwrap_or_else(Uuid::new_v4),
        shareable: flag(x, "shareable").unwrap_or(false),
        storage_type: "image".into(),
        content_type: text(x, "content_type").unwrap_or_else(|| "data".into()),
        wipe: flag(x, "wipe_after_delete").unwrap_or(false),
    })
}

fn disks(lab: &Arc<Lab>, q: &Request, parts: &[&str], body: &str) -> Reply {
    match (q.method.as_str(), parts) {
        ("GET", []) => {
            let s = lab.state();
            let list = select(q, s.disks.iter().collect(), |d: &&Disk| {
                (d.alias.clone(), d.id.to_string())
            });
            Ok((200, X::list("disks", list.into_iter().map(|d| render::disk(&s, d)))))
        }
        ("POST", []) => {
            let doc = parse(body)?;
            let new = read_disk(&lab.state(), root(&doc, &["disk"])?)?;
            let id = new.id;
            ops::create_disk(lab, new)?;
            let s = lab.state();
            Ok((202, render::disk(&s, s.disk(id).ok_or(Refusal::NotFound)?)))
        }
        ("GET", [id]) => {
            let s = lab.state();
            let d = s.disk(uuid(id)?).ok_or(Refusal::NotFound)?;
            Ok((200, render::disk(&s, d)))
        }
        ("PUT", [id]) => {
            let id = uuid(id)?;
            let doc = parse(body)?;
            let x = root(&doc, &["disk"])?;
            let mut s = lab.state();
            let d = s.disk_mut(id).ok_or(Refusal::NotFound)?;
            d.description = text(x, "description").unwrap_or_else(|| d.description.clone());
            d.alias =
                text(x, "alias").or_else(|| text(x, "name")).unwrap_or_else(|| d.alias.clone());
            Ok((200, render::disk(&s, s.disk(id).ok_or(Refusal::NotFound)?)))
        }
        ("DELETE", [id]) => ops::delete_disk(lab, uuid(id)?).and_then(|()| done()),
        _ => Err(Refusal::NotFound),
    }
}

fn events(lab: &Lab, q: &Request) -> Reply {
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

fn event_post(lab: &Lab, body: &str) -> Reply {
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

fn tags(lab: &Lab, q: &Request, parts: &[&str], body: &str) -> Reply {
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

/// A fault that was ordered for this request, if any; waits as long as it says.
pub fn injected(lab: &Lab, request: &Request) -> Option<Option<Answer>> {
    let fault = {
        let mut s = lab.state();
        let found = s.http_faults.iter_mut().find(|f| {
            (f.method.is_empty() || f.method == request.method)
                && request.path.contains(&f.path)
                && (f.times == 0 || f.used < f.times)
        })?;
        found.used += 1;
        found.clone()
    };
    if fault.delay_ms > 0 {
        thread::sleep(Duration::from_millis(fault.delay_ms));
    }
    if fault.drop {
        return Some(None);
    }
    if fault.status == 0 {
        return None;
    }
    let content_type = match fault.content_type.as_str() {
        "" | "application/xml" => "application/xml",
        "text/html" => "text/html",
        _ => "application/json",
    };
    Some(Some(Answer { status: fault.status, content_type, body: fault.body, correlation: None }))
}
