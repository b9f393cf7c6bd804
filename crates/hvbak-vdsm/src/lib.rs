//! Where vdsm keeps volumes and what its metadata says. Text in, values out.
//!
//! This room runs no command and opens no file. Facts are from vdsm 4.20–4.50
//! (`storage/{fileSD,blockSD,mount,volumemetadata,constants}.py`).
//! Invariant: a name that reaches a path is a UUID or was proven to be one file name;
//! nothing read from a host is put into a path unchecked.

mod description;
mod lvm;
mod meta;
mod mount;
mod names;
mod tags;

pub use description::DiskDescription;
pub use lvm::{LVS_COLUMNS, Lv, LvmError, LvmLine, VolumeGroup, lvm_config, lvm_line, parse_pvs};
pub use meta::{Allocation, Legality, META_SIZE, MetaError, VolumeFormat, VolumeMeta, VolumeRole};
pub use mount::{
    Mount, MountShape, local_directory, mount_directory, mount_shape, normalise_spec, pool_link,
    volume_path,
};
pub use names::{
    BackingName, BackingNameError, backing_name, dm_name, image_directory, is_meta_name, lv_path,
    meta_slot_offset, skip_reason,
};
pub use tags::{LvTags, decode_vg_value, encode_vg_value, parse_lv_tags};

#[cfg(test)]
mod proptests;
