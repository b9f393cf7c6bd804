//! Whether a cluster is all zero. Runs over every byte that is read, so it is written to
//! become wide loads: blocks of 256 bytes OR-ed together, one branch per block.

/// Whether all bytes are zero.
pub fn is_zero(data: &[u8]) -> bool {
    // Data rarely starts with many zeros: most clusters leave here.
    let (head, rest) = data.split_at(data.len().min(16));
    if head.iter().any(|b| *b != 0) {
        return false;
    }
    let mut blocks = rest.chunks_exact(256);
    for block in &mut blocks {
        let mut any = 0u64;
        for word in block.chunks_exact(8) {
            let mut raw = [0; 8];
            raw.copy_from_slice(word);
            any |= u64::from_ne_bytes(raw);
        }
        if any != 0 {
            return false;
        }
    }
    blocks.remainder().iter().all(|b| *b == 0)
}

#[cfg(test)]
mod tests {
    use super::is_zero;

    #[test]
    fn one_bit_anywhere_is_seen() {
        for length in [0, 1, 15, 16, 17, 255, 256, 272, 273, 4096, 65_536] {
            let mut data = vec![0u8; length];
            assert!(is_zero(&data), "{length}");
            for at in (0..length).step_by(1 + length / 97) {
                data[at] = 0x80;
                assert!(!is_zero(&data), "{length} {at}");
                data[at] = 0;
            }
            if length > 0 {
                data[length - 1] = 1;
                assert!(!is_zero(&data), "{length} last");
            }
        }
    }
}
