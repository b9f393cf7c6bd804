//! Changing operations: bodies, polls, and that nothing is made twice.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use hvbak_engine::{
    Engine, EngineError, NewAttachment, NewDisk, NewEvent, NewNic, NewVm, Parts, SnapshotGone,
    xml::Element,
};
use hvbak_types::*;
use tokio_util::sync::CancellationToken;

use crate::{
    replay::fixtures,
    server::{API_ROOT, Reply, Seen, Server, usual},
};

const VM: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const SNAP: &str = "bbbbbbbb-0000-4000-8000-000000000001";
const LIMIT: Duration = Duration::from_secs(5);

fn vm() -> VmId {
    VM.parse().unwrap()
}

fn snap() -> SnapshotId {
    SNAP.parse().unwrap()
}

async fn serve(
    handler: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static,
) -> (Server, Engine) {
    let server =
        Server::start(move |seen, n| usual(seen).unwrap_or_else(|| handler(seen, n))).await;
    let engine = server.connect().await.unwrap();
    (server, engine)
}

fn snapshot(status: &str) -> String {
    format!(
        "<snapshot id='{SNAP}'><description>d</description><snapshot_status>{status}</snapshot_status><snapshot_type>regular</snapshot_type></snapshot>"
    )
}

fn path(rest: &str) -> String {
    format!("/ovirt-engine/api/vms/{VM}{rest}")
}

/// Names of an element and everything in it, with attributes.
fn shape(e: &Element) -> Vec<String> {
    let mut out: Vec<String> = e.attrs.iter().map(|(k, _)| format!("{}@{k}", e.name)).collect();
    out.push(e.name.clone());
    for child in &e.children {
        out.extend(shape(child).into_iter().map(|s| format!("{}/{s}", e.name)));
    }
    out
}

fn body(seen: &Seen) -> Element {
    Element::parse(seen.body.as_bytes()).unwrap()
}

#[tokio::test]
async fn a_snapshot_is_made_without_memory_and_awaited() {
    let (server, engine) = serve(|seen, n| match seen.method.as_str() {
        "POST" => Reply::xml(snapshot("locked")).status(202),
        _ if n < 3 => Reply::xml(snapshot("locked")),
        _ => Reply::xml(snapshot("ok")),
    })
    .await;
    let disk = DiskId::random();
    let made = engine.create_snapshot(vm(), "hvbak:<r>:p", Some(&[disk])).await.unwrap();
    assert_eq!((made.id, made.found), (snap(), false));
    let seen = server.last(&format!("POST {}", path("/snapshots")));
    assert_eq!(seen.header("content-type"), "application/xml");
    assert_eq!(made.correlations, [seen.header("correlation-id")]);
    let sent = body(&seen);
    assert_eq!(sent.string("description").unwrap(), "hvbak:<r>:p");
    assert_eq!(sent.flag("persist_memorystate"), Some(false));
    assert_eq!(sent.id::<DiskId>("disk_attachments/disk_attachment/disk"), Some(disk));
    // The documented example has no element that we do not know, and neither have we.
    let example = std::fs::read(fixtures().join("synthetic/vms-ID-snapshots-add-request--doc.xml"));
    let known = shape(&Element::parse(&example.unwrap()).unwrap());
    for name in shape(&sent) {
        assert!(known.contains(&name) || name == "snapshot/persist_memorystate", "{name}");
    }
    let cancel = CancellationToken::new();
    let done = engine.wait_snapshot(vm(), snap(), LIMIT, &cancel).await.unwrap();
    assert_eq!(done.status, Some(SnapshotStatus::Ok));
}

#[tokio::test]
async fn all_disks_means_no_list_of_disks() {
    let (server, engine) = serve(|_, _| Reply::xml(snapshot("locked")).status(201)).await;
    engine.create_snapshot(vm(), "d", None).await.unwrap();
    assert!(
        body(&server.last(&format!("POST {}", path("/snapshots"))))
            .child("disk_attachments")
            .is_none()
    );
}

#[tokio::test]
async fn a_lost_answer_is_looked_for_and_nothing_is_made_twice() {
    // The engine executes the first request and the connection breaks.
    let (server, engine) = serve(|seen, _| match seen.method.as_str() {
        "POST" => Reply::cut(),
        _ => Reply::xml(format!("<snapshots><snapshot id='{VM}'><description>Active VM</description><snapshot_type>active</snapshot_type></snapshot>{}</snapshots>", snapshot("locked"))),
    })
    .await;
    let made = engine.create_snapshot(vm(), "d", None).await.unwrap();
    assert!(made.found && made.id == snap());
    assert_eq!(server.count(&format!("POST {}", path("/snapshots"))), 1);
    assert_eq!(
        made.correlations,
        [server.last(&format!("POST {}", path("/snapshots"))).header("correlation-id")]
    );
}

#[tokio::test]
async fn events_of_either_of_two_lost_requests_are_found() {
    let posts = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (server, engine) = serve(move |seen, _| {
        use std::sync::atomic::Ordering::SeqCst;
        if seen.method == "POST" {
            posts.fetch_add(1, SeqCst);
            return Reply::cut();
        }
        let made = if posts.load(SeqCst) > 1 { snapshot("locked") } else { String::new() };
        Reply::xml(format!("<snapshots>{made}</snapshots>"))
    })
    .await;
    let made = engine.create_snapshot(vm(), "d", None).await.unwrap();
    assert!(made.found);
    assert_eq!(made.correlations.len(), 2);
    let seen = server.last(&format!("POST {}", path("/snapshots")));
    let last = seen.header("correlation-id");
    assert_eq!(made.correlations[1], last);
    assert_ne!(made.correlations[0], last);
}

#[tokio::test]
async fn a_request_that_did_not_arrive_is_repeated_after_looking() {
    let (server, engine) = serve(|seen, n| match (seen.method.as_str(), n) {
        ("POST", 0) => Reply::html(503, "503"),
        ("POST", _) => Reply::xml(snapshot("locked")).status(201),
        _ => Reply::xml("<snapshots/>"),
    })
    .await;
    let made = engine.create_snapshot(vm(), "d", None).await.unwrap();
    assert!(!made.found);
    let lines = server.lines();
    let of_snapshots: Vec<&str> = lines
        .iter()
        .filter(|l| l.ends_with("/snapshots"))
        .map(|l| l.split(' ').next().unwrap())
        .collect();
    assert_eq!(of_snapshots, ["POST", "GET", "POST"]);
}

#[tokio::test]
async fn an_outcome_that_stays_unknown_is_said_to_be_unknown() {
    let (_server, engine) = serve(|seen, _| match seen.method.as_str() {
        "POST" => Reply::cut(),
        _ => Reply::xml("<snapshots/>"),
    })
    .await;
    let error = engine.create_snapshot(vm(), "d", None).await.unwrap_err();
    assert!(matches!(&error, EngineError::OutcomeUnknown { .. }), "{error:?}");
    assert!(error.hint().unwrap().contains(error.correlation().unwrap()));
}

#[tokio::test]
async fn locks_are_waited_for_and_states_are_not() {
    let (server, engine) = serve(|seen, n| match (seen.method.as_str(), n) {
        ("POST", 0 | 1) => Reply::fault(
            409,
            "Cannot create Snapshot: VM is locked. Please try again in a few minutes.",
        ),
        ("POST", _) => Reply::xml(snapshot("locked")).status(202),
        _ => Reply::empty(404),
    })
    .await;
    engine.create_snapshot(vm(), "d", None).await.unwrap();
    assert_eq!(server.count(&format!("POST {}", path("/snapshots"))), 3);
    // Each attempt had an id of its own.
    let ids: std::collections::BTreeSet<String> =
        server.seen.lock().unwrap().iter().map(|s| s.header("correlation-id").to_owned()).collect();
    assert!(ids.len() >= 4);

    let (server, engine) = serve(|_, _| {
        Reply::fault(409, "Cannot create Snapshot. Low disk space on Storage Domain data.")
    })
    .await;
    let error = engine.create_snapshot(vm(), "d", None).await.unwrap_err();
    assert!(matches!(&error, EngineError::Conflict { transient: false, .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("space"));
    assert_eq!(server.count(&format!("POST {}", path("/snapshots"))), 1);

    let (_server, engine) = serve(|_, _| Reply::fault(409, "Cannot frobnicate.")).await;
    let error = engine.create_snapshot(vm(), "d", None).await.unwrap_err();
    assert!(matches!(&error, EngineError::Conflict { transient: true, .. }), "{error:?}");
}

#[tokio::test]
async fn with_a_frozen_guest_locks_are_waited_for_only_shortly() {
    let (server, engine) =
        serve(|_, _| Reply::fault(409, "Cannot create Snapshot: VM is locked.")).await;
    let patience = Some(Duration::from_millis(60));
    let error = engine.create_snapshot_within(patience, vm(), "d", None).await.unwrap_err();
    assert!(matches!(error, EngineError::Conflict { transient: true, .. }), "{error:?}");
    let few = server.count(&format!("POST {}", path("/snapshots")));
    assert!((1..=6).contains(&few), "{few}");
}

#[tokio::test]
async fn a_snapshot_that_is_rolled_back_or_too_slow_is_a_failure() {
    let (_server, engine) =
        serve(|_, n| if n < 2 { Reply::xml(snapshot("locked")) } else { Reply::empty(404) }).await;
    let cancel = CancellationToken::new();
    let error = engine.wait_snapshot(vm(), snap(), LIMIT, &cancel).await.unwrap_err();
    assert!(
        matches!(&error, EngineError::Failed { state, .. } if state.contains("rolled back")),
        "{error:?}"
    );

    let (_server, engine) = serve(|_, _| Reply::xml(snapshot("locked"))).await;
    let error =
        engine.wait_snapshot(vm(), snap(), Duration::from_millis(60), &cancel).await.unwrap_err();
    assert!(matches!(&error, EngineError::Timeout { last, .. } if last == "locked"), "{error:?}");
    let stopper = cancel.clone();
    let (result, ()) =
        tokio::join!(engine.wait_snapshot(vm(), snap(), LIMIT, &cancel), async move {
            tokio::time::sleep(Duration::from_millis(30)).await;
            stopper.cancel();
        });
    assert!(matches!(result, Err(EngineError::Cancelled { .. })));
}

#[tokio::test]
async fn a_deletion_ends_gone_or_still_there() {
    let cancel = CancellationToken::new();
    let (server, engine) = serve(|seen, n| match (seen.method.as_str(), n) {
        ("DELETE", _) => Reply::xml("<action><job id='1'/><status>complete</status></action>"),
        (_, 0) => Reply::xml(snapshot("ok")),
        (_, 1 | 2) => Reply::xml(snapshot("locked")),
        _ => Reply::empty(404),
    })
    .await;
    engine.delete_snapshot(vm(), snap()).await.unwrap();
    assert_eq!(
        engine.wait_snapshot_gone(vm(), snap(), LIMIT, &cancel).await.unwrap(),
        SnapshotGone::Gone
    );
    assert_eq!(server.count(&format!("DELETE {}", path(&format!("/snapshots/{SNAP}")))), 1);

    let (_server, engine) =
        serve(|_, n| Reply::xml(snapshot(if n < 2 { "locked" } else { "ok" }))).await;
    assert_eq!(
        engine.wait_snapshot_gone(vm(), snap(), LIMIT, &cancel).await.unwrap(),
        SnapshotGone::StillThere(SnapshotStatus::Ok)
    );
    let (_server, engine) = serve(|_, _| Reply::empty(404)).await;
    engine.delete_snapshot(vm(), snap()).await.unwrap();
    assert_eq!(engine.snapshot(vm(), snap()).await.unwrap(), None);
}

#[tokio::test]
async fn freeze_is_tried_once_and_thaw_until_it_arrives() {
    let (server, engine) = serve(|seen, n| match (seen.path.ends_with("/freezefilesystems"), n) {
        (true, _) => Reply::cut(),
        (false, 0) => Reply::cut(),
        _ => Reply::xml("<action><status>complete</status></action>"),
    })
    .await;
    assert!(matches!(engine.freeze(vm()).await, Err(EngineError::OutcomeUnknown { .. })));
    engine.thaw(vm()).await.unwrap();
    assert_eq!(server.count(&format!("POST {}", path("/freezefilesystems"))), 1);
    assert_eq!(server.count(&format!("POST {}", path("/thawfilesystems"))), 2);
    assert_eq!(server.last(&format!("POST {}", path("/thawfilesystems"))).body, "<action/>");

    let (_server, engine) = serve(|_, _| {
        Reply::xml("<action><fault><detail>[Guest agent is not responding]</detail><reason>Operation Failed</reason></fault><status>failed</status></action>").status(409)
    })
    .await;
    let error = engine.freeze(vm()).await.unwrap_err();
    assert!(error.to_string().contains("Guest agent"), "{error}");
}

#[tokio::test]
async fn a_disk_is_made_with_the_chosen_id_and_found_by_it() {
    let domain = DomainId::random();
    let mut new = NewDisk::new("vm_Disk1", 10 << 30, DiskFormat::Cow, true, domain);
    new.description = Some("restored".into());
    new.initial_size = Some(1 << 30);
    new.image_id = Some(VolumeId::random());
    new.incremental_backup = true;
    let id = new.id;
    let state = Arc::new(Mutex::new("locked"));
    let shared = state.clone();
    let (server, engine) = serve(move |seen, n| {
        let disk = |status: &str| {
            Reply::xml(format!("<disk id='{id}'><alias>a</alias><status>{status}</status></disk>"))
        };
        match (seen.method.as_str(), n) {
            ("POST", _) => Reply::cut(),
            ("GET", 0..=2) => disk("locked"),
            _ => disk(*shared.lock().unwrap()),
        }
    })
    .await;
    let made = engine.create_disk(&new).await.unwrap();
    assert!(made.found && made.id == id);
    let sent = body(&server.last("POST /ovirt-engine/api/disks"));
    assert_eq!(sent.attr("id"), Some(id.to_string().as_str()));
    assert_eq!(sent.word("provisioned_size"), Some("10737418240"));
    assert_eq!((sent.word("format"), sent.word("sparse")), (Some("cow"), Some("true")));
    assert_eq!(sent.word("backup"), Some("incremental"));
    assert_eq!(sent.id::<DomainId>("storage_domains/storage_domain"), Some(domain));
    for name in
        ["disk/initial_size", "disk/image_id", "disk/description", "disk/alias", "disk/name"]
    {
        assert!(shape(&sent).iter().any(|s| s == name), "{name}");
    }
    assert!(!shape(&sent).iter().any(|s| s.contains("quota") || s.contains("profile")));
    *state.lock().unwrap() = "illegal";
    let cancel = CancellationToken::new();
    let error = engine.wait_disk_ok(id, LIMIT, &cancel).await.unwrap_err();
    assert!(matches!(&error, EngineError::Failed { state, .. } if state == "illegal"), "{error:?}");
    *state.lock().unwrap() = "ok";
    assert_eq!(engine.wait_disk_ok(id, LIMIT, &cancel).await.unwrap().status, Some(DiskStatus::Ok));
}

#[tokio::test]
async fn an_id_that_exists_already_is_not_taken_for_our_own() {
    let (_server, engine) = serve(|seen, _| match seen.method.as_str() {
        "POST" => {
            Reply::fault(409, "Cannot add Virtual Disk. Disk with the same ID already exists.")
        }
        _ => panic!("not to be looked for"),
    })
    .await;
    let new = NewDisk::new("d", 1 << 20, DiskFormat::Raw, true, DomainId::random());
    let error = engine.create_disk(&new).await.unwrap_err();
    assert!(matches!(error, EngineError::Conflict { transient: false, .. }), "{error:?}");
}

#[tokio::test]
async fn elements_newer_than_the_engine_are_not_sent() {
    let server = Server::start(|seen, _| match seen.path.as_str() {
        "/ovirt-engine/api" => Reply::xml(API_ROOT.replace("<minor>5<", "<minor>3<")),
        "/ovirt-engine/api/vms" if seen.method == "GET" => Reply::xml("<vms/>"),
        "/ovirt-engine/api/vms" => Reply::xml(format!("<vm id='{VM}'/>")).status(201),
        "/ovirt-engine/api/disks" => {
            let id = Element::parse(seen.body.as_bytes()).unwrap().attr("id").unwrap().to_owned();
            Reply::xml(format!("<disk id='{id}'/>")).status(201)
        }
        _ => usual(seen).unwrap_or(Reply::empty(404)),
    })
    .await;
    let engine = server.connect().await.unwrap();
    let mut new = NewDisk::new("d", 1 << 20, DiskFormat::Cow, true, DomainId::random());
    new.incremental_backup = true;
    engine.create_disk(&new).await.unwrap();
    assert!(body(&server.last("POST /ovirt-engine/api/disks")).child("backup").is_none());
    let new = NewVm {
        name: "n".into(),
        bios_type: Some(BiosType::Q35Ovmf),
        memory: Some(1 << 30),
        topology: Some((2, 1, 1)),
        ..NewVm::default()
    };
    engine.create_vm(ClusterId::random(), &new).await.unwrap();
    let sent = body(&server.last("POST /ovirt-engine/api/vms"));
    assert!(sent.child("bios").is_none());
    assert_eq!(sent.word("cpu/topology/sockets"), Some("2"));
    assert_eq!(sent.id::<TemplateId>("template"), Some(TemplateId::nil()));
    // Descriptions of disks: not by themselves before 4.4.
    assert!(!engine.describe_disk(DiskId::random(), None, "x").await.unwrap());
}

#[tokio::test]
async fn a_vm_is_made_from_an_ovf_and_a_namesake_is_not_taken_for_it() {
    let ovf =
        std::fs::read_to_string(fixtures().join("ovf/vms-17a94da8.all_content--4.3-2019-12.ovf"))
            .unwrap()
            + "]]>";
    let other = "cccccccc-0000-4000-8000-000000000001";
    let (server, engine) = serve(move |seen, n| match (seen.method.as_str(), n) {
        ("POST", _) => Reply::cut(),
        ("GET", 0) => Reply::xml(format!("<vms><vm id='{other}'><name>new vm</name></vm></vms>")),
        _ => Reply::xml(format!("<vms><vm id='{other}'><name>new vm</name></vm><vm id='{other}'><name>NEW VM</name></vm><vm id='{VM}'><name>new vm</name><status>image_locked</status></vm></vms>")),
    })
    .await;
    let cluster = ClusterId::random();
    let made = engine.create_vm_from_ovf("new vm", cluster, &ovf, true).await.unwrap();
    assert_eq!((made.id, made.found), (vm(), true));
    let sent = body(&server.last("POST /ovirt-engine/api/vms"));
    assert_eq!(sent.word("initialization/configuration/type"), Some("ovf"));
    assert_eq!(sent.string("initialization/configuration/data").unwrap(), ovf);
    assert_eq!(sent.flag("initialization/regenerate_ids"), Some(true));
    assert_eq!(sent.id::<ClusterId>("cluster"), Some(cluster));
    assert_eq!(server.last("GET /ovirt-engine/api/vms").query["search"], "name=\"new vm\"");
}

#[tokio::test]
async fn attachments_nics_tags_power_and_deletion() {
    let disk = DiskId::random();
    let nic = NicId::random();
    let profile = VnicProfileId::random();
    let (server, engine) =
        serve(move |seen, _| match (seen.method.as_str(), seen.path.rsplit('/').next().unwrap()) {
            ("POST", "diskattachments") => Reply::xml(format!(
                "<disk_attachment id='{disk}'><disk id='{disk}'/></disk_attachment>"
            ))
            .status(201),
            ("POST", "nics") => {
                Reply::xml(format!("<nic id='{nic}'><name>nic1</name></nic>")).status(201)
            }
            ("GET", "tags") => {
                Reply::xml(format!("<tags><tag id='{disk}'><name>has</name></tag></tags>"))
            }
            ("POST", "tags") => {
                Reply::xml(format!("<tag id='{disk}'><name>new</name></tag>")).status(201)
            }
            ("POST", "events") => Reply::xml("<event id='7'/>").status(201),
            ("GET", "jobs") => Reply::empty(404),
            ("DELETE", _) => Reply::xml("<action><status>complete</status></action>"),
            ("GET", VM) => Reply::xml(format!("<vm id='{VM}'><status>down</status></vm>")),
            _ => Reply::xml("<action><status>complete</status></action>"),
        })
        .await;
    let new = NewAttachment {
        disk,
        interface: DiskInterface::VirtioScsi,
        bootable: true,
        active: true,
        read_only: None,
        pass_discard: Some(false),
        uses_scsi_reservation: None,
    };
    assert_eq!(engine.attach_disk(vm(), &new).await.unwrap().disk_id, disk);
    let sent = server.last(&format!("POST {}", path("/diskattachments"))).body;
    assert_eq!(
        sent,
        format!(
            "<disk_attachment><bootable>true</bootable><interface>virtio_scsi</interface><active>true</active><pass_discard>false</pass_discard><disk id=\"{disk}\"></disk></disk_attachment>"
        )
    );
    let new = NewNic {
        name: "nic1".into(),
        interface: Some("virtio".into()),
        mac: Some("00:1a:4a:16:01:0a".into()),
        vnic_profile: Some(profile),
        linked: Some(false),
        plugged: None,
    };
    assert_eq!(engine.add_nic(vm(), &new).await.unwrap().id, nic);
    let sent = server.last(&format!("POST {}", path("/nics"))).body;
    assert_eq!(
        sent,
        format!(
            "<nic><name>nic1</name><interface>virtio</interface><mac><address>00:1a:4a:16:01:0a</address></mac><vnic_profile id=\"{profile}\"></vnic_profile><linked>false</linked></nic>"
        )
    );
    engine.add_tag(vm(), "has").await.unwrap();
    assert_eq!(server.count(&format!("POST {}", path("/tags"))), 0);
    engine.add_tag(vm(), "new").await.unwrap();
    assert_eq!(server.last(&format!("POST {}", path("/tags"))).body, "<tag><name>new</name></tag>");
    engine.start_vm(vm(), None).await.unwrap();
    engine.stop_vm(vm()).await.unwrap();
    let cancel = CancellationToken::new();
    engine.wait_vm_status(vm(), &[VmStatus::Down], LIMIT, &cancel).await.unwrap();
    engine.delete_vm(vm(), true).await.unwrap();
    assert_eq!(server.last(&format!("DELETE {}", path(""))).query["detach_only"], "true");
    let event = NewEvent {
        description: "File system /home is full".into(),
        severity: "alert".into(),
        origin: "mymonitor".into(),
        custom_id: 1_467_879_754,
        vm: Some(vm()),
    };
    engine.post_event(&event).await.unwrap();
    let example = std::fs::read(fixtures().join("synthetic/events-add-request--doc.xml")).unwrap();
    assert_eq!(
        shape(&body(&server.last("POST /ovirt-engine/api/events"))),
        shape(&Element::parse(&example).unwrap())
    );
    assert!(engine.jobs("hvbak-1").await.unwrap().is_empty());
}

#[tokio::test]
async fn an_ovf_that_is_still_being_written_is_waited_for() {
    let (server, engine) = serve(|_, n| match n {
        0 => Reply::xml(format!("<vm id='{VM}'><status>image_locked</status></vm>")),
        1 => Reply::xml(format!("<vm id='{VM}'><initialization><configuration><type>ovf</type><data></data></configuration></initialization></vm>")),
        _ => Reply::xml(format!("<vm id='{VM}'><initialization><configuration><type>ovf</type><data>&lt;a&gt;&amp;lt;&lt;/a&gt;</data></configuration></initialization></vm>")),
    })
    .await;
    let document = engine.vm_document(vm()).await.unwrap();
    assert_eq!(document.ovf.as_deref(), Some("<a>&lt;</a>"));
    assert_eq!(server.count(&format!("GET {}", path(""))), 3);

    let server =
        Server::start(|seen, _| usual(seen).unwrap_or(Reply::xml(format!("<vm id='{VM}'/>"))))
            .await;
    let mut config = server.config();
    config.timeouts.ovf = Duration::from_millis(50);
    let engine = Engine::connect(config).await.unwrap();
    assert_eq!(engine.vm_document(vm()).await.unwrap().ovf, None);
}

/// A made-up site: `total` VMs, paged by name, with parts when followed.
fn site(seen: &Seen, total: usize, follows: bool) -> Reply {
    let id = |i: usize| format!("aaaaaaaa-0000-4000-8000-{i:012}");
    match seen.path.as_str() {
        "/ovirt-engine/api/tags" => {
            Reply::xml(format!("<tags><tag id='{VM}'><name>backup</name></tag></tags>"))
        }
        "/ovirt-engine/api/vms" => {
            let max: usize = seen.query.get("max").map_or(total, |m| m.parse().unwrap());
            let page: usize = seen
                .query
                .get("search")
                .map_or(1, |s| s.rsplit(' ').next().unwrap().parse().unwrap());
            let follow = seen.query.get("follow").filter(|_| follows).map_or("", String::as_str);
            let mut out = String::from("<vms>");
            for i in ((page - 1) * max..total).take(max) {
                out += &format!("<vm id='{}'><name>vm{i:05}</name><status>up</status>", id(i));
                if follow.contains("tags") {
                    out += if i % 2 == 0 {
                        "<tags><tag id='aaaaaaaa-0000-4000-8000-000000000001'><name>backup</name></tag></tags>"
                    } else {
                        "<tags/>"
                    };
                }
                if follow.contains("disk_attachments.disk") {
                    out += &format!(
                        "<disk_attachments><disk_attachment id='{0}'><disk id='{0}'><alias>d{i}</alias><provisioned_size>{i}</provisioned_size></disk></disk_attachment></disk_attachments>",
                        id(i)
                    );
                }
                out += "</vm>";
            }
            Reply::xml(out + "</vms>")
        }
        path if path.ends_with("/tags") => Reply::xml("<tags/>"),
        path if path.ends_with("/diskattachments") => Reply::xml("<disk_attachments/>"),
        path => match path.rsplit('/').next().unwrap() {
            "datacenters" => Reply::xml("<data_centers/>"),
            "storagedomains" => Reply::xml("<storage_domains/>"),
            "vnicprofiles" => Reply::xml("<vnic_profiles/>"),
            list => Reply::xml(format!("<{list}/>")),
        },
    }
}

#[tokio::test]
async fn a_thousand_vms_with_tags_and_disks_cost_a_request_per_hundred() {
    let (server, engine) = serve(|seen, _| site(seen, 1000, true)).await;
    let all = engine.inventory().await.unwrap();
    assert_eq!(all.vms.len(), 1000);
    assert_eq!(all.vms.iter().filter(|v| v.tags == ["backup"]).count(), 500);
    let ids: Vec<VmId> = all.vms.iter().map(|v| v.id).collect();
    let parts = Parts { attachments: true, tags: true, ..Parts::default() };
    let with = engine.vms_with(&ids, parts).await.unwrap();
    assert_eq!(with.len(), 1000);
    for (i, one) in with.iter().enumerate() {
        assert_eq!(one.attachments[0].disk.as_ref().unwrap().provisioned_size, Some(i as u64));
    }
    assert!(server.lines().len() < 40, "{}", server.lines().len());
}

#[tokio::test]
async fn an_engine_that_does_not_follow_is_asked_one_by_one() {
    let (server, engine) = serve(|seen, _| site(seen, 12, false)).await;
    let ids: Vec<VmId> = engine.vms(None).await.unwrap().iter().map(|v| v.id).collect();
    let parts = Parts { attachments: true, ..Parts::default() };
    assert_eq!(engine.vms_with(&ids, parts).await.unwrap().len(), 12);
    assert_eq!(server.lines().iter().filter(|l| l.ends_with("/diskattachments")).count(), 12);
}

#[tokio::test]
async fn a_lost_start_is_judged_by_the_state_of_the_vm() {
    for (status, fine) in [("powering_up", true), ("down", false)] {
        let (server, engine) = serve(move |seen, _| match seen.method.as_str() {
            "POST" => Reply::cut(),
            _ => Reply::xml(format!("<vm id='{VM}'><status>{status}</status></vm>")),
        })
        .await;
        assert_eq!(engine.start_vm(vm(), None).await.is_ok(), fine);
        assert_eq!(server.count(&format!("POST {}", path("/start"))), 1);
    }
}

#[tokio::test]
async fn every_operation_can_run_on_another_thread() {
    let (_server, engine) = serve(|_, _| Reply::empty(404)).await;
    let cancel = CancellationToken::new();
    fn sendable<T: Send>(_: T) {}
    sendable(engine.inventory());
    sendable(engine.vms_with(&[], Parts::default()));
    sendable(engine.create_snapshot(vm(), "", None));
    sendable(engine.wait_snapshot_gone(vm(), snap(), LIMIT, &cancel));
    sendable(engine.create_vm_from_ovf("", ClusterId::nil(), "", true));
    sendable(engine.wait_disk_ok(DiskId::nil(), LIMIT, &cancel));
    sendable(engine.logout());
}
