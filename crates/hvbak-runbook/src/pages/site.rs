//! The backup host lost, and everything but the repository lost.

use super::{manager, overview, vm};
use crate::{
    Facts,
    text::{commands, quoted, steps, words},
};

pub fn backup_host(facts: &Facts) -> String {
    let mut lines =
        vec!["# an image with all its backing files to one raw file, or onto an LV".into()];
    let first = facts.vms.iter().find_map(|vm| vm.newest.as_ref());
    for disk in first.map_or(&[][..], |p| &p.disks) {
        lines.push(format!("qemu-img info --backing-chain {}", quoted(&disk.image)));
        let target = quoted(&format!("/restore/{}.raw", disk.alias.replace('/', "_")));
        lines.push(format!("qemu-img convert -p -O raw {} {target}", quoted(&disk.image)));
    }
    if first.is_none() {
        lines.push("# no VM has a stored point".into());
    }
    format!(
        "The repository `{}` is needed, mounted on any Linux machine; nothing else of hvbak. Every \
         disk is a qcow2 file `REPOSITORY/vms/VM-ID/POINT/DISK-ID.qcow2`, deltas name the point \
         before as their backing file. `manifest.json` beside it says which disk it is.\n\n\
         ## With hvbak\n{}## With qemu-img alone\n{}## The manager's archive with tar \
         alone\n{}{}",
        facts.repository,
        commands(&[
            "# a new machine, hvbak installed, the repository mounted where it was".into(),
            format!(
                "hvbak init --engine {} --username admin@internal --repository {}",
                quoted(&facts.engine.url),
                quoted(&facts.repository)
            ),
            "hvbak enroll --all --bootstrap-password-file FILE   # the old key is lost with the host".into(),
            "hvbak cleanup".into(),
            "hvbak verify --all".into(),
        ]),
        commands(&lines),
        commands(&match manager::newest(facts) {
            None => vec!["# no backup of the manager is stored".into()],
            Some(point) => {
                let mut lines = manager::identity(point);
                let mut archive = quoted(&point.archive);
                if !lines.is_empty() {
                    lines.push("umask 077   # the archive holds the CA's key".into());
                    lines.push(format!(
                        "age --decrypt --identity \"$IDENTITY\" --output /root/engine.backup {archive}"
                    ));
                    archive = "/root/engine.backup".into();
                }
                lines.push(format!("tar --list --file {archive}"));
                lines.push(format!("tar --extract --to-stdout --file {archive} ./sha256sum"));
                lines
            }
        }),
        steps(&[
            "The old key still opens the hypervisors if somebody has it: `hvbak enroll --all --revoke` from a copy of the old configuration, or remove the line that ends in `hvbak` from `authorized_keys`.",
            "To make a VM from raw files by hand: new VM with empty preallocated disks of the same size in the portal, then upload the image in the portal, or write it onto the volume on a host.",
            "`vm.ovf` in the point says what the VM had: memory, processors, firmware, MAC addresses.",
        ]),
    )
}

pub fn whole(facts: &Facts) -> String {
    let restores: Vec<_> = facts.vms.iter().filter_map(|v| vm::restore(v, &v.name)).collect();
    let restores = if restores.is_empty() { vec!["# no VM is stored".into()] } else { restores };
    let content: u64 = facts.vms.iter().filter_map(|v| Some(v.newest.as_ref()?.content)).sum();
    format!(
        "Order: network and DNS, storage, the manager, hosts, VMs by priority. All content together \
         is {}, {} at the measured speed.\n\n## 1. Networks\n{}## 2. Storage\n\nNew, empty exports \
         or LUNs; at least one data domain per data center.\n{}## 3. The manager\n\n\
         The restored database knows hosts and domains that are gone: destroy those domains, remove \
         those hosts. Which page: {}.\n{}## 4. Hosts\n{}## 5. VMs\n\nIn this order; add `--cluster` \
         and `--storage-domain` where names have changed.\n{}{}",
        crate::text::bytes(content),
        crate::text::expected(content, facts.speed),
        overview::networks(facts),
        overview::domains(facts),
        match &facts.engine.hosted_engine_vm {
            None => "[The manager is lost](manager-lost.md)",
            Some(_) => "[The self-hosted engine is lost](hosted-engine-lost.md)",
        },
        manager::copy_archive(facts, &quoted(&facts.engine.fqdn)),
        overview::hosts(facts),
        commands(&restores),
        steps(&[
            &format!("The name {} resolves to the new manager.", words(&facts.engine.fqdn)),
            "`hvbak enroll --all`, then `hvbak doctor`, before the first restore.",
            "VMs that the restored manager still lists have no disks: remove them, then restore.",
            "Tick off each VM when somebody who uses it says that it is good.",
            "Back up at once: the first backups are full ones.",
        ]),
    )
}
