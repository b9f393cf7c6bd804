//! A small cache of L2 table slices, bounded in bytes, shared by threads.
//!
//! Slices are at most 64 KiB, so that a chain of many layers with 2 MiB clusters stays
//! small too. The lock is held for a lookup, never during a read from storage.

use std::sync::{Arc, Mutex, PoisonError};

use crate::Result;

/// Largest slice in bytes: one L2 table of vdsm's images.
pub(crate) const SLICE_BYTES: u64 = 64 * 1024;

/// Words of one slice of an L2 table, in host byte order.
pub(crate) type Slice = Arc<[u64]>;

pub(crate) struct SliceCache {
    slots: Mutex<Slots>,
}

struct Slots {
    /// (host offset of the slice, last use, words); few enough for a linear look.
    list: Vec<(u64, u64, Slice)>,
    clock: u64,
    capacity: usize,
}

impl SliceCache {
    pub fn new(capacity: usize) -> Self {
        Self { slots: Mutex::new(Slots { list: Vec::new(), clock: 0, capacity: capacity.max(1) }) }
    }

    pub fn set_capacity(&self, capacity: usize) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.capacity = capacity.max(1);
        let capacity = slots.capacity;
        slots.list.truncate(capacity);
    }

    /// The slice at `offset`, loaded by `load` when it is not held. Two threads that miss
    /// at once both load: cheaper than making one wait on the other's storage.
    pub fn get(&self, offset: u64, load: impl FnOnce() -> Result<Slice>) -> Result<Slice> {
        if let Some(slice) = self.find(offset) {
            return Ok(slice);
        }
        let slice = load()?;
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.clock += 1;
        let entry = (offset, slots.clock, slice.clone());
        if slots.list.len() < slots.capacity {
            slots.list.push(entry);
        } else if let Some(oldest) = slots.list.iter_mut().min_by_key(|slot| slot.1) {
            *oldest = entry;
        }
        Ok(slice)
    }

    fn find(&self, offset: u64) -> Option<Slice> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.clock += 1;
        let clock = slots.clock;
        let slot = slots.list.iter_mut().find(|slot| slot.0 == offset)?;
        slot.1 = clock;
        Some(slot.2.clone())
    }
}
