//! Who is called, what there is, and which page is the right one.

use crate::{
    DrillEnd, Facts,
    facts::VmFacts,
    text::{bytes, day, expected, table, words},
};

pub fn overview(facts: &Facts) -> String {
    let contacts = match facts.contacts.as_slice() {
        [] => {
            "Nobody is named; write `contacts` into `[runbook]` of hvbak's configuration.\n".into()
        }
        names => names.iter().map(|name| format!("- {}\n", words(name))).collect::<String>(),
    };
    format!(
        "{}\n## Call\n\n{contacts}\n## Which page\n\n{}\n\
         ## The site\n\nManager **{}**, version {}, API {}{}.\n\n### Hypervisors\n{}\
         ### Storage domains\n{}### Networks\n{}\
         MAC pools and roles are in the manager's database: they come back with its backup.\n\n\
         ## What is stored\n\nRepository `{}` on {}, id {}.\n\n### The manager\n{}\
         ### VMs, in the order of restoration\n{}\
         Expected times are for the content at {}; damage was looked for in the structure only. \
         `hvbak verify --all` reads every byte.\n",
        "Keep a copy of these pages where the site's disaster does not reach them: on paper, on a \
         phone, on another site.",
        WHICH,
        words(&facts.engine.fqdn),
        words(&facts.engine.version),
        words(&facts.engine.url),
        match &facts.engine.hosted_engine_vm {
            None => String::new(),
            Some(vm) => format!(", self-hosted in VM {}", words(vm)),
        },
        hosts(facts),
        domains(facts),
        networks(facts),
        facts.repository,
        words(&facts.backup_host),
        words(&facts.repository_id),
        managers(facts),
        vms(facts, |_| true),
        facts.speed.map_or("a speed that was never measured".into(), |s| format!(
            "{} per second, the median of the newest backups",
            bytes(s)
        )),
    )
}

const WHICH: &str = "\
| What happened | Page |
| --- | --- |
| The web portal and the API do not answer; VMs still run | [the manager](manager-lost.md), or [the self-hosted engine](hosted-engine-lost.md) |
| One VM was deleted, encrypted or broken | [one VM](vm-lost.md) |
| A storage array or an export is gone | [a storage domain](domain-lost.md) |
| A hypervisor burns | [a hypervisor](hypervisor-lost.md) |
| hvbak's own machine is gone, the repository's disks are there | [the backup host](backup-host-lost.md) |
| Everything is gone but the repository | [the whole site](site-lost.md) |
";

pub fn hosts(facts: &Facts) -> String {
    let row = |h: &crate::HostFacts| {
        vec![
            words(&h.name),
            format!("{}:{}", words(&h.address), h.port),
            words(&h.data_center),
            words(&h.cluster),
            words(&h.status),
            h.fingerprint.as_deref().map_or("not recorded".into(), words),
        ]
    };
    let head = ["Host", "Address", "Data center", "Cluster", "State then", "SSH key"];
    table(&head, facts.hosts.iter().map(row), "The engine listed no hosts.")
}

pub fn domains(facts: &Facts) -> String {
    let row = |d: &crate::DomainFacts| {
        let space = |value: Option<u64>| value.map_or("?".into(), bytes);
        vec![
            format!("{}{}", words(&d.name), if d.master { " (master)" } else { "" }),
            words(&d.kind),
            words(&d.storage),
            words(&d.connection),
            words(&d.data_centers),
            format!("{} / {}", space(d.used), space(d.available)),
            words(&d.id),
        ]
    };
    let head = ["Domain", "Kind", "Storage", "Connection", "Data center", "Used / free", "Id"];
    table(&head, facts.domains.iter().map(row), "The engine listed no storage domains.")
}

pub fn networks(facts: &Facts) -> String {
    let row = |n: &crate::NetworkFacts| {
        vec![
            words(&n.name),
            words(&n.data_center),
            n.vlan.map_or("none".into(), |vlan| vlan.to_string()),
            n.mtu.filter(|mtu| *mtu > 0).map_or("default".into(), |mtu| mtu.to_string()),
            n.profiles.iter().map(|p| words(p)).collect::<Vec<_>>().join(", "),
        ]
    };
    let head = ["Network", "Data center", "VLAN", "MTU", "vNIC profiles"];
    let networks = table(&head, facts.networks.iter().map(row), "The engine listed no networks.");
    let row = |pool: &crate::MacPoolFacts| {
        vec![
            format!("{}{}", words(&pool.name), if pool.default { " (default)" } else { "" }),
            pool.ranges.iter().map(|range| words(range)).collect::<Vec<_>>().join(", "),
            match pool.duplicates {
                Some(true) => "allowed".into(),
                Some(false) => "refused".into(),
                None => "unknown".into(),
            },
        ]
    };
    let head = ["MAC pool", "Addresses", "Duplicates"];
    let pools = table(&head, facts.mac_pools.iter().map(row), "The engine listed no MAC pools.");
    format!("{networks}NICs get their addresses from these pools:\n\n{pools}")
}

pub fn managers(facts: &Facts) -> String {
    let row = |p: &crate::ManagerPointFacts| {
        vec![
            format!("{}@{}", words(&p.manager), words(&p.id)),
            day(p.taken),
            words(&p.version),
            p.scopes.iter().map(|s| words(s)).collect::<Vec<_>>().join(", "),
            bytes(p.size),
            match &p.recipients[..] {
                [] => "no".into(),
                some => some.iter().map(|key| words(key)).collect::<Vec<_>>().join(", "),
            },
        ]
    };
    let head = ["Point", "Taken", "Version", "Scopes", "Size", "Encrypted to"];
    let none = "**There is no backup of the manager. Make one now: `hvbak manager-backup`.**";
    let mut out = table(&head, facts.manager_points.iter().take(5).map(row), none);
    for one in &facts.manager_drills {
        out += &format!("Last drill of {}: {}.\n\n", words(&one.manager), drilled(&one.drill));
    }
    if facts.manager_drills.is_empty() && !facts.manager_points.is_empty() {
        out += "Its restore was never rehearsed: `hvbak drill --manager`.\n\n";
    }
    out
}

/// When, on what, and what was seen.
fn drilled(drill: &crate::DrillFacts) -> String {
    let point = drill.point.as_deref().map_or(String::new(), |id| format!(", {}", words(id)));
    let seen = words(&drill.seen);
    let seen = match drill.came {
        DrillEnd::Through => seen,
        DrillEnd::Failed => format!("**failed: {seen}**"),
        DrillEnd::NotDone => format!("**NOT rehearsed: {seen}**"),
    };
    let since = drill.skipped_since.as_ref().map_or(String::new(), |since| {
        format!(" (**not rehearsed since**, on {}: {})", day(since.at), words(&since.why))
    });
    format!("{}{point}: {seen}{since}", day(drill.at))
}

/// When a `verify` read the newest point, or which one it read.
fn verified(vm: &VmFacts) -> String {
    let Some(verify) = &vm.verified else { return "**never**".into() };
    let newest = vm.newest.as_ref().is_some_and(|newest| Some(&newest.id) == verify.point.as_ref());
    let which = match &verify.point {
        Some(point) if !newest => format!("{}: ", words(point)),
        _ => String::new(),
    };
    let seen = if verify.passed { "whole" } else { "**damage found**" };
    format!("{which}{seen} on {}", day(verify.at))
}

/// VMs and their newest points.
pub fn vms(facts: &Facts, which: impl Fn(&VmFacts) -> bool) -> String {
    let row = |vm: &VmFacts| {
        let priority = vm.priority.map_or("–".into(), |p| p.to_string());
        let mut row = vec![priority, words(&vm.name), words(&vm.cluster)];
        match &vm.newest {
            None => row.extend(["**none**".into(), "–".into(), "–".into(), "–".into()]),
            Some(point) => row.extend([
                format!("{} ({})", words(&point.id), words(&point.consistency)),
                match &point.damage {
                    None => "no damage seen".into(),
                    Some(what) => format!("**damaged: {}**", words(what)),
                },
                bytes(point.content),
                expected(point.content, facts.speed),
            ]),
        }
        row.push(verified(vm));
        row.push(vm.drill.as_ref().map_or("never".into(), drilled));
        row
    };
    let head = [
        "Priority",
        "VM",
        "Cluster",
        "Newest point",
        "Looked at",
        "Content",
        "Expected",
        "Last verified",
        "Last drill",
    ];
    table(&head, facts.vms.iter().filter(|vm| which(vm)).map(row), "No VM.")
}
