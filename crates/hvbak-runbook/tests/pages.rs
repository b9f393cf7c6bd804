//! Pages of a whole site, of an empty one, and of one with hostile names.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use hvbak_runbook::{
    DiskFacts, DomainFacts, DrillEnd, DrillFacts, EngineFacts, Facts, HostFacts, MacPoolFacts,
    ManagerDrillFacts, ManagerPointFacts, NetworkFacts, PointFacts, SkippedFacts, VerifyFacts,
    VmFacts, html, pages,
};

const HOSTILE: &str = "a|b `c` <script>alert(1)</script> $(reboot) 'q' [x](http://e) *z*\n# h";

fn empty() -> Facts {
    Facts {
        read: "2026-11-21T03:00:00Z".parse().unwrap(),
        backup_host: "backup1".into(),
        hvbak: "0.1.0".into(),
        repository: "/backup/hvbak".into(),
        repository_id: "0c8e".into(),
        contacts: Vec::new(),
        engine: EngineFacts {
            url: "https://engine.example.com/ovirt-engine/api".into(),
            fqdn: "engine.example.com".into(),
            version: "4.5.7".into(),
            hosted_engine_vm: None,
        },
        hosts: Vec::new(),
        domains: Vec::new(),
        networks: Vec::new(),
        mac_pools: Vec::new(),
        vms: Vec::new(),
        manager_points: Vec::new(),
        manager_drills: Vec::new(),
        speed: None,
    }
}

fn site(name: &str) -> Facts {
    let at = "2026-11-21T02:14:54Z".parse().unwrap();
    let point = PointFacts {
        id: "20261121T021454Z".into(),
        taken: at,
        consistency: "filesystem".into(),
        damage: None,
        content: 40 << 30,
        disks: vec![DiskFacts {
            alias: name.into(),
            image: format!("/backup/hvbak/vms/1/20261121T021454Z/{}.qcow2", name.len()),
            virtual_size: 100 << 30,
            domain: name.into(),
            format: "raw".into(),
            bootable: true,
        }],
    };
    Facts {
        contacts: vec![name.into()],
        engine: EngineFacts { hosted_engine_vm: Some(name.into()), ..empty().engine },
        hosts: vec![HostFacts {
            name: name.into(),
            address: "192.0.2.1".into(),
            port: 22,
            cluster: name.into(),
            data_center: name.into(),
            status: "up".into(),
            fingerprint: Some("SHA256:47DEQpj8HBSa".into()),
            os: None,
        }],
        domains: vec![DomainFacts {
            name: name.into(),
            id: "d1".into(),
            kind: "data".into(),
            storage: "nfs".into(),
            connection: format!("nas:/{name}"),
            data_centers: name.into(),
            status: "active".into(),
            master: true,
            used: Some(1 << 40),
            available: None,
        }],
        networks: vec![NetworkFacts {
            name: name.into(),
            data_center: name.into(),
            vlan: Some(12),
            mtu: Some(9000),
            profiles: vec![name.into()],
        }],
        mac_pools: vec![MacPoolFacts {
            name: name.into(),
            ranges: vec!["56:6f:3a:01:00:00 – 56:6f:3a:01:ff:ff".into()],
            duplicates: Some(false),
            default: true,
        }],
        vms: vec![
            VmFacts {
                name: name.into(),
                id: "v1".into(),
                cluster: name.into(),
                status: "up".into(),
                priority: Some(1),
                highly_available: true,
                newest: Some(point),
                verified: Some(VerifyFacts {
                    at,
                    point: Some("20261121T021454Z".into()),
                    passed: true,
                }),
                drill: Some(DrillFacts {
                    at,
                    point: Some("20261120T021454Z".into()),
                    came: DrillEnd::Through,
                    seen: format!("login prompt seen by {name}"),
                    skipped_since: Some(SkippedFacts { at, why: format!("no qemu for {name}") }),
                }),
            },
            VmFacts {
                name: "bare".into(),
                id: "v2".into(),
                cluster: name.into(),
                status: "down".into(),
                priority: None,
                highly_available: false,
                newest: None,
                verified: None,
                drill: None,
            },
        ],
        manager_points: vec![ManagerPointFacts {
            manager: "engine.example.com".into(),
            id: "20261121T010000Z".into(),
            taken: at,
            version: "4.5.7".into(),
            scopes: vec!["files".into(), "db".into()],
            archive: "/backup/hvbak/manager/engine.example.com/20261121T010000Z/engine.backup"
                .into(),
            sha256: Some("ab".repeat(32)),
            size: 90 << 20,
            recipients: Vec::new(),
        }],
        manager_drills: [DrillEnd::Failed, DrillEnd::NotDone]
            .map(|came| ManagerDrillFacts {
                manager: name.into(),
                drill: DrillFacts { at, point: None, came, seen: name.into(), skipped_since: None },
            })
            .into(),
        speed: Some(100 << 20),
        ..empty()
    }
}

/// Lines of the pages' command blocks.
fn commands(facts: &Facts) -> Vec<String> {
    let mut lines = Vec::new();
    for page in pages(facts) {
        let blocks = page.markdown.split("```").skip(1).step_by(2);
        for block in blocks {
            lines.extend(block.lines().skip(1).map(str::to_owned));
        }
    }
    lines
}

#[test]
fn a_site_is_in_its_pages() {
    let facts = site("web1");
    let all = pages(&facts);
    assert_eq!(all.len(), 10);
    let text: String = all.iter().map(|page| page.markdown.as_str()).collect();
    for fact in [
        "192.0.2.1:22",
        "nas:/web1",
        "SHA256:47DEQpj8HBSa",
        "20261121T021454Z",
        "about 7 min",
        "VLAN",
        "9000",
    ] {
        assert!(text.contains(fact), "{fact}");
    }
    for page in &all {
        assert!(page.markdown.contains("2026-11-21 03:00 UTC"), "{}", page.slug);
        assert!(page.markdown.contains("- [ ] ") || page.slug == "overview", "{}", page.slug);
    }
    assert!(all[0].markdown.contains("| 1 | web1 |"));
    let overview = &all[0].markdown;
    assert!(overview.contains("2026-11-21 02:14 UTC, 20261120T021454Z: login prompt seen by web1"));
    assert!(
        overview.contains("(**not rehearsed since**, on 2026-11-21 02:14 UTC: no qemu for web1)")
    );
    for said in ["failed: web1", "NOT rehearsed: web1"] {
        let line = format!("Last drill of web1: 2026-11-21 02:14 UTC: **{said}**");
        assert!(overview.contains(&line), "{overview}");
    }
    assert!(all[0].markdown.contains("| – | bare | web1 | **none** |"));
}

#[test]
fn an_empty_site_says_what_is_missing() {
    let text: String = pages(&empty()).into_iter().map(|page| page.markdown).collect();
    for said in [
        "There is no backup of the manager",
        "The engine listed no hosts",
        "no VM is stored",
        "Nobody is named",
        "is **not** self-hosted",
    ] {
        assert!(text.contains(said), "{said}");
    }
}

#[test]
fn an_encrypted_archive_comes_with_the_commands_that_open_it() {
    let mut facts = site("web1");
    let open = commands(&facts).join("\n");
    assert!(!open.contains("IDENTITY") && open.contains("scp -p /backup"));
    facts.manager_points[0].recipients = vec!["age1qqq\nreboot".into()];
    let lines = commands(&facts);
    let all = lines.join("\n");
    for line in [
        "IDENTITY=/path/to/private.key   # of one of: age1qqq reboot\n",
        "hvbak manager-verify engine.example.com@20261121T010000Z --identity \"$IDENTITY\"\n",
        "--engine-setup --identity \"$IDENTITY\" --dry-run\n",
        "engine.backup | ssh root@",
        "--output /root/engine.backup /backup/hvbak/manager",
        "tar --list --file /root/engine.backup\n",
    ] {
        assert!(all.contains(line), "{line}: {all}");
    }
    assert!(
        !lines.iter().any(|line| line.starts_with("reboot") || line.starts_with("scp -p /backup"))
    );
    let lost = pages(&facts).into_iter().find(|page| page.slug == "manager-lost").unwrap();
    assert!(lost.markdown.contains("without it the archive is lost"));
}

#[test]
fn the_data_warehouse_moves_by_hvbak_first_and_by_hand_without_it() {
    let facts = site("web1");
    let page = pages(&facts).into_iter().find(|page| page.slug == "data-warehouse").unwrap();
    let at = |text: &str| page.markdown.find(text).unwrap_or_else(|| panic!("no {text}"));
    let order = [
        "hvbak dwh move-database --to db.example.com --password-file /root/dwh.pw --dry-run",
        "hvbak dwh move-service --to dwh.example.com --engine-db-host engine.example.com\n",
        "hvbak dwh move-service --revert --machine-is-lost",
        "hvbak dwh move-database --revert --lose-rows",
        "By hand, without hvbak",
        "engine-backup --mode=restore --scope=files --scope=dwhdb",
    ];
    assert!(order.map(at).is_sorted(), "{:?}", order.map(at));
}

#[test]
fn names_are_neither_markup_nor_commands() {
    let facts = site(HOSTILE);
    let html = html(&facts, &pages(&facts));
    let tree = roxmltree::Document::parse_with_options(
        &html,
        roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() },
    )
    .unwrap();
    let count = |tag: &str| tree.descendants().filter(|n| n.has_tag_name(tag)).count();
    assert_eq!((count("script"), count("section"), count("h1")), (1, 10, 10));
    let links = tree.descendants().filter(|n| n.has_tag_name("a"));
    assert!(links.into_iter().all(|a| a.attribute("href").unwrap().starts_with('#')));
    let flat = HOSTILE.replace('\n', "?");
    let mut quoted = 0;
    for line in commands(&facts).iter().filter(|line| line.starts_with("hvbak restore")) {
        let words = shlex::split(line).unwrap();
        assert!(words[2].starts_with(&flat) && words[2].contains("@2026"), "{line}");
        quoted += 1;
    }
    assert!(quoted >= 2);
    // A table row stays one row.
    let hosts = pages(&facts)[0].markdown.clone();
    let row = hosts.lines().find(|line| line.contains("192.0.2.1")).unwrap();
    assert_eq!(row.matches(" | ").count(), 5, "{row}");
}

#[test]
fn old_facts_are_loud_by_the_readers_clock() {
    let facts = empty();
    let html = html(&facts, &pages(&facts));
    assert!(html.contains(&format!("const read = {}", facts.read.as_millisecond())));
    assert!(html.contains("limit = 604800000"));
    assert!(html.contains("role=\"alert\" hidden"));
}
