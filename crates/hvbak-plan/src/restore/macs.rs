//! Which MAC addresses others have: an address is given once.
//!
//! The engine counts within the MAC pool of a cluster, unless the pool allows twins. What it would
//! refuse is found here, before anything is made; what it lets pass is told.

use hvbak_types::{ClusterId, Inventory, MacUse, VmId};

use super::{NicTarget, RestoreError};

/// What is to become of an address that another VM has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// Nobody has asked for this one: the engine gives a new one instead.
    Yielding,
    /// It was asked for.
    Firm,
}

/// The addresses of a site, as seen from one of its clusters.
pub(super) struct Macs<'a> {
    pub inventory: &'a Inventory,
    pub cluster: ClusterId,
    /// Its addresses are free by the time they are given.
    pub replaced: Option<VmId>,
}

impl Macs<'_> {
    /// Takes an address from a NIC that cannot have it.
    ///
    /// # Errors
    /// [`RestoreError::MacTaken`] when it was asked for.
    pub fn settle(
        &self,
        nic: &mut NicTarget,
        wish: Wish,
        warnings: &mut Vec<String>,
    ) -> Result<(), RestoreError> {
        let Some(mac) = nic.mac.clone() else { return Ok(()) };
        let has = |one: &&MacUse| one.mac.eq_ignore_ascii_case(&mac);
        let others = self.inventory.macs.iter().filter(|one| Some(one.vm) != self.replaced);
        let mut others: Vec<_> = others.filter(has).collect();
        // Whom the engine would refuse it for comes first.
        others.sort_by_key(|one| !self.counts(one));
        let Some(other) = others.first() else { return Ok(()) };
        let (name, vm) = (&nic.name, other.vm_name.clone());
        match wish {
            _ if !self.counts(other) => warnings.push(format!(
                "NIC `{name}` gets MAC address {mac}, which VM `{vm}` has too; their pool, or pools, allow that"
            )),
            Wish::Firm => return Err(RestoreError::MacTaken { nic: name.clone(), mac, vm }),
            Wish::Yielding => {
                warnings.push(format!(
                    "NIC `{name}` gets a new MAC address: VM `{vm}` has {mac}"
                ));
                nic.mac = None;
            }
        }
        Ok(())
    }

    /// Whether the engine would refuse an address because of this VM. What is not known counts.
    fn counts(&self, other: &MacUse) -> bool {
        let pool = |id: ClusterId| {
            let of = self.inventory.clusters.iter().find(|cluster| cluster.id == id);
            of.and_then(|cluster| cluster.mac_pool)
        };
        match (pool(self.cluster), other.cluster.and_then(pool)) {
            (Some(ours), Some(theirs)) if ours != theirs => false,
            (Some(ours), _) => {
                let known = self.inventory.mac_pools.iter().find(|pool| pool.id == ours);
                known.and_then(|pool| pool.allow_duplicates) != Some(true)
            }
            (None, _) => true,
        }
    }
}
