//! Block domains: a group of LVM per domain, an LV per volume.
//!
//! LVM needs root, files of an NFS domain must be touched as user 36: a session works on
//! domains of one kind, whichever it is asked for first.

mod domain;
mod lvm;
mod marks;

use std::{collections::BTreeMap, fs};

use hvbak_types::DomainId;
use hvbak_vdsm::{Lv, pool_link};
use hvbak_wire::{FileIdentity, VolumeAddress};

use crate::{error::Result, host::Host};

pub use domain::BlockDomain;

/// The block domains that a session works on.
#[derive(Default)]
pub struct BlockDomains {
    domains: BTreeMap<DomainId, BlockDomain>,
}

impl BlockDomains {
    /// Whether a domain is one, by what vdsm leaves on the host's own file system while
    /// it is connected. No LUN and no mount is touched.
    pub fn is_block(host: &Host, at: &VolumeAddress) -> bool {
        if let Ok(target) = fs::read_link(host.path(&pool_link(at.data_center, at.domain))) {
            return target.components().any(|c| c.as_os_str() == "blockSD");
        }
        let seen = |path: String| host.path(&path).symlink_metadata().is_ok();
        seen(format!("/rhev/data-center/mnt/blockSD/{}", at.domain))
            || seen(format!("/dev/{}/metadata", at.domain))
    }

    /// Whether any is in use.
    pub fn in_use(&self) -> bool {
        !self.domains.is_empty()
    }

    /// The domain, looked for at first use.
    ///
    /// # Errors
    /// As [`BlockDomain::find`].
    pub fn get(&mut self, host: &Host, domain: DomainId) -> Result<&mut BlockDomain> {
        use std::collections::btree_map::Entry;
        Ok(match self.domains.entry(domain) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(BlockDomain::find(host, domain)?),
        })
    }

    /// Closes and deactivates everything.
    pub fn release(&mut self) {
        self.domains.clear();
    }
}

/// Which LV it is: its LVM id and extents, not its device, which changes with every
/// activation. An LV that was removed and made anew, extended or moved has another one.
pub fn lv_identity(lv: &Lv) -> FileIdentity {
    let number = |text: &str| {
        let hash = blake3::hash(text.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hash.as_bytes()[..8]);
        u64::from_le_bytes(first)
    };
    FileIdentity { device: number(&lv.uuid), inode: number(&lv.extents), mtime_ns: 0 }
}
