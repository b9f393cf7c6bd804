//! Where vdsm keeps volumes and what its metadata says; text only
