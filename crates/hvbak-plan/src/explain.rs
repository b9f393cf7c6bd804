//! Plans as text for people; the same values that are executed.

use std::fmt::Write as _;

use crate::{BackupPlan, DiskAction, Replace, RestorePlan, Resume, VmAction};

/// Bytes for people, in binary units.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A backup plan, a few lines per VM.
pub fn explain_backup(plan: &BackupPlan) -> String {
    let mut out = String::new();
    for vm in &plan.vms {
        let kind = if vm.template { "template " } else { "" };
        match &vm.action {
            VmAction::Skip { skip } => {
                let _ = writeln!(out, "{kind}{}: left out: {skip}", vm.name);
                continue;
            }
            VmAction::Backup => {
                let host = vm.host.as_ref().map_or_else(
                    || "no host needed".to_owned(),
                    |h| format!("through {} ({})", h.name, h.why),
                );
                let freeze = if vm.freeze { ", guest frozen for the snapshot" } else { "" };
                let _ = writeln!(
                    out,
                    "{kind}{}: at most {} {host}{freeze}",
                    vm.name,
                    size(vm.expected_bytes)
                );
            }
        }
        match &vm.resume {
            Some(Resume::Continue { taken, data_bytes, .. }) => {
                let (there, all) = (size(*data_bytes), size(vm.expected_bytes));
                let _ = writeln!(
                    out,
                    "  continues the transfer of {taken:.0}, {there} of at most {all} are there"
                );
            }
            Some(Resume::Discard { point, why }) => {
                let _ = writeln!(out, "  starts anew, half-made point {point} is discarded: {why}");
            }
            None => {}
        }
        for disk in &vm.disks {
            let what = match &disk.action {
                DiskAction::Backup { level, reason } => {
                    format!("{level:?} ({reason})").to_lowercase()
                }
                DiskAction::Skip { skip } => format!("left out: {skip}"),
            };
            let domain = disk.domain_name.as_deref().unwrap_or("?");
            let _ = writeln!(
                out,
                "  {} [{}] on {domain}: {what}, at most {}",
                disk.alias,
                size(disk.virtual_size),
                size(disk.expected_bytes)
            );
        }
    }
    let _ = writeln!(out, "in all at most {} to read", size(plan.expected_bytes));
    out
}

/// A restore plan.
pub fn explain_restore(plan: &RestorePlan) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{} `{}` in cluster {} from point {}{}",
        plan.kind.word(),
        plan.name,
        plan.cluster_name,
        plan.point,
        if plan.power_on { ", started afterwards" } else { "" }
    );
    if let Some(host) = &plan.host {
        let _ = writeln!(out, "  written through {} ({})", host.name, host.why);
    }
    for disk in &plan.disks {
        let _ = writeln!(
            out,
            "  disk {} [{}] on {} as {:?}, {}{}",
            disk.alias,
            size(disk.virtual_size),
            disk.domain_name,
            disk.format,
            disk.interface,
            if disk.bootable { ", bootable" } else { "" }
        );
    }
    for nic in &plan.nics {
        let _ = writeln!(
            out,
            "  NIC {} on {}, MAC {}{}",
            nic.name,
            nic.profile_name.as_deref().unwrap_or("no network"),
            nic.mac.as_deref().unwrap_or("new"),
            if nic.linked { "" } else { ", disconnected" }
        );
    }
    if let Some(replace) = &plan.replace {
        explain_replace(&mut out, replace);
    }
    for warning in &plan.warnings {
        let _ = writeln!(out, "  warning: {warning}");
    }
    out
}

fn explain_replace(out: &mut String, replace: &Replace) {
    let _ = writeln!(out, "  replaces VM `{}` ({}):", replace.name, replace.vm);
    for disk in &replace.deleted {
        let bytes = disk.virtual_size.map_or_else(|| "?".to_owned(), size);
        let _ = writeln!(out, "    DELETED: disk {} [{bytes}] ({})", disk.alias, disk.id);
    }
    for text in &replace.snapshots {
        let _ = writeln!(out, "    DELETED: snapshot `{text}`");
    }
    for disk in &replace.kept {
        let _ = writeln!(
            out,
            "    kept and attached to the new VM: disk {} ({}): {}",
            disk.alias, disk.id, disk.why
        );
    }
    out.push_str(
        "    it is deleted when the new one stands with re-read disks: until then there is room for both;\n    \
         the new VM has an id of its own: its next backup is full, and policies, maps and permissions\n    \
         that name the old id must be changed\n",
    );
}
