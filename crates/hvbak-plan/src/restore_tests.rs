//! Tables for the restore plan.

use hvbak_types::{
    Cluster, DomainKind, Inventory, MacPool, MacPoolId, Network, NetworkId, StorageKind,
    VnicProfile,
};

use super::*;
use crate::backup::tests::{inventory, vm};

pub(super) fn point() -> PointFacts {
    PointFacts {
        point: "20261121T021454Z".parse().unwrap(),
        vm: VmId::random(),
        name: "web1".into(),
        template: false,
        cluster_name: Some("Default".into()),
        disks: vec![PointDisk {
            id: DiskId::random(),
            alias: "web1_Disk1".into(),
            virtual_size: 10 << 30,
            data_bytes: 1 << 30,
            format: RestoreFormat::RawSparse,
            domain: Some("00000003-0000-4000-8000-000000000001".parse().unwrap()),
            domain_name: Some("data1".into()),
            interface: Some("virtio".into()),
            bootable: true,
            active: true,
            read_only: false,
            pass_discard: false,
            wipe_after_delete: false,
        }],
        nics: vec![NicFacts {
            name: "nic1".into(),
            interface: Some("virtio".into()),
            mac: Some("00:1a:4a:16:01:0a".into()),
            linked: true,
            plugged: true,
            profile: Some(("ovirtmgmt".into(), "ovirtmgmt".into())),
            profile_id: None,
        }],
        tags: vec!["gold".into()],
        left_out: Vec::new(),
    }
}

fn with_network() -> Inventory {
    let mut inv = inventory();
    let network = Network {
        id: NetworkId::random(),
        name: "ovirtmgmt".into(),
        data_center: Some(inv.data_centers[0].id),
        vlan: None,
        mtu: None,
    };
    let profile = VnicProfile {
        id: VnicProfileId::random(),
        name: "ovirtmgmt".into(),
        network: Some(network.id),
    };
    inv.networks.push(network);
    inv.vnic_profiles.push(profile);
    inv
}

#[test]
fn a_vm_that_is_gone_comes_back_as_it_was() {
    let inv = with_network();
    let plan = plan_restore(&inv, &point(), &RestoreOptions::default()).unwrap();
    assert_eq!((plan.name.as_str(), plan.cluster_name.as_str()), ("web1", "Default"));
    assert_eq!(plan.disks[0].format, RestoreFormat::RawSparse);
    assert_eq!(plan.disks[0].interface, "virtio");
    assert_eq!(plan.nics[0].mac.as_deref(), Some("00:1a:4a:16:01:0a"));
    assert_eq!(plan.nics[0].profile, Some(inv.vnic_profiles[0].id));
    assert!(plan.host.is_some());
    assert_eq!(plan.warnings, ["tag `gold` does not exist any more"]);
}

#[test]
fn beside_the_original_macs_are_new() {
    let mut inv = with_network();
    let p = point();
    let mut original = vm("web1");
    original.id = p.vm;
    inv.vms.push(original);
    let options = |mac| RestoreOptions { name: Some("copy".into()), mac, ..Default::default() };
    let mac = |o| plan_restore(&inv, &p, &o).unwrap().nics[0].mac.clone();
    assert_eq!(mac(options(None)), None);
    assert_eq!(mac(options(Some(MacRule::Keep))).as_deref(), Some("00:1a:4a:16:01:0a"));
}

#[test]
fn an_address_that_another_has_is_given_only_where_the_engine_would() {
    const MAC: &str = "00:1a:4a:16:01:0a";
    let (one, two) = (MacPoolId::random(), MacPoolId::random());
    let pool = |id, twins| MacPool {
        id,
        name: "pool".into(),
        ranges: Vec::new(),
        allow_duplicates: Some(twins),
        default: None,
    };
    let mut inv = with_network();
    let there = Cluster { id: ClusterId::random(), ..inv.clusters[0].clone() };
    let mac = MAC.to_uppercase();
    let cluster = Some(there.id);
    inv.macs.push(MacUse { mac, vm: VmId::random(), vm_name: "copy".into(), cluster });
    inv.clusters.push(there);
    let keep = RestoreOptions { mac: Some(MacRule::Keep), ..RestoreOptions::default() };
    let plan = |inv: &Inventory, o: &RestoreOptions| {
        let plan = plan_restore(inv, &point(), o)?;
        let told = plan.warnings.iter().any(|text| text.contains("`copy`"));
        Ok::<_, RestoreError>((plan.nics[0].mac.clone(), told))
    };
    let refused = |inv: &Inventory| {
        // Nobody has asked for it: a new one, and that is told.
        assert_eq!(plan(inv, &RestoreOptions::default()).unwrap(), (None, true));
        let error = plan(inv, &keep).unwrap_err();
        assert!(error.to_string().contains("copy") && error.hint().is_some(), "{error}");
    };
    // What is not known counts.
    refused(&inv);
    inv.mac_pools = vec![pool(one, false), pool(two, false)];
    (inv.clusters[0].mac_pool, inv.clusters[1].mac_pool) = (Some(one), Some(one));
    refused(&inv);
    let given = (Some(MAC.to_owned()), true);
    inv.clusters[1].mac_pool = Some(two);
    assert_eq!(plan(&inv, &keep).unwrap(), given);
    inv.clusters[1].mac_pool = Some(one);
    inv.mac_pools[0].allow_duplicates = Some(true);
    assert_eq!(plan(&inv, &RestoreOptions::default()).unwrap(), given);
    // Of two that are planned beside each other, one has it.
    inv.macs.clear();
    inv.mac_pools.clear();
    let first = plan_restore(&inv, &point(), &keep).unwrap();
    first.reserve(&mut inv);
    let second = RestoreOptions { name: Some("second".into()), ..keep };
    assert!(matches!(plan(&inv, &second), Err(RestoreError::MacTaken { .. })));
}

#[test]
fn two_nics_of_one_vm_do_not_share_an_address() {
    let (inv, mut p) = (with_network(), point());
    p.nics.push(NicFacts { name: "nic2".into(), ..p.nics[0].clone() });
    let error = plan_restore(&inv, &p, &RestoreOptions::default()).unwrap_err();
    assert!(error.to_string().contains("as NIC nic1"), "{error}");
}

#[test]
fn sparse_raw_disks_become_qcow2_on_block_domains() {
    let mut inv = with_network();
    inv.storage_domains[0].storage = StorageKind::Iscsi;
    for (stored, made) in [
        (RestoreFormat::RawSparse, RestoreFormat::Cow),
        (RestoreFormat::RawPreallocated, RestoreFormat::RawPreallocated),
        (RestoreFormat::Cow, RestoreFormat::Cow),
    ] {
        let mut p = point();
        p.disks[0].format = stored;
        let plan = plan_restore(&inv, &p, &RestoreOptions::default()).unwrap();
        assert_eq!((plan.disks[0].format, plan.disks[0].block), (made, true));
    }
}

#[test]
fn what_cannot_be_restored_is_refused_before_anything_is_done() {
    fn check(
        change: impl FnOnce(&mut Inventory, &mut PointFacts, &mut RestoreOptions),
        expected: &str,
    ) {
        let (mut inv, mut p, mut o) = (with_network(), point(), RestoreOptions::default());
        change(&mut inv, &mut p, &mut o);
        let error = plan_restore(&inv, &p, &o).unwrap_err();
        assert!(error.to_string().contains(expected), "{error} / {expected}");
        assert!(error.hint().is_some());
    }
    check(|i, _, _| i.vms.push(vm("web1")), "`web1` exists");
    check(|_, _, o| o.cluster = Some("nope".into()), "no cluster `nope`");
    check(|_, _, o| o.disks = vec!["nope".into()], "no disk `nope`");
    check(|_, _, o| o.exclude_disks = vec!["web1_Disk1".into()], "no disk");
    check(|_, _, o| o.storage_domains = vec!["nope".into()], "no domain `nope`");
    check(|_, _, o| o.storage_domains = vec!["x:data1".into()], "no disk `x`");
    check(|i, _, _| i.storage_domains.clear(), "gone");
    check(|i, _, _| i.storage_domains[0].storage = StorageKind::Glance, "glance");
    check(
        |i, _, o| {
            i.storage_domains[0].storage = StorageKind::Fcp;
            o.format = Some(RestoreFormat::RawSparse);
        },
        "cannot hold sparse raw",
    );
    check(|i, _, _| i.storage_domains[0].kind = DomainKind::Iso, "iso");
    check(|i, _, _| i.storage_domains[0].data_centers.clear(), "not attached");
    check(|i, _, _| i.storage_domains[0].available = Some(5 << 30), "bytes free");
    check(|i, _, _| i.hosts.clear(), "no host");
}

/// A second domain, network and cluster, as another site has them.
fn elsewhere() -> Inventory {
    let mut inv = with_network();
    inv.clusters[0].name = "dr-cluster".into();
    inv.storage_domains[0].name = "dr-data".into();
    inv.storage_domains[0].id = DomainId::random();
    inv.networks[0].name = "dr-net".into();
    inv
}

#[test]
fn another_sites_names_are_taken_where_nothing_nearer_says_otherwise() {
    let inv = elsewhere();
    let of = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect::<BTreeMap<_, _>>()
    };
    let site = SiteNames {
        clusters: of(&[("Default", "dr-cluster")]),
        storage_domains: of(&[("data1", "dr-data")]),
        vnic_profiles: of(&[("ovirtmgmt/ovirtmgmt", "dr-net/ovirtmgmt")]),
    };
    let name = Some("{name}-dr-{point}".to_owned());
    let options = RestoreOptions { name, site: site.clone(), ..RestoreOptions::default() };
    let plan = plan_restore(&inv, &point(), &options).unwrap();
    assert_eq!(plan.name, "web1-dr-20261121T021454Z");
    assert_eq!(
        (plan.cluster_name.as_str(), plan.disks[0].domain_name.as_str()),
        ("dr-cluster", "dr-data")
    );
    assert_eq!(plan.nics[0].profile, Some(inv.vnic_profiles[0].id));
    // Without them it is told what is missing.
    let bare = plan_restore(&inv, &point(), &RestoreOptions::default()).unwrap_err();
    assert_eq!(bare, RestoreError::Unknown { what: "cluster", text: "Default".into() });
    // A name of the other site that does not exist is no reason to take another.
    let wrong = SiteNames { vnic_profiles: of(&[("ovirtmgmt/ovirtmgmt", "dr-net/gone")]), ..site };
    let options = RestoreOptions { site: wrong, ..options };
    let error = plan_restore(&inv, &point(), &options).unwrap_err();
    assert_eq!(error, RestoreError::Unknown { what: "vNIC profile", text: "dr-net/gone".into() });
}

#[test]
fn single_disks_and_nics_can_be_different() {
    let inv = with_network();
    let mut p = point();
    let second = PointDisk {
        id: DiskId::random(),
        alias: "web1_data".into(),
        bootable: false,
        ..p.disks[0].clone()
    };
    p.disks.push(second);
    p.nics.push(NicFacts { name: "nic2".into(), ..p.nics[0].clone() });
    let rule = DiskRule {
        name: Some("boot2".into()),
        format: Some(RestoreFormat::Cow),
        interface: Some("sata".into()),
        active: Some(false),
        bootable: Some(true),
        storage_domain: None,
    };
    let nic = NicRule {
        profile: Some("none".into()),
        mac: Some("02:00:00:00:00:01".into()),
        linked: Some(false),
    };
    let options = RestoreOptions {
        disk_rules: [("web1_data".to_owned(), rule)].into(),
        nic_rules: [("nic2".to_owned(), nic)].into(),
        interface: Some("virtio_scsi".into()),
        ..RestoreOptions::default()
    };
    let plan = plan_restore(&inv, &p, &options).unwrap();
    let disk = |n: usize| {
        let d = &plan.disks[n];
        (d.alias.clone(), d.format, d.interface.clone(), d.active, d.bootable)
    };
    assert_eq!(
        disk(0),
        ("web1_Disk1".into(), RestoreFormat::RawSparse, "virtio_scsi".into(), true, false)
    );
    assert_eq!(disk(1), ("boot2".into(), RestoreFormat::Cow, "sata".into(), false, true));
    let nics: Vec<_> =
        plan.nics.iter().map(|n| (n.profile.is_some(), n.mac.clone(), n.linked)).collect();
    assert_eq!(nics[0], (true, Some("00:1a:4a:16:01:0a".into()), true));
    assert_eq!(nics[1], (false, Some("02:00:00:00:00:01".into()), false));
    let only = RestoreOptions { nics: vec!["nic2".into()], ..RestoreOptions::default() };
    assert_eq!(plan_restore(&inv, &p, &only).unwrap().nics.len(), 1);
    let unknown = |what, options: &RestoreOptions| {
        assert_eq!(
            plan_restore(&inv, &p, options).unwrap_err(),
            RestoreError::Unknown { what, text: "x".into() }
        );
    };
    unknown("NIC", &RestoreOptions { nics: vec!["x".into()], ..RestoreOptions::default() });
    unknown(
        "NIC",
        &RestoreOptions {
            nic_rules: [("x".into(), NicRule::default())].into(),
            ..RestoreOptions::default()
        },
    );
    unknown(
        "disk",
        &RestoreOptions {
            disk_rules: [("x".into(), DiskRule::default())].into(),
            ..RestoreOptions::default()
        },
    );
    unknown(
        "vNIC profile",
        &RestoreOptions { nic_profile: Some("x".into()), ..RestoreOptions::default() },
    );
}

#[test]
fn a_template_is_made_where_its_name_is_free_and_its_disks_fit_twice() {
    let mut inv = with_network();
    let options = RestoreOptions {
        kind: Some(RestoreKind::Template),
        power_on: true,
        mac: Some(MacRule::Keep),
        ..RestoreOptions::default()
    };
    // A VM of the same name is in nobody's way, and stored addresses are not taken.
    inv.vms.push(vm("web1"));
    let plan = plan_restore(&inv, &point(), &options).unwrap();
    assert_eq!(
        (plan.kind, plan.name.as_str(), plan.power_on),
        (RestoreKind::Template, "web1", false)
    );
    assert_eq!((plan.nics[0].mac.clone(), plan.tags.len()), (None, 0));
    assert!(plan.warnings.iter().any(|w| w.contains("twice")), "{:?}", plan.warnings);
    assert!(plan.warnings.iter().any(|w| w.contains("not started")), "{:?}", plan.warnings);
    // A template's point becomes a template unless it is to be a VM.
    let of_template = PointFacts { template: true, ..point() };
    let as_vm = RestoreOptions { kind: Some(RestoreKind::Vm), ..RestoreOptions::default() };
    let kind = |options| plan_restore(&inv, &of_template, &options).map(|plan| plan.kind);
    assert_eq!(kind(RestoreOptions::default()), Ok(RestoreKind::Template));
    assert_eq!(kind(as_vm), Err(RestoreError::NameTaken { name: "web1".into() }));
    // The domain has room for one copy and a half beside its reserve.
    let reserve = inv.storage_domains[0].critical_space_gib.unwrap_or(0) << 30;
    inv.storage_domains[0].available = Some(reserve + (3 << 29));
    let needed = |options: &RestoreOptions| match plan_restore(&inv, &point(), options) {
        Err(RestoreError::NoSpace { needed, .. }) => Some(needed),
        other => other.map(|_| None).unwrap(),
    };
    assert_eq!(needed(&options), Some(2 << 30));
    let vm = RestoreOptions { name: Some("other".into()), ..RestoreOptions::default() };
    assert_eq!(needed(&vm), None);
    // Names count in the data center alone; Blank is in all of them.
    inv.storage_domains[0].available = None;
    let taken = Err(RestoreError::TemplateTaken { name: "web1".into() });
    let template = |name: &str, cluster| hvbak_types::Template {
        id: hvbak_types::TemplateId::random(),
        name: name.into(),
        description: None,
        status: None,
        cluster,
        version_number: None,
        version_name: None,
        base_template: None,
    };
    let here = Some(inv.clusters[0].id);
    for (name, cluster, expected) in [
        ("web1", here, taken.clone()),
        ("web1", None, taken),
        (
            "web1",
            Some(ClusterId::random()),
            Err(RestoreError::TemplateTaken { name: "web1".into() }),
        ),
        ("web2", here, Ok(())),
    ] {
        inv.templates = vec![template(name, cluster)];
        let got = plan_restore(&inv, &point(), &options).map(drop);
        assert_eq!(got, expected, "{name} {cluster:?}");
    }
    let mut elsewhere = inv.clusters[0].clone();
    (elsewhere.id, elsewhere.data_center) = (ClusterId::random(), Some(DataCenterId::random()));
    inv.templates = vec![template("web1", Some(elsewhere.id))];
    inv.clusters.push(elsewhere);
    assert!(plan_restore(&inv, &point(), &options).is_ok());
}
