//! Buffers aligned for O_DIRECT: 4096 everywhere, because 4K domains need it and others
//! do not mind.

/// Alignment of buffer, offset and length.
pub const ALIGN: usize = 4096;

/// A buffer whose slice starts at a multiple of [`ALIGN`]. Over-allocates one block
/// instead of calling the allocator by hand.
pub struct Aligned {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    /// A zeroed buffer.
    pub fn new(length: usize) -> Self {
        let memory = vec![0; length + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN);
        // `align_offset` may give up in theory; then reads go through the bounce buffer.
        let start = if start <= ALIGN { start } else { 0 };
        Self { memory, start, length }
    }
}

impl AsMut<[u8]> for Aligned {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

/// Whether a read of this buffer at this offset satisfies O_DIRECT.
pub fn is_aligned(buf: &[u8], offset: u64) -> bool {
    buf.as_ptr().addr().is_multiple_of(ALIGN)
        && buf.len().is_multiple_of(ALIGN)
        && offset.is_multiple_of(ALIGN as u64)
}
