//! VMs: one lost, all of a storage domain, those of a hypervisor.

use super::overview;
use crate::{
    Facts, VmFacts,
    text::{commands, quoted, steps, words},
};

/// A command that restores a VM's newest point under a name.
pub fn restore(vm: &VmFacts, name: &str) -> Option<String> {
    let point = vm.newest.as_ref()?;
    let which = quoted(&format!("{}@{}", vm.name, point.id));
    Some(format!("hvbak restore {which} --name {}", quoted(name)))
}

pub fn one(facts: &Facts) -> String {
    let example = facts.vms.iter().find(|vm| vm.newest.is_some());
    let lines = match example {
        None => vec!["# no VM has a stored point".into()],
        Some(vm) => {
            let beside = format!("{}-try", vm.name);
            let restored = restore(vm, &beside).unwrap_or_default();
            let point = vm.newest.as_ref().map_or("", |p| &p.id);
            let which = quoted(&format!("{}@{point}", vm.name));
            vec![
                format!("hvbak points {}", quoted(&vm.name)),
                format!("hvbak verify {which}"),
                format!("{restored} --disconnected --power-on"),
            ]
        }
    };
    format!(
        "A restore makes a **new** VM and new disks beside what is there; nothing is overwritten. \
         Choose a point from before the damage: the newest one may hold it already.\n{}{}\
         ## The points\n{}",
        commands(&lines),
        steps(&[
            "Stop the broken VM, so that two with one address do not meet; keep it until the new one is proven.",
            "Restore disconnected, start, look at its data on the console.",
            "Plug the network in; rename the old one away and the new one to its name.",
            "Back the new VM up: it has a new id and begins with a full backup.",
            "Only files are wanted? `hvbak export POINT --output DIR`, then mount the image (`guestmount`, `qemu-nbd --read-only`).",
        ]),
        overview::vms(facts, |_| true),
    )
}

pub fn domain(facts: &Facts) -> String {
    let mut out = String::from(
        "VMs with a disk on the domain stop or pause. Repair the storage first if there is any \
         hope: paused VMs resume with nothing lost, a restore loses what came after the backup.\n\n\
         ## The domains\n",
    );
    out += &overview::domains(facts);
    out += &steps(&[
        "Is it the storage, or the way to it? From each host: mount or log in by hand with the connection above.",
        "If it is lost: put the domain into maintenance; if that fails, destroy it in the portal (only the manager forgets it).",
        "Was it the master? Another data domain takes over by itself; with none left, make a new domain first.",
        "Delete or rename VMs that lost all disks; VMs that lost one disk can get that disk alone: `hvbak restore POINT --disk ALIAS`.",
    ]);
    for domain in facts.domains.iter().filter(|d| d.kind == "data") {
        let on_it = |vm: &VmFacts| {
            let disks = vm.newest.as_ref().map_or(&[][..], |p| &p.disks);
            disks.iter().any(|disk| disk.domain == domain.name)
        };
        let lines: Vec<_> = facts
            .vms
            .iter()
            .filter(|vm| on_it(vm))
            .filter_map(|vm| {
                Some(format!("{} --storage-domain NEW_DOMAIN", restore(vm, &vm.name)?))
            })
            .collect();
        out += &format!("## What {} held\n", words(&domain.name));
        out += &if lines.is_empty() {
            "\nNo stored VM has a disk there.\n\n".into()
        } else {
            commands(&lines)
        };
    }
    out
}

pub fn hypervisor(facts: &Facts) -> String {
    format!(
        "Its VMs are down or in an unknown state; their disks are on the storage and need **no** \
         restore, unless they were on the host's local disks.\n{}## Hosts\n{}",
        steps(&[
            "Make sure that the host is off: power it off by its management board, or pull the plug. Then, and only then, in the portal: *Confirm host has been rebooted*. A host that still runs while its VMs are started elsewhere destroys their disks.",
            "Highly available VMs start elsewhere by themselves; start the others by priority.",
            "It was the SPM: another host takes the role over within minutes.",
            "A new host with the same name: remove the old one from the manager, install, add it; then `hvbak enroll NAME`, since its SSH key is another.",
            "Local storage on it is lost with it: [A storage domain is lost](domain-lost.md).",
            "If a backup was running through it: `hvbak cleanup`.",
        ]),
        overview::hosts(facts),
    )
}
