//! A tree as vdsm makes it, and a coordinator that is just enough.

mod guest;
mod tree;
mod worker;

pub use guest::{Guest, Lab};
pub use tree::{Tree, Volume, kind, qemu_img};
pub use worker::Worker;

use hvbak_wire::{Format, Guards, Op, VolumeAddress, Zeros};

pub const MIB: u64 = 1 << 20;
pub const CLUSTER: u64 = 65_536;

/// A target request with all guards.
pub fn target(at: VolumeAddress, format: Format, virtual_size: u64, reads: Zeros) -> Op {
    let guards = Guards::default();
    Op::Target { at, format, virtual_size, slice: None, reads, guards, check_digests: true }
}
