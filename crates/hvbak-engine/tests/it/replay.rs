//! Whole inventories of recorded engines, served over HTTPS as they were recorded.

use std::{collections::BTreeMap, path::PathBuf};

use hvbak_engine::{Engine, Parts, parse};
use hvbak_types::*;

use crate::server::{Reply, Seen, Server, usual};

pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/engine-api")
}

/// GET answers of the manifest whose file lies in `set`, by path and query; then by path.
pub struct Set {
    answers: BTreeMap<String, (u16, Vec<u8>)>,
}

impl Set {
    pub fn load(set: &str) -> Self {
        let manifest = std::fs::read_to_string(fixtures().join("MANIFEST.tsv")).unwrap();
        let mut answers = BTreeMap::new();
        for line in manifest.lines().skip(1) {
            let f: Vec<&str> = line.split('\t').collect();
            if f[2] == "GET" && f[0].starts_with(set) && f[0].ends_with(".xml") {
                let body = std::fs::read(fixtures().join(f[0])).unwrap();
                answers.entry(f[3].to_owned()).or_insert((f[1].parse().unwrap(), body));
            }
        }
        assert!(!answers.is_empty(), "{set}");
        Self { answers }
    }

    pub fn answer(&self, seen: &Seen) -> Reply {
        if let Some(reply) = usual(seen) {
            return reply;
        }
        let query: Vec<String> = seen.query.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let full = format!("{}?{}", seen.path, query.join("&"));
        match self.answers.get(&full).or_else(|| self.answers.get(&seen.path)) {
            Some((status, body)) => Reply::xml(body.clone()).status(*status),
            None => Reply::empty(404),
        }
    }
}

async fn replay(set: &str) -> (Server, Engine) {
    let set = Set::load(set);
    let server = Server::start(move |seen, _| set.answer(seen)).await;
    let engine = server.connect().await.unwrap();
    (server, engine)
}

fn count(set: &str, file: &str, item: &str) -> usize {
    let text = std::fs::read_to_string(fixtures().join(set).join(file)).unwrap();
    let document = roxmltree::Document::parse(&text).unwrap();
    document.root_element().children().filter(|c| c.has_tag_name(item)).count()
}

#[tokio::test]
async fn the_inventory_of_a_4_2_engine_is_read() {
    let (server, engine) = replay("replay-4.2dev-2017-08").await;
    let all = engine.inventory().await.unwrap();
    check_counts("replay-4.2dev-2017-08", "4.2dev-2017-08", &all);
    // No request per VM: ten lists, one per data center, login and root.
    assert!(server.lines().len() <= 13 + all.data_centers.len(), "{:?}", server.lines());
    let active = all.storage_domains.iter().filter(|d| d.status == Some(DomainStatus::Active));
    assert!(active.count() >= 1);
    // A domain that is in no data center has its own status or none.
    for domain in &all.storage_domains {
        if domain.data_centers.is_empty() {
            assert!(matches!(domain.status, None | Some(DomainStatus::Unattached)), "{domain:?}");
        } else {
            assert!(domain.status.is_some(), "{domain:?}");
        }
    }
    assert!(all.hosts.iter().any(|h| h.status == HostStatus::NonResponsive));
    for host in &all.hosts {
        assert!(host.cluster.is_some() && !host.address.is_empty(), "{host:?}");
        assert!(host.ssh.port == Some(22), "{host:?}");
    }
}

#[tokio::test]
async fn the_inventory_of_a_4_3_engine_is_read() {
    let (_server, engine) = replay("replay-4.3-2020-03").await;
    let all = engine.inventory().await.unwrap();
    check_counts("replay-4.3-2020-03", "4.3-2020-03", &all);
    assert_eq!(all.version.full, "4.5.5-1.el8");
    assert!(
        all.hosts.iter().all(|h| h
            .ssh
            .fingerprint
            .as_deref()
            .is_some_and(|f| f.starts_with("SHA256:")))
    );
    // Two snapshots of one VM, whose disks have volumes that are not the active ones.
    let vm = all.vms.iter().find(|v| v.id.to_string().starts_with("ca7e8d64")).unwrap();
    let snapshots = engine.snapshots(vm.id).await.unwrap();
    let regular: Vec<_> = snapshots.iter().filter(|s| s.kind == SnapshotKind::Regular).collect();
    assert_eq!(regular.len(), 2, "{snapshots:?}");
    let mut volumes = Vec::new();
    for snapshot in regular {
        for disk in engine.snapshot_disks(vm.id, snapshot.id).await.unwrap() {
            let now = all.disks.iter().find(|d| d.id == disk.disk_id).unwrap();
            assert_ne!(now.image_id, Some(disk.volume), "{disk:?}");
            volumes.push(format!("{} {}", disk.alias, disk.volume));
        }
    }
    volumes.sort();
    assert_eq!(
        volumes,
        [
            "Debbie_Disk2 264fedcf-1e7f-4fc4-9ba6-48a8f9b1decc",
            "Debbie_Disk2 547539b9-a2af-49b2-8d1e-68a85a0ff9b2",
            "Debbie_Disk3 2b3f5294-0230-4ddb-a0d9-96a0c6d601b2",
            "Debbie_Disk3 e4d483dd-d4b3-449c-93bc-f638f6e89903",
            "deb10_Disk1 61d498ab-3dc9-4965-83a6-c2090a0d9bec",
            "deb10_Disk1 9074ef9f-803f-4521-a7e3-163575122249",
        ]
    );
}

#[tokio::test]
async fn parts_come_one_by_one_when_the_engine_does_not_inline_them() {
    let (server, engine) = replay("replay-4.3-2020-03").await;
    let ids: Vec<VmId> = engine.vms(None).await.unwrap().iter().map(|v| v.id).collect();
    let parts = Parts { attachments: true, nics: true, snapshots: true, ..Parts::default() };
    let all = engine.vms_with(&ids, parts).await.unwrap();
    assert_eq!(all.iter().map(|v| v.vm.id).collect::<Vec<_>>(), ids);
    for with in &all {
        let (raw, _) = engine.attachments(with.vm.id).await.unwrap();
        let listed: parse::List<Attachment> = parse::list(&raw).unwrap();
        assert_eq!(listed.items.len(), with.attachments.len());
        assert!(with.snapshots.iter().any(|s| s.kind == SnapshotKind::Active), "{with:?}");
    }
    assert!(
        all.iter().any(|v| !v.nics.is_empty()) && all.iter().any(|v| !v.attachments.is_empty())
    );
    assert!(server.lines().len() > ids.len());
}

#[tokio::test]
async fn the_document_of_a_recorded_vm_holds_its_ovf() {
    let (server, engine) = replay("samples").await;
    let id: VmId = "17a94da8-3d02-430e-9b83-5e39f92907e8".parse().unwrap();
    let document = engine.vm_document(id).await.unwrap();
    let expected =
        std::fs::read_to_string(fixtures().join("ovf/vms-17a94da8.all_content--4.3-2019-12.ovf"))
            .unwrap();
    assert_eq!(document.ovf.as_deref().map(str::trim_end), Some(expected.trim_end()));
    assert_eq!(document.vm.id, id);
    let raw = std::fs::read(fixtures().join("samples/vms-17a94da8.all_content--4.3-2019-12.xml"));
    assert_eq!(document.raw_xml, raw.unwrap());
    let seen = server.last(&format!("GET /ovirt-engine/api/vms/{id}"));
    assert_eq!(seen.header("all-content"), "true");
    assert_eq!(seen.query["all_content"], "true");
}

fn check_counts(set: &str, label: &str, all: &Inventory) {
    let file = |name: &str| format!("{name}--{label}.xml");
    for (name, item, found) in [
        ("datacenters", "data_center", all.data_centers.len()),
        ("clusters", "cluster", all.clusters.len()),
        ("hosts", "host", all.hosts.len()),
        ("storagedomains", "storage_domain", all.storage_domains.len()),
        ("vms", "vm", all.vms.len()),
        ("templates", "template", all.templates.len()),
        ("disks", "disk", all.disks.len()),
        ("networks", "network", all.networks.len()),
        ("vnicprofiles", "vnic_profile", all.vnic_profiles.len()),
    ] {
        if fixtures().join(set).join(file(name)).exists() {
            assert_eq!(found, count(set, &file(name), item), "{name}");
            assert!(found > 0, "{name}");
        } else {
            assert_eq!(found, 0, "{name}");
        }
    }
}
