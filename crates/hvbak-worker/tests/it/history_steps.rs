//! What can happen to a disk, as values that proptest can make smaller.
//!
//! Never does anything itself; `history_disk` and `history_store` do.

/// How a qcow2 layer is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// 12 = 4 KiB … 21 = 2 MiB.
    pub cluster_bits: u32,
    pub shape: Shape,
}

/// Which kind of qcow2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// compat=0.10: no explicit zeros.
    V2,
    V3,
    /// Subclusters; from 16 KiB on.
    Extended,
}

/// What the disk begins as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    Raw,
    Cow(Layer),
    /// Filled and compressed by `qemu-img convert`, with zstd or zlib.
    Packed {
        layer: Layer,
        zstd: bool,
    },
}

impl Layer {
    /// As vdsm makes them.
    pub const VDSM: Self = Self { cluster_bits: 16, shape: Shape::V3 };

    /// For `qemu-img create -o`.
    pub fn options(self) -> String {
        let (size, shape) = (1 << self.cluster_bits, self.shape());
        match shape {
            Shape::V2 => format!("cluster_size={size},compat=0.10"),
            Shape::V3 => format!("cluster_size={size},compat=1.1"),
            Shape::Extended => format!("cluster_size={size},compat=1.1,extended_l2=on"),
        }
    }

    /// Subclusters need clusters of 16 KiB.
    pub fn shape(self) -> Shape {
        match self.shape {
            Shape::Extended if self.cluster_bits < 14 => Shape::V3,
            shape => shape,
        }
    }
}

/// Something that the guest does. Places are sectors, negative ones from the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Io {
    pub what: What,
    pub at: i32,
    pub sectors: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// One byte for even seeds, noise for odd ones.
    Write(u8),
    Zero {
        unmap: bool,
    },
    Discard,
}

/// What the user asks of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    Full,
    Incremental,
    Differential,
}

/// One step of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Io(Vec<Io>),
    Foreign(Layer),
    /// Deletes one of the snapshots, whosever it is.
    Delete(u8),
    /// Goes back to one of the snapshots; what came after it is gone.
    Commit(u8),
    Extend(u32),
    Backup {
        wish: Wish,
        layer: Layer,
        /// zstd on the wire, or plain.
        packed: bool,
    },
}
