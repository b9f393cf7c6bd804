//! Which VM of a run goes next: the largest that fits the limits.
//!
//! Largest first, because the run ends when its longest VM ends. Invariant: no host, no
//! storage domain and not the run as a whole ever carries more than its limit.

use std::collections::{BTreeSet, HashMap};

use hvbak_types::{DomainId, HostId};

use crate::{VmAction, VmPlan};

/// How many VMs are backed up at the same time; each at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub total: usize,
    pub per_host: usize,
    pub per_domain: usize,
}

/// The VMs that wait, and what those at work weigh.
#[derive(Debug)]
pub struct Queue {
    limits: Limits,
    waiting: Vec<VmPlan>,
    running: usize,
    hosts: HashMap<HostId, usize>,
    domains: HashMap<DomainId, usize>,
}

impl Queue {
    /// Takes the VMs that are to be backed up; those left out are not its business.
    pub fn new(vms: &[VmPlan], limits: Limits) -> Self {
        let mut waiting: Vec<_> =
            vms.iter().filter(|vm| vm.action == VmAction::Backup).cloned().collect();
        waiting.sort_by(|a, b| (b.expected_bytes, &a.name).cmp(&(a.expected_bytes, &b.name)));
        Self { limits, waiting, running: 0, hosts: HashMap::new(), domains: HashMap::new() }
    }

    /// The next VM that may start now; it counts as running until [`Queue::ended`].
    pub fn start(&mut self) -> Option<VmPlan> {
        if self.running >= self.limits.total.max(1) {
            return None;
        }
        let index = self.waiting.iter().position(|vm| self.fits(vm))?;
        let vm = self.waiting.remove(index);
        self.running += 1;
        if let Some(host) = &vm.host {
            *self.hosts.entry(host.id).or_default() += 1;
        }
        for domain in domains(&vm) {
            *self.domains.entry(domain).or_default() += 1;
        }
        Some(vm)
    }

    /// Gives the room of a VM back.
    pub fn ended(&mut self, vm: &VmPlan) {
        self.running = self.running.saturating_sub(1);
        let less = |count: &mut usize| *count = count.saturating_sub(1);
        if let Some(host) = &vm.host {
            self.hosts.entry(host.id).and_modify(less);
        }
        for domain in domains(vm) {
            self.domains.entry(domain).and_modify(less);
        }
    }

    /// VMs that have not started.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn fits(&self, vm: &VmPlan) -> bool {
        let below = |count: Option<&usize>, limit: usize| count.is_none_or(|c| *c < limit.max(1));
        let host = vm.host.as_ref().and_then(|h| self.hosts.get(&h.id));
        below(host, self.limits.per_host)
            && domains(vm).iter().all(|d| below(self.domains.get(d), self.limits.per_domain))
    }
}

/// The domains that a VM is read from, each once.
fn domains(vm: &VmPlan) -> BTreeSet<DomainId> {
    vm.chosen_disks().filter_map(|d| d.domain).collect()
}

#[cfg(test)]
mod tests {
    use hvbak_types::{DiskId, VmId};

    use super::*;
    use crate::{DiskAction, DiskPlan, Held, HostChoice, Level, Wish};

    fn vm(name: &str, bytes: u64, host: HostId, domain: DomainId) -> VmPlan {
        let disk = |n: u64| DiskPlan {
            id: DiskId::random(),
            alias: format!("{name}_{n}"),
            action: DiskAction::Backup { level: Level::Full, reason: String::new() },
            domain: Some(domain),
            domain_name: None,
            virtual_size: bytes,
            expected_bytes: bytes,
            held: Held::default(),
            block: false,
        };
        VmPlan {
            id: VmId::random(),
            name: name.into(),
            template: false,
            action: VmAction::Backup,
            host: Some(HostChoice { id: host, name: "h".into(), why: String::new() }),
            data_center: None,
            freeze: false,
            freeze_required: false,
            // Two disks of one domain weigh as one.
            disks: vec![disk(1), disk(2)],
            expected_bytes: bytes,
            warnings: Vec::new(),
            wish: Wish::Auto,
            base: None,
            base_stays: false,
            resume: None,
        }
    }

    fn started(queue: &mut Queue) -> Vec<String> {
        std::iter::from_fn(|| queue.start()).map(|vm| vm.name).collect()
    }

    #[test]
    fn the_largest_that_fits_goes_first() {
        let (h1, h2) = (HostId::random(), HostId::random());
        let (d1, d2) = (DomainId::random(), DomainId::random());
        let vms = [
            vm("small", 1, h1, d1),
            vm("large", 9, h1, d1),
            vm("middle", 5, h1, d2),
            vm("other", 3, h2, d2),
        ];
        let limits = Limits { total: 3, per_host: 1, per_domain: 2 };
        let mut queue = Queue::new(&vms, limits);
        assert_eq!(started(&mut queue), ["large", "other"], "one for each host");
        queue.ended(&vms[1]);
        assert_eq!(started(&mut queue), ["middle"]);
        queue.ended(&vms[2]);
        queue.ended(&vms[3]);
        assert_eq!(started(&mut queue), ["small"]);
        assert_eq!(queue.waiting(), 0);
    }

    #[test]
    fn a_limit_of_a_domain_or_of_all_holds() {
        let vms: Vec<_> =
            (0..4).map(|n| vm(&n.to_string(), n, HostId::random(), DomainId::nil())).collect();
        let limits = |total, per_domain| Limits { total, per_host: 9, per_domain };
        assert_eq!(started(&mut Queue::new(&vms, limits(9, 2))).len(), 2);
        assert_eq!(started(&mut Queue::new(&vms, limits(3, 9))).len(), 3);
        assert_eq!(started(&mut Queue::new(&vms, limits(0, 0))).len(), 1, "at least one");
    }

    #[test]
    fn what_is_left_out_is_never_started() {
        let mut left = vm("x", 1, HostId::random(), DomainId::random());
        left.action = VmAction::Skip { skip: crate::VmSkip::Pool };
        let limits = Limits { total: 9, per_host: 9, per_domain: 9 };
        assert!(Queue::new(&[left], limits).start().is_none());
    }
}
