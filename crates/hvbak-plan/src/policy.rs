//! Policies: which VMs each of them means, and which VMs none means.
//!
//! Invariant: every VM of the inventory is told of exactly once, and so is each name in a
//! policy that means nothing.

use hvbak_types::{Inventory, VmId};
use serde::Serialize;

use crate::select::{SelectError, Selection, pick_vms};

/// One VM and what the policies say of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Assignment {
    pub vm: VmId,
    pub name: String,
    pub policies: Vec<Why>,
    /// Policies that select it and leave it out again.
    pub excluded: Vec<Why>,
    /// It cannot be backed up as a VM: it runs the engine.
    pub is_engine: bool,
}

/// A policy, and the words of it that count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Why {
    pub policy: String,
    pub why: String,
}

/// What all policies mean at a site.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assignments {
    /// By name, then id.
    pub vms: Vec<Assignment>,
    /// Names in a policy that mean nothing, with the policy.
    pub missing: Vec<(String, SelectError)>,
}

impl Assignments {
    fn of(&mut self, vm: VmId) -> Option<&mut Assignment> {
        self.vms.iter_mut().find(|known| known.vm == vm)
    }

    /// VMs that no policy speaks of, though one could. One that a policy selects and leaves out
    /// again was left out by a decision.
    pub fn unassigned(&self) -> impl Iterator<Item = &Assignment> {
        let forgotten = |vm: &&Assignment| vm.policies.is_empty() && vm.excluded.is_empty();
        self.vms.iter().filter(forgotten).filter(|vm| !vm.is_engine)
    }
}

/// Assigns every VM; the policies are pairs of name and selection.
///
/// # Errors
/// The policy whose selection selects nothing at all, or has a pattern that is none.
pub fn assign_vms(
    inventory: &Inventory,
    policies: &[(String, Selection)],
) -> Result<Assignments, (String, SelectError)> {
    let assignment = |vm: &hvbak_types::Vm| Assignment {
        vm: vm.id,
        name: vm.name.clone(),
        policies: Vec::new(),
        excluded: Vec::new(),
        is_engine: vm.is_hosted_engine(),
    };
    let mut all = Assignments {
        vms: inventory.vms.iter().map(assignment).collect(),
        ..Assignments::default()
    };
    all.vms.sort_by(|a, b| (&a.name, a.vm).cmp(&(&b.name, b.vm)));
    for (policy, selection) in policies {
        let picked = pick_vms(inventory, selection).map_err(|error| (policy.clone(), error))?;
        all.missing.extend(picked.missing.into_iter().map(|error| (policy.clone(), error)));
        for (id, why) in picked.vms {
            let why = Why { policy: policy.clone(), why: why.join(", ") };
            all.of(id).into_iter().for_each(|vm| vm.policies.push(why.clone()));
        }
        for (id, why) in picked.excluded {
            let why = Why { policy: policy.clone(), why };
            all.of(id).into_iter().for_each(|vm| vm.excluded.push(why.clone()));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::tests::{inventory, vm};

    #[test]
    fn every_vm_is_told_of_once_with_its_policies_or_without() {
        let mut inv = inventory();
        inv.vms = vec![vm("web1"), vm("db1"), vm("lab"), vm("HostedEngine")];
        inv.vms[3].origin = Some("managed_hosted_engine".into());
        let glob = |text: &str| Selection { globs: vec![text.into()], ..Selection::default() };
        let policies = [
            ("nightly".to_owned(), Selection { exclude: vec!["web*".into()], ..glob("*[0-9]") }),
            ("hourly".to_owned(), Selection { names: vec!["gone".into()], ..glob("db*") }),
        ];
        let all = assign_vms(&inv, &policies).unwrap();
        let of = |name: &str| all.vms.iter().find(|vm| vm.name == name).unwrap();
        let names = |list: &[Why]| list.iter().map(|w| w.policy.clone()).collect::<Vec<_>>();
        assert_eq!(names(&of("db1").policies), ["nightly", "hourly"]);
        assert_eq!(names(&of("web1").excluded), ["nightly"]);
        assert_eq!(of("web1").excluded[0].why, "`web*` is excluded");
        let unassigned: Vec<_> = all.unassigned().map(|vm| vm.name.as_str()).collect();
        assert_eq!(unassigned, ["lab"]);
        let missing = SelectError::Unknown { what: "vm", text: "gone".into() };
        assert_eq!(all.missing, [("hourly".to_owned(), missing)]);
        let none = [("empty".to_owned(), Selection::default())];
        assert_eq!(assign_vms(&inv, &none), Err(("empty".to_owned(), SelectError::Nothing)));
    }
}
